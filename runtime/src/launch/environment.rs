//! What a launched process finds in its environment: torchrun's variables, so that scripts written for torchrun run
//! unchanged, and ours. A pure function of the plan and the job.
//!
//! | variable | value |
//! | --- | --- |
//! | `RANK`, `ROLE_RANK` | global rank |
//! | `WORLD_SIZE`, `ROLE_WORLD_SIZE` | ranks of the plan |
//! | `LOCAL_RANK`, `LOCAL_WORLD_SIZE` | among the ranks that the plan puts on the same host, in rank order |
//! | `GROUP_RANK`, `GROUP_WORLD_SIZE` | host, in order of its lowest rank; number of hosts |
//! | `ROLE_NAME` | `default` |
//! | `MASTER_ADDR`, `MASTER_PORT` | where rank 0 hosts the store |
//! | `TORCHELASTIC_RUN_ID`, `_RESTART_COUNT`, `_MAX_RESTARTS` | the job's name, 0, 0 |
//! | `TORCHELASTIC_ERROR_FILE` | where a failing rank may explain itself (`error_file`) |
//! | `TORCHELASTIC_SIGNALS_TO_HANDLE` | those that the launcher passes on |
//! | `TORCH_NCCL_ASYNC_ERROR_HANDLING` | 1 |
//! | `OMP_NUM_THREADS`, `PYTHONUNBUFFERED` | 1, unless already set |
//! | `NARROWS_PLAN`, `NARROWS_REPLICA`, `NARROWS_STAGE` | the plan's file; indices into it |
//! | `NARROWS_COORDINATOR`, `NARROWS_JOB_KEY` | address, if there is one; 64 hexadecimal digits |
//!
//! `TORCHELASTIC_USE_AGENT_STORE` stays unset: then rank 0 hosts the store, and no launcher has to (torch 2.15,
//! rendezvous.py). Source of the list: a torchrun 2.15 worker's environment.
//! Not here: NCCL's variables per host (`planner/export`).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener};

use narrows_planner::plan::{Plan, Seat};

/// What the ranks of a job share, beside the plan.
#[derive(Debug, Clone, Copy)]
pub struct JobEnvironment<'a> {
    /// The plan's file, best absolute.
    pub plan_path: &'a str,
    /// Where the ranks' error files go, best absolute: [`LaunchConfig::log_dir`](super::LaunchConfig::log_dir).
    pub log_dir: &'a str,
    /// Names the job.
    pub run_id: &'a str,
    /// Host name or address where every rank reaches rank 0.
    pub master_addr: &'a str,
    /// A port that is free there.
    pub master_port: u16,
    /// `host:port` of the coordinator.
    pub coordinator: Option<&'a str>,
    /// Known to the ranks of this job and to nobody else.
    pub key: &'a JobKey,
}

/// The environments of all ranks, in rank order.
///
/// `is_set` tells whether the launcher's own environment, which the ranks inherit, has a variable.
pub fn environment(
    plan: &Plan,
    job: &JobEnvironment<'_>,
    is_set: impl Fn(&str) -> bool,
) -> Vec<Vec<(String, String)>> {
    let seats = plan.seats();
    let hosts = hosts(&seats);
    let defaults = [("OMP_NUM_THREADS", "1"), ("PYTHONUNBUFFERED", "1")];
    let defaults: Vec<_> = defaults.into_iter().filter(|(name, _)| !is_set(name)).collect();
    let of_seat = |seat: &Seat<'_>| {
        let mut variables = of_place(seat, &seats, &hosts);
        variables.extend(of_job(seat.placement.rank, job));
        variables.extend(defaults.iter().map(|(name, value)| (*name, (*value).to_owned())));
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    };
    seats.iter().map(of_seat).collect()
}

/// How messages call a rank: `rank 2 (replica 1 stage 0, host slow-0, ethernet)`.
pub fn rank_label(seat: &Seat<'_>) -> String {
    let Seat { replica, stage, placement } = seat;
    format!(
        "rank {} (replica {replica} stage {stage}, host {}, {})",
        placement.rank,
        placement.host,
        placement.nic.name()
    )
}

/// A TCP port that nobody used a moment ago; whoever binds it next has it.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// 32 random bytes by which the ranks of a job know each other. `Display` gives 64 hexadecimal digits; `Debug` nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct JobKey([u8; 32]);

impl JobKey {
    /// A new one, from the kernel's generator.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// One made elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobKey(secret)")
    }
}

type Variables = Vec<(&'static str, String)>;

/// What follows from where the rank sits.
fn of_place(seat: &Seat<'_>, seats: &[Seat<'_>], hosts: &[&str]) -> Variables {
    let rank = seat.placement.rank;
    let is_neighbour = |other: &&Seat<'_>| other.placement.host == seat.placement.host;
    let neighbours = seats.iter().filter(is_neighbour);
    let local_rank = neighbours.clone().filter(|s| s.placement.rank < rank).count();
    let host = hosts.iter().position(|h| *h == seat.placement.host).expect("hosts come from the seats");
    vec![
        ("RANK", rank.to_string()),
        ("ROLE_RANK", rank.to_string()),
        ("ROLE_NAME", "default".to_owned()),
        ("WORLD_SIZE", seats.len().to_string()),
        ("ROLE_WORLD_SIZE", seats.len().to_string()),
        ("LOCAL_RANK", local_rank.to_string()),
        ("LOCAL_WORLD_SIZE", neighbours.count().to_string()),
        ("GROUP_RANK", host.to_string()),
        ("GROUP_WORLD_SIZE", hosts.len().to_string()),
        ("NARROWS_REPLICA", seat.replica.to_string()),
        ("NARROWS_STAGE", seat.stage.to_string()),
    ]
}

/// What the job gives to every rank.
fn of_job(rank: u32, job: &JobEnvironment<'_>) -> Variables {
    let mut variables = vec![
        ("MASTER_ADDR", job.master_addr.to_owned()),
        ("MASTER_PORT", job.master_port.to_string()),
        ("TORCHELASTIC_RUN_ID", job.run_id.to_owned()),
        ("TORCHELASTIC_RESTART_COUNT", "0".to_owned()),
        ("TORCHELASTIC_MAX_RESTARTS", "0".to_owned()),
        ("TORCHELASTIC_ERROR_FILE", format!("{}/rank-{rank}.error.json", job.log_dir)),
        ("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP".to_owned()),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1".to_owned()),
        ("NARROWS_PLAN", job.plan_path.to_owned()),
        ("NARROWS_JOB_KEY", job.key.to_string()),
    ];
    variables.extend(job.coordinator.map(|address| ("NARROWS_COORDINATOR", address.to_owned())));
    variables
}

/// The hosts of a plan, in order of their lowest rank.
fn hosts<'a>(seats: &[Seat<'a>]) -> Vec<&'a str> {
    let mut hosts = Vec::new();
    for seat in seats {
        let host = seat.placement.host.as_str();
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    /// Two replicas: stages of 2 and 1 ranks on hosts a, b, and one rank on host b. Ranks lie across the hosts.
    fn plan() -> Plan {
        let rank =
            |rank: u32, host: &str, gpu: u32| json!({"rank": rank, "host": host, "gpu": gpu, "nic": "roce"});
        let stage = |layers: [u32; 2], ranks: &[serde_json::Value]| json!({"layers": layers, "ranks": ranks});
        let boundary = json!({"codec": {"kind": "none"}, "transport": "tcp"});
        let plan = json!({
            "version": 1,
            "cluster": {"clusters": []},
            "model": {"kind": "gpt", "layers": 4, "hidden": 8, "heads": 2, "vocab": 32, "sequence": 16,
                "global_batch": 4, "precision": "fp32", "optimizer": "adamw", "recompute": "none",
                "exchange": "dense", "boundary": "none"},
            "micro_batch": 1,
            "schedule": {"kind": "1f1b", "virtual_stages": 1},
            "replicas": [
                {"microbatches": 2, "boundaries": [boundary], "stages": [
                    stage([0, 2], &[rank(0, "b", 0), rank(2, "a", 0)]), stage([2, 4], &[rank(3, "b", 1)])]},
                {"microbatches": 2, "stages": [stage([0, 4], &[rank(1, "b", 2)])]},
            ],
            "exchange": [{"replicas": [0, 1], "kind": "dense", "every": 1}],
        });
        serde_json::from_value(plan).expect("a plan")
    }

    fn environments(coordinator: Option<&str>, set: &[&str]) -> Vec<BTreeMap<String, String>> {
        let key = JobKey::from_bytes([0xab; 32]);
        let job = JobEnvironment {
            plan_path: "/p.json",
            log_dir: "/logs",
            run_id: "run",
            master_addr: "127.0.0.1",
            master_port: 29_500,
            coordinator,
            key: &key,
        };
        let environments = environment(&plan(), &job, |name| set.contains(&name));
        environments.into_iter().map(|env| env.into_iter().collect()).collect()
    }

    #[test]
    fn places_are_counted_per_host_in_rank_order() {
        // RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, NARROWS_REPLICA, NARROWS_STAGE
        let expected = ["0 0 3 0 0 0", "1 1 3 0 1 0", "2 0 1 1 0 0", "3 2 3 0 0 1"];
        let names =
            ["RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NARROWS_REPLICA", "NARROWS_STAGE"];
        for (env, expected) in environments(None, &[]).iter().zip(expected) {
            assert_eq!(names.map(|name| env[name].as_str()).join(" "), expected);
            assert_eq!((env["WORLD_SIZE"].as_str(), env["GROUP_WORLD_SIZE"].as_str()), ("4", "2"));
            assert_eq!(env["TORCHELASTIC_ERROR_FILE"], format!("/logs/rank-{}.error.json", env["RANK"]));
        }
    }

    #[test]
    fn what_the_user_has_set_is_not_overruled() {
        assert_eq!(environments(None, &[])[0]["OMP_NUM_THREADS"], "1");
        assert!(!environments(None, &["OMP_NUM_THREADS"])[0].contains_key("OMP_NUM_THREADS"));
    }

    #[test]
    fn the_coordinator_is_named_only_if_there_is_one() {
        assert!(!environments(None, &[])[0].contains_key("NARROWS_COORDINATOR"));
        assert_eq!(environments(Some("h:1"), &[])[3]["NARROWS_COORDINATOR"], "h:1");
    }

    #[test]
    fn the_key_is_the_same_for_all_ranks_and_hidden_from_debug_output() {
        assert!(environments(None, &[]).iter().all(|env| env["NARROWS_JOB_KEY"] == "ab".repeat(32)));
        assert_eq!(format!("{:?}", JobKey::from_bytes([7; 32])), "JobKey(secret)");
        assert_ne!(JobKey::random().expect("the kernel gives"), JobKey::random().expect("the kernel gives"));
    }

    #[test]
    fn a_label_says_where_the_rank_sits() {
        let plan = plan();
        let labels: Vec<_> = plan.seats().iter().map(rank_label).collect();
        assert_eq!(labels[3], "rank 3 (replica 0 stage 1, host b, roce)");
    }
}
