//! What a run looked like: the events and messages of single steps, of every rank, executed or not.
//!
//! Not here: the run (`execute`), the file for a viewer (`trace`).

use serde::Serialize;

use super::execute::{Done, Over, Run, Sent};
use super::meeting::Flow;
use super::program::{Begin, Program};
use super::{Figures, Setting};
use crate::plan::Plan;
use crate::schedule::{Action, Event, Schedule};

/// A message on its way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Transfer {
    /// Sender.
    pub from: u32,
    /// Receiver.
    pub to: u32,
    /// Payload.
    pub bytes: u64,
    /// When its first chunk got the resources.
    pub start_s: f64,
    /// When its last chunk left the slowest of them.
    pub end_s: f64,
    /// When the receiver has it.
    pub delivered_s: f64,
}

/// By rank, its twin that is executed, and by executed rank the ranks that it stands for.
pub(super) struct Places {
    executed_for: Vec<u32>,
    /// By executed rank, with itself; in the order of their replicas, the same for all ranks of a replica.
    pub(super) twins: Vec<Vec<u32>>,
}

impl Places {
    pub(super) fn of(plan: &Plan, stands_for: &[usize]) -> Self {
        let world_size = plan.world_size() as usize;
        let mut places = Places { executed_for: vec![0; world_size], twins: vec![Vec::new(); world_size] };
        for (replica, &executed) in plan.replicas.iter().zip(stands_for) {
            let theirs = plan.replicas[executed].stages.iter();
            for (own, its) in replica.stages[..replica.depth()].iter().zip(theirs) {
                for (own, its) in own.ranks.iter().zip(&its.ranks) {
                    places.executed_for[own.rank as usize] = its.rank;
                    places.twins[its.rank as usize].push(own.rank);
                }
            }
        }
        places
    }

    pub(super) fn executed_for(&self, rank: u32) -> u32 {
        self.executed_for[rank as usize]
    }
}

type Picture = (Vec<Event>, Vec<Transfer>);

/// Of the usual step and of the one in which every exchange is due; the second is empty if that is the same.
pub(super) fn pictures(setting: &Setting<'_>, kinds: &[(u64, Schedule)], figures: &Figures) -> [Picture; 2] {
    let mut steps: Vec<usize> = figures.run.done.iter().map(|d| d.step).collect();
    steps.sort_unstable();
    steps.dedup();
    let places = Places::of(setting.plan, &setting.stands_for);
    let of = |which: usize, kind: usize| match steps.get(which) {
        Some(&step) => {
            let drawing = Drawing { setting, places: &places, figures, actions: &kinds[kind].1, step };
            drawing.picture()
        }
        None => Default::default(),
    };
    [of(0, 0), of(1, kinds.len() - 1)]
}

/// By executed rank, its seconds in the meetings of the first step written down, from the coming of the last owner.
pub(super) fn meeting_s(program: &Program, run: &Run) -> Vec<f64> {
    let step = run.done.iter().map(|d| d.step).min();
    let mut started_s = vec![0.0; program.meetings.len()];
    let of_step = |over: &&Over| Some(over.step) == step;
    run.met.iter().filter(of_step).for_each(|over| started_s[over.meeting] = over.start_s);
    let mut seconds = vec![0.0; program.ranks.len()];
    for done in run.done.iter().filter(|d| Some(d.step) == step) {
        let rank = &program.ranks[done.rank];
        if let Begin::Meetings(first, end) = rank.ops[0][done.action].begin {
            let meets = &rank.meets[first as usize..end as usize];
            let last_s = meets.iter().map(|&m| started_s[m as usize]).fold(done.start_s, f64::max);
            seconds[done.rank] += done.end_s - last_s;
        }
    }
    seconds
}

/// One step of the run.
struct Drawing<'a> {
    setting: &'a Setting<'a>,
    places: &'a Places,
    figures: &'a Figures,
    actions: &'a Schedule,
    step: usize,
}

impl Drawing<'_> {
    /// From time 0 on.
    fn picture(&self) -> Picture {
        let run = &self.figures.run;
        let done = || run.done.iter().filter(|d| d.step == self.step);
        let zero_s = done().map(|d| d.start_s).fold(f64::INFINITY, f64::min);
        let mut transfers = Vec::new();
        run.sent.iter().filter(|s| s.step == self.step).for_each(|s| self.sent(s, zero_s, &mut transfers));
        run.met.iter().filter(|m| m.step == self.step).for_each(|m| self.met(m, zero_s, &mut transfers));
        (done().flat_map(|d| self.done(d, zero_s)).collect(), transfers)
    }

    fn done<'s>(&'s self, done: &Done, zero_s: f64) -> impl Iterator<Item = Event> + use<'s> {
        let executed = self.figures.program.ranks[done.rank].rank as usize;
        let action = self.actions.0[executed][done.action];
        let (start_s, end_s) = (done.start_s - zero_s, done.end_s - zero_s);
        let twins = self.places.twins[executed].iter().enumerate();
        twins.map(move |(twin, &rank)| Event { rank, action: self.by(twin, action), start_s, end_s })
    }

    /// The action with the peer's `twin`-th twin for its peer.
    fn by(&self, twin: usize, mut action: Action) -> Action {
        if let Action::Receive { from: peer, .. } | Action::Send { to: peer, .. } = &mut action {
            *peer = self.places.twins[*peer as usize][twin];
        }
        action
    }

    fn sent(&self, sent: &Sent, zero_s: f64, transfers: &mut Vec<Transfer>) {
        let message = self.figures.program.messages[sent.message];
        let pairs = self.places.twins[message.sender as usize]
            .iter()
            .zip(&self.places.twins[message.receiver as usize]);
        transfers.extend(pairs.map(|(&from, &to)| Transfer {
            from,
            to,
            bytes: message.bytes,
            start_s: sent.start_s - zero_s,
            end_s: sent.end_s - zero_s,
            delivered_s: sent.delivered_s - zero_s,
        }));
    }

    fn met(&self, met: &Over, zero_s: f64, transfers: &mut Vec<Transfer>) {
        let Setting { plan, network, meetings, traffic, .. } = self.setting;
        if traffic[met.meeting].busy_s.is_empty() {
            return;
        }
        let (start_s, delivered_s) = (met.start_s - zero_s, met.end_s - zero_s);
        let end_s = delivered_s - traffic[met.meeting].latency_s;
        meetings[met.meeting].flows(plan, network, &mut |Flow { from, to, bytes, .. }| {
            transfers.push(Transfer { from, to, bytes, start_s, end_s, delivered_s });
        });
    }
}
