//! Keeping replicas equal: which ranks share which parameters, and the two ways of agreeing on them.
//!
//! Replicas may be cut differently, so what is exchanged is not a stage but a *unit* (the embedding, one layer, the
//! head): whole in one stage of every replica. A rank exchanges each of its units with the ranks that own the same
//! unit in the other replicas.
//!
//! ```text
//!   replica 0   rank 0 [emb 0 1 2 3 head]
//!   replica 1   rank 1 [emb 0 1]  rank 2 [2 3 head]      rank 0 <-> 1: emb 0 1     rank 0 <-> 2: 2 3 head
//! ```
//! Sums run in replica order on every owner, so all owners compute the same bits; after every exchange each owner
//! hashes its units and the coordinator compares them, in every run.
//!
//! `dense`: gradients, every step. `sparse`: pseudo-gradients, every H steps (SparseLoCo).
//! Not here: bytes (`narrows_compress`), moving them (`narrows_transport`).

pub mod dense;
pub mod sparse;

use std::collections::BTreeMap;
use std::ops::Range;

use narrows_planner::plan::{Plan, Replica};

/// A unit of parameters that a rank owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// `embedding`, `layer.<n>` or `head`.
    pub name: String,
    /// Its index in the whole model: the embedding 0, layer n n + 1, the head last.
    pub index: u32,
    /// Its place in the rank's flat parameter buffer.
    pub range: Range<usize>,
    /// The owning rank in each replica, in replica order; this rank among them.
    pub owners: Vec<u32>,
}

/// The units of one rank and who shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// This rank.
    pub rank: u32,
    /// In the order of the flat buffer.
    pub units: Vec<Unit>,
}

impl Ownership {
    /// Works out the owners of `units` (name and range in the flat buffer of `rank`) from the plan.
    pub fn new(plan: &Plan, rank: u32, units: impl IntoIterator<Item = (String, Range<usize>)>) -> Self {
        let units = units.into_iter().map(|(name, range)| {
            let index = index(&name, plan.model.layers);
            let layer = index.saturating_sub(1).min(plan.model.layers - 1);
            let owners = plan.replicas.iter().map(|replica| owner(replica, layer)).collect();
            Unit { name, index, range, owners }
        });
        Self { rank, units: units.collect() }
    }

    /// Ranks that share at least one unit with this one, each with the indices of those units, in rank order.
    pub fn peers(&self) -> BTreeMap<u32, Vec<usize>> {
        let mut peers: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, unit) in self.units.iter().enumerate() {
            for &owner in unit.owners.iter().filter(|&&o| o != self.rank) {
                peers.entry(owner).or_default().push(index);
            }
        }
        peers
    }

    /// A hash (BLAKE3, hexadecimal) of each unit's bits.
    pub fn hashes(&self, parameters: &[f32]) -> Vec<(String, String)> {
        let hash = |u: &Unit| blake3::hash(bytemuck::cast_slice(&parameters[u.range.clone()])).to_hex();
        self.units.iter().map(|u| (u.name.clone(), hash(u)[..32].to_owned())).collect()
    }
}

/// A unit's index in the whole model.
fn index(unit: &str, layers: u32) -> u32 {
    match unit {
        "embedding" => 0,
        "head" => layers + 1,
        other => {
            other.strip_prefix("layer.").and_then(|n| n.parse::<u32>().ok()).expect("the engine's names") + 1
        }
    }
}

/// The rank of `replica` whose stage holds `layer`.
fn owner(replica: &Replica, layer: u32) -> u32 {
    let stage = replica.stages.iter().find(|s| (s.layers[0]..s.layers[1]).contains(&layer));
    stage.expect("a checked plan covers every layer").ranks[0].rank
}
