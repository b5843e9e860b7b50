//! Who reaches whom, over what: the inventory as a directed graph of capacities.
//!
//! ```text
//!            bus(host)                                     one host: the GPUs' intra ports
//!  gpu.out ─┬─> nic ──> fabric(cluster) ──> nic ─┬─> gpu.in   one cluster: its NICs
//!           └─> ethernet ──> link side ══ link ══> link side ──> ethernet ─┘   two clusters: their [[link]]
//! ```
//! Every edge that limits something carries a [`Resource`]; the same resource on two routes means that they share it.
//! All are directional: what a NIC receives does not slow what it sends. A route is the path with the fewest edges,
//! so a host's own bus is preferred to its NIC and that to a link. RDMA NICs of unlike classes never meet: between
//! clusters only the `[[link]]` counts, over TCP.
//!
//! Limits: clusters without a `[[link]]` between them do not reach each other, even where a third cluster touches
//! both (the graph leads from `out` nodes to `in` nodes and never back). Of two links between the same clusters the
//! first is used.
//!
//! Not here: time of a transfer that shares a resource (`simulate`), closed forms (`cost`).

use std::collections::HashMap;

use petgraph::algo::astar;
use petgraph::graph::{DiGraph, NodeIndex};

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

/// The inventory's GPUs and what joins them.
#[derive(Debug, Clone)]
pub struct Topology {
    graph: DiGraph<(), Edge>,
    resources: Vec<Resource>,
    gpus: Vec<GpuNode>,
    by_place: HashMap<(String, u32), GpuId>,
    kinds: Vec<Gpu>,
}

#[derive(Debug, Clone)]
struct Edge {
    resource: Option<ResourceId>,
    latency_s: f64,
    loss: f64,
    class: Option<RouteClass>,
}

#[derive(Debug, Clone)]
struct GpuNode {
    fabric: usize,
    host: String,
    index: u32,
    out: NodeIndex,
    into: NodeIndex,
}

/// The nodes through which a host's traffic leaves and arrives.
struct HostNodes {
    out: NodeIndex,
    into: NodeIndex,
}

impl Topology {
    /// The graph of an inventory.
    pub fn new(cluster: &Cluster) -> Self {
        let mut topology = Self {
            graph: DiGraph::new(),
            resources: Vec::new(),
            gpus: Vec::new(),
            by_place: HashMap::new(),
            kinds: cluster.clusters.iter().map(|f| f.gpu.clone()).collect(),
        };
        let hosts: Vec<Vec<HostNodes>> =
            cluster.clusters.iter().enumerate().map(|(i, fabric)| topology.add_fabric(i, fabric)).collect();
        let position = |name: &str| cluster.clusters.iter().position(|f| f.name == name);
        for link in &cluster.links {
            if let (Some(a), Some(b)) = (position(&link.between[0]), position(&link.between[1])) {
                topology.add_link(link, [&cluster.clusters[a], &cluster.clusters[b]], [&hosts[a], &hosts[b]]);
            }
        }
        topology
    }

    /// The GPU `gpu` of the host named `host`.
    pub fn gpu(&self, host: &str, gpu: u32) -> Option<GpuId> {
        self.by_place.get(&(host.to_owned(), gpu)).copied()
    }

    /// All GPUs, in inventory order.
    pub fn gpus(&self) -> impl Iterator<Item = GpuId> + use<> {
        (0..self.gpus.len() as u32).map(GpuId)
    }

    /// Its kind.
    pub fn gpu_spec(&self, gpu: GpuId) -> &Gpu {
        &self.kinds[self.node(gpu).fabric]
    }

    /// Index of its cluster in the inventory.
    pub fn fabric(&self, gpu: GpuId) -> usize {
        self.node(gpu).fabric
    }

    /// Its host's name and its index there.
    pub fn place(&self, gpu: GpuId) -> (&str, u32) {
        (&self.node(gpu).host, self.node(gpu).index)
    }

    /// Everything with a capacity.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// The way from one GPU to another; `None` between clusters that no link joins.
    pub fn route(&self, from: GpuId, to: GpuId) -> Option<Route> {
        if from == to {
            return Some(Route {
                resources: vec![],
                latency_s: 0.0,
                loss: 0.0,
                class: RouteClass::SameGpu,
                rate_bytes_per_s: f64::INFINITY,
            });
        }
        let goal = self.node(to).into;
        let (_, nodes) = astar(&self.graph, self.node(from).out, |n| n == goal, |_| 1u32, |_| 0)?;
        let edges = nodes.windows(2).map(|pair| {
            let edge = self.graph.find_edge(pair[0], pair[1]).expect("a path's nodes are joined");
            &self.graph[edge]
        });
        Some(self.route_of(edges))
    }

    fn node(&self, gpu: GpuId) -> &GpuNode {
        &self.gpus[gpu.0 as usize]
    }

    fn route_of<'a>(&self, edges: impl Iterator<Item = &'a Edge>) -> Route {
        let mut route = Route {
            resources: Vec::new(),
            latency_s: 0.0,
            loss: 0.0,
            class: RouteClass::Intra,
            rate_bytes_per_s: f64::INFINITY,
        };
        for edge in edges {
            if let Some(id) = edge.resource {
                route.rate_bytes_per_s =
                    route.rate_bytes_per_s.min(self.resources[id.0 as usize].rate_bytes_per_s);
                route.resources.push(id);
            }
            route.latency_s += edge.latency_s;
            route.loss = 1.0 - (1.0 - route.loss) * (1.0 - edge.loss);
            if let Some(class) = &edge.class {
                route.class = class.clone();
            }
        }
        route.rate_bytes_per_s *= 1.0 - route.loss;
        route
    }

    fn add_fabric(&mut self, index: usize, fabric: &Fabric) -> Vec<HostNodes> {
        let switch = self.graph.add_node(());
        let hosts = fabric.hosts.iter();
        hosts.map(|host| self.add_host(index, fabric, &host.name, switch)).collect()
    }

    fn add_host(&mut self, index: usize, fabric: &Fabric, host: &str, switch: NodeIndex) -> HostNodes {
        let bus = self.graph.add_node(());
        let nics: Vec<_> = (0..fabric.nic.count).map(|i| self.add_nic(fabric, host, i, switch)).collect();
        let outside = self.add_ethernet(fabric, host);
        for gpu in 0..fabric.gpus {
            let (out, into) = (self.graph.add_node(()), self.graph.add_node(()));
            let port = |way| (format!("{host}/gpu{gpu}/{way}"), fabric.intra.rate_bytes_per_s);
            self.join_through(out, bus, port("out"), fabric.intra.latency_s);
            self.join_through(bus, into, port("in"), 0.0);
            if let Some(nic) = nics.get((gpu * fabric.nic.count / fabric.gpus) as usize) {
                self.join(out, nic.out);
                self.join(nic.into, into);
            }
            self.join(out, outside.0.out);
            self.join(outside.0.into, into);
            self.by_place.insert((host.to_owned(), gpu), GpuId(self.gpus.len() as u32));
            self.gpus.push(GpuNode { fabric: index, host: host.to_owned(), index: gpu, out, into });
        }
        outside.1
    }

    fn add_nic(&mut self, fabric: &Fabric, host: &str, index: u32, switch: NodeIndex) -> HostNodes {
        let nic = HostNodes { out: self.graph.add_node(()), into: self.graph.add_node(()) };
        let class = match fabric.nic.class {
            NicClass::Infiniband => RouteClass::Infiniband,
            NicClass::Roce => RouteClass::Roce,
            NicClass::Ethernet => RouteClass::Ethernet,
        };
        let way = |way| (format!("{host}/nic{index}/{way}"), fabric.nic.rate_bytes_per_s);
        let out = self.join_through(nic.out, switch, way("out"), fabric.nic.latency_s);
        self.graph[out].class = Some(class);
        self.join_through(switch, nic.into, way("in"), 0.0);
        nic
    }

    /// The host's way to other clusters, seen from its GPUs and from its links.
    fn add_ethernet(&mut self, fabric: &Fabric, host: &str) -> (HostNodes, HostNodes) {
        let mut pair = || HostNodes { out: self.graph.add_node(()), into: self.graph.add_node(()) };
        let (inner, outer) = (pair(), pair());
        match fabric.ethernet {
            Some(hop) => {
                let way = |way| (format!("{host}/ethernet/{way}"), hop.rate_bytes_per_s);
                self.join_through(inner.out, outer.out, way("out"), 0.0);
                self.join_through(outer.into, inner.into, way("in"), 0.0);
            }
            None => {
                self.join(inner.out, outer.out);
                self.join(outer.into, inner.into);
            }
        }
        (inner, outer)
    }

    fn add_link(&mut self, link: &Link, fabrics: [&Fabric; 2], hosts: [&[HostNodes]; 2]) {
        let name = link_name(link);
        for (from, to) in [(0, 1), (1, 0)] {
            let (near, far) = (self.graph.add_node(()), self.graph.add_node(()));
            let direction = format!("{name}/{}->{}", fabrics[from].name, fabrics[to].name);
            let resource = link.shared_bytes_per_s.map(|rate| self.add_resource(direction, rate));
            let edge = Edge {
                resource,
                latency_s: link.latency_s,
                loss: link.loss,
                class: Some(RouteClass::Link(name.clone())),
            };
            self.graph.add_edge(near, far, edge);
            for (host, nodes) in fabrics[from].hosts.iter().zip(hosts[from]) {
                let side = (format!("{}/{name}/out", host.name), link.rate_bytes_per_s);
                self.join_through(nodes.out, near, side, 0.0);
            }
            for (host, nodes) in fabrics[to].hosts.iter().zip(hosts[to]) {
                let side = (format!("{}/{name}/in", host.name), link.rate_bytes_per_s);
                self.join_through(far, nodes.into, side, 0.0);
            }
        }
    }

    fn add_resource(&mut self, name: String, rate_bytes_per_s: f64) -> ResourceId {
        self.resources.push(Resource { name, rate_bytes_per_s });
        ResourceId(self.resources.len() as u32 - 1)
    }

    fn join(&mut self, from: NodeIndex, to: NodeIndex) {
        self.graph.add_edge(from, to, Edge { resource: None, latency_s: 0.0, loss: 0.0, class: None });
    }

    fn join_through(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        (name, rate_bytes_per_s): (String, f64),
        latency_s: f64,
    ) -> petgraph::graph::EdgeIndex {
        let resource = Some(self.add_resource(name, rate_bytes_per_s));
        self.graph.add_edge(from, to, Edge { resource, latency_s, loss: 0.0, class: None })
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
