//! Causal multi-head attention, straight out of the fused qkv matrix.
//!
//! ```text
//! S = Q·Kᵀ/√w, masked to keys not after the query;  P = softmax(S) by rows;  Y = P·V
//! dV = Pᵀ·dY;  dP = dY·Vᵀ;  dS = P∘(dP - δ)/√w with δ = Σ dY∘Y by rows;  dQ = dS·K;  dK = dSᵀ·Q
//! ```
//!
//! One job is one head of one sequence. It goes by blocks of [`QUERIES`] queries against the keys up to the block's
//! last, so nothing quadratic in the sequence is kept and most masked products are never made. P is made again in
//! backward from each row's maximum and sum (what FlashAttention keeps as one number: Dao et al. 2022,
//! arXiv:2205.14135, section 3.1; two save the logarithm). Backward writes dQ, dK, dV over Q, K, V.
//!
//! Not here: the projections around it (`block`), threads.

use super::matrix::{Mat, MatMut, multiply, multiply_add};
use super::simd::{dot, exp, max, sum, vectorised};

/// Queries handled at once.
const QUERIES: usize = 32;

/// One head of one sequence: `[sequence, width]` each.
pub(super) struct Head<'a> {
    pub query: MatMut<'a>,
    pub key: MatMut<'a>,
    pub value: MatMut<'a>,
    /// Each row's maximum of S and the reciprocal of its sum of exponentials: `[sequence, 2]`.
    pub softmax: &'a mut [f32],
}

/// Floats of scratch that a job needs.
pub(super) fn scratch_len(sequence: usize, width: usize) -> usize {
    2 * QUERIES * sequence + 2 * sequence * width
}

/// The heads of a microbatch in the order sequence, head: `qkv` is `[tokens, 3·hidden]`, Q, K and V side by side.
pub(super) fn heads<'a>(
    qkv: &'a mut [f32],
    softmax: &'a mut [f32],
    sequence: usize,
    heads: usize,
) -> Vec<Head<'a>> {
    let hidden = qkv.len() / (softmax.len() / (2 * heads)) / 3;
    let mut out = Vec::with_capacity(softmax.len() / (2 * sequence));
    let mut softmax = softmax.chunks_exact_mut(2 * sequence);
    for qkv in qkv.chunks_exact_mut(sequence * 3 * hidden) {
        let (query, rest) = MatMut::new(qkv, 3 * hidden).split_cols(hidden);
        let (key, value) = rest.split_cols(hidden);
        let [query, key, value] = [query, key, value].map(|part| by_head(part, hidden / heads));
        let softmax = softmax.by_ref().take(heads);
        for (((query, key), value), softmax) in query.zip(key).zip(value).zip(softmax) {
            out.push(Head { query, key, value, softmax });
        }
    }
    out
}

/// `[tokens, hidden]` by sequence, then head, as [`heads`] orders them.
pub(super) fn columns(data: &mut [f32], sequence: usize, hidden: usize, heads: usize) -> Vec<MatMut<'_>> {
    let sequences = data.chunks_exact_mut(sequence * hidden).map(|rows| MatMut::new(rows, hidden));
    sequences.flat_map(|rows| by_head(rows, hidden / heads)).collect()
}

/// Y for one head.
pub(super) fn forward(head: &mut Head<'_>, mut out: MatMut<'_>, scratch: &mut [f32]) {
    let sequence = head.key.view().height();
    for start in (0..sequence).step_by(QUERIES) {
        let (rows, keys) = block(start, sequence);
        let probability = &mut scratch[..rows.len() * keys];
        scores(head, rows.clone(), probability);
        softmax(probability, start, &mut head.softmax[2 * start..2 * keys]);
        let value = head.value.view().rows(0..keys);
        multiply(out.rows(rows), Mat::new(probability, keys), value, 1.0);
    }
}

/// From Y (`out`) and its gradient (`d_out`): overwrites Q, K, V with their gradients.
pub(super) fn backward(head: &mut Head<'_>, out: Mat<'_>, d_out: Mat<'_>, scratch: &mut [f32]) {
    let (sequence, width) = (out.height(), out.width());
    let (blocks, sums) = scratch.split_at_mut(2 * QUERIES * sequence);
    let (d_key, d_value) = sums[..2 * sequence * width].split_at_mut(sequence * width);
    let (mut d_key, mut d_value) = (MatMut::new(d_key, width), MatMut::new(d_value, width));
    // From the end, so that the first block to reach a key is the only one to find its sums unset.
    for start in (0..sequence).step_by(QUERIES).rev() {
        let (rows, keys) = block(start, sequence);
        let (probability, rest) = blocks.split_at_mut(rows.len() * keys);
        let d_scores = &mut rest[..rows.len() * keys];
        scores(head, rows.clone(), probability);
        let d_block = d_out.rows(rows.clone());
        multiply(MatMut::new(d_scores, keys), d_block, head.value.view().rows(0..keys).t(), 1.0);
        softmax_backward(probability, d_scores, start, &head.softmax[2 * start..2 * keys], (out, d_out));
        let (probability, d_scores) = (Mat::new(probability, keys), Mat::new(d_scores, keys));
        let into = if keys == sequence { multiply } else { multiply_add };
        into(d_value.rows(0..keys), probability.t(), d_block, 1.0);
        into(d_key.rows(0..keys), d_scores.t(), head.query.view().rows(rows.clone()), 1.0);
        multiply(head.query.rows(rows), d_scores, head.key.view().rows(0..keys), 1.0);
    }
    for row in 0..sequence {
        head.key.row(row).copy_from_slice(d_key.row(row));
        head.value.row(row).copy_from_slice(d_value.row(row));
    }
}

vectorised! {
    /// Rows of S become rows of P; `first` is the first one's query. Keeps each row's maximum and share.
    fn softmax(scores: &mut [f32], first: usize, kept: &mut [f32]) {
        let (kept, _) = kept.as_chunks_mut::<2>();
        let keys = first + kept.len();
        for ((row, p), kept) in (first..).zip(scores.chunks_exact_mut(keys)).zip(kept) {
            let (seen, unseen) = p.split_at_mut(row + 1);
            let top = max(seen);
            seen.iter_mut().for_each(|s| *s = exp(*s - top));
            let share = 1.0 / sum(seen, |p| p);
            seen.iter_mut().for_each(|p| *p *= share);
            unseen.fill(0.0);
            *kept = [top, share];
        }
    }
}

vectorised! {
    /// Rows of S become rows of P, rows of dP become rows of dS; `outs` is Y and dY.
    fn softmax_backward(scores: &mut [f32], d: &mut [f32], first: usize, kept: &[f32], outs: (Mat<'_>, Mat<'_>)) {
        let (kept, _) = kept.as_chunks::<2>();
        let keys = first + kept.len();
        let scale = root(outs.0.width());
        let lines = scores.chunks_exact_mut(keys).zip(d.chunks_exact_mut(keys));
        for ((row, (p, ds)), [top, share]) in (first..).zip(lines).zip(kept) {
            let delta = dot(outs.0.row(row), outs.1.row(row));
            for (p, ds) in p[..=row].iter_mut().zip(&mut ds[..=row]) {
                *p = exp(*p - top) * share;
                *ds = *p * (*ds - delta) * scale;
            }
            p[row + 1..].fill(0.0);
            ds[row + 1..].fill(0.0);
        }
    }
}

/// 1/√w.
fn root(width: usize) -> f32 {
    1.0 / (width as f32).sqrt()
}

/// The rows of the block of queries at `start`, and how many keys they see between them.
fn block(start: usize, sequence: usize) -> (std::ops::Range<usize>, usize) {
    let end = sequence.min(start + QUERIES);
    (start..end, end)
}

/// S of some queries against the keys up to the last of them, not masked.
fn scores(head: &Head<'_>, rows: std::ops::Range<usize>, out: &mut [f32]) {
    let keys = rows.end;
    let query = head.query.view().rows(rows);
    multiply(MatMut::new(out, keys), query, head.key.view().rows(0..keys).t(), root(query.width()));
}

fn by_head(rows: MatMut<'_>, width: usize) -> impl Iterator<Item = MatMut<'_>> {
    let mut rest = Some(rows);
    std::iter::from_fn(move || {
        let (head, others) = rest.take().filter(|rows| rows.view().width() > 0)?.split_cols(width);
        rest = Some(others);
        Some(head)
    })
}
