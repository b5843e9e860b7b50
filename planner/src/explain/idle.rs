//! GPUs that a plan leaves idle, and why: the first of these that holds.
//!
//! ```text
//!   no link      nothing joins the cluster to those in use, and the model alone does not fit on what is idle
//!   batch        every microbatch of the step already has a replica of its own
//!   memory       the states of one more replica do not fit on the idle GPUs, and longer pipelines are slower
//!   too slow     one microbatch alone, on the fastest pipeline of the idle GPUs, takes longer than the whole step
//!   remainder    fewer GPUs than any replica of this plan uses
//!   exchange     a replica more would end later: it joins an exchange that all wait for
//!   no gain      nothing of the above: the proof says how much they could bring at most
//! ```
//! Limits: reasons are bounds on one replica more, made of idle GPUs; longer pipelines of those in use are covered by the
//! search's proof alone.

use serde::Serialize;

use super::words::used_gpus;
use crate::cost::compute::{PASSES, head_s, layer_s};
use crate::cost::memory::{stage_parameters, state_bytes_per_parameter};
use crate::inventory::Fabric;
use crate::plan::{ExchangeKind, Plan};
use crate::search::evaluate::Evaluation;

/// A cluster with idle GPUs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Idle {
    /// Its name.
    pub cluster: String,
    /// How many are idle.
    pub gpus: u32,
    /// Of how many.
    pub of: u32,
    /// Why.
    pub reason: IdleReason,
}

/// Why GPUs stay idle.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum IdleReason {
    /// Nothing joins it to the clusters in use.
    #[error("no [[link]] joins it to the clusters in use")]
    NoLink,
    /// Every microbatch has a replica.
    #[error("each of the step's {microbatches} microbatches already has a replica of its own")]
    Batch {
        /// Microbatches of a step.
        microbatches: u32,
    },
    /// The states alone are more than these GPUs hold.
    #[error(
        "one more replica needs {:.1} GB for its states alone, these GPUs have {:.1} GB",
        *needed_bytes / 1e9,
        *memory_bytes / 1e9
    )]
    Memory {
        /// Weights, gradients and optimiser.
        needed_bytes: f64,
        /// Of all idle GPUs of the cluster.
        memory_bytes: f64,
    },
    /// One microbatch there takes longer than the step.
    #[error("one microbatch takes at least {:.3} s there, the whole step {:.3} s", *microbatch_s, *step_s)]
    TooSlow {
        /// The least that a microbatch can take, down and back.
        microbatch_s: f64,
        /// The plan's step.
        step_s: f64,
    },
    /// Fewer are left than a replica needs.
    #[error("too few for another replica: the smallest one of this plan uses {smallest} GPUs")]
    Remainder {
        /// GPUs of the smallest replica.
        smallest: u32,
    },
    /// Joining the exchange would cost more than it brings.
    #[error("a replica there would end at {:.3} s at the earliest with the exchange, the step at {:.3} s", *ends_s, *step_s)]
    Exchange {
        /// One microbatch and the exchange.
        ends_s: f64,
        /// The plan's step.
        step_s: f64,
    },
    /// The search found nothing faster with them.
    #[error("no faster plan with them was found; see the proof for what one could bring at most")]
    NoGain,
}

/// Clusters with idle GPUs, in the inventory's order.
pub fn idle(plan: &Plan, cost: &Evaluation) -> Vec<Idle> {
    let used = used_gpus(plan);
    let clusters = plan.cluster.clusters.iter().enumerate();
    let left = clusters.map(|(i, fabric)| (i, fabric, fabric.hosts.len() as u32 * fabric.gpus));
    left.filter(|(i, _, all)| used[*i] < *all)
        .map(|(i, fabric, of)| {
            let gpus = of - used[i];
            Idle { cluster: fabric.name.clone(), gpus, of, reason: reason(plan, cost, &used, i, gpus) }
        })
        .collect()
}

fn reason(plan: &Plan, cost: &Evaluation, used: &[u32], index: usize, gpus: u32) -> IdleReason {
    let fabric = &plan.cluster.clusters[index];
    let step_s = cost.iteration_s;
    let microbatches: u32 = plan.replicas.iter().map(|r| r.microbatches).sum();
    let (microbatch_s, exchange_s) = (microbatch_s(plan, fabric, gpus), least_exchange_s(cost));
    let (needed_bytes, memory_bytes) = (states_bytes(plan), f64::from(gpus) * fabric.gpu.memory_bytes as f64);
    let smallest = plan.replicas.iter().map(replica_gpus).min().unwrap_or(1);
    match () {
        () if used[index] == 0 && !is_joined(plan, used, index) => IdleReason::NoLink,
        () if plan.replicas.len() as u32 == microbatches => IdleReason::Batch { microbatches },
        () if needed_bytes > memory_bytes => IdleReason::Memory { needed_bytes, memory_bytes },
        () if microbatch_s > step_s => IdleReason::TooSlow { microbatch_s, step_s },
        () if gpus < smallest && used[index] > 0 => IdleReason::Remainder { smallest },
        () if microbatch_s + exchange_s > step_s => {
            IdleReason::Exchange { ends_s: microbatch_s + exchange_s, step_s }
        }
        () => IdleReason::NoGain,
    }
}

fn replica_gpus(replica: &crate::plan::Replica) -> u32 {
    replica.stages[..replica.depth()].iter().map(|s| s.ranks.len() as u32).sum()
}

fn is_joined(plan: &Plan, used: &[u32], index: usize) -> bool {
    let clusters = &plan.cluster.clusters;
    let name = &clusters[index].name;
    let in_use = |other: &String| clusters.iter().zip(used).any(|(f, &used)| used > 0 && f.name == *other);
    let joins = |between: &[String; 2]| {
        (between[0] == *name && in_use(&between[1])) || (between[1] == *name && in_use(&between[0]))
    };
    plan.cluster.links.iter().any(|link| joins(&link.between))
}

/// The least that synchronisation takes any replica.
fn least_exchange_s(cost: &Evaluation) -> f64 {
    let least_s = cost.replicas.iter().map(|r| r.sync_s).fold(f64::INFINITY, f64::min);
    if least_s.is_finite() { least_s } else { 0.0 }
}

/// All passes of one microbatch with nothing crossing anything, tensor-parallel as far as a host goes.
fn microbatch_s(plan: &Plan, fabric: &Fabric, gpus: u32) -> f64 {
    let (model, batch) = (&plan.model, smallest_micro_batch(plan));
    let widest = [8, 4, 2, 1]
        .into_iter()
        .find(|t| *t <= gpus && fabric.gpus.is_multiple_of(*t) && model.heads.is_multiple_of(*t));
    let widest = widest.unwrap_or(1);
    let pass = |p| {
        f64::from(model.layers) * layer_s(model, &fabric.gpu, batch, widest, p)
            + head_s(model, &fabric.gpu, batch, widest, p)
    };
    PASSES.iter().map(|&p| pass(p)).sum()
}

fn smallest_micro_batch(plan: &Plan) -> u32 {
    (0..plan.replicas.len()).map(|r| plan.micro_batch_of(r)).min().unwrap_or(plan.micro_batch)
}

/// Weights, gradients and optimiser of a replica as the plan's outer exchange keeps them.
fn states_bytes(plan: &Plan) -> f64 {
    let outer = plan.exchange.iter().map(|e| e.kind).find(|k| *k != ExchangeKind::Dense);
    let parameters = stage_parameters(&plan.model, 0..plan.model.layers);
    // At least: sharded over however many.
    let owners = if plan.exchange.iter().any(|e| e.zero1) { u32::MAX } else { 1 };
    parameters as f64 * state_bytes_per_parameter(plan.model.precision, outer, owners)
}
