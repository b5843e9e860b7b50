//! What a run costs under its framework: lanes for the simulator, gradients and step in closed form.
//!
//! ```text
//!   lane       the first rank of each tensor-parallel group, for all of it; replicas that cost the same but once
//!   passes     layers x (layer + 2 all-reduces a pass; 4 in the input pass of full recomputation) + head
//!   crossing   b s h values to every rank of the next group:  bytes / share + latency
//!   gradients  ring over the owners of a stage: hosts' shares, 2 (hosts - 1) latencies
//!   step       states through memory, and the framework's own work
//! ```
//! A NIC's share is its host's rate over the ranks, or groups, of the stage that send through it at once. Where a stage
//! crosses by blocking calls the time is the rank's own (`Crossings`); where a group sends its tensor in parts, a
//! crossing takes [`PARTITION_MESSAGES`] latencies, for the messages about them.
//!
//! Not here: what frameworks and GPUs are like (`cost::framework`, the testbeds).

use std::collections::{BTreeMap, BTreeSet};

use super::profile::{self, Times};
use super::testbed::{self, Testbed};
use super::{Judged, Run, TruthError};
use crate::cost::compute::{PASSES, Pass, head_under_s, layer_under_s};
use crate::cost::exchange::{Path, ring_all_reduce_s};
use crate::cost::framework::{self, Crossings, Framework, Gradients, NetworkChoice};
use crate::cost::memory;
use crate::inventory::{Cluster, Fabric};
use crate::model::{Model, Precision, Recompute};
use crate::plan::{ExchangeKind, Plan, Replica, Stage};
use crate::schedule::{Action, Payload, Unit};
use crate::simulate::{Costs, Network, simulate_on};
use crate::uniform::{Degrees, uniform_plan};

/// DeepSpeed's pipeline engine cuts what a tensor-parallel group sends and says how, in small messages: latencies a
/// crossing, fitted to AMP's two fabrics.
const PARTITION_MESSAGES: f64 = 100.0;

pub(super) fn judge(run: &Run) -> Result<Judged, TruthError> {
    let unknown = |what: String| TruthError::Unknown { run: run.name(), what };
    let framework = framework::named(&run.framework).ok_or_else(|| {
        let names: Vec<&str> = framework::ALL.iter().map(|f| f.name).collect();
        unknown(format!("no framework `{}` is known, only {}", run.framework, names.join(", ")))
    })?;
    let testbed = testbed::of(&run.hosts).map_err(unknown)?;
    let model = model(run).map_err(unknown)?;
    let degrees = Degrees {
        tensor: run.tensor,
        data: run.data,
        layers: run.split.clone(),
        micro_batch: run.micro_batch,
    };
    let plan = uniform_plan(&testbed.cluster, &model, &degrees)
        .map_err(|error| TruthError::Uniform { run: run.name(), error })?;
    let prices = Prices { run, framework, plan: &plan, testbed: &testbed };
    let lanes = Lanes::of(&prices).map_err(unknown)?;
    let (pipeline_s, held_bytes) =
        lanes.simulate(&prices).map_err(|error| TruthError::Simulate { run: run.name(), error })?;
    let (exchange_s, step_s) = (prices.exchange_s(&lanes), prices.step_s());
    Ok(Judged {
        run: run.clone(),
        predicted_s: pipeline_s + exchange_s + step_s,
        pipeline_s,
        exchange_s,
        step_s,
        predicted_memory_bytes: run.memory_gb.map(|_| held_bytes),
    })
}

fn model(run: &Run) -> Result<Model, String> {
    let value = serde_json::json!({
        "kind": run.kind, "layers": run.layers, "hidden": run.hidden, "heads": run.heads, "vocab": run.vocab,
        "mlp_width": run.mlp_width, "sequence": run.sequence, "global_batch": run.batch,
        "micro_batch": run.micro_batch, "precision": run.precision, "optimizer": "adamw",
        "recompute": run.recompute, "exchange": "dense", "boundary": "none",
    });
    serde_json::from_value(value).map_err(|e| e.to_string())
}

/// What the parts of a run cost.
struct Prices<'a> {
    run: &'a Run,
    framework: &'a Framework,
    plan: &'a Plan,
    testbed: &'a Testbed,
}

impl Prices<'_> {
    /// Forward, gradient of the input, gradient of the weights: seconds of a stage for a microbatch.
    fn stage_s(&self, stage: &Stage) -> Result<[f64; 3], String> {
        let (first, end) = (stage.layers[0], stage.layers[1]);
        let (fabric, layers) = (self.slowest(stage), f64::from(end - first));
        let (has_embedding, has_head) = (first == 0, end == self.run.layers);
        if self.run.profile.is_empty() {
            return Ok(PASSES.map(|pass| self.modelled_s(stage, fabric, pass)));
        }
        let found =
            profile::times(&self.run.profile, &fabric.gpu.name, self.run.tensor, self.run.micro_batch);
        let Times { embedding_s, layer_forward_s, layer_backward_s, head_forward_s, head_backward_s } = found
            .ok_or_else(|| format!("profile `{}` has no times of a {}", self.run.profile, fabric.gpu.name))?;
        let with = |there: bool, seconds: f64| if there { seconds } else { 0.0 };
        let forward =
            layers * layer_forward_s + with(has_embedding, embedding_s) + with(has_head, head_forward_s);
        Ok([forward, layers * layer_backward_s + with(has_head, head_backward_s), 0.0])
    }

    fn modelled_s(&self, stage: &Stage, fabric: &Fabric, pass: Pass) -> f64 {
        let (model, run) = (&self.plan.model, self.run);
        let layer_s = layer_under_s(self.framework, model, &fabric.gpu, run.micro_batch, run.tensor, pass);
        let reductions = match pass {
            Pass::Forward => 2.0,
            Pass::BackwardInput if model.recompute == Recompute::Full => 4.0,
            Pass::BackwardInput => 2.0,
            Pass::BackwardWeight => 0.0,
        };
        let layer_s = layer_s + reductions * self.reduction_s(stage);
        let head_s = head_under_s(self.framework, model, &fabric.gpu, run.micro_batch, run.tensor, pass);
        let head_s = if stage.layers[1] == run.layers { head_s } else { 0.0 };
        f64::from(stage.layers[1] - stage.layers[0]) * layer_s + head_s
    }

    /// One all-reduce of a tensor-parallel group.
    fn reduction_s(&self, stage: &Stage) -> f64 {
        let hosts: Vec<&str> = stage.ranks.iter().map(|p| p.host.as_str()).collect();
        self.ring_s(&hosts, self.activation_bytes())
    }

    /// All-reduce over a ring of ranks on these hosts, of which others like it run on the same hosts.
    fn ring_s(&self, hosts: &[&str], bytes: f64) -> f64 {
        let ring = hosts.len() as u32;
        if ring == 1 {
            return 0.0;
        }
        let distinct: BTreeSet<&str> = hosts.iter().copied().collect();
        let bus = |host: &str| self.fabric(host).intra;
        let slowest_bus = distinct.iter().map(|h| bus(h).rate_bytes_per_s).fold(f64::INFINITY, f64::min);
        if distinct.len() == 1 {
            let path = Path { rate_bytes_per_s: slowest_bus, latency_s: bus(hosts[0]).latency_s };
            return ring_all_reduce_s(ring, bytes, path) + self.framework.collective_s;
        }
        let share = |host: &&str| {
            let members = hosts.iter().filter(|h| h == &host).count() as f64;
            self.way(host).0 * members / f64::from(self.fabric(host).gpus)
        };
        let rate_bytes_per_s = distinct.iter().map(|h| share(h)).fold(slowest_bus, f64::min);
        let latency_s = distinct.iter().map(|h| self.way(h).1).fold(0.0, f64::max);
        let moved_s = ring_all_reduce_s(ring, bytes, Path { rate_bytes_per_s, latency_s: 0.0 });
        moved_s + 2.0 * (distinct.len() - 1) as f64 * latency_s + self.framework.collective_s
    }

    /// What crosses a boundary of a replica takes, one way.
    fn crossing_s(&self, replica: usize, boundary: usize) -> f64 {
        let stages = &self.plan.replicas[replica].stages;
        let [from, to] = [&stages[boundary], &stages[boundary + 1]].map(|s| s.ranks[0].host.as_str());
        let bytes = self.activation_bytes();
        if from == to {
            let bus = self.fabric(from).intra;
            return bytes / bus.rate_bytes_per_s + bus.latency_s;
        }
        let share = |host: &str, stage: usize| {
            let fabric = self.fabric(host);
            let senders = f64::from(self.ranks_on(host, stage, boundary));
            (self.way(host).0 / senders).min(fabric.nic.rate_bytes_per_s)
        };
        let rate = share(from, boundary).min(share(to, boundary + 1));
        let latency_s = self.way(from).1.max(self.way(to).1);
        match self.framework.crossings {
            Crossings::BothWaitForParts if self.run.tensor > 1 => {
                bytes / f64::from(self.run.tensor) / rate + PARTITION_MESSAGES * latency_s
            }
            _ => bytes / rate + latency_s,
        }
    }

    /// Ranks of a stage on a host whose counterparts beyond `boundary` are on another.
    fn ranks_on(&self, host: &str, stage: usize, boundary: usize) -> u32 {
        let here = |r: &&Replica| {
            let [a, b] = [&r.stages[boundary], &r.stages[boundary + 1]].map(|s| &s.ranks[0].host);
            r.stages[stage].ranks[0].host == host && a != b
        };
        self.plan.replicas.iter().filter(here).count() as u32 * self.run.tensor.min(self.fabric(host).gpus)
    }

    /// Bytes per second of a host to others in all, and the latency: a NIC class for each, or for want of that the
    /// Ethernet; where two kinds of hosts meet, their link.
    fn way(&self, host: &str) -> (f64, f64) {
        let (fabric, cluster) = (self.fabric(host), &self.testbed.cluster);
        let nic = (fabric.nic.rate_bytes_per_s * f64::from(fabric.nic.count), fabric.nic.latency_s);
        let unlike = cluster.clusters.iter().any(|f| f.nic.class != fabric.nic.class);
        match fabric.ethernet {
            Some(hop) if unlike && self.framework.network == NetworkChoice::WholeJob => {
                (hop.rate_bytes_per_s, hop.latency_s)
            }
            _ if fabric.ethernet.is_none() => slowest_link(cluster, fabric, nic),
            _ => nic,
        }
    }

    /// Seconds of the gradients' exchange that no compute hides: the slowest stage's.
    fn exchange_s(&self, lanes: &Lanes) -> f64 {
        let stages = 0..self.plan.replicas[0].stages.len();
        stages.map(|stage| self.stage_exchange_s(stage, lanes)).fold(0.0, f64::max)
    }

    fn stage_exchange_s(&self, stage: usize, lanes: &Lanes) -> f64 {
        let replicas = &self.plan.replicas;
        let hosts: Vec<&str> = replicas.iter().map(|r| r.stages[stage].ranks[0].host.as_str()).collect();
        let all_reduce_s = |bytes: f64| self.ring_s(&hosts, bytes);
        let parameters = self.rank_parameters(&replicas[0].stages[stage]);
        let weight_bytes = if self.plan.model.precision == Precision::Fp32 { 4.0 } else { 2.0 };
        // Half an all-reduce each.
        let scatter_s = all_reduce_s(4.0 * parameters) / 2.0;
        let gather_s = all_reduce_s(weight_bytes * parameters) / 2.0;
        let [forward_s, input_s, weight_s] = lanes.slowest_passes_s(stage);
        match self.framework.gradients {
            Gradients::AllReducedAfter => all_reduce_s(4.0 * parameters),
            Gradients::ShardedAfter => scatter_s + gather_s,
            Gradients::ShardedDuring => {
                (scatter_s - input_s - weight_s).max(0.0) + (gather_s - forward_s).max(0.0)
            }
        }
    }

    /// Seconds of the slowest rank's optimiser step and of the framework's own work.
    fn step_s(&self) -> f64 {
        let sharded = self.framework.gradients != Gradients::AllReducedAfter;
        let owners = if sharded { f64::from(self.run.data) } else { 1.0 };
        let stages = self.plan.replicas.iter().flat_map(|r| &r.stages);
        let moved_s = stages.map(|stage| {
            let rate = self.slowest(stage).gpu.memory_bytes_per_s;
            let bytes = self.framework.step_moves_bytes * self.rank_parameters(stage) / owners;
            rate.map_or(0.0, |rate| bytes / rate)
        });
        moved_s.fold(0.0, f64::max) + self.framework.step_s
    }

    fn rank_parameters(&self, stage: &Stage) -> f64 {
        let layers = stage.layers[0]..stage.layers[1];
        memory::stage_parameters(&self.plan.model, layers) as f64 / f64::from(self.run.tensor)
    }

    /// Bytes of the fullest GPU, averaged over its host's GPUs as Sailor's tables give them: those that a run leaves
    /// idle count as empty.
    fn memory_bytes(&self, stage: &Stage, in_flight: u32) -> f64 {
        let (model, run) = (&self.plan.model, self.run);
        let layers = stage.layers[0]..stage.layers[1];
        let states =
            self.rank_parameters(stage) * memory::state_bytes_per_parameter(model.precision, None, 1);
        let saved = memory::saved_under_bytes(self.framework, model, layers, run.micro_batch, run.tensor);
        let position = self.position(&stage.ranks[0].host);
        let fabric = &self.testbed.cluster.clusters[position];
        let used = f64::from(fabric.gpus) / f64::from(self.testbed.gpus_per_host[position]);
        used * (states + f64::from(in_flight) * saved + testbed::context_bytes(&fabric.gpu.name))
    }

    fn activation_bytes(&self) -> f64 {
        let values =
            f64::from(self.run.micro_batch) * f64::from(self.run.sequence) * f64::from(self.run.hidden);
        values * if self.plan.model.precision == Precision::Fp32 { 4.0 } else { 2.0 }
    }

    fn fabric(&self, host: &str) -> &Fabric {
        &self.testbed.cluster.clusters[self.position(host)]
    }

    fn position(&self, host: &str) -> usize {
        let kind = host.rsplit_once('-').map_or(host, |(fabric, _)| fabric);
        let found = self.testbed.cluster.clusters.iter().position(|f| f.name == kind);
        found.expect("a testbed's hosts are named after their cluster")
    }

    /// Of the kinds of GPU that a stage's group spans.
    fn slowest(&self, stage: &Stage) -> &Fabric {
        let fabrics = stage.ranks.iter().map(|p| self.fabric(&p.host));
        let rate =
            |f: &&Fabric| crate::cost::compute::achieved_flops_per_s(&f.gpu, self.plan.model.precision);
        fabrics.min_by(|a, b| rate(a).total_cmp(&rate(b))).expect("a stage has ranks")
    }
}

/// A host's rate and latency to all others: its NIC's, or the slowest of its links where kinds are mixed.
fn slowest_link(cluster: &Cluster, fabric: &Fabric, nic: (f64, f64)) -> (f64, f64) {
    let links = cluster.links.iter().filter(|l| l.between.contains(&fabric.name));
    links.fold(nic, |(rate, latency), l| (rate.min(l.rate_bytes_per_s), latency.max(l.latency_s)))
}

/// The replicas that differ, each group of ranks by its first.
struct Lanes {
    plan: Plan,
    /// By lane: its replica in the run's plan.
    replicas: Vec<usize>,
    /// By lane and stage.
    passes_s: Vec<Vec<[f64; 3]>>,
    /// By lane and boundary.
    crossings_s: Vec<Vec<f64>>,
}

impl Lanes {
    fn of(prices: &Prices) -> Result<Self, String> {
        let mut seen = BTreeMap::new();
        let mut lanes =
            Lanes { plan: prices.plan.clone(), replicas: vec![], passes_s: vec![], crossings_s: vec![] };
        lanes.plan.replicas.clear();
        lanes.plan.exchange.clear();
        for (index, replica) in prices.plan.replicas.iter().enumerate() {
            let passes_s: Vec<[f64; 3]> =
                replica.stages.iter().map(|s| prices.stage_s(s)).collect::<Result<_, _>>()?;
            let boundaries = 0..replica.boundaries.len();
            let crossings_s: Vec<f64> = boundaries.map(|b| prices.crossing_s(index, b)).collect();
            let same = passes_s.iter().flatten().chain(&crossings_s).map(|s| s.to_bits()).collect::<Vec<_>>();
            if seen.insert(same, index).is_some() {
                continue;
            }
            lanes.add(index, replica, passes_s, crossings_s);
        }
        Ok(lanes)
    }

    fn add(&mut self, index: usize, replica: &Replica, passes_s: Vec<[f64; 3]>, crossings_s: Vec<f64>) {
        let mut lane = replica.clone();
        let first = self.replicas.len() * lane.stages.len();
        for (rank, stage) in (first as u32..).zip(&mut lane.stages) {
            stage.ranks.truncate(1);
            stage.ranks[0].rank = rank;
        }
        self.plan.replicas.push(lane);
        self.replicas.push(index);
        self.passes_s.push(passes_s);
        self.crossings_s.push(crossings_s);
    }

    /// Seconds of the slowest pipeline, and the bytes of the fullest GPU.
    fn simulate(&self, prices: &Prices) -> Result<(f64, f64), crate::simulate::SimulateError> {
        let costs = LaneCosts { lanes: self, waits: prices.framework.crossings };
        let simulated = simulate_on(&self.plan, &costs.network(), &costs)?;
        let stages = self.plan.replicas.iter().flat_map(|r| &r.stages);
        let held = stages.zip(&simulated.peak_in_flight).map(|(s, &n)| prices.memory_bytes(s, n));
        Ok((simulated.step_s - self.chunks_save_s(prices.run.chunks), held.fold(0.0, f64::max)))
    }

    /// Chunks fill the pipeline in a v-th of the time: (p - 1) (1 - 1/v) of the slowest stage.
    fn chunks_save_s(&self, chunks: u32) -> f64 {
        let stages = self.plan.replicas[0].stages.len();
        let slowest = (0..stages).map(|s| self.slowest_passes_s(s).iter().sum()).fold(0.0, f64::max);
        (stages - 1) as f64 * (1.0 - 1.0 / f64::from(chunks)) * slowest
    }

    fn slowest_passes_s(&self, stage: usize) -> [f64; 3] {
        let lanes = self.passes_s.iter().map(|stages| stages[stage]);
        lanes.max_by(|a, b| a.iter().sum::<f64>().total_cmp(&b.iter().sum())).expect("there is a lane")
    }
}

/// The simulator's view: a rank is a stage of a lane, crossings are its own time or the route's latency.
struct LaneCosts<'a> {
    lanes: &'a Lanes,
    waits: Crossings,
}

impl LaneCosts<'_> {
    fn lane_and_stage(&self, rank: u32) -> (usize, usize) {
        let stages = self.lanes.plan.replicas[0].stages.len();
        (rank as usize / stages, rank as usize % stages)
    }

    /// Messages queue for nothing: shares are in the crossings.
    fn network(&self) -> Network<'static> {
        let way = |(from, to): (u32, u32)| {
            let (lane, stage) = self.lane_and_stage(from.min(to));
            let seconds = self.lanes.crossings_s[lane][stage];
            let latency_s = if self.waits == Crossings::Overlapped { seconds } else { 0.0 };
            ((from, to), (vec![], latency_s, 0.0))
        };
        let neighbours = (1..self.lanes.plan.world_size()).map(|rank| (rank - 1, rank));
        let inside = neighbours.filter(|&(a, b)| self.lane_and_stage(a).0 == self.lane_and_stage(b).0);
        Network::given(vec![], inside.flat_map(|(a, b)| [(a, b), (b, a)]).map(way))
    }

    /// Of the boundary before the rank's stage, or after it.
    fn crossing_s(&self, rank: u32, before: bool) -> f64 {
        let (lane, stage) = self.lane_and_stage(rank);
        self.lanes.crossings_s[lane][if before { stage - 1 } else { stage }]
    }
}

impl Costs for LaneCosts<'_> {
    fn action_s(&self, rank: u32, action: Action) -> f64 {
        let (lane, stage) = self.lane_and_stage(rank);
        let [forward_s, input_s, weight_s] = self.lanes.passes_s[lane][stage];
        match action {
            Action::Forward { .. } => forward_s,
            Action::BackwardInput { .. } => input_s + weight_s,
            Action::Receive { what, .. } if self.waits != Crossings::Overlapped => {
                self.crossing_s(rank, what == Payload::Activation)
            }
            Action::Send { what, .. }
                if matches!(self.waits, Crossings::BothWait | Crossings::BothWaitForParts) =>
            {
                self.crossing_s(rank, what == Payload::Gradient)
            }
            _ => 0.0,
        }
    }

    fn boundary_bytes(&self, _: usize, _: usize, _: Payload) -> u64 {
        1
    }

    fn exchange_bytes(&self, _: Unit, _: ExchangeKind) -> u64 {
        0
    }

    fn parameter_bytes(&self, _: Unit) -> u64 {
        0
    }

    fn memory_bytes(&self, _: u32, _: &[u32]) -> u64 {
        0
    }
}
