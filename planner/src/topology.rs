//! Who reaches whom, over what: the inventory as capacities and the ways through them.
//!
//! ```text
//!            bus(host)                                     one host: the GPUs' intra ports
//!  gpu.out ─┬─> nic ──> fabric(cluster) ──> nic ─┬─> gpu.in   one cluster: its NICs
//!           └─> ethernet ──> link side ══ link ══> link side ──> ethernet ─┘   two clusters: their [[link]]
//! ```
//! Everything that limits something is a [`Resource`]; the same resource on two routes means that they share it. All are
//! directional: what a NIC receives does not slow what it sends. A host's own bus is preferred to its NIC and that to a
//! link. RDMA NICs of unlike classes never meet: between clusters only the `[[link]]` counts, over TCP.
//!
//! There is no graph to search: with these three kinds of way a route is arithmetic on where the two GPUs are, which is
//! what lets a plan of 10,000 GPUs be routed in milliseconds.
//!
//! Limits: clusters without a `[[link]]` between them do not reach each other, even where a third cluster touches
//! both. Of two links between the same clusters the first is used.
//!
//! Not here: time of a transfer that shares a resource (`simulate`), closed forms (`cost`).

use std::collections::HashMap;

use crate::inventory::{Cluster, Fabric, Gpu, Link, NicClass};

/// A GPU of the inventory: clusters in order, hosts in order, GPUs in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GpuId(pub u32);

/// Index into [`Topology::resources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId(pub u32);

/// Something with a capacity that routes share.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// `<host>/gpu<i>/out`, `<host>/nic<i>/in`, `<host>/ethernet/out`, `<host>/<a>~<b>/out` or `<a>~<b>/<a>-><b>`.
    pub name: String,
    /// Capacity of this direction.
    pub rate_bytes_per_s: f64,
}

/// What kind of way a route takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteClass {
    /// From a GPU to itself.
    SameGpu,
    /// Between GPUs of one host.
    Intra,
    /// Between hosts of a cluster, InfiniBand.
    Infiniband,
    /// Between hosts of a cluster, RoCE.
    Roce,
    /// Between hosts of a cluster, plain Ethernet.
    Ethernet,
    /// Between clusters; the link's name is `<a>~<b>`.
    Link(String),
}

/// The way from one GPU to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// What it occupies, in order.
    pub resources: Vec<ResourceId>,
    /// One way.
    pub latency_s: f64,
    /// Share of packets lost on the way, in [0, 1).
    pub loss: f64,
    /// Which kind of way it is.
    pub class: RouteClass,
    /// Smallest capacity on the way, times the share that is not lost; infinite from a GPU to itself.
    pub rate_bytes_per_s: f64,
}

/// Most resources of a way: Ethernet, link side, link, link side, Ethernet.
pub(crate) const HOPS: usize = 5;

/// A route without its name and its rate, made without allocating.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    hops: [u32; HOPS],
    len: u8,
    /// One way.
    pub latency_s: f64,
    /// Share of packets lost on the way, in [0, 1).
    pub loss: f64,
}

impl Way {
    /// Indices of the resources that it occupies, in order.
    pub fn resources(&self) -> impl ExactSizeIterator<Item = usize> + use<> {
        self.hops.into_iter().take(usize::from(self.len)).map(|r| r as usize)
    }

    /// Over these resources, at most five.
    pub(crate) fn over(resources: impl IntoIterator<Item = u32>, latency_s: f64, loss: f64) -> Self {
        let mut way = Way { hops: [0; HOPS], len: 0, latency_s, loss };
        for resource in resources {
            way.hops[usize::from(way.len)] = resource;
            way.len += 1;
        }
        way
    }
}

/// The inventory's GPUs and what joins them.
#[derive(Debug, Clone)]
pub struct Topology {
    resources: Vec<Resource>,
    fabrics: Vec<FabricPlace>,
    /// By name: cluster and index in it.
    hosts: HashMap<String, (u32, u32)>,
    host_names: Vec<Vec<String>>,
    gpus: Vec<GpuPlace>,
    links: Vec<LinkPlace>,
    /// The first link between two clusters, the lower index first.
    link_between: HashMap<(u32, u32), u32>,
}

#[derive(Debug, Clone, Copy)]
struct GpuPlace {
    fabric: u32,
    host: u32,
    index: u32,
}

/// A cluster's kinds, and where its resources begin: each host has its NICs, its Ethernet, its GPUs' ports.
#[derive(Debug, Clone)]
struct FabricPlace {
    gpu: Gpu,
    intra_latency_s: f64,
    nic_class: NicClass,
    nic_latency_s: f64,
    nics: u32,
    has_ethernet: bool,
    gpus: u32,
    first_gpu: u32,
    first_resource: u32,
}

/// A link, and where its resources of either direction begin: the shared capacity, each host's side out, in.
#[derive(Debug, Clone)]
struct LinkPlace {
    name: String,
    latency_s: f64,
    loss: f64,
    is_shared: bool,
    /// Cluster indices.
    ends: [u32; 2],
    /// Hosts of either cluster.
    hosts: [u32; 2],
    /// Of the direction from `ends[0]`, and from `ends[1]`.
    first_resource: [u32; 2],
}

/// Which way something passes.
const OUT: u32 = 0;
const IN: u32 = 1;

impl Topology {
    /// The ways of an inventory.
    pub fn new(cluster: &Cluster) -> Self {
        let mut topology = Self {
            resources: Vec::new(),
            fabrics: Vec::new(),
            hosts: HashMap::new(),
            host_names: Vec::new(),
            gpus: Vec::new(),
            links: Vec::new(),
            link_between: HashMap::new(),
        };
        cluster.clusters.iter().for_each(|fabric| topology.add_fabric(fabric));
        let position = |name: &str| cluster.clusters.iter().position(|f| f.name == name);
        for link in &cluster.links {
            if let (Some(a), Some(b)) = (position(&link.between[0]), position(&link.between[1])) {
                topology.add_link(link, [a, b], [&cluster.clusters[a], &cluster.clusters[b]]);
            }
        }
        topology
    }

    /// The GPU `gpu` of the host named `host`.
    pub fn gpu(&self, host: &str, gpu: u32) -> Option<GpuId> {
        let &(fabric, host) = self.hosts.get(host)?;
        let fabric = &self.fabrics[fabric as usize];
        (gpu < fabric.gpus).then(|| GpuId(fabric.first_gpu + host * fabric.gpus + gpu))
    }

    /// All GPUs, in inventory order.
    pub fn gpus(&self) -> impl Iterator<Item = GpuId> + use<> {
        (0..self.gpus.len() as u32).map(GpuId)
    }

    /// Its kind.
    pub fn gpu_spec(&self, gpu: GpuId) -> &Gpu {
        &self.fabrics[self.fabric(gpu)].gpu
    }

    /// Index of its cluster in the inventory.
    pub fn fabric(&self, gpu: GpuId) -> usize {
        self.at(gpu).fabric as usize
    }

    /// Its host's name and its index there.
    pub fn place(&self, gpu: GpuId) -> (&str, u32) {
        let at = self.at(gpu);
        (&self.host_names[at.fabric as usize][at.host as usize], at.index)
    }

    /// Its host: index of the cluster, then of the host in it.
    pub fn host(&self, gpu: GpuId) -> (usize, u32) {
        (self.fabric(gpu), self.at(gpu).host)
    }

    /// Everything with a capacity.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// The way from one GPU to another; `None` between clusters that no link joins.
    pub fn route(&self, from: GpuId, to: GpuId) -> Option<Route> {
        let way = self.way(from, to)?;
        let rates = way.resources().map(|r| self.resources[r].rate_bytes_per_s);
        Some(Route {
            rate_bytes_per_s: rates.fold(f64::INFINITY, f64::min) * (1.0 - way.loss),
            resources: way.resources().map(|r| ResourceId(r as u32)).collect(),
            latency_s: way.latency_s,
            loss: way.loss,
            class: self.class(from, to),
        })
    }

    /// As [`Topology::route`], without what has to be named.
    pub fn way(&self, from: GpuId, to: GpuId) -> Option<Way> {
        let (a, b) = (self.at(from), self.at(to));
        if from == to {
            return Some(Way::over([], 0.0, 0.0));
        }
        if a.fabric != b.fabric {
            return self.way_over_link(a, b);
        }
        let fabric = &self.fabrics[a.fabric as usize];
        Some(match a.host == b.host {
            true => Way::over([fabric.port(a, OUT), fabric.port(b, IN)], fabric.intra_latency_s, 0.0),
            false => Way::over([fabric.nic(a, OUT), fabric.nic(b, IN)], fabric.nic_latency_s, 0.0),
        })
    }

    fn way_over_link(&self, a: GpuPlace, b: GpuPlace) -> Option<Way> {
        let link = self.link(a.fabric, b.fabric)?;
        let direction = usize::from(link.ends[0] != a.fabric);
        let (first, shared) = (link.first_resource[direction], u32::from(link.is_shared));
        let side_out = first + shared + a.host;
        let side_in = first + shared + link.hosts[direction] + b.host;
        let ethernet = |at: GpuPlace, way| self.fabrics[at.fabric as usize].ethernet(at.host, way);
        let hops = [
            ethernet(a, OUT),
            Some(side_out),
            link.is_shared.then_some(first),
            Some(side_in),
            ethernet(b, IN),
        ];
        Some(Way::over(hops.into_iter().flatten(), link.latency_s, link.loss))
    }

    fn class(&self, from: GpuId, to: GpuId) -> RouteClass {
        let (a, b) = (self.at(from), self.at(to));
        if from == to {
            return RouteClass::SameGpu;
        }
        if let Some(link) = self.link(a.fabric, b.fabric) {
            return RouteClass::Link(link.name.clone());
        }
        match self.fabrics[a.fabric as usize].nic_class {
            _ if a.host == b.host => RouteClass::Intra,
            NicClass::Infiniband => RouteClass::Infiniband,
            NicClass::Roce => RouteClass::Roce,
            NicClass::Ethernet => RouteClass::Ethernet,
        }
    }

    fn link(&self, a: u32, b: u32) -> Option<&LinkPlace> {
        self.link_between.get(&(a.min(b), a.max(b))).map(|&link| &self.links[link as usize])
    }

    fn at(&self, gpu: GpuId) -> GpuPlace {
        self.gpus[gpu.0 as usize]
    }

    fn add_fabric(&mut self, fabric: &Fabric) {
        let index = self.fabrics.len() as u32;
        self.fabrics.push(FabricPlace {
            gpu: fabric.gpu.clone(),
            intra_latency_s: fabric.intra.latency_s,
            nic_class: fabric.nic.class,
            nic_latency_s: fabric.nic.latency_s,
            nics: fabric.nic.count,
            has_ethernet: fabric.ethernet.is_some(),
            gpus: fabric.gpus,
            first_gpu: self.gpus.len() as u32,
            first_resource: self.resources.len() as u32,
        });
        for (host, at) in fabric.hosts.iter().zip(0..) {
            self.hosts.insert(host.name.clone(), (index, at));
            self.gpus.extend((0..fabric.gpus).map(|gpu| GpuPlace { fabric: index, host: at, index: gpu }));
            for nic in 0..fabric.nic.count {
                self.add_both(|way| format!("{}/nic{nic}/{way}", host.name), fabric.nic.rate_bytes_per_s);
            }
            if let Some(hop) = fabric.ethernet {
                self.add_both(|way| format!("{}/ethernet/{way}", host.name), hop.rate_bytes_per_s);
            }
            for gpu in 0..fabric.gpus {
                self.add_both(|way| format!("{}/gpu{gpu}/{way}", host.name), fabric.intra.rate_bytes_per_s);
            }
        }
        self.host_names.push(fabric.hosts.iter().map(|h| h.name.clone()).collect());
    }

    fn add_link(&mut self, link: &Link, ends: [usize; 2], fabrics: [&Fabric; 2]) {
        let name = link_name(link);
        let mut first_resource = [0; 2];
        for (direction, (from, to)) in [(0, 1), (1, 0)].into_iter().enumerate() {
            first_resource[direction] = self.resources.len() as u32;
            if let Some(rate) = link.shared_bytes_per_s {
                self.add(format!("{name}/{}->{}", fabrics[from].name, fabrics[to].name), rate);
            }
            for (fabric, way) in [(fabrics[from], "out"), (fabrics[to], "in")] {
                for host in &fabric.hosts {
                    self.add(format!("{}/{name}/{way}", host.name), link.rate_bytes_per_s);
                }
            }
        }
        let [a, b] = ends.map(|end| end as u32);
        self.link_between.entry((a.min(b), a.max(b))).or_insert(self.links.len() as u32);
        self.links.push(LinkPlace {
            name,
            latency_s: link.latency_s,
            loss: link.loss,
            is_shared: link.shared_bytes_per_s.is_some(),
            ends: [a, b],
            hosts: fabrics.map(|f| f.hosts.len() as u32),
            first_resource,
        });
    }

    fn add_both(&mut self, name: impl Fn(&str) -> String, rate_bytes_per_s: f64) {
        self.add(name("out"), rate_bytes_per_s);
        self.add(name("in"), rate_bytes_per_s);
    }

    fn add(&mut self, name: String, rate_bytes_per_s: f64) {
        self.resources.push(Resource { name, rate_bytes_per_s });
    }
}

impl FabricPlace {
    fn host(&self, host: u32) -> u32 {
        self.first_resource + 2 * host * (self.nics + u32::from(self.has_ethernet) + self.gpus)
    }

    fn nic(&self, at: GpuPlace, way: u32) -> u32 {
        self.host(at.host) + 2 * (at.index * self.nics / self.gpus) + way
    }

    fn ethernet(&self, host: u32, way: u32) -> Option<u32> {
        self.has_ethernet.then(|| self.host(host) + 2 * self.nics + way)
    }

    fn port(&self, at: GpuPlace, way: u32) -> u32 {
        self.host(at.host) + 2 * (self.nics + u32::from(self.has_ethernet) + at.index) + way
    }
}

/// `<a>~<b>`, as in [`RouteClass::Link`].
pub fn link_name(link: &Link) -> String {
    format!("{}~{}", link.between[0], link.between[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Hop;
    use crate::search::fixture::{fabric, link};

    fn hybrid() -> Cluster {
        let mut ib = fabric("ib", 2, 8);
        ib.intra = Hop { rate_bytes_per_s: 300e9, latency_s: 2e-6 };
        ib.nic.class = NicClass::Infiniband;
        (ib.nic.count, ib.nic.rate_bytes_per_s, ib.nic.latency_s) = (4, 25e9, 5e-6);
        let mut roce = fabric("roce", 2, 8);
        roce.nic.class = NicClass::Roce;
        roce.ethernet = Some(Hop { rate_bytes_per_s: 2e9, latency_s: 0.0 });
        let mut wan = link("ib", "roce", 3e9, 1e-3);
        (wan.shared_bytes_per_s, wan.loss) = (Some(10e9), 0.5);
        Cluster { clusters: vec![ib, roce, fabric("island", 1, 1)], links: vec![wan] }
    }

    fn route(topology: &Topology, from: (&str, u32), to: (&str, u32)) -> Option<(Route, Vec<String>)> {
        let gpu = |(host, gpu)| topology.gpu(host, gpu).expect("in the inventory");
        let route = topology.route(gpu(from), gpu(to))?;
        let names = route.resources.iter().map(|r| topology.resources()[r.0 as usize].name.clone()).collect();
        Some((route, names))
    }

    #[test]
    fn a_host_keeps_its_traffic_on_its_bus() {
        let topology = Topology::new(&hybrid());
        let (route, names) = route(&topology, ("ib-0", 1), ("ib-0", 7)).unwrap();
        assert_eq!(names, ["ib-0/gpu1/out", "ib-0/gpu7/in"]);
        assert_eq!((route.class, route.rate_bytes_per_s), (RouteClass::Intra, 300e9));
        assert_eq!(route.latency_s, 2e-6);
    }

    #[test]
    fn hosts_of_a_cluster_talk_over_the_nic_of_each_gpu() {
        let topology = Topology::new(&hybrid());
        let (route, names) = route(&topology, ("ib-0", 3), ("ib-1", 7)).unwrap();
        assert_eq!(names, ["ib-0/nic1/out", "ib-1/nic3/in"]);
        assert_eq!((route.class, route.rate_bytes_per_s), (RouteClass::Infiniband, 25e9));
        assert_eq!(route.latency_s, 5e-6);
    }

    #[test]
    fn clusters_meet_at_their_link_and_ethernet_and_sharing_and_loss_count() {
        let topology = Topology::new(&hybrid());
        let (route, names) = route(&topology, ("ib-1", 0), ("roce-0", 0)).unwrap();
        assert_eq!(
            names,
            ["ib-1/ib~roce/out", "ib~roce/ib->roce", "roce-0/ib~roce/in", "roce-0/ethernet/in"]
        );
        assert_eq!(route.class, RouteClass::Link("ib~roce".into()));
        assert_eq!((route.latency_s, route.loss), (1e-3, 0.5));
        assert_eq!(route.rate_bytes_per_s, 1e9, "2 GB/s of Ethernet, half of it lost");
    }

    #[test]
    fn no_link_no_way_and_a_gpu_reaches_itself_for_nothing() {
        let topology = Topology::new(&hybrid());
        assert!(route(&topology, ("ib-0", 0), ("island-0", 0)).is_none());
        let (same, _) = route(&topology, ("ib-0", 0), ("ib-0", 0)).unwrap();
        assert_eq!((same.class, same.latency_s), (RouteClass::SameGpu, 0.0));
        assert!(topology.gpu("ib-0", 8).is_none() && topology.gpu("nowhere", 0).is_none());
    }

    #[test]
    fn a_third_cluster_is_not_a_bridge() {
        let mut cluster = hybrid();
        cluster.links.push(link("roce", "island", 1e9, 0.0));
        let topology = Topology::new(&cluster);
        assert!(route(&topology, ("roce-0", 0), ("island-0", 0)).is_some());
        assert!(route(&topology, ("ib-0", 0), ("island-0", 0)).is_none());
    }
}
