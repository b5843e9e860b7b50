//! `narrows bench challenge`: plans made by hand against the planner's.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use narrows_planner::challenge::{Judged, Outcome, challenge, instance};
use narrows_planner::plan::{self, Plan};
use narrows_planner::search::SearchOptions;
use narrows_planner::units::human_time;

use crate::terminal::{note, say};

/// Try to beat the planner's plans on generated inventories of 16 to 64 GPUs, by random and local search
///
/// Every legal plan tried is judged by the simulator, as the planner's is, and by the closed form, against the planner's
/// bound. The same seed tries the same plans.
#[derive(Debug, clap::Args)]
pub struct Challenge {
    /// Legal plans tried on each inventory
    #[arg(long, default_value_t = 10_000)]
    tries: u32,
    /// How many inventories
    #[arg(long, default_value_t = 10)]
    inventories: u64,
    /// Of the first; the others count on from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds the planner has for each
    #[arg(long, default_value_t = 60)]
    time_limit: u64,
    /// Write the plans, `<seed>-{planner,fastest,closed}.json`
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Print JSON: every outcome, plans included
    #[arg(long)]
    json: bool,
}

/// Challenges each inventory.
pub fn run(args: Challenge) -> anyhow::Result<ExitCode> {
    let time_limit = Duration::from_secs(args.time_limit);
    let options = SearchOptions { time_limit, ..Default::default() };
    let mut outcomes = Vec::new();
    for seed in args.seed..args.seed + args.inventories {
        let started = Instant::now();
        match challenge(&instance(seed), &options, args.tries) {
            Ok(outcome) => {
                note(format_args!(
                    "{seed}: {} plans in {}",
                    outcome.tries,
                    human_time(started.elapsed().as_secs_f64())
                ));
                keep(args.keep.as_deref(), &outcome)?;
                outcomes.push(outcome);
            }
            Err(error) => note(error),
        }
    }
    match args.json {
        true => say(serde_json::to_string_pretty(&outcomes)?),
        false => print(&outcomes),
    }
    Ok(ExitCode::SUCCESS)
}

fn keep(folder: Option<&Path>, outcome: &Outcome) -> anyhow::Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    let plans = [
        ("planner", Some(&outcome.planner)),
        ("fastest", outcome.fastest.as_ref()),
        ("closed", outcome.fastest_closed.as_ref()),
    ];
    for (name, judged) in plans {
        if let Some(judged) = judged {
            plan::write(&judged.plan, &folder.join(format!("{}-{name}.json", outcome.seed)))?;
        }
    }
    Ok(())
}

fn print(outcomes: &[Outcome]) {
    say("seconds per step: simulated (closed form)");
    say(format_args!(
        "{:>6} {:>5} {:>9} {:>7} {:>8} {:>18} {:>8} {:>7} {:>18} {:>8} {:>10} {:>9}",
        "seed",
        "GPUs",
        "clusters",
        "tries",
        "drawn",
        "planner",
        "bound",
        "gap",
        "fastest tried",
        "faster",
        "least clsd",
        "verdict"
    ));
    let (mut slower, mut disproven) = (0, 0);
    for outcome in outcomes {
        let verdict = verdict(outcome);
        slower += u32::from(verdict == "BEATEN");
        disproven += u32::from(verdict == "DISPROVEN");
        let closed = outcome.fastest_closed.as_ref().map_or("-".into(), |f| format!("{:.4}", f.closed_s));
        say(format_args!(
            "{:>6} {:>5} {:>9} {:>7} {:>8} {:>18} {:>8.4} {:>6.2}% {:>18} {:>+7.2}% {closed:>10} {verdict:>9}",
            outcome.seed,
            outcome.gpus,
            outcome.clusters,
            outcome.tries,
            outcome.drawn,
            both(&outcome.planner),
            outcome.solver.bound_s,
            100.0 * outcome.solver.gap,
            outcome.fastest.as_ref().map_or("-".into(), both),
            100.0 * outcome.simulated_excess(),
        ));
        if verdict != "stands" {
            say(format_args!("         planner {}", kind(&outcome.planner.plan)));
            let better = if verdict == "BEATEN" { &outcome.fastest } else { &outcome.fastest_closed };
            better.iter().for_each(|b| say(format_args!("         better  {}", kind(&b.plan))));
        }
    }
    say(format_args!(
        "{} inventories: {slower} beaten by more than the gap, {disproven} bounds disproven",
        outcomes.len()
    ));
}

/// A plan faster by less is as good.
const NEAR: f64 = 0.01;

/// A bound above a legal plan's closed form is a mistake; a faster plan beyond the gap, a difference of the two judges.
fn verdict(outcome: &Outcome) -> &'static str {
    match () {
        () if outcome.bound_excess() > 1e-6 => "DISPROVEN",
        () if outcome.simulated_excess() > outcome.solver.gap.max(NEAR) => "BEATEN",
        () if outcome.simulated_excess() > NEAR => "in gap",
        () => "stands",
    }
}

fn both(judged: &Judged) -> String {
    format!("{:.4} ({:.4})", judged.simulated_s, judged.closed_s)
}

/// A plan in a line: replicas alike are counted.
fn kind(plan: &Plan) -> String {
    let mut kinds: Vec<(String, u32)> = Vec::new();
    for (index, replica) in plan.replicas.iter().enumerate() {
        let (ranks, chunks) = replica.split_ranks();
        let cluster = |host: &str| host.rsplit_once('-').map_or(host, |c| c.0).to_owned();
        let stage = |i: usize| {
            let layers: u32 =
                replica.stages.iter().skip(i).step_by(ranks).map(|s| s.layers[1] - s.layers[0]).sum();
            let ranks = &replica.stages[i].ranks;
            format!("{}x{}:{layers}", cluster(&ranks[0].host), ranks.len())
        };
        let stages: Vec<String> = (0..ranks).map(stage).collect();
        let text = format!(
            "[{}] v{chunks} b{} {:?} m{}",
            stages.join(" "),
            plan.micro_batch_of(index),
            plan.recompute_of(index),
            replica.microbatches
        );
        match kinds.iter_mut().find(|k| k.0 == text) {
            Some(kind) => kind.1 += 1,
            None => kinds.push((text, 1)),
        }
    }
    let kinds: Vec<String> = kinds.into_iter().map(|(text, n)| format!("{n}x {text}")).collect();
    let exchange =
        plan.exchange.iter().map(|e| format!("{:?}/{} over {}", e.kind, e.every, e.replicas.len()));
    format!("{}; {}", kinds.join(", "), exchange.collect::<Vec<_>>().join(", "))
}
