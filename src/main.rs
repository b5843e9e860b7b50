//! The command line: one file per command, no logic of its own.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 bad input; `launch` gives the failed
//! rank's own, an interrupt 130.

mod bench;
mod explain;
mod export;
mod launch;
mod plan;
mod report;
mod simulate;
mod terminal;
mod train;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Train one model across GPUs that do not share one fast network.
///
/// Start here:
///   narrows train configs/quickstart/run.toml    plan, launch, train and report a small cluster on this machine
///   narrows plan CLUSTER.toml MODEL.toml         what goes where on your machines, and why
///   narrows explain plan.json                    what binds, what else was possible, what more would be worth
#[derive(Debug, Parser)]
#[command(name = "narrows", version, verbatim_doc_comment, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Plan(plan::Plan),
    Explain(explain::Explain),
    Simulate(simulate::Simulate),
    Export(export::Args),
    Launch(launch::Launch),
    Train(train::Train),
    Report(report::Args),
    Bench(bench::Bench),
    /// One rank of `narrows train` (started by it)
    #[command(hide = true)]
    Worker,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Plan(args) => plan::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Export(args) => export::run(args),
        Command::Launch(args) => launch::run(args),
        Command::Train(args) => train::run(args),
        Command::Report(args) => report::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Worker => worker::run(),
    };
    result.unwrap_or_else(|error| terminal::fail(&error))
}
