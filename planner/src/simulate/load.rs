//! What the ranks, the links and the pairs of ranks have to do in a step: sums over edges and meetings.
//!
//! Not here: when they do it (`execute`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::SimulateError;
use super::edge::Edge;
use super::meeting::Meeting;
use super::network::Network;
use crate::plan::Plan;
use crate::topology::Resource;

/// A rank's mean step: work, bubble, boundary and exchange sum to [`super::Simulation::iteration_s`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RankLoad {
    /// Global rank.
    pub rank: u32,
    /// Seconds at work.
    pub busy_s: f64,
    /// Seconds of a usual step in which it does not work.
    pub idle_s: f64,
    /// Of the time not at work: what would be there if boundaries took no time (the pipeline's fill and drain, slower
    /// stages, slower replicas).
    pub bubble_s: f64,
    /// What boundaries add to that.
    pub boundary_s: f64,
    /// In exchanges, from the coming of the last owner, amortised.
    pub exchange_s: f64,
}

/// Traffic of a usual step, and what a step with every exchange has on top.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Traffic {
    /// Bytes of a usual step.
    pub step_bytes: u64,
    /// Bytes that the exchange adds.
    pub exchange_bytes: u64,
    /// Seconds of a usual step in which they flow at full rate.
    pub step_busy_s: f64,
    /// Seconds that the exchange adds to that.
    pub exchange_busy_s: f64,
}

/// A resource of the network and its traffic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkLoad {
    /// As the topology names it.
    pub name: String,
    /// What it carries.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Traffic from one rank to another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairLoad {
    /// Sender.
    pub from: u32,
    /// Receiver.
    pub to: u32,
    /// What it sends.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Loads of the resources by index, then of the pairs.
///
/// # Errors
/// If two ranks that must talk have no way.
pub(super) fn loads(
    plan: &Plan,
    network: &Network<'_>,
    edges: &[Vec<Edge>],
    meetings: &[Meeting],
) -> Result<(Vec<LinkLoad>, Vec<PairLoad>), SimulateError> {
    let mut sums = Sums { by_resource: vec![Bytes::default(); network.resources().len()], ..Sums::default() };
    for (replica, edges) in plan.replicas.iter().zip(edges) {
        for edge in edges {
            let bytes = u64::from(replica.microbatches) * edge.bytes;
            sums.add(network, edge.from, edge.to, Bytes { usual: bytes, exchange: 0 })?;
        }
    }
    for meeting in meetings {
        let is_usual = plan.exchange[meeting.exchange].every == 1;
        let mut result = Ok(());
        meeting.flows(plan, network, &mut |flow| {
            let (usual, exchange) = if is_usual { (flow.bytes, 0) } else { (0, flow.bytes) };
            if result.is_ok() {
                result = sums.add(network, flow.from, flow.to, Bytes { usual, exchange });
            }
        });
        result?;
    }
    sums.loads(network)
}

/// Bytes of a usual step, and of exchanges with a period.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes {
    usual: u64,
    exchange: u64,
}

#[derive(Default)]
struct Sums {
    by_resource: Vec<Bytes>,
    by_pair: BTreeMap<(u32, u32), Bytes>,
}

impl Sums {
    fn add(&mut self, network: &Network<'_>, from: u32, to: u32, bytes: Bytes) -> Result<(), SimulateError> {
        self.by_pair.entry((from, to)).or_default().add(bytes);
        network.way(from, to)?.resources().for_each(|r| self.by_resource[r].add(bytes));
        Ok(())
    }

    fn loads(self, network: &Network<'_>) -> Result<(Vec<LinkLoad>, Vec<PairLoad>), SimulateError> {
        let link = |(resource, bytes): (&Resource, Bytes)| LinkLoad {
            name: resource.name.clone(),
            traffic: bytes.at(resource.rate_bytes_per_s),
        };
        let pair = |((from, to), bytes): ((u32, u32), Bytes)| -> Result<PairLoad, SimulateError> {
            let rate = network.rate_bytes_per_s(&network.way(from, to)?);
            Ok(PairLoad { from, to, traffic: bytes.at(rate) })
        };
        let links = network.resources().iter().zip(self.by_resource);
        let used = links.filter(|(_, b)| b.usual + b.exchange > 0);
        let pairs = self.by_pair.into_iter().map(pair).collect::<Result<_, _>>()?;
        Ok((used.map(link).collect(), pairs))
    }
}

impl Bytes {
    fn add(&mut self, other: Bytes) {
        self.usual += other.usual;
        self.exchange += other.exchange;
    }

    fn at(self, rate_bytes_per_s: f64) -> Traffic {
        Traffic {
            step_bytes: self.usual,
            exchange_bytes: self.exchange,
            step_busy_s: self.usual as f64 / rate_bytes_per_s,
            exchange_busy_s: self.exchange as f64 / rate_bytes_per_s,
        }
    }
}
