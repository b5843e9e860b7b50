//! The integer program: how many of each offer, for a fixed step time.
//!
//! ```text
//!   find      n_k >= 0 (how many), w_k >= 0 (their units of work together), y_j in {0, 1} (islands), integer
//!   such that sum_k b_k w_k = B                n_k <= w_k <= m_k n_k
//!             sum_k u_kg n_k <= N_g            for every group g
//!             lo_j y_j <= sum of n_k in j <= hi_j y_j      for every island j
//!             sum_j y_j + sum of lone n_k in [I_min, I_max]
//!             islands and lone replicas that touch g <= 1      for every group g whose replicas must be dense
//!             n_k of signature s <= R x sum of n_k outside s   for every signature s that must not stand alone
//!             sum_k t_kp w_k <= C_p            for every pool p that can bind
//! ```
//! Where no pool can bind and all units are alike, w_k = m_k n_k, sum >= B, and one variable an offer
//! remains. good_lp builds, HiGHS solves: one thread. The linear relaxation, maximising sequences, is the cheap way to
//! "no".

use std::time::{Duration, Instant};

use good_lp::solvers::highs::highs;
use good_lp::{Expression, ProblemVariables, SolverModel, Variable, constraint, variable};
use highs::HighsModelStatus;

use super::SearchError;

/// Whether an offer's replicas are alone or of an island.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Alone {
        signature: usize,
    },
    /// Index into [`Demand::members`].
    Island(usize),
}

/// A column at a fixed step time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Offer {
    pub place: Place,
    /// GPUs, by group.
    pub devices: Vec<u32>,
    /// Bytes of a unit, by pool.
    pub traffic: Vec<f64>,
    /// Sequences of a unit of work: a microbatch, or a round of an interleaved pipeline.
    pub unit: u32,
    /// Units it manages, at least 1.
    pub units: u32,
}

impl Offer {
    pub fn sequences(&self) -> u64 {
        u64::from(self.unit) * u64::from(self.units)
    }
}

/// An island that may be formed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Island {
    pub signature: usize,
    /// Fewest and most.
    pub replicas: (u32, u32),
    pub clusters: Vec<usize>,
}

/// What the offers chosen must do together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Demand {
    pub sequences: u32,
    /// Islands and lone replicas, fewest and most.
    pub islands: (u32, u32),
    /// GPUs, by group.
    pub supply: Vec<u32>,
    /// Bytes in the step's time, by pool; infinite where the pool cannot bind.
    pub capacity: Vec<f64>,
    pub members: Vec<Island>,
    /// Groups that at most one island or lone replica may touch.
    pub exclusive: Vec<usize>,
    /// Signatures beside which another must be chosen.
    pub together: Vec<usize>,
}

impl Demand {
    fn signature(&self, place: Place) -> usize {
        match place {
            Place::Alone { signature } => signature,
            Place::Island(island) => self.members[island].signature,
        }
    }
}

/// How many of each offer, and their units together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub counts: Vec<u32>,
    pub units: Vec<u32>,
}

/// What the solver found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Chosen(Choice),
    Infeasible,
    OutOfTime,
}

/// The most sequences that fractions of offers manage together: below the demand, integers cannot do it either.
pub(crate) fn relaxed(offers: &[Offer], demand: &Demand) -> Result<f64, SearchError> {
    if offers.is_empty() {
        return Ok(0.0);
    }
    let (variables, program) = Program::new(offers, demand, Kind::Fractional);
    let total = program.sequences(offers);
    let model = variables.minimise(-total).using(highs);
    let model = program.rows(offers, demand).into_iter().fold(model, |m, c| m.with(c));
    let solved = configured(model.into_inner(), 1e9).solve();
    match solved.status() {
        HighsModelStatus::Optimal => Ok(-solved.objective_value()),
        HighsModelStatus::Infeasible => Ok(0.0),
        status => Err(failed("relaxing the choice of columns", status)),
    }
}

/// Offers that meet the demand, or proof that none do. With `prices` (of a GPU, by group) the cheapest, else any.
pub(crate) fn choose(
    offers: &[Offer],
    demand: &Demand,
    prices: Option<&[f64]>,
    deadline: Instant,
) -> Result<Verdict, SearchError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) {
        return Ok(Verdict::OutOfTime);
    }
    if offers.is_empty() {
        return Ok(Verdict::Infeasible);
    }
    let (variables, program) = Program::new(offers, demand, Kind::Whole);
    let total = program.sequences(offers);
    let goal = match prices {
        Some(prices) => program.cost(offers, prices),
        None => -total.clone(),
    };
    let model = variables.minimise(goal).using(highs);
    let model = program.rows(offers, demand).into_iter().fold(model, |m, c| m.with(c));
    let demanded = f64::from(demand.sequences);
    let model = model.with(if program.work.is_some() { total.eq(demanded) } else { total.geq(demanded) });
    let mut model = configured(model.into_inner(), left.as_secs_f64());
    if prices.is_none() {
        // Any will do: the first found ends it.
        model.set_option("mip_rel_gap", 1e6);
    }
    let solved = model.solve();
    match solved.status() {
        HighsModelStatus::Optimal => {
            Ok(Verdict::Chosen(program.read(offers, solved.get_solution().columns())))
        }
        HighsModelStatus::Infeasible => Ok(Verdict::Infeasible),
        HighsModelStatus::ReachedTimeLimit => Ok(Verdict::OutOfTime),
        status => Err(failed("choosing columns", status)),
    }
}

/// Disjoint blocks of clusters of most value together, at least `fewest` of them.
pub(crate) fn partition(
    blocks: &[(Vec<usize>, f64)],
    clusters: usize,
    islands: (u32, u32),
) -> Result<Option<(f64, Vec<usize>)>, SearchError> {
    let mut variables = ProblemVariables::new();
    let chosen: Vec<Variable> = blocks.iter().map(|_| variables.add(variable().binary())).collect();
    let value: Expression = chosen.iter().zip(blocks).map(|(&y, b)| y * b.1).sum();
    let mut model = variables.minimise(-value).using(highs);
    for cluster in 0..clusters {
        let within = chosen.iter().zip(blocks).filter(|(_, b)| b.0.contains(&cluster)).map(|(&y, _)| y);
        let within: Expression = within.map(Expression::from).sum();
        model = model.with(constraint!(within <= 1));
    }
    let all: Expression = chosen.iter().map(|&y| Expression::from(y)).sum();
    model = model.with(constraint!(all.clone() <= islands.1)).with(all.geq(f64::from(islands.0)));
    let solved = configured(model.into_inner(), 10.0).solve();
    match solved.status() {
        HighsModelStatus::Optimal => {
            let values = solved.get_solution().columns().to_vec();
            let taken = (0..blocks.len()).filter(|&i| values[i] > 0.5).collect();
            Ok(Some((-solved.objective_value(), taken)))
        }
        HighsModelStatus::Infeasible => Ok(None),
        status => Err(failed("dividing the clusters into islands", status)),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Fractional,
    Whole,
}

struct Program {
    counts: Vec<Variable>,
    islands: Vec<Variable>,
    /// Units of each offer where they are free.
    work: Option<Vec<Variable>>,
}

impl Program {
    /// Counts, islands, then microbatches: the order in which [`Program::read`] finds them.
    fn new(offers: &[Offer], demand: &Demand, kind: Kind) -> (ProblemVariables, Self) {
        let mut variables = ProblemVariables::new();
        let sort = |v: good_lp::VariableDefinition| if kind == Kind::Whole { v.integer() } else { v };
        let most = offers.iter().map(|o| {
            let fit = o.devices.iter().zip(&demand.supply).filter(|(u, _)| **u > 0).map(|(u, n)| n / u);
            fit.min().unwrap_or(0)
        });
        let counts = most.map(|most| variables.add(sort(variable().min(0).max(most)))).collect();
        let islands = demand.members.iter().map(|_| variables.add(sort(variable().min(0).max(1)))).collect();
        let sizes_differ = offers.iter().any(|o| o.unit != offers[0].unit);
        let bound = demand.capacity.iter().any(|c| c.is_finite());
        let free = bound || (sizes_differ && kind == Kind::Whole);
        let work =
            free.then(|| variables.add_vector(sort(variable().min(0).max(demand.sequences)), offers.len()));
        (variables, Self { counts, islands, work })
    }

    fn units(&self, offer: usize, offers: &[Offer]) -> Expression {
        match &self.work {
            Some(work) => work[offer].into(),
            None => self.counts[offer] * f64::from(offers[offer].units),
        }
    }

    fn sequences(&self, offers: &[Offer]) -> Expression {
        let of = |i: usize| self.units(i, offers) * f64::from(offers[i].unit);
        (0..offers.len()).map(of).sum()
    }

    fn cost(&self, offers: &[Offer], prices: &[f64]) -> Expression {
        let price = |o: &Offer| o.devices.iter().zip(prices).map(|(&n, p)| f64::from(n) * p).sum::<f64>();
        self.sum(offers, |o| price(o))
    }

    fn sum(&self, offers: &[Offer], weight: impl Fn(&Offer) -> f64) -> Expression {
        let terms = self.counts.iter().zip(offers).map(|(&n, o)| (n, weight(o)));
        terms.filter(|t| t.1 != 0.0).map(|(n, w)| n * w).sum()
    }

    fn rows(&self, offers: &[Offer], demand: &Demand) -> Vec<good_lp::Constraint> {
        let mut rows = Vec::new();
        for (group, &supply) in demand.supply.iter().enumerate() {
            rows.push(constraint!(self.sum(offers, |o| f64::from(o.devices[group])) <= supply));
        }
        self.island_rows(offers, demand, &mut rows);
        for &signature in &demand.together {
            let most = f64::from(demand.sequences);
            let row = |o: &Offer| if demand.signature(o.place) == signature { 1.0 } else { -most };
            if offers.iter().any(|o| demand.signature(o.place) == signature) {
                rows.push(constraint!(self.sum(offers, row) <= 0));
            }
        }
        // Every replica does something.
        rows.push(constraint!(self.sum(offers, |o| f64::from(o.unit)) <= demand.sequences));
        for (pool, &capacity) in demand.capacity.iter().enumerate().filter(|(_, c)| c.is_finite()) {
            // In units of the capacity: bytes are too large for the solver's tolerances.
            let used: Expression =
                (0..offers.len()).map(|i| self.units(i, offers) * (offers[i].traffic[pool] / capacity)).sum();
            rows.push(constraint!(used <= 1));
        }
        if let Some(work) = &self.work {
            for ((&n, &w), offer) in self.counts.iter().zip(work).zip(offers) {
                rows.push(constraint!(w <= n * f64::from(offer.units)));
                rows.push(constraint!(n <= w));
            }
        }
        rows
    }

    fn island_rows(&self, offers: &[Offer], demand: &Demand, rows: &mut Vec<good_lp::Constraint>) {
        for (j, island) in demand.members.iter().enumerate() {
            let members = self.sum(offers, |o| f64::from(u8::from(o.place == Place::Island(j))));
            let y = self.islands[j];
            rows.push(constraint!(members.clone() <= y * f64::from(island.replicas.1)));
            rows.push(members.geq(y * f64::from(island.replicas.0)));
        }
        let alone = |o: &Offer| f64::from(u8::from(matches!(o.place, Place::Alone { .. })));
        let formed: Expression = self.islands.iter().sum();
        let all = formed + self.sum(offers, alone);
        rows.push(constraint!(all.clone() <= demand.islands.1));
        rows.push(all.geq(f64::from(demand.islands.0)));
        for &group in &demand.exclusive {
            let touching = demand.members.iter().zip(&self.islands);
            let touching: Expression = touching
                .filter(|(i, _)| i.clusters.contains(&group))
                .map(|(_, &y)| Expression::from(y))
                .sum();
            let lone = self.sum(offers, |o| if o.devices[group] > 0 { alone(o) } else { 0.0 });
            rows.push(constraint!(touching + lone <= 1));
        }
    }

    fn read(&self, offers: &[Offer], values: &[f64]) -> Choice {
        let whole = |i: usize| values[i].round() as u32;
        let n = self.counts.len();
        let counts: Vec<u32> = (0..n).map(whole).collect();
        let first = n + self.islands.len();
        let units = match self.work {
            Some(_) => (first..first + n).map(whole).collect(),
            None => counts.iter().zip(offers).map(|(c, o)| c * o.units).collect(),
        };
        Choice { counts, units }
    }
}

pub(crate) fn configured(mut model: highs::Model, time_limit_s: f64) -> highs::Model {
    model.make_quiet();
    model.set_option("threads", 1);
    model.set_option("parallel", "off");
    model.set_option("random_seed", 0);
    model.set_option("mip_feasibility_tolerance", 1e-9);
    model.set_option("primal_feasibility_tolerance", 1e-9);
    model.set_option("time_limit", time_limit_s);
    // Programs here are small, and some sent the presolve of HiGHS 1.15 round for minutes.
    model.set_option("presolve", "off");
    model
}

pub(crate) fn failed(doing: &'static str, status: HighsModelStatus) -> SearchError {
    SearchError::Solver { doing, status: format!("{status:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(devices: [u32; 2], units: u32) -> Offer {
        let place = Place::Alone { signature: 0 };
        Offer { place, devices: devices.to_vec(), traffic: vec![1.0], unit: 1, units }
    }

    fn demand(sequences: u32) -> Demand {
        Demand {
            sequences,
            islands: (1, 8),
            supply: vec![5, 3],
            capacity: vec![f64::INFINITY],
            members: vec![],
            exclusive: vec![],
            together: vec![],
        }
    }

    fn chosen(offers: &[Offer], demand: &Demand) -> Option<Choice> {
        match choose(offers, demand, None, Instant::now() + Duration::from_secs(60)).unwrap() {
            Verdict::Chosen(choice) => Some(choice),
            Verdict::Infeasible => None,
            Verdict::OutOfTime => panic!("a minute is enough"),
        }
    }

    /// Two GPUs of the first group make 5, one of each makes 4, three of the second make 6; 5 + 3 GPUs.
    fn offers() -> Vec<Offer> {
        vec![offer([2, 0], 5), offer([1, 1], 4), offer([0, 3], 6)]
    }

    #[test]
    fn integers_do_less_than_fractions_and_the_solver_knows_both() {
        let relaxed = relaxed(&offers(), &Demand { sequences: 20, ..demand(0) }).unwrap();
        assert!(
            (relaxed - 18.0).abs() < 1e-6,
            "two of the first, one of the second, a part of the last: {relaxed}"
        );
        let choice = chosen(&offers(), &demand(17)).unwrap();
        assert_eq!(choice, Choice { counts: vec![1, 3, 0], units: vec![5, 12, 0] });
        assert_eq!(chosen(&offers(), &demand(18)), None);
    }

    #[test]
    fn a_pool_caps_microbatches_not_columns() {
        let capped = Demand { capacity: vec![12.0], ..demand(12) };
        assert_eq!(chosen(&offers(), &capped).unwrap().units.iter().sum::<u32>(), 12);
        assert_eq!(chosen(&offers(), &Demand { capacity: vec![12.0], ..demand(13) }), None);
    }

    #[test]
    fn a_signature_that_must_not_stand_alone_gets_company() {
        let mut offers = offers();
        offers[1].place = Place::Alone { signature: 1 };
        let demand = Demand { together: vec![0], ..demand(11) };
        assert_eq!(chosen(&offers[..1], &demand), None);
        assert!(chosen(&offers, &demand).unwrap().counts[1] > 0);
    }

    #[test]
    fn an_island_has_all_its_members_or_none_and_shares_its_cluster_with_no_other() {
        let mut offers = offers();
        offers[0].place = Place::Island(0);
        let members = vec![Island { signature: 0, replicas: (2, 2), clusters: vec![0] }];
        let demand = Demand { members, exclusive: vec![0], ..demand(16) };
        // Two of the first and one of the last; the middle one would share the first group with the island.
        assert_eq!(chosen(&offers, &demand).unwrap().counts, vec![2, 0, 1]);
        assert_eq!(chosen(&offers, &Demand { sequences: 17, ..demand }), None);
    }

    #[test]
    fn unlike_microbatches_add_up_exactly() {
        let mut offers = vec![offer([2, 0], 3), offer([0, 3], 2)];
        offers[0].unit = 4;
        let choice = chosen(&offers, &demand(9)).unwrap();
        assert_eq!(choice.units, vec![2, 1]);
        assert_eq!(chosen(&offers, &demand(15)), None);
    }
}
