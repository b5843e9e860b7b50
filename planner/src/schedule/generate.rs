//! From a plan to its schedule. Every stage does the same two things, a forward and a backward of a microbatch;
//! a schedule kind is only the order in which it does them:
//! ```text
//! GPipe  F0 .. F(m-1)  B0 .. B(m-1)                            all m microbatches in flight at once
//! 1F1B   w warm-up forwards, then forward and backward in turn, then what backwards are left;
//!        w = min(m, p - 1 - stage), so at most min(m, p - stage) microbatches are in flight
//! ```
//! With v model chunks a rank (interleaved) the passes are numbered k = 0 .. m v - 1: p microbatches through chunk 0, the
//! same p through chunk 1, .., then the next p; backward the chunks come last to first. The warm-up of rank i is longer,
//! w = min(m v, 2 (p - 1 - i) + (v - 1) p), the bubble a v-th, and m must be a multiple of p. Microbatches are counted
//! from 0 in either case: gradients accumulate in one order, whichever schedule runs.
//! ```text
//! pass k:  microbatch = k / (p v) * p + k % p      chunk = k % (p v) / p   (backward: v - 1 - that)
//! ```
//! Sources: GPipe, arXiv 1811.06965; 1F1B, arXiv 2006.09503; interleaved, Narayanan et al., arXiv 2104.04473, 2.2.
//!
//! Not here: zero-bubble orders.

use super::{Action, Checked, Payload, Peer, Schedule, ScheduleError, boundary_peers, check, exchanges_at};
use crate::plan::{ExchangeKind, Plan, ScheduleKind, Seat};

/// The plan's own schedule for optimiser step `step` (from 1), checked.
///
/// # Errors
/// If an interleaved replica's microbatches are not a multiple of its groups, or the schedule made is unsound.
pub fn of(plan: &Plan, step: u64) -> Result<Checked<Schedule>, ScheduleError> {
    check(lists(plan, step, |_| true)?, plan, step)
}

/// The plan's own schedule, not checked, of the replicas that are `wanted`; the other ranks' lists are empty.
///
/// # Errors
/// If an interleaved replica's microbatches are not a multiple of its groups.
pub(crate) fn lists(
    plan: &Plan,
    step: u64,
    wanted: impl Fn(usize) -> bool,
) -> Result<Schedule, ScheduleError> {
    can_interleave(plan)?;
    Ok(per_rank(plan, step, plan.schedule.kind, wanted))
}

/// All forwards, then all backwards, for every rank of every replica.
pub fn gpipe(plan: &Plan, step: u64) -> Schedule {
    per_rank(plan, step, ScheduleKind::Gpipe, |_| true)
}

/// One forward, one backward in turn after the warm-up, for every rank of every replica; interleaved where a rank has
/// several stages (then microbatches must be a multiple of the groups: [`of`] says so, this makes a schedule that
/// [`check`] refuses).
pub fn one_f_one_b(plan: &Plan, step: u64) -> Schedule {
    per_rank(plan, step, ScheduleKind::OneForwardOneBackward, |_| true)
}

/// Evaluation: `microbatches` forwards through one replica; the other replicas' ranks have nothing to do.
pub fn forward_only(plan: &Plan, replica: usize, microbatches: u32) -> Schedule {
    let actions = |seat: Seat<'_>| {
        let mut rank = RankActions::new(plan, seat);
        if seat.replica == replica {
            let chunks = rank.chunks.len() as u32;
            (0..microbatches).for_each(|m| (0..chunks).for_each(|chunk| rank.forward((m, chunk))));
        }
        rank.actions
    };
    Schedule(plan.seats().into_iter().map(actions).collect())
}

fn can_interleave(plan: &Plan) -> Result<(), ScheduleError> {
    for (index, replica) in plan.replicas.iter().enumerate() {
        let (depth, microbatches) = (replica.depth() as u32, replica.microbatches);
        if replica.virtual_stages() > 1 && !microbatches.is_multiple_of(depth) {
            return Err(ScheduleError::Interleaved { replica: index, microbatches, depth });
        }
    }
    Ok(())
}

fn per_rank(plan: &Plan, step: u64, kind: ScheduleKind, wanted: impl Fn(usize) -> bool) -> Schedule {
    let actions = |seat: Seat<'_>| {
        if !wanted(seat.replica) {
            return Vec::new();
        }
        let mut rank = RankActions::new(plan, seat);
        rank.passes(match kind {
            ScheduleKind::Gpipe => u32::MAX,
            ScheduleKind::OneForwardOneBackward => rank.warm_up(),
        });
        rank.close(plan, seat.replica, step);
        rank.actions
    };
    Schedule(plan.seats().into_iter().map(actions).collect())
}

/// A microbatch and a model chunk.
type Pass = (u32, u32);

/// One rank's list in the making.
struct RankActions {
    microbatches: u32,
    /// Tensor-parallel groups of the pipeline, and which of them the rank is in.
    groups: u32,
    group: u32,
    /// By model chunk.
    chunks: Vec<Neighbours>,
    actions: Vec<Action>,
}

/// Who has the stages before and after a stage, and the chunks by which the two boundaries go.
struct Neighbours {
    before: Vec<Peer>,
    boundary_before: u32,
    after: Vec<Peer>,
    boundary_after: u32,
}

impl RankActions {
    fn new(plan: &Plan, seat: Seat<'_>) -> Self {
        let replica = &plan.replicas[seat.replica];
        let groups = replica.depth();
        let neighbours = |stage: usize| {
            let peers = |other: Option<usize>| {
                let other = other.and_then(|s| replica.stages.get(s));
                let own = &replica.stages[stage];
                other.map(|s| boundary_peers(own, seat.placement.rank, s)).unwrap_or_default()
            };
            Neighbours {
                before: peers(stage.checked_sub(1)),
                boundary_before: (stage.saturating_sub(1) / groups) as u32,
                after: peers(Some(stage + 1)),
                boundary_after: (stage / groups) as u32,
            }
        };
        let chunks: Vec<_> = (seat.stage..replica.stages.len()).step_by(groups).map(neighbours).collect();
        RankActions {
            microbatches: replica.microbatches,
            groups: groups as u32,
            group: seat.stage as u32,
            actions: Vec::with_capacity(8 * chunks.len() * replica.microbatches as usize),
            chunks,
        }
    }

    /// Forwards before the first backward under 1F1B.
    fn warm_up(&self) -> u32 {
        let after = self.groups - 1 - self.group;
        match self.chunks.len() as u32 {
            1 => after,
            chunks => 2 * after + (chunks - 1) * self.groups,
        }
    }

    fn passes(&mut self, warm_up: u32) {
        let passes = self.microbatches * self.chunks.len() as u32;
        let warm_up = warm_up.min(passes);
        for k in 0..warm_up {
            self.forward(self.pass(k));
        }
        for k in warm_up..passes {
            self.forward(self.pass(k));
            self.backward(self.pass_back(k - warm_up));
        }
        for k in passes - warm_up..passes {
            self.backward(self.pass_back(k));
        }
    }

    fn pass(&self, k: u32) -> Pass {
        let (groups, round) = (self.groups, self.groups * self.chunks.len() as u32);
        (k / round * groups + k % groups, k % round / groups)
    }

    fn pass_back(&self, k: u32) -> Pass {
        let (microbatch, chunk) = self.pass(k);
        (microbatch, self.chunks.len() as u32 - 1 - chunk)
    }

    fn forward(&mut self, (microbatch, chunk): Pass) {
        let (what, at) = (Payload::Activation, &self.chunks[chunk as usize]);
        let receive =
            |p: &Peer| Action::Receive { from: p.rank, what, microbatch, chunk: at.boundary_before };
        let send = |p: &Peer| Action::Send { to: p.rank, what, microbatch, chunk: at.boundary_after };
        self.actions.extend(at.before.iter().map(receive));
        self.actions.push(Action::Forward { microbatch, chunk });
        self.actions.extend(at.after.iter().map(send));
    }

    fn backward(&mut self, (microbatch, chunk): Pass) {
        let (what, at) = (Payload::Gradient, &self.chunks[chunk as usize]);
        let receive = |p: &Peer| Action::Receive { from: p.rank, what, microbatch, chunk: at.boundary_after };
        let send = |p: &Peer| Action::Send { to: p.rank, what, microbatch, chunk: at.boundary_before };
        self.actions.extend(at.after.iter().map(receive));
        self.actions.push(Action::BackwardInput { microbatch, chunk });
        self.actions.extend(at.before.iter().map(send));
        self.actions.push(Action::BackwardWeight { microbatch, chunk });
    }

    /// Dense exchanges act on gradients, before the step; the others on parameters, after it.
    fn close(&mut self, plan: &Plan, replica: usize, step: u64) {
        let is_dense = |kind| kind == ExchangeKind::Dense;
        let due = |dense| exchanges_at(plan, replica, step).any(|e| is_dense(e.kind) == dense);
        self.actions.extend(due(true).then_some(Action::Reduce));
        self.actions.push(Action::Step);
        self.actions.extend(due(false).then_some(Action::Exchange));
    }
}
