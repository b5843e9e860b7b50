//! What a caller of the engine can get wrong. Each says what was being done, to which microbatch, and the way out.

use std::fmt;

use super::GptConfig;

/// The call that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `forward` of this microbatch.
    Forward(usize),
    /// `evaluate`.
    Evaluate,
    /// `backward_input` of this microbatch.
    BackwardInput(usize),
    /// `backward_weight` of this microbatch.
    BackwardWeight(usize),
}

/// A call that the engine refused; the stage is as it was before the call.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The model or the range of layers makes no sense.
    #[error("making a stage of {config:?}: {why}")]
    Config {
        /// The model asked for.
        config: GptConfig,
        /// What is wrong with it.
        why: String,
    },
    /// A slice is not as long as the microbatch's shape says.
    #[error("{call}: {what} has {got} elements; a microbatch of this stage has {expected}")]
    Length {
        /// What was being done.
        call: Call,
        /// Which argument.
        what: &'static str,
        /// Elements expected.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// A token or target outside the vocabulary.
    #[error("{call}: {what}[{index}] is {token}, but the vocabulary is 0..{vocab}")]
    Token {
        /// What was being done.
        call: Call,
        /// `tokens` or `targets`.
        what: &'static str,
        /// Where it stands in the microbatch.
        index: usize,
        /// What was found.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// An argument that belongs to another place in the pipeline.
    #[error("{call}: {place} takes {expected}, got {got}")]
    Place {
        /// What was being done.
        call: Call,
        /// Where this stage stands: "the first stage" and the like.
        place: &'static str,
        /// What that place takes.
        expected: &'static str,
        /// What was given.
        got: &'static str,
    },
    /// The calls of a microbatch came in the wrong order.
    #[error("{call}: the microbatch {state}; the order is forward, backward_input, backward_weight")]
    Order {
        /// What was being done.
        call: Call,
        /// Where that microbatch stands.
        state: &'static str,
    },
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Forward(microbatch) => write!(f, "forward of microbatch {microbatch}"),
            Call::Evaluate => write!(f, "evaluate"),
            Call::BackwardInput(microbatch) => write!(f, "backward_input of microbatch {microbatch}"),
            Call::BackwardWeight(microbatch) => write!(f, "backward_weight of microbatch {microbatch}"),
        }
    }
}
