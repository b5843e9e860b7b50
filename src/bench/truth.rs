//! `narrows bench truth`: the cost model against published measurements.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use narrows_planner::truth::{self, Judged, Run};

use crate::terminal::say;

/// The cost model against published measurements: every run as inventory, model and fixed plan, predicted and measured
///
/// Constants belong to GPUs, fabrics and frameworks, none to a run (docs/cost-model.md).
#[derive(Debug, clap::Args)]
pub struct Truth {
    /// More runs: a table like planner/measured/runs.csv, or vTrain's of its single-node runs
    #[arg(long, value_name = "FILE.csv")]
    extra: Vec<PathBuf>,
    /// Print every run of sources with more than 60 runs too
    #[arg(long)]
    all: bool,
    /// Print JSON: every run, and the summary of each source
    #[arg(long)]
    json: bool,
}

/// Sources with more runs are summarised only.
const MOST_ROWS: usize = 60;

/// Judges the shipped runs and those given.
pub fn run(args: Truth) -> anyhow::Result<ExitCode> {
    let mut runs: Vec<Run> = truth::shipped();
    for path in &args.extra {
        runs.extend(truth::read(path).with_context(|| path.display().to_string())?);
    }
    let judged = runs.iter().map(truth::judge).collect::<Result<Vec<Judged>, _>>()?;
    let text = match args.json {
        true => {
            let summaries = truth::summaries(&judged);
            serde_json::to_string_pretty(&serde_json::json!({ "runs": judged, "sources": summaries }))?
        }
        false => truth::render(&judged, if args.all { usize::MAX } else { MOST_ROWS }),
    };
    say(format_args!("{}", text.trim_end()));
    Ok(ExitCode::SUCCESS)
}
