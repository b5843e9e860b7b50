//! Who starts where: the ranks of an export by host, as an environment file a host and a script that starts them.
//!
//! ```text
//!   hosts/ib-0.env    what all ranks of the host share, then a `case` on LOCAL_RANK with what is each rank's own
//!   start.sh          starts a process a GPU with it: bash start.sh COMMAND
//! ```
//! `RANK` is set for each process, so any placement can be had, also one in which a host's ranks are not neighbours.
//! Where they are, the file also sets torchrun's own settings (`PET_*`): source it and run `torchrun`. Variables:
//! torchrun 2.15, `torch/distributed/run.py` and `elastic/agent`.
//!
//! Not here: which network the ranks use (`nccl`).

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use super::shell::{comment, quote, words};
use super::{File, Settings, nccl};
use crate::inventory::{Fabric, NicClass};
use crate::plan::{Placement, Plan};

/// A rank of the export.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    pub(super) rank: u32,
    pub(super) replica: usize,
    pub(super) stage: usize,
    pub(super) gpu: u32,
    pub(super) nic: NicClass,
}

/// A host and its ranks, in the order of their numbers: local rank `i` is the `i`-th.
#[derive(Debug, Clone)]
pub(super) struct HostSeats {
    /// The environment file is named for it.
    pub(super) name: String,
    /// Where the others reach it.
    pub(super) address: String,
    /// Cluster.
    pub(super) cluster: String,
    /// GPUs that it has, used or not.
    pub(super) gpus: u32,
    pub(super) seats: Vec<Seat>,
}

/// All ranks, by host; hosts in the order of their first rank.
#[derive(Debug, Clone)]
pub(super) struct Roster {
    pub(super) hosts: Vec<HostSeats>,
    pub(super) net: nccl::Net,
}

impl Roster {
    /// With the plan's own numbers.
    pub(super) fn of_plan(plan: &Plan) -> Self {
        // Later rounds of an interleaved pipeline sit on GPUs that have their rank already.
        let (mut ranks, mut seen) = (Vec::new(), HashSet::new());
        for (r, replica) in plan.replicas.iter().enumerate() {
            for (s, stage) in replica.stages.iter().enumerate() {
                let fresh = stage.ranks.iter().filter(|p| seen.insert((p.host.as_str(), p.gpu)));
                ranks.extend(fresh.map(|placement| (r, s, placement)));
            }
        }
        ranks.sort_by_key(|(_, _, placement): &(usize, usize, &Placement)| placement.rank);
        Self::new(plan, &ranks)
    }

    /// With numbers by position; each entry is replica, stage and placement.
    pub(super) fn new(plan: &Plan, ranks: &[(usize, usize, &Placement)]) -> Self {
        let homes: BTreeMap<&str, (&Fabric, &str)> = plan
            .cluster
            .clusters
            .iter()
            .flat_map(|f| {
                f.hosts.iter().map(move |h| (h.name.as_str(), (f, h.address.as_deref().unwrap_or(&h.name))))
            })
            .collect();
        let mut hosts: Vec<HostSeats> = Vec::new();
        let mut position: BTreeMap<&str, usize> = BTreeMap::new();
        for (rank, &(replica, stage, placement)) in (0..).zip(ranks) {
            let (fabric, address) = homes[placement.host.as_str()];
            let at = *position.entry(&placement.host).or_insert_with(|| {
                hosts.push(HostSeats::empty(&placement.host, address, fabric));
                hosts.len() - 1
            });
            hosts[at].seats.push(Seat { rank, replica, stage, gpu: placement.gpu, nic: placement.nic });
        }
        let net = nccl::Net::of(&hosts);
        Self { hosts, net }
    }

    pub(super) fn world_size(&self) -> usize {
        self.hosts.iter().map(|h| h.seats.len()).sum()
    }

    /// How a Python program is started where its groups may need telling which network is theirs.
    pub(super) fn python(&self, folder: &str) -> String {
        let mixed = self.net == nccl::Net::Mixed;
        if mixed { format!("python {folder}/narrows_nccl.py ") } else { String::new() }
    }

    /// `start.sh`, the environments, and `narrows_nccl.py` where networks are mixed.
    pub(super) fn files(&self, settings: &Settings) -> Vec<File> {
        let mut files = vec![File::new("start.sh", START)];
        files.extend(
            self.hosts.iter().enumerate().map(|(i, host)| {
                File::new(format!("hosts/{}.env", host.name), self.environment(i, settings))
            }),
        );
        files.extend(self.wrapper());
        files
    }

    /// `narrows_nccl.py`, where one network does not reach all.
    pub(super) fn wrapper(&self) -> Option<File> {
        (self.net == nccl::Net::Mixed).then(|| File::new("narrows_nccl.py", nccl::wrapper(&self.hosts)))
    }

    pub(super) fn notes(&self, settings: &Settings) -> Vec<String> {
        let mut notes = self.net.notes(&self.hosts, settings);
        if let Some((host, rank)) = self.scattered() {
            notes.push(format!(
                "torchrun cannot give host {host} rank {rank} beside its others; start.sh can, and sets the same variables"
            ));
        }
        notes
    }

    /// The environment file of host `i`.
    pub(super) fn environment(&self, i: usize, settings: &Settings) -> String {
        let host = &self.hosts[i];
        let mut text = format!(
            "# {}: {} of {} ranks. Source it with LOCAL_RANK set for one rank's environment, as start.sh does.\n",
            comment(&host.name),
            host.seats.len(),
            self.world_size()
        );
        for (name, value) in self.shared(i, settings) {
            let _ = writeln!(text, "export {name}={}", quote(&value));
        }
        if self.scattered().is_none() {
            text += "# torchrun reads these; it then needs no arguments but the program.\n";
            for (name, value) in self.torchrun(i, settings) {
                let _ = writeln!(text, "export {name}={}", quote(&value));
            }
        }
        text += "case \"${LOCAL_RANK-}\" in\n";
        for (local, seat) in host.seats.iter().enumerate() {
            let Seat { rank, replica, stage, .. } = seat;
            let _ = writeln!(
                text,
                "{local}) export RANK={rank} NARROWS_REPLICA={replica} NARROWS_STAGE={stage} ;;"
            );
        }
        text + "esac\n"
    }

    /// What all ranks of a host have in common.
    fn shared(&self, i: usize, settings: &Settings) -> Vec<(&'static str, String)> {
        let (host, first) = (&self.hosts[i], &self.hosts[0]);
        let gpus: Vec<String> = host.seats.iter().map(|s| s.gpu.to_string()).collect();
        let mut variables = vec![
            ("MASTER_ADDR", first.address.clone()),
            ("MASTER_PORT", settings.port.to_string()),
            ("WORLD_SIZE", self.world_size().to_string()),
            ("LOCAL_WORLD_SIZE", host.seats.len().to_string()),
            ("GROUP_RANK", i.to_string()),
            ("GROUP_WORLD_SIZE", self.hosts.len().to_string()),
            ("CUDA_VISIBLE_DEVICES", gpus.join(",")),
        ];
        variables.extend(self.net.variables(host, settings));
        variables
    }

    fn torchrun(&self, i: usize, settings: &Settings) -> Vec<(&'static str, String)> {
        vec![
            ("PET_NNODES", self.hosts.len().to_string()),
            ("PET_NODE_RANK", i.to_string()),
            ("PET_NPROC_PER_NODE", self.hosts[i].seats.len().to_string()),
            ("PET_RDZV_BACKEND", "static".into()),
            ("PET_MASTER_ADDR", self.hosts[0].address.clone()),
            ("PET_MASTER_PORT", settings.port.to_string()),
        ]
    }

    /// The first host and rank that torchrun, which counts through host after host, would number otherwise.
    pub(super) fn scattered(&self) -> Option<(&str, u32)> {
        let seats = self.hosts.iter().flat_map(|h| h.seats.iter().map(move |s| (h, s)));
        seats
            .zip(0..)
            .find(|((_, seat), next)| seat.rank != *next)
            .map(|((h, s), _)| (h.name.as_str(), s.rank))
    }

    /// Hosts that look alike, in runs: same cluster, same number of ranks; the one of rank 0 is first.
    pub(super) fn components(&self) -> Vec<Vec<usize>> {
        let mut components: Vec<Vec<usize>> = Vec::new();
        let like = |a: usize, b: usize| {
            let (a, b) = (&self.hosts[a], &self.hosts[b]);
            a.cluster == b.cluster && a.seats.len() == b.seats.len()
        };
        for i in 0..self.hosts.len() {
            match components.iter_mut().find(|c| like(c[0], i)) {
                Some(component) => component.push(i),
                None => components.push(vec![i]),
            }
        }
        components
    }
}

impl HostSeats {
    fn empty(name: &str, address: &str, fabric: &Fabric) -> Self {
        Self {
            name: name.to_owned(),
            address: address.to_owned(),
            cluster: fabric.name.clone(),
            gpus: fabric.gpus,
            seats: Vec::new(),
        }
    }

    /// The RDMA fabric that its ranks use, if they do: NICs meet inside one cluster only.
    pub(super) fn fabric(&self) -> Option<&str> {
        self.seats.iter().all(|s| s.nic != NicClass::Ethernet).then_some(&self.cluster)
    }
}

/// A script that starts each rank of this host with `command` in front of what the user gives.
pub(super) fn run_script(about: &str, arguments: &[String], command: &str) -> String {
    let mut text =
        format!("#!/usr/bin/env bash\n# {about}\nset -eu\nhere=$(cd \"$(dirname \"$0\")\" && pwd)\n");
    if !arguments.is_empty() {
        text += "arguments=(\n";
        for line in arguments {
            let _ = writeln!(text, "  {}", words(line.split('\n')));
        }
        text += ")\n";
    }
    let _ = write!(
        text,
        "# Inside a rank that Slurm or Kubernetes has started there is nothing to start.\n\
         if [ -n \"${{RANK-}}\" ]; then start=(); else start=(bash \"$here/start.sh\"); fi\n\
         exec \"${{start[@]}}\" {command}\n"
    );
    text
}

/// Starts a host's ranks; one that fails ends the others.
pub(super) const START: &str = r#"#!/usr/bin/env bash
# Starts this host's ranks, a process a GPU: bash start.sh COMMAND [ARGUMENT]...
# NARROWS_HOST: this host's name in the plan, where `hostname -s` gives another. NARROWS_HOSTS: folder of the *.env files.
set -u
here=$(cd "$(dirname "$0")" && pwd)
hosts=${NARROWS_HOSTS:-$here/hosts}
host=${NARROWS_HOST:-$(hostname -s)}
if [ $# -eq 0 ]; then echo "start.sh: which program? bash start.sh COMMAND [ARGUMENT]..." >&2; exit 2; fi
if [ ! -r "$hosts/$host.env" ]; then
  echo "start.sh: the plan has nothing for host '$host' (no $hosts/$host.env); set NARROWS_HOST to its name there" >&2
  exit 2
fi
unset LOCAL_RANK
. "$hosts/$host.env"
ranks=()
end() { kill -TERM "${ranks[@]}" 2>/dev/null; }
trap 'end; exit 143' TERM
trap 'end; exit 130' INT
for ((i = 0; i < LOCAL_WORLD_SIZE; i++)); do
  ( export LOCAL_RANK=$i; . "$hosts/$host.env"; exec "$@" ) &
  ranks+=($!)
done
for _ in "${ranks[@]}"; do
  if wait -n; then continue; else code=$?; fi
  echo "start.sh: a rank of $host failed with $code; ending the others" >&2
  end
  for ((second = 0; second < 30; second++)); do kill -0 "${ranks[@]}" 2>/dev/null || break; sleep 1; done
  kill -KILL "${ranks[@]}" 2>/dev/null
  exit "$code"
done
"#;
