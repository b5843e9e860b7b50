//! Writing a plan: whole or not at all ([`durable`]).

use std::io;
use std::path::{Path, PathBuf};

use super::Plan;
use crate::durable;

/// A plan could not be written; what stood there before still does.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the plan {}: {source}", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Writes a plan as JSON with its inventory and model inside, replacing what `path` held.
///
/// # Errors
/// The folder does not exist, is not writable, or the disk is full.
pub fn write(plan: &Plan, path: &Path) -> Result<(), WriteError> {
    let text = serde_json::to_string_pretty(plan).expect("a plan has text keys only") + "\n";
    durable::write(path, text.as_bytes()).map_err(|source| WriteError { path: path.to_owned(), source })
}
