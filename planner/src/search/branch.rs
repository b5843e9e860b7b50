//! Branch and bound around the integer program.
//!
//! ```text
//!   scenario   one replica | replicas that keep the same layers in the same clusters | replicas that need not
//!   box        a scenario, bounds of the number of replicas, bounds of the exchange's seconds
//!   in a box   step time T: relaxed program says no, or integers are found, or integers say no
//! ```
//! The scenario fixes what is exchanged and at which rate, so that a column's exchange depends on its own stages and on
//! the number of replicas alone. In a box the exchange costs at least its lower bound and the pipelines at least
//! the T proven infeasible; their sum is the box's bound. A box whose bound cannot improve on the incumbent by the
//! gap is closed; another is split by replicas, then by exchange. The smallest bound of all closed boxes is the
//! problem's.
//!
//! Not here: columns (`column`), the program (`master`).

use std::time::Instant;

use crate::cost::pipeline::pipeline_s;
use crate::plan::{ExchangeKind, Plan};

use super::book::{Book, undominated};
use super::column::{Outline, Outlines, Reach, Split, orders, outlines};
use super::evaluate::{Signature, aligned, evaluate_in};
use super::master::{Demand, Offer, Verdict, choose, relaxed};
use super::space::Space;
use super::terms::{ExchangeTerms, Terms};
use super::{Scope, SearchError, place};

/// The search of one space.
pub(crate) struct Search<'a> {
    space: &'a Space<'a>,
    scope: &'a Scope,
    /// Relative; never zero: rounding (1e-9 beats, the solver's tolerances) must stay below it.
    gap: f64,
    deadline: Instant,
    best: Option<Candidate>,
    best_s: f64,
    bound_s: f64,
    thinned: bool,
    /// Terms of one replica.
    alone: Terms,
}

/// What a search found and proved.
pub(crate) struct Outcome {
    /// If better than the incumbent it was given.
    pub answer: Option<Answer>,
    pub bound_s: f64,
}

/// The best plan of a search.
pub(crate) struct Answer {
    pub plan: Plan,
    pub objective_s: f64,
    pub thinned: bool,
    pub flops_bound_s: f64,
}

/// Replicas with their microbatches, not yet placed.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub members: Vec<Member>,
    pub exchange: Option<(ExchangeKind, u32)>,
    pub objective_s: f64,
}

/// One replica.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub outline: Outline,
    pub split: Split,
    pub microbatches: u32,
}

impl Member {
    /// Seconds of so many microbatches through it.
    pub fn pipeline_s(&self, microbatches: u32) -> f64 {
        pipeline_s(microbatches, self.outline.fill_s, self.split.beat_s)
    }
}

#[derive(Debug, Clone)]
enum Scenario {
    One,
    Aligned(Signature),
    Mixed(Vec<usize>),
}

/// A part of a scenario.
#[derive(Debug, Clone)]
struct Box {
    replicas: (u32, u32),
    exchange_s: (f64, f64),
    /// Pipelines of this box are proven to take at least this.
    step_s: f64,
}

/// A solution of the integer program.
#[derive(Debug, Clone, Copy)]
struct Integers {
    /// What its pipelines really take.
    taken_s: f64,
    replicas: u32,
    exchange_s: f64,
    /// What the same stages would exchange among the box's fewest replicas.
    fewest_exchange_s: f64,
}

impl Box {
    fn bound_s(&self) -> f64 {
        self.step_s + self.exchange_s.0
    }
}

impl<'a> Search<'a> {
    pub fn new(space: &'a Space<'a>, scope: &'a Scope, gap: f64, deadline: Instant) -> Self {
        let (best, best_s, bound_s) = (None, f64::INFINITY, f64::INFINITY);
        let alone = Terms::new(space, None);
        Self { space, scope, gap: gap.max(1e-7), deadline, best, best_s, bound_s, thinned: false, alone }
    }

    /// Looks for a plan faster than the incumbent.
    pub fn run(mut self, incumbent_s: Option<f64>) -> Result<Outcome, SearchError> {
        self.best_s = incumbent_s.unwrap_or(f64::INFINITY);
        let mut first = vec![(self.rate_floor_s(&self.scope.clusters), Scenario::One)];
        if self.scope.max_replicas > 1 && self.space.microbatches > 1 {
            first.extend(self.cliques().into_iter().map(|c| (self.rate_floor_s(&c), Scenario::Mixed(c))));
            first.extend(self.signatures(1));
        }
        self.explore_all(first)?;
        if self.scope.max_replicas > 1 && self.space.microbatches > 1 {
            let rest = self.signatures(2);
            self.explore_all(rest)?;
        }
        self.outcome()
    }

    fn outcome(self) -> Result<Outcome, SearchError> {
        let flops_bound_s = self.space.flops_bound_s(&self.scope.clusters);
        let relaxed_s = self.rate_floor_s(&self.scope.clusters).max(flops_bound_s);
        let answer = self.best.map(|candidate| {
            let plan = place::place(self.space, &candidate);
            let cost = evaluate_in(self.space, &plan).expect("the search keeps to the inventory");
            Answer { plan, objective_s: cost.iteration_s, thinned: self.thinned, flops_bound_s }
        });
        let bound_s = if self.thinned { self.bound_s.min(relaxed_s) } else { self.bound_s };
        Ok(Outcome { answer, bound_s })
    }

    fn explore_all(&mut self, mut scenarios: Vec<(f64, Scenario)>) -> Result<(), SearchError> {
        scenarios.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (floor_s, scenario) in scenarios {
            if !self.worth(floor_s) || self.late() {
                self.close(floor_s);
                continue;
            }
            match scenario {
                Scenario::One => self.explore_one(),
                Scenario::Aligned(signature) => self.explore_aligned(&signature, floor_s)?,
                Scenario::Mixed(clusters) => self.explore_mixed(&clusters, floor_s)?,
            }
        }
        Ok(())
    }

    fn worth(&self, bound_s: f64) -> bool {
        bound_s < self.best_s * (1.0 - self.gap)
    }

    fn late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn close(&mut self, bound_s: f64) {
        self.bound_s = self.bound_s.min(bound_s);
    }

    fn record(&mut self, candidate: Candidate) {
        if candidate.objective_s < self.best_s {
            self.best_s = candidate.objective_s;
            self.best = Some(candidate);
        }
    }

    // Floors that need no columns.

    /// GPU-seconds of a layer at best, in a group.
    fn layer_gpu_s(&self, group: usize) -> f64 {
        let teams = self.space.groups[group].teams.iter();
        teams.map(|t| t.layer_s * f64::from(t.size)).fold(f64::INFINITY, f64::min)
    }

    /// All layers at the sum of all rates, and the time in which every GPU waits for the other stages of its pipeline:
    /// a stage of z layers idles while the first microbatch passes the other L - z, and memory bounds z.
    fn rate_floor_s(&self, clusters: &[usize]) -> f64 {
        let rate = |&g: &usize| f64::from(self.space.groups[g].gpus) / self.layer_gpu_s(g);
        let layers = f64::from(self.space.microbatches) * f64::from(self.space.model.layers);
        let fastest =
            |&g: &usize| self.space.groups[g].teams.iter().map(|t| t.layer_s).fold(f64::INFINITY, f64::min);
        let layer_s = clusters.iter().map(fastest).fold(f64::INFINITY, f64::min);
        let alone = clusters.iter().map(|&g| self.alone.most_layers_of(g)).max().unwrap_or(0);
        let others = self.space.model.layers.saturating_sub(alone);
        layers / clusters.iter().map(rate).sum::<f64>() + f64::from(others) * layer_s
    }

    fn signature_floor_s(&self, signature: &[(usize, u32)]) -> f64 {
        let run = |&(group, layers): &(usize, u32)| {
            f64::from(layers) * self.layer_gpu_s(group) / f64::from(self.space.groups[group].gpus)
        };
        f64::from(self.space.microbatches) * signature.iter().map(run).fold(0.0, f64::max)
    }

    // Scenarios.

    /// Sets of two or more clusters that all reach each other.
    fn cliques(&self) -> Vec<Vec<usize>> {
        let mut cliques: Vec<Vec<usize>> = self.scope.clusters.iter().map(|&c| vec![c]).collect();
        let mut from = 0;
        while from < cliques.len() {
            let clique = cliques[from].clone();
            let later = self.scope.clusters.iter().filter(|&&c| c > clique[clique.len() - 1]);
            let joined = later.filter(|&&c| clique.iter().all(|&d| self.space.link(c, d).is_some()));
            cliques.extend(joined.map(|&c| [clique.clone(), vec![c]].concat()));
            from += 1;
        }
        cliques.retain(|c| c.len() > 1);
        cliques
    }

    /// Signatures of at least so many clusters (one: exactly one), those that cannot pay left out and closed.
    fn signatures(&mut self, clusters: usize) -> Vec<(f64, Scenario)> {
        let orders = orders(self.space, &self.scope.clusters);
        let mut found = Vec::new();
        let wanted = |o: &&Vec<usize>| if clusters == 1 { o.len() == 1 } else { o.len() >= clusters };
        for order in orders.iter().filter(wanted) {
            self.cut(order, self.space.model.layers, &mut Vec::new(), &mut found);
        }
        found
    }

    fn cut(&mut self, order: &[usize], left: u32, prefix: &mut Signature, found: &mut Vec<(f64, Scenario)>) {
        let floor_s = self.signature_floor_s(prefix);
        if !self.worth(floor_s) {
            return self.close(floor_s);
        }
        match order {
            [] => found.push((floor_s, Scenario::Aligned(prefix.clone()))),
            [last] => {
                prefix.push((*last, left));
                self.cut(&[], 0, prefix, found);
                prefix.pop();
            }
            [group, rest @ ..] => {
                for layers in 1..=left.saturating_sub(rest.len() as u32) {
                    prefix.push((*group, layers));
                    self.cut(rest, left - layers, prefix, found);
                    prefix.pop();
                }
            }
        }
    }

    fn explore_one(&mut self) {
        let Outlines { list, thinned } = outlines(self.space, &Reach::Within(&self.scope.clusters));
        self.thinned |= thinned;
        let microbatches = self.space.microbatches;
        let mut order: Vec<(f64, &Outline)> =
            list.iter().map(|o| (o.at_least_s(microbatches).max(self.pools_s(o, microbatches)), o)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (floor_s, outline) in order {
            if floor_s >= self.best_s || self.late() {
                return self.close(floor_s);
            }
            let Some(split) = outline.split(&self.alone, microbatches) else { continue };
            let member = Member { outline: outline.clone(), split: split.clone(), microbatches };
            let objective_s = member.pipeline_s(microbatches).max(self.pools_s(outline, microbatches));
            self.close(objective_s);
            self.record(Candidate { members: vec![member], exchange: None, objective_s });
        }
    }

    fn pools_s(&self, outline: &Outline, microbatches: u32) -> f64 {
        let pools = self.space.pools.iter().zip(&outline.traffic);
        pools.map(|(pool, bytes)| f64::from(microbatches) * bytes / pool.rate_bytes_per_s).fold(0.0, f64::max)
    }

    fn explore_aligned(&mut self, signature: &Signature, floor_s: f64) -> Result<(), SearchError> {
        let terms = ExchangeTerms {
            kind: self.space.exchange_kind(true),
            paths: self.space.groups.iter().map(|g| g.exchange).collect(),
            replicas: 2,
            most_s: f64::INFINITY,
        };
        let book = self.book(&Reach::Exactly(signature), terms, false);
        self.explore(book, floor_s)
    }

    fn explore_mixed(&mut self, clusters: &[usize], floor_s: f64) -> Result<(), SearchError> {
        let path = self.space.exchange_path(clusters).expect("cliques reach each other");
        let kind = self.space.exchange_kind(false);
        let paths = vec![path; self.space.groups.len()];
        let terms = ExchangeTerms { kind, paths, replicas: 2, most_s: f64::INFINITY };
        let book = self.book(&Reach::Within(clusters), terms, kind != self.space.exchange_kind(true));
        self.explore(book, floor_s)
    }

    fn book(&mut self, reach: &Reach, terms: ExchangeTerms, must_mix: bool) -> Book {
        let Outlines { list, thinned } = outlines(self.space, reach);
        self.thinned |= thinned;
        let terms = Terms::new(self.space, Some(terms));
        let mut book = Book { list, alike: vec![], terms, not_alone: vec![], must_mix };
        book.sort();
        book
    }

    // Boxes.

    fn explore(&mut self, mut book: Book, floor_s: f64) -> Result<(), SearchError> {
        let fewest_gpus = book.list.iter().map(|o| o.devices.iter().sum::<u32>()).min().unwrap_or(1);
        let gpus: u32 = self.scope.clusters.iter().map(|&c| self.space.groups[c].gpus).sum();
        let most = self.space.microbatches.min(gpus / fewest_gpus.max(1)).min(self.scope.max_replicas);
        if most < 2 || book.list.is_empty() {
            return Ok(());
        }
        let lowest_s = book.exchange_floor_s(self.space, 2);
        let whole = Box { replicas: (2, most), exchange_s: (lowest_s, f64::INFINITY), step_s: floor_s };
        let mut open = vec![whole];
        while let Some(part) = pop_least(&mut open) {
            if !self.worth(part.bound_s()) || self.late() {
                self.close(part.bound_s());
                continue;
            }
            open.extend(self.solve(&mut book, part)?);
        }
        Ok(())
    }

    /// Closes a box or splits it.
    fn solve(&mut self, book: &mut Book, mut part: Box) -> Result<Vec<Box>, SearchError> {
        book.set_terms(self.space, part.replicas.0, part.exchange_s.1);
        let found = self.shrink(book, &mut part)?;
        let Some(found) = found.filter(|_| self.worth(part.bound_s()) && !self.late()) else {
            self.close(part.bound_s());
            return Ok(vec![]);
        };
        // Split what the exchange found costs more than the box's floor by: its many replicas or its large stages.
        let (replicas, fewest) = (part.replicas, part.replicas.0);
        let by_count_s = found.exchange_s - found.fewest_exchange_s;
        let by_size_s = found.fewest_exchange_s - part.exchange_s.0;
        if fewest < replicas.1 && by_count_s >= by_size_s {
            let cut = ((fewest + found.replicas) / 2).clamp(fewest, replicas.1 - 1);
            let child = |replicas: (u32, u32)| {
                let floor_s = book.exchange_floor_s(self.space, replicas.0).max(part.exchange_s.0);
                Box { replicas, exchange_s: (floor_s, part.exchange_s.1), ..part.clone() }
            };
            return Ok(vec![child((fewest, cut)), child((cut + 1, replicas.1))]);
        }
        // Whatever exchanges no faster than what was found is no faster than it either.
        self.close(part.step_s + found.exchange_s);
        let (low, high) = (part.exchange_s.0, found.exchange_s * (1.0 - 1e-12));
        let middle = 0.5 * (low + high);
        let child = |exchange_s| Box { exchange_s, ..part.clone() };
        Ok(if low < high { vec![child((low, middle)), child((middle, high))] } else { vec![] })
    }

    /// Raises the box's proven step time and finds integers, until both meet or the box is hopeless. Returns the
    /// fastest pipelines found.
    fn shrink(&mut self, book: &mut Book, part: &mut Box) -> Result<Option<Integers>, SearchError> {
        let hopeless_s = self.best_s * (1.0 - self.gap) - part.exchange_s.0;
        let ceiling_s = hopeless_s.min(1e9 * part.step_s.max(1e-9));
        if !self.fractions_do(book, part, ceiling_s)? {
            part.step_s = ceiling_s;
            if ceiling_s < hopeless_s {
                part.step_s = f64::INFINITY;
            }
            return Ok(None);
        }
        self.raise_floor(book, part, ceiling_s)?;
        let mut fastest: Option<Integers> = None;
        let mut step = self.gap.max(1e-3) / 2.0;
        let mut closing = true;
        loop {
            let enough_s = fastest.map_or(ceiling_s, |f| f.taken_s * (1.0 - self.gap));
            if part.step_s >= enough_s || self.late() {
                return Ok(fastest);
            }
            let try_s = match fastest {
                None => (part.step_s * (1.0 + step)).min(ceiling_s),
                Some(f) if closing => f.taken_s * (1.0 - self.gap),
                Some(f) => 0.5 * (part.step_s + f.taken_s),
            };
            match self.integers(book, part, try_s)? {
                Some(f) => fastest = Some(f),
                None if self.late() => {}
                None => part.step_s = try_s,
            }
            (step, closing) = (step * 2.0, !closing);
        }
    }

    /// Bisects the relaxed program.
    fn raise_floor(&self, book: &Book, part: &mut Box, ceiling_s: f64) -> Result<(), SearchError> {
        let mut high = ceiling_s;
        while high > part.step_s * (1.0 + self.gap.max(1e-3) / 4.0) && !self.late() {
            // Geometric while far apart: the ceiling may be a billion steps away.
            let middle = if high > 4.0 * part.step_s {
                (high * part.step_s).sqrt()
            } else {
                0.5 * (high + part.step_s)
            };
            if self.fractions_do(book, part, middle)? { high = middle } else { part.step_s = middle }
        }
        Ok(())
    }

    fn fractions_do(&self, book: &Book, part: &Box, step_s: f64) -> Result<bool, SearchError> {
        let (offers, _, demand) = self.market(book, part, step_s);
        Ok(relaxed(&offers, &demand)? >= f64::from(demand.microbatches) - 1e-6)
    }

    /// Replicas that do the step's microbatches in `step_s`.
    fn integers(
        &mut self,
        book: &mut Book,
        part: &Box,
        step_s: f64,
    ) -> Result<Option<Integers>, SearchError> {
        loop {
            let (offers, columns, demand) = self.market(book, part, step_s);
            let Verdict::Chosen(choice) = choose(&offers, &demand, self.deadline)? else { return Ok(None) };
            let members = book.members(step_s, &choice, &columns, demand.microbatches);
            let signatures: Vec<Signature> = members.iter().map(|m| m.outline.signature()).collect();
            if book.must_mix && aligned(signatures.iter()) {
                book.not_alone.push(signatures[0].clone());
                continue;
            }
            let replicas = members.len() as u32;
            let exchange = |replicas: u32| {
                let of = |m: &Member| m.outline.exchange_s(self.space, &m.split, book.exchange(), replicas);
                members.iter().map(of).fold(0.0, f64::max)
            };
            let (exchange_s, fewest_exchange_s) = (exchange(replicas), exchange(part.replicas.0));
            let taken_s = self.taken_s(&members);
            debug_assert!(taken_s <= step_s * (1.0 + 1e-6), "the program promised {step_s} s: {taken_s}");
            let objective_s = taken_s + exchange_s;
            self.record(Candidate { members, exchange: Some(book.exchange().kind), objective_s });
            return Ok(Some(Integers { taken_s, replicas, exchange_s, fewest_exchange_s }));
        }
    }

    /// The program of a box and a step time: offers, their columns, and the demand.
    fn market(&self, book: &Book, part: &Box, step_s: f64) -> (Vec<Offer>, Vec<usize>, Demand) {
        let (offers, columns) = book.offers(self.space, step_s);
        let demand = self.demand(book, part, &offers, step_s);
        let kept = undominated(&offers, &demand);
        let columns = kept.iter().map(|&i| columns[i]).collect();
        (kept.into_iter().map(|i| offers[i].clone()).collect(), columns, demand)
    }

    fn taken_s(&self, members: &[Member]) -> f64 {
        let slowest = members.iter().map(|m| m.pipeline_s(m.microbatches)).fold(0.0, f64::max);
        let pool = |p: usize| {
            let bytes = members.iter().map(|m| f64::from(m.microbatches) * m.outline.traffic[p]);
            bytes.sum::<f64>() / self.space.pools[p].rate_bytes_per_s
        };
        (0..self.space.pools.len()).map(pool).fold(slowest, f64::max)
    }

    fn demand(&self, book: &Book, part: &Box, offers: &[Offer], step_s: f64) -> Demand {
        let microbatches = self.space.microbatches;
        let capacity = |p: usize| {
            let capacity = step_s * self.space.pools[p].rate_bytes_per_s;
            let heaviest = offers.iter().map(|o| o.traffic[p]).fold(0.0, f64::max);
            if heaviest * f64::from(microbatches) > capacity { capacity } else { f64::INFINITY }
        };
        Demand {
            microbatches,
            replicas: part.replicas,
            supply: self.space.groups.iter().map(|g| g.gpus).collect(),
            capacity: (0..self.space.pools.len()).map(capacity).collect(),
            not_alone: book.not_alone.len(),
        }
    }
}

fn pop_least(open: &mut Vec<Box>) -> Option<Box> {
    let least = (0..open.len()).min_by(|&a, &b| open[a].bound_s().total_cmp(&open[b].bound_s()))?;
    Some(open.swap_remove(least))
}
