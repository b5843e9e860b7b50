//! How many replicas of which shape make the most of an island's GPUs.
//!
//! ```text
//!   max sum_k s_k n_k      sum_k u_kg n_k <= N_g      lo <= sum_k n_k <= hi
//!
//!   one cluster   f[r][v] = max_k f[r-1][v - u_k] + s_k      exactly r replicas on at most v GPUs: exact, in units of the
//!                 GPUs' greatest common divisor
//!   several       the same over (r, v_1, v_2, ..) while the table is small, else HiGHS
//! ```
//! Not here: what the shapes do (`blocks`).

use good_lp::solvers::highs::highs;
use good_lp::{Expression, ProblemVariables, SolverModel, Variable, constraint, variable};
use highs::HighsModelStatus;

use super::SearchError;
use super::master::{configured, failed};

/// A shape of replica: GPUs by group, and sequences.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    pub devices: Vec<u32>,
    pub sequences: u64,
}

/// Tables with more cells are left to the solver.
const MOST_CELLS: usize = 2_000_000;

/// The most sequences of `sizes` (fewest and most) replicas in a supply of GPUs, and how many of each shape.
pub(crate) fn pack(
    items: &[Item],
    supply: &[u32],
    sizes: (u32, u32),
) -> Result<Option<(f64, Vec<u32>)>, SearchError> {
    let groups: Vec<usize> = (0..supply.len()).filter(|&g| items.iter().any(|i| i.devices[g] > 0)).collect();
    if items.is_empty() {
        return Ok(None);
    }
    let units: Vec<u32> = groups.iter().map(|&g| items.iter().fold(0, |d, i| gcd(d, i.devices[g]))).collect();
    let room: Vec<usize> = groups.iter().zip(&units).map(|(&g, &unit)| (supply[g] / unit) as usize).collect();
    let most = most_replicas(items, supply, sizes.1);
    let cells = room.iter().map(|n| n + 1).product::<usize>().saturating_mul(most as usize + 1);
    if cells > MOST_CELLS {
        return solve(items, supply, sizes);
    }
    let shapes: Vec<Vec<usize>> = items
        .iter()
        .map(|i| groups.iter().zip(&units).map(|(&g, &unit)| (i.devices[g] / unit) as usize).collect())
        .collect();
    Ok(tabulate(items, &shapes, &room, (sizes.0, most)))
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn most_replicas(items: &[Item], supply: &[u32], most: u32) -> u32 {
    let fit = |g: usize| {
        let fewest = items.iter().map(|i| i.devices[g]).min().unwrap_or(0);
        if fewest == 0 { u32::MAX } else { supply[g] / fewest }
    };
    (0..supply.len()).map(fit).min().unwrap_or(0).min(most)
}

/// Fills the table replica by replica; every cell remembers the shape added last.
fn tabulate(
    items: &[Item],
    shapes: &[Vec<usize>],
    room: &[usize],
    (fewest, most): (u32, u32),
) -> Option<(f64, Vec<u32>)> {
    let strides: Vec<usize> =
        room.iter().scan(1, |stride, n| Some(std::mem::replace(stride, *stride * (n + 1)))).collect();
    let cells = strides.iter().zip(room).map(|(s, n)| s * n).sum::<usize>() + 1;
    let steps: Vec<usize> =
        shapes.iter().map(|shape| shape.iter().zip(&strides).map(|(n, s)| n * s).sum()).collect();
    let fits = |cell: usize, shape: &[usize]| {
        shape.iter().zip(&strides).zip(room).all(|((n, s), r)| cell / s % (r + 1) >= *n)
    };
    let mut before: Vec<i64> = vec![0; cells];
    let mut last: Vec<Vec<u16>> = Vec::new();
    let mut best: Option<(i64, u32)> = None;
    for replicas in 1..=most {
        let mut now = vec![i64::MIN; cells];
        let mut added = vec![u16::MAX; cells];
        for (k, (item, shape)) in items.iter().zip(shapes).enumerate() {
            for cell in steps[k]..cells {
                let value = before[cell - steps[k]];
                if value == i64::MIN || (room.len() > 1 && !fits(cell, shape)) {
                    continue;
                }
                let value = value + item.sequences as i64;
                if value > now[cell] {
                    (now[cell], added[cell]) = (value, k as u16);
                }
            }
        }
        let top = now[cells - 1];
        last.push(added);
        if top == i64::MIN {
            break;
        }
        if replicas >= fewest && best.is_none_or(|b| top > b.0) {
            best = Some((top, replicas));
        }
        before = now;
    }
    let (sequences, replicas) = best?;
    let mut counts = vec![0; items.len()];
    let mut cell = cells - 1;
    for added in last[..replicas as usize].iter().rev() {
        let k = added[cell] as usize;
        counts[k] += 1;
        cell -= steps[k];
    }
    Some((sequences as f64, counts))
}

fn solve(
    items: &[Item],
    supply: &[u32],
    (fewest, most): (u32, u32),
) -> Result<Option<(f64, Vec<u32>)>, SearchError> {
    let mut variables = ProblemVariables::new();
    let count = |item: &Item| {
        let fit = item.devices.iter().zip(supply).filter(|(u, _)| **u > 0).map(|(u, n)| n / u);
        variable().integer().min(0).max(fit.min().unwrap_or(0).min(most))
    };
    let counts: Vec<Variable> = items.iter().map(|item| variables.add(count(item))).collect();
    let sum = |weight: &dyn Fn(&Item) -> f64| -> Expression {
        counts.iter().zip(items).map(|(&n, item)| n * weight(item)).sum()
    };
    let mut model = variables.minimise(-sum(&|i| i.sequences as f64)).using(highs);
    for (group, &supply) in supply.iter().enumerate() {
        if items.iter().any(|i| i.devices[group] > 0) {
            model = model.with(constraint!(sum(&|i| f64::from(i.devices[group])) <= supply));
        }
    }
    let all = sum(&|_| 1.0);
    model = model.with(constraint!(all.clone() <= most)).with(all.geq(f64::from(fewest)));
    let mut model = configured(model.into_inner(), 10.0);
    model.set_option("mip_rel_gap", 1e-4);
    model.set_option("presolve", "off");
    let solved = model.solve();
    match solved.status() {
        HighsModelStatus::Optimal | HighsModelStatus::ReachedTimeLimit => {
            let values = solved.get_solution().columns().iter().map(|n| n.round() as u32).collect();
            Ok(Some((-solved.objective_value(), values)))
        }
        HighsModelStatus::Infeasible => Ok(None),
        status => Err(failed("packing an island", status)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_table_and_the_solver_pack_alike(
            shapes in prop::collection::vec((1u32..5, 0u32..4, 1u64..30), 1..6),
            supply in (4u32..14, 2u32..9),
            sizes in (1u32..4, 0u32..5),
        ) {
            let items: Vec<Item> =
                shapes.iter().map(|&(a, b, sequences)| Item { devices: vec![a, b], sequences }).collect();
            let (supply, sizes) = (vec![supply.0, supply.1], (sizes.0, sizes.0 + sizes.1));
            let (tabled, solved) = (pack(&items, &supply, sizes).unwrap(), solve(&items, &supply, sizes).unwrap());
            prop_assert_eq!(tabled.as_ref().map(|t| t.0), solved.map(|s| s.0.round()));
            if let Some((sequences, counts)) = tabled {
                let sum = |f: &dyn Fn(&Item) -> u64| -> u64 {
                    counts.iter().zip(&items).map(|(&n, i)| u64::from(n) * f(i)).sum()
                };
                prop_assert_eq!(sum(&|i| i.sequences) as f64, sequences);
                prop_assert!((u64::from(sizes.0)..=u64::from(sizes.1)).contains(&sum(&|_| 1)));
                prop_assert!((0..2).all(|g| sum(&|i| u64::from(i.devices[g])) <= u64::from(supply[g])));
            }
        }
    }
}
