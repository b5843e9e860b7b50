//! The prices of one problem: groups of like GPUs, what a stage costs in each, what joins them, what all share.
//!
//! A group is a cluster (its GPUs are alike). A *pool* is a capacity that crossings of all replicas draw from: a
//! cluster's NICs, its Ethernet, a link. Hosts of a cluster are alike, so a pool is the sum over hosts, and a step
//! cannot be shorter than a pool's bytes over its rate.
//!
//! Not here: which pipelines there are (`column`), what a plan costs (`evaluate`).

use crate::cost::boundary::{coded_bytes, occupancy_s};
use crate::cost::compute::{self, PASSES, achieved_flops_per_s};
use crate::cost::exchange::{Path, Sharding};
use crate::cost::pipeline::Crossing;
use crate::cost::{memory, tensor};
use crate::inventory::{Cluster, Fabric, Link, NicClass};
use crate::model::{BoundaryChoice, ExchangeChoice, Model, Precision};
use crate::plan::{Codec, ExchangeKind};

use super::{EngineLimits, SearchError, SearchOptions, unsupported};

/// A rank's share below which the network inside a cluster counts as narrow: 1 Gbit/s, as between sites.
const NARROW_BYTES_PER_S: f64 = 125e6;

/// One problem's prices: a microbatch size and a kind of recomputation are settled.
#[derive(Debug)]
pub(crate) struct Space<'a> {
    pub cluster: &'a Cluster,
    /// With `micro_batch` and `recompute` settled.
    pub model: &'a Model,
    pub limits: &'a EngineLimits,
    pub options: &'a SearchOptions,
    /// Sequences per microbatch.
    pub micro_batch: u32,
    /// Microbatches per step over all replicas.
    pub microbatches: u32,
    /// By cluster.
    pub groups: Vec<Group>,
    pub pools: Vec<Pool>,
    links: Vec<Vec<Option<Way>>>,
    /// Between clusters: a rank's share of its way out, and what all users of the link share.
    between: Vec<Vec<Option<(Path, f64)>>>,
}

/// The GPUs of a cluster.
#[derive(Debug)]
pub(crate) struct Group {
    pub gpus: u32,
    pub per_host: u32,
    pub memory_bytes: f64,
    /// Tensor-parallel degrees that fit a host, ascending.
    pub teams: Vec<Team>,
    /// Between GPUs of a host.
    pub bus: Way,
    /// Between hosts.
    pub nic: Way,
    /// What an exchange inside the group gets per rank.
    pub exchange: Path,
}

impl Group {
    /// Whether replicas cost and fit the same in another group.
    pub fn is_like(&self, other: &Group) -> bool {
        let way = |w: &Way| (w.rate_bytes_per_s, w.latency_s, w.ports_per_gpu);
        (self.gpus, self.per_host, self.memory_bytes) == (other.gpus, other.per_host, other.memory_bytes)
            && self.teams == other.teams
            && self.exchange == other.exchange
            && way(&self.bus) == way(&other.bus)
            && way(&self.nic) == way(&other.nic)
    }
}

/// A tensor-parallel degree in a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Team {
    pub size: u32,
    /// All passes of a layer, with the group's all-reduces.
    pub layer_s: f64,
    /// All passes of the head.
    pub head_s: f64,
}

/// A way between neighbouring stages.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub rate_bytes_per_s: f64,
    pub latency_s: f64,
    /// Crosses from one cluster to another.
    pub is_link: bool,
    /// How many of them each GPU of a group has for its part of a tensor; 0: the way is the host's.
    pub ports_per_gpu: f64,
    pub pools: Vec<usize>,
}

/// A capacity that all replicas share.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pub name: String,
    pub rate_bytes_per_s: f64,
}

impl<'a> Space<'a> {
    pub fn new(
        cluster: &'a Cluster,
        model: &'a Model,
        limits: &'a EngineLimits,
        options: &'a SearchOptions,
    ) -> Result<Self, SearchError> {
        if model.exchange != ExchangeChoice::Auto && !limits.exchanges.contains(&model.exchange) {
            return Err(unsupported("exchange", &model.exchange, limits.exchanges));
        }
        if model.boundary != BoundaryChoice::Auto && !limits.codecs.contains(&model.boundary) {
            return Err(unsupported("boundary", &model.boundary, limits.codecs));
        }
        let micro_batch = model.micro_batch.expect("settled before");
        let mut space = Self {
            cluster,
            model,
            limits,
            options,
            micro_batch,
            microbatches: model.global_batch / micro_batch,
            groups: Vec::new(),
            pools: Vec::new(),
            links: vec![vec![None; cluster.clusters.len()]; cluster.clusters.len()],
            between: vec![vec![None; cluster.clusters.len()]; cluster.clusters.len()],
        };
        for fabric in &cluster.clusters {
            let group = space.group(fabric);
            space.groups.push(group);
        }
        space.join_clusters();
        Ok(space)
    }

    /// The way from the last stage of a run in one group to the first of a run in another.
    pub fn link(&self, from: usize, to: usize) -> Option<&Way> {
        self.links[from][to].as_ref()
    }

    /// One microbatch's crossing of a way, and its bytes. Each GPU of a tensor-parallel group sends and receives its own
    /// part: the smaller `group` of the two says how many ports are in use.
    pub fn crossing(&self, way: &Way, codec: Codec, group: u32) -> (Crossing, u64) {
        let rows = u64::from(self.micro_batch) * u64::from(self.model.sequence);
        let bytes = coded_bytes(codec, self.model.precision, rows, self.model.hidden);
        let ports = (f64::from(group) * way.ports_per_gpu).max(1.0);
        let occupancy_s = occupancy_s(bytes, way.rate_bytes_per_s * ports);
        (Crossing { occupancy_s, latency_s: way.latency_s }, bytes)
    }

    /// The codec of a boundary over `way` in a pipeline whose stages take `mean_stage_s` on average. Left to us, only
    /// a crossing longer than the compute it must hide behind is compressed, and links carry bf16.
    pub fn codec(&self, way: &Way, mean_stage_s: f64) -> Codec {
        let able = |choice| self.limits.codecs.contains(&choice);
        match self.model.boundary {
            BoundaryChoice::None => Codec::None,
            BoundaryChoice::Bf16 => Codec::Bf16,
            BoundaryChoice::Int8 => Codec::Int8,
            BoundaryChoice::Subspace => self.subspace(),
            BoundaryChoice::Auto => {
                let narrow = self.crossing(way, Codec::None, 1).0.occupancy_s > mean_stage_s;
                match narrow {
                    true if able(BoundaryChoice::Subspace) => self.subspace(),
                    true if able(BoundaryChoice::Int8) => Codec::Int8,
                    _ if (narrow || way.is_link) && able(BoundaryChoice::Bf16) => Codec::Bf16,
                    _ => Codec::None,
                }
            }
        }
    }

    fn subspace(&self) -> Codec {
        let rank = self.options.subspace_rank.unwrap_or(self.model.hidden / 8);
        Codec::Subspace { rank: rank.clamp(1, self.model.hidden.saturating_sub(1).max(1)) }
    }

    /// What may be exchanged between islands. Left to us, the cheapest kind that the engine can: gradients stay inside
    /// islands and pseudo-gradients leave them.
    pub fn outer_kinds(&self) -> Vec<(ExchangeKind, u32)> {
        use ExchangeChoice::{Dense, Sparse, Streaming};
        let kind = |choice: &ExchangeChoice| match choice {
            Dense | ExchangeChoice::Auto => (ExchangeKind::Dense, 1),
            Streaming => (ExchangeKind::Streaming, self.options.sync_every),
            Sparse => (ExchangeKind::Sparse { top_k: self.options.top_k }, self.options.sync_every),
        };
        match &self.model.exchange {
            ExchangeChoice::Auto => {
                let able = [Sparse, Streaming, Dense].into_iter().find(|k| self.limits.exchanges.contains(k));
                able.iter().map(kind).collect()
            }
            forced => vec![kind(forced)],
        }
    }

    /// May the replicas of an island reduce gradients every step?
    pub fn may_be_dense(&self) -> bool {
        matches!(self.model.exchange, ExchangeChoice::Auto | ExchangeChoice::Dense)
            && self.limits.exchanges.contains(&ExchangeChoice::Dense)
    }

    /// May replicas whose layers lie in the same clusters drift apart between exchanges? Left to us, only where the
    /// network inside is as narrow as between sites.
    pub fn may_drift(&self, clusters: impl Iterator<Item = usize>) -> bool {
        let narrow = |g: usize| {
            let group = &self.groups[g];
            let fabric = &self.cluster.clusters[g];
            fabric.nic.class == NicClass::Ethernet
                && fabric.hosts.len() > 1
                && group.exchange.rate_bytes_per_s <= NARROW_BYTES_PER_S
        };
        match self.model.exchange {
            ExchangeChoice::Auto => clusters.into_iter().all(narrow),
            ExchangeChoice::Dense => false,
            ExchangeChoice::Streaming | ExchangeChoice::Sparse => true,
        }
    }

    /// The slowest hop between a rank in `group` and ranks anywhere in `groups`; `None` if they do not reach each other.
    /// What all of a link's users share is divided by `speakers`, the ranks of the group that speak at once.
    pub fn exchange_path(&self, group: usize, groups: &[usize], speakers: u32) -> Option<Path> {
        let mut slowest = self.groups[group].exchange;
        for &other in groups.iter().filter(|&&o| o != group) {
            let hop = self.exchange_between(group, other, speakers)?;
            slowest.rate_bytes_per_s = slowest.rate_bytes_per_s.min(hop.rate_bytes_per_s);
            slowest.latency_s = slowest.latency_s.max(hop.latency_s);
        }
        Some(slowest)
    }

    /// How the optimiser's states of an island's parameters are kept.
    pub fn sharding(&self) -> Sharding {
        let weight_bytes = if self.model.precision == Precision::Fp32 { 4 } else { 2 };
        if self.limits.zero1 { Sharding::Zero1 { weight_bytes } } else { Sharding::Whole }
    }

    /// Bytes of a rank with `layers`, its tensor-parallel group of `team`, `owners` of each parameter in its island.
    pub fn rank_bytes(
        &self,
        layers: std::ops::Range<u32>,
        team: u32,
        in_flight: u32,
        exchange: Option<ExchangeKind>,
        owners: u32,
    ) -> f64 {
        let shards = if self.limits.zero1 { owners } else { 1 };
        memory::rank_bytes(self.model, layers, self.micro_batch, team, in_flight, exchange, shards)
    }

    /// Seconds below which no plan's step can be: all FLOPs over the sum of all rates.
    pub fn flops_bound_s(&self, groups: &[usize]) -> f64 {
        let work = compute::model_flops(self.model, self.micro_batch) * f64::from(self.microbatches);
        let rate = |&g: &usize| {
            let gpu = &self.cluster.clusters[g].gpu;
            f64::from(self.groups[g].gpus) * achieved_flops_per_s(gpu, self.model.precision)
        };
        work / groups.iter().map(rate).sum::<f64>()
    }

    fn exchange_between(&self, a: usize, b: usize, speakers: u32) -> Option<Path> {
        let (share, all_bytes_per_s) = self.between[a][b]?;
        let rate_bytes_per_s = share.rate_bytes_per_s.min(all_bytes_per_s / f64::from(speakers));
        Some(Path { rate_bytes_per_s, ..share })
    }

    /// A rank's share of a link between two clusters, and the rate that all its users share.
    fn shares(&self, link: &Link, a: usize, b: usize) -> (Path, f64) {
        let share = |g: usize| {
            let fabric = &self.cluster.clusters[g];
            let side =
                link.rate_bytes_per_s.min(fabric.ethernet.map_or(f64::INFINITY, |e| e.rate_bytes_per_s));
            side / f64::from(fabric.gpus)
        };
        let rate_bytes_per_s = share(a).min(share(b)) * (1.0 - link.loss);
        let all_bytes_per_s = link.shared_bytes_per_s.unwrap_or(f64::INFINITY) * (1.0 - link.loss);
        (Path { rate_bytes_per_s, latency_s: link.latency_s }, all_bytes_per_s)
    }

    fn inventory_link(&self, a: usize, b: usize) -> Option<&'a Link> {
        let (a, b) = (&self.cluster.clusters[a].name, &self.cluster.clusters[b].name);
        let joins =
            |l: &&Link| (&l.between[0], &l.between[1]) == (a, b) || (&l.between[1], &l.between[0]) == (a, b);
        self.cluster.links.iter().find(joins)
    }

    fn group(&mut self, fabric: &Fabric) -> Group {
        let hosts = fabric.hosts.len() as u32;
        let nic_host = fabric.nic.rate_bytes_per_s * f64::from(fabric.nic.count);
        self.pools.push(Pool {
            name: format!("the NICs of {}", fabric.name),
            rate_bytes_per_s: nic_host * f64::from(hosts),
        });
        let bus = Way {
            rate_bytes_per_s: fabric.intra.rate_bytes_per_s,
            latency_s: fabric.intra.latency_s,
            is_link: false,
            ports_per_gpu: 1.0,
            pools: vec![],
        };
        let nic = Way {
            rate_bytes_per_s: fabric.nic.rate_bytes_per_s,
            latency_s: fabric.nic.latency_s,
            is_link: false,
            ports_per_gpu: f64::from(fabric.nic.count) / f64::from(fabric.gpus),
            pools: vec![self.pools.len() - 1],
        };
        let inside = Path { rate_bytes_per_s: bus.rate_bytes_per_s, latency_s: bus.latency_s };
        let nic_share = inside.rate_bytes_per_s.min(nic_host / f64::from(fabric.gpus));
        let outside = Path { rate_bytes_per_s: nic_share, latency_s: nic.latency_s };
        Group {
            gpus: hosts * fabric.gpus,
            per_host: fabric.gpus,
            memory_bytes: fabric.gpu.memory_bytes as f64,
            teams: self.teams(fabric, inside),
            bus,
            nic,
            exchange: if hosts == 1 { inside } else { outside },
        }
    }

    fn teams(&self, fabric: &Fabric, bus: Path) -> Vec<Team> {
        let model = self.model;
        let sizes = [1, 2, 4, 8].into_iter();
        let able = sizes.filter(|&t| {
            t <= self.limits.max_tensor_parallel
                && fabric.gpus.is_multiple_of(t)
                && model.heads.is_multiple_of(t)
                && fabric.gpu.profile.as_ref().is_none_or(|p| p.degrees().contains(&t))
        });
        let rows = u64::from(self.micro_batch) * u64::from(model.sequence);
        let activation = coded_bytes(Codec::None, model.precision, rows, model.hidden);
        able.map(|size| {
            let (gpu, b) = (&fabric.gpu, self.micro_batch);
            let layer_s: f64 = PASSES.iter().map(|&p| compute::layer_s(model, gpu, b, size, p)).sum();
            let head_s = PASSES.iter().map(|&p| compute::head_s(model, gpu, b, size, p)).sum();
            let reductions_s = match &gpu.profile {
                Some(_) => 0.0, // in what was measured
                None => tensor::layer_s(size, activation, model.recompute, bus),
            };
            Team { size, layer_s: layer_s + reductions_s, head_s }
        })
        .collect()
    }

    fn join_clusters(&mut self) {
        let ethernet: Vec<Option<usize>> = (0..self.groups.len()).map(|g| self.ethernet_pool(g)).collect();
        for a in 0..self.groups.len() {
            for b in a + 1..self.groups.len() {
                let Some(link) = self.inventory_link(a, b) else { continue };
                let shares = self.shares(link, a, b);
                (self.between[a][b], self.between[b][a]) = (Some(shares), Some(shares));
                let (fa, fb) = (&self.cluster.clusters[a], &self.cluster.clusters[b]);
                let hosts = fa.hosts.len().min(fb.hosts.len()) as f64;
                let all = hosts * link.rate_bytes_per_s;
                self.pools.push(Pool {
                    name: format!("the link {}~{}", fa.name, fb.name),
                    rate_bytes_per_s: all.min(link.shared_bytes_per_s.unwrap_or(f64::INFINITY))
                        * (1.0 - link.loss),
                });
                let mut pools = vec![self.pools.len() - 1];
                pools.extend([ethernet[a], ethernet[b]].into_iter().flatten());
                let caps = [fa.ethernet.map(|e| e.rate_bytes_per_s), fb.ethernet.map(|e| e.rate_bytes_per_s)];
                let caps = caps.into_iter().chain([link.shared_bytes_per_s]).flatten();
                let way = Way {
                    rate_bytes_per_s: caps.fold(link.rate_bytes_per_s, f64::min) * (1.0 - link.loss),
                    latency_s: link.latency_s,
                    is_link: true,
                    ports_per_gpu: 0.0,
                    pools,
                };
                self.links[b][a] = Some(way.clone());
                self.links[a][b] = Some(way);
            }
        }
    }

    fn ethernet_pool(&mut self, group: usize) -> Option<usize> {
        let fabric = &self.cluster.clusters[group];
        let hop = fabric.ethernet?;
        self.pools.push(Pool {
            name: format!("the Ethernet of {}", fabric.name),
            rate_bytes_per_s: hop.rate_bytes_per_s * fabric.hosts.len() as f64,
        });
        Some(self.pools.len() - 1)
    }
}
