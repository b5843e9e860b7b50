//! The explanation for machines, in SI units.

use serde_json::{Value, json};

use super::{Bottleneck, Explanation};
use crate::plan::Plan;

/// One object: `iteration_s`, `parts`, `bottleneck`, `replicas`, `idle`, `runners_up`, `shadow_prices`, `solver`.
pub fn json(plan: &Plan, explanation: &Explanation) -> Value {
    let cost = &explanation.cost;
    let replica = |r: &crate::search::evaluate::ReplicaCost| {
        json!({
            "stages_s": r.stages_s,
            "crossing_bytes": r.crossing_bytes,
            "crossings_s": r.crossings.iter().map(|c| c.delay_s()).collect::<Vec<_>>(),
            "fill_s": r.fill_s,
            "beat_s": r.beat_s,
            "pipeline_s": r.pipeline_s,
            "sync_s": r.sync_s,
        })
    };
    json!({
        "iteration_s": cost.iteration_s,
        "tokens_per_s": plan.tokens_per_step() as f64 / cost.iteration_s,
        "slowest_replica": explanation.slowest,
        "parts": explanation.parts,
        "bottleneck": bottleneck(&explanation.bottleneck),
        "replicas": cost.replicas.iter().map(replica).collect::<Vec<_>>(),
        "memory_bytes": cost.memory_bytes,
        "idle": explanation.idle,
        "runners_up": explanation.runners_up,
        "shadow_prices": explanation.shadow_prices,
        "solver": plan.solver,
        "thinned": explanation.thinned,
    })
}

fn bottleneck(bottleneck: &Bottleneck) -> Value {
    match bottleneck {
        Bottleneck::Stage(index) => json!({ "kind": "stage", "index": index }),
        Bottleneck::Boundary(index) => json!({ "kind": "boundary", "index": index }),
        Bottleneck::Shared(name) => json!({ "kind": "shared", "name": name }),
        Bottleneck::Exchange => json!({ "kind": "exchange" }),
    }
}
