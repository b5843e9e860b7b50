//! Files that are whole or not there: written without a name, synced, then given one.
//!
//! ```text
//!   O_TMPFILE ── write ── fsync ── linkat(name) ── fsync(folder)
//! ```
//! A process killed at any point leaves the old file or the new one and nothing else: what has no name yet is gone with
//! its process. Where a file of that name exists, the whole new one is linked beside it and renamed over it. File
//! systems without O_TMPFILE get a named temporary file.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

/// Makes `bytes` the content of `path`; on the disk when this returns.
///
/// # Errors
/// What the system says: the folder is missing or not writable, the disk is full. The old file is then untouched.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    match open(folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode) {
        Ok(file) => {
            let file = fill(File::from(file), bytes)?;
            name(&file, path)?;
        }
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT) => {
            let beside = beside(path)?;
            fill(File::create(&beside)?, bytes)?;
            take_name(&beside, path)?;
        }
        Err(error) => return Err(error.into()),
    }
    File::open(folder)?.sync_all() // the name is on the disk once its folder is
}

fn fill(mut file: File, bytes: &[u8]) -> io::Result<File> {
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(file)
}

/// Gives the nameless file its name.
fn name(file: &File, path: &Path) -> io::Result<()> {
    let this = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |to: &Path| linkat(CWD, &*this, CWD, to, AtFlags::SYMLINK_FOLLOW);
    match link(path) {
        Err(rustix::io::Errno::EXIST) => {
            let beside = beside(path)?;
            let _ = fs::remove_file(&beside); // of a process of the same number that was killed
            link(&beside)?;
            take_name(&beside, path)
        }
        other => Ok(other?),
    }
}

fn take_name(beside: &Path, path: &Path) -> io::Result<()> {
    let renamed = fs::rename(beside, path);
    if renamed.is_err() {
        // Best effort: the first error is the one to tell.
        let _ = fs::remove_file(beside);
    }
    renamed
}

fn beside(path: &Path) -> io::Result<PathBuf> {
    let name =
        path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file's name"))?;
    Ok(path.with_file_name(format!(".{}.{}.new", name.to_string_lossy(), std::process::id())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_created_and_replaced_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        for content in ["first", "second, longer", "3"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write(&folder.path().join("missing/plan.json"), b"x").is_err());
        let taken = folder.path().join("taken");
        fs::create_dir_all(taken.join("inside")).unwrap();
        assert!(write(&taken, b"x").is_err(), "a folder is not replaced");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
