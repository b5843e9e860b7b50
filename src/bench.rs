//! `narrows bench`: the figures of docs/performance.md, re-run.

mod challenge;
mod plan;
mod truth;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use narrows_planner::plan::{self as plan_file, Codec, Plan, Replica, Stage};
use narrows_planner::units::human_time;
use narrows_runtime::emulate::Emulation;
use narrows_runtime::launch::Outcome;
use narrows_runtime::report::Report;
use narrows_runtime::settings::Run;
use narrows_runtime::train::{self, Progress, Start};

use crate::terminal::{note, say};

/// Run a measurement again that docs/performance.md names.
#[derive(Debug, clap::Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Validation loss of a run by one process, with its exchange alone, and with its compressed boundaries too
    ///
    /// All three read the same tokens at the same steps, as fast as this machine goes (nothing emulated).
    Losses {
        /// The run
        #[arg(value_name = "RUN.toml", default_value = "configs/quickstart/run.toml")]
        run: PathBuf,
        /// Fewer steps than the run's
        #[arg(long)]
        steps: Option<u64>,
        /// Where the three runs' folders go
        #[arg(long, default_value = "runs/losses")]
        out: PathBuf,
    },
    Truth(truth::Truth),
    Plan(plan::Plan),
    Challenge(challenge::Challenge),
}

/// Runs it.
pub fn run(args: Bench) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Losses { run, steps, out } => losses(&run, steps, &out),
        What::Truth(args) => truth::run(args),
        What::Plan(args) => plan::run(args),
        What::Challenge(args) => challenge::run(args),
    }
}

fn losses(path: &Path, steps: Option<u64>, out: &Path) -> anyhow::Result<ExitCode> {
    let mut run = Run::read(path)?;
    run.settings.emulate = Emulation::Off;
    run.settings.steps = steps.unwrap_or(run.settings.steps);
    run.settings.checkpoint_every = 0;
    let planned = train::plan_of(&run)?;
    let variants = [
        ("one process", one_process(&planned)),
        ("with the exchange", plain_boundaries(&planned)),
        ("with the exchange and compressed boundaries", planned.clone()),
    ];
    let mut rows = Vec::new();
    let mut bigram = None;
    for (index, (name, plan)) in variants.into_iter().enumerate() {
        let (loss, wall_s, reference) = train_variant(&run, &plan, &out.join(index.to_string()), name)?;
        bigram = bigram.or(reference);
        rows.push((name, loss, wall_s));
    }
    say(format_args!("validation loss after {} steps, nats per byte", run.settings.steps));
    let whole = rows[0].1;
    for (name, loss, wall_s) in &rows {
        let against = 100.0 * (loss / whole - 1.0);
        say(format_args!("  {loss:.3}  {against:+5.1} %  {name} ({})", human_time(*wall_s)));
    }
    if let Some(loss) = bigram {
        say(format_args!("  {loss:.3}           a bigram model of the training text"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Trains one variant; its last validation loss, seconds, and the bigram loss.
fn train_variant(run: &Run, plan: &Plan, out: &Path, name: &str) -> anyhow::Result<(f64, f64, Option<f64>)> {
    std::fs::create_dir_all(out.parent().unwrap_or(Path::new(".")))?;
    let plan_path = out.with_extension("plan.json");
    plan_file::write(plan, &plan_path)?;
    let run = Run { plan: Some(plan_path), out: out.to_owned(), ..run.clone() };
    let prepared = train::prepare(&run, Start::Fresh)?;
    note(format_args!("{name}: {} ranks, {} steps", plan.world_size(), run.settings.steps));
    let ended = train::run(&prepared, |progress| {
        if let Progress::Step(record) = progress
            && let Some(loss) = record.validation_loss
        {
            note(format_args!("  step {:>5}  validation loss {loss:.3}", record.step));
        }
    })?;
    if ended.outcome != Outcome::Success {
        bail!("{name}: {:?}", ended.outcome);
    }
    let report = Report::read(&prepared.folder)?;
    let loss =
        report.steps.iter().rev().find_map(|s| s.validation_loss).context("the last step validates")?;
    let wall_s = report.steps.iter().map(|s| s.iteration_s).sum();
    Ok((loss, wall_s, report.info.reference_losses.first().map(|r| r.loss)))
}

/// The whole model and batch on the plan's first rank.
fn one_process(plan: &Plan) -> Plan {
    let first = plan.seats()[0].placement.clone();
    let stage =
        Stage { layers: [0, plan.model.layers], ranks: vec![plan_file::Placement { rank: 0, ..first }] };
    let microbatches = plan.replicas.iter().map(|r| r.microbatches).sum();
    Plan {
        replicas: vec![Replica {
            microbatches,
            micro_batch: None,
            recompute: None,
            stages: vec![stage],
            boundaries: vec![],
        }],
        exchange: vec![],
        predicted: None,
        solver: None,
        ..plan.clone()
    }
}

fn plain_boundaries(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for boundary in plan.replicas.iter_mut().flat_map(|r| &mut r.boundaries) {
        boundary.codec = Codec::None;
    }
    plan
}
