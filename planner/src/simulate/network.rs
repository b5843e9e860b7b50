//! The network as the transport emulates it: resources with a rate, taken first come, first served.
//!
//! A message is cut in chunks of what the slowest resource of its route moves in [`CHUNK_S`], within
//! [`CHUNK_BYTES`]. Each chunk takes every resource of the route, from one common start:
//! ```text
//!   start          = max(now, next free of each resource)
//!   next free of r = start + bytes / rate of r
//!   end            = start + bytes / smallest rate
//! ```
//! so a fast NIC is free for other flows while a slow link still moves the chunk. The flow's next chunk asks at `end`;
//! a message is there at its last chunk's end + latency. Messages of one pair of ranks follow each other.
//! Loss `p` costs retransmission: every rate counts as `rate x (1 - p)`.
//!
//! Here, unlike on the emulated network, a message has at most [`MAX_CHUNKS`] chunks: totals stay the same, and two
//! flows that share a resource take turns in chunks of up to 1/16 of a message.
//!
//! Not here: which resources a pair of GPUs uses (`topology`), windows, congestion control.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::SimulateError;

/// Most chunks that a message is cut in.
pub const MAX_CHUNKS: u64 = 16;
/// Chunks are no smaller and no larger, the last one excepted.
const CHUNK_BYTES: RangeInclusive<f64> = 1500.0..=65536.0;
/// Seconds of the slowest resource that a chunk aims at.
const CHUNK_S: f64 = 2.5e-3;

/// Something with a rate that messages share, in one direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Host, device and direction.
    pub name: String,
    /// In its direction.
    pub rate_bytes_per_s: f64,
}

/// How messages get from one rank to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Indices into [`Network::resources`].
    pub resources: Vec<usize>,
    /// One way.
    pub latency_s: f64,
    /// Share of packets lost, in [0, 1).
    pub loss: f64,
}

/// The resources and the routes over them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Network {
    /// What routes share.
    pub resources: Vec<Resource>,
    /// From `.0` to `.1`.
    pub routes: BTreeMap<(u32, u32), Route>,
}

impl Network {
    /// The smallest rate on the way, loss counted.
    pub fn rate_bytes_per_s(&self, route: &Route) -> f64 {
        let rates = route.resources.iter().map(|&r| self.resources[r].rate_bytes_per_s);
        rates.fold(f64::INFINITY, f64::min) * (1.0 - route.loss)
    }

    /// The route of a pair that [`Network::reaches`] has found.
    pub(super) fn route(&self, from: u32, to: u32) -> &Route {
        &self.routes[&(from, to)]
    }

    pub(super) fn reaches(&self, pairs: impl IntoIterator<Item = (u32, u32)>) -> Result<(), SimulateError> {
        match pairs.into_iter().find(|pair| !self.routes.contains_key(pair)) {
            Some((from, to)) => Err(SimulateError::Unreachable { from, to }),
            None => Ok(()),
        }
    }

    /// Bytes of a chunk of a message of `bytes` over this route, the last one excepted.
    pub(super) fn chunk_bytes(&self, route: &Route, bytes: u64) -> u64 {
        let slowest = self.rate_bytes_per_s(route);
        let chunk = (slowest * CHUNK_S).clamp(*CHUNK_BYTES.start(), *CHUNK_BYTES.end()) as u64;
        chunk.max(bytes.div_ceil(MAX_CHUNKS))
    }

    /// Takes the route's resources for a chunk: its start and end.
    pub(super) fn reserve(
        &self,
        next_free_s: &mut [f64],
        route: &Route,
        now_s: f64,
        bytes: u64,
    ) -> (f64, f64) {
        let kept = 1.0 - route.loss;
        reserve(next_free_s, &route.resources, now_s, bytes, |r| self.resources[r].rate_bytes_per_s * kept)
    }
}

/// The rule: `resources` index `next_free_s`, which is moved on; gives the chunk's start and end.
pub fn reserve(
    next_free_s: &mut [f64],
    resources: &[usize],
    now_s: f64,
    bytes: u64,
    rate_bytes_per_s: impl Fn(usize) -> f64,
) -> (f64, f64) {
    let start_s = resources.iter().map(|&r| next_free_s[r]).fold(now_s, f64::max);
    let mut end_s = start_s;
    for &r in resources {
        next_free_s[r] = start_s + bytes as f64 / rate_bytes_per_s(r);
        end_s = end_s.max(next_free_s[r]);
    }
    (start_s, end_s)
}
