//! The plan executed on paper: the very schedule that the worker runs, on the network that the transport emulates,
//! with the cost model's durations.
//!
//! ```text
//!   plan ──schedule──> actions by rank ──program──> work, send, wait, meet ──execute──> timeline
//!      └── edges, meetings ──────────────┘    one of every set of twins, network ──┘
//! ```
//! Ranks are not in step: each goes on as soon as its own messages allow, so several optimiser steps are run back to
//! back: three if all ranks then repeat themselves, else six; the figure is the mean without the warm-up. A step for
//! every set of exchanges with a period above 1 follows, each with a usual step behind it; what such a pair adds is
//! weighted by how often it comes. Streaming exchanges are spread over their period: they cost what a resource is busy
//! longer than the step.
//! ```text
//!   iteration_s = step_s + sum over kinds of round (share of steps x seconds added)
//!   step_s      = max( mean of the run,  max over resources: bytes of a step, streams' share included, over rate )
//! ```
//! Replicas that behave alike are executed once (`twins`), to the same bits. 10,000 ranks take about a second.
//!
//! Assumed: sends never block (the transport's window holds what is in flight); a rank does one thing at a time.
//!
//! Not here: what an action costs (`cost`), tensor-parallel traffic inside a stage (in its durations).

use serde::Serialize;

use crate::cost::compute::model_flops;
use crate::plan::{ExchangeKind, Plan, Predicted, Seat};
use crate::schedule::{self, Action, Event, Payload, Schedule, ScheduleError, Unit};
use crate::topology::Topology;

mod edge;
mod execute;
mod fit;
mod load;
mod meeting;
mod modelled;
mod network;
mod picture;
mod program;
mod render;
mod rounds;
mod stream;
mod trace;
mod twins;

pub use crate::topology::Resource;
pub use fit::OverMemory;
pub use load::{LinkLoad, PairLoad, RankLoad, Traffic};
pub use modelled::Modelled;
pub use network::Network;
pub use picture::Transfer;
pub use render::render;
pub use trace::write_trace;

use edge::Edge;
use execute::{Run, Steps, execute};
use meeting::Meeting;
use program::Program;
use rounds::Rounds;

/// What the schedule's actions take and what its messages carry.
pub trait Costs {
    /// Seconds of the rank's own time; for a `Receive` or a collective what comes after its messages are there
    /// (decoding, outer step), for a `Send` what comes before (encoding). It may depend on the kind of action, the
    /// payload and the chunk, not on the microbatch or the peer; it is asked of what the rank does only.
    fn action_s(&self, rank: u32, action: Action) -> f64;
    /// Of one microbatch's tensor as coded by the boundary between stages `boundary` and `boundary + 1`.
    fn boundary_bytes(&self, replica: usize, boundary: usize, what: Payload) -> u64;
    /// Of a unit: its whole gradient or pseudo-gradient if dense, one replica's frame if sparse. All layers are alike.
    fn exchange_bytes(&self, unit: Unit, kind: ExchangeKind) -> u64;
    /// Of a unit's parameters as a sharded optimiser (ZeRO-1) hands them to the other owners.
    fn parameter_bytes(&self, unit: Unit) -> u64;
    /// What the rank needs with the activations of so many microbatches held, by model chunk.
    fn memory_bytes(&self, rank: u32, held: &[u32]) -> u64;
}

/// What the simulation of a plan gives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulation {
    /// Seconds per optimiser step over all replicas, exchanges amortised.
    pub iteration_s: f64,
    /// Seconds of a usual step: with what is exchanged at every step (dense gradients, the streams' share).
    pub step_s: f64,
    /// Seconds that a step takes longer when every exchange is due; 0 where all are due at every step or it is
    /// hidden by the wait for a slower replica.
    pub exchange_s: f64,
    /// By rank.
    pub ranks: Vec<RankLoad>,
    /// What every resource of the network carries; those that carry nothing are left out.
    pub links: Vec<LinkLoad>,
    /// What every pair of ranks sends, in one direction.
    pub pairs: Vec<PairLoad>,
    /// One usual step from the middle of the run; time 0 is its first action's start. Replicas that meet only in
    /// exchanges with a period drift apart: a faster one is ahead.
    pub timeline: Vec<Event>,
    /// The messages of that step; an exchange's flows take as long as all of it.
    pub transfers: Vec<Transfer>,
    /// The same for a step in which every exchange is due; empty where that is the usual step.
    pub exchange_timeline: Vec<Event>,
    /// Its messages.
    pub exchange_transfers: Vec<Transfer>,
    /// By rank: the most microbatches (of all model chunks) whose activations it holds at once.
    pub peak_in_flight: Vec<u32>,
    /// By rank: the bytes it needs for that and for its states.
    pub peak_memory_bytes: Vec<u64>,
    /// Ranks that need more than their GPU has; empty for a plan that can run.
    pub over_memory: Vec<OverMemory>,
}

/// The figures of a simulation alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quick {
    /// As [`Simulation::predicted`].
    pub predicted: Predicted,
    /// As [`Simulation::over_memory`].
    pub over_memory: Vec<OverMemory>,
}

/// Why a plan cannot be simulated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SimulateError {
    /// The schedule is unsound.
    #[error("simulating the plan: its schedule is unsound: {0}")]
    Schedule(#[from] ScheduleError),
    /// Two ranks must talk and cannot.
    #[error(
        "simulating the plan: rank {from} sends to rank {to}, but nothing connects them; add a [[link]] or place them elsewhere"
    )]
    Unreachable {
        /// Sender.
        from: u32,
        /// Receiver.
        to: u32,
    },
    /// A placement that the inventory does not have.
    #[error(
        "simulating the plan: rank {rank} is placed on GPU {gpu} of host \"{host}\", which the inventory does not have"
    )]
    NoSuchGpu {
        /// The rank.
        rank: u32,
        /// Of its placement.
        host: String,
        /// Of its placement.
        gpu: u32,
    },
}

/// Executes the plan on its own inventory, by the cost model.
///
/// # Errors
/// If the schedule is unsound, a GPU is not in the inventory or two ranks that must talk have no way.
pub fn simulate(plan: &Plan) -> Result<Simulation, SimulateError> {
    let topology = Topology::new(&plan.cluster);
    simulate_on(plan, &Network::of(plan, &topology)?, &Modelled::new(plan, &topology)?)
}

/// The figures of [`simulate`], to the bit, without its pictures and tables; the schedule is not proven again (the
/// tests prove what the generators make). For searches that judge thousands of plans.
///
/// # Errors
/// As [`simulate`].
pub fn quick(plan: &Plan) -> Result<Quick, SimulateError> {
    quick_on(plan, &Topology::new(&plan.cluster))
}

/// As [`quick`], with the plan's inventory's topology at hand.
///
/// # Errors
/// As [`simulate`].
pub fn quick_on(plan: &Plan, topology: &Topology) -> Result<Quick, SimulateError> {
    let (network, costs) = (Network::of(plan, topology)?, Modelled::new(plan, topology)?);
    let stage = Setting::new(plan, &network, &costs)?;
    let schedules = stage.schedules()?;
    let figures = stage.figures(&schedules);
    let (_, peak_memory_bytes) = stage.held(&costs, &schedules[0].1);
    let over_memory = fit::over_memory(plan, &peak_memory_bytes);
    Ok(Quick { predicted: predicted_of(plan, figures.iteration_s, peak_memory_bytes), over_memory })
}

/// The figures that a plan's `predicted` holds.
///
/// # Errors
/// As [`simulate`].
pub fn predicted(plan: &Plan) -> Result<Predicted, SimulateError> {
    quick(plan).map(|quick| quick.predicted)
}

impl Simulation {
    /// This simulation of `plan` in the plan's own terms.
    pub fn predicted(&self, plan: &Plan) -> Predicted {
        predicted_of(plan, self.iteration_s, self.peak_memory_bytes.clone())
    }
}

fn predicted_of(plan: &Plan, iteration_s: f64, peak_memory_bytes: Vec<u64>) -> Predicted {
    let flops = |(i, r): (usize, &crate::plan::Replica)| {
        f64::from(r.microbatches) * model_flops(&plan.model, plan.micro_batch_of(i))
    };
    let flops: f64 = plan.replicas.iter().enumerate().map(flops).sum();
    Predicted {
        iteration_s,
        tokens_per_s: plan.tokens_per_step() as f64 / iteration_s,
        model_flops_per_s_per_gpu: flops / iteration_s / f64::from(plan.world_size()),
        peak_memory_bytes,
    }
}

/// Executes the plan's schedule with these costs on this network.
///
/// # Errors
/// If the schedule is unsound or two ranks that must talk have no way.
pub fn simulate_on(
    plan: &Plan,
    network: &Network<'_>,
    costs: &dyn Costs,
) -> Result<Simulation, SimulateError> {
    Setting::new(plan, network, costs)?.simulation(costs)
}

/// All that the execution of a plan needs, and which of its replicas are executed.
struct Setting<'a> {
    plan: &'a Plan,
    network: &'a Network<'a>,
    /// By replica.
    edges: Vec<Vec<Edge>>,
    meetings: Vec<Meeting>,
    /// By meeting.
    traffic: Vec<meeting::Traffic>,
    work: Vec<Vec<f64>>,
    /// By replica, the one executed for it.
    stands_for: Vec<usize>,
    rounds: Rounds,
}

/// What a run gives.
struct Figures {
    iteration_s: f64,
    step_s: f64,
    /// Of the step in which every exchange is due.
    exchange_s: f64,
    program: Program,
    run: Run,
}

/// Usual steps before anything is measured: the first begins with an empty pipeline and idle links.
const WARM_UP: [usize; 2] = [1, 2];
/// Steps measured after those.
const MEASURED: [usize; 2] = [2, 4];
/// Of a step's seconds: as much may two steps of a rank differ that repeats itself.
const REPEATS: f64 = 1e-4;

impl<'a> Setting<'a> {
    fn new(plan: &'a Plan, network: &'a Network<'a>, costs: &dyn Costs) -> Result<Self, SimulateError> {
        let edges = edge::edges(plan, network, costs)?;
        let work = program::work(plan, costs);
        let meetings = meeting::meetings(plan, costs);
        let mut sums = meeting::Sums::new(network);
        let traffic = meetings.iter().map(|m| m.traffic(plan, network, &mut sums));
        let traffic = traffic.collect::<Result<_, _>>()?;
        let stands_for = twins::representatives(plan, network, &edges, &work);
        Ok(Setting { plan, network, edges, meetings, traffic, work, stands_for, rounds: Rounds::of(plan) })
    }

    fn is_executed(&self, replica: usize) -> bool {
        self.stands_for[replica] == replica
    }

    /// The kinds of step, the usual one first: a step's number and the lists of the executed ranks, not checked.
    fn schedules(&self) -> Result<Vec<(u64, Schedule)>, SimulateError> {
        let steps = std::iter::once(self.rounds.usual).chain(self.rounds.others.iter().map(|o| o.0));
        let lists = |step| Ok((step, schedule::lists(self.plan, step, |r| self.is_executed(r))?));
        steps.map(lists).collect()
    }

    fn figures(&self, schedules: &[(u64, Schedule)]) -> Figures {
        let program = self.program(schedules);
        let (mut run, mut long) = (execute(&program, self.network, &self.steps(0)), 0);
        if !repeats(&run, WARM_UP[0] + MEASURED[0]) {
            (run, long) = (execute(&program, self.network, &self.steps(1)), 1);
        }
        let end_s = |step: usize| run.ends_s[step].iter().copied().fold(0.0, f64::max);
        let usual = WARM_UP[long] + MEASURED[long];
        let mean_s = (end_s(usual - 1) - end_s(WARM_UP[long] - 1)) / MEASURED[long] as f64;
        let pairs = (usual..).step_by(2).zip(&self.rounds.others);
        // Where flows contend, an exchange also shifts who meets whom, which may save more than it costs: that is luck,
        // and counts as nothing.
        let added =
            pairs.map(|(at, &(_, share))| ((end_s(at + 1) - end_s(at - 1) - 2.0 * mean_s).max(0.0), share));
        let added: Vec<(f64, f64)> = added.collect();
        let step_s =
            mean_s.max(stream::pace_s(self.plan, self.network, &self.edges, &self.meetings, &self.traffic));
        let iteration_s = step_s + added.iter().map(|(seconds, share)| seconds * share).sum::<f64>();
        let exchange_s = added.last().map_or(0.0, |(seconds, _)| *seconds);
        Figures { iteration_s, step_s, exchange_s, program, run }
    }

    fn program(&self, schedules: &[(u64, Schedule)]) -> Program {
        let executed = self.edges.iter().enumerate().filter(|(replica, _)| self.is_executed(*replica));
        let edges: Vec<_> = executed.flat_map(|(r, edges)| edges.iter().map(move |e| (r, e))).collect();
        let parts = program::Parts {
            plan: self.plan,
            network: self.network,
            stands_for: &self.stands_for,
            edges: &edges,
            work: &self.work,
            meetings: &self.meetings,
            traffic: &self.traffic,
        };
        Program::new(parts, schedules)
    }

    /// Usual steps, then each other kind with a usual one behind it. Written down: the first measured, and the last of
    /// the others, in which every exchange is due.
    fn steps(&self, long: usize) -> Steps {
        let usual = vec![0; WARM_UP[long] + MEASURED[long]];
        let others = (1..=self.rounds.others.len()).flat_map(|kind| [kind, 0]);
        let kinds: Vec<usize> = usual.into_iter().chain(others).collect();
        let fullest = (!self.rounds.others.is_empty()).then(|| kinds.len() - 2);
        Steps { written: [WARM_UP[long]].into_iter().chain(fullest).collect(), kinds }
    }

    /// By rank, executed or not: the microbatches that it holds at once, and the bytes that it needs.
    fn held(&self, costs: &dyn Costs, usual: &Schedule) -> (Vec<u32>, Vec<u64>) {
        let places = picture::Places::of(self.plan, &self.stands_for);
        let needs = |seat: Seat<'_>| {
            let rank = seat.placement.rank;
            let held = schedule::held(&usual.0[places.executed_for(rank) as usize]);
            (held.iter().sum::<u32>(), costs.memory_bytes(rank, &held))
        };
        self.plan.seats().into_iter().map(needs).unzip()
    }

    fn simulation(&self, costs: &dyn Costs) -> Result<Simulation, SimulateError> {
        let mut schedules = self.schedules()?;
        for (step, schedule) in &mut schedules {
            let lists = std::mem::replace(schedule, Schedule(Vec::new()));
            *schedule = schedule::check_some(lists, self.plan, *step, |r| self.is_executed(r))?.into_inner();
        }
        let figures = self.figures(&schedules);
        let (peak_in_flight, peak_memory_bytes) = self.held(costs, &schedules[0].1);
        let (links, pairs) = load::loads(self.plan, self.network, &self.edges, &self.meetings)?;
        let [usual, fullest] = picture::pictures(self, &schedules, &figures);
        Ok(Simulation {
            iteration_s: figures.iteration_s,
            step_s: figures.step_s,
            exchange_s: figures.exchange_s,
            ranks: self.ranks(&figures),
            links,
            pairs,
            timeline: usual.0,
            transfers: usual.1,
            exchange_timeline: fullest.0,
            exchange_transfers: fullest.1,
            over_memory: fit::over_memory(self.plan, &peak_memory_bytes),
            peak_in_flight,
            peak_memory_bytes,
        })
    }

    /// What the ranks' time goes to; what boundaries cost is seen by running the same without them.
    fn ranks(&self, figures: &Figures) -> Vec<RankLoad> {
        let steps = Steps { kinds: vec![0; WARM_UP[0] + MEASURED[0]], written: Vec::new() };
        let ideal = execute(&figures.program.without_boundaries(), self.network, &steps);
        let end_s = |step: usize| ideal.ends_s[step].iter().copied().fold(0.0, f64::max);
        let ideal_s = (end_s(WARM_UP[0] + MEASURED[0] - 1) - end_s(WARM_UP[0] - 1)) / MEASURED[0] as f64;
        let boundary_s = (figures.step_s - ideal_s).max(0.0);
        let meeting_s = picture::meeting_s(&figures.program, &figures.run);
        let outer_s = figures.iteration_s - figures.step_s;
        let executed = figures.program.ranks.iter().zip(figures.program.busy_s()).zip(meeting_s);
        let load = |((rank, busy_s), meeting_s): ((&program::Rank, f64), f64)| {
            let exchange_s = meeting_s + outer_s;
            let bubble_s = (figures.iteration_s - busy_s - boundary_s - exchange_s).max(0.0);
            let idle_s = figures.step_s - busy_s;
            RankLoad { rank: rank.rank, busy_s, idle_s, bubble_s, boundary_s, exchange_s }
        };
        let executed: Vec<RankLoad> = executed.map(load).collect();
        let places = picture::Places::of(self.plan, &self.stands_for);
        let position = |rank: u32| executed.binary_search_by_key(&places.executed_for(rank), |l| l.rank);
        let of = |rank: u32| RankLoad { rank, ..executed[position(rank).expect("it is executed")] };
        (0..self.plan.world_size()).map(of).collect()
    }
}

/// Whether every rank's last step took as long as the one before, of the first `steps`.
fn repeats(run: &Run, steps: usize) -> bool {
    let [a, b, c] = [3, 2, 1].map(|back| &run.ends_s[steps - back]);
    a.iter().zip(b).zip(c).all(|((a, b), c)| ((c - b) - (b - a)).abs() <= REPEATS * (c - b))
}

#[cfg(test)]
mod tests;
