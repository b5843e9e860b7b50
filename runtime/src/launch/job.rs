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
    /// A job of at least one rank, none started.
    pub fn new(ranks: impl IntoIterator<Item = u32>, grace: Duration) -> Self {
        let ranks: BTreeMap<_, _> = ranks.into_iter().map(|rank| (rank, Rank::NotStarted)).collect();
        assert!(!ranks.is_empty(), "a job has ranks");
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

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// `n` ranks, running.
    fn job(n: u32) -> Job {
        let mut job = Job::new(0..n, GRACE);
        (0..n).for_each(|rank| assert_eq!(job.handle(Input::Started { rank }, ms(0)), None));
        job
    }

    fn exits(job: &mut Job, rank: u32, code: u8, now: Duration) -> Option<Order> {
        job.handle(Input::Exited { rank, ending: Ending::Exit { code } }, now)
    }

    /// The rank exits and leaves nothing behind.
    fn ends(job: &mut Job, rank: u32, code: u8, now: Duration) -> Option<Order> {
        let order = exits(job, rank, code, now);
        job.handle(Input::Emptied { rank }, now).or(order)
    }

    fn accuses(job: &mut Job, rank: Option<u32>, reason: &str, now: Duration) -> Option<Order> {
        job.handle(Input::Accused { rank, reason: reason.to_owned() }, now)
    }

    fn failed(rank: Option<u32>, cause: Cause, victims: u32, at: Duration) -> Verdict {
        Verdict::Failed { rank, cause, victims, at }
    }

    #[test]
    fn a_job_succeeds_when_every_rank_has() {
        let mut job = job(2);
        assert_eq!(ends(&mut job, 1, 0, ms(5)), None);
        assert!(!job.is_over());
        assert_eq!(job.deadline(), None, "a rank may run for ever");
        assert_eq!(ends(&mut job, 0, 0, ms(9)), None);
        assert_eq!(job.verdict(), Verdict::Success);
    }

    #[test]
    fn the_first_failure_stops_all_and_the_others_are_victims() {
        let mut job = job(4);
        ends(&mut job, 3, 0, ms(1));
        assert_eq!(ends(&mut job, 2, 17, ms(7)), Some(Order::Terminate));
        assert_eq!(job.deadline(), Some(ms(7) + GRACE));
        assert_eq!(ends(&mut job, 0, 1, ms(8)), None);
        assert_eq!(job.survivors().collect::<Vec<_>>(), [1]);
        assert_eq!(ends(&mut job, 1, 143, ms(9)), None);
        assert_eq!(job.verdict(), failed(Some(2), Cause::Exit { code: 17 }, 2, ms(7)));
    }

    #[test]
    fn who_outlives_the_grace_is_killed_and_who_outlives_that_is_left() {
        let mut job = job(2);
        ends(&mut job, 0, 1, ms(0));
        assert_eq!(job.tick(GRACE - ms(1)), None);
        assert_eq!(job.tick(GRACE), Some(Order::Kill));
        assert_eq!(job.tick(GRACE), None, "once");
        assert!(!job.is_over());
        assert_eq!(job.tick(GRACE + ABANDON), None);
        assert!(job.is_over());
        assert_eq!(job.survivors().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_victim_that_is_seen_first_is_not_the_cause() {
        let mut job = job(3);
        assert_eq!(ends(&mut job, 0, ENDED_BY_PEER, ms(0)), None);
        assert_eq!(ends(&mut job, 1, ENDED_BY_PEER, ms(10)), None);
        let order = job.handle(Input::Exited { rank: 2, ending: Ending::Signal { number: 11 } }, ms(400));
        assert_eq!(order, Some(Order::Terminate));
        job.handle(Input::Emptied { rank: 2 }, ms(400));
        assert_eq!(job.verdict(), failed(Some(2), Cause::Signal { number: 11 }, 2, ms(400)));
    }

    #[test]
    fn a_victim_without_a_culprit_is_reported_after_the_window() {
        let mut job = job(2);
        ends(&mut job, 1, ENDED_BY_PEER, ms(100));
        assert_eq!(job.deadline(), Some(ms(100) + WINDOW));
        assert_eq!(job.tick(ms(99) + WINDOW), None);
        assert_eq!(job.tick(ms(100) + WINDOW), Some(Order::Terminate));
        ends(&mut job, 0, 9, ms(101) + WINDOW);
        assert_eq!(job.verdict(), failed(Some(1), Cause::Exit { code: ENDED_BY_PEER }, 1, ms(100)));
    }

    #[test]
    fn nobody_is_waited_for_when_all_have_ended() {
        let mut job = job(2);
        ends(&mut job, 1, ENDED_BY_PEER, ms(0));
        ends(&mut job, 0, 0, ms(1));
        assert_eq!(job.verdict(), failed(Some(1), Cause::Exit { code: ENDED_BY_PEER }, 1, ms(0)));
    }

    #[test]
    fn an_exit_is_believed_before_an_accusation_and_that_before_an_exit_75() {
        let reason = "rank 1 was not heard of for 10 s";
        let verdict = Cause::Verdict { reason: reason.to_owned() };
        // Victim, accusation, exit: in whatever order, before the window is over.
        let mut by_exit = job(3);
        accuses(&mut by_exit, Some(1), reason, ms(0));
        ends(&mut by_exit, 0, ENDED_BY_PEER, ms(1));
        assert_eq!(ends(&mut by_exit, 2, 3, ms(2)), Some(Order::Terminate));
        ends(&mut by_exit, 1, 0, ms(3));
        assert_eq!(by_exit.verdict(), failed(Some(2), Cause::Exit { code: 3 }, 2, ms(2)));

        for accusation_first in [true, false] {
            let mut job = job(2);
            if accusation_first {
                accuses(&mut job, Some(1), reason, ms(0));
                ends(&mut job, 0, ENDED_BY_PEER, ms(0));
            } else {
                ends(&mut job, 0, ENDED_BY_PEER, ms(0));
                accuses(&mut job, Some(1), reason, ms(0));
            }
            assert_eq!(job.deadline(), Some(WINDOW));
            assert_eq!(job.tick(WINDOW), Some(Order::Terminate));
            ends(&mut job, 1, 143, WINDOW);
            assert_eq!(job.verdict(), failed(Some(1), verdict.clone(), 1, ms(0)));
        }
    }

    #[test]
    fn an_accusation_may_blame_nobody() {
        let mut job = job(2);
        accuses(&mut job, None, "no quorum", ms(0));
        job.tick(WINDOW);
        (0..2).for_each(|rank| assert_eq!(ends(&mut job, rank, 143, WINDOW), None));
        assert_eq!(job.verdict(), failed(None, Cause::Verdict { reason: "no quorum".to_owned() }, 2, ms(0)));
    }

    #[test]
    fn a_rank_that_cannot_start_stops_those_before_it() {
        let mut job = Job::new(0..3, GRACE);
        job.handle(Input::Started { rank: 0 }, ms(0));
        let cause = Cause::NotStarted { error: "cannot start x".to_owned(), code: 127 };
        assert_eq!(
            job.handle(Input::NotStarted { rank: 1, cause: cause.clone() }, ms(1)),
            Some(Order::Terminate)
        );
        ends(&mut job, 0, 143, ms(2));
        assert_eq!(job.verdict(), failed(Some(1), cause, 1, ms(1)));
    }

    #[test]
    fn the_first_rank_that_cannot_start_ends_the_job_at_once() {
        let mut job = Job::new(0..2, GRACE);
        let cause = Cause::NotStarted { error: "cannot start x".to_owned(), code: 127 };
        job.handle(Input::NotStarted { rank: 0, cause }, ms(0));
        assert!(job.is_over());
    }

    #[test]
    fn ctrl_c_stops_and_a_second_one_kills_at_once() {
        let mut job = job(1);
        assert_eq!(job.handle(Input::Interrupt { signal: 2 }, ms(0)), Some(Order::Terminate));
        assert_eq!(job.handle(Input::Interrupt { signal: 15 }, ms(1)), None, "only Ctrl-C is impatience");
        assert_eq!(job.handle(Input::Interrupt { signal: 2 }, ms(2)), Some(Order::Kill));
        ends(&mut job, 0, 137, ms(3));
        assert_eq!(job.verdict(), Verdict::Interrupted { signal: 2 });
    }

    #[test]
    fn ctrl_c_after_a_failure_does_not_hide_it() {
        let mut job = job(2);
        ends(&mut job, 0, 1, ms(0));
        assert_eq!(job.handle(Input::Interrupt { signal: 2 }, ms(1)), Some(Order::Kill));
        ends(&mut job, 1, 137, ms(2));
        assert_eq!(job.verdict(), failed(Some(0), Cause::Exit { code: 1 }, 1, ms(0)));
    }

    #[test]
    fn what_a_successful_rank_leaves_behind_may_end_by_itself_before_it_is_made_to() {
        let mut left = job(1);
        assert_eq!(exits(&mut left, 0, 0, ms(0)), None);
        assert_eq!(left.deadline(), Some(WINDOW));
        assert_eq!(left.handle(Input::Emptied { rank: 0 }, ms(9)), None);
        assert_eq!(left.verdict(), Verdict::Success);

        let mut stays = job(1);
        exits(&mut stays, 0, 0, ms(0));
        assert_eq!(stays.tick(WINDOW), Some(Order::Terminate));
        assert_eq!(stays.tick(WINDOW + GRACE), Some(Order::Kill));
        stays.handle(Input::Emptied { rank: 0 }, WINDOW + GRACE);
        assert_eq!(stays.verdict(), Verdict::Success);
    }

    #[test]
    fn without_grace_the_kill_comes_at_once() {
        let mut job = Job::new(0..2, Duration::ZERO);
        (0..2).for_each(|rank| assert_eq!(job.handle(Input::Started { rank }, ms(0)), None));
        assert_eq!(exits(&mut job, 0, 1, ms(3)), Some(Order::Kill));
    }

    /// Every history of three ranks' ends, an accusation and a Ctrl-C ends, and blames only who failed by itself.
    #[test]
    fn every_order_of_events_ends_with_a_verdict_that_blames_no_victim() {
        const CODES: [u8; 4] = [0, 1, ENDED_BY_PEER, 3];
        for history in 0..6u32.pow(5) {
            let mut job = job(3);
            let mut digits = history;
            for step in 0..5 {
                let (what, now) = (digits % 6, ms(200 * step));
                digits /= 6;
                job.tick(now);
                let alive: Vec<_> = job.survivors().collect();
                match what {
                    4 => accuses(&mut job, None, "hang", now),
                    5 => job.handle(Input::Interrupt { signal: 2 }, now),
                    code => alive.first().and_then(|&rank| ends(&mut job, rank, CODES[code as usize], now)),
                };
            }
            if job.deadline().is_none() && !job.is_over() {
                continue; // Nothing has failed and somebody runs.
            }
            for _ in 0..4 {
                let at = job.deadline().unwrap_or(ms(1000)).max(ms(1000));
                job.tick(at);
            }
            assert!(job.is_over(), "history {history} is stuck in {:?}", job.phase);
            if let Verdict::Failed {
                rank: Some(rank), cause: Cause::Exit { code: ENDED_BY_PEER }, at, ..
            } = job.verdict()
            {
                let by_itself = job
                    .ranks
                    .iter()
                    .any(|(&r, s)| r < rank && matches!(s, Rank::Gone(Ending::Exit { code: 1 | 3 })));
                assert!(!by_itself, "history {history}: rank {rank} at {at:?} blamed before the cause");
            }
        }
    }
}
