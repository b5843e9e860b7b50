//! The search against exhaustive enumeration, published shapes and its own words.

use std::collections::HashSet;

use proptest::prelude::*;

use super::evaluate::{evaluate, evaluate_in};
use super::fixture::{alone, fabric, gpt, gpu, link};
use super::*;
use crate::inventory::{Fabric, Hop, NicClass};
use crate::model::Precision;
use crate::plan::{
    Boundary, Codec, Exchange, ExchangeKind, Placement, Replica, ScheduleKind, ScheduleSpec, Stage,
};

fn exactly() -> SearchOptions {
    SearchOptions { gap: 0.0, ..SearchOptions::default() }
}

fn found(cluster: &Cluster, model: &Model, options: &SearchOptions) -> Found {
    search(cluster, model, &EngineLimits::NATIVE, options).expect("a plan")
}

fn solver(found: &Found) -> &Solver {
    found.plan.solver.as_ref().expect("search fills it in")
}

/// `2 x a: 0..3 | 1 x b: 3..4`: who has which layers.
fn shape(plan: &Plan) -> Vec<String> {
    let stage = |s: &Stage| format!("{}x{}:{}", s.ranks[0].host, s.ranks.len(), s.layers[1] - s.layers[0]);
    let replica = |r: &Replica| {
        format!("{} of {}", r.microbatches, r.stages.iter().map(stage).collect::<Vec<_>>().join(" "))
    };
    plan.replicas.iter().map(replica).collect()
}

// Exhaustive enumeration: every plan of the space, priced by `evaluate`.

/// Pipelines as (cluster, layers) of each stage.
type Pipeline = Vec<(usize, u32)>;

fn pipelines(cluster: &Cluster, layers: u32) -> Vec<Pipeline> {
    fn extend(cluster: &Cluster, left: u32, so_far: &mut Pipeline, all: &mut Vec<Pipeline>) {
        if left == 0 {
            return all.push(so_far.clone());
        }
        for group in 0..cluster.clusters.len() {
            let seen = so_far.iter().any(|s| s.0 == group);
            let last = so_far.last().map(|s| s.0);
            let joined = last.is_none_or(|l| l == group || (!seen && linked(cluster, l, group)));
            let gpus = cluster.clusters[group].hosts.len() as u32 * cluster.clusters[group].gpus;
            let used = so_far.iter().filter(|s| s.0 == group).count() as u32;
            if !joined || used == gpus {
                continue;
            }
            for layers in 1..=left {
                so_far.push((group, layers));
                extend(cluster, left - layers, so_far, all);
                so_far.pop();
            }
        }
    }
    let mut all = Vec::new();
    extend(cluster, layers, &mut Vec::new(), &mut all);
    all
}

fn linked(cluster: &Cluster, a: usize, b: usize) -> bool {
    let names = [&cluster.clusters[a].name, &cluster.clusters[b].name];
    cluster.links.iter().any(|l| names.iter().all(|n| l.between.contains(n)))
}

struct Enumeration<'a> {
    space: &'a space::Space<'a>,
    pipelines: Vec<Pipeline>,
    best_s: f64,
}

impl Enumeration<'_> {
    /// All multisets of pipelines that the GPUs allow, with all distributions of the microbatches.
    fn choose(&mut self, from: usize, chosen: &mut Vec<usize>) {
        if !chosen.is_empty() {
            self.distribute(chosen, self.space.microbatches, &mut Vec::new());
        }
        for next in from..self.pipelines.len() {
            chosen.push(next);
            let used = |g: usize| {
                chosen.iter().flat_map(|&c| &self.pipelines[c]).filter(|s| s.0 == g).count() as u32
            };
            let fits = (0..self.space.groups.len()).all(|g| used(g) <= self.space.groups[g].gpus);
            if fits && chosen.len() as u32 <= self.space.microbatches {
                self.choose(next, chosen);
            }
            chosen.pop();
        }
    }

    fn distribute(&mut self, chosen: &[usize], left: u32, done: &mut Vec<u32>) {
        let after = (chosen.len() - done.len()) as u32;
        if after == 1 {
            done.push(left);
            self.price(chosen, done);
            done.pop();
            return;
        }
        for m in 1..=left - (after - 1) {
            done.push(m);
            self.distribute(chosen, left - m, done);
            done.pop();
        }
    }

    fn price(&mut self, chosen: &[usize], microbatches: &[u32]) {
        let Some(plan) = self.plan(chosen, microbatches) else { return };
        // A plan whose replicas do not reach each other is none.
        let Ok(cost) = evaluate_in(self.space, &plan) else { return };
        let seats = plan.seats();
        let fits = seats.iter().zip(&cost.memory_bytes).all(|(seat, bytes)| {
            let group = self.group(&seat.placement.host);
            *bytes <= self.space.groups[group].memory_bytes
        });
        if fits {
            self.best_s = self.best_s.min(cost.iteration_s);
        }
    }

    fn group(&self, host: &str) -> usize {
        let fabrics = &self.space.cluster.clusters;
        fabrics.iter().position(|f| f.hosts.iter().any(|h| h.name == host)).expect("in the inventory")
    }

    fn plan(&self, chosen: &[usize], microbatches: &[u32]) -> Option<Plan> {
        let mut free: Vec<u32> = self.space.groups.iter().map(|_| 0).collect();
        let signatures: HashSet<Vec<(usize, u32)>> = chosen
            .iter()
            .map(|&c| {
                let mut runs: Vec<(usize, u32)> = vec![];
                for &(g, n) in &self.pipelines[c] {
                    match runs.last_mut() {
                        Some(run) if run.0 == g => run.1 += n,
                        _ => runs.push((g, n)),
                    }
                }
                runs
            })
            .collect();
        let (kind, every) = self.space.exchange_kind(signatures.len() == 1);
        let replicas: Vec<Replica> = chosen
            .iter()
            .zip(microbatches)
            .map(|(&c, &m)| self.replica(&self.pipelines[c], m, &mut free))
            .collect();
        let many = replicas.len() > 1;
        Some(Plan {
            version: 1,
            cluster: self.space.cluster.clone(),
            model: self.space.model.clone(),
            micro_batch: self.space.micro_batch,
            schedule: ScheduleSpec { kind: ScheduleKind::OneForwardOneBackward, virtual_stages: 1 },
            exchange: many
                .then(|| Exchange { replicas: (0..replicas.len() as u32).collect(), kind, every })
                .into_iter()
                .collect(),
            replicas,
            predicted: None,
            solver: None,
        })
    }

    fn replica(&self, pipeline: &Pipeline, microbatches: u32, free: &mut [u32]) -> Replica {
        let space = self.space;
        let team = |g: usize| space.groups[g].teams[0];
        let compute_s: f64 = pipeline.iter().map(|&(g, n)| f64::from(n) * team(g).layer_s).sum::<f64>()
            + team(pipeline.last().unwrap().0).head_s;
        let mean_s = compute_s / pipeline.len() as f64;
        let mut first = 0;
        let mut stages = vec![];
        for &(g, n) in pipeline {
            let fabric = &space.cluster.clusters[g];
            let gpu = free[g];
            free[g] += 1;
            let host = fabric.hosts[(gpu / fabric.gpus) as usize].name.clone();
            let placement = Placement { rank: 0, host, gpu: gpu % fabric.gpus, nic: fabric.nic.class };
            stages.push(Stage { layers: [first, first + n], ranks: vec![placement] });
            first += n;
        }
        let boundaries = pipeline.windows(2).map(|p| {
            let way = match (p[0].0, p[1].0) {
                (a, b) if a != b => space.link(a, b).unwrap(),
                (a, _) if space.groups[a].per_host > 1 => &space.groups[a].bus,
                (a, _) => &space.groups[a].nic,
            };
            Boundary { codec: space.codec(way, mean_s), transport: Transport::Tcp }
        });
        Replica { microbatches, boundaries: boundaries.collect(), stages }
    }
}

/// One host of several GPUs or several hosts of one: where a run lies is then not a question.
fn small_fabric(name: &'static str) -> impl Strategy<Value = Fabric> {
    let gpus = prop_oneof![(1u32..=3).prop_map(|n| (1, n)), (1u32..=3).prop_map(|n| (n, 1))];
    (gpus, 0.3f64..3.0, 7.0f64..10.0, 30_000_000u64..200_000_000, prop::option::of(6.0f64..9.0)).prop_map(
        move |((hosts, gpus), tera, nic_log, memory, ethernet)| {
            let mut fabric = fabric(name, hosts, gpus);
            fabric.gpu = gpu(tera * 1e12, memory);
            fabric.nic.rate_bytes_per_s = 10f64.powf(nic_log);
            fabric.intra.rate_bytes_per_s = 10f64.powf(nic_log + 0.5);
            fabric.ethernet = ethernet.map(|log| Hop { rate_bytes_per_s: 10f64.powf(log), latency_s: 0.0 });
            fabric
        },
    )
}

fn small_problem() -> impl Strategy<Value = (Cluster, Model)> {
    let joined = prop::option::weighted(0.9, (6.0f64..9.5, prop::option::of(6.0f64..9.0)));
    let exchange = prop_oneof![
        3 => Just(ExchangeChoice::Auto),
        1 => Just(ExchangeChoice::Dense),
        1 => Just(ExchangeChoice::Sparse),
    ];
    let boundary = prop_oneof![3 => Just(BoundaryChoice::Auto), 1 => Just(BoundaryChoice::None)];
    (small_fabric("a"), small_fabric("b"), joined, 2u32..=6, 1u32..=5, exchange, boundary)
        .prop_filter("at most 5 GPUs", |(a, b, ..)| {
            a.hosts.len() as u32 * a.gpus + b.hosts.len() as u32 * b.gpus <= 5
        })
        .prop_map(|(a, b, joined, layers, batch, exchange, boundary)| {
            let links = joined.map(|(log, shared)| {
                let mut link = link("a", "b", 10f64.powf(log), 1e-4);
                link.shared_bytes_per_s = shared.map(|log| 10f64.powf(log));
                link
            });
            let model = Model { global_batch: batch, exchange, boundary, ..gpt(layers, 256) };
            (Cluster { clusters: vec![a, b], links: links.into_iter().collect() }, model)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_optimum_is_that_of_exhaustive_enumeration((cluster, model) in small_problem()) {
        let options = exactly();
        let limits = EngineLimits::NATIVE;
        let space = space::Space::new(&cluster, &model, &limits, &options).unwrap();
        let mut all = Enumeration { space: &space, pipelines: pipelines(&cluster, model.layers), best_s: f64::INFINITY };
        all.choose(0, &mut vec![]);
        match search(&cluster, &model, &limits, &options) {
            Ok(found) => {
                let s = solver(&found);
                prop_assert!((s.objective_s / all.best_s - 1.0).abs() < 1e-6, "{s:?}, enumerated {}: {:?}", all.best_s, shape(&found.plan));
                prop_assert!(s.bound_s <= all.best_s * (1.0 + 1e-9), "{s:?}, enumerated {}", all.best_s);
                prop_assert!(s.gap < 1e-6, "{s:?}");
                prop_assert_eq!(evaluate(&found.plan).unwrap().iteration_s, s.objective_s);
            }
            Err(error) => prop_assert!(all.best_s.is_infinite(), "{error}, enumerated {}", all.best_s),
        }
    }
}

// Larger problems.

fn a100(name: &str, hosts: u32, class: NicClass) -> Fabric {
    let mut fabric = fabric(name, hosts, 8);
    fabric.gpu = gpu(312e12, 80_000_000_000);
    fabric.gpu.efficiency = 0.5;
    fabric.intra = Hop { rate_bytes_per_s: 300e9, latency_s: 2e-6 };
    fabric.nic.class = class;
    (fabric.nic.rate_bytes_per_s, fabric.nic.count, fabric.nic.latency_s) = (25e9, 4, 5e-6);
    fabric.ethernet = Some(Hop { rate_bytes_per_s: 3.125e9, latency_s: 5e-5 });
    fabric
}

fn hybrid(hosts: u32) -> Cluster {
    Cluster {
        clusters: vec![a100("ib", hosts, NicClass::Infiniband), a100("roce", hosts, NicClass::Roce)],
        links: vec![link("ib", "roce", 3.125e9, 1e-3)],
    }
}

fn holmes(layers: u32, hidden: u32, batch: u32) -> Model {
    Model {
        vocab: 51_200,
        sequence: 2048,
        heads: 32,
        global_batch: batch,
        micro_batch: Some(4),
        precision: Precision::Bf16,
        recompute: Recompute::Selective,
        ..gpt(layers, hidden)
    }
}

fn show(name: &str, found: &Found) {
    eprintln!(
        "{name}: {:?} thinned {} {:?}",
        solver(found),
        found.thinned,
        found.plan.exchange.iter().map(|e| (e.kind, e.every, e.replicas.len())).collect::<Vec<_>>()
    );
    let mut shapes = std::collections::BTreeMap::new();
    for r in &found.plan.replicas {
        *shapes
            .entry(format!(
                "{} of {:?}",
                r.microbatches,
                r.stages
                    .iter()
                    .map(|s| (s.ranks[0].host.clone(), s.ranks.len(), s.layers[1] - s.layers[0]))
                    .collect::<Vec<_>>()
            ))
            .or_insert(0) += 1;
    }
    for (s, n) in shapes.iter().take(6) {
        eprintln!("   {n} x {s}");
    }
}

#[test]
fn probe() {
    for (name, cluster, model) in [
        ("hybrid 8 gpus", hybrid(1), holmes(30, 3072, 64)),
        ("hybrid 16 x8 3.6B", hybrid(2), holmes(30, 3072, 512)),
        ("hybrid 96 3.6B", hybrid(6), holmes(30, 3072, 768)),
        ("hybrid 96 7.5B", hybrid(6), holmes(36, 4096, 1536)),
        ("hybrid 96 39B", hybrid(6), holmes(48, 8192, 1536)),
    ] {
        for limits in [EngineLimits::NATIVE, EngineLimits::ANY] {
            let limits = EngineLimits { recomputes: EngineLimits::ANY.recomputes, ..limits };
            let started = Instant::now();
            match search(&cluster, &model, &limits, &SearchOptions::default()) {
                Ok(found) => {
                    show(name, &found);
                    let e =
                        crate::explain::explain_found(&found, &limits, &SearchOptions::default()).unwrap();
                    eprintln!("{}", crate::explain::render(&found.plan, &e));
                }
                Err(e) => eprintln!("{name}: {e}"),
            }
            eprintln!("   -> {:?} tp {}", started.elapsed(), limits.max_tensor_parallel);
        }
    }
}
