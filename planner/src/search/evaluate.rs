//! The closed form: seconds per step of any plan, from its stages, hosts, codecs and exchange.
//!
//! ```text
//!   step = max( fill_r + (m_r - 1) beat_r + sync_r over replicas r,  bytes / rate over pools )
//! ```
//! The synchronisation is that of `sync`: islands are joined by dense exchanges inside clusters, and exchange with one
//! another. Dense exchanges of replicas that keep layers in different clusters are between islands of one.
//!
//! Limits: those of `cost`; pools are sums over hosts, so a plan that loads one host's link alone is priced too low.
//! Not here: the timeline (`simulate`), which gives the figure that is reported.

use std::collections::HashMap;

use crate::cost::exchange::Sharding;
use crate::cost::memory::stage_parameters;
use crate::cost::pipeline::{Crossing, beat_s, fill_s, held, pipeline_s};
use crate::inventory::Cluster;
use crate::model::Model;
use crate::plan::{Exchange, ExchangeKind, Plan, Replica, Stage};

use super::column::Signature;
use super::space::{Space, Way};
use super::sync::{Outer, Speaker, Sync};
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
    /// Seconds per step in the exchange of the replica that ends last, amortised.
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
    /// Seconds per step of its synchronisation with the others, amortised.
    pub sync_s: f64,
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
    let options = SearchOptions::default();
    let models: Vec<Model> = (0..plan.replicas.len())
        .map(|r| Model {
            micro_batch: Some(plan.micro_batch_of(r)),
            recompute: plan.recompute_of(r),
            ..plan.model.clone()
        })
        .collect();
    let mut distinct: Vec<&Model> = Vec::new();
    for model in &models {
        if !distinct.contains(&model) {
            distinct.push(model);
        }
    }
    let mut spaces: Vec<Space> = Vec::new();
    for &model in &distinct {
        let space = Space::new(&plan.cluster, model, &EngineLimits::ANY, &options);
        spaces.push(space.expect("ANY supports every choice"));
    }
    let of = |model: &Model| distinct.iter().position(|m| *m == model).expect("collected above");
    let modes: Vec<&Space> = models.iter().map(|m| &spaces[of(m)]).collect();
    evaluate_in(&modes, plan)
}

/// As [`evaluate`], with the space of each replica at hand.
pub(crate) fn evaluate_in(modes: &[&Space], plan: &Plan) -> Result<Evaluation, EvaluateError> {
    let space = modes[0];
    let groups = groups_by_host(space.cluster);
    let seats = plan.replicas.iter().enumerate().map(|(i, r)| seat(space, &groups, i, r));
    let seats = seats.collect::<Result<Vec<_>, _>>()?;
    let syncs = syncs(space, plan, &seats)?;
    let mut pool_bytes = vec![0.0; space.pools.len()];
    let mut replicas = Vec::new();
    for (index, (replica, seats)) in plan.replicas.iter().zip(&seats).enumerate() {
        let mut cost = replica_cost(modes[index], index, replica, seats, &mut pool_bytes)?;
        cost.sync_s = sync_s(modes[index], &syncs[index], replica, seats);
        replicas.push(cost);
    }
    let busiest_pool = busiest(space, &pool_bytes);
    let ends = |r: &&ReplicaCost| r.pipeline_s + r.sync_s;
    let slowest = replicas.iter().max_by(|a, b| ends(a).total_cmp(&ends(b)));
    let shared_s = busiest_pool.as_ref().map_or(0.0, |p| p.1);
    Ok(Evaluation {
        iteration_s: slowest.as_ref().map_or(0.0, ends).max(shared_s),
        exchange_s: slowest.map_or(0.0, |r| r.sync_s),
        memory_bytes: memory_bytes(modes, plan, &syncs),
        replicas,
        busiest_pool,
    })
}

/// What each replica takes part in.
fn syncs(space: &Space, plan: &Plan, seats: &[Seats]) -> Result<Vec<Sync>, EvaluateError> {
    let mut syncs = vec![Sync::ALONE; plan.replicas.len()];
    let signatures: Vec<Signature> = plan.replicas.iter().zip(seats).map(|(r, s)| s.signature(r)).collect();
    let like = |e: &Exchange| {
        e.replicas.iter().all(|&r| signatures[r as usize] == signatures[e.replicas[0] as usize])
    };
    let mut islands = plan.replicas.len() as u32;
    let (inner, outer): (Vec<&Exchange>, Vec<&Exchange>) =
        plan.exchange.iter().partition(|e| e.kind == ExchangeKind::Dense && like(e));
    for exchange in inner {
        islands -= exchange.replicas.len() as u32 - 1;
        for &replica in &exchange.replicas {
            syncs[replica as usize].owners = exchange.replicas.len() as u32;
            syncs[replica as usize].sharding = Sharding::of(exchange, plan.model.precision);
        }
    }
    for exchange in outer {
        let mut clusters: Vec<usize> =
            exchange.replicas.iter().flat_map(|&r| seats[r as usize].0.iter().copied()).collect();
        clusters.sort_unstable();
        clusters.dedup();
        for (i, &a) in clusters.iter().enumerate() {
            let apart = clusters[i + 1..].iter().find(|&&b| space.exchange_path(a, &[a, b], 1).is_none());
            if let Some(&b) = apart {
                return Err(unreachable(space, "an exchange".into(), &[a, b]));
            }
        }
        let lone = exchange.replicas.iter().all(|&r| syncs[r as usize].owners == 1);
        for &replica in &exchange.replicas {
            syncs[replica as usize].outer = Some(Outer {
                kind: (exchange.kind, exchange.every),
                islands,
                clusters: clusters.clone(),
                speaker: if lone { Speaker::Replica } else { Speaker::Island },
            });
        }
    }
    Ok(syncs)
}

/// The longest synchronisation of a replica's ranks.
fn sync_s(space: &Space, sync: &Sync, replica: &Replica, seats: &Seats) -> f64 {
    if *sync == Sync::ALONE {
        return 0.0;
    }
    let (ranks, _) = replica.split_ranks();
    let times = (0..ranks).map(|i| {
        let stages = replica.stages.iter().skip(i).step_by(ranks);
        let parameters: u64 = stages.map(|s| stage_parameters(space.model, s.layers[0]..s.layers[1])).sum();
        let size = replica.stages[i].ranks.len();
        let speakers =
            (0..ranks).filter(|&j| seats.0[j] == seats.0[i]).map(|j| replica.stages[j].ranks.len());
        sync.stage_s(space, seats.0[i], parameters as f64 / size as f64, speakers.sum::<usize>() as u32)
    });
    times.fold(0.0, f64::max)
}

/// The group of each stage of a replica.
struct Seats(Vec<usize>);

impl Seats {
    fn signature(&self, replica: &Replica) -> Signature {
        let (ranks, _) = replica.split_ranks();
        let mut runs: Signature = Vec::new();
        for i in 0..ranks {
            let stages = replica.stages.iter().skip(i).step_by(ranks);
            let layers = stages.map(|s| s.layers[1] - s.layers[0]).sum::<u32>();
            match runs.last_mut() {
                Some(run) if run.0 == self.0[i] => run.1 += layers,
                _ => runs.push((self.0[i], layers)),
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
    let (ranks, chunks) = replica.split_ranks();
    let mut stages_s = vec![0.0; ranks];
    for (i, (stage, &group)) in replica.stages.iter().zip(&seats.0).enumerate() {
        stages_s[i % ranks] += stage_s(space, stage, group);
    }
    let (mut crossings, mut crossing_bytes, mut crossing_s) = (Vec::new(), Vec::new(), 0.0);
    for (i, pair) in replica.stages.windows(2).enumerate() {
        let way = way(space, [&pair[0], &pair[1]], [seats.0[i], seats.0[i + 1]]).ok_or_else(|| {
            unreachable(space, format!("boundary {i} of replica {index}"), &seats.0[i..i + 2])
        })?;
        let group = pair[0].ranks.len().min(pair[1].ranks.len()) as u32;
        let (crossing, bytes) = space.crossing(way, replica.boundaries[i].codec, group);
        for &pool in &way.pools {
            pool_bytes[pool] += bytes as f64 * f64::from(replica.microbatches);
        }
        if i + 1 < ranks || (i + 1) % ranks == 0 {
            crossing_s += 2.0 * crossing.delay_s();
        }
        if i + 1 < ranks {
            crossings.push(crossing.repeated(chunks));
            crossing_bytes.push(bytes);
        }
    }
    let fill_s = match chunks {
        1 => fill_s(&stages_s, &crossings),
        v => {
            let longest_s = stages_s.iter().copied().fold(0.0, f64::max);
            longest_s + (stages_s.iter().sum::<f64>() - longest_s) / f64::from(v) + crossing_s
        }
    };
    let beat_s = beat_s(&stages_s, &crossings);
    let pipeline_s = pipeline_s(replica.microbatches, fill_s, beat_s);
    Ok(ReplicaCost { stages_s, crossings, crossing_bytes, fill_s, beat_s, pipeline_s, sync_s: 0.0 })
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

fn memory_bytes(modes: &[&Space], plan: &Plan, syncs: &[Sync]) -> Vec<f64> {
    let bytes = plan.seats().into_iter().map(|seat| {
        let (space, sync) = (modes[seat.replica], &syncs[seat.replica]);
        let replica = &plan.replicas[seat.replica];
        let (ranks, chunks) = replica.split_ranks();
        let held = held(replica.microbatches, ranks as u32, chunks, (seat.stage % ranks) as u32);
        let size = replica.stages[seat.stage].ranks.len() as u32;
        let owners = if sync.sharding == Sharding::Whole { 1 } else { sync.owners };
        let stages = replica.stages.iter().skip(seat.stage % ranks).step_by(ranks);
        // What the space tabulates: the layers of all chunks as if they were one stage.
        let layers: u32 = stages.clone().map(|s| s.layers[1] - s.layers[0]).sum();
        let first = stages.clone().any(|s| s.layers[0] == 0);
        let last = stages.clone().any(|s| s.layers[1] == plan.model.layers);
        let range = match (first, last) {
            (true, _) => 0..layers,
            (false, true) => plan.model.layers - layers..plan.model.layers,
            (false, false) => 1..layers + 1,
        };
        space.rank_bytes(range, size, held, sync.drifts(), owners)
    });
    bytes.collect()
}
