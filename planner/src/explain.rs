//! Why this plan: what goes where, where a step's seconds go, what limits it, which GPUs stay idle, what other
//! strategies would give, and what more of anything would be worth.
//!
//! ```text
//!   step = compute (m longest stages) + fill (the other stages, once) + boundaries (exposed) + shared links + exchange
//! ```
//! of the replica that ends last, by the closed form: the parts add up to the objective.
//!
//! ```text
//!   idle        why GPUs are not used          shadow   what a link, NIC, host or GPU more would be worth
//!   runner_up   strategies by name             what_if  the same with other figures, planned again
//!   text, placement   for a terminal           page     one HTML file
//! ```
//! Not here: the timeline (`simulate`), the search (`search`).

pub mod idle;
pub mod page;
pub mod runner_up;
pub mod shadow;
pub mod what_if;

mod json;
mod placement;
mod strategy;
mod text;
mod words;

use std::time::{Duration, Instant};

use crate::model::{Model, Recompute};
use crate::plan::Plan;
use crate::search::evaluate::{EvaluateError, Evaluation, ReplicaCost, evaluate};
use crate::search::{EngineLimits, Found, SearchOptions};

pub use idle::{Idle, IdleReason};
pub use json::json;
pub use page::page;
pub use runner_up::RunnerUp;
pub use shadow::ShadowPrice;
pub use text::{Colours, Style, render, render_in};

/// What there is to say about a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The closed form of the plan.
    pub cost: Evaluation,
    /// Index of the replica that ends last.
    pub slowest: usize,
    /// Where the seconds of a step go.
    pub parts: Parts,
    /// What sets the pace.
    pub bottleneck: Bottleneck,
    /// Clusters with GPUs that the plan leaves idle.
    pub idle: Vec<Idle>,
    /// Other strategies; empty unless asked for.
    pub runners_up: Vec<RunnerUp>,
    /// What more would be worth, the dearest first; empty unless asked for.
    pub shadow_prices: Vec<ShadowPrice>,
    /// Columns were too many to list; the bound is a relaxation's.
    pub thinned: bool,
    /// FLOPs over the sum of all rates: no plan is faster. `None` where no search was made.
    pub flops_bound_s: Option<f64>,
}

/// Seconds per step, adding up to the closed form's.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Parts {
    /// The longest stage's work on all microbatches.
    pub compute_s: f64,
    /// The other stages' work on one: the pipeline fills and drains.
    pub fill_s: f64,
    /// Crossings that no compute hides, and stages out of step because of them.
    pub boundary_s: f64,
    /// Waiting for a capacity that replicas share.
    pub shared_s: f64,
    /// The exchange, amortised.
    pub exchange_s: f64,
}

/// What sets the pace.
#[derive(Debug, Clone, PartialEq)]
pub enum Bottleneck {
    /// The longest stage of the slowest replica.
    Stage(usize),
    /// A boundary of the slowest replica.
    Boundary(usize),
    /// A capacity that replicas share.
    Shared(String),
    /// The exchange between replicas.
    Exchange,
}

/// Explains any plan, a hand-written one too.
///
/// # Errors
/// [`EvaluateError`] where the plan does not belong to its inventory.
pub fn explain(plan: &Plan) -> Result<Explanation, EvaluateError> {
    let cost = evaluate(plan)?;
    let ends = |i: &usize| cost.replicas[*i].pipeline_s + cost.replicas[*i].sync_s;
    let slowest = (0..cost.replicas.len()).max_by(|a, b| ends(a).total_cmp(&ends(b))).unwrap_or(0);
    let parts = parts(&cost, &cost.replicas[slowest], plan.replicas[slowest].microbatches);
    let bottleneck = bottleneck(&cost, &cost.replicas[slowest], &parts);
    Ok(Explanation {
        idle: idle::idle(plan, &cost),
        cost,
        slowest,
        parts,
        bottleneck,
        runners_up: vec![],
        shadow_prices: vec![],
        thinned: false,
        flops_bound_s: None,
    })
}

/// Explains what a search found, with its runners-up; a few seconds in all.
///
/// # Errors
/// As [`explain`].
pub fn explain_found(
    found: &Found,
    limits: &EngineLimits,
    options: &SearchOptions,
) -> Result<Explanation, EvaluateError> {
    let runners_up = runner_up::runners_up(&found.plan, limits, options, Budget::of(IN_A_REPORT));
    let flops_bound_s = Some(found.flops_bound_s);
    Ok(Explanation { runners_up, thinned: found.thinned, flops_bound_s, ..explain(&found.plan)? })
}

/// Explains a plan with all there is: runners-up and shadow prices within `time`, as much as fits.
///
/// # Errors
/// As [`explain`].
pub fn explain_fully(
    plan: &Plan,
    limits: &EngineLimits,
    options: &SearchOptions,
    time: Duration,
) -> Result<Explanation, EvaluateError> {
    let explanation = explain(plan)?;
    let runners_up = runner_up::runners_up(plan, limits, options, Budget::of(time / 2));
    let shadow_prices = shadow::shadow_prices(plan, limits, options, Budget::of(time / 2));
    Ok(Explanation { runners_up, shadow_prices, ..explanation })
}

/// What the report of `narrows plan` may add to the search.
const IN_A_REPORT: Duration = Duration::from_secs(6);

/// Time that several searches share.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    until: Instant,
}

impl Budget {
    /// From now on.
    pub fn of(time: Duration) -> Self {
        Self { until: Instant::now() + time }
    }

    /// What the next of `left` searches may take; `None` when it is not worth starting.
    fn share(self, left: usize) -> Option<Duration> {
        let rest = self.until.saturating_duration_since(Instant::now());
        (rest > WORTH_STARTING).then(|| rest / left.max(1) as u32).map(|share| share.max(WORTH_STARTING))
    }

    fn spent(self) -> bool {
        Instant::now() >= self.until
    }
}

/// A search given less would hardly begin.
const WORTH_STARTING: Duration = Duration::from_millis(100);

/// More GPUs than this, and a search for comparison takes as long as the plan's own.
const SEARCHED_GPUS_MAX: u32 = 2_048;

fn gpus_of(plan: &Plan) -> u32 {
    plan.cluster.clusters.iter().map(|f| f.hosts.len() as u32 * f.gpus).sum()
}

/// The plan's model as a new search should take it: the planner's choices of microbatch and recomputation stand where
/// all replicas share them, and are open again where they do not.
fn open_model(plan: &Plan) -> Model {
    let mut model = plan.model.clone();
    model.micro_batch = Some(plan.micro_batch);
    if plan.replicas.iter().any(|r| r.micro_batch.is_some()) {
        model.micro_batch = None;
    }
    if plan.replicas.iter().any(|r| r.recompute.is_some()) {
        model.recompute = Recompute::Auto;
    }
    model
}

/// What the fullest GPU lacks, in bytes; 0 where all fits.
fn shortage_bytes(plan: &Plan, cost: &Evaluation) -> f64 {
    let memory = words::memory_by_host(&plan.cluster);
    let short = plan.seats().into_iter().zip(&cost.memory_bytes).map(|(seat, bytes)| {
        let has = memory.get(seat.placement.host.as_str()).copied().unwrap_or(f64::INFINITY);
        bytes - has
    });
    short.fold(0.0, f64::max)
}

fn parts(cost: &Evaluation, slowest: &ReplicaCost, microbatches: u32) -> Parts {
    let longest_s = slowest.stages_s.iter().copied().fold(0.0, f64::max);
    let compute_s = f64::from(microbatches) * longest_s;
    // Virtual stages fill faster than their work in one go.
    let fill_s = (slowest.stages_s.iter().sum::<f64>() - longest_s).min(slowest.pipeline_s - compute_s);
    Parts {
        compute_s,
        fill_s,
        boundary_s: slowest.pipeline_s - compute_s - fill_s,
        shared_s: cost.iteration_s - cost.exchange_s - slowest.pipeline_s,
        exchange_s: cost.exchange_s,
    }
}

fn bottleneck(cost: &Evaluation, slowest: &ReplicaCost, parts: &Parts) -> Bottleneck {
    let pipeline_s = slowest.pipeline_s + parts.shared_s;
    let longest =
        |times: &[f64]| (0..times.len()).max_by(|&a, &b| times[a].total_cmp(&times[b])).unwrap_or(0);
    let delays: Vec<f64> = slowest.crossings.iter().map(|c| c.delay_s()).collect();
    match &cost.busiest_pool {
        _ if parts.exchange_s > pipeline_s => Bottleneck::Exchange,
        Some((name, _)) if parts.shared_s > 1e-9 * cost.iteration_s => Bottleneck::Shared(name.clone()),
        _ if parts.boundary_s > parts.compute_s => Bottleneck::Boundary(longest(&delays)),
        _ => Bottleneck::Stage(longest(&slowest.stages_s)),
    }
}

#[cfg(test)]
mod tests;
