//! `narrows worker`: one rank, started by `narrows train`. Its log is JSON lines on stderr, which the launcher keeps.

use std::process::ExitCode;

use narrows_runtime::worker::{Assignment, EXIT_VICTIM, run as work};
use tracing_subscriber::EnvFilter;

/// Runs the rank that the environment names.
pub fn run() -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_from_env("NARROWS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let assignment = Assignment::from_environment()?;
    let _span = tracing::info_span!("worker", rank = assignment.rank).entered();
    match work(&assignment) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(%error, victim = error.is_victim(), "the rank ends");
            Ok(ExitCode::from(if error.is_victim() { EXIT_VICTIM } else { 1 }))
        }
    }
}
