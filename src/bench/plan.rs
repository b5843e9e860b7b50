//! `narrows bench plan`: what planning costs, in time and memory, how near to proven it ends, and how it grows.
//!
//! ```text
//!   parent ──a process a case, one after the other──> child: search, then its own /proc/self/status ──JSON──> table
//! ```
//! A case is an inventory, a model, and a scale of both: nodes of every cluster and the batch, so that the work of a GPU
//! stays what it is. The time is that of the search alone, by the wall clock; peak memory (VmHWM) is that of the whole process.
//!
//! Not here: whether the plan is any good (`challenge`), what real runs take (`truth`).

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use narrows_planner::inventory::{self, Cluster, Host};
use narrows_planner::model;
use narrows_planner::search::{EngineLimits, SearchOptions, search};
use narrows_planner::units::{human_bytes, human_time};
use serde::{Deserialize, Serialize};

use crate::terminal::{note, say};

/// What planning costs: seconds, peak memory and proven gap on 64, 1,024 and 10,240 GPUs, and how they grow
///
/// Each case is planned by a process of its own, one after the other, with everything the format can say.
#[derive(Debug, clap::Args)]
pub struct Plan {
    /// Where `clusters/` and `models/` lie
    #[arg(long, value_name = "FOLDER", default_value = "configs")]
    configs: PathBuf,
    /// Cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// The stated sizes alone, not the series around them
    #[arg(long)]
    brief: bool,
    /// Plan this case here and print its figures as JSON
    #[arg(long, hide = true, value_name = "NAME")]
    here: Option<String>,
    /// Print JSON: every case's figures beside its targets
    #[arg(long)]
    json: bool,
}

/// An inventory and a model as they stand in `configs`, with the targets of this size.
struct Kind {
    cluster: &'static str,
    model: &'static str,
    target_s: f64,
    /// Nodes of every cluster beside what the file says: numerator and denominator.
    scales: &'static [(u32, u32)],
}

const KINDS: [Kind; 3] = [
    Kind {
        cluster: "one-site-64",
        model: "gpt-7.5b-auto",
        target_s: 2.0,
        scales: &[(1, 2), (1, 1), (2, 1), (4, 1)],
    },
    Kind {
        cluster: "two-sites-1024",
        model: "llama-3-70b-1024-gpus",
        target_s: 10.0,
        scales: &[(1, 4), (1, 2), (1, 1), (2, 1)],
    },
    Kind {
        cluster: "four-sites-10240",
        model: "gpt-175b-10240-gpus",
        target_s: 60.0,
        scales: &[(1, 4), (1, 2), (1, 1), (2, 1)],
    },
];
const TARGET_GAP: f64 = 0.01;
/// The search stops at the wanted gap, give or take its tolerances.
const GAP_ROUNDING: f64 = 1e-4;
const TARGET_BYTES: u64 = 2 << 30;

/// One row.
struct Case {
    kind: &'static Kind,
    scale: (u32, u32),
}

impl Case {
    /// `one-site-64`, `one-site-64*2`, `two-sites-1024/4`.
    fn name(&self) -> String {
        match self.scale {
            (1, 1) => self.kind.cluster.into(),
            (times, 1) => format!("{}*{times}", self.kind.cluster),
            (_, parts) => format!("{}/{parts}", self.kind.cluster),
        }
    }
}

/// What planning a case took and gave.
#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    case: String,
    model: String,
    gpus: u32,
    clusters: usize,
    global_batch: u32,
    wall_s: f64,
    /// Of the whole process, search and reading: less than the wall clock on a busy machine.
    cpu_s: f64,
    peak_bytes: u64,
    /// Seconds per step of the plan, by the closed form.
    objective_s: f64,
    bound_s: f64,
    gap: f64,
    /// The search's own word: optimal, gap or time_limit.
    status: String,
    replicas: usize,
    gpus_used: u32,
    target_s: f64,
    target_gap: f64,
    target_bytes: u64,
}

/// Plans every case, or the one asked for.
pub fn run(args: Plan) -> anyhow::Result<ExitCode> {
    let cases = KINDS.iter().flat_map(|kind| kind.scales.iter().map(move |&scale| Case { kind, scale }));
    let cases: Vec<Case> = cases.filter(|case| !args.brief || case.scale == (1, 1)).collect();
    if let Some(name) = &args.here {
        let case =
            cases.iter().find(|case| case.name() == *name).with_context(|| format!("no case {name}"))?;
        say(serde_json::to_string(&plan_here(case, &args.configs)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows: Vec<Figures> = Vec::new();
    for case in cases.iter().filter(|case| case.name().contains(&args.only)) {
        let row = plan_apart(case, &args.configs)?;
        note(format_args!("{}: {}, gap {:.2} %", row.case, human_time(row.wall_s), 100.0 * row.gap));
        rows.push(row);
    }
    match args.json {
        true => say(serde_json::to_string_pretty(&rows)?),
        false => print(&rows),
    }
    Ok(ExitCode::SUCCESS)
}

/// Plans a case in a process of its own: peak memory is then its own too.
fn plan_apart(case: &Case, configs: &Path) -> anyhow::Result<Figures> {
    let name = case.name();
    let output = Command::new(std::env::current_exe()?)
        .args(["bench", "plan", "--here", &name, "--configs"])
        .arg(configs)
        .output()
        .with_context(|| format!("planning {name}"))?;
    if !output.status.success() {
        bail!("planning {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn plan_here(case: &Case, configs: &Path) -> anyhow::Result<Figures> {
    let Kind { cluster, model, target_s, .. } = case.kind;
    let mut inventory = inventory::read(&configs.join(format!("clusters/{cluster}.toml")))?;
    let mut trained = model::read(&configs.join(format!("models/{model}.toml")))?;
    scale(&mut inventory, case.scale);
    trained.global_batch = trained.global_batch * case.scale.0 / case.scale.1;
    let gpus = inventory.clusters.iter().map(|f| f.hosts.len() as u32 * f.gpus).sum();
    let options =
        SearchOptions { gap: TARGET_GAP, time_limit: Duration::from_secs(120), ..Default::default() };
    let found = search(&inventory, &trained, &EngineLimits::ANY, &options)?;
    let solver = found.plan.solver.as_ref().context("a plan found says how")?;
    Ok(Figures {
        case: case.name(),
        model: (*model).into(),
        gpus,
        clusters: inventory.clusters.len(),
        global_batch: trained.global_batch,
        wall_s: solver.wall_s,
        cpu_s: cpu_s()?,
        peak_bytes: peak_bytes()?,
        objective_s: solver.objective_s,
        bound_s: solver.bound_s,
        gap: solver.gap,
        status: solver.status.clone(),
        replicas: found.plan.replicas.len(),
        gpus_used: found.plan.world_size(),
        target_s: *target_s,
        target_gap: TARGET_GAP,
        target_bytes: TARGET_BYTES,
    })
}

/// As many nodes of every cluster as the scale says, of those that there are or like them.
fn scale(cluster: &mut Cluster, (times, parts): (u32, u32)) {
    for fabric in &mut cluster.clusters {
        let nodes = fabric.hosts.len() * times as usize / parts as usize;
        fabric.hosts.truncate(nodes);
        for index in fabric.hosts.len()..nodes {
            fabric.hosts.push(Host { name: format!("{}-{index}", fabric.name), address: None });
        }
    }
}

/// Seconds that this process's threads have had a processor, in ticks of 10 ms.
fn cpu_s() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th fields after it.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat has no name")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

/// The most memory that this process has had resident.
fn peak_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("/proc/self/status has no VmHWM")?.parse()?;
    Ok(kib * 1024)
}

fn print(rows: &[Figures]) {
    say(format_args!(
        "{:<20} {:>6} {:>8} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10} {:>8}  targets",
        "case", "GPUs", "clusters", "time", "CPU", "memory", "objective", "bound", "gap", "used"
    ));
    for row in rows {
        say(format_args!(
            "{:<20} {:>6} {:>8} {:>9} {:>9} {:>9} {:>10} {:>10} {:>9.2}% {:>8}  {}",
            row.case,
            row.gpus,
            row.clusters,
            human_time(row.wall_s),
            human_time(row.cpu_s),
            human_bytes(row.peak_bytes),
            human_time(row.objective_s),
            human_time(row.bound_s),
            100.0 * row.gap,
            row.gpus_used,
            targets(row),
        ));
    }
}

/// Whether this size's targets are met; scaled sizes have none.
fn targets(row: &Figures) -> String {
    if row.case.contains(['*', '/']) {
        return String::new();
    }
    let limits = format!(
        "{}, {} %, {}",
        human_time(row.target_s),
        100.0 * row.target_gap,
        human_bytes(row.target_bytes)
    );
    let missed = [
        (row.wall_s > row.target_s, "time"),
        (row.gap > row.target_gap + GAP_ROUNDING, "gap"),
        (row.peak_bytes > row.target_bytes, "memory"),
    ];
    let missed: Vec<&str> = missed.iter().filter(|m| m.0).map(|m| m.1).collect();
    if missed.is_empty() {
        format!("met ({limits})")
    } else {
        format!("missed: {} ({limits})", missed.join(", "))
    }
}
