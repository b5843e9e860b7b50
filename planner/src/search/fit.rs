//! Why a search came back empty: what does not fit, by how much, and what would help.
//!
//! A model fits if some pipeline's stages can hold its layers, with the fewest microbatches in flight that its replicas
//! allow. If none can, memory is added to every GPU until one does: the least that suffices is the shortfall reported.
//! If a link that is not there would do, that pair of clusters is named instead.
//!
//! What would help is tried before it is said: each change by itself, the smallest of its kind that makes the model fit.
//! Where pipelines are too many to be listed only those of one cluster are tried, so a little less might do.

use std::time::Instant;

use crate::inventory::{Cluster, Host, Link};
use crate::model::{Model, Recompute};
use crate::units::human_bytes;

use super::column::Outline;
use super::market::most_replicas;
use super::pool::Pool;
use super::space::{Group, Space, Team};
use super::terms::Memory;
use super::{EngineLimits, Scope, SearchError, SearchOptions, resolutions};

/// Why a search came back empty.
pub(super) fn why_nothing(
    cluster: &Cluster,
    model: &Model,
    limits: &EngineLimits,
    options: &SearchOptions,
    scope: &Scope,
    deadline: Instant,
) -> SearchError {
    let late = Instant::now() >= deadline;
    let leanest = match resolutions(model, limits) {
        Ok(resolved) => leanest(resolved),
        Err(error) => return error,
    };
    let hopeless = Space::new(cluster, &leanest, limits, options).is_ok_and(|space| is_too_small(&space));
    if late && !hopeless {
        return SearchError::TimeLimit { limit_s: options.time_limit.as_secs_f64() };
    }
    let short = |cluster: &Cluster| shortfall(cluster, &leanest, limits, options, scope);
    let unlinked = pairs(scope).filter_map(|pair| linked(cluster, pair));
    for (joined, [a, b]) in unlinked {
        if matches!(short(&joined), Ok(None)) {
            return SearchError::Unreachable { a, b };
        }
    }
    match short(cluster) {
        Ok(Some(Shortfall { nearest, short_bytes })) => {
            let problem = Problem { cluster, model, limits, options, scope };
            SearchError::DoesNotFit { nearest, short_bytes, advice: problem.advice(short_bytes) }
        }
        Ok(None) => SearchError::Solver { doing: "placing a model that fits", status: "no plan".into() },
        Err(error) => error,
    }
}

/// All GPUs together do not hold the layers, with one microbatch in flight and states sharded as far as can be: no plan
/// of any kind fits. Without a list of pipelines: cheap for any inventory.
fn is_too_small(space: &Space) -> bool {
    let holds = |g: &Group| {
        let of_team = |t: &Team| {
            let owners = if space.limits.zero1 { space.groups.iter().map(|g| g.gpus).sum() } else { 1 };
            let layer = |n: u32| space.rank_bytes(1..n + 1, t.size, 1, None, owners);
            // Bytes are linear in layers: those of none of them taken off.
            let (one, two) = (layer(1), layer(2));
            let most = 1.0 + (g.memory_bytes - one) / (two - one);
            f64::from(g.gpus / t.size) * most.max(0.0)
        };
        g.teams.iter().map(of_team).fold(0.0, f64::max)
    };
    space.model.layers > 3 && space.groups.iter().map(holds).sum::<f64>() < f64::from(space.model.layers - 1)
}

/// Fewest sequences in flight, most recomputed.
fn leanest(resolved: Vec<Model>) -> Model {
    let rank = |m: &Model| {
        let recompute = [Recompute::Full, Recompute::Selective, Recompute::None, Recompute::Auto];
        (m.micro_batch, recompute.iter().position(|r| *r == m.recompute))
    };
    resolved.into_iter().min_by_key(rank).expect("a model resolves to at least one")
}

fn pairs(scope: &Scope) -> impl Iterator<Item = (usize, usize)> {
    let all = &scope.clusters;
    all.iter().enumerate().flat_map(|(i, &a)| all[i + 1..].iter().map(move |&b| (a, b)))
}

/// The inventory with a link that it lacks, and the names of its ends.
fn linked(cluster: &Cluster, (a, b): (usize, usize)) -> Option<(Cluster, [String; 2])> {
    let between = [a, b].map(|c| cluster.clusters[c].name.clone());
    if cluster.links.iter().any(|l| between.iter().all(|name| l.between.contains(name))) {
        return None;
    }
    let mut joined = cluster.clone();
    let (rate_bytes_per_s, latency_s, loss) = (1e9, 0.0, 0.0);
    let link = Link {
        between: between.clone(),
        rate_bytes_per_s,
        shared_bytes_per_s: None,
        latency_s,
        loss,
        price_usd_per_byte: None,
    };
    joined.links.push(link);
    Some((joined, between))
}

struct Shortfall {
    nearest: String,
    short_bytes: u64,
}

/// The least memory that every GPU lacks; `None` if the model fits.
fn shortfall(
    cluster: &Cluster,
    model: &Model,
    limits: &EngineLimits,
    options: &SearchOptions,
    scope: &Scope,
) -> Result<Option<Shortfall>, SearchError> {
    let space = Space::new(cluster, model, limits, options)?;
    let list: Vec<Outline> =
        Pool::new(std::slice::from_ref(&space), scope, 1).columns.into_iter().map(|c| c.outline).collect();
    let mut owners: Vec<u32> = list.iter().map(|outline| most_owners(&space, outline)).collect();
    owners.sort_unstable();
    owners.dedup();
    let nearest = |more_bytes: f64| {
        let mut space = Space::new(cluster, model, limits, options).expect("it was made before");
        space.groups.iter_mut().for_each(|g| g.memory_bytes += more_bytes);
        let tables: Vec<Memory> = owners.iter().map(|&n| Memory::new(&space, None, n)).collect();
        let table = |n: u32| &tables[owners.binary_search(&n).expect("one for each")];
        list.iter().find(|outline| {
            outline.holds(table(most_owners(&space, outline)), fewest_microbatches(&space, outline))
        })
    };
    if nearest(0.0).is_some() {
        return Ok(None);
    }
    let (mut low, mut high) = (0.0, 1e6);
    while nearest(high).is_none() {
        (low, high) = (high, 2.0 * high);
    }
    while high > 1.001 * low {
        let middle = 0.5 * (low + high);
        if nearest(middle).is_some() { high = middle } else { low = middle }
    }
    let outline = nearest(high).expect("it was there");
    Ok(Some(Shortfall { nearest: described(&space, outline), short_bytes: high.ceil() as u64 }))
}

/// A pipeline, and what of the model it does not hold.
fn described(space: &Space, outline: &Outline) -> String {
    let clusters: Vec<&str> =
        outline.runs.iter().map(|r| space.cluster.clusters[r.group].name.as_str()).collect();
    let stages = outline.stages();
    let pipeline = match stages {
        1 => format!("one stage in {}", clusters[0]),
        _ => format!("a pipeline of {stages} stages over {}", clusters.join(", ")),
    };
    let whole = space.model.layers;
    if let Some(alone) = too_large(space) {
        return format!("{pipeline} ({alone})");
    }
    let caps = Memory::new(space, None, most_owners(space, outline))
        .caps(outline, fewest_microbatches(space, outline));
    // A stage in the middle counts the first and last layers elsewhere; no more than all can be held.
    let held = caps.iter().sum::<u32>().min(whole.saturating_sub(1));
    format!("{pipeline} that holds {held} of {whole} layers")
}

/// A layer that not even a GPU, or tensor-parallel group, of its own holds.
fn too_large(space: &Space) -> Option<String> {
    let all = space.model.layers;
    [(0, 0..1), (all - 1, all - 1..all), (all / 2, all / 2..all / 2 + 1)].into_iter().find_map(
        |(layer, range)| {
            let short = |(i, g): (usize, &Group)| {
                let needs =
                    g.teams.iter().map(|t| space.rank_bytes(range.clone(), t.size, 1, None, g.gpus / t.size));
                let needed = needs.fold(f64::INFINITY, f64::min);
                (needed > g.memory_bytes).then_some((i, needed))
            };
            let short: Vec<(usize, f64)> =
                space.groups.iter().enumerate().map(short).collect::<Option<_>>()?;
            let memory = |i: usize| space.groups[i].memory_bytes;
            let &(largest, needed) = short.iter().max_by(|a, b| memory(a.0).total_cmp(&memory(b.0)))?;
            let gpu = &space.cluster.clusters[largest].gpu.name;
            let (needed, has) = (human_bytes(needed.ceil() as u64), human_bytes(memory(largest) as u64));
            Some(format!("layer {layer} alone needs {needed}, the largest GPU, `{gpu}`, has {has}"))
        },
    )
}

/// Microbatches of a replica if as many like it as there are GPUs for share the step.
fn fewest_microbatches(space: &Space, outline: &Outline) -> u32 {
    space.microbatches.div_ceil(most_replicas(space, &outline.devices).max(1))
}

/// How many replicas like it could share the optimiser's states.
fn most_owners(space: &Space, outline: &Outline) -> u32 {
    if space.limits.zero1 { most_replicas(space, &outline.devices).max(1) } else { 1 }
}

/// What did not fit.
struct Problem<'a> {
    cluster: &'a Cluster,
    model: &'a Model,
    limits: &'a EngineLimits,
    options: &'a SearchOptions,
    scope: &'a Scope,
}

impl Problem<'_> {
    /// Changes that make the model fit, each by itself.
    fn advice(&self, short_bytes: u64) -> String {
        let mut ways = vec![format!("{} more memory on each GPU", human_bytes(short_bytes))];
        ways.extend(self.recomputation());
        ways.extend(self.micro_batch());
        ways.extend(self.nodes());
        if !std::ptr::eq(self.limits, &EngineLimits::ANY)
            && self.fits(self.cluster, self.model, &EngineLimits::ANY)
        {
            ways.push("an engine that does more, with tensor parallelism (plan without --native)".into());
        }
        ways.join("; or ")
    }

    fn fits(&self, cluster: &Cluster, model: &Model, limits: &EngineLimits) -> bool {
        let Ok(resolved) = resolutions(model, limits) else { return false };
        matches!(shortfall(cluster, &leanest(resolved), limits, self.options, self.scope), Ok(None))
    }

    fn recomputation(&self) -> Option<String> {
        let kinds = [(Recompute::Selective, "selective"), (Recompute::Full, "full")];
        let helps =
            |recompute| self.fits(self.cluster, &Model { recompute, ..self.model.clone() }, self.limits);
        let (_, word) = kinds.into_iter().find(|(kind, _)| *kind != self.model.recompute && helps(*kind))?;
        Some(format!("recompute = \"{word}\""))
    }

    fn micro_batch(&self) -> Option<String> {
        let smaller =
            (1..self.model.micro_batch?).rev().filter(|b| self.model.global_batch.is_multiple_of(*b));
        let helps = |b: &u32| {
            let model = Model { micro_batch: Some(*b), ..self.model.clone() };
            self.fits(self.cluster, &model, self.limits)
        };
        smaller.into_iter().find(helps).map(|b| format!("micro_batch = {b}"))
    }

    /// The fewest nodes of one cluster with which the model fits; up to eight times what there is.
    fn nodes(&self) -> Option<String> {
        let fewest = |&g: &usize| {
            let has = self.cluster.clusters[g].hosts.len();
            let helps =
                |nodes: usize| self.fits(&with_nodes(self.cluster, g, nodes), self.model, self.limits);
            let mut high = [2, 4, 8].into_iter().map(|times| times * has).find(|n| helps(*n))?;
            let mut low = has;
            while high - low > 1 {
                let middle = (low + high) / 2;
                if helps(middle) { high = middle } else { low = middle }
            }
            Some((high - has, g, high))
        };
        let (_, g, nodes) = self.scope.clusters.iter().filter_map(fewest).min()?;
        Some(format!("nodes = {nodes} in {}", self.cluster.clusters[g].name))
    }
}

fn with_nodes(cluster: &Cluster, index: usize, nodes: usize) -> Cluster {
    let mut larger = cluster.clone();
    let fabric = &mut larger.clusters[index];
    let like = |i| Host { name: format!("{}-more-{i}", fabric.name), address: None };
    let more: Vec<Host> = (fabric.hosts.len()..nodes).map(like).collect();
    fabric.hosts.extend(more);
    larger
}
