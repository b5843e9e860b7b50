//! From actions to what the execution knows: compute, send, wait. One list per rank over all steps of the run.
//!
//! A collective becomes its messages. With `R` owners of a unit, all units in flight at once:
//! ```text
//!   sparse     its frames to every other owner; wait for theirs (those of one peer follow each other: one message)
//!   dense      1/R of the unit to every other owner (reduce-scatter); as a unit's parts have come, the own reduced
//!              1/R to every other owner (all-gather); wait for theirs
//!   streaming  as dense, of the pseudo-gradient
//! ```
//! Not here: time (`execute`), whom a rank meets (`schedule`).

use std::collections::HashMap;

use super::Costs;
use crate::plan::{Exchange, ExchangeKind, Plan, Seat};
use crate::schedule::{
    Action, Checked, Payload, Peer, Schedule, Unit, boundary_peers, exchange_peers, exchanges_at,
};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Op {
    Compute {
        seconds: f64,
    },
    /// Index into [`Program::messages`].
    Send {
        message: usize,
    },
    /// Until that message is there.
    Wait {
        message: usize,
    },
    /// The action of the `step`-th step of the run is done.
    Done {
        action: Action,
        step: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) bytes: u64,
    /// Position of its step in the run.
    pub(super) step: usize,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Program {
    /// By rank.
    pub(super) ops: Vec<Vec<Op>>,
    pub(super) messages: Vec<Message>,
    pub(super) steps: usize,
}

impl Program {
    /// The schedules of steps, each with its number (from 1), one after the other.
    pub(super) fn lower<'s>(
        plan: &Plan,
        costs: &dyn Costs,
        steps: impl IntoIterator<Item = (u64, &'s Checked<Schedule>)>,
    ) -> Self {
        let seats = plan.seats();
        let mut program = Program { ops: vec![Vec::new(); seats.len()], ..Program::default() };
        for (step, schedule) in steps {
            let mut known = HashMap::new();
            for (&seat, list) in seats.iter().zip(&schedule.0) {
                let mut lowering =
                    Lowering { plan, costs, seat, step, program: &mut program, known: &mut known };
                list.iter().for_each(|&action| lowering.action(action));
            }
            program.steps += 1;
        }
        program
    }

    /// By rank, seconds of work in the `step`-th step of the run.
    pub(super) fn busy_s(&self, step: usize) -> Vec<f64> {
        self.ops.iter().map(|ops| busy_s(ops, step)).collect()
    }
}

fn busy_s(ops: &[Op], of_step: usize) -> f64 {
    let (mut busy_s, mut action_s) = (0.0, 0.0);
    for op in ops {
        match *op {
            Op::Compute { seconds } => action_s += seconds,
            Op::Done { step, .. } => {
                busy_s += if step == of_step { action_s } else { 0.0 };
                action_s = 0.0;
            }
            Op::Send { .. } | Op::Wait { .. } => {}
        }
    }
    busy_s
}

/// What a message is, so that both its ends find the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Tag {
    Boundary { what: Payload, microbatch: u32 },
    Frames { exchange: usize },
    Scatter { exchange: usize, unit: Unit },
    Gather { exchange: usize, unit: Unit },
}

/// One rank's action list being turned into its operations.
struct Lowering<'a> {
    plan: &'a Plan,
    costs: &'a dyn Costs,
    seat: Seat<'a>,
    /// Number of the optimiser step, from 1.
    step: u64,
    program: &'a mut Program,
    known: &'a mut HashMap<(u32, u32, Tag), usize>,
}

impl Lowering<'_> {
    fn action(&mut self, action: Action) {
        match action {
            Action::Receive { from, what, microbatch } => self.wait(from, Tag::Boundary { what, microbatch }),
            Action::Reduce => self.exchanges(|kind| kind == ExchangeKind::Dense),
            Action::Exchange => self.exchanges(|kind| kind != ExchangeKind::Dense),
            _ => {}
        }
        let seconds = self.costs.action_s(self.rank(), action);
        if seconds > 0.0 {
            self.op(Op::Compute { seconds });
        }
        if let Action::Send { to, what, microbatch } = action {
            self.send(to, Tag::Boundary { what, microbatch }, self.boundary_bytes(to, what));
        }
        self.op(Op::Done { action, step: self.program.steps });
    }

    fn exchanges(&mut self, of: impl Fn(ExchangeKind) -> bool) {
        let plan = self.plan;
        for exchange in exchanges_at(plan, self.seat.replica, self.step).filter(|e| of(e.kind)) {
            let units = exchange_peers(plan, exchange, self.seat);
            match exchange.kind {
                ExchangeKind::Sparse { .. } => self.all_gather(exchange, &units),
                ExchangeKind::Dense | ExchangeKind::Streaming => self.all_reduce(exchange, &units),
            }
        }
    }

    fn all_gather(&mut self, exchange: &Exchange, units: &[(Unit, Vec<Peer>)]) {
        let tag = Tag::Frames { exchange: self.position(exchange) };
        let mut frames = Vec::<(u32, u64)>::new();
        for (unit, peers) in units {
            let frame_bytes = self.costs.exchange_bytes(*unit, exchange.kind);
            for peer in peers {
                let bytes = peer.share.bytes(frame_bytes);
                match frames.iter_mut().find(|(rank, _)| *rank == peer.rank) {
                    Some((_, sum)) => *sum += bytes,
                    None => frames.push((peer.rank, bytes)),
                }
            }
        }
        frames.iter().for_each(|&(rank, bytes)| self.send(rank, tag, bytes));
        frames.iter().for_each(|&(rank, _)| self.wait(rank, tag));
    }

    fn all_reduce(&mut self, exchange: &Exchange, units: &[(Unit, Vec<Peer>)]) {
        let position = self.position(exchange);
        let owners = exchange.replicas.len() as u64;
        let part = |this: &Self, unit, peer: &Peer| {
            peer.share.bytes(this.costs.exchange_bytes(unit, exchange.kind)).div_ceil(owners)
        };
        for (unit, peers) in units {
            let tag = Tag::Scatter { exchange: position, unit: *unit };
            peers.iter().for_each(|p| self.send(p.rank, tag, part(self, *unit, p)));
        }
        for (unit, peers) in units {
            let scatter = Tag::Scatter { exchange: position, unit: *unit };
            peers.iter().for_each(|p| self.wait(p.rank, scatter));
            let gather = Tag::Gather { exchange: position, unit: *unit };
            peers.iter().for_each(|p| self.send(p.rank, gather, part(self, *unit, p)));
        }
        for (unit, peers) in units {
            let tag = Tag::Gather { exchange: position, unit: *unit };
            peers.iter().for_each(|p| self.wait(p.rank, tag));
        }
    }

    /// The part of a boundary's tensor that this rank and `to` share.
    fn boundary_bytes(&self, to: u32, what: Payload) -> u64 {
        let Seat { replica, stage, .. } = self.seat;
        let (boundary, other) = match what {
            Payload::Activation => (stage, stage + 1),
            Payload::Gradient => (stage - 1, stage - 1),
        };
        let stages = &self.plan.replicas[replica].stages;
        let peers = boundary_peers(&stages[stage], self.rank(), &stages[other]);
        let peer = peers.iter().find(|p| p.rank == to).expect("a checked schedule sends to neighbours");
        peer.share.bytes(self.costs.boundary_bytes(replica, boundary, what))
    }

    fn position(&self, exchange: &Exchange) -> usize {
        self.plan.exchange.iter().position(|e| std::ptr::eq(e, exchange)).expect("an exchange of this plan")
    }

    fn send(&mut self, to: u32, tag: Tag, bytes: u64) {
        let message = self.message(self.rank(), to, tag);
        self.program.messages[message].bytes = bytes;
        self.op(Op::Send { message });
    }

    fn wait(&mut self, from: u32, tag: Tag) {
        let message = self.message(from, self.rank(), tag);
        self.op(Op::Wait { message });
    }

    /// The message, whichever end comes first; its sender fills in the bytes.
    fn message(&mut self, from: u32, to: u32, tag: Tag) -> usize {
        let messages = &mut self.program.messages;
        let step = self.program.steps;
        *self.known.entry((from, to, tag)).or_insert_with(|| {
            messages.push(Message { from, to, bytes: 0, step });
            messages.len() - 1
        })
    }

    fn rank(&self) -> u32 {
        self.seat.placement.rank
    }

    fn op(&mut self, op: Op) {
        self.program.ops[self.seat.placement.rank as usize].push(op);
    }
}
