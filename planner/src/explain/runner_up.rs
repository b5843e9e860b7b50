//! Other strategies for the same model and inventory, each judged like the plan: by the closed form and by the
//! simulator.
//!
//! | strategy | is |
//! | --- | --- |
//! | Megatron-uniform, pure DP, Holmes's rules | plans made by those rules (`strategy`) |
//! | everything on the best cluster, one replica, everything sparse | searches of that part of the space |
//! | same stages, even layers | the plan, its layers spread evenly |
//!
//! The searches share a budget, and stop at a gap of 2 %; where one would take as long as the plan itself (more than
//! 2,048 GPUs), it is left out and says so.

use std::time::Duration;

use serde::Serialize;

use super::strategy::{Attempt, holmes, uniform};
use super::words::gigabytes;
use super::{Budget, SEARCHED_GPUS_MAX, gpus_of, open_model, shortage_bytes};
use crate::cost::compute::achieved_flops_per_s;
use crate::model::{ExchangeChoice, Model};
use crate::plan::Plan;
use crate::search::evaluate::evaluate;
use crate::search::{EngineLimits, Scope, SearchError, SearchOptions, search_within};
use crate::simulate::quick;

/// Another plan, for comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunnerUp {
    /// The strategy.
    pub name: String,
    /// What it gives, or why there is no such plan.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What a strategy gives.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A plan.
    Gives {
        /// Closed-form seconds per step.
        step_s: f64,
        /// The simulator's; `None` where it refuses the plan.
        simulated_s: Option<f64>,
        /// GPUs that it uses.
        gpus: u32,
    },
    /// None, and why.
    Impossible(String),
}

impl RunnerUp {
    /// Closed-form seconds per step.
    pub fn step_s(&self) -> Option<f64> {
        match self.outcome {
            Outcome::Gives { step_s, .. } => Some(step_s),
            Outcome::Impossible(_) => None,
        }
    }
}

/// All of them, the fastest first; what cannot be comes last.
pub fn runners_up(
    plan: &Plan,
    limits: &EngineLimits,
    options: &SearchOptions,
    budget: Budget,
) -> Vec<RunnerUp> {
    let model = open_model(plan);
    let grids = Budget::of(budget.share(3).unwrap_or_default());
    let mut all = vec![
        rule("Megatron-uniform, even layers", uniform(plan, &model, u32::MAX, grids)),
        rule("pure data parallelism", uniform(plan, &model, 1, budget)),
    ];
    if plan.cluster.clusters.len() > 1 {
        all.push(rule("Holmes's rules", holmes(plan, &model, budget)));
    }
    all.extend(even(plan));
    let searches = searches(plan, &model, limits);
    for (index, search) in searches.iter().enumerate() {
        let time = budget.share(searches.len() - index);
        all.push(searched(plan, limits, options, search, time));
    }
    all.sort_by(|a, b| a.step_s().unwrap_or(f64::INFINITY).total_cmp(&b.step_s().unwrap_or(f64::INFINITY)));
    all
}

fn rule(name: &str, attempt: Attempt) -> RunnerUp {
    let outcome = match attempt {
        Attempt::Plan(plan, step_s) => gives(&plan, step_s),
        Attempt::Short(bytes) => {
            Outcome::Impossible(format!("does not fit, {} short on a GPU", gigabytes(bytes)))
        }
        Attempt::Nothing(why) => Outcome::Impossible(why),
    };
    RunnerUp { name: name.into(), outcome }
}

fn gives(plan: &Plan, step_s: f64) -> Outcome {
    let simulated_s = quick(plan).ok().map(|q| q.predicted.iteration_s);
    Outcome::Gives { step_s, simulated_s, gpus: plan.world_size() }
}

/// A part of the space.
struct Part {
    name: String,
    model: Model,
    scope: Scope,
}

fn searches(plan: &Plan, model: &Model, limits: &EngineLimits) -> Vec<Part> {
    let whole = Scope::whole(&plan.cluster);
    let part = |name: &str, scope: Scope| Part { name: name.into(), model: model.clone(), scope };
    let mut parts = Vec::new();
    if plan.cluster.clusters.len() > 1 {
        let best = best_cluster(plan);
        let name = format!("{} alone", plan.cluster.clusters[best].name);
        parts.push(part(&name, Scope { clusters: vec![best], ..whole.clone() }));
    }
    if plan.replicas.len() > 1 {
        parts.push(part("one replica", Scope { max_replicas: 1, ..whole.clone() }));
    }
    if limits.exchanges.contains(&ExchangeChoice::Sparse) && model.exchange == ExchangeChoice::Auto {
        let sparse = part("everything sparse", whole);
        parts.push(Part { model: Model { exchange: ExchangeChoice::Sparse, ..model.clone() }, ..sparse });
    }
    parts
}

/// That of the most compute.
fn best_cluster(plan: &Plan) -> usize {
    let clusters = &plan.cluster.clusters;
    let flops = |i: usize| {
        let fabric = &clusters[i];
        let gpus = fabric.hosts.len() as f64 * f64::from(fabric.gpus);
        gpus * achieved_flops_per_s(&fabric.gpu, plan.model.precision)
    };
    (0..clusters.len()).rev().max_by(|&a, &b| flops(a).total_cmp(&flops(b))).unwrap_or(0)
}

fn searched(
    plan: &Plan,
    limits: &EngineLimits,
    options: &SearchOptions,
    part: &Part,
    time: Option<Duration>,
) -> RunnerUp {
    let skipped = |why: &str| Outcome::Impossible(format!("not searched: {why}"));
    let outcome = match time {
        _ if part.scope.clusters.len() > 1 && gpus_of(plan) > SEARCHED_GPUS_MAX => {
            skipped("would take as long as the plan")
        }
        None => skipped("no time left"),
        Some(time_limit) => {
            let options = SearchOptions { gap: options.gap.max(0.02), time_limit, ..options.clone() };
            match search_within(&plan.cluster, &part.model, limits, &options, &part.scope) {
                Ok(found) => {
                    gives(&found.plan, found.plan.solver.as_ref().map_or(f64::NAN, |s| s.objective_s))
                }
                Err(SearchError::DoesNotFit { short_bytes, .. }) => Outcome::Impossible(format!(
                    "does not fit, {} short on a GPU",
                    gigabytes(short_bytes as f64)
                )),
                Err(SearchError::TimeLimit { limit_s }) => {
                    skipped(&format!("nothing found in {limit_s:.1} s"))
                }
                Err(error) => Outcome::Impossible(error.to_string()),
            }
        }
    };
    RunnerUp { name: part.name.clone(), outcome }
}

/// The same stages with layers spread evenly, whatever the GPU; `None` if they are already.
fn even(plan: &Plan) -> Option<RunnerUp> {
    let mut even = plan.clone();
    for replica in &mut even.replicas {
        let (stages, layers) = (replica.stages.len() as u32, plan.model.layers);
        let cut = |i: u32| i * (layers / stages) + i.min(layers % stages);
        for (i, stage) in (0..).zip(&mut replica.stages) {
            stage.layers = [cut(i), cut(i + 1)];
        }
    }
    if even.replicas == plan.replicas {
        return None;
    }
    let cost = evaluate(&even).ok()?;
    let outcome = match shortage_bytes(&even, &cost) {
        bytes if bytes > 0.0 => {
            Outcome::Impossible(format!("does not fit, {} short on a GPU", gigabytes(bytes)))
        }
        _ => gives(&even, cost.iteration_s),
    };
    Some(RunnerUp { name: "same stages, even layers".into(), outcome })
}
