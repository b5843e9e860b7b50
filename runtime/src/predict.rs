//! The simulator's word on a plan, in the form in which a run's folder keeps it for the report.
//!
//! Not here: the simulation (`narrows_planner::simulate`).

use narrows_planner::plan::{ExchangeKind, Plan};
use narrows_planner::schedule::{self, Event, Unit};
use narrows_planner::simulate::{Simulation, Traffic};

use crate::report::files::{
    DenseBytes, LinkPrediction, PredictedEvent, PredictedRun, PredictedTimeline, StagePrediction,
};

/// A simulation as the run's folder keeps it; per-step figures carry their share of the exchange.
pub fn record(plan: &Plan, simulation: &Simulation) -> PredictedRun {
    let share = 1.0 / f64::from(plan.exchange.first().map_or(1, |e| e.every));
    let bytes = |t: &Traffic| t.step_bytes as f64 + share * t.exchange_bytes as f64;
    PredictedRun {
        iteration_s: simulation.iteration_s,
        step_s: simulation.step_s,
        exchange_step_s: simulation.step_s + simulation.exchange_s,
        stages: simulation
            .ranks
            .iter()
            .map(|r| StagePrediction { rank: r.rank, busy_s: r.busy_s, idle_s: r.idle_s })
            .collect(),
        links: simulation
            .pairs
            .iter()
            .map(|p| LinkPrediction { from: p.from, to: p.to, bytes_per_step: bytes(&p.traffic) })
            .collect(),
        timeline: PredictedTimeline {
            plain: simulation.timeline.iter().map(event).collect(),
            exchange: simulation.exchange_timeline.iter().map(event).collect(),
        },
    }
}

/// What one exchange of the same tensors as dense f32 would send from each rank to each.
pub fn dense_bytes(plan: &Plan) -> Vec<DenseBytes> {
    let mut all: Vec<DenseBytes> = Vec::new();
    let sparse = plan.exchange.iter().filter(|e| matches!(e.kind, ExchangeKind::Sparse { .. }));
    for exchange in sparse {
        let seats = plan.seats().into_iter().filter(|s| exchange.replicas.contains(&(s.replica as u32)));
        for seat in seats {
            let from = seat.placement.rank;
            for (unit, peers) in schedule::exchange_peers(plan, exchange, seat) {
                for peer in peers {
                    add(&mut all, from, peer.rank, peer.share.bytes(4 * parameters(plan, unit)));
                }
            }
        }
    }
    all
}

fn add(all: &mut Vec<DenseBytes>, from: u32, to: u32, bytes: u64) {
    match all.iter_mut().find(|d| (d.from, d.to) == (from, to)) {
        Some(pair) => pair.bytes += bytes,
        None => all.push(DenseBytes { from, to, bytes }),
    }
}

fn parameters(plan: &Plan, unit: Unit) -> u64 {
    match unit {
        Unit::Embedding => plan.model.embedding_parameters(),
        Unit::Layer(_) => plan.model.layer_parameters(),
        Unit::Head => plan.model.head_parameters(),
    }
}

fn event(e: &Event) -> PredictedEvent {
    PredictedEvent { rank: e.rank, action: e.action, start_s: e.start_s, end_s: e.end_s }
}
