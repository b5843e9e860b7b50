//! `cluster.toml`: what GPUs there are and what joins them.
//!
//! (types first; the parser turns strings with units into SI numbers and keeps spans for errors)

use serde::{Deserialize, Serialize};

/// The resolved inventory: every default filled in, every quantity in SI units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The clusters; inside one everything reaches everything.
    pub clusters: Vec<Fabric>,
    /// What joins them; two clusters without a link cannot reach each other.
    #[serde(default)]
    pub links: Vec<Link>,
}

/// One `[[cluster]]`: like hosts on one fabric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fabric {
    /// Unique name.
    pub name: String,
    /// Its hosts.
    pub hosts: Vec<Host>,
    /// GPUs per host.
    pub gpus: u32,
    /// Their kind.
    pub gpu: Gpu,
    /// Between GPUs of one host.
    pub intra: Hop,
    /// Between hosts of this cluster.
    pub nic: Nic,
    /// What every host also has: the way out where NIC classes differ.
    pub ethernet: Option<Hop>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Unique over the inventory; `<cluster>-<index>` unless named.
    pub name: String,
    /// Where `launch` reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A kind of GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Product or made-up name.
    pub name: String,
    /// Memory that training may use.
    pub memory_bytes: u64,
    /// Peak rates by precision.
    pub bf16_flops_per_s: f64,
    /// fp16 peak.
    pub fp16_flops_per_s: f64,
    /// fp32 peak.
    pub fp32_flops_per_s: f64,
    /// Share of the peak that training achieves, in (0, 1].
    pub efficiency: f64,
    /// Price of one GPU, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_usd_per_hour: Option<f64>,
}

/// Rate and latency of a direct connection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hop {
    /// Each direction.
    pub rate_bytes_per_s: f64,
    /// One way.
    pub latency_s: f64,
}

/// The NICs of a host of one class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Which network it speaks.
    pub class: NicClass,
    /// Of one NIC, each direction.
    pub rate_bytes_per_s: f64,
    /// NICs per host; GPU `i` of `gpus` uses NIC `i * count / gpus`.
    pub count: u32,
    /// One way.
    pub latency_s: f64,
}

/// Kinds of network; unlike RDMA kinds cannot talk to each other except over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicClass {
    /// InfiniBand verbs.
    Infiniband,
    /// RDMA over converged Ethernet.
    Roce,
    /// Plain Ethernet: TCP.
    Ethernet,
}

/// What joins two clusters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The two clusters' names.
    pub between: [String; 2],
    /// Per host, each direction.
    pub rate_bytes_per_s: f64,
    /// Caps the sum over all hosts, each direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_bytes_per_s: Option<f64>,
    /// One way.
    pub latency_s: f64,
    /// Share of packets lost, in [0, 1).
    #[serde(default)]
    pub loss: f64,
}
