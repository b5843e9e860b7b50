//! Discrete events: ranks run their operations, flows move chunks, meetings take the network in bulk; whatever happens
//! first is next.
//!
//! Events at the same time happen in the order in which they were caused, meetings last and in their own order, so a
//! run is a pure function of its input, and of two sets of replicas that share nothing neither changes the other's.
//!
//! Not here: what operations there are (`program`), how resources are shared (`network`).

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

use super::network::{Network, Taken};
use super::program::{Begin, Op, Program};

/// Which kinds of step are run, one after the other, and which of them are written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Steps {
    /// Indices into [`super::program::Rank::ops`].
    pub(super) kinds: Vec<usize>,
    /// Positions of the steps that [`Run::done`], [`Run::sent`] and [`Run::met`] tell of.
    pub(super) written: Vec<usize>,
}

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// By position of the step, then executed rank: when it ended.
    pub(super) ends_s: Vec<Vec<f64>>,
    /// Actions of the steps written down, in the order in which they ended.
    pub(super) done: Vec<Done>,
    /// Messages of those steps.
    pub(super) sent: Vec<Sent>,
    /// Meetings of those steps.
    pub(super) met: Vec<Over>,
}

/// An executed rank's `action`-th action.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) step: usize,
    pub(super) rank: usize,
    pub(super) action: usize,
    pub(super) start_s: f64,
    pub(super) end_s: f64,
}

/// A message: when its first chunk got the resources, when its last left the slowest, when the receiver has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) step: usize,
    pub(super) message: usize,
    pub(super) start_s: f64,
    pub(super) end_s: f64,
    pub(super) delivered_s: f64,
}

/// A meeting: when its last rank had come, when it was over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Over {
    pub(super) step: usize,
    pub(super) meeting: usize,
    pub(super) start_s: f64,
    pub(super) end_s: f64,
}

/// Runs the steps to their end; a checked schedule's program has one.
pub(super) fn execute(program: &Program, network: &Network<'_>, steps: &Steps) -> Run {
    let mut execution = Execution::new(program, network, steps);
    while let Some(Reverse(next)) = execution.queue.pop() {
        match next.what {
            What::Rank(rank) => execution.rank(rank as usize, next.at_s),
            What::Passed(flow, turn) => execution.passed(flow as usize, turn, next.at_s),
            What::Delivered(message) => execution.delivered(message as usize, next.at_s),
            What::Meeting(meeting) => execution.meeting(meeting as usize, next.at_s),
            What::Over(meeting) => execution.over(meeting as usize, next.at_s),
        }
    }
    let ended = execution.ranks.iter().all(|rank| rank.step == steps.kinds.len());
    assert!(ended, "a checked schedule leaves no rank waiting");
    execution.run
}

struct Execution<'a> {
    program: &'a Program,
    network: &'a Network<'a>,
    steps: &'a Steps,
    queue: BinaryHeap<Reverse<Next>>,
    caused: u64,
    ranks: Vec<RankState>,
    flows: Vec<FlowState>,
    /// By resource: how many flows have something to send over it.
    active: Vec<u32>,
    /// By resource: the flow that has it for a whole message.
    alone: Vec<Option<u32>>,
    /// By resource: when boundary messages leave it free, when meetings do.
    next_free_s: [Vec<f64>; 2],
    messages: Vec<MessageState>,
    meetings: Vec<MeetingState>,
    run: Run,
}

#[derive(Clone, Copy, Default)]
struct RankState {
    /// Position in the steps, and of the next operation in its list.
    step: usize,
    next: usize,
    phase: Phase,
    action_start_s: f64,
}

/// How far the next operation is.
#[derive(Clone, Copy, Default, PartialEq)]
enum Phase {
    #[default]
    Ready,
    /// So many of its meetings are not over.
    Meeting(u32),
    Begun,
}

/// A flow's messages that wait, each with its step, and of the first of them the bytes left and when it began.
#[derive(Default)]
struct FlowState {
    queue: VecDeque<(u32, u32)>,
    left_bytes: u64,
    start_s: f64,
    /// What is on its way now.
    taken: Taken,
    /// Counts what was taken; an event of an earlier turn is void.
    turn: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum MessageState {
    Due,
    Awaited,
    There,
}

#[derive(Clone, Copy, Default)]
struct MeetingState {
    come: u32,
    step: usize,
    start_s: f64,
}

#[derive(Clone, Copy)]
enum What {
    Rank(u32),
    Passed(u32, u32),
    Delivered(u32),
    Meeting(u32),
    Over(u32),
}

impl<'a> Execution<'a> {
    fn new(program: &'a Program, network: &'a Network<'a>, steps: &'a Steps) -> Self {
        let ranks = program.ranks.len();
        let mut execution = Execution {
            program,
            network,
            steps,
            queue: BinaryHeap::with_capacity(2 * ranks),
            caused: 0,
            ranks: vec![RankState::default(); ranks],
            flows: program.flows.iter().map(|_| FlowState::default()).collect(),
            active: vec![0; program.resources],
            alone: vec![None; program.resources],
            next_free_s: [vec![0.0; program.resources], vec![0.0; program.resources]],
            messages: vec![MessageState::Due; program.messages.len()],
            meetings: vec![MeetingState::default(); program.meetings.len()],
            run: Run { ends_s: vec![vec![0.0; ranks]; steps.kinds.len()], ..Run::default() },
        };
        (0..ranks as u32).for_each(|rank| execution.at(0.0, What::Rank(rank)));
        execution
    }

    fn at(&mut self, at_s: f64, what: What) {
        self.caused += 1;
        let order = match what {
            What::Meeting(meeting) => MEETINGS_LAST | u64::from(meeting),
            _ => self.caused,
        };
        self.queue.push(Reverse(Next { at_s, order, what }));
    }

    /// The rank's operations until it works or waits.
    fn rank(&mut self, rank: usize, now_s: f64) {
        while let Some(op) = self.next_op(rank) {
            if self.ranks[rank].phase != Phase::Begun {
                if !self.begins(rank, op.begin, now_s) {
                    return;
                }
                self.ranks[rank].phase = Phase::Begun;
                if op.seconds > 0.0 {
                    return self.at(now_s + op.seconds, What::Rank(rank as u32));
                }
            }
            if let Some(message) = op.send {
                self.send(message, self.ranks[rank].step, now_s);
            }
            self.done(rank, now_s);
        }
    }

    /// The rank's next operation; none when all steps are done.
    fn next_op(&self, rank: usize) -> Option<Op> {
        let state = &self.ranks[rank];
        let &kind = self.steps.kinds.get(state.step)?;
        Some(self.program.ranks[rank].ops[kind][state.next])
    }

    /// Whether what the operation waits for is there; if not, the rank is woken when it is.
    fn begins(&mut self, rank: usize, begin: Begin, now_s: f64) -> bool {
        match (begin, self.ranks[rank].phase) {
            (Begin::AtOnce, _) | (_, Phase::Meeting(0)) => true,
            (Begin::Message(message), _) => {
                let state = &mut self.messages[message as usize];
                let is_there = *state == MessageState::There;
                *state = if is_there { MessageState::Due } else { MessageState::Awaited };
                is_there
            }
            (Begin::Meetings(first, end), _) => {
                self.ranks[rank].phase = Phase::Meeting(end - first);
                let program = self.program;
                let meets = &program.ranks[rank].meets[first as usize..end as usize];
                meets.iter().for_each(|&meeting| self.comes(rank, meeting, now_s));
                first == end
            }
        }
    }

    fn comes(&mut self, rank: usize, meeting: u32, now_s: f64) {
        let state = &mut self.meetings[meeting as usize];
        state.come += 1;
        if state.come as usize == self.program.meetings[meeting as usize].members.len() {
            *state = MeetingState { come: 0, step: self.ranks[rank].step, start_s: now_s };
            self.at(now_s, What::Meeting(meeting));
        }
    }

    /// All have come: its flows take their resources.
    fn meeting(&mut self, meeting: usize, now_s: f64) {
        let traffic = &self.program.meetings[meeting].traffic;
        let mut end_s = now_s;
        for &(resource, seconds) in &traffic.busy_s {
            let free_s = &mut self.next_free_s[1][resource];
            *free_s = free_s.max(now_s) + seconds;
            end_s = end_s.max(*free_s);
        }
        self.at(end_s + traffic.latency_s, What::Over(meeting as u32));
    }

    fn over(&mut self, meeting: usize, now_s: f64) {
        let MeetingState { step, start_s, .. } = self.meetings[meeting];
        if self.steps.written.contains(&step) {
            self.run.met.push(Over { step, meeting, start_s, end_s: now_s });
        }
        let program = self.program;
        for &rank in &program.meetings[meeting].members {
            let Phase::Meeting(left) = &mut self.ranks[rank as usize].phase else {
                unreachable!("a rank waits until all of its meetings are over");
            };
            *left -= 1;
            if *left == 0 {
                self.rank(rank as usize, now_s);
            }
        }
    }

    /// The rank's operation is over: its next one is due.
    fn done(&mut self, rank: usize, now_s: f64) {
        let state = &mut self.ranks[rank];
        let start_s = std::mem::replace(&mut state.action_start_s, now_s);
        let (step, action) = (state.step, state.next);
        state.phase = Phase::Ready;
        state.next += 1;
        if state.next == self.program.ranks[rank].ops[self.steps.kinds[step]].len() {
            (state.step, state.next) = (step + 1, 0);
            self.run.ends_s[step][rank] = now_s;
        }
        if self.steps.written.contains(&step) {
            self.run.done.push(Done { step, rank, action, start_s, end_s: now_s });
        }
    }

    fn send(&mut self, message: u32, step: usize, now_s: f64) {
        let index = self.program.messages[message as usize].flow as usize;
        let flow = &mut self.flows[index];
        flow.queue.push_back((message, step as u32));
        if flow.queue.len() == 1 {
            self.program.flows[index].way.resources().for_each(|r| self.active[r] += 1);
            self.first(index, now_s);
        }
    }

    /// The first message of the flow's queue begins.
    fn first(&mut self, index: usize, now_s: f64) {
        let flow = &mut self.flows[index];
        flow.left_bytes = self.program.messages[flow.queue[0].0 as usize].bytes;
        flow.start_s = f64::INFINITY;
        self.take(index, now_s);
    }

    /// The flow takes its resources: for all that is left of the message if nobody else wants one of them, else for a
    /// chunk. Who has one for a whole message gives the rest back and takes turns from now on.
    fn take(&mut self, index: usize, now_s: f64) {
        let way = &self.program.flows[index].way;
        for r in way.resources() {
            if let Some(other) = self.alone[r].filter(|&other| other as usize != index) {
                self.give_back(other as usize, now_s);
            }
        }
        let is_alone = way.resources().all(|r| self.active[r] == 1);
        let flow = &mut self.flows[index];
        let bytes = match is_alone {
            true => flow.left_bytes,
            false => {
                let whole = self.program.messages[flow.queue[0].0 as usize].bytes;
                flow.left_bytes.min(self.network.chunk_bytes(way, whole))
            }
        };
        flow.taken = self.network.take(&mut self.next_free_s[0], way, now_s, bytes);
        flow.start_s = flow.start_s.min(flow.taken.start_s);
        flow.turn += 1;
        let passed = What::Passed(index as u32, flow.turn);
        way.resources().for_each(|r| self.alone[r] = is_alone.then_some(index as u32));
        self.at(self.flows[index].taken.end_s, passed);
    }

    fn give_back(&mut self, index: usize, now_s: f64) {
        let (way, flow) = (&self.program.flows[index].way, &mut self.flows[index]);
        let passed_bytes = flow.taken.passed_bytes(now_s);
        if passed_bytes >= flow.left_bytes {
            return;
        }
        self.network.give_back(&mut self.next_free_s[0], way, &flow.taken, passed_bytes);
        flow.left_bytes -= passed_bytes;
        way.resources().for_each(|r| self.alone[r] = None);
        self.take(index, now_s);
    }

    /// What the flow had taken has passed.
    fn passed(&mut self, index: usize, turn: u32, now_s: f64) {
        let flow = &mut self.flows[index];
        if flow.turn != turn {
            return;
        }
        let way = &self.program.flows[index].way;
        way.resources().for_each(|r| self.alone[r] = None);
        flow.left_bytes -= flow.taken.bytes;
        if flow.left_bytes > 0 {
            return self.take(index, now_s);
        }
        let (message, step) = flow.queue.pop_front().expect("what passes is of the first message");
        let (start_s, delivered_s, is_last) = (flow.start_s, now_s + way.latency_s, flow.queue.is_empty());
        if self.steps.written.contains(&(step as usize)) {
            let (step, message) = (step as usize, message as usize);
            self.run.sent.push(Sent { step, message, start_s, end_s: now_s, delivered_s });
        }
        self.at(delivered_s, What::Delivered(message));
        match is_last {
            true => way.resources().for_each(|r| self.active[r] -= 1),
            false => self.first(index, now_s),
        }
    }

    fn delivered(&mut self, message: usize, now_s: f64) {
        if std::mem::replace(&mut self.messages[message], MessageState::There) == MessageState::Awaited {
            self.rank(self.program.messages[message].to as usize, now_s);
        }
    }
}

/// Orders meetings after everything else at their time.
const MEETINGS_LAST: u64 = 1 << 63;

/// Earliest first; at one time, in `order`.
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
