//! Predicted beside measured: the step, each stage, each link, memory; and whether the emulation held.
//!
//! Measured figures are medians over *steady* steps: the first 10 % (at least 2) are left out. A run that exchanges
//! every `n` steps is amortised as the prediction is: `((n - 1) * median without + median with) / n`; where no steady
//! step of a kind that is needed ran, the figure is absent, never guessed.
//!
//! An emulated device must be at least as slow as this machine. Each step says by how long a rank's real compute
//! outlasted its device's; what the worst rank lost is what the step may have been delayed by. Above
//! [`OVERRUN_LIMIT`] of the steady time, timings compare with nothing.
//!
//! Not here: words and pictures (`caption`, `text`, `html`).

use std::collections::BTreeMap;

use narrows_planner::plan::{Codec, Plan};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::files::{LinkBytes, PredictedRun, RunInfo, StepRecord};
use super::trace::RankTrace;

/// Share of the time by which the worst rank may overrun its emulated device.
pub const OVERRUN_LIMIT: f64 = 0.05;

/// The figures of a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Steady steps without an exchange.
    pub steady_plain_steps: usize,
    /// Steady steps with an exchange.
    pub steady_exchange_steps: usize,
    /// Seconds per step, exchange amortised.
    pub iteration_s: Versus,
    /// Seconds of a step without an exchange.
    pub plain_step_s: Versus,
    /// Seconds of a step with an exchange; absent where replicas never exchange.
    pub exchange_step_s: Option<Versus>,
    /// Over all replicas, exchange amortised.
    pub tokens_per_s: Versus,
    /// By rank.
    pub stages: Vec<StageVersus>,
    /// By pair of ranks, in their order.
    pub links: Vec<LinkVersus>,
    /// Whether devices held their emulated rates; absent where none is paced.
    pub pace: Option<Pace>,
}

/// A figure foreseen and found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Versus {
    /// By the simulator.
    pub predicted: Option<f64>,
    /// By the run.
    pub measured: Option<f64>,
}

/// A rank's part of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageVersus {
    /// Which rank.
    pub rank: u32,
    /// Seconds of computing per step.
    pub busy_s: Versus,
    /// Peak bytes: the plan's of the device, the run's of the process.
    pub memory_bytes: Versus,
}

/// What one rank sends another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkVersus {
    /// Sending rank.
    pub from: u32,
    /// Receiving rank.
    pub to: u32,
    /// What for.
    pub carries: Carries,
    /// Bytes per step: the simulator's against the socket's.
    pub wire_bytes: Versus,
    /// Bytes per step by the codecs' own accounts.
    pub codec_bytes: Option<f64>,
    /// Bytes per step if the same tensors went as f32 at the same steps.
    pub dense_bytes: Option<f64>,
}

impl LinkVersus {
    /// How many times fewer bytes went over the wire than dense f32 would have taken.
    pub fn fewer(&self) -> Option<f64> {
        let wire = self.wire_bytes.measured.filter(|&bytes| bytes > 0.0)?;
        Some(self.dense_bytes? / wire)
    }
}

/// Why two ranks talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Carries {
    /// Activations or their gradients between neighbouring stages.
    Boundary(Codec),
    /// Partial results inside a stage.
    TensorParallel,
    /// Gradients or pseudo-gradients between replicas.
    Exchange,
    /// Nothing that the plan knows of.
    Other,
}

/// How well real compute kept the emulated devices' pace.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pace {
    /// Steady steps in which some rank overran by more than [`OVERRUN_LIMIT`].
    pub steps_over: usize,
    /// Steady steps.
    pub steps: usize,
    /// What the worst rank of each step lost, as a share of the steady time.
    pub overrun_share: f64,
    /// The rank that lost most.
    pub worst_rank: u32,
    /// Whether timings may be held against the prediction.
    pub comparable: bool,
}

/// The steps that count.
pub struct Steady<'a> {
    plain: Vec<&'a StepRecord>,
    exchange: Vec<&'a StepRecord>,
    every: Option<u32>,
}

impl Comparison {
    /// Lays the prediction beside the run; `traces` by rank.
    pub fn of(
        info: &RunInfo,
        plan: &Plan,
        predicted: &PredictedRun,
        steps: &[StepRecord],
        traces: &[RankTrace],
    ) -> Self {
        let steady = Steady::of(steps, info.exchange_every);
        let iteration = steady.iteration_s();
        let per_s = |seconds: f64| info.tokens_per_step as f64 / seconds;
        Self {
            steady_plain_steps: steady.plain.len(),
            steady_exchange_steps: steady.exchange.len(),
            iteration_s: Versus::new(predicted.iteration_s, iteration),
            plain_step_s: Versus::new(predicted.step_s, median(steady.plain.iter().map(|s| s.iteration_s))),
            exchange_step_s: info.exchange_every.map(|_| {
                let measured = median(steady.exchange.iter().map(|s| s.iteration_s));
                Versus::new(predicted.exchange_step_s, measured)
            }),
            tokens_per_s: Versus::new(per_s(predicted.iteration_s), iteration.map(per_s)),
            stages: stages(plan, predicted, &steady, steps, traces),
            links: links(info, plan, predicted, &steady),
            pace: pace(&steady),
        }
    }

    /// Whether timings may be held against the prediction.
    pub fn comparable(&self) -> bool {
        self.pace.is_none_or(|p| p.comparable)
    }
}

impl Versus {
    fn new(predicted: f64, measured: Option<f64>) -> Self {
        Self { predicted: Some(predicted), measured }
    }

    /// Measured above predicted, in percent; absent without both, or with nothing predicted.
    pub fn error_percent(&self) -> Option<f64> {
        let (predicted, measured) = (self.predicted?, self.measured?);
        (predicted != 0.0).then(|| (measured / predicted - 1.0) * 100.0)
    }
}

impl Serialize for Versus {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut fields = to.serialize_struct("Versus", 3)?;
        fields.serialize_field("predicted", &self.predicted)?;
        fields.serialize_field("measured", &self.measured)?;
        fields.serialize_field("error_percent", &self.error_percent())?;
        fields.end()
    }
}

impl<'a> Steady<'a> {
    /// Leaves out the first tenth of `steps`, at least 2.
    pub fn of(steps: &'a [StepRecord], every: Option<u32>) -> Self {
        let warm_up = steps.len().div_ceil(10).max(2).min(steps.len());
        let (exchange, plain) = steps[warm_up..].iter().partition(|s| s.exchange);
        Self { plain, exchange, every }
    }

    /// The median of `figure` over both kinds of step, weighted as they alternate.
    fn amortised(&self, figure: impl Fn(&StepRecord) -> Option<f64>) -> Option<f64> {
        let plain = || median(self.plain.iter().filter_map(|s| figure(s)));
        let exchange = || median(self.exchange.iter().filter_map(|s| figure(s)));
        match self.every {
            None => plain(),
            Some(1) => exchange(),
            Some(n) => Some((f64::from(n - 1) * plain()? + exchange()?) / f64::from(n)),
        }
    }

    /// Seconds per step: the median round's mean. A round ends with an exchange; what an exchange delays in the step
    /// after it, or that step catches up, belongs to the figure.
    fn iteration_s(&self) -> Option<f64> {
        let Some(every) = self.every.filter(|&n| n > 1) else {
            return self.amortised(|s| Some(s.iteration_s));
        };
        let mut steps: Vec<&StepRecord> = self.all().copied().collect();
        steps.sort_by_key(|s| s.step);
        let rounds = steps.chunk_by(|a, _| !a.exchange).filter(|round| round.len() == every as usize);
        let mean =
            |round: &[&StepRecord]| round.iter().map(|s| s.iteration_s).sum::<f64>() / f64::from(every);
        median(rounds.map(mean))
    }

    fn all(&self) -> impl Iterator<Item = &&'a StepRecord> {
        self.plain.iter().chain(&self.exchange)
    }

    /// The step without and the step with an exchange whose durations are nearest the median: those to draw.
    pub fn typical(&self) -> [Option<u64>; 2] {
        [&self.plain, &self.exchange].map(|steps| {
            let median = median(steps.iter().map(|s| s.iteration_s))?;
            let distance = |s: &StepRecord| (s.iteration_s - median).abs();
            steps.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).map(|s| s.step)
        })
    }
}

fn stages(
    plan: &Plan,
    predicted: &PredictedRun,
    steady: &Steady<'_>,
    steps: &[StepRecord],
    traces: &[RankTrace],
) -> Vec<StageVersus> {
    (0..plan.world_size())
        .map(|rank| {
            let index = rank as usize;
            let busy = |s: &StepRecord| traces.get(index)?.busy_s.get(&s.step).copied();
            let peak = |bytes: &Vec<u64>| bytes.get(index).map(|&b| b as f64);
            StageVersus {
                rank,
                busy_s: Versus {
                    predicted: predicted.stages.iter().find(|s| s.rank == rank).map(|s| s.busy_s),
                    measured: steady.amortised(busy),
                },
                memory_bytes: Versus {
                    predicted: plan.predicted.as_ref().and_then(|p| peak(&p.peak_memory_bytes)),
                    measured: steps.iter().filter_map(|s| peak(&s.peak_memory_bytes)).reduce(f64::max),
                },
            }
        })
        .collect()
}

fn links(info: &RunInfo, plan: &Plan, predicted: &PredictedRun, steady: &Steady<'_>) -> Vec<LinkVersus> {
    let mut foreseen: BTreeMap<(u32, u32), f64> =
        predicted.links.iter().map(|l| ((l.from, l.to), l.bytes_per_step)).collect();
    for link in steady.all().flat_map(|s| &s.links) {
        foreseen.entry((link.from, link.to)).or_default();
    }
    foreseen
        .into_iter()
        .map(|((from, to), bytes)| {
            let measured = |figure: fn(&LinkBytes) -> u64| {
                steady.amortised(|s| {
                    let link = s.links.iter().find(|l| (l.from, l.to) == (from, to));
                    Some(link.map_or(0.0, |l| figure(l) as f64))
                })
            };
            let carries = carries(plan, from, to);
            LinkVersus {
                from,
                to,
                carries,
                wire_bytes: Versus::new(bytes, measured(|l| l.wire_bytes)),
                codec_bytes: measured(|l| l.codec_bytes),
                dense_bytes: dense_bytes(info, plan, carries, from, to),
            }
        })
        .collect()
}

fn carries(plan: &Plan, from: u32, to: u32) -> Carries {
    let seats = plan.seats();
    let seat = |rank| seats.iter().find(|s| s.placement.rank == rank);
    let (Some(a), Some(b)) = (seat(from), seat(to)) else { return Carries::Other };
    if a.replica != b.replica {
        return Carries::Exchange;
    }
    match a.stage.abs_diff(b.stage) {
        0 => Carries::TensorParallel,
        1 => {
            let boundary = plan.replicas[a.replica].boundaries.get(a.stage.min(b.stage));
            boundary.map_or(Carries::Other, |b| Carries::Boundary(b.codec))
        }
        _ => Carries::Other,
    }
}

/// A boundary carries `tokens * hidden` f32 values a step in each direction; an exchange what the run says it would.
fn dense_bytes(info: &RunInfo, plan: &Plan, carries: Carries, from: u32, to: u32) -> Option<f64> {
    match carries {
        Carries::Boundary(_) => {
            let replica = plan.seats().into_iter().find(|s| s.placement.rank == from)?.replica;
            let sequences = u64::from(plan.replicas[replica].microbatches) * u64::from(plan.micro_batch);
            let values = sequences * u64::from(plan.model.sequence) * u64::from(plan.model.hidden);
            Some(4.0 * values as f64)
        }
        Carries::Exchange => {
            let dense = info.dense_bytes_per_exchange.iter().find(|d| (d.from, d.to) == (from, to))?;
            Some(dense.bytes as f64 / f64::from(info.exchange_every.unwrap_or(1)))
        }
        Carries::TensorParallel | Carries::Other => None,
    }
}

fn pace(steady: &Steady<'_>) -> Option<Pace> {
    let worst = |s: &StepRecord| s.overrun_s.iter().copied().reduce(f64::max);
    let mut lost_s: Vec<f64> = Vec::new();
    let (mut steps, mut steps_over, mut overrun_s, mut time_s) = (0, 0, 0.0, 0.0);
    for step in steady.all() {
        let Some(worst_s) = worst(step) else { continue };
        lost_s.resize(lost_s.len().max(step.overrun_s.len()), 0.0);
        lost_s.iter_mut().zip(&step.overrun_s).for_each(|(sum, s)| *sum += s);
        steps += 1;
        steps_over += usize::from(worst_s > OVERRUN_LIMIT * step.iteration_s);
        overrun_s += worst_s;
        time_s += step.iteration_s;
    }
    let worst_rank = (0..lost_s.len()).max_by(|&a, &b| lost_s[a].total_cmp(&lost_s[b]))? as u32;
    let overrun_share = if time_s > 0.0 { overrun_s / time_s } else { 0.0 };
    Some(Pace { steps_over, steps, overrun_share, worst_rank, comparable: overrun_share <= OVERRUN_LIMIT })
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(kinds: &str, seconds: impl Fn(usize) -> f64) -> Vec<StepRecord> {
        let record = |(i, kind)| StepRecord {
            step: i as u64,
            loss: 1.0,
            validation_loss: None,
            iteration_s: seconds(i),
            tokens: 1,
            exchange: kind == 'x',
            links: vec![],
            overrun_s: vec![],
            peak_memory_bytes: vec![],
        };
        kinds.chars().enumerate().map(record).collect()
    }

    fn iteration_s(steps: &[StepRecord], every: Option<u32>) -> Option<f64> {
        Steady::of(steps, every).amortised(|s| Some(s.iteration_s))
    }

    #[test]
    fn a_step_is_the_median_of_both_kinds_weighted_as_they_alternate() {
        // Steps 0 and 1 warm up; 3 hiccups.
        let seconds = [9.0, 9.0, 1.0, 7.0, 1.0, 1.0, 1.0, 5.0];
        let run = steps("...x...x", |i| seconds[i]);
        assert_eq!(iteration_s(&run, Some(4)), Some((3.0 * 1.0 + 6.0) / 4.0));
        assert_eq!(iteration_s(&run, Some(1)), Some(6.0));
        assert_eq!(iteration_s(&run, None), Some(1.0));
    }

    #[test]
    fn without_a_steady_step_of_a_kind_that_is_needed_there_is_no_figure() {
        assert_eq!(iteration_s(&steps("..", |_| 1.0), None), None);
        assert_eq!(iteration_s(&steps(".......", |_| 1.0), Some(10)), None);
        assert_eq!(iteration_s(&[], Some(1)), None);
    }

    #[test]
    fn a_tenth_of_a_long_run_is_left_out() {
        let run = steps(&".".repeat(100), |i| if i < 10 { 50.0 } else { i as f64 });
        assert_eq!(iteration_s(&run, None), Some(54.5));
    }

    #[test]
    fn the_typical_step_is_the_one_nearest_the_median() {
        let seconds = [9.0, 9.0, 1.0, 1.4, 1.5, 2.0, 8.0, 3.0];
        assert_eq!(Steady::of(&steps("......xx", |i| seconds[i]), Some(6)).typical(), [Some(3), Some(6)]);
    }

    #[test]
    fn timings_compare_until_the_worst_rank_loses_a_twentieth_of_the_time() {
        let pace_of = |overrun_s: [f64; 2]| {
            let mut run = steps("......", |_| 1.0);
            run[4].overrun_s = overrun_s.to_vec();
            run.iter_mut().filter(|s| s.step != 4).for_each(|s| s.overrun_s = vec![0.0, 0.01]);
            pace(&Steady::of(&run, None)).unwrap()
        };
        let held = pace_of([0.0, 0.06]);
        assert!(held.comparable && held.steps_over == 1 && held.steps == 4, "{held:?}");
        let lost = pace_of([0.9, 0.0]);
        assert!(!lost.comparable && lost.worst_rank == 0 && lost.steps_over == 1, "{lost:?}");
    }

    #[test]
    fn nothing_paced_is_comparable_without_a_pace() {
        assert_eq!(pace(&Steady::of(&steps("....", |_| 1.0), None)), None);
    }
}
