//! What crosses the boundaries inside a replica: one edge for each pair of ranks that share a part of the tensor and
//! each direction.
//!
//! Not here: when (`program`, `execute`), between replicas (`meeting`).

use super::{Costs, Network, SimulateError};
use crate::plan::{Plan, Stage};
use crate::schedule::{Payload, boundary_peers};
use crate::topology::Way;

/// From one rank to another, once for each microbatch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Edge {
    pub(super) from: u32,
    pub(super) to: u32,
    /// Between the stages `boundary` and `boundary + 1`.
    pub(super) boundary: u32,
    pub(super) what: Payload,
    pub(super) bytes: u64,
    pub(super) way: Way,
}

/// By replica, its edges in the order of its boundaries.
pub(super) fn edges(
    plan: &Plan,
    network: &Network<'_>,
    costs: &dyn Costs,
) -> Result<Vec<Vec<Edge>>, SimulateError> {
    let of_replica = |replica: usize| {
        let mut edges = Vec::new();
        for (boundary, stages) in plan.replicas[replica].stages.windows(2).enumerate() {
            let bytes = [Payload::Activation, Payload::Gradient]
                .map(|what| (what, costs.boundary_bytes(replica, boundary, what)));
            across(&mut edges, network, [&stages[0], &stages[1]], boundary as u32, bytes)?;
        }
        Ok(edges)
    };
    (0..plan.replicas.len()).map(of_replica).collect()
}

fn across(
    edges: &mut Vec<Edge>,
    network: &Network<'_>,
    [before, after]: [&Stage; 2],
    boundary: u32,
    [activation, gradient]: [(Payload, u64); 2],
) -> Result<(), SimulateError> {
    for own in &before.ranks {
        for peer in boundary_peers(before, own.rank, after) {
            for (from, to, (what, bytes)) in
                [(own.rank, peer.rank, activation), (peer.rank, own.rank, gradient)]
            {
                let (bytes, way) = (peer.share.bytes(bytes), network.way(from, to)?);
                edges.push(Edge { from, to, boundary, what, bytes, way });
            }
        }
    }
    Ok(())
}
