//! What keeps replicas equal, as one stage of one replica pays for it.
//!
//! ```text
//!   island      replicas that keep the same layers in the same clusters: gradients reduced every step, inside clusters
//!   outer       what islands exchange: pseudo-gradients every H steps (or gradients every step); one replica speaks
//!               for its island
//!   sync_i      dense(P_i, owners) + outer(P_i, islands)          of stage i;   of a replica: the longest of its stages
//! ```
//! A lone replica is an island of one. Replicas of one island may be split into stages in unlike ways.
//!
//! Not here: which islands there are (`market`, `solve`).

use crate::cost::exchange::{self, Path, Sharding};
use crate::plan::ExchangeKind;

use super::space::Space;

/// What the replicas of an island take part in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sync {
    /// Replicas of the island.
    pub owners: u32,
    /// How they keep the optimiser's states.
    pub sharding: Sharding,
    pub outer: Option<Outer>,
}

/// An exchange between islands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outer {
    pub kind: (ExchangeKind, u32),
    /// How many there are, this one included.
    pub islands: u32,
    /// Clusters that the islands are in.
    pub clusters: Vec<usize>,
    /// Whether one replica speaks for an island; else all replicas of a cluster share its ways out.
    pub speaker: Speaker,
}

/// Who sends between islands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// One replica of each island, and each cluster has one island.
    Island,
    /// Every replica.
    Replica,
}

impl Sync {
    /// Of a replica that is alone.
    pub const ALONE: Self = Self { owners: 1, sharding: Sharding::Whole, outer: None };

    /// What the states must be kept for: drifting apart takes more memory.
    pub fn drifts(&self) -> Option<ExchangeKind> {
        match &self.outer {
            Some(outer) => Some(outer.kind.0),
            None => (self.owners > 1).then_some(ExchangeKind::Dense),
        }
    }

    /// Seconds per step of a rank in `group` that keeps so many parameters; `speakers`: its replica's ranks in the
    /// group.
    pub fn stage_s(&self, space: &Space, group: usize, parameters: f64, speakers: u32) -> f64 {
        let inside = space.groups[group].exchange;
        let dense_s = exchange::dense_s(parameters, self.owners, self.sharding, inside);
        let Some(outer) = &self.outer else { return dense_s };
        let speakers = match outer.speaker {
            Speaker::Island => speakers,
            Speaker::Replica => space.groups[group].gpus,
        };
        let path = space.exchange_path(group, &outer.clusters, speakers).unwrap_or(NOWHERE);
        let (kind, every) = outer.kind;
        dense_s + exchange::per_step_s(kind, every, outer.islands, parameters, path)
    }
}

/// Between clusters that do not reach each other: such an exchange never ends.
const NOWHERE: Path = Path { rate_bytes_per_s: 0.0, latency_s: f64::INFINITY };
