//! The most layers a stage may hold: by memory, tabulated, and by the seconds its synchronisation may take.
//!
//! Bytes and seconds grow with layers, so "the most" is one number for each group, tensor-parallel degree, position in
//! the pipeline and number of microbatches in flight.
//!
//! Not here: the formulas (`cost`, `sync`), the split itself (`column`).

use crate::cost::memory::stage_parameters;
use crate::plan::ExchangeKind;

use super::column::{Outline, Run};
use super::space::Space;
use super::sync::Sync;

/// The most layers that memory allows, for one number of owners of each parameter.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    /// By group, team, position and microbatches in flight: [`Memory::slot`].
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

impl Position {
    const ALL: [Self; 4] = [Self::First, Self::Middle, Self::Last, Self::Only];

    fn of(stage: u32, stages: u32) -> Self {
        match (stage == 0, stage + 1 == stages) {
            (true, true) => Position::Only,
            (true, false) => Position::First,
            (false, true) => Position::Last,
            (false, false) => Position::Middle,
        }
    }

    /// Layers of a stage of `n` at this position.
    fn layers(self, n: u32, all: u32) -> std::ops::Range<u32> {
        match self {
            Position::First => 0..n,
            Position::Middle => 1..n + 1,
            Position::Last => all - n..all,
            Position::Only => 0..all,
        }
    }

    /// Layers that must be elsewhere.
    fn others(self) -> u32 {
        match self {
            Position::Only => 0,
            Position::First | Position::Last => 1,
            Position::Middle => 2,
        }
    }
}

impl Memory {
    /// Tabulates the most layers of every kind of stage.
    pub fn new(space: &Space, drifts: Option<ExchangeKind>, owners: u32) -> Self {
        let most_in_flight = 2 * space.microbatches.min(space.model.layers);
        let mut memory = Self { most_layers: vec![], first_slot: vec![], most_in_flight };
        for (index, group) in space.groups.iter().enumerate() {
            memory.first_slot.push(memory.most_layers.len());
            for team in &group.teams {
                for position in Position::ALL {
                    let bytes =
                        |layers, held| space.rank_bytes(layers, team.size, held, drifts, owners);
                    let fits =
                        |held| most(space, position, |layers| bytes(layers, held) <= space.groups[index].memory_bytes);
                    memory.most_layers.extend((1..=most_in_flight).map(fits));
                }
            }
        }
        memory
    }

    /// The most layers of each stage with at most so many microbatches in the pipeline.
    pub fn caps(&self, outline: &Outline, microbatches: u32) -> Vec<u32> {
        let count = outline.stages();
        let cap = |(stage, run): (u32, &Run)| {
            let held = outline.in_flight(microbatches, stage).clamp(1, self.most_in_flight);
            self.most_layers[self.slot(run, Position::of(stage, count), held)]
        };
        (0..count).zip(outline.stage_runs()).map(cap).collect()
    }

    /// The most layers of a stage that is not the first, or that is all of its pipeline's.
    pub fn most_between(&self, group: usize, team: usize, is_last: bool, held: u32) -> u32 {
        let held = held.min(self.most_in_flight);
        let at = |position| self.most_layers[self.index(group, team, position, held)];
        if is_last { at(Position::Last).max(at(Position::Only)) } else { at(Position::Middle).max(at(Position::First)) }
    }

    fn slot(&self, run: &Run, position: Position, held: u32) -> usize {
        self.index(run.group, run.team_index, position, held)
    }

    fn index(&self, group: usize, team: usize, position: Position, held: u32) -> usize {
        let row = team * 4 + position as usize;
        self.first_slot[group] + row * self.most_in_flight as usize + held as usize - 1
    }
}

/// The most layers of each stage whose synchronisation takes at most so long.
pub(crate) fn sync_caps(space: &Space, sync: &Sync, outline: &Outline, most_s: f64) -> Vec<u32> {
    let count = outline.stages();
    let mut known: Vec<((usize, usize), u32)> = Vec::new();
    let runs = outline.runs.iter().enumerate().flat_map(|(i, r)| std::iter::repeat_n((i, r), r.stages as usize));
    let cap = |(stage, (index, run)): (u32, (usize, &Run))| {
        let position = Position::of(stage, count);
        let key = (index, position as usize);
        if let Some(&(_, cap)) = known.iter().find(|k| k.0 == key) {
            return cap;
        }
        let in_time = |layers| {
            let parameters = stage_parameters(space.model, layers) as f64 / f64::from(run.team.size);
            sync.stage_s(space, run.group, parameters, outline.devices[run.group]) <= most_s
        };
        let cap = most(space, position, in_time);
        known.push((key, cap));
        cap
    };
    (0..count).zip(runs).map(cap).collect()
}

/// The most layers at a position that pass, 0 if not even one does.
fn most(space: &Space, position: Position, passes: impl Fn(std::ops::Range<u32>) -> bool) -> u32 {
    let all = space.model.layers;
    let (mut low, mut high) = (0, all.saturating_sub(position.others()));
    while low < high {
        let middle = (low + high).div_ceil(2);
        if passes(position.layers(middle, all)) { low = middle } else { high = middle - 1 }
    }
    low
}
