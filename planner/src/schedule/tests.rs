//! Schedules as pictures, every small pipeline through the checker, and each kind of damage named.

use super::*;
use crate::inventory::{Cluster, NicClass};
use crate::model::{BoundaryChoice, ExchangeChoice, Model, ModelKind, Optimizer, Precision, Recompute};
use crate::plan::{
    Boundary, Codec, Exchange, ExchangeKind, Placement, Plan, Replica, ScheduleKind, ScheduleSpec, Stage,
    Transport, VERSION,
};

const LAYERS: u32 = 8;

/// Replicas given as (microbatches, size of each stage's tensor-parallel group); ranks are numbered in that order,
/// layers spread as evenly as can be, rank `r` is GPU 0 of host `h<r>`. No exchange.
pub(crate) fn plan(replicas: &[(u32, &[u32])]) -> Plan {
    let mut ranks = 0..;
    let mut placement = || {
        let rank = ranks.next().expect("ranks do not run out");
        Placement { rank, host: format!("h{rank}"), gpu: 0, nic: NicClass::Ethernet }
    };
    let mut replica = |&(microbatches, groups): &(u32, &[u32])| {
        let cut = |stage: usize| LAYERS * stage as u32 / groups.len() as u32;
        let stage = |(i, &group): (usize, &u32)| Stage {
            layers: [cut(i), cut(i + 1)],
            ranks: (0..group).map(|_| placement()).collect(),
        };
        let stages: Vec<_> = groups.iter().enumerate().map(stage).collect();
        let boundary = Boundary { codec: Codec::None, transport: Transport::Tcp };
        Replica {
            microbatches,
            micro_batch: None,
            recompute: None,
            boundaries: vec![boundary; groups.len() - 1],
            stages,
        }
    };
    Plan {
        version: VERSION,
        cluster: Cluster { clusters: Vec::new(), links: Vec::new() },
        model: model(),
        micro_batch: 1,
        schedule: ScheduleSpec { kind: ScheduleKind::OneForwardOneBackward, virtual_stages: 1 },
        replicas: replicas.iter().map(&mut replica).collect(),
        exchange: Vec::new(),
        predicted: None,
        solver: None,
    }
}

pub(crate) fn model() -> Model {
    Model {
        kind: ModelKind::Gpt,
        layers: LAYERS,
        hidden: 256,
        heads: 4,
        kv_heads: None,
        head_dim: None,
        mlp_width: None,
        tied_embeddings: false,
        biases: None,
        qk_norm: false,
        positions: None,
        vocab: 256,
        sequence: 128,
        global_batch: 1,
        micro_batch: None,
        precision: Precision::Fp32,
        optimizer: Optimizer::Adamw,
        recompute: Recompute::None,
        exchange: ExchangeChoice::Auto,
        boundary: BoundaryChoice::Auto,
    }
}

pub(crate) fn exchange(replicas: &[u32], kind: ExchangeKind, every: u32) -> Exchange {
    Exchange { replicas: replicas.to_vec(), kind, every, zero1: false }
}

const SPARSE: ExchangeKind = ExchangeKind::Sparse { top_k: 64 };

fn pipeline(stages: usize, microbatches: u32) -> Plan {
    plan(&[(microbatches, &vec![1; stages])])
}

fn unit(_: u32, action: Action) -> f64 {
    match action {
        Action::Receive { .. } | Action::Send { .. } => 0.0,
        _ => 1.0,
    }
}

fn picture(plan: &Plan, schedule: Schedule) -> String {
    draw(&check(schedule, plan, 1).unwrap(), plan, 1, unit, 1.0)
}

#[test]
fn one_f_one_b_of_three_stages() {
    let plan = pipeline(3, 4);
    let expected = "\
rank 0  012..aA3bB.cC.dD|
rank 1  .01.aA2bB3cC.dD|.
rank 2  ..0aA1bB2cC3dD|..
";
    assert_eq!(picture(&plan, one_f_one_b(&plan, 1)), expected);
}

#[test]
fn gpipe_of_two_stages() {
    let plan = pipeline(2, 3);
    let expected = "\
rank 0  012..aAbBcC|
rank 1  .012aAbBcC|.
";
    assert_eq!(picture(&plan, gpipe(&plan, 1)), expected);
}

#[test]
fn fewer_microbatches_than_stages() {
    let plan = pipeline(4, 1);
    let expected = "\
rank 0  0......aA|
rank 1  .0....aA|.
rank 2  ..0..aA|..
rank 3  ...0aA|...
";
    assert_eq!(picture(&plan, one_f_one_b(&plan, 1)), expected);
}

#[test]
fn replicas_meet_in_reduce_and_exchange() {
    let mut plan = plan(&[(2, &[1, 1]), (4, &[1])]);
    plan.exchange = vec![exchange(&[0, 1], ExchangeKind::Dense, 1)];
    let expected = "\
rank 0  01.aA.bB=====|
rank 1  .0aA1bB======|
rank 2  0aA1bB2cC3dD=|
";
    let drawn = picture(&plan, one_f_one_b(&plan, 1));
    assert_eq!(drawn, expected);
}

#[test]
fn evaluation_is_forward_alone_on_one_replica() {
    let plan = plan(&[(2, &[1, 1]), (4, &[1, 1])]);
    let schedule = check_forward_only(forward_only(&plan, 1, 2), &plan, 1, 2).unwrap();
    assert_eq!(draw(&schedule, &plan, 1, unit, 1.0), "rank 0  ...\nrank 1  ...\nrank 2  01.\nrank 3  .01\n");
    assert_eq!(schedule.peak_in_flight(), [0; 4], "nothing is kept for a backward");
}

#[test]
fn every_small_pipeline_passes_and_holds_the_known_peak() {
    for stages in 1..=8 {
        for microbatches in 1..=16 {
            let plan = pipeline(stages, microbatches);
            let known: Vec<u32> = (0..stages as u32).map(|i| microbatches.min(stages as u32 - i)).collect();
            let checked = check(one_f_one_b(&plan, 1), &plan, 1).unwrap();
            assert_eq!(checked.peak_in_flight(), known, "{stages} stages, {microbatches} microbatches");
            let checked = check(gpipe(&plan, 1), &plan, 1).unwrap();
            assert_eq!(checked.peak_in_flight(), vec![microbatches; stages]);
        }
    }
}

/// A schedule that no generator here makes: weight gradients fill the end, as zero-bubble schedules have them.
#[test]
fn activations_are_held_until_the_weight_gradient() {
    let plan = pipeline(2, 5);
    let Schedule(mut lists) = one_f_one_b(&plan, 1);
    for list in &mut lists {
        list.sort_by_key(|a| match a {
            Action::Step => 2,
            Action::BackwardWeight { .. } => 1,
            _ => 0,
        });
    }
    assert_eq!(check(Schedule(lists), &plan, 1).unwrap().peak_in_flight(), [5, 5]);
}

#[test]
fn unlike_tensor_parallel_groups_share_what_overlaps() {
    let plan = plan(&[(3, &[2, 3])]);
    let [first, second] = &plan.replicas[0].stages[..] else { panic!("two stages") };
    let shares = |rank| -> Vec<_> {
        boundary_peers(first, rank, second).iter().map(|p| (p.rank, p.share.part, p.share.of)).collect()
    };
    assert_eq!(shares(0), [(2, 2, 6), (3, 1, 6)]);
    assert_eq!(shares(1), [(3, 1, 6), (4, 2, 6)]);
    check(one_f_one_b(&plan, 1), &plan, 1).unwrap();
}

#[test]
fn layers_meet_their_owners_whatever_the_cut() {
    let mut plan = plan(&[(1, &[1, 1]), (1, &[1, 1, 1, 1])]);
    plan.exchange = vec![exchange(&[0, 1], SPARSE, 2)];
    let owners = exchange_peers(&plan, &plan.exchange[0], plan.seats()[1]);
    let owners: Vec<_> = owners.into_iter().map(|(unit, peers)| (unit, peers[0].rank)).collect();
    let layer = Unit::Layer;
    assert_eq!(owners, [(layer(4), 4), (layer(5), 4), (layer(6), 5), (layer(7), 5), (Unit::Head, 5)]);
}

#[test]
fn exchanges_come_when_they_are_due() {
    let mut plan = plan(&[(1, &[1][..]); 4]);
    plan.exchange = vec![exchange(&[0, 1], ExchangeKind::Dense, 1), exchange(&[0, 1, 2, 3], SPARSE, 3)];
    let closes = |rank: usize, step| {
        let lists = &of(&plan, step).unwrap().0.clone();
        lists[rank].iter().filter(|a| a.microbatch().is_none()).copied().collect::<Vec<_>>()
    };
    assert_eq!(closes(0, 1), [Action::Reduce, Action::Step]);
    assert_eq!(closes(0, 3), [Action::Reduce, Action::Step, Action::Exchange]);
    assert_eq!(closes(2, 3), [Action::Step, Action::Exchange]);
    assert_eq!(closes(2, 4), [Action::Step]);
}

#[test]
fn virtual_stages_are_refused() {
    let mut plan = pipeline(2, 2);
    plan.schedule.virtual_stages = 2;
    assert_eq!(of(&plan, 1), Err(ScheduleError::Interleaved { virtual_stages: 2 }));
}

/// Plans whose schedules the negative tests spoil: a pipeline, and two replicas with both kinds of exchange.
fn spoilable() -> Vec<Plan> {
    let mut replicas = plan(&[(3, &[1, 1]), (2, &[1, 2])]);
    replicas.exchange = vec![exchange(&[0, 1], ExchangeKind::Dense, 1), exchange(&[0, 1], SPARSE, 1)];
    vec![pipeline(4, 6), replicas]
}

/// Applies `spoil` at every action of every rank and hands what `check` says to `judge`.
fn spoil_each(
    spoil: impl Fn(&mut Vec<Action>, usize),
    judge: impl Fn(u32, usize, &[Action], Result<Checked<Schedule>, ScheduleError>),
) {
    for plan in spoilable() {
        let good = one_f_one_b(&plan, 1);
        for (rank, list) in good.0.iter().enumerate() {
            for index in 0..list.len() {
                let mut bad = good.clone();
                spoil(&mut bad.0[rank], index);
                judge(rank as u32, index, list, check(bad, &plan, 1));
            }
        }
    }
}

#[test]
fn a_dropped_action_is_named() {
    spoil_each(
        |list, index| _ = list.remove(index),
        |rank, index, list, verdict| {
            let dropped = list[index];
            match verdict.unwrap_err() {
                ScheduleError::Missing { rank: r, action, .. } => assert_eq!((r, action), (rank, dropped)),
                ScheduleError::Unmatched { peer, counterpart, .. } => {
                    assert_eq!((peer, counterpart), (rank, dropped));
                }
                other => panic!("rank {rank}, {dropped}: {other}"),
            }
        },
    );
}

#[test]
fn a_doubled_action_is_named() {
    spoil_each(
        |list, index| list.insert(index, list[index]),
        |rank, index, list, verdict| {
            let action = list[index];
            let twice = ScheduleError::Twice { rank, index: index + 1, action, first: index };
            assert_eq!(verdict.unwrap_err(), twice);
        },
    );
}

#[test]
fn an_action_of_another_rank_or_microbatch_is_named() {
    let foreign = Action::BackwardWeight { microbatch: 99 };
    spoil_each(
        |list, index| list.insert(index, foreign),
        |rank, index, _, verdict| {
            assert_eq!(verdict.unwrap_err(), ScheduleError::Unexpected { rank, index, action: foreign });
        },
    );
}

/// Neighbours in a list of which the second needs the first, directly.
fn depends(first: Action, second: Action) -> bool {
    let same = first.microbatch() == second.microbatch();
    let is_receive = |what| matches!(first, Action::Receive { what: w, .. } if w == what);
    match second {
        Action::Receive { .. } => false,
        Action::Forward { .. } => same && is_receive(Payload::Activation),
        Action::Send { what: Payload::Activation, .. } => same && matches!(first, Action::Forward { .. }),
        Action::BackwardInput { .. } => {
            same && (matches!(first, Action::Forward { .. }) || is_receive(Payload::Gradient))
        }
        Action::Send { what: Payload::Gradient, .. } => same && matches!(first, Action::BackwardInput { .. }),
        Action::BackwardWeight { .. } => same && matches!(first, Action::BackwardInput { .. }),
        Action::Reduce => matches!(first, Action::BackwardWeight { .. }),
        Action::Step => matches!(first, Action::BackwardWeight { .. } | Action::Reduce),
        Action::Exchange => first == Action::Step,
    }
}

#[test]
fn swapped_neighbours_are_named_if_one_needs_the_other() {
    let swap = |list: &mut Vec<Action>, index: usize| {
        let other = (index + 1).min(list.len() - 1);
        list.swap(index, other);
    };
    spoil_each(swap, |rank, index, list, verdict| {
        let Some(&second) = list.get(index + 1) else { return };
        let first = list[index];
        match verdict {
            Err(ScheduleError::OutOfOrder { rank: r, index: i, action, waits_for, at }) => {
                assert_eq!((r, i, action, waits_for, at), (rank, index, second, first, index + 1));
                assert!(depends(first, second));
            }
            // A send that moves behind a wait for its own consequence.
            Err(ScheduleError::Deadlock { circle }) => {
                assert!(circle.iter().any(|b| b.rank == rank && b.action == second), "{circle:?}");
                assert!(matches!((first, second), (Action::Send { .. }, Action::Receive { .. })));
            }
            Err(other) => panic!("rank {rank}, action {index}: {other}"),
            Ok(_) => assert!(!depends(first, second), "rank {rank}: \"{second}\" before \"{first}\""),
        }
    });
}

#[test]
fn any_two_swapped_actions_never_pass_out_of_order() {
    for plan in spoilable() {
        let good = one_f_one_b(&plan, 1);
        for rank in 0..good.0.len() {
            let length = good.0[rank].len();
            for (i, j) in (0..length).flat_map(|i| (i + 1..length).map(move |j| (i, j))) {
                let mut bad = good.clone();
                bad.0[rank].swap(i, j);
                let list = bad.0[rank].clone();
                let late = |j: usize| (0..j).any(|i| depends(list[j], list[i]));
                let out_of_order = (0..length).any(late);
                let verdict = check(bad, &plan, 1);
                if out_of_order {
                    assert!(
                        matches!(verdict, Err(ScheduleError::OutOfOrder { .. })),
                        "{i}, {j}: {verdict:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn ranks_that_wait_for_each_other_are_named_with_what_they_wait_for() {
    let plan = pipeline(2, 2);
    let mut schedule = one_f_one_b(&plan, 1);
    // Rank 1 wants microbatch 1 first; rank 0 has the gradient of 0 before it sends that.
    let microbatch_1_first = |a: &Action| a.microbatch().map(|m| 1 - m).unwrap_or(2);
    schedule.0[1].sort_by_key(microbatch_1_first);
    let place = |a: Action| schedule.0[0].iter().position(|&b| a == b).unwrap();
    let gradient = place(Action::Receive { from: 1, what: Payload::Gradient, microbatch: 0 });
    let send = place(Action::Send { to: 1, what: Payload::Activation, microbatch: 1 });
    schedule.0[0][send..=gradient].rotate_right(1);
    let error = check(schedule, &plan, 1).unwrap_err();
    let text = error.to_string();
    assert!(matches!(&error, ScheduleError::Deadlock { circle } if circle.len() == 2), "{text}");
    for part in
        ["rank 0", "gradient of microbatch 0 from rank 1", "rank 1", "activation of microbatch 1 from rank 0"]
    {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_list_per_rank_is_needed() {
    let plan = pipeline(3, 2);
    let error = check(Schedule(vec![Vec::new(); 2]), &plan, 1).unwrap_err();
    assert_eq!(error, ScheduleError::RankCount { expected: 3, got: 2 });
}

#[test]
fn schedules_are_written_and_read_unchanged() {
    let schedule = one_f_one_b(&spoilable()[1], 1);
    let text = serde_json::to_string(&schedule).unwrap();
    assert!(text.contains(r#"{"do":"receive","from":0,"what":"activation","microbatch":0}"#), "{text}");
    assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
}
