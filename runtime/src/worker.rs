//! A rank: executes its list of actions, step by step: the very list that `simulate` executed on paper.
//!
//! ```text
//!   hello -> start -> [ Receive Forward Send … BackwardInput BackwardWeight … Step (Exchange) ] per step -> done
//! ```
//! The compute thread does one action at a time; messages arrive and leave beside it (`narrows_transport`). An emulated
//! device holds each action to its time in the inventory (`pace`). Every wait ends by a deadline; what ends a worker is
//! reported with the step it was in, and as a victim's end when a peer or the coordinator was the cause.
//!
//! Not here: what the actions are (`narrows_planner::schedule`), what they compute (`engine`), the choice of codec
//! (the plan's).

mod boundary;
mod pipeline;
mod state;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use narrows_planner::plan::Plan;
use narrows_transport::collective::CollectiveError;
use narrows_transport::link::LinkError;
use narrows_transport::mesh::{JobKey, Mesh, MeshConfig, MeshError};

use crate::checkpoint::{CheckpointError, Store};
use crate::data::DataError;
use crate::emulate;
use crate::exchange::sparse::SparseError;
use crate::rendezvous::{Line, LineError, Report, Reporter, StepDone};
use crate::run_clock::RunClock;
use crate::settings::Settings;
use pipeline::Pipeline;

/// What a worker is told by its environment.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// `RANK`.
    pub rank: u32,
    /// `NARROWS_RUN`: the run's folder, with `plan.json` and `settings.json`.
    pub run: PathBuf,
    /// `NARROWS_COORDINATOR`.
    pub coordinator: SocketAddr,
    /// `NARROWS_JOB_KEY`, hexadecimal.
    pub key: String,
    /// `NARROWS_RESUME`: the step whose checkpoint to start from.
    pub resume: Option<u64>,
}

/// Why a worker ended early.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The environment or a file of the run is not as `narrows train` writes it.
    #[error("{0}")]
    Assignment(String),
    /// The line to the coordinator.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The links could not be made.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// A peer or the network; says which, in which step.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The same, between replicas.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The text.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The exchange between replicas.
    #[error("step {step}: exchange: {source}")]
    Exchange {
        /// Optimiser step.
        step: u64,
        /// Why.
        source: SparseError,
    },
    /// A peer's boundary message is not what the plan says, or the loss has diverged.
    #[error("step {step}: {what}")]
    Step {
        /// Optimiser step.
        step: u64,
        /// What went wrong and with whom.
        what: String,
    },
    /// The trace could not be written.
    #[error("the trace cannot be written: {0}")]
    Trace(#[from] std::io::Error),
}

impl WorkerError {
    /// Whether another rank or the coordinator is the cause.
    pub fn is_victim(&self) -> bool {
        match self {
            WorkerError::Line(_)
            | WorkerError::Mesh(_)
            | WorkerError::Link(_)
            | WorkerError::Collective(_) => true,
            WorkerError::Exchange { source, .. } => matches!(source, SparseError::Link(_)),
            _ => false,
        }
    }
}

impl Assignment {
    /// Reads the environment that `narrows train` gives its workers.
    pub fn from_environment() -> Result<Self, WorkerError> {
        let text = |name: &str| {
            std::env::var(name).map_err(|_| {
                WorkerError::Assignment(format!("{name} is not set: workers are started by `narrows train`"))
            })
        };
        fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, WorkerError> {
            value.parse().map_err(|_| WorkerError::Assignment(format!("{name}={value:?} does not parse")))
        }
        Ok(Self {
            rank: number("RANK", &text("RANK")?)?,
            run: text("NARROWS_RUN")?.into(),
            coordinator: number("NARROWS_COORDINATOR", &text("NARROWS_COORDINATOR")?)?,
            key: text("NARROWS_JOB_KEY")?,
            resume: text("NARROWS_RESUME").ok().map(|s| number("NARROWS_RESUME", &s)).transpose()?,
        })
    }
}

/// Runs a rank to the end of its steps.
pub fn run(assignment: &Assignment) -> Result<(), WorkerError> {
    let settings = read::<Settings>(&assignment.run.join("settings.json"))?;
    let plan = read::<Plan>(&assignment.run.join("plan.json"))?;
    let wait = Duration::from_secs_f64(settings.wait_s);
    let step = Arc::new(AtomicU64::new(assignment.resume.unwrap_or(0)));
    let (mesh, reporter, clock) = meet(assignment, &settings, &plan, wait)?;
    let mut rank = Rank { plan: &plan, settings: &settings, assignment, step: step.clone(), reporter };
    let outcome = rank.train(&mesh, clock);
    if let Err(error) = &outcome {
        let (step, victim) = (step.load(Ordering::Relaxed), error.is_victim());
        // If the coordinator is gone too, the log has it.
        let _ = rank.reporter.send(&Report::Failed { step, victim, error: error.to_string() });
    }
    match &outcome {
        // A peer that is lost now has reported its own end.
        Ok(()) => drop(mesh.close(Instant::now() + wait)),
        Err(error) => mesh.abort(&error.to_string()),
    }
    outcome
}

/// Hello to the coordinator, links to the peers.
fn meet(
    assignment: &Assignment,
    settings: &Settings,
    plan: &Plan,
    wait: Duration,
) -> Result<(Arc<Mesh>, Reporter, RunClock), WorkerError> {
    let deadline = Instant::now() + wait;
    let key = JobKey::from_hex(&assignment.key)
        .ok_or_else(|| WorkerError::Assignment("NARROWS_JOB_KEY is not 64 hexadecimal digits".into()))?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let waiting = Mesh::bind(MeshConfig {
        shape: emulate::open_shape(&assignment.run, settings.emulate).map_err(WorkerError::Assignment)?,
        send_timeout: wait,
        ..MeshConfig::new(assignment.rank, plan.world_size(), key, listen)
    })?;
    let hello =
        Report::Hello { key: assignment.key.clone(), rank: assignment.rank, address: waiting.address() };
    let mut line = Line::connect(assignment.coordinator, &hello, deadline)?;
    let (peers, began_ns) = line.wait_for_start(deadline)?;
    let mesh = Arc::new(waiting.connect(&peers, deadline)?);
    let aborted = mesh.clone();
    let reporter = line.split(move |reason| aborted.abort(&reason)).map_err(WorkerError::Trace)?;
    Ok((mesh, reporter, RunClock::since(began_ns)))
}

/// One rank's training loop.
struct Rank<'a> {
    plan: &'a Plan,
    settings: &'a Settings,
    assignment: &'a Assignment,
    step: Arc<AtomicU64>,
    reporter: Reporter,
}

impl Rank<'_> {
    fn train(&mut self, mesh: &Mesh, clock: RunClock) -> Result<(), WorkerError> {
        let (plan, settings, rank) = (self.plan, self.settings, self.assignment.rank);
        let store = Store::of_run(&self.assignment.run);
        let mut pipeline = Pipeline::new(plan, settings, rank, mesh, clock, &self.assignment.run)?;
        let first = match self.assignment.resume {
            Some(step) => {
                let manifest = store.manifest(step, &settings.fingerprint(plan), plan.world_size())?;
                pipeline.load(&store.read_shard(&manifest, rank)?, step)?;
                step + 1
            }
            None => 1,
        };
        for step in first..=settings.steps {
            self.step.store(step, Ordering::Relaxed);
            mesh.set_step(step);
            tracing::debug!(step, "step");
            let done = pipeline.step(step)?;
            self.finish(&mut pipeline, &store, done)?;
        }
        self.reporter.send(&Report::Done)?;
        Ok(())
    }

    /// Validation and checkpoint where they are due, then the step's report.
    fn finish(
        &mut self,
        pipeline: &mut Pipeline<'_>,
        store: &Store,
        mut done: StepDone,
    ) -> Result<(), WorkerError> {
        let (step, settings) = (done.step, self.settings);
        if settings.validates_at(step) {
            done.validation_loss = pipeline.validate(step)?;
        }
        self.reporter.send(&Report::Step(done))?;
        if settings.saves_at(step) {
            let shard = pipeline.save(store, step)?;
            self.reporter.send(&Report::Shard { step, shard })?;
        }
        Ok(())
    }
}

fn read<T: for<'a> serde::Deserialize<'a>>(path: &Path) -> Result<T, WorkerError> {
    let bytes =
        std::fs::read(path).map_err(|e| WorkerError::Assignment(format!("{}: {e}", path.display())))?;
    serde_json::from_slice(&bytes).map_err(|e| WorkerError::Assignment(format!("{}: {e}", path.display())))
}
