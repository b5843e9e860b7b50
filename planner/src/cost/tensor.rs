//! Seconds of the all-reduces inside a tensor-parallel group, per layer and microbatch, forward and backward together.
//!
//! ```text
//!   4 all-reduces of b s h values a layer (2 forward, 2 backward); full recomputation 6
//! ```
//! Each a ring over the host's bus. Source: Shoeybi et al., arXiv 1909.08053, section 3. Worked: 2 GPUs, 128 rows of
//! 256 in f32 (131072 B), 10 GB/s, 1 us: 4 x (13.107 + 2) = 60.43 us.
//!
//! Limits: nothing overlaps; the head's own reduction (of row maxima and sums) is free.

use crate::cost::exchange::{Path, ring_all_reduce_s};
use crate::model::Recompute;

/// Seconds per layer and microbatch; `bytes` is one microbatch's uncompressed activation.
pub fn layer_s(group: u32, bytes: u64, recompute: Recompute, bus: Path) -> f64 {
    let reductions = if recompute == Recompute::Full { 6.0 } else { 4.0 };
    if group == 1 { 0.0 } else { reductions * ring_all_reduce_s(group, bytes as f64, bus) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_worked_number_and_alone_is_free() {
        let bus = Path { rate_bytes_per_s: 10e9, latency_s: 1e-6 };
        assert!((layer_s(2, 131_072, Recompute::None, bus) - 60.43e-6).abs() < 1e-8);
        assert_eq!(layer_s(1, 131_072, Recompute::None, bus), 0.0);
        assert!(layer_s(2, 131_072, Recompute::Full, bus) > layer_s(2, 131_072, Recompute::None, bus));
    }
}
