//! Columns: the pipelines of a part of the space, and the fastest split of each one's layers.
//!
//! ```text
//!   outline   runs in order: (cluster, tensor-parallel degree, stages, layers)       fixes fill, GPUs, bytes
//!   split     layers of each stage                                                   fixes the beat
//! ```
//! For a beat b a split is feasible if for every run i..j of stages  sum (t - b) + 2 sum e <= 0. Walking down the pipeline,
//! w_i = t_i - b + max(0, w_{i-1} + 2 e_{i-1}) is the worst such sum that ends in i; a smaller w is never worse for
//! what follows, and among equal stages moving a layer forward never raises the w that leaves the run. So the greedy
//! split, as many layers as early as w <= 0, memory and the exchange's limit allow, is feasible if any is; b is
//! bisected. A floor of the beat (longest stage of an even split, mean over all) postpones most of that work.
//!
//! Memory depends on microbatches in flight, min(m, p - i): splits are made for as many as the pipeline can hold, and,
//! where memory binds, for every smaller m too.

use std::cell::OnceCell;

use crate::cost::memory::stage_parameters;
use crate::cost::pipeline::{Crossing, beat_s};
use crate::plan::Codec;

use super::evaluate::Signature;
use super::space::{Space, Team, Way};
use super::terms::{ExchangeTerms, Terms};

/// Consecutive stages in one cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Run {
    pub group: usize,
    pub team: Team,
    pub stages: u32,
    pub layers: u32,
}

/// A pipeline but for the split of each run's layers over its stages.
#[derive(Debug, Clone)]
pub(crate) struct Outline {
    pub runs: Vec<Run>,
    /// GPUs, by group.
    pub devices: Vec<u32>,
    /// Bytes of a microbatch, by pool.
    pub traffic: Vec<f64>,
    pub codecs: Vec<Codec>,
    crossings: Vec<Crossing>,
    pub fill_s: f64,
    /// No split has a smaller beat.
    floor_s: f64,
    /// By microbatches held at most, from 1; the last stands for any number.
    splits: Vec<OnceCell<Option<Split>>>,
}

/// Layers of every stage, and what follows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Split {
    pub layers: Vec<u32>,
    pub beat_s: f64,
    /// More would not fit into memory.
    pub most_microbatches: u32,
}

/// Which clusters and layers a pipeline may use.
#[derive(Debug, Clone)]
pub(crate) enum Reach<'r> {
    /// Any order of any of these clusters.
    Within(&'r [usize]),
    /// Exactly these clusters in this order, with so many layers each.
    Exactly(&'r Signature),
}

/// More outlines than this are thinned.
const MOST_OUTLINES: usize = 400_000;

/// And thinned to at most so many.
const THINNED_OUTLINES: usize = 60_000;

/// The outlines of a reach.
pub(crate) struct Outlines {
    pub list: Vec<Outline>,
    /// Not all are there.
    pub thinned: bool,
}

/// All pipelines of a reach, thinned to even loads where they are too many.
pub(crate) fn outlines(space: &Space, reach: &Reach) -> Outlines {
    let thinned = count(space, reach, Density::All, MOST_OUTLINES) > MOST_OUTLINES;
    let mut density = Density::All;
    let mut step = 1;
    while thinned && count(space, reach, density, THINNED_OUTLINES) > THINNED_OUTLINES {
        density = Density::Even { step };
        step *= 2;
    }
    let mut list = Vec::new();
    walk(space, reach, density, &mut |runs| {
        list.push(Outline::new(space, runs.to_vec()));
        true
    });
    Outlines { list, thinned }
}

/// How many there are; counting stops above `most`.
fn count(space: &Space, reach: &Reach, density: Density, most: usize) -> usize {
    let mut count = 0;
    walk(space, reach, density, &mut |_| {
        count += 1;
        count <= most
    });
    count
}

#[derive(Clone, Copy)]
enum Density {
    All,
    /// Layers within one of even loads, stage counts in steps.
    Even {
        step: u32,
    },
}

/// Hands every list of runs to `take`, in a fixed order, until it says stop; true if it never did.
fn walk(space: &Space, reach: &Reach, density: Density, take: &mut dyn FnMut(&[Run]) -> bool) -> bool {
    match reach {
        Reach::Within(groups) => orders(space, groups)
            .iter()
            .all(|order| stages(space, order, None, density, &mut Vec::new(), take)),
        Reach::Exactly(signature) => {
            let order: Vec<usize> = signature.iter().map(|s| s.0).collect();
            let layers: Vec<u32> = signature.iter().map(|s| s.1).collect();
            stages(space, &order, Some(&layers), density, &mut Vec::new(), take)
        }
    }
}

/// Orders of subsets of `groups` in which neighbours are joined.
pub(crate) fn orders(space: &Space, groups: &[usize]) -> Vec<Vec<usize>> {
    let mut orders: Vec<Vec<usize>> = groups.iter().map(|&g| vec![g]).collect();
    let mut from = 0;
    while from < orders.len() {
        let order = orders[from].clone();
        let last = *order.last().expect("orders are not empty");
        let next = groups.iter().filter(|g| !order.contains(g) && space.link(last, **g).is_some());
        orders.extend(next.map(|&g| [order.clone(), vec![g]].concat()));
        from += 1;
    }
    orders
}

/// Teams and stage counts of every further run of an order.
fn stages(
    space: &Space,
    order: &[usize],
    pinned: Option<&[u32]>,
    density: Density,
    runs: &mut Vec<Run>,
    take: &mut dyn FnMut(&[Run]) -> bool,
) -> bool {
    let depth = runs.len();
    if depth == order.len() {
        return layers(space, runs, pinned, density, take);
    }
    let group = &space.groups[order[depth]];
    let used: u32 = runs.iter().map(|r| r.stages).sum();
    let left = space.model.layers.saturating_sub(used + (order.len() - depth - 1) as u32);
    let step = if let Density::Even { step } = density { step } else { 1 };
    for &team in &group.teams {
        let most = (group.gpus / team.size).min(left).min(pinned.map_or(u32::MAX, |p| p[depth]));
        for stages_here in (1..=most).filter(|n| *n == most || n % step == 0 || *n == 1) {
            runs.push(Run { group: order[depth], team, stages: stages_here, layers: 0 });
            let go_on = stages(space, order, pinned, density, runs, take);
            runs.pop();
            if !go_on {
                return false;
            }
        }
    }
    true
}

/// Layers of every run: pinned, or all compositions, or those near even loads.
fn layers(
    space: &Space,
    runs: &mut [Run],
    pinned: Option<&[u32]>,
    density: Density,
    take: &mut dyn FnMut(&[Run]) -> bool,
) -> bool {
    if let Some(pinned) = pinned {
        runs.iter_mut().zip(pinned).for_each(|(run, &layers)| run.layers = layers);
        return take(runs);
    }
    let rates: f64 = runs.iter().map(|r| f64::from(r.stages) / r.team.layer_s).sum();
    let even = |run: &Run| f64::from(space.model.layers) * f64::from(run.stages) / run.team.layer_s / rates;
    let ranges: Vec<(u32, u32)> = runs
        .iter()
        .map(|run| match density {
            Density::All => (run.stages, space.model.layers),
            Density::Even { .. } => {
                let even = even(run);
                let low = (even.floor() as u32).saturating_sub(1).max(run.stages);
                (low, (even.ceil() as u32 + 1).max(run.stages))
            }
        })
        .collect();
    fill_layers(runs, 0, space.model.layers, &ranges, take)
}

fn fill_layers(
    runs: &mut [Run],
    depth: usize,
    left: u32,
    ranges: &[(u32, u32)],
    take: &mut dyn FnMut(&[Run]) -> bool,
) -> bool {
    if depth + 1 == runs.len() {
        let (low, high) = ranges[depth];
        runs[depth].layers = left;
        return !(low..=high).contains(&left) || take(runs);
    }
    let rest: u32 = runs[depth + 1..].iter().map(|r| r.stages).sum();
    for layers in ranges[depth].0..=ranges[depth].1.min(left.saturating_sub(rest)) {
        runs[depth].layers = layers;
        if !fill_layers(runs, depth + 1, left - layers, ranges, take) {
            return false;
        }
    }
    true
}

impl Outline {
    fn new(space: &Space, runs: Vec<Run>) -> Self {
        let head_s = runs.last().expect("runs are not empty").team.head_s;
        let compute_s: f64 = runs.iter().map(|r| f64::from(r.layers) * r.team.layer_s).sum::<f64>() + head_s;
        let count: u32 = runs.iter().map(|r| r.stages).sum();
        let mean_stage_s = compute_s / f64::from(count);
        let ways = ways(space, &runs);
        let codecs: Vec<Codec> = ways.iter().map(|way| space.codec(way, mean_stage_s)).collect();
        let mut traffic = vec![0.0; space.pools.len()];
        let mut crossings = Vec::with_capacity(ways.len());
        for (way, &codec) in ways.iter().zip(&codecs) {
            let (crossing, bytes) = space.crossing(way, codec);
            way.pools.iter().for_each(|&pool| traffic[pool] += bytes as f64);
            crossings.push(crossing);
        }
        let mut devices = vec![0; space.groups.len()];
        runs.iter().for_each(|run| devices[run.group] += run.stages * run.team.size);
        let fill_s = compute_s + 2.0 * crossings.iter().map(|c| c.delay_s()).sum::<f64>();
        let floor_s = floor_s(&runs, fill_s, &crossings);
        Self {
            devices,
            traffic,
            codecs,
            crossings,
            fill_s,
            floor_s,
            runs,
            splits: vec![OnceCell::new(); count as usize],
        }
    }

    /// Microbatches in `step_s` at most, whatever the split.
    pub fn microbatches_at_most(&self, step_s: f64) -> u32 {
        microbatches(step_s, self.fill_s, self.floor_s)
    }

    /// Seconds of `microbatches` at least, whatever the split.
    pub fn at_least_s(&self, microbatches: u32) -> f64 {
        self.fill_s + f64::from(microbatches - 1) * self.floor_s
    }

    /// The fastest split that holds `microbatches` of its pipeline's at once, if any. Computed once: an outline lives
    /// under one set of terms.
    pub fn split(&self, terms: &Terms, microbatches: u32) -> Option<&Split> {
        let held = microbatches.min(self.splits.len() as u32);
        let most = if held == self.splits.len() as u32 { u32::MAX } else { held };
        let split = || fastest(self, &terms.caps(self, most)).map(|s| Split { most_microbatches: most, ..s });
        self.splits[held as usize - 1].get_or_init(split).as_ref()
    }

    /// Can its stages hold its layers, with so many microbatches in the pipeline?
    pub fn holds(&self, terms: &Terms, microbatches: u32) -> bool {
        let caps = terms.caps(self, microbatches);
        let mut rest = &caps[..];
        let run = |run: &Run| {
            let (these, after) = rest.split_at(run.stages as usize);
            rest = after;
            these.iter().all(|&cap| cap > 0) && these.iter().sum::<u32>() >= run.layers
        };
        self.runs.iter().all(run)
    }

    /// Forgets the splits: the terms changed.
    pub fn forget(&mut self) {
        self.splits.iter_mut().for_each(|s| *s = OnceCell::new());
    }

    /// The split that turns most microbatches around in `step_s`, and how many. With fewer microbatches than stages,
    /// fewer are held, and where memory binds that leaves room for a better split.
    pub fn best(&self, terms: &Terms, step_s: f64) -> Option<(&Split, u32)> {
        let count = self.splits.len() as u32;
        let done = |split: &Split| microbatches(step_s, self.fill_s, split.beat_s);
        let any = self.split(terms, count).map(|s| (s, done(s)));
        let free = self.split(terms, 1)?;
        let so_far = any.map_or(0, |a| a.1);
        if so_far >= count - 1 || any.is_some_and(|a| a.0.beat_s <= free.beat_s) {
            return any.filter(|a| a.1 > 0);
        }
        // The fewer, the faster: the most that are still done in time.
        let (mut low, mut high) = (so_far, count - 1);
        while low < high {
            let middle = (low + high).div_ceil(2);
            let in_time = self.split(terms, middle).is_some_and(|s| done(s) >= middle);
            if in_time { low = middle } else { high = middle - 1 }
        }
        if low > so_far { self.split(terms, low).map(|s| (s, low)) } else { any.filter(|a| a.1 > 0) }
    }

    /// Which clusters keep which layers.
    pub fn signature(&self) -> Signature {
        self.runs.iter().map(|r| (r.group, r.layers)).collect()
    }

    /// No split's longest exchange is shorter.
    pub fn exchange_floor_s(&self, space: &Space, terms: &ExchangeTerms) -> f64 {
        let layer = space.model.layer_parameters() as f64;
        let run = |run: &Run| {
            let parameters = f64::from(run.layers.div_ceil(run.stages)) * layer / f64::from(run.team.size);
            space.exchange_s(terms.kind, terms.replicas, parameters, terms.paths[run.group])
        };
        self.runs.iter().map(run).fold(0.0, f64::max)
    }

    /// The longest exchange of a split's stages among `replicas`.
    pub fn exchange_s(&self, space: &Space, split: &Split, terms: &ExchangeTerms, replicas: u32) -> f64 {
        let mut first = 0;
        let stages = self.stage_runs().zip(&split.layers).map(|(run, &layers)| {
            let parameters = stage_parameters(space.model, first..first + layers) as f64;
            first += layers;
            space.exchange_s(
                terms.kind,
                replicas,
                parameters / f64::from(run.team.size),
                terms.paths[run.group],
            )
        });
        stages.fold(0.0, f64::max)
    }

    /// The run of every stage.
    pub fn stage_runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().flat_map(|run| std::iter::repeat_n(run, run.stages as usize))
    }
}

/// Microbatches that fit into a step, with room for rounding.
pub(crate) fn microbatches(step_s: f64, fill_s: f64, beat_s: f64) -> u32 {
    let beats = (step_s - fill_s) / beat_s + 1e-9;
    if beats < 0.0 { 0 } else { (beats as u32).saturating_add(1) }
}

/// The ways between consecutive stages. A run fills hosts from their first GPU, so it leaves a host after as many
/// stages as a host holds.
fn ways<'a>(space: &'a Space, runs: &[Run]) -> Vec<&'a Way> {
    let mut ways = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        if i > 0 {
            ways.push(space.link(runs[i - 1].group, run.group).expect("orders keep to links"));
        }
        let group = &space.groups[run.group];
        let per_host = group.per_host / run.team.size;
        ways.extend((1..run.stages).map(|s| if s % per_host == 0 { &group.nic } else { &group.bus }));
    }
    ways
}

fn floor_s(runs: &[Run], fill_s: f64, crossings: &[Crossing]) -> f64 {
    let count: u32 = runs.iter().map(|r| r.stages).sum();
    let longest = runs.iter().map(|r| f64::from(r.layers.div_ceil(r.stages)) * r.team.layer_s);
    let last = runs.last().expect("runs are not empty");
    let with_head = last.team.head_s + last.team.layer_s;
    let busy = crossings.iter().map(|c| c.occupancy_s);
    let floor = longest.chain(busy).fold(with_head, f64::max);
    // The run over all stages, less a rounding error: it must stay a floor.
    floor.max(fill_s / f64::from(count) * (1.0 - 1e-12))
}

/// The split of least beat under caps.
fn fastest(outline: &Outline, caps: &[u32]) -> Option<Split> {
    let split = |beat_s: f64| greedy(outline, caps, beat_s);
    let real_s = |layers: &[u32]| beat_s(&times(outline, layers), &outline.crossings);
    let mut low = outline.floor_s;
    if let Some(layers) = split(low) {
        return Some(Split { beat_s: real_s(&layers), layers, most_microbatches: u32::MAX });
    }
    let mut best = split(outline.fill_s)?;
    let mut high = real_s(&best);
    // Beats are few: a split found is often the one sought, and one trial just below it ends the search.
    loop {
        if let Some(layers) = split(high * (1.0 - 1e-9)) {
            (high, best) = (real_s(&layers).min(high * (1.0 - 1e-9)), layers);
        } else {
            return Some(Split { beat_s: real_s(&best), layers: best, most_microbatches: u32::MAX });
        }
        let middle = 0.5 * (low + high);
        match split(middle) {
            Some(layers) => (high, best) = (real_s(&layers).min(middle), layers),
            None => low = middle,
        }
    }
}

fn times(outline: &Outline, layers: &[u32]) -> Vec<f64> {
    let mut times: Vec<f64> =
        outline.stage_runs().zip(layers).map(|(run, &n)| f64::from(n) * run.team.layer_s).collect();
    *times.last_mut().expect("runs are not empty") += outline.runs.last().expect("likewise").team.head_s;
    times
}

/// The split that puts as many layers as early as a beat allows; `None` if the beat is too short.
fn greedy(outline: &Outline, caps: &[u32], beat_s: f64) -> Option<Vec<u32>> {
    let count = caps.len();
    let tolerance = 1e-12 * beat_s;
    let mut layers = Vec::with_capacity(count);
    let mut worst = f64::NEG_INFINITY;
    for run in &outline.runs {
        let mut left = run.layers;
        for position in 0..run.stages {
            let stage = layers.len();
            let carried = if stage == 0 {
                0.0
            } else {
                (worst + 2.0 * outline.crossings[stage - 1].delay_s()).max(0.0)
            };
            let fixed = if stage + 1 == count { run.team.head_s } else { 0.0 };
            let room = ((beat_s + tolerance - carried - fixed) / run.team.layer_s).max(0.0) as u32;
            let others = run.stages - position - 1;
            let take = room.min(caps[stage]).min(left.saturating_sub(others));
            if take == 0 || (others == 0 && take < left) {
                return None;
            }
            worst = f64::from(take) * run.team.layer_s + fixed - beat_s + carried;
            left -= take;
            layers.push(take);
        }
    }
    Some(layers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inventory::Cluster;
    use crate::search::fixture::{alone, fabric, gpt, gpu, link};
    use crate::search::{EngineLimits, SearchOptions};

    /// Every way to write `layers` as `stages` positive numbers.
    fn compositions(layers: u32, stages: u32) -> Vec<Vec<u32>> {
        if stages == 1 {
            return vec![vec![layers]];
        }
        let first = 1..=layers - (stages - 1);
        let rest =
            |n: u32| compositions(layers - n, stages - 1).into_iter().map(move |r| [vec![n], r].concat());
        first.flat_map(rest).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_split_of_an_outline_beats_the_greedy_one(
            slow in 0.2f64..5.0,
            rate in 1e6f64..1e10,
            layers in 2u32..8,
        ) {
            let mut other = fabric("b", 3, 1);
            other.gpu = gpu(slow * 1e12, 1_000_000_000);
            other.nic.rate_bytes_per_s = rate;
            let cluster = Cluster {
                clusters: vec![fabric("a", 1, 2), other],
                links: vec![link("a", "b", 1e8, 1e-4)],
            };
            let model = gpt(layers, 256);
            let options = SearchOptions::default();
            let space = Space::new(&cluster, &model, &EngineLimits::NATIVE, &options).unwrap();
            for outline in outlines(&space, &Reach::Within(&[0, 1])).list {
                let best = outline.split(&Terms::new(&space, None), u32::MAX).unwrap().beat_s;
                let runs = &outline.runs;
                let all = compositions(layers, runs.iter().map(|r| r.stages).sum());
                let in_runs = all.iter().filter(|c| {
                    let mut rest = &c[..];
                    runs.iter().all(|run| {
                        let (these, after) = rest.split_at(run.stages as usize);
                        rest = after;
                        these.iter().sum::<u32>() == run.layers
                    })
                });
                let least = in_runs.map(|c| beat_s(&times(&outline, c), &outline.crossings));
                let least = least.fold(f64::INFINITY, f64::min);
                prop_assert!((best / least - 1.0).abs() < 1e-9, "{runs:?}: {best}, enumerated {least}");
                prop_assert!(outline.floor_s <= least * (1.0 + 1e-12));
            }
        }
    }

    #[test]
    fn tight_memory_shifts_layers_to_later_stages_or_caps_microbatches() {
        let mut small = fabric("a", 1, 2);
        // Three layers with one microbatch in flight, not with two; two layers with two.
        small.gpu.memory_bytes = 50_000_000;
        let (cluster, model, options) = (alone(small), gpt(4, 256), SearchOptions::default());
        let space = Space::new(&cluster, &model, &EngineLimits::NATIVE, &options).unwrap();
        let all = outlines(&space, &Reach::Within(&[0])).list;
        let two = all.iter().find(|o| o.runs[0].stages == 2).unwrap();
        let terms = Terms::new(&space, None);
        for split in [1, 2].into_iter().filter_map(|m| two.split(&terms, m)) {
            let held = [split.most_microbatches.min(2), 1];
            let needs = [(0..split.layers[0], held[0]), (split.layers[0]..4, held[1])];
            for (range, held) in needs {
                assert!(space.rank_bytes(range, 1, held, None) <= 50_000_000.0, "{split:?}");
            }
        }
    }
}
