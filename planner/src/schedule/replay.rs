//! Runs a schedule in its own order with messages that take no time: who waits for whom, and nothing else.
//! [`check`](super::check) asks whether it ends, [`draw`](super::draw) when each action starts.
//!
//! Sends never block. A collective lets a rank go on once all its peers have arrived at theirs.
//!
//! Not here: rates and latencies (`simulate`).

use std::collections::HashMap;

use super::{Action, Event, Payload, Schedule};

/// Every rank that could not go on, by what it waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stuck {
    pub(super) rank: u32,
    pub(super) index: usize,
    pub(super) on: u32,
}

/// The ranks each rank meets in its collectives: `[Reduce, Exchange]` by rank.
pub(super) type Meetings = Vec<[Vec<u32>; 2]>;

/// Times of all actions if each starts as early as its order and its messages allow.
///
/// # Errors
/// The ranks that wait for ever.
pub(super) fn replay(
    schedule: &Schedule,
    meetings: &Meetings,
    seconds: impl Fn(u32, Action) -> f64,
) -> Result<Vec<Event>, Vec<Stuck>> {
    let mut run = Replay::new(schedule, meetings);
    loop {
        let before = run.events.len();
        for rank in 0..schedule.0.len() {
            run.advance(rank, &seconds);
        }
        if run.events.len() == before {
            let stuck = run.stuck();
            return if stuck.is_empty() { Ok(run.events) } else { Err(stuck) };
        }
    }
}

struct Replay<'a> {
    schedule: &'a Schedule,
    meetings: &'a Meetings,
    next: Vec<usize>,
    clock: Vec<f64>,
    sent: HashMap<(u32, u32, Payload, u32, u32), f64>,
    arrived: Vec<[Option<f64>; 2]>,
    events: Vec<Event>,
}

impl<'a> Replay<'a> {
    fn new(schedule: &'a Schedule, meetings: &'a Meetings) -> Self {
        let ranks = schedule.0.len();
        Replay {
            schedule,
            meetings,
            next: vec![0; ranks],
            clock: vec![0.0; ranks],
            sent: HashMap::new(),
            arrived: vec![[None; 2]; ranks],
            events: Vec::new(),
        }
    }

    /// Lets `rank` act until it must wait.
    fn advance(&mut self, rank: usize, seconds: &impl Fn(u32, Action) -> f64) {
        while let Some(&action) = self.schedule.0[rank].get(self.next[rank]) {
            if let Some(meeting) = meeting(action) {
                self.arrived[rank][meeting].get_or_insert(self.clock[rank]);
            }
            let Ok(ready) = self.ready(rank as u32, action) else { return };
            let start_s = self.clock[rank];
            let end_s = ready.max(start_s) + seconds(rank as u32, action);
            if let Action::Send { to, what, microbatch, chunk } = action {
                self.sent.insert((rank as u32, to, what, microbatch, chunk), end_s);
            }
            self.events.push(Event { rank: rank as u32, action, start_s, end_s });
            self.clock[rank] = end_s;
            self.next[rank] += 1;
        }
    }

    /// When what the action waits for is there, or the rank that it waits for.
    fn ready(&self, rank: u32, action: Action) -> Result<f64, u32> {
        if let Action::Receive { from, what, microbatch, chunk } = action {
            return self.sent.get(&(from, rank, what, microbatch, chunk)).copied().ok_or(from);
        }
        let Some(meeting) = meeting(action) else { return Ok(0.0) };
        let peers = &self.meetings[rank as usize][meeting];
        let arrival = |&peer: &u32| self.arrived[peer as usize][meeting].ok_or(peer);
        peers.iter().map(arrival).try_fold(0.0, |latest: f64, time| Ok(latest.max(time?)))
    }

    fn stuck(&self) -> Vec<Stuck> {
        let waiting = |rank: usize| {
            let action = *self.schedule.0[rank].get(self.next[rank])?;
            let on = self.ready(rank as u32, action).err()?;
            Some(Stuck { rank: rank as u32, index: self.next[rank], on })
        };
        (0..self.schedule.0.len()).filter_map(waiting).collect()
    }
}

/// Index into [`Meetings`] of a collective.
fn meeting(action: Action) -> Option<usize> {
    match action {
        Action::Reduce => Some(0),
        Action::Exchange => Some(1),
        _ => None,
    }
}
