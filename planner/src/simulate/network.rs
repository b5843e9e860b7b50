//! The network as the transport emulates it: resources with a rate, taken first come, first served.
//!
//! A message is cut in chunks of what the slowest resource of its way moves in [`CHUNK_S`], within
//! [`CHUNK_BYTES`]. Each chunk passes the way's resources in order, cut-through:
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
//! Here, unlike on the emulated network, a chunk is at least [`GRAIN_S`] of the slowest resource and at least an eighth
//! of its message: fast networks and large messages would be cut finer than their turns matter. A message is not cut
//! at all while nobody else wants a resource of its way. Totals stay the same.
//!
//! Not here: which resources a pair of GPUs uses (`topology`), windows, congestion control.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::SimulateError;
use crate::topology::{GpuId, HOPS, Resource, Topology, Way};

/// Chunks are no smaller and no larger, the last one excepted.
const CHUNK_BYTES: RangeInclusive<f64> = 1500.0..=65536.0;
/// Seconds of the slowest resource that a chunk aims at.
const CHUNK_S: f64 = 4e-3;
/// Seconds of the slowest resource that a simulated chunk takes at least.
const GRAIN_S: f64 = 1e-3;
/// Most chunks of a simulated message.
const MAX_CHUNKS: u64 = 8;

/// The resources between a plan's ranks and the ways over them.
#[derive(Debug, Clone)]
pub struct Network<'a> {
    resources: Cow<'a, [Resource]>,
    ways: Ways<'a>,
}

#[derive(Debug, Clone)]
enum Ways<'a> {
    /// By rank, the GPU.
    Topology(&'a Topology, Vec<GpuId>),
    /// From `.0` to `.1`; every rank is a host of its own.
    Given(BTreeMap<(u32, u32), Way>),
}

impl<'a> Network<'a> {
    /// The topology's, between ranks on these GPUs.
    pub(super) fn between(topology: &'a Topology, gpus: Vec<GpuId>) -> Self {
        Network { resources: Cow::Borrowed(topology.resources()), ways: Ways::Topology(topology, gpus) }
    }

    /// One whose ways are listed: indices of its resources, latency in seconds and loss, from one rank to another.
    /// Every rank counts as a host of its own.
    pub fn given(
        resources: Vec<Resource>,
        ways: impl IntoIterator<Item = ((u32, u32), (Vec<u32>, f64, f64))>,
    ) -> Self {
        let way = |(pair, (over, latency_s, loss))| (pair, Way::over(over, latency_s, loss));
        Network { resources: resources.into(), ways: Ways::Given(ways.into_iter().map(way).collect()) }
    }

    /// What ways share.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// The way between two ranks.
    ///
    /// # Errors
    /// If nothing connects them.
    pub fn way(&self, from: u32, to: u32) -> Result<Way, SimulateError> {
        let way = match &self.ways {
            Ways::Topology(topology, gpus) => topology.way(gpus[from as usize], gpus[to as usize]),
            Ways::Given(ways) => ways.get(&(from, to)).copied(),
        };
        way.ok_or(SimulateError::Unreachable { from, to })
    }

    /// What ranks of one host have in common; ordered so that hosts of a cluster follow each other.
    pub(super) fn host(&self, rank: u32) -> (usize, u32) {
        match &self.ways {
            Ways::Topology(topology, gpus) => topology.host(gpus[rank as usize]),
            Ways::Given(_) => (0, rank),
        }
    }

    /// The smallest rate on the way, loss counted.
    pub fn rate_bytes_per_s(&self, way: &Way) -> f64 {
        let rates = way.resources().map(|r| self.resources[r].rate_bytes_per_s);
        rates.fold(f64::INFINITY, f64::min) * (1.0 - way.loss)
    }

    /// Bytes of a chunk of a message of `bytes` over this way, the last one excepted.
    pub(super) fn chunk_bytes(&self, way: &Way, bytes: u64) -> u64 {
        let slowest = self.rate_bytes_per_s(way);
        let emulated = (slowest * CHUNK_S).clamp(*CHUNK_BYTES.start(), *CHUNK_BYTES.end());
        (emulated.max(slowest * GRAIN_S) as u64).max(bytes.div_ceil(MAX_CHUNKS))
    }

    /// Takes the way's resources for a chunk; `next_free_s`, one entry a resource, is moved on.
    pub(super) fn take(&self, next_free_s: &mut [f64], way: &Way, now_s: f64, bytes: u64) -> Taken {
        let mut taken = Taken { bytes, start_s: now_s, end_s: now_s, at_s: [now_s; HOPS] };
        let mut at_s = now_s;
        for (hop, r) in way.resources().enumerate() {
            at_s = at_s.max(next_free_s[r]);
            taken.at_s[hop] = at_s;
            next_free_s[r] = at_s + self.seconds(r, way, bytes);
            taken.end_s = taken.end_s.max(next_free_s[r]);
        }
        Taken { start_s: taken.at_s[0], ..taken }
    }

    /// Frees the way's resources, taken last of all for `taken`, from what has not passed.
    pub(super) fn give_back(&self, next_free_s: &mut [f64], way: &Way, taken: &Taken, passed_bytes: u64) {
        for (hop, r) in way.resources().enumerate() {
            next_free_s[r] = taken.at_s[hop] + self.seconds(r, way, passed_bytes);
        }
    }

    fn seconds(&self, resource: usize, way: &Way, bytes: u64) -> f64 {
        bytes as f64 / (self.resources[resource].rate_bytes_per_s * (1.0 - way.loss))
    }
}

/// A chunk's or a whole message's turn on its way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Taken {
    pub(super) bytes: u64,
    /// When it enters the first resource.
    pub(super) start_s: f64,
    /// When it has left the slowest.
    pub(super) end_s: f64,
    /// When it enters each.
    at_s: [f64; HOPS],
}

impl Taken {
    /// What has passed at a time.
    pub(super) fn passed_bytes(&self, now_s: f64) -> u64 {
        let share = (now_s - self.start_s) / (self.end_s - self.start_s);
        if now_s >= self.end_s { self.bytes } else { (share.max(0.0) * self.bytes as f64) as u64 }
    }
}
