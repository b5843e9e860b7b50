//! Shadow prices: what more of one thing would be worth.
//!
//! For every link, NIC, cluster and GPU memory the inventory is changed (a rate doubled, a host more, memory doubled) and
//! the step taken anew: first the same plan evaluated on it (a lower bound of the gain, at once), then, where time allows,
//! the whole problem solved again, and the better of the two counts.
//! ```text
//!   gain = step before / step after - 1             in tokens per second, by the closed form
//! ```
//! Gains below 0.5 % are left out. Both steps carry the search's gap: small gains of a re-planned thing are no more exact
//! than that.
//!
//! Not here: any other change (`what_if`).

use serde::Serialize;

use super::{Budget, SEARCHED_GPUS_MAX, gpus_of, open_model};
use crate::inventory::{Cluster, Host, NicClass};
use crate::plan::Plan;
use crate::search::evaluate::evaluate;
use crate::search::{EngineLimits, SearchOptions, search};
use crate::topology::link_name;

/// What a change of the inventory would be worth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShadowPrice {
    /// The change: `link ib~roce at 2x`.
    pub change: String,
    /// Share by which tokens per second grow.
    pub gain: f64,
    /// How the gain is known.
    pub by: By,
}

/// How a gain is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The plan as it stands on the changed inventory; a new plan would gain at least as much.
    SamePlan,
    /// A plan of its own.
    Replanned,
}

/// Smaller gains are noise.
const LEAST_GAIN: f64 = 0.005;
/// Of links, only so many are asked: the narrowest.
const LINKS_MAX: usize = 16;

/// All that are worth something, the dearest first.
pub fn shadow_prices(
    plan: &Plan,
    limits: &EngineLimits,
    options: &SearchOptions,
    budget: Budget,
) -> Vec<ShadowPrice> {
    let Ok(before) = evaluate(plan) else { return vec![] };
    let changes = changes(&plan.cluster);
    let mut prices = Vec::new();
    for (index, (change, cluster)) in changes.iter().enumerate() {
        if budget.spent() {
            break;
        }
        let share = budget.share(changes.len() - index).filter(|_| gpus_of(plan) <= SEARCHED_GPUS_MAX);
        let same = evaluate(&Plan { cluster: cluster.clone(), ..plan.clone() }).map(|c| c.iteration_s);
        let same_s = same.unwrap_or(f64::INFINITY);
        let replanned_s = share.and_then(|time_limit| {
            let options = SearchOptions { time_limit, ..options.clone() };
            let found = search(cluster, &open_model(plan), limits, &options).ok()?;
            found.plan.solver.map(|s| s.objective_s)
        });
        let (after_s, by) = match replanned_s {
            Some(s) if s < same_s => (s, By::Replanned),
            Some(_) => (same_s, By::Replanned),
            None => (same_s, By::SamePlan),
        };
        let gain = before.iteration_s / after_s - 1.0;
        prices.push(ShadowPrice { change: change.clone(), gain, by });
    }
    prices.retain(|p| p.gain > LEAST_GAIN);
    prices.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    prices
}

/// Every change and the inventory after it.
fn changes(cluster: &Cluster) -> Vec<(String, Cluster)> {
    let mut changes = Vec::new();
    let mut change = |what: String, apply: &dyn Fn(&mut Cluster)| {
        let mut changed = cluster.clone();
        apply(&mut changed);
        changes.push((what, changed));
    };
    let mut links: Vec<usize> = (0..cluster.links.len()).collect();
    links.sort_by(|&a, &b| cluster.links[a].rate_bytes_per_s.total_cmp(&cluster.links[b].rate_bytes_per_s));
    links.truncate(LINKS_MAX);
    links.sort_unstable();
    for i in links {
        let with = if ethernet_is_as_narrow(cluster, i) { " with its hosts' Ethernet" } else { "" };
        change(format!("link {} at 2x{with}", link_name(&cluster.links[i])), &|c| widen_link(c, i));
        change(format!("link {} at half the latency", link_name(&cluster.links[i])), &|c| {
            c.links[i].latency_s /= 2.0;
        });
    }
    for class in [NicClass::Infiniband, NicClass::Roce, NicClass::Ethernet] {
        if cluster.clusters.iter().any(|f| f.nic.class == class) {
            change(format!("all {} NICs at 2x", class.name()), &|c| {
                c.clusters.iter_mut().filter(|f| f.nic.class == class).for_each(|f| {
                    f.nic.rate_bytes_per_s *= 2.0;
                });
            });
        }
    }
    for (i, fabric) in cluster.clusters.iter().enumerate() {
        let name = &fabric.name;
        change(format!("{name}: one host more"), &|c| add_host(c, i));
        change(format!("{name}: GPU memory at 2x"), &|c| c.clusters[i].gpu.memory_bytes *= 2);
        change(format!("{name}: links inside a host at 2x"), &|c| {
            c.clusters[i].intra.rate_bytes_per_s *= 2.0;
        });
    }
    changes
}

/// Twice the rate, per host and shared; hosts' Ethernet is made as wide, or it would be what is narrow.
fn widen_link(cluster: &mut Cluster, index: usize) {
    let link = &mut cluster.links[index];
    link.rate_bytes_per_s *= 2.0;
    link.shared_bytes_per_s = link.shared_bytes_per_s.map(|rate| 2.0 * rate);
    let (rate_bytes_per_s, between) = (link.rate_bytes_per_s, link.between.clone());
    for fabric in cluster.clusters.iter_mut().filter(|f| between.contains(&f.name)) {
        if let Some(ethernet) = &mut fabric.ethernet {
            ethernet.rate_bytes_per_s = ethernet.rate_bytes_per_s.max(rate_bytes_per_s);
        }
    }
}

/// Whether that widens a host's Ethernet.
fn ethernet_is_as_narrow(cluster: &Cluster, index: usize) -> bool {
    let link = &cluster.links[index];
    let ends = cluster.clusters.iter().filter(|f| link.between.contains(&f.name));
    ends.filter_map(|f| f.ethernet).any(|e| e.rate_bytes_per_s < 2.0 * link.rate_bytes_per_s)
}

/// A host like the others, under a name that is not taken.
pub(super) fn add_host(cluster: &mut Cluster, index: usize) {
    let taken = |name: &str| cluster.clusters.iter().flat_map(|f| &f.hosts).any(|h| h.name == name);
    let fabric = &cluster.clusters[index];
    let from = fabric.hosts.len();
    let mut names = (from..).map(|n| format!("{}-{n}", fabric.name));
    let name = names.find(|name| !taken(name)).expect("names do not end");
    cluster.clusters[index].hosts.push(Host { name, address: None });
}
