//! The command line: one file per command, no logic of its own.

mod launch;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// Train one model across GPUs that do not share one fast network
#[derive(Parser)]
enum Command {
    Launch(launch::Launch),
}

fn main() -> ExitCode {
    let Command::Launch(args) = Command::parse();
    launch::run(args).unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::from(2)
    })
}
