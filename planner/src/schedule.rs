//! A schedule is data: per rank, actions in order. Generated purely from the plan, proven by [`check`], drawn by
//! [`draw`], executed on paper by `simulate` and for real by the worker, recorded in the same words.
//!
//! 1F1B (PipeDream-flush, arXiv 2006.09503 section 3.2), 3 stages, 4 microbatches, one column a unit of time;
//! digits are forward passes, small letters input gradients, capitals weight gradients:
//! ```text
//! rank 0  012..aA3bB.cC.dD|
//! rank 1  .01.aA2bB3cC.dD|.
//! rank 2  ..0aA1bB2cC3dD|..
//! ```
//! A stage's input gradient leaves before its weight gradient is computed: the stage before waits for nothing else.
//! Optimiser steps count from 1; an exchange with period `every` follows the steps that `every` divides.
//!
//! Not here: time (`cost`, `simulate`), bytes (transport: it receives ahead, so a `Receive` only waits for what has
//! not come yet), tensors (engine).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::trace::TraceEvent;

mod check;
mod draw;
mod generate;
mod peers;
mod replay;

pub use check::{Checked, ScheduleError, check, check_forward_only};
pub use draw::{draw, draw_events};
pub use generate::{forward_only, gpipe, of, one_f_one_b};
pub use peers::{Peer, Share, Unit, boundary_peers, exchange_peers, exchanges_at, is_due, units};

pub(crate) use check::{check_some, held};
pub(crate) use generate::lists;

/// What crosses a stage boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// Forward: a stage's output.
    Activation,
    /// Backward: the gradient of a stage's input.
    Gradient,
}

/// One thing a rank does. A `Receive` waits for a message that may have been in flight long before; a `Send` hands
/// its bytes over and does not wait. `chunk` tells a rank's stages apart where it has several (virtual stages), else
/// it is 0: stage `s` of a pipeline of `p` groups is chunk `s / p`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Action {
    /// Wait for a microbatch's activation or gradient.
    Receive {
        /// The rank that sends it.
        from: u32,
        /// Activation or gradient.
        what: Payload,
        /// Index in the step, from 0.
        microbatch: u32,
        /// Of the stage before the boundary that it crosses.
        #[serde(default, skip_serializing_if = "is_first")]
        chunk: u32,
    },
    /// The stage's forward pass.
    Forward {
        /// Index in the step, from 0.
        microbatch: u32,
        /// Of the stage.
        #[serde(default, skip_serializing_if = "is_first")]
        chunk: u32,
    },
    /// Hand a microbatch's activation or gradient over.
    Send {
        /// The rank that receives it.
        to: u32,
        /// Activation or gradient.
        what: Payload,
        /// Index in the step, from 0.
        microbatch: u32,
        /// Of the stage before the boundary that it crosses.
        #[serde(default, skip_serializing_if = "is_first")]
        chunk: u32,
    },
    /// The gradient of the stage's input.
    BackwardInput {
        /// Index in the step, from 0.
        microbatch: u32,
        /// Of the stage.
        #[serde(default, skip_serializing_if = "is_first")]
        chunk: u32,
    },
    /// The gradient of the stage's weights.
    BackwardWeight {
        /// Index in the step, from 0.
        microbatch: u32,
        /// Of the stage.
        #[serde(default, skip_serializing_if = "is_first")]
        chunk: u32,
    },
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

/// An action with the time it took: predicted by `simulate`, measured by the worker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Who did it.
    pub rank: u32,
    /// What was done.
    pub action: Action,
    /// Seconds since the start of the recording; waiting for messages belongs to the action.
    pub start_s: f64,
    /// Seconds since the start of the recording.
    pub end_s: f64,
}

impl Event {
    /// As a bar in the rank's first row of a trace.
    pub fn trace(&self) -> TraceEvent<'static> {
        let kind = self.action.name();
        let microbatch = self.action.microbatch();
        TraceEvent {
            name: microbatch.map_or(kind.into(), |m| format!("{kind} {m}{}", self.chunk_note()).into()),
            category: kind.into(),
            rank: self.rank,
            thread: 0,
            start_us: self.start_s * 1e6,
            duration_us: (self.end_s - self.start_s) * 1e6,
            args: microbatch.map(|m| ("microbatch", m.into())).into_iter().collect(),
        }
    }

    fn chunk_note(&self) -> String {
        match self.action.chunk() {
            0 => String::new(),
            chunk => format!(" of chunk {chunk}"),
        }
    }
}

impl Action {
    /// The word for this kind of action in traces and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Receive { .. } => "receive",
            Action::Forward { .. } => "forward",
            Action::Send { .. } => "send",
            Action::BackwardInput { .. } => "backward_input",
            Action::BackwardWeight { .. } => "backward_weight",
            Action::Reduce => "reduce",
            Action::Step => "step",
            Action::Exchange => "exchange",
        }
    }

    /// The microbatch it works on, if on one.
    pub fn microbatch(&self) -> Option<u32> {
        match *self {
            Action::Receive { microbatch, .. }
            | Action::Forward { microbatch, .. }
            | Action::Send { microbatch, .. }
            | Action::BackwardInput { microbatch, .. }
            | Action::BackwardWeight { microbatch, .. } => Some(microbatch),
            Action::Reduce | Action::Step | Action::Exchange => None,
        }
    }

    /// The model chunk it works on; 0 where a rank has one stage.
    pub fn chunk(&self) -> u32 {
        match *self {
            Action::Receive { chunk, .. }
            | Action::Forward { chunk, .. }
            | Action::Send { chunk, .. }
            | Action::BackwardInput { chunk, .. }
            | Action::BackwardWeight { chunk, .. } => chunk,
            Action::Reduce | Action::Step | Action::Exchange => 0,
        }
    }
}

fn is_first(chunk: &u32) -> bool {
    *chunk == 0
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Payload::Activation => "activation",
            Payload::Gradient => "gradient",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Receive { from, what, microbatch, .. } => {
                write!(f, "receive the {what} of microbatch {microbatch} from rank {from}")
            }
            Action::Send { to, what, microbatch, .. } => {
                write!(f, "send the {what} of microbatch {microbatch} to rank {to}")
            }
            Action::Forward { microbatch, .. } => write!(f, "forward of microbatch {microbatch}"),
            Action::BackwardInput { microbatch, .. } => {
                write!(f, "input gradient of microbatch {microbatch}")
            }
            Action::BackwardWeight { microbatch, .. } => {
                write!(f, "weight gradient of microbatch {microbatch}")
            }
            Action::Reduce => f.write_str("reduce the gradients"),
            Action::Step => f.write_str("step"),
            Action::Exchange => f.write_str("exchange with the other replicas"),
        }?;
        match self.chunk() {
            0 => Ok(()),
            chunk => write!(f, ", chunk {chunk}"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
