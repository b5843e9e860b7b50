//! An emulated network: rate, latency, loss and sharing, for a whole cluster on one machine, without root.
//!
//! A *resource* is anything that carries bytes at a rate and is shared: a network card's way out, its way in, an
//! uplink between clusters. A *route* is the ordered list of resources from one rank to another. Ranks are processes;
//! they share one clock per resource, "the time at which it is next free" ([`SharedClock`]).
//!
//! # The rule (the simulator mirrors it)
//!
//! A message is cut into chunks ([`Route::chunk_bytes`]). Each resource serves chunks one after another, in the order in
//! which they reserve it. A chunk of `bytes`, eligible at `now`, passes the resources of its route in order, cut-through:
//!
//! ```text
//!   at = now
//!   for each resource r of the route, in order:
//!       at          = max(at, next_free[r])          it queues for r, having left those before
//!       next_free[r] = at + bytes / rate[r]          r is busy for as long as the chunk takes on it
//!   start = at at the first resource
//!   end   = max over r of its new next_free[r]
//!   delivered at end + latency
//! ```
//!
//! The next chunk of the same flow (one sender, one receiver) is eligible at `end`; the first one when its message was
//! handed over. So a lone flow runs at exactly `bytes / min(rate)`; k flows through one resource get a k-th each; a
//! resource stands idle only when no chunk waits for it. (Taking one common start for all resources of the route would
//! be simpler but lets a busy receiver idle its senders' cards: two thirds of the rate in a 3-rank exchange.)
//!
//! Reservations are absolute times. A sender that wakes late reserves from when its chunk *was* eligible, so
//! oversleeping never adds up.
//!
//! # Limits
//!
//! * Frame headers and control frames are free: rates are what an application reaches, as `calibrate` measures them.
//! * Loss costs retransmission alone: every rate is multiplied by (1 - loss). No congestion control is modelled.
//! * Credit returns without latency, so a window smaller than rate x latency is not felt.
//! * Rates above what this machine's loopback carries are not reached.
//!
//! Not here: which resources a cluster has (the caller derives them from the topology).

mod shared_clock;

use serde::{Deserialize, Serialize};
pub use shared_clock::SharedClock;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The emulated network as data: every rank of a job is given the same one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapeSpec {
    /// What carries bytes; routes name these by index.
    pub resources: Vec<ResourceSpec>,
    /// One per ordered pair of ranks that talk over an emulated path. A pair without a route is not shaped.
    pub routes: Vec<RouteSpec>,
}

/// Something shared that carries bytes one after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceSpec {
    /// For messages, such as `slow-0 ethernet out`.
    pub name: String,
    /// Bytes per second, above zero.
    pub rate_bytes_per_s: f64,
}

/// The way from one rank to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// The sending rank.
    pub from: u32,
    /// The receiving rank.
    pub to: u32,
    /// Indices into [`ShapeSpec::resources`], from sender to receiver, each at most once.
    pub resources: Vec<usize>,
    /// Seconds from the end of transmission to delivery.
    pub latency_s: f64,
    /// Share of bytes sent twice, in [0, 1).
    pub loss: f64,
}

/// A checked [`ShapeSpec`] with the clocks that the ranks of this machine share.
#[derive(Debug, Clone)]
pub struct Shape {
    clocks: Arc<SharedClock>,
    routes: Arc<HashMap<(u32, u32), Route>>,
}

impl Shape {
    /// Checks `spec` and maps the file at `clock_file`, made if absent. All ranks of a job give the same spec and the
    /// same path; the path is fresh for each job.
    pub fn open(spec: &ShapeSpec, clock_file: &Path) -> Result<Self, ShapeError> {
        let routes = spec
            .routes
            .iter()
            .map(|r| Ok(((r.from, r.to), Route::checked(spec, r)?)))
            .collect::<Result<_, _>>()?;
        let clocks = SharedClock::open(clock_file, spec.resources.len())
            .map_err(|source| ShapeError::ClockFile { path: clock_file.to_owned(), source })?;
        Ok(Shape { clocks: Arc::new(clocks), routes: Arc::new(routes) })
    }

    /// The way from `from` to `to`; none where the pair is not shaped.
    pub fn route(&self, from: u32, to: u32) -> Option<&Route> {
        self.routes.get(&(from, to))
    }

    /// Reserves `route` for `bytes` that are eligible at `now_ns`: the rule above, on clocks that other processes
    /// advance at the same time.
    pub fn reserve(&self, route: &Route, now_ns: u64, bytes: usize) -> Reservation {
        pass(&route.hops, now_ns, bytes, |hop, at_ns, busy_ns| {
            self.clocks.reserve(hop.resource, at_ns, busy_ns)
        })
    }
}

/// When a chunk holds its route. Nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// The first byte enters the first resource.
    pub start_ns: u64,
    /// The last byte leaves the last resource; delivery is a latency later.
    pub end_ns: u64,
}

/// A checked route. Made by [`Shape::open`].
#[derive(Debug, Clone)]
pub struct Route {
    hops: Vec<Hop>,
    latency_ns: u64,
    chunk_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Hop {
    resource: usize,
    rate_bytes_per_s: f64,
}

/// A chunk takes about this long at the slowest resource, so that flows which share it take turns.
const CHUNK_S: f64 = 0.004;
const CHUNK_BYTES_MIN: f64 = 1_500.0;
const CHUNK_BYTES_MAX: f64 = 65_536.0;

impl Route {
    /// What passes at once, in bytes: 4 ms at the slowest resource, within 1500 B and 64 KiB.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// From the end of transmission to delivery, in nanoseconds.
    pub fn latency_ns(&self) -> u64 {
        self.latency_ns
    }

    fn checked(spec: &ShapeSpec, route: &RouteSpec) -> Result<Self, ShapeError> {
        let refuse = |what: String| ShapeError::Route { from: route.from, to: route.to, what };
        if !(0.0..1.0).contains(&route.loss) {
            return Err(refuse(format!("loss is {}, expected at least 0 and below 1", route.loss)));
        }
        if !(0.0..=3600.0).contains(&route.latency_s) {
            return Err(refuse(format!("latency is {} s, expected 0 to 3600 s", route.latency_s)));
        }
        let hops =
            route.resources.iter().map(|&resource| Hop::checked(spec, route, resource).map_err(refuse));
        let hops = hops.collect::<Result<Vec<_>, _>>()?;
        let slowest = hops.iter().map(|hop| hop.rate_bytes_per_s).fold(f64::INFINITY, f64::min);
        Ok(Route {
            hops,
            latency_ns: (route.latency_s * 1e9).round() as u64,
            chunk_bytes: (slowest * CHUNK_S).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX) as usize,
        })
    }
}

impl Hop {
    fn checked(spec: &ShapeSpec, route: &RouteSpec, resource: usize) -> Result<Self, String> {
        let found = spec.resources.get(resource);
        let found = found.ok_or_else(|| format!("resource {resource} of {} named", spec.resources.len()))?;
        if route.resources.iter().filter(|&&r| r == resource).count() > 1 {
            return Err(format!("resource {resource} ({}) stands twice on the route", found.name));
        }
        let rate = found.rate_bytes_per_s;
        if !(rate.is_finite() && rate >= 1.0) {
            return Err(format!("rate of {} is {rate} B/s, expected at least 1", found.name));
        }
        Ok(Hop { resource, rate_bytes_per_s: rate * (1.0 - route.loss) })
    }
}

/// The rule on plain numbers, as a simulator runs it: `next_free_ns[i]` and `rates_bytes_per_s[i]` belong to the i-th
/// resource of the route, in order from sender to receiver. Advances `next_free_ns`.
pub fn reserve(
    next_free_ns: &mut [u64],
    now_ns: u64,
    bytes: usize,
    rates_bytes_per_s: &[f64],
) -> Reservation {
    assert_eq!(next_free_ns.len(), rates_bytes_per_s.len(), "one rate for each resource of the route");
    let hops: Vec<Hop> = rates_bytes_per_s
        .iter()
        .enumerate()
        .map(|(resource, &rate_bytes_per_s)| Hop { resource, rate_bytes_per_s })
        .collect();
    pass(&hops, now_ns, bytes, |hop, at_ns, busy_ns| {
        let start_ns = at_ns.max(next_free_ns[hop.resource]);
        next_free_ns[hop.resource] = start_ns + busy_ns;
        start_ns
    })
}

/// Passes the hops in order; `queue(hop, at, busy)` reserves one and says when the chunk starts on it.
fn pass(
    hops: &[Hop],
    now_ns: u64,
    bytes: usize,
    mut queue: impl FnMut(&Hop, u64, u64) -> u64,
) -> Reservation {
    let mut reservation = Reservation { start_ns: now_ns, end_ns: now_ns };
    let mut at_ns = now_ns;
    for (i, hop) in hops.iter().enumerate() {
        let busy_ns = (bytes as f64 / hop.rate_bytes_per_s * 1e9).round() as u64;
        at_ns = queue(hop, at_ns, busy_ns);
        if i == 0 {
            reservation.start_ns = at_ns;
        }
        reservation.end_ns = reservation.end_ns.max(at_ns + busy_ns);
    }
    reservation
}

/// Why an emulated network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// A route of the spec does not hold.
    #[error("emulated route from rank {from} to rank {to}: {what}")]
    Route {
        /// The sending rank.
        from: u32,
        /// The receiving rank.
        to: u32,
        /// Expected and got.
        what: String,
    },
    /// The shared clocks could not be mapped.
    #[error("mapping the shared clocks of the emulated network, {}: {source}; give every rank of the job the same fresh path on a local disk", path.display())]
    ClockFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB_PER_S: f64 = 1e6;
    const MS: u64 = 1_000_000;

    #[test]
    fn a_lone_flow_runs_at_the_slowest_resource() {
        let mut free = [0, 0, 0];
        let rates = [10.0 * MB_PER_S, MB_PER_S, 5.0 * MB_PER_S];
        let mut now_ns = 7;
        for _ in 0..100 {
            now_ns = reserve(&mut free, now_ns, 4_000, &rates).end_ns;
        }
        assert_eq!(now_ns, 7 + 400 * MS);
    }

    #[test]
    fn flows_that_share_a_resource_halve_and_lose_no_time() {
        let mut free = [0];
        let (mut a_ns, mut b_ns) = (0, 0);
        for _ in 0..50 {
            a_ns = reserve(&mut free, a_ns, 4_000, &[MB_PER_S]).end_ns;
            b_ns = reserve(&mut free, b_ns, 4_000, &[MB_PER_S]).end_ns;
        }
        assert_eq!((a_ns, b_ns), (396 * MS, 400 * MS));
    }

    #[test]
    fn a_busy_receiver_does_not_idle_its_senders_card() {
        // Resources: 0 = the sender's way out, 1 = a receiver busy until 100 ms, 2 = an idle receiver.
        let (mut to_busy, mut to_idle) = ([0, 100 * MS], [0, 0]);
        let first = reserve(&mut to_busy, 0, 4_000, &[MB_PER_S, MB_PER_S]);
        to_idle[0] = to_busy[0];
        let second = reserve(&mut to_idle, 0, 4_000, &[MB_PER_S, MB_PER_S]);
        assert_eq!(first.end_ns, 104 * MS);
        assert_eq!(second, Reservation { start_ns: 4 * MS, end_ns: 8 * MS });
    }

    #[test]
    fn a_chunk_reaches_each_resource_after_those_before_it() {
        let mut free = [100 * MS, 0, 103 * MS];
        let passed = reserve(&mut free, 0, 4_000, &[MB_PER_S, 4.0 * MB_PER_S, 8.0 * MB_PER_S]);
        // In turn: from 100 for 4 ms, from 100 for 1 ms (cut-through), from 103 for 0.5 ms.
        assert_eq!(free, [104 * MS, 101 * MS, 103 * MS + MS / 2]);
        assert_eq!(passed, Reservation { start_ns: 100 * MS, end_ns: 104 * MS });
    }

    #[test]
    fn a_late_sender_catches_up() {
        let mut free = [0];
        let first = reserve(&mut free, 0, 4_000, &[MB_PER_S]);
        // Eligible at the end of the first, whenever it wakes.
        assert_eq!(reserve(&mut free, first.end_ns, 4_000, &[MB_PER_S]).end_ns, 8 * MS);
    }

    fn spec(rate_bytes_per_s: f64, loss: f64, resources: Vec<usize>) -> ShapeSpec {
        ShapeSpec {
            resources: vec![ResourceSpec { name: "out".into(), rate_bytes_per_s }],
            routes: vec![RouteSpec { from: 0, to: 1, resources, latency_s: 0.02, loss }],
        }
    }

    #[test]
    fn shared_clocks_follow_the_same_rule_and_loss_costs_rate() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape::open(&spec(MB_PER_S, 0.5, vec![0]), &dir.path().join("clocks")).unwrap();
        let route = shape.route(0, 1).unwrap();
        assert!(shape.route(1, 0).is_none());
        assert_eq!((route.chunk_bytes(), route.latency_ns()), (2_000, 20 * MS));
        assert_eq!(shape.reserve(route, 5, 1_000), Reservation { start_ns: 5, end_ns: 5 + 2 * MS });
        assert_eq!(shape.reserve(route, 5, 1_000).start_ns, 5 + 2 * MS);
    }

    #[test]
    fn chunks_stay_within_their_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let chunk = |rate| {
            let shape = Shape::open(&spec(rate, 0.0, vec![0]), &dir.path().join("clocks")).unwrap();
            shape.route(0, 1).unwrap().chunk_bytes()
        };
        assert_eq!([chunk(1e3), chunk(1.25e6), chunk(1.25e9)], [1_500, 5_000, 65_536]);
    }

    #[test]
    fn a_spec_that_cannot_hold_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |spec| Shape::open(&spec, &dir.path().join("clocks")).unwrap_err().to_string();
        assert!(refusal(spec(0.0, 0.0, vec![0])).contains("rate of out is 0 B/s"));
        assert!(refusal(spec(1e6, 1.0, vec![0])).contains("loss is 1"));
        assert!(refusal(spec(1e6, 0.0, vec![3])).contains("resource 3"));
        assert!(refusal(spec(1e6, 0.0, vec![0, 0])).contains("twice"));
    }
}
