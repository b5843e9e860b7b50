//! Bytes a rank needs: its parameters' states, and what its microbatches in flight keep for backward.
//!
//! ```text
//!   parameters  `Model`'s counts: of gpt, layer 12 h^2 + 13 h, embedding V h + s h, head 2 h + h V
//!   states      fp32: weight 4 + gradient 4 + AdamW 8 = 16 B      16-bit: 2 + 4 + master 4 + AdamW 8 = 18 B
//!               + 8 B where replicas drift apart (start-of-round copy, error feedback or outer momentum)
//!               ZeRO-1 over d owners: weight + gradient + (the rest) / d, so 8 + 8/d and 6 + 12/d B
//!   saved       16-bit, per layer and microbatch: s b h (10 + 24/t + 5 a s / (h t)) B; selective drops the 5 a s / h,
//!               full keeps the layer's input, 2 s b h; fp32 twice that; the head keeps its logits, 4 s b V
//!   in flight   1F1B, stage i of p: min(m, p - i)
//! ```
//! Sources: Korthikanti et al., arXiv 2205.05198, equations 1 and 2; Megatron-LM's theoretical memory (18 B);
//! Narayanan et al., arXiv 2104.04473 (1F1B). Worked: h 256, s 128, V 256: 789,760 per layer, 98,304, 66,048.
//!
//! Limits: the formula's layer keeps dropout masks; our native engine keeps less. Allocator slack and communication
//! buffers are not counted: leave them out of the inventory's `memory`.

use std::ops::Range;

use crate::model::{Model, Precision, Recompute};
use crate::plan::ExchangeKind;

/// Parameters of the stage that holds `layers`.
pub fn stage_parameters(model: &Model, layers: Range<u32>) -> u64 {
    let embedding = if layers.start == 0 { model.embedding_parameters() } else { 0 };
    let head = if layers.end == model.layers { model.head_parameters() } else { 0 };
    embedding + u64::from(layers.end - layers.start) * model.layer_parameters() + head
}

/// Bytes of states per parameter; `exchange` is `None` where there is one replica, `owners` share the optimiser's
/// states by ZeRO-1 (1: each keeps all).
pub fn state_bytes_per_parameter(precision: Precision, exchange: Option<ExchangeKind>, owners: u32) -> f64 {
    let (kept, sharded) = match precision {
        Precision::Fp32 => (8.0, 8.0),
        Precision::Bf16 | Precision::Fp16 => (6.0, 12.0),
    };
    let drifting = match exchange {
        None | Some(ExchangeKind::Dense) => 0.0,
        Some(ExchangeKind::Streaming | ExchangeKind::Sparse { .. }) => 8.0,
    };
    kept + sharded / f64::from(owners) + drifting
}

/// Bytes that one microbatch keeps for backward in each rank of a tensor-parallel group that holds `layers`.
pub fn saved_bytes(model: &Model, layers: Range<u32>, micro_batch: u32, tensor_parallel: u32) -> f64 {
    let (tokens, t) = (f64::from(micro_batch) * f64::from(model.sequence), f64::from(tensor_parallel));
    let h = f64::from(model.hidden);
    let linear = tokens * h * (10.0 + 24.0 / t);
    let scores = 5.0 * f64::from(model.heads) * tokens * f64::from(model.sequence) / t;
    let layer = match model.recompute {
        Recompute::None | Recompute::Auto => linear + scores,
        Recompute::Selective => linear,
        Recompute::Full => 2.0 * tokens * h,
    };
    let width = if model.precision == Precision::Fp32 { 2.0 } else { 1.0 };
    let logits = if layers.end == model.layers { 4.0 * tokens * f64::from(model.vocab) / t } else { 0.0 };
    f64::from(layers.end - layers.start) * layer * width + logits
}

/// Microbatches that stage `stage` of `stages` holds at once under 1F1B.
pub fn in_flight(microbatches: u32, stages: u32, stage: u32) -> u32 {
    microbatches.min(stages - stage)
}

/// Bytes of a rank of a stage: states and the saved activations of `in_flight` microbatches. `owners` share the
/// optimiser's states by ZeRO-1; 1 where each keeps all of them.
pub fn rank_bytes(
    model: &Model,
    layers: Range<u32>,
    micro_batch: u32,
    tensor_parallel: u32,
    in_flight: u32,
    exchange: Option<ExchangeKind>,
    owners: u32,
) -> f64 {
    let parameters = stage_parameters(model, layers.clone()) as f64;
    let states = parameters * state_bytes_per_parameter(model.precision, exchange, owners);
    let saved = saved_bytes(model, layers, micro_batch, tensor_parallel);
    states / f64::from(tensor_parallel) + f64::from(in_flight) * saved
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::fixture::gpt;

    #[test]
    fn the_headers_worked_numbers() {
        let model = gpt(2, 256);
        assert_eq!(model.layer_parameters(), 789_760);
        assert_eq!(model.embedding_parameters(), 98_304);
        assert_eq!(model.head_parameters(), 66_048);
        assert_eq!(stage_parameters(&model, 0..2), 2 * 789_760 + 98_304 + 66_048);
        assert_eq!(stage_parameters(&model, 0..1), 789_760 + 98_304);
    }

    /// Holmes's models (facts: 3.56, 7.47 and 39.10 billion with a tied head, so one V h less than ours).
    #[test]
    fn agrees_with_published_parameter_counts() {
        for (layers, hidden, billions) in [(30, 3072, 3.56), (36, 4096, 7.47), (48, 8192, 39.10)] {
            let model = Model { vocab: 51_200, sequence: 2048, ..gpt(layers, hidden) };
            let tied = stage_parameters(&model, 0..layers) - 51_200 * u64::from(hidden);
            assert!((tied as f64 / 1e9 - billions).abs() < 0.006, "{tied}");
        }
    }

    #[test]
    fn sparse_exchange_costs_two_more_copies() {
        let sparse = Some(ExchangeKind::Sparse { top_k: 64 });
        assert_eq!(state_bytes_per_parameter(Precision::Fp32, None, 1), 16.0);
        assert_eq!(state_bytes_per_parameter(Precision::Fp32, sparse, 1), 24.0);
        assert_eq!(state_bytes_per_parameter(Precision::Bf16, Some(ExchangeKind::Dense), 1), 18.0);
    }

    /// Megatron-LM's distributed optimiser: 6 + 12/d.
    #[test]
    fn owners_share_what_the_optimiser_keeps() {
        let dense = Some(ExchangeKind::Dense);
        assert_eq!(state_bytes_per_parameter(Precision::Bf16, dense, 4), 9.0);
        assert_eq!(state_bytes_per_parameter(Precision::Fp32, dense, 8), 9.0);
    }

    #[test]
    fn saved_bytes_follow_the_published_formula() {
        let bf16 = Model { precision: Precision::Bf16, ..gpt(4, 256) };
        let sbh = 128.0 * 256.0;
        assert_eq!(saved_bytes(&bf16, 0..1, 1, 1), sbh * (34.0 + 5.0 * 4.0 * 128.0 / 256.0));
        assert_eq!(saved_bytes(&gpt(4, 256), 0..1, 1, 1), 2.0 * saved_bytes(&bf16, 0..1, 1, 1));
        let full = Model { recompute: Recompute::Full, ..bf16.clone() };
        assert_eq!(saved_bytes(&full, 0..3, 1, 1), 3.0 * 2.0 * sbh);
        let head = saved_bytes(&bf16, 3..4, 1, 1) - saved_bytes(&bf16, 2..3, 1, 1);
        assert_eq!(head, 4.0 * 128.0 * 256.0, "logits in f32");
    }

    #[test]
    fn early_stages_hold_more_microbatches() {
        assert_eq!([0, 1, 2, 3].map(|i| in_flight(16, 4, i)), [4, 3, 2, 1]);
        assert_eq!(in_flight(2, 4, 0), 2);
    }
}
