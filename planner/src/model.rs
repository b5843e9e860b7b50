//! `model.toml`: the transformer and how it is trained.
//!
//! ```toml
//! [model]
//! kind = "gpt"            # gpt | llama
//! layers = 30
//! hidden = 3072
//! heads = 32              # divides hidden
//! vocab = 51200
//! sequence = 2048
//!
//! [train]
//! global_batch = 768      # sequences per optimiser step over all replicas
//! micro_batch = 4         # left out: the planner chooses; else divides global_batch
//! precision = "bf16"      # bf16 | fp16 | fp32
//! optimizer = "adamw"
//! recompute = "none"      # none | selective | full | auto
//! exchange = "auto"       # dense | streaming | sparse | auto
//! boundary = "auto"       # none | bf16 | int8 | subspace | auto
//! ```
//! Only `global_batch` of `[train]` is needed; the others are as above unless given.
//!
//! Parameters, with hidden width h, vocabulary V, sequence s and MLP width f:
//!
//! ```text
//!            layer                                             embedding    head
//!   gpt      12 h^2 + 13 h     (f = 4h, biases everywhere)     V h + s h    2 h + V h   (untied, without bias)
//!   llama    4 h^2 + 3 h f + 2 h   (f = 8h/3, up to k * 256)   V h          h + V h
//! ```
//! Sources: Radford et al. 2019 (GPT-2) and Touvron et al. 2023 (arXiv 2302.13971). A gpt layer is norm 2h, qkv
//! 3h^2 + 3h, projection h^2 + h, norm 2h, MLP 4h^2 + 4h and 4h^2 + h.
//!
//! Limits: every query head has its own key and value.
//!
//! Not here: FLOPs and activations (`cost`).

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::input::{Document, Fault, InputError};

/// Reads, resolves and checks a model.
///
/// # Errors
/// The file is unreadable or not TOML, has unknown or missing keys, or a model that cannot be (a size of zero, heads
/// that do not divide the width, …). The error shows the place.
pub fn read(path: &Path) -> Result<Model, InputError> {
    let document = Document::toml(path)?;
    let model = document.decode::<ModelFile>()?.resolve();
    let section = |key: &str| if document.has(["model", key]) { "model" } else { "train" };
    match check(&model) {
        Ok(()) => Ok(model),
        Err((key, fault)) => Err(document.error(fault.within([section(key)]))),
    }
}

/// The resolved model and training settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Architecture.
    pub kind: ModelKind,
    /// Transformer layers.
    pub layers: u32,
    /// Hidden width.
    pub hidden: u32,
    /// Attention heads; divides `hidden`.
    pub heads: u32,
    /// Vocabulary size.
    pub vocab: u32,
    /// Tokens per sequence.
    pub sequence: u32,
    /// Sequences per optimiser step over all replicas.
    pub global_batch: u32,
    /// Sequences per microbatch; `None`: the planner chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// Precision of the arithmetic.
    pub precision: Precision,
    /// Optimiser.
    pub optimizer: Optimizer,
    /// What is recomputed in the backward pass.
    pub recompute: Recompute,
    /// What may be used between replicas.
    pub exchange: ExchangeChoice,
    /// What may be used between stages.
    pub boundary: BoundaryChoice,
}

/// Transformer architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// GPT-2: learned positions, layer norm, GELU MLP of 4x width, untied head.
    Gpt,
    /// Llama: rotary positions, RMS norm, SwiGLU.
    Llama,
}

/// Precision of the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16 with f32 accumulation.
    Bf16,
    /// float16 with f32 accumulation.
    Fp16,
    /// float32.
    Fp32,
}

/// Optimisers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW.
    Adamw,
}

/// Activation recomputation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Keep everything.
    None,
    /// Recompute attention scores.
    Selective,
    /// Keep only each layer's input.
    Full,
    /// The planner chooses.
    Auto,
}

/// What may be used between replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeChoice {
    /// Gradient all-reduce.
    Dense,
    /// Streaming DiLoCo.
    Streaming,
    /// SparseLoCo.
    Sparse,
    /// The planner chooses.
    Auto,
}

/// What may be used between stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundaryChoice {
    /// f32.
    None,
    /// bfloat16.
    Bf16,
    /// 8-bit integers.
    Int8,
    /// Subspace projection.
    Subspace,
    /// The planner chooses.
    Auto,
}

impl Model {
    /// Parameters of the whole model.
    pub fn parameters(&self) -> u64 {
        u64::from(self.layers) * self.layer_parameters()
            + self.embedding_parameters()
            + self.head_parameters()
    }

    /// Parameters of one layer.
    pub fn layer_parameters(&self) -> u64 {
        let h = u64::from(self.hidden);
        match self.kind {
            ModelKind::Gpt => 12 * h * h + 13 * h,
            ModelKind::Llama => 4 * h * h + 3 * h * self.mlp_width() + 2 * h,
        }
    }

    /// Parameters of the embedding, which layer 0 carries.
    pub fn embedding_parameters(&self) -> u64 {
        let positions = match self.kind {
            ModelKind::Gpt => u64::from(self.sequence),
            ModelKind::Llama => 0,
        };
        (u64::from(self.vocab) + positions) * u64::from(self.hidden)
    }

    /// Parameters of the final norm and the untied head, which the last layer carries.
    pub fn head_parameters(&self) -> u64 {
        let norm = match self.kind {
            ModelKind::Gpt => 2,
            ModelKind::Llama => 1,
        };
        (u64::from(self.vocab) + norm) * u64::from(self.hidden)
    }

    /// Inner width of the MLP.
    pub fn mlp_width(&self) -> u64 {
        let h = u64::from(self.hidden);
        match self.kind {
            ModelKind::Gpt => 4 * h,
            ModelKind::Llama => (8 * h / 3).next_multiple_of(256),
        }
    }
}

/// `model.toml` as written: its keys are these fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    model: Architecture,
    train: Training,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Architecture {
    kind: ModelKind,
    layers: u32,
    hidden: u32,
    heads: u32,
    vocab: u32,
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

impl ModelFile {
    fn resolve(self) -> Model {
        let ModelFile { model, train } = self;
        Model {
            kind: model.kind,
            layers: model.layers,
            hidden: model.hidden,
            heads: model.heads,
            vocab: model.vocab,
            sequence: model.sequence,
            global_batch: train.global_batch,
            micro_batch: train.micro_batch,
            precision: train.precision.unwrap_or(Precision::Bf16),
            optimizer: train.optimizer.unwrap_or(Optimizer::Adamw),
            recompute: train.recompute.unwrap_or(Recompute::None),
            exchange: train.exchange.unwrap_or(ExchangeChoice::Auto),
            boundary: train.boundary.unwrap_or(BoundaryChoice::Auto),
        }
    }
}

/// Far above any model, far below where a count of parameters or FLOPs would overflow.
const SIZE_MAX: u32 = 1 << 24;
const WIDTH_MAX: u32 = 1 << 20;
const LAYERS_MAX: u32 = 1 << 16;

/// What a model must hold whoever wrote it; the fault comes with the key that it is of.
pub(crate) fn check(model: &Model) -> Result<(), (&'static str, Fault)> {
    within("layers", model.layers, LAYERS_MAX)?;
    within("hidden", model.hidden, WIDTH_MAX)?;
    within("heads", model.heads, WIDTH_MAX)?;
    within("vocab", model.vocab, SIZE_MAX)?;
    within("sequence", model.sequence, SIZE_MAX)?;
    within("global_batch", model.global_batch, SIZE_MAX)?;
    if !model.hidden.is_multiple_of(model.heads) {
        let what = format!("{} heads do not divide the hidden width {}", model.heads, model.hidden);
        return Err(("heads", Fault::at(["heads"], what).hint(nearest_divisor(model.heads, model.hidden))));
    }
    let Some(micro_batch) = model.micro_batch else { return Ok(()) };
    within("micro_batch", micro_batch, SIZE_MAX)?;
    if !model.global_batch.is_multiple_of(micro_batch) {
        let what = format!(
            "a micro_batch of {micro_batch} does not divide the global_batch of {}",
            model.global_batch
        );
        let hint = nearest_divisor(micro_batch, model.global_batch);
        return Err(("micro_batch", Fault::at(["micro_batch"], what).hint(hint)));
    }
    Ok(())
}

fn within(key: &'static str, value: u32, max: u32) -> Result<(), (&'static str, Fault)> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err((key, Fault::at([key], format!("`{key}` is {value}, expected 1 to {max}"))))
}

fn nearest_divisor(wrong: u32, whole: u32) -> String {
    let near =
        (1..=whole).filter(|d| whole.is_multiple_of(*d)).min_by_key(|d| d.abs_diff(wrong)).unwrap_or(1);
    format!("{near} would divide {whole}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(kind: ModelKind, layers: u32, hidden: u32, vocab: u32, sequence: u32) -> Model {
        let model = Architecture { kind, layers, hidden, heads: 32, vocab, sequence };
        let train = Training {
            global_batch: 1,
            micro_batch: None,
            precision: None,
            optimizer: None,
            recompute: None,
            exchange: None,
            boundary: None,
        };
        ModelFile { model, train }.resolve()
    }

    #[test]
    fn published_models_have_their_published_parameters() {
        // Touvron et al. 2023, table 2 (6.7 B, exactly this many), and GPT-2's layers with an untied head.
        assert_eq!(model(ModelKind::Llama, 32, 4096, 32_000, 2048).parameters(), 6_738_415_616);
        let tied = |m: &Model| m.parameters() - u64::from(m.vocab) * u64::from(m.hidden);
        assert_eq!(tied(&model(ModelKind::Gpt, 12, 768, 50_257, 1024)), 124_439_808);
    }

    #[test]
    fn a_gpt_layer_is_the_sum_of_its_tensors() {
        let h = 96;
        let tensors =
            2 * h + (3 * h * h + 3 * h) + (h * h + h) + 2 * h + (4 * h * h + 4 * h) + (4 * h * h + h);
        assert_eq!(model(ModelKind::Gpt, 1, 96, 256, 64).layer_parameters(), tensors);
        assert_eq!(model(ModelKind::Gpt, 1, 96, 256, 64).embedding_parameters(), 256 * h + 64 * h);
        assert_eq!(model(ModelKind::Gpt, 1, 96, 256, 64).head_parameters(), 2 * h + h * 256);
    }

    #[test]
    fn the_largest_model_allowed_can_be_counted() {
        for kind in [ModelKind::Gpt, ModelKind::Llama] {
            let largest = model(kind, LAYERS_MAX, WIDTH_MAX, SIZE_MAX, SIZE_MAX);
            assert!(check(&largest).is_ok());
            assert!(largest.parameters() > 1 << 56);
        }
    }
}
