//! `model.toml`: the transformer and how it is trained.
//!
//! ```toml
//! [model]
//! kind = "gpt"            # gpt | llama
//! layers = 30
//! hidden = 3072
//! heads = 32
//! vocab = 51200
//! sequence = 2048
//! # What follows is left out where it is as in GPT-2 (gpt) or the first Llama (llama).
//! kv_heads = 8            # heads of keys and values, grouped queries: divides heads          (heads)
//! head_dim = 128          # width of a head                                                   (hidden / heads)
//! mlp_width = 14336       # inner width of the MLP              (4 hidden; llama 8/3 hidden, up to 256 k)
//! tied_embeddings = true  # the head is the embedding's table                                 (false)
//! biases = "qkv"          # none | qkv | attention | all: which matrices have one             (gpt all, llama none)
//! qk_norm = true          # queries and keys of each head are normalised                      (false)
//! positions = 1024        # rows of gpt's table of positions, at least sequence               (sequence)
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
//! Only `global_batch` of `[train]` is needed; the others are as above unless given. Instead of all keys of `[model]`
//! but `sequence`, `huggingface = "config.json"` takes them from a published model (`hugging_face`).
//!
//! Not here: the counts that follow (`count`), FLOPs of a pass and activations (`cost`).

mod check;
mod count;
mod file;
mod hugging_face;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use check::check;

use crate::input::{Document, InputError};

/// Reads, resolves and checks a model.
///
/// # Errors
/// The file is unreadable or not TOML, has unknown or missing keys, names a `config.json` that cannot be used, or a
/// model that cannot be (a size of zero, heads that do not divide the width, …). The error shows the place, in the
/// file that is at fault.
pub fn read(path: &Path) -> Result<Model, InputError> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return Err(hugging_face::bare(path));
    }
    file::resolve(&Document::toml(path)?)
}

/// The resolved model and training settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Architecture.
    pub kind: ModelKind,
    /// Transformer layers.
    pub layers: u32,
    /// Hidden width.
    pub hidden: u32,
    /// Attention heads; divides `hidden` unless `head_dim` is given.
    pub heads: u32,
    /// Heads of keys and values; divides `heads`. `None`: as many as `heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<u32>,
    /// Width of a head; `None`: `hidden / heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<u32>,
    /// Inner width of the MLP; `None`: 4 `hidden` of gpt, 8/3 `hidden` of llama, rounded up to a multiple of 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp_width: Option<u32>,
    /// The head multiplies by the embedding's table.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tied_embeddings: bool,
    /// Which matrices have a bias; `None`: all of gpt, none of llama.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub biases: Option<Biases>,
    /// Queries and keys of each head are normalised (Qwen3).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub qk_norm: bool,
    /// Rows of gpt's table of positions, at least `sequence`; `None`: `sequence`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<u32>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// GPT-2: learned positions, layer norm, MLP of two matrices with GELU.
    Gpt,
    /// Llama, Mistral, Qwen: rotary positions, RMS norm, gated MLP of three matrices (SwiGLU).
    Llama,
}

/// Which of a layer's matrices have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Biases {
    /// None.
    None,
    /// Those of queries, keys and values (Qwen2).
    Qkv,
    /// Those and attention's output.
    Attention,
    /// All, the MLP's as well.
    All,
}

/// Precision of the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW.
    Adamw,
}

/// Activation recomputation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
