//! Columns: pipelines, and the fastest splits of their layers.
//!
//! ```text
//!   outline   runs in order: (cluster, tensor-parallel degree, stages, layers), chunks a rank     fixes GPUs, bytes
//!   split     layers of each stage                                                                fixes fill, beat, sync
//! ```
//! For a beat b a split is feasible if for every run i..j of stages  sum (t - b) + 2 sum e <= 0. Walking down the pipeline,
//! w_i = t_i - b + max(0, w_{i-1} + 2 e_{i-1}) is the worst such sum that ends in i; a smaller w is never worse for
//! what follows, and among equal stages moving a layer forward never raises the w that leaves the run. So the greedy
//! split, as many layers as early as w <= 0 and the caps allow, is feasible if any is; b is bisected. A floor of the beat
//! (longest stage of an even split, mean over all) postpones most of that work.
//!
//! Two things trade against the beat: synchronisation grows with the largest stage, so splits are made under falling
//! caps of it until none can do better; memory depends on microbatches in flight, so where it binds and fewer
//! microbatches than stages pass, fewer are held.
//!
//! Not here: which columns there are (`pool`), what caps a stage (`terms`).

use std::cell::OnceCell;

use crate::cost::memory::stage_parameters;
use crate::cost::pipeline::{Crossing, beat_s, held, pipeline_s};
use crate::plan::Codec;

use super::space::{Space, Team, Way};
use super::sync::Sync;
use super::terms::{Memory, sync_caps};

/// Runs of layers by cluster: replicas of equal signature can form an island.
pub(crate) type Signature = Vec<(usize, u32)>;

/// Consecutive stages in one cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Run {
    pub group: usize,
    pub team: Team,
    /// Index of `team` in its group.
    pub team_index: usize,
    pub stages: u32,
    pub layers: u32,
}

/// A pipeline but for the split of each run's layers over its stages.
#[derive(Debug, Clone)]
pub(crate) struct Outline {
    pub runs: Vec<Run>,
    /// Virtual stages of each rank.
    pub chunks: u32,
    /// GPUs, by group.
    pub devices: Vec<u32>,
    /// Bytes of a microbatch, by pool.
    pub traffic: Vec<f64>,
    /// By boundary between virtual stages.
    pub codecs: Vec<Codec>,
    /// Between neighbouring ranks, all chunks together.
    crossings: Vec<Crossing>,
    /// Work of one microbatch in all stages.
    pub compute_s: f64,
    /// Its crossings, down and back.
    crossing_s: f64,
    /// No split has a smaller beat.
    floor_s: f64,
    /// Splits under memory alone with the pipeline full, by number of the memory table.
    splits: Vec<OnceCell<Option<Split>>>,
}

/// Layers of every rank, and what follows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Split {
    pub layers: Vec<u32>,
    pub fill_s: f64,
    pub beat_s: f64,
    /// More would not fit into memory.
    pub most_microbatches: u32,
}

/// A split at work: what a replica does in a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Work {
    pub split: Split,
    pub sync_s: f64,
    /// At most so many in the step's time.
    pub microbatches: u32,
}

impl Work {
    /// Seconds of so many microbatches and the synchronisation.
    pub fn step_s(&self, microbatches: u32) -> f64 {
        pipeline_s(microbatches, self.split.fill_s, self.split.beat_s) + self.sync_s
    }
}

impl Outline {
    /// The outline of these runs; `tables`: how many memory tables there will be.
    pub fn new(space: &Space, runs: Vec<Run>, chunks: u32, tables: usize) -> Self {
        let head_s = runs.last().expect("runs are not empty").team.head_s;
        let compute_s: f64 = runs.iter().map(|r| f64::from(r.layers) * r.team.layer_s).sum::<f64>() + head_s;
        let count: u32 = runs.iter().map(|r| r.stages).sum();
        let mean_stage_s = compute_s / f64::from(count * chunks);
        let (ways, back) = ways(space, &runs);
        let mut traffic = vec![0.0; space.pools.len()];
        let mut cross = |way: &Way, group: u32| {
            let codec = space.codec(way, mean_stage_s);
            let (crossing, bytes) = space.crossing(way, codec, group);
            way.pools.iter().for_each(|&pool| traffic[pool] += bytes as f64);
            (codec, crossing)
        };
        let teams: Vec<u32> =
            runs.iter().flat_map(|r| std::iter::repeat_n(r.team.size, r.stages as usize)).collect();
        let (mut codecs, mut crossings, mut crossing_s) = (Vec::new(), Vec::new(), 0.0);
        for chunk in 0..chunks {
            for (i, way) in ways.iter().enumerate() {
                let (codec, crossing) = cross(way, teams[i].min(teams[i + 1]));
                codecs.push(codec);
                if chunk == 0 {
                    crossings.push(crossing.repeated(chunks));
                    crossing_s += 2.0 * crossing.delay_s();
                } else {
                    debug_assert_eq!(codecs[i], codec);
                }
            }
            if chunk + 1 < chunks {
                let (codec, crossing) = cross(back, teams[0].min(teams[teams.len() - 1]));
                codecs.push(codec);
                crossing_s += 2.0 * crossing.delay_s();
            }
        }
        let mut devices = vec![0; space.groups.len()];
        runs.iter().for_each(|run| devices[run.group] += run.stages * run.team.size);
        let floor_s = floor_s(&runs, compute_s, crossing_s, &crossings);
        let splits = vec![OnceCell::new(); tables];
        Self { runs, chunks, devices, traffic, codecs, crossings, compute_s, crossing_s, floor_s, splits }
    }

    /// Ranks in a row.
    pub fn stages(&self) -> u32 {
        self.runs.iter().map(|r| r.stages).sum()
    }

    /// Microbatches come in multiples of this.
    pub fn round(&self) -> u32 {
        if self.chunks == 1 { 1 } else { self.stages() }
    }

    /// Microbatches that a rank holds when so many pass.
    pub fn in_flight(&self, microbatches: u32, stage: u32) -> u32 {
        held(microbatches, self.stages(), self.chunks, stage)
    }

    /// Seconds before the first microbatch is through, no split has fewer.
    fn least_fill_s(&self) -> f64 {
        match self.chunks {
            1 => self.compute_s + self.crossing_s,
            _ => self.fill_s(self.compute_s / f64::from(self.stages())),
        }
    }

    fn fill_s(&self, longest_s: f64) -> f64 {
        match self.chunks {
            1 => self.compute_s + self.crossing_s,
            v => longest_s + (self.compute_s - longest_s) / f64::from(v) + self.crossing_s,
        }
    }

    /// Microbatches in `step_s` at most, whatever the split; `sync_s`: what any pays for synchronisation.
    pub fn microbatches_at_most(&self, step_s: f64, sync_s: f64) -> u32 {
        microbatches(step_s - sync_s, self.least_fill_s(), self.floor_s)
    }

    /// Can its stages hold its layers, with so many microbatches in the pipeline?
    pub fn holds(&self, memory: &Memory, microbatches: u32) -> bool {
        let caps = memory.caps(self, microbatches);
        let mut rest = &caps[..];
        let run = |run: &Run| {
            let (these, after) = rest.split_at(run.stages as usize);
            rest = after;
            these.iter().all(|&cap| cap > 0) && these.iter().sum::<u32>() >= run.layers
        };
        self.runs.iter().all(run)
    }

    /// The most microbatches in `step_s`, and how. `table`: the number of `memory`, always the same one.
    pub fn best(
        &self,
        space: &Space,
        (memory, table): (&Memory, usize),
        sync: &Sync,
        step_s: f64,
    ) -> Option<Work> {
        let least_sync_s = self.sync_floor_s(space, sync);
        let count = self.stages();
        let mut best = self.fullest(memory, table).and_then(|split| {
            let caps = || memory.caps(self, u32::MAX);
            self.falling_sync(space, sync, step_s, least_sync_s, split.clone(), caps)
        });
        // Only where memory binds does it help that few microbatches are in flight.
        if best.as_ref().is_none_or(|b| b.microbatches + 1 < count) {
            let done = |b: &Option<Work>| b.as_ref().map_or(0, |b| b.microbatches);
            for held in (done(&best) + 1..count).rev() {
                if microbatches(step_s - least_sync_s, self.least_fill_s(), self.floor_s) < held {
                    continue;
                }
                let caps = || memory.caps(self, held);
                let Some(split) = fastest(self, &caps()).map(|s| self.split(s, held)) else { continue };
                let work = self.falling_sync(space, sync, step_s, least_sync_s, split, caps);
                if done(&work) > done(&best) {
                    best = work;
                    break;
                }
            }
        }
        best.filter(|b| b.microbatches > 0)
    }

    /// The fastest split with the pipeline full.
    pub fn fullest(&self, memory: &Memory, table: usize) -> Option<&Split> {
        let split = || fastest(self, &memory.caps(self, u32::MAX)).map(|s| self.split(s, u32::MAX));
        self.splits[table].get_or_init(split).as_ref()
    }

    /// The best of splits whose longest synchronisation falls from that of `split` on.
    fn falling_sync(
        &self,
        space: &Space,
        sync: &Sync,
        step_s: f64,
        least_sync_s: f64,
        split: Split,
        caps: impl Fn() -> Vec<u32>,
    ) -> Option<Work> {
        let mut best: Option<Work> = None;
        let mut next = Some(split);
        while let Some(split) = next {
            let sync_s = self.sync_s(space, sync, &split);
            let done = self.rounded(microbatches(step_s - sync_s, split.fill_s, split.beat_s), &split);
            let hope = microbatches(step_s - least_sync_s, self.least_fill_s(), split.beat_s);
            let most = split.most_microbatches;
            if best.as_ref().is_none_or(|b| done > b.microbatches) {
                best = Some(Work { split, sync_s, microbatches: done });
            }
            if hope <= best.as_ref().map_or(0, |b| b.microbatches) || sync_s <= least_sync_s * (1.0 + 1e-9) {
                break;
            }
            let less = sync_caps(space, sync, self, sync_s * (1.0 - 1e-9));
            let caps: Vec<u32> = caps().into_iter().zip(less).map(|(a, b)| a.min(b)).collect();
            next = fastest(self, &caps).map(|s| self.split(s, most));
        }
        best
    }

    /// Interleaved schedules take microbatches in rounds of the pipeline's length.
    fn rounded(&self, microbatches: u32, split: &Split) -> u32 {
        let most = microbatches.min(split.most_microbatches);
        most - most % self.round()
    }

    fn split(&self, (layers, beat_s): (Vec<u32>, f64), most_microbatches: u32) -> Split {
        let longest_s = times(self, &layers).into_iter().fold(0.0, f64::max);
        Split { fill_s: self.fill_s(longest_s), layers, beat_s, most_microbatches }
    }

    /// The same without virtual stages.
    pub fn plain(&self, space: &Space) -> Self {
        Self::new(space, self.runs.clone(), 1, self.splits.len())
    }

    /// A split given by its layers.
    pub fn split_as(&self, layers: Vec<u32>) -> Split {
        let beat_s = beat_s(&times(self, &layers), &self.crossings);
        self.split((layers, beat_s), u32::MAX)
    }

    /// Which clusters keep which layers.
    pub fn signature(&self) -> Signature {
        self.runs.iter().map(|r| (r.group, r.layers)).collect()
    }

    /// No split's longest synchronisation is shorter.
    pub fn sync_floor_s(&self, space: &Space, sync: &Sync) -> f64 {
        if *sync == Sync::ALONE {
            return 0.0;
        }
        let layer = space.model.layer_parameters() as f64;
        let last = self.runs.len() - 1;
        let run = |(i, run): (usize, &Run)| {
            let mut ends = 0.0;
            ends += if i == 0 { space.model.embedding_parameters() as f64 } else { 0.0 };
            ends += if i == last { space.model.head_parameters() as f64 } else { 0.0 };
            // The largest stage has a share of all at least, and what does not divide.
            let share = (f64::from(run.layers) * layer + ends) / f64::from(run.stages);
            let largest = share.max(f64::from(run.layers.div_ceil(run.stages)) * layer);
            sync.stage_s(space, run.group, largest / f64::from(run.team.size), self.devices[run.group])
        };
        self.runs.iter().enumerate().map(run).fold(0.0, f64::max)
    }

    /// The longest synchronisation of a split's stages.
    pub fn sync_s(&self, space: &Space, sync: &Sync, split: &Split) -> f64 {
        if *sync == Sync::ALONE {
            return 0.0;
        }
        let mut first = 0;
        let stages = self.stage_runs().zip(&split.layers).map(|(run, &layers)| {
            let parameters = stage_parameters(space.model, first..first + layers) as f64;
            first += layers;
            sync.stage_s(space, run.group, parameters / f64::from(run.team.size), self.devices[run.group])
        });
        stages.fold(0.0, f64::max)
    }

    /// The run of every stage.
    pub fn stage_runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().flat_map(|run| std::iter::repeat_n(run, run.stages as usize))
    }
}

/// Microbatches that fit into a step, with room for rounding.
pub(crate) fn microbatches(step_s: f64, fill_s: f64, beat_s: f64) -> u32 {
    let beats = (step_s - fill_s) / beat_s + 1e-9;
    if beats < 0.0 { 0 } else { (beats as u32).saturating_add(1) }
}

/// The ways between consecutive ranks, and from the last back to the first of a run. A run fills hosts from their first
/// GPU, so it leaves a host after as many stages as a host holds.
fn ways<'a>(space: &'a Space, runs: &[Run]) -> (Vec<&'a Way>, &'a Way) {
    let mut ways = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        if i > 0 {
            ways.push(space.link(runs[i - 1].group, run.group).expect("orders keep to links"));
        }
        let group = &space.groups[run.group];
        let per_host = group.per_host / run.team.size;
        ways.extend((1..run.stages).map(|s| if s % per_host == 0 { &group.nic } else { &group.bus }));
    }
    let group = &space.groups[runs[0].group];
    let one_host = runs[0].stages * runs[0].team.size <= group.per_host;
    (ways, if one_host { &group.bus } else { &group.nic })
}

fn floor_s(runs: &[Run], compute_s: f64, crossing_s: f64, crossings: &[Crossing]) -> f64 {
    let count: u32 = runs.iter().map(|r| r.stages).sum();
    let longest = runs.iter().map(|r| f64::from(r.layers.div_ceil(r.stages)) * r.team.layer_s);
    let last = runs.last().expect("runs are not empty");
    let with_head = last.team.head_s + last.team.layer_s;
    let busy = crossings.iter().map(|c| c.occupancy_s);
    let floor = longest.chain(busy).fold(with_head, f64::max);
    let delays: f64 = crossings.iter().map(|c| 2.0 * c.delay_s()).sum();
    debug_assert!(crossing_s <= delays * 2.0 + 1e9);
    // The run over all stages, less a rounding error: it must stay a floor.
    floor.max((compute_s + delays) / f64::from(count) * (1.0 - 1e-12))
}

/// The split of least beat under caps, and the beat.
fn fastest(outline: &Outline, caps: &[u32]) -> Option<(Vec<u32>, f64)> {
    let split = |beat_s: f64| greedy(outline, caps, beat_s);
    let real_s = |layers: &[u32]| beat_s(&times(outline, layers), &outline.crossings);
    let mut low = outline.floor_s;
    if let Some(layers) = split(low) {
        let beat_s = real_s(&layers);
        return Some((layers, beat_s));
    }
    let delays: f64 = outline.crossings.iter().map(|c| 2.0 * c.delay_s()).sum();
    let mut best = split(outline.compute_s + delays)?;
    let mut high = real_s(&best);
    // Beats are few: a split found is often the one sought, and one trial just below it ends the search.
    loop {
        if let Some(layers) = split(high * (1.0 - 1e-9)) {
            (high, best) = (real_s(&layers).min(high * (1.0 - 1e-9)), layers);
        } else {
            let beat_s = real_s(&best);
            return Some((best, beat_s));
        }
        let middle = 0.5 * (low + high);
        match split(middle) {
            Some(layers) => (high, best) = (real_s(&layers).min(middle), layers),
            None => low = middle,
        }
    }
}

fn times(outline: &Outline, layers: &[u32]) -> Vec<f64> {
    let mut times: Vec<f64> =
        outline.stage_runs().zip(layers).map(|(run, &n)| f64::from(n) * run.team.layer_s).collect();
    *times.last_mut().expect("runs are not empty") += outline.runs.last().expect("likewise").team.head_s;
    times
}

/// The split that puts as many layers as early as a beat allows; `None` if the beat is too short.
fn greedy(outline: &Outline, caps: &[u32], beat_s: f64) -> Option<Vec<u32>> {
    let count = caps.len();
    let tolerance = 1e-12 * beat_s;
    let mut layers = Vec::with_capacity(count);
    let mut worst = f64::NEG_INFINITY;
    for run in &outline.runs {
        let mut left = run.layers;
        for position in 0..run.stages {
            let stage = layers.len();
            let carried = if stage == 0 {
                0.0
            } else {
                (worst + 2.0 * outline.crossings[stage - 1].delay_s()).max(0.0)
            };
            let fixed = if stage + 1 == count { run.team.head_s } else { 0.0 };
            let room = ((beat_s + tolerance - carried - fixed) / run.team.layer_s).max(0.0) as u32;
            let others = run.stages - position - 1;
            let take = room.min(caps[stage]).min(left.saturating_sub(others * outline.chunks));
            if take < outline.chunks || (others == 0 && take < left) {
                return None;
            }
            worst = f64::from(take) * run.team.layer_s + fixed - beat_s + carried;
            left -= take;
            layers.push(take);
        }
    }
    Some(layers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inventory::Cluster;
    use crate::search::Scope;
    use crate::search::fixture::{alone, fabric, gpt, gpu, link};
    use crate::search::pool::Pool;
    use crate::search::{EngineLimits, SearchOptions};

    fn every(space: &Space) -> Vec<Outline> {
        let pool = Pool::new(std::slice::from_ref(space), &Scope::whole(space.cluster), 1);
        pool.columns.into_iter().map(|c| c.outline).collect()
    }

    /// Every way to write `layers` as `stages` positive numbers.
    fn compositions(layers: u32, stages: u32) -> Vec<Vec<u32>> {
        if stages == 1 {
            return vec![vec![layers]];
        }
        let first = 1..=layers - (stages - 1);
        let rest =
            |n: u32| compositions(layers - n, stages - 1).into_iter().map(move |r| [vec![n], r].concat());
        first.flat_map(rest).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_split_of_an_outline_beats_the_greedy_one(
            slow in 0.2f64..5.0,
            rate in 1e6f64..1e10,
            layers in 2u32..8,
        ) {
            let mut other = fabric("b", 3, 1);
            other.gpu = gpu(slow * 1e12, 1_000_000_000);
            other.nic.rate_bytes_per_s = rate;
            let cluster = Cluster {
                clusters: vec![fabric("a", 1, 2), other],
                links: vec![link("a", "b", 1e8, 1e-4)],
            };
            let model = gpt(layers, 256);
            let options = SearchOptions::default();
            let space = Space::new(&cluster, &model, &EngineLimits::NATIVE, &options).unwrap();
            for outline in every(&space) {
                let memory = Memory::new(&space, None, 1);
                let best = fastest(&outline, &memory.caps(&outline, u32::MAX)).unwrap().1;
                let runs = &outline.runs;
                let all = compositions(layers, runs.iter().map(|r| r.stages).sum());
                let in_runs = all.iter().filter(|c| {
                    let mut rest = &c[..];
                    runs.iter().all(|run| {
                        let (these, after) = rest.split_at(run.stages as usize);
                        rest = after;
                        these.iter().sum::<u32>() == run.layers
                    })
                });
                let least = in_runs.map(|c| beat_s(&times(&outline, c), &outline.crossings));
                let least = least.fold(f64::INFINITY, f64::min);
                prop_assert!((best / least - 1.0).abs() < 1e-9, "{runs:?}: {best}, enumerated {least}");
                prop_assert!(outline.floor_s <= least * (1.0 + 1e-12));
            }
        }
    }

    #[test]
    fn tight_memory_shifts_layers_to_later_stages_or_caps_microbatches() {
        let mut small = fabric("a", 1, 2);
        // Three layers with one microbatch in flight, not with two; two layers with two.
        small.gpu.memory_bytes = 50_000_000;
        let (cluster, model, options) = (alone(small), gpt(4, 256), SearchOptions::default());
        let space = Space::new(&cluster, &model, &EngineLimits::NATIVE, &options).unwrap();
        let all = every(&space);
        let two = all.iter().find(|o| o.runs[0].stages == 2).unwrap();
        let memory = Memory::new(&space, None, 1);
        for held in [1, 2] {
            let Some((layers, _)) = fastest(two, &memory.caps(two, held)) else { continue };
            for (range, held) in [(0..layers[0], held), (layers[0]..4, 1)] {
                assert!(space.rank_bytes(range, 1, held, None, 1) <= 50_000_000.0, "{layers:?}");
            }
        }
    }
}
