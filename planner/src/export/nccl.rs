//! Which network each NCCL communicator uses: Holmes's automatic NIC selection (arXiv 2312.03549, section 3.2), by
//! environment where one network reaches all ranks, by communicator where it does not.
//!
//! ```text
//!   all ranks on one RDMA fabric      NCCL_NET=IB        a host that lost its adapter fails, not falls back
//!   no rank on RDMA                   NCCL_NET=Socket    NCCL_IB_DISABLE=1
//!   several fabrics                   neither            a group inside one fabric: IB; any other: Socket
//! ```
//! Holmes rewrites NCCL's environment before each group and relies on NCCL reading it again. NCCL reads it once, lets
//! NCCL_NET override every communicator, and takes the network of one communicator from `ncclConfig_t.netName`; so
//! with several fabrics the environment says nothing and `narrows_nccl.py`, which wraps the program, sets `net_name`
//! of each group by its members. InfiniBand and RoCE are both `IB` to NCCL and fail when they meet ("Attempted to
//! connect incompatible devices", NCCL 2.30), hence fabrics and not classes.
//!
//! Sockets must not leave through IPoIB, which NCCL prefers and other clusters do not reach: `^ib,...` where the
//! interface is not given. Variables: NCCL 2.30 documentation.

use std::collections::BTreeSet;

use super::Settings;
use super::roster::HostSeats;
use crate::inventory::NicClass;

/// Interfaces that no other host reaches, or only some.
const NOT_ETHERNET: &str = "^ib,lo,docker,virbr";

/// What reaches all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Net {
    /// One host: nothing to choose.
    Alone,
    /// One RDMA fabric.
    Rdma,
    /// TCP.
    Sockets,
    /// RDMA for some groups, TCP for others.
    Mixed,
}

impl Net {
    pub(super) fn of(hosts: &[HostSeats]) -> Self {
        let fabrics: BTreeSet<Option<&str>> = hosts.iter().map(HostSeats::fabric).collect();
        match (hosts.len(), fabrics.len(), fabrics.contains(&None)) {
            (1, _, _) => Net::Alone,
            (_, 1, true) => Net::Sockets,
            (_, 1, false) => Net::Rdma,
            _ => Net::Mixed,
        }
    }

    /// NCCL's variables on a host.
    pub(super) fn variables(self, host: &HostSeats, settings: &Settings) -> Vec<(&'static str, String)> {
        let mut variables: Vec<(&str, String)> = match self {
            Net::Alone => return Vec::new(),
            Net::Rdma => vec![("NCCL_NET", "IB".into())],
            Net::Sockets => vec![("NCCL_NET", "Socket".into()), ("NCCL_IB_DISABLE", "1".into())],
            Net::Mixed => Vec::new(),
        };
        if host.fabric().is_some() {
            variables.extend(settings.hca.get(&host.cluster).map(|hca| ("NCCL_IB_HCA", hca.clone())));
        }
        if host.seats.iter().any(|s| s.nic == NicClass::Roce) {
            let index = settings.gid_index.get(&host.cluster);
            variables.extend(index.map(|index| ("NCCL_IB_GID_INDEX", index.to_string())));
        }
        match settings.interface.get(&host.cluster) {
            Some(interface) => variables.push(("NCCL_SOCKET_IFNAME", interface.clone())),
            None if self != Net::Rdma => variables.push(("NCCL_SOCKET_IFNAME", NOT_ETHERNET.into())),
            None => {}
        }
        variables
    }

    pub(super) fn notes(self, hosts: &[HostSeats], settings: &Settings) -> Vec<String> {
        let mut notes = Vec::new();
        if self == Net::Mixed {
            notes.push(
                "the hosts share no one RDMA fabric: start Python programs through narrows_nccl.py, which gives each \
                 process group its network; set neither NCCL_NET nor NCCL_IB_DISABLE"
                    .into(),
            );
        }
        let unnamed = |h: &&HostSeats| !settings.interface.contains_key(&h.cluster);
        if let (Net::Mixed | Net::Sockets, Some(host)) = (self, hosts.iter().find(unnamed)) {
            notes.push(format!(
                "sockets take any interface but IPoIB and bridges; name cluster {0}'s with --interface {0}=eth0",
                host.cluster
            ));
        }
        notes
    }
}

/// The Python program that gives every process group its network.
pub(super) fn wrapper(hosts: &[HostSeats]) -> String {
    let mut fabrics: Vec<(u32, Option<&str>)> =
        hosts.iter().flat_map(|h| h.seats.iter().map(|s| (s.rank, h.fabric()))).collect();
    fabrics.sort_unstable();
    let mut runs: Vec<(usize, Option<&str>)> = Vec::new();
    for (_, fabric) in fabrics {
        match runs.last_mut() {
            Some((count, last)) if *last == fabric => *count += 1,
            _ => runs.push((1, fabric)),
        }
    }
    let runs: Vec<String> = runs
        .iter()
        .map(|(count, fabric)| match fabric {
            Some(fabric) => format!("({count}, {})", serde_json::Value::from(*fabric)),
            None => format!("({count}, None)"),
        })
        .collect();
    WRAPPER.replace("@RUNS@", &runs.join(", "))
}

const WRAPPER: &str = r#""""Runs a program so that each NCCL process group uses the network that its ranks share.

    python narrows_nccl.py train.py ARGUMENTS        python narrows_nccl.py -m package.train ARGUMENTS

Groups inside one RDMA fabric use it; any other, the default group first of all, uses sockets.
"""

import os
import runpy
import sys

# PyTorch 2.15 splits every group off the default one, whose network it would inherit; before it is imported:
os.environ["TORCH_DIST_USE_NCCL2"] = "0"

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

# (ranks, their RDMA fabric) in rank order; None: no RDMA.
RUNS = [@RUNS@]
FABRICS = [fabric for count, fabric in RUNS for _ in range(count)]


def net_name(ranks):
    """NCCL's name for the network of a group; no ranks: all of them."""
    fabrics = {FABRICS[rank] for rank in ranks or range(len(FABRICS))}
    return "IB" if len(fabrics) == 1 and None not in fabrics else "Socket"


class ByMembers(c10d.ProcessGroupNCCL):
    """PyTorch's own, with the network chosen by the members of the group."""

    def __init__(self, store, rank, size, options):
        options.config.net_name = net_name(options.global_ranks_in_group)
        super().__init__(store, rank, size, options)


def unbound(init_process_group):
    """Without a device, groups are made anew and not split from the default one, whose network they would inherit."""

    def init(*arguments, **keywords):
        keywords.pop("device_id", None)
        return init_process_group(*arguments, **keywords)

    return init


def install():
    c10d.ProcessGroupNCCL = ByMembers
    dist.init_process_group = c10d.init_process_group = unbound(c10d.init_process_group)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1:] == ["-m"]:
        sys.exit("narrows_nccl.py: which program? python narrows_nccl.py [-m] PROGRAM [ARGUMENT]...")
    install()
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[1:]
        sys.path[0] = sys.argv[0].rpartition("/")[0] or "."
        runpy.run_path(sys.argv[0], run_name="__main__")
"#;
