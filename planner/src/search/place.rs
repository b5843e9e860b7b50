//! From counts to hosts: which GPU of the inventory each stage gets, and the plan itself.
//!
//! A run of stages takes whole hosts first and leaves a remainder; remainders go, largest first, into the first host
//! with room, so that a run changes hosts no more often than its price assumed. Where no host has room a remainder is
//! broken up (the plan's objective is evaluated after that, so the gap shows it).
//!
//! Not here: what that costs (`evaluate`).

use crate::plan::{Boundary, Exchange, Placement, Plan, Replica, ScheduleKind, ScheduleSpec, Stage, VERSION};

use super::branch::{Candidate, Member};
use super::space::Space;

/// The plan of a candidate.
pub(crate) fn place(space: &Space, candidate: &Candidate) -> Plan {
    let seats = seats(space, &candidate.members);
    let mut rank = 0;
    let replicas = candidate.members.iter().zip(&seats);
    let replicas: Vec<Replica> = replicas.map(|(m, s)| replica(space, m, s, &mut rank)).collect();
    let all = (0..replicas.len() as u32).collect();
    let exchange = candidate.exchange.filter(|_| replicas.len() > 1);
    Plan {
        version: VERSION,
        cluster: space.cluster.clone(),
        model: space.model.clone(),
        micro_batch: space.micro_batch,
        schedule: ScheduleSpec { kind: ScheduleKind::OneForwardOneBackward, virtual_stages: 1 },
        replicas,
        exchange: exchange
            .map(|(kind, every)| Exchange { replicas: all, kind, every, zero1: false })
            .into_iter()
            .collect(),
        predicted: None,
        solver: None,
    }
}

fn replica(space: &Space, member: &Member, seats: &[Team], rank: &mut u32) -> Replica {
    let mut first = 0;
    let runs = member.outline.stage_runs().zip(&member.split.layers).zip(seats);
    let stages = runs.map(|((run, &layers), team)| {
        let fabric = &space.cluster.clusters[run.group];
        let ranks = team.gpus.clone().map(|gpu| {
            *rank += 1;
            Placement {
                rank: *rank - 1,
                host: fabric.hosts[team.host].name.clone(),
                gpu,
                nic: fabric.nic.class,
            }
        });
        first += layers;
        Stage { layers: [first - layers, first], ranks: ranks.collect() }
    });
    let transport = space.limits.transport;
    let boundaries = member.outline.codecs.iter().map(|&codec| Boundary { codec, transport });
    Replica {
        microbatches: member.microbatches,
        micro_batch: None,
        recompute: None,
        stages: stages.collect(),
        boundaries: boundaries.collect(),
    }
}

/// The GPUs of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Team {
    host: usize,
    gpus: std::ops::Range<u32>,
}

/// Consecutive stages that shall share a host.
struct Block {
    member: usize,
    first_stage: usize,
    group: usize,
    size: u32,
    stages: u32,
}

/// By member and stage.
fn seats(space: &Space, members: &[Member]) -> Vec<Vec<Team>> {
    let mut blocks: Vec<Block> = members.iter().enumerate().flat_map(|(i, m)| blocks(space, i, m)).collect();
    blocks.sort_by_key(|b| std::cmp::Reverse(b.size * b.stages));
    seat_blocks(space, members, &blocks).unwrap_or_else(|| {
        let mut single: Vec<Block> = blocks.iter().flat_map(split_up).collect();
        single.sort_by_key(|b| std::cmp::Reverse(b.size));
        seat_blocks(space, members, &single)
            .expect("degrees divide each other and a host: largest first always fits")
    })
}

fn blocks(space: &Space, member: usize, m: &Member) -> Vec<Block> {
    let (mut blocks, mut first_stage) = (Vec::new(), 0);
    for run in &m.outline.runs {
        let (size, per_host) = (run.team.size, space.groups[run.group].per_host / run.team.size);
        let mut left = run.stages;
        while left > 0 {
            let stages = left.min(per_host);
            blocks.push(Block { member, first_stage, group: run.group, size, stages });
            first_stage += stages as usize;
            left -= stages;
        }
    }
    blocks
}

fn split_up(block: &Block) -> Vec<Block> {
    let one = |i: u32| Block {
        member: block.member,
        first_stage: block.first_stage + i as usize,
        group: block.group,
        size: block.size,
        stages: 1,
    };
    (0..block.stages).map(one).collect()
}

/// First fit, a block that fits nowhere stage by stage; `None` if even that fails.
fn seat_blocks(space: &Space, members: &[Member], blocks: &[Block]) -> Option<Vec<Vec<Team>>> {
    let nowhere = Team { host: usize::MAX, gpus: 0..0 };
    let stages = members.iter().map(|m| m.split.layers.len());
    let mut seats: Vec<Vec<Team>> = stages.map(|n| vec![nowhere.clone(); n]).collect();
    let fabrics = &space.cluster.clusters;
    let mut used: Vec<Vec<u32>> = fabrics.iter().map(|f| vec![0; f.hosts.len()]).collect();
    for block in blocks {
        let per_host = space.groups[block.group].per_host;
        if let Some(host) = first_fit(&used[block.group], per_host, block.size * block.stages) {
            seat(&mut seats, &mut used[block.group], host, block);
            continue;
        }
        for one in split_up(block) {
            let host = first_fit(&used[block.group], per_host, block.size)?;
            seat(&mut seats, &mut used[block.group], host, &one);
        }
    }
    Some(seats)
}

fn first_fit(used: &[u32], per_host: u32, gpus: u32) -> Option<usize> {
    used.iter().position(|&u| u + gpus <= per_host)
}

fn seat(seats: &mut [Vec<Team>], used: &mut [u32], host: usize, block: &Block) {
    for i in 0..block.stages {
        let gpus = used[host]..used[host] + block.size;
        used[host] = gpus.end;
        seats[block.member][block.first_stage + i as usize] = Team { host, gpus };
    }
}
