//! Writing a plan: whole or not at all. The text goes to a new file beside the old one, reaches the disk, then takes
//! its name; a reader sees the old plan or the new one, after a power cut as well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::Plan;

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
    replace(path, text.as_bytes()).map_err(|source| WriteError { path: path.to_owned(), source })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name =
        path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file's name"))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let new = folder.join(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
    let written = write_through(&new, bytes).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // Best effort: the first error is the one to tell.
        let _ = fs::remove_file(&new);
    }
    written?;
    // The name is on the disk once its folder is.
    File::open(folder)?.sync_all()
}

fn write_through(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
