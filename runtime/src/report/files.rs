//! The files of a run folder, as `narrows train` writes them and the report reads them.
//!
//! ```text
//! run.json             RunInfo: the settings as resolved            written once, whole
//! plan.json            narrows_planner::plan::Plan                  written once, whole
//! predicted.json       PredictedRun: the simulator's word           written once, whole
//! steps.jsonl          StepRecord, one line a step                  appended
//! trace/rank-N.jsonl   TraceEvent, one line an action               appended, by rank N
//! events.jsonl         RunEvent, one line an event                  appended
//! checkpoints/ logs/   not the report's
//! ```
//! Seconds are of one clock common to all ranks that is 0 when the run begins and, after a resume, goes on from where
//! the folder ended. A resumed run writes the steps after its checkpoint again; the last record of a step counts.
//! Readers ignore fields they don't know, so that a folder may say more than this.
//!
//! Not here: how lines survive a crash (`lines`), what the figures mean together (`compare`).

use std::path::{Path, PathBuf};

use narrows_planner::schedule::Action;
use serde::{Deserialize, Deserializer, Serialize};

/// The version of these formats.
pub const VERSION: u32 = 1;

/// Where the files of one run lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder(PathBuf);

impl RunFolder {
    /// The folder at `root`; creates nothing.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// [`RunInfo`].
    pub fn run(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// [`narrows_planner::plan::Plan`].
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// [`PredictedRun`].
    pub fn predicted(&self) -> PathBuf {
        self.0.join("predicted.json")
    }

    /// Lines of [`StepRecord`].
    pub fn steps(&self) -> PathBuf {
        self.0.join("steps.jsonl")
    }

    /// Lines of [`TraceEvent`] of one rank.
    pub fn trace(&self, rank: u32) -> PathBuf {
        self.0.join("trace").join(format!("rank-{rank}.jsonl"))
    }

    /// Lines of [`RunEvent`].
    pub fn events(&self) -> PathBuf {
        self.0.join("events.jsonl")
    }

    /// Folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// Folder of the ranks' output.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }
}

/// `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// What the user calls the run.
    pub name: String,
    /// Optimiser steps asked for.
    pub steps: u64,
    /// Of every random choice.
    pub seed: u64,
    /// Tokens per optimiser step over all replicas.
    pub tokens_per_step: u64,
    /// Each emulated part in a phrase ("links: rates and latencies of the inventory held by a shaper"); empty where
    /// everything is real.
    #[serde(default)]
    pub emulated: Vec<String>,
    /// Every how many steps replicas exchange pseudo-gradients; absent where they never do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange_every: Option<u32>,
    /// What one exchange of the same tensors as dense f32 would move.
    #[serde(default)]
    pub dense_bytes_per_exchange: Vec<DenseBytes>,
    /// Losses to hold the curve against, such as that of a bigram model.
    #[serde(default)]
    pub reference_losses: Vec<ReferenceLoss>,
}

/// Bytes from one rank to another in one dense f32 exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenseBytes {
    /// Sending rank.
    pub from: u32,
    /// Receiving rank.
    pub to: u32,
    /// f32 bytes.
    pub bytes: u64,
}

/// A loss worth a line in the curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReferenceLoss {
    /// Whose loss it is.
    pub label: String,
    /// Nats per token.
    pub loss: f64,
}

/// A line of `steps.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// From 0.
    pub step: u64,
    /// Training loss, nats per token, mean over the global batch; NaN is written as null.
    #[serde(deserialize_with = "null_as_nan")]
    pub loss: f64,
    /// Validation loss, nats per token, where this step measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Wall seconds of the step, validation and checkpoint left out.
    pub iteration_s: f64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Whether replicas exchanged pseudo-gradients in this step.
    pub exchange: bool,
    /// Bytes of this step by pair of ranks.
    #[serde(default)]
    pub links: Vec<LinkBytes>,
    /// By rank: seconds by which real compute outlasted the emulated device's; empty where nothing is paced.
    #[serde(default)]
    pub overrun_s: Vec<f64>,
    /// By rank: peak resident bytes so far; empty where not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peak_memory_bytes: Vec<u64>,
}

/// Bytes from one rank to another in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkBytes {
    /// Sending rank.
    pub from: u32,
    /// Receiving rank.
    pub to: u32,
    /// Bodies of the messages handed to the link.
    pub payload_bytes: u64,
    /// Counted at the socket: headers and encryption included.
    pub wire_bytes: u64,
    /// What the codecs say they produced for this pair.
    pub codec_bytes: u64,
}

/// A line of `trace/rank-N.jsonl`: one action as it happened, in the schedule's own words.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// Optimiser step.
    pub step: u64,
    /// What was done; its fields stand beside `step`.
    #[serde(flatten)]
    pub action: Action,
    /// Seconds since the run began.
    pub start_s: f64,
    /// Seconds since the run began.
    pub end_s: f64,
}

/// `predicted.json`: what the simulator says of the plan, before anything ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictedRun {
    /// Seconds per step, exchange amortised over `exchange_every`.
    pub iteration_s: f64,
    /// Seconds of a step without an exchange.
    pub step_s: f64,
    /// Seconds of a step with an exchange; as `step_s` where there is none.
    pub exchange_step_s: f64,
    /// By rank, exchange amortised.
    pub stages: Vec<StagePrediction>,
    /// By pair of ranks that send to each other, exchange amortised.
    pub links: Vec<LinkPrediction>,
    /// One step of each kind, action by action.
    pub timeline: PredictedTimeline,
}

/// A rank's seconds per step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StagePrediction {
    /// Which rank.
    pub rank: u32,
    /// Computing: forward, both backwards, optimiser step.
    pub busy_s: f64,
    /// The rest of the step.
    pub idle_s: f64,
}

/// A pair's bytes per step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkPrediction {
    /// Sending rank.
    pub from: u32,
    /// Receiving rank.
    pub to: u32,
    /// Bytes per step, exchange amortised.
    pub bytes_per_step: f64,
}

/// Predicted actions; seconds count from the step's beginning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PredictedTimeline {
    /// A step without an exchange.
    pub plain: Vec<PredictedEvent>,
    /// A step with an exchange; empty where there is none.
    #[serde(default)]
    pub exchange: Vec<PredictedEvent>,
}

/// One predicted action.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PredictedEvent {
    /// Whose.
    pub rank: u32,
    /// What; its fields stand beside `rank`.
    #[serde(flatten)]
    pub action: Action,
    /// Seconds since the step began.
    pub start_s: f64,
    /// Seconds since the step began.
    pub end_s: f64,
}

/// A line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEvent {
    /// Seconds since the run began.
    pub time_s: f64,
    /// What kind of thing happened.
    pub kind: EventKind,
    /// The step it belongs to.
    pub step: u64,
    /// In a sentence.
    pub text: String,
}

/// Kinds of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The state was written to disk.
    Checkpoint,
    /// After an exchange all replicas were found bit-equal.
    ExchangeVerified,
    /// The run went on from a checkpoint.
    Resume,
    /// A rank or link was lost.
    Failure,
}

fn null_as_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}
