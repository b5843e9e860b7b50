//! The main job: plan if there is no plan, launch a worker a rank, keep the books, say how it went.
//!
//! ```text
//!   run.toml ──> prepare (plan, predict, run folder) ──> launch ranks ─┐
//!                                                    coordinator ──ledger──> steps.jsonl, checkpoints, progress
//! ```
//! This process trains nothing. It holds the coordinator and the launcher; whichever sees a failure first ends the job,
//! and the message names the rank and the step.
//!
//! Not here: the plan (`narrows_planner::search`), what workers do (`worker`), the report (`report`).

mod conductor;
mod prepare;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use narrows_planner::input::InputError;
use narrows_planner::plan::Plan;

use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::launch::{self, Echo, JobEnvironment, JobKey, LaunchConfig, Outcome, RankCommand};
use crate::rendezvous::Coordinator;
use crate::report::files::{RunFolder, StepRecord};
use conductor::Conductor;
pub use prepare::{Prepared, Start, plan_of, prepare};

/// How long a rank may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// Why a run could not be made or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file that the user wrote.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The text.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The plan or the settings ask for what cannot be had.
    #[error("{0}")]
    Impossible(String),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run folder.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The job could not be started.
    #[error("the job cannot be started: {0}")]
    Start(String),
}

impl TrainError {
    /// Whether what the user gave is at fault, rather than the world.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, TrainError::Input(_) | TrainError::Data(_) | TrainError::Impossible(_))
            || matches!(self, TrainError::Checkpoint(e) if !matches!(e, CheckpointError::Io { .. }))
    }
}

/// What a watcher of the run is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// All ranks are connected; training begins after this many steps done.
    Started {
        /// Steps done by an earlier run.
        resumed: u64,
    },
    /// A step is done.
    Step(StepRecord),
    /// A checkpoint is on the disk.
    Checkpoint {
        /// Steps done.
        step: u64,
    },
}

/// How the run ended.
#[derive(Debug)]
pub struct Ended {
    /// What the launcher saw.
    pub outcome: Outcome,
    /// The step that the failed rank was in.
    pub failed_step: Option<u64>,
    /// Steps whose checkpoints are whole, ascending.
    pub checkpoints: Vec<u64>,
}

/// Launches the prepared run and keeps its books to the end. Blocks.
pub fn run(prepared: &Prepared, watch: impl FnMut(Progress) + Send) -> Result<Ended, TrainError> {
    let key = JobKey::random().map_err(|e| TrainError::Start(e.to_string()))?;
    let world_size = prepared.plan.world_size();
    let coordinator = Coordinator::listen(world_size, &key.to_string())
        .map_err(|e| TrainError::Start(format!("the coordinator cannot listen on a loopback port: {e}")))?;
    let ranks = commands(prepared, &coordinator, &key)?;
    let config =
        LaunchConfig { log_dir: RunFolder::at(&prepared.folder).logs(), grace: GRACE, echo: Echo::Quiet };
    let (stop, control) = launch::control();
    let over = Arc::new(AtomicBool::new(false));
    let conductor = Conductor::new(prepared, coordinator, stop, over.clone())?;
    std::thread::scope(|scope| {
        let books = scope.spawn(move || conductor.conduct(watch));
        let outcome =
            launch::run(ranks, &config, control, |_| {}).map_err(|e| TrainError::Start(e.to_string()));
        over.store(true, Ordering::Release);
        let ledger = books.join().expect("the conductor does not panic");
        let outcome = outcome?;
        let store = crate::checkpoint::Store::of_run(&prepared.folder);
        store.sweep()?;
        let failed_step = match &outcome {
            Outcome::Failed(failure) => failure.rank.map(|rank| ledger.step_of(rank)),
            Outcome::Success | Outcome::Interrupted { .. } => None,
        };
        Ok(Ended { outcome, failed_step, checkpoints: store.steps() })
    })
}

/// One `narrows worker` a rank.
fn commands(
    prepared: &Prepared,
    coordinator: &Coordinator,
    key: &JobKey,
) -> Result<Vec<RankCommand>, TrainError> {
    let program = std::env::current_exe().map_err(|e| TrainError::Start(e.to_string()))?;
    let folder = RunFolder::at(&prepared.folder);
    let address = coordinator.address().to_string();
    let job = JobEnvironment {
        plan_path: &text(&folder.plan()),
        log_dir: &text(&folder.logs()),
        run_id: &prepared.settings.name,
        master_addr: "127.0.0.1",
        master_port: launch::free_port().map_err(|e| TrainError::Start(e.to_string()))?,
        coordinator: Some(&address),
        key,
    };
    let environments = launch::environment(&prepared.plan, &job, |name| std::env::var_os(name).is_some());
    let command = |(seat, mut env): (narrows_planner::plan::Seat<'_>, Vec<(String, String)>)| {
        env.push(("NARROWS_RUN".into(), text(&prepared.folder)));
        if prepared.resumed > 0 {
            env.push(("NARROWS_RESUME".into(), prepared.resumed.to_string()));
        }
        RankCommand {
            rank: seat.placement.rank,
            label: launch::rank_label(&seat),
            program: program.clone().into(),
            args: vec!["worker".into()],
            env,
        }
    };
    Ok(prepared.plan.seats().into_iter().zip(environments).map(command).collect())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Everything that a plan asks of the native engine and the runtime and that they cannot do, refused by name.
pub fn refuse_what_cannot_run(plan: &Plan) -> Result<(), TrainError> {
    use narrows_planner::model::{ModelKind, Precision};
    use narrows_planner::plan::ExchangeKind;
    let refuse =
        |what: String| Err(TrainError::Impossible(format!("the plan cannot be trained here: {what}")));
    let model = &plan.model;
    if model.kind != ModelKind::Gpt {
        return refuse("the native engine trains kind = \"gpt\" only".into());
    }
    if !model.is_plain_gpt() {
        return refuse("the native engine's layers are GPT-2's with an untied head: leave the rest of [model] out".into());
    }
    if model.precision != Precision::Fp32 {
        return refuse("the native engine computes in fp32: set [train] precision = \"fp32\"".into());
    }
    if model.vocab != crate::data::VOCABULARY {
        return refuse(format!("tokens are bytes: [model] vocab must be 256, not {}", model.vocab));
    }
    if plan.schedule.virtual_stages != 1 {
        return refuse(format!("virtual_stages is {}, the runtime runs 1", plan.schedule.virtual_stages));
    }
    for (r, replica) in plan.replicas.iter().enumerate() {
        for (s, stage) in replica.stages.iter().enumerate() {
            if stage.ranks.len() != 1 {
                let n = stage.ranks.len();
                return refuse(format!(
                    "replica {r} stage {s} is tensor-parallel over {n} ranks; the engine runs 1"
                ));
            }
        }
    }
    match plan.exchange.as_slice() {
        [] => Ok(()),
        [one] if one.replicas.len() == plan.replicas.len() && one.kind != ExchangeKind::Streaming => Ok(()),
        [one] if one.kind == ExchangeKind::Streaming => {
            refuse("exchange \"streaming\" has no runtime yet".into())
        }
        _ => refuse(
            "the runtime exchanges among all replicas at once: give one [exchange] with all of them".into(),
        ),
    }
}
