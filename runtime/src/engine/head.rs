//! The head: final norm, logits, mean cross-entropy.
//!
//! ```text
//! z = a·W;   loss = 1/n Σ (ln Σⱼ exp zⱼ - z_target);   dz = scale/n · (softmax(z) - [j = target])
//! ```
//!
//! Forward leaves softmax minus target where the logits were; the factor scale/n, known in backward, goes into the
//! products.

use itertools::izip;

use super::block::{Jobs, Shape, Work, after_norm};
use super::lanes::Lanes;
use super::layout::Head;
use super::matrix::{Mat, MatMut, multiply};
use super::norm;
use super::saved::HeadSaved;
use super::simd::{exp, max, sum, vectorised};

/// The mean loss of a microbatch, in nats; `x` is the last block's output.
pub(super) fn forward(
    lanes: &Lanes,
    shape: Shape,
    p: &Head<&[f32]>,
    x: &mut [f32],
    targets: &[u32],
    saved: &mut HeadSaved,
    work: &mut Work,
) -> f64 {
    let c = shape.hidden;
    let vocab = p.weight.len() / c;
    let HeadSaved { norm, logits } = saved;
    let [a, losses] = &mut work.narrow;
    let losses = &mut losses[..shape.tokens];
    let bands = lanes.bands(shape.tokens, 2 * shape.tokens * c * vocab);
    let rows = izip!(
        bands.ranges(),
        bands.of(x, c),
        bands.of(&mut norm.normal, c),
        bands.of(&mut norm.scale, 1),
        bands.of(a, c),
        bands.of(logits, vocab),
        bands.of(losses, 1)
    );
    lanes.run(rows, |(rows, x, normal, scale, a, logits, losses)| {
        norm::forward(x, (p.norm_gain, p.norm_bias), None, (normal, scale), a);
        multiply(MatMut::new(logits, vocab), Mat::new(a, c), Mat::new(p.weight, vocab), 1.0);
        cross_entropy(logits, vocab, &targets[rows], losses);
    });
    losses.iter().map(|loss| *loss as f64).sum::<f64>() / shape.tokens as f64
}

/// Input half: `dx`, the gradient by the last block's output, for a loss that counts `scale` times a token.
pub(super) fn backward_input(
    lanes: &Lanes,
    shape: Shape,
    p: &Head<&[f32]>,
    saved: &HeadSaved,
    scale: f32,
    (dx, sums): (&mut [f32], &mut [f32]),
    work: &mut Work,
) {
    let c = shape.hidden;
    let vocab = p.weight.len() / c;
    let bands = lanes.bands(shape.tokens, 2 * shape.tokens * c * vocab);
    let rows = izip!(
        bands.ranges(),
        bands.of(&mut work.narrow[0], c),
        bands.of(dx, c),
        bands.blocks_of(sums, 2 * c)
    );
    let d_logits = Mat::new(&saved.logits, vocab);
    lanes.run(rows, |(rows, da, dx, sums)| {
        multiply(MatMut::new(da, c), d_logits.rows(rows.clone()), Mat::new(p.weight, vocab).t(), scale);
        let norm = (&saved.norm.normal[rows.start * c..rows.end * c], &saved.norm.scale[rows]);
        norm::backward(da, norm, p.norm_gain, None, dx, sums);
    });
}

/// Weight half: adds to `grad`.
pub(super) fn backward_weight(
    lanes: &Lanes,
    p: &Head<&[f32]>,
    grad: Head<&mut [f32]>,
    saved: &HeadSaved,
    scale: f32,
    sums: &[f32],
    work: &mut Work,
) {
    let vocab = p.weight.len() / p.norm_gain.len();
    let norm = (&saved.norm.normal[..], p.norm_gain, p.norm_bias);
    let mut jobs = Jobs::new();
    after_norm(
        &mut jobs,
        lanes,
        norm,
        &mut work.narrow[0],
        Mat::new(&saved.logits, vocab),
        grad.weight,
        scale,
    );
    jobs.push(Box::new(|| norm::add_sums(sums, grad.norm_gain, grad.norm_bias)));
    lanes.run(jobs, |job| job());
}

vectorised! {
    /// The loss of each row, and softmax minus target in place of the logits.
    fn cross_entropy(logits: &mut [f32], vocab: usize, targets: &[u32], losses: &mut [f32]) {
        for ((z, &target), loss) in logits.chunks_exact_mut(vocab).zip(targets).zip(losses) {
            let at_target = z[target as usize];
            let top = max(z);
            z.iter_mut().for_each(|z| *z = exp(*z - top));
            let total = sum(z, |p| p);
            let share = 1.0 / total;
            z.iter_mut().for_each(|p| *p *= share);
            z[target as usize] -= 1.0;
            *loss = total.ln() + top - at_target;
        }
    }
}
