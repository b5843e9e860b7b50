//! `plan.json` as written: its keys are these fields. [`resolve`] reads the inventory and the model that it names.
//!
//! Not here: whether the plan holds together (`check`).

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Exchange, ExchangeKind, Plan, Predicted, Replica, ScheduleSpec, Solver, VERSION};
use crate::input::{Document, Fault, InputError, NameOr};
use crate::inventory::{self, Cluster};
use crate::model::{self, Model};

/// The one key that is the same in every version.
#[derive(Debug, Deserialize)]
struct VersionFile {
    version: u32,
}

/// A plan of narrows: which ranks hold which layers, what crosses between them and how. Every quantity is in SI units.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "plan.json")]
pub(crate) struct PlanFile {
    /// Format version.
    #[schemars(extend("const" = VERSION))]
    version: u32,
    /// The inventory that the plan was made for, or the path of its TOML file, relative to the plan.
    cluster: NameOr<Cluster>,
    /// The model and how it is trained, or the path of its TOML file, relative to the plan.
    model: NameOr<Model>,
    /// Sequences per microbatch, where a replica does not say otherwise.
    micro_batch: u32,
    /// The pipeline schedule that every replica runs.
    schedule: ScheduleSpec,
    /// The replicas; they need not look alike.
    replicas: Vec<Replica>,
    /// How replicas are kept equal; empty with one replica.
    #[serde(default)]
    exchange: Vec<Exchange>,
    /// What `narrows simulate` gives for this plan.
    predicted: Option<Predicted>,
    /// How the plan was found and how near to optimal it is.
    solver: Option<Solver>,
}

/// The plan with inventory and model, each checked by itself.
pub(super) fn resolve(document: &Document) -> Result<Plan, InputError> {
    let VersionFile { version } = document.decode()?;
    if version != VERSION {
        let what = format!("the plan is of version {version}, expected {VERSION}");
        return Err(document.error(Fault::at(["version"], what).hint("make it again with `narrows plan`")));
    }
    let file: PlanFile = document.decode()?;
    Ok(Plan {
        version: file.version,
        cluster: cluster(file.cluster, document)?,
        model: model(file.model, document)?,
        micro_batch: file.micro_batch,
        schedule: file.schedule,
        replicas: file.replicas,
        exchange: file.exchange,
        predicted: file.predicted,
        solver: file.solver,
    })
}

fn cluster(given: NameOr<Cluster>, document: &Document) -> Result<Cluster, InputError> {
    let cluster = match given {
        NameOr::Name(path) => return inventory::read(&document.folder().join(path)),
        NameOr::Table(cluster) => cluster,
    };
    inventory::check(&cluster).map_err(|fault| document.error(fault.within(["cluster"])))?;
    Ok(cluster)
}

fn model(given: NameOr<Model>, document: &Document) -> Result<Model, InputError> {
    let model = match given {
        NameOr::Name(path) => return model::read(&document.folder().join(path)),
        NameOr::Table(model) => model,
    };
    model::check(&model).map_err(|(_, fault)| document.error(fault.within(["model"])))?;
    Ok(model)
}

// serde cannot both flatten an enum and refuse unknown keys, so it is flat here.
/// How a set of replicas is kept equal.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Exchange", extend("allOf" = [
    {
        "if": { "properties": { "kind": { "const": "sparse" } } },
        "then": { "properties": { "top_k": { "type": "integer" } }, "required": ["top_k"] },
        "else": { "properties": { "top_k": { "type": "null" } } }
    },
    {
        "if": { "properties": { "zero1": { "const": true } }, "required": ["zero1"] },
        "then": { "properties": { "kind": { "const": "dense" } } }
    }
]))]
pub(super) struct ExchangeFile {
    /// Indices into the plan's replicas.
    replicas: Vec<u32>,
    /// What is exchanged.
    kind: KindFile,
    /// Of a sparse exchange: values kept of every chunk of 4096.
    top_k: Option<u32>,
    /// Every how many optimiser steps.
    every: u32,
    /// Of a dense exchange: the optimiser's states are sharded over the owners of each parameter (ZeRO stage 1).
    #[serde(default)]
    zero1: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum KindFile {
    /// All-reduce of gradients, every step.
    Dense,
    /// Dense pseudo-gradients by fragments (Streaming DiLoCo).
    Streaming,
    /// Error-feedback top-k pseudo-gradients (SparseLoCo).
    Sparse,
}

impl TryFrom<ExchangeFile> for Exchange {
    type Error = &'static str;

    fn try_from(file: ExchangeFile) -> Result<Self, Self::Error> {
        let kind = match (file.kind, file.top_k) {
            (KindFile::Dense, None) => ExchangeKind::Dense,
            (KindFile::Streaming, None) => ExchangeKind::Streaming,
            (KindFile::Sparse, Some(top_k)) => ExchangeKind::Sparse { top_k },
            (KindFile::Sparse, None) => return Err("missing key `top_k`: a sparse exchange needs it"),
            (_, Some(_)) => return Err("`top_k` is of sparse exchanges only"),
        };
        if file.zero1 && kind != ExchangeKind::Dense {
            return Err("`zero1` is of dense exchanges only");
        }
        Ok(Exchange { replicas: file.replicas, kind, every: file.every, zero1: file.zero1 })
    }
}
