//! The plan: what the planner decides, what everything after it executes.
//!
//! ```text
//!   search ──> Plan ──> plan.json ──> PlanFile ──check──> Plan ──> schedule, simulate, export, launch, train
//! ```
//! `plan.json` may be written by hand: `cluster` and `model` may then be paths of their TOML files (relative to
//! the plan), `predicted` and `solver` may be absent. Every figure is in SI units. `layers` is half-open; layer 0
//! carries the embedding, the last layer the head. A stage's `ranks` are its tensor-parallel group.
//!
//! Not here: how a plan is found (`search`), what it costs (`cost`, `simulate`).

mod check;
mod file;
mod write;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::input::{Document, InputError};
use crate::inventory::{Cluster, NicClass};
use crate::model::{Model, Recompute};

pub(crate) use file::PlanFile;
pub use write::{WriteError, write};

/// The version of the plan's format that this program writes and reads.
pub const VERSION: u32 = 1;

/// Reads and checks a plan, and the files of its inventory and model where it names them.
///
/// # Errors
/// A file is unreadable, cut off or of another version, has unknown or missing keys, or the plan does not fit its
/// inventory, its model or itself; the error shows the place and names replica, stage and rank.
pub fn read(path: &Path) -> Result<Plan, InputError> {
    let document = Document::json(path)?;
    let plan = file::resolve(&document)?;
    check::check(&plan).map(|()| plan).map_err(|fault| document.error(fault))
}

/// A checked plan: every rank placed once, layers contiguous in each replica, codecs and exchanges well formed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// The inventory the plan was made for.
    pub cluster: Cluster,
    /// The model and how it is trained.
    pub model: Model,
    /// Sequences per microbatch, the same in all replicas.
    pub micro_batch: u32,
    /// The pipeline schedule that every replica runs.
    pub schedule: ScheduleSpec,
    /// The replicas; they need not look alike.
    pub replicas: Vec<Replica>,
    /// How replicas are kept equal; empty with one replica.
    pub exchange: Vec<Exchange>,
    /// What `simulate` gives for this plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
    /// How the plan was found and how near to optimal it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solver: Option<Solver>,
}

/// A pipeline schedule by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSpec {
    /// Which schedule.
    pub kind: ScheduleKind,
    /// Model chunks per rank; 1 unless interleaved.
    pub virtual_stages: u32,
}

/// The pipeline schedules known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScheduleKind {
    /// All forwards, then all backwards.
    #[serde(rename = "gpipe")]
    Gpipe,
    /// One forward, one backward (PipeDream-flush).
    #[serde(rename = "1f1b")]
    OneForwardOneBackward,
}

/// One copy of the model: a pipeline of stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// Microbatches per optimiser step.
    pub microbatches: u32,
    /// Sequences per microbatch where they are not the plan's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// What is recomputed where it is not what the plan's model says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Recompute>,
    /// In pipeline order. With v virtual stages a rank, p v of them: stage `j` has the ranks of stage `j % p`.
    pub stages: Vec<Stage>,
    /// `stages.len() - 1` of them: boundary `i` lies between stages `i` and `i + 1`.
    #[serde(default)]
    pub boundaries: Vec<Boundary>,
}

impl Replica {
    /// Pipeline ranks (tensor-parallel groups) and virtual stages of each.
    pub fn split_ranks(&self) -> (usize, u32) {
        let first = self.stages[0].ranks.first();
        let again = self.stages.iter().skip(1).position(|s| s.ranks.first() == first);
        let ranks = again.map_or(self.stages.len(), |at| at + 1);
        (ranks, (self.stages.len() / ranks) as u32)
    }
}

/// A contiguous run of layers on a tensor-parallel group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Half-open range of layers.
    pub layers: [u32; 2],
    /// The tensor-parallel group.
    pub ranks: Vec<Placement>,
}

/// Where a rank runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Global rank; ranks are `0..world_size`, each once.
    pub rank: u32,
    /// Host name as in the inventory (`<cluster>-<index>` where hosts are not named).
    pub host: String,
    /// GPU of that host.
    pub gpu: u32,
    /// The NIC class its traffic uses inside its fabric.
    pub nic: NicClass,
}

/// What crosses from one stage to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Boundary {
    /// How activations and their gradients are coded.
    pub codec: Codec,
    /// What moves the bytes.
    pub transport: Transport,
}

/// Coding of a boundary's activations and gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Codec {
    /// f32 as they are.
    None,
    /// Rounded to bfloat16.
    Bf16,
    /// 8-bit integers with a scale per row.
    Int8,
    /// Projected onto `rank` directions (arXiv 2506.01260, 2601.02360), sent as bfloat16.
    Subspace {
        /// Dimension of the subspace, below the model's hidden width.
        rank: u32,
    },
}

/// What moves a boundary's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Shared memory inside a host.
    Shm,
    /// TCP.
    Tcp,
    /// RDMA verbs.
    Rdma,
    /// NCCL inside an island.
    Nccl,
}

/// How a set of replicas is kept equal.
///
/// Exchanges may nest: a dense one joins its replicas into an island, and one over all replicas then has the islands as
/// its members, each speaking with one pseudo-gradient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "file::ExchangeFile")]
pub struct Exchange {
    /// Indices into [`Plan::replicas`].
    pub replicas: Vec<u32>,
    /// What is exchanged.
    #[serde(flatten)]
    pub kind: ExchangeKind,
    /// Every how many optimiser steps.
    pub every: u32,
    /// The optimiser's states are sharded over the owners of each parameter (ZeRO stage 1, arXiv 1910.02054): gradients
    /// are reduce-scattered, updated parameters all-gathered. Of dense exchanges only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero1: bool,
}

/// What replicas exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ExchangeKind {
    /// All-reduce of gradients, every step.
    Dense,
    /// Dense pseudo-gradients by fragments (Streaming DiLoCo, arXiv 2501.18512).
    Streaming,
    /// Error-feedback top-k pseudo-gradients (SparseLoCo, arXiv 2508.15706).
    Sparse {
        /// Values kept of every chunk of 4096.
        top_k: u32,
    },
}

/// What `simulate` says of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// Seconds per optimiser step, exchange amortised.
    pub iteration_s: f64,
    /// Tokens per second over all replicas.
    pub tokens_per_s: f64,
    /// Model FLOPs (no recomputation counted) per second and GPU used.
    pub model_flops_per_s_per_gpu: f64,
    /// By rank.
    pub peak_memory_bytes: Vec<u64>,
}

/// How a plan was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Solver {
    /// `optimal`, `gap` or `time_limit`.
    pub status: String,
    /// Closed-form seconds per step of the plan found.
    pub objective_s: f64,
    /// No plan of the stated space is faster than this.
    pub bound_s: f64,
    /// `(objective - bound) / objective`.
    pub gap: f64,
    /// Seconds of search.
    pub wall_s: f64,
}

impl Plan {
    /// Number of ranks over all replicas.
    pub fn world_size(&self) -> u32 {
        self.replicas.iter().flat_map(|r| &r.stages).map(|s| s.ranks.len() as u32).sum()
    }

    /// Sequences per microbatch of a replica.
    pub fn micro_batch_of(&self, replica: usize) -> u32 {
        self.replicas[replica].micro_batch.unwrap_or(self.micro_batch)
    }

    /// What a replica recomputes.
    pub fn recompute_of(&self, replica: usize) -> Recompute {
        self.replicas[replica].recompute.unwrap_or(self.model.recompute)
    }

    /// Every rank with its replica, stage and placement, in rank order.
    pub fn seats(&self) -> Vec<Seat<'_>> {
        let mut seats: Vec<_> = self
            .replicas
            .iter()
            .enumerate()
            .flat_map(|(replica, r)| {
                r.stages.iter().enumerate().flat_map(move |(stage, s)| {
                    s.ranks.iter().map(move |placement| Seat { replica, stage, placement })
                })
            })
            .collect();
        seats.sort_by_key(|s| s.placement.rank);
        seats
    }

    /// Tokens per optimiser step over all replicas.
    pub fn tokens_per_step(&self) -> u64 {
        let sequences =
            |(i, r): (usize, &Replica)| u64::from(r.microbatches) * u64::from(self.micro_batch_of(i));
        self.replicas.iter().enumerate().map(sequences).sum::<u64>() * u64::from(self.model.sequence)
    }
}

/// A rank's place in the plan.
#[derive(Debug, Clone, Copy)]
pub struct Seat<'a> {
    /// Index into [`Plan::replicas`].
    pub replica: usize,
    /// Index into that replica's stages.
    pub stage: usize,
    /// Rank, host and GPU.
    pub placement: &'a Placement,
}
