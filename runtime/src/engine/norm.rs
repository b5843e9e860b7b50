//! Layer norm over the width of each row, and its gradient in two halves.
//!
//! ```text
//! x̂ = (x - mean)·r,  r = 1/√(var + 1e-5);   a = x̂·gain + bias
//! with e = da·gain:  dx = r·(e - mean(e) - x̂·mean(e·x̂));   dgain = Σ da·x̂,  dbias = Σ da over rows
//! ```
//!
//! Kept for backward: x̂ and r. `a` is made again from x̂ where the weight half needs it. dgain and dbias are summed
//! where `da` is at hand, in the input half, but by [`ROW_BLOCK`] into a buffer of their own; [`add_sums`] adds the
//! blocks up in the weight half.
//!
//! Source: Ba, Kiros, Hinton, "Layer Normalization" (arXiv:1607.06450), equations 3 and 4.

use super::lanes::ROW_BLOCK;
use super::simd::{dot, dot3, sum, vectorised};

/// What the backward of a norm needs.
pub(super) struct NormSaved {
    /// x̂, `[tokens, hidden]`.
    pub normal: Vec<f32>,
    /// r, `[tokens]`.
    pub scale: Vec<f32>,
}

impl NormSaved {
    pub fn new(tokens: usize, hidden: usize) -> Self {
        Self { normal: vec![0.0; tokens * hidden], scale: vec![0.0; tokens] }
    }

    pub fn floats(&self) -> usize {
        self.normal.len() + self.scale.len()
    }
}

/// Length of the buffer for the sums of one norm: gain's and bias's, for each block of rows begun.
pub(super) fn sums_len(tokens: usize, hidden: usize) -> usize {
    tokens.div_ceil(ROW_BLOCK) * 2 * hidden
}

/// A gain and a bias, `[hidden]` each.
pub(super) type Affine<'a> = (&'a [f32], &'a [f32]);

vectorised! {
    /// Norm of the rows of `x`; `out` is `a`. Adds `onto_x` to each row of `x` once it is read: the bias of the
    /// projection that will be added to the residual stream, while the row is in cache.
    pub(super) fn forward(
        x: &mut [f32],
        affine: Affine<'_>,
        onto_x: Option<&[f32]>,
        saved: (&mut [f32], &mut [f32]),
        out: &mut [f32],
    ) {
        let width = affine.0.len();
        let rows = saved.0.chunks_exact_mut(width).zip(saved.1).zip(out.chunks_exact_mut(width));
        for (x, ((normal, scale), out)) in x.chunks_exact_mut(width).zip(rows) {
            let mean = sum(x, |x| x) / width as f32;
            let variance = sum(x, |x| (x - mean) * (x - mean)) / width as f32;
            *scale = 1.0 / (variance + EPSILON).sqrt();
            for (normal, x) in normal.iter_mut().zip(&*x) {
                *normal = (x - mean) * *scale;
            }
            apply(normal, affine, out);
            if let Some(onto_x) = onto_x {
                x.iter_mut().zip(onto_x).for_each(|(x, add)| *x += add);
            }
        }
    }
}

/// `out = normal·gain + bias` for one row, or some columns of one.
#[inline(always)]
pub(super) fn apply(normal: &[f32], (gain, bias): Affine<'_>, out: &mut [f32]) {
    for (((out, normal), gain), bias) in out.iter_mut().zip(normal).zip(gain).zip(bias) {
        *out = normal * gain + bias;
    }
}

vectorised! {
    /// Input half: `dx = upstream + the norm's gradient for da`; writes the block sums of dgain and dbias.
    pub(super) fn backward(
        da: &[f32],
        saved: (&[f32], &[f32]),
        gain: &[f32],
        upstream: Option<&[f32]>,
        dx: &mut [f32],
        sums: &mut [f32],
    ) {
        let (width, (normal, scale)) = (gain.len(), saved);
        for (block, sums) in sums.chunks_exact_mut(2 * width).enumerate() {
            sums.fill(0.0);
            let (sum_gain, sum_bias) = sums.split_at_mut(width);
            let rows = block * ROW_BLOCK * width..da.len().min((block + 1) * ROW_BLOCK * width);
            for start in rows.step_by(width) {
                let row = start..start + width;
                let (da, normal, dx) = (&da[row.clone()], &normal[row.clone()], &mut dx[row.clone()]);
                for (((sum_gain, sum_bias), da), normal) in sum_gain.iter_mut().zip(&mut *sum_bias).zip(da).zip(normal) {
                    *sum_gain += da * normal;
                    *sum_bias += da;
                }
                match upstream {
                    Some(upstream) => dx.copy_from_slice(&upstream[row]),
                    None => dx.fill(0.0),
                }
                add_row(da, normal, scale[start / width], gain, dx);
            }
        }
    }
}

/// Weight half: adds the block sums, in order, to the gradients of gain and bias.
pub(super) fn add_sums(sums: &[f32], gain: &mut [f32], bias: &mut [f32]) {
    let width = gain.len();
    for sums in sums.chunks_exact(2 * width) {
        let (sum_gain, sum_bias) = sums.split_at(width);
        gain.iter_mut().zip(sum_gain).for_each(|(to, add)| *to += add);
        bias.iter_mut().zip(sum_bias).for_each(|(to, add)| *to += add);
    }
}

const EPSILON: f32 = 1e-5;

#[inline(always)]
fn add_row(da: &[f32], normal: &[f32], scale: f32, gain: &[f32], dx: &mut [f32]) {
    let width = gain.len() as f32;
    let (mean, along) = (dot(da, gain) / width, dot3(da, gain, normal) / width);
    for (((dx, da), gain), normal) in dx.iter_mut().zip(da).zip(gain).zip(normal) {
        *dx += scale * (da * gain - mean - normal * along);
    }
}
