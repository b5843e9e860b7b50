//! All-reduce of gradients between the owners of each unit, every step: what data parallelism does inside a fabric.
//!
//! Each rank's gradients are already divided by the global number of microbatches, so the sum is the global mean.
//! Units with the same owners are adjacent in the flat buffer and travel as one.
//!
//! Not here: the algorithm (`narrows_transport::collective`).

use std::ops::Range;
use std::time::{Duration, Instant};

use narrows_transport::collective::{CollectiveError, all_reduce_direct};
use narrows_transport::link::Tag;
use narrows_transport::mesh::Mesh;

use super::Ownership;

/// Sums `gradients` over the owners of each unit, in replica order; the same bits on every owner.
pub fn all_reduce(
    ownership: &Ownership,
    mesh: &Mesh,
    tag: impl Fn(u32) -> Tag,
    wait: Duration,
    gradients: &mut [f32],
) -> Result<(), CollectiveError> {
    for run in runs(ownership) {
        if run.owners.len() > 1 {
            let values = &mut gradients[run.range];
            all_reduce_direct(mesh, &run.owners, tag(run.first_unit), values, Instant::now() + wait)?;
        }
    }
    Ok(())
}

/// Adjacent units with the same owners.
struct Run {
    /// Index of the first in the whole model: the same on every owner.
    first_unit: u32,
    range: Range<usize>,
    owners: Vec<u32>,
}

fn runs(ownership: &Ownership) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for unit in &ownership.units {
        match runs.last_mut() {
            Some(run) if run.owners == unit.owners && run.range.end == unit.range.start => {
                run.range.end = unit.range.end;
            }
            _ => runs.push(Run {
                first_unit: unit.index,
                range: unit.range.clone(),
                owners: unit.owners.clone(),
            }),
        }
    }
    runs
}
