//! What the ranks write: byte for byte into a log file each, line by line to stderr and to the supervisor.
//!
//! One thread reads each pipe and may block on the terminal (Ctrl-S) or the disk; the supervisor never waits for it.
//! A line ends at `\n`, `\r\n` or a lone `\r` (progress bars), or after [`LINE`] bytes, and may hold any bytes.
//! A log that cannot be written is reported once; reading goes on, since a full pipe would stop the rank.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::thread;

use tokio::sync::mpsc;

use super::process::ChildOutput;
use super::{Echo, LaunchConfig, LaunchError, RankCommand, error_file};

/// Bytes after which a line is broken.
const LINE: usize = 16 << 10;

/// Lines kept of each stream for the report of a failure.
const TAIL: usize = 8;

/// One of a process's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// stdout.
    Out,
    /// stderr.
    Err,
}

/// A line that a rank wrote.
#[derive(Debug)]
pub(super) struct Line {
    pub rank: u32,
    pub stream: Stream,
    pub text: String,
}

/// The open log files of one rank.
#[derive(Debug)]
pub(super) struct Logs {
    out: File,
    err: File,
    echo: Echo,
}

impl Logs {
    /// Makes the files of all ranks, so that nothing starts that cannot be logged, and removes old error files.
    pub fn create(config: &LaunchConfig, ranks: &[RankCommand]) -> Result<Vec<Self>, LaunchError> {
        let dir = &config.log_dir;
        fs::create_dir_all(dir).map_err(|source| LaunchError::Log { path: dir.clone(), source })?;
        let file = |rank: u32, stream: &str| {
            let path = dir.join(format!("rank-{rank}.{stream}.log"));
            File::create(&path).map_err(|source| LaunchError::Log { path, source })
        };
        let logs_of = |rank: &RankCommand| {
            error_file::remove(rank)?;
            Ok(Self { out: file(rank.rank, "out")?, err: file(rank.rank, "err")?, echo: config.echo })
        };
        ranks.iter().map(logs_of).collect()
    }

    /// Reads a rank's output to its end, on two threads.
    pub fn follow(self, rank: u32, (out, err): ChildOutput, lines: &mpsc::Sender<Line>) {
        let Self { out: out_log, err: err_log, echo } = self;
        let (out_lines, err_lines) = (lines.clone(), lines.clone());
        thread::spawn(move || {
            Reader { rank, stream: Stream::Out, log: Some(out_log), echo, lines: out_lines }.read(out)
        });
        thread::spawn(move || {
            Reader { rank, stream: Stream::Err, log: Some(err_log), echo, lines: err_lines }.read(err)
        });
    }
}

/// The last lines of every rank.
#[derive(Debug, Default)]
pub(super) struct Tails(HashMap<(u32, Stream), VecDeque<String>>);

impl Tails {
    pub fn push(&mut self, line: Line) {
        if line.text.trim().is_empty() {
            return;
        }
        let tail = self.0.entry((line.rank, line.stream)).or_default();
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line.text);
    }

    /// Of stderr, where errors go; of stdout if stderr is empty.
    pub fn of(&self, rank: u32) -> Vec<String> {
        let tail = self.0.get(&(rank, Stream::Err)).or_else(|| self.0.get(&(rank, Stream::Out)));
        tail.into_iter().flatten().cloned().collect()
    }
}

struct Reader {
    rank: u32,
    stream: Stream,
    log: Option<File>,
    echo: Echo,
    lines: mpsc::Sender<Line>,
}

impl Reader {
    fn read(mut self, mut source: impl Read) {
        let mut splitter = Splitter::default();
        let mut chunk = vec![0; 64 << 10];
        loop {
            match source.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => {
                    self.log(&chunk[..n]);
                    self.pass_on(splitter.split(&chunk[..n]));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(rank = self.rank, %error, "its output cannot be read");
                    break;
                }
            }
        }
        self.pass_on(splitter.rest());
    }

    fn log(&mut self, bytes: &[u8]) {
        if let Some(Err(error)) = self.log.as_mut().map(|log| log.write_all(bytes)) {
            tracing::warn!(rank = self.rank, %error, "its log cannot be written; it is cut here");
            self.log = None;
        }
    }

    fn pass_on(&self, lines: Vec<Vec<u8>>) {
        if self.echo == Echo::Stderr && !lines.is_empty() {
            let shown: Vec<u8> = lines.iter().flat_map(|line| prefixed(self.rank, line)).collect();
            // In one write, so that ranks mix by lines only. A closed terminal is no reason to stop.
            let _ = io::stderr().lock().write_all(&shown);
        }
        for line in lines {
            let text = String::from_utf8_lossy(&line).into_owned();
            // A closed channel is a supervisor that no longer listens; the log still gets all.
            let _ = self.lines.blocking_send(Line { rank: self.rank, stream: self.stream, text });
        }
    }
}

fn prefixed(rank: u32, line: &[u8]) -> Vec<u8> {
    [format!("[rank {rank}] ").as_bytes(), line, b"\n"].concat()
}

/// Chunks in, whole lines out.
#[derive(Debug, Default)]
struct Splitter {
    partial: Vec<u8>,
    after_carriage_return: bool,
}

impl Splitter {
    fn split(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for &byte in chunk {
            let ends_a_pair =
                std::mem::replace(&mut self.after_carriage_return, byte == b'\r') && byte == b'\n';
            match byte {
                b'\n' if ends_a_pair => {}
                // A bar is redrawn by a `\r` first: no empty line for it.
                b'\r' if self.partial.is_empty() => self.after_carriage_return = false,
                b'\n' | b'\r' => lines.push(std::mem::take(&mut self.partial)),
                _ => {
                    self.partial.push(byte);
                    if self.partial.len() == LINE {
                        lines.push(std::mem::take(&mut self.partial));
                    }
                }
            }
        }
        lines
    }

    /// The line that was never ended.
    fn rest(self) -> Vec<Vec<u8>> {
        if self.partial.is_empty() { Vec::new() } else { vec![self.partial] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&str]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut lines: Vec<_> = chunks.iter().flat_map(|c| splitter.split(c.as_bytes())).collect();
        lines.extend(splitter.rest());
        lines.into_iter().map(|l| String::from_utf8(l).expect("written as text")).collect()
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_are_cut() {
        let text = "one\ntwo\r\n\nthree\r  5%\r 10%\rlast";
        let expected = ["one", "two", "", "three", "  5%", " 10%", "last"];
        assert_eq!(lines(&[text]), expected);
        for cut in 1..text.len() {
            assert_eq!(lines(&[&text[..cut], &text[cut..]]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn an_empty_line_is_kept_however_it_ends() {
        assert_eq!(lines(&["\n"]), [""]);
        assert_eq!(lines(&["\r\n"]), [""]);
        assert_eq!(lines(&["a\r\n\r\nb\r\n"]), ["a", "", "b"]);
    }

    #[test]
    fn a_line_without_end_comes_in_pieces_and_loses_nothing() {
        let text = "x".repeat(3 * LINE + 5);
        let pieces = lines(&[&text]);
        assert_eq!(pieces.len(), 4);
        assert_eq!(pieces.concat(), text);
    }

    #[test]
    fn the_tail_prefers_stderr_and_skips_blank_lines() {
        let mut tails = Tails::default();
        let mut push = |stream, text: &str| tails.push(Line { rank: 3, stream, text: text.to_owned() });
        (0..20).for_each(|i| push(Stream::Out, &format!("out {i}")));
        push(Stream::Err, "  ");
        assert_eq!(tails.of(3), (12..20).map(|i| format!("out {i}")).collect::<Vec<_>>());
        tails.push(Line { rank: 3, stream: Stream::Err, text: "boom".to_owned() });
        assert_eq!(tails.of(3), ["boom"]);
        assert!(tails.of(4).is_empty());
    }
}
