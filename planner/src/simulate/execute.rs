//! Discrete events: ranks run their operations, flows move chunks, whatever happens first is next.
//!
//! Events at the same time happen in the order in which they were caused, so a run is a pure function of its input.
//!
//! Not here: what operations there are (`program`), how resources are shared (`network`).

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use serde::Serialize;

use super::network::Network;
use super::program::{Op, Program};
use crate::schedule::Event;

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

impl Transfer {
    pub(super) fn earlier_by(self, seconds: f64) -> Self {
        Transfer {
            start_s: self.start_s - seconds,
            end_s: self.end_s - seconds,
            delivered_s: self.delivered_s - seconds,
            ..self
        }
    }
}

/// What happened.
pub(super) struct Run {
    /// With the position of the step in the run, in the order in which they ended.
    pub(super) events: Vec<(usize, Event)>,
    /// By message of the program.
    pub(super) transfers: Vec<Transfer>,
    /// When the last rank ended the step.
    pub(super) step_end_s: Vec<f64>,
}

/// Runs the program to its end; a checked schedule's program has one.
pub(super) fn execute(program: &Program, network: &Network) -> Run {
    let mut execution = Execution::new(program, network);
    while let Some(Reverse(next)) = execution.queue.pop() {
        match next.what {
            What::Rank(rank) => execution.rank(rank, next.at_s),
            What::Chunk(flow) => execution.chunk(flow, next.at_s),
            What::Delivered(message) => execution.delivered(message, next.at_s),
        }
    }
    let ended = execution.ranks.iter().zip(&program.ops).all(|(rank, ops)| rank.next == ops.len());
    assert!(ended, "a checked schedule leaves no rank waiting");
    execution.run
}

struct Execution<'a> {
    program: &'a Program,
    network: &'a Network,
    queue: BinaryHeap<Reverse<Next>>,
    caused: u64,
    ranks: Vec<RankState>,
    flows: Vec<Flow<'a>>,
    /// By message.
    flow_of: Vec<usize>,
    next_free_s: Vec<f64>,
    messages: Vec<MessageState>,
    run: Run,
}

#[derive(Clone, Copy, Default)]
struct RankState {
    /// Next operation.
    next: usize,
    action_start_s: f64,
}

/// The messages of one pair of ranks, one after the other.
struct Flow<'a> {
    route: &'a super::Route,
    queue: VecDeque<usize>,
    /// Of the first message of the queue.
    left_bytes: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum MessageState {
    Due,
    Awaited,
    There,
}

enum What {
    Rank(usize),
    Chunk(usize),
    Delivered(usize),
}

impl<'a> Execution<'a> {
    fn new(program: &'a Program, network: &'a Network) -> Self {
        let mut flows = Vec::new();
        let mut known = BTreeMap::new();
        let mut flow_of_pair = |pair: (u32, u32)| {
            *known.entry(pair).or_insert_with(|| {
                let route = network.route(pair.0, pair.1);
                flows.push(Flow { route, queue: VecDeque::new(), left_bytes: 0 });
                flows.len() - 1
            })
        };
        let flow_of = program.messages.iter().map(|m| flow_of_pair((m.from, m.to))).collect();
        let mut execution = Execution {
            program,
            network,
            queue: BinaryHeap::new(),
            caused: 0,
            ranks: vec![RankState::default(); program.ops.len()],
            flows,
            flow_of,
            next_free_s: vec![0.0; network.resources.len()],
            messages: vec![MessageState::Due; program.messages.len()],
            run: Run::of(program),
        };
        (0..program.ops.len()).for_each(|rank| execution.at(0.0, What::Rank(rank)));
        execution
    }

    fn at(&mut self, at_s: f64, what: What) {
        self.caused += 1;
        self.queue.push(Reverse(Next { at_s, order: self.caused, what }));
    }

    /// The rank's operations until it computes or waits.
    fn rank(&mut self, rank: usize, now_s: f64) {
        while let Some(&op) = self.program.ops[rank].get(self.ranks[rank].next) {
            if let Op::Wait { message } = op
                && self.messages[message] != MessageState::There
            {
                self.messages[message] = MessageState::Awaited;
                return;
            }
            self.ranks[rank].next += 1;
            match op {
                Op::Compute { seconds } => return self.at(now_s + seconds, What::Rank(rank)),
                Op::Send { message } => self.send(message, now_s),
                Op::Done { action, step } => {
                    let start_s = std::mem::replace(&mut self.ranks[rank].action_start_s, now_s);
                    self.run.events.push((step, Event { rank: rank as u32, action, start_s, end_s: now_s }));
                    self.run.step_end_s[step] = self.run.step_end_s[step].max(now_s);
                }
                Op::Wait { .. } => {}
            }
        }
    }

    fn send(&mut self, message: usize, now_s: f64) {
        let index = self.flow_of[message];
        let flow = &mut self.flows[index];
        flow.queue.push_back(message);
        if flow.queue.len() == 1 {
            flow.left_bytes = self.program.messages[message].bytes;
            self.at(now_s, What::Chunk(index));
        }
    }

    /// The next chunk of the flow's first message.
    fn chunk(&mut self, index: usize, now_s: f64) {
        let flow = &mut self.flows[index];
        let message = flow.queue[0];
        let bytes = self.program.messages[message].bytes;
        let chunk_bytes = flow.left_bytes.min(self.network.chunk_bytes(flow.route, bytes));
        let (start_s, end_s) = self.network.reserve(&mut self.next_free_s, flow.route, now_s, chunk_bytes);
        let transfer = &mut self.run.transfers[message];
        if flow.left_bytes == bytes {
            transfer.start_s = start_s;
        }
        flow.left_bytes -= chunk_bytes;
        if flow.left_bytes > 0 {
            return self.at(end_s, What::Chunk(index));
        }
        transfer.end_s = end_s;
        transfer.delivered_s = end_s + flow.route.latency_s;
        flow.queue.pop_front();
        let next = flow.queue.front().copied();
        flow.left_bytes = next.map_or(0, |m| self.program.messages[m].bytes);
        let delivered_s = transfer.delivered_s;
        self.at(delivered_s, What::Delivered(message));
        if next.is_some() {
            self.at(end_s, What::Chunk(index));
        }
    }

    fn delivered(&mut self, message: usize, now_s: f64) {
        if std::mem::replace(&mut self.messages[message], MessageState::There) == MessageState::Awaited {
            self.rank(self.program.messages[message].to as usize, now_s);
        }
    }
}

impl Run {
    fn of(program: &Program) -> Self {
        let unsent = |m: &super::program::Message| Transfer {
            from: m.from,
            to: m.to,
            bytes: m.bytes,
            start_s: 0.0,
            end_s: 0.0,
            delivered_s: 0.0,
        };
        Run {
            events: Vec::new(),
            transfers: program.messages.iter().map(unsent).collect(),
            step_end_s: vec![0.0; program.steps],
        }
    }
}

/// Earliest first; at one time, first caused first.
struct Next {
    at_s: f64,
    order: u64,
    what: What,
}

impl Ord for Next {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at_s.total_cmp(&other.at_s).then(self.order.cmp(&other.order))
    }
}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Next {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Next {}
