//! `run.toml`: what to train, on which text, for how long; and what of the cluster is emulated.
//!
//! ```toml
//! [run]
//! name    = "quickstart"
//! cluster = "cluster.toml"        # paths are relative to this file
//! model   = "model.toml"
//! plan    = "plan.json"           # leave out: planned at the start
//! out     = "runs/quickstart"     # relative to where narrows is started
//! steps   = 400
//! seed    = 1
//! emulate = "on"                  # hold links and devices to the inventory: a cluster on one machine
//! [data]
//! train, validation = paths of texts; bytes are tokens
//! ```
//! Everything else has a default; [`RunFile`] names it all. Workers read the resolved [`Settings`] from the run's folder.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use narrows_planner::input::{Document, Fault, InputError};
use narrows_planner::model::Model;
use narrows_planner::plan::Plan;
use narrows_planner::search::SearchOptions;
use serde::{Deserialize, Serialize};

use crate::emulate::Emulation;
use crate::engine::{AdamW, GptConfig, GptStage};

/// A run as resolved: what workers are given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What the user calls it.
    pub name: String,
    /// Optimiser steps.
    pub steps: u64,
    /// Of parameters, batches and bases.
    pub seed: u64,
    /// Whether links and devices are held to the inventory.
    pub emulate: Emulation,
    /// Text to train on.
    pub train: PathBuf,
    /// Text to validate on.
    pub validation: PathBuf,
    /// Validate every so many steps; the last step always does.
    pub validation_every: u64,
    /// Sequences read for one validation.
    pub validation_sequences: usize,
    /// Peak learning rate of AdamW.
    pub learning_rate: f32,
    /// Steps of linear warm-up; then a cosine down to a tenth.
    pub warmup_steps: u64,
    /// On matrices.
    pub weight_decay: f32,
    /// AdamW's averaging of gradients and of their squares.
    pub betas: (f32, f32),
    /// Decay of the error feedback between exchanges (beta of SparseLoCo).
    pub error_feedback: f32,
    /// Outer learning rate (alpha of SparseLoCo).
    pub outer_rate: f32,
    /// Save every so many steps; 0: never.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub checkpoint_keep: usize,
    /// Longest wait for a peer.
    pub wait_s: f64,
}

/// `run.toml` read and resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What workers are given.
    pub settings: Settings,
    /// Path of `cluster.toml`.
    pub cluster: PathBuf,
    /// Path of `model.toml`.
    pub model: PathBuf,
    /// Path of a plan to use, if not planned at the start.
    pub plan: Option<PathBuf>,
    /// The run's folder.
    pub out: PathBuf,
    /// Optimiser steps between sparse exchanges.
    pub exchange_every: u32,
    /// Values kept of every 4096 in a sparse exchange.
    pub top_k: u32,
    /// Dimension of compressed boundaries; `None`: an eighth of the hidden width.
    pub subspace_rank: Option<u32>,
}

/// The file's own shape.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunFile {
    run: RunTable,
    data: DataTable,
    #[serde(default)]
    optimizer: OptimizerTable,
    #[serde(default)]
    exchange: ExchangeTable,
    #[serde(default)]
    boundary: BoundaryTable,
    #[serde(default)]
    checkpoint: CheckpointTable,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunTable {
    name: String,
    cluster: PathBuf,
    model: PathBuf,
    plan: Option<PathBuf>,
    out: PathBuf,
    steps: NonZero<u64>,
    #[serde(default)]
    seed: u64,
    #[serde(default = "emulation_off")]
    emulate: Emulation,
    #[serde(default = "wait_s")]
    wait_s: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataTable {
    train: PathBuf,
    validation: PathBuf,
    #[serde(default = "validation_every")]
    validation_every: NonZero<u64>,
    #[serde(default = "validation_sequences")]
    validation_sequences: NonZero<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OptimizerTable {
    learning_rate: f32,
    warmup_steps: u64,
    weight_decay: f32,
    betas: (f32, f32),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExchangeTable {
    every: NonZero<u32>,
    top_k: NonZero<u32>,
    error_feedback: f32,
    outer_rate: f32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BoundaryTable {
    rank: Option<NonZero<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CheckpointTable {
    every: u64,
    keep: NonZero<usize>,
}

impl Default for OptimizerTable {
    fn default() -> Self {
        Self { learning_rate: 1e-3, warmup_steps: 20, weight_decay: 0.1, betas: (0.9, 0.95) }
    }
}

impl Default for ExchangeTable {
    /// As in Covenant-72B: H 30, k 64 of 4096, beta 0.95, alpha 1.
    fn default() -> Self {
        let number = |n| NonZero::new(n).expect("not zero");
        Self { every: number(30), top_k: number(64), error_feedback: 0.95, outer_rate: 1.0 }
    }
}

impl Default for CheckpointTable {
    fn default() -> Self {
        Self { every: 100, keep: NonZero::new(2).expect("not zero") }
    }
}

fn emulation_off() -> Emulation {
    Emulation::Off
}

fn wait_s() -> f64 {
    60.0
}

fn validation_every() -> NonZero<u64> {
    NonZero::new(100).expect("not zero")
}

fn validation_sequences() -> NonZero<usize> {
    NonZero::new(32).expect("not zero")
}

impl Run {
    /// Reads `run.toml`.
    pub fn read(path: &Path) -> Result<Self, InputError> {
        let document = Document::toml(path)?;
        let file: RunFile = document.decode()?;
        check(&document, &file)?;
        let beside = |p: &Path| document.folder().join(p);
        let settings = Settings {
            name: file.run.name,
            steps: file.run.steps.get(),
            seed: file.run.seed,
            emulate: file.run.emulate,
            train: beside(&file.data.train),
            validation: beside(&file.data.validation),
            validation_every: file.data.validation_every.get(),
            validation_sequences: file.data.validation_sequences.get(),
            learning_rate: file.optimizer.learning_rate,
            warmup_steps: file.optimizer.warmup_steps,
            weight_decay: file.optimizer.weight_decay,
            betas: file.optimizer.betas,
            error_feedback: file.exchange.error_feedback,
            outer_rate: file.exchange.outer_rate,
            checkpoint_every: file.checkpoint.every,
            checkpoint_keep: file.checkpoint.keep.get(),
            wait_s: file.run.wait_s,
        };
        Ok(Self {
            settings,
            cluster: beside(&file.run.cluster),
            model: beside(&file.run.model),
            plan: file.run.plan.as_deref().map(beside),
            out: file.run.out,
            exchange_every: file.exchange.every.get(),
            top_k: file.exchange.top_k.get(),
            subspace_rank: file.boundary.rank.map(NonZero::get),
        })
    }
}

impl Run {
    /// What the planner is told beside the inventory and the model.
    pub fn search_options(&self) -> SearchOptions {
        SearchOptions {
            sync_every: self.exchange_every,
            top_k: self.top_k,
            subspace_rank: self.subspace_rank,
            ..SearchOptions::default()
        }
    }
}

impl Settings {
    /// The model as the native engine takes it.
    pub fn engine_config(&self, model: &Model) -> GptConfig {
        GptConfig {
            layers: model.layers as usize,
            hidden: model.hidden as usize,
            heads: model.heads as usize,
            vocab: model.vocab as usize,
            sequence: model.sequence as usize,
        }
    }

    /// Threads of a rank: one on an emulated device, else this machine's cores over the ranks they serve.
    pub fn threads(&self, plan: &Plan) -> NonZero<usize> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = match self.emulate {
            Emulation::On => 1,
            Emulation::Off => cores / plan.world_size() as usize,
        };
        NonZero::new(threads).unwrap_or(NonZero::<usize>::MIN)
    }

    /// The optimiser of a stage.
    pub fn adamw(&self, stage: &GptStage) -> AdamW {
        let mut adamw = AdamW::new(stage.tensors());
        (adamw.betas, adamw.weight_decay) = (self.betas, self.weight_decay);
        adamw
    }

    /// Linear warm-up to the peak, then a cosine to a tenth of it at the last step.
    pub fn learning_rate_at(&self, step: u64) -> f32 {
        if step <= self.warmup_steps {
            return self.learning_rate * step as f32 / self.warmup_steps.max(1) as f32;
        }
        let rest = self.steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (step - self.warmup_steps) as f32 / rest as f32;
        let cosine = 0.5 * (1.0 + (std::f32::consts::PI * progress.min(1.0)).cos());
        self.learning_rate * (0.1 + 0.9 * cosine)
    }

    /// Whether step `step` ends with a validation.
    pub fn validates_at(&self, step: u64) -> bool {
        step.is_multiple_of(self.validation_every) || step == self.steps
    }

    /// Whether step `step` ends with a checkpoint.
    pub fn saves_at(&self, step: u64) -> bool {
        self.checkpoint_every > 0 && (step.is_multiple_of(self.checkpoint_every) || step == self.steps)
    }

    /// Period of the plan's exchange; 1 with none.
    pub fn exchange_every(&self, plan: &Plan) -> u64 {
        plan.exchange.first().map_or(1, |e| u64::from(e.every))
    }

    /// What a checkpoint belongs to: everything that decides the bits of a run.
    pub fn fingerprint(&self, plan: &Plan) -> String {
        let settings = Self {
            name: String::new(),
            emulate: Emulation::Off,
            validation_every: 0,
            validation_sequences: 0,
            checkpoint_every: 0,
            checkpoint_keep: 0,
            wait_s: 0.0,
            validation: PathBuf::new(),
            ..self.clone()
        };
        let parts = (&settings, &plan.model, plan.micro_batch, &plan.replicas, &plan.exchange);
        let bytes = serde_json::to_vec(&parts).expect("plain data");
        blake3::hash(&bytes).to_hex()[..16].to_owned()
    }
}

/// What the types cannot say.
fn check(document: &Document, file: &RunFile) -> Result<(), InputError> {
    let positive = [
        (["run", "wait_s"], file.run.wait_s),
        (["optimizer", "learning_rate"], f64::from(file.optimizer.learning_rate)),
        (["exchange", "outer_rate"], f64::from(file.exchange.outer_rate)),
    ];
    for (key, value) in positive {
        if !(value > 0.0 && value.is_finite()) {
            return Err(document.error(Fault::at(key, format!("{value} given, a number above 0 expected"))));
        }
    }
    let decay = file.exchange.error_feedback;
    if !(0.0..=1.0).contains(&decay) {
        let fault = Fault::at(["exchange", "error_feedback"], format!("{decay} given, 0 to 1 expected"));
        return Err(document.error(fault));
    }
    let top_k = file.exchange.top_k.get();
    if top_k > 4096 {
        let fault = Fault::at(["exchange", "top_k"], format!("{top_k} given, at most 4096 expected"))
            .hint("top_k counts the values kept of every 4096");
        return Err(document.error(fault));
    }
    Ok(())
}
