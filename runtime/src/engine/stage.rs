//! A stage: its parameters, what is in flight, and the calls that a schedule makes.

use std::num::NonZero;
use std::ops::Range;

use super::block::{self, Shape, Work};
use super::embedding;
use super::error::{Call, EngineError};
use super::head;
use super::initial;
use super::lanes::Lanes;
use super::layout::{Block, Embedding, Head, Layout};
use super::saved::{Extent, Pending, Pool, Saved};
use super::{AdamW, GptConfig, TensorSpec, Unit};

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
    extent: Extent,
    shape: Shape,
    layers: Range<usize>,
    layout: Layout,
    lanes: Lanes,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
    pool: Pool,
    work: Work,
    /// The residual stream; after a forward, what goes to the next stage: `[tokens, hidden]`.
    x: Vec<f32>,
    /// After the input half, what goes to the stage before: `[tokens, hidden]`.
    dx: Vec<f32>,
}

impl GptStage {
    /// Layers `layers` of the model, for microbatches of `micro_batch` sequences, on `threads` threads (the caller's
    /// and its own). The initial value of a parameter depends on `seed` and its name alone, so a stage begins with the
    /// same bits as the whole model.
    pub fn new(
        config: GptConfig,
        layers: Range<usize>,
        micro_batch: usize,
        seed: u64,
        threads: NonZero<usize>,
    ) -> Result<Self, EngineError> {
        config.check(&layers, micro_batch)?;
        let tokens = micro_batch * config.sequence;
        let (embedding, head) = (layers.start == 0, layers.end == config.layers);
        let extent = Extent { config, tokens, blocks: layers.len(), embedding, head };
        let shape = Shape { tokens, sequence: config.sequence, hidden: config.hidden, heads: config.heads };
        let (layout, lanes) = (Layout::new(&config, &layers), Lanes::new(threads));
        let mut parameters = vec![0.0; layout.len()];
        for (tensor, value) in layout.tensors.iter().zip(&layout.initial) {
            initial::fill(&mut parameters[tensor.range.clone()], *value, seed, &tensor.name);
        }
        Ok(Self {
            gradients: vec![0.0; layout.len()],
            pool: Pool::new(extent),
            work: Work::new(shape, &lanes),
            x: vec![0.0; tokens * config.hidden],
            dx: vec![0.0; tokens * config.hidden],
            extent,
            shape,
            layers,
            layout,
            lanes,
            parameters,
        })
    }

    /// The whole model's shape.
    pub fn config(&self) -> &GptConfig {
        &self.extent.config
    }

    /// The layers held here.
    pub fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    /// Tokens of one microbatch.
    pub fn tokens(&self) -> usize {
        self.shape.tokens
    }

    /// Runs `microbatch` through the stage and keeps what its backward needs. `microbatch` is any number not in flight.
    pub fn forward(
        &mut self,
        microbatch: usize,
        input: Input<'_>,
        goal: Goal<'_>,
    ) -> Result<Output<'_>, EngineError> {
        self.check(Call::Forward(microbatch), input, goal)?;
        let mut saved = self.pool.begin(microbatch)?;
        let loss = self.run(input, goal, &mut saved);
        self.pool.keep(microbatch, saved);
        Ok(loss.map_or(Output::Activation(&self.x), Output::Loss))
    }

    /// As [`Self::forward`], keeping nothing.
    pub fn evaluate(&mut self, input: Input<'_>, goal: Goal<'_>) -> Result<Output<'_>, EngineError> {
        self.check(Call::Evaluate, input, goal)?;
        let mut saved = self.pool.buffer();
        let loss = self.run(input, goal, &mut saved);
        self.pool.rest(saved);
        Ok(loss.map_or(Output::Activation(&self.x), Output::Loss))
    }

    /// The input half of backward: the gradient for the stage before, `[tokens, hidden]`, overwritten by the next
    /// call; none on the first stage.
    pub fn backward_input(
        &mut self,
        microbatch: usize,
        upstream: Upstream<'_>,
    ) -> Result<Option<&[f32]>, EngineError> {
        self.check_upstream(Call::BackwardInput(microbatch), upstream)?;
        let Self { extent, shape, layout, lanes, parameters, pool, work, dx, .. } = self;
        let (saved, pending) = pool.pend(microbatch)?;
        let Pending { scale, blocks, head_sums, d_embedding } = pending;
        let d_out = &mut blocks.last_mut().expect("a stage has layers").d_out;
        match upstream {
            Upstream::Activation(gradient) => d_out.copy_from_slice(gradient),
            Upstream::Loss { scale: weight } => {
                *scale = weight / shape.tokens as f32;
                let (p, saved) =
                    (layout.head(extent, parameters), saved.head.as_ref().expect("the last stage's"));
                head::backward_input(lanes, *shape, &p, saved, *scale, (d_out, head_sums), work);
            }
        }
        for i in (0..extent.blocks).rev() {
            let (before, here) = blocks.split_at_mut(i);
            let dx = match before.last_mut() {
                Some(block) => &mut block.d_out,
                None if extent.embedding => &mut *d_embedding,
                None => &mut *dx,
            };
            let p = layout.block(extent, i, parameters);
            block::backward_input(lanes, *shape, &p, &mut saved.blocks[i], &mut here[0], dx, work);
        }
        Ok((!extent.embedding).then_some(&self.dx))
    }

    /// The weight half of backward: adds to the gradients and forgets the microbatch.
    pub fn backward_weight(&mut self, microbatch: usize) -> Result<(), EngineError> {
        let Self { extent, shape, layout, lanes, parameters, gradients, pool, work, .. } = self;
        let (saved, pending) = pool.take(microbatch)?;
        if let Some(saved) = &saved.head {
            let (p, grad) = (layout.head(extent, parameters), layout.head_mut(extent, gradients));
            head::backward_weight(lanes, &p, grad, saved, pending.scale, &pending.head_sums, work);
        }
        for i in (0..extent.blocks).rev() {
            let (p, grad) = (layout.block(extent, i, parameters), layout.block_mut(extent, i, gradients));
            block::backward_weight(lanes, *shape, &p, grad, &saved.blocks[i], &pending.blocks[i], work);
        }
        if extent.embedding {
            let grad = layout.embedding_mut(extent, gradients);
            embedding::backward_weight(grad, &saved.tokens, shape.hidden, &pending.d_embedding);
        }
        pool.finish(saved, pending);
        Ok(())
    }

    /// Forgets every microbatch in flight (a step that was given up); gradients stay.
    pub fn abandon(&mut self) {
        self.pool.clear();
    }

    /// One optimiser step on this stage's threads; same bits as [`AdamW::step`].
    pub fn optimise(&mut self, optimiser: &mut AdamW, lr: f32, scale: f32) {
        optimiser.step_on(&self.lanes, &mut self.parameters, &self.gradients, lr, scale);
    }

    /// All parameters, by unit.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// All parameters, by unit.
    pub fn parameters_mut(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    /// Accumulated gradients, lying like the parameters.
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    /// Accumulated gradients, lying like the parameters.
    pub fn gradients_mut(&mut self) -> &mut [f32] {
        &mut self.gradients
    }

    /// Parameters for writing beside gradients for reading: what an optimiser of one's own takes.
    pub fn parameters_and_gradients(&mut self) -> (&mut [f32], &[f32]) {
        (&mut self.parameters, &self.gradients)
    }

    /// Sets all gradients to zero.
    pub fn zero_gradients(&mut self) {
        self.gradients.fill(0.0);
    }

    /// Every tensor, in the order of the flat buffers.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.layout.tensors
    }

    /// The pieces that unlike replicas exchange whole, in the order of the flat buffers.
    pub fn units(&self) -> &[Unit] {
        &self.layout.units
    }

    /// Bytes kept for a microbatch from its forward on.
    pub fn activation_bytes_per_microbatch(&self) -> usize {
        self.pool.saved_bytes()
    }

    /// Bytes kept in addition between its two backward halves.
    pub fn pending_bytes_per_microbatch(&self) -> usize {
        self.pool.pending_bytes()
    }

    /// Forward of checked arguments; the loss, on the last stage.
    fn run(&mut self, input: Input<'_>, goal: Goal<'_>, saved: &mut Saved) -> Option<f64> {
        let Self { extent, shape, layout, lanes, parameters, work, x, .. } = self;
        match input {
            Input::Activation(activation) => x.copy_from_slice(activation),
            Input::Tokens(tokens) => {
                saved.tokens.copy_from_slice(tokens);
                embedding::forward(&layout.embedding(extent, parameters), tokens, shape.hidden, x);
            }
        }
        for (i, saved) in saved.blocks.iter_mut().enumerate() {
            block::forward(lanes, *shape, &layout.block(extent, i, parameters), x, saved, work);
        }
        match goal {
            Goal::Activation => None,
            Goal::Loss { targets } => {
                let (p, saved) =
                    (layout.head(extent, parameters), saved.head.as_mut().expect("the last stage's"));
                Some(head::forward(lanes, *shape, &p, x, targets, saved, work))
            }
        }
    }

    fn check(&self, call: Call, input: Input<'_>, goal: Goal<'_>) -> Result<(), EngineError> {
        match (self.extent.embedding, input) {
            (true, Input::Tokens(tokens)) => self.check_tokens(call, "tokens", tokens)?,
            (false, Input::Activation(x)) => self.check_length(call, "the activation", x)?,
            (true, _) => return Err(place(call, "the first stage", "tokens", "an activation")),
            (false, _) => return Err(place(call, "a stage after the first", "an activation", "tokens")),
        }
        match (self.extent.head, goal) {
            (true, Goal::Loss { targets }) => self.check_tokens(call, "targets", targets),
            (false, Goal::Activation) => Ok(()),
            (true, _) => Err(place(call, "the last stage", "targets for its loss", "none")),
            (false, _) => Err(place(call, "a stage before the last", "no targets", "targets")),
        }
    }

    fn check_upstream(&self, call: Call, upstream: Upstream<'_>) -> Result<(), EngineError> {
        match (self.extent.head, upstream) {
            (true, Upstream::Loss { .. }) => Ok(()),
            (false, Upstream::Activation(gradient)) => self.check_length(call, "the gradient", gradient),
            (true, _) => Err(place(call, "the last stage", "the weight of its loss", "a gradient")),
            (false, _) => Err(place(call, "a stage before the last", "a gradient", "the weight of a loss")),
        }
    }

    fn check_length(&self, call: Call, what: &'static str, slice: &[f32]) -> Result<(), EngineError> {
        let (expected, got) = (self.shape.tokens * self.shape.hidden, slice.len());
        if expected == got { Ok(()) } else { Err(EngineError::Length { call, what, expected, got }) }
    }

    fn check_tokens(&self, call: Call, what: &'static str, tokens: &[u32]) -> Result<(), EngineError> {
        let (expected, vocab) = (self.shape.tokens, self.extent.config.vocab);
        if tokens.len() != expected {
            return Err(EngineError::Length { call, what, expected, got: tokens.len() });
        }
        match tokens.iter().position(|&token| token as usize >= vocab) {
            None => Ok(()),
            Some(index) => Err(EngineError::Token { call, what, index, token: tokens[index], vocab }),
        }
    }
}

fn place(call: Call, place: &'static str, expected: &'static str, got: &'static str) -> EngineError {
    EngineError::Place { call, place, expected, got }
}

/// The units of a stage as typed views of one of its flat buffers.
impl Layout {
    fn embedding<'a>(&self, extent: &Extent, flat: &'a [f32]) -> Embedding<&'a [f32]> {
        Embedding::of(&extent.config, &flat[self.units[0].range.clone()])
    }

    fn embedding_mut<'a>(&self, extent: &Extent, flat: &'a mut [f32]) -> Embedding<&'a mut [f32]> {
        Embedding::of_mut(&extent.config, &mut flat[self.units[0].range.clone()])
    }

    fn block<'a>(&self, extent: &Extent, i: usize, flat: &'a [f32]) -> Block<&'a [f32]> {
        Block::of(&extent.config, &flat[self.units[extent.embedding as usize + i].range.clone()])
    }

    fn block_mut<'a>(&self, extent: &Extent, i: usize, flat: &'a mut [f32]) -> Block<&'a mut [f32]> {
        Block::of_mut(&extent.config, &mut flat[self.units[extent.embedding as usize + i].range.clone()])
    }

    fn head<'a>(&self, extent: &Extent, flat: &'a [f32]) -> Head<&'a [f32]> {
        Head::of(&extent.config, &flat[self.units[self.units.len() - 1].range.clone()])
    }

    fn head_mut<'a>(&self, extent: &Extent, flat: &'a mut [f32]) -> Head<&'a mut [f32]> {
        Head::of_mut(&extent.config, &mut flat[self.units[self.units.len() - 1].range.clone()])
    }
}

#[cfg(test)]
mod tests;
