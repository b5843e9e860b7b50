//! Everything before the first process starts: read, plan, refuse what cannot run, predict, write the run's folder.
//!
//! A folder belongs to one run. Starting into a folder that holds one needs a word: `--resume` goes on from its newest
//! whole checkpoint with its own plan, `--fresh` deletes it first. A folder that holds anything else is never deleted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use narrows_planner::inventory;
use narrows_planner::model;
use narrows_planner::plan::{self, ExchangeKind, Plan};
use narrows_planner::search::{self, EngineLimits};
use narrows_planner::simulate::simulate;
use serde::Serialize;

use super::{TrainError, refuse_what_cannot_run};
use crate::checkpoint::{Manifest, Store};
use crate::data::{Text, bigram_loss_nats};
use crate::emulate::{self, Emulation};
use crate::predict;
use crate::report::files::{self, PredictedRun, ReferenceLoss, RunFolder, RunInfo, StepRecord};
use crate::report::lines::{read_lines, write_whole};
use crate::settings::{Run, Settings};

/// How to treat a folder that already holds a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Refuse.
    New,
    /// Delete that run first.
    Fresh,
    /// Go on from its newest checkpoint.
    Resume,
}

/// A run that only needs starting.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What workers are given.
    pub settings: Settings,
    /// The plan they execute.
    pub plan: Plan,
    /// The run's folder, absolute.
    pub folder: PathBuf,
    /// Steps done by an earlier part of the run.
    pub resumed: u64,
    /// Seconds that part took.
    pub began_s: f64,
}

/// Prepares `run` in its folder.
pub fn prepare(run: &Run, start: Start) -> Result<Prepared, TrainError> {
    let folder = std::path::absolute(&run.out).map_err(folder_error(&run.out))?;
    match start {
        Start::New => refuse_used(&folder)?,
        Start::Fresh => delete_run(&folder)?,
        Start::Resume => {}
    }
    let settings = Settings {
        train: std::path::absolute(&run.settings.train).map_err(folder_error(&run.settings.train))?,
        validation: std::path::absolute(&run.settings.validation)
            .map_err(folder_error(&run.settings.validation))?,
        ..run.settings.clone()
    };
    let plan = match start {
        Start::Resume => plan::read(&RunFolder::at(&folder).plan())?,
        Start::New | Start::Fresh => plan_of(run)?,
    };
    refuse_what_cannot_run(&plan)?;
    let simulation = simulate(&plan).map_err(|e| TrainError::Impossible(e.to_string()))?;
    let plan = Plan { predicted: Some(simulation.predicted(&plan)), ..plan };
    let sequence = plan.model.sequence as usize;
    let train = Text::open(&settings.train, sequence)?;
    let validation = Text::open(&settings.validation, sequence)?;
    if start == Start::Resume {
        return resumed(settings, plan, folder);
    }
    let bigram = bigram_loss_nats(train.bytes(), validation.bytes());
    write_folder(&folder, &settings, &plan, &predict::record(&plan, &simulation), bigram)?;
    Ok(Prepared { settings, plan, folder, resumed: 0, began_s: 0.0 })
}

/// The plan that the run names, or a new one for the native engine.
pub fn plan_of(run: &Run) -> Result<Plan, TrainError> {
    if let Some(path) = &run.plan {
        return Ok(plan::read(path)?);
    }
    let cluster = inventory::read(&run.cluster)?;
    let model = model::read(&run.model)?;
    let found = search::search(&cluster, &model, &EngineLimits::NATIVE, &run.search_options())
        .map_err(|e| TrainError::Impossible(format!("{}: no plan: {e}", run.model.display())))?;
    Ok(found.plan)
}

/// Goes on from the newest whole checkpoint, after checking all of it.
fn resumed(settings: Settings, plan: Plan, folder: PathBuf) -> Result<Prepared, TrainError> {
    let store = Store::of_run(&folder);
    store.sweep()?;
    let Some(&step) = store.steps().last() else {
        let what = format!(
            "{}: there is no checkpoint to resume from\n  hint: start the run with --fresh, or set [checkpoint] every \
             lower",
            folder.display()
        );
        return Err(TrainError::Impossible(what));
    };
    let manifest: Manifest = store.manifest(step, &settings.fingerprint(&plan), plan.world_size())?;
    store.verify(&manifest)?;
    let paths = RunFolder::at(&folder);
    let mut took_s = BTreeMap::new(); // the last record of a step counts
    read_lines(&paths.steps(), |_, record: StepRecord| {
        took_s.insert(record.step, record.iteration_s);
        Ok(())
    })
    .map_err(|e| TrainError::Impossible(e.to_string()))?;
    let began_s = took_s.range(..=step).map(|(_, seconds)| seconds).sum();
    write_json(&paths.root().join("settings.json"), &settings)?;
    if settings.emulate == Emulation::On {
        emulate::write_shape(&folder, &plan).map_err(folder_error(&folder))?;
    }
    Ok(Prepared { settings, plan, folder, resumed: step, began_s })
}

fn write_folder(
    folder: &Path,
    settings: &Settings,
    plan: &Plan,
    predicted: &PredictedRun,
    bigram: f64,
) -> Result<(), TrainError> {
    fs::create_dir_all(folder).map_err(folder_error(folder))?;
    let paths = RunFolder::at(folder);
    let info = RunInfo {
        version: files::VERSION,
        name: settings.name.clone(),
        steps: settings.steps,
        seed: settings.seed,
        tokens_per_step: plan.tokens_per_step(),
        emulated: emulated(settings.emulate),
        exchange_every: sparse_period(plan),
        dense_bytes_per_exchange: predict::dense_bytes(plan),
        reference_losses: vec![ReferenceLoss { label: "bigram model of the same text".into(), loss: bigram }],
    };
    // First: from here on the folder is a run's, and --fresh may delete it.
    write_json(&paths.run(), &info)?;
    write_json(&paths.plan(), plan)?;
    write_json(&paths.predicted(), predicted)?;
    write_json(&paths.root().join("settings.json"), settings)?;
    if settings.emulate == Emulation::On {
        emulate::write_shape(folder, plan).map_err(folder_error(folder))?;
    }
    Ok(())
}

/// Optimiser steps between exchanges of pseudo-gradients, if there are any.
pub(super) fn sparse_period(plan: &Plan) -> Option<u32> {
    plan.exchange.iter().find(|e| matches!(e.kind, ExchangeKind::Sparse { .. })).map(|e| e.every)
}

/// What of the run is not real, in words for its reports.
fn emulated(emulation: Emulation) -> Vec<String> {
    match emulation {
        Emulation::Off => Vec::new(),
        Emulation::On => vec![
            "links: held to the inventory's rates and latencies, over loopback TCP".into(),
            "devices: real arithmetic on this machine's cores, then waiting, to the inventory's rates".into(),
        ],
    }
}

fn refuse_used(folder: &Path) -> Result<(), TrainError> {
    let holds_run = RunFolder::at(folder).run().exists();
    let empty = fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none());
    if empty && !holds_run {
        return Ok(());
    }
    let what = match holds_run {
        true => "it holds a run already\n  hint: --resume goes on with it, --fresh deletes it first",
        false => "it is not empty and holds no run\n  hint: choose another [run] out folder",
    };
    Err(TrainError::Impossible(format!("{}: {what}", folder.display())))
}

/// Deletes the run in `folder`; anything but a run is refused.
fn delete_run(folder: &Path) -> Result<(), TrainError> {
    if RunFolder::at(folder).run().exists() {
        return fs::remove_dir_all(folder).map_err(folder_error(folder));
    }
    refuse_used(folder)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    write_whole(path, value).map_err(folder_error(path))
}

fn folder_error(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError + '_ {
    move |source| TrainError::Folder { path: path.to_owned(), source }
}
