//! Seconds per optimiser step to keep the replicas of a stage equal, for one rank.
//!
//! ```text
//!   dense      2 (R-1)/R x 4 P / B + 2 (R-1) alpha                  ring all-reduce of f32 gradients, every step
//!   ZeRO-1     (R-1)/R (4 P + w P) / B + 2 (R-1) alpha              reduce-scatter of them, all-gather of weights of w B
//!   streaming  the same, every H steps                              dense pseudo-gradients (DiLoCo)
//!   sparse     ((R-1) x frame / B + alpha) / H                      every rank sends its frame to every other
//!   frame      the codec's own expectation (`narrows_compress::cost`)
//! ```
//! P parameters of the rank, R replicas, B and alpha the slowest hop.
//! Sources: ring, Patarasuk and Yuan 2009; SparseLoCo, arXiv 2508.15706; Streaming DiLoCo, arXiv 2501.18512.
//! Worked: 1 GB over 4 ranks, 25 Gbit/s, 10 us: 480.06 ms.
//!
//! Limits: nothing overlaps compute here (an upper bound for streaming and sparse); every rank of a host exchanges at
//! once, so B is the rank's share of its NIC.

use narrows_compress::CHUNK;
use narrows_compress::cost::frame_bytes_expected;
use narrows_compress::topk::TopK;

use crate::model::Precision;
use crate::plan::{Exchange, ExchangeKind};

/// The slowest hop of an exchange, as one rank sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Path {
    /// The rank's share, each direction.
    pub rate_bytes_per_s: f64,
    /// One way.
    pub latency_s: f64,
}

/// Who keeps the optimiser's states of a parameter that several replicas own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharding {
    /// Each of them, all.
    Whole,
    /// Each a share (ZeRO stage 1, arXiv 1910.02054): updated parameters are all-gathered, of `weight_bytes` each.
    Zero1 {
        /// 2 in 16-bit training, 4 in fp32.
        weight_bytes: u32,
    },
}

impl Sharding {
    /// Of a dense exchange in a plan.
    pub fn of(exchange: &Exchange, precision: Precision) -> Self {
        let weight_bytes = if precision == Precision::Fp32 { 4 } else { 2 };
        if exchange.zero1 { Sharding::Zero1 { weight_bytes } } else { Sharding::Whole }
    }
}

/// Seconds per step that a rank with `parameters` spends in the dense exchange of their gradients among `owners`.
pub fn dense_s(parameters: f64, owners: u32, sharding: Sharding, path: Path) -> f64 {
    if owners < 2 {
        return 0.0;
    }
    let gradients = 4.0 * parameters;
    match sharding {
        Sharding::Whole => ring_all_reduce_s(owners, gradients, path),
        Sharding::Zero1 { weight_bytes } => {
            ring_all_reduce_s(owners, (gradients + f64::from(weight_bytes) * parameters) / 2.0, path)
        }
    }
}

/// Seconds per step that a rank with `parameters` spends in the exchange with `replicas - 1` others.
pub fn per_step_s(kind: ExchangeKind, every: u32, replicas: u32, parameters: f64, path: Path) -> f64 {
    if replicas < 2 {
        return 0.0;
    }
    let round = match kind {
        ExchangeKind::Dense | ExchangeKind::Streaming => ring_all_reduce_s(replicas, 4.0 * parameters, path),
        ExchangeKind::Sparse { top_k } => sparse_all_gather_s(replicas, frame_bytes(parameters, top_k), path),
    };
    round / f64::from(every)
}

/// Ring all-reduce of `bytes` over `ring` ranks.
pub fn ring_all_reduce_s(ring: u32, bytes: f64, path: Path) -> f64 {
    let (n, hops) = (f64::from(ring), f64::from(2 * (ring - 1)));
    hops / n * bytes / path.rate_bytes_per_s + hops * path.latency_s
}

/// Every rank sends its frame straight to every other of `replicas`.
pub fn sparse_all_gather_s(replicas: u32, frame_bytes: f64, path: Path) -> f64 {
    f64::from(replicas - 1) * frame_bytes / path.rate_bytes_per_s + path.latency_s
}

/// Expected bytes of the frame of `parameters` values, `top_k` kept of every 4096 (at most all of them).
pub fn frame_bytes(parameters: f64, top_k: u32) -> f64 {
    let top_k = TopK::new(top_k.clamp(1, CHUNK as u32) as usize).expect("within 1 and a chunk");
    frame_bytes_expected(parameters.round() as u64, top_k)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Path = Path { rate_bytes_per_s: 25e9 / 8.0, latency_s: 10e-6 };

    #[test]
    fn the_headers_worked_numbers() {
        assert!((ring_all_reduce_s(4, 1e9, SLOW) - 0.48006).abs() < 1e-9);
    }

    /// SparseLoCo at k = 64: Rice indices, 2-bit values, two scales a chunk: about 0.157 bits a parameter.
    #[test]
    fn a_frame_is_two_hundred_times_smaller_than_f32() {
        let ratio = 4e6 / frame_bytes(1e6, 64);
        assert!((200.0..210.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn sharded_states_move_weights_instead_of_gradients_back() {
        let whole = dense_s(1e9, 4, Sharding::Whole, SLOW);
        assert_eq!(whole, ring_all_reduce_s(4, 4e9, SLOW));
        assert!((dense_s(1e9, 4, Sharding::Zero1 { weight_bytes: 4 }, SLOW) - whole).abs() < 1e-9);
        assert!((dense_s(1e9, 4, Sharding::Zero1 { weight_bytes: 2 }, SLOW) / whole - 0.75).abs() < 1e-4);
        assert_eq!(dense_s(1e9, 1, Sharding::Whole, SLOW), 0.0);
    }

    #[test]
    fn one_replica_exchanges_nothing_and_rarer_is_cheaper() {
        let sparse = ExchangeKind::Sparse { top_k: 64 };
        assert_eq!(per_step_s(ExchangeKind::Dense, 1, 1, 1e9, SLOW), 0.0);
        let every_30 = per_step_s(sparse, 30, 4, 1e9, SLOW);
        assert_eq!(per_step_s(sparse, 15, 4, 1e9, SLOW), 2.0 * every_30);
        assert!(per_step_s(ExchangeKind::Dense, 1, 4, 1e9, SLOW) > 1000.0 * every_30);
    }
}
