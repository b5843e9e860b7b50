//! A uniform plan as a mesh: pipeline x data x tensor, the only shape that Megatron-LM, torchtitan and DeepSpeed know.
//!
//! ```text
//!   rank = t + T (d + D p)      t < T tensor, d < D replica, p < P pipeline rank; v P stages, stage j on p = j mod P
//! ```
//! Sources: Megatron-LM `parallel_state.py` (order tp-cp-ep-dp-pp), torchtitan `parallel_dims.py` (pp, dp, tp),
//! DeepSpeed `PipeModelDataParallelTopology` (pipe, data, model). The processes are started with these numbers on the
//! plan's GPUs (`roster`), so that any placement can be exported.
//!
//! Each rule that a plan may break is a function; the refusal names replica, stage and the way out.

use super::{Refusal, Target};
use crate::model::{Precision, Recompute};
use crate::plan::{Codec, ExchangeKind, Placement, Plan, Replica, ScheduleKind};

/// A plan whose replicas are alike.
#[derive(Debug)]
pub(super) struct Mesh<'a> {
    pub(super) tensor: u32,
    pub(super) pipeline: u32,
    pub(super) data: u32,
    /// Model chunks per rank.
    pub(super) virtual_stages: u32,
    /// Layers of each of the `pipeline * virtual_stages` stages.
    pub(super) layers: Vec<u32>,
    pub(super) micro_batch: u32,
    /// Per replica and step.
    pub(super) microbatches: u32,
    pub(super) recompute: Recompute,
    pub(super) schedule: ScheduleKind,
    /// Optimiser states sharded over the replicas.
    pub(super) zero1: bool,
    plan: &'a Plan,
}

impl<'a> Mesh<'a> {
    /// The mesh of a plan, for a framework that knows nothing else.
    pub(super) fn of(plan: &'a Plan, target: Target) -> Result<Self, Refusal> {
        let first = &plan.replicas[0];
        let (pipeline, virtual_stages) = first.split_ranks();
        check_rounds(plan, target, pipeline)?;
        let tensor = check_tensor(plan, target)?;
        for r in 1..plan.replicas.len() {
            check_like_first(plan, target, r)?;
        }
        check_codecs(plan, target)?;
        let zero1 = check_exchange(plan, target)?;
        Ok(Mesh {
            tensor,
            pipeline: pipeline as u32,
            data: plan.replicas.len() as u32,
            virtual_stages,
            layers: first.stages.iter().map(|s| s.layers[1] - s.layers[0]).collect(),
            micro_batch: plan.micro_batch_of(0),
            microbatches: first.microbatches,
            recompute: check_recompute(plan, target)?,
            schedule: plan.schedule.kind,
            zero1,
            plan,
        })
    }

    /// Replica and pipeline rank and placement of each rank of the mesh, in its order.
    pub(super) fn ranks(&self) -> Vec<(usize, usize, &'a Placement)> {
        let plan = self.plan;
        let cell = |(p, d): (usize, usize)| {
            plan.replicas[d].stages[p].ranks.iter().map(move |placement| (d, p, placement))
        };
        let cells = (0..self.pipeline as usize).flat_map(|p| (0..self.data as usize).map(move |d| (p, d)));
        cells.flat_map(cell).collect()
    }

    /// Whether all stages have the same number of layers.
    pub(super) fn even(&self) -> bool {
        self.layers.iter().all(|n| *n == self.layers[0])
    }
}

/// Stage `j` must sit where stage `j - P` does, in every replica.
fn check_rounds(plan: &Plan, target: Target, pipeline: usize) -> Result<(), Refusal> {
    for (r, replica) in plan.replicas.iter().enumerate() {
        let stages = replica.stages.len();
        let strays = |j: &usize| replica.stages[*j].ranks != replica.stages[j % pipeline].ranks;
        let distinct = replica.split_ranks().0;
        if distinct != pipeline || stages % pipeline != 0 || (0..stages).any(|j| strays(&j)) {
            return Err(target.refuses(
                format!("unlike replicas: replica {r} has {stages} stages on {distinct} pipeline ranks, replica 0 has {pipeline} of them"),
                LIKE,
            ));
        }
    }
    Ok(())
}

fn check_tensor(plan: &Plan, target: Target) -> Result<u32, Refusal> {
    let degree = plan.replicas[0].stages[0].ranks.len();
    for (r, replica) in plan.replicas.iter().enumerate() {
        let unlike = replica.stages.iter().position(|s| s.ranks.len() != degree);
        if let Some(s) = unlike {
            return Err(target.refuses(
                format!(
                    "stage {s} of replica {r} has a tensor-parallel degree of {}, stage 0 of replica 0 of {degree}; it has one degree for all",
                    replica.stages[s].ranks.len()
                ),
                LIKE,
            ));
        }
    }
    Ok(degree as u32)
}

fn check_like_first(plan: &Plan, target: Target, r: usize) -> Result<(), Refusal> {
    let (first, replica) = (&plan.replicas[0], &plan.replicas[r]);
    let unlike = |what: String| Err(target.refuses(format!("unlike replicas: {what}"), LIKE));
    let cuts = |replica: &Replica| replica.stages.iter().map(|s| s.layers).collect::<Vec<_>>();
    if replica.stages.len() != first.stages.len() {
        return unlike(format!(
            "replica 0 has {} stages, replica {r} {}",
            first.stages.len(),
            replica.stages.len()
        ));
    }
    if let Some(s) = (0..first.stages.len()).find(|&s| cuts(first)[s] != cuts(replica)[s]) {
        let [a, b] = first.stages[s].layers;
        let [c, d] = replica.stages[s].layers;
        return unlike(format!("stage {s} has layers {a}..{b} in replica 0, {c}..{d} in replica {r}"));
    }
    if replica.microbatches != first.microbatches {
        let (a, b) = (first.microbatches, replica.microbatches);
        return unlike(format!("replica 0 takes {a} microbatches a step, replica {r} takes {b}"));
    }
    let (a, b) = (plan.micro_batch_of(0), plan.micro_batch_of(r));
    if a != b {
        return unlike(format!("replica 0 has microbatches of {a} sequences, replica {r} of {b}"));
    }
    let (a, b) = (plan.recompute_of(0), plan.recompute_of(r));
    if a != b {
        return unlike(format!("replica 0 recomputes {a:?}, replica {r} {b:?}").to_lowercase());
    }
    Ok(())
}

/// A framework sends activations in the precision of the model and knows no other coding.
fn check_codecs(plan: &Plan, target: Target) -> Result<(), Refusal> {
    let fp32 = plan.model.precision == Precision::Fp32;
    for (r, replica) in plan.replicas.iter().enumerate() {
        for (b, boundary) in replica.boundaries.iter().enumerate() {
            let name = match boundary.codec {
                Codec::None => continue,
                Codec::Bf16 if !fp32 => continue,
                Codec::Bf16 => "bf16 under an fp32 model",
                Codec::Int8 => "int8",
                Codec::Subspace { .. } => "subspace",
            };
            return Err(target.refuses(
                format!(
                    "the boundary behind stage {b} of replica {r} has the codec {name}, and it knows none"
                ),
                "plan with `boundary = \"none\"` under [train] in model.toml",
            ));
        }
    }
    Ok(())
}

/// Whether the optimiser is sharded; one dense exchange over all replicas is all that frameworks have.
fn check_exchange(plan: &Plan, target: Target) -> Result<bool, Refusal> {
    for (e, exchange) in plan.exchange.iter().enumerate() {
        let kind = match exchange.kind {
            ExchangeKind::Dense => continue,
            ExchangeKind::Streaming => "streaming",
            ExchangeKind::Sparse { .. } => "sparse",
        };
        return Err(target.refuses(
            format!("exchange {e} is {kind}; it reduces gradients, dense, in every step"),
            "plan with `exchange = \"dense\"` under [train] in model.toml",
        ));
    }
    match plan.exchange.as_slice() {
        [] => Ok(false),
        [all] if all.replicas.len() == plan.replicas.len() => Ok(all.zero1),
        several => Err(target.refuses(
            format!("{} exchanges join its replicas; it has one, over all", several.len()),
            "write one dense exchange over all replicas into the plan; `narrows simulate` judges it",
        )),
    }
}

fn check_recompute(plan: &Plan, target: Target) -> Result<Recompute, Refusal> {
    match plan.recompute_of(0) {
        Recompute::Auto => Err(target.refuses(
            "what it recomputes is left open (`auto`)",
            "give `recompute` in the plan's replicas or in [train] of model.toml: none, selective or full",
        )),
        given => Ok(given),
    }
}

const LIKE: &str = "plan on like clusters (leave the others out of cluster.toml), or write like replicas into the plan by hand and let `narrows simulate` judge it; `narrows train` and `narrows launch` take the plan as it is";
