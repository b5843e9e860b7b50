//! JSON lines that survive a kill, and whole JSON files that are there or not.
//!
//! An [`Appender`] hands each batch of lines to the kernel in one write, so that `kill -9` loses no finished line; a
//! machine that dies may leave the last line torn. A line ends with its newline: what follows the last newline is
//! torn, is ignored by [`read_lines`] and cut off by [`Appender::open`]. Anything else amiss is an error that names
//! file and line.
//!
//! Not here: fsync of every line (checkpoints are what a run restarts from).

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::Path;

use narrows_planner::durable;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ReportError;

/// Appends records to a file of JSON lines.
#[derive(Debug)]
pub struct Appender<T> {
    file: File,
    batch: Vec<u8>,
    records: PhantomData<fn(T)>,
}

impl<T: Serialize> Appender<T> {
    /// Opens or creates `path` and its folder, and cuts a torn last line off.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let end = end_of_last_line(&mut file)?;
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        Ok(Self { file, batch: Vec::new(), records: PhantomData })
    }

    /// Appends one record.
    pub fn append(&mut self, record: &T) -> io::Result<()> {
        self.append_all(std::slice::from_ref(record))
    }

    /// Appends records in one write: such as a step's trace.
    pub fn append_all(&mut self, records: &[T]) -> io::Result<()> {
        self.batch.clear();
        for record in records {
            serde_json::to_writer(&mut self.batch, record)?;
            self.batch.push(b'\n');
        }
        self.file.write_all(&self.batch)
    }
}

/// Calls `each` with every whole line's record and its line number (from 1). A file that is absent has no lines.
pub fn read_lines<T: DeserializeOwned>(
    path: &Path,
    mut each: impl FnMut(u64, T) -> Result<(), ReportError>,
) -> Result<(), ReportError> {
    let io_error = |source| ReportError::Io { path: path.to_owned(), source };
    let mut reader = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error(e)),
    };
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        reader.read_until(b'\n', &mut text).map_err(io_error)?;
        if text.pop() != Some(b'\n') {
            break;
        }
        let record = serde_json::from_slice(&text).map_err(|source| ReportError::BadLine {
            path: path.to_owned(),
            line,
            source,
        })?;
        each(line, record)?;
    }
    Ok(())
}

/// Writes `value` as the whole of `path`, which holds the old text or the new whatever happens.
pub fn write_whole<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    durable::write(path, &text)
}

/// Reads the whole of `path`.
pub fn read_whole<T: DeserializeOwned>(path: &Path) -> Result<T, ReportError> {
    let text = fs::read(path).map_err(|source| ReportError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| ReportError::BadFile { path: path.to_owned(), source })
}

/// Offset just behind the last newline; 0 where there is none.
fn end_of_last_line(file: &mut File) -> io::Result<u64> {
    let mut block = [0u8; 4096];
    let mut end = file.seek(SeekFrom::End(0))?;
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let tail = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(tail)?;
        if let Some(newline) = tail.iter().rposition(|&b| b == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Result<Vec<(u64, u32)>, ReportError> {
        let mut got = Vec::new();
        read_lines(path, |line, value| {
            got.push((line, value));
            Ok(())
        })?;
        Ok(got)
    }

    #[test]
    fn a_torn_last_line_is_ignored_when_read_and_cut_off_when_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace/rank-0.jsonl");
        Appender::open(&path).unwrap().append_all(&[10, 20]).unwrap();
        fs::write(&path, b"10\n20\n3").unwrap();
        assert_eq!(read(&path).unwrap(), [(1, 10), (2, 20)]);
        Appender::open(&path).unwrap().append(&40).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "10\n20\n40\n");
    }

    #[test]
    fn a_torn_line_longer_than_a_block_is_cut_off_whole() {
        let dir = tempfile::tempdir().unwrap();
        for (before, kept) in [("7\n", "7\n"), ("", "")] {
            let path = dir.path().join("steps.jsonl");
            fs::write(&path, format!("{before}{}", "1".repeat(10_000))).unwrap();
            Appender::<u32>::open(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), kept);
        }
    }

    #[test]
    fn a_bad_line_that_is_not_torn_names_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("steps.jsonl");
        for (text, at) in [("1\nx\n3\n", 2), ("1\n2\nx\n", 3), ("\n2\n", 1), ("1\n\n", 2)] {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}:{at}: ", path.display())), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_absent_file_has_no_lines() {
        assert_eq!(read(Path::new("/nonexistent/steps.jsonl")).unwrap(), []);
    }

    #[test]
    fn a_whole_file_comes_back_and_leaves_nothing_unfinished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.json");
        write_whole(&path, &[0.1f64, 1e-9]).unwrap();
        write_whole(&path, &[0.3f64]).unwrap();
        assert_eq!(read_whole::<Vec<f64>>(&path).unwrap(), [0.3]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
