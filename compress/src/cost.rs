//! What codecs weigh, without running them: for the planner.
//!
//! A frame's bytes depend on where the kept values lie. [`frame_bytes_expected`] is the mean when all sets of indices are
//! equally likely, which is the worst case on average: indices that cluster cost less. [`frame_bytes_max`] is never
//! exceeded.
//!
//! ```text
//!  frame = 36 + per block of 262,144 values (4 + 1/2 + bits / 8)       bits: per chunk 32 + k (2 + Rice)
//!  k of 4096      32      64      128     256      bits of one value and its share
//! ```
//!
//! Not here: seconds (a machine's rate times these, the planner's).

use crate::{
    boundary::BoundaryKind,
    chunk,
    frame::{self, BLOCK, ENTRY_BYTES, HEADER_BYTES},
    topk::{CHUNK, TopK},
};

/// Bytes expected of the frame of a tensor of `elements` values.
pub fn frame_bytes_expected(elements: u64, top_k: TopK) -> f64 {
    let (full, rest) = (elements / CHUNK as u64, (elements % CHUNK as u64) as usize);
    let bits = |len: usize| chunk::bits_expected(len, top_k.kept(len));
    let bits = full as f64 * bits(CHUNK) + if rest > 0 { bits(rest) } else { 0.0 };
    // A stream's last byte is half empty in the mean.
    HEADER_BYTES as f64 + elements.div_ceil(BLOCK as u64) as f64 * (ENTRY_BYTES as f64 + 0.5) + bits / 8.0
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
