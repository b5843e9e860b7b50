//! One rank's part of the pipeline: a stage of the model, its boundaries, its optimiser, its share of the exchange,
//! and the execution of one action after another.

use std::path::Path;
use std::time::{Duration, Instant};

use narrows_compress::topk::TopK;
use narrows_planner::plan::{ExchangeKind, Plan, Replica};
use narrows_planner::schedule::{self, Action, Checked, Payload, Schedule};
use narrows_transport::PeerCounters;
use narrows_transport::link::Tag;
use narrows_transport::mesh::Mesh;

use super::boundary::Boundary;
use super::{WorkerError, state};
use crate::checkpoint::{CheckpointError, Loaded, Shard, Store};
use crate::data::{Sequences, Text};
use crate::emulate::{DeviceTimes, Emulation};
use crate::engine::{AdamW, Goal, GptStage, Input, Output, Upstream};
use crate::exchange::Ownership;
use crate::exchange::dense;
use crate::exchange::sparse::{Outer, Sparse};
use crate::pace::{Pace, Span};
use crate::rendezvous::StepDone;
use crate::report::files::{LinkBytes, RunFolder, TraceEvent};
use crate::report::lines::Appender;
use crate::run_clock::RunClock;
use crate::settings::Settings;

/// What a message is, in its tag.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Activation = 1,
    Gradient = 2,
    Validation = 3,
    Sparse = 4,
    Dense = 5,
}

/// One rank's part of the pipeline.
pub struct Pipeline<'a> {
    plan: &'a Plan,
    settings: &'a Settings,
    rank: u32,
    replica: usize,
    mesh: &'a Mesh,
    clock: RunClock,
    text: Text,
    validation: Text,
    stage: GptStage,
    optimizer: AdamW,
    ownership: Ownership,
    sparse: Option<Sparse>,
    /// To the stage before and the stage after.
    before: Option<Boundary>,
    after: Option<Boundary>,
    first_sequence: usize,
    times: DeviceTimes<'a>,
    pace: Pace,
    plain: Checked<Schedule>,
    exchanging: Checked<Schedule>,
    trace: Appender<TraceEvent>,
    now: Step,
    /// What had passed when the links were last counted: a byte that leaves between two steps is of the later one.
    counted: Vec<PeerCounters>,
    message: Vec<u8>,
    incoming: Vec<f32>,
}

/// What the current step has come to.
#[derive(Default)]
struct Step {
    step: u64,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    loss_sum: f64,
    outgoing: Option<Vec<u8>>,
    codec_bytes: Vec<(u32, u64)>,
    hashes: Vec<(String, String)>,
    events: Vec<TraceEvent>,
}

impl<'a> Pipeline<'a> {
    /// Builds the rank's part; parameters begin at their seeded values.
    pub fn new(
        plan: &'a Plan,
        settings: &'a Settings,
        rank: u32,
        mesh: &'a Mesh,
        clock: RunClock,
        run: &Path,
    ) -> Result<Self, WorkerError> {
        let wrong = |e: &dyn std::fmt::Display| WorkerError::Assignment(format!("plan.json: {e}"));
        let seat =
            *plan.seats().iter().find(|s| s.placement.rank == rank).ok_or_else(|| wrong(&"no such rank"))?;
        let (replica, here) = (&plan.replicas[seat.replica], &plan.replicas[seat.replica].stages[seat.stage]);
        let sequence = plan.model.sequence as usize;
        let layers = here.layers[0] as usize..here.layers[1] as usize;
        let config = settings.engine_config(&plan.model);
        let stage =
            GptStage::new(config, layers, plan.micro_batch as usize, settings.seed, settings.threads(plan))
                .map_err(|e| wrong(&e))?;
        let ownership =
            Ownership::new(plan, rank, stage.units().iter().map(|u| (u.name.clone(), u.range.clone())));
        let boundary = |index: Option<usize>| {
            let codec = replica.boundaries.get(index?)?.codec;
            Some(Boundary::new(codec, stage.tokens(), plan.model.hidden as usize, settings.seed))
        };
        let sequences_before: u32 = plan.replicas[..seat.replica].iter().map(|r| r.microbatches).sum();
        let schedule = |step| schedule::of(plan, step).map_err(|e| wrong(&e));
        let every = settings.exchange_every(plan);
        Ok(Self {
            replica: seat.replica,
            text: Text::open(&settings.train, sequence)?,
            validation: Text::open(&settings.validation, sequence)?,
            optimizer: settings.adamw(&stage),
            sparse: sparse(plan, settings, &ownership, &stage),
            before: boundary(seat.stage.checked_sub(1)),
            after: boundary(Some(seat.stage)),
            first_sequence: (sequences_before * plan.micro_batch) as usize,
            times: DeviceTimes::of(plan, rank).map_err(|e| wrong(&e))?,
            pace: match settings.emulate {
                Emulation::On => Pace::emulated(),
                Emulation::Off => Pace::unpaced(),
            },
            plain: schedule(if every == 1 { 1 } else { every + 1 })?,
            exchanging: schedule(every)?,
            trace: Appender::open(&RunFolder::at(run).trace(rank))?,
            now: Step::default(),
            counted: mesh.counters(),
            message: Vec::new(),
            incoming: vec![0.0; stage.tokens() * plan.model.hidden as usize],
            plan,
            settings,
            rank,
            mesh,
            clock,
            stage,
            ownership,
        })
    }

    /// One optimiser step: every action of the schedule, in order.
    pub fn step(&mut self, step: u64) -> Result<StepDone, WorkerError> {
        let sequence = self.plan.model.sequence as usize;
        let count = (self.plan.replicas[self.replica].microbatches * self.plan.micro_batch) as usize;
        let which = Sequences { first: self.first_sequence, count };
        let (inputs, targets) = self.text.batch(self.settings.seed, step, which, sequence);
        self.now = Step { step, inputs, targets, ..Step::default() };
        self.stage.zero_gradients();
        let exchanging = step.is_multiple_of(self.settings.exchange_every(self.plan));
        let schedule = if exchanging { &self.exchanging } else { &self.plain };
        let actions = schedule.0[self.rank as usize].clone();
        for action in actions {
            let span = self.execute(action)?;
            self.record(action, span);
        }
        if step == self.settings.steps {
            // What is still leaving counts to the next step; after the last there is none.
            self.mesh.flush(Instant::now() + self.wait())?;
        }
        self.trace.append_all(&self.now.events)?;
        Ok(StepDone {
            step,
            loss: self.is_last().then(|| self.now.loss_sum / f64::from(self.microbatches())),
            validation_loss: None,
            ended_s: self.clock.now_s(),
            overrun_s: self.pace.take_overrun().as_secs_f64(),
            peak_memory_bytes: peak_memory_bytes(),
            links: self.links_since_last_count(),
            hashes: std::mem::take(&mut self.now.hashes),
        })
    }

    fn execute(&mut self, action: Action) -> Result<Span, WorkerError> {
        match action {
            Action::Receive { from, what, microbatch, .. } => self.receive(from, what, microbatch),
            Action::Send { to, what, microbatch, .. } => self.send(to, what, microbatch),
            Action::Forward { microbatch, .. } => self.forward(microbatch),
            Action::BackwardInput { microbatch, .. } => self.backward_input(microbatch),
            Action::BackwardWeight { microbatch, .. } => {
                self.timed(action, |p| p.stage.backward_weight(microbatch as usize).map_err(|e| p.failed(&e)))
            }
            Action::Step => self.timed(action, |p| {
                p.optimise();
                Ok(())
            }),
            Action::Reduce => self.untimed(|p| p.reduce()),
            Action::Exchange => self.untimed(|p| p.exchange()),
        }
    }

    fn receive(&mut self, from: u32, what: Payload, microbatch: u32) -> Result<Span, WorkerError> {
        self.untimed(|p| {
            let kind = match what {
                Payload::Activation => Kind::Activation,
                Payload::Gradient => Kind::Gradient,
            };
            let tag = p.tag(kind, microbatch);
            p.receive_into(from, tag, what)
        })
    }

    /// Waits for a message and decodes it into `incoming`.
    fn receive_into(&mut self, from: u32, tag: Tag, what: Payload) -> Result<(), WorkerError> {
        let step = self.now.step;
        let deadline = Instant::now() + self.wait();
        self.mesh.recv(from, tag, &mut self.message, deadline)?;
        let boundary = match what {
            Payload::Activation => self.before.as_ref(),
            Payload::Gradient => self.after.as_ref(),
        };
        boundary
            .expect("the schedule receives only over boundaries")
            .decode(&self.message, &mut self.incoming)
            .map_err(|e| WorkerError::Step {
                step,
                what: format!("rank {from}: its {what} does not parse: {e}"),
            })
    }

    fn send(&mut self, to: u32, what: Payload, microbatch: u32) -> Result<Span, WorkerError> {
        let kind = match what {
            Payload::Activation => Kind::Activation,
            Payload::Gradient => Kind::Gradient,
        };
        let start = Instant::now();
        let message = self.now.outgoing.take().expect("the schedule sends what was just computed");
        self.now.codec_bytes.push((to, message.len() as u64));
        self.mesh.send(to, self.tag(kind, microbatch), message)?;
        Ok(Span { start, end: Instant::now() })
    }

    fn forward(&mut self, microbatch: u32) -> Result<Span, WorkerError> {
        let tokens = self.tokens_of(microbatch);
        self.timed(Action::Forward { microbatch, chunk: 0 }, |p| {
            let input = match p.before {
                None => Input::Tokens(&p.now.inputs[tokens.clone()]),
                Some(_) => Input::Activation(&p.incoming),
            };
            let goal = match p.after {
                None => Goal::Loss { targets: &p.now.targets[tokens] },
                Some(_) => Goal::Activation,
            };
            let step = p.now.step;
            let failed = |what: String| WorkerError::Step { step, what };
            match p.stage.forward(microbatch as usize, input, goal).map_err(|e| failed(e.to_string()))? {
                Output::Activation(values) => {
                    p.now.outgoing = p.after.as_ref().map(|boundary| boundary.encode(values));
                }
                Output::Loss(loss) if loss.is_finite() => p.now.loss_sum += loss,
                Output::Loss(loss) => {
                    return Err(failed(format!(
                        "the loss is {loss}\n  hint: lower [optimizer] learning_rate"
                    )));
                }
            }
            Ok(())
        })
    }

    fn backward_input(&mut self, microbatch: u32) -> Result<Span, WorkerError> {
        let scale = 1.0 / self.gradient_divisor();
        self.timed(Action::BackwardInput { microbatch, chunk: 0 }, |p| {
            let upstream = match p.after {
                None => Upstream::Loss { scale },
                Some(_) => Upstream::Activation(&p.incoming),
            };
            let step = p.now.step;
            let gradient = p
                .stage
                .backward_input(microbatch as usize, upstream)
                .map_err(|e| WorkerError::Step { step, what: e.to_string() })?;
            p.now.outgoing = match (&p.before, gradient) {
                (Some(boundary), Some(gradient)) => Some(boundary.encode(gradient)),
                _ => None,
            };
            Ok(())
        })
    }

    fn optimise(&mut self) {
        let rate = self.settings.learning_rate_at(self.now.step);
        self.stage.optimise(&mut self.optimizer, rate, 1.0);
        if self.plan.exchange.iter().any(|e| e.kind == ExchangeKind::Dense) {
            self.now.hashes = self.ownership.hashes(self.stage.parameters());
        }
    }

    fn reduce(&mut self) -> Result<(), WorkerError> {
        let (step, wait) = (self.now.step, self.wait());
        let tag = |unit| tag(Kind::Dense, step, unit);
        for unit in &self.ownership.units {
            let bytes = 4 * unit.range.len() as u64;
            let share = bytes / unit.owners.len() as u64 * 2;
            let peers = unit.owners.iter().filter(|&&o| o != self.rank);
            self.now.codec_bytes.extend(peers.map(|&peer| (peer, share)));
        }
        Ok(dense::all_reduce(&self.ownership, self.mesh, tag, wait, self.stage.gradients_mut())?)
    }

    fn exchange(&mut self) -> Result<(), WorkerError> {
        let (step, wait) = (self.now.step, self.wait());
        let tag = self.tag(Kind::Sparse, 0);
        let Some(sparse) = &mut self.sparse else { return Ok(()) };
        let sent = sparse
            .exchange(&self.ownership, self.mesh, tag, wait, self.stage.parameters_mut())
            .map_err(|source| WorkerError::Exchange { step, source })?;
        self.now.codec_bytes.extend(sent.iter().map(|(peer, sent)| (*peer, sent.codec_bytes)));
        self.now.hashes = self.ownership.hashes(self.stage.parameters());
        Ok(())
    }

    /// Mean loss over the validation windows: a forward-only pass, nothing paced. The replica with the fewest stages
    /// does it: the model as it will be used, with the fewest boundaries between.
    pub fn validate(&mut self, step: u64) -> Result<Option<f64>, WorkerError> {
        let stages = |(_, r): &(usize, &Replica)| r.stages.len();
        let shortest = self.plan.replicas.iter().enumerate().min_by_key(stages);
        if shortest.is_none_or(|(replica, _)| replica != self.replica) {
            return Ok(None);
        }
        // Its bytes are no step's: what the step still had to send leaves first, what it sends leaves before the next.
        self.mesh.flush(Instant::now() + self.wait())?;
        let before = self.mesh.counters();
        let (sequence, per) = (self.plan.model.sequence as usize, self.plan.micro_batch as usize);
        let rounds = self.settings.validation_sequences.div_ceil(per).max(1);
        let mut sum = 0.0;
        for round in 0..rounds {
            let windows = (round * per..(round + 1) * per).map(|w| self.validation.window(w, sequence));
            let (inputs, targets): (Vec<_>, Vec<_>) = windows.unzip();
            sum += self.evaluate(round as u32, &inputs.concat(), &targets.concat())?;
        }
        self.mesh.flush(Instant::now() + self.wait())?;
        for ((counted, now), before) in self.counted.iter_mut().zip(self.mesh.counters()).zip(&before) {
            counted.sent_payload_bytes += now.sent_payload_bytes - before.sent_payload_bytes;
            counted.sent_wire_bytes += now.sent_wire_bytes - before.sent_wire_bytes;
        }
        self.pace.idle_until_now();
        tracing::debug!(step, "validated");
        Ok(self.is_last().then_some(sum / rounds as f64))
    }

    fn evaluate(&mut self, round: u32, inputs: &[u32], targets: &[u32]) -> Result<f64, WorkerError> {
        let stages = &self.plan.replicas[self.replica].stages;
        let here = stages.iter().position(|s| s.ranks[0].rank == self.rank).expect("a rank has a stage");
        let tag = self.tag(Kind::Validation, round);
        if here > 0 {
            self.receive_into(stages[here - 1].ranks[0].rank, tag, Payload::Activation)?;
        }
        let input = if here == 0 { Input::Tokens(inputs) } else { Input::Activation(&self.incoming) };
        let goal = if self.after.is_none() { Goal::Loss { targets } } else { Goal::Activation };
        let step = self.now.step;
        let output = self.stage.evaluate(input, goal);
        match output.map_err(|e| WorkerError::Step { step, what: e.to_string() })? {
            Output::Loss(loss) => Ok(loss),
            Output::Activation(values) => {
                let message = self.after.as_ref().expect("not the last stage").encode(values);
                self.mesh.send(stages[here + 1].ranks[0].rank, tag, message)?;
                Ok(0.0)
            }
        }
    }

    /// Writes this rank's part of a checkpoint.
    pub fn save(&mut self, store: &Store, step: u64) -> Result<Shard, CheckpointError> {
        let shard = state::save(store, step, self.rank, &self.stage, &self.optimizer, self.sparse.as_ref());
        self.pace.idle_until_now();
        shard
    }

    /// Restores this rank's part of a checkpoint.
    pub fn load(&mut self, file: &Loaded, step: u64) -> Result<(), CheckpointError> {
        state::load(file, step, &mut self.stage, &mut self.optimizer, self.sparse.as_mut())
    }

    /// Runs arithmetic that takes `action`'s time on the emulated device.
    fn timed(
        &mut self,
        action: Action,
        compute: impl FnOnce(&mut Self) -> Result<(), WorkerError>,
    ) -> Result<Span, WorkerError> {
        let mut pace = std::mem::replace(&mut self.pace, Pace::unpaced());
        let (result, span) = pace.run(self.times.of_action(action), || compute(self));
        self.pace = pace;
        result.map(|()| span)
    }

    /// Runs what takes the time it takes here: waiting, mostly.
    fn untimed(
        &mut self,
        wait: impl FnOnce(&mut Self) -> Result<(), WorkerError>,
    ) -> Result<Span, WorkerError> {
        let start = Instant::now();
        wait(self)?;
        self.pace.idle_until_now();
        Ok(Span { start, end: Instant::now() })
    }

    fn record(&mut self, action: Action, span: Span) {
        let (start_s, end_s) = (self.clock.at_s(span.start), self.clock.at_s(span.end));
        self.now.events.push(TraceEvent { step: self.now.step, action, start_s, end_s });
    }

    /// Bytes sent to each peer since they were last counted, with what the codecs say.
    fn links_since_last_count(&mut self) -> Vec<LinkBytes> {
        let before = std::mem::replace(&mut self.counted, self.mesh.counters());
        let link = |(now, before): (&PeerCounters, &PeerCounters)| {
            let codec = self.now.codec_bytes.iter().filter(|(to, _)| *to == now.peer);
            LinkBytes {
                from: self.rank,
                to: now.peer,
                payload_bytes: now.sent_payload_bytes - before.sent_payload_bytes,
                wire_bytes: now.sent_wire_bytes - before.sent_wire_bytes,
                codec_bytes: codec.map(|(_, bytes)| bytes).sum(),
            }
        };
        self.counted.iter().zip(&before).map(link).filter(|l| l.wire_bytes + l.codec_bytes > 0).collect()
    }

    fn tokens_of(&self, microbatch: u32) -> std::ops::Range<usize> {
        let tokens = self.stage.tokens();
        microbatch as usize * tokens..(microbatch as usize + 1) * tokens
    }

    /// What a microbatch's mean loss is divided by: the microbatches whose gradients are summed before the step.
    fn gradient_divisor(&self) -> f32 {
        if self.plan.exchange.iter().any(|e| e.kind == ExchangeKind::Dense) {
            return self.plan.replicas.iter().map(|r| r.microbatches).sum::<u32>() as f32;
        }
        self.microbatches() as f32
    }

    fn microbatches(&self) -> u32 {
        self.plan.replicas[self.replica].microbatches
    }

    fn is_last(&self) -> bool {
        self.after.is_none()
    }

    fn wait(&self) -> Duration {
        Duration::from_secs_f64(self.settings.wait_s)
    }

    fn tag(&self, kind: Kind, index: u32) -> Tag {
        tag(kind, self.now.step, index)
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> WorkerError {
        WorkerError::Step { step: self.now.step, what: error.to_string() }
    }
}

/// Kind in the top byte, step in the next four, index in the last three.
fn tag(kind: Kind, step: u64, index: u32) -> Tag {
    Tag((kind as u64) << 56 | (step & 0xFFFF_FFFF) << 24 | u64::from(index & 0xFF_FFFF))
}

fn sparse(plan: &Plan, settings: &Settings, ownership: &Ownership, stage: &GptStage) -> Option<Sparse> {
    let kept = plan.exchange.iter().find_map(|e| match e.kind {
        ExchangeKind::Sparse { top_k } => Some(top_k),
        _ => None,
    })?;
    let total: u32 = plan.replicas.iter().map(|r| r.microbatches).sum();
    let outer = Outer {
        top_k: TopK::new(kept as usize).expect("a checked plan keeps 1 to 4096"),
        decay: settings.error_feedback,
        outer_rate: settings.outer_rate,
        shares: plan.replicas.iter().map(|r| r.microbatches as f32 / total as f32).collect(),
    };
    Some(Sparse::new(ownership, stage.parameters(), &outer))
}

/// Peak resident bytes of this process; 0 where the system does not tell.
fn peak_memory_bytes() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    let kib =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
