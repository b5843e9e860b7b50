//! `narrows plan CLUSTER MODEL`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use narrows_planner::search::{EngineLimits, SearchOptions, search};
use narrows_planner::{explain, inventory, model, plan, schema, simulate, units};

use crate::terminal::{BAD_INPUT, note, say, style};

/// Map a model onto a cluster: which GPUs hold which layers, what crosses the links and how.
///
/// Solves an integer program, proves how near to optimal the plan is, and explains it.
#[derive(Debug, clap::Args)]
pub struct Plan {
    /// Inventory: clusters, GPUs, NICs, links
    #[arg(value_name = "CLUSTER.toml", required_unless_present = "schema")]
    cluster: Option<PathBuf>,
    /// Model and how it is trained
    #[arg(value_name = "MODEL.toml", required_unless_present = "schema")]
    model: Option<PathBuf>,
    /// Print the format of plan.json as a JSON Schema and plan nothing
    #[arg(long, exclusive = true)]
    schema: bool,
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
    let (Some(cluster_path), Some(model_path)) = (&args.cluster, &args.model) else {
        say(serde_json::to_string_pretty(&schema::plan())?);
        return Ok(ExitCode::SUCCESS);
    };
    let cluster = inventory::read(cluster_path)?;
    let model = model::read(model_path)?;
    let options = SearchOptions { gap: args.gap, time_limit: args.time_limit, ..SearchOptions::default() };
    let limits = if args.native { EngineLimits::NATIVE } else { EngineLimits::ANY };
    let found = match search(&cluster, &model, &limits, &options) {
        Ok(found) => found,
        Err(error) => {
            note(format_args!("error: {}: no plan: {error}", model_path.display()));
            return Ok(ExitCode::from(BAD_INPUT));
        }
    };
    let explanation = explain::explain_found(&found, &limits, &options)?;
    let plan = plan::Plan { predicted: Some(simulate::predicted(&found.plan)?), ..found.plan };
    plan::write(&plan, &args.output)?;
    if args.json {
        say(serde_json::to_string_pretty(&plan)?);
    } else {
        say(explain::render_in(&plan, &explanation, style()).trim_end());
        note(format_args!(
            "narrows explain {}: what more would be worth, what-if, a page with the timeline",
            args.output.display()
        ));
    }
    note(format_args!("wrote {}", args.output.display()));
    Ok(ExitCode::SUCCESS)
}

/// `1%`, `0.5%`, `0.01`, `0`.
fn share(text: &str) -> Result<f64, String> {
    let (digits, scale) = text.strip_suffix('%').map_or((text, 1.0), |digits| (digits, 0.01));
    match digits.trim().parse::<f64>() {
        Ok(value) if (0.0..1.0).contains(&(value * scale)) => Ok(value * scale),
        _ => Err(format!("{text:?} is not a share from 0 to below 100%, such as 1% or 0.01")),
    }
}

/// `60s`, `500ms`, `2min`.
pub fn time(text: &str) -> Result<Duration, String> {
    let time: units::Time = text.parse().map_err(|e: units::UnitError| e.to_string())?;
    Ok(Duration::from_secs_f64(time.si()))
}
