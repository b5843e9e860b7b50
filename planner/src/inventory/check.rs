//! What an inventory must hold whoever wrote it: `cluster.toml`, or a plan with the inventory inside.

use std::collections::HashSet;

use super::file::HOSTS_MAX;
use super::{Cluster, Fabric, Gpu, Hop, Host, Link, Nic};
use crate::input::{Fault, did_you_mean, way};

/// More GPUs in one host are a slip of the pen.
const GPUS_MAX: u32 = 1024;

/// Names unique and usable, counts and rates above zero, shares within their bounds, links between clusters that exist.
pub(crate) fn check(cluster: &Cluster) -> Result<(), Fault> {
    check_fabrics(&cluster.clusters)?;
    for (i, link) in cluster.links.iter().enumerate() {
        check_link(link, &cluster.links[..i], &cluster.clusters)
            .map_err(|fault| fault.within(way!["link", i]))?;
    }
    Ok(())
}

/// All but the links.
pub(super) fn check_fabrics(clusters: &[Fabric]) -> Result<(), Fault> {
    if clusters.is_empty() {
        return Err(Fault::at(way!["cluster"], "the inventory has no cluster"));
    }
    let (mut fabrics, mut hosts) = (HashSet::new(), HashSet::new());
    for (i, fabric) in clusters.iter().enumerate() {
        let inside = |fault: Fault| fault.within(way!["cluster", i]);
        named(&fabric.name, "cluster", &mut fabrics).map_err(inside)?;
        check_hosts(fabric, &mut hosts).map_err(inside)?;
        check_fabric(fabric).map_err(inside)?;
    }
    Ok(())
}

fn check_fabric(fabric: &Fabric) -> Result<(), Fault> {
    if !(1..=GPUS_MAX).contains(&fabric.gpus) {
        let what =
            format!("cluster `{}` has {} GPUs per node, expected 1 to {GPUS_MAX}", fabric.name, fabric.gpus);
        return Err(Fault::at(way!["gpus"], what));
    }
    check_gpu(&fabric.gpu).map_err(|f| f.within(way!["gpu"]))?;
    check_hop(&fabric.intra).map_err(|f| f.within(way!["intra"]))?;
    check_nic(&fabric.nic).map_err(|f| f.within(way!["nic"]))?;
    fabric.ethernet.as_ref().map_or(Ok(()), check_hop).map_err(|f| f.within(way!["ethernet"]))
}

fn check_hosts<'a>(fabric: &'a Fabric, seen: &mut HashSet<&'a str>) -> Result<(), Fault> {
    if fabric.hosts.is_empty() || fabric.hosts.len() > HOSTS_MAX as usize {
        let what =
            format!("cluster `{}` has {} hosts, expected 1 to {HOSTS_MAX}", fabric.name, fabric.hosts.len());
        return Err(Fault::at(way!["host"], what));
    }
    for (i, host) in fabric.hosts.iter().enumerate() {
        named(&host.name, "host", seen)
            .and_then(|()| check_address(host))
            .map_err(|f| f.within(way!["host", i]))?;
    }
    Ok(())
}

/// Names become parts of file names and of commands.
fn named<'a>(name: &'a str, what: &str, seen: &mut HashSet<&'a str>) -> Result<(), Fault> {
    let usable = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !usable {
        let hint = "use letters, digits, `-`, `_` and `.`, with a letter or digit first";
        return Err(Fault::at(way!["name"], format!("{name:?} cannot be the name of a {what}")).hint(hint));
    }
    if !seen.insert(name) {
        return Err(
            Fault::at(way!["name"], format!("two {what}s have the name `{name}`")).label("the second")
        );
    }
    Ok(())
}

/// An address becomes an argument of ssh, where a leading `-` would be an option.
fn check_address(host: &Host) -> Result<(), Fault> {
    let usable = |a: &str| {
        !a.is_empty() && !a.starts_with('-') && !a.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    match &host.address {
        Some(address) if !usable(address) => {
            Err(Fault::at(way!["address"], format!("{address:?} is no address that ssh could take")))
        }
        _ => Ok(()),
    }
}

fn check_gpu(gpu: &Gpu) -> Result<(), Fault> {
    if gpu.name.is_empty() {
        return Err(Fault::at(way!["name"], "the GPU has no name"));
    }
    if gpu.memory_bytes == 0 {
        return Err(Fault::at(way!["memory"], format!("GPU `{}` has no memory", gpu.name)));
    }
    above_zero("bf16", gpu.bf16_flops_per_s)?;
    above_zero("fp16", gpu.fp16_flops_per_s)?;
    above_zero("fp32", gpu.fp32_flops_per_s)?;
    if !(gpu.efficiency > 0.0 && gpu.efficiency <= 1.0) {
        let what = format!(
            "the efficiency of GPU `{}` is {}, expected above 0 and at most 1",
            gpu.name, gpu.efficiency
        );
        return Err(Fault::at(way!["efficiency"], what)
            .hint("it is the share of the peak rate that training achieves"));
    }
    gpu.price_usd_per_hour.map_or(Ok(()), |price| not_below_zero("price", price))
}

fn check_hop(hop: &Hop) -> Result<(), Fault> {
    above_zero("rate", hop.rate_bytes_per_s)?;
    not_below_zero("latency", hop.latency_s)
}

fn check_nic(nic: &Nic) -> Result<(), Fault> {
    if nic.count == 0 {
        return Err(Fault::at(way!["count"], "a node has 0 NICs, expected at least 1"));
    }
    above_zero("rate", nic.rate_bytes_per_s)?;
    not_below_zero("latency", nic.latency_s)
}

/// `before` are the links that came before it.
pub(super) fn check_link(link: &Link, before: &[Link], clusters: &[Fabric]) -> Result<(), Fault> {
    let names: Vec<&str> = clusters.iter().map(|fabric| fabric.name.as_str()).collect();
    for (end, name) in link.between.iter().enumerate() {
        if !names.contains(&name.as_str()) {
            return Err(unknown_end(end, name, &names));
        }
    }
    let [a, b] = &link.between;
    if a == b {
        let hint = "a link is between clusters; inside one everything reaches everything over `nic`";
        return Err(Fault::at(way!["between"], format!("the link joins `{a}` to itself")).hint(hint));
    }
    if before.iter().any(|other| other.between.contains(a) && other.between.contains(b)) {
        return Err(Fault::at(way!["between"], format!("two links join `{a}` and `{b}`")).label("the second"));
    }
    above_zero("rate", link.rate_bytes_per_s)?;
    link.shared_bytes_per_s.map_or(Ok(()), |rate| above_zero("shared", rate))?;
    not_below_zero("latency", link.latency_s)?;
    link.price_usd_per_byte.map_or(Ok(()), |price| not_below_zero("price", price))?;
    if !(0.0..1.0).contains(&link.loss) {
        let what = format!("the loss is {}, expected at least 0 and below 1", link.loss);
        return Err(Fault::at(way!["loss"], what).hint("it is the share of packets lost: 1% is 0.01"));
    }
    Ok(())
}

pub(super) fn unknown_end(end: usize, name: &str, known: &[&str]) -> Fault {
    let what = format!("the link joins `{name}`, but no cluster has that name");
    Fault::at(way!["between", end], what).hint(did_you_mean(name, known))
}

fn above_zero(key: &str, value: f64) -> Result<(), Fault> {
    if value > 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(Fault::at([key], format!("`{key}` is {value}, expected above 0")))
    }
}

fn not_below_zero(key: &str, value: f64) -> Result<(), Fault> {
    if value >= 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(Fault::at([key], format!("`{key}` is {value}, expected at least 0")))
    }
}
