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

use std::io;
use std::path::{Path, PathBuf};

use narrows_planner::plan::Plan;

use self::files::{PredictedRun, RunEvent, RunFolder, RunInfo, StepRecord};

pub mod files;
pub mod lines;

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
}

impl Report {
    /// Reads the run folder `dir`, also of a run that goes on or was cut short.
    pub fn read(dir: &Path) -> Result<Self, ReportError> {
        let folder = RunFolder::at(dir);
        todo!("{folder:?}")
    }
}

/// The report for a terminal: at most 60 lines, without colour.
pub fn render_text(_report: &Report) -> String {
    String::new()
}

/// The report as one page that needs nothing but a browser.
pub fn render_html(_report: &Report) -> String {
    String::new()
}

/// The figures of the report for machines.
pub fn render_json(_report: &Report) -> String {
    String::new()
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
    #[error("{}: {place} names rank {rank}, but the plan's ranks are 0 to {}", path.display(), world_size - 1)]
    UnknownRank {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        place: String,
        /// The rank named.
        rank: u32,
        /// Number of ranks of the plan.
        world_size: u32,
    },
}
