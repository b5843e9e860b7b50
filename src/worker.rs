//! `narrows worker`: one rank, started by `narrows train`. Its log is JSON lines in
//! `logs/rank-N.jsonl`; what it says to a person goes to stderr, which the launcher keeps and quotes.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use narrows_runtime::launch::ENDED_BY_PEER;
use narrows_runtime::report::files::RunFolder;
use narrows_runtime::worker::{Assignment, run as work};
use tracing_subscriber::EnvFilter;

use crate::terminal::note;

/// Runs the rank that the environment names.
pub fn run() -> anyhow::Result<ExitCode> {
    let assignment = Assignment::from_environment()?;
    log_to(&RunFolder::at(&assignment.run).logs().join(format!("rank-{}.jsonl", assignment.rank)))?;
    let _span = tracing::info_span!("worker", rank = assignment.rank).entered();
    match work(&assignment) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(%error, victim = error.is_victim(), "the rank ends");
            note(format_args!("error: {error}"));
            Ok(ExitCode::from(if error.is_victim() { ENDED_BY_PEER } else { 1 }))
        }
    }
}

/// Structured log lines; `NARROWS_LOG` filters them (`info` unless set).
fn log_to(path: &Path) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("NARROWS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(Mutex::new(file)).init();
    Ok(())
}
