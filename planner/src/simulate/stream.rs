//! Streaming exchanges: the pseudo-gradient leaves in fragments, over the whole period, beside the inner steps
//! (arXiv 2501.18512). They delay nobody as long as the network is idle for long enough:
//! ```text
//!   step_s >= max over resources r:  (boundaries and dense exchanges of a step + stream / period) / rate of r
//! ```
//! Not here: the other exchanges (`meeting`).

use super::edge::Edge;
use super::meeting::{Meeting, Traffic};
use super::network::Network;
use crate::plan::{ExchangeKind, Plan};

/// Seconds of the busiest resource that streams use; 0 where nothing streams.
pub(super) fn pace_s(
    plan: &Plan,
    network: &Network<'_>,
    edges: &[Vec<Edge>],
    meetings: &[Meeting],
    traffic: &[Traffic],
) -> f64 {
    if plan.exchange.iter().all(|e| e.kind != ExchangeKind::Streaming) {
        return 0.0;
    }
    let mut busy_s = vec![0.0; network.resources().len()];
    let mut streams = vec![false; busy_s.len()];
    for (meeting, traffic) in meetings.iter().zip(traffic) {
        let exchange = &plan.exchange[meeting.exchange];
        for &(r, seconds) in &traffic.of_stream_s {
            busy_s[r] += seconds / f64::from(exchange.every.max(1));
            streams[r] = true;
        }
        if exchange.every <= 1 {
            traffic.busy_s.iter().for_each(|&(r, seconds)| busy_s[r] += seconds);
        }
    }
    for (replica, edges) in plan.replicas.iter().zip(edges) {
        for edge in edges {
            let bytes = f64::from(replica.microbatches) * edge.bytes as f64;
            for r in edge.way.resources() {
                busy_s[r] += bytes / (network.resources()[r].rate_bytes_per_s * (1.0 - edge.way.loss));
            }
        }
    }
    busy_s.into_iter().zip(streams).filter(|(_, streams)| *streams).map(|(s, _)| s).fold(0.0, f64::max)
}
