//! Starts the ranks of a plan as processes, watches them, and ends them all when one fails.
//!
//! ```text
//!   Plan ──environment──> RankCommand ──run──> process ──exits, signals──> job (decides) ──terminate, kill──> process
//!                                              output ──lines──> log files, stderr, Event
//! ```
//! Decisions are in `job`: a state machine over time that holds no process. What touches the system is around it:
//! `process` (spawn, reap, signal), `leash` and `warden` (nothing outlives the launcher), `output` (logs),
//! `signals`. What a user reads after a failure is `failure`.
//!
//! Rules kept here:
//! - Each rank leads a session, so its process group is the rank and all it has started; every signal goes to groups.
//! - The first failure ends the job: SIGTERM to all groups at once, SIGKILL after [`LaunchConfig::grace`].
//! - A rank that ends *because* another did exits with [`ENDED_BY_PEER`]; the cause is then looked for elsewhere.
//! - However the launcher dies, SIGKILL included, the ranks die with it.
//!
//! Limits: Linux; this machine only. A process that leaves its rank's group (a daemon) is out of reach.
//! Not here: training, rendezvous, other machines (`--on ssh`, `--on slurm`), restarts.

mod environment;
mod error_file;
mod failure;
mod job;
mod leash;
mod oom;
mod output;
mod process;
mod signals;
mod warden;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

pub use self::environment::{JobEnvironment, JobKey, environment, free_port, rank_label};
pub use self::failure::{Cause, Ending, Failure, Outcome};
pub use self::output::Stream;

use self::job::{Input, Job, Verdict};
use self::output::{Line, Logs, Tails};
use self::process::Crew;
use self::signals::{Signals, Wake};

/// Exit code (EX_TEMPFAIL) by which a rank says "I ended because a peer or the coordinator failed".
pub const ENDED_BY_PEER: u8 = 75;

/// How long output may still come once every process is gone: only a stray daemon keeps a pipe open after that.
const DRAIN: Duration = Duration::from_secs(1);

/// Lines between the readers of output and the supervisor; a full queue slows the rank that writes.
const LINES_IN_FLIGHT: usize = 1024;

/// One process to start.
#[derive(Debug, Clone)]
pub struct RankCommand {
    /// Global rank, distinct over the job.
    pub rank: u32,
    /// How messages call it; see [`rank_label`].
    pub label: String,
    /// Looked up in `PATH` unless it holds a slash.
    pub program: OsString,
    /// Arguments, the program's name not among them.
    pub args: Vec<OsString>,
    /// Set on top of the launcher's own environment.
    pub env: Vec<(String, String)>,
}

/// How a job is run.
#[derive(Debug, Clone)]
pub struct LaunchConfig {
    /// Where `rank-N.out.log` and `rank-N.err.log` are written, anew; created if absent.
    pub log_dir: PathBuf,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// What of the ranks' output is shown while they run.
    pub echo: Echo,
}

/// What of the ranks' output is shown while they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// Every line of every rank on stderr, as `[rank N] line`.
    Stderr,
    /// Nothing; the log files have it.
    Quiet,
}

/// What the caller is told while the job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The process runs.
    Started {
        /// Whose.
        rank: u32,
        /// Its process id, which is also its process group's.
        pid: i32,
    },
    /// A rank wrote a line.
    Line {
        /// Who.
        rank: u32,
        /// Where to.
        stream: Stream,
        /// Without its line end; bytes that are not UTF-8 replaced; very long lines come in pieces.
        text: &'a str,
    },
    /// A rank's own process ended; what it started may still run.
    Exited {
        /// Whose.
        rank: u32,
        /// How.
        ending: Ending,
    },
}

/// Ends a running job from another thread, with a reason: what the coordinator knows and the launcher cannot see.
#[derive(Debug, Clone)]
pub struct Stop(mpsc::UnboundedSender<Accusation>);

/// The other end of [`Stop`], for [`run`].
#[derive(Debug)]
pub struct Control(mpsc::UnboundedReceiver<Accusation>);

#[derive(Debug)]
struct Accusation {
    rank: Option<u32>,
    reason: String,
}

/// A pair of [`Stop`] and [`Control`]; a job that nobody but the user stops gets `control().1`.
pub fn control() -> (Stop, Control) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Stop(sender), Control(receiver))
}

impl Stop {
    /// Asks for the end of the job; `rank`, if known, is whom `reason` blames.
    ///
    /// A rank found dead within the next half second is still reported as the cause instead: a coordinator that lost
    /// a connection knows less than the exit code says. After the job's end this does nothing.
    pub fn because(&self, rank: Option<u32>, reason: impl Into<String>) {
        // A closed channel is a job that has ended.
        let _ = self.0.send(Accusation { rank, reason: reason.into() });
    }
}

/// Why a job could not be begun; what happens later is an [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The log folder or a file in it.
    #[error("cannot prepare the log {path}: {source}; choose another folder for the logs")]
    Log {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Signal handlers or the event loop.
    #[error("cannot watch processes and signals: {0}")]
    Watch(#[source] io::Error),
}

/// Runs the job to its end and says how it ended. Blocks the calling thread.
///
/// The thread must be one where a tokio runtime may be entered (a plain thread, `spawn_blocking`), since ranks die with
/// the thread that started them. SIGINT, SIGTERM and SIGHUP end the job while it runs, unless they were ignored when
/// the program began (`nohup`); their handlers stay installed after it. `on_event` runs on this thread and must not
/// block for long: nothing is watched meanwhile. The caller may have children of its own but must not wait for "any".
pub fn run(
    ranks: Vec<RankCommand>,
    config: &LaunchConfig,
    control: Control,
    on_event: impl FnMut(Event<'_>),
) -> Result<Outcome, LaunchError> {
    let mut numbers: Vec<_> = ranks.iter().map(|r| r.rank).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), ranks.len(), "every rank is launched once");

    let (sender, lines) = mpsc::channel(LINES_IN_FLIGHT);
    let logs = Logs::create(config, &ranks)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(LaunchError::Watch)?.block_on(async {
        let signals = Signals::install().map_err(LaunchError::Watch)?;
        let oom_kills_before = oom::kills();
        let mut launch = Launch {
            job: Job::new(numbers, config.grace),
            crew: Crew::new(),
            tails: Tails::default(),
            lines,
            start: Instant::now(),
            on_event,
        };
        launch.start_all(&ranks, logs, sender);
        launch.supervise(signals, control).await;
        let verdict = launch.finish().await;
        let oom_kills =
            oom::kills().zip(oom_kills_before).map_or(0, |(now, before)| now.saturating_sub(before));
        Ok(outcome(verdict, &ranks, &launch.tails, &config.log_dir, oom_kills))
    })
}

/// A job under way: the decisions, the processes and what they wrote.
struct Launch<F> {
    job: Job,
    crew: Crew,
    tails: Tails,
    lines: mpsc::Receiver<Line>,
    start: Instant,
    on_event: F,
}

impl<F: FnMut(Event<'_>)> Launch<F> {
    /// Starts the ranks in order, up to the first that cannot be started.
    fn start_all(&mut self, ranks: &[RankCommand], logs: Vec<Logs>, lines: mpsc::Sender<Line>) {
        for (command, logs) in ranks.iter().zip(logs) {
            let rank = command.rank;
            match self.crew.spawn(command) {
                Ok((pid, child_output)) => {
                    logs.follow(rank, child_output, &lines);
                    (self.on_event)(Event::Started { rank, pid });
                    self.tell(Input::Started { rank });
                }
                Err(error) => {
                    let cause = Cause::not_started(&command.program, &error);
                    return self.tell(Input::NotStarted { rank, cause });
                }
            }
        }
    }

    async fn supervise(&mut self, mut signals: Signals, mut control: Control) {
        while !self.job.is_over() {
            let deadline = self.job.deadline().map(|at| self.start + at);
            tokio::select! {
                wake = signals.next() => match wake {
                    Wake::Child => self.reap(),
                    Wake::Stop(signal) => self.tell(Input::Interrupt { signal }),
                },
                Some(Accusation { rank, reason }) = control.0.recv() => self.tell(Input::Accused { rank, reason }),
                Some(line) = self.lines.recv() => self.note(line),
                () = at(deadline) => {
                    let order = self.job.tick(self.start.elapsed());
                    self.obey(order);
                }
            }
        }
    }

    /// Collects what was still being written, then gives the verdict.
    async fn finish(&mut self) -> Verdict {
        for rank in self.job.survivors() {
            tracing::warn!(rank, "does not die of SIGKILL (stuck in the kernel); left behind");
        }
        let drained = Instant::now() + DRAIN;
        while let Ok(Some(line)) = tokio::time::timeout_at(drained, self.lines.recv()).await {
            self.note(line);
        }
        self.crew.dismiss();
        self.job.verdict()
    }

    fn reap(&mut self) {
        for input in self.crew.reap() {
            if let Input::Exited { rank, ending } = input {
                (self.on_event)(Event::Exited { rank, ending });
            }
            self.tell(input);
        }
    }

    fn note(&mut self, line: Line) {
        (self.on_event)(Event::Line { rank: line.rank, stream: line.stream, text: &line.text });
        self.tails.push(line);
    }

    fn tell(&mut self, input: Input) {
        let order = self.job.handle(input, self.start.elapsed());
        self.obey(order);
    }

    fn obey(&self, order: Option<job::Order>) {
        if let Some(order) = order {
            self.crew.signal(order);
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Adds to the verdict what a user needs to understand it.
fn outcome(
    verdict: Verdict,
    ranks: &[RankCommand],
    tails: &Tails,
    log_dir: &Path,
    oom_kills: u64,
) -> Outcome {
    let (rank, cause, victims, elapsed) = match verdict {
        Verdict::Success => return Outcome::Success,
        Verdict::Interrupted { signal } => return Outcome::Interrupted { signal },
        Verdict::Failed { rank, cause, victims, at } => (rank, cause, victims, at),
    };
    let command = ranks.iter().find(|r| Some(r.rank) == rank);
    Outcome::Failed(Failure {
        rank,
        label: command.map_or_else(|| "the job".to_owned(), |c| c.label.clone()),
        message: command.and_then(error_file::path).and_then(|path| error_file::read(&path)),
        oom_kills: if cause.is_kill() { oom_kills } else { 0 },
        cause,
        last_lines: rank.map(|r| tails.of(r)).unwrap_or_default(),
        victims,
        elapsed,
        log_dir: log_dir.to_owned(),
    })
}
