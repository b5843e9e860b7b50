//! The command line: one file per command, no logic of its own.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

mod report;

/// Train one model across GPUs that do not share one fast network
#[derive(Parser)]
#[command(version, about)]
enum Command {
    Report(report::Args),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Report(args) => report::run(args),
    };
    done.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}
