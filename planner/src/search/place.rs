//! From counts to hosts: which GPU of the inventory each stage gets, and the plan itself.
//!
//! A run of stages takes whole hosts first and leaves a remainder; remainders go, largest first, into the first host
//! with room, so that a run changes hosts no more often than its price assumed. Where no host has room a remainder is
//! broken up (the plan's objective is evaluated after that, so the gap shows it).
//!
//! Not here: what that costs (`evaluate`).

use crate::plan::{
    Boundary, Exchange, ExchangeKind, Placement, Plan, Replica, ScheduleKind, ScheduleSpec, Stage, VERSION,
};

use super::solve::{Candidate, Member};
use super::space::Space;

/// The plan of a candidate.
pub(crate) fn place(modes: &[Space], candidate: &Candidate) -> Plan {
    let members = &candidate.members;
    let seats = seats(&modes[0], members);
    let base = common_mode(members);
    let mut rank = 0;
    let replica = |(member, seats): (&Member, &Vec<Team>)| {
        let (space, base) = (&modes[member.mode], &modes[base]);
        let mut replica = replica(space, member, seats, &mut rank);
        replica.micro_batch = Some(space.micro_batch).filter(|b| *b != base.micro_batch);
        replica.recompute = Some(space.model.recompute).filter(|r| *r != base.model.recompute);
        replica
    };
    let replicas: Vec<Replica> = members.iter().zip(&seats).map(replica).collect();
    let virtual_stages = members.iter().map(|m| m.outline.chunks).max().unwrap_or(1);
    Plan {
        version: VERSION,
        cluster: modes[0].cluster.clone(),
        model: modes[base].model.clone(),
        micro_batch: modes[base].micro_batch,
        schedule: ScheduleSpec { kind: ScheduleKind::OneForwardOneBackward, virtual_stages },
        exchange: exchanges(&modes[0], candidate),
        replicas,
        predicted: None,
        solver: None,
    }
}

/// The mode of most members.
fn common_mode(members: &[Member]) -> usize {
    let count = |mode: usize| members.iter().filter(|m| m.mode == mode).count();
    let modes = members.iter().map(|m| m.mode);
    modes.max_by_key(|&mode| (count(mode), std::cmp::Reverse(mode))).unwrap_or(0)
}

/// Dense inside islands, and what the islands exchange.
fn exchanges(space: &Space, candidate: &Candidate) -> Vec<Exchange> {
    let members = &candidate.members;
    let islands = members.iter().map(|m| m.island).max().map_or(0, |last| last + 1);
    let of = |island: usize| -> Vec<u32> {
        (0..members.len() as u32).filter(|&r| members[r as usize].island == island).collect()
    };
    let dense = |replicas: Vec<u32>| Exchange {
        replicas,
        kind: ExchangeKind::Dense,
        every: 1,
        zero1: space.limits.zero1,
    };
    let mut exchanges: Vec<Exchange> =
        (0..islands).map(of).filter(|replicas| replicas.len() > 1).map(dense).collect();
    if let Some((kind, every)) = candidate.outer {
        let replicas = (0..members.len() as u32).collect();
        exchanges.push(Exchange { replicas, kind, every, zero1: false });
    }
    exchanges
}

fn replica(space: &Space, member: &Member, seats: &[Team], rank: &mut u32) -> Replica {
    let outline = &member.outline;
    let ranks: Vec<Vec<Placement>> = outline
        .stage_runs()
        .zip(seats)
        .map(|(run, team)| {
            let fabric = &space.cluster.clusters[run.group];
            let host = &fabric.hosts[team.host].name;
            let place = |gpu| {
                *rank += 1;
                Placement { rank: *rank - 1, host: host.clone(), gpu, nic: fabric.nic.class }
            };
            team.gpus.clone().map(place).collect()
        })
        .collect();
    let mut first = 0;
    let mut stages = Vec::new();
    for chunk in 0..outline.chunks {
        for (ranks, &layers) in ranks.iter().zip(&member.work.split.layers) {
            // Earlier chunks take what does not divide.
            let layers = layers / outline.chunks + u32::from(chunk < layers % outline.chunks);
            stages.push(Stage { layers: [first, first + layers], ranks: ranks.clone() });
            first += layers;
        }
    }
    let transport = space.limits.transport;
    let boundaries = outline.codecs.iter().map(|&codec| Boundary { codec, transport });
    Replica {
        microbatches: member.microbatches,
        micro_batch: None,
        recompute: None,
        stages,
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
    let stages = members.iter().map(|m| m.work.split.layers.len());
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
