//! The inventory of a run: `holmes-roce*4 holmes-ib*4` are 4 hosts of one kind and then 4 of another, `rtx3090:2` is a
//! host of which the run uses 2 GPUs. Equal neighbours make one cluster; kinds are those of `measured/testbeds.toml`.

use crate::input::Document;
use crate::inventory::{self, Cluster, Fabric, Host, Link};

/// The inventory, and of each cluster the GPUs that a host really has.
pub(super) struct Testbed {
    pub cluster: Cluster,
    /// By cluster.
    pub gpus_per_host: Vec<u32>,
}

/// What the hosts of a run are; an error says what is not known.
pub(super) fn of(hosts: &str) -> Result<Testbed, String> {
    let kinds = kinds();
    let mut testbed = Testbed { cluster: Cluster { clusters: vec![], links: vec![] }, gpus_per_host: vec![] };
    for word in hosts.split_whitespace() {
        let (kind, count, used) =
            group(word).ok_or_else(|| format!("`{word}` is not `kind`, `kind*4` or `kind:2`"))?;
        let known = kinds.clusters.iter().find(|f| f.name == kind);
        let fabric = known.ok_or_else(|| {
            let names: Vec<&str> = kinds.clusters.iter().map(|f| f.name.as_str()).collect();
            format!("no host `{kind}` is known, only {}", names.join(", "))
        })?;
        testbed.gpus_per_host.push(fabric.gpus);
        testbed.cluster.clusters.push(part(fabric, testbed.cluster.clusters.len(), count, used));
    }
    testbed.cluster.links = links(&testbed.cluster, &kinds);
    Ok(testbed)
}

/// Kind of a cluster of a testbed: its name without its position.
pub(super) fn kind(fabric: &Fabric) -> &str {
    fabric.name.rsplit_once('.').map_or(&fabric.name, |(kind, _)| kind)
}

/// What driver, context and communication buffers keep of a GPU's memory, by GPU: fitted to Sailor's peaks.
pub(super) fn context_bytes(gpu: &str) -> f64 {
    if gpu == "GH200" { 4.4e9 } else { 2.8e9 }
}

fn kinds() -> Cluster {
    Document::toml_text("measured/testbeds.toml", include_str!("../../measured/testbeds.toml"))
        .and_then(|document| inventory::resolve(&document))
        .expect("the shipped testbeds are an inventory: a test reads them")
}

/// `kind*count` or `kind:used`.
fn group(word: &str) -> Option<(&str, u32, Option<u32>)> {
    let above_zero = |n: &str| n.parse().ok().filter(|&n: &u32| n > 0);
    match (word.split_once('*'), word.split_once(':')) {
        (Some((kind, n)), None) => Some((kind, above_zero(n).filter(|&n| n <= 65_536)?, None)),
        (None, Some((kind, n))) => Some((kind, 1, Some(above_zero(n)?))),
        (None, None) => Some((word, 1, None)),
        (Some(_), Some(_)) => None,
    }
}

fn part(kind: &Fabric, position: usize, count: u32, used: Option<u32>) -> Fabric {
    let mut fabric = kind.clone();
    fabric.name = format!("{}.{position}", kind.name);
    fabric.hosts = (0..count).map(|i| Host { name: format!("{}-{i}", fabric.name), address: None }).collect();
    fabric.gpus = used.unwrap_or(kind.gpus).min(kind.gpus);
    fabric.nic.count = fabric.nic.count.min(fabric.gpus);
    fabric
}

/// Between any two clusters: the link of their kinds, or of one kind with itself what its NIC is.
fn links(cluster: &Cluster, kinds: &Cluster) -> Vec<Link> {
    let fabrics = &cluster.clusters;
    let pairs = (0..fabrics.len()).flat_map(|a| (a + 1..fabrics.len()).map(move |b| (a, b)));
    pairs.filter_map(|(a, b)| link(&fabrics[a], &fabrics[b], kinds)).collect()
}

fn link(a: &Fabric, b: &Fabric, kinds: &Cluster) -> Option<Link> {
    let between = [a.name.clone(), b.name.clone()];
    if kind(a) == kind(b) {
        let rate_bytes_per_s = a.nic.rate_bytes_per_s * f64::from(a.nic.count);
        let latency_s = a.nic.latency_s;
        return Some(Link {
            between,
            rate_bytes_per_s,
            shared_bytes_per_s: None,
            latency_s,
            loss: 0.0,
            price_usd_per_byte: None,
        });
    }
    let joins = |l: &&Link| l.between.iter().all(|end| end == kind(a) || end == kind(b));
    kinds.links.iter().find(joins).map(|l| Link { between, ..l.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_a_run_make_an_inventory() {
        let testbed = of("rtx3090:2 rtx2080*2 titan rtx2080").unwrap();
        inventory::check(&testbed.cluster).unwrap();
        let fabrics = &testbed.cluster.clusters;
        assert_eq!(
            fabrics.iter().map(|f| (kind(f), f.hosts.len(), f.gpus)).collect::<Vec<_>>(),
            [("rtx3090", 1, 2), ("rtx2080", 2, 8), ("titan", 1, 8), ("rtx2080", 1, 8)]
        );
        assert_eq!(testbed.cluster.links.len(), 6, "each with each");
        assert_eq!(testbed.gpus_per_host[0], 8);
        assert!(of("no-such*2").is_err_and(|e| e.contains("rtx3090")));
        assert!(of("titan*0").is_err());
    }
}
