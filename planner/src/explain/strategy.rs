//! Plans made by others' rules, the best of each rule by the closed form.
//!
//! - *Megatron-uniform*: one TP x PP x DP grid over all GPUs, ranks in Megatron's order (`uniform`), even layers, gradients
//!   summed over all replicas every step (Narayanan et al., arXiv 2104.04473).
//! - *Pure DP*: the same with one stage.
//! - *Holmes*: clusters in the order of their NICs' speed, each a run of stages; data-parallel peers of a stage inside one
//!   cluster; layers in proportion to the cluster's compute; plain boundaries (Holmes, arXiv 2312.03549, section 3).
//!
//! Grids are tried in a fixed order until the budget is spent; what was found by then counts.
//!
//! Not here: strategies that are searches of a part of the space (`runner_up`).

use super::{Budget, shortage_bytes};
use crate::cost::compute::achieved_flops_per_s;
use crate::inventory::{Cluster, Fabric, NicClass};
use crate::model::{Model, Recompute};
use crate::plan::{
    Boundary, Codec, Exchange, ExchangeKind, Placement, Plan, Replica, ScheduleKind, ScheduleSpec, Stage,
    Transport, VERSION,
};
use crate::search::evaluate::evaluate;
use crate::uniform::{Degrees, even_layers, uniform_plan};

/// The nearest that a rule came to a plan.
pub(super) enum Attempt {
    /// The best plan of the rule, and its closed form.
    Plan(Box<Plan>, f64),
    /// The best did not fit: what its fullest GPU lacks, in bytes.
    Short(f64),
    /// Nothing could be made; why not, of the last tried.
    Nothing(String),
}

/// The best Megatron grid, with at most `stages_max` stages.
pub(super) fn uniform(plan: &Plan, model: &Model, stages_max: u32, budget: Budget) -> Attempt {
    let all = super::gpus_of(plan);
    let mut best = Best::new("no grid of equal parts divides the batch");
    for model in &settled(model) {
        for tensor in tensor_degrees(&plan.cluster, model) {
            for stages in stage_counts(stages_max.min(model.layers).min(all / tensor)) {
                if budget.spent() {
                    return best.0;
                }
                let micro_batch = model.micro_batch.unwrap_or(1);
                let Some(data) = most_replicas(all / (tensor * stages), model.global_batch / micro_batch)
                else {
                    continue;
                };
                let layers = even_layers(model.layers, stages);
                let degrees = Degrees { tensor, data, layers, micro_batch };
                match uniform_plan(&plan.cluster, model, &degrees) {
                    Ok(plan) => best.judge(plan),
                    Err(error) => best.failed(error.to_string()),
                }
            }
        }
    }
    best.0
}

/// The best plan by Holmes's rules.
pub(super) fn holmes(plan: &Plan, model: &Model, budget: Budget) -> Attempt {
    let order = by_nic(&plan.cluster);
    let mut best = Best::new("no data-parallel degree gives every cluster a stage");
    let fewest = order.iter().map(|f| gpus(f)).min().unwrap_or(0);
    for model in &settled(model) {
        let at_once = model.global_batch / model.micro_batch.unwrap_or(1);
        for tensor in tensor_degrees(&plan.cluster, model) {
            for data in (1..=fewest / tensor).filter(|d| at_once.is_multiple_of(*d)) {
                if budget.spent() {
                    return best.0;
                }
                if let Some(plan) = in_order(&plan.cluster, &order, model, tensor, data) {
                    best.judge(plan);
                }
            }
        }
    }
    best.0
}

struct Best(Attempt);

impl Best {
    fn new(nothing: &str) -> Self {
        Self(Attempt::Nothing(nothing.into()))
    }

    fn judge(&mut self, plan: Plan) {
        let cost = match evaluate(&plan) {
            Ok(cost) => cost,
            Err(error) => return self.failed(error.to_string()),
        };
        let short_bytes = shortage_bytes(&plan, &cost);
        let step_s = cost.iteration_s;
        match &self.0 {
            Attempt::Plan(_, best_s) if short_bytes > 0.0 || step_s >= *best_s => {}
            _ if short_bytes <= 0.0 => self.0 = Attempt::Plan(Box::new(plan), step_s),
            Attempt::Short(least) if short_bytes >= *least => {}
            _ => self.0 = Attempt::Short(short_bytes),
        }
    }

    fn failed(&mut self, why: String) {
        if let Attempt::Nothing(reason) = &mut self.0 {
            *reason = why;
        }
    }
}

/// The model with its open choices made in the ways that Megatron's users would.
fn settled(model: &Model) -> Vec<Model> {
    let batches = match model.micro_batch {
        Some(b) => vec![b],
        None => [1, 2, 4, 8].into_iter().filter(|b| model.global_batch.is_multiple_of(*b)).collect(),
    };
    let recomputes = match model.recompute {
        Recompute::Auto => vec![Recompute::None, Recompute::Selective, Recompute::Full],
        chosen => vec![chosen],
    };
    let choices = batches.iter().flat_map(|&b| recomputes.iter().map(move |&r| (b, r)));
    choices.map(|(b, recompute)| Model { micro_batch: Some(b), recompute, ..model.clone() }).collect()
}

fn tensor_degrees(cluster: &Cluster, model: &Model) -> Vec<u32> {
    let divides = |t: &u32| {
        cluster.clusters.iter().all(|f| f.gpus.is_multiple_of(*t)) && model.heads.is_multiple_of(*t)
    };
    [1, 2, 4, 8].into_iter().filter(divides).collect()
}

/// All where they are few, else powers of two.
fn stage_counts(most: u32) -> Vec<u32> {
    (1..=most).filter(|p| *p <= 16 || p.is_power_of_two()).collect()
}

/// The largest number of replicas that divides the microbatches.
fn most_replicas(most: u32, microbatches: u32) -> Option<u32> {
    (1..=most.min(microbatches)).rev().find(|d| microbatches.is_multiple_of(*d))
}

fn gpus(fabric: &Fabric) -> u32 {
    fabric.hosts.len() as u32 * fabric.gpus
}

/// Fast networks first, then fast GPUs.
fn by_nic(cluster: &Cluster) -> Vec<&Fabric> {
    let mut order: Vec<&Fabric> = cluster.clusters.iter().collect();
    let class = |f: &Fabric| match f.nic.class {
        NicClass::Infiniband => 0,
        NicClass::Roce => 1,
        NicClass::Ethernet => 2,
    };
    let rate = |f: &Fabric| f.nic.rate_bytes_per_s * f64::from(f.nic.count);
    order.sort_by(|a, b| class(a).cmp(&class(b)).then(rate(b).total_cmp(&rate(a))));
    order
}

/// Every cluster a run of as many stages as its GPUs give; `None` where the layers are too few.
fn in_order(cluster: &Cluster, order: &[&Fabric], model: &Model, tensor: u32, data: u32) -> Option<Plan> {
    let stages: Vec<u32> = order.iter().map(|f| gpus(f) / (tensor * data)).collect();
    let speed = |(f, &p): (&&Fabric, &u32)| f64::from(p) * achieved_flops_per_s(&f.gpu, model.precision);
    let speeds: Vec<f64> = order.iter().zip(&stages).map(speed).collect();
    let layers = in_proportion(model.layers, &stages, &speeds)?;
    let micro_batch = model.micro_batch.unwrap_or(1);
    let mut replicas: Vec<Replica> = (0..data)
        .map(|_| Replica {
            microbatches: model.global_batch / micro_batch / data,
            micro_batch: None,
            recompute: None,
            stages: vec![],
            boundaries: vec![],
        })
        .collect();
    let (mut rank, mut first) = (0, 0);
    for ((fabric, &count), &share) in order.iter().zip(&stages).zip(&layers) {
        let mut places = places(fabric);
        for share in even_layers(share, count) {
            for replica in &mut replicas {
                let ranks = (0..tensor).map(|_| {
                    let (host, gpu) = places.next().expect("no more stages than GPUs");
                    rank += 1;
                    Placement { rank: rank - 1, host, gpu, nic: fabric.nic.class }
                });
                replica.stages.push(Stage { layers: [first, first + share], ranks: ranks.collect() });
            }
            first += share;
        }
    }
    let plain = Boundary { codec: Codec::None, transport: Transport::Tcp };
    for replica in &mut replicas {
        replica.boundaries = vec![plain.clone(); replica.stages.len() - 1];
    }
    let all = Exchange { replicas: (0..data).collect(), kind: ExchangeKind::Dense, every: 1, zero1: false };
    Some(Plan {
        version: VERSION,
        cluster: cluster.clone(),
        model: model.clone(),
        micro_batch,
        schedule: ScheduleSpec { kind: ScheduleKind::OneForwardOneBackward, virtual_stages: 1 },
        replicas,
        exchange: if data > 1 { vec![all] } else { vec![] },
        predicted: None,
        solver: None,
    })
}

fn places(fabric: &Fabric) -> impl Iterator<Item = (String, u32)> + use<'_> {
    fabric.hosts.iter().flat_map(|h| (0..fabric.gpus).map(move |gpu| (h.name.clone(), gpu)))
}

/// Layers by speed, at least one a stage, by largest remainder.
fn in_proportion(layers: u32, stages: &[u32], speeds: &[f64]) -> Option<Vec<u32>> {
    let least: u32 = stages.iter().sum();
    if least > layers || stages.contains(&0) {
        return None;
    }
    let whole: f64 = speeds.iter().sum();
    let exact: Vec<f64> = speeds.iter().map(|s| f64::from(layers) * s / whole).collect();
    let mut shares: Vec<u32> = exact.iter().zip(stages).map(|(e, &p)| (e.floor() as u32).max(p)).collect();
    while shares.iter().sum::<u32>() > layers {
        let most = (0..shares.len()).filter(|&i| shares[i] > stages[i]).max_by_key(|&i| shares[i])?;
        shares[most] -= 1;
    }
    while shares.iter().sum::<u32>() < layers {
        let behind = |i: &usize| exact[*i] - f64::from(shares[*i]);
        let most = (0..shares.len()).max_by(|a, b| behind(a).total_cmp(&behind(b)))?;
        shares[most] += 1;
    }
    Some(shares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::fixture::{fabric, gpt, gpu, link};

    #[test]
    fn layers_go_by_speed_with_one_a_stage_at_least() {
        assert_eq!(in_proportion(12, &[2, 2], &[2.0, 1.0]), Some(vec![8, 4]));
        assert_eq!(in_proportion(5, &[1, 3], &[100.0, 1.0]), Some(vec![2, 3]));
        assert_eq!(in_proportion(3, &[2, 2], &[1.0, 1.0]), None);
    }

    #[test]
    fn by_holmes_the_fast_network_comes_first_and_owners_share_a_cluster() {
        let (mut ethernet, mut infiniband) = (fabric("eth", 2, 2), fabric("ib", 2, 2));
        (ethernet.gpu, infiniband.nic.class) = (gpu(0.5e12, 1_000_000_000), NicClass::Infiniband);
        let cluster =
            Cluster { clusters: vec![ethernet, infiniband], links: vec![link("eth", "ib", 1e9, 1e-3)] };
        let plan = in_order(&cluster, &by_nic(&cluster), &gpt(6, 64), 1, 2).unwrap();
        let hosts = |stage: usize| -> Vec<&str> {
            plan.replicas.iter().map(|r| r.stages[stage].ranks[0].host.as_str()).collect()
        };
        assert_eq!([hosts(0), hosts(1)], [["ib-0", "ib-0"], ["ib-1", "ib-1"]]);
        assert_eq!(
            plan.replicas[0].stages[1].layers,
            [2, 4],
            "a cluster of twice the speed has twice the layers"
        );
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plan.json");
        crate::plan::write(&plan, &file).unwrap();
        assert_eq!(crate::plan::read(&file).unwrap(), plan, "it is a sound plan");
    }
}
