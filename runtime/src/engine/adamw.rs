//! AdamW over a flat buffer: Adam with decoupled weight decay.
//!
//! ```text
//! g  = scale · gradient
//! m' = β1·m + (1-β1)·g          v' = β2·v + (1-β2)·g²
//! p' = p - lr·λ·p - lr · (m'/(1-β1ᵗ)) / (√(v'/(1-β2ᵗ)) + ε)
//! ```
//!
//! λ applies to matrices alone: biases and norms are not decayed. Source: Loshchilov and Hutter, "Decoupled Weight
//! Decay Regularization" (arXiv:1711.05101), algorithm 2, in PyTorch's form (ε outside the corrected root).
//!
//! Clipping by the global norm needs the sum over all stages, which this module cannot see: sum [`squared_norm`] over
//! them, and pass `min(1, limit / √sum)` as `scale`.
//!
//! Not here: learning-rate schedules.

use std::ops::Range;

use itertools::izip;

use super::TensorSpec;
use super::lanes::{Bands, Lanes};
use super::simd::vectorised;

/// The optimiser's settings and state; `m` and `v` lie like the parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// β1, β2: what each step leaves of the two averages.
    pub betas: (f32, f32),
    /// ε, keeps the quotient finite.
    pub eps: f32,
    /// λ, on matrices alone.
    pub weight_decay: f32,
    /// Steps taken: t of the last one.
    pub steps: u64,
    /// First moment, one for each parameter.
    pub m: Vec<f32>,
    /// Second moment, one for each parameter.
    pub v: Vec<f32>,
    /// Where runs of tensors that are decayed alike end, and whether they are.
    runs: Vec<(usize, Decay)>,
}

impl AdamW {
    /// State of zeros for the parameters that `tensors` describe; β = (0.9, 0.95), ε = 1e-8, λ = 0.1, as for GPT-3
    /// (arXiv:2005.14165, appendix B).
    pub fn new(tensors: &[TensorSpec]) -> Self {
        let len = tensors.last().map_or(0, |tensor| tensor.range.end);
        let run = |tensor: &TensorSpec| {
            (tensor.range.end, if tensor.shape.len() > 1 { Decay::Yes } else { Decay::No })
        };
        Self {
            betas: (0.9, 0.95),
            eps: 1e-8,
            weight_decay: 0.1,
            steps: 0,
            m: vec![0.0; len],
            v: vec![0.0; len],
            runs: tensors.iter().map(run).collect(),
        }
    }

    /// One step with learning rate `lr`; gradients count `scale` times. Both slices are as long as `m`.
    pub fn step(&mut self, parameters: &mut [f32], gradients: &[f32], lr: f32, scale: f32) {
        let whole = Bands::whole(self.m.len());
        self.step_in(&whole, parameters, gradients, lr, scale).for_each(|band| band.update());
    }

    /// As [`Self::step`], divided among lanes.
    pub(super) fn step_on(
        &mut self,
        lanes: &Lanes,
        parameters: &mut [f32],
        gradients: &[f32],
        lr: f32,
        scale: f32,
    ) {
        let bands = lanes.bands(self.m.len(), FLOPS * self.m.len());
        let jobs = self.step_in(&bands, parameters, gradients, lr, scale);
        lanes.run(jobs, |band| band.update());
    }

    fn step_in<'a>(
        &'a mut self,
        bands: &'a Bands,
        parameters: &'a mut [f32],
        gradients: &'a [f32],
        lr: f32,
        scale: f32,
    ) -> impl Iterator<Item = Band<'a>> {
        let expected = self.m.len();
        assert!(parameters.len() == expected && gradients.len() == expected, "the state fits the parameters");
        self.steps += 1;
        let rule = self.rule(lr, scale);
        let Self { m, v, runs, .. } = self;
        let runs: &[_] = runs;
        let parts = izip!(bands.ranges(), bands.of(parameters, 1), bands.of(m, 1), bands.of(v, 1));
        parts.map(move |(range, p, m, v)| Band { g: &gradients[range.clone()], range, p, m, v, runs, rule })
    }

    fn rule(&self, lr: f32, scale: f32) -> Rule {
        let (beta1, beta2) = self.betas;
        let left = |beta: f32| 1.0 - (beta as f64).powi(self.steps.min(i32::MAX as u64) as i32);
        Rule {
            beta1,
            beta2,
            scale,
            eps: self.eps,
            keep: 1.0 - lr * self.weight_decay,
            rate: (lr as f64 / left(beta1)) as f32,
            unbias: (1.0 / left(beta2).sqrt()) as f32,
        }
    }
}

vectorised! {
    /// Sum of squares in f64 and in a fixed order: a stage's part of the global gradient norm, squared.
    pub fn squared_norm(gradients: &[f32]) -> f64 {
        let (chunks, rest) = gradients.as_chunks::<16>();
        let mut lanes = [0.0f64; 16];
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane += x as f64 * x as f64);
        }
        let rest: f64 = rest.iter().map(|&x| x as f64 * x as f64).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

/// What an element costs, in arithmetic of products: mostly waiting for memory.
const FLOPS: usize = 40;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Decay {
    Yes,
    No,
}

/// The factors of one step.
#[derive(Clone, Copy)]
struct Rule {
    beta1: f32,
    beta2: f32,
    scale: f32,
    eps: f32,
    /// 1 - lr·λ.
    keep: f32,
    /// lr/(1-β1ᵗ).
    rate: f32,
    /// 1/√(1-β2ᵗ).
    unbias: f32,
}

/// A part of the buffers that one lane updates.
struct Band<'a> {
    range: Range<usize>,
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    runs: &'a [(usize, Decay)],
    rule: Rule,
}

impl Band<'_> {
    fn update(self) {
        let mut start = 0;
        for &(end, decay) in self.runs {
            let end = end.clamp(self.range.start, self.range.end) - self.range.start;
            let keep = if decay == Decay::Yes { self.rule.keep } else { 1.0 };
            let here = start..end;
            let (p, m, v) = (&mut self.p[here.clone()], &mut self.m[here.clone()], &mut self.v[here.clone()]);
            update(self.rule, keep, p, &self.g[here], m, v);
            start = end;
        }
    }
}

vectorised! {
    fn update(rule: Rule, keep: f32, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let Rule { beta1, beta2, scale, eps, rate, unbias, .. } = rule;
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * scale;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *p = *p * keep - rate * *m / (v.sqrt() * unbias + eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use super::*;

    fn tensors() -> [TensorSpec; 2] {
        let spec = |range: Range<usize>, shape: &[usize]| TensorSpec {
            name: "t".into(),
            range,
            shape: shape.to_vec(),
        };
        [spec(0..2, &[1, 2]), spec(2..3, &[1])]
    }

    #[test]
    fn two_steps_agree_with_the_rule_worked_by_hand() {
        let mut adamw = AdamW { betas: (0.5, 0.75), eps: 0.5, ..AdamW::new(&tensors()) };
        let mut p = [1.0, -2.0, 3.0];
        // Step 1, gradient halved: g = 1, -2, 4; m = g/2, v = g²/4; both corrected to g, g²: quotient g/(|g| + 0.5).
        adamw.step(&mut p, &[2.0, -4.0, 8.0], 0.1, 0.5);
        let first = [0.99 - 0.1 / 1.5, -1.98 + 0.2 / 2.5, 3.0 - 0.4 / 4.5];
        // Step 2, g = 0: m = g₁/4 over 1 - 0.25; v = 3g₁²/16 over 1 - 0.5625.
        let root = (3.0f32 / 16.0 / 0.4375).sqrt();
        let quotient = |g: f32| g / 4.0 / 0.75 / (g.abs() * root + 0.5);
        let second = [0.99 * first[0] - 0.1 * quotient(1.0), 0.99 * first[1] - 0.1 * quotient(-2.0)];
        assert!(p.iter().zip(first).all(|(got, want)| (got - want).abs() < 1e-6), "{p:?} {first:?}");
        adamw.step(&mut p, &[0.0; 3], 0.1, 0.5);
        assert!(p.iter().zip(second).all(|(got, want)| (got - want).abs() < 1e-6), "{p:?} {second:?}");
        assert!((p[2] - (first[2] - 0.1 * quotient(4.0))).abs() < 1e-6, "no decay of what is not a matrix");
        assert_eq!(adamw.steps, 2);
    }

    #[test]
    fn bands_give_the_bits_of_one_whole() {
        let len = 800_003;
        let spec =
            |range: Range<usize>, rank: usize| TensorSpec { name: "t".into(), range, shape: vec![1; rank] };
        let tensors = [spec(0..70, 1), spec(70..450_000, 2), spec(450_000..len, 1)];
        let gradient: Vec<f32> = (0..len).map(|i| (i % 37) as f32 / 37.0 - 0.4).collect();
        let run = |threads: usize| {
            let lanes = Lanes::new(NonZero::new(threads).unwrap());
            let (mut adamw, mut p) = (AdamW::new(&tensors), vec![0.5; len]);
            for _ in 0..3 {
                adamw.step_on(&lanes, &mut p, &gradient, 0.01, 1.0);
            }
            (p, adamw)
        };
        let (mut adamw, mut p) = (AdamW::new(&tensors), vec![0.5; len]);
        (0..3).for_each(|_| adamw.step(&mut p, &gradient, 0.01, 1.0));
        assert!([1, 2, 3].into_iter().all(|threads| run(threads) == (p.clone(), adamw.clone())));
    }

    #[test]
    fn squared_norm_is_the_sum_of_squares() {
        let x: Vec<f32> = (1..=100).map(|i| i as f32).collect();
        assert_eq!(squared_norm(&x), 338_350.0);
        assert_eq!(squared_norm(&[]), 0.0);
    }
}
