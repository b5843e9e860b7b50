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

use super::TensorSpec;

/// The optimiser's settings and state; `m` and `v` lie like the parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// β1, β2: decay per step of the two averages.
    pub betas: (f32, f32),
    /// ε, keeps the quotient finite.
    pub eps: f32,
    /// λ, on matrices alone.
    pub weight_decay: f32,
    /// Steps taken, t above.
    pub steps: u64,
    /// First moment, one for each parameter.
    pub m: Vec<f32>,
    /// Second moment, one for each parameter.
    pub v: Vec<f32>,
    decayed: Vec<Range<usize>>,
}

impl AdamW {
    /// State of zeros for the parameters that `tensors` describe; β = (0.9, 0.95), ε = 1e-8, λ = 0.1, as for GPT-3
    /// (arXiv:2005.14165, appendix B).
    pub fn new(tensors: &[TensorSpec]) -> Self {
        unimplemented!("{}", tensors.len())
    }

    /// One step with learning rate `lr`; gradients count `scale` times. All slices as long as `m`.
    pub fn step(&mut self, parameters: &mut [f32], gradients: &[f32], lr: f32, scale: f32) {
        let _ = (parameters, gradients, lr, scale);
        let _ = &self.decayed;
        unimplemented!()
    }
}

/// Sum of squares in f64 and in a fixed order: the stage's part of the global gradient norm, squared.
pub fn squared_norm(gradients: &[f32]) -> f64 {
    let _ = gradients;
    unimplemented!()
}
