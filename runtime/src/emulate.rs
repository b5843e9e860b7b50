//! A cluster on one machine: the inventory's network as a shape for the transport, and the inventory's devices as times
//! for the pace. Both come from the very topology and cost functions that the planner used, so that plan, prediction
//! and measurement can be compared.
//!
//! ```text
//!   plan.json ── topology ──> shape.json, shape.clock (one next-free time a resource, shared by all ranks)
//!             └─ cost ──────> seconds of each action
//! ```
//! Not here: holding links to it (`narrows_transport::shape`), holding compute to it (`pace`).

use std::path::Path;
use std::time::Duration;

use narrows_planner::durable;
use narrows_planner::plan::Plan;
use narrows_planner::schedule::Action;
use narrows_planner::simulate::{Costs, Modelled, SimulateError};
use narrows_planner::topology::Topology;
use narrows_transport::shape::{ResourceSpec, RouteSpec, Shape, ShapeSpec};

const SHAPE: &str = "shape.json";
const CLOCK: &str = "shape.clock";

/// The network between the plan's ranks, as the transport's emulation takes it.
pub fn shape_of(plan: &Plan) -> ShapeSpec {
    let topology = Topology::new(&plan.cluster);
    let resource = |r: &narrows_planner::topology::Resource| ResourceSpec {
        name: r.name.clone(),
        rate_bytes_per_s: r.rate_bytes_per_s,
    };
    let seats = plan.seats();
    let gpu = |host: &str, gpu| topology.gpu(host, gpu).expect("a checked plan names GPUs of its cluster");
    let mut routes = Vec::new();
    for from in &seats {
        for to in seats.iter().filter(|to| to.placement.rank != from.placement.rank) {
            let (a, b) = (from.placement, to.placement);
            let Some(route) = topology.route(gpu(&a.host, a.gpu), gpu(&b.host, b.gpu)) else { continue };
            routes.push(RouteSpec {
                from: a.rank,
                to: b.rank,
                resources: route.resources.iter().map(|r| r.0 as usize).collect(),
                latency_s: route.latency_s,
                loss: route.loss,
            });
        }
    }
    ShapeSpec { resources: topology.resources().iter().map(resource).collect(), routes }
}

/// Writes the run's shape for its ranks to open.
pub fn write_shape(run: &Path, plan: &Plan) -> std::io::Result<()> {
    let _ = std::fs::remove_file(run.join(CLOCK));
    durable::write(&run.join(SHAPE), &serde_json::to_vec_pretty(&shape_of(plan))?)
}

/// The run's shape, or none where nothing is emulated.
pub fn open_shape(run: &Path, emulated: Emulation) -> Result<Option<Shape>, String> {
    if emulated == Emulation::Off {
        return Ok(None);
    }
    let path = run.join(SHAPE);
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let bytes = std::fs::read(&path).map_err(|e| failed(&e))?;
    let spec: ShapeSpec = serde_json::from_slice(&bytes).map_err(|e| failed(&e))?;
    Shape::open(&spec, &run.join(CLOCK)).map(Some).map_err(|e| failed(&e))
}

/// Whether links and devices are held to the inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Emulation {
    /// Held to the inventory's rates and latencies.
    On,
    /// This machine as it is.
    Off,
}

/// What each action of one rank takes on its device.
pub struct DeviceTimes<'a> {
    rank: u32,
    costs: Modelled<'a>,
}

impl<'a> DeviceTimes<'a> {
    /// From the plan's cost model: the figures that the simulator uses.
    pub fn of(plan: &'a Plan, rank: u32) -> Result<Self, SimulateError> {
        Ok(Self { rank, costs: Modelled::new(plan, &Topology::new(&plan.cluster))? })
    }

    /// Of one action.
    pub fn of_action(&self, action: Action) -> Duration {
        Duration::from_secs_f64(self.costs.action_s(self.rank, action))
    }
}
