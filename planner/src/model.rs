//! `model.toml`: the transformer and how it is trained.

use serde::{Deserialize, Serialize};

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
