//! The plan executed on paper: the very schedule that the worker runs, on the network that the transport emulates,
//! with the cost model's durations.
//!
//! ```text
//!   plan ──schedule──> actions by rank ──program──> compute, send, wait ──execute──> timeline
//!                            costs ────────┘          network ──────────────┘
//! ```
//! Ranks are not in step: each goes on as soon as its own messages allow, so several optimiser steps are run back to
//! back and the figure is their steady mean. Steps in which exchanges with a period above 1 fall due are run once
//! each, between usual steps; what they add is weighted by how often they come:
//! ```text
//!   iteration_s = step_s + sum over kinds of round (share of steps x seconds added)
//! ```
//! Assumed: sends never block (the transport's window holds what is in flight); a rank does one thing at a time;
//! collectives go directly between owners, all units in flight at once.
//!
//! Not here: what an action costs (`cost`), tensor-parallel traffic inside a stage (in its durations), streaming
//! exchange hidden behind inner steps (taken as a dense one that hides nothing).

use serde::Serialize;

use crate::cost::compute::model_flops;
use crate::plan::{ExchangeKind, Plan, Predicted};
use crate::schedule::{self, Action, Checked, Event, Payload, Schedule, ScheduleError, Unit};
use crate::topology::Topology;

mod execute;
mod load;
mod modelled;
mod network;
mod program;
mod render;
mod rounds;
mod trace;

pub use execute::Transfer;
pub use load::{LinkLoad, PairLoad, RankLoad, Traffic};
pub use modelled::Modelled;
pub use network::{Network, Resource, Route};
pub use render::render;
pub use trace::write_trace;

use execute::{Run, execute};
use program::Program;
use rounds::Rounds;

/// What the schedule's actions take and what its messages carry.
pub trait Costs {
    /// Seconds of the rank's own time; for a `Receive` or a collective what comes after its messages are there
    /// (decoding, outer step), for a `Send` what comes before (encoding).
    fn action_s(&self, rank: u32, action: Action) -> f64;
    /// Of one microbatch's tensor as coded by the boundary between stages `boundary` and `boundary + 1`.
    fn boundary_bytes(&self, replica: usize, boundary: usize, what: Payload) -> u64;
    /// Of a unit: its whole gradient or pseudo-gradient if dense, one replica's frame if sparse.
    fn exchange_bytes(&self, unit: Unit, kind: ExchangeKind) -> u64;
    /// What the rank needs with the activations of `in_flight` microbatches held.
    fn memory_bytes(&self, rank: u32, in_flight: u32) -> u64;
}

/// What the simulation of a plan gives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulation {
    /// Seconds per optimiser step over all replicas, exchanges amortised.
    pub iteration_s: f64,
    /// Seconds of a usual step: with what is exchanged at every step (dense gradients).
    pub step_s: f64,
    /// Seconds that a step takes longer when every exchange is due; 0 where all are due at every step or it is
    /// hidden by the wait for a slower replica.
    pub exchange_s: f64,
    /// By rank, of a usual step.
    pub ranks: Vec<RankLoad>,
    /// What every resource of the network carries; those that carry nothing are left out.
    pub links: Vec<LinkLoad>,
    /// What every pair of ranks sends, in one direction.
    pub pairs: Vec<PairLoad>,
    /// One usual step from the middle of the run; time 0 is its first action's start. Replicas that meet only in
    /// exchanges with a period drift apart: a faster one is ahead.
    pub timeline: Vec<Event>,
    /// The messages of that step.
    pub transfers: Vec<Transfer>,
    /// The same for a step in which every exchange is due; empty where that is the usual step.
    pub exchange_timeline: Vec<Event>,
    /// Its messages.
    pub exchange_transfers: Vec<Transfer>,
    /// By rank: the most microbatches whose activations it holds at once.
    pub peak_in_flight: Vec<u32>,
    /// By rank: the bytes it needs for that and for its states.
    pub peak_memory_bytes: Vec<u64>,
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

/// Usual steps before anything is measured: the first begins with an empty pipeline and idle links.
const WARM_UP_STEPS: usize = 2;
/// Steps measured after those.
const MEASURED_STEPS: usize = 4;

/// Executes the plan on its own inventory, by the cost model.
///
/// # Errors
/// If the schedule is unsound, a GPU is not in the inventory or two ranks that must talk have no way.
pub fn simulate(plan: &Plan) -> Result<Simulation, SimulateError> {
    let topology = Topology::new(&plan.cluster);
    simulate_on(plan, &Network::of(plan, &topology)?, &Modelled::new(plan, &topology)?)
}

/// The figures that a plan's `predicted` holds.
///
/// # Errors
/// As [`simulate`].
pub fn predicted(plan: &Plan) -> Result<Predicted, SimulateError> {
    simulate(plan).map(|simulation| simulation.predicted(plan))
}

impl Simulation {
    /// This simulation of `plan` in the plan's own terms.
    pub fn predicted(&self, plan: &Plan) -> Predicted {
        let microbatches: u32 = plan.replicas.iter().map(|r| r.microbatches).sum();
        let flops = f64::from(microbatches) * model_flops(&plan.model, plan.micro_batch);
        Predicted {
            iteration_s: self.iteration_s,
            tokens_per_s: plan.tokens_per_step() as f64 / self.iteration_s,
            model_flops_per_s_per_gpu: flops / self.iteration_s / f64::from(plan.world_size()),
            peak_memory_bytes: self.peak_memory_bytes.clone(),
        }
    }
}

/// Executes the plan's schedule with these costs on this network.
///
/// # Errors
/// If the schedule is unsound or two ranks that must talk have no route.
pub fn simulate_on(plan: &Plan, network: &Network, costs: &dyn Costs) -> Result<Simulation, SimulateError> {
    let rounds = Rounds::of(plan);
    let usual = Simulated::steps(plan, network, costs, &[rounds.usual; WARM_UP_STEPS + MEASURED_STEPS])?;
    let mut iteration_s = usual.steady_step_s();
    let mut fullest = None;
    for &(step, share) in &rounds.others {
        let mut steps = [rounds.usual; WARM_UP_STEPS + MEASURED_STEPS];
        steps[WARM_UP_STEPS] = step;
        let run = Simulated::steps(plan, network, costs, &steps)?;
        iteration_s += share * run.longer_than(&usual);
        fullest = Some(run);
    }
    Ok(report(network, costs, usual, fullest, iteration_s))
}

/// What is read off the runs once they are made.
fn report(
    network: &Network,
    costs: &dyn Costs,
    usual: Simulated,
    fullest: Option<Simulated>,
    iteration_s: f64,
) -> Simulation {
    let step_s = usual.steady_step_s();
    let fullest_program = fullest.as_ref().map(|run| &run.program);
    let (links, pairs) = load::loads(network, WARM_UP_STEPS, &usual.program, fullest_program);
    let (timeline, transfers) = usual.picture();
    let (exchange_timeline, exchange_transfers) =
        fullest.as_ref().map(Simulated::picture).unwrap_or_default();
    let busy = (0..).zip(usual.program.busy_s(WARM_UP_STEPS));
    let held = (0..).zip(&usual.peak_in_flight);
    Simulation {
        iteration_s,
        step_s,
        exchange_s: fullest.as_ref().map_or(0.0, |run| run.longer_than(&usual)),
        ranks: busy.map(|(rank, busy_s)| RankLoad { rank, busy_s, idle_s: step_s - busy_s }).collect(),
        links,
        pairs,
        timeline,
        transfers,
        exchange_timeline,
        exchange_transfers,
        peak_memory_bytes: held.map(|(rank, &in_flight)| costs.memory_bytes(rank, in_flight)).collect(),
        peak_in_flight: usual.peak_in_flight,
    }
}

/// A run of several steps with its program.
struct Simulated {
    program: Program,
    run: Run,
    peak_in_flight: Vec<u32>,
}

impl Simulated {
    fn steps(
        plan: &Plan,
        network: &Network,
        costs: &dyn Costs,
        steps: &[u64],
    ) -> Result<Self, SimulateError> {
        let schedules: Vec<Checked<Schedule>> =
            steps.iter().map(|&step| schedule::of(plan, step)).collect::<Result<_, _>>()?;
        let program = Program::lower(plan, costs, steps.iter().copied().zip(&schedules));
        network.reaches(program.messages.iter().map(|m| (m.from, m.to)))?;
        let run = execute(&program, network);
        Ok(Simulated { program, run, peak_in_flight: schedules[0].peak_in_flight().to_vec() })
    }

    fn end_s(&self) -> f64 {
        *self.run.step_end_s.last().expect("at least one step is run")
    }

    /// Seconds that this run takes longer. Where flows contend, an exchange also shifts who meets whom, which may save
    /// more than it costs: that is luck, and counts as nothing.
    fn longer_than(&self, usual: &Self) -> f64 {
        (self.end_s() - usual.end_s()).max(0.0)
    }

    fn steady_step_s(&self) -> f64 {
        (self.end_s() - self.run.step_end_s[WARM_UP_STEPS - 1]) / MEASURED_STEPS as f64
    }

    /// The first measured step: its events and messages, from time 0.
    fn picture(&self) -> (Vec<Event>, Vec<Transfer>) {
        let of_step = |position: usize| position == WARM_UP_STEPS;
        let events = self.run.events.iter().filter(|(step, _)| of_step(*step)).map(|(_, event)| *event);
        let sent = self.program.messages.iter().zip(&self.run.transfers);
        let transfers = sent.filter(|(m, _)| of_step(m.step)).map(|(_, t)| *t);
        let zero_s = events.clone().map(|e| e.start_s).fold(f64::INFINITY, f64::min);
        let shifted = |e: Event| Event { start_s: e.start_s - zero_s, end_s: e.end_s - zero_s, ..e };
        (events.map(shifted).collect(), transfers.map(|t| t.earlier_by(zero_s)).collect())
    }
}

#[cfg(test)]
mod tests;
