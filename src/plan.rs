//! `narrows plan CLUSTER MODEL`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use narrows_planner::search::{SearchOptions, search};
use narrows_planner::units;
use narrows_planner::{explain, inventory, model, plan, simulate};
use narrows_runtime::settings::Run;

use crate::terminal::{BAD_INPUT, note, say};

/// Map a model onto a cluster: which GPUs hold which layers, what crosses the links and how.
///
/// Solves an integer program, proves how near to optimal the plan is, and explains it.
#[derive(Debug, clap::Args)]
pub struct Plan {
    /// Inventory: clusters, GPUs, NICs, links
    #[arg(value_name = "CLUSTER.toml")]
    cluster: PathBuf,
    /// Model and how it is trained
    #[arg(value_name = "MODEL.toml")]
    model: PathBuf,
    /// Where to write the plan
    #[arg(short, long, value_name = "FILE", default_value = "plan.json")]
    output: PathBuf,
    /// Stop when the plan is proven this near to optimal: 1%, 0.5%, 0
    #[arg(long, value_name = "SHARE", default_value = "1%", value_parser = share)]
    gap: f64,
    /// Stop after this long with the best plan found: 60s, 500ms
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    time_limit: Duration,
    /// Plan for the native engine: no tensor parallelism, no streaming exchange
    #[arg(long)]
    native: bool,
    /// Print one JSON object (the plan) instead of the report
    #[arg(long)]
    json: bool,
}

/// Plans.
pub fn run(args: Plan) -> anyhow::Result<ExitCode> {
    let cluster = inventory::read(&args.cluster)?;
    let model = model::read(&args.model)?;
    let options = SearchOptions { gap: args.gap, time_limit: args.time_limit, ..limits(args.native) };
    let solved = match search(&cluster, &model, &options) {
        Ok(solved) => solved,
        Err(error) => {
            note(format_args!("error: {error}"));
            return Ok(ExitCode::from(BAD_INPUT));
        }
    };
    let plan = plan::Plan { predicted: Some(simulate::predicted(&solved.plan)?), ..solved.plan };
    plan::write(&plan, &args.output)?;
    match args.json {
        true => say(serde_json::to_string_pretty(&plan)?),
        false => say(explain::render(&plan, &solved.explanation)),
    }
    note(format_args!("wrote {}", args.output.display()));
    Ok(ExitCode::SUCCESS)
}
