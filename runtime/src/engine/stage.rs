//! A stage: its parameters, what is in flight, and the calls that a schedule makes.

use std::num::NonZero;
use std::ops::Range;

use super::{AdamW, EngineError, GptConfig, TensorSpec, Unit};

/// What a forward begins with.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// The first stage's input, `[tokens]`.
    Tokens(&'a [u32]),
    /// What the stage before gave, `[tokens, hidden]`.
    Activation(&'a [f32]),
}

/// What a forward is to end in.
#[derive(Debug, Clone, Copy)]
pub enum Goal<'a> {
    /// An activation for the next stage.
    Activation,
    /// The mean cross-entropy against these, `[tokens]`: the last stage.
    Loss {
        /// The token that follows each input token.
        targets: &'a [u32],
    },
}

/// What a forward ended in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Output<'a> {
    /// For the next stage, `[tokens, hidden]`; overwritten by the next forward.
    Activation(&'a [f32]),
    /// Mean cross-entropy over the microbatch's tokens, in nats.
    Loss(f64),
}

/// What a backward begins with.
#[derive(Debug, Clone, Copy)]
pub enum Upstream<'a> {
    /// The loss gradient by this stage's output, `[tokens, hidden]`, from the stage after.
    Activation(&'a [f32]),
    /// The last stage: the loss counts `scale` times (1/m makes the gradient a mean over m microbatches).
    Loss {
        /// Weight of this microbatch's mean loss.
        scale: f32,
    },
}

/// Some layers of a GPT, trainable.
pub struct GptStage {
    config: GptConfig,
}

impl GptStage {
    /// Layers `layers` of the model. The initial value of a parameter depends on `seed` and its name alone, so a stage
    /// begins with the same bits as the whole model.
    pub fn new(
        config: GptConfig,
        layers: Range<usize>,
        micro_batch: usize,
        seed: u64,
        threads: NonZero<usize>,
    ) -> Result<Self, EngineError> {
        config.check(&layers, micro_batch)?;
        let _ = (seed, threads);
        Ok(Self { config })
    }

    /// The whole model's shape.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// The layers held here.
    pub fn layers(&self) -> Range<usize> {
        unimplemented!()
    }

    /// Tokens of one microbatch.
    pub fn tokens(&self) -> usize {
        unimplemented!()
    }

    /// Runs `microbatch` through the stage and keeps what its backward needs. `microbatch` is any number not in flight.
    pub fn forward(
        &mut self,
        microbatch: usize,
        input: Input<'_>,
        goal: Goal<'_>,
    ) -> Result<Output<'_>, EngineError> {
        let _ = (microbatch, input, goal);
        unimplemented!()
    }

    /// As [`Self::forward`], keeping nothing.
    pub fn evaluate(&mut self, input: Input<'_>, goal: Goal<'_>) -> Result<Output<'_>, EngineError> {
        let _ = (input, goal);
        unimplemented!()
    }

    /// The input half of backward: the gradient for the stage before, `[tokens, hidden]`, overwritten by the next
    /// call; none on the first stage.
    pub fn backward_input(
        &mut self,
        microbatch: usize,
        upstream: Upstream<'_>,
    ) -> Result<Option<&[f32]>, EngineError> {
        let _ = (microbatch, upstream);
        unimplemented!()
    }

    /// The weight half of backward: adds to the gradients and forgets the microbatch.
    pub fn backward_weight(&mut self, microbatch: usize) -> Result<(), EngineError> {
        let _ = microbatch;
        unimplemented!()
    }

    /// Forgets every microbatch in flight (a step that was given up); gradients stay.
    pub fn abandon(&mut self) {
        unimplemented!()
    }

    /// One optimiser step on this stage's threads; same bits as [`AdamW::step`].
    pub fn optimise(&mut self, optimiser: &mut AdamW, lr: f32, scale: f32) {
        let _ = (optimiser, lr, scale);
        unimplemented!()
    }

    /// All parameters, by unit.
    pub fn parameters(&self) -> &[f32] {
        unimplemented!()
    }

    /// All parameters, by unit.
    pub fn parameters_mut(&mut self) -> &mut [f32] {
        unimplemented!()
    }

    /// Accumulated gradients, lying like the parameters.
    pub fn gradients(&self) -> &[f32] {
        unimplemented!()
    }

    /// Accumulated gradients, lying like the parameters.
    pub fn gradients_mut(&mut self) -> &mut [f32] {
        unimplemented!()
    }

    /// Parameters for writing beside gradients for reading: what an optimiser of one's own takes.
    pub fn parameters_and_gradients(&mut self) -> (&mut [f32], &[f32]) {
        unimplemented!()
    }

    /// Sets all gradients to zero.
    pub fn zero_gradients(&mut self) {
        unimplemented!()
    }

    /// Every tensor, in the order of the flat buffers.
    pub fn tensors(&self) -> &[TensorSpec] {
        unimplemented!()
    }

    /// The pieces that unlike replicas exchange whole, in the order of the flat buffers.
    pub fn units(&self) -> Vec<Unit> {
        unimplemented!()
    }

    /// Bytes kept for a microbatch from its forward on.
    pub fn activation_bytes_per_microbatch(&self) -> usize {
        unimplemented!()
    }

    /// Bytes kept in addition between its two backward halves.
    pub fn pending_bytes_per_microbatch(&self) -> usize {
        unimplemented!()
    }
}
