//! An export on the disk: the whole folder or none of it.
//!
//! ```text
//!   .DIR.<pid>.new/…  ──rename──> DIR                   DIR absent or empty
//!                     ──exchange──> DIR, old removed    DIR an earlier export (it holds `.narrows-export`)
//! ```
//! So no environment file of an earlier plan stays behind. A folder that holds anything else is left alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::Export;
use crate::durable;

/// Says that the folder is ours to replace.
const MARK: &str = ".narrows-export";

/// An export could not be written; what stood there before still does.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The folder holds what no export wrote.
    #[error("{} holds other files than an export's; name a new or empty folder", .0.display())]
    Foreign(PathBuf),
    /// What the system says.
    #[error("cannot write the export {}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes `folder` hold the files of the export and nothing else.
///
/// # Errors
/// `folder` holds files that no export wrote, its parent does not exist or is not writable, or the disk is full.
pub fn write(export: &Export, folder: &Path) -> Result<(), WriteError> {
    let fault = |source| WriteError::Io { path: folder.to_owned(), source };
    let earlier = folder.join(MARK).exists();
    if !earlier && fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(WriteError::Foreign(folder.to_owned()));
    }
    let beside = beside(folder).map_err(fault)?;
    let placed = fill(export, &beside).and_then(|()| {
        let flags = if earlier { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        Ok(renameat_with(CWD, &beside, CWD, folder, flags)?)
    });
    // Holds the earlier export, or what could not be finished.
    if beside.exists() {
        let _ = fs::remove_dir_all(&beside);
    }
    placed.map_err(fault)
}

fn fill(export: &Export, folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    for file in &export.files {
        let path = folder.join(&file.path);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        durable::write(&path, file.text.as_bytes())?;
    }
    durable::write(&folder.join(MARK), b"")
}

fn beside(folder: &Path) -> io::Result<PathBuf> {
    let absent = || io::Error::new(io::ErrorKind::InvalidInput, "not a folder's name");
    let name = folder.file_name().ok_or_else(absent)?;
    Ok(folder.with_file_name(format!(".{}.{}.new", name.to_string_lossy(), std::process::id())))
}
