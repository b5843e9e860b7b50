//! What simulations must give where the answer is known by hand, and what must hold of any.

use proptest::prelude::*;

use super::program::{Begin, Flow, Message, Op, Rank};
use super::*;
use crate::plan::ScheduleKind;
use crate::schedule::tests::{exchange, plan};

const MB: u64 = 1_000_000;
const MB_PER_S: f64 = 1e6;
const SPARSE: ExchangeKind = ExchangeKind::Sparse { top_k: 64 };
/// Units of the fixture's model: embedding, 8 layers, head.
const UNITS: u64 = 10;

/// The same durations on every rank, the same bytes on every boundary and of every unit.
#[derive(Clone, Copy, Default)]
struct Flat {
    forward_s: f64,
    backward_input_s: f64,
    backward_weight_s: f64,
    boundary_bytes: u64,
    unit_bytes: u64,
}

impl Costs for Flat {
    fn action_s(&self, _: u32, action: Action) -> f64 {
        match action {
            Action::Forward { .. } => self.forward_s,
            Action::BackwardInput { .. } => self.backward_input_s,
            Action::BackwardWeight { .. } => self.backward_weight_s,
            _ => 0.0,
        }
    }

    fn boundary_bytes(&self, _: usize, _: usize, _: Payload) -> u64 {
        self.boundary_bytes
    }

    fn exchange_bytes(&self, _: Unit, _: ExchangeKind) -> u64 {
        self.unit_bytes
    }

    fn parameter_bytes(&self, _: Unit) -> u64 {
        self.unit_bytes / 2
    }

    fn memory_bytes(&self, _: u32, held: &[u32]) -> u64 {
        held.iter().map(|&held| u64::from(held)).sum()
    }
}

/// Every rank has a NIC of its own, a way out and a way in, and reaches every other over the two.
fn nics(ranks: u32, rate_bytes_per_s: f64, latency_s: f64) -> Network<'static> {
    let name = |rank, way| Resource { name: format!("{rank}/{way}"), rate_bytes_per_s };
    let resources = (0..ranks).flat_map(|r| [name(r, "out"), name(r, "in")]).collect();
    let way = |from: u32, to: u32| ((from, to), (vec![2 * from, 2 * to + 1], latency_s, 0.0));
    let pairs =
        (0..ranks).flat_map(|from| (0..ranks).filter(move |&to| to != from).map(move |to| (from, to)));
    Network::given(resources, pairs.map(|(from, to)| way(from, to)))
}

fn simulate_flat(plan: &Plan, costs: Flat, latency_s: f64) -> Simulation {
    simulate_on(plan, &nics(plan.world_size(), MB_PER_S, latency_s), &costs).unwrap()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * b.abs().max(1.0)
}

const THIRDS: Flat =
    Flat { forward_s: 1.0, backward_input_s: 1.0, backward_weight_s: 1.0, boundary_bytes: 0, unit_bytes: 0 };

/// (m - 1 + p) (f + b) where the whole backward holds the gradient up; a weight gradient that does not shortens
/// the fill by its share.
#[test]
fn equal_stages_without_messages_take_the_closed_form() {
    for (p, m) in [(1, 1), (2, 3), (4, 4), (4, 12), (8, 5)] {
        for kind in [ScheduleKind::Gpipe, ScheduleKind::OneForwardOneBackward] {
            let mut plan = plan(&[(m, &vec![1; p])]);
            plan.schedule.kind = kind;
            let (p, m) = (p as f64, f64::from(m));
            let joined = Flat { forward_s: 1.0, backward_input_s: 2.0, ..Flat::default() };
            assert!(close(simulate_flat(&plan, joined, 0.0).iteration_s, (m - 1.0 + p) * 3.0));
            assert!(close(simulate_flat(&plan, THIRDS, 0.0).iteration_s, m * 3.0 + (p - 1.0) * 2.0));
        }
    }
}

#[test]
fn one_microbatch_pays_every_crossing() {
    let costs = Flat { boundary_bytes: MB / 2, ..THIRDS };
    let simulation = simulate_flat(&plan(&[(1, &[1, 1, 1])]), costs, 0.25);
    let crossing_s = 0.5 + 0.25;
    assert!(close(simulation.iteration_s, 3.0 + 3.0 + 1.0 + 4.0 * crossing_s), "{}", simulation.iteration_s);
}

/// GPipe's microbatches follow each other over the boundary: only the first one's crossing shows, down and up.
#[test]
fn crossings_shorter_than_compute_hide_behind_it() {
    let mut plan = plan(&[(6, &[1, 1, 1])]);
    plan.schedule.kind = ScheduleKind::Gpipe;
    let costs = Flat { forward_s: 1.0, backward_input_s: 2.0, boundary_bytes: MB / 2, ..Flat::default() };
    let (ideal_s, crossing_s) = ((6.0 - 1.0 + 3.0) * 3.0, 0.5 + 0.25);
    assert!(close(simulate_flat(&plan, costs, 0.25).iteration_s, ideal_s + 4.0 * crossing_s));
}

#[test]
fn a_crossing_longer_than_compute_sets_the_pace() {
    let costs = Flat { boundary_bytes: 10 * MB, ..THIRDS };
    let simulation = simulate_flat(&plan(&[(20, &[1, 1])]), costs, 0.0);
    let link = simulation.links.iter().find(|l| l.name == "0/out").unwrap();
    assert!(close(link.traffic.step_busy_s, 200.0));
    assert!(simulation.iteration_s > 200.0, "{}", simulation.iteration_s);
}

/// What ranks send, each a list of (to, bytes), all at time 0; receivers wait for all. In the order of the messages.
fn sends(lists: &[&[(u32, u64)]], network: &Network<'_>) -> Vec<execute::Sent> {
    let ranks = lists.len();
    let (mut flows, mut messages, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    let mut ops = vec![Vec::new(); ranks];
    let op = |begin, send| Op { begin, seconds: 0.0, send };
    for (from, list) in (0..).zip(lists) {
        for &(to, bytes) in *list {
            let flow = pairs.iter().position(|&pair| pair == (from, to)).unwrap_or_else(|| {
                pairs.push((from, to));
                flows.push(Flow { way: network.way(from, to).unwrap() });
                pairs.len() - 1
            });
            ops[from as usize].push(op(Begin::AtOnce, Some(messages.len() as u32)));
            messages.push(Message { flow: flow as u32, to, bytes, sender: from, receiver: to });
        }
    }
    for (index, message) in (0..).zip(&messages) {
        ops[message.to as usize].push(op(Begin::Message(index), None));
    }
    let ranks = (0..).zip(ops).map(|(rank, ops)| Rank { rank, ops: vec![ops], meets: Vec::new() });
    let ranks = ranks.filter(|r| !r.ops[0].is_empty()).collect();
    let resources = network.resources().len();
    let program = Program { ranks, flows, messages, meetings: Vec::new(), resources };
    let mut sent = execute(&program, network, &Steps { kinds: vec![0], written: vec![0] }).sent;
    sent.sort_by_key(|s| s.message);
    sent
}

#[test]
fn two_flows_into_one_nic_halve() {
    let network = nics(3, MB_PER_S, 0.125);
    let alone = sends(&[&[(1, MB)], &[]], &network);
    assert!(close(alone[0].delivered_s, 1.125));
    let two = sends(&[&[(2, MB)], &[(2, MB)], &[]], &network);
    assert!(close(two[1].delivered_s, 2.125));
    let chunk_s = 1.0 / 8.0;
    assert!(close(two[0].delivered_s, 2.125 - chunk_s), "they take turns to the end: {:?}", two[0]);
}

#[test]
fn a_slow_link_leaves_its_fast_nic_to_others() {
    let resource = |name: &str, rate_bytes_per_s| Resource { name: name.into(), rate_bytes_per_s };
    let resources = vec![resource("nic", MB_PER_S), resource("link", MB_PER_S / 10.0)];
    let ways = [((0, 2), (vec![0, 1], 0.0, 0.0)), ((1, 2), (vec![0], 0.0, 0.0))];
    let sent = sends(&[&[(2, MB)], &[(2, MB)], &[]], &Network::given(resources, ways));
    assert!(close(sent[0].delivered_s, 10.0), "{:?}", sent[0]);
    assert!(sent[1].delivered_s < 1.0 / 0.9 + 0.1, "{:?}", sent[1]);
}

/// Rank 0 fills rank 2's way in; rank 1 sends there too and to rank 3, which is idle.
#[test]
fn a_busy_receiver_does_not_idle_its_senders_nic() {
    let sent = sends(&[&[(2, 2 * MB)], &[(2, MB), (3, MB)], &[], &[]], &nics(4, MB_PER_S, 0.0));
    assert!(close(sent[0].end_s.max(sent[1].end_s), 3.0), "{sent:?}");
    assert!(sent[2].end_s < 2.1, "half of its NIC is enough: {:?}", sent[2]);
}

#[test]
fn loss_costs_rate() {
    let nic = Resource { name: "nic".into(), rate_bytes_per_s: MB_PER_S };
    let network = Network::given(vec![nic], [((0, 1), (vec![0], 0.0, 0.5))]);
    assert!(close(sends(&[&[(1, MB)], &[]], &network)[0].delivered_s, 2.0));
}

#[test]
fn messages_of_one_pair_follow_each_other() {
    let sent = sends(&[&[(1, MB), (1, MB)], &[]], &nics(2, MB_PER_S, 0.0));
    assert!(close(sent[0].start_s, 0.0) && close(sent[0].end_s, 1.0));
    assert!(close(sent[1].start_s, 1.0) && close(sent[1].end_s, 2.0));
}

/// Rank 1 comes when half of rank 0's message has passed: they take turns, and rank 0 has the NIC alone again at last.
#[test]
fn who_comes_later_gets_its_turns() {
    let costs = Flat { forward_s: 0.5, boundary_bytes: MB, ..Flat::default() };
    let mut two = plan(&[(1, &[1, 1]), (1, &[1, 1])]);
    two.exchange = vec![exchange(&[0, 1], SPARSE, 9)];
    let nic = Resource { name: "nic".into(), rate_bytes_per_s: MB_PER_S };
    let shared = |from, to| ((from, to), (vec![0], 0.0, 0.0));
    let free = |from, to| ((from, to), (vec![], 0.0, 0.0));
    let ways =
        [shared(0, 1), free(1, 0), shared(2, 3), free(3, 2), free(0, 2), free(2, 0), free(1, 3), free(3, 1)];
    let network = Network::given(vec![nic], ways);
    let setting = Setting::new(&two, &network, &costs).unwrap();
    let mut program = setting.program(&setting.schedules().unwrap());
    program.ranks[2].ops[0][0].seconds = 1.0;
    let mut sent = execute(&program, &network, &Steps { kinds: vec![0], written: vec![0] }).sent;
    sent.retain(|s| s.end_s > s.start_s);
    assert!(close(sent[0].start_s, 0.5) && close(sent[1].start_s, 1.0 + 1.0 / 8.0), "{sent:?}");
    assert!(close(sent[0].end_s, 2.0 - 1.0 / 8.0) && close(sent[1].end_s, 2.5), "{sent:?}");
}

/// (R - 1) frames through every NIC, once every `every` steps.
#[test]
fn a_sparse_exchange_takes_its_frames_and_is_amortised() {
    let mut plan = plan(&[(2, &[1][..]); 3]);
    plan.exchange = vec![exchange(&[0, 1, 2], SPARSE, 5)];
    let simulation = simulate_flat(&plan, Flat { unit_bytes: MB, ..THIRDS }, 0.25);
    let frames_s = 2.0 * UNITS as f64;
    assert!((simulation.exchange_s / (frames_s + 0.25) - 1.0).abs() < 0.02, "{}", simulation.exchange_s);
    assert!(close(simulation.step_s, 6.0));
    assert!(close(simulation.iteration_s, simulation.step_s + simulation.exchange_s / 5.0));
}

/// Direct reduce-scatter and all-gather: 2 (R - 1) / R of the bytes through every NIC, two latencies.
#[test]
fn a_dense_exchange_takes_its_closed_form_at_every_step() {
    for (stages, replicas) in [(1, 2), (1, 4), (2, 3)] {
        let groups = vec![1; stages];
        let mut plan = plan(&vec![(1, &groups[..]); replicas]);
        plan.exchange = vec![exchange(&(0..replicas as u32).collect::<Vec<_>>(), ExchangeKind::Dense, 1)];
        let simulation = simulate_flat(&plan, Flat { unit_bytes: 12 * MB, ..Flat::default() }, 0.25);
        let per_rank = 12.0 * UNITS as f64 / stages as f64;
        let closed_s = 2.0 * (replicas as f64 - 1.0) / replicas as f64 * per_rank + 2.0 * 0.25;
        assert!((simulation.step_s / closed_s - 1.0).abs() < 0.03, "{} {closed_s}", simulation.step_s);
        assert_eq!((simulation.exchange_s, simulation.iteration_s), (0.0, simulation.step_s));
    }
}

#[test]
fn between_exchanges_the_slowest_replica_sets_the_pace() {
    let mut plan = plan(&[(2, &[1]), (5, &[1])]);
    plan.exchange = vec![exchange(&[0, 1], SPARSE, 10)];
    let simulation = simulate_flat(&plan, THIRDS, 0.0);
    assert!(close(simulation.step_s, 15.0));
    assert!(close(simulation.ranks[0].busy_s, 6.0) && close(simulation.ranks[0].idle_s, 9.0));
    assert!(close(simulation.ranks[1].busy_s, 15.0) && close(simulation.ranks[1].idle_s, 0.0));
}

#[test]
fn bytes_of_pairs_and_links_are_those_of_the_messages() {
    let mut plan = plan(&[(3, &[1, 2]), (4, &[1])]);
    plan.exchange = vec![exchange(&[0, 1], SPARSE, 4)];
    let costs = Flat { boundary_bytes: 1000, unit_bytes: 64, ..THIRDS };
    let simulation = simulate_flat(&plan, costs, 0.0);
    let sum = |of: fn(&Traffic) -> u64| simulation.pairs.iter().map(|p| of(&p.traffic)).sum::<u64>();
    assert_eq!(sum(|t| t.step_bytes), 3 * 2 * 1000);
    assert_eq!(sum(|t| t.exchange_bytes), 2 * UNITS * 64);
    let links = simulation.links.iter().map(|l| l.traffic.step_bytes + l.traffic.exchange_bytes).sum::<u64>();
    assert_eq!(links, 2 * (sum(|t| t.step_bytes) + sum(|t| t.exchange_bytes)), "each byte goes out and in");
    let sent: u64 = simulation.transfers.iter().map(|t| t.bytes).sum();
    assert_eq!(sent, sum(|t| t.step_bytes));
}

#[test]
fn ranks_that_must_talk_and_cannot_are_named() {
    let plan = plan(&[(1, &[1, 1])]);
    let nic = Resource { name: "nic".into(), rate_bytes_per_s: MB_PER_S };
    let network = Network::given(vec![nic], [((0, 1), (vec![0], 0.0, 0.0))]);
    let error = simulate_on(&plan, &network, &THIRDS).unwrap_err();
    assert_eq!(error, SimulateError::Unreachable { from: 1, to: 0 });
}

#[test]
fn rounds_with_several_periods_are_weighted_by_how_often_they_come() {
    let mut plan = plan(&[(1, &[1][..]); 4]);
    plan.exchange = vec![exchange(&[0, 1], SPARSE, 2), exchange(&[2, 3], SPARSE, 3)];
    let rounds = Rounds::of(&plan);
    assert_eq!(rounds.usual, 1);
    let sixth = 1.0 / 6.0;
    assert_eq!(rounds.others, [(2, 2.0 * sixth), (3, sixth), (6, sixth)]);
}

#[test]
fn pictures_begin_at_zero_and_hold_one_step() {
    let mut plan = plan(&[(4, &[1, 1]), (4, &[1, 1])]);
    plan.exchange = vec![exchange(&[0, 1], SPARSE, 10)];
    let simulation = simulate_flat(&plan, Flat { boundary_bytes: 1000, unit_bytes: MB, ..THIRDS }, 0.0);
    let schedule = crate::schedule::of(&plan, 10).unwrap();
    assert_eq!(simulation.exchange_timeline.len(), schedule.0.iter().map(Vec::len).sum::<usize>());
    let first_s = simulation.exchange_timeline.iter().map(|e| e.start_s).fold(f64::INFINITY, f64::min);
    assert_eq!(first_s, 0.0);
    for rank in 0..4 {
        let done: Vec<Action> =
            simulation.exchange_timeline.iter().filter(|e| e.rank == rank).map(|e| e.action).collect();
        assert_eq!(done, schedule.0[rank as usize]);
    }
    assert_eq!(simulation.transfers.len(), 2 * 4 * 2);
    assert_eq!(simulation.exchange_transfers.len(), 2 * 4 * 2 + 4, "four pairs of owners");
}

/// The same setting with every replica executed.
fn simulate_each(plan: &Plan, network: &Network<'_>, costs: &dyn Costs) -> Simulation {
    let mut setting = Setting::new(plan, network, costs).unwrap();
    setting.stands_for = (0..plan.replicas.len()).collect();
    setting.simulation(costs).unwrap()
}

/// Equal to the bit, the order of the pictures' entries apart.
fn assert_same(one: Simulation, other: Simulation) {
    let sorted = |mut s: Simulation| {
        for events in [&mut s.timeline, &mut s.exchange_timeline] {
            events.sort_by(|a, b| {
                (a.rank, a.start_s, a.end_s).partial_cmp(&(b.rank, b.start_s, b.end_s)).unwrap()
            });
        }
        for transfers in [&mut s.transfers, &mut s.exchange_transfers] {
            let key = |t: &Transfer| (t.from, t.to, t.start_s, t.end_s);
            transfers.sort_by(|a, b| key(a).partial_cmp(&key(b)).unwrap());
        }
        s
    };
    assert_eq!(sorted(one), sorted(other));
}

#[test]
fn twins_are_found_and_stand_for_each_other() {
    let shape = (3, &[1, 2][..]);
    let mut plan = plan(&[shape, (4, &[1]), shape, shape, (4, &[1])]);
    plan.exchange = vec![exchange(&[0, 1, 2, 3, 4], SPARSE, 4)];
    let (network, costs) = (nics(11, MB_PER_S, 0.01), Flat { boundary_bytes: MB, unit_bytes: 999, ..THIRDS });
    let setting = Setting::new(&plan, &network, &costs).unwrap();
    assert_eq!(setting.stands_for, [0, 1, 0, 0, 1]);
    assert_same(simulate_on(&plan, &network, &costs).unwrap(), simulate_each(&plan, &network, &costs));
}

#[test]
fn replicas_in_unlike_exchanges_are_no_twins() {
    let mut plan = plan(&[(2, &[1][..]); 6]);
    let island = |replicas| exchange(replicas, ExchangeKind::Dense, 1);
    plan.exchange = vec![island(&[0, 1]), island(&[2, 3, 4]), exchange(&[0, 1, 2, 3, 4, 5], SPARSE, 8)];
    let (network, costs) = (nics(6, MB_PER_S, 0.01), Flat { unit_bytes: 9999, ..THIRDS });
    let setting = Setting::new(&plan, &network, &costs).unwrap();
    assert_eq!(setting.stands_for, [0, 0, 2, 2, 2, 5]);
    assert_same(simulate_on(&plan, &network, &costs).unwrap(), simulate_each(&plan, &network, &costs));
}

/// Two islands of two and a replica alone: frames between the three speakers, then down each island.
#[test]
fn islands_speak_with_one_voice() {
    let mut plan = plan(&[(2, &[1][..]); 5]);
    let island = |replicas| exchange(replicas, ExchangeKind::Dense, 1);
    plan.exchange = vec![island(&[0, 1]), island(&[3, 4]), exchange(&[0, 1, 2, 3, 4], SPARSE, 8)];
    let simulation = simulate_flat(&plan, Flat { unit_bytes: MB, ..THIRDS }, 0.0);
    let bytes = |from, to| {
        let pair = simulation.pairs.iter().find(|p| (p.from, p.to) == (from, to));
        pair.map_or(0, |p| p.traffic.exchange_bytes)
    };
    let frame = UNITS * MB;
    for (from, to) in [(0, 2), (0, 3), (2, 0), (2, 3), (3, 0), (3, 2)] {
        assert_eq!(bytes(from, to), frame, "{from} to {to}");
    }
    assert_eq!((bytes(0, 1), bytes(3, 4)), (2 * frame, 2 * frame));
    assert_eq!((bytes(1, 0), bytes(1, 2), bytes(4, 1)), (0, 0, 0));
    // A speaker sends four frames' worth: two to the others, two down its island.
    assert!(close(simulation.exchange_s, 4.0 * UNITS as f64), "{}", simulation.exchange_s);
}

/// Four owners on two hosts of two: half of S passes each port twice, half of a half each NIC twice.
#[test]
fn owners_of_one_host_reduce_inside_and_share_the_ring_between() {
    let mut plan = on_hosts(&[("a-0", 0), ("a-0", 1), ("a-1", 0), ("a-1", 1)]);
    plan.exchange = vec![exchange(&[0, 1, 2, 3], ExchangeKind::Dense, 1)];
    let simulation = simulate(&plan).unwrap();
    let whole = 2 * 4 * (8 * 789_760 + 98_304 + 66_048);
    let bytes = |name: &str| simulation.links.iter().find(|l| l.name == name).unwrap().traffic.step_bytes;
    assert_eq!(bytes("a-0/gpu0/out"), whole / 2);
    assert_eq!(bytes("a-0/nic0/out"), whole / 2, "both owners' parts");
    assert_eq!(bytes("a-0/nic0/in"), whole / 2);
    let closed_s = whole as f64 / 2.0 / 1e9 + 2.0 * 1e-5 + 2.0 * 1e-6;
    let exchange_s = simulation.step_s - simulation.ranks[0].busy_s;
    assert!(close(exchange_s, closed_s), "{exchange_s} {closed_s}");
}

/// 16-bit parameters come back in half the bytes of the f32 gradients.
#[test]
fn a_sharded_optimiser_gathers_parameters_instead_of_gradients() {
    let mut plan = plan(&[(2, &[1][..]); 2]);
    plan.exchange = vec![exchange(&[0, 1], ExchangeKind::Dense, 1)];
    let costs = Flat { unit_bytes: 4 * MB, ..Flat::default() };
    let plain_s = simulate_flat(&plan, costs, 0.0).step_s;
    plan.exchange[0].zero1 = true;
    let sharded_s = simulate_flat(&plan, costs, 0.0).step_s;
    assert!(close(plain_s, 4.0 * UNITS as f64) && close(sharded_s, 0.75 * plain_s), "{sharded_s}");
}

/// A stream hides behind the inner steps until its share of a step is longer than one.
#[test]
fn a_stream_costs_what_its_period_cannot_hide() {
    let mut plan = plan(&[(2, &[1][..]); 2]);
    plan.exchange = vec![exchange(&[0, 1], ExchangeKind::Streaming, 10)];
    let simulated = |unit_bytes| simulate_flat(&plan, Flat { unit_bytes, ..THIRDS }, 0.25);
    let hidden = simulated(6 * MB);
    assert!(close(hidden.iteration_s, 6.0), "10 units of 6 s in 10 steps of 6 s: {}", hidden.iteration_s);
    assert!(close(simulated(9 * MB).iteration_s, 9.0));
}

/// The bubble of v chunks is a v-th: (m v + p - 1) passes of (f + b) / v.
#[test]
fn interleaving_divides_the_bubble() {
    for (p, v, m) in [(2, 2, 4), (4, 2, 8), (4, 4, 8), (3, 2, 9)] {
        let plan = crate::schedule::tests::interleaved(p, v, m);
        let costs = Flat { forward_s: 1.0, backward_input_s: 2.0, ..Flat::default() };
        let simulation = simulate_flat(&plan, costs, 0.0);
        let ideal = f64::from(m) * v as f64 * 3.0;
        let bubble = simulation.iteration_s - ideal;
        assert!(close(bubble, (p as f64 - 1.0) * 3.0), "{p} {v} {m}: {bubble}");
        assert_eq!(simulation.peak_memory_bytes[0], (m as u64 * v as u64).min((p * v + p - 1) as u64));
    }
}

#[test]
fn a_rank_s_time_is_work_bubble_boundary_and_exchange() {
    let mut plan = plan(&[(4, &[1, 1]), (4, &[1, 1])]);
    plan.exchange = vec![exchange(&[0, 1], ExchangeKind::Dense, 1)];
    let simulation = simulate_flat(&plan, Flat { boundary_bytes: MB / 2, unit_bytes: MB, ..THIRDS }, 0.0);
    for load in &simulation.ranks {
        let sum = load.busy_s + load.bubble_s + load.boundary_s + load.exchange_s;
        assert!(close(sum, simulation.iteration_s), "{load:?}");
        assert!(close(load.busy_s, 12.0) && close(load.exchange_s, UNITS as f64 / 2.0), "{load:?}");
        assert!(
            close(load.boundary_s, 1.0) && close(load.bubble_s, 2.0),
            "one crossing down, one up: {load:?}"
        );
    }
}

/// Replicas of one GPU of the cluster `a`, two hosts of two.
fn on_hosts(places: &[(&str, u32)]) -> Plan {
    use crate::search::fixture::{alone, fabric, gpt};
    let mut plan = plan(&vec![(2, &[1][..]); places.len()]);
    plan.cluster = alone(fabric("a", 2, 2));
    plan.model = gpt(8, 256);
    for (replica, (host, gpu)) in plan.replicas.iter_mut().zip(places) {
        let placement = &mut replica.stages[0].ranks[0];
        (placement.host, placement.gpu) = ((*host).to_owned(), *gpu);
    }
    plan
}

#[test]
fn a_rank_that_does_not_fit_is_named_with_what_it_needs() {
    let mut plan = on_hosts(&[("a-1", 1)]);
    assert_eq!(simulate(&plan).unwrap().over_memory, []);
    plan.cluster.clusters[0].gpu.memory_bytes = 1_000_000;
    let simulation = simulate(&plan).unwrap();
    let [over] = &simulation.over_memory[..] else { panic!("{:?}", simulation.over_memory) };
    assert_eq!((over.rank, &*over.host, over.gpu), (0, "a-1", 1));
    assert_eq!(over.needed_bytes, simulation.peak_memory_bytes[0]);
    assert_eq!(quick(&plan).unwrap().over_memory, simulation.over_memory);
    assert!(render(&plan, &simulation).contains("rank 0 on GPU 1 of `a-1` needs"));
}

#[test]
fn the_quick_figure_is_the_figure() {
    let plan = emulated();
    assert_eq!(quick(&plan).unwrap().predicted, simulate(&plan).unwrap().predicted(&plan));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_twins_stand_for_is_what_all_would_give(
        shapes in prop::collection::vec((1u32..4, prop::collection::vec(1u32..3, 1..4)), 1..3),
        order in prop::collection::vec(0usize..2, 2..7),
        kind in prop::sample::select(vec![ExchangeKind::Dense, ExchangeKind::Streaming, SPARSE]),
        island in 0usize..4,
        boundary_bytes in 0u64..2 * MB,
        unit_bytes in 0u64..MB,
        shared in 0u32..4,
    ) {
        let shapes: Vec<_> = order.iter().map(|i| &shapes[i % shapes.len()]).collect();
        let replicas: Vec<_> = shapes.iter().map(|(m, groups)| (*m, &groups[..])).collect();
        let mut plan = plan(&replicas);
        let all: Vec<u32> = (0..replicas.len() as u32).collect();
        plan.exchange = vec![exchange(&all, kind, if kind == ExchangeKind::Dense { 1 } else { 3 })];
        if kind != ExchangeKind::Dense && island > 1 {
            plan.exchange.push(exchange(&all[..island.min(all.len())], ExchangeKind::Dense, 1));
        }
        // Some ranks share a NIC, so that replicas are coupled.
        let ranks = plan.world_size();
        let nic = |rank: u32| if shared > 0 && rank % 4 < shared { rank / 4 * 4 } else { rank };
        let resources = (0..2 * ranks).map(|i| Resource { name: i.to_string(), rate_bytes_per_s: MB_PER_S });
        let pairs = (0..ranks).flat_map(|a| (0..ranks).filter(move |b| *b != a).map(move |b| (a, b)));
        let ways = pairs.map(|(a, b)| ((a, b), (vec![2 * nic(a), 2 * nic(b) + 1], 0.01, 0.0)));
        let network = Network::given(resources.collect(), ways);
        let costs = Flat { boundary_bytes, unit_bytes, ..THIRDS };
        assert_same(simulate_on(&plan, &network, &costs).unwrap(), simulate_each(&plan, &network, &costs));
    }

    #[test]
    fn any_plan_runs_the_same_twice_and_never_faster_than_its_parts(
        shapes in prop::collection::vec((1u32..6, prop::collection::vec(1u32..3, 1..5)), 1..4),
        kind in prop::sample::select(vec![ExchangeKind::Dense, ExchangeKind::Streaming, SPARSE]),
        every in 1u32..4,
        boundary_bytes in 0u64..3 * MB,
        unit_bytes in 0u64..MB,
    ) {
        let replicas: Vec<_> = shapes.iter().map(|(m, groups)| (*m, &groups[..])).collect();
        let mut plan = plan(&replicas);
        plan.exchange = vec![exchange(&(0..shapes.len() as u32).collect::<Vec<_>>(), kind, every)];
        let costs = Flat { boundary_bytes, unit_bytes, ..THIRDS };
        let simulation = simulate_flat(&plan, costs, 0.01);
        prop_assert_eq!(&simulation, &simulate_flat(&plan, costs, 0.01));
        for rank in &simulation.ranks {
            prop_assert!(rank.idle_s >= -1e-9, "{:?}", rank);
        }
        for link in &simulation.links {
            prop_assert!(simulation.step_s >= link.traffic.step_busy_s - 1e-9, "{:?} {}", link, simulation.step_s);
        }
        prop_assert!(simulation.iteration_s >= simulation.step_s - 1e-9);
    }
}

/// Two unlike hosts over a thin link, a pipeline over both beside a replica of one GPU.
fn emulated() -> Plan {
    use crate::inventory::Cluster;
    use crate::search::fixture::{fabric, gpt, link};
    let (mut fast, mut slow) = (fabric("fast", 1, 2), fabric("slow", 1, 1));
    fast.gpu.fp32_flops_per_s = 40e9;
    slow.gpu.fp32_flops_per_s = 20e9;
    slow.nic.latency_s = 0.0;
    let mut plan = plan(&[(5, &[1, 1]), (3, &[1])]);
    plan.cluster = Cluster { clusters: vec![fast, slow], links: vec![link("fast", "slow", 12.5e6, 1e-3)] };
    plan.model = gpt(8, 256);
    let places = [("fast-0", 0), ("slow-0", 0), ("fast-0", 1)];
    let ranks = plan.replicas.iter_mut().flat_map(|r| &mut r.stages).flat_map(|s| &mut s.ranks);
    for (placement, (host, gpu)) in ranks.zip(places) {
        (placement.host, placement.gpu) = (host.to_owned(), gpu);
    }
    plan.exchange = vec![exchange(&[0, 1], SPARSE, 30)];
    plan
}

#[test]
fn a_plan_is_simulated_on_its_own_inventory() {
    let plan = emulated();
    let simulation = simulate(&plan).unwrap();
    let predicted = super::predicted(&plan).unwrap();
    assert_eq!(predicted, simulation.predicted(&plan));
    assert!(close(predicted.tokens_per_s, 8.0 * 128.0 / simulation.iteration_s));
    // The slow stage has 4 layers and the head: its work is the bottleneck, its memory the formula's.
    let slow = &simulation.ranks[1];
    let flops = 5.0 * (4.0 * 3.0 * 218_103_808.0 + 3.0 * 2.0 * 128.0 * 256.0 * 256.0);
    assert!(close(slow.busy_s, flops / 20e9), "{}", slow.busy_s);
    assert!(simulation.step_s >= slow.busy_s);
    assert!(predicted.peak_memory_bytes[0] > 24 * 4 * 789_760);
    // 128 rows of 256 in f32, 5 microbatches, over the link.
    let link = simulation.links.iter().find(|l| l.name == "fast-0/fast~slow/out").unwrap();
    assert_eq!(link.traffic.step_bytes, 5 * 131_072);
}

#[test]
fn a_gpu_that_is_not_there_is_named() {
    let mut plan = emulated();
    plan.replicas[0].stages[1].ranks[0].gpu = 7;
    let error = simulate(&plan).unwrap_err();
    assert_eq!(error, SimulateError::NoSuchGpu { rank: 1, host: "slow-0".into(), gpu: 7 });
}

#[test]
fn a_trace_has_every_action_that_takes_time_and_every_message() {
    let plan = emulated();
    let simulation = simulate(&plan).unwrap();
    let mut file = Vec::new();
    write_trace(&simulation, &plan, &mut file).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let count = |category: &str| {
        trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["cat"] == category).count()
    };
    assert_eq!(count("forward"), 2 * (5 + 5 + 3), "a usual step and one with the exchange");
    assert_eq!(count("exchange"), 3, "who comes last waits for the frames as well");
    assert_eq!(count("transfer"), 2 * 10 + 4);
}

#[test]
fn the_text_shows_the_figure_the_picture_the_ranks_and_the_links() {
    let plan = emulated();
    let text = render(&plan, &simulate(&plan).unwrap());
    for part in ["iteration", "every 30 steps", "rank 2  ", "slow-0/gpu0", "fast-0/fast~slow/out", "4..8"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert!(text.lines().all(|l| l.chars().count() <= 120), "{text}");
}
