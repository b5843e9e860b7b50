//! From scenarios to the best plan and its bound.
//!
//! ```text
//!   scenario   one island | what is exchanged between islands, in which clusters
//!   box        a scenario and bounds of the number of islands
//!   in a box   step time T: relaxed program says no, or integers are found, or integers say no
//! ```
//! In a box every replica pays for the fewest islands of the box; T is feasible or not, and monotone. A box whose proven
//! T cannot improve on the incumbent by the gap is closed; one whose integers really pay for more islands is split. The
//! smallest T of all closed boxes is the pool's bound.
//!
//! Not here: offers (`market`), the program (`master`), what an incomplete pool leaves out (`bound`).

use std::time::Instant;

use crate::plan::ExchangeKind;

use super::column::{Outline, Work};
use super::market::{Deal, Market, Scenario, Tables, market, most_replicas, sync};
use super::master::{Choice, Offer, Place, Verdict, choose, relaxed};
use super::pool::Pool;
use super::space::Space;
use super::{Scope, SearchError};

/// The search of one pool.
pub(crate) struct Solve<'a> {
    pub modes: &'a [Space<'a>],
    pub tables: &'a [Tables],
    pub scope: &'a Scope,
    /// Relative; never zero: rounding (1e-9 beats, the solver's tolerances) must stay below it.
    pub gap: f64,
    pub deadline: Instant,
    pub best: Option<Candidate>,
    pub best_s: f64,
    pub bound_s: f64,
}

/// Replicas with their microbatches, not yet placed.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub members: Vec<Member>,
    /// What islands exchange, if there are several.
    pub outer: Option<(ExchangeKind, u32)>,
    pub step_s: f64,
}

impl Candidate {
    /// The same replicas as plain pipelines.
    pub fn without_virtual_stages(&self, modes: &[Space]) -> Self {
        let plain = |m: &Member| {
            let outline = m.outline.plain(&modes[m.mode]);
            let split = outline.split_as(m.work.split.layers.clone());
            Member { work: Work { split, ..m.work.clone() }, outline, ..m.clone() }
        };
        really(modes, self.outer, self.members.iter().map(plain).collect())
    }
}

/// One replica.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Index of its space.
    pub mode: usize,
    pub outline: Outline,
    pub work: Work,
    pub microbatches: u32,
    /// Replicas of an island have the same number.
    pub island: usize,
}

/// A part of a scenario.
#[derive(Debug, Clone)]
struct Part {
    scenario: Scenario,
    /// Plans of this part are proven to take at least this.
    step_s: f64,
}

/// A solution of the integer program.
#[derive(Debug, Clone, Copy)]
struct Integers {
    /// Its step if there were as few islands as the part's fewest.
    taken_s: f64,
    islands: u32,
}

impl Solve<'_> {
    /// Looks through all scenarios.
    pub fn run(&mut self, pool: &Pool, floor_s: f64) -> Result<(), SearchError> {
        let mut open: Vec<Part> =
            self.scenarios(pool).into_iter().map(|scenario| Part { scenario, step_s: floor_s }).collect();
        while let Some(part) = pop_least(&mut open) {
            if part.step_s >= self.best_s * (1.0 - self.gap) || self.late() {
                self.close(part.step_s);
                continue;
            }
            open.extend(self.solve(pool, part)?);
        }
        Ok(())
    }

    fn late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn close(&mut self, bound_s: f64) {
        self.bound_s = self.bound_s.min(bound_s);
    }

    fn scenarios(&self, pool: &Pool) -> Vec<Scenario> {
        let space = &self.modes[0];
        let all = &self.scope.clusters;
        let one = Scenario { outer: None, clusters: all.clone(), islands: (1, 1) };
        let mut scenarios = if pool.complete { vec![one] } else { vec![] };
        let most = most_islands(space, pool, all).min(self.scope.max_replicas);
        for clusters in cliques(space, all) {
            let most = most.min(most_islands(space, pool, &clusters));
            if most >= 2 {
                let outer = space.outer_kinds().into_iter().map(Some);
                scenarios.extend(outer.map(|outer| Scenario {
                    outer,
                    clusters: clusters.clone(),
                    islands: (2, most),
                }));
            }
        }
        scenarios
    }

    /// Closes a part or splits it.
    fn solve(&mut self, pool: &Pool, mut part: Part) -> Result<Vec<Part>, SearchError> {
        let Some(found) = self.shrink(pool, &mut part)? else {
            self.close(part.step_s);
            return Ok(vec![]);
        };
        let (fewest, most) = part.scenario.islands;
        let proven = part.step_s >= self.best_s * (1.0 - self.gap) || found.islands == fewest;
        if proven || self.late() {
            self.close(part.step_s);
            return Ok(vec![]);
        }
        let cut = ((fewest + found.islands) / 2).clamp(fewest, most - 1);
        let child =
            |islands| Part { scenario: Scenario { islands, ..part.scenario.clone() }, step_s: part.step_s };
        Ok(vec![child((fewest, cut)), child((cut + 1, most))])
    }

    /// Raises the part's proven step time and finds integers, until both meet or the part is hopeless. Returns the
    /// fastest found.
    fn shrink(&mut self, pool: &Pool, part: &mut Part) -> Result<Option<Integers>, SearchError> {
        let hopeless_s = self.best_s * (1.0 - self.gap);
        let ceiling_s = hopeless_s.min(1e6 * part.step_s.max(1e-9));
        if !self.fractions_do(pool, part, ceiling_s)? {
            part.step_s = if ceiling_s < hopeless_s { f64::INFINITY } else { ceiling_s };
            return Ok(None);
        }
        self.raise_floor(pool, part, ceiling_s)?;
        let mut fastest: Option<Integers> = None;
        let mut step = self.gap.max(1e-3) / 2.0;
        let mut closing = true;
        loop {
            // Nothing slower than the incumbent matters.
            let wanted_s = fastest.map_or(ceiling_s, |f| f.taken_s).min(self.best_s);
            if part.step_s >= wanted_s * (1.0 - self.gap) || self.late() {
                return Ok(fastest);
            }
            let try_s = match fastest {
                None => (part.step_s * (1.0 + step)).min(ceiling_s),
                Some(_) if closing => wanted_s * (1.0 - self.gap),
                Some(_) => 0.5 * (part.step_s + wanted_s),
            };
            match self.integers(pool, part, try_s)? {
                Some(f) => fastest = Some(f),
                None if self.late() => {}
                None => part.step_s = try_s,
            }
            if fastest.is_none() && part.step_s >= ceiling_s * (1.0 - 1e-12) {
                return Ok(None);
            }
            (step, closing) = (step * 2.0, !closing);
        }
    }

    /// Bisects the relaxed program.
    fn raise_floor(&self, pool: &Pool, part: &mut Part, ceiling_s: f64) -> Result<(), SearchError> {
        let mut high = ceiling_s;
        while high > part.step_s * (1.0 + self.gap.max(1e-3) / 4.0) && !self.late() {
            // Geometric while far apart: the ceiling may be a million steps away.
            let middle = if high > 4.0 * part.step_s {
                (high * part.step_s.max(1e-9)).sqrt()
            } else {
                0.5 * (high + part.step_s)
            };
            if self.fractions_do(pool, part, middle)? { high = middle } else { part.step_s = middle }
        }
        Ok(())
    }

    fn market(&self, pool: &Pool, part: &Part, step_s: f64) -> Market {
        market(self.modes, self.tables, pool, &part.scenario, step_s)
    }

    fn fractions_do(&self, pool: &Pool, part: &Part, step_s: f64) -> Result<bool, SearchError> {
        let Market { offers, demand, .. } = self.market(pool, part, step_s);
        Ok(relaxed(&offers, &demand)? >= f64::from(demand.sequences) - 1e-6)
    }

    /// Replicas that do the step's sequences in `step_s`.
    fn integers(&mut self, pool: &Pool, part: &Part, step_s: f64) -> Result<Option<Integers>, SearchError> {
        let Market { offers, deals, demand } = self.market(pool, part, step_s);
        let Verdict::Chosen(choice) = choose(&offers, &demand, None, self.deadline)? else { return Ok(None) };
        let members = members(pool, &offers, &deals, &choice, demand.sequences);
        let taken_s = taken_s(&self.modes[0], &members);
        let candidate = really(self.modes, part.scenario.outer, members);
        let islands = islands(&candidate.members);
        let found = Integers { taken_s, islands };
        self.record(candidate);
        Ok(Some(found))
    }

    fn record(&mut self, candidate: Candidate) {
        if candidate.step_s < self.best_s {
            self.best_s = candidate.step_s;
            self.best = Some(candidate);
        }
    }
}

/// The candidate with what it really pays for: as many islands, and owners, as there are.
pub(crate) fn really(
    modes: &[Space],
    outer: Option<(ExchangeKind, u32)>,
    mut members: Vec<Member>,
) -> Candidate {
    let islands = islands(&members);
    let outer = outer.filter(|_| islands > 1);
    let mut clusters: Vec<usize> =
        members.iter().flat_map(|m| m.outline.runs.iter().map(|r| r.group)).collect();
    clusters.sort_unstable();
    clusters.dedup();
    let real = Scenario { outer, clusters, islands: (islands, islands) };
    let mut owners = vec![0; islands as usize];
    members.iter().for_each(|m| owners[m.island] += 1);
    for member in &mut members {
        let space = &modes[member.mode];
        let sync = sync(space, &real, owners[member.island]);
        member.work.sync_s = member.outline.sync_s(space, &sync, &member.work.split);
    }
    let step_s = taken_s(&modes[0], &members);
    Candidate { members, outer, step_s }
}

fn taken_s(space: &Space, members: &[Member]) -> f64 {
    let slowest = members.iter().map(|m| m.work.step_s(m.microbatches)).fold(0.0, f64::max);
    let pool = |p: usize| {
        let bytes = members.iter().map(|m| f64::from(m.microbatches) * m.outline.traffic[p]);
        bytes.sum::<f64>() / space.pools[p].rate_bytes_per_s
    };
    (0..space.pools.len()).map(pool).fold(slowest, f64::max)
}

fn islands(members: &[Member]) -> u32 {
    members.iter().map(|m| m.island).max().map_or(0, |last| last as u32 + 1)
}

fn pop_least(open: &mut Vec<Part>) -> Option<Part> {
    let least = (0..open.len()).min_by(|&a, &b| open[a].step_s.total_cmp(&open[b].step_s))?;
    Some(open.remove(least))
}

/// Sets of clusters that all reach each other: every one where they are few, else the largest.
fn cliques(space: &Space, scope: &[usize]) -> Vec<Vec<usize>> {
    let joined = |clique: &[usize], c: usize| clique.iter().all(|&d| space.link(c, d).is_some());
    let mut cliques: Vec<Vec<usize>> = scope.iter().map(|&c| vec![c]).collect();
    if scope.len() > FEW_CLUSTERS {
        for clique in &mut cliques {
            for &c in scope.iter() {
                if !clique.contains(&c) && joined(clique, c) {
                    clique.push(c);
                }
            }
            clique.sort_unstable();
        }
        cliques.sort();
        cliques.dedup();
        return cliques;
    }
    let mut from = 0;
    while from < cliques.len() {
        let clique = cliques[from].clone();
        let later = scope.iter().filter(|&&c| c > clique[clique.len() - 1] && joined(&clique, c));
        cliques.extend(later.map(|&c| [clique.clone(), vec![c]].concat()));
        from += 1;
    }
    cliques
}

/// Up to so many clusters every subset is a scenario.
pub(crate) const FEW_CLUSTERS: usize = 3;

/// How many islands there can be in these clusters.
fn most_islands(space: &Space, pool: &Pool, clusters: &[usize]) -> u32 {
    let alone = |g: usize| -> u32 {
        if space.limits.nested && !space.may_drift(std::iter::once(g)) {
            return 1;
        }
        space.groups[g].gpus
    };
    let fits = |devices: &[u32]| devices.iter().enumerate().all(|(g, n)| *n == 0 || clusters.contains(&g));
    let fewest = pool.columns.iter().filter(|c| fits(&c.outline.devices));
    let fewest = fewest.map(|c| c.outline.devices.iter().sum::<u32>()).min().unwrap_or(u32::MAX);
    let gpus: u32 = clusters.iter().map(|&g| space.groups[g].gpus).sum();
    clusters.iter().map(|&g| alone(g)).sum::<u32>().min(gpus / fewest).min(space.model.global_batch)
}

/// The replicas of a choice, the step's sequences spread so that the slowest ends earliest.
fn members(pool: &Pool, offers: &[Offer], deals: &[Deal], choice: &Choice, sequences: u32) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::new();
    let mut offer_of = Vec::new();
    let mut island_of: Vec<Option<usize>> = Vec::new();
    let mut next_island = 0;
    let mut fresh = || {
        next_island += 1;
        next_island - 1
    };
    for (index, (&count, deal)) in choice.counts.iter().zip(deals).enumerate() {
        let column = &pool.columns[deal.column];
        for _ in 0..count {
            let island = match offers[index].place {
                Place::Alone { .. } => fresh(),
                Place::Island(j) => {
                    if island_of.len() <= j {
                        island_of.resize(j + 1, None);
                    }
                    *island_of[j].get_or_insert_with(&mut fresh)
                }
            };
            let (outline, work) = (column.outline.clone(), deal.work.clone());
            members.push(Member { mode: column.mode, outline, work, microbatches: 1, island });
            offer_of.push(index);
        }
    }
    members.iter_mut().for_each(|m| m.microbatches = m.outline.round());
    let mut units = choice.units.clone();
    offer_of.iter().for_each(|&o| units[o] -= 1);
    let mut left = u64::from(sequences) - offer_of.iter().map(|&o| u64::from(offers[o].unit)).sum::<u64>();
    while left > 0 {
        let free = (0..members.len()).filter(|&i| {
            let (m, offer) = (&members[i], &offers[offer_of[i]]);
            units[offer_of[i]] > 0
                && m.microbatches < offer.units * m.outline.round()
                && u64::from(offer.unit) <= left
        });
        let ends_s = |i: usize| members[i].work.step_s(members[i].microbatches + members[i].outline.round());
        let next = free.min_by(|&a, &b| ends_s(a).total_cmp(&ends_s(b)));
        let next = next.expect("the choice does all sequences");
        members[next].microbatches += members[next].outline.round();
        units[offer_of[next]] -= 1;
        left -= u64::from(offers[offer_of[next]].unit);
    }
    members
}

/// What no plan of any kind can beat: all layers at the sum of all rates.
pub(crate) fn rate_floor_s(space: &Space, clusters: &[usize]) -> f64 {
    let layer_gpu_s = |g: usize| {
        let teams = space.groups[g].teams.iter();
        teams.map(|t| t.layer_s * f64::from(t.size)).fold(f64::INFINITY, f64::min)
    };
    let rate = |&g: &usize| f64::from(space.groups[g].gpus) / layer_gpu_s(g);
    let layers = f64::from(space.microbatches) * f64::from(space.model.layers);
    layers / clusters.iter().map(rate).sum::<f64>()
}

/// Most owners that any parameter can have.
pub(crate) fn most_owners(space: &Space, scope: &Scope) -> u32 {
    let mut devices = vec![0; space.groups.len()];
    let most = |&g: &usize| {
        devices[g] = 1;
        let most = most_replicas(space, &devices);
        devices[g] = 0;
        most
    };
    scope.clusters.iter().map(most).max().unwrap_or(1)
}
