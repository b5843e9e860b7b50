//! What a rank's checkpoint holds, by name: every parameter as its own tensor (other programs read them), the
//! optimiser's moments, and between replicas the last exchange's parameters and the error feedback.

use crate::checkpoint::{CheckpointError, Loaded, Shard, Store, Tensor};
use crate::engine::{AdamW, GptStage};
use crate::exchange::sparse::Sparse;

const M: &str = "adamw.m";
const V: &str = "adamw.v";
const START: &str = "exchange.start";
const FEEDBACK: &str = "exchange.feedback";

/// Writes the rank's file.
pub fn save(
    store: &Store,
    step: u64,
    rank: u32,
    stage: &GptStage,
    optimizer: &AdamW,
    sparse: Option<&Sparse>,
) -> Result<Shard, CheckpointError> {
    let parameters = stage.parameters();
    let length = [parameters.len()];
    let mut tensors: Vec<Tensor<'_>> = stage
        .tensors()
        .iter()
        .map(|t| Tensor { name: &t.name, shape: &t.shape, values: &parameters[t.range.clone()] })
        .collect();
    tensors.push(Tensor { name: M, shape: &length, values: &optimizer.m });
    tensors.push(Tensor { name: V, shape: &length, values: &optimizer.v });
    let feedback = sparse.map(|s| s.feedback.iter().flat_map(|f| f.buffer()).copied().collect::<Vec<f32>>());
    if let (Some(sparse), Some(feedback)) = (sparse, &feedback) {
        tensors.push(Tensor { name: START, shape: &length, values: &sparse.start });
        tensors.push(Tensor { name: FEEDBACK, shape: &length, values: feedback });
    }
    store.write_shard(step, rank, &tensors)
}

/// Restores from the rank's verified file.
pub fn load(
    file: &Loaded,
    step: u64,
    stage: &mut GptStage,
    optimizer: &mut AdamW,
    sparse: Option<&mut Sparse>,
) -> Result<(), CheckpointError> {
    let tensors = stage.tensors().to_vec();
    for tensor in &tensors {
        file.copy(&tensor.name, &mut stage.parameters_mut()[tensor.range.clone()])?;
    }
    file.copy(M, &mut optimizer.m)?;
    file.copy(V, &mut optimizer.v)?;
    optimizer.steps = step;
    if let Some(sparse) = sparse {
        file.copy(START, &mut sparse.start)?;
        let mut all = vec![0.0; sparse.start.len()];
        file.copy(FEEDBACK, &mut all)?;
        let mut rest = all.as_slice();
        for feedback in &mut sparse.feedback {
            let (mine, others) = rest.split_at(feedback.buffer().len());
            feedback.set_buffer(mine).map_err(|e| file.unusable(FEEDBACK, &e))?;
            rest = others;
        }
    }
    Ok(())
}
