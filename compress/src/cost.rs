//! What codecs weigh, without running them: for the planner.
//!
//! A frame's bytes depend on where the kept values lie. [`frame_bytes_expected`] is the mean when all sets of indices are
//! equally likely, which is the worst case on average: indices that cluster cost less. [`frame_bytes_max`] is never
//! exceeded.
//!
//! ```text
//!  frame = 36 + per block of 262,144 values (4 + 1/2 + bits / 8)       bits: per chunk 32 + k (2 + Rice)
//!  k of 4096                       32      64      128     256
//!  bits a parameter                .0898   .1563   .2734   .4750     (dense f32: 32)
//! ```
//!
//! Not here: seconds (a machine's rate times these, the planner's).

use std::cell::RefCell;
use std::collections::HashMap;

use crate::{
    boundary::BoundaryKind,
    chunk,
    frame::{self, BLOCK, ENTRY_BYTES, HEADER_BYTES},
    topk::{CHUNK, TopK},
};

/// Bytes expected of the frame of a tensor of `elements` values.
pub fn frame_bytes_expected(elements: u64, top_k: TopK) -> f64 {
    let (full, rest) = (elements / CHUNK as u64, (elements % CHUNK as u64) as usize);
    let bits = |len: usize| chunk_bits(len, top_k.kept(len));
    let bits = full as f64 * bits(CHUNK) + if rest > 0 { bits(rest) } else { 0.0 };
    // A stream's last byte is half empty in the mean.
    HEADER_BYTES as f64 + elements.div_ceil(BLOCK as u64) as f64 * (ENTRY_BYTES as f64 + 0.5) + bits / 8.0
}

/// The mean is a sum over all gaps; a planner asks for it a million times.
fn chunk_bits(len: usize, kept: usize) -> f64 {
    thread_local! {
        static KNOWN: RefCell<HashMap<(usize, usize), f64>> = RefCell::new(HashMap::new());
    }
    KNOWN
        .with_borrow_mut(|known| *known.entry((len, kept)).or_insert_with(|| chunk::bits_expected(len, kept)))
}

/// Bytes that no frame of a tensor of `elements` values exceeds.
pub fn frame_bytes_max(elements: u64, top_k: TopK) -> u64 {
    HEADER_BYTES as u64 + frame::payload_bytes_max(elements, top_k)
}

/// Bytes of a boundary message of `rows` by `width` values.
pub fn boundary_bytes(kind: BoundaryKind, rows: usize, width: usize) -> usize {
    kind.encoded_len(rows, width)
}

/// Floating-point operations at each end of a boundary: a projection, then a lift, `2 rows width rank` each; none for the
/// other codecs, which only convert.
pub fn boundary_flops(kind: BoundaryKind, rows: usize, width: usize) -> u64 {
    match kind {
        BoundaryKind::None | BoundaryKind::Bf16 | BoundaryKind::Int8 => 0,
        BoundaryKind::Subspace { rank } => 2 * rows as u64 * width as u64 * rank as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorFeedback, sample::gaussian};

    fn real_bytes(values: &[f32], top_k: TopK) -> usize {
        ErrorFeedback::new(values.len(), 0.0).unwrap().compress(values, top_k).unwrap().len()
    }

    #[test]
    fn the_expected_bytes_are_those_of_random_data() {
        let values = gaussian(1, BLOCK + 100 * CHUNK / 3);
        for kept in [1, 32, 64, 128, 256, 1000, CHUNK] {
            let top_k = TopK::new(kept).unwrap();
            let real = real_bytes(&values, top_k) as f64;
            let expected = frame_bytes_expected(values.len() as u64, top_k);
            assert!((expected / real - 1.0).abs() < 0.01, "k = {kept}: expected {expected}, real {real}");
        }
    }

    #[test]
    fn no_placement_exceeds_the_largest() {
        let elements = 3 * CHUNK + 1000;
        for kept in [1, 3, 64, 700, CHUNK] {
            let top_k = TopK::new(kept).unwrap();
            // All at the end of each chunk: one gap takes all the zeros.
            let values: Vec<f32> = (0..elements).map(|i| (i % CHUNK) as f32).collect();
            let largest = frame_bytes_max(elements as u64, top_k) as usize;
            let real = real_bytes(&values, top_k);
            assert!((largest - 8..=largest).contains(&real), "k = {kept}: {real} of {largest}");
        }
    }

    #[test]
    fn boundaries_cost_what_their_table_says() {
        let subspace = BoundaryKind::Subspace { rank: 40 };
        assert_eq!(boundary_bytes(BoundaryKind::None, 10, 4096), 163_840);
        assert_eq!(boundary_bytes(BoundaryKind::Bf16, 10, 4096), 81_920);
        assert_eq!(boundary_bytes(BoundaryKind::Int8, 10, 4096), 41_000);
        assert_eq!(boundary_bytes(subspace, 10, 4096), 800);
        assert_eq!(boundary_flops(subspace, 10, 4096), 3_276_800);
        assert_eq!(boundary_flops(BoundaryKind::Int8, 10, 4096), 0);
    }
}
