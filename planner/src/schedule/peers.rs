//! Who a rank talks to: neighbours across its stage's boundaries, and in the other replicas the owners of its layers.
//!
//! Tensor-parallel groups may differ in size. Rank `i` of `n` holds the `i`-th of `n` equal parts of a tensor, so it
//! shares with rank `k` of `m` the overlap of `[i/n, (i+1)/n)` and `[k/m, (k+1)/m)`: each pair that overlaps
//! exchanges just that part, and the parts of one tensor sum to the whole.
//!
//! Layers are matched by unit, not by stage: replicas that cut the model differently still meet layer by layer.
//!
//! Not here: how many bytes a tensor has (`cost`), the order of messages (`generate`).

use crate::plan::{Exchange, ExchangeKind, Plan, Seat, Stage};

/// What replicas exchange as a whole: the parameters of one unit lie on one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Token and position embeddings; with layer 0.
    Embedding,
    /// A transformer layer.
    Layer(u32),
    /// Final norm and output matrix; with the last layer.
    Head,
}

/// A part of a tensor, as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Numerator.
    pub part: u64,
    /// Denominator.
    pub of: u64,
}

/// A rank on the other side and the part of the tensor that both hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Global rank.
    pub rank: u32,
    /// Of the whole tensor.
    pub share: Share,
}

impl Unit {
    /// The layer beside which it lies, of a model of so many.
    pub fn layer(self, model_layers: u32) -> u32 {
        match self {
            Unit::Embedding => 0,
            Unit::Layer(layer) => layer,
            Unit::Head => model_layers - 1,
        }
    }
}

impl Share {
    /// This part of `total` bytes, rounded up.
    pub fn bytes(self, total: u64) -> u64 {
        u64::try_from((u128::from(total) * u128::from(self.part)).div_ceil(u128::from(self.of)))
            .expect("a part is not more than the whole")
    }
}

/// The ranks of `other` that hold parts of what `rank` of `stage` holds, in rank order of their group.
pub fn boundary_peers(stage: &Stage, rank: u32, other: &Stage) -> Vec<Peer> {
    let (own, of_own) = part(stage, rank);
    let of_other = other.ranks.len() as u64;
    let overlap = |k: u64| {
        let start = (own * of_other).max(k * of_own);
        let end = ((own + 1) * of_other).min((k + 1) * of_own);
        end.saturating_sub(start)
    };
    let peer = |(k, p): (usize, &crate::plan::Placement)| {
        let share = Share { part: overlap(k as u64), of: of_own * of_other };
        (share.part > 0).then_some(Peer { rank: p.rank, share })
    };
    other.ranks.iter().enumerate().filter_map(peer).collect()
}

/// The units that a stage owns, in the order of the model.
pub fn units(stage: &Stage, model_layers: u32) -> Vec<Unit> {
    let [first, end] = stage.layers;
    let embedding = (first == 0).then_some(Unit::Embedding);
    let head = (end == model_layers).then_some(Unit::Head);
    embedding.into_iter().chain((first..end).map(Unit::Layer)).chain(head).collect()
}

/// For each unit of the seat's stages, the ranks of the exchange's other replicas that hold parts of it. Each replica
/// begins with the one after itself, so that no rank is everybody's first.
pub fn exchange_peers(plan: &Plan, exchange: &Exchange, seat: Seat<'_>) -> Vec<(Unit, Vec<Peer>)> {
    let replica = &plan.replicas[seat.replica];
    let owned = replica.stages[seat.stage..].iter().step_by(replica.depth());
    let members = &exchange.replicas;
    let own =
        members.iter().position(|&r| r as usize == seat.replica).expect("the seat's replica takes part");
    let others = || members[own + 1..].iter().chain(&members[..own]);
    let owners = |unit| others().map(move |&r| owner(plan, r as usize, unit));
    let of_unit = |stage: &Stage, unit| {
        owners(unit).flat_map(|s| boundary_peers(stage, seat.placement.rank, s)).collect()
    };
    let units = owned.flat_map(|stage| units(stage, plan.model.layers).into_iter().map(move |u| (stage, u)));
    units.map(|(stage, unit)| (unit, of_unit(stage, unit))).collect()
}

/// The exchanges that `replica` takes part in at optimiser step `step` (from 1): dense ones at every step, the
/// others when their period divides it. An exchange of one replica is none.
pub fn exchanges_at(plan: &Plan, replica: usize, step: u64) -> impl Iterator<Item = &Exchange> {
    plan.exchange
        .iter()
        .filter(move |e| e.replicas.len() > 1 && e.replicas.iter().any(|&r| r as usize == replica))
        .filter(move |e| is_due(e, step))
}

/// Whether the exchange follows optimiser step `step` (from 1).
pub fn is_due(exchange: &Exchange, step: u64) -> bool {
    exchange.kind == ExchangeKind::Dense || step.is_multiple_of(u64::from(exchange.every.max(1)))
}

fn owner(plan: &Plan, replica: usize, unit: Unit) -> &Stage {
    let layer = unit.layer(plan.model.layers);
    let owns = |s: &&Stage| (s.layers[0]..s.layers[1]).contains(&layer);
    plan.replicas[replica].stages.iter().find(owns).expect("a checked plan covers every layer")
}

/// Position in the tensor-parallel group and size of the group.
fn part(stage: &Stage, rank: u32) -> (u64, u64) {
    let position = stage.ranks.iter().position(|p| p.rank == rank).expect("the rank belongs to the stage");
    (position as u64, stage.ranks.len() as u64)
}
