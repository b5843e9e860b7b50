//! Ranks that need more memory than their GPU has.
//!
//! Not here: the bytes that a rank needs (`cost::memory`).

use std::collections::HashMap;

use serde::Serialize;

use crate::plan::{Plan, Seat};
use crate::units::human_bytes;

/// A rank that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error(
    "rank {rank} on GPU {gpu} of `{host}` needs {}, the GPU has {}",
    human_bytes(*needed_bytes),
    human_bytes(*memory_bytes)
)]
pub struct OverMemory {
    /// Global rank.
    pub rank: u32,
    /// Of its placement.
    pub host: String,
    /// Of its placement.
    pub gpu: u32,
    /// At its peak.
    pub needed_bytes: u64,
    /// As the inventory has it.
    pub memory_bytes: u64,
}

/// The ranks that need more than their GPU has, in order; ranks whose host is not in the inventory are left out.
pub(super) fn over_memory(plan: &Plan, peak_memory_bytes: &[u64]) -> Vec<OverMemory> {
    let fabrics = plan.cluster.clusters.iter();
    let memory: HashMap<&str, u64> =
        fabrics.flat_map(|f| f.hosts.iter().map(|h| (h.name.as_str(), f.gpu.memory_bytes))).collect();
    let over = |(seat, &needed_bytes): (Seat<'_>, &u64)| {
        let at = seat.placement;
        let &memory_bytes = memory.get(at.host.as_str()).filter(|&&has| needed_bytes > has)?;
        Some(OverMemory { rank: at.rank, host: at.host.clone(), gpu: at.gpu, needed_bytes, memory_bytes })
    };
    plan.seats().into_iter().zip(peak_memory_bytes).filter_map(over).collect()
}
