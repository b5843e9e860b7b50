//! Writes a small made-up run folder: what `narrows report` and its browser test are tried on.
//!
//! ```text
//! cargo run -p narrows-runtime --example report_fixture -- DIR
//! ```
//! Two replicas of a 6-layer model, two stages on fast GPUs and three on slow ones, 60 steps, a sparse exchange every 10.
//! The timelines are of a real 1F1B pipeline over made-up durations; the measured one is the predicted one with every
//! duration 4 % longer. Figures are round where a test reads them.

use std::fs;
use std::path::Path;

use narrows_planner::inventory::{Cluster, Fabric, Gpu, Hop, Host, Link, Nic, NicClass};
use narrows_planner::model::{
    BoundaryChoice, ExchangeChoice, Model, ModelKind, Optimizer, Precision, Recompute,
};
use narrows_planner::plan::{
    Boundary, Codec, Exchange, ExchangeKind, Placement, Plan, Predicted, Replica, ScheduleKind, ScheduleSpec,
    Stage, Transport, VERSION,
};
use narrows_planner::schedule::{Action, Payload};
use narrows_runtime::report::files::*;
use narrows_runtime::report::lines::{Appender, write_whole};

/// Steps of the run.
pub const STEPS: u64 = 60;
/// Steps between exchanges.
pub const EVERY: u64 = 10;
/// By rank: seconds of a forward; a backward's halves take as long each.
const FORWARD_S: [f64; 5] = [0.010, 0.010, 0.016, 0.016, 0.016];
const LATENCY_S: f64 = 0.002;
const STEP_S: f64 = 0.004;
const EXCHANGE_S: f64 = 0.080;
/// Measured durations over predicted ones.
pub const SLOWER: f64 = 1.04;
/// The replicas' ranks, in pipeline order, and their microbatches.
const PIPELINES: [(&[u32], u32); 2] = [(&[0, 1], 6), (&[2, 3, 4], 4)];

#[allow(dead_code, reason = "tests include this file for `write`")]
fn main() {
    let dir = std::env::args().nth(1).expect("usage: report_fixture DIR");
    write(Path::new(&dir)).expect("the folder can be written");
}

/// Writes the folder.
pub fn write(dir: &Path) -> std::io::Result<()> {
    let folder = RunFolder::at(dir);
    fs::create_dir_all(folder.checkpoints())?;
    let _ = fs::remove_file(folder.steps());
    let _ = fs::remove_file(folder.events());
    write_whole(&folder.run(), &info())?;
    narrows_planner::plan::write(&plan(), &folder.plan()).map_err(std::io::Error::other)?;
    write_whole(&folder.predicted(), &predicted())?;
    let mut steps = Appender::open(&folder.steps())?;
    for step in 0..STEPS {
        steps.append(&record(step))?;
    }
    Appender::open(&folder.events())?.append_all(&events())?;
    (0..5).try_for_each(|rank| write_trace(&folder, rank))
}

fn info() -> RunInfo {
    let pairs = [(0, 2), (0, 3), (1, 3), (1, 4)];
    let both_ways = pairs.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]);
    RunInfo {
        version: narrows_runtime::report::files::VERSION,
        name: "quickstart <fixture>".into(),
        steps: STEPS,
        seed: 7,
        tokens_per_step: 2560,
        emulated: vec![
            "links: rates and latencies of the inventory held by a shaper".into(),
            "devices: paced to the inventory's rates".into(),
        ],
        exchange_every: Some(EVERY as u32),
        dense_bytes_per_exchange: both_ways
            .map(|(from, to)| DenseBytes { from, to, bytes: 1_600_000 })
            .collect(),
        reference_losses: vec![ReferenceLoss { label: "bigram".into(), loss: 2.454 }],
    }
}

fn plan() -> Plan {
    let placement = |rank: u32| match rank {
        0 | 1 => Placement { rank, host: "fast-0".into(), gpu: rank, nic: NicClass::Ethernet },
        _ => Placement { rank, host: format!("slow-{}", rank - 2), gpu: 0, nic: NicClass::Ethernet },
    };
    let stage = |layers, rank| Stage { layers, ranks: vec![placement(rank)] };
    let boundary = |codec, transport| Boundary { codec, transport };
    let narrow = || boundary(Codec::Subspace { rank: 16 }, Transport::Tcp);
    Plan {
        version: VERSION,
        cluster: Cluster {
            clusters: vec![fabric("fast", 1, 2, 40e9), fabric("slow", 4, 1, 16e9)],
            links: vec![Link {
                between: ["fast".into(), "slow".into()],
                rate_bytes_per_s: 12.5e6,
                shared_bytes_per_s: None,
                latency_s: 0.02,
                loss: 0.0,
                price_usd_per_byte: None,
            }],
        },
        model: model(),
        micro_batch: 2,
        schedule: ScheduleSpec { kind: ScheduleKind::OneForwardOneBackward, virtual_stages: 1 },
        replicas: vec![
            Replica {
                microbatches: 6,
                micro_batch: None,
                recompute: None,
                stages: vec![stage([0, 3], 0), stage([3, 6], 1)],
                boundaries: vec![boundary(Codec::None, Transport::Shm)],
            },
            Replica {
                microbatches: 4,
                micro_batch: None,
                recompute: None,
                stages: vec![stage([0, 2], 2), stage([2, 4], 3), stage([4, 6], 4)],
                boundaries: vec![narrow(), narrow()],
            },
        ],
        exchange: vec![Exchange {
            replicas: vec![0, 1],
            kind: ExchangeKind::Sparse { top_k: 64 },
            every: EVERY as u32,
            zero1: false,
        }],
        predicted: Some(Predicted {
            iteration_s: predicted().iteration_s,
            tokens_per_s: 2560.0 / predicted().iteration_s,
            model_flops_per_s_per_gpu: 1.2e10,
            peak_memory_bytes: vec![48_000_000, 46_000_000, 34_000_000, 30_000_000, 33_000_000],
        }),
        solver: None,
    }
}

fn model() -> Model {
    Model {
        kind: ModelKind::Gpt,
        layers: 6,
        hidden: 128,
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
        global_batch: 20,
        micro_batch: Some(2),
        precision: Precision::Fp32,
        optimizer: Optimizer::Adamw,
        recompute: Recompute::None,
        exchange: ExchangeChoice::Sparse,
        boundary: BoundaryChoice::Auto,
    }
}

fn fabric(name: &str, hosts: u32, gpus: u32, flops_per_s: f64) -> Fabric {
    Fabric {
        name: name.into(),
        hosts: (0..hosts).map(|i| Host { name: format!("{name}-{i}"), address: None }).collect(),
        gpus,
        gpu: Gpu {
            name: format!("{name} GPU"),
            memory_bytes: 64 << 20,
            bf16_flops_per_s: flops_per_s,
            fp16_flops_per_s: flops_per_s,
            fp32_flops_per_s: flops_per_s,
            efficiency: 0.5,
            memory_bytes_per_s: None,
            price_usd_per_hour: None,
            profile: None,
        },
        intra: Hop { rate_bytes_per_s: 1e9, latency_s: 1e-5 },
        nic: Nic { class: NicClass::Ethernet, rate_bytes_per_s: 62.5e6, count: 1, latency_s: LATENCY_S },
        ethernet: None,
    }
}

fn predicted() -> PredictedRun {
    let plain = timeline(0.0, 1.0);
    let exchange = timeline(EXCHANGE_S, 1.0);
    let (step_s, exchange_step_s) = (end(&plain), end(&exchange));
    let iteration_s = ((EVERY - 1) as f64 * step_s + exchange_step_s) / EVERY as f64;
    PredictedRun {
        iteration_s,
        step_s,
        exchange_step_s,
        stages: (0..5)
            .map(|rank| StagePrediction { rank, busy_s: busy_s(rank), idle_s: iteration_s - busy_s(rank) })
            .collect(),
        links: traffic(true)
            .into_iter()
            .map(|(from, to, bytes, exchanged)| {
                let per_step = if exchanged { bytes as f64 / EVERY as f64 } else { bytes as f64 };
                LinkPrediction { from, to, bytes_per_step: per_step }
            })
            .collect(),
        timeline: PredictedTimeline { plain, exchange },
    }
}

fn busy_s(rank: u32) -> f64 {
    let (_, microbatches) = PIPELINES.iter().find(|(ranks, _)| ranks.contains(&rank)).expect("a known rank");
    3.0 * f64::from(*microbatches) * FORWARD_S[rank as usize] + STEP_S
}

/// (from, to, bytes of a step, whether only exchange steps move them): boundaries as f32 or projected, frames a fortieth.
fn traffic(with_exchange: bool) -> Vec<(u32, u32, u64, bool)> {
    let boundaries = [(0, 1, 786_432), (2, 3, 65_536), (3, 4, 65_536)];
    let exchanges = [(0, 2), (0, 3), (1, 3), (1, 4)].map(|(a, b)| (a, b, 40_000));
    let boundaries = boundaries.map(|(a, b, bytes)| (a, b, bytes, false));
    let exchanges = exchanges.map(|(a, b, bytes)| (a, b, bytes, true)).into_iter();
    let one_way = boundaries.into_iter().chain(exchanges.filter(|_| with_exchange));
    one_way.flat_map(|(a, b, bytes, when)| [(a, b, bytes, when), (b, a, bytes, when)]).collect()
}

fn record(step: u64) -> StepRecord {
    let exchange = (step + 1).is_multiple_of(EVERY);
    let wobble = ((step * 7919) % 13) as f64 / 13.0 - 0.5;
    let loss = 2.1 + 3.4 * (-(step as f64) / 14.0).exp() + 0.08 * wobble;
    let kind_s = end(&timeline(if exchange { EXCHANGE_S } else { 0.0 }, SLOWER));
    StepRecord {
        step,
        loss,
        validation_loss: exchange.then_some(loss + 0.06),
        iteration_s: kind_s * if step < 2 { 1.5 } else { 1.0 },
        tokens: 2560,
        exchange,
        links: traffic(exchange)
            .into_iter()
            .map(|(from, to, bytes, _)| LinkBytes {
                from,
                to,
                payload_bytes: bytes,
                wire_bytes: bytes + 24 * 12,
                codec_bytes: bytes,
            })
            .collect(),
        overrun_s: vec![0.0, 0.0, if step % 20 == 5 { 0.02 } else { 0.001 }, 0.0, 0.0],
        peak_memory_bytes: vec![61_000_000, 60_000_000, 51_000_000, 47_000_000, 50_000_000],
    }
}

fn events() -> Vec<RunEvent> {
    let event = |time_s, kind, step, text: &str| RunEvent { time_s, kind, step, text: text.into() };
    vec![
        event(2.9, EventKind::ExchangeVerified, 9, "replicas 0 and 1 equal to the last bit"),
        event(6.1, EventKind::Checkpoint, 19, "checkpoints/step-20"),
        event(9.4, EventKind::Failure, 29, "rank 3 <script>alert(1)</script> & \"gone\""),
        event(9.9, EventKind::Resume, 20, "from checkpoints/step-20"),
    ]
}

fn write_trace(folder: &RunFolder, rank: u32) -> std::io::Result<()> {
    let _ = fs::remove_file(folder.trace(rank));
    let mut trace = Appender::open(&folder.trace(rank))?;
    let mut begin_s = 10.0;
    for step in 0..STEPS {
        let exchange_s = if (step + 1).is_multiple_of(EVERY) { EXCHANGE_S } else { 0.0 };
        let events = timeline(exchange_s, SLOWER);
        let mine = events.iter().filter(|e| e.rank == rank).map(|e| TraceEvent {
            step,
            action: e.action,
            start_s: begin_s + e.start_s,
            end_s: begin_s + e.end_s,
        });
        trace.append_all(&mine.collect::<Vec<_>>())?;
        begin_s += end(&events);
    }
    Ok(())
}

fn end(events: &[PredictedEvent]) -> f64 {
    events.iter().map(|e| e.end_s).fold(0.0, f64::max)
}

/// One step of both replicas' 1F1B pipelines with every duration times `slower`.
fn timeline(exchange_s: f64, slower: f64) -> Vec<PredictedEvent> {
    PIPELINES
        .into_iter()
        .flat_map(|(ranks, microbatches)| pipeline(ranks, microbatches, exchange_s, slower))
        .collect()
}

fn pipeline(ranks: &[u32], microbatches: u32, exchange_s: f64, slower: f64) -> Vec<PredictedEvent> {
    let mut lists: Vec<Vec<Action>> =
        (0..ranks.len()).map(|stage| one_f_one_b(ranks, stage, microbatches, exchange_s > 0.0)).collect();
    let mut clock = vec![0.0; ranks.len()];
    let mut sent: Vec<(u32, u32, Payload, u32, f64)> = Vec::new();
    let mut events = Vec::new();
    while lists.iter().any(|list| !list.is_empty()) {
        for (stage, list) in lists.iter_mut().enumerate() {
            let Some(&action) = list.first() else { continue };
            let rank = ranks[stage];
            let start_s: f64 = clock[stage];
            let end_s = match action {
                Action::Receive { from, what, microbatch, .. } => {
                    let message =
                        sent.iter().find(|m| (m.0, m.1, m.2, m.3) == (from, rank, what, microbatch));
                    let Some(message) = message else { continue };
                    start_s.max(message.4)
                }
                Action::Send { .. } => start_s + 0.0002 * slower,
                Action::Step => start_s + STEP_S * slower,
                Action::Exchange | Action::Reduce => start_s + exchange_s * slower,
                _ => start_s + FORWARD_S[rank as usize] * slower,
            };
            if let Action::Send { to, what, microbatch, .. } = action {
                sent.push((rank, to, what, microbatch, end_s + LATENCY_S * slower));
            }
            list.remove(0);
            clock[stage] = end_s;
            events.push(PredictedEvent { rank, action, start_s, end_s });
        }
    }
    events
}

fn one_f_one_b(ranks: &[u32], stage: usize, microbatches: u32, exchange: bool) -> Vec<Action> {
    let previous = stage.checked_sub(1).map(|s| ranks[s]);
    let next = ranks.get(stage + 1).copied();
    let forward = |microbatch| {
        let what = Payload::Activation;
        let receive = previous.map(|from| Action::Receive { from, what, microbatch, chunk: 0 });
        let send = next.map(|to| Action::Send { to, what, microbatch, chunk: 0 });
        receive.into_iter().chain([Action::Forward { microbatch, chunk: 0 }]).chain(send)
    };
    let backward = |microbatch| {
        let what = Payload::Gradient;
        let receive = next.map(|from| Action::Receive { from, what, microbatch, chunk: 0 });
        let send = previous.map(|to| Action::Send { to, what, microbatch, chunk: 0 });
        let input = receive.into_iter().chain([Action::BackwardInput { microbatch, chunk: 0 }]);
        input.chain(send).chain([Action::BackwardWeight { microbatch, chunk: 0 }])
    };
    let ahead = (microbatches as usize).min(ranks.len() - stage) as u32;
    let mut actions: Vec<Action> = (0..ahead).flat_map(forward).collect();
    for microbatch in 0..microbatches {
        actions.extend(backward(microbatch));
        if microbatch + ahead < microbatches {
            actions.extend(forward(microbatch + ahead));
        }
    }
    actions.push(Action::Step);
    actions.extend(exchange.then_some(Action::Exchange));
    actions
}
