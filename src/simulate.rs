//! `narrows simulate`: executes a plan on paper.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use narrows_planner::plan::{self, Plan, Predicted};
use narrows_planner::simulate::{Simulation, render, simulate, write_trace};

/// Execute a plan on paper: time per step, who waits, what every link carries
///
/// Runs the plan's schedule, action by action, on its inventory: messages queue for the NICs and links they share,
/// ranks wait for what has not come. The figure is that of the plan's `predicted`. Plans written by hand are welcome:
/// `cluster` and `model` may be paths of their TOML files, `predicted` and `solver` may be absent.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  narrows simulate plan.json\n  narrows simulate plan.json --trace trace.json    # open in https://ui.perfetto.dev"
)]
pub struct Simulate {
    /// The plan, as `narrows plan -o` writes it
    plan: PathBuf,
    /// Write every action and message of a step as a trace for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print JSON: `predicted` as in a plan and the whole `simulation`, in SI units
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Output<'a> {
    predicted: Predicted,
    simulation: &'a Simulation,
}

/// Simulates, writes the trace if asked to, prints the result.
pub fn run(arguments: Simulate) -> anyhow::Result<ExitCode> {
    let plan = plan::read(&arguments.plan)?;
    let simulation = simulate(&plan).with_context(|| arguments.plan.display().to_string())?;
    if let Some(path) = &arguments.trace {
        let written = File::create(path).and_then(|f| write_trace(&simulation, &plan, BufWriter::new(f)));
        written.with_context(|| format!("writing the trace {}", path.display()))?;
    }
    let text = if arguments.json { json(&plan, &simulation)? } else { render(&plan, &simulation) };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn json(plan: &Plan, simulation: &Simulation) -> anyhow::Result<String> {
    let output = Output { predicted: simulation.predicted(plan), simulation };
    Ok(serde_json::to_string_pretty(&output)? + "\n")
}
