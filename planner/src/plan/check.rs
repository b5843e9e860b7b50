//! What makes a plan whole. Each rule is a function; the first that fails names the replica, stage and rank.
//!
//! ```text
//!   replica     has microbatches and stages; its stages cover layers 0..L in order, without overlap or gap
//!   boundary    one between any two neighbouring stages; a subspace narrower than the hidden width
//!   chunks      stages whose ranks repeat: all p of them, in order, at most virtual_stages times, p at least 2
//!   placement   a host that exists, a GPU that it has, a NIC class that it has; no GPU twice
//!   ranks       0..n, each once, whatever chunks it has
//!   batch       over the replicas, the sum of microbatches x micro_batch = global_batch
//!   exchange    at least two replicas, each once; dense ones are islands: none shares a replica with another, and any
//!               other exchange has all of an island or nothing; together they join all replicas
//! ```
//! Not here: whether the plan fits into memory or is any good (`simulate`).

use std::collections::{BTreeMap, HashMap};

use super::{Codec, Exchange, ExchangeKind, Placement, Plan, Replica};
use crate::input::{Fault, did_you_mean, listed, way};
use crate::inventory::{Fabric, NicClass};

/// Values in a chunk, of which a sparse exchange keeps some.
const CHUNK: u32 = 4096;

/// All of the rules; inventory and model must hold by themselves already.
pub(super) fn check(plan: &Plan) -> Result<(), Fault> {
    check_head(plan)?;
    for (r, replica) in plan.replicas.iter().enumerate() {
        let inside = |fault: Fault| fault.within(way!["replicas", r]);
        check_replica(r, replica).map_err(inside)?;
        check_layers(r, replica, plan.model.layers).map_err(inside)?;
        check_boundaries(r, replica, plan.model.hidden).map_err(inside)?;
        check_chunks(r, replica, plan.schedule.virtual_stages).map_err(inside)?;
    }
    check_placements(plan)?;
    check_batch(plan)?;
    for (e, exchange) in plan.exchange.iter().enumerate() {
        check_exchange(e, exchange, plan.replicas.len()).map_err(|f| f.within(way!["exchange", e]))?;
    }
    check_islands(plan)?;
    check_joined(plan)
}

fn check_head(plan: &Plan) -> Result<(), Fault> {
    if plan.replicas.is_empty() {
        return Err(Fault::at(way!["replicas"], "the plan has no replica"));
    }
    if plan.schedule.virtual_stages == 0 {
        let fault =
            Fault::at(way!["schedule", "virtual_stages"], "`virtual_stages` is 0, expected at least 1");
        return Err(fault.hint("1 is a plain pipeline, more are interleaved"));
    }
    match (plan.micro_batch, plan.model.micro_batch) {
        (0, _) => Err(Fault::at(way!["micro_batch"], "`micro_batch` is 0, expected at least 1")),
        (ours, Some(asked)) if ours != asked => {
            let what = format!("the plan's micro_batch is {ours}, but its model asks for {asked}");
            Err(Fault::at(way!["micro_batch"], what))
        }
        _ => Ok(()),
    }
}

fn check_replica(r: usize, replica: &Replica) -> Result<(), Fault> {
    if replica.microbatches == 0 {
        return Err(Fault::at(way!["microbatches"], format!("replica {r} has no microbatches")));
    }
    if replica.micro_batch == Some(0) {
        return Err(Fault::at(way!["micro_batch"], format!("replica {r} has microbatches of 0 sequences")));
    }
    if replica.stages.is_empty() {
        return Err(Fault::at(way!["stages"], format!("replica {r} has no stages")));
    }
    match replica.stages.iter().position(|stage| stage.ranks.is_empty()) {
        Some(s) => {
            Err(Fault::at(way!["stages", s, "ranks"], format!("stage {s} of replica {r} has no ranks")))
        }
        None => Ok(()),
    }
}

fn check_layers(r: usize, replica: &Replica, layers: u32) -> Result<(), Fault> {
    let mut covered = 0;
    for (s, stage) in replica.stages.iter().enumerate() {
        let [begin, end] = stage.layers;
        let here = format!("stage {s} of replica {r} has layers {begin}..{end}");
        let wrong = |why: String| Err(Fault::at(way!["stages", s, "layers"], format!("{here}, {why}")));
        match begin {
            _ if begin >= end => return wrong("which are none".into()),
            _ if end > layers => return wrong(format!("but the model has layers 0..{layers}")),
            _ if begin < covered => {
                return wrong(format!("but layer {begin} is already in stage {}", s.saturating_sub(1)));
            }
            _ if begin > covered => return wrong(format!("but layers {covered}..{begin} are in no stage")),
            _ => covered = end,
        }
    }
    if covered < layers {
        let what = format!("layers {covered}..{layers} of the model are in no stage of replica {r}");
        return Err(Fault::at(way!["stages", replica.stages.len() - 1, "layers"], what));
    }
    Ok(())
}

fn check_boundaries(r: usize, replica: &Replica, hidden: u32) -> Result<(), Fault> {
    let (found, stages) = (replica.boundaries.len(), replica.stages.len());
    if found + 1 != stages {
        let what =
            format!("replica {r} has {found} boundaries, expected {} between {stages} stages", stages - 1);
        return Err(Fault::at(way!["boundaries"], what));
    }
    for (b, boundary) in replica.boundaries.iter().enumerate() {
        match boundary.codec {
            Codec::Subspace { rank } if rank == 0 || rank >= hidden => {
                let what = format!(
                    "the subspace behind stage {b} of replica {r} has rank {rank}, expected 1 to {} (hidden width {hidden})",
                    hidden - 1
                );
                return Err(Fault::at(way!["boundaries", b, "codec", "rank"], what));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Ranks of several stages: an interleaved pipeline, whose stage `j` is that of the ranks of stage `j % p`.
fn check_chunks(r: usize, replica: &Replica, virtual_stages: u32) -> Result<(), Fault> {
    let (depth, stages, chunks) = (replica.depth(), replica.stages.len(), replica.virtual_stages());
    if chunks == 1 {
        return Ok(());
    }
    let found = format!("replica {r} has {stages} stages on {depth} tensor-parallel groups");
    let wrong = |what: String| Fault::at(way!["stages"], what);
    if depth == 1 {
        return Err(wrong(format!("{found}: one group needs one stage")));
    }
    if !stages.is_multiple_of(depth) {
        return Err(wrong(format!("{found}: expected a multiple of {depth}, the same for every rank")));
    }
    if chunks as u32 > virtual_stages {
        let what =
            format!("{found}, {chunks} a rank, but the schedule has virtual_stages = {virtual_stages}");
        return Err(wrong(what).hint(format!("set virtual_stages to {chunks}")));
    }
    let differs = |s: &usize| replica.stages[*s].ranks != replica.stages[*s % depth].ranks;
    match (depth..stages).find(differs) {
        Some(s) => {
            let what = format!(
                "stage {s} of replica {r} has not the ranks of stage {}, though stage {depth} has those of stage 0",
                s % depth
            );
            Err(Fault::at(way!["stages", s, "ranks"], what))
        }
        None => Ok(()),
    }
}

fn check_placements(plan: &Plan) -> Result<(), Fault> {
    let world_size = plan.world_size();
    let fabrics: BTreeMap<&str, &Fabric> = plan
        .cluster
        .clusters
        .iter()
        .flat_map(|f| f.hosts.iter().map(move |h| (h.name.as_str(), f)))
        .collect();
    let (mut ranks, mut gpus) = (HashMap::new(), HashMap::new());
    for (r, replica) in plan.replicas.iter().enumerate() {
        for (s, stage) in replica.stages[..replica.depth()].iter().enumerate() {
            for (p, placement) in stage.ranks.iter().enumerate() {
                let inside = |fault: Fault| fault.within(way!["replicas", r, "stages", s, "ranks", p]);
                let seat = format!("rank {} (replica {r}, stage {s})", placement.rank);
                check_placement(&seat, placement, &fabrics).map_err(inside)?;
                check_rank(&seat, placement, world_size).map_err(inside)?;
                if let Some(other) = ranks.insert(placement.rank, seat.clone()) {
                    let what = format!("{seat} stands twice: it is {other} as well");
                    return Err(inside(Fault::at(way!["rank"], what).label("the second")));
                }
                if let Some(other) = gpus.insert((&placement.host, placement.gpu), seat.clone()) {
                    let what = format!(
                        "{seat} is on GPU {} of `{}`, which {other} has",
                        placement.gpu, placement.host
                    );
                    return Err(inside(Fault::at(way!["gpu"], what)));
                }
            }
        }
    }
    Ok(())
}

fn check_rank(seat: &str, placement: &Placement, world_size: u32) -> Result<(), Fault> {
    if placement.rank < world_size {
        return Ok(());
    }
    let what = format!("{seat} is beyond the {world_size} ranks of the plan, which are 0..{world_size}");
    Err(Fault::at(way!["rank"], what))
}

fn check_placement(
    seat: &str,
    placement: &Placement,
    fabrics: &BTreeMap<&str, &Fabric>,
) -> Result<(), Fault> {
    let Placement { host, gpu, nic, .. } = placement;
    let Some(fabric) = fabrics.get(host.as_str()) else {
        let known: Vec<&str> = fabrics.keys().copied().collect();
        let what = format!("{seat} is on host `{host}`, which the inventory does not have");
        return Err(Fault::at(way!["host"], what).hint(did_you_mean(host, &known)));
    };
    if *gpu >= fabric.gpus {
        let what = format!("{seat} is on GPU {gpu} of `{host}`, which has GPUs 0..{}", fabric.gpus);
        return Err(Fault::at(way!["gpu"], what));
    }
    if !fabric.has_nic(*nic) {
        let classes = [NicClass::Infiniband, NicClass::Roce, NicClass::Ethernet];
        let has: Vec<&str> = classes.into_iter().filter(|c| fabric.has_nic(*c)).map(NicClass::name).collect();
        let what = format!("{seat} uses `{}`, which host `{host}` does not have", nic.name());
        return Err(Fault::at(way!["nic"], what).hint(format!("it has {}", listed(&has))));
    }
    Ok(())
}

fn check_batch(plan: &Plan) -> Result<(), Fault> {
    let sequences =
        |(i, r): (usize, &Replica)| u128::from(r.microbatches) * u128::from(plan.micro_batch_of(i));
    let sequences: u128 = plan.replicas.iter().enumerate().map(sequences).sum();
    let wanted = u128::from(plan.model.global_batch);
    if sequences == wanted {
        return Ok(());
    }
    let what = if plan.replicas.iter().all(|r| r.micro_batch.is_none()) {
        let microbatches: u128 = plan.replicas.iter().map(|replica| u128::from(replica.microbatches)).sum();
        format!(
            "the replicas have {microbatches} microbatches of {} sequences, {sequences} in all; the model's global_batch is {wanted}",
            plan.micro_batch
        )
    } else {
        format!(
            "the replicas' microbatches have {sequences} sequences in all; the model's global_batch is {wanted}"
        )
    };
    Err(Fault::at(way!["replicas", 0, "microbatches"], what))
}

fn check_exchange(e: usize, exchange: &Exchange, replicas: usize) -> Result<(), Fault> {
    if exchange.replicas.len() < 2 {
        return Err(Fault::at(
            way!["replicas"],
            format!("exchange {e} is not between at least two replicas"),
        ));
    }
    for (i, r) in exchange.replicas.iter().enumerate() {
        if *r as usize >= replicas {
            let what = format!("exchange {e} names replica {r}, but the plan has replicas 0..{replicas}");
            return Err(Fault::at(way!["replicas", i], what));
        }
        if exchange.replicas[..i].contains(r) {
            return Err(Fault::at(way!["replicas", i], format!("exchange {e} names replica {r} twice")));
        }
    }
    match (exchange.kind, exchange.every) {
        (_, 0) => {
            Err(Fault::at(way!["every"], format!("exchange {e} is every 0 steps, expected at least 1")))
        }
        (ExchangeKind::Dense, every) if every > 1 => {
            let what = format!("exchange {e} is dense but only every {every} steps");
            let hint =
                "dense exchanges reduce gradients, every step; pseudo-gradients are `streaming` or `sparse`";
            Err(Fault::at(way!["every"], what).hint(hint))
        }
        (ExchangeKind::Sparse { top_k }, _) if !(1..=CHUNK).contains(&top_k) => Err(Fault::at(
            way!["top_k"],
            format!("exchange {e} keeps {top_k} values of {CHUNK}, expected 1 to {CHUNK}"),
        )),
        _ => Ok(()),
    }
}

/// Dense exchanges make islands of replicas that stay equal at every step; whatever else exchanges has whole islands.
fn check_islands(plan: &Plan) -> Result<(), Fault> {
    let dense = |e: &&Exchange| e.kind == ExchangeKind::Dense;
    let islands = || plan.exchange.iter().enumerate().filter(|(_, e)| dense(e));
    for (e, exchange) in plan.exchange.iter().enumerate() {
        for (i, island) in islands().filter(|(i, _)| *i != e) {
            let shared = exchange.replicas.iter().find(|r| island.replicas.contains(r));
            let absent = island.replicas.iter().find(|r| !exchange.replicas.contains(r));
            let at = |what| Err(Fault::at(way!["exchange", e, "replicas"], what));
            match (shared, absent) {
                (Some(r), _) if dense(&exchange) => {
                    let what = format!("replica {r} is in the dense exchanges {} and {}", i.min(e), i.max(e));
                    return at(what);
                }
                (Some(r), Some(other)) => {
                    let what = format!(
                        "exchange {e} has replica {r} but not replica {other}, which the dense exchange {i} keeps equal to it"
                    );
                    return at(what);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Replicas that no chain of exchanges joins would drift apart for ever.
fn check_joined(plan: &Plan) -> Result<(), Fault> {
    let mut joined = vec![false; plan.replicas.len()];
    joined[0] = true;
    // Each round reaches at least one more replica or is the last.
    for _ in 1..joined.len() {
        for exchange in &plan.exchange {
            if exchange.replicas.iter().any(|r| joined[*r as usize]) {
                exchange.replicas.iter().for_each(|r| joined[*r as usize] = true);
            }
        }
    }
    match joined.iter().position(|joined| !joined) {
        None => Ok(()),
        Some(r) => {
            Err(Fault::at(way!["exchange"], format!("no exchange keeps replica {r} equal to replica 0")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::plan::Replica;
    use crate::schedule::tests::{exchange, interleaved, plan};
    use crate::search::fixture::{alone, fabric, gpt};

    const SPARSE: ExchangeKind = ExchangeKind::Sparse { top_k: 64 };

    /// The plan on hosts of one GPU each, of a model with its layers and its batch.
    fn placed(mut plan: Plan) -> Plan {
        let layers = plan.replicas[0].stages.last().map_or(0, |s| s.layers[1]);
        let sequences = |(i, r): (usize, &Replica)| r.microbatches * plan.micro_batch_of(i);
        let global_batch = plan.replicas.iter().enumerate().map(sequences).sum();
        plan.model = Model { global_batch, micro_batch: None, ..gpt(layers, 256) };
        plan.cluster = alone(fabric("h", plan.world_size(), 1));
        let stages = plan.replicas.iter_mut().flat_map(|r| &mut r.stages);
        for placement in stages.flat_map(|s| &mut s.ranks) {
            placement.host = format!("h-{}", placement.rank);
        }
        plan
    }

    fn refused(plan: &Plan) -> String {
        check(plan).unwrap_err().to_string()
    }

    fn islands(exchanges: &[(&[u32], ExchangeKind)]) -> Plan {
        let mut plan = placed(plan(&[(2, &[1][..]); 5]));
        let every = |kind| if kind == ExchangeKind::Dense { 1 } else { 10 };
        plan.exchange = exchanges.iter().map(|&(of, kind)| exchange(of, kind, every(kind))).collect();
        plan
    }

    #[test]
    fn the_batch_is_the_sum_of_what_the_replicas_take() {
        let mut plan = islands(&[(&[0, 1, 2, 3, 4], SPARSE)]);
        assert_eq!(check(&plan).map_err(|f| f.to_string()), Ok(()));
        plan.replicas[3].micro_batch = Some(4);
        assert!(refused(&plan).contains("have 16 sequences in all; the model's global_batch is 10"));
        plan.model.global_batch = 16;
        assert_eq!(check(&plan).map_err(|f| f.to_string()), Ok(()));
        plan.replicas[3].micro_batch = Some(0);
        assert!(refused(&plan).contains("replica 3 has microbatches of 0 sequences"));
    }

    #[test]
    fn chunks_of_a_rank_count_once() {
        let plan = placed(interleaved(2, 3, 4));
        assert_eq!(check(&plan).map_err(|f| f.to_string()), Ok(()));
        assert_eq!((plan.world_size(), plan.seats().len()), (2, 2));
        assert_eq!((plan.replicas[0].depth(), plan.replicas[0].virtual_stages()), (2, 3));
        assert_eq!(plan.seats()[1].stage_of(&plan, 2), 5);
    }

    #[test]
    fn chunks_that_do_not_come_in_rounds_are_named() {
        let mut plan = placed(interleaved(2, 3, 4));
        plan.schedule.virtual_stages = 2;
        assert!(
            refused(&plan).contains("3 a rank, but the schedule has virtual_stages = 2"),
            "{}",
            refused(&plan)
        );
        let mut plan = placed(interleaved(3, 2, 3));
        plan.replicas[0].stages[4].ranks = plan.replicas[0].stages[5].ranks.clone();
        assert!(
            refused(&plan).contains("stage 4 of replica 0 has not the ranks of stage 1"),
            "{}",
            refused(&plan)
        );
        let mut plan = placed(interleaved(2, 2, 2));
        plan.replicas[0].stages[3] = plan.replicas[0].stages[2].clone();
        plan.replicas[0].stages.remove(3);
        plan.replicas[0].stages[2].layers = [2, 4];
        plan.replicas[0].boundaries.pop();
        assert!(refused(&plan).contains("3 stages on 2 tensor-parallel groups"), "{}", refused(&plan));
        let mut plan = placed(interleaved(2, 2, 2));
        let ranks = plan.replicas[0].stages[0].ranks.clone();
        plan.replicas[0].stages.iter_mut().for_each(|s| s.ranks.clone_from(&ranks));
        assert!(refused(&plan).contains("one group needs one stage"), "{}", refused(&plan));
    }

    #[test]
    fn an_exchange_has_whole_islands() {
        let (all, dense): (&[u32], _) = (&[0, 1, 2, 3, 4], ExchangeKind::Dense);
        let good = islands(&[(&[0, 1], dense), (&[2, 3], dense), (all, SPARSE)]);
        assert_eq!(check(&good).map_err(|f| f.to_string()), Ok(()));
        let overlapping = islands(&[(&[0, 1], dense), (&[1, 2], dense), (all, SPARSE)]);
        assert!(refused(&overlapping).contains("replica 1 is in the dense exchanges 0 and 1"));
        let torn = islands(&[(&[0, 1], dense), (&[0, 2, 3, 4], SPARSE)]);
        let what = "exchange 1 has replica 0 but not replica 1, which the dense exchange 0 keeps equal to it";
        assert!(refused(&torn).contains(what), "{}", refused(&torn));
        let apart = islands(&[(&[0, 1], dense), (&[0, 1, 2, 3], SPARSE)]);
        assert!(refused(&apart).contains("no exchange keeps replica 4 equal to replica 0"));
    }
}
