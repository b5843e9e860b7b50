//! What a caller of the engine can get wrong. Each says what was being done, to which microbatch, and the way out.

use super::GptConfig;

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
    #[error("{operation} of microbatch {microbatch}: {what} has {got} elements, expected {expected} ({shape})")]
    Length {
        /// The call.
        operation: &'static str,
        /// Its microbatch.
        microbatch: usize,
        /// Which argument.
        what: &'static str,
        /// How the expected length comes about.
        shape: &'static str,
        /// Elements expected.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// A token or target outside the vocabulary.
    #[error("forward of microbatch {microbatch}: {what}[{index}] is {token}, but the vocabulary is 0..{vocab}")]
    Token {
        /// Its microbatch.
        microbatch: usize,
        /// `tokens` or `targets`.
        what: &'static str,
        /// Where it stands in the microbatch.
        index: usize,
        /// What was found.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// An argument belongs to another place in the pipeline.
    #[error("{operation} of microbatch {microbatch}: {stage} takes {expected}, got {got}")]
    Place {
        /// The call.
        operation: &'static str,
        /// Its microbatch.
        microbatch: usize,
        /// Where this stage stands: "the first stage" and the like.
        stage: &'static str,
        /// What that place takes.
        expected: &'static str,
        /// What was given.
        got: &'static str,
    },
    /// The calls of a microbatch came in another order than forward, backward_input, backward_weight.
    #[error("{operation} of microbatch {microbatch}: it {state}; the order is forward, backward_input, backward_weight")]
    Order {
        /// The call.
        operation: &'static str,
        /// Its microbatch.
        microbatch: usize,
        /// Where that microbatch stands.
        state: &'static str,
    },
}
