//! Which steps differ in what they exchange, and how often each kind comes: what an average step is made of.
//!
//! With periods 2 and 3, of six steps two have the first exchange alone, one the second alone, one both, two none.

use std::collections::BTreeSet;

use crate::plan::{Exchange, ExchangeKind, Plan};

/// Steps that stand for all others.
pub(super) struct Rounds {
    /// A step in which only the exchanges of every step are due.
    pub(super) usual: u64,
    /// A step for each other set of due exchanges with its share of all steps; the last has them all.
    pub(super) others: Vec<(u64, f64)>,
}

impl Rounds {
    /// Counts over one common period of all exchanges, or over its first million steps.
    pub(super) fn of(plan: &Plan) -> Self {
        let period = |e: &Exchange| u64::from(e.every);
        let outer = plan.exchange.iter().filter(|e| e.kind != ExchangeKind::Dense && e.replicas.len() > 1);
        let periods: BTreeSet<u64> = outer.map(period).filter(|&p| p > 1).collect();
        let common = periods.iter().fold(1, |a, &b| lcm(a, b));
        let steps = common.min(1_000_000);
        let mut kinds: Vec<(BTreeSet<u64>, u64, u64)> = Vec::new();
        for step in (1..steps).chain([common]) {
            let due: BTreeSet<u64> = periods.iter().copied().filter(|&p| step.is_multiple_of(p)).collect();
            match kinds.iter_mut().find(|(of, ..)| *of == due) {
                Some((_, _, count)) => *count += 1,
                None => kinds.push((due, step, 1)),
            }
        }
        let others = kinds.iter().filter(|(due, ..)| !due.is_empty());
        Rounds { usual: 1, others: others.map(|&(_, step, n)| (step, n as f64 / steps as f64)).collect() }
    }
}

fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a / x).saturating_mul(b)
}
