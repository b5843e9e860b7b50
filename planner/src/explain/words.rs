//! Names and figures as text, and where things lie; shared by the terminal's text and the page.

use std::collections::HashMap;

use crate::inventory::{Cluster, NicClass};
use crate::plan::{Codec, Exchange, ExchangeKind, Plan, Stage};

/// `1 replica`, `2 replicas`, `3 microbatches`.
pub(super) fn plural(count: usize, noun: &str) -> String {
    let ending = match noun {
        _ if count == 1 => "",
        noun if noun.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{count} {noun}{ending}")
}

pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}

pub(super) fn gigabytes(bytes: f64) -> String {
    if bytes >= 1e9 { format!("{:.1} GB", bytes / 1e9) } else { format!("{:.1} MB", bytes / 1e6) }
}

pub(super) fn codec(codec: Codec) -> String {
    match codec {
        Codec::None => "plain".into(),
        Codec::Bf16 => "bf16".into(),
        Codec::Int8 => "int8".into(),
        Codec::Subspace { rank } => format!("subspace {rank}"),
    }
}

/// What an exchange does, without its members.
pub(super) fn exchange(exchange: &Exchange) -> String {
    let sharded = if exchange.zero1 { ", optimiser sharded" } else { "" };
    match exchange.kind {
        ExchangeKind::Dense => format!("gradients summed every step{sharded}"),
        ExchangeKind::Streaming => format!("dense pseudo-gradients every {} steps", exchange.every),
        ExchangeKind::Sparse { top_k } => {
            format!("sparse pseudo-gradients ({top_k} of 4096) every {} steps", exchange.every)
        }
    }
}

/// `0-7`, `3`.
pub(super) fn layers(stage: &Stage) -> String {
    let [first, end] = stage.layers;
    if first + 1 == end { first.to_string() } else { format!("{first}-{}", end - 1) }
}

pub(super) fn nic_class(class: NicClass) -> &'static str {
    match class {
        NicClass::Infiniband => "InfiniBand",
        NicClass::Roce => "RoCE",
        NicClass::Ethernet => "Ethernet",
    }
}

/// Bytes of each GPU, by host.
pub(super) fn memory_by_host(cluster: &Cluster) -> HashMap<&str, f64> {
    let hosts = |f: &'_ crate::inventory::Fabric| f.gpu.memory_bytes as f64;
    cluster.clusters.iter().flat_map(|f| f.hosts.iter().map(move |h| (h.name.as_str(), hosts(f)))).collect()
}

/// Index of the cluster of every host.
pub(super) fn cluster_by_host(cluster: &Cluster) -> HashMap<&str, usize> {
    let fabrics = cluster.clusters.iter().enumerate();
    fabrics.flat_map(|(i, f)| f.hosts.iter().map(move |h| (h.name.as_str(), i))).collect()
}

/// GPUs of each cluster that the plan uses.
pub(super) fn used_gpus(plan: &Plan) -> Vec<u32> {
    let cluster_of = cluster_by_host(&plan.cluster);
    let mut used = vec![0; plan.cluster.clusters.len()];
    for seat in plan.seats() {
        if let Some(&index) = cluster_of.get(seat.placement.host.as_str()) {
            used[index] += 1;
        }
    }
    used
}

/// The name of the cluster that a stage lies in.
pub(super) fn cluster_of_stage<'a>(
    plan: &'a Plan,
    cluster_of: &HashMap<&str, usize>,
    stage: &Stage,
) -> &'a str {
    let index = stage.ranks.first().and_then(|r| cluster_of.get(r.host.as_str()));
    index.map_or("?", |&i| plan.cluster.clusters[i].name.as_str())
}
