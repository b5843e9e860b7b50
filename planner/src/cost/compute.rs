//! FLOPs and seconds of a stage's passes over one microbatch.
//!
//! ```text
//!   forward, per layer       24 b s h^2  (linear)  +  4 b s^2 h  (attention)        head  2 b s h V
//!   gradient of the input    linear x 1  +  attention x 2                           head  x 1
//!   gradient of the weights  linear x 1                                             head  x 1
//! ```
//! b sequences of s tokens, width h, vocabulary V; a multiply-add counts 2. Attention is counted whole, not its
//! causal half. Its products have no weights, so both their gradients fall to the input pass; backward is twice
//! forward in sum. Recomputation adds to the input pass: `full` a layer's forward, `selective` its attention.
//! Source: Korthikanti et al., arXiv 2205.05198, appendix A. Llama: SwiGLU's three matrices of width 8h/3 make the
//! same 16 b s h^2 as GPT's two of 4h. Worked: b 1, s 128, h 256, V 256, one layer: 0.2181 GFLOP forward.
//!
//! Limits: embedding lookups, norms and activations are free (bound by memory, a few percent); `efficiency` does not
//! depend on the microbatch's size.

use std::ops::Range;

use crate::inventory::Gpu;
use crate::model::{Model, Precision, Recompute};

/// One of the three passes of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Input to output.
    Forward,
    /// Gradient of the input, with what is recomputed for it.
    BackwardInput,
    /// Gradient of the weights.
    BackwardWeight,
}

/// All passes, in the order of a step.
pub const PASSES: [Pass; 3] = [Pass::Forward, Pass::BackwardInput, Pass::BackwardWeight];

/// FLOPs of one layer's pass over a microbatch, recomputation included.
pub fn layer_flops(model: &Model, micro_batch: u32, pass: Pass) -> f64 {
    let (tokens, h) = (tokens(model, micro_batch), f64::from(model.hidden));
    let linear = 24.0 * tokens * h * h;
    let attention = 4.0 * tokens * f64::from(model.sequence) * h;
    match pass {
        Pass::Forward => linear + attention,
        Pass::BackwardInput => linear + 2.0 * attention + recomputed(model.recompute, linear, attention),
        Pass::BackwardWeight => linear,
    }
}

/// FLOPs of the head's pass over a microbatch: one product, the same for each pass.
pub fn head_flops(model: &Model, micro_batch: u32) -> f64 {
    2.0 * tokens(model, micro_batch) * f64::from(model.hidden) * f64::from(model.vocab)
}

/// FLOPs of a pass of the stage that holds `layers`; the one with the last layer has the head.
pub fn stage_flops(model: &Model, layers: Range<u32>, micro_batch: u32, pass: Pass) -> f64 {
    let head = if layers.end == model.layers { head_flops(model, micro_batch) } else { 0.0 };
    f64::from(layers.end - layers.start) * layer_flops(model, micro_batch, pass) + head
}

/// FLOPs of all passes of the whole model over a microbatch, without what is recomputed: "model FLOPs".
pub fn model_flops(model: &Model, micro_batch: u32) -> f64 {
    let plain = Model { recompute: Recompute::None, ..model.clone() };
    PASSES.iter().map(|&pass| stage_flops(&plain, 0..model.layers, micro_batch, pass)).sum()
}

/// What a GPU achieves: its peak in this precision times its efficiency.
pub fn achieved_flops_per_s(gpu: &Gpu, precision: Precision) -> f64 {
    let peak = match precision {
        Precision::Bf16 => gpu.bf16_flops_per_s,
        Precision::Fp16 => gpu.fp16_flops_per_s,
        Precision::Fp32 => gpu.fp32_flops_per_s,
    };
    peak * gpu.efficiency
}

/// Seconds of one layer's pass on each GPU of a tensor-parallel group; [`super::tensor`] comes on top.
pub fn layer_s(model: &Model, gpu: &Gpu, micro_batch: u32, tensor_parallel: u32, pass: Pass) -> f64 {
    let rate = achieved_flops_per_s(gpu, model.precision) * f64::from(tensor_parallel);
    layer_flops(model, micro_batch, pass) / rate
}

/// Seconds of the head's pass on each GPU of a tensor-parallel group.
pub fn head_s(model: &Model, gpu: &Gpu, micro_batch: u32, tensor_parallel: u32, _pass: Pass) -> f64 {
    let rate = achieved_flops_per_s(gpu, model.precision) * f64::from(tensor_parallel);
    head_flops(model, micro_batch) / rate
}

/// Seconds of a pass of the stage that holds `layers` on each GPU of its tensor-parallel group.
pub fn pass_s(
    model: &Model,
    gpu: &Gpu,
    layers: Range<u32>,
    micro_batch: u32,
    tensor_parallel: u32,
    pass: Pass,
) -> f64 {
    let head = match layers.end == model.layers {
        true => head_s(model, gpu, micro_batch, tensor_parallel, pass),
        false => 0.0,
    };
    f64::from(layers.end - layers.start) * layer_s(model, gpu, micro_batch, tensor_parallel, pass) + head
}

fn tokens(model: &Model, micro_batch: u32) -> f64 {
    f64::from(micro_batch) * f64::from(model.sequence)
}

fn recomputed(recompute: Recompute, linear: f64, attention: f64) -> f64 {
    match recompute {
        Recompute::None | Recompute::Auto => 0.0,
        Recompute::Selective => attention,
        Recompute::Full => linear + attention,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::fixture::{gpt, gpu};

    #[test]
    fn the_headers_worked_number() {
        assert_eq!(layer_flops(&gpt(1, 256), 1, Pass::Forward), 201_326_592.0 + 16_777_216.0);
    }

    #[test]
    fn backward_is_twice_forward_and_full_recomputation_one_more() {
        let sum = |recompute| {
            let model = Model { recompute, ..gpt(4, 256) };
            PASSES.map(|pass| stage_flops(&model, 0..4, 2, pass)).iter().sum::<f64>()
        };
        let model = gpt(4, 256);
        let forward = stage_flops(&model, 0..4, 2, Pass::Forward);
        assert_eq!(sum(Recompute::None), 3.0 * forward);
        assert_eq!(sum(Recompute::Full), 3.0 * forward + 4.0 * layer_flops(&model, 2, Pass::Forward));
        assert!(sum(Recompute::Selective) < sum(Recompute::Full));
    }

    /// Megatron-LM's published count of Holmes's 3.6B model, factor 96: 6.378e13 per sample with full recomputation.
    #[test]
    fn agrees_with_the_published_count_of_a_3_6b_model() {
        let model = Model { sequence: 2048, vocab: 51_200, recompute: Recompute::Full, ..gpt(30, 3072) };
        let ours: f64 = PASSES.iter().map(|&pass| stage_flops(&model, 0..30, 1, pass)).sum();
        assert!((ours / 6.378e13 - 1.0).abs() < 0.01, "{ours:e}");
    }

    #[test]
    fn time_is_flops_over_achieved_rate() {
        let gpu = Gpu { efficiency: 0.5, ..gpu(1e12, 0) };
        let time = pass_s(&gpt(1, 256), &gpu, 0..1, 1, 1, Pass::BackwardWeight);
        assert_eq!(time, (201_326_592.0 + 2.0 * 128.0 * 256.0 * 256.0) / 0.5e12);
    }
}
