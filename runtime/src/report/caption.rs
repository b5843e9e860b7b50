//! The words that the text and the page share: what a rank is called, what a link carries, the result in a sentence.
//!
//! Not here: layout.

use narrows_planner::plan::{Codec, Plan};

use super::Report;
use super::amount::{bytes, count, seconds, signed_percent, times};
use super::compare::Carries;

/// A rank's seat in words.
pub struct Seating {
    /// `rank 2`.
    pub rank: String,
    /// `replica 1 stage 0`.
    pub role: String,
    /// `slow-0:1` (host and GPU).
    pub place: String,
}

/// Where `rank` sits; of a rank that the plan has not, nothing but its number.
pub fn seating(plan: &Plan, rank: u32) -> Seating {
    let seats = plan.seats();
    let seat = seats.iter().find(|s| s.placement.rank == rank);
    Seating {
        rank: format!("rank {rank}"),
        role: seat.map_or_else(String::new, |s| format!("replica {} stage {}", s.replica, s.stage)),
        place: seat.map_or_else(String::new, |s| format!("{}:{}", s.placement.host, s.placement.gpu)),
    }
}

/// What a link carries: `boundary, subspace 16`.
pub fn carries(what: Carries) -> String {
    match what {
        Carries::Boundary(codec) => format!("boundary, {}", self::codec(codec)),
        Carries::TensorParallel => "tensor-parallel".into(),
        Carries::Exchange => "exchange".into(),
        Carries::Other => "other".into(),
    }
}

fn codec(codec: Codec) -> String {
    match codec {
        Codec::None => "f32".into(),
        Codec::Bf16 => "bf16".into(),
        Codec::Int8 => "int8".into(),
        Codec::Subspace { rank } => format!("subspace {rank}"),
    }
}

/// The result in up to three sentences: loss, time, bytes.
pub fn result(report: &Report) -> Vec<String> {
    let Some(last) = report.steps.last() else {
        return vec![format!("No step of {} is finished yet on {}.", report.info.steps, cluster(report))];
    };
    let tokens: u64 = report.steps.iter().map(|s| s.tokens).sum();
    let done = match report.steps.len() as u64 {
        n if n == report.info.steps => format!("{n} steps"),
        n => format!("{n} of {} steps", report.info.steps),
    };
    let loss = format!("{done} and {} tokens took the loss to {:.3}", count(Some(tokens as f64)), last.loss);
    let loss = format!("{loss} on {}.", cluster(report));
    [loss, step_sentence(report)].into_iter().chain(bytes_sentence(report)).collect()
}

fn cluster(report: &Report) -> String {
    let kind = if report.info.emulated.is_empty() { "a cluster" } else { "an emulated cluster" };
    let (gpus, replicas) = (report.plan.world_size(), report.plan.replicas.len());
    let replicas = if replicas == 1 { "one replica".into() } else { format!("{replicas} replicas") };
    format!("{kind} of {gpus} GPUs in {replicas}")
}

fn step_sentence(report: &Report) -> String {
    let step = &report.comparison.iteration_s;
    match (step.measured, step.error_percent()) {
        (Some(_), Some(error)) => format!(
            "A step took {}; {} were predicted ({}).",
            seconds(step.measured),
            seconds(step.predicted),
            signed_percent(Some(error))
        ),
        _ => "Too few steady steps to hold against the prediction.".into(),
    }
}

fn bytes_sentence(report: &Report) -> Option<String> {
    let (dense, wire) = bytes_between_hosts(report).filter(|(dense, wire)| dense > wire)?;
    let (wire, fewer) = (bytes(Some(wire)), times(Some(dense / wire)));
    Some(format!("{wire} a step went between hosts, {fewer} fewer than dense f32 at the same steps."))
}

/// Bytes per step over links between hosts whose dense size is known: as dense f32, and on the wire.
pub fn bytes_between_hosts(report: &Report) -> Option<(f64, f64)> {
    let seats = report.plan.seats();
    let host = |rank| seats.iter().find(|s| s.placement.rank == rank).map(|s| &s.placement.host);
    let links = report.comparison.links.iter().filter(|l| host(l.from) != host(l.to));
    let known = links.filter_map(|l| Some((l.dense_bytes?, l.wire_bytes.measured?)));
    known.reduce(|(d, w), (dense, wire)| (d + dense, w + wire)).filter(|(_, wire)| *wire > 0.0)
}

/// Why timings are not to be compared; nothing where they are.
pub fn not_comparable(report: &Report) -> Option<String> {
    let pace = report.comparison.pace.filter(|p| !p.comparable)?;
    Some(format!(
        "Timings are NOT comparable with the prediction: this machine fell behind the emulated devices by {:.0} % \
         of the time (in {} of {} steady steps; rank {} lost most). Losses and bytes are unaffected.",
        pace.overrun_share * 100.0,
        pace.steps_over,
        pace.steps,
        pace.worst_rank
    ))
}

/// How well the pace was held, where it was.
pub fn pace_held(report: &Report) -> Option<String> {
    let pace = report.comparison.pace.filter(|p| p.comparable)?;
    Some(format!(
        "emulated device rates held: {:.1} % of the time lost to this machine ({} of {} steady steps above 5 %)",
        pace.overrun_share * 100.0,
        pace.steps_over,
        pace.steps
    ))
}
