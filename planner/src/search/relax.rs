//! The fewest stages that a pipeline over given clusters can do with at a given pace: what multi-cluster columns could
//! offer at most, without listing them.
//!
//! ```text
//!   beat b     a stage of group g holds at most floor(b / layer_g) layers, the last (b - head) / layer_g, and what
//!              memory allows with min(m, d + 1) microbatches in flight, d stages from the end
//!   stages     filled from the last backwards, each as full as it may be: no pipeline of this beat has fewer
//!   m(b)       1 + (T - sync - fill) / b, fill with the crossings between clusters, b at least the longest of them
//! ```
//! Only beats at which some stage's layers change matter. Crossings inside clusters, how stages wait for their
//! neighbours and the order of unequal stages are ignored, and a pipeline is charged the
//! synchronisation of the stage that sets its beat alone, so real columns offer no more: the bound stands.
//!
//! Not here: what is chosen (`blocks`).

use crate::cost::pipeline::Crossing;

use super::column::{Run, microbatches};
use super::market::Tables;
use super::space::{Space, Team};
use super::sync::Sync;

/// A pipeline as good as any over these runs at this pace, if crossings were free.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Relaxed {
    pub mode: usize,
    pub runs: Vec<Run>,
    /// Sequences in the step's time.
    pub sequences: u64,
}

/// Layers of a run before its tensor-parallel degree is chosen.
pub(crate) type Cut = [(usize, u32)];

/// What makes a relaxed pipeline worth having.
pub(crate) struct Wanted<'w> {
    pub step_s: f64,
    /// Sequences that an island of it must exceed.
    pub need: f64,
    /// Largest number of replicas.
    pub most: u32,
    /// Of the clusters: sequences over the weighted share of them that it takes must exceed the need too.
    pub weights: &'w [f64],
}

/// A cut with its tensor-parallel degrees, in one mode: what does not depend on the island's size.
pub(crate) struct Pace<'p> {
    space: &'p Space<'p>,
    mode: usize,
    cut: &'p Cut,
    teams: &'p [usize],
    fill_s: f64,
    /// Weighted GPU-seconds of a microbatch over those there are.
    work_s: f64,
    /// With the run and the layers of the stage that takes so long, if one does.
    beats: Vec<(f64, Option<(usize, u32)>)>,
    /// The longest beat for every number of microbatches up to that of the layers, ascending.
    few: Vec<(f64, Option<(usize, u32)>)>,
}

/// Whether memory, not time, bounds some stage of some pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tight {
    No,
    Memory,
}

impl<'p> Pace<'p> {
    /// `None` where not even the first microbatch is through in time.
    pub fn new(
        space: &'p Space<'p>,
        mode: usize,
        cut: &'p Cut,
        teams: &'p [usize],
        wanted: &Wanted,
    ) -> Option<Self> {
        let team = |i: usize| -> Team { space.groups[cut[i].0].teams[teams[i]] };
        let last = cut.len() - 1;
        let compute_s: f64 =
            (0..cut.len()).map(|i| f64::from(cut[i].1) * team(i).layer_s).sum::<f64>() + team(last).head_s;
        let crossing =
            |i: usize| least_crossing(space, cut[i].0, cut[i + 1].0, team(i).size.min(team(i + 1).size));
        let crossings: Vec<Crossing> = (0..last).map(crossing).collect();
        let fill_s = compute_s + 2.0 * crossings.iter().map(|c| c.delay_s()).sum::<f64>();
        if fill_s > wanted.step_s {
            return None;
        }
        let busiest_s = crossings.iter().map(|c| c.occupancy_s).fold(0.0, f64::max);
        let work = |i: usize| {
            let gpu_s = f64::from(cut[i].1) * team(i).layer_s * f64::from(team(i).size);
            wanted.weights[i] * gpu_s / f64::from(space.groups[cut[i].0].gpus)
        };
        let work_s = (0..cut.len()).map(work).sum();
        let beats = beats(cut, &team, busiest_s);
        let (room_s, layers) = (wanted.step_s - fill_s, cut.iter().map(|c| c.1).sum::<u32>());
        let few = (1..=layers).rev().map(|m| room_s / f64::from(m)).chain([2.0 * room_s]);
        let few = few.filter(|b| *b >= busiest_s).map(|b| (b, None)).collect();
        Some(Self { space, mode, cut, teams, fill_s, work_s, beats, few })
    }

    fn team(&self, i: usize) -> Team {
        self.space.groups[self.cut[i].0].teams[self.teams[i]]
    }

    /// The relaxed pipelines that are wanted, for an island of `sync`'s size.
    pub fn pipelines(
        &self,
        tables: &Tables,
        sync: &Sync,
        wanted: &Wanted,
        found: &mut Vec<Relaxed>,
    ) -> Tight {
        let (space, step_s) = (self.space, wanted.step_s);
        let sequences = |microbatches: u32| u64::from(microbatches) * u64::from(space.micro_batch);
        let share = |stages: &[u32]| -> f64 {
            let of = |i: usize| {
                let gpus = f64::from(space.groups[self.cut[i].0].gpus);
                wanted.weights[i] * f64::from(stages[i] * self.team(i).size) / gpus
            };
            (0..self.cut.len()).map(of).sum()
        };
        let memory = tables.of(sync).0;
        let mut tight = Tight::No;
        let mut before: Option<(Vec<u32>, u64)> = None;
        for (pass, beats) in [&self.beats, &self.few].into_iter().enumerate() {
            // Only where memory binds can a pipeline do with fewer stages because few microbatches pass.
            if pass == 1 && tight == Tight::No {
                break;
            }
            for &(beat_s, longest) in beats {
                let most = microbatches(step_s, self.fill_s, beat_s).min(space.microbatches);
                // Longer beats do less.
                if most == 0 || sequences(most) as f64 * f64::from(wanted.most) <= wanted.need {
                    break;
                }
                // However it is split, its stages are busy for all of its work.
                if sequences(most) as f64 * beat_s <= wanted.need * self.work_s {
                    continue;
                }
                let stages = fewest_stages(
                    space,
                    memory,
                    self.cut,
                    self.teams,
                    beat_s * (1.0 + 1e-9),
                    most,
                    &mut tight,
                );
                let Some(stages) = stages else { continue };
                if sequences(most) as f64 <= wanted.need * share(&stages) {
                    continue;
                }
                let run = |i: usize| Run {
                    group: self.cut[i].0,
                    team: self.team(i),
                    team_index: self.teams[i],
                    stages: stages[i],
                    layers: self.cut[i].1,
                };
                let runs: Vec<Run> = (0..self.cut.len()).map(run).collect();
                // Some stage of the run that sets this beat has all of its layers; of other beats a stage has one at least.
                let charged =
                    |(i, layers): (usize, u32)| sync_of_s(space, sync, self.cut[i].0, &self.team(i), layers);
                let sync_s = longest.map_or_else(
                    || (0..self.cut.len()).map(|i| charged((i, 1))).fold(f64::INFINITY, f64::min),
                    charged,
                );
                let done =
                    sequences(microbatches(step_s - sync_s, self.fill_s, beat_s).min(space.microbatches));
                let pays = done as f64 > wanted.need * share(&stages)
                    && done as f64 * f64::from(wanted.most) > wanted.need;
                // A longer beat with as many stages does less.
                if !pays || before.as_ref().is_some_and(|(s, n)| *s == stages && *n >= done) {
                    continue;
                }
                before = Some((stages, done));
                found.push(Relaxed { mode: self.mode, runs, sequences: done });
            }
        }
        tight
    }
}

/// The beats at which a stage's most layers change, ascending, none shorter than the busiest crossing.
fn beats(cut: &Cut, team: &impl Fn(usize) -> Team, busiest_s: f64) -> Vec<(f64, Option<(usize, u32)>)> {
    let mut beats: Vec<(f64, Option<(usize, u32)>)> = vec![(busiest_s, None)];
    for (i, &(_, layers)) in cut.iter().enumerate() {
        let at = |n: u32| f64::from(n) * team(i).layer_s;
        beats.extend((1..=layers).map(|n| (at(n), Some((i, n)))));
        if i + 1 == cut.len() {
            beats.extend((1..=layers).map(|n| (at(n) + team(i).head_s, Some((i, n)))));
        }
    }
    beats.retain(|b| b.0 >= busiest_s && b.0 > 0.0);
    beats.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    beats
}

/// A crossing between clusters as cheap as any codec allowed makes it.
fn least_crossing(space: &Space, from: usize, to: usize, group: u32) -> Crossing {
    let way = space.link(from, to).expect("orders keep to links");
    let wide = space.crossing(way, space.codec(way, f64::INFINITY), group).0;
    let narrow = space.crossing(way, space.codec(way, 0.0), group).0;
    if narrow.delay_s() < wide.delay_s() { narrow } else { wide }
}

/// The fewest stages of each run, filled from the last backwards.
fn fewest_stages(
    space: &Space,
    memory: &super::terms::Memory,
    cut: &Cut,
    teams: &[usize],
    beat_s: f64,
    most: u32,
    tight: &mut Tight,
) -> Option<Vec<u32>> {
    let mut counts = vec![0; cut.len()];
    let mut behind = 0;
    for i in (0..cut.len()).rev() {
        let (group, mut left) = cut[i];
        let team = &space.groups[group].teams[teams[i]];
        while left > 0 {
            let is_last = behind == 0;
            let head_s = if is_last { team.head_s } else { 0.0 };
            let by_time = ((beat_s - head_s) / team.layer_s).max(0.0) as u32;
            let held = most.min(behind + 1);
            let by_memory = memory.most_between(group, teams[i], is_last, held);
            if by_memory < by_time.min(left) {
                *tight = Tight::Memory;
            }
            let take = by_time.min(by_memory).min(left);
            if take == 0 {
                return None;
            }
            left -= take;
            counts[i] += 1;
            behind += 1;
        }
        if counts[i] * team.size > space.groups[group].gpus {
            return None;
        }
    }
    Some(counts)
}

/// Seconds that a stage of so many layers of a run pays for synchronisation, at least.
fn sync_of_s(space: &Space, sync: &Sync, group: usize, team: &Team, layers: u32) -> f64 {
    let parameters = f64::from(layers) * space.model.layer_parameters() as f64 / f64::from(team.size);
    sync.stage_s(space, group, parameters, 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inventory::Cluster;
    use crate::search::fixture::{fabric, gpt, gpu, link};
    use crate::search::pool::Pool;
    use crate::search::{EngineLimits, Scope, SearchOptions};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// What bounds an island must hold every real pipeline: no more GPUs anywhere, no fewer sequences.
        #[test]
        fn every_real_pipeline_has_a_relaxed_one_that_does_as_much_with_no_more_gpus(
            slow in 0.2f64..5.0,
            rate in 1e6f64..1e10,
            memory in 30_000_000u64..200_000_000,
            layers in 2u32..8,
            room in 1.05f64..8.0,
        ) {
            let mut other = fabric("b", 3, 1);
            other.gpu = gpu(slow * 1e12, memory);
            other.nic.rate_bytes_per_s = rate;
            let cluster = Cluster {
                clusters: vec![fabric("a", 1, 2), other],
                links: vec![link("a", "b", rate, 1e-4)],
            };
            let (model, options) = (gpt(layers, 256), SearchOptions::default());
            let space = Space::new(&cluster, &model, &EngineLimits::NATIVE, &options).unwrap();
            let tables = Tables::new(&space, 1);
            let pool = Pool::new(std::slice::from_ref(&space), &Scope::whole(&cluster), 3);
            for outline in pool.columns.iter().map(|c| &c.outline).filter(|o| o.runs.len() == 2) {
                let step_s = room * outline.compute_s;
                let Some(work) = outline.best(&space, tables.of(&Sync::ALONE), &Sync::ALONE, step_s) else { continue };
                // With fewer microbatches than stages real pipelines hold fewer, as relaxed ones do.
                let cut: Vec<(usize, u32)> = outline.runs.iter().map(|r| (r.group, r.layers)).collect();
                let wanted = Wanted { step_s, need: 0.0, most: 1, weights: &[0.5, 0.5] };
                let mut relaxed = Vec::new();
                if let Some(pace) = Pace::new(&space, 0, &cut, &[0, 0], &wanted) {
                    pace.pipelines(&tables, &Sync::ALONE, &wanted, &mut relaxed);
                }
                let holds = |r: &Relaxed| {
                    r.sequences >= u64::from(work.microbatches.min(space.microbatches))
                        && r.runs.iter().zip(&outline.runs).all(|(a, b)| a.stages <= b.stages)
                };
                prop_assert!(relaxed.iter().any(holds), "{outline:?}: {work:?}, relaxed {relaxed:?}");
            }
        }
    }
}
