//! Sketches: replicas as runs of stages, without hosts and ranks; which of them are plans of the planner's space.
//!
//! ```text
//!   run       consecutive stages in one cluster under one tensor-parallel degree; at most one a cluster in a replica
//!   replica   runs whose neighbours are joined; chunks of a rank, of a replica in one cluster only
//!   island    replicas of equal (cluster, layers) by run: dense, their states sharded; where they may drift, perhaps not
//!   cluster   belongs to one island, unless replicas in it may drift apart
//!   outer     what several islands exchange; codecs follow from ways and stages as the space says
//! ```
//! Stages are placed largest degree first, so that each lies in one host. What remains to be legal (memory, clusters of an
//! exchange that do not reach each other) the closed form says.
//!
//! Not here: prices (`search::space`), where sketches come from (`moves`).

use std::collections::BTreeMap;

use crate::inventory::Cluster;
use crate::model::{Model, Recompute};
use crate::plan::{
    Boundary, Exchange, ExchangeKind, Placement, Plan, Replica, ScheduleKind, ScheduleSpec, Stage, VERSION,
};
use crate::search::evaluate::{Evaluation, evaluate_in};
use crate::search::space::{Space, Team, Way};
use crate::search::{EngineLimits, SearchOptions};

/// Consecutive stages in a cluster.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    pub cluster: usize,
    /// GPUs of a tensor-parallel group.
    pub team: u32,
    /// By stage, of all its chunks.
    pub layers: Vec<u32>,
}

impl Run {
    pub fn gpus(&self) -> u32 {
        self.team * self.layers.len() as u32
    }
}

/// (cluster, layers) by run.
type Signature = Vec<(usize, u32)>;

/// A replica.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub runs: Vec<Run>,
    pub chunks: u32,
    pub microbatches: u32,
    /// Index into [`Ground::spaces`].
    pub mode: usize,
}

impl Line {
    pub fn stages(&self) -> u32 {
        self.runs.iter().map(|r| r.layers.len() as u32).sum()
    }

    /// Lines of equal signature are an island.
    pub fn signature(&self) -> Signature {
        self.runs.iter().map(|r| (r.cluster, r.layers.iter().sum())).collect()
    }

    /// Microbatches come in multiples of this.
    pub fn round(&self) -> u32 {
        if self.chunks == 1 { 1 } else { self.stages() }
    }

    /// Cluster, degree and layers of each stage.
    fn each_stage(&self) -> impl Iterator<Item = (usize, u32, u32)> {
        self.runs.iter().flat_map(|r| r.layers.iter().map(move |&layers| (r.cluster, r.team, layers)))
    }
}

/// A plan without its places.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sketch {
    pub lines: Vec<Line>,
    /// Between islands, should there be several: index into [`Ground::outer`].
    pub outer: usize,
    /// Equal signatures are islands also where replicas may drift apart; else each replica there is alone.
    pub gathers: bool,
}

/// What sketches are drawn on.
pub(super) struct Ground<'a> {
    pub cluster: &'a Cluster,
    /// By mode: microbatch size and recomputation.
    pub spaces: Vec<Space<'a>>,
    pub outer: Vec<(ExchangeKind, u32)>,
}

/// The model under every microbatch size and recomputation that the planner may choose from.
pub(super) fn modes(model: &Model) -> Vec<Model> {
    let sizes = [1, 2, 4, 8, 16].into_iter().filter(|b| model.global_batch.is_multiple_of(*b));
    let kinds = [Recompute::None, Recompute::Selective, Recompute::Full];
    let mode = |b: u32| kinds.map(|recompute| Model { micro_batch: Some(b), recompute, ..model.clone() });
    sizes.flat_map(mode).collect()
}

impl<'a> Ground<'a> {
    pub fn new(cluster: &'a Cluster, modes: &'a [Model], options: &'a SearchOptions) -> Self {
        let space = |model| Space::new(cluster, model, &EngineLimits::ANY, options);
        let spaces: Vec<Space> =
            modes.iter().map(|m| space(m).expect("everything is allowed to ANY")).collect();
        let outer = spaces[0].outer_kinds();
        // Dense exchanges do not nest: a plan file cannot say it.
        let outer = outer.into_iter().filter(|o| o.0 != ExchangeKind::Dense).collect();
        Self { cluster, spaces, outer }
    }

    pub fn team(&self, mode: usize, cluster: usize, size: u32) -> Option<&Team> {
        self.spaces[mode].groups[cluster].teams.iter().find(|t| t.size == size)
    }

    /// The plan of a sketch; `None` where it is not of the space, or needs more GPUs or another batch than there is.
    pub fn plan(&self, sketch: &Sketch) -> Option<Plan> {
        let plan = self.placed(sketch)?;
        let sequences = plan.tokens_per_step() / u64::from(plan.model.sequence);
        (sequences == u64::from(plan.model.global_batch)).then_some(plan)
    }

    /// The plan of a sketch if each replica did one round of microbatches.
    pub fn unshared_plan(&self, sketch: &Sketch) -> Option<Plan> {
        let mut sketch = sketch.clone();
        sketch.lines.iter_mut().for_each(|l| l.microbatches = l.round());
        self.placed(&sketch)
    }

    fn placed(&self, sketch: &Sketch) -> Option<Plan> {
        let whole = sketch.lines.iter().all(|line| self.is_whole(line)) && !sketch.lines.is_empty();
        if !whole || !self.keeps_clusters_apart(sketch) {
            return None;
        }
        let places = self.places(sketch)?;
        let base = sketch.lines[0].mode;
        let mut rank = 0;
        let replicas = sketch
            .lines
            .iter()
            .zip(&places)
            .map(|(line, places)| self.replica(line, base, places, &mut rank));
        let replicas: Vec<Replica> = replicas.collect::<Option<_>>()?;
        Some(Plan {
            version: VERSION,
            cluster: self.cluster.clone(),
            model: self.spaces[base].model.clone(),
            micro_batch: self.spaces[base].micro_batch,
            schedule: ScheduleSpec {
                kind: ScheduleKind::OneForwardOneBackward,
                virtual_stages: sketch.lines.iter().map(|l| l.chunks).max().unwrap_or(1),
            },
            replicas,
            exchange: self.exchanges(sketch),
            predicted: None,
            solver: None,
        })
    }

    /// Seconds of a plan by the closed form; `None` where it needs more memory than there is, or cannot be.
    pub fn closed_s(&self, plan: &Plan) -> Option<f64> {
        let cost = self.evaluated(plan)?;
        let memory: BTreeMap<&str, f64> = self
            .cluster
            .clusters
            .iter()
            .flat_map(|f| f.hosts.iter().map(|h| (h.name.as_str(), f.gpu.memory_bytes as f64)))
            .collect();
        let fits =
            |(seat, needed): (crate::plan::Seat, &f64)| *needed <= memory[seat.placement.host.as_str()];
        plan.seats().into_iter().zip(&cost.memory_bytes).all(fits).then_some(cost.iteration_s)
    }

    /// The closed form, whether the plan fits or not.
    pub fn evaluated(&self, plan: &Plan) -> Option<Evaluation> {
        let of = |r| self.mode(plan.micro_batch_of(r), plan.recompute_of(r));
        let modes: Option<Vec<&Space>> =
            (0..plan.replicas.len()).map(|r| of(r).map(|m| &self.spaces[m])).collect();
        evaluate_in(&modes?, plan).ok()
    }

    /// The sketch of a plan of the space.
    pub fn sketch_of(&self, plan: &Plan) -> Option<Sketch> {
        let lines = (0..plan.replicas.len()).map(|r| self.line_of(plan, r)).collect::<Option<Vec<_>>>()?;
        let outer =
            plan.exchange.iter().find_map(|e| self.outer.iter().position(|o| *o == (e.kind, e.every)));
        let inner = plan.exchange.iter().filter(|e| e.kind == ExchangeKind::Dense);
        let gathers = inner.flat_map(|e| &e.replicas).any(|&r| self.may_drift(&lines[r as usize]));
        Some(Sketch { lines, outer: outer.unwrap_or(0), gathers })
    }

    fn line_of(&self, plan: &Plan, index: usize) -> Option<Line> {
        let replica = &plan.replicas[index];
        let (ranks, chunks) = replica.split_ranks();
        let mut runs: Vec<Run> = Vec::new();
        for i in 0..ranks {
            let stages = replica.stages.iter().skip(i).step_by(ranks);
            let layers = stages.map(|s| s.layers[1] - s.layers[0]).sum();
            let host = &replica.stages[i].ranks[0].host;
            let cluster =
                self.cluster.clusters.iter().position(|f| f.hosts.iter().any(|h| h.name == *host))?;
            match runs.last_mut() {
                Some(run) if run.cluster == cluster => run.layers.push(layers),
                _ => runs.push(Run {
                    cluster,
                    team: replica.stages[i].ranks.len() as u32,
                    layers: vec![layers],
                }),
            }
        }
        let mode = self.mode(plan.micro_batch_of(index), plan.recompute_of(index))?;
        Some(Line { runs, chunks, microbatches: replica.microbatches, mode })
    }

    /// The mode of a microbatch size and a recomputation.
    pub fn mode(&self, micro_batch: u32, recompute: Recompute) -> Option<usize> {
        self.spaces.iter().position(|s| s.micro_batch == micro_batch && s.model.recompute == recompute)
    }

    fn is_whole(&self, line: &Line) -> bool {
        let layers: u32 = line.runs.iter().flat_map(|r| &r.layers).sum();
        let joined = |pair: &[Run]| self.spaces[0].link(pair[0].cluster, pair[1].cluster).is_some();
        let once = |(i, run): (usize, &Run)| line.runs[..i].iter().all(|other| other.cluster != run.cluster);
        let chunked = line.runs.len() == 1
            && line.stages() > 1
            && self.spaces[0].limits.max_virtual_stages >= line.chunks;
        let parts = line.runs.iter().flat_map(|r| &r.layers).all(|&n| n >= line.chunks);
        layers == self.spaces[0].model.layers
            && line.microbatches > 0
            && line.microbatches.is_multiple_of(line.round())
            && parts
            && (line.chunks == 1 || (chunked && line.chunks.is_power_of_two()))
            && line.runs.windows(2).all(joined)
            && line.runs.iter().enumerate().all(once)
            && line
                .runs
                .iter()
                .all(|r| !r.layers.is_empty() && self.team(line.mode, r.cluster, r.team).is_some())
    }

    fn may_drift(&self, line: &Line) -> bool {
        self.spaces[0].may_drift(line.runs.iter().map(|r| r.cluster))
    }

    /// A cluster in which replicas may not drift apart belongs to one island.
    fn keeps_clusters_apart(&self, sketch: &Sketch) -> bool {
        let apart = |g: usize| {
            let mut here = sketch.lines.iter().filter(|l| l.runs.iter().any(|r| r.cluster == g));
            let first = here.next().map(Line::signature);
            here.all(|l| Some(l.signature()) == first)
        };
        (0..self.cluster.clusters.len()).all(|g| self.spaces[0].may_drift(std::iter::once(g)) || apart(g))
    }

    /// By line and stage: host and first GPU. Largest degrees first: they divide each other and a host.
    fn places(&self, sketch: &Sketch) -> Option<Vec<Vec<(usize, u32)>>> {
        let mut stages: Vec<(u32, usize, usize, usize)> = Vec::new();
        for (i, line) in sketch.lines.iter().enumerate() {
            stages.extend(line.each_stage().enumerate().map(|(s, (cluster, team, _))| (team, i, s, cluster)));
        }
        stages.sort_by_key(|&(team, line, stage, _)| (std::cmp::Reverse(team), line, stage));
        let mut next = vec![0; self.cluster.clusters.len()];
        let mut places: Vec<Vec<(usize, u32)>> =
            sketch.lines.iter().map(|l| vec![(0, 0); l.stages() as usize]).collect();
        for (team, line, stage, cluster) in stages {
            let fabric = &self.cluster.clusters[cluster];
            let at = next[cluster];
            next[cluster] += team;
            if next[cluster] > fabric.gpus * fabric.hosts.len() as u32 {
                return None;
            }
            places[line][stage] = ((at / fabric.gpus) as usize, at % fabric.gpus);
        }
        Some(places)
    }

    fn replica(&self, line: &Line, base: usize, places: &[(usize, u32)], rank: &mut u32) -> Option<Replica> {
        let (space, base) = (&self.spaces[line.mode], &self.spaces[base]);
        let stages: Vec<(usize, u32, u32)> = line.each_stage().collect();
        let teams = stages.iter().zip(places).map(|(&(cluster, team, _), &(host, first))| {
            let fabric = &self.cluster.clusters[cluster];
            let place = |gpu| {
                *rank += 1;
                Placement {
                    rank: *rank - 1,
                    host: fabric.hosts[host].name.clone(),
                    gpu,
                    nic: fabric.nic.class,
                }
            };
            (first..first + team).map(place).collect::<Vec<_>>()
        });
        let teams: Vec<Vec<Placement>> = teams.collect();
        let (mut whole, mut first) = (Vec::new(), 0);
        for chunk in 0..line.chunks {
            for (ranks, &(_, _, layers)) in teams.iter().zip(&stages) {
                let layers = layers / line.chunks + u32::from(chunk < layers % line.chunks);
                whole.push(Stage { layers: [first, first + layers], ranks: ranks.clone() });
                first += layers;
            }
        }
        let mean_s = self.compute_s(line)? / whole.len() as f64;
        let at = |i: usize| (stages[i % stages.len()].0, places[i % stages.len()].0);
        let boundary = |i| {
            let way = self.way(space, at(i), at(i + 1))?;
            Some(Boundary { codec: space.codec(way, mean_s), transport: space.limits.transport })
        };
        Some(Replica {
            microbatches: line.microbatches,
            micro_batch: Some(space.micro_batch).filter(|b| *b != base.micro_batch),
            recompute: Some(space.model.recompute).filter(|r| *r != base.model.recompute),
            boundaries: (0..whole.len() - 1).map(boundary).collect::<Option<_>>()?,
            stages: whole,
        })
    }

    /// Work of a microbatch in all stages.
    fn compute_s(&self, line: &Line) -> Option<f64> {
        let mut seconds = 0.0;
        for run in &line.runs {
            let team = self.team(line.mode, run.cluster, run.team)?;
            seconds += f64::from(run.layers.iter().sum::<u32>()) * team.layer_s;
        }
        let last = line.runs.last()?;
        Some(seconds + self.team(line.mode, last.cluster, last.team)?.head_s)
    }

    /// Between (cluster, host)s.
    fn way<'s>(&self, space: &'s Space, from: (usize, usize), to: (usize, usize)) -> Option<&'s Way> {
        match (from, to) {
            _ if from.0 != to.0 => space.link(from.0, to.0),
            _ if from.1 == to.1 => Some(&space.groups[from.0].bus),
            _ => Some(&space.groups[from.0].nic),
        }
    }

    fn exchanges(&self, sketch: &Sketch) -> Vec<Exchange> {
        let mut islands: BTreeMap<(Signature, u32), Vec<u32>> = BTreeMap::new();
        for (index, line) in (0..).zip(&sketch.lines) {
            let alone = !sketch.gathers && self.may_drift(line);
            islands.entry((line.signature(), if alone { index } else { u32::MAX })).or_default().push(index);
        }
        let several = islands.len() > 1;
        let dense = |replicas| Exchange { replicas, kind: ExchangeKind::Dense, every: 1, zero1: true };
        let mut exchanges: Vec<Exchange> = islands.into_values().filter(|i| i.len() > 1).map(dense).collect();
        if several {
            let (kind, every) = self.outer[sketch.outer];
            let replicas = (0..sketch.lines.len() as u32).collect();
            exchanges.push(Exchange { replicas, kind, every, zero1: false });
        }
        exchanges
    }
}
