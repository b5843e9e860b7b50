//! The cost model against published measurements: each run as an inventory, a model and a fixed plan, judged.
//!
//! ```text
//!   runs.csv ──Run──> testbed + model + uniform plan ──lanes──> simulate ──> pipeline_s
//!                               framework, profile ──────────────┘   + exchange_s + step_s = predicted, beside measured
//! ```
//! The pipeline is the discrete-event simulator's: the plan's own 1F1B, action by action. Replicas that cost the same
//! are simulated once, and a tensor-parallel group as one lane, for all its ranks do the same; so 3072 GPUs take
//! milliseconds. Gradients and the optimiser's step come on top in closed form (`price`), as the frameworks judged here
//! do them after the last backward pass. Interleaved chunks (`chunks` of v) shorten the pipeline's fill by the published
//! factor: (p - 1) (1 - 1/v) of the slowest stage is taken off.
//!
//! Constants belong to GPUs, fabrics (`measured/testbeds.toml`) and frameworks (`cost::framework`), never to a run.
//!
//! Not here: the formulas (`cost`), the fits (`docs/cost-model.md`).

mod price;
mod profile;
mod report;
mod runs;
mod testbed;

use std::path::Path;

use serde::Serialize;

use crate::simulate::SimulateError;
use crate::uniform::UniformError;

pub use report::{Summary, render, summaries};
pub use runs::Run;

/// A run, measured and predicted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// What was run.
    pub run: Run,
    /// Seconds per step.
    pub predicted_s: f64,
    /// Of these the pipeline.
    pub pipeline_s: f64,
    /// Of these the gradients, where no compute hides them.
    pub exchange_s: f64,
    /// Of these the optimiser's step and the framework's own work.
    pub step_s: f64,
    /// The fullest GPU, in the terms in which the source measured; of runs whose memory was measured.
    pub predicted_memory_bytes: Option<f64>,
}

/// Why a run cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum TruthError {
    /// The file cannot be read.
    #[error("reading measured runs from {path}: {error}")]
    Unreadable {
        /// Of the file.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// A line is not a run.
    #[error("{path}, line {line}: {what}")]
    Line {
        /// Of the file.
        path: String,
        /// From 1.
        line: usize,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// The run names hosts, a framework or a profile that is not known.
    #[error("judging a run of {run}: {what}")]
    Unknown {
        /// Its source and degrees.
        run: String,
        /// What is not known, and what would be.
        what: String,
    },
    /// Its degrees do not come out even.
    #[error("judging a run of {run}: {error}")]
    Uniform {
        /// Its source and degrees.
        run: String,
        /// What does not.
        error: UniformError,
    },
    /// Its plan cannot be simulated.
    #[error("judging a run of {run}: {error}")]
    Simulate {
        /// Its source and degrees.
        run: String,
        /// Why.
        error: SimulateError,
    },
}

/// The runs that ship with the program.
pub fn shipped() -> Vec<Run> {
    runs::parse("measured/runs.csv", include_str!("../measured/runs.csv"))
        .expect("the shipped runs are well formed: a test reads them")
}

/// More runs from a file: in the columns of `measured/runs.csv`, or vTrain's own of its single-node measurements.
///
/// # Errors
/// The file is unreadable or a line is not a run; the error shows the line.
pub fn read(path: &Path) -> Result<Vec<Run>, TruthError> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => runs::parse(&name, &text),
        Err(error) => Err(TruthError::Unreadable { path: name, error }),
    }
}

/// What the cost model says of a run.
///
/// # Errors
/// The run names what is not known, or makes no plan.
pub fn judge(run: &Run) -> Result<Judged, TruthError> {
    price::judge(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged() -> Vec<Judged> {
        shipped().iter().map(|run| judge(run).unwrap()).collect()
    }

    /// The targets that `docs/cost-model.md` states, on the shipped rows.
    #[test]
    fn each_source_is_predicted_better_than_by_its_own_simulator() {
        let summaries = summaries(&judged());
        let of = |source: &str| summaries.iter().find(|s| s.source == source).unwrap();
        assert!(of("vtrain-multi").mean_error < 0.08, "theirs: 0.147");
        assert!(
            of("sailor-gh200").mean_error < 0.09 && of("sailor-mixed").mean_error < 0.09,
            "theirs: 0.09 to 0.10"
        );
        assert!(of("sailor-gh200").mean_memory_error.unwrap() < 0.15);
        assert!(of("sailor-mixed").mean_memory_error.unwrap() < 0.15, "theirs: 0.76");
        assert!(of("amp-mixed").rank_correlation > 0.9, "theirs: 0.39");
        assert!(of("amp-t4").rank_correlation > 0.93, "theirs");
        assert!(of("megatron-a100").mean_error < 0.1 && of("megatron-h100").mean_error < 0.1);
    }

    /// Holmes's groups: the same model on the same number of hosts, whatever their network.
    #[test]
    fn networks_come_in_the_order_in_which_they_were_measured() {
        let base = shipped().into_iter().find(|r| r.source == "holmes" && r.hosts == "holmes-ib*4").unwrap();
        for hosts in [4, 8] {
            let seconds = ["ib", "roce", "eth"].map(|nic| {
                let run = Run { hosts: format!("holmes-{nic}*{hosts}"), data: hosts * 8, ..base.clone() };
                judge(&run).unwrap().predicted_s
            });
            assert!(seconds.is_sorted(), "{seconds:?}");
        }
    }
}
