//! Proof that a schedule can run and does the step's work, before anything starts. In this order:
//!
//! 1. no rank does the same thing twice, and every message sent is received and the other way round;
//! 2. every rank does what its place in the plan asks, and nothing else: each microbatch forward, input gradient,
//!    weight gradient, with the messages of its neighbours, then reduce, step and exchange as the plan has them;
//! 3. on each rank nothing comes before what it needs;
//! 4. no ranks wait for each other in a circle, given that sends never block.
//!
//! By-product: the most microbatches whose activations a rank holds at once (from forward to weight gradient), by model
//! chunk where it has several.
//!
//! Not here: whether they fit in memory (`cost` knows the bytes), back-pressure of a full transport window.

use std::collections::HashMap;
use std::ops::Deref;

use super::replay::{Meetings, Stuck, replay};
use super::{Action, Payload, Schedule, boundary_peers, exchange_peers, exchanges_at};
use crate::plan::{Exchange, ExchangeKind, Plan, Seat, Stage};

/// A value that [`check`] has proven; only it makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked<T> {
    value: T,
    peak_in_flight: Vec<u32>,
    held: Vec<Vec<u32>>,
}

impl<T> Checked<T> {
    /// By rank: the most microbatches whose activations it holds at once.
    pub fn peak_in_flight(&self) -> &[u32] {
        &self.peak_in_flight
    }

    /// The value alone, as data.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// By rank and model chunk: what it holds when it holds the most.
    pub fn held(&self) -> &[Vec<u32>] {
        &self.held
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
    /// An interleaved pipeline takes its microbatches in rounds of as many as it has groups.
    #[error(
        "replica {replica} is interleaved over {depth} groups with {microbatches} microbatches: they must be a multiple of {depth}; change them or let each rank have one stage"
    )]
    Interleaved {
        /// Which replica.
        replica: usize,
        /// What it has.
        microbatches: u32,
        /// Tensor-parallel groups of its pipeline.
        depth: u32,
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
    check_some(schedule, plan, step, |_| true)
}

/// As [`check`], of the replicas that are `wanted` alone: the lists of the others' ranks must be empty.
pub(crate) fn check_some(
    schedule: Schedule,
    plan: &Plan,
    step: u64,
    wanted: impl Fn(usize) -> bool,
) -> Result<Checked<Schedule>, ScheduleError> {
    let duty = |seat: Seat<'_>| match wanted(seat.replica) {
        true => Duty::training(plan, seat, step),
        false => Duty::default(),
    };
    let duties: Vec<_> = plan.seats().into_iter().map(duty).collect();
    prove(schedule, &duties, &meetings(plan, step, wanted))
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

/// By rank, whom it meets in [`Action::Reduce`] and in [`Action::Exchange`], of the replicas that are `wanted`.
pub(super) fn meetings(plan: &Plan, step: u64, wanted: impl Fn(usize) -> bool) -> Meetings {
    let of_kind = |seat: Seat<'_>, dense: bool| {
        let due = exchanges_at(plan, seat.replica, step);
        let some = due.filter(|e| (e.kind == ExchangeKind::Dense) == dense).map(|e| Exchange {
            replicas: e.replicas.iter().copied().filter(|&r| wanted(r as usize)).collect(),
            ..e.clone()
        });
        let mut ranks: Vec<u32> = some
            .flat_map(|e| exchange_peers(plan, &e, seat))
            .flat_map(|(_, peers)| peers.into_iter().map(|p| p.rank))
            .collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    };
    let met = |seat: Seat<'_>| match wanted(seat.replica) {
        true => [of_kind(seat, true), of_kind(seat, false)],
        false => Default::default(),
    };
    plan.seats().into_iter().map(met).collect()
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
    let held: Vec<_> = schedule.0.iter().map(|list| held(list)).collect();
    let peak_in_flight = held.iter().map(|chunks| chunks.iter().sum()).collect();
    Ok(Checked { value: schedule, peak_in_flight, held })
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
        Action::Send { to, what, microbatch, chunk } => {
            Some((to, Action::Receive { from: rank, what, microbatch, chunk }))
        }
        Action::Receive { from, what, microbatch, chunk } => {
            Some((from, Action::Send { to: rank, what, microbatch, chunk }))
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

/// By model chunk, the microbatches held when the most are.
pub(crate) fn held(list: &[Action]) -> Vec<u32> {
    let chunks = list.iter().map(|a| a.chunk() as usize + 1).max().unwrap_or(1);
    let (mut now, mut held, mut peak) = (vec![0; chunks], vec![0; chunks], 0);
    let (trains, mut sum) = (list.last().is_some_and(|last| last.microbatch().is_none()), 0);
    for action in list {
        match *action {
            Action::Forward { chunk, .. } if trains => {
                now[chunk as usize] += 1;
                sum += 1;
            }
            Action::BackwardWeight { chunk, .. } => {
                now[chunk as usize] -= 1;
                sum -= 1;
            }
            _ => {}
        }
        if sum > peak {
            peak = sum;
            held.clone_from(&now);
        }
    }
    held
}

/// What the plan asks of one rank, written down apart from the generators so that neither hides the other's faults.
#[derive(Default)]
struct Duty {
    microbatches: u32,
    /// By model chunk.
    chunks: Vec<ChunkDuty>,
    backward: bool,
    /// Reduce, step, exchange: what closes the step, in this order.
    close: Vec<Action>,
}

/// Who has the stages around a model chunk's, and the chunk of the stage before it.
struct ChunkDuty {
    chunk: u32,
    chunk_before: u32,
    before: Vec<u32>,
    after: Vec<u32>,
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
        let replica = &plan.replicas[seat.replica];
        let (stages, rank) = (&replica.stages, seat.placement.rank);
        let owned = stages.iter().enumerate().filter(|(_, s)| s.ranks.iter().any(|p| p.rank == rank));
        let duty = |(chunk, (at, stage)): (u32, (usize, &Stage))| {
            let ranks = |other: Option<&Stage>| -> Vec<u32> {
                let peers = other.map(|o| boundary_peers(stage, rank, o)).unwrap_or_default();
                peers.into_iter().map(|p| p.rank).collect()
            };
            let first = at == chunk as usize * replica.depth();
            ChunkDuty {
                chunk,
                chunk_before: if first { chunk.saturating_sub(1) } else { chunk },
                before: ranks(at.checked_sub(1).map(|s| &stages[s])),
                after: ranks(stages.get(at + 1)),
            }
        };
        Duty { microbatches, chunks: (0..).zip(owned).map(duty).collect(), ..Duty::default() }
    }

    fn work(&self) -> Vec<Action> {
        let passes = self.chunks.iter().flat_map(|c| (0..self.microbatches).map(move |m| (c, m)));
        let work = passes.flat_map(|(chunk, m)| self.work_on(chunk, m));
        work.chain(self.close.iter().copied()).collect()
    }

    fn work_on(&self, at: &ChunkDuty, microbatch: u32) -> Vec<Action> {
        let chunk = at.chunk;
        let mut work = at.receives(Payload::Activation, microbatch);
        work.push(Action::Forward { microbatch, chunk });
        work.extend(at.sends(Payload::Activation, microbatch));
        if self.backward {
            work.extend(at.receives(Payload::Gradient, microbatch));
            work.push(Action::BackwardInput { microbatch, chunk });
            work.push(Action::BackwardWeight { microbatch, chunk });
            work.extend(at.sends(Payload::Gradient, microbatch));
        }
        work
    }

    /// What must stand earlier in this rank's list.
    fn needs(&self, action: Action) -> Vec<Action> {
        let at = |chunk: u32| &self.chunks[chunk as usize];
        match action {
            Action::Receive { .. } => Vec::new(),
            Action::Forward { microbatch, chunk } => at(chunk).receives(Payload::Activation, microbatch),
            Action::Send { what: Payload::Activation, microbatch, chunk, .. } => {
                vec![Action::Forward { microbatch, chunk }]
            }
            Action::BackwardInput { microbatch, chunk } => {
                let mut needs = at(chunk).receives(Payload::Gradient, microbatch);
                needs.push(Action::Forward { microbatch, chunk });
                needs
            }
            Action::Send { what: Payload::Gradient, microbatch, chunk: before, .. } => {
                let of = self.chunks.iter().filter(|c| c.chunk_before == before && !c.before.is_empty());
                of.map(|c| Action::BackwardInput { microbatch, chunk: c.chunk }).collect()
            }
            Action::BackwardWeight { microbatch, chunk } => {
                vec![Action::BackwardInput { microbatch, chunk }]
            }
            Action::Reduce | Action::Step | Action::Exchange => self.needs_of_close(action),
        }
    }

    /// All gradients, and what closes the step before it.
    fn needs_of_close(&self, action: Action) -> Vec<Action> {
        let passes = self.chunks.iter().flat_map(|c| (0..self.microbatches).map(move |m| (c.chunk, m)));
        let gradients = passes.map(|(chunk, microbatch)| Action::BackwardWeight { microbatch, chunk });
        let earlier = self.close.iter().copied().take_while(|&a| a != action);
        gradients.chain(earlier).collect()
    }
}

impl ChunkDuty {
    fn receives(&self, what: Payload, microbatch: u32) -> Vec<Action> {
        let (from, chunk) = match what {
            Payload::Activation => (&self.before, self.chunk_before),
            Payload::Gradient => (&self.after, self.chunk),
        };
        from.iter().map(|&from| Action::Receive { from, what, microbatch, chunk }).collect()
    }

    fn sends(&self, what: Payload, microbatch: u32) -> Vec<Action> {
        let (to, chunk) = match what {
            Payload::Activation => (&self.after, self.chunk),
            Payload::Gradient => (&self.before, self.chunk_before),
        };
        to.iter().map(|&to| Action::Send { to, what, microbatch, chunk }).collect()
    }
}
