//! The network and the durations that the inventory and the cost model give a plan.
//!
//! A rank of a tensor-parallel group of `t` takes a `t`-th of the stage's FLOPs, and the group's all-reduces on top:
//! half of them in the forward, half in the input gradient (with full recomputation a third and two thirds).
//!
//! Free of charge: the optimiser's step, coding a boundary, making and applying a sparse frame (all bound by memory,
//! whose rate the inventory does not know).
//!
//! Not here: the formulas (`cost`), the graph (`topology`).

use std::collections::BTreeMap;

use super::{Costs, Network, Resource, Route, SimulateError};
use crate::cost::compute::{Pass, pass_s};
use crate::cost::exchange::{Path, frame_bytes};
use crate::cost::{boundary, memory, tensor};
use crate::inventory::Fabric;
use crate::model::Recompute;
use crate::plan::{ExchangeKind, Plan, Seat};
use crate::schedule::{Action, Payload, Unit, exchanges_at, talking_pairs};
use crate::topology::{GpuId, Topology};

impl Network {
    /// What the topology has between the ranks of the plan that talk to each other.
    ///
    /// # Errors
    /// If a rank's GPU is not in the inventory or two ranks that must talk have no way.
    pub fn of(plan: &Plan, topology: &Topology) -> Result<Self, SimulateError> {
        let gpus = gpus(plan, topology)?;
        let mut routes = BTreeMap::new();
        for (from, to) in talking_pairs(plan) {
            let route = topology.route(gpus[from as usize], gpus[to as usize]);
            let route = route.ok_or(SimulateError::Unreachable { from, to })?;
            let resources = route.resources.iter().map(|r| r.0 as usize).collect();
            routes.insert((from, to), Route { resources, latency_s: route.latency_s, loss: route.loss });
        }
        let resource = |r: &crate::topology::Resource| Resource {
            name: r.name.clone(),
            rate_bytes_per_s: r.rate_bytes_per_s,
        };
        Ok(Network { resources: topology.resources().iter().map(resource).collect(), routes })
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
}

impl<'a> Modelled<'a> {
    /// Looks up where every rank of the plan runs.
    ///
    /// # Errors
    /// If a rank's GPU is not in the inventory.
    pub fn new(plan: &'a Plan, topology: &Topology) -> Result<Self, SimulateError> {
        let gpus = gpus(plan, topology)?;
        let fabric = |gpu| &plan.cluster.clusters[topology.fabric(gpu)];
        Ok(Modelled { plan, seats: plan.seats(), fabrics: gpus.into_iter().map(fabric).collect() })
    }

    fn pass_s(&self, rank: u32, pass: Pass) -> f64 {
        let (seat, fabric) = (self.seats[rank as usize], self.fabrics[rank as usize]);
        let stage = &self.plan.replicas[seat.replica].stages[seat.stage];
        let (layers, group) = (stage.layers[0]..stage.layers[1], stage.ranks.len() as u32);
        let (model, micro_batch) = (&self.plan.model, self.plan.micro_batch);
        let reduced = f64::from(layers.end - layers.start) * self.tensor_layer_s(fabric, group, pass);
        pass_s(model, &fabric.gpu, layers, micro_batch, group, pass) + reduced
    }

    fn tensor_layer_s(&self, fabric: &Fabric, group: u32, pass: Pass) -> f64 {
        let recompute = self.plan.model.recompute;
        let share = match pass {
            Pass::Forward if recompute == Recompute::Full => 1.0 / 3.0,
            Pass::BackwardInput if recompute == Recompute::Full => 2.0 / 3.0,
            Pass::Forward | Pass::BackwardInput => 1.0 / 2.0,
            Pass::BackwardWeight => 0.0,
        };
        let bus = Path { rate_bytes_per_s: fabric.intra.rate_bytes_per_s, latency_s: fabric.intra.latency_s };
        let bytes = self.activation_bytes(crate::plan::Codec::None);
        share * tensor::layer_s(group, bytes, recompute, bus)
    }

    fn activation_bytes(&self, codec: crate::plan::Codec) -> u64 {
        let model = &self.plan.model;
        let rows = u64::from(self.plan.micro_batch) * u64::from(model.sequence);
        boundary::coded_bytes(codec, model.precision, rows, model.hidden)
    }

    /// The exchange that decides what states the replica keeps: one that lets it drift, before a dense one.
    fn keeps_states_for(&self, replica: usize) -> Option<ExchangeKind> {
        // At step 0 every exchange is due.
        exchanges_at(self.plan, replica, 0).map(|e| e.kind).max_by_key(|&kind| kind != ExchangeKind::Dense)
    }
}

impl Costs for Modelled<'_> {
    fn action_s(&self, rank: u32, action: Action) -> f64 {
        match action {
            Action::Forward { .. } => self.pass_s(rank, Pass::Forward),
            Action::BackwardInput { .. } => self.pass_s(rank, Pass::BackwardInput),
            Action::BackwardWeight { .. } => self.pass_s(rank, Pass::BackwardWeight),
            Action::Receive { .. } | Action::Send { .. } => 0.0,
            Action::Reduce | Action::Step | Action::Exchange => 0.0,
        }
    }

    fn boundary_bytes(&self, replica: usize, boundary: usize, _: Payload) -> u64 {
        self.activation_bytes(self.plan.replicas[replica].boundaries[boundary].codec)
    }

    fn exchange_bytes(&self, unit: Unit, kind: ExchangeKind) -> u64 {
        let parameters = match unit {
            Unit::Embedding => self.plan.model.embedding_parameters(),
            Unit::Layer(_) => self.plan.model.layer_parameters(),
            Unit::Head => self.plan.model.head_parameters(),
        };
        match kind {
            ExchangeKind::Dense | ExchangeKind::Streaming => 4 * parameters,
            ExchangeKind::Sparse { top_k } => frame_bytes(parameters as f64, top_k).ceil() as u64,
        }
    }

    fn memory_bytes(&self, rank: u32, in_flight: u32) -> u64 {
        let seat = self.seats[rank as usize];
        let stage = &self.plan.replicas[seat.replica].stages[seat.stage];
        let (layers, group) = (stage.layers[0]..stage.layers[1], stage.ranks.len() as u32);
        let exchange = self.keeps_states_for(seat.replica);
        let (model, micro_batch) = (&self.plan.model, self.plan.micro_batch);
        memory::rank_bytes(model, layers, micro_batch, group, in_flight, exchange, 1).ceil() as u64
    }
}
