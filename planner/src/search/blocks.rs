//! Large problems: clusters are divided into islands, each of which is a small problem of its own.
//!
//! Where replicas that share a cluster reduce gradients together, a cluster belongs to one island. For a fixed step
//! time T an island's worth is the most sequences that its clusters can do; the plan is the division of the clusters into
//! islands of most worth together.
//!
//! ```text
//!   one cluster    columns are all listed; per size of the island a knapsack over (GPUs, replicas): the LP of its upper
//!                  hull bounds it, HiGHS solves those that are still of interest
//!   several        per cut of the layers, relaxed pipelines (`relax`) bound the worth: with weights a_g of the clusters,
//!                  max_k s_k / sum_g a_g u_kg / N_g; the promising ones become real columns
//! ```
//! T is infeasible if even bounds of all islands together do not reach the demand: a proof for every plan of the space.
//! An island pays the least synchronisation its size allows; what it really pays is in the plan's objective.
//!
//! Islands of more clusters than [`Blocks::span`] are not looked at: a restriction, which the report states.
//!
//! Not here: small problems, loose replicas (`solve`).

use std::collections::BTreeMap;
use std::time::Instant;

use crate::plan::ExchangeKind;

use super::column::{Outline, Work, microbatches};
use super::market::{Scenario, Tables, brackets, sync};
use super::master::partition;
use super::pack::{Item, pack};
use super::pool::{Column, Pool, orders};
use super::relax::{self, Relaxed};
use super::solve::{Candidate, FEW_CLUSTERS, Member, really};
use super::space::Space;
use super::sync::Sync;
use super::{Scope, SearchError};

/// The search of a problem whose clusters are divided into islands.
pub(crate) struct Blocks<'a> {
    pub modes: &'a [Space<'a>],
    pub tables: &'a [Tables],
    pub scope: &'a Scope,
    pub gap: f64,
    pub deadline: Instant,
    pub pool: &'a mut Pool,
    /// Of one cluster each, by cluster: those worth offering.
    pub listed: BTreeMap<usize, Vec<usize>>,
    pub best: Option<Candidate>,
    pub best_s: f64,
    pub bound_s: f64,
}

/// What an island can do, and how.
#[derive(Debug, Clone, Default)]
struct Worth {
    sequences: f64,
    /// Column, its work and how many replicas.
    members: Vec<(usize, Work, u32)>,
}

/// A column for one number of owners: its fastest split and the least it can synchronise.
struct Ready<'a> {
    column: usize,
    outline: &'a Outline,
    mode: usize,
}

impl Blocks<'_> {
    /// The largest number of clusters of an island that is looked at.
    fn span(&self) -> usize {
        if self.scope.clusters.len() <= FEW_CLUSTERS { FEW_CLUSTERS } else { 2 }
    }

    /// Searches every exchange between islands, and one island alone.
    pub fn run(&mut self, floor_s: f64) -> Result<(), SearchError> {
        let all = self.scope.clusters.clone();
        self.listed = all.iter().map(|&g| (g, self.list(g))).collect();
        let one = Scenario { outer: None, clusters: all.clone(), islands: (1, 1) };
        let most = (all.len() as u32).min(self.scope.max_replicas);
        let outer = self.modes[0].outer_kinds();
        let several = |outer: (ExchangeKind, u32)| Scenario {
            outer: Some(outer),
            clusters: all.clone(),
            islands: (2, most),
        };
        let mut scenarios = vec![one];
        if most >= 2 && self.modes[0].limits.nested {
            scenarios.extend(outer.into_iter().map(several));
        }
        // The promising first: its plan spares the others most of their work.
        scenarios.reverse();
        for scenario in scenarios {
            self.explore(&scenario, floor_s)?;
        }
        Ok(())
    }

    fn late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// A first plan: islands of one cluster, each paying for its own synchronisation.
    fn first(&mut self, scenario: &Scenario, floor_s: f64) -> Result<(), SearchError> {
        let (mut low, mut high) = (floor_s, self.best_s);
        let mut reach = 0.05;
        while low < high * (1.0 - 0.25 * self.gap) && low < 1e4 * floor_s && !self.late() {
            let middle = if high.is_finite() { 0.5 * (low + high) } else { low * (1.0 + reach) };
            reach *= 2.0;
            match self.attempt(scenario, middle, (Pricing::Own, Breadth::Alone))? {
                Attempt::Found => high = middle,
                _ => low = middle,
            }
        }
        Ok(())
    }

    /// Narrows the step time of a scenario between what is proven infeasible and what is found.
    fn explore(&mut self, scenario: &Scenario, floor_s: f64) -> Result<(), SearchError> {
        // At `low` even the least synchronisation allows no plan; at `high` it allows one.
        self.first(scenario, floor_s)?;
        let (mut low, mut high) = (floor_s, f64::INFINITY);
        // Where to look while nothing is found: in growing steps above the floor.
        let mut reach = self.gap.max(1e-3);
        let mut unproven = f64::INFINITY;
        loop {
            let wanted = high.min(self.best_s).min(unproven);
            if low >= wanted * (1.0 - self.gap) || self.late() {
                break;
            }
            // Near the incumbent: most often one proof ends it.
            let closing = wanted * (1.0 - self.gap);
            let middle = match wanted.is_finite() {
                true if high.min(unproven) > self.best_s => closing,
                true => 0.5 * (low + closing),
                false => low * (1.0 + reach),
            };
            reach *= 2.0;
            match self.attempt(scenario, middle, (Pricing::Least, Breadth::Several))? {
                Attempt::Found => high = high.min(middle),
                Attempt::Infeasible => low = middle,
                // No proof here; perhaps a little lower.
                Attempt::Open => unproven = unproven.min(middle),
            }
            if unproven.is_finite() && low >= unproven * (1.0 - 0.25 * self.gap) {
                break;
            }
            if low > 1e6 * floor_s {
                low = f64::INFINITY;
                break;
            }
        }
        self.bound_s = self.bound_s.min(low);
        self.seek(scenario, low)
    }

    /// Plans that pay for their own synchronisation, between a proven bound and the incumbent.
    fn seek(&mut self, scenario: &Scenario, mut low: f64) -> Result<(), SearchError> {
        let mut high = self.best_s.min(low * 16.0);
        while low < high * (1.0 - 0.25 * self.gap) && !self.late() {
            let middle = 0.5 * (low + high);
            match self.attempt(scenario, middle, (Pricing::Own, Breadth::Several))? {
                Attempt::Found => high = middle,
                _ => low = middle,
            }
        }
        Ok(())
    }

    fn attempt(
        &mut self,
        scenario: &Scenario,
        step_s: f64,
        how: (Pricing, Breadth),
    ) -> Result<Attempt, SearchError> {
        let t0 = Instant::now();
        let a = self.attempt2(scenario, step_s, how)?;
        if std::env::var("TRACE").is_ok() {
            eprintln!(
                "{:?} T {step_s:.4} {how:?} best {:.4} -> {a:?} {:.2?}",
                scenario.outer,
                self.best_s,
                t0.elapsed()
            );
        }
        Ok(a)
    }

    fn attempt2(
        &mut self,
        scenario: &Scenario,
        step_s: f64,
        (pricing, breadth): (Pricing, Breadth),
    ) -> Result<Attempt, SearchError> {
        let demand = f64::from(self.modes[0].model.global_batch);
        let clusters = self.scope.clusters.clone();
        let mut blocks: Vec<(Vec<usize>, f64)> = Vec::new();
        let mut worths: Vec<Worth> = Vec::new();
        for &cluster in &clusters {
            let worth = self.worth(scenario, &self.listed[&cluster], &[cluster], step_s, pricing)?;
            blocks.push((vec![cluster], worth.sequences));
            worths.push(worth);
        }
        if self.divide(scenario, &blocks, &worths, demand)? {
            return Ok(Attempt::Found);
        }
        if breadth == Breadth::Alone {
            return Ok(Attempt::Open);
        }
        // Islands of several clusters: first what they could do at most, then what they do.
        let alone: BTreeMap<usize, f64> = clusters.iter().copied().zip(blocks.iter().map(|b| b.1)).collect();
        let mut at_most = blocks.clone();
        let mut promising: Vec<(Vec<usize>, Vec<Relaxed>)> = Vec::new();
        for order in orders(&self.modes[0], &clusters) {
            if order.len() < 2 || order.len() > self.span() {
                continue;
            }
            let members: f64 = order.iter().map(|g| alone[g]).sum();
            // An island counts only if it does more than its clusters apart, or reaches the demand by itself.
            let need = if scenario.outer.is_none() { demand - 0.5 } else { members };
            let share: f64 = order.iter().map(|g| alone[g]).sum();
            let weight = |g: &usize| if share > 0.0 { alone[g] / share } else { 1.0 / order.len() as f64 };
            let weights: Vec<f64> = order.iter().map(weight).collect();
            let (most, relaxed) = self.at_most(scenario, &order, &weights, step_s, need);
            if most > need {
                let mut set = order.clone();
                set.sort_unstable();
                at_most.push((set, most));
                promising.push((order, relaxed));
            }
        }
        if std::env::var("TRACE").is_ok() {
            eprintln!(
                "   alone sum {} at most {} pairs {:?}",
                alone.values().sum::<f64>(),
                at_most.len() - blocks.len(),
                &at_most[blocks.len()..]
                    .iter()
                    .take(6)
                    .map(|(s, v)| (s.clone(), *v, s.iter().map(|g| alone[g]).sum::<f64>()))
                    .collect::<Vec<_>>()
            );
        }
        if promising.is_empty() {
            return Ok(Attempt::Infeasible);
        }
        let bound = partition(&at_most, self.modes[0].groups.len(), scenario.islands)?;
        if bound.is_none_or(|b| b.0 < demand - 1e-6) {
            return Ok(Attempt::Infeasible);
        }
        for (order, relaxed) in promising {
            let columns = self.realise(relaxed);
            let mut set = order.clone();
            set.sort_unstable();
            let worth = self.worth(scenario, &columns, &set, step_s, pricing)?;
            blocks.push((set, worth.sequences.min(shared_bound(self.modes, &order, step_s))));
            worths.push(worth);
        }
        if std::env::var("TRACE").is_ok() {
            eprintln!("   realised {:?}", &blocks[clusters.len()..].iter().take(6).collect::<Vec<_>>());
        }
        Ok(if self.divide(scenario, &blocks, &worths, demand)? { Attempt::Found } else { Attempt::Open })
    }

    /// Records the plan out of these islands, if together they reach the demand.
    fn divide(
        &mut self,
        scenario: &Scenario,
        blocks: &[(Vec<usize>, f64)],
        worths: &[Worth],
        demand: f64,
    ) -> Result<bool, SearchError> {
        let Some((total, taken)) = partition(blocks, self.modes[0].groups.len(), scenario.islands)? else {
            return Ok(false);
        };
        if total < demand - 1e-6 {
            return Ok(false);
        }
        let mut members: Vec<Member> = Vec::new();
        for (island, &block) in taken.iter().enumerate() {
            for (column, work, count) in &worths[block].members {
                let Column { mode, outline, .. } = &self.pool.columns[*column];
                let (outline, work) = (outline.clone(), work.clone());
                let member = Member { mode: *mode, outline, work, microbatches: 0, island };
                members.extend(std::iter::repeat_n(member, *count as usize));
            }
        }
        let Some(members) = share_out(self.modes, members, self.modes[0].model.global_batch) else {
            return Ok(false);
        };
        let candidate = really(self.modes, scenario.outer, members);
        if candidate.step_s < self.best_s {
            self.best_s = candidate.step_s;
            self.best = Some(candidate);
        }
        Ok(true)
    }

    /// The columns of one cluster that none with fewer stages, or less to recompute, equals whatever is sharded.
    fn list(&self, cluster: usize) -> Vec<usize> {
        let beats = |column: &Column| -> Vec<Option<f64>> {
            let tables = &self.tables[column.mode];
            let beat = |(memory, table)| column.outline.fullest(memory, table).map(|s| s.beat_s);
            tables.extremes().into_iter().map(beat).collect()
        };
        let mut kept: Vec<usize> = Vec::new();
        let mut last: BTreeMap<(usize, usize, u32), Vec<Option<f64>>> = BTreeMap::new();
        let mut lightest: BTreeMap<(u32, usize, u32, u32), Vec<Option<f64>>> = BTreeMap::new();
        for (index, column) in self.pool.columns.iter().enumerate() {
            let [run] = column.outline.runs[..] else { continue };
            if run.group != cluster {
                continue;
            }
            let beats = beats(column);
            if beats.iter().all(Option::is_none) {
                continue;
            }
            let fewer = last.insert((column.mode, run.team_index, column.outline.chunks), beats.clone());
            let micro_batch = self.modes[column.mode].micro_batch;
            let lighter = lightest
                .entry((micro_batch, run.team_index, run.stages, column.outline.chunks))
                .or_insert_with(|| beats.clone());
            let no_worse = |a: &[Option<f64>]| {
                a.iter().zip(&beats).all(|(a, b)| a.is_some_and(|a| b.is_none_or(|b| a <= b * (1.0 + 1e-9))))
            };
            let heavier = *lighter != beats && no_worse(lighter);
            if !heavier && !fewer.is_some_and(|f| no_worse(&f)) {
                kept.push(index);
            }
        }
        kept
    }

    /// The most that an island of these columns (of one cluster, or of any signatures of several) does.
    fn worth(
        &self,
        scenario: &Scenario,
        columns: &[usize],
        clusters: &[usize],
        step_s: f64,
        pricing: Pricing,
    ) -> Result<Worth, SearchError> {
        let mut by_signature: BTreeMap<usize, Vec<Ready>> = BTreeMap::new();
        for &column in columns {
            let Column { mode, signature, outline } = &self.pool.columns[column];
            by_signature.entry(*signature).or_default().push(Ready { column, outline, mode: *mode });
        }
        let mut best = Worth::default();
        for ready in by_signature.values() {
            self.island(scenario, ready, clusters, (step_s, pricing), &mut best)?;
        }
        Ok(best)
    }

    /// The best size of an island of one signature.
    fn island(
        &self,
        scenario: &Scenario,
        ready: &[Ready],
        clusters: &[usize],
        priced: (f64, Pricing),
        best: &mut Worth,
    ) -> Result<(), SearchError> {
        let space = &self.modes[0];
        let fewest = ready.iter().map(|r| r.outline.devices.iter().sum::<u32>()).min().unwrap_or(1);
        let gpus: u32 = clusters.iter().map(|&g| space.groups[g].gpus).sum();
        let most = (gpus / fewest).min(space.model.global_batch).min(self.scope.max_replicas);
        let dense = space.may_be_dense();
        let sizes = std::iter::once((1, 1)).chain(brackets(if dense { most } else { 1 }));
        let mut open: Vec<(f64, (u32, u32), Vec<Item>, Vec<(usize, Work)>)> = Vec::new();
        for size in sizes {
            let (items, works) = self.items(scenario, ready, size, priced);
            let hull = hull(space, &items, clusters, size);
            if hull > best.sequences {
                open.push((hull, size, items, works));
            }
        }
        open.sort_by(|a, b| b.0.total_cmp(&a.0));
        let supply: Vec<u32> = space.groups.iter().map(|g| g.gpus).collect();
        for (hull, size, items, works) in open {
            if hull <= best.sequences * (1.0 + 1e-9) {
                break;
            }
            let Some((sequences, counts)) = pack(&items, &supply, size)? else { continue };
            if sequences > best.sequences {
                let taken = counts.into_iter().zip(works).filter(|(n, _)| *n > 0);
                let members = taken.map(|(n, (column, work))| (column, work, n)).collect();
                *best = Worth { sequences, members };
            }
        }
        Ok(())
    }

    /// What the columns do in an island of this size, the best of equal GPUs; none that another replaces.
    fn items(
        &self,
        scenario: &Scenario,
        ready: &[Ready],
        (low, _): (u32, u32),
        priced: (f64, Pricing),
    ) -> (Vec<Item>, Vec<(usize, Work)>) {
        let mut found: BTreeMap<&[u32], (u64, usize, Work)> = BTreeMap::new();
        for r in ready {
            let space = &self.modes[r.mode];
            let used =
                r.outline.devices.iter().zip(&space.groups).all(|(u, g)| u * low <= g.gpus + u * (low - 1));
            if !used || r.outline.devices.iter().zip(&space.groups).any(|(u, g)| *u > g.gpus) {
                continue;
            }
            let known = found.get(r.outline.devices.as_slice()).map_or(0, |f| f.0);
            let sync = sync(space, scenario, low);
            let Some((sequences, work)) = quick(space, &self.tables[r.mode], r.outline, &sync, priced, known)
            else {
                continue;
            };
            found.insert(&r.outline.devices, (sequences, r.column, work));
        }
        let mut kept: Vec<(Item, (usize, Work))> = Vec::new();
        for (devices, (sequences, column, work)) in found {
            let item = Item { devices: devices.to_vec(), sequences };
            kept.push((item, (column, work)));
        }
        kept.sort_by_key(|(item, _)| (item.devices.iter().sum::<u32>(), std::cmp::Reverse(item.sequences)));
        let mut taken: Vec<(Item, (usize, Work))> = Vec::new();
        for entry in kept {
            let replaced = taken.iter().any(|(t, _)| {
                t.sequences >= entry.0.sequences
                    && t.devices.iter().zip(&entry.0.devices).all(|(a, b)| a <= b)
            });
            if !replaced {
                taken.push(entry);
            }
        }
        taken.into_iter().unzip()
    }

    // Several clusters.

    /// What an island over an order of clusters could do at most, and its promising pipelines.
    fn at_most(
        &self,
        scenario: &Scenario,
        order: &[usize],
        weights: &[f64],
        step_s: f64,
        need: f64,
    ) -> (f64, Vec<Relaxed>) {
        let space = &self.modes[0];
        let fewest = order.iter().map(|&g| space.groups[g].gpus).min().unwrap_or(0);
        let sizes: Vec<(u32, u32)> = match space.may_be_dense() {
            true => {
                SIZES.iter().copied().filter(|s| s.0 <= fewest).map(|(l, h)| (l, h.min(fewest))).collect()
            }
            false => vec![(1, 1)],
        };
        let degrees = degrees(space, order);
        let mut best = 0.0;
        let mut promising: Vec<(f64, Vec<Relaxed>)> = Vec::new();
        for cut in cuts(space, self.modes, order, step_s, need) {
            if self.late() {
                // Unknown is no proof.
                return (1e12, vec![]);
            }
            let (mut of_cut, mut of_cut_most) = (Vec::new(), 0.0);
            for &(low, high) in &sizes {
                let mut relaxed = Vec::new();
                for (mode, space) in self.modes.iter().enumerate() {
                    let sync = sync(space, scenario, low);
                    for teams in &degrees {
                        if busy_bound(space, &cut, teams, weights, step_s, high, need) <= need {
                            continue;
                        }
                        let least = need / f64::from(high);
                        let take = &mut |r: Relaxed| {
                            if rate(space, &r, weights) > need {
                                relaxed.push(r);
                            }
                        };
                        let tables = &self.tables[mode];
                        relax::pipelines(space, mode, tables, &sync, &cut, teams, step_s, least, take);
                    }
                }
                let (most, weights) = weighed(space, &relaxed, order, high);
                if most > need {
                    of_cut_most = f64::max(of_cut_most, most);
                    relaxed.sort_by(|a, b| rate(space, b, &weights).total_cmp(&rate(space, a, &weights)));
                    relaxed.truncate(PROMISING_PIPELINES);
                    of_cut.extend(relaxed);
                }
            }
            of_cut_most = of_cut_most.min(shared_bound(self.modes, order, step_s));
            if of_cut_most > need {
                best = f64::max(best, of_cut_most);
                promising.push((of_cut_most, of_cut));
            }
        }
        promising.sort_by(|a, b| b.0.total_cmp(&a.0));
        (best, promising.into_iter().take(PROMISING_CUTS).flat_map(|p| p.1).collect())
    }

    /// Real columns of relaxed pipelines; those already known are not made again.
    fn realise(&mut self, relaxed: Vec<Relaxed>) -> Vec<usize> {
        let mut columns = Vec::new();
        for Relaxed { mode, runs, .. } in relaxed {
            let known = self.pool.known(mode, &runs);
            let column = known.unwrap_or_else(|| {
                self.pool.add(self.modes, mode, runs, 1);
                self.pool.columns.len() - 1
            });
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        columns
    }
}

/// What replicas are charged for synchronisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pricing {
    /// No more than any split must pay: for proofs.
    Least,
    /// What their fastest split pays: for plans.
    Own,
}

/// Which islands are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Breadth {
    /// Of one cluster.
    Alone,
    /// Of several too.
    Several,
}

/// What came of a step time.
#[derive(Debug)]
enum Attempt {
    /// A plan.
    Found,
    /// No plan of the space is so fast.
    Infeasible,
    /// No plan was found and none is excluded.
    Open,
}

/// Sizes of islands of several clusters that are bounded together.
const SIZES: [(u32, u32); 9] =
    [(1, 1), (2, 2), (3, 3), (4, 5), (6, 8), (9, 12), (13, 24), (25, 64), (65, u32::MAX)];

/// Sequences that a cut's clusters can do at most: a replica of m microbatches with a beat of b needs z layer / b stages of
/// each cluster at least, so it does at most (T - fill + b) / sum_g w_g z_g t_g layer_g / N_g of a weighted share; and
/// `most` replicas do what is needed only if m is so large that b is so small.
fn busy_bound(
    space: &Space,
    cut: &relax::Cut,
    teams: &[usize],
    weights: &[f64],
    step_s: f64,
    most: u32,
    need: f64,
) -> f64 {
    let (mut fill_s, mut share_s) = (0.0, 0.0);
    for (i, &(group, layers)) in cut.iter().enumerate() {
        let team = &space.groups[group].teams[teams[i]];
        let run_s = f64::from(layers) * team.layer_s + if i + 1 == cut.len() { team.head_s } else { 0.0 };
        fill_s += run_s;
        share_s += weights[i] * run_s * f64::from(team.size) / f64::from(space.groups[group].gpus);
    }
    if fill_s > step_s {
        return 0.0;
    }
    let fewest = (need / f64::from(most) / f64::from(space.micro_batch)).ceil();
    let beat_s = if fewest > 1.0 { (step_s - fill_s) / (fewest - 1.0) } else { fill_s };
    f64::from(space.micro_batch) * (step_s - fill_s + beat_s.min(fill_s)) / share_s
}

/// Sequences that the capacities between the clusters of an order let pass.
fn shared_bound(modes: &[Space], order: &[usize], step_s: f64) -> f64 {
    let mode = |space: &Space| {
        let mut bytes = vec![0.0; space.pools.len()];
        for pair in order.windows(2) {
            let way = space.link(pair[0], pair[1]).expect("orders keep to links");
            let codecs = [f64::INFINITY, 0.0].map(|mean_s| space.crossing(way, space.codec(way, mean_s)).1);
            way.pools.iter().for_each(|&p| bytes[p] += codecs[0].min(codecs[1]) as f64);
        }
        let pass = bytes.iter().zip(&space.pools).filter(|(b, _)| **b > 0.0);
        let pass = pass.map(|(b, pool)| step_s * pool.rate_bytes_per_s / b);
        f64::from(space.micro_batch) * pass.fold(f64::INFINITY, f64::min)
    };
    modes.iter().map(mode).fold(0.0, f64::max)
}

/// Pipelines of a cut and an island's size that become columns.
const PROMISING_PIPELINES: usize = 24;

/// Cuts of one order that become columns.
const PROMISING_CUTS: usize = 4;

/// Sequences of a column in an island, by its fastest split and the least it can synchronise, if more than `known`.
fn quick(
    space: &Space,
    tables: &Tables,
    outline: &Outline,
    sync: &Sync,
    (step_s, pricing): (f64, Pricing),
    known: u64,
) -> Option<(u64, Work)> {
    let hope = |sync_s: f64| {
        let most = outline.microbatches_at_most(step_s, sync_s).min(space.microbatches);
        u64::from(most - most % outline.round()) * u64::from(space.micro_batch)
    };
    if hope(0.0) <= known {
        return None;
    }
    let sync_s = outline.sync_floor_s(space, sync);
    if hope(sync_s) <= known {
        return None;
    }
    let (memory, table) = tables.of(sync);
    let split = outline.fullest(memory, table)?;
    let sync_s = if pricing == Pricing::Own { outline.sync_s(space, sync, split) } else { sync_s };
    let done = microbatches(step_s - sync_s, split.fill_s, split.beat_s).min(space.microbatches);
    let done = done - done % outline.round();
    let sequences = u64::from(done) * u64::from(space.micro_batch);
    if sequences <= known || done == 0 {
        return None;
    }
    Some((sequences, Work { split: split.clone(), sync_s, microbatches: done }))
}

/// An upper bound of a knapsack: of one cluster the upper hull of (GPUs, sequences), of several the tightest cluster's.
fn hull(space: &Space, items: &[Item], clusters: &[usize], (_, high): (u32, u32)) -> f64 {
    let most = f64::from(high);
    let per_cluster = |&g: &usize| {
        let supply = f64::from(space.groups[g].gpus);
        let mut points: Vec<(f64, f64)> =
            items.iter().map(|i| (f64::from(i.devices[g]), i.sequences as f64)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let rate = points.iter().map(|p| p.1 / p.0).fold(0.0, f64::max) * supply;
        let tallest = points.iter().map(|p| p.1).fold(0.0, f64::max) * most;
        // A line a + c u above all points bounds the total by a r + c N.
        let line = |pair: &[(f64, f64)]| {
            let c = (pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0);
            let a = pair[0].1 - c * pair[0].0;
            if a >= 0.0 && c >= 0.0 { a * most + c * supply } else { f64::INFINITY }
        };
        upper_hull(&points).windows(2).map(line).fold(rate.min(tallest), f64::min)
    };
    if items.is_empty() { 0.0 } else { clusters.iter().map(per_cluster).fold(f64::INFINITY, f64::min) }
}

/// The corners of the upper hull of points ascending in the first coordinate.
fn upper_hull(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut hull: Vec<(f64, f64)> = Vec::new();
    for &p in points {
        if hull.last().is_some_and(|l| l.0 == p.0) {
            hull.pop();
        }
        while let [.., a, b] = hull[..] {
            if (b.1 - a.1) * (p.0 - a.0) > (p.1 - a.1) * (b.0 - a.0) {
                break;
            }
            hull.pop();
        }
        hull.push(p);
    }
    hull
}

/// max_k s_k / sum_g a_g u_kg / N_g for the best of a few weights a, and no more than `most` replicas; with the weights,
/// if they are what bounds.
fn weighed(space: &Space, relaxed: &[Relaxed], order: &[usize], most: u32) -> (f64, Vec<f64>) {
    let count = order.len();
    let even = vec![1.0 / count as f64; count];
    let mut weights: Vec<Vec<f64>> = vec![even.clone()];
    for i in 0..count {
        for tenths in 1..=10 {
            let w = f64::from(tenths) / 10.0;
            let rest = (1.0 - w) / (count - 1) as f64;
            weights.push((0..count).map(|j| if i == j { w } else { rest }).collect());
        }
    }
    let bound = |w: &Vec<f64>| relaxed.iter().map(|r| rate(space, r, w)).fold(0.0, f64::max);
    let best = weights.into_iter().map(|w| (bound(&w), w)).min_by(|a, b| a.0.total_cmp(&b.0));
    let tallest = relaxed.iter().map(|r| r.sequences).max().unwrap_or(0) as f64 * f64::from(most);
    best.map_or((tallest, even), |(bound, w)| (bound.min(tallest), w))
}

/// Sequences over the weighted share of the clusters that a pipeline takes.
fn rate(space: &Space, relaxed: &Relaxed, weights: &[f64]) -> f64 {
    let share = |(run, w): (&super::column::Run, &f64)| {
        w * f64::from(run.stages * run.team.size) / f64::from(space.groups[run.group].gpus)
    };
    relaxed.sequences as f64 / relaxed.runs.iter().zip(weights).map(share).sum::<f64>()
}

/// Every choice of tensor-parallel degrees over an order.
fn degrees(space: &Space, order: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for &g in order {
        let teams = 0..space.groups[g].teams.len();
        all = all
            .into_iter()
            .flat_map(|d: Vec<usize>| teams.clone().map(move |t| [d.clone(), vec![t]].concat()))
            .collect();
    }
    all
}

/// Cuts of the layers over an order with which every cluster's GPUs could be busy enough: a cluster of N GPUs turns
/// around at most N T / (z t layer) sequences of z layers.
fn cuts(space: &Space, modes: &[Space], order: &[usize], step_s: f64, need: f64) -> Vec<Vec<(usize, u32)>> {
    let most: Vec<u32> = order
        .iter()
        .map(|&g| {
            // Sequence-layers in the step.
            let able = modes.iter().flat_map(|m| {
                m.groups[g].teams.iter().map(|t| f64::from(m.micro_batch) / (t.layer_s * f64::from(t.size)))
            });
            let able = able.fold(0.0, f64::max) * f64::from(space.groups[g].gpus) * step_s;
            ((able / need.max(1.0)) as u32).min(space.model.layers)
        })
        .collect();
    let mut cuts = Vec::new();
    fill(order, &most, 0, space.model.layers, &mut Vec::new(), &mut cuts);
    cuts
}

fn fill(
    order: &[usize],
    most: &[u32],
    depth: usize,
    left: u32,
    cut: &mut Vec<(usize, u32)>,
    cuts: &mut Vec<Vec<(usize, u32)>>,
) {
    let rest: u32 = most[depth + 1..].iter().sum();
    if depth + 1 == order.len() {
        if (1..=most[depth]).contains(&left) {
            cuts.push([cut.as_slice(), &[(order[depth], left)]].concat());
        }
        return;
    }
    let others = (order.len() - depth - 1) as u32;
    for layers in left.saturating_sub(rest).max(1)..=most[depth].min(left.saturating_sub(others)) {
        cut.push((order[depth], layers));
        fill(order, most, depth + 1, left - layers, cut, cuts);
        cut.pop();
    }
}

/// The step's sequences over the replicas so that the slowest ends earliest; `None` if they do not add up.
fn share_out(modes: &[Space], mut members: Vec<Member>, sequences: u32) -> Option<Vec<Member>> {
    let unit = |m: &Member| u64::from(modes[m.mode].micro_batch) * u64::from(m.outline.round());
    members.iter_mut().for_each(|m| m.microbatches = m.outline.round());
    let mut left = u64::from(sequences).checked_sub(members.iter().map(unit).sum::<u64>())?;
    // Ends of the next unit of each, earliest first; of equal ends the larger unit.
    let ends = |m: &Member| m.work.step_s(m.microbatches + m.outline.round());
    let mut queue: Vec<(f64, usize)> = members.iter().enumerate().map(|(i, m)| (ends(m), i)).collect();
    queue.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    while left > 0 {
        let (_, i) = queue.pop()?;
        if unit(&members[i]) > left {
            continue;
        }
        left -= unit(&members[i]);
        members[i].microbatches += members[i].outline.round();
        if members[i].microbatches + members[i].outline.round() <= members[i].work.split.most_microbatches {
            let entry = (ends(&members[i]), i);
            let at = queue.partition_point(|q| q.0 > entry.0 || (q.0 == entry.0 && q.1 > entry.1));
            queue.insert(at, entry);
        }
    }
    Some(members)
}
