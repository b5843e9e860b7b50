//! The coordinator's thread: lets ranks begin together, writes the ledger's entries down, ends the run when it must.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use narrows_transport::clock::monotonic_ns;

use super::prepare::sparse_period;
use super::{Prepared, Progress, TrainError};
use crate::checkpoint::{self, Manifest, Store};
use crate::launch::Stop;
use crate::ledger::{Entry, Ledger};
use crate::rendezvous::{Coordinator, Event, Order, Report};
use crate::report::files::{EventKind, RunEvent, RunFolder, StepRecord};
use crate::report::lines::Appender;
use crate::run_clock::RunClock;

/// How often the thread looks whether the job is over.
const TICK: Duration = Duration::from_millis(50);

/// The coordinator's thread.
pub struct Conductor {
    coordinator: Coordinator,
    stop: Stop,
    over: Arc<AtomicBool>,
    ledger: Ledger,
    store: Store,
    keep: usize,
    fingerprint: String,
    resumed: u64,
    /// Seconds of the run that an earlier part took.
    began_s: f64,
    wait: Duration,
    waiting: BTreeMap<u32, SocketAddr>,
    world_size: usize,
    clock: Option<RunClock>,
    steps: Appender<StepRecord>,
    events: Appender<RunEvent>,
}

impl Conductor {
    /// Opens the run's books.
    pub fn new(
        prepared: &Prepared,
        coordinator: Coordinator,
        stop: Stop,
        over: Arc<AtomicBool>,
    ) -> Result<Self, TrainError> {
        let folder = RunFolder::at(&prepared.folder);
        let failed = |path: PathBuf| move |source| TrainError::Folder { path, source };
        let settings = &prepared.settings;
        let period = sparse_period(&prepared.plan).map_or(0, u64::from);
        Ok(Self {
            coordinator,
            stop,
            over,
            ledger: Ledger::new(&prepared.plan, period, prepared.resumed),
            store: Store::of_run(&prepared.folder),
            keep: settings.checkpoint_keep,
            fingerprint: settings.fingerprint(&prepared.plan),
            resumed: prepared.resumed,
            began_s: prepared.began_s,
            wait: Duration::from_secs_f64(settings.wait_s),
            waiting: BTreeMap::new(),
            world_size: prepared.plan.world_size() as usize,
            clock: None,
            steps: Appender::open(&folder.steps()).map_err(failed(folder.steps()))?,
            events: Appender::open(&folder.events()).map_err(failed(folder.events()))?,
        })
    }

    /// Keeps the books until the job is over.
    pub fn conduct(mut self, mut watch: impl FnMut(Progress)) -> Ledger {
        let deadline = Instant::now() + self.wait;
        loop {
            match self.coordinator.next(TICK) {
                Some(Event::Report(rank, Report::Hello { address, .. })) => {
                    self.greet(rank, address, &mut watch)
                }
                Some(Event::Report(rank, report)) => {
                    for entry in self.ledger.note(rank, report) {
                        self.enter(entry, &mut watch);
                    }
                }
                Some(Event::Lost(rank)) if !self.ledger.is_done(rank) => self.lost(rank),
                Some(Event::Lost(_)) => {}
                None if self.over.load(Ordering::Acquire) => return self.ledger,
                None if self.clock.is_none() && Instant::now() > deadline => self.give_up_waiting(),
                None => {}
            }
        }
    }

    /// A rank is here; when all are, they begin.
    fn greet(&mut self, rank: u32, address: SocketAddr, watch: &mut impl FnMut(Progress)) {
        self.waiting.insert(rank, address);
        if self.waiting.len() < self.world_size {
            return;
        }
        let began_ns = monotonic_ns().saturating_sub((self.began_s * 1e9) as u64);
        self.clock = Some(RunClock::since(began_ns));
        self.ledger.begin(self.began_s);
        let peers = self.waiting.iter().map(|(&r, &a)| (r, a)).collect();
        self.coordinator.order_all(&Order::Start { peers, began_ns });
        if self.resumed > 0 {
            self.event(EventKind::Resume, self.resumed, format!("resumed after step {}", self.resumed));
        }
        watch(Progress::Started { resumed: self.resumed });
    }

    fn enter(&mut self, entry: Entry, watch: &mut impl FnMut(Progress)) {
        match entry {
            Entry::Step(record) => {
                if let Err(error) = self.steps.append(&record) {
                    return self.fail(None, format!("steps.jsonl cannot be written: {error}"));
                }
                watch(Progress::Step(record));
            }
            Entry::Verified { step, hashes } => {
                let text = format!("replicas hold the same bits ({hashes} hashes compared)");
                self.event(EventKind::ExchangeVerified, step, text);
            }
            Entry::Checkpoint { step, shards } => {
                let fingerprint = self.fingerprint.clone();
                let manifest = Manifest { version: checkpoint::VERSION, step, fingerprint, shards };
                match self.store.commit(&manifest, self.keep) {
                    Ok(path) => {
                        self.event(EventKind::Checkpoint, step, path.display().to_string());
                        watch(Progress::Checkpoint { step });
                    }
                    Err(error) => self.fail(None, error.to_string()),
                }
            }
            Entry::Stop { rank, reason } => self.fail(rank, reason),
        }
    }

    fn lost(&mut self, rank: u32) {
        let step = self.ledger.step_of(rank);
        self.fail(Some(rank), format!("rank {rank}, step {step}: its line to the coordinator broke"));
    }

    fn give_up_waiting(&mut self) {
        let missing: Vec<String> = (0..self.world_size as u32)
            .filter(|r| !self.waiting.contains_key(r))
            .map(|r| r.to_string())
            .collect();
        let waited = self.wait.as_secs_f64();
        self.fail(None, format!("after {waited:.0} s these ranks had not arrived: {}", missing.join(", ")));
    }

    /// Tells the launcher; it looks for a dead process first and ends the rest.
    fn fail(&mut self, rank: Option<u32>, reason: String) {
        let step = rank.map_or(0, |r| self.ledger.step_of(r));
        self.event(EventKind::Failure, step, reason.clone());
        self.stop.because(rank, reason.clone());
        self.coordinator.order_all(&Order::Abort { reason });
    }

    fn event(&mut self, kind: EventKind, step: u64, text: String) {
        let time_s = self.clock.map_or(self.began_s, |c| c.now_s());
        if let Err(error) = self.events.append(&RunEvent { time_s, kind, step, text }) {
            tracing::warn!(%error, "events.jsonl cannot be written");
        }
    }
}
