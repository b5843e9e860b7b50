//! From actions to what the execution knows: wait, work, send. One list per executed rank and kind of step: a step is
//! of the usual kind or one in which some exchanges with a period are due; the execution repeats them.
//!
//! Ranks, flows, messages and meetings are numbered densely; a step's messages have the same numbers in every step: by
//! the time one is sent again it has been used, since its sender has the gradient (or the activation) that came of it.
//!
//! Not here: time (`execute`), whom a rank meets (`schedule`, `meeting`).

use std::collections::HashMap;

use super::Costs;
use super::edge::Edge;
use super::meeting::{Meeting, Traffic};
use super::network::Network;
use crate::plan::{ExchangeKind, Plan, Seat};
use crate::schedule::{self, Action, Payload, Schedule};
use crate::topology::Way;

/// Instead of its number, of a rank for which another one is executed.
const NOT_EXECUTED: u32 = u32::MAX;

/// One action: what it waits for, how long it works, what it sends then.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Op {
    pub(super) begin: Begin,
    pub(super) seconds: f64,
    pub(super) send: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Begin {
    AtOnce,
    /// When that message is there.
    Message(u32),
    /// When these meetings are over: a range of [`Rank::meets`].
    Meetings(u32, u32),
}

/// An executed rank.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rank {
    /// Its global number.
    pub(super) rank: u32,
    /// By kind of step.
    pub(super) ops: Vec<Vec<Op>>,
    /// Indices into [`Program::meetings`].
    pub(super) meets: Vec<u32>,
}

/// The messages of one pair of ranks; they follow each other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Flow {
    pub(super) way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Message {
    pub(super) flow: u32,
    /// Executed rank that waits for it.
    pub(super) to: u32,
    pub(super) bytes: u64,
    /// Global ranks.
    pub(super) sender: u32,
    pub(super) receiver: u32,
}

/// A meeting as far as executed ranks see it.
#[derive(Debug, Clone, Default)]
pub(super) struct Met {
    /// Executed ranks that own the part.
    pub(super) members: Vec<u32>,
    pub(super) traffic: Traffic,
}

#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) ranks: Vec<Rank>,
    pub(super) flows: Vec<Flow>,
    pub(super) messages: Vec<Message>,
    pub(super) meetings: Vec<Met>,
    pub(super) resources: usize,
}

/// What a program is made of.
pub(super) struct Parts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) network: &'a Network<'a>,
    /// By replica, the one executed for it.
    pub(super) stands_for: &'a [usize],
    /// Of the executed replicas, with the replica.
    pub(super) edges: &'a [(usize, &'a Edge)],
    /// By rank, the seconds that [`slot`] finds.
    pub(super) work: &'a [Vec<f64>],
    pub(super) meetings: &'a [Meeting],
    /// By meeting.
    pub(super) traffic: &'a [Traffic],
}

impl Program {
    /// `kinds` are the kinds of step: each a step's number and its schedule.
    pub(super) fn new(parts: Parts<'_>, kinds: &[(u64, Schedule)]) -> Self {
        let seats = parts.plan.seats();
        let executed: Vec<Seat<'_>> =
            seats.into_iter().filter(|s| parts.stands_for[s.replica] == s.replica).collect();
        let mut local = vec![NOT_EXECUTED; parts.plan.world_size() as usize];
        for (index, seat) in (0..).zip(&executed) {
            local[seat.placement.rank as usize] = index;
        }
        let (flows, messages, posts) = messages(&parts, &local, executed.len());
        let members = members(&parts, &local);
        let mut mine = vec![Vec::new(); executed.len()];
        for (meeting, members) in (0..).zip(&members) {
            members.iter().for_each(|&rank| mine[rank as usize].push(meeting));
        }
        let lowered = |((seat, posts), mine): ((&Seat<'_>, &Vec<Post>), &Vec<u32>)| {
            let rank = seat.placement.rank;
            let mut lowering = Lowering { parts: &parts, rank, posts, mine, step: 0, meets: Vec::new() };
            let ops = kinds.iter().map(|(step, schedule)| lowering.list(*step, &schedule.0[rank as usize]));
            Rank { rank, ops: ops.collect(), meets: lowering.meets }
        };
        let ranks = executed.iter().zip(&posts).zip(&mine).map(lowered).collect();
        let met = members.into_iter().zip(parts.traffic);
        let meetings = met.map(|(members, traffic)| Met { members, traffic: traffic.clone() }).collect();
        Program { ranks, flows, messages, meetings, resources: parts.network.resources().len() }
    }

    /// The same if boundaries took no time.
    pub(super) fn without_boundaries(&self) -> Self {
        let at_once = Flow { way: Way::over([], 0.0, 0.0) };
        Program { flows: vec![at_once; self.flows.len()], ..self.clone() }
    }

    /// By executed rank, seconds of work in a usual step.
    pub(super) fn busy_s(&self) -> impl Iterator<Item = f64> + '_ {
        self.ranks.iter().map(|rank| rank.ops[0].iter().map(|op| op.seconds).sum())
    }
}

/// By meeting, the executed ranks that own the part.
fn members(parts: &Parts<'_>, local: &[u32]) -> Vec<Vec<u32>> {
    let executed = |owners: &Vec<u32>| {
        owners.iter().map(|&r| local[r as usize]).filter(|&r| r != NOT_EXECUTED).collect()
    };
    parts.meetings.iter().map(|m| executed(&m.owners)).collect()
}

/// An edge as one of its ranks knows it: the message of microbatch 0, the others follow.
struct Post {
    peer: u32,
    what: Payload,
    chunk: u32,
    side: Side,
    first_message: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Sender,
    Receiver,
}

fn messages(parts: &Parts<'_>, local: &[u32], ranks: usize) -> (Vec<Flow>, Vec<Message>, Vec<Vec<Post>>) {
    let (mut flows, mut messages) = (Vec::new(), Vec::new());
    let mut posts: Vec<Vec<Post>> = (0..ranks).map(|_| Vec::new()).collect();
    let mut flow_of = HashMap::new();
    for &(replica, edge) in parts.edges {
        let [from, to] = [edge.from, edge.to].map(|rank| local[rank as usize]);
        let replica = &parts.plan.replicas[replica];
        let flow = *flow_of.entry((from, to)).or_insert_with(|| {
            flows.push(Flow { way: edge.way });
            flows.len() as u32 - 1
        });
        let (what, chunk, first_message) =
            (edge.what, edge.boundary / replica.depth() as u32, messages.len() as u32);
        posts[from as usize].push(Post { peer: edge.to, what, chunk, side: Side::Sender, first_message });
        posts[to as usize].push(Post { peer: edge.from, what, chunk, side: Side::Receiver, first_message });
        let message = Message { flow, to, bytes: edge.bytes, sender: edge.from, receiver: edge.to };
        messages.extend(std::iter::repeat_n(message, replica.microbatches as usize));
    }
    (flows, messages, posts)
}

/// One rank's action lists being turned into its operations.
struct Lowering<'a> {
    parts: &'a Parts<'a>,
    rank: u32,
    posts: &'a [Post],
    /// Its meetings, of all exchanges.
    mine: &'a [u32],
    /// Number of the optimiser step, from 1.
    step: u64,
    meets: Vec<u32>,
}

impl Lowering<'_> {
    fn list(&mut self, step: u64, actions: &[Action]) -> Vec<Op> {
        self.step = step;
        actions.iter().map(|&action| self.op(action)).collect()
    }

    fn op(&mut self, action: Action) -> Op {
        let (mut begin, mut send) = (Begin::AtOnce, None);
        match action {
            Action::Receive { from, what, microbatch, chunk } => {
                begin = Begin::Message(self.post(from, what, chunk, Side::Receiver) + microbatch);
            }
            Action::Send { to, what, microbatch, chunk } => {
                send = Some(self.post(to, what, chunk, Side::Sender) + microbatch);
            }
            Action::Reduce => begin = self.meetings(|kind| kind == ExchangeKind::Dense),
            Action::Exchange => begin = self.meetings(|kind| kind != ExchangeKind::Dense),
            _ => {}
        }
        Op { begin, seconds: self.parts.work[self.rank as usize][slot(action)], send }
    }

    fn post(&self, peer: u32, what: Payload, chunk: u32, side: Side) -> u32 {
        let wanted = (peer, what, chunk, side);
        let post = self.posts.iter().find(|p| (p.peer, p.what, p.chunk, p.side) == wanted);
        post.expect("a schedule sends along the edges").first_message
    }

    fn meetings(&mut self, of: impl Fn(ExchangeKind) -> bool) -> Begin {
        let first = self.meets.len() as u32;
        let is_due = |meeting: &u32| {
            let exchange = &self.parts.plan.exchange[self.parts.meetings[*meeting as usize].exchange];
            of(exchange.kind) && schedule::is_due(exchange, self.step)
        };
        self.meets.extend(self.mine.iter().copied().filter(is_due));
        Begin::Meetings(first, self.meets.len() as u32)
    }
}

/// By rank, the seconds of each kind of action: [`slot`] finds them. Costs are asked for what the rank does only.
pub(super) fn work(plan: &Plan, costs: &dyn Costs) -> Vec<Vec<f64>> {
    let of_seat = |seat: Seat<'_>| {
        let (rank, microbatch, replica) = (seat.placement.rank, 0, &plan.replicas[seat.replica]);
        let mut work = Vec::with_capacity(CLOSING + OF_CHUNK * replica.virtual_stages());
        work.extend([Action::Reduce, Action::Step, Action::Exchange].map(|a| costs.action_s(rank, a)));
        for chunk in 0..replica.virtual_stages() as u32 {
            let after = seat.stage_of(plan, chunk) + 1 < replica.stages.len();
            let before = seat.stage > 0 || seat.stage_of(plan, chunk + 1) < replica.stages.len();
            let crossing = |exists: bool, action| if exists { costs.action_s(rank, action) } else { 0.0 };
            let [activation, gradient] = [Payload::Activation, Payload::Gradient];
            work.extend([
                costs.action_s(rank, Action::Forward { microbatch, chunk }),
                costs.action_s(rank, Action::BackwardInput { microbatch, chunk }),
                costs.action_s(rank, Action::BackwardWeight { microbatch, chunk }),
                crossing(before, Action::Receive { from: rank, what: activation, microbatch, chunk }),
                crossing(after, Action::Receive { from: rank, what: gradient, microbatch, chunk }),
                crossing(after, Action::Send { to: rank, what: activation, microbatch, chunk }),
                crossing(before, Action::Send { to: rank, what: gradient, microbatch, chunk }),
            ]);
        }
        work
    };
    plan.seats().into_iter().map(of_seat).collect()
}

/// Entries of [`work`] that close a step, and that every chunk has.
const CLOSING: usize = 3;
const OF_CHUNK: usize = 7;

/// Where a rank's [`work`] has this action.
fn slot(action: Action) -> usize {
    let of_chunk = |kind: usize| CLOSING + OF_CHUNK * action.chunk() as usize + kind;
    match action {
        Action::Reduce => 0,
        Action::Step => 1,
        Action::Exchange => 2,
        Action::Forward { .. } => of_chunk(0),
        Action::BackwardInput { .. } => of_chunk(1),
        Action::BackwardWeight { .. } => of_chunk(2),
        Action::Receive { what: Payload::Activation, .. } => of_chunk(3),
        Action::Receive { what: Payload::Gradient, .. } => of_chunk(4),
        Action::Send { what: Payload::Activation, .. } => of_chunk(5),
        Action::Send { what: Payload::Gradient, .. } => of_chunk(6),
    }
}
