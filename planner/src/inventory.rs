//! `cluster.toml`: what GPUs there are and what joins them.
//!
//! ```toml
//! [[cluster]]
//! name  = "ib"               # one fabric: everything inside reaches everything
//! site  = "oslo"             # where it stands: a name for links to many clusters at once; may be left out
//! nodes = 4                  # or [[cluster.host]] entries: name (else <cluster>-<index>), address
//! gpus  = 8                  # per node
//! gpu   = "A100-80G"         # built in (`gpus`), or a table: name, memory, bf16, fp16, fp32, efficiency,
//!                            # memory_rate, price
//! intra = "nvlink"           # built in (`intra`), or { rate, latency }
//! nic   = { class = "infiniband", rate = "200Gbit/s", count = 4, latency = "5us" }
//! ethernet = { rate = "25Gbit/s", latency = "50us" }                       # or just "25Gbit/s"
//!
//! [[link]]                   # between two clusters; absent = unreachable
//! between = ["ib", "roce"]   # or sites: every cluster of the one with every cluster of the other
//! rate    = "25Gbit/s"       # per node; `shared = "100Gbit/s"` caps the sum
//! latency = "1ms"
//! loss    = 0.0
//! price   = "0.02USD/GB"     # of what crosses, either way
//! ```
//! Defaults: a `gpu` table with the name of a built-in GPU takes from it what it does not give; of another GPU,
//! `bf16` and `fp16` stand for each other, both for want of any other figure are `fp32`, and `fp32` is a sixteenth of
//! the 16-bit rate (as on A100 and H100). `efficiency` is 0.5 and stands for all that keeps a GPU from its peak, unless
//! `memory_rate` is given too (built-in GPUs: see `gpus`), when it is that of matrix products alone. `count` is 1, `loss` 0, the latency of InfiniBand and
//! RoCE 5 us, of Ethernet 50 us: usual figures, to be measured by `calibrate`.
//!
//! A `[[link]]` between a site and itself joins every two of its clusters (`sites`). `shared` caps each pair by itself.
//!
//! A `gpu` table's `profile = "path"`, relative to this file, names measured times (`profile`): they take the place of
//! rates.
//!
//! Not here: paths between GPUs (`topology`).

mod check;
mod file;
mod gpus;
mod intra;
mod sites;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use check::check;
pub(crate) use gpus::{built_in as built_in_gpu, names as built_in_gpus};

use crate::input::{Document, InputError};
use crate::profile::Profile;

/// Reads, resolves and checks an inventory.
///
/// # Errors
/// The file is unreadable or not TOML, has unknown or missing keys, or describes what cannot be (no GPU at all, a link
/// to a cluster that does not exist, a rate of zero, …). The error shows the place.
pub fn read(path: &Path) -> Result<Cluster, InputError> {
    resolve(&Document::toml(path)?)
}

/// [`read`] of a file in memory.
pub(crate) fn resolve(document: &Document) -> Result<Cluster, InputError> {
    let file: file::InventoryFile = document.decode()?;
    file.resolve(document.folder())
        .and_then(|cluster| check(&cluster).map(|()| cluster))
        .map_err(|fault| document.error(fault))
}

/// The resolved inventory: every default filled in, every quantity in SI units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The clusters; inside one everything reaches everything.
    pub clusters: Vec<Fabric>,
    /// What joins them; two clusters without a link cannot reach each other.
    #[serde(default)]
    pub links: Vec<Link>,
}

/// One `[[cluster]]`: like hosts on one fabric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Unique over the inventory; `<cluster>-<index>` unless named.
    pub name: String,
    /// Where `launch` reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A kind of GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Rate of its memory, if what goes through memory is to be counted on top of the FLOPs; then `efficiency` is that of
    /// matrix products alone. Built-in GPUs have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_per_s: Option<f64>,
    /// Price of one GPU, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_usd_per_hour: Option<f64>,
    /// Measured times of the model's parts, in place of rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

/// Rate and latency of a direct connection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hop {
    /// Each direction.
    pub rate_bytes_per_s: f64,
    /// One way.
    pub latency_s: f64,
}

/// The NICs of a host of one class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Price of a byte that crosses, either way, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_usd_per_byte: Option<f64>,
}

impl Cluster {
    /// The fabric that a host belongs to, and the host.
    pub fn host(&self, name: &str) -> Option<(&Fabric, &Host)> {
        self.clusters
            .iter()
            .find_map(|fabric| fabric.hosts.iter().find(|h| h.name == name).map(|host| (fabric, host)))
    }
}

impl Fabric {
    /// Whether every host has a NIC of the class.
    pub fn has_nic(&self, class: NicClass) -> bool {
        self.nic.class == class || (class == NicClass::Ethernet && self.ethernet.is_some())
    }
}

impl NicClass {
    /// As in the files.
    pub fn name(self) -> &'static str {
        match self {
            NicClass::Infiniband => "infiniband",
            NicClass::Roce => "roce",
            NicClass::Ethernet => "ethernet",
        }
    }
}
