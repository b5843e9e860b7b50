//! The network as the transport emulates it: resources with a rate, taken first come, first served.
//!
//! A message is cut in chunks of what the slowest resource of its route moves in [`CHUNK_S`], within
//! [`CHUNK_BYTES`]. Each chunk passes the route's resources in order, cut-through:
//! ```text
//!   at = now
//!   for each resource r:  at = max(at, next free of r);  next free of r = at + bytes / rate of r
//!   end = max over r of its new next free
//! ```
//! so a fast NIC is free for other flows while a slow link still moves the chunk, and a busy receiver does not idle
//! its senders' NICs. The flow's next chunk asks at `end`; a message is there at its last chunk's end + latency.
//! Messages of one pair of ranks follow each other. Loss `p` costs retransmission: every rate counts as
//! `rate x (1 - p)`.
//!
//! Here, unlike on the emulated network, a chunk is at least [`GRAIN_S`] of the slowest resource and at least a 64th
//! of its message: fast networks and large messages would be cut finer than their turns matter. Totals stay the same.
//!
//! Not here: which resources a pair of GPUs uses (`topology`), windows, congestion control.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::SimulateError;

/// Chunks are no smaller and no larger, the last one excepted.
const CHUNK_BYTES: RangeInclusive<f64> = 1500.0..=65536.0;
/// Seconds of the slowest resource that a chunk aims at.
const CHUNK_S: f64 = 4e-3;
/// Seconds of the slowest resource that a simulated chunk takes at least.
const GRAIN_S: f64 = 1e-3;
/// Most chunks of a simulated message.
const MAX_CHUNKS: u64 = 64;

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
    /// Indices into [`Network::resources`], from sender to receiver.
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
        let emulated = (slowest * CHUNK_S).clamp(*CHUNK_BYTES.start(), *CHUNK_BYTES.end());
        (emulated.max(slowest * GRAIN_S) as u64).max(bytes.div_ceil(MAX_CHUNKS))
    }

    /// Passes a chunk over the route: when it enters the first resource and when it has left the last.
    /// `next_free_s`, one entry a resource, is moved on.
    pub(super) fn reserve(
        &self,
        next_free_s: &mut [f64],
        route: &Route,
        now_s: f64,
        bytes: u64,
    ) -> (f64, f64) {
        let (mut at_s, mut start_s, mut end_s) = (now_s, None, now_s);
        for &r in &route.resources {
            at_s = at_s.max(next_free_s[r]);
            start_s.get_or_insert(at_s);
            next_free_s[r] = at_s + bytes as f64 / (self.resources[r].rate_bytes_per_s * (1.0 - route.loss));
            end_s = end_s.max(next_free_s[r]);
        }
        (start_s.unwrap_or(now_s), end_s)
    }
}
