//! The fewest stages that a pipeline over given clusters can do with at a given pace: what multi-cluster columns could
//! offer at most, without listing them.
//!
//! ```text
//!   beat b     a stage of group g holds at most floor(b / layer_g) layers, the last (b - head) / layer_g, and what
//!              memory allows with min(m, d + 1) microbatches in flight, d stages from the end
//!   stages     filled from the last backwards, each as full as it may be: no pipeline of this beat has fewer
//!   m(b)       1 + (T - sync - fill) / b, fill with the crossings between clusters, b at least the longest of them
//! ```
//! Only beats at which some stage's layers change matter. Crossings inside clusters, the wait for the others and the order
//! of unequal stages are ignored, so real columns offer no more: the bound stands.
//!
//! Not here: what is chosen (`blocks`).

use crate::cost::pipeline::Crossing;

use super::column::Run;
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

/// The relaxed pipelines of a cut, in one mode and with one choice of degrees, that do more than `least` sequences.
pub(crate) fn pipelines(
    space: &Space,
    mode: usize,
    tables: &Tables,
    sync: &Sync,
    cut: &Cut,
    teams: &[usize],
    step_s: f64,
    least: f64,
    take: &mut dyn FnMut(Relaxed),
) {
    let team = |i: usize| -> Team { space.groups[cut[i].0].teams[teams[i]] };
    let last = cut.len() - 1;
    let compute_s: f64 =
        (0..cut.len()).map(|i| f64::from(cut[i].1) * team(i).layer_s).sum::<f64>() + team(last).head_s;
    let crossings: Vec<Crossing> =
        cut.windows(2).map(|pair| least_crossing(space, pair[0].0, pair[1].0)).collect();
    let fill_s = compute_s + 2.0 * crossings.iter().map(|c| c.delay_s()).sum::<f64>();
    let busiest_s = crossings.iter().map(|c| c.occupancy_s).fold(0.0, f64::max);
    if fill_s > step_s {
        return;
    }
    let mut beats: Vec<f64> = Vec::new();
    for i in 0..cut.len() {
        let fixed = if i == last { [0.0, team(i).head_s] } else { [0.0; 2] };
        for &extra in fixed.iter().take(1 + usize::from(i == last)) {
            beats.extend((1..=cut[i].1).map(|n| f64::from(n) * team(i).layer_s + extra));
        }
    }
    beats.sort_by(f64::total_cmp);
    beats.dedup_by(|a, b| *a <= *b * (1.0 + 1e-9));
    let first = beats.partition_point(|b| *b < busiest_s);
    if busiest_s > 0.0 {
        beats.splice(..first, [busiest_s]);
    }
    let memory = tables.of(sync).0;
    let mut before: Option<(Vec<u32>, u64)> = None;
    for beat_s in beats {
        let most = super::column::microbatches(step_s, fill_s, beat_s).min(space.microbatches);
        // Longer beats do less.
        if f64::from(most) * f64::from(space.micro_batch) <= least || most == 0 {
            break;
        }
        let Some(stages) = fewest_stages(space, memory, cut, teams, beat_s * (1.0 + 1e-9), most) else {
            continue;
        };
        let runs: Vec<Run> = (0..cut.len())
            .map(|i| Run {
                group: cut[i].0,
                team: team(i),
                team_index: teams[i],
                stages: stages[i],
                layers: cut[i].1,
            })
            .collect();
        let sync_s = sync_floor_s(space, sync, &runs);
        let microbatches =
            super::column::microbatches(step_s - sync_s, fill_s, beat_s).min(space.microbatches);
        let sequences = u64::from(microbatches) * u64::from(space.micro_batch);
        // A longer beat with as many stages does less.
        if microbatches == 0
            || sequences as f64 <= least
            || before.as_ref().is_some_and(|(s, n)| *s == stages && *n >= sequences)
        {
            continue;
        }
        before = Some((stages, sequences));
        take(Relaxed { mode, runs, sequences });
    }
}

/// A crossing between clusters as cheap as any codec allowed makes it.
pub(crate) fn least_crossing(space: &Space, from: usize, to: usize) -> Crossing {
    let way = space.link(from, to).expect("orders keep to links");
    let wide = space.crossing(way, space.codec(way, f64::INFINITY)).0;
    let narrow = space.crossing(way, space.codec(way, 0.0)).0;
    if narrow.delay_s() < wide.delay_s() { narrow } else { wide }
}

/// The fewest stages of each run, filled from the last backwards.
fn fewest_stages(
    space: &Space,
    memory: &super::terms::Memory,
    cut: &Cut,
    teams: &[usize],
    beat_s: f64,
    microbatches: u32,
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
            let held = microbatches.min(behind + 1);
            let take = by_time.min(memory.most_between(group, teams[i], is_last, held)).min(left);
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

fn sync_floor_s(space: &Space, sync: &Sync, runs: &[Run]) -> f64 {
    if sync.owners < 2 {
        return 0.0;
    }
    let layer = space.model.layer_parameters() as f64;
    let run = |run: &Run| {
        let parameters = f64::from(run.layers.div_ceil(run.stages)) * layer / f64::from(run.team.size);
        sync.stage_s(space, run.group, parameters, 1)
    };
    runs.iter().map(run).fold(0.0, f64::max)
}
