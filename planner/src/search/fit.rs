//! Why a search came back empty: what does not fit, by how much, and what would help.
//!
//! A model fits if some pipeline's stages can hold its layers, with the fewest microbatches in flight that its replicas
//! allow. If none can, memory is added to every GPU until one does: the least that suffices is the shortfall reported.
//! If a link that is not there would do, that pair of clusters is named instead.

use std::time::Instant;

use crate::inventory::{Cluster, Link};
use crate::model::{Model, Recompute};

use super::column::Outline;
use super::pool::Pool;
use super::space::Space;
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
    if Instant::now() >= deadline {
        return SearchError::TimeLimit { limit_s: options.time_limit.as_secs_f64() };
    }
    let leanest = match resolutions(model, limits) {
        Ok(resolved) => leanest(resolved),
        Err(error) => return error,
    };
    let short = |cluster: &Cluster| shortfall(cluster, &leanest, limits, options, scope);
    let unlinked = pairs(scope).filter_map(|pair| linked(cluster, pair));
    for (joined, [a, b]) in unlinked {
        if matches!(short(&joined), Ok(None)) {
            return SearchError::Unreachable { a, b };
        }
    }
    match short(cluster) {
        Ok(Some(Shortfall { nearest, short_bytes })) => {
            SearchError::DoesNotFit { nearest, short_bytes, advice: advice(model, limits) }
        }
        Ok(None) => SearchError::Solver { doing: "placing a model that fits", status: "no plan".into() },
        Err(error) => error,
    }
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
    let nearest = |more_bytes: f64| {
        let mut space = Space::new(cluster, model, limits, options).expect("it was made before");
        space.groups.iter_mut().for_each(|g| g.memory_bytes += more_bytes);
        let memory = Memory::new(&space, None, 1);
        list.iter().find(|outline| outline.holds(&memory, fewest_microbatches(&space, outline)))
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
    let clusters: Vec<&str> = outline.runs.iter().map(|r| cluster.clusters[r.group].name.as_str()).collect();
    let stages = outline.stage_runs().count();
    let nearest = format!("a pipeline of {stages} stages over {}", clusters.join(", "));
    Ok(Some(Shortfall { nearest, short_bytes: high as u64 }))
}

/// Microbatches of a replica if as many like it as there are GPUs for share the step.
fn fewest_microbatches(space: &Space, outline: &Outline) -> u32 {
    let used = space.groups.iter().zip(&outline.devices).filter(|(_, used)| **used > 0);
    let replicas = used.map(|(group, used)| group.gpus / used).min().unwrap_or(1).max(1);
    space.microbatches.div_ceil(replicas)
}

fn advice(model: &Model, limits: &EngineLimits) -> String {
    let mut ways = vec!["more GPUs, or GPUs with more memory"];
    if model.micro_batch.is_some_and(|b| b > 1) {
        ways.push("a smaller micro_batch");
    }
    let recomputes = !matches!(model.recompute, Recompute::Full | Recompute::Auto);
    if recomputes && limits.recomputes.contains(&Recompute::Full) {
        ways.push("recompute = \"full\"");
    }
    ways.join("; ")
}
