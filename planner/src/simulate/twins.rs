//! Replicas that behave alike, so that one of them is executed and stands for the others.
//!
//! Replicas whose boundaries share a resource (a NIC, a link) are coupled: they are looked at together. Two such sets
//! are twins if they are the same but for the names: the same shapes and work, the same bytes over resources of the
//! same rates shared in the same way, and the same exchanges to take part in. Nothing then tells their timelines
//! apart, to the last bit: what one does between two meetings depends on nothing outside, and in a meeting both are in
//! the same place (`meeting` counts the traffic of all, executed or not).
//!
//! Not here: what follows from it (`program` holds the executed replicas only, `Simulation` speaks of all).

use std::collections::HashMap;

use super::edge::Edge;
use super::network::Network;
use crate::plan::Plan;

/// By replica, the one that is executed for it: itself or an earlier one.
pub(super) fn representatives(
    plan: &Plan,
    network: &Network<'_>,
    edges: &[Vec<Edge>],
    work: &[Vec<f64>],
) -> Vec<usize> {
    let mut known = HashMap::new();
    let mut stands_for: Vec<usize> = (0..plan.replicas.len()).collect();
    for set in coupled(network, edges) {
        let first = known.entry(portrait(plan, network, edges, work, &set)).or_insert_with(|| set.clone());
        for (&replica, &twin) in set.iter().zip(first.iter()) {
            stands_for[replica] = twin;
        }
    }
    stands_for
}

/// Sets of replicas, in order, none of which shares a resource with another.
fn coupled(network: &Network<'_>, edges: &[Vec<Edge>]) -> Vec<Vec<usize>> {
    let mut first_user = vec![usize::MAX; network.resources().len()];
    let mut set_of: Vec<usize> = (0..edges.len()).collect();
    for (replica, edges) in edges.iter().enumerate() {
        for resource in edges.iter().flat_map(|e| e.way.resources()) {
            match first_user[resource] {
                usize::MAX => first_user[resource] = replica,
                other => {
                    let (a, b) = (root(&mut set_of, other), root(&mut set_of, replica));
                    set_of[a.max(b)] = a.min(b);
                }
            }
        }
    }
    let mut sets = vec![Vec::new(); edges.len()];
    for replica in 0..edges.len() {
        sets[root(&mut set_of, replica)].push(replica);
    }
    sets.retain(|set| !set.is_empty());
    sets
}

/// The least replica of the set that `replica` is in.
fn root(set_of: &mut [usize], mut replica: usize) -> usize {
    while set_of[replica] != replica {
        set_of[replica] = set_of[set_of[replica]];
        replica = set_of[replica];
    }
    replica
}

/// Everything that the set's timeline depends on, with ranks and resources numbered in order of appearance.
fn portrait(
    plan: &Plan,
    network: &Network<'_>,
    edges: &[Vec<Edge>],
    work: &[Vec<f64>],
    set: &[usize],
) -> Vec<u64> {
    let mut portrait = vec![set.len() as u64];
    let (mut ranks, mut resources) = (HashMap::new(), HashMap::new());
    for &index in set {
        let replica = &plan.replicas[index];
        portrait.extend([
            u64::from(replica.microbatches),
            replica.depth() as u64,
            replica.stages.len() as u64,
        ]);
        let member = |e: &crate::plan::Exchange| u64::from(e.replicas.contains(&(index as u32)));
        portrait.extend(plan.exchange.iter().map(member));
        for stage in &replica.stages {
            let [first, end] = stage.layers.map(u64::from);
            portrait.extend([first, end, stage.ranks.len() as u64]);
            for placement in &stage.ranks {
                portrait.push(number(&mut ranks, placement.rank as usize));
                portrait.extend(work[placement.rank as usize].iter().map(|s| s.to_bits()));
            }
        }
        for edge in &edges[index] {
            let pair = [edge.from, edge.to].map(|rank| number(&mut ranks, rank as usize));
            portrait.extend(pair);
            portrait.extend([edge.bytes, edge.way.latency_s.to_bits(), edge.way.loss.to_bits()]);
            for resource in edge.way.resources() {
                let rate = network.resources()[resource].rate_bytes_per_s;
                portrait.extend([number(&mut resources, resource), rate.to_bits()]);
            }
        }
    }
    portrait
}

fn number(known: &mut HashMap<usize, u64>, of: usize) -> u64 {
    let next = known.len() as u64;
    *known.entry(of).or_insert(next)
}
