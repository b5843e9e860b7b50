//! A schedule is data: per rank, actions in order. Generated purely, proven by `check`, drawn by `simulate`, run by
//! the worker, recorded in the same words.
//!
//! Not here: time (`cost`), bytes (transport), tensors (engine).

use serde::{Deserialize, Serialize};

/// What crosses a stage boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// Forward: a stage's output.
    Activation,
    /// Backward: the gradient of a stage's input.
    Gradient,
}

/// One thing a rank does. A `Receive` waits for a message that may have been in flight long before; a `Send` hands
/// its bytes over and does not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Action {
    /// Wait for a microbatch's activation or gradient.
    Receive { from: u32, what: Payload, microbatch: u32 },
    /// The stage's forward pass.
    Forward { microbatch: u32 },
    /// Hand a microbatch's activation or gradient over.
    Send { to: u32, what: Payload, microbatch: u32 },
    /// The gradient of the stage's input.
    BackwardInput { microbatch: u32 },
    /// The gradient of the stage's weights.
    BackwardWeight { microbatch: u32 },
    /// Dense exchange: all-reduce of the gradients with the other replicas' owners of the same layers.
    Reduce,
    /// The inner optimiser's step.
    Step,
    /// Pseudo-gradient exchange and outer step.
    Exchange,
}

/// Outer index: rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule(pub Vec<Vec<Action>>);
