//! The integer program: how many of each column, for a fixed step time.
//!
//! ```text
//!   find      n_k >= 0 (how many), w_k >= 0 (their microbatches together), integer
//!   such that sum_k w_k >= M              n_k <= w_k <= m_k n_k
//!             sum_k u_kg n_k <= N_g       for every group g          sum_k n_k in [R_min, R_max]
//!             sum_k b_kp w_k <= C_p       for every pool p that can bind
//!             sum of n_k outside s >= 1   for every signature s that must not stand alone
//! ```
//! Where no pool can bind w_k = m_k n_k and one variable a column remains. good_lp builds, HiGHS solves: one thread, a
//! pure feasibility question for integers; its linear relaxation, maximising microbatches, is the cheap way to "no".

use std::time::{Duration, Instant};

use good_lp::solvers::highs::highs;
use good_lp::{Expression, ProblemVariables, SolverModel, Variable, constraint, variable};
use highs::HighsModelStatus;

use super::SearchError;

/// A column at a fixed step time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Offer {
    /// GPUs, by group.
    pub devices: Vec<u32>,
    /// Bytes of a microbatch, by pool.
    pub traffic: Vec<f64>,
    /// Which of [`Demand::not_alone`] it has, if any.
    pub signature: Option<usize>,
    /// Microbatches it manages, at least 1.
    pub microbatches: u32,
}

/// What the columns chosen must do together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Demand {
    pub microbatches: u32,
    pub replicas: (u32, u32),
    /// GPUs, by group.
    pub supply: Vec<u32>,
    /// Bytes in the step's time, by pool; infinite where the pool cannot bind.
    pub capacity: Vec<f64>,
    /// Signatures of which something else must be chosen too.
    pub not_alone: usize,
}

/// How many of each offer, and their microbatches together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub counts: Vec<u32>,
    pub microbatches: Vec<u32>,
}

/// What the solver found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Chosen(Choice),
    Infeasible,
    OutOfTime,
}

/// The most microbatches that fractions of columns manage together: below the demand, integers cannot do it either.
pub(crate) fn relaxed(offers: &[Offer], demand: &Demand) -> Result<f64, SearchError> {
    if offers.is_empty() {
        return Ok(0.0);
    }
    let (variables, columns) = columns(offers, demand, Kind::Fractional);
    let total: Expression = columns.work.iter().cloned().sum();
    let model = variables.minimise(-total).using(highs);
    let model = constraints(offers, demand, &columns).into_iter().fold(model, |m, c| m.with(c));
    let solved = configured(model.into_inner(), 1e9).solve();
    match solved.status() {
        HighsModelStatus::Optimal => Ok(-solved.objective_value()),
        HighsModelStatus::Infeasible => Ok(0.0),
        status => Err(failed("relaxing the choice of columns", status)),
    }
}

/// Columns that meet the demand, or proof that there are none.
pub(crate) fn choose(offers: &[Offer], demand: &Demand, deadline: Instant) -> Result<Verdict, SearchError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) {
        return Ok(Verdict::OutOfTime);
    }
    if offers.is_empty() {
        return Ok(Verdict::Infeasible);
    }
    let (variables, columns) = columns(offers, demand, Kind::Whole);
    let total: Expression = columns.work.iter().cloned().sum();
    let model = variables.minimise(Expression::from(0.0)).using(highs);
    let model = constraints(offers, demand, &columns).into_iter().fold(model, |m, c| m.with(c));
    let model = model.with(total.geq(f64::from(demand.microbatches)));
    let solved = configured(model.into_inner(), left.as_secs_f64()).solve();
    match solved.status() {
        HighsModelStatus::Optimal => {
            Ok(Verdict::Chosen(columns.read(offers, solved.get_solution().columns())))
        }
        HighsModelStatus::Infeasible => Ok(Verdict::Infeasible),
        HighsModelStatus::ReachedTimeLimit => Ok(Verdict::OutOfTime),
        status => Err(failed("choosing columns", status)),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Fractional,
    Whole,
}

struct Columns {
    counts: Vec<Variable>,
    /// Microbatches of each column, as an expression of the variables.
    work: Vec<Expression>,
    /// The variables behind `work` where they are free.
    free: Option<Vec<Variable>>,
}

impl Columns {
    fn read(&self, offers: &[Offer], values: &[f64]) -> Choice {
        let whole = |i: usize| values[i].round() as u32;
        let n = self.counts.len();
        let counts: Vec<u32> = (0..n).map(whole).collect();
        let microbatches = match self.free {
            Some(_) => (n..2 * n).map(whole).collect(),
            None => counts.iter().zip(offers).map(|(c, o)| c * o.microbatches).collect(),
        };
        Choice { counts, microbatches }
    }
}

/// Counts first, then microbatches where a pool can bind: the order in which [`Columns::read`] finds them.
fn columns(offers: &[Offer], demand: &Demand, kind: Kind) -> (ProblemVariables, Columns) {
    let mut variables = ProblemVariables::new();
    let sort = |v: good_lp::VariableDefinition| if kind == Kind::Whole { v.integer() } else { v };
    let counts = variables.add_vector(sort(variable().min(0).max(demand.replicas.1)), offers.len());
    let bound = demand.capacity.iter().any(|c| c.is_finite());
    let free =
        bound.then(|| variables.add_vector(sort(variable().min(0).max(demand.microbatches)), offers.len()));
    let work = match &free {
        Some(work) => work.iter().map(|&w| Expression::from(w)).collect(),
        None => counts.iter().zip(offers).map(|(&n, o)| n * o.microbatches).collect(),
    };
    (variables, Columns { counts, work, free })
}

fn constraints(offers: &[Offer], demand: &Demand, columns: &Columns) -> Vec<good_lp::Constraint> {
    let sum = |weight: &dyn Fn(&Offer) -> f64| -> Expression {
        columns.counts.iter().zip(offers).map(|(&n, o)| n * weight(o)).sum()
    };
    let mut rows = Vec::new();
    for (group, &supply) in demand.supply.iter().enumerate() {
        rows.push(constraint!(sum(&|o| f64::from(o.devices[group])) <= supply));
    }
    let replicas = sum(&|_| 1.0);
    rows.push(constraint!(replicas.clone() <= demand.replicas.1));
    rows.push(replicas.geq(f64::from(demand.replicas.0)));
    for signature in 0..demand.not_alone {
        let outside = sum(&|o| if o.signature == Some(signature) { 0.0 } else { 1.0 });
        rows.push(outside.geq(1.0));
    }
    for (pool, &capacity) in demand.capacity.iter().enumerate().filter(|(_, c)| c.is_finite()) {
        // In units of the capacity: bytes are too large for the solver's tolerances.
        let used: Expression =
            columns.work.iter().zip(offers).map(|(w, o)| w.clone() * (o.traffic[pool] / capacity)).sum();
        rows.push(constraint!(used <= 1));
    }
    for ((&n, work), offer) in columns.counts.iter().zip(&columns.work).zip(offers) {
        if columns.free.is_some() {
            rows.push(constraint!(work.clone() <= n * offer.microbatches));
            rows.push(work.clone().geq(n));
        }
    }
    rows
}

fn configured(mut model: highs::Model, time_limit_s: f64) -> highs::Model {
    model.make_quiet();
    model.set_option("threads", 1);
    model.set_option("parallel", "off");
    model.set_option("random_seed", 0);
    model.set_option("mip_feasibility_tolerance", 1e-9);
    model.set_option("primal_feasibility_tolerance", 1e-9);
    model.set_option("time_limit", time_limit_s);
    model
}

fn failed(doing: &'static str, status: HighsModelStatus) -> SearchError {
    SearchError::Solver { doing, status: format!("{status:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(devices: [u32; 2], microbatches: u32) -> Offer {
        Offer { devices: devices.to_vec(), traffic: vec![1.0], signature: None, microbatches }
    }

    fn demand(microbatches: u32) -> Demand {
        Demand {
            microbatches,
            replicas: (1, 8),
            supply: vec![5, 3],
            capacity: vec![f64::INFINITY],
            not_alone: 0,
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Two GPUs of the first group make 5, one of each makes 4, three of the second make 6; 5 + 3 GPUs.
    fn offers() -> Vec<Offer> {
        vec![offer([2, 0], 5), offer([1, 1], 4), offer([0, 3], 6)]
    }

    #[test]
    fn integers_do_less_than_fractions_and_the_solver_knows_both() {
        let relaxed = relaxed(&offers(), &demand(0)).unwrap();
        assert!((relaxed - 18.5).abs() < 1e-6, "2.5 of the first and 1 of the last: {relaxed}");
        let Verdict::Chosen(choice) = choose(&offers(), &demand(17), soon()).unwrap() else { panic!() };
        assert_eq!(choice, Choice { counts: vec![1, 3, 0], microbatches: vec![5, 12, 0] });
        assert_eq!(choose(&offers(), &demand(18), soon()).unwrap(), Verdict::Infeasible);
    }

    #[test]
    fn a_pool_caps_microbatches_not_columns() {
        let capped = Demand { capacity: vec![12.0], ..demand(12) };
        let Verdict::Chosen(choice) = choose(&offers(), &capped, soon()).unwrap() else { panic!() };
        assert_eq!(choice.microbatches.iter().sum::<u32>(), 12);
        let more = Demand { capacity: vec![12.0], ..demand(13) };
        assert_eq!(choose(&offers(), &more, soon()).unwrap(), Verdict::Infeasible);
    }

    #[test]
    fn a_signature_that_must_not_stand_alone_gets_company() {
        let mut offers = offers();
        (offers[0].signature, offers[2].signature) = (Some(0), Some(0));
        let demand = Demand { not_alone: 1, ..demand(11) };
        assert_eq!(choose(&offers[..1], &demand, soon()).unwrap(), Verdict::Infeasible);
        let Verdict::Chosen(choice) = choose(&offers, &demand, soon()).unwrap() else { panic!() };
        assert!(choice.counts[1] > 0, "{choice:?}");
    }
}
