//! What the coordinator knows of a run: who is in which step, whether replicas still hold the same bits, which
//! checkpoints are whole. Reports in, entries out; no socket, no file, no clock.
//!
//! ```text
//!   Report (of a rank) ──note──> Entry::{Step, Verified, Checkpoint, Stop}
//! ```
//! A step is entered when every rank has reported it, in order. After each exchange every owner of a unit of parameters
//! reports its hash; unequal hashes stop the run and name the unit, the ranks and the step.
//!
//! Not here: writing entries down (`train`).

use std::collections::{BTreeMap, BTreeSet};

use narrows_planner::plan::Plan;

use crate::checkpoint::Shard;
use crate::rendezvous::{Report, StepDone};
use crate::report::files::{LinkBytes, StepRecord};

/// What a report led to.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// Every rank has done the step.
    Step(StepRecord),
    /// All owners of every unit hold the same bits after this step.
    Verified {
        /// Optimiser step.
        step: u64,
        /// Hashes compared.
        hashes: usize,
    },
    /// Every rank has written its part.
    Checkpoint {
        /// Optimiser steps done.
        step: u64,
        /// In rank order.
        shards: Vec<Shard>,
    },
    /// The run cannot go on.
    Stop {
        /// Whom to blame.
        rank: Option<u32>,
        /// Why.
        reason: String,
    },
}

/// The coordinator's knowledge of a run.
#[derive(Debug)]
pub struct Ledger {
    /// Replica of each rank.
    replica_of: Vec<usize>,
    /// Share of each replica in the global batch.
    share: Vec<f64>,
    tokens_per_step: u64,
    exchange_every: u64,
    steps: BTreeMap<u64, BTreeMap<u32, StepDone>>,
    shards: BTreeMap<u64, BTreeMap<u32, Shard>>,
    last_step: Vec<u64>,
    last_ended_s: f64,
    done: BTreeSet<u32>,
}

impl Ledger {
    /// Of a run that begins after step `resumed` (0: at the beginning); `exchange_every` 0 means never.
    pub fn new(plan: &Plan, exchange_every: u64, resumed: u64) -> Self {
        let total: u32 = plan.replicas.iter().map(|r| r.microbatches).sum();
        Self {
            replica_of: plan.seats().iter().map(|s| s.replica).collect(),
            share: plan.replicas.iter().map(|r| f64::from(r.microbatches) / f64::from(total)).collect(),
            tokens_per_step: plan.tokens_per_step(),
            exchange_every,
            steps: BTreeMap::new(),
            shards: BTreeMap::new(),
            last_step: vec![resumed; plan.seats().len()],
            last_ended_s: 0.0,
            done: BTreeSet::new(),
        }
    }

    /// Training begins, `began_s` seconds into the run.
    pub fn begin(&mut self, began_s: f64) {
        self.last_ended_s = began_s;
    }

    /// The step that a rank is in: the one after the last it reported.
    pub fn step_of(&self, rank: u32) -> u64 {
        self.last_step.get(rank as usize).map_or(0, |s| s + 1)
    }

    /// Whether a rank has done all its steps, so that its line may close.
    pub fn is_done(&self, rank: u32) -> bool {
        self.done.contains(&rank)
    }

    /// Takes a rank's report.
    pub fn note(&mut self, rank: u32, report: Report) -> Vec<Entry> {
        match report {
            Report::Hello { .. } => Vec::new(),
            Report::Step(done) => self.note_step(rank, done),
            Report::Shard { step, shard } => self.note_shard(rank, step, shard).into_iter().collect(),
            Report::Failed { victim: true, .. } => Vec::new(),
            Report::Failed { step, error, .. } => {
                vec![Entry::Stop { rank: Some(rank), reason: format!("rank {rank}, step {step}: {error}") }]
            }
            Report::Done => {
                self.done.insert(rank);
                Vec::new()
            }
        }
    }

    fn note_step(&mut self, rank: u32, done: StepDone) -> Vec<Entry> {
        self.last_step[rank as usize] = done.step;
        self.steps.entry(done.step).or_default().insert(rank, done);
        let mut entries = Vec::new();
        while let Some(next) = self.steps.first_entry().filter(|e| e.get().len() == self.last_step.len()) {
            let (step, reports) = next.remove_entry();
            entries.extend(self.close(step, &reports));
        }
        entries
    }

    /// Every rank has reported `step`.
    fn close(&mut self, step: u64, reports: &BTreeMap<u32, StepDone>) -> Vec<Entry> {
        let ended_s = reports.values().map(|r| r.ended_s).fold(0.0, f64::max);
        let weighted =
            |(rank, r): (&u32, &StepDone)| Some(r.loss? * self.share[self.replica_of[*rank as usize]]);
        let record = StepRecord {
            step,
            loss: reports.iter().filter_map(weighted).sum(),
            validation_loss: reports.values().find_map(|r| r.validation_loss),
            iteration_s: ended_s - self.last_ended_s,
            tokens: self.tokens_per_step,
            exchange: self.exchange_every > 0 && step.is_multiple_of(self.exchange_every),
            links: reports.values().flat_map(|r| r.links.iter().copied()).collect::<Vec<LinkBytes>>(),
            overrun_s: reports.values().map(|r| r.overrun_s).collect(),
            peak_memory_bytes: reports.values().map(|r| r.peak_memory_bytes).collect(),
        };
        self.last_ended_s = ended_s;
        let mut entries = vec![Entry::Step(record)];
        entries.extend(compare(step, reports));
        entries
    }

    fn note_shard(&mut self, rank: u32, step: u64, shard: Shard) -> Option<Entry> {
        let shards = self.shards.entry(step).or_default();
        shards.insert(rank, shard);
        if shards.len() < self.last_step.len() {
            return None;
        }
        let shards = self.shards.remove(&step)?.into_values().collect();
        Some(Entry::Checkpoint { step, shards })
    }
}

/// Compares the hashes of each unit over all its owners.
fn compare(step: u64, reports: &BTreeMap<u32, StepDone>) -> Option<Entry> {
    let mut seen: BTreeMap<&str, (u32, &str)> = BTreeMap::new();
    let mut hashes = 0;
    for (&rank, report) in reports {
        for (unit, hash) in &report.hashes {
            hashes += 1;
            let (first, expected) = *seen.entry(unit).or_insert((rank, hash));
            if expected != hash {
                let reason = format!(
                    "step {step}: replicas differ: {unit} is {expected} on rank {first}, {hash} on rank {rank}; the run \
                     stops, since training on would hide the fault"
                );
                return Some(Entry::Stop { rank: None, reason });
            }
        }
    }
    (hashes > 0).then_some(Entry::Verified { step, hashes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(step: u64, ended_s: f64) -> StepDone {
        StepDone {
            step,
            loss: None,
            validation_loss: None,
            ended_s,
            overrun_s: 0.0,
            peak_memory_bytes: 0,
            links: vec![],
            hashes: vec![],
        }
    }

    /// Two replicas of one rank each, the first with three quarters of the batch.
    fn ledger() -> Ledger {
        Ledger {
            replica_of: vec![0, 1],
            share: vec![0.75, 0.25],
            tokens_per_step: 8,
            exchange_every: 2,
            steps: BTreeMap::new(),
            shards: BTreeMap::new(),
            last_step: vec![0, 0],
            last_ended_s: 0.0,
            done: BTreeSet::new(),
        }
    }

    #[test]
    fn a_step_is_entered_when_every_rank_has_done_it_and_losses_weigh_by_batch() {
        let mut ledger = ledger();
        let report = |step, ended_s, loss| Report::Step(StepDone { loss: Some(loss), ..done(step, ended_s) });
        assert!(ledger.note(0, report(1, 1.0, 2.0)).is_empty());
        assert!(ledger.note(0, report(2, 2.0, 2.0)).is_empty(), "a quick rank may be steps ahead");
        assert_eq!((ledger.step_of(0), ledger.step_of(1)), (3, 1));
        let entries = ledger.note(1, report(1, 1.5, 4.0));
        let [Entry::Step(record)] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!((record.step, record.loss, record.iteration_s), (1, 2.5, 1.5));
        let entries = ledger.note(1, report(2, 3.5, 4.0));
        let [Entry::Step(record)] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!((record.step, record.iteration_s, record.exchange), (2, 2.0, true));
    }

    #[test]
    fn unequal_hashes_stop_the_run_and_name_unit_ranks_and_step() {
        let with = |hash: &str| StepDone { hashes: vec![("layer.3".into(), hash.into())], ..done(2, 1.0) };
        let mut equal = ledger();
        equal.note(0, Report::Step(with("aa")));
        let entries = equal.note(1, Report::Step(with("aa")));
        assert_eq!(entries[1], Entry::Verified { step: 2, hashes: 2 });
        let mut unequal = ledger();
        unequal.note(0, Report::Step(with("aa")));
        let entries = unequal.note(1, Report::Step(with("ab")));
        let [_, Entry::Stop { reason, .. }] = entries.as_slice() else { panic!("{entries:?}") };
        assert!(["step 2", "layer.3", "rank 0", "rank 1"].iter().all(|s| reason.contains(s)), "{reason}");
    }

    #[test]
    fn a_checkpoint_counts_when_every_rank_has_written_its_part() {
        let mut ledger = ledger();
        let shard = |rank| Shard { rank, file: format!("rank-{rank}"), bytes: 1, blake3: "x".into() };
        assert!(ledger.note(1, Report::Shard { step: 4, shard: shard(1) }).is_empty());
        let entries = ledger.note(0, Report::Shard { step: 4, shard: shard(0) });
        assert_eq!(entries, [Entry::Checkpoint { step: 4, shards: vec![shard(0), shard(1)] }]);
    }

    #[test]
    fn a_victim_is_not_blamed_but_a_cause_is() {
        let mut ledger = ledger();
        let failed = |victim| Report::Failed { step: 7, victim, error: "e".into() };
        assert!(ledger.note(0, failed(true)).is_empty());
        let entries = ledger.note(1, failed(false));
        assert!(matches!(&entries[0], Entry::Stop { rank: Some(1), reason } if reason.contains("step 7")));
    }
}
