//! `narrows explain`: why a plan is as it is, what would be worth more, what if.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use narrows_planner::explain::{explain_fully, json, page, render_in, what_if};
use narrows_planner::plan::{self, Plan};
use narrows_planner::search::{EngineLimits, SearchOptions};
use narrows_planner::simulate::{predicted, render, simulate};

use crate::plan::time;
use crate::terminal::{BAD_INPUT, complain, note, say, style};

/// Say why a plan is as it is: what binds, which GPUs idle, what other strategies give, what more would be worth
///
/// Takes what `narrows plan -o` writes, and plans written by hand. Runners-up (Megatron-uniform, Holmes's rules, pure data
/// parallelism, the best cluster alone, one replica, everything sparse) are judged by the same closed form and simulator
/// as the plan. What more of a link, NIC, host or memory would be worth is found by planning again where time allows,
/// and by the same plan on the changed inventory where not; the report says which.
///
/// Keys of --what-if (an unknown one is answered with the nearest):
///   link.A-B.{rate,latency,shared,loss}
///   cluster.NAME.{nodes,gpus,gpu,gpu.memory,gpu.efficiency,nic.rate,nic.count,nic.class,ethernet.rate,intra.rate}
///   model.{micro_batch,global_batch,precision,recompute,exchange,boundary,layers,sequence,...}
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  narrows explain plan.json\n  narrows explain plan.json --html why.html             # one page, for any browser\n  narrows explain plan.json --timeline                  # and a picture of every rank's step\n  narrows explain plan.json --what-if link.ib-roce.rate=100Gbit/s\n  narrows explain plan.json --what-if cluster.ib.nodes=6 --what-if model.micro_batch=auto"
)]
pub struct Explain {
    /// The plan
    plan: PathBuf,
    /// Change a figure and plan again; may be given several times, all at once
    #[arg(long, value_name = "KEY=VALUE")]
    what_if: Vec<String>,
    /// Where to write the plan that --what-if gives
    #[arg(short, long, value_name = "FILE", requires = "what_if")]
    output: Option<PathBuf>,
    /// Also write the explanation as one page that needs nothing but a browser
    #[arg(long, value_name = "OUT", conflicts_with = "what_if")]
    html: Option<PathBuf>,
    /// Also draw the simulated step of every rank
    #[arg(long, conflicts_with = "what_if")]
    timeline: bool,
    /// Time for all runners-up and shadow prices, or for the plan of --what-if: 20s, 500ms, 0s
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = time)]
    time_limit: Duration,
    /// Compare with plans for the native engine alone
    #[arg(long)]
    native: bool,
    /// Print one JSON object instead of text, in SI units
    #[arg(long)]
    json: bool,
}

/// Explains.
pub fn run(args: Explain) -> anyhow::Result<ExitCode> {
    let plan = plan::read(&args.plan)?;
    let limits = if args.native { EngineLimits::NATIVE } else { EngineLimits::ANY };
    if args.what_if.is_empty() { explain(&args, &plan, &limits) } else { ask(&args, &plan, &limits) }
}

fn explain(args: &Explain, plan: &Plan, limits: &EngineLimits) -> anyhow::Result<ExitCode> {
    let explanation = explain_fully(plan, limits, &SearchOptions::default(), args.time_limit)
        .with_context(|| args.plan.display().to_string())?;
    if args.json {
        say(serde_json::to_string_pretty(&json(plan, &explanation))?);
    } else {
        say(render_in(plan, &explanation, style()).trim_end());
    }
    if args.html.is_none() && !args.timeline {
        return Ok(ExitCode::SUCCESS);
    }
    let simulation = simulate(plan).with_context(|| args.plan.display().to_string())?;
    if args.timeline && !args.json {
        say(format_args!("\n{}", render(plan, &simulation).trim_end()));
    }
    if let Some(out) = &args.html {
        std::fs::write(out, page(plan, &explanation, &simulation))
            .with_context(|| format!("writing the page {}", out.display()))?;
        note(format_args!("wrote {}", out.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(args: &Explain, plan: &Plan, limits: &EngineLimits) -> anyhow::Result<ExitCode> {
    let options = SearchOptions { time_limit: args.time_limit, ..SearchOptions::default() };
    let answer = match what_if::what_if(plan, &args.what_if, limits, &options) {
        Ok(answer) => answer,
        Err(error) => {
            complain(error);
            return Ok(ExitCode::from(BAD_INPUT));
        }
    };
    if args.json {
        say(serde_json::to_string_pretty(&what_if::json(&args.what_if, &answer))?);
    } else {
        say(what_if::render(&args.what_if, &answer).trim_end());
    }
    if let Some(out) = &args.output {
        let plan = Plan { predicted: Some(predicted(&answer.plan)?), ..answer.plan };
        plan::write(&plan, out)?;
        note(format_args!("wrote {}", out.display()));
    }
    Ok(ExitCode::SUCCESS)
}
