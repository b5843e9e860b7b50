//! Plans as Megatron-LM makes them: one tensor-, data- and pipeline-parallel degree for all, ranks in one fixed order.
//!
//! ```text
//!   rank = (stage x data_parallel + replica) x tensor_parallel + position          on GPUs in inventory order
//! ```
//! So a tensor-parallel group lies in a host (if its size divides the host's GPUs), the owners of a stage are
//! neighbours, and only boundaries reach far. Source: Narayanan et al., arXiv 2104.04473, section 3.
//!
//! Not here: which degrees are good (`search`), what a plan costs (`simulate`).

use crate::inventory::{Cluster, Fabric, Host};
use crate::model::Model;
use crate::plan::{
    Boundary, Codec, Exchange, ExchangeKind, Placement, Plan, Replica, ScheduleKind, ScheduleSpec, Stage,
    Transport, VERSION,
};

/// The degrees of a uniform plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degrees {
    /// GPUs of a tensor-parallel group.
    pub tensor: u32,
    /// Replicas.
    pub data: u32,
    /// Layers of each stage: as many stages as entries.
    pub layers: Vec<u32>,
    /// Sequences per microbatch.
    pub micro_batch: u32,
}

/// Why there is no such plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UniformError {
    /// Fewer GPUs than ranks.
    #[error("a uniform plan of {needed} GPUs: the inventory has {found}")]
    Gpus {
        /// Ranks.
        needed: u64,
        /// GPUs of the inventory.
        found: u64,
    },
    /// The stages do not make up the model.
    #[error("a uniform plan's stages have {found} layers in all, none of them 0; the model has {needed}")]
    Layers {
        /// Of the model.
        needed: u32,
        /// Over all stages.
        found: u32,
    },
    /// Replicas would have unlike shares.
    #[error("{replicas} replicas of microbatches of {micro_batch} do not divide the global_batch of {batch}")]
    Batch {
        /// Sequences per step.
        batch: u32,
        /// Data-parallel degree.
        replicas: u32,
        /// Sequences per microbatch.
        micro_batch: u32,
    },
}

/// `layers` over `stages`, as evenly as can be: earlier stages have no more than later ones.
pub fn even_layers(layers: u32, stages: u32) -> Vec<u32> {
    (0..stages).map(|i| layers * (i + 1) / stages - layers * i / stages).collect()
}

/// The plan of these degrees on the first GPUs of the inventory, with plain boundaries and dense gradients.
///
/// # Errors
/// [`UniformError`] where GPUs, layers or batch do not come out even.
pub fn uniform_plan(cluster: &Cluster, model: &Model, degrees: &Degrees) -> Result<Plan, UniformError> {
    let microbatches = microbatches(model, degrees)?;
    let gpus = gpus(cluster, degrees)?;
    let found = degrees.layers.iter().sum();
    if found != model.layers || degrees.layers.contains(&0) {
        return Err(UniformError::Layers { needed: model.layers, found });
    }
    let replicas = (0..degrees.data).map(|r| replica(degrees, r, microbatches, &gpus)).collect();
    let exchange =
        Exchange { replicas: (0..degrees.data).collect(), kind: ExchangeKind::Dense, every: 1, zero1: false };
    Ok(Plan {
        version: VERSION,
        cluster: cluster.clone(),
        model: model.clone(),
        micro_batch: degrees.micro_batch,
        schedule: ScheduleSpec { kind: ScheduleKind::OneForwardOneBackward, virtual_stages: 1 },
        replicas,
        exchange: if degrees.data > 1 { vec![exchange] } else { vec![] },
        predicted: None,
        solver: None,
    })
}

fn microbatches(model: &Model, degrees: &Degrees) -> Result<u32, UniformError> {
    let (batch, replicas, micro_batch) = (model.global_batch, degrees.data, degrees.micro_batch);
    let at_once = replicas.checked_mul(micro_batch).filter(|&n| n > 0 && batch.is_multiple_of(n));
    at_once.map(|n| batch / n).ok_or(UniformError::Batch { batch, replicas, micro_batch })
}

type Place<'a> = (&'a Fabric, &'a Host, u32);

fn gpus<'a>(cluster: &'a Cluster, degrees: &Degrees) -> Result<Vec<Place<'a>>, UniformError> {
    let hosts = cluster.clusters.iter().flat_map(|f| f.hosts.iter().map(move |host| (f, host)));
    let gpus: Vec<_> = hosts.flat_map(|(f, host)| (0..f.gpus).map(move |gpu| (f, host, gpu))).collect();
    let needed = u64::from(degrees.tensor) * u64::from(degrees.data) * degrees.layers.len() as u64;
    match needed > gpus.len() as u64 {
        true => Err(UniformError::Gpus { needed, found: gpus.len() as u64 }),
        false => Ok(gpus),
    }
}

fn replica(degrees: &Degrees, replica: u32, microbatches: u32, gpus: &[Place<'_>]) -> Replica {
    let mut first = 0;
    let stages: Vec<Stage> = (0..)
        .zip(&degrees.layers)
        .map(|(s, &layers)| {
            let begin = (s * degrees.data + replica) * degrees.tensor;
            let ranks =
                (begin..begin + degrees.tensor).map(|rank| placement(rank, gpus[rank as usize])).collect();
            first += layers;
            Stage { layers: [first - layers, first], ranks }
        })
        .collect();
    let fabric = |stage: &Stage| gpus[stage.ranks[0].rank as usize].0.name.as_str();
    let boundary = |pair: &[Stage]| {
        let transport = if fabric(&pair[0]) == fabric(&pair[1]) { Transport::Nccl } else { Transport::Tcp };
        Boundary { codec: Codec::None, transport }
    };
    let boundaries = stages.windows(2).map(boundary).collect();
    Replica { microbatches, micro_batch: None, recompute: None, stages, boundaries }
}

fn placement(rank: u32, (fabric, host, gpu): Place<'_>) -> Placement {
    Placement { rank, host: host.name.clone(), gpu, nic: fabric.nic.class }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::fixture::{alone, fabric, gpt};

    fn degrees(tensor: u32, data: u32, layers: &[u32]) -> Degrees {
        Degrees { tensor, data, layers: layers.to_vec(), micro_batch: 2 }
    }

    #[test]
    fn ranks_lie_as_megatron_lays_them() {
        let plan = uniform_plan(&alone(fabric("a", 2, 4)), &gpt(3, 64), &degrees(2, 2, &[1, 2])).unwrap();
        let ranks = |replica: usize, stage: usize| {
            let ranks = &plan.replicas[replica].stages[stage].ranks;
            ranks.iter().map(|p| (p.rank, p.host.as_str(), p.gpu)).collect::<Vec<_>>()
        };
        assert_eq!(ranks(0, 0), [(0, "a-0", 0), (1, "a-0", 1)]);
        assert_eq!(ranks(1, 0), [(2, "a-0", 2), (3, "a-0", 3)]);
        assert_eq!(ranks(1, 1), [(6, "a-1", 2), (7, "a-1", 3)]);
        assert_eq!(plan.replicas[0].stages[1].layers, [1, 3]);
        assert_eq!(plan.replicas[0].microbatches, 4, "16 sequences, two replicas, two at a time");
        let path = tempfile::tempdir().unwrap();
        let file = path.path().join("plan.json");
        crate::plan::write(&plan, &file).unwrap();
        assert_eq!(crate::plan::read(&file).unwrap(), plan, "it is a sound plan");
    }

    #[test]
    fn what_does_not_come_out_even_is_named() {
        let cluster = alone(fabric("a", 1, 4));
        let error = |d: Degrees| uniform_plan(&cluster, &gpt(3, 64), &d).unwrap_err();
        assert_eq!(error(degrees(4, 2, &[3])), UniformError::Gpus { needed: 8, found: 4 });
        assert_eq!(error(degrees(1, 1, &[1, 1])), UniformError::Layers { needed: 3, found: 2 });
        assert_eq!(
            error(degrees(1, 3, &[3])),
            UniformError::Batch { batch: 16, replicas: 3, micro_batch: 2 }
        );
    }

    #[test]
    fn layers_are_spread_evenly() {
        assert_eq!(even_layers(24, 16).iter().sum::<u32>(), 24);
        assert_eq!(even_layers(5, 2), [2, 3]);
    }
}
