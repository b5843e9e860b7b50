//! What simulations must give where the answer is known by hand, and what must hold of any.

use proptest::prelude::*;

use super::program::{Message, Op};
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

    fn memory_bytes(&self, _: u32, in_flight: u32) -> u64 {
        u64::from(in_flight)
    }
}

/// Every rank has a NIC of its own, a way out and a way in, and reaches every other over the two.
fn nics(ranks: u32, rate_bytes_per_s: f64, latency_s: f64) -> Network {
    let name = |rank, way| Resource { name: format!("{rank}/{way}"), rate_bytes_per_s };
    let resources = (0..ranks).flat_map(|r| [name(r, "out"), name(r, "in")]).collect();
    let route = |from: u32, to: u32| {
        let resources = vec![2 * from as usize, 2 * to as usize + 1];
        ((from, to), Route { resources, latency_s, loss: 0.0 })
    };
    let pairs =
        (0..ranks).flat_map(|from| (0..ranks).filter(move |&to| to != from).map(move |to| (from, to)));
    Network { resources, routes: pairs.map(|(from, to)| route(from, to)).collect() }
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

/// Ranks send at once to the last rank, which waits for all: when has each message arrived?
fn fan_in(senders: u32, bytes: u64, network: &Network) -> Vec<Transfer> {
    let messages: Vec<_> = (0..senders).map(|from| Message { from, to: senders, bytes, step: 0 }).collect();
    let sends = (0..senders as usize).map(|message| vec![Op::Send { message }]);
    let waits = (0..senders as usize).map(|message| Op::Wait { message }).collect();
    let program = Program { ops: sends.chain([waits]).collect(), messages, steps: 1 };
    execute(&program, network).transfers
}

#[test]
fn two_flows_into_one_nic_halve() {
    let network = nics(3, MB_PER_S, 0.125);
    let alone = fan_in(1, MB, &network);
    assert!(close(alone[0].delivered_s, 1.125));
    let two = fan_in(2, MB, &network);
    assert!(close(two[1].delivered_s, 2.125));
    let chunk_s = 1.0 / 64.0;
    assert!(close(two[0].delivered_s, 2.125 - chunk_s), "they take turns to the end: {:?}", two[0]);
}

#[test]
fn a_slow_link_leaves_its_fast_nic_to_others() {
    let resource = |name: &str, rate_bytes_per_s| Resource { name: name.into(), rate_bytes_per_s };
    let route = |resources: &[usize]| Route { resources: resources.to_vec(), latency_s: 0.0, loss: 0.0 };
    let network = Network {
        resources: vec![resource("nic", MB_PER_S), resource("link", MB_PER_S / 10.0)],
        routes: [((0, 2), route(&[0, 1])), ((1, 2), route(&[0]))].into(),
    };
    let transfers = fan_in(2, MB, &network);
    assert!(close(transfers[0].delivered_s, 10.0), "{:?}", transfers[0]);
    assert!(transfers[1].delivered_s < 1.0 / 0.9 + 0.1, "{:?}", transfers[1]);
}

/// Rank 0 fills rank 2's way in; rank 1 sends there too and to rank 3, which is idle.
#[test]
fn a_busy_receiver_does_not_idle_its_senders_nic() {
    let message = |from, to, bytes| Message { from, to, bytes, step: 0 };
    let messages = vec![message(0, 2, 2 * MB), message(1, 2, MB), message(1, 3, MB)];
    let send = |message| Op::Send { message };
    let wait = |message| Op::Wait { message };
    let ops = vec![vec![send(0)], vec![send(1), send(2)], vec![wait(0), wait(1)], vec![wait(2)]];
    let transfers = execute(&Program { ops, messages, steps: 1 }, &nics(4, MB_PER_S, 0.0)).transfers;
    assert!(close(transfers[0].end_s.max(transfers[1].end_s), 3.0), "{transfers:?}");
    assert!(transfers[2].end_s < 2.1, "half of its NIC is enough: {:?}", transfers[2]);
}

#[test]
fn loss_costs_rate() {
    let mut network = nics(2, MB_PER_S, 0.0);
    network.routes.get_mut(&(0, 1)).unwrap().loss = 0.5;
    assert!(close(fan_in(1, MB, &network)[0].delivered_s, 2.0));
}

#[test]
fn messages_of_one_pair_follow_each_other() {
    let message = Message { from: 0, to: 1, bytes: MB, step: 0 };
    let sends = vec![Op::Send { message: 1 }, Op::Send { message: 0 }];
    let waits = vec![Op::Wait { message: 0 }, Op::Wait { message: 1 }];
    let program = Program { ops: vec![sends, waits], messages: vec![message; 2], steps: 1 };
    let transfers = execute(&program, &nics(2, MB_PER_S, 0.0)).transfers;
    assert!(close(transfers[1].start_s, 0.0) && close(transfers[1].end_s, 1.0));
    assert!(close(transfers[0].start_s, 1.0) && close(transfers[0].end_s, 2.0));
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
    let mut network = nics(2, MB_PER_S, 0.0);
    network.routes.remove(&(1, 0));
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
    let schedule = schedule::of(&plan, 10).unwrap();
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

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
    let predicted = predicted(&plan).unwrap();
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
    assert_eq!(count("exchange"), 1, "who comes last finds the others' frames there");
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
