//! The closed form: seconds per step of any plan, from its stages, hosts, codecs and exchange.
//!
//! ```text
//!   step = max( fill_r + (m_r - 1) beat_r over replicas r,  bytes / rate over pools )  +  max exchange over stages
//! ```
//! Exchanges wait for the slowest replica. Replicas whose layers lie in the same clusters exchange inside them; as soon
//! as one differs, every stage is priced at the slowest hop among all clusters touched.
//!
//! Limits: those of `cost`; pools are sums over hosts, so a plan that loads one host's link alone is priced too low.
//! Not here: the timeline (`simulate`), which gives the figure that is reported.

use std::collections::HashMap;

use crate::cost::memory::{in_flight, stage_parameters};
use crate::cost::pipeline::{Crossing, beat_s, fill_s, pipeline_s};
use crate::inventory::Cluster;
use crate::model::Model;
use crate::plan::{ExchangeKind, Plan, Replica, Stage};

use super::space::{Space, Way};
use super::{EngineLimits, SearchOptions};

/// What a plan costs by the closed form.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Seconds per step, exchange amortised.
    pub iteration_s: f64,
    /// By replica.
    pub replicas: Vec<ReplicaCost>,
    /// The busiest shared capacity: its name and its seconds per step.
    pub busiest_pool: Option<(String, f64)>,
    /// Seconds per step in the exchange, amortised.
    pub exchange_s: f64,
    /// By rank.
    pub memory_bytes: Vec<f64>,
}

/// What one replica costs.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaCost {
    /// Forward and backward of a microbatch, by stage.
    pub stages_s: Vec<f64>,
    /// One crossing, by boundary.
    pub crossings: Vec<Crossing>,
    /// Bytes of one crossing, by boundary.
    pub crossing_bytes: Vec<u64>,
    /// Seconds of the first microbatch, down and back.
    pub fill_s: f64,
    /// Seconds between microbatches.
    pub beat_s: f64,
    /// Seconds of all its microbatches.
    pub pipeline_s: f64,
}

/// Why a plan has no cost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvaluateError {
    /// A rank's host is not in the inventory, or cannot hold that tensor-parallel group.
    #[error("replica {replica}, stage {stage}: no group of {size} GPUs on host {host} in the inventory")]
    NoSuchGpus {
        /// Index of the replica.
        replica: usize,
        /// Index of the stage.
        stage: usize,
        /// Ranks of the stage.
        size: usize,
        /// Host of the first.
        host: String,
    },
    /// Two clusters must talk and no link joins them.
    #[error("{what} must reach from {a} to {b}, which no [[link]] joins")]
    Unreachable {
        /// A boundary or an exchange.
        what: String,
        /// A cluster's name.
        a: String,
        /// Another's.
        b: String,
    },
}

/// The closed form of a plan.
///
/// # Errors
/// [`EvaluateError`] where the plan does not belong to its inventory.
pub fn evaluate(plan: &Plan) -> Result<Evaluation, EvaluateError> {
    let model = Model { micro_batch: Some(plan.micro_batch), ..plan.model.clone() };
    let options = SearchOptions::default();
    let space =
        Space::new(&plan.cluster, &model, &EngineLimits::ANY, &options).expect("ANY supports every choice");
    evaluate_in(&space, plan)
}

/// As [`evaluate`], with the prices at hand.
pub(crate) fn evaluate_in(space: &Space, plan: &Plan) -> Result<Evaluation, EvaluateError> {
    let groups = groups_by_host(space.cluster);
    let seats = plan.replicas.iter().enumerate().map(|(i, r)| seat(space, &groups, i, r));
    let seats = seats.collect::<Result<Vec<_>, _>>()?;
    let mut pool_bytes = vec![0.0; space.pools.len()];
    let mut replicas = Vec::new();
    for (index, (replica, seats)) in plan.replicas.iter().zip(&seats).enumerate() {
        replicas.push(replica_cost(space, index, replica, seats, &mut pool_bytes)?);
    }
    let busiest_pool = busiest(space, &pool_bytes);
    let exchange_s = exchange_s(space, plan, &seats)?;
    let slowest_s = replicas.iter().map(|r| r.pipeline_s).fold(0.0, f64::max);
    let shared_s = busiest_pool.as_ref().map_or(0.0, |p| p.1);
    Ok(Evaluation {
        iteration_s: slowest_s.max(shared_s) + exchange_s,
        memory_bytes: memory_bytes(space, plan),
        replicas,
        busiest_pool,
        exchange_s,
    })
}

/// Runs of layers by cluster: equal signatures exchange inside clusters.
pub(crate) type Signature = Vec<(usize, u32)>;

/// Do all replicas keep the same layers in the same clusters?
pub(crate) fn aligned<'a>(mut signatures: impl Iterator<Item = &'a Signature>) -> bool {
    let first = signatures.next();
    signatures.all(|s| Some(s) == first)
}

/// The group of each stage of a replica.
struct Seats(Vec<usize>);

impl Seats {
    fn signature(&self, replica: &Replica) -> Signature {
        let mut runs: Signature = Vec::new();
        for (&group, stage) in self.0.iter().zip(&replica.stages) {
            let layers = stage.layers[1] - stage.layers[0];
            match runs.last_mut() {
                Some(run) if run.0 == group => run.1 += layers,
                _ => runs.push((group, layers)),
            }
        }
        runs
    }
}

fn groups_by_host(cluster: &Cluster) -> HashMap<&str, usize> {
    let fabrics = cluster.clusters.iter().enumerate();
    fabrics.flat_map(|(i, f)| f.hosts.iter().map(move |h| (h.name.as_str(), i))).collect()
}

fn seat(
    space: &Space,
    groups: &HashMap<&str, usize>,
    index: usize,
    replica: &Replica,
) -> Result<Seats, EvaluateError> {
    let group = |(stage, s): (usize, &Stage)| {
        let host = s.ranks.first().map_or("", |p| p.host.as_str());
        let size = s.ranks.len();
        let known =
            groups.get(host).filter(|&&g| space.groups[g].teams.iter().any(|t| t.size as usize == size));
        known.copied().ok_or_else(|| EvaluateError::NoSuchGpus {
            replica: index,
            stage,
            size,
            host: host.into(),
        })
    };
    Ok(Seats(replica.stages.iter().enumerate().map(group).collect::<Result<_, _>>()?))
}

fn replica_cost(
    space: &Space,
    index: usize,
    replica: &Replica,
    seats: &Seats,
    pool_bytes: &mut [f64],
) -> Result<ReplicaCost, EvaluateError> {
    let stages = replica.stages.iter().zip(&seats.0);
    let stages_s: Vec<f64> = stages.map(|(stage, &group)| stage_s(space, stage, group)).collect();
    let (mut crossings, mut crossing_bytes) = (Vec::new(), Vec::new());
    for (i, pair) in replica.stages.windows(2).enumerate() {
        let way = way(space, [&pair[0], &pair[1]], [seats.0[i], seats.0[i + 1]]).ok_or_else(|| {
            unreachable(space, format!("boundary {i} of replica {index}"), &seats.0[i..i + 2])
        })?;
        let (crossing, bytes) = space.crossing(way, replica.boundaries[i].codec);
        for &pool in &way.pools {
            pool_bytes[pool] += bytes as f64 * f64::from(replica.microbatches);
        }
        crossings.push(crossing);
        crossing_bytes.push(bytes);
    }
    let (fill_s, beat_s) = (fill_s(&stages_s, &crossings), beat_s(&stages_s, &crossings));
    let pipeline_s = pipeline_s(replica.microbatches, fill_s, beat_s);
    Ok(ReplicaCost { stages_s, crossings, crossing_bytes, fill_s, beat_s, pipeline_s })
}

fn stage_s(space: &Space, stage: &Stage, group: usize) -> f64 {
    let teams = &space.groups[group].teams;
    let team = teams.iter().find(|t| t.size as usize == stage.ranks.len()).expect("seated before");
    let head_s = if stage.layers[1] == space.model.layers { team.head_s } else { 0.0 };
    f64::from(stage.layers[1] - stage.layers[0]) * team.layer_s + head_s
}

fn way<'a>(space: &'a Space, stages: [&Stage; 2], groups: [usize; 2]) -> Option<&'a Way> {
    let [from, to] = stages.map(|s| &s.ranks[0].host);
    match groups {
        [a, b] if a != b => space.link(a, b),
        [a, _] if from == to => Some(&space.groups[a].bus),
        [a, _] => Some(&space.groups[a].nic),
    }
}

fn unreachable(space: &Space, what: String, groups: &[usize]) -> EvaluateError {
    let name = |g: usize| space.cluster.clusters[g].name.clone();
    EvaluateError::Unreachable { what, a: name(groups[0]), b: name(groups[1]) }
}

fn busiest(space: &Space, pool_bytes: &[f64]) -> Option<(String, f64)> {
    let busy = space.pools.iter().zip(pool_bytes).map(|(pool, bytes)| (pool, bytes / pool.rate_bytes_per_s));
    let (pool, busy_s) = busy.max_by(|a, b| a.1.total_cmp(&b.1))?;
    (busy_s > 0.0).then(|| (pool.name.clone(), busy_s))
}

fn exchange_s(space: &Space, plan: &Plan, seats: &[Seats]) -> Result<f64, EvaluateError> {
    let Some(exchange) = plan.exchange.first().filter(|_| plan.replicas.len() > 1) else { return Ok(0.0) };
    let signatures: Vec<_> = plan.replicas.iter().zip(seats).map(|(r, s)| s.signature(r)).collect();
    let common = match aligned(signatures.iter()) {
        true => None,
        false => Some(mixed_path(space, seats)?),
    };
    let count = plan.replicas.len() as u32;
    let stages = plan.replicas.iter().zip(seats).flat_map(|(r, s)| r.stages.iter().zip(&s.0));
    let times = stages.map(|(stage, &group)| {
        let path = common.unwrap_or(space.groups[group].exchange);
        let parameters = stage_parameters(space.model, stage.layers[0]..stage.layers[1]) as f64;
        space.exchange_s((exchange.kind, exchange.every), count, parameters / stage.ranks.len() as f64, path)
    });
    Ok(times.fold(0.0, f64::max))
}

fn mixed_path(space: &Space, seats: &[Seats]) -> Result<crate::cost::exchange::Path, EvaluateError> {
    let mut touched: Vec<usize> = seats.iter().flat_map(|s| s.0.iter().copied()).collect();
    touched.sort_unstable();
    touched.dedup();
    space.exchange_path(&touched).ok_or_else(|| unreachable(space, "an exchange".into(), &touched))
}

fn memory_bytes(space: &Space, plan: &Plan) -> Vec<f64> {
    let kind = exchange_of(plan);
    let seats = plan.seats();
    let bytes = seats.iter().map(|seat| {
        let replica = &plan.replicas[seat.replica];
        let stage = &replica.stages[seat.stage];
        let held = in_flight(replica.microbatches, replica.stages.len() as u32, seat.stage as u32);
        space.rank_bytes(stage.layers[0]..stage.layers[1], stage.ranks.len() as u32, held, kind)
    });
    bytes.collect()
}

/// What the plan's replicas exchange, if there are several.
fn exchange_of(plan: &Plan) -> Option<ExchangeKind> {
    plan.exchange.first().filter(|_| plan.replicas.len() > 1).map(|e| e.kind)
}
