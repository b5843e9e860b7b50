//! Sketches drawn at random, and small changes of them.
//!
//! ```text
//!   draw      clusters into islands, layers by speed and luck, degrees and stages by luck, replicas until GPUs run out
//!   moved     one of: a layer to the next stage, microbatches to another replica, a stage more or less, another degree,
//!             a replica more or less, another microbatch size or recomputation, another cut, clusters in another
//!             order, islands joined or parted, chunks, another exchange
//!   deal      the step's microbatches to whoever ends earliest with one more, by the closed form
//! ```
//! A change may make a sketch that is no plan; nobody minds.
//!
//! Not here: what is legal (`sketch`).

use super::random::Random;
use super::sketch::{Ground, Line, Run, Sketch};
use crate::model::Recompute;

/// A sketch at random; `None` where luck makes none.
pub(super) fn draw(ground: &Ground, random: &mut Random) -> Option<Sketch> {
    let base = random.below(ground.spaces.len());
    let mut clusters: Vec<usize> = (0..ground.cluster.clusters.len()).collect();
    random.shuffle(&mut clusters);
    let mut islands: Vec<Vec<usize>> = Vec::new();
    for g in clusters {
        if random.happens(0.15) {
            continue;
        }
        match islands.last_mut() {
            Some(island) if random.happens(0.4) && ground.spaces[0].link(*island.last()?, g).is_some() => {
                island.push(g)
            }
            _ => islands.push(vec![g]),
        }
    }
    let mut lines = Vec::new();
    for island in &islands {
        let mode = if random.happens(0.2) { random.below(ground.spaces.len()) } else { base };
        draw_island(ground, random, island, mode, &mut lines);
    }
    let mut sketch = Sketch { lines, outer: random.below(ground.outer.len()), gathers: random.happens(0.5) };
    deal(ground, &mut sketch).then_some(sketch)
}

fn draw_island(ground: &Ground, random: &mut Random, island: &[usize], mode: usize, lines: &mut Vec<Line>) {
    let cut = cut(ground, random, island, mode);
    let shape = draw_line(ground, random, island, &cut, mode);
    let mut left: Vec<u32> = island.iter().map(|&g| ground.spaces[0].groups[g].gpus).collect();
    let stop = if random.happens(0.3) { 0.3 } else { 0.0 };
    for _ in 0..64 {
        let line =
            if random.happens(0.8) { shape.clone() } else { draw_line(ground, random, island, &cut, mode) };
        let Some(line) = line else { return };
        if line.runs.iter().zip(&left).any(|(run, left)| run.gpus() > *left) || random.happens(stop) {
            return;
        }
        line.runs.iter().zip(&mut left).for_each(|(run, left)| *left -= run.gpus());
        lines.push(line);
    }
}

/// Layers by cluster, as its GPUs are fast, give or take.
fn cut(ground: &Ground, random: &mut Random, island: &[usize], mode: usize) -> Vec<u32> {
    let speed = |g: usize| {
        let group = &ground.spaces[mode].groups[g];
        f64::from(group.gpus) / (group.teams[0].layer_s * f64::from(group.teams[0].size))
    };
    let weights: Vec<f64> = island.iter().map(|&g| speed(g) * (0.5 + random.share())).collect();
    let (all, sum) = (ground.spaces[0].model.layers, weights.iter().sum::<f64>());
    let mut cut: Vec<u32> = weights.iter().map(|w| ((w / sum * f64::from(all)) as u32).max(1)).collect();
    let most = (0..cut.len()).max_by_key(|&i| cut[i]).unwrap_or(0);
    let others: u32 = cut.iter().sum::<u32>() - cut[most];
    cut[most] = all.saturating_sub(others);
    cut
}

fn draw_line(
    ground: &Ground,
    random: &mut Random,
    island: &[usize],
    cut: &[u32],
    mode: usize,
) -> Option<Line> {
    let run = |(&cluster, &layers): (&usize, &u32)| {
        let group = &ground.spaces[mode].groups[cluster];
        let team = random.pick(&group.teams).size;
        let most = (group.gpus / team).min(layers);
        // Few stages as often as many.
        let stages =
            if random.happens(0.5) { random.between(1, most.min(4)) } else { random.between(1, most) };
        Run { cluster, team, layers: even(layers, stages) }
    };
    if cut.contains(&0) {
        return None;
    }
    let runs: Vec<Run> = island.iter().zip(cut).map(run).collect();
    let chunked = runs.len() == 1 && runs[0].layers.len() > 1 && random.happens(0.2);
    let chunks = if chunked { *random.pick(&[2, 4]) } else { 1 };
    Some(Line { runs, chunks, microbatches: 0, mode })
}

fn even(layers: u32, stages: u32) -> Vec<u32> {
    (0..stages).map(|i| layers / stages + u32::from(i < layers % stages)).collect()
}

/// Shares the step's microbatches; false where they do not come out even.
pub(super) fn deal(ground: &Ground, sketch: &mut Sketch) -> bool {
    let batch = ground.spaces[0].model.global_batch;
    // With one round each the sketch is a plan of some batch; its prices do not depend on which.
    let Some(prices) = prices(ground, sketch) else { return false };
    let unit = |line: &Line| ground.spaces[line.mode].micro_batch * line.round();
    sketch.lines.iter_mut().for_each(|l| l.microbatches = l.round());
    let dealt: u32 = sketch.lines.iter().map(&unit).sum();
    let Some(mut left) = batch.checked_sub(dealt) else { return false };
    while left > 0 {
        let ends_s = |i: &usize| {
            let (fill_s, beat_s, line) = (prices[*i].0, prices[*i].1, &sketch.lines[*i]);
            fill_s + f64::from(line.microbatches + line.round() - 1) * beat_s
        };
        let able = (0..sketch.lines.len()).filter(|&i| unit(&sketch.lines[i]) <= left);
        let Some(next) = able.min_by(|a, b| ends_s(a).total_cmp(&ends_s(b))) else { return false };
        left -= unit(&sketch.lines[next]);
        let round = sketch.lines[next].round();
        sketch.lines[next].microbatches += round;
    }
    true
}

/// Fill with synchronisation, and beat, of each line.
fn prices(ground: &Ground, sketch: &Sketch) -> Option<Vec<(f64, f64)>> {
    let plan = ground.unshared_plan(sketch)?;
    let cost = ground.evaluated(&plan)?;
    Some(cost.replicas.iter().map(|r| (r.fill_s + r.sync_s, r.beat_s)).collect())
}

/// The sketch after one change, its microbatches dealt anew where the change asks for it; `None` where it cannot be made.
pub(super) fn moved(ground: &Ground, sketch: &Sketch, random: &mut Random) -> Option<Sketch> {
    let mut next = sketch.clone();
    let structural = match random.below(16) {
        0..=2 => {
            shift_layer(&mut next, random)?;
            random.happens(0.5)
        }
        3 | 4 => {
            shift_microbatches(ground, &mut next, random)?;
            false
        }
        5 => add_stage(&mut next, random).map(|()| true)?,
        6 => drop_stage(&mut next, random).map(|()| true)?,
        7 | 8 => change_team(ground, &mut next, random).map(|()| true)?,
        9 => add_line(&mut next, random),
        10 => drop_line(&mut next, random)?,
        11 => change_mode(ground, &mut next, random)?,
        12 => change_cut(&mut next, random)?,
        13 => swap_clusters(&mut next, random)?,
        14 => rearrange(ground, &mut next, random)?,
        _ => small(ground, &mut next, random),
    };
    if structural && !deal(ground, &mut next) {
        return None;
    }
    Some(next)
}

fn shift_layer(sketch: &mut Sketch, random: &mut Random) -> Option<()> {
    let line = any(&mut sketch.lines, random)?;
    let run = any(&mut line.runs, random)?;
    let (from, to) = two(run.layers.len(), random)?;
    run.layers[from] = run.layers[from].checked_sub(1).filter(|n| *n > 0)?;
    run.layers[to] += 1;
    Some(())
}

fn shift_microbatches(ground: &Ground, sketch: &mut Sketch, random: &mut Random) -> Option<()> {
    let (from, to) = two(sketch.lines.len(), random)?;
    let unit = |l: &Line| l.round() * ground.spaces[l.mode].micro_batch;
    let (a, b) = (unit(&sketch.lines[from]), unit(&sketch.lines[to]));
    // The least that is whole for both.
    let sequences = (1..).map(|i| i * a).find(|s| s.is_multiple_of(b))? * random.between(1, 2);
    let micro_batch = |l: &Line| ground.spaces[l.mode].micro_batch;
    let (less, more) =
        (sequences / micro_batch(&sketch.lines[from]), sequences / micro_batch(&sketch.lines[to]));
    sketch.lines[from].microbatches = sketch.lines[from].microbatches.checked_sub(less).filter(|m| *m > 0)?;
    sketch.lines[to].microbatches += more;
    Some(())
}

fn add_stage(sketch: &mut Sketch, random: &mut Random) -> Option<()> {
    let run = any(&mut any(&mut sketch.lines, random)?.runs, random)?;
    let (layers, stages) = (run.layers.iter().sum::<u32>(), run.layers.len() as u32 + 1);
    run.layers = (stages <= layers).then(|| even(layers, stages))?;
    Some(())
}

fn drop_stage(sketch: &mut Sketch, random: &mut Random) -> Option<()> {
    let run = any(&mut any(&mut sketch.lines, random)?.runs, random)?;
    let (layers, stages) = (run.layers.iter().sum::<u32>(), run.layers.len() as u32 - 1);
    run.layers = (stages > 0).then(|| even(layers, stages))?;
    Some(())
}

/// Another degree, with as many GPUs or as many stages.
fn change_team(ground: &Ground, sketch: &mut Sketch, random: &mut Random) -> Option<()> {
    let everywhere = random.happens(0.5);
    let at = random.below(sketch.lines.len());
    let Line { ref runs, mode, .. } = sketch.lines[at];
    let (cluster, before) = (runs[random.below(runs.len())].cluster, sketch.lines[at].clone());
    let team = random.pick(&ground.spaces[mode].groups[cluster].teams).size;
    let keeps_gpus = random.happens(0.7);
    for (i, line) in sketch.lines.iter_mut().enumerate() {
        if i != at && !(everywhere && line.runs == before.runs) {
            continue;
        }
        let run = line.runs.iter_mut().find(|r| r.cluster == cluster)?;
        if keeps_gpus {
            let layers = run.layers.iter().sum::<u32>();
            run.layers = even(layers, (run.gpus() / team).clamp(1, layers));
        }
        run.team = team;
    }
    Some(())
}

fn add_line(sketch: &mut Sketch, random: &mut Random) -> bool {
    let line = random.pick(&sketch.lines).clone();
    sketch.lines.push(line);
    true
}

fn drop_line(sketch: &mut Sketch, random: &mut Random) -> Option<bool> {
    (sketch.lines.len() > 1).then(|| {
        sketch.lines.remove(random.below(sketch.lines.len()));
        true
    })
}

/// Of one line, or of all that have its mode.
fn change_mode(ground: &Ground, sketch: &mut Sketch, random: &mut Random) -> Option<bool> {
    let at = random.below(sketch.lines.len());
    let before = sketch.lines[at].mode;
    let space = &ground.spaces[before];
    let (mut size, mut recompute) = (space.micro_batch, space.model.recompute);
    match random.below(3) {
        0 => size *= 2,
        1 => size = (size / 2).max(1),
        _ => recompute = *random.pick(&[Recompute::None, Recompute::Selective, Recompute::Full]),
    }
    let mode = ground.mode(size, recompute)?;
    let everywhere = random.happens(0.6);
    let lines = sketch.lines.iter_mut().enumerate();
    lines.filter(|(i, l)| *i == at || (everywhere && l.mode == before)).for_each(|(_, l)| l.mode = mode);
    Some(true)
}

/// A layer from one cluster to another, in all lines of the island.
fn change_cut(sketch: &mut Sketch, random: &mut Random) -> Option<bool> {
    let signature = random.pick(&sketch.lines).signature();
    let (from, to) = two(signature.len(), random)?;
    for line in sketch.lines.iter_mut().filter(|l| l.signature() == signature) {
        let giver = line.runs[from].layers.iter_mut().filter(|n| **n > 1).max()?;
        *giver -= 1;
        *line.runs[to].layers.iter_mut().min()? += 1;
    }
    Some(random.happens(0.5))
}

/// The clusters of an island in another order.
fn swap_clusters(sketch: &mut Sketch, random: &mut Random) -> Option<bool> {
    let signature = random.pick(&sketch.lines).signature();
    let (a, b) = two(signature.len(), random)?;
    sketch.lines.iter_mut().filter(|l| l.signature() == signature).for_each(|l| l.runs.swap(a, b));
    Some(true)
}

/// Takes the clusters of one or two islands and makes islands of them anew.
fn rearrange(ground: &Ground, sketch: &mut Sketch, random: &mut Random) -> Option<bool> {
    let first = random.pick(&sketch.lines).signature();
    let second = random.pick(&sketch.lines).signature();
    let mut clusters: Vec<usize> = first.iter().chain(&second).map(|s| s.0).collect();
    let used = |g: &usize| sketch.lines.iter().any(|l| l.runs.iter().any(|r| r.cluster == *g));
    // And perhaps one that lies idle.
    clusters.extend((0..ground.cluster.clusters.len()).filter(|g| !used(g)).take(random.below(2)));
    clusters.sort_unstable();
    clusters.dedup();
    random.shuffle(&mut clusters);
    let mode = sketch.lines[0].mode;
    sketch.lines.retain(|l| l.runs.iter().all(|r| !clusters.contains(&r.cluster)));
    let parts = random.between(1, clusters.len() as u32) as usize;
    for island in clusters.chunks(clusters.len().div_ceil(parts)) {
        draw_island(ground, random, island, mode, &mut sketch.lines);
    }
    Some(true)
}

/// Chunks or the exchange.
fn small(ground: &Ground, sketch: &mut Sketch, random: &mut Random) -> bool {
    if random.happens(0.2) {
        sketch.gathers = !sketch.gathers;
        return true;
    }
    if random.happens(0.3) {
        sketch.outer = random.below(ground.outer.len());
        return false;
    }
    let chunks = *random.pick(&[1, 2, 4]);
    let everywhere = random.happens(0.5);
    let at = random.below(sketch.lines.len());
    let before = sketch.lines[at].clone();
    let lines = sketch.lines.iter_mut().enumerate();
    let alike = |l: &Line| everywhere && l.runs == before.runs;
    lines.filter(|(i, l)| *i == at || alike(l)).for_each(|(_, l)| l.chunks = chunks);
    true
}

fn any<'a, T>(of: &'a mut [T], random: &mut Random) -> Option<&'a mut T> {
    let at = random.below(of.len().max(1));
    of.get_mut(at)
}

/// Two different indices below `n`.
fn two(n: usize, random: &mut Random) -> Option<(usize, usize)> {
    let a = (n > 1).then(|| random.below(n))?;
    let b = random.below(n - 1);
    Some((a, if b < a { b } else { b + 1 }))
}
