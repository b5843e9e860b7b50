//! What the split of a pipeline must respect: for every kind of stage the most layers that memory and the exchange's limit
//! allow, tabulated once per set of terms.
//!
//! Bytes and exchange grow with layers, so "the most" is one number for each group, tensor-parallel degree, position in
//! the pipeline and number of microbatches in flight.
//!
//! Not here: the formulas (`cost`), the split itself (`column`).

use crate::cost::exchange::Path;
use crate::cost::memory::{in_flight, stage_parameters};
use crate::plan::ExchangeKind;

use super::column::{Outline, Run};
use super::space::Space;

/// What splits must respect: the most layers a stage may hold, by memory and by the exchange's limit.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// `None` with one replica.
    pub exchange: Option<ExchangeTerms>,
    /// By group, team, position and microbatches in flight: [`Terms::slot`].
    most_layers: Vec<u32>,
    first_slot: Vec<usize>,
    most_in_flight: u32,
}

/// Where a stage lies in its pipeline: the first carries the embedding, the last the head.
#[derive(Debug, Clone, Copy)]
enum Position {
    First,
    Middle,
    Last,
    Only,
}

/// The exchange that the columns take part in.
#[derive(Debug, Clone)]
pub(crate) struct ExchangeTerms {
    pub kind: (ExchangeKind, u32),
    /// The slowest hop, by group.
    pub paths: Vec<Path>,
    /// At least so many replicas.
    pub replicas: u32,
    /// No stage's exchange may take longer.
    pub most_s: f64,
}

impl Terms {
    /// Tabulates the most layers of every kind of stage.
    pub fn new(space: &Space, exchange: Option<ExchangeTerms>) -> Self {
        let most_in_flight = space.microbatches.min(space.model.layers);
        let mut terms = Self { exchange, most_layers: vec![], first_slot: vec![], most_in_flight };
        for (index, group) in space.groups.iter().enumerate() {
            terms.first_slot.push(terms.most_layers.len());
            for team in &group.teams {
                for position in [Position::First, Position::Middle, Position::Last, Position::Only] {
                    let most = |held| {
                        most_layers(space, terms.exchange.as_ref(), (index, team.size), position, held)
                    };
                    terms.most_layers.extend((1..=most_in_flight).map(most));
                }
            }
        }
        terms
    }

    /// The most layers of each stage with at most so many microbatches in the pipeline.
    pub fn caps(&self, outline: &Outline, microbatches: u32) -> Vec<u32> {
        let count: u32 = outline.runs.iter().map(|r| r.stages).sum();
        let cap = |(stage, run): (u32, &Run)| {
            let position = match (stage == 0, stage + 1 == count) {
                (true, true) => Position::Only,
                (true, false) => Position::First,
                (false, true) => Position::Last,
                (false, false) => Position::Middle,
            };
            let held = in_flight(microbatches, count, stage).min(self.most_in_flight);
            self.most_layers[self.slot(run, position, held)]
        };
        (0..count).zip(outline.stage_runs()).map(cap).collect()
    }

    /// The most layers that any stage of a group may hold.
    pub fn most_layers_of(&self, group: usize) -> u32 {
        let end = self.first_slot.get(group + 1).copied().unwrap_or(self.most_layers.len());
        self.most_layers[self.first_slot[group]..end].iter().copied().max().unwrap_or(0)
    }

    fn slot(&self, run: &Run, position: Position, held: u32) -> usize {
        let team = run.team.size.trailing_zeros() as usize;
        let row = team * 4 + position as usize;
        self.first_slot[run.group] + row * self.most_in_flight as usize + held as usize - 1
    }
}

/// The most layers that fit, 0 if not even one does.
fn most_layers(
    space: &Space,
    exchange: Option<&ExchangeTerms>,
    (group, size): (usize, u32),
    position: Position,
    held: u32,
) -> u32 {
    let all = space.model.layers;
    let fits = |n: u32| {
        let layers = match position {
            Position::First => 0..n,
            Position::Middle => 1..n + 1,
            Position::Last => all - n..all,
            Position::Only => 0..all,
        };
        let kind = exchange.map(|e| e.kind.0);
        let parameters = stage_parameters(space.model, layers.clone()) as f64 / f64::from(size);
        let exchanged_in_time = |terms: &ExchangeTerms| {
            space.exchange_s(terms.kind, terms.replicas, parameters, terms.paths[group]) <= terms.most_s
        };
        space.rank_bytes(layers, size, held, kind) <= space.groups[group].memory_bytes
            && exchange.is_none_or(exchanged_in_time)
    };
    // Beside it stand at least those that its position implies.
    let others = match position {
        Position::Only => 0,
        Position::First | Position::Last => 1,
        Position::Middle => 2,
    };
    let (mut low, mut high) = (0, all.saturating_sub(others));
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}
