//! The plan that takes least time per step, with a proof of how near to least it is. The problem is stated in
//! docs/planner.md.
//!
//! ```text
//!   space     one group a cluster (like GPUs are counted, not named), prices of stages, crossings, exchanges
//!   sync      what a stage pays for being kept equal;  terms: the most layers a stage may hold
//!   column    a pipeline: which clusters in which order, stages and layers of each; the fastest split of its layers
//!   pool      which columns there are;  market: what they offer for a fixed step time T
//!   master    how many of each offer: a small integer program (HiGHS)
//!   solve     over T, what is exchanged and the number of islands;  bound: what a pool leaves out
//!   evaluate  the closed form of any plan: what the search minimises, and what judges its result
//!   place     counts become hosts and ranks
//! ```
//! For a fixed T a column of fill f, beat b and synchronisation s turns 1 + (T - s - f) / b microbatches around; columns
//! are chosen with sum of GPUs <= what a group has and sum of sequences = what the step needs. T is feasible or not,
//! and monotone: bisect. An infeasible T is a proof that no plan of the space is that fast.
//!
//! Deterministic: one thread, no seed, no clock but the time limit's.
//!
//! Not here: overlap and queues (`simulate`), why (`explain`).

pub mod evaluate;

mod blocks;
mod column;
mod fit;
#[cfg(test)]
pub(crate) mod fixture;
mod market;
mod master;
mod pack;
mod place;
mod pool;
mod relax;
mod solve;
pub(crate) mod space;
mod sync;
mod terms;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::inventory::Cluster;
use crate::model::{BoundaryChoice, ExchangeChoice, Model, Recompute};
use crate::plan::{Plan, Solver, Transport};
use crate::units::human_bytes;

use self::blocks::Blocks;
use self::evaluate::evaluate_in;
use self::market::Tables;
use self::pool::Pool;
use self::solve::{Solve, most_owners, rate_floor_s};
use self::space::Space;

/// How hard to search, and the constants of the exchange and the codecs.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchOptions {
    /// Stop when no plan can be faster than the one found by more than this share of its time.
    pub gap: f64,
    /// Stop with the best plan found, and its gap as it stands.
    pub time_limit: Duration,
    /// Optimiser steps between sparse or streaming exchanges.
    pub sync_every: u32,
    /// Values kept of each 4096 in a sparse exchange.
    pub top_k: u32,
    /// Dimension of compressed boundaries; `None`: an eighth of the hidden width.
    pub subspace_rank: Option<u32>,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self {
            gap: 0.01,
            time_limit: Duration::from_secs(60),
            sync_every: 30,
            top_k: 64,
            subspace_rank: None,
        }
    }
}

/// What the engine that will run the plan can do; the rest is outside the space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Largest tensor-parallel group.
    pub max_tensor_parallel: u32,
    /// Kinds of exchange (never `Auto`).
    pub exchanges: &'static [ExchangeChoice],
    /// Codecs of boundaries (never `Auto`).
    pub codecs: &'static [BoundaryChoice],
    /// Kinds of recomputation (never `Auto`).
    pub recomputes: &'static [Recompute],
    /// What moves every boundary.
    pub transport: Transport,
    /// Largest number of virtual stages of a rank (interleaved schedules).
    pub max_virtual_stages: u32,
    /// The optimiser's states may be sharded over the replicas of an island.
    pub zero1: bool,
    /// Islands that reduce gradients may exchange pseudo-gradients with one another.
    pub nested: bool,
    /// Replicas may differ in microbatch size and recomputation.
    pub unlike_modes: bool,
}

impl EngineLimits {
    /// The native engine: no tensor parallelism, no recomputation, no streaming exchange, TCP everywhere.
    pub const NATIVE: Self = Self {
        max_tensor_parallel: 1,
        exchanges: &[ExchangeChoice::Dense, ExchangeChoice::Sparse],
        codecs: &[BoundaryChoice::None, BoundaryChoice::Bf16, BoundaryChoice::Int8, BoundaryChoice::Subspace],
        recomputes: &[Recompute::None],
        transport: Transport::Tcp,
        max_virtual_stages: 1,
        zero1: false,
        nested: false,
        unlike_modes: false,
    };

    /// Everything a plan can say.
    pub const ANY: Self = Self {
        max_tensor_parallel: 8,
        exchanges: &[ExchangeChoice::Dense, ExchangeChoice::Streaming, ExchangeChoice::Sparse],
        recomputes: &[Recompute::None, Recompute::Selective, Recompute::Full],
        max_virtual_stages: 4,
        zero1: true,
        nested: true,
        unlike_modes: true,
        ..Self::NATIVE
    };
}

/// The part of the space to look at; runners-up are the best of smaller parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Clusters that may be used, by index in the inventory, ascending.
    pub clusters: Vec<usize>,
    /// Largest number of replicas.
    pub max_replicas: u32,
}

impl Scope {
    /// All of it.
    pub fn whole(cluster: &Cluster) -> Self {
        Self { clusters: (0..cluster.clusters.len()).collect(), max_replicas: u32::MAX }
    }
}

/// A plan and what is proven of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The plan, without `predicted`: that is the simulator's.
    pub plan: Plan,
    /// Columns were too many to list: the plan comes from a thinned list, the bound from a relaxation.
    pub thinned: bool,
    /// No plan at all, of this space or not, is faster: FLOPs over the sum of rates.
    pub flops_bound_s: f64,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SearchError {
    /// The model asks for what the engine cannot do.
    #[error("the model asks for {asked}, which this engine cannot do; it can do {able}")]
    Unsupported {
        /// Key and value.
        asked: String,
        /// The values that would work.
        able: String,
    },
    /// The microbatch does not divide the batch.
    #[error("micro_batch = {micro_batch} does not divide global_batch = {global_batch}; choose a divisor")]
    Indivisible {
        /// Sequences per microbatch.
        micro_batch: u32,
        /// Sequences per step.
        global_batch: u32,
    },
    /// No arrangement holds the model.
    #[error(
        "the model does not fit: the nearest arrangement, {nearest}, lacks {} on its fullest GPU; what would help: {advice}",
        human_bytes(*short_bytes)
    )]
    DoesNotFit {
        /// The arrangement that lacks least.
        nearest: String,
        /// What each of its GPUs would need more, at most; within 0.1 %.
        short_bytes: u64,
        /// What would help.
        advice: String,
    },
    /// It would fit if two clusters could reach each other.
    #[error(
        "the model fits only across {a} and {b}, which no [[link]] joins: add `[[link]] between = [\"{a}\", \"{b}\"]`"
    )]
    Unreachable {
        /// A cluster's name.
        a: String,
        /// Another's.
        b: String,
    },
    /// The time limit struck before any plan was found.
    #[error("no plan found within the time limit of {limit_s} s; raise --time-limit")]
    TimeLimit {
        /// The limit.
        limit_s: f64,
    },
    /// HiGHS failed.
    #[error("the ILP solver failed while {doing}: {status}")]
    Solver {
        /// What was being solved.
        doing: &'static str,
        /// What it said.
        status: String,
    },
}

/// The fastest plan for a model on an inventory.
///
/// # Errors
/// [`SearchError`]: the model does not fit, asks for what the engine cannot do, or the solver or its time gave out.
pub fn search(
    cluster: &Cluster,
    model: &Model,
    limits: &EngineLimits,
    options: &SearchOptions,
) -> Result<Found, SearchError> {
    search_within(cluster, model, limits, options, &Scope::whole(cluster))
}

/// The fastest plan of a part of the space.
///
/// # Errors
/// As [`search`].
pub fn search_within(
    cluster: &Cluster,
    model: &Model,
    limits: &EngineLimits,
    options: &SearchOptions,
    scope: &Scope,
) -> Result<Found, SearchError> {
    let started = Instant::now();
    let deadline = started + options.time_limit;
    let models = resolutions(model, limits)?;
    let spaces = models.iter().map(|m| Space::new(cluster, m, limits, options));
    let mut spaces = spaces.collect::<Result<Vec<_>, _>>()?;
    let flops_bound_s = spaces.iter().map(|s| s.flops_bound_s(&scope.clusters)).fold(f64::INFINITY, f64::min);
    let mut best: Option<(Plan, f64)> = None;
    let (mut bound_s, mut complete) = (f64::INFINITY, true);
    while !spaces.is_empty() {
        let rest = if limits.unlike_modes { vec![] } else { spaces.split_off(1) };
        let modes = std::mem::replace(&mut spaces, rest);
        let owners = most_owners(&modes[0], scope);
        let tables: Vec<Tables> = modes.iter().map(|space| Tables::new(space, owners)).collect();
        let mut pool = Pool::new(&modes, scope, Tables::count(&modes[0], owners));
        complete &= pool.complete;
        let gap = options.gap.max(1e-7);
        let mut best_s = best.as_ref().map_or(f64::INFINITY, |b| b.1);
        let floor_s = modes.iter().map(|s| rate_floor_s(s, &scope.clusters)).fold(f64::INFINITY, f64::min);
        let mut found = None;
        let loose = !modes[0].outer_kinds().is_empty()
            && (!limits.nested || scope.clusters.iter().any(|&g| modes[0].may_drift(std::iter::once(g))));
        if !pool.complete {
            let (best, bound) = (None, f64::INFINITY);
            let mut blocks = Blocks {
                modes: &modes,
                tables: &tables,
                scope,
                gap,
                deadline,
                pool: &mut pool,
                listed: Default::default(),
                best,
                best_s,
                bound_s: bound,
            };
            blocks.run(floor_s)?;
            bound_s = bound_s.min(blocks.bound_s);
            (found, best_s) = (blocks.best, blocks.best_s);
        }
        if pool.complete || loose {
            let (tables, bound) = (&tables, f64::INFINITY);
            let mut solve =
                Solve { modes: &modes, tables, scope, gap, deadline, best: None, best_s, bound_s: bound };
            solve.run(&pool, floor_s)?;
            bound_s = bound_s.min(if pool.complete { solve.bound_s } else { floor_s });
            found = solve.best.or(found);
        }
        if let Some(candidate) = found {
            // Where leftovers of hosts break a replica up, it costs more than the search thought, most of all if its
            // ranks take turns.
            for candidate in [candidate.clone(), candidate.without_virtual_stages(&modes)] {
                let plan = place::place(&modes, &candidate);
                let of: Vec<&Space> = candidate.members.iter().map(|m| &modes[m.mode]).collect();
                let cost = evaluate_in(&of, &plan).expect("the search keeps to the inventory");
                if best.as_ref().is_none_or(|b| cost.iteration_s < b.1) {
                    best = Some((plan, cost.iteration_s));
                }
            }
        }
    }
    let Some((plan, objective_s)) = best else {
        return Err(fit::why_nothing(cluster, model, limits, options, scope, deadline));
    };
    let late = Instant::now() >= deadline;
    let solver = solver(objective_s, bound_s.max(flops_bound_s), options.gap, started.elapsed(), late);
    Ok(Found { plan: Plan { solver: Some(solver), ..plan }, thinned: !complete, flops_bound_s })
}

/// The model with its open choices (microbatch size, recomputation) made, in every way the engine can.
fn resolutions(model: &Model, limits: &EngineLimits) -> Result<Vec<Model>, SearchError> {
    let batches = match model.micro_batch {
        Some(b) if b == 0 || !model.global_batch.is_multiple_of(b) => {
            return Err(SearchError::Indivisible { micro_batch: b, global_batch: model.global_batch });
        }
        Some(b) => vec![b],
        None => (0..5).map(|i| 1 << i).filter(|b| model.global_batch.is_multiple_of(*b)).collect(),
    };
    let recomputes = match model.recompute {
        Recompute::Auto => limits.recomputes.to_vec(),
        chosen if limits.recomputes.contains(&chosen) => vec![chosen],
        chosen => return Err(unsupported("recompute", &chosen, limits.recomputes)),
    };
    let choices = recomputes.iter().flat_map(|&recompute| batches.iter().map(move |&b| (recompute, b)));
    let choices = choices.map(|(recompute, b)| Model { recompute, micro_batch: Some(b), ..model.clone() });
    Ok(choices.collect())
}

fn unsupported<T: std::fmt::Debug>(key: &str, asked: &T, able: &[T]) -> SearchError {
    let word = |value: &T| format!("{value:?}").to_lowercase();
    let able = able.iter().map(word).collect::<Vec<_>>().join(", ");
    SearchError::Unsupported { asked: format!("{key} = \"{}\"", word(asked)), able }
}

fn solver(objective_s: f64, bound_s: f64, gap_wanted: f64, wall: Duration, late: bool) -> Solver {
    let bound_s = bound_s.min(objective_s);
    let gap = (objective_s - bound_s) / objective_s;
    let status = match gap {
        _ if gap <= 1e-6 => "optimal",
        _ if late && gap > gap_wanted => "time_limit",
        _ => "gap",
    };
    Solver { status: status.into(), objective_s, bound_s, gap, wall_s: wall.as_secs_f64() }
}
