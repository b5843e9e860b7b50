//! Proof that a schedule can run and does the step's work, before anything starts. In this order:
//!
//! 1. no rank does the same thing twice, and every message sent is received and the other way round;
//! 2. every rank does what its place in the plan asks, and nothing else: each microbatch forward, input gradient,
//!    weight gradient, with the messages of its neighbours, then reduce, step and exchange as the plan has them;
//! 3. on each rank nothing comes before what it needs;
//! 4. no ranks wait for each other in a circle, given that sends never block.
//!
//! By-product: the most microbatches whose activations a rank holds at once (from forward to weight gradient).
//!
//! Not here: whether they fit in memory (`cost` knows the bytes), back-pressure of a full transport window.

use std::collections::HashMap;
use std::ops::Deref;

use super::replay::{Meetings, Stuck, replay};
use super::{Action, Payload, Schedule, boundary_peers, exchange_peers, exchanges_at};
use crate::plan::{ExchangeKind, Plan, Seat};

/// A value that [`check`] has proven; only it makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked<T> {
    value: T,
    peak_in_flight: Vec<u32>,
}

impl<T> Checked<T> {
    /// By rank: the most microbatches whose activations it holds at once.
    pub fn peak_in_flight(&self) -> &[u32] {
        &self.peak_in_flight
    }
}

impl<T> Deref for Checked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Why a schedule cannot run or does not do the plan's step. `index` counts a rank's actions from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The plan asks for model chunks that no generator here makes.
    #[error(
        "schedule with {virtual_stages} virtual stages: interleaved schedules are not built; set virtual_stages to 1"
    )]
    Interleaved {
        /// As the plan has it.
        virtual_stages: u32,
    },
    /// One list per rank is needed.
    #[error("schedule has lists for {got} ranks, the plan has {expected}")]
    RankCount {
        /// Of the plan.
        expected: usize,
        /// Of the schedule.
        got: usize,
    },
    /// The same action again.
    #[error("rank {rank}, action {index}: {action}: already done as action {first}")]
    Twice {
        /// Whose list.
        rank: u32,
        /// Of the second one.
        index: usize,
        /// What.
        action: Action,
        /// Of the first one.
        first: usize,
    },
    /// A message with one end.
    #[error("rank {rank}, action {index}: {action}: rank {peer} never does its part, \"{counterpart}\"")]
    Unmatched {
        /// Whose list.
        rank: u32,
        /// Of the end that is there.
        index: usize,
        /// The end that is there.
        action: Action,
        /// Who lacks the other end.
        peer: u32,
        /// The end that is missing.
        counterpart: Action,
    },
    /// Not this rank's work.
    #[error("rank {rank}, action {index}: {action}: not this rank's work in the plan")]
    Unexpected {
        /// Whose list.
        rank: u32,
        /// Where.
        index: usize,
        /// What.
        action: Action,
    },
    /// This rank's work, but nowhere in its list.
    #[error("rank {rank} of {actions} actions: {action}: missing")]
    Missing {
        /// Whose list.
        rank: u32,
        /// Length of the list.
        actions: usize,
        /// What.
        action: Action,
    },
    /// An action before what it needs.
    #[error(
        "rank {rank}, action {index}: {action}: waits for \"{waits_for}\", which comes only as action {at}"
    )]
    OutOfOrder {
        /// Whose list.
        rank: u32,
        /// Of the action that is too early.
        index: usize,
        /// The action that is too early.
        action: Action,
        /// What it needs.
        waits_for: Action,
        /// Where that is.
        at: usize,
    },
    /// Ranks that wait for each other.
    #[error("deadlock: {}", circle.iter().map(Blocked::to_string).collect::<Vec<_>>().join("; "))]
    Deadlock {
        /// Each waits for the next one's rank, the last for the first's.
        circle: Vec<Blocked>,
    },
}

/// A rank that cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} stands at action {index} ({action}) and waits for rank {on}")]
pub struct Blocked {
    /// Who waits.
    pub rank: u32,
    /// Where in its list.
    pub index: usize,
    /// In what.
    pub action: Action,
    /// For whom.
    pub on: u32,
}

/// Proves a schedule of the plan's optimiser step `step` (from 1).
///
/// # Errors
/// The first fault found: rank, action and what it waits for.
pub fn check(schedule: Schedule, plan: &Plan, step: u64) -> Result<Checked<Schedule>, ScheduleError> {
    let duties: Vec<_> = plan.seats().into_iter().map(|seat| Duty::training(plan, seat, step)).collect();
    prove(schedule, &duties, &meetings(plan, step))
}

/// Proves a schedule that evaluates `microbatches` on one replica and does nothing on the others.
///
/// # Errors
/// The first fault found: rank, action and what it waits for.
pub fn check_forward_only(
    schedule: Schedule,
    plan: &Plan,
    replica: usize,
    microbatches: u32,
) -> Result<Checked<Schedule>, ScheduleError> {
    let count = |seat: &Seat<'_>| if seat.replica == replica { microbatches } else { 0 };
    let duties: Vec<_> =
        plan.seats().into_iter().map(|seat| Duty::evaluation(plan, seat, count(&seat))).collect();
    prove(schedule, &duties, &vec![Default::default(); duties.len()])
}

/// By rank, whom it meets in [`Action::Reduce`] and in [`Action::Exchange`].
pub(super) fn meetings(plan: &Plan, step: u64) -> Meetings {
    let of_kind = |seat: Seat<'_>, dense: bool| {
        let mut ranks: Vec<u32> = exchanges_at(plan, seat.replica, step)
            .filter(|e| (e.kind == ExchangeKind::Dense) == dense)
            .flat_map(|e| exchange_peers(plan, e, seat))
            .flat_map(|(_, peers)| peers.into_iter().map(|p| p.rank))
            .collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    };
    plan.seats().into_iter().map(|seat| [of_kind(seat, true), of_kind(seat, false)]).collect()
}

fn prove(
    schedule: Schedule,
    duties: &[Duty],
    meetings: &Meetings,
) -> Result<Checked<Schedule>, ScheduleError> {
    if schedule.0.len() != duties.len() {
        return Err(ScheduleError::RankCount { expected: duties.len(), got: schedule.0.len() });
    }
    let places = schedule.0.iter().zip(0..).map(|(list, rank)| nothing_twice(rank, list));
    let places = places.collect::<Result<Vec<_>, _>>()?;
    every_message_matched(&schedule, &places)?;
    for ((rank, duty), places) in (0..).zip(duties).zip(&places) {
        all_work_and_no_other(rank, duty, &schedule.0[rank as usize], places)?;
        in_order(rank, duty, &schedule.0[rank as usize], places)?;
    }
    replay(&schedule, meetings, |_, _| 0.0).map_err(|stuck| circle(&schedule, &stuck))?;
    let peak_in_flight = schedule.0.iter().map(|list| peak_in_flight(list)).collect();
    Ok(Checked { value: schedule, peak_in_flight })
}

/// Where each action of a rank stands in its list.
type Places = HashMap<Action, usize>;

fn nothing_twice(rank: u32, list: &[Action]) -> Result<Places, ScheduleError> {
    let mut places = Places::with_capacity(list.len());
    for (index, &action) in list.iter().enumerate() {
        if let Some(first) = places.insert(action, index) {
            return Err(ScheduleError::Twice { rank, index, action, first });
        }
    }
    Ok(places)
}

fn every_message_matched(schedule: &Schedule, places: &[Places]) -> Result<(), ScheduleError> {
    for (rank, list) in (0..).zip(&schedule.0) {
        for (index, &action) in list.iter().enumerate() {
            let Some((peer, counterpart)) = counterpart(rank, action) else { continue };
            if !places.get(peer as usize).is_some_and(|p| p.contains_key(&counterpart)) {
                return Err(ScheduleError::Unmatched { rank, index, action, peer, counterpart });
            }
        }
    }
    Ok(())
}

/// Who holds the other end of a message, and that end.
fn counterpart(rank: u32, action: Action) -> Option<(u32, Action)> {
    match action {
        Action::Send { to, what, microbatch } => Some((to, Action::Receive { from: rank, what, microbatch })),
        Action::Receive { from, what, microbatch } => {
            Some((from, Action::Send { to: rank, what, microbatch }))
        }
        _ => None,
    }
}

fn all_work_and_no_other(
    rank: u32,
    duty: &Duty,
    list: &[Action],
    places: &Places,
) -> Result<(), ScheduleError> {
    let work = duty.work();
    if let Some(&action) = work.iter().find(|a| !places.contains_key(a)) {
        return Err(ScheduleError::Missing { rank, actions: list.len(), action });
    }
    if work.len() == list.len() {
        return Ok(());
    }
    let (index, &action) =
        list.iter().enumerate().find(|(_, a)| !work.contains(a)).expect("more than its work");
    Err(ScheduleError::Unexpected { rank, index, action })
}

fn in_order(rank: u32, duty: &Duty, list: &[Action], places: &Places) -> Result<(), ScheduleError> {
    for (index, &action) in list.iter().enumerate() {
        for waits_for in duty.needs(action) {
            let at = places[&waits_for];
            if at > index {
                return Err(ScheduleError::OutOfOrder { rank, index, action, waits_for, at });
            }
        }
    }
    Ok(())
}

/// Some circle among the ranks that are stuck: following who waits for whom must come back.
fn circle(schedule: &Schedule, stuck: &[Stuck]) -> ScheduleError {
    let blocked = |s: &Stuck| {
        let action = schedule.0[s.rank as usize][s.index];
        Blocked { rank: s.rank, index: s.index, action, on: s.on }
    };
    let mut path = vec![blocked(&stuck[0])];
    loop {
        let on = path[path.len() - 1].on;
        if let Some(start) = path.iter().position(|b| b.rank == on) {
            return ScheduleError::Deadlock { circle: path.split_off(start) };
        }
        // With all messages matched and all work there, whoever is waited for has not ended: it is stuck too.
        path.push(blocked(stuck.iter().find(|s| s.rank == on).expect("a rank waited for is stuck itself")));
    }
}

fn peak_in_flight(list: &[Action]) -> u32 {
    let (mut now, mut peak) = (0, 0);
    let trains = list.contains(&Action::Step);
    for action in list {
        match action {
            Action::Forward { .. } if trains => now += 1,
            Action::BackwardWeight { .. } => now -= 1,
            _ => {}
        }
        peak = peak.max(now);
    }
    peak
}

/// What the plan asks of one rank, written down apart from the generators so that neither hides the other's faults.
struct Duty {
    microbatches: u32,
    before: Vec<u32>,
    after: Vec<u32>,
    backward: bool,
    /// Reduce, step, exchange: what closes the step, in this order.
    close: Vec<Action>,
}

impl Duty {
    fn training(plan: &Plan, seat: Seat<'_>, step: u64) -> Self {
        let due: Vec<_> = exchanges_at(plan, seat.replica, step).map(|e| e.kind).collect();
        let mut close = vec![Action::Step];
        if due.contains(&ExchangeKind::Dense) {
            close.insert(0, Action::Reduce);
        }
        if due.iter().any(|&kind| kind != ExchangeKind::Dense) {
            close.push(Action::Exchange);
        }
        let microbatches = plan.replicas[seat.replica].microbatches;
        Duty { backward: true, close, ..Duty::evaluation(plan, seat, microbatches) }
    }

    fn evaluation(plan: &Plan, seat: Seat<'_>, microbatches: u32) -> Self {
        let stages = &plan.replicas[seat.replica].stages;
        let ranks = |other: usize| -> Vec<u32> {
            let peers = boundary_peers(&stages[seat.stage], seat.placement.rank, &stages[other]);
            peers.into_iter().map(|p| p.rank).collect()
        };
        let before = seat.stage.checked_sub(1).map(ranks).unwrap_or_default();
        let after = if seat.stage + 1 < stages.len() { ranks(seat.stage + 1) } else { Vec::new() };
        Duty { microbatches, before, after, backward: false, close: Vec::new() }
    }

    fn work(&self) -> Vec<Action> {
        let microbatches = (0..self.microbatches).flat_map(|m| self.work_on(m));
        microbatches.chain(self.close.iter().copied()).collect()
    }

    fn work_on(&self, microbatch: u32) -> Vec<Action> {
        let mut work = self.receives(Payload::Activation, microbatch);
        work.push(Action::Forward { microbatch });
        work.extend(sends(&self.after, Payload::Activation, microbatch));
        if self.backward {
            work.extend(self.receives(Payload::Gradient, microbatch));
            work.extend([Action::BackwardInput { microbatch }, Action::BackwardWeight { microbatch }]);
            work.extend(sends(&self.before, Payload::Gradient, microbatch));
        }
        work
    }

    /// What must stand earlier in this rank's list.
    fn needs(&self, action: Action) -> Vec<Action> {
        match action {
            Action::Receive { .. } => Vec::new(),
            Action::Forward { microbatch } => self.receives(Payload::Activation, microbatch),
            Action::Send { what: Payload::Activation, microbatch, .. } => {
                vec![Action::Forward { microbatch }]
            }
            Action::BackwardInput { microbatch } => {
                let mut needs = self.receives(Payload::Gradient, microbatch);
                needs.push(Action::Forward { microbatch });
                needs
            }
            Action::Send { what: Payload::Gradient, microbatch, .. } => {
                vec![Action::BackwardInput { microbatch }]
            }
            Action::BackwardWeight { microbatch } => vec![Action::BackwardInput { microbatch }],
            Action::Reduce | Action::Step | Action::Exchange => self.needs_of_close(action),
        }
    }

    /// All gradients, and what closes the step before it.
    fn needs_of_close(&self, action: Action) -> Vec<Action> {
        let gradients = (0..self.microbatches).map(|microbatch| Action::BackwardWeight { microbatch });
        let earlier = self.close.iter().copied().take_while(|&a| a != action);
        gradients.chain(earlier).collect()
    }

    fn receives(&self, what: Payload, microbatch: u32) -> Vec<Action> {
        let from = match what {
            Payload::Activation => &self.before,
            Payload::Gradient => &self.after,
        };
        from.iter().map(|&from| Action::Receive { from, what, microbatch }).collect()
    }
}

fn sends(to: &[u32], what: Payload, microbatch: u32) -> impl Iterator<Item = Action> {
    to.iter().map(move |&to| Action::Send { to, what, microbatch })
}
