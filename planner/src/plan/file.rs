//! `plan.json` as written: its keys are these fields. [`resolve`] reads the inventory and the model that it names.
//!
//! Not here: whether the plan holds together (`check`).

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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    version: u32,
    cluster: NameOr<Cluster>,
    model: NameOr<Model>,
    micro_batch: u32,
    schedule: ScheduleSpec,
    replicas: Vec<Replica>,
    #[serde(default)]
    exchange: Vec<Exchange>,
    predicted: Option<Predicted>,
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

/// One entry of `exchange`; serde cannot both flatten an enum and refuse unknown keys, so it is flat here.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExchangeFile {
    replicas: Vec<u32>,
    kind: KindFile,
    top_k: Option<u32>,
    every: u32,
    #[serde(default)]
    zero1: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindFile {
    Dense,
    Streaming,
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
