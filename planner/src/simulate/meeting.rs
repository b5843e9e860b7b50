//! Exchanges between replicas as bulk flows. A *meeting* is one part of the model and its owners, one rank of each
//! replica of an exchange: a run of layers that no replica cuts, of those the share that no tensor-parallel group
//! splits further. It begins when its last owner has come, then all of its flows are under way at once:
//! ```text
//!   seconds = max over resources r (busy until .. + its bytes over r / rate of r)  +  latency of its rounds
//! ```
//! and meetings that share a resource pass it first come, first served. With R members, h hosts, S bytes:
//! ```text
//!   dense      up to 4 owners, each on its own host: S/R to every other, twice (reduce-scatter, all-gather); 2 rounds
//!              else, where several share a host, (k-1)/k S inside, twice; between hosts a ring, (h-1)/h S, twice,
//!              in chunks, its traffic split over the owners of a host and their NICs; 2 (k-1) + 2 (h-1) rounds
//!   ZeRO-1     the same, the gradients only reduce-scattered, then the updated parameters all-gathered
//!   sparse     a frame to every other member; 1 round
//!   streaming  as dense, of the pseudo-gradient, spread over its period: it takes no time here, see `simulate`
//! ```
//! Nested: the members are the islands, whose first replicas speak; what they have heard then goes down a chain
//! through the others of the island.
//! Sources: ring, Patarasuk and Yuan 2009; ZeRO, arXiv 1910.02054; SparseLoCo, arXiv 2508.15706.
//!
//! Not here: who comes when (`execute`). Boundary messages and meetings do not queue behind each other: a rank's own
//! are over when it comes.

use std::collections::HashMap;

use super::network::Network;
use super::{Costs, SimulateError};
use crate::plan::{Exchange, ExchangeKind, Plan};
use crate::schedule::{Share, Unit};

/// Owners on as many hosts talk directly, as the native runtime does; more make a ring, as libraries do.
const DIRECT: usize = 4;

/// One part of the model between its owners.
#[derive(Debug, Clone)]
pub(super) struct Meeting {
    /// Index into the plan's exchanges.
    pub(super) exchange: usize,
    /// One rank of each of the exchange's replicas, in their order.
    pub(super) owners: Vec<u32>,
    /// Bytes of the part as each of the two phases moves it; of a sparse exchange a frame and nothing.
    pub(super) bytes: [u64; 2],
}

/// What a meeting does to the network.
#[derive(Debug, Clone, Default)]
pub(super) struct Traffic {
    /// Seconds of each resource that it uses while its ranks wait.
    pub(super) busy_s: Vec<(usize, f64)>,
    /// Seconds of each resource that it uses at any time of its period.
    pub(super) of_stream_s: Vec<(usize, f64)>,
    /// Of all rounds.
    pub(super) latency_s: f64,
}

/// The meetings of all exchanges of the plan.
pub(super) fn meetings(plan: &Plan, costs: &dyn Costs) -> Vec<Meeting> {
    let talking = plan.exchange.iter().enumerate().filter(|(_, e)| e.replicas.len() > 1);
    talking.flat_map(|(index, exchange)| of_exchange(plan, costs, index, exchange)).collect()
}

fn of_exchange(plan: &Plan, costs: &dyn Costs, index: usize, exchange: &Exchange) -> Vec<Meeting> {
    let replicas = || exchange.replicas.iter().map(|&r| &plan.replicas[r as usize]);
    let mut cuts: Vec<u32> = replicas().flat_map(|r| r.stages.iter().map(|s| s.layers[0])).collect();
    cuts.push(plan.model.layers);
    cuts.sort_unstable();
    cuts.dedup();
    let mut meetings = Vec::new();
    for run in cuts.windows(2) {
        let stage = |r: &'_ crate::plan::Replica| r.stages.partition_point(|s| s.layers[1] <= run[0]);
        let groups: Vec<_> = replicas().map(|r| &r.stages[stage(r)].ranks).collect();
        let lanes = groups.iter().map(|g| g.len() as u64).fold(1, lcm);
        let mut starts: Vec<u64> = groups
            .iter()
            .flat_map(|g| (0..=g.len() as u64).map(move |i| i * lanes / g.len() as u64))
            .collect();
        starts.sort_unstable();
        starts.dedup();
        for lane in starts.windows(2) {
            let share = Share { part: lane[1] - lane[0], of: lanes };
            let owner =
                |g: &&Vec<crate::plan::Placement>| g[(lane[0] * g.len() as u64 / lanes) as usize].rank;
            meetings.push(Meeting {
                exchange: index,
                owners: groups.iter().map(owner).collect(),
                bytes: bytes(plan, costs, exchange, [run[0], run[1]], share),
            });
        }
    }
    meetings
}

fn bytes(plan: &Plan, costs: &dyn Costs, exchange: &Exchange, run: [u32; 2], share: Share) -> [u64; 2] {
    let sum = |of: &dyn Fn(Unit) -> u64| {
        let layers = u64::from(run[1] - run[0]) * share.bytes(of(Unit::Layer(run[0])));
        let embedding = if run[0] == 0 { share.bytes(of(Unit::Embedding)) } else { 0 };
        let head = if run[1] == plan.model.layers { share.bytes(of(Unit::Head)) } else { 0 };
        layers + embedding + head
    };
    let whole = sum(&|unit| costs.exchange_bytes(unit, exchange.kind));
    match exchange.kind {
        ExchangeKind::Sparse { .. } => [whole, 0],
        _ if exchange.zero1 => [whole, sum(&|unit| costs.parameter_bytes(unit))],
        _ => [whole, whole],
    }
}

impl Meeting {
    /// Hands every flow (from, to, bytes) to `each`; the number of latencies that the flows of one way take after
    /// each other comes with it.
    pub(super) fn flows(&self, plan: &Plan, network: &Network<'_>, each: &mut dyn FnMut(Flow)) {
        let exchange = &plan.exchange[self.exchange];
        let islands = islands(plan, exchange);
        let speakers: Vec<u32> = islands.iter().map(|island| self.owners[island[0]]).collect();
        let whole: u64 = self.bytes.iter().sum();
        match exchange.kind {
            ExchangeKind::Sparse { .. } => direct(&speakers, self.bytes[0], 1, each),
            _ => all_reduce(&speakers, whole, network, each),
        }
        let heard = match exchange.kind {
            ExchangeKind::Sparse { .. } => (speakers.len() as u64 - 1) * whole,
            _ => whole / 2,
        };
        for island in islands.iter().filter(|island| island.len() > 1) {
            let rounds = island.len() as u32 - 1;
            for hop in island.windows(2) {
                let [from, to] = [hop[0], hop[1]].map(|i| self.owners[i]);
                each(Flow { from, to, bytes: heard, stretch: Stretch::Island, rounds });
            }
        }
    }

    /// Sums its flows by resource.
    ///
    /// # Errors
    /// If two of its ranks that must talk have no way.
    pub(super) fn traffic(
        &self,
        plan: &Plan,
        network: &Network<'_>,
        sums: &mut Sums,
    ) -> Result<Traffic, SimulateError> {
        let mut latency_s = [0.0_f64; 3];
        let mut failed = None;
        self.flows(plan, network, &mut |flow| {
            let way = match network.way(flow.from, flow.to) {
                Ok(way) => way,
                Err(error) => {
                    failed.get_or_insert(error);
                    return;
                }
            };
            let stretch = &mut latency_s[flow.stretch as usize];
            *stretch = stretch.max(f64::from(flow.rounds) * way.latency_s);
            for r in way.resources() {
                let rate = network.resources()[r].rate_bytes_per_s * (1.0 - way.loss);
                sums.add(r, flow.bytes as f64 / rate);
            }
        });
        let (seconds, latency_s) = (sums.take(), latency_s.iter().sum());
        match (failed, plan.exchange[self.exchange].kind) {
            (Some(error), _) => Err(error),
            (None, ExchangeKind::Streaming) => Ok(Traffic { of_stream_s: seconds, ..Traffic::default() }),
            (None, _) => Ok(Traffic { busy_s: seconds, latency_s, ..Traffic::default() }),
        }
    }
}

/// Bytes from one rank to another in a meeting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) bytes: u64,
    /// Latencies of one stretch are taken at the same time, those of unlike ones after each other.
    stretch: Stretch,
    /// How many latencies of its way the stretch takes.
    rounds: u32,
}

#[derive(Debug, Clone, Copy)]
enum Stretch {
    Inside,
    Between,
    Island,
}

/// Seconds by resource, being summed; kept from meeting to meeting, since few of many resources are used by one.
pub(super) struct Sums {
    seconds: Vec<f64>,
    used: Vec<usize>,
}

impl Sums {
    pub(super) fn new(network: &Network<'_>) -> Self {
        Sums { seconds: vec![0.0; network.resources().len()], used: Vec::new() }
    }

    pub(super) fn add(&mut self, resource: usize, seconds: f64) {
        if self.seconds[resource] == 0.0 && seconds > 0.0 {
            self.used.push(resource);
        }
        self.seconds[resource] += seconds;
    }

    fn take(&mut self) -> Vec<(usize, f64)> {
        let seconds = &mut self.seconds;
        self.used.drain(..).map(|r| (r, std::mem::take(&mut seconds[r]))).collect()
    }
}

/// The members of an exchange, as positions among its replicas: islands that dense exchanges make inside, and replicas
/// that are in none. A dense exchange has replicas only.
fn islands(plan: &Plan, exchange: &Exchange) -> Vec<Vec<usize>> {
    let alone = |position: usize| vec![position];
    if exchange.kind == ExchangeKind::Dense {
        return (0..exchange.replicas.len()).map(alone).collect();
    }
    let dense: Vec<_> = plan.exchange.iter().filter(|e| e.kind == ExchangeKind::Dense).collect();
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut member_of = HashMap::new();
    for (position, replica) in exchange.replicas.iter().enumerate() {
        let island = dense.iter().position(|e| e.replicas.contains(replica));
        match island.and_then(|i| member_of.get(&i).copied()) {
            Some(member) => {
                let member: &mut Vec<usize> = &mut members[member];
                member.push(position);
            }
            None => {
                island.map(|i| member_of.insert(i, members.len()));
                members.push(alone(position));
            }
        }
    }
    members
}

/// Everything to everybody.
fn direct(ranks: &[u32], bytes: u64, rounds: u32, each: &mut dyn FnMut(Flow)) {
    for (i, &from) in ranks.iter().enumerate() {
        for &to in ranks[i + 1..].iter().chain(&ranks[..i]) {
            each(Flow { from, to, bytes, stretch: Stretch::Between, rounds });
        }
    }
}

/// `whole` is what both phases move of the part: twice its bytes, or gradients and parameters.
fn all_reduce(ranks: &[u32], whole: u64, network: &Network<'_>, each: &mut dyn FnMut(Flow)) {
    let mut ordered: Vec<_> = ranks.iter().map(|&rank| (network.host(rank), rank)).collect();
    ordered.sort_by_key(|&(host, _)| host);
    let hosts: Vec<&[_]> = ordered.chunk_by(|a, b| a.0 == b.0).collect();
    if hosts.len() == ranks.len() && hosts.len() <= DIRECT {
        return direct(ranks, whole.div_ceil(ranks.len() as u64), 2, each);
    }
    for host in &hosts {
        let (k, rounds) = (host.len() as u64, 2 * (host.len() as u32 - 1));
        for (i, &(_, from)) in host.iter().enumerate().filter(|_| k > 1) {
            let (to, bytes) = (host[(i + 1) % host.len()].1, (k - 1) * whole / k);
            each(Flow { from, to, bytes, stretch: Stretch::Inside, rounds });
        }
    }
    let h = hosts.len() as u64;
    for (i, from) in hosts.iter().enumerate().filter(|_| h > 1) {
        between(from, hosts[(i + 1) % hosts.len()], (h - 1) * whole / h, 2 * (h as u32 - 1), each);
    }
}

/// One host's owners to the next's, each with its part.
fn between<H>(from: &[(H, u32)], to: &[(H, u32)], bytes: u64, rounds: u32, each: &mut dyn FnMut(Flow)) {
    let (n, m) = (from.len() as u64, to.len() as u64);
    for (i, (_, from)) in (0..n).zip(from) {
        for (j, (_, to)) in (0..m).zip(to) {
            let part = ((i + 1) * m).min((j + 1) * n).saturating_sub((i * m).max(j * n));
            if part > 0 {
                let bytes = Share { part, of: n * m }.bytes(bytes);
                each(Flow { from: *from, to: *to, bytes, stretch: Stretch::Between, rounds });
            }
        }
    }
}

fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}
