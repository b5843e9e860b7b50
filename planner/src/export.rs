//! A plan in the words of other programs: what they need to train by it, or a refusal that names what they cannot say.
//!
//! ```text
//!   Plan ──mesh──> Mesh ──> megatron, torchtitan, deepspeed        uniform plans: pipeline x data x tensor
//!     │              │
//!     └─────roster───┴────> hosts/*.env, start.sh (all targets), slurm, k8s
//! ```
//! Nothing is approximated: a framework that cannot hold unlike replicas, a cut, a codec or an exchange is not given a
//! plan that resembles ours; [`Refusal`] says which part of the plan it is and how to come by a plan that fits.
//! What a framework does by itself in another way without changing layers, ranks or bytes is told in [`Export::notes`].
//!
//! Not here: starting anything (`narrows launch`).

mod deepspeed;
mod k8s;
mod megatron;
mod mesh;
mod nccl;
mod roster;
mod shell;
mod slurm;
mod torchtitan;
mod write;
mod yaml;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::plan::Plan;
use mesh::Mesh;
use roster::Roster;

pub use write::{WriteError, write};

/// Whom the plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Megatron-LM: arguments of `pretrain_gpt.py`.
    Megatron,
    /// torchtitan: a Python configuration (0.3) and a TOML one (0.2.2).
    Torchtitan,
    /// DeepSpeed: `ds_config.json`, hostfile, arguments of `PipelineModule`.
    Deepspeed,
    /// Any program: torchrun's and NCCL's environment.
    Env,
    /// Slurm: a batch job, heterogeneous where hosts are.
    Slurm,
    /// Kubernetes: a JobSet.
    K8s,
}

/// Which numbers the ranks get in `env`, `slurm` and `k8s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RankOrder {
    /// The plan's own.
    #[default]
    Plan,
    /// Tensor fastest, then data, then pipeline: what Megatron-LM, torchtitan and DeepSpeed expect. Uniform plans only.
    Mesh,
}

/// What the inventory does not know about the machines. Per-cluster settings are by cluster name.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Numbers of the ranks.
    pub order: RankOrder,
    /// Where rank 0 listens.
    pub port: u16,
    /// RDMA devices, as NCCL_IB_HCA takes them.
    pub hca: BTreeMap<String, String>,
    /// Network interfaces, as NCCL_SOCKET_IFNAME takes them.
    pub interface: BTreeMap<String, String>,
    /// Index of the RoCE v2 address in the GID table; NCCL finds it by itself where it is not given.
    pub gid_index: BTreeMap<String, u8>,
    /// Name of the job or JobSet.
    pub name: String,
    /// Kubernetes only: image and command of the containers, the label that names a node's cluster, RDMA resource.
    pub container: Option<Container>,
}

/// What a pod runs, and on which nodes.
#[derive(Debug, Clone)]
pub struct Container {
    /// Image of the containers; has bash and, where NICs differ, Python with PyTorch.
    pub image: String,
    /// Command and arguments of a rank.
    pub command: Vec<String>,
    /// Label of the nodes whose value is the name of their cluster.
    pub node_label: String,
    /// Resource that stands for RDMA devices, asked for on hosts with InfiniBand or RoCE.
    pub rdma_resource: Option<String>,
}

/// One file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// Relative, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// What the other program needs.
#[derive(Debug, Clone, Serialize)]
pub struct Export {
    /// Whom it is for.
    pub target: Target,
    /// To be laid into one folder; the first is what a person reads first.
    pub files: Vec<File>,
    /// How to start it.
    pub start: String,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// The target cannot say what the plan says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{target} cannot hold this plan: {what}\n  help: {help}")]
pub struct Refusal {
    /// The program.
    pub target: &'static str,
    /// The part of the plan that it has no word for.
    pub what: String,
    /// How to come by a plan that it can hold.
    pub help: String,
}

/// The plan in the words of `target`.
///
/// # Errors
/// The target cannot say what the plan says, or a setting that it needs is absent or of no cluster.
pub fn export(plan: &Plan, target: Target, settings: &Settings) -> Result<Export, Refusal> {
    known_clusters(plan, target, settings)?;
    match target {
        Target::Megatron => megatron::export(plan, settings),
        Target::Torchtitan => torchtitan::export(plan, settings),
        Target::Deepspeed => deepspeed::export(plan, settings),
        Target::Env => env(plan, settings),
        Target::Slurm => slurm::export(plan, settings),
        Target::K8s => k8s::export(plan, settings),
    }
}

impl Target {
    /// Its name, as messages have it.
    pub fn name(self) -> &'static str {
        match self {
            Target::Megatron => "Megatron-LM",
            Target::Torchtitan => "torchtitan",
            Target::Deepspeed => "DeepSpeed",
            Target::Env => "the environment",
            Target::Slurm => "Slurm",
            Target::K8s => "Kubernetes",
        }
    }

    fn refuses(self, what: impl Into<String>, help: impl Into<String>) -> Refusal {
        Refusal { target: self.name(), what: what.into(), help: help.into() }
    }
}

impl File {
    fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }
}

/// A misspelt cluster would silently set nothing.
fn known_clusters(plan: &Plan, target: Target, settings: &Settings) -> Result<(), Refusal> {
    let known: Vec<&str> = plan.cluster.clusters.iter().map(|f| f.name.as_str()).collect();
    let named = settings.hca.keys().chain(settings.interface.keys()).chain(settings.gid_index.keys());
    match named.into_iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(target.refuses(
            format!("a setting is for cluster `{name}`, which the plan does not have"),
            crate::input::did_you_mean(name, &known),
        )),
    }
}

/// The roster in the order that the settings ask for.
fn roster(plan: &Plan, target: Target, settings: &Settings) -> Result<Roster, Refusal> {
    match settings.order {
        RankOrder::Plan => Ok(Roster::of_plan(plan)),
        RankOrder::Mesh => Mesh::of(plan, target).map(|mesh| Roster::new(plan, &mesh.ranks())),
    }
}

fn env(plan: &Plan, settings: &Settings) -> Result<Export, Refusal> {
    let roster = roster(plan, Target::Env, settings)?;
    Ok(Export {
        target: Target::Env,
        files: roster.files(settings),
        start: format!("on every host: bash DIR/start.sh {}YOUR_PROGRAM", roster.python("DIR")),
        notes: roster.notes(settings),
    })
}

#[cfg(test)]
mod tests;
