//! `model.toml` as written: its keys are these fields. [`resolve`] fills in defaults and reads the configuration named.
//!
//! Not here: whether the model can be (`check`), which must hold for a plan's inline model as well.

use serde::Deserialize;

use super::check::check;
use super::hugging_face::Config;
use super::{Biases, BoundaryChoice, ExchangeChoice, Model, ModelKind, Optimizer, Precision, Recompute};
use crate::input::{Document, InputError};

/// The file; `A` is how it gives the architecture.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile<A> {
    model: A,
    train: Training,
}

/// `[model]` written out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Architecture {
    pub(super) kind: ModelKind,
    pub(super) layers: u32,
    pub(super) hidden: u32,
    pub(super) heads: u32,
    pub(super) kv_heads: Option<u32>,
    pub(super) head_dim: Option<u32>,
    pub(super) mlp_width: Option<u32>,
    #[serde(default)]
    pub(super) tied_embeddings: bool,
    pub(super) biases: Option<Biases>,
    #[serde(default)]
    pub(super) qk_norm: bool,
    pub(super) positions: Option<u32>,
    pub(super) vocab: u32,
    pub(super) sequence: u32,
}

/// `[model]` by reference.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    huggingface: String,
    sequence: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Training {
    global_batch: u32,
    micro_batch: Option<u32>,
    precision: Option<Precision>,
    optimizer: Option<Optimizer>,
    recompute: Option<Recompute>,
    exchange: Option<ExchangeChoice>,
    boundary: Option<BoundaryChoice>,
}

/// The checked model of the file.
pub(super) fn resolve(document: &Document) -> Result<Model, InputError> {
    if document.has(["model", "huggingface"]) {
        return published(document);
    }
    let ModelFile { model, train } = document.decode::<ModelFile<Architecture>>()?;
    let model = train.of(model);
    let section = |key| if document.has(["train", key]) { "train" } else { "model" };
    match check(&model) {
        Ok(()) => Ok(model),
        Err((key, fault)) => Err(document.error(fault.within([section(key)]))),
    }
}

/// A fault is shown in the file that gives the value.
fn published(document: &Document) -> Result<Model, InputError> {
    let ModelFile { model, train } = document.decode::<ModelFile<Published>>()?;
    let config = Config::read(&document.folder().join(model.huggingface))?;
    let model = train.of(config.architecture(model.sequence)?);
    match check(&model) {
        Ok(()) => Ok(model),
        Err((key, fault)) => Err(["model", "train"]
            .into_iter()
            .find(|section| document.has([section, key]))
            .map(|section| document.error(fault.clone().within([section])))
            .unwrap_or_else(|| config.error(key, fault))),
    }
}

impl Training {
    fn of(self, model: Architecture) -> Model {
        Model {
            kind: model.kind,
            layers: model.layers,
            hidden: model.hidden,
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            mlp_width: model.mlp_width,
            tied_embeddings: model.tied_embeddings,
            biases: model.biases,
            qk_norm: model.qk_norm,
            positions: model.positions,
            vocab: model.vocab,
            sequence: model.sequence,
            global_batch: self.global_batch,
            micro_batch: self.micro_batch,
            precision: self.precision.unwrap_or(Precision::Bf16),
            optimizer: self.optimizer.unwrap_or(Optimizer::Adamw),
            recompute: self.recompute.unwrap_or(Recompute::None),
            exchange: self.exchange.unwrap_or(ExchangeChoice::Auto),
            boundary: self.boundary.unwrap_or(BoundaryChoice::Auto),
        }
    }
}
