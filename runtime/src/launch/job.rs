//! What to do when rank r ends at time t: the job as a state machine. Pure: no process, no clock.
//!
//! ```text
//!              a rank fails, a rank cannot start
//!   Running ───────────────────────────────────────────> Stopping ──grace over──> Killing ──> Over
//!     │ │        exit 75, accusation       window over      ^  │ Ctrl-C again        ^         ^
//!     │ └─────────────────────────> Doubt ──────────────────┤  └─────────────────────┘         │
//!     │ all ranks succeeded, some left processes behind     │         no process left          │
//!     └──────────────────────────> Settling ────────────────┴──────────────────────────────────┘
//! ```
//! *Doubt*: a rank that ends because its peer died (exit 75) may be seen before the peer, and a coordinator that loses a
//! connection speaks before the kernel reports the exit. Both are hearsay: for [`WINDOW`] a rank that is found to have
//! failed by itself is taken as the cause instead. Of two hearsays an accusation, which has a reason, beats an exit 75.
//!
//! *Settling*: processes left behind by ranks that succeeded (a `tee` still writing) get [`WINDOW`] to end by
//! themselves.
//!
//! Every phase but Running has a deadline, the last one too: what SIGKILL does not end within [`ABANDON`] is left.
//! Not here: who is in a group, how it is signalled (`process`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::ENDED_BY_PEER;
use super::failure::{Cause, Ending};

/// How long hearsay waits for the true cause, and leftovers of a success for their own end.
const WINDOW: Duration = Duration::from_millis(500);

/// How long SIGKILL may take (a process inside a driver or a dead file system does not die at all).
const ABANDON: Duration = Duration::from_secs(5);

const SIGINT: i32 = rustix::process::Signal::INT.as_raw();

/// Something that happened.
#[derive(Debug)]
pub(super) enum Input {
    Started {
        rank: u32,
    },
    NotStarted {
        rank: u32,
        cause: Cause,
    },
    /// The rank's own process ended.
    Exited {
        rank: u32,
        ending: Ending,
    },
    /// Nothing is left in the group of a rank that has exited.
    Emptied {
        rank: u32,
    },
    /// The caller wants the job ended.
    Accused {
        rank: Option<u32>,
        reason: String,
    },
    /// The user wants it.
    Interrupt {
        signal: i32,
    },
}

/// What is to be done, to every group that still has processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Terminate,
    Kill,
}

/// How the job ended; times count from its start.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    Success,
    Interrupted {
        signal: i32,
    },
    /// `victims`: ranks started, other than the cause, that had not succeeded by then.
    Failed {
        rank: Option<u32>,
        cause: Cause,
        victims: u32,
        at: Duration,
    },
}

#[derive(Debug)]
pub(super) struct Job {
    ranks: BTreeMap<u32, Rank>,
    phase: Phase,
    grace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Rank {
    NotStarted,
    Running,
    /// Ended, but processes that it started have not.
    Lingering(Ending),
    Gone(Ending),
}

#[derive(Debug, Clone)]
enum Phase {
    Running,
    Doubt { hearsay: Verdict, until: Duration },
    Settling { until: Duration },
    Stopping { verdict: Verdict, kill_at: Duration },
    Killing { verdict: Verdict, abandon_at: Duration },
    Over(Verdict),
}

impl Job {
    pub fn new(ranks: impl IntoIterator<Item = u32>, grace: Duration) -> Self {
        let ranks = ranks.into_iter().map(|rank| (rank, Rank::NotStarted)).collect();
        Self { ranks, phase: Phase::Running, grace }
    }

    /// Takes in what happened; `now` counts from the job's start and never falls.
    pub fn handle(&mut self, input: Input, now: Duration) -> Option<Order> {
        let order = match input {
            Input::Started { rank } => self.set(rank, Rank::Running),
            Input::NotStarted { rank, cause } => self.convict(Some(rank), cause, now),
            Input::Exited { rank, ending } => self.exited(rank, ending, now),
            Input::Emptied { rank } => self.emptied(rank),
            Input::Accused { rank, reason } => self.suspect(rank, Cause::Verdict { reason }, now),
            Input::Interrupt { signal } => self.interrupt(signal, now),
        };
        self.tick(now).or(order)
    }

    /// Does what is due by `now`.
    pub fn tick(&mut self, now: Duration) -> Option<Order> {
        let mut order = None;
        while let Some((phase, next_order)) = self.next(now) {
            self.phase = phase;
            order = next_order.or(order);
        }
        order
    }

    /// When `tick` has next something to do, if nothing happens before.
    pub fn deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Running | Phase::Over(_) => None,
            Phase::Doubt { until, .. } | Phase::Settling { until } => Some(until),
            Phase::Stopping { kill_at, .. } => Some(kill_at),
            Phase::Killing { abandon_at, .. } => Some(abandon_at),
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// Ranks of which something still runs.
    pub fn survivors(&self) -> impl Iterator<Item = u32> {
        self.ranks
            .iter()
            .filter(|(_, r)| matches!(r, Rank::Running | Rank::Lingering(_)))
            .map(|(&rank, _)| rank)
    }

    /// How it ended; only for a job that is over.
    pub fn verdict(&self) -> Verdict {
        match &self.phase {
            Phase::Over(verdict) => verdict.clone(),
            phase => unreachable!("the verdict is asked for after the end, not in {phase:?}"),
        }
    }

    /// The transitions that need no input: time is over, or nobody is left.
    fn next(&self, now: Duration) -> Option<(Phase, Option<Order>)> {
        let empty = self.survivors().next().is_none();
        let all_succeeded = self.ranks.values().all(|r| r.succeeded());
        match &self.phase {
            Phase::Running if all_succeeded && empty => Some((Phase::Over(Verdict::Success), None)),
            Phase::Running if all_succeeded => Some((Phase::Settling { until: now + WINDOW }, None)),
            Phase::Doubt { hearsay, until } if empty || now >= *until => {
                Some(self.stop(hearsay.clone(), now))
            }
            Phase::Settling { .. } if empty => Some((Phase::Over(Verdict::Success), None)),
            Phase::Settling { until } if now >= *until => Some(self.stop(Verdict::Success, now)),
            Phase::Stopping { verdict, .. } | Phase::Killing { verdict, .. } if empty => {
                Some((Phase::Over(verdict.clone()), None))
            }
            Phase::Stopping { verdict, kill_at } if now >= *kill_at => Some(kill(verdict.clone(), now)),
            Phase::Killing { verdict, abandon_at } if now >= *abandon_at => {
                Some((Phase::Over(verdict.clone()), None))
            }
            _ => None,
        }
    }

    fn exited(&mut self, rank: u32, ending: Ending, now: Duration) -> Option<Order> {
        self.set(rank, Rank::Lingering(ending));
        match ending {
            Ending::Exit { code: 0 } => None,
            Ending::Exit { code } if code == ENDED_BY_PEER => self.suspect(Some(rank), ending.into(), now),
            _ => self.convict(Some(rank), ending.into(), now),
        }
    }

    fn emptied(&mut self, rank: u32) -> Option<Order> {
        let Rank::Lingering(ending) = self.ranks[&rank] else {
            unreachable!("the group of rank {rank} is empty only after its leader's end")
        };
        self.set(rank, Rank::Gone(ending))
    }

    /// The cause is known, unless another was known before.
    fn convict(&mut self, rank: Option<u32>, cause: Cause, now: Duration) -> Option<Order> {
        match self.phase {
            Phase::Running | Phase::Doubt { .. } => self.enter(self.stop(self.failed(rank, cause, now), now)),
            // All succeeded, or the end was decided: whoever fails now is a victim.
            Phase::Settling { .. } | Phase::Stopping { .. } | Phase::Killing { .. } | Phase::Over(_) => None,
        }
    }

    /// Hearsay: see the header.
    fn suspect(&mut self, rank: Option<u32>, cause: Cause, now: Duration) -> Option<Order> {
        let accused = matches!(cause, Cause::Verdict { .. });
        let until = match &self.phase {
            Phase::Running => now + WINDOW,
            Phase::Doubt { hearsay: Verdict::Failed { cause: Cause::Exit { .. }, .. }, until } if accused => {
                *until
            }
            _ => return None,
        };
        self.phase = Phase::Doubt { hearsay: self.failed(rank, cause, now), until };
        None
    }

    fn interrupt(&mut self, signal: i32, now: Duration) -> Option<Order> {
        match &self.phase {
            Phase::Running | Phase::Doubt { .. } => {
                self.enter(self.stop(Verdict::Interrupted { signal }, now))
            }
            Phase::Settling { .. } => self.enter(self.stop(Verdict::Success, now)),
            // Ctrl-C while we wait is impatience. SIGTERM and SIGHUP come in pairs by themselves (`timeout`, shells).
            Phase::Stopping { verdict, .. } if signal == SIGINT => self.enter(kill(verdict.clone(), now)),
            Phase::Stopping { .. } | Phase::Killing { .. } | Phase::Over(_) => None,
        }
    }

    fn failed(&self, rank: Option<u32>, cause: Cause, at: Duration) -> Verdict {
        let victims =
            self.ranks.iter().filter(|&(&r, state)| Some(r) != rank && state.started() && !state.succeeded());
        Verdict::Failed { rank, cause, victims: victims.count() as u32, at }
    }

    fn stop(&self, verdict: Verdict, now: Duration) -> (Phase, Option<Order>) {
        (Phase::Stopping { verdict, kill_at: now + self.grace }, Some(Order::Terminate))
    }

    fn enter(&mut self, (phase, order): (Phase, Option<Order>)) -> Option<Order> {
        self.phase = phase;
        order
    }

    fn set(&mut self, rank: u32, state: Rank) -> Option<Order> {
        let known = self.ranks.insert(rank, state);
        assert!(known.is_some(), "rank {rank} is not of this job");
        None
    }
}

fn kill(verdict: Verdict, now: Duration) -> (Phase, Option<Order>) {
    (Phase::Killing { verdict, abandon_at: now + ABANDON }, Some(Order::Kill))
}

impl Rank {
    fn started(self) -> bool {
        self != Rank::NotStarted
    }

    fn succeeded(self) -> bool {
        matches!(self, Rank::Lingering(e) | Rank::Gone(e) if e == Ending::Exit { code: 0 })
    }
}
