//! The shape of the whole model; every stage of a pipeline is made from the same one.

use std::ops::Range;

use super::EngineError;

/// The shape of a whole GPT, of which a stage holds some layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GptConfig {
    /// Decoder blocks.
    pub layers: usize,
    /// Width of the residual stream; the MLP is four times as wide.
    pub hidden: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Size of the vocabulary: tokens are `0..vocab`.
    pub vocab: usize,
    /// Tokens of one sequence.
    pub sequence: usize,
}

impl GptConfig {
    /// Width of one attention head.
    pub fn head_width(&self) -> usize {
        self.hidden / self.heads
    }

    /// Refuses shapes that no model has, and ranges of layers that this model lacks.
    pub(super) fn check(&self, layers: &Range<usize>, micro_batch: usize) -> Result<(), EngineError> {
        let Self { hidden, heads, vocab, sequence, .. } = *self;
        let refuse = |why: String| Err(EngineError::Config { config: *self, why });
        if [self.layers, hidden, heads, vocab, sequence, micro_batch].contains(&0) {
            return refuse("every size, and micro_batch, must be at least 1".into());
        }
        if !hidden.is_multiple_of(heads) {
            return refuse(format!("hidden must be a multiple of heads; {hidden} is not one of {heads}"));
        }
        if hidden < MIN_HIDDEN || vocab < MIN_HIDDEN {
            return refuse(format!("hidden and vocab must be at least {MIN_HIDDEN}"));
        }
        if layers.is_empty() || layers.end > self.layers {
            return refuse(format!(
                "a stage needs at least one of the layers 0..{}; got {layers:?}",
                self.layers
            ));
        }
        Ok(())
    }
}

/// Below this a band of rows could be small enough for the product kernel to sum in another order (`matrix`).
const MIN_HIDDEN: usize = 8;
