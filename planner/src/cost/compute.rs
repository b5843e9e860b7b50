//! FLOPs and seconds of a stage's passes over one microbatch.
//!
//! ```text
//!   forward, per layer       2 b s W  (linear)  +  4 b s^2 a  (attention)           head  2 b s h V
//!   gradient of the input    linear x 1  +  attention x 2                           head  x 1
//!   gradient of the weights  linear x 1                                             head  x 1
//!
//!   seconds   a GPU with `memory_rate` M:   max( FLOPs / (t R) + moved / M,  launches )      without:  FLOPs / (t R)
//!   moved     16-bit, per layer:  b s h (10 + 24/t) x moves of saved  +  5 n b s^2 / t x moves of scores
//! ```
//! b sequences of s tokens, width h, n heads of width a / n, W parameters in a layer's matrices (GPT's 12 h^2, so
//! 24 b s h^2), vocabulary V, t GPUs in the tensor-parallel group, R the peak times `efficiency`. A multiply-add counts
//! 2. Attention is counted whole, not its causal half. Its products have no weights, so both their gradients fall to
//! the input pass; backward is twice forward in sum. Recomputation adds to the input pass: `full` a layer's forward,
//! `selective` its attention.
//!
//! Matrix units do the FLOPs, but norms, masks, activations and, without flash attention, scores go through memory: a
//! pass moves what forward keeps a few times over. That is what makes small widths, large groups (the `10` is not
//! split) and long sequences slow; many small kernels are no faster than they are launched, which is what makes small
//! microbatches slow. A GPU that an inventory describes without `memory_rate` has neither: its `efficiency` says all.
//! Sources: Korthikanti et al., arXiv 2205.05198, appendix A (FLOPs) and equation 1 (what is kept); Williams et al. 2009
//! (roofline; here the parts add up, as kernels alternate). Constants: `framework`, `docs/cost-model.md`.
//! Worked: b 1, s 128, h 256, V 256, one layer: 0.2181 GFLOP forward.
//!
//! Not here: embedding lookups (free), collectives (`tensor`).

use std::ops::Range;

use super::framework::{Framework, NATIVE};
use super::memory;
use crate::inventory::Gpu;
use crate::model::{Model, Precision, Recompute};
use crate::profile::Part;

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
    pass_flops(model, micro_batch, pass, 1.0)
}

/// The same with a share of attention's products left out.
fn pass_flops(model: &Model, micro_batch: u32, pass: Pass, attention_share: f64) -> f64 {
    let tokens = tokens(model, micro_batch);
    let linear = tokens * model.layer_linear_flops_per_token();
    let attention = tokens * model.layer_attention_flops_per_token() * attention_share;
    match pass {
        Pass::Forward => linear + attention,
        Pass::BackwardInput => linear + 2.0 * attention + recomputed(model.recompute, linear, attention),
        Pass::BackwardWeight => linear,
    }
}

/// FLOPs of the head's pass over a microbatch: one product, the same for each pass.
pub fn head_flops(model: &Model, micro_batch: u32) -> f64 {
    tokens(model, micro_batch) * model.head_flops_per_token()
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

/// Seconds of one layer's pass on each GPU of a tensor-parallel group: as measured where the GPU has a profile, else by
/// FLOPs; [`super::tensor`] comes on top unless measured.
pub fn layer_s(model: &Model, gpu: &Gpu, micro_batch: u32, tensor_parallel: u32, pass: Pass) -> f64 {
    let measured_s = measured_s(gpu, Part::Layer, micro_batch, tensor_parallel, pass);
    measured_s.unwrap_or_else(|| layer_under_s(&NATIVE, model, gpu, micro_batch, tensor_parallel, pass))
}

/// Seconds of the head's pass on each GPU of a tensor-parallel group.
pub fn head_s(model: &Model, gpu: &Gpu, micro_batch: u32, tensor_parallel: u32, pass: Pass) -> f64 {
    let measured_s = measured_s(gpu, Part::Head, micro_batch, tensor_parallel, pass);
    measured_s.unwrap_or_else(|| head_under_s(&NATIVE, model, gpu, micro_batch, tensor_parallel, pass))
}

/// [`layer_s`] as a framework runs it.
pub fn layer_under_s(
    framework: &Framework,
    model: &Model,
    gpu: &Gpu,
    micro_batch: u32,
    tensor_parallel: u32,
    pass: Pass,
) -> f64 {
    let rate = achieved_flops_per_s(gpu, model.precision) * f64::from(tensor_parallel);
    let Some(memory_rate) = gpu.memory_bytes_per_s else {
        return layer_flops(model, micro_batch, pass) / rate;
    };
    let products_s = pass_flops(model, micro_batch, pass, framework.attention_share) / rate;
    let (linear, scores) = memory::kept_under_bytes(framework, model, micro_batch, tensor_parallel);
    let (linear, scores) = (framework.moves_of_saved * linear, framework.moves_of_scores * scores);
    let again = match pass {
        Pass::BackwardInput => recomputed(model.recompute, linear, scores),
        Pass::Forward | Pass::BackwardWeight => 0.0,
    };
    let launches = if pass == Pass::BackwardInput && model.recompute == Recompute::Full { 2.0 } else { 1.0 };
    (products_s + (linear + scores + again) / memory_rate).max(launches * framework.launch_s)
}

/// [`head_s`] as a framework runs it.
pub fn head_under_s(
    framework: &Framework,
    model: &Model,
    gpu: &Gpu,
    micro_batch: u32,
    tensor_parallel: u32,
    _pass: Pass,
) -> f64 {
    let t = f64::from(tensor_parallel);
    let products_s = head_flops(model, micro_batch) / (achieved_flops_per_s(gpu, model.precision) * t);
    let logits = tokens(model, micro_batch) * f64::from(model.vocab) / t;
    let moved = framework.logit_moves_bytes / PASSES.len() as f64 * logits;
    products_s + gpu.memory_bytes_per_s.map_or(0.0, |rate| moved / rate)
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
    let embedding = match layers.start {
        0 => measured_s(gpu, Part::Embedding, micro_batch, tensor_parallel, pass).unwrap_or(0.0),
        _ => 0.0,
    };
    let inner =
        f64::from(layers.end - layers.start) * layer_s(model, gpu, micro_batch, tensor_parallel, pass);
    embedding + inner + head
}

/// As the GPU's profile has it.
fn measured_s(gpu: &Gpu, part: Part, micro_batch: u32, tensor_parallel: u32, pass: Pass) -> Option<f64> {
    gpu.profile.as_ref()?.part_s(part, micro_batch, tensor_parallel, pass)
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

    /// An A100 as built in, 16-bit.
    fn a100() -> Gpu {
        let rates = Gpu { efficiency: 0.83, memory_bytes_per_s: Some(2.0e12), ..gpu(312e12, 0) };
        Gpu { name: "A100-80G".into(), ..rates }
    }

    fn large(hidden: u32) -> Model {
        let shape = Model { heads: 16, sequence: 2048, ..gpt(1, hidden) };
        Model { precision: Precision::Bf16, ..shape }
    }

    #[test]
    fn memory_slows_small_widths_and_launches_slow_small_microbatches() {
        let share = |hidden, micro_batch, t| {
            let model = large(hidden);
            let ideal = layer_flops(&model, micro_batch, Pass::Forward) / (312e12 * f64::from(t));
            ideal / layer_s(&model, &a100(), micro_batch, t, Pass::Forward)
        };
        assert!(share(1024, 8, 1) < share(4096, 8, 1) && share(4096, 8, 1) < share(16384, 8, 1));
        assert!(share(8192, 8, 8) < share(8192, 8, 1), "every rank of a group moves the same norms");
        assert!(share(512, 1, 1) < 0.5 * share(512, 8, 1), "launches");
        assert!(share(16384, 8, 1) > 0.72 && share(16384, 8, 1) < 0.83);
    }

    /// Unfused scores: Megatron's 5 n b s^2 bytes through memory 3.6 times, by hand.
    #[test]
    fn scores_go_through_memory_where_attention_is_not_fused() {
        use crate::cost::framework::MEGATRON;
        let (model, gpu) = (large(4096), a100());
        let products = layer_flops(&model, 4, Pass::Forward) / (0.83 * 312e12);
        let tokens = 4.0 * 2048.0;
        let moved = tokens * 4096.0 * 34.0 + 3.6 * 5.0 * 16.0 * tokens * 2048.0;
        let layer = layer_under_s(&MEGATRON, &model, &gpu, 4, 1, Pass::Forward);
        assert!((layer - (products + moved / 2.0e12)).abs() < 1e-9, "{layer}");
        let full = Model { recompute: Recompute::Full, ..model.clone() };
        let backward = |m: &Model| layer_under_s(&MEGATRON, m, &gpu, 4, 1, Pass::BackwardInput);
        assert!((backward(&full) - backward(&model) - layer).abs() < 1e-9, "one forward more");
    }
}
