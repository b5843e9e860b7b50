//! What the columns of a pool offer for a step time: as lone replicas, and as members of islands of every size.
//!
//! For a fixed step time a column does so many sequences and no more, a number that its island's size lowers a little
//! (more owners to reduce gradients with) and, with sharded states, its memory raises. Columns with equal GPUs, bytes and
//! island compete: the one that does most is offered.
//!
//! Not here: which offers are taken (`master`).

use std::collections::BTreeMap;

use crate::plan::ExchangeKind;

use super::column::Work;
use super::master::{Demand, Island, Offer, Place};
use super::pool::Pool;
use super::space::Space;
use super::sync::{Outer, Speaker, Sync};
use super::terms::Memory;

/// What an offer stands for.
#[derive(Debug, Clone)]
pub(crate) struct Deal {
    pub column: usize,
    pub work: Work,
}

/// The offers at a step time, what each stands for, and what they must do together.
pub(crate) struct Market {
    pub offers: Vec<Offer>,
    pub deals: Vec<Deal>,
    pub demand: Demand,
}

/// A part of the problem: what islands exchange, which clusters are used, how many islands there are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scenario {
    /// `None`: one island.
    pub outer: Option<(ExchangeKind, u32)>,
    pub clusters: Vec<usize>,
    pub islands: (u32, u32),
}

/// Sizes of islands that are priced alike, ascending: exact while small, then within an eighth.
pub(crate) fn brackets(most: u32) -> Vec<(u32, u32)> {
    let mut brackets = Vec::new();
    let mut low = 2;
    while low <= most {
        let high = (low + low / 8).min(most);
        let high = if low < 16 { low } else { high };
        brackets.push((low, high));
        low = high + 1;
    }
    brackets
}

/// Memory tables of a mode: by what its replicas drift by and how many owners share states.
pub(crate) struct Tables {
    tables: Vec<Memory>,
    owners: Vec<u32>,
}

impl Tables {
    /// How many a mode has.
    pub fn count(space: &Space, most_owners: u32) -> usize {
        2 * Self::classes(space, most_owners).len() + 1
    }

    /// Numbers of owners that have a table: with sharded states memory falls with them.
    fn classes(space: &Space, most_owners: u32) -> Vec<u32> {
        if !space.limits.zero1 {
            return vec![1];
        }
        let exact = 1..=most_owners.min(16);
        let beyond = (5..32).map(|i| 1u32 << i).take_while(|n| *n <= most_owners);
        exact.chain(beyond).collect()
    }

    /// The tables of a mode.
    pub fn new(space: &Space, most_owners: u32) -> Self {
        let owners = Self::classes(space, most_owners);
        let kinds = space.outer_kinds();
        let drifting = kinds.iter().map(|k| k.0).find(|k| !matches!(k, ExchangeKind::Dense));
        let mut tables = vec![Memory::new(space, None, 1)];
        for &n in &owners {
            tables.push(Memory::new(space, Some(ExchangeKind::Dense), n));
            let drifting = drifting.map(|kind| Memory::new(space, Some(kind), n));
            tables.push(drifting.unwrap_or_else(|| tables[tables.len() - 1].clone()));
        }
        Self { tables, owners }
    }

    /// The tables of fewest and most sharded states, drifting or not.
    pub fn extremes(&self) -> Vec<(&Memory, usize)> {
        let last = self.tables.len() - 1;
        [1, 2, last - 1, last].into_iter().map(|i| (&self.tables[i], i)).collect()
    }

    /// The table of a replica: that of at most as many owners as there are.
    pub fn of(&self, sync: &Sync) -> (&Memory, usize) {
        let class = self.owners.iter().rposition(|n| *n <= sync.owners).unwrap_or(0);
        let index = match sync.drifts() {
            None => 0,
            Some(ExchangeKind::Dense) => 1 + 2 * class,
            Some(_) => 2 + 2 * class,
        };
        (&self.tables[index], index)
    }
}

/// What offers that compete have in common: place, GPUs, bytes.
type Rivals = (Place, Vec<u32>, Vec<u64>);

/// The offers of a scenario at a step time. With `rounded` sizes of islands a bracket pays for its fewest replicas.
pub(crate) fn market(
    modes: &[Space],
    tables: &[Tables],
    pool: &Pool,
    scenario: &Scenario,
    step_s: f64,
) -> Market {
    let space = &modes[0];
    let gathers = space.may_be_dense() && (scenario.outer.is_none() || space.limits.nested);
    let mut islands: Vec<Island> = Vec::new();
    let mut island_of: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    let mut found: BTreeMap<Rivals, (Offer, Deal)> = BTreeMap::new();
    for (index, column) in pool.columns.iter().enumerate() {
        let outline = &column.outline;
        let inside = |(g, n): (usize, &u32)| *n == 0 || scenario.clusters.contains(&g);
        if !outline.devices.iter().enumerate().all(inside) {
            continue;
        }
        let here = &modes[column.mode];
        // What no arrangement could beat is not split.
        if outline.microbatches_at_most(step_s, 0.0) == 0 {
            continue;
        }
        let most = most_members(here, &outline.devices, &pool.fewest[column.signature]);
        let singles = (1, 1);
        let sizes = std::iter::once(singles).chain(brackets(if gathers { most } else { 1 }));
        for (low, high) in sizes {
            let sync = sync(here, scenario, low);
            let Some(work) = outline.best(here, tables[column.mode].of(&sync), &sync, step_s) else {
                // More owners only help where states are sharded.
                if space.limits.zero1 { continue } else { break }
            };
            let place = if low == 1 {
                Place::Alone { signature: column.signature }
            } else {
                let next = islands.len();
                let island = *island_of.entry((column.signature, low)).or_insert(next);
                if island == next {
                    let clusters = pool.signatures[column.signature].iter().map(|s| s.0).collect();
                    islands.push(Island { signature: column.signature, replicas: (low, high), clusters });
                }
                Place::Island(island)
            };
            let round = outline.round();
            let units = work.microbatches.min(here.microbatches) / round;
            if units == 0 {
                continue;
            }
            let offer = Offer {
                place,
                devices: outline.devices.clone(),
                traffic: outline.traffic.iter().map(|t| t * f64::from(round)).collect(),
                unit: here.micro_batch * round,
                units,
            };
            let key = (place, outline.devices.clone(), outline.traffic.iter().map(|t| t.to_bits()).collect());
            let better = found.get(&key).is_none_or(|(o, _)| offer.sequences() > o.sequences());
            if better {
                found.insert(key, (offer, Deal { column: index, work }));
            }
        }
    }
    let (offers, deals): (Vec<_>, Vec<_>) = found.into_values().unzip();
    let demand = demand(space, pool, scenario, step_s, &offers, islands);
    Market { offers, deals, demand }
}

/// What a replica of an island of so many pays for.
pub(crate) fn sync(space: &Space, scenario: &Scenario, owners: u32) -> Sync {
    let speaker = if space.limits.nested { Speaker::Island } else { Speaker::Replica };
    let outer = scenario.outer.map(|kind| Outer {
        kind,
        islands: scenario.islands.0,
        clusters: scenario.clusters.clone(),
        speaker,
    });
    Sync { owners, sharding: space.sharding(), outer }
}

/// How many replicas with these GPUs the inventory could hold, and the batch feed.
pub(crate) fn most_replicas(space: &Space, devices: &[u32]) -> u32 {
    let fit = space.groups.iter().zip(devices).filter(|(_, used)| **used > 0).map(|(g, used)| g.gpus / used);
    fit.min().unwrap_or(0).min(space.microbatches)
}

/// The largest island that a replica with these GPUs can be of, if the others take the fewest.
fn most_members(space: &Space, devices: &[u32], fewest: &[u32]) -> u32 {
    let others = space.groups.iter().zip(devices).zip(fewest).filter(|((_, used), _)| **used > 0);
    let others = others.map(|((g, used), fewest)| (g.gpus - used) / fewest);
    (1 + others.min().unwrap_or(0)).min(space.microbatches)
}

fn demand(
    space: &Space,
    pool: &Pool,
    scenario: &Scenario,
    step_s: f64,
    offers: &[Offer],
    islands: Vec<Island>,
) -> Demand {
    let sequences = space.model.global_batch;
    let capacity = |p: usize| {
        let capacity = step_s * space.pools[p].rate_bytes_per_s;
        let heaviest = offers.iter().map(|o| o.traffic[p] / f64::from(o.unit)).fold(0.0, f64::max);
        if heaviest * f64::from(sequences) > capacity { capacity } else { f64::INFINITY }
    };
    let drifts = |s: usize| space.may_drift(pool.signatures[s].iter().map(|r| r.0));
    let exclusive = |g: &usize| space.limits.nested && !space.may_drift(std::iter::once(*g));
    let together = if scenario.outer.is_some() && !space.limits.nested {
        (0..pool.signatures.len()).filter(|s| !drifts(*s)).collect()
    } else {
        vec![]
    };
    Demand {
        sequences,
        islands: scenario.islands,
        supply: space.groups.iter().map(|g| g.gpus).collect(),
        capacity: (0..space.pools.len()).map(capacity).collect(),
        members: islands,
        exclusive: scenario.clusters.iter().copied().filter(exclusive).collect(),
        together,
    }
}
