//! A run, predicted beside measured.
//!
//! ```text
//!   run folder ──files──> Report ──compare──> Comparison ──> text | JSON | one HTML page
//! ```
//! The prediction is the simulator's word from before the run; the measurement is what the worker wrote down in the
//! same vocabulary, so that the two can be laid over each other. The report says which parts were emulated, and where
//! this machine could not keep the emulated devices' pace it says that its timings compare with nothing.
//!
//! Not here: measuring (the worker), simulating (the planner), watching a run while it goes on.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use narrows_planner::input::InputError;
use narrows_planner::plan::{self, Plan};
use serde_json::json;

use self::compare::{Comparison, Steady};
use self::files::{PredictedRun, RunEvent, RunFolder, RunInfo, StepRecord, TraceEvent, VERSION};
use self::lines::{read_lines, read_whole};
use self::trace::RankTrace;

pub use self::chrome::write_chrome;
pub use self::html::render_html;
pub use self::text::render_text;

mod amount;
mod caption;
mod chrome;
pub mod compare;
pub mod files;
mod html;
pub mod lines;
mod text;
pub mod trace;

/// A run folder, read and compared.
#[derive(Debug, Clone)]
pub struct Report {
    /// The settings as resolved.
    pub info: RunInfo,
    /// What was executed.
    pub plan: Plan,
    /// The simulator's word.
    pub predicted: PredictedRun,
    /// Each step once, in order.
    pub steps: Vec<StepRecord>,
    /// In the order of their writing.
    pub events: Vec<RunEvent>,
    /// Predicted beside measured.
    pub comparison: Comparison,
    /// A typical step without an exchange, if traced.
    pub plain_step: Option<MeasuredStep>,
    /// A typical step with an exchange, if traced.
    pub exchange_step: Option<MeasuredStep>,
}

/// One step as it happened.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredStep {
    /// Which step.
    pub step: u64,
    /// By rank, in order of time.
    pub events: Vec<Vec<TraceEvent>>,
}

impl Report {
    /// Reads the run folder `dir`, also of a run that goes on or was cut short.
    pub fn read(dir: &Path) -> Result<Self, ReportError> {
        let folder = RunFolder::at(dir);
        for (path, missing) in
            [(folder.run(), "run.json"), (folder.plan(), "plan.json"), (folder.predicted(), "predicted.json")]
        {
            if !path.is_file() {
                return Err(ReportError::NotARun { dir: dir.to_owned(), missing });
            }
        }
        let info = read_info(&folder)?;
        let plan = plan::read(&folder.plan())?;
        let predicted = read_predicted(&folder, plan.world_size())?;
        let steps = read_steps(&folder, plan.world_size())?;
        let events = read_events(&folder)?;
        let typical = Steady::of(&steps, info.exchange_every).typical();
        let draw: Vec<u64> = typical.into_iter().flatten().collect();
        let traces = (0..plan.world_size())
            .map(|rank| RankTrace::read(&folder, rank, &draw, &events))
            .collect::<Result<Vec<_>, _>>()?;
        let comparison = Comparison::of(&info, &plan, &predicted, &steps, &traces);
        let [plain_step, exchange_step] = typical.map(|step| MeasuredStep::of(step?, &traces));
        Ok(Self { info, plan, predicted, steps, events, comparison, plain_step, exchange_step })
    }
}

impl MeasuredStep {
    fn of(step: u64, traces: &[RankTrace]) -> Option<Self> {
        let events: Vec<Vec<_>> =
            traces.iter().map(|t| t.drawn.iter().filter(|e| e.step == step).copied().collect()).collect();
        events.iter().any(|e: &Vec<TraceEvent>| !e.is_empty()).then_some(Self { step, events })
    }
}

/// The figures of the report for machines, SI units.
pub fn render_json(report: &Report) -> String {
    let value = json!({
        "run": report.info,
        "steps_done": report.steps.len(),
        "last_step": report.steps.last(),
        "comparable": report.comparison.comparable(),
        "comparison": report.comparison,
        "events": report.events,
    });
    format!("{value:#}")
}

fn read_info(folder: &RunFolder) -> Result<RunInfo, ReportError> {
    let info: RunInfo = read_whole(&folder.run())?;
    match info.version {
        VERSION => Ok(info),
        got => Err(ReportError::Version { path: folder.run(), got, expected: VERSION }),
    }
}

fn read_predicted(folder: &RunFolder, world_size: u32) -> Result<PredictedRun, ReportError> {
    let predicted: PredictedRun = read_whole(&folder.predicted())?;
    let events = predicted.timeline.plain.iter().chain(&predicted.timeline.exchange);
    let ranks = predicted.stages.iter().map(|s| s.rank).chain(events.map(|e| e.rank));
    let ends = predicted.links.iter().flat_map(|l| [l.from, l.to]);
    match ranks.chain(ends).find(|&rank| rank >= world_size) {
        None => Ok(predicted),
        Some(rank) => Err(ReportError::UnknownRank { path: folder.predicted(), line: 1, rank, world_size }),
    }
}

/// The last record of each step, so that a resumed run's second try counts.
fn read_steps(folder: &RunFolder, world_size: u32) -> Result<Vec<StepRecord>, ReportError> {
    let mut steps = BTreeMap::new();
    read_lines(&folder.steps(), |line, record: StepRecord| {
        match record.links.iter().flat_map(|l| [l.from, l.to]).find(|&rank| rank >= world_size) {
            Some(rank) => Err(ReportError::UnknownRank { path: folder.steps(), line, rank, world_size }),
            None => {
                steps.insert(record.step, record);
                Ok(())
            }
        }
    })?;
    Ok(steps.into_values().collect())
}

fn read_events(folder: &RunFolder) -> Result<Vec<RunEvent>, ReportError> {
    let mut events = Vec::new();
    read_lines(&folder.events(), |_, event| {
        events.push(event);
        Ok(())
    })?;
    Ok(events)
}

/// Why a folder gives no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The folder is not of a run.
    #[error(
        "{} is not the folder of a run: {missing} is missing. Give the folder that `narrows train` named at its start",
        dir.display()
    )]
    NotARun {
        /// What was given.
        dir: PathBuf,
        /// The first file found missing.
        missing: &'static str,
    },
    /// A file of the folder cannot be read.
    #[error("reading {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A whole file is not what it should be.
    #[error("{}: {source}", path.display())]
    BadFile {
        /// Which file.
        path: PathBuf,
        /// What was expected, line and column.
        source: serde_json::Error,
    },
    /// The plan is not one.
    #[error(transparent)]
    Plan(#[from] InputError),
    /// A line is not what it should be.
    #[error("{}:{line}: {source}", path.display())]
    BadLine {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What was expected.
        source: serde_json::Error,
    },
    /// The folder is of another version of narrows.
    #[error("{}: format version {got}; this narrows reads version {expected}", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// The file's.
        got: u32,
        /// This program's.
        expected: u32,
    },
    /// A file speaks of a rank that the plan has not.
    #[error("{}:{line}: rank {rank} is not of this run, whose plan has {world_size} ranks", path.display())]
    UnknownRank {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// The rank named.
        rank: u32,
        /// Number of ranks of the plan.
        world_size: u32,
    },
}
