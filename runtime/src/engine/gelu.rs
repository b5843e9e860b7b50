//! GELU in its tanh form, with its derivative.
//!
//! ```text
//! gelu(h) = h/2·(1 + tanh u),  u = √(2/π)·(h + 0.044715·h³)
//!         = h·s,               s = 1/(1 + exp(-2u))            since (1 + tanh u)/2 = sigmoid(2u)
//! gelu'(h) = s + h·s·(1-s)·2u',  u' = √(2/π)·(1 + 3·0.044715·h²)
//! ```
//!
//! Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (arXiv:1606.08415), section 2; GPT-2 uses this form.

use super::simd::{exp, vectorised};

vectorised! {
    /// Adds `bias` to each row of `h`, and gives `g = gelu(h)`; both `[rows, bias.len()]`.
    pub(super) fn forward(h: &mut [f32], bias: &[f32], g: &mut [f32]) {
        for (h, g) in h.chunks_exact_mut(bias.len()).zip(g.chunks_exact_mut(bias.len())) {
            for ((h, g), bias) in h.iter_mut().zip(g).zip(bias) {
                *h += bias;
                *g = *h * gate(*h);
            }
        }
    }
}

vectorised! {
    /// From `h` and the gradient by gelu(h) that stands in `g`: `g = gelu(h)` again, and in `h` the gradient by h.
    pub(super) fn backward(h: &mut [f32], g: &mut [f32]) {
        for (h, g) in h.iter_mut().zip(g) {
            let (x, s) = (*h, gate(*h));
            let slope = 2.0 * ROOT_2_BY_PI * (1.0 + 3.0 * CUBIC * x * x);
            *h = *g * (s + x * s * (1.0 - s) * slope);
            *g = x * s;
        }
    }
}

const ROOT_2_BY_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn gate(h: f32) -> f32 {
    1.0 / (1.0 + exp(-2.0 * ROOT_2_BY_PI * (h + CUBIC * h * h * h)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(h: f64) -> f64 {
        0.5 * h * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (h + 0.044715 * h * h * h)).tanh())
    }

    #[test]
    fn value_and_slope_agree_with_the_definition_in_f64() {
        let h: Vec<f32> = (-120..=120).map(|i| i as f32 / 10.0).collect();
        let bias = vec![0.5; h.len()];
        let (mut shifted, mut g) = (h.clone(), vec![0.0; h.len()]);
        forward(&mut shifted, &bias, &mut g);
        let value = g.clone();
        let (mut slope, mut again) = (shifted.clone(), vec![1.0; h.len()]);
        backward(&mut slope, &mut again);
        assert_eq!(again, value);
        for i in 0..h.len() {
            let x = h[i] as f64 + 0.5;
            let expected = (reference(x + 1e-5) - reference(x - 1e-5)) / 2e-5;
            assert!((value[i] as f64 - reference(x)).abs() < 2e-6, "gelu({x}) = {}", value[i]);
            assert!((slope[i] as f64 - expected).abs() < 2e-6, "gelu'({x}) = {}, not {expected}", slope[i]);
        }
    }
}
