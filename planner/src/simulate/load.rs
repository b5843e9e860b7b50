//! What the ranks, the links and the pairs of ranks have to do in a step: sums over the program.
//!
//! Not here: when they do it (`execute`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::network::{Network, Resource};
use super::program::Program;

/// A rank in a usual step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RankLoad {
    /// Global rank.
    pub rank: u32,
    /// Seconds at work.
    pub busy_s: f64,
    /// Seconds waiting.
    pub idle_s: f64,
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

/// Loads of the resources by index, then of the pairs, by the `step`-th step of the programs: `usual`, and what
/// `fullest` has on top. One pass over the messages.
pub(super) fn loads(
    network: &Network,
    step: usize,
    usual: &Program,
    fullest: Option<&Program>,
) -> (Vec<LinkLoad>, Vec<PairLoad>) {
    let mut by_resource = vec![Bytes::default(); network.resources.len()];
    let mut by_pair = BTreeMap::<(u32, u32), Bytes>::new();
    let mut count = |program: &Program, add: fn(&mut Bytes, u64)| {
        for m in program.messages.iter().filter(|m| m.step == step) {
            add(by_pair.entry((m.from, m.to)).or_default(), m.bytes);
            network.route(m.from, m.to).resources.iter().for_each(|&r| add(&mut by_resource[r], m.bytes));
        }
    };
    count(usual, |sum, bytes| sum.usual += bytes);
    fullest.into_iter().for_each(|program| count(program, |sum, bytes| sum.fullest += bytes));
    let link = |(resource, bytes): (&Resource, Bytes)| LinkLoad {
        name: resource.name.clone(),
        traffic: bytes.at(resource.rate_bytes_per_s),
    };
    let pair = |((from, to), bytes): ((u32, u32), Bytes)| {
        let rate = network.rate_bytes_per_s(network.route(from, to));
        PairLoad { from, to, traffic: bytes.at(rate) }
    };
    let links = network.resources.iter().zip(by_resource).filter(|(_, b)| b.usual + b.fullest > 0);
    (links.map(link).collect(), by_pair.into_iter().map(pair).collect())
}

/// Bytes of a usual step and of one in which every exchange is due.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes {
    usual: u64,
    fullest: u64,
}

impl Bytes {
    fn at(self, rate_bytes_per_s: f64) -> Traffic {
        let exchange_bytes = self.fullest.saturating_sub(self.usual);
        Traffic {
            step_bytes: self.usual,
            exchange_bytes,
            step_busy_s: self.usual as f64 / rate_bytes_per_s,
            exchange_busy_s: exchange_bytes as f64 / rate_bytes_per_s,
        }
    }
}
