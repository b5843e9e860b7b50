//! One decoder block: attention and MLP, each after a norm and added to the residual stream.
//!
//! Each pass is a few phases of bands of rows (`lanes`); attention, which looks along a sequence, is a phase by itself.
//! A band goes through its whole phase at once, so what one product writes the next finds in cache. Biases ride along: a
//! row of q, k, v begins as its bias; the residual stream gets the next projection's bias when the norm reads it; the
//! MLP's goes in with gelu.
//!
//! What is kept, and what becomes what: `saved`.

use itertools::izip;

use super::attention;
use super::gelu;
use super::lanes::Lanes;
use super::layout::Block;
use super::matrix::{Mat, MatMut, multiply, multiply_add};
use super::norm;
use super::saved::{BlockPending, BlockSaved};
use super::simd::vectorised;

/// A microbatch's shape.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub tokens: usize,
    pub sequence: usize,
    pub hidden: usize,
    pub heads: usize,
}

/// Buffers that no call leaves anything in; one set serves all blocks.
pub(super) struct Work {
    /// `[tokens, hidden]`, twice.
    pub narrow: [Vec<f32>; 2],
    /// `[tokens, 4·hidden]`.
    pub wide: Vec<f32>,
    /// Attention's, one piece a lane.
    pub scratch: Vec<f32>,
}

impl Shape {
    /// Multiplications and additions of a product of `[tokens, hidden]` by `[hidden, times·hidden]`.
    fn flops(self, times: usize) -> usize {
        2 * self.tokens * self.hidden * self.hidden * times
    }

    fn attention_flops(self) -> usize {
        4 * self.tokens * self.sequence * self.hidden
    }

    fn scratch(self) -> usize {
        attention::scratch_len(self.sequence, self.hidden / self.heads)
    }
}

impl Work {
    pub fn new(shape: Shape, lanes: &Lanes) -> Self {
        let narrow = || vec![0.0; shape.tokens * shape.hidden];
        Work {
            narrow: [narrow(), narrow()],
            wide: vec![0.0; shape.tokens * 4 * shape.hidden],
            scratch: vec![0.0; lanes.count() * shape.scratch()],
        }
    }
}

/// `x` becomes the block's output, `[tokens, hidden]`.
pub(super) fn forward(
    lanes: &Lanes,
    shape: Shape,
    p: &Block<&[f32]>,
    x: &mut [f32],
    saved: &mut BlockSaved,
    work: &mut Work,
) {
    let c = shape.hidden;
    let Work { narrow: [a, _], wide, scratch } = work;
    let BlockSaved { norm1, qkv, softmax, mixed, norm2, wide: h } = saved;

    let bands = lanes.bands(shape.tokens, shape.flops(3));
    let rows = izip!(
        bands.of(x, c),
        bands.of(&mut norm1.normal, c),
        bands.of(&mut norm1.scale, 1),
        bands.of(a, c),
        bands.of(qkv, 3 * c)
    );
    lanes.run(rows, |(x, normal, scale, a, qkv)| {
        norm::forward(x, (p.norm1_gain, p.norm1_bias), Some(p.projection_bias), (normal, scale), a);
        qkv.chunks_exact_mut(3 * c).for_each(|row| row.copy_from_slice(p.qkv_bias));
        multiply_add(MatMut::new(qkv, 3 * c), Mat::new(a, c), Mat::new(p.qkv_weight, 3 * c), 1.0);
    });

    let heads = attention::heads(qkv, softmax, shape.sequence, shape.heads);
    let outs = attention::columns(mixed, shape.sequence, c, shape.heads);
    by_head(lanes, shape, izip!(heads, outs).collect(), scratch, |(head, out), scratch| {
        attention::forward(head, out.borrow(), scratch);
    });

    let bands = lanes.bands(shape.tokens, shape.flops(9));
    let rows = izip!(
        bands.ranges(),
        bands.of(x, c),
        bands.of(&mut norm2.normal, c),
        bands.of(&mut norm2.scale, 1),
        bands.of(a, c),
        bands.of(h, 4 * c),
        bands.of(wide, 4 * c)
    );
    let mixed = Mat::new(mixed, c);
    lanes.run(rows, |(rows, x, normal, scale, a, h, wide)| {
        multiply_add(MatMut::new(x, c), mixed.rows(rows), Mat::new(p.projection_weight, c), 1.0);
        norm::forward(x, (p.norm2_gain, p.norm2_bias), Some(p.down_bias), (normal, scale), a);
        multiply(MatMut::new(h, 4 * c), Mat::new(a, c), Mat::new(p.up_weight, 4 * c), 1.0);
        gelu::forward(h, p.up_bias, wide);
        multiply_add(MatMut::new(x, c), Mat::new(wide, 4 * c), Mat::new(p.down_weight, c), 1.0);
    });
}

/// Input half: from `pending.d_out`, the gradient by the block's output, to `dx`, that by its input.
pub(super) fn backward_input(
    lanes: &Lanes,
    shape: Shape,
    p: &Block<&[f32]>,
    saved: &mut BlockSaved,
    pending: &mut BlockPending,
    dx: &mut [f32],
    work: &mut Work,
) {
    let c = shape.hidden;
    let Work { narrow: [da, d_mixed], scratch, .. } = work;
    let BlockSaved { norm1, qkv, softmax, mixed, norm2, wide: h } = saved;
    let BlockPending { d_out, gelu, d_middle, norm1_sums, norm2_sums } = pending;

    let bands = lanes.bands(shape.tokens, shape.flops(9));
    let rows = izip!(
        bands.ranges(),
        bands.of(h, 4 * c),
        bands.of(gelu, 4 * c),
        bands.of(da, c),
        bands.of(d_middle, c),
        bands.blocks_of(norm2_sums, 2 * c),
        bands.of(d_mixed, c)
    );
    lanes.run(rows, |(rows, h, g, da, d_middle, sums, d_mixed)| {
        let here = rows.start * c..rows.end * c;
        let d_out = &d_out[here.clone()];
        multiply(MatMut::new(g, 4 * c), Mat::new(d_out, c), Mat::new(p.down_weight, c).t(), 1.0);
        gelu::backward(h, g);
        multiply(MatMut::new(da, c), Mat::new(h, 4 * c), Mat::new(p.up_weight, 4 * c).t(), 1.0);
        let norm2 = (&norm2.normal[here], &norm2.scale[rows]);
        norm::backward(da, norm2, p.norm2_gain, Some(d_out), d_middle, sums);
        multiply(MatMut::new(d_mixed, c), Mat::new(d_middle, c), Mat::new(p.projection_weight, c).t(), 1.0);
    });

    let width = c / shape.heads;
    let heads = attention::heads(qkv, softmax, shape.sequence, shape.heads).into_iter().enumerate().collect();
    let (mixed, d_mixed) = (Mat::new(mixed, c), Mat::new(d_mixed, c));
    by_head(lanes, shape, heads, scratch, |(i, head), scratch| {
        let (sequence, at) = (*i / shape.heads, *i % shape.heads);
        let [out, d_out] = [mixed, d_mixed].map(|m| {
            m.rows(sequence * shape.sequence..(sequence + 1) * shape.sequence)
                .cols(at * width..(at + 1) * width)
        });
        attention::backward(head, out, d_out, scratch);
    });

    let bands = lanes.bands(shape.tokens, shape.flops(3));
    let rows = izip!(bands.ranges(), bands.of(da, c), bands.of(dx, c), bands.blocks_of(norm1_sums, 2 * c));
    let d_qkv = Mat::new(qkv, 3 * c);
    lanes.run(rows, |(rows, da, dx, sums)| {
        let here = rows.start * c..rows.end * c;
        multiply(MatMut::new(da, c), d_qkv.rows(rows.clone()), Mat::new(p.qkv_weight, 3 * c).t(), 1.0);
        let norm1 = (&norm1.normal[here.clone()], &norm1.scale[rows]);
        norm::backward(da, norm1, p.norm1_gain, Some(&d_middle[here]), dx, sums);
    });
}

/// Weight half: adds to `grad`.
pub(super) fn backward_weight(
    lanes: &Lanes,
    shape: Shape,
    p: &Block<&[f32]>,
    grad: Block<&mut [f32]>,
    saved: &BlockSaved,
    pending: &BlockPending,
    work: &mut Work,
) {
    let c = shape.hidden;
    let [a1, a2] = &mut work.narrow;
    let [d_qkv, d_wide] = [Mat::new(&saved.qkv, 3 * c), Mat::new(&saved.wide, 4 * c)];
    let [d_middle, d_out] = [Mat::new(&pending.d_middle, c), Mat::new(&pending.d_out, c)];
    let mut jobs = Jobs::new();
    let norm2 = (&saved.norm2.normal[..], p.norm2_gain, p.norm2_bias);
    after_norm(&mut jobs, lanes, norm2, a2, d_wide, grad.up_weight, 1.0);
    after(&mut jobs, lanes, Mat::new(&pending.gelu, 4 * c), d_out, grad.down_weight);
    let norm1 = (&saved.norm1.normal[..], p.norm1_gain, p.norm1_bias);
    after_norm(&mut jobs, lanes, norm1, a1, d_qkv, grad.qkv_weight, 1.0);
    after(&mut jobs, lanes, Mat::new(&saved.mixed, c), d_middle, grad.projection_weight);
    jobs.push(Box::new(move || add_rows(d_wide, grad.up_bias)));
    jobs.push(Box::new(move || add_rows(d_qkv, grad.qkv_bias)));
    jobs.push(Box::new(move || {
        add_rows(d_out, grad.down_bias);
        add_rows(d_middle, grad.projection_bias);
        norm::add_sums(&pending.norm1_sums, grad.norm1_gain, grad.norm1_bias);
        norm::add_sums(&pending.norm2_sums, grad.norm2_gain, grad.norm2_bias);
    }));
    lanes.run(jobs, |job| job());
}

/// Independent pieces of a weight half, the long ones first.
pub(super) type Jobs<'a> = Vec<Box<dyn FnOnce() + Send + 'a>>;

/// Jobs for `grad += scale · aᵀ·dy`, where a is a norm's output, made again in `a` from `normal`, gain and bias.
pub(super) fn after_norm<'a>(
    jobs: &mut Jobs<'a>,
    lanes: &Lanes,
    (normal, gain, bias): (&'a [f32], &'a [f32], &'a [f32]),
    a: &'a mut [f32],
    dy: Mat<'a>,
    grad: &'a mut [f32],
    scale: f32,
) {
    let width = gain.len();
    let bands = lanes.bands(width, 2 * width * dy.width() * dy.height());
    let mut rest = Some(MatMut::new(a, width));
    for (cols, grad) in bands.ranges().zip(bands.of(grad, dy.width())) {
        let (mut a, others) = rest.take().expect("as many columns as the norm has").split_cols(cols.len());
        rest = Some(others);
        let normal = Mat::new(normal, width).cols(cols.clone());
        let (gain, bias) = (&gain[cols.clone()], &bias[cols]);
        jobs.push(Box::new(move || {
            apply(normal, (gain, bias), &mut a);
            multiply_add(MatMut::new(grad, dy.width()), a.view().t(), dy, scale);
        }));
    }
}

/// Jobs for `grad += xᵀ·dy`.
fn after<'a>(jobs: &mut Jobs<'a>, lanes: &Lanes, x: Mat<'a>, dy: Mat<'a>, grad: &'a mut [f32]) {
    let bands = lanes.bands(x.width(), 2 * x.width() * dy.width() * dy.height());
    for (cols, grad) in bands.ranges().zip(bands.of(grad, dy.width())) {
        let x = x.cols(cols);
        jobs.push(Box::new(move || multiply_add(MatMut::new(grad, dy.width()), x.t(), dy, 1.0)));
    }
}

vectorised! {
    /// Some columns of a norm's output, made again.
    fn apply(normal: Mat<'_>, affine: norm::Affine<'_>, a: &mut MatMut<'_>) {
        for row in 0..normal.height() {
            norm::apply(normal.row(row), affine, a.row(row));
        }
    }
}

vectorised! {
    /// Adds the sum of the rows to `to`, by tiles of columns that stay in the nearest cache.
    fn add_rows(rows: Mat<'_>, to: &mut [f32]) {
        const TILE: usize = 256;
        for (tile, to) in to.chunks_mut(TILE).enumerate() {
            let mut sum = [0.0; TILE];
            let sum = &mut sum[..to.len()];
            for row in 0..rows.height() {
                let from = &rows.row(row)[tile * TILE..][..to.len()];
                sum.iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
            }
            to.iter_mut().zip(sum).for_each(|(to, sum)| *to += *sum);
        }
    }
}

/// Runs `work` for every head, each lane with its own scratch.
fn by_head<T: Send>(
    lanes: &Lanes,
    shape: Shape,
    mut heads: Vec<T>,
    scratch: &mut [f32],
    work: impl Fn(&mut T, &mut [f32]) + Sync,
) {
    let each = heads.len().div_ceil(lanes.shares(heads.len(), shape.attention_flops()));
    let jobs = heads.chunks_mut(each).zip(scratch.chunks_exact_mut(shape.scratch()));
    lanes.run(jobs, |(heads, scratch)| heads.iter_mut().for_each(|head| work(head, scratch)));
}
