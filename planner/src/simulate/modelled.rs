//! The network and the durations that the inventory and the cost model give a plan.
//!
//! A rank of a tensor-parallel group of `t` takes its part of the stage's passes, and the group's all-reduces on top:
//! half of them in the forward, half in the input gradient (with full recomputation a third and two thirds).
//!
//! Free of charge: the optimiser's step, coding a boundary, making and applying a sparse frame (all bound by memory,
//! whose rate the inventory does not know).
//!
//! Not here: the formulas (`cost`), the graph (`topology`).

use super::{Costs, Network, SimulateError};
use crate::cost::compute::{Pass, pass_s};
use crate::cost::exchange::{Path, frame_bytes};
use crate::cost::{boundary, memory, tensor};
use crate::inventory::Fabric;
use crate::model::{Model, Precision, Recompute};
use crate::plan::{ExchangeKind, Plan, Seat, Stage};
use crate::schedule::{Action, Payload, Unit, exchanges_at};
use crate::topology::{GpuId, Topology};

impl<'a> Network<'a> {
    /// What the topology has between the ranks of the plan.
    ///
    /// # Errors
    /// If a rank's GPU is not in the inventory.
    pub fn of(plan: &Plan, topology: &'a Topology) -> Result<Self, SimulateError> {
        gpus(plan, topology).map(|gpus| Network::between(topology, gpus))
    }
}

/// By rank, the GPU of its placement.
fn gpus(plan: &Plan, topology: &Topology) -> Result<Vec<GpuId>, SimulateError> {
    let gpu = |seat: Seat<'_>| {
        let placement = seat.placement;
        let missing = || SimulateError::NoSuchGpu {
            rank: placement.rank,
            host: placement.host.clone(),
            gpu: placement.gpu,
        };
        topology.gpu(&placement.host, placement.gpu).ok_or_else(missing)
    };
    plan.seats().into_iter().map(gpu).collect()
}

/// Costs by the formulas of [`crate::cost`].
pub struct Modelled<'a> {
    plan: &'a Plan,
    seats: Vec<Seat<'a>>,
    /// By rank: the cluster it is in.
    fabrics: Vec<&'a Fabric>,
    /// By replica: the model, recomputed as that replica does.
    models: Vec<Model>,
}

impl<'a> Modelled<'a> {
    /// Looks up where every rank of the plan runs.
    ///
    /// # Errors
    /// If a rank's GPU is not in the inventory.
    pub fn new(plan: &'a Plan, topology: &Topology) -> Result<Self, SimulateError> {
        let gpus = gpus(plan, topology)?;
        let fabric = |gpu| &plan.cluster.clusters[topology.fabric(gpu)];
        let model = |r: usize| Model { recompute: plan.recompute_of(r), ..plan.model.clone() };
        Ok(Modelled {
            plan,
            seats: plan.seats(),
            fabrics: gpus.into_iter().map(fabric).collect(),
            models: (0..plan.replicas.len()).map(model).collect(),
        })
    }

    fn pass_s(&self, rank: u32, chunk: u32, pass: Pass) -> f64 {
        let (seat, fabric) = (self.seats[rank as usize], self.fabrics[rank as usize]);
        let stage = self.stage(seat, chunk);
        let (layers, group) = (stage.layers[0]..stage.layers[1], stage.ranks.len() as u32);
        let (model, micro_batch) = (&self.models[seat.replica], self.plan.micro_batch_of(seat.replica));
        let reduced = f64::from(layers.end - layers.start) * self.tensor_layer_s(seat, fabric, group, pass);
        pass_s(model, &fabric.gpu, layers, micro_batch, group, pass) + reduced
    }

    fn stage(&self, seat: Seat<'_>, chunk: u32) -> &Stage {
        &self.plan.replicas[seat.replica].stages[seat.stage_of(self.plan, chunk)]
    }

    fn tensor_layer_s(&self, seat: Seat<'_>, fabric: &Fabric, group: u32, pass: Pass) -> f64 {
        let recompute = self.models[seat.replica].recompute;
        let share = match pass {
            Pass::Forward if recompute == Recompute::Full => 1.0 / 3.0,
            Pass::BackwardInput if recompute == Recompute::Full => 2.0 / 3.0,
            Pass::Forward | Pass::BackwardInput => 1.0 / 2.0,
            Pass::BackwardWeight => 0.0,
        };
        let bus = Path { rate_bytes_per_s: fabric.intra.rate_bytes_per_s, latency_s: fabric.intra.latency_s };
        let bytes = self.activation_bytes(seat.replica, crate::plan::Codec::None);
        share * tensor::layer_s(group, bytes, recompute, bus)
    }

    fn activation_bytes(&self, replica: usize, codec: crate::plan::Codec) -> u64 {
        let model = &self.plan.model;
        let rows = u64::from(self.plan.micro_batch_of(replica)) * u64::from(model.sequence);
        boundary::coded_bytes(codec, model.precision, rows, model.hidden)
    }

    /// Replicas that share the optimiser's states (ZeRO-1); 1 where each keeps its own.
    fn optimiser_owners(&self, replica: usize) -> u32 {
        let sharded = exchanges_at(self.plan, replica, 0).find(|e| e.zero1);
        sharded.map_or(1, |e| e.replicas.len() as u32)
    }

    fn parameters(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Embedding => self.plan.model.embedding_parameters(),
            Unit::Layer(_) => self.plan.model.layer_parameters(),
            Unit::Head => self.plan.model.head_parameters(),
        }
    }

    /// The exchange that decides what states the replica keeps: one that lets it drift, before a dense one.
    fn keeps_states_for(&self, replica: usize) -> Option<ExchangeKind> {
        // At step 0 every exchange is due.
        exchanges_at(self.plan, replica, 0).map(|e| e.kind).max_by_key(|&kind| kind != ExchangeKind::Dense)
    }
}

impl Modelled<'_> {}

impl Costs for Modelled<'_> {
    fn action_s(&self, rank: u32, action: Action) -> f64 {
        match action {
            Action::Forward { chunk, .. } => self.pass_s(rank, chunk, Pass::Forward),
            Action::BackwardInput { chunk, .. } => self.pass_s(rank, chunk, Pass::BackwardInput),
            Action::BackwardWeight { chunk, .. } => self.pass_s(rank, chunk, Pass::BackwardWeight),
            Action::Receive { .. } | Action::Send { .. } => 0.0,
            Action::Reduce | Action::Step | Action::Exchange => 0.0,
        }
    }

    fn boundary_bytes(&self, replica: usize, boundary: usize, _: Payload) -> u64 {
        self.activation_bytes(replica, self.plan.replicas[replica].boundaries[boundary].codec)
    }

    fn exchange_bytes(&self, unit: Unit, kind: ExchangeKind) -> u64 {
        let parameters = self.parameters(unit);
        match kind {
            ExchangeKind::Dense | ExchangeKind::Streaming => 4 * parameters,
            ExchangeKind::Sparse { top_k } => frame_bytes(parameters as f64, top_k).ceil() as u64,
        }
    }

    fn parameter_bytes(&self, unit: Unit) -> u64 {
        match self.plan.model.precision {
            Precision::Fp32 => 4 * self.parameters(unit),
            Precision::Bf16 | Precision::Fp16 => 2 * self.parameters(unit),
        }
    }

    fn memory_bytes(&self, rank: u32, held: &[u32]) -> u64 {
        let seat = self.seats[rank as usize];
        let exchange = self.keeps_states_for(seat.replica);
        let (model, micro_batch) = (&self.models[seat.replica], self.plan.micro_batch_of(seat.replica));
        let owners = self.optimiser_owners(seat.replica);
        let of_chunk = |(chunk, &held): (u32, &u32)| {
            let stage = self.stage(seat, chunk);
            let (layers, group) = (stage.layers[0]..stage.layers[1], stage.ranks.len() as u32);
            memory::rank_bytes(model, layers, micro_batch, group, held, exchange, owners)
        };
        (0..).zip(held).map(of_chunk).sum::<f64>().ceil() as u64
    }
}
