//! The planner challenged: plans made by hand, at random and then moved about, none of which may beat its plan.
//!
//! ```text
//!   seed ──instance──> inventory + model ──search──> the planner's plan, its bound
//!                             └──random, moves──> sketch ──legal?──> plan ──evaluate──> closed form   vs  the bound
//!                                                                        └──simulate──> simulated     vs  the plan's
//! ```
//! Two claims are tried. The proof: no legal plan's closed form lies below the bound, ever. The model: no legal plan
//! is simulated faster than the planner's by more than its gap. The first cannot fail without a mistake in the search;
//! the second can, where the closed form that the search minimises and the simulator differ by more.
//!
//! Climbs go by the one figure and the other in turn, from random sketches, from the planner's own plan, and from the best
//! that is known. Deterministic by seed.
//!
//! Not here: what is legal and how it is written down (`sketch`), how plans are changed (`moves`).

mod instance;
mod moves;
mod random;
mod sketch;

use serde::Serialize;

use crate::inventory::Cluster;
use crate::model::Model;
use crate::plan::{Plan, Solver};
use crate::search::{EngineLimits, SearchError, SearchOptions, search};
use crate::simulate::{self, SimulateError};
use crate::topology::Topology;

pub use instance::instance;

use random::Random;
use sketch::{Ground, Sketch};

/// What is planned and challenged.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// It was made from.
    pub seed: u64,
    /// 16 to 64 GPUs in 2 to 4 clusters.
    pub cluster: Cluster,
    /// All choices open.
    pub model: Model,
}

/// A plan by both judges.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// Seconds per step by the closed form.
    pub closed_s: f64,
    /// Seconds per step simulated.
    pub simulated_s: f64,
    /// The plan.
    pub plan: Plan,
}

/// How a challenge ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Of the instance.
    pub seed: u64,
    /// Of the inventory.
    pub gpus: u32,
    /// Of the inventory.
    pub clusters: usize,
    /// Legal plans judged.
    pub tries: u32,
    /// Sketches drawn or moved, legal or not.
    pub drawn: u64,
    /// The planner's plan.
    pub planner: Judged,
    /// What the planner says of it.
    pub solver: Solver,
    /// The fastest tried, simulated.
    pub fastest: Option<Judged>,
    /// The fastest tried by the closed form.
    pub fastest_closed: Option<Judged>,
}

impl Outcome {
    /// Share by which the fastest tried is simulated faster than the planner's plan; below 0 where it is slower.
    pub fn simulated_excess(&self) -> f64 {
        self.fastest.as_ref().map_or(-1.0, |f| self.planner.simulated_s / f.simulated_s - 1.0)
    }

    /// Share by which the bound lies above the closed form of some plan tried: above 0 the proof is wrong.
    pub fn bound_excess(&self) -> f64 {
        self.fastest_closed.as_ref().map_or(-1.0, |f| self.solver.bound_s / f.closed_s - 1.0)
    }
}

/// Why there was no challenge.
#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    /// There is nothing to challenge.
    #[error("challenging the plan of seed {seed}: {error}")]
    Search {
        /// Of the instance.
        seed: u64,
        /// Why.
        error: SearchError,
    },
    /// The planner's plan cannot be judged.
    #[error("judging the plan of seed {seed}: {error}")]
    Simulate {
        /// Of the instance.
        seed: u64,
        /// Why.
        error: SimulateError,
    },
}

/// Moves of a climb.
const CLIMB: u32 = 150;
/// Random sketches that a climb begins with the best of.
const DRAWS: u32 = 25;
/// Most sketches drawn for one legal plan: where memory is scarce most are none.
const DRAWN_PER_TRY: u64 = 200;

/// Plans the instance and tries to beat its plan.
///
/// # Errors
/// [`ChallengeError`] where the instance has no plan.
pub fn challenge(
    instance: &Instance,
    options: &SearchOptions,
    tries: u32,
) -> Result<Outcome, ChallengeError> {
    let Instance { seed, cluster, model } = instance;
    let found = search(cluster, model, &EngineLimits::ANY, options);
    let plan = found.map_err(|error| ChallengeError::Search { seed: *seed, error })?.plan;
    let modes = sketch::modes(model);
    let ground = Ground::new(cluster, &modes, options);
    let topology = Topology::new(cluster);
    let simulated_s = simulate::quick_on(&plan, &topology)
        .map_err(|error| ChallengeError::Simulate { seed: *seed, error })?
        .predicted
        .iteration_s;
    let solver = plan.solver.clone().expect("the search says how it found it");
    let planner =
        Judged { closed_s: ground.closed_s(&plan).unwrap_or(solver.objective_s), simulated_s, plan };
    let mut tried = Tried {
        ground,
        topology,
        random: Random::new(seed.wrapping_mul(0x9e37_79b9) ^ 0x6368_616c),
        left: tries,
        drawn: 0,
        most_drawn: DRAWN_PER_TRY * u64::from(tries),
        fastest: [None, None],
    };
    tried.run(&planner);
    let [fastest_closed, fastest] = tried.fastest.map(|f| f.map(|(_, judged)| judged));
    Ok(Outcome {
        seed: *seed,
        gpus: cluster.clusters.iter().map(|f| f.hosts.len() as u32 * f.gpus).sum(),
        clusters: cluster.clusters.len(),
        tries: tries - tried.left,
        drawn: tried.drawn,
        planner,
        solver,
        fastest,
        fastest_closed,
    })
}

/// Whose seconds a climb goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judge {
    ClosedForm = 0,
    Simulator = 1,
}

/// What has been tried.
struct Tried<'a> {
    ground: Ground<'a>,
    topology: Topology,
    random: Random,
    left: u32,
    drawn: u64,
    most_drawn: u64,
    /// By judge.
    fastest: [Option<(Sketch, Judged)>; 2],
}

impl Tried<'_> {
    fn run(&mut self, planner: &Judged) {
        let own = self.ground.sketch_of(&planner.plan);
        for round in 0.. {
            if self.is_over() {
                return;
            }
            let judge = if round % 2 == 0 { Judge::Simulator } else { Judge::ClosedForm };
            let start = match round / 2 % 3 {
                0 => self.best_of_random(judge),
                1 => own.clone().and_then(|sketch| self.judged(sketch)),
                _ => self.fastest[judge as usize].clone(),
            };
            if let Some(start) = start {
                self.climb(start, judge);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.left == 0 || self.drawn >= self.most_drawn
    }

    fn best_of_random(&mut self, judge: Judge) -> Option<(Sketch, Judged)> {
        let mut best: Option<(Sketch, Judged)> = None;
        for _ in 0..DRAWS {
            let sketch = moves::draw(&self.ground, &mut self.random);
            if let Some(next) = sketch.and_then(|sketch| self.judged(sketch))
                && best.as_ref().is_none_or(|b| seconds(&next.1, judge) < seconds(&b.1, judge))
            {
                best = Some(next);
            }
            self.drawn += 1;
        }
        best
    }

    /// Moves at random; a move that costs more than a shrinking share is taken back.
    fn climb(&mut self, start: (Sketch, Judged), judge: Judge) {
        let mut at = start;
        for turn in 0..CLIMB {
            if self.is_over() {
                return;
            }
            self.drawn += 1;
            let leave = 0.03 * (1.0 - f64::from(turn) / f64::from(CLIMB)).powi(2);
            let moved = moves::moved(&self.ground, &at.0, &mut self.random);
            if let Some(next) = moved.and_then(|sketch| self.judged(sketch))
                && seconds(&next.1, judge) <= seconds(&at.1, judge) * (1.0 + leave)
            {
                at = next;
            }
        }
    }

    /// Judges a sketch if it is a legal plan, and remembers it if it is the fastest.
    fn judged(&mut self, sketch: Sketch) -> Option<(Sketch, Judged)> {
        let plan = self.ground.plan(&sketch)?;
        let closed_s = self.ground.closed_s(&plan)?;
        let simulated_s = simulate::quick_on(&plan, &self.topology).ok()?.predicted.iteration_s;
        let next = (sketch, Judged { closed_s, simulated_s, plan });
        self.left = self.left.saturating_sub(1);
        for judge in [Judge::ClosedForm, Judge::Simulator] {
            let best = &mut self.fastest[judge as usize];
            if best.as_ref().is_none_or(|b| seconds(&next.1, judge) < seconds(&b.1, judge)) {
                *best = Some(next.clone());
            }
        }
        Some(next)
    }
}

fn seconds(judged: &Judged, judge: Judge) -> f64 {
    match judge {
        Judge::ClosedForm => judged.closed_s,
        Judge::Simulator => judged.simulated_s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_challenge_again_and_no_plan_tried_lies_below_the_bound() {
        let options = SearchOptions { gap: 0.02, ..Default::default() };
        let [a, b] = [(), ()].map(|()| challenge(&instance(3), &options, 60).unwrap());
        assert_eq!((a.drawn, &a.fastest, &a.fastest_closed), (b.drawn, &b.fastest, &b.fastest_closed));
        assert!(a.tries > 0 && a.bound_excess() <= 1e-9, "{}", a.bound_excess());
    }

    #[test]
    fn instances_are_as_large_as_they_say() {
        for seed in 0..50 {
            let cluster = instance(seed).cluster;
            let gpus: u32 = cluster.clusters.iter().map(|f| f.hosts.len() as u32 * f.gpus).sum();
            assert!((16..=64).contains(&gpus) && (2..=4).contains(&cluster.clusters.len()), "{seed}: {gpus}");
        }
    }
}
