//! `cluster.toml` as written: its keys are these fields. [`InventoryFile::resolve`] fills in defaults and built-ins, and
//! checks each link where it still knows which `[[link]]` of the file it came from.
//!
//! Not here: what the figures must hold (`check`), which is asked of a plan's inline inventory as well.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::check::{check_fabrics, check_link};
use super::sites::Sites;
use super::{Cluster, Fabric, Gpu, Hop, Host, Link, Nic, NicClass, gpus, intra};
use crate::input::{Fault, NameOr, did_you_mean, way};
use crate::profile::Profile;
use crate::units::{Compute, Price, Rate, Size, Time, TrafficPrice, UnitError};

/// More hosts in one cluster are a slip of the pen.
pub(super) const HOSTS_MAX: u32 = 65_536;

const RDMA_LATENCY_S: f64 = 5e-6;
const ETHERNET_LATENCY_S: f64 = 50e-6;
/// Of the 16-bit rate, where fp32 is not given: A100 and H100.
const FP32_SHARE: f64 = 1.0 / 16.0;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InventoryFile {
    cluster: Vec<FabricFile>,
    #[serde(default)]
    link: Vec<LinkFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FabricFile {
    name: String,
    site: Option<String>,
    nodes: Option<u32>,
    host: Option<Vec<HostFile>>,
    gpus: u32,
    gpu: NameOr<GpuFile>,
    intra: NameOr<HopFile>,
    nic: NicFile,
    ethernet: Option<NameOr<EthernetFile>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    name: Option<String>,
    address: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuFile {
    name: String,
    memory: Option<Size>,
    bf16: Option<Compute>,
    fp16: Option<Compute>,
    fp32: Option<Compute>,
    efficiency: Option<f64>,
    memory_rate: Option<Rate>,
    price: Option<Price>,
    profile: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HopFile {
    rate: Rate,
    latency: Time,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EthernetFile {
    rate: Rate,
    latency: Option<Time>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NicFile {
    class: NicClass,
    rate: Rate,
    count: Option<u32>,
    latency: Option<Time>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkFile {
    between: [String; 2],
    rate: Rate,
    shared: Option<Rate>,
    latency: Time,
    #[serde(default)]
    loss: f64,
    price: Option<TrafficPrice>,
}

impl InventoryFile {
    /// With every default filled in and every name looked up.
    pub(super) fn resolve(self, folder: &Path) -> Result<Cluster, Fault> {
        let resolve = |(i, fabric): (usize, FabricFile)| {
            fabric.resolve(folder).map_err(|f| f.within(way!["cluster", i]))
        };
        let named: Vec<_> = self.cluster.iter().map(|f| (f.name.as_str(), f.site.as_deref())).collect();
        let sites = Sites::new(&named)?;
        let clusters: Vec<Fabric> =
            self.cluster.into_iter().enumerate().map(resolve).collect::<Result<_, _>>()?;
        check_fabrics(&clusters)?;
        let mut links = Vec::new();
        for (i, file) in self.link.iter().enumerate() {
            let inside = |fault: Fault| fault.within(way!["link", i]);
            for link in sites.pairs(&file.between).map_err(inside)?.into_iter().map(|pair| file.join(pair)) {
                check_link(&link, &links, &clusters).map_err(inside)?;
                links.push(link);
            }
        }
        Ok(Cluster { clusters, links })
    }
}

impl FabricFile {
    fn resolve(self, folder: &Path) -> Result<Fabric, Fault> {
        let hosts = hosts(&self.name, self.nodes, self.host)?;
        let gpu = match self.gpu {
            NameOr::Name(name) => gpus::built_in(&name).ok_or_else(|| unknown_gpu(&name))?,
            NameOr::Table(table) => table.resolve(folder).map_err(|f| f.within(way!["gpu"]))?,
        };
        let intra = match self.intra {
            NameOr::Name(name) => {
                intra::built_in(&name, &gpu.name).ok_or_else(|| unknown_intra(&name, &gpu.name))?
            }
            NameOr::Table(hop) => Hop { rate_bytes_per_s: hop.rate.si(), latency_s: hop.latency.si() },
        };
        let ethernet = self.ethernet.map(ethernet).transpose()?;
        Ok(Fabric { name: self.name, hosts, gpus: self.gpus, gpu, intra, nic: self.nic.resolve(), ethernet })
    }
}

/// The profile that the inventory names.
fn measured(path: &Path, kind: &str) -> Result<Profile, Fault> {
    Profile::read(path, kind).map_err(|error| {
        let place =
            error.line_and_column().map_or(String::new(), |(line, column)| format!(":{line}:{column}"));
        Fault::at(way!["profile"], format!("{}{place}: {}", error.path().display(), error.message()))
    })
}

fn hosts(cluster: &str, nodes: Option<u32>, listed: Option<Vec<HostFile>>) -> Result<Vec<Host>, Fault> {
    let counted = |n: u32| (0..n).map(|_| HostFile { name: None, address: None }).collect();
    let files: Vec<HostFile> = match (nodes, listed) {
        (Some(n), None) if n > HOSTS_MAX => {
            return Err(Fault::at(
                way!["nodes"],
                format!("cluster `{cluster}` has {n} nodes, at most {HOSTS_MAX} can be"),
            ));
        }
        (Some(0), None) => {
            return Err(Fault::at(way!["nodes"], format!("cluster `{cluster}` has no nodes")));
        }
        (Some(n), None) => counted(n),
        (None, Some(listed)) => listed,
        (Some(_), Some(_)) => {
            let what = format!("cluster `{cluster}` has both `nodes` and [[cluster.host]] entries");
            return Err(Fault::at(way!["nodes"], what).hint("the entries are counted: leave `nodes` out"));
        }
        (None, None) => {
            let what = format!("cluster `{cluster}` has neither `nodes` nor [[cluster.host]] entries");
            return Err(Fault::here(what).hint("give the number of nodes: `nodes = 4`"));
        }
    };
    let named = |(i, file): (usize, HostFile)| Host {
        name: file.name.unwrap_or_else(|| format!("{cluster}-{i}")),
        address: file.address,
    };
    Ok(files.into_iter().enumerate().map(named).collect())
}

impl GpuFile {
    fn resolve(self, folder: &Path) -> Result<Gpu, Fault> {
        let base = gpus::built_in(&self.name);
        let need = |what: &str, example: &str| {
            Fault::here(format!("GPU `{}` is not built in and its table gives no {what}", self.name))
                .hint(format!("give it, as in `{example}`"))
        };
        let memory_bytes = self.memory.map(Size::bytes).or(base.as_ref().map(|b| b.memory_bytes));
        let (bf16, fp16, fp32) =
            self.rates(base.as_ref()).ok_or_else(|| need("compute rate", "bf16 = \"312TFLOP/s\""))?;
        let profile =
            self.profile.as_ref().map(|path| measured(&folder.join(path), &self.name)).transpose()?;
        Ok(Gpu {
            profile,
            memory_bytes: memory_bytes.ok_or_else(|| need("memory", "memory = \"80GB\""))?,
            bf16_flops_per_s: bf16,
            fp16_flops_per_s: fp16,
            fp32_flops_per_s: fp32,
            efficiency: self.efficiency.or(base.as_ref().map(|b| b.efficiency)).unwrap_or(gpus::EFFICIENCY),
            memory_bytes_per_s: self.memory_rate(base.as_ref()),
            price_usd_per_hour: self.price.map(Price::si),
            name: self.name,
        })
    }

    /// An efficiency of the inventory's own counts what goes through memory, unless it gives that rate as well.
    fn memory_rate(&self, base: Option<&Gpu>) -> Option<f64> {
        let usual = base.filter(|_| self.efficiency.is_none()).and_then(|b| b.memory_bytes_per_s);
        self.memory_rate.map(Rate::si).or(usual)
    }

    /// bf16, fp16, fp32: what is given, else as built in, else from each other; `None` where none is known.
    fn rates(&self, base: Option<&Gpu>) -> Option<(f64, f64, f64)> {
        let given = |rate: Option<Compute>, base: Option<f64>| rate.map(Compute::si).or(base);
        let bf16 = given(self.bf16, base.map(|b| b.bf16_flops_per_s));
        let fp16 = given(self.fp16, base.map(|b| b.fp16_flops_per_s));
        let fp32 = given(self.fp32, base.map(|b| b.fp32_flops_per_s));
        let half = bf16.or(fp16).or(fp32)?;
        Some((bf16.unwrap_or(half), fp16.unwrap_or(half), fp32.unwrap_or(half * FP32_SHARE)))
    }
}

impl NicFile {
    fn resolve(self) -> Nic {
        let usual_latency_s = match self.class {
            NicClass::Infiniband | NicClass::Roce => RDMA_LATENCY_S,
            NicClass::Ethernet => ETHERNET_LATENCY_S,
        };
        Nic {
            class: self.class,
            rate_bytes_per_s: self.rate.si(),
            count: self.count.unwrap_or(1),
            latency_s: self.latency.map_or(usual_latency_s, Time::si),
        }
    }
}

fn ethernet(file: NameOr<EthernetFile>) -> Result<Hop, Fault> {
    let file = match file {
        NameOr::Table(file) => file,
        NameOr::Name(rate) => {
            let rate = rate.parse().map_err(|e: UnitError| Fault::at(way!["ethernet"], e.to_string()))?;
            EthernetFile { rate, latency: None }
        }
    };
    Ok(Hop { rate_bytes_per_s: file.rate.si(), latency_s: file.latency.map_or(ETHERNET_LATENCY_S, Time::si) })
}

impl LinkFile {
    /// The link between two clusters.
    fn join(&self, between: [String; 2]) -> Link {
        Link {
            between,
            rate_bytes_per_s: self.rate.si(),
            shared_bytes_per_s: self.shared.map(Rate::si),
            latency_s: self.latency.si(),
            loss: self.loss,
            price_usd_per_byte: self.price.map(TrafficPrice::si),
        }
    }
}

fn unknown_gpu(name: &str) -> Fault {
    Fault::at(way!["gpu"], format!("no GPU `{name}` is built in")).hint(format!(
        "{} (or describe it: `gpu = {{ name = \"{name}\", memory = \"80GB\", bf16 = \"312TFLOP/s\" }}`)",
        did_you_mean(name, &gpus::names())
    ))
}

fn unknown_intra(name: &str, gpu: &str) -> Fault {
    if name == "nvlink" {
        let what = format!("which NVLink the GPU `{gpu}` has is not known");
        return Fault::at(way!["intra"], what)
            .hint("name its generation, `nvlink2` to `nvlink5`, or `pcie4`");
    }
    Fault::at(way!["intra"], format!("no connection `{name}` is built in")).hint(format!(
        "{} (or describe it: `intra = {{ rate = \"300GB/s\", latency = \"2us\" }}`)",
        did_you_mean(name, &intra::names())
    ))
}
