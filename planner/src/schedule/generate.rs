//! From a plan to its schedule. Every stage does the same two things, a forward and a backward of a microbatch;
//! a schedule kind is only the order in which it does them:
//! ```text
//! GPipe  F0 .. F(m-1)  B0 .. B(m-1)                            all m microbatches in flight at once
//! 1F1B   w warm-up forwards, then forward and backward in turn, then what backwards are left;
//!        w = min(m, p - 1 - stage), so at most min(m, p - stage) microbatches are in flight
//! ```
//! Both take microbatches in the order 0, 1, ..: gradients accumulate in one order, whichever schedule runs.
//! Sources: GPipe, arXiv 1811.06965; 1F1B, arXiv 2006.09503.
//!
//! Not here: interleaved stages (`virtual_stages` > 1 is refused by [`of`]), zero-bubble orders.

use super::{Action, Checked, Payload, Peer, Schedule, ScheduleError, boundary_peers, check, exchanges_at};
use crate::plan::{ExchangeKind, Plan, ScheduleKind, Seat};

/// The plan's own schedule for optimiser step `step` (from 1), checked.
///
/// # Errors
/// If the plan asks for virtual stages, or the schedule made is unsound.
pub fn of(plan: &Plan, step: u64) -> Result<Checked<Schedule>, ScheduleError> {
    if plan.schedule.virtual_stages != 1 {
        return Err(ScheduleError::Interleaved { virtual_stages: plan.schedule.virtual_stages });
    }
    let schedule = match plan.schedule.kind {
        ScheduleKind::Gpipe => gpipe(plan, step),
        ScheduleKind::OneForwardOneBackward => one_f_one_b(plan, step),
    };
    check(schedule, plan, step)
}

/// All forwards, then all backwards, for every rank of every replica.
pub fn gpipe(plan: &Plan, step: u64) -> Schedule {
    per_rank(plan, step, |stage| {
        for microbatch in 0..stage.microbatches {
            stage.forward(microbatch);
        }
        for microbatch in 0..stage.microbatches {
            stage.backward(microbatch);
        }
    })
}

/// One forward, one backward in turn after the warm-up, for every rank of every replica.
pub fn one_f_one_b(plan: &Plan, step: u64) -> Schedule {
    per_rank(plan, step, |stage| {
        let warm_up = stage.microbatches.min(stage.stages_after);
        for microbatch in 0..warm_up {
            stage.forward(microbatch);
        }
        for microbatch in warm_up..stage.microbatches {
            stage.forward(microbatch);
            stage.backward(microbatch - warm_up);
        }
        for microbatch in stage.microbatches - warm_up..stage.microbatches {
            stage.backward(microbatch);
        }
    })
}

/// Evaluation: `microbatches` forwards through one replica; the other replicas' ranks have nothing to do.
pub fn forward_only(plan: &Plan, replica: usize, microbatches: u32) -> Schedule {
    let actions = |seat: Seat<'_>| {
        let mut stage = StageActions::new(plan, seat);
        if seat.replica == replica {
            (0..microbatches).for_each(|m| stage.forward(m));
        }
        stage.actions
    };
    Schedule(plan.seats().into_iter().map(actions).collect())
}

fn per_rank(plan: &Plan, step: u64, order: impl Fn(&mut StageActions)) -> Schedule {
    let actions = |seat: Seat<'_>| {
        let mut stage = StageActions::new(plan, seat);
        order(&mut stage);
        stage.close(plan, seat.replica, step);
        stage.actions
    };
    Schedule(plan.seats().into_iter().map(actions).collect())
}

/// One rank's list in the making.
struct StageActions {
    microbatches: u32,
    stages_after: u32,
    before: Vec<Peer>,
    after: Vec<Peer>,
    actions: Vec<Action>,
}

impl StageActions {
    fn new(plan: &Plan, seat: Seat<'_>) -> Self {
        let replica = &plan.replicas[seat.replica];
        let stage = &replica.stages[seat.stage];
        let peers = |other: Option<usize>| {
            let other = other.and_then(|s| replica.stages.get(s));
            other.map(|s| boundary_peers(stage, seat.placement.rank, s)).unwrap_or_default()
        };
        StageActions {
            microbatches: replica.microbatches,
            stages_after: (replica.stages.len() - 1 - seat.stage) as u32,
            before: peers(seat.stage.checked_sub(1)),
            after: peers(Some(seat.stage + 1)),
            actions: Vec::new(),
        }
    }

    fn forward(&mut self, microbatch: u32) {
        let what = Payload::Activation;
        self.actions.extend(self.before.iter().map(|p| Action::Receive { from: p.rank, what, microbatch }));
        self.actions.push(Action::Forward { microbatch });
        self.actions.extend(self.after.iter().map(|p| Action::Send { to: p.rank, what, microbatch }));
    }

    fn backward(&mut self, microbatch: u32) {
        let what = Payload::Gradient;
        self.actions.extend(self.after.iter().map(|p| Action::Receive { from: p.rank, what, microbatch }));
        self.actions.push(Action::BackwardInput { microbatch });
        self.actions.extend(self.before.iter().map(|p| Action::Send { to: p.rank, what, microbatch }));
        self.actions.push(Action::BackwardWeight { microbatch });
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
