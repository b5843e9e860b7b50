//! A scenario's columns, and which of them are worth offering to the integer program at a step time.
//!
//! Columns with equal GPUs and equal bytes compete: the one that does most microbatches is offered, and columns whose
//! floor cannot beat it are never split. Of the offers, those that another one replaces are left out.
//!
//! Not here: which scenarios there are (`branch`), what a column is (`column`).

use super::branch::Member;
use super::column::Outline;
use super::evaluate::Signature;
use super::master::{Choice, Demand, Offer};
use super::space::Space;
use super::terms::{ExchangeTerms, Terms};

/// The columns of a scenario and what their replicas exchange.
pub(super) struct Book {
    pub list: Vec<Outline>,
    /// Ranges of `list` with equal GPUs and traffic.
    pub alike: Vec<std::ops::Range<usize>>,
    pub terms: Terms,
    /// Signatures that may not stand alone: alone they are another scenario's.
    pub not_alone: Vec<Signature>,
    pub must_mix: bool,
}

impl Book {
    pub fn sort(&mut self) {
        let key =
            |o: &Outline| (o.devices.clone(), o.traffic.iter().map(|t| t.to_bits()).collect::<Vec<_>>());
        self.list.sort_by_cached_key(key);
        let mut start = 0;
        for end in 1..=self.list.len() {
            if end == self.list.len() || key(&self.list[end]) != key(&self.list[start]) {
                self.alike.push(start..end);
                start = end;
            }
        }
    }

    pub fn exchange(&self) -> &ExchangeTerms {
        self.terms.exchange.as_ref().expect("books are of scenarios with several replicas")
    }

    pub fn set_terms(&mut self, space: &Space, replicas: u32, most_s: f64) {
        let old = self.exchange();
        if old.most_s != most_s || (most_s.is_finite() && old.replicas != replicas) {
            self.terms = Terms::new(space, Some(ExchangeTerms { replicas, most_s, ..old.clone() }));
            self.list.iter_mut().for_each(Outline::forget);
        }
    }

    pub fn exchange_floor_s(&self, space: &Space, replicas: u32) -> f64 {
        let terms = ExchangeTerms { replicas, ..self.exchange().clone() };
        let floors = self.list.iter().map(|o| o.exchange_floor_s(space, &terms));
        floors.fold(f64::INFINITY, f64::min)
    }

    /// The columns worth choosing for a step time, with their outlines.
    pub fn offers(&self, space: &Space, step_s: f64) -> (Vec<Offer>, Vec<usize>) {
        let (mut offers, mut columns) = (Vec::new(), Vec::new());
        for alike in &self.alike {
            for signature in (0..self.not_alone.len()).map(Some).chain([None]) {
                let of_it = alike.clone().filter(|&i| self.not_alone_index(i) == signature);
                if let Some((column, microbatches)) = self.most(space, step_s, of_it) {
                    let outline = &self.list[column];
                    let (devices, traffic) = (outline.devices.clone(), outline.traffic.clone());
                    let microbatches = microbatches.min(space.microbatches);
                    offers.push(Offer { devices, traffic, signature, microbatches });
                    columns.push(column);
                }
            }
        }
        (offers, columns)
    }

    fn not_alone_index(&self, column: usize) -> Option<usize> {
        if self.not_alone.is_empty() {
            return None;
        }
        let signature = self.list[column].signature();
        self.not_alone.iter().position(|s| *s == signature)
    }

    /// The column that does most microbatches in a step time; those that cannot beat another are never split.
    fn most(&self, space: &Space, step_s: f64, columns: impl Iterator<Item = usize>) -> Option<(usize, u32)> {
        let mut hopes: Vec<(u32, usize)> =
            columns.map(|c| (self.list[c].microbatches_at_most(step_s), c)).collect();
        hopes.sort_by_key(|&(hope, c)| (std::cmp::Reverse(hope), c));
        let mut best: Option<(usize, u32)> = None;
        for (hope, column) in hopes {
            if best.map_or(0, |b| b.1) >= hope.min(space.microbatches) {
                break;
            }
            if let Some((_, done)) = self.list[column].best(&self.terms, step_s)
                && best.is_none_or(|b| done > b.1)
            {
                best = Some((column, done));
            }
        }
        best
    }

    /// The replicas of a choice, the step's microbatches spread so that the slowest ends earliest.
    pub fn members(&self, step_s: f64, choice: &Choice, columns: &[usize], microbatches: u32) -> Vec<Member> {
        let (mut members, mut offer_of) = (Vec::new(), Vec::new());
        for (offer, (&count, &column)) in
            choice.counts.iter().zip(columns).enumerate().filter(|(_, c)| *c.0 > 0)
        {
            let outline = &self.list[column];
            let (split, _) = outline.best(&self.terms, step_s).expect("an offer has a split");
            let member = Member { outline: outline.clone(), split: split.clone(), microbatches: 1 };
            members.extend(std::iter::repeat_n(member, count as usize));
            offer_of.extend(std::iter::repeat_n(offer, count as usize));
        }
        let mut left: Vec<u32> = choice.microbatches.iter().zip(&choice.counts).map(|(w, n)| w - n).collect();
        for _ in members.len() as u32..microbatches {
            let free = (0..members.len()).filter(|&i| {
                left[offer_of[i]] > 0 && members[i].microbatches < members[i].split.most_microbatches
            });
            let ends_s = |i: usize| members[i].pipeline_s(members[i].microbatches + 1);
            let next = free.min_by(|&a, &b| ends_s(a).total_cmp(&ends_s(b)));
            let next = next.expect("the choice does all microbatches");
            members[next].microbatches += 1;
            left[offer_of[next]] -= 1;
        }
        members
    }
}

/// The offers that no other replaces: no more GPUs, no more bytes where bytes count, no fewer microbatches.
pub(super) fn undominated(offers: &[Offer], demand: &Demand) -> Vec<usize> {
    let binding: Vec<usize> =
        (0..demand.capacity.len()).filter(|&p| demand.capacity[p].is_finite()).collect();
    let signatures = (0..demand.not_alone).map(Some).chain([None]);
    let mut kept: Vec<usize> = signatures
        .flat_map(|signature| {
            let like = (0..offers.len()).filter(|&i| offers[i].signature == signature).collect();
            if binding.is_empty() {
                undominated_by_count(offers, like, demand)
            } else {
                undominated_by_pairs(offers, like, &binding)
            }
        })
        .collect();
    kept.sort_unstable();
    kept
}

/// Only GPUs and microbatches count: `most[v]` is the best of all offers with at most v GPUs.
fn undominated_by_count(offers: &[Offer], like: Vec<usize>, demand: &Demand) -> Vec<usize> {
    let cells: usize = demand.supply.iter().map(|n| *n as usize + 1).product();
    if cells > MOST_CELLS {
        return like;
    }
    let strides: Vec<usize> =
        demand.supply.iter().scan(1, |s, n| Some(std::mem::replace(s, *s * (*n as usize + 1)))).collect();
    let cell = |o: &Offer| o.devices.iter().zip(&strides).map(|(n, s)| *n as usize * s).sum::<usize>();
    let mut own = vec![(0, usize::MAX); cells];
    for &i in &like {
        let slot = &mut own[cell(&offers[i])];
        if offers[i].microbatches > slot.0 {
            *slot = (offers[i].microbatches, i);
        }
    }
    let mut most = vec![0; cells];
    let mut kept = Vec::new();
    for at in 0..cells {
        let digits = strides.iter().zip(&demand.supply).map(|(s, n)| (s, at / s % (*n as usize + 1)));
        let below = digits.filter(|d| d.1 > 0).map(|d| most[at - d.0]).max().unwrap_or(0);
        if own[at].0 > below {
            kept.push(own[at].1);
        }
        most[at] = own[at].0.max(below);
    }
    kept
}

/// A larger table would cost more than it saves.
const MOST_CELLS: usize = 4_000_000;

fn undominated_by_pairs(offers: &[Offer], like: Vec<usize>, binding: &[usize]) -> Vec<usize> {
    let replaces = |a: &Offer, b: &Offer| {
        a.microbatches >= b.microbatches
            && a.devices.iter().zip(&b.devices).all(|(a, b)| a <= b)
            && binding.iter().all(|&p| a.traffic[p] <= b.traffic[p])
    };
    let replaced = |b: usize| {
        let by = |a: usize| {
            a != b && replaces(&offers[a], &offers[b]) && (a < b || !replaces(&offers[b], &offers[a]))
        };
        like.iter().any(|&a| by(a))
    };
    like.iter().copied().filter(|&b| !replaced(b)).collect()
}
