//! How a job ended, in types and in at most 15 lines for a person.
//!
//! The box names the *first* cause, once: which rank, how it ended, what it said, where the rest of its output is. The
//! ranks that were stopped because of it are counted, not listed.
//!
//! Exit codes: 0 success; the failed rank's own; 128 + n where a signal n ended it (or the launcher); 127 and 126 as in
//! shells for a program that is not found or not executable; 1 where the coordinator gave up.
//! Not here: finding the cause (`job`).

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Serialize, Serializer};

use super::ENDED_BY_PEER;

/// Widest line of the box, in characters; longer ones are cut.
const WIDTH: usize = 160;

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Every rank exited with 0.
    Success,
    /// One did not, or the caller gave up; all were stopped.
    Failed(Failure),
    /// The user stopped it.
    Interrupted {
        /// By which signal: 2 (SIGINT), 15 (SIGTERM) or 1 (SIGHUP).
        signal: i32,
    },
}

/// The first cause of a failed job. `Display` is the box.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    /// Who failed first; `None` where the coordinator gave up and blames nobody.
    pub rank: Option<u32>,
    /// The rank's [`label`](super::RankCommand::label).
    pub label: String,
    /// What ended it.
    pub cause: Cause,
    /// What it wrote into its `TORCHELASTIC_ERROR_FILE`.
    pub message: Option<String>,
    /// How often the kernel killed for want of memory during the job; 0 unless the cause is a SIGKILL.
    pub oom_kills: u64,
    /// The end of its stderr, of its stdout if stderr is empty; oldest first.
    pub last_lines: Vec<String>,
    /// How many other ranks were running, or had ended because of this one.
    pub victims: u32,
    /// From the start of the job to the failure.
    #[serde(rename = "elapsed_s", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// Where the logs are.
    pub log_dir: PathBuf,
}

/// What ended a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// A rank exited by itself.
    Exit {
        /// Not 0.
        code: u8,
    },
    /// A signal that the launcher did not send ended a rank.
    Signal {
        /// As in `signal.h`.
        number: i32,
    },
    /// A rank ended and somebody else in this program took its exit status.
    Unknown,
    /// A rank's program could not be started.
    NotStarted {
        /// The program and the system's reason.
        error: String,
        /// 127: not found; 126: found, not executable.
        code: u8,
    },
    /// The caller asked for the end.
    Verdict {
        /// In its words.
        reason: String,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself.
    Exit {
        /// 0: success.
        code: u8,
    },
    /// By a signal.
    Signal {
        /// As in `signal.h`.
        number: i32,
    },
    /// Somebody else in this program took its exit status.
    Unknown,
}

impl Outcome {
    /// The exit code for the launcher itself.
    pub fn exit_code(&self) -> u8 {
        match self {
            Outcome::Success => 0,
            Outcome::Failed(failure) => failure.cause.exit_code(),
            Outcome::Interrupted { signal } => by_signal(*signal),
        }
    }
}

impl Cause {
    pub(super) fn not_started(program: &OsStr, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        Cause::NotStarted { error: format!("cannot start {}: {error}", program.display()), code }
    }

    /// Whether SIGKILL did it, maybe to a child whose shell then reported 137.
    pub(super) fn is_kill(&self) -> bool {
        self.exit_code() == by_signal(Signal::KILL.as_raw())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Cause::Exit { code } | Cause::NotStarted { code, .. } => *code,
            Cause::Signal { number } => by_signal(*number),
            Cause::Unknown | Cause::Verdict { .. } => 1,
        }
    }
}

impl From<Ending> for Cause {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Exit { code } => Cause::Exit { code },
            Ending::Signal { number } => Cause::Signal { number },
            Ending::Unknown => Cause::Unknown,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Exit { code: ENDED_BY_PEER } => {
                write!(
                    f,
                    "exit code {ENDED_BY_PEER}: says that a peer or the coordinator failed, but none was seen to"
                )
            }
            Cause::Exit { code } if *code > 128 && signal_name(i32::from(*code) - 128).is_some() => {
                write!(f, "exit code {code} (128 + {})", Named(i32::from(*code) - 128))
            }
            Cause::Exit { code } => write!(f, "exit code {code}"),
            Cause::Signal { number } => write!(f, "killed by {}", Named(*number)),
            Cause::Unknown => write!(f, "ended, but its exit status was taken elsewhere in this program"),
            Cause::NotStarted { error, .. } => write!(f, "{error}"),
            Cause::Verdict { reason } => write!(f, "{reason}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "┌ FAILED  {}", clip(&self.label))?;
        writeln!(f, "│ cause   {}{}", clip(&self.cause.to_string()), self.out_of_memory())?;
        writeln!(f, "│ when    {:.1} s after the start", self.elapsed.as_secs_f64())?;
        if let Some(message) = &self.message {
            writeln!(f, "│ error   {}", clip(message))?;
        }
        for (i, line) in self.last_lines.iter().enumerate() {
            writeln!(f, "│ {} {}", if i == 0 { "last   " } else { "       " }, clip(line))?;
        }
        match self.victims {
            0 => {}
            1 => writeln!(f, "│ others  1 rank stopped because of it")?,
            n => writeln!(f, "│ others  {n} ranks stopped because of it")?,
        }
        write!(f, "└ logs    {}", self.logs().display())
    }
}

impl Failure {
    fn out_of_memory(&self) -> String {
        match self.oom_kills {
            0 => String::new(),
            n => format!(": out of memory (the kernel's count of such kills rose by {n})"),
        }
    }

    /// The files to read, as a shell would expand them.
    fn logs(&self) -> PathBuf {
        let rank = self.rank.map_or_else(|| "*".to_owned(), |r| r.to_string());
        self.log_dir.join(format!("rank-{rank}.{{out,err}}.log"))
    }
}

/// A signal's name and number.
struct Named(i32);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match signal_name(self.0) {
            Some(name) => write!(f, "{name} (signal {})", self.0),
            None => write!(f, "signal {}", self.0),
        }
    }
}

fn signal_name(number: i32) -> Option<&'static str> {
    Some(match Signal::from_named_raw(number)? {
        Signal::HUP => "SIGHUP",
        Signal::INT => "SIGINT",
        Signal::QUIT => "SIGQUIT",
        Signal::ILL => "SIGILL",
        Signal::TRAP => "SIGTRAP",
        Signal::ABORT => "SIGABRT",
        Signal::BUS => "SIGBUS",
        Signal::FPE => "SIGFPE",
        Signal::KILL => "SIGKILL",
        Signal::USR1 => "SIGUSR1",
        Signal::SEGV => "SIGSEGV",
        Signal::USR2 => "SIGUSR2",
        Signal::PIPE => "SIGPIPE",
        Signal::ALARM => "SIGALRM",
        Signal::TERM => "SIGTERM",
        Signal::XCPU => "SIGXCPU",
        Signal::XFSZ => "SIGXFSZ",
        Signal::SYS => "SIGSYS",
        _ => return None,
    })
}

/// What shells report for it.
fn by_signal(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

/// One line, of bounded width, that cannot move the cursor.
fn clip(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut clean: String = line.chars().take(WIDTH).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().nth(WIDTH).is_some() {
        clean.push('…');
    }
    clean
}

fn seconds<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(cause: Cause) -> Failure {
        Failure {
            rank: Some(2),
            label: "rank 2 (replica 1 stage 0, host slow-0, ethernet)".to_owned(),
            cause,
            message: None,
            oom_kills: 0,
            last_lines: vec!["loading".to_owned(), "boom".to_owned()],
            victims: 3,
            elapsed: Duration::from_millis(3210),
            log_dir: PathBuf::from("logs"),
        }
    }

    #[test]
    fn the_box_names_the_first_cause_and_counts_the_victims() {
        let expected = "\
┌ FAILED  rank 2 (replica 1 stage 0, host slow-0, ethernet)
│ cause   exit code 17
│ when    3.2 s after the start
│ last    loading
│         boom
│ others  3 ranks stopped because of it
└ logs    logs/rank-2.{out,err}.log";
        assert_eq!(failure(Cause::Exit { code: 17 }).to_string(), expected);
    }

    #[test]
    fn the_fullest_box_has_fifteen_lines_at_most_and_no_control_characters() {
        let nasty = format!("\u{1b}[2J{}\nsecond line", "x".repeat(10_000));
        let mut full = failure(Cause::Verdict { reason: nasty.clone() });
        full.message = Some(nasty.clone());
        full.last_lines = vec![nasty; 8];
        let shown = full.to_string();
        assert!(shown.lines().count() <= 15, "{shown}");
        assert!(shown.lines().all(|line| line.chars().count() <= WIDTH + 12), "{shown}");
        assert!(!shown.contains('\u{1b}'));
    }

    #[test]
    fn a_signal_is_named_and_memory_is_blamed_only_if_the_kernel_says_so() {
        let mut killed = failure(Cause::Signal { number: 9 });
        assert!(killed.to_string().contains("killed by SIGKILL (signal 9)\n"));
        killed.oom_kills = 1;
        assert!(killed.to_string().contains("killed by SIGKILL (signal 9): out of memory"));
        assert_eq!(Cause::Exit { code: 139 }.to_string(), "exit code 139 (128 + SIGSEGV (signal 11))");
        assert_eq!(Cause::Signal { number: 40 }.to_string(), "killed by signal 40");
    }

    #[test]
    fn exit_codes_are_the_ranks_own_or_the_shells_words() {
        let code = |cause| Outcome::Failed(failure(cause)).exit_code();
        assert_eq!(Outcome::Success.exit_code(), 0);
        assert_eq!(code(Cause::Exit { code: 17 }), 17);
        assert_eq!(code(Cause::Signal { number: 9 }), 137);
        assert_eq!(code(Cause::Verdict { reason: String::new() }), 1);
        assert_eq!(Outcome::Interrupted { signal: 2 }.exit_code(), 130);
        let missing = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(code(Cause::not_started(OsStr::new("x"), &missing)), 127);
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(code(Cause::not_started(OsStr::new("x"), &denied)), 126);
    }

    #[test]
    fn json_has_the_outcome_and_times_in_seconds() {
        let json =
            serde_json::to_value(Outcome::Failed(failure(Cause::Exit { code: 17 }))).expect("plain data");
        assert_eq!(json["outcome"], "failed");
        assert_eq!(json["cause"]["code"], 17);
        assert_eq!(json["elapsed_s"], 3.21);
    }
}
