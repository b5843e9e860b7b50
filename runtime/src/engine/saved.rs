//! What a microbatch keeps between its three calls, and the pool that the buffers come from.
//!
//! Floats for each token and layer, C = hidden, H = heads:
//!
//! | | from forward on (`Saved`) | between the backward halves (`Pending`, in addition) |
//! | --- | --- | --- |
//! | first norm | x̂ C, r 1 | sums 2C/32 |
//! | attention | q, k, v 3C (becomes their gradients), softmax 2H, its output C | |
//! | second norm | x̂ C, r 1 | sums 2C/32, gradient by its input C |
//! | MLP | h 4C (becomes its gradient) | gelu(h) 4C, gradient by the layer's output C |
//! | all | 10C + 2H + 2 | 6C + C/8 |
//!
//! The last stage adds x̂, r and the logits (already softmax minus target), the first its tokens and the gradient by the
//! embedding. A buffer goes back to the pool when its microbatch is done: after the first step with the deepest schedule
//! nothing is allocated any more.

use super::GptConfig;
use super::error::{Call, EngineError};
use super::norm::{self, NormSaved};

/// Of which part of the model buffers are to be made.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    pub config: GptConfig,
    /// Tokens of a microbatch.
    pub tokens: usize,
    /// Blocks of this stage.
    pub blocks: usize,
    pub embedding: bool,
    pub head: bool,
}

/// From forward on.
pub(super) struct Saved {
    /// `[tokens]` on the first stage, else empty.
    pub tokens: Vec<u32>,
    pub blocks: Vec<BlockSaved>,
    pub head: Option<HeadSaved>,
}

pub(super) struct BlockSaved {
    pub norm1: NormSaved,
    /// `[tokens, 3·hidden]`.
    pub qkv: Vec<f32>,
    /// `[sequences, heads, sequence, 2]`.
    pub softmax: Vec<f32>,
    /// What attention gave, `[tokens, hidden]`.
    pub mixed: Vec<f32>,
    pub norm2: NormSaved,
    /// Before gelu, `[tokens, 4·hidden]`.
    pub wide: Vec<f32>,
}

pub(super) struct HeadSaved {
    pub norm: NormSaved,
    /// `[tokens, vocab]`.
    pub logits: Vec<f32>,
}

/// Between the backward halves, in addition.
pub(super) struct Pending {
    /// Weight of this microbatch's loss over its tokens; on the last stage.
    pub scale: f32,
    pub blocks: Vec<BlockPending>,
    /// Sums of the final norm, on the last stage, else empty.
    pub head_sums: Vec<f32>,
    /// Gradient by the embedding, `[tokens, hidden]`, on the first stage, else empty.
    pub d_embedding: Vec<f32>,
}

pub(super) struct BlockPending {
    /// Gradient by the block's output, `[tokens, hidden]`.
    pub d_out: Vec<f32>,
    /// gelu(h), `[tokens, 4·hidden]`.
    pub gelu: Vec<f32>,
    /// Gradient by the residual stream between attention and MLP, `[tokens, hidden]`.
    pub d_middle: Vec<f32>,
    pub norm1_sums: Vec<f32>,
    pub norm2_sums: Vec<f32>,
}

/// Microbatches in flight, and buffers at rest.
pub(super) struct Pool {
    extent: Extent,
    in_flight: Vec<InFlight>,
    saved: Vec<Saved>,
    pending: Vec<Pending>,
}

struct InFlight {
    microbatch: usize,
    saved: Saved,
    pending: Option<Pending>,
}

impl Saved {
    fn new(extent: &Extent) -> Self {
        let Extent { config: GptConfig { hidden, heads, vocab, .. }, tokens, .. } = *extent;
        let block = |_| BlockSaved {
            norm1: NormSaved::new(tokens, hidden),
            qkv: vec![0.0; tokens * 3 * hidden],
            softmax: vec![0.0; tokens * 2 * heads],
            mixed: vec![0.0; tokens * hidden],
            norm2: NormSaved::new(tokens, hidden),
            wide: vec![0.0; tokens * 4 * hidden],
        };
        let head = || HeadSaved { norm: NormSaved::new(tokens, hidden), logits: vec![0.0; tokens * vocab] };
        Saved {
            tokens: if extent.embedding { vec![0; tokens] } else { vec![] },
            blocks: (0..extent.blocks).map(block).collect(),
            head: extent.head.then(head),
        }
    }

    fn bytes(&self) -> usize {
        let block = |b: &BlockSaved| {
            b.norm1.floats() + b.qkv.len() + b.softmax.len() + b.mixed.len() + b.norm2.floats() + b.wide.len()
        };
        let head = self.head.as_ref().map_or(0, |head| head.norm.floats() + head.logits.len());
        size_of::<f32>() * (self.blocks.iter().map(block).sum::<usize>() + head)
            + size_of_val(&self.tokens[..])
    }
}

impl Pending {
    fn new(extent: &Extent) -> Self {
        let Extent { config: GptConfig { hidden, .. }, tokens, .. } = *extent;
        let block = |_| BlockPending {
            d_out: vec![0.0; tokens * hidden],
            gelu: vec![0.0; tokens * 4 * hidden],
            d_middle: vec![0.0; tokens * hidden],
            norm1_sums: vec![0.0; norm::sums_len(tokens, hidden)],
            norm2_sums: vec![0.0; norm::sums_len(tokens, hidden)],
        };
        Pending {
            scale: 0.0,
            blocks: (0..extent.blocks).map(block).collect(),
            head_sums: vec![0.0; if extent.head { norm::sums_len(tokens, hidden) } else { 0 }],
            d_embedding: vec![0.0; if extent.embedding { tokens * hidden } else { 0 }],
        }
    }

    fn bytes(&self) -> usize {
        let block = |b: &BlockPending| {
            b.d_out.len() + b.gelu.len() + b.d_middle.len() + b.norm1_sums.len() + b.norm2_sums.len()
        };
        let blocks: usize = self.blocks.iter().map(block).sum();
        size_of::<f32>() * (blocks + self.head_sums.len() + self.d_embedding.len())
    }
}

impl Pool {
    /// A pool with one buffer of each kind: every schedule needs them.
    pub fn new(extent: Extent) -> Self {
        let (saved, pending) = (vec![Saved::new(&extent)], vec![Pending::new(&extent)]);
        Self { extent, in_flight: vec![], saved, pending }
    }

    pub fn saved_bytes(&self) -> usize {
        self.saved.iter().chain(self.in_flight.iter().map(|f| &f.saved)).next().map_or(0, Saved::bytes)
    }

    pub fn pending_bytes(&self) -> usize {
        let in_flight = self.in_flight.iter().filter_map(|f| f.pending.as_ref());
        self.pending.iter().chain(in_flight).next().map_or(0, Pending::bytes)
    }

    /// A buffer for the forward of `microbatch`; goes back by [`Self::keep`] or [`Self::rest`].
    pub fn begin(&mut self, microbatch: usize) -> Result<Saved, EngineError> {
        if self.in_flight.iter().any(|f| f.microbatch == microbatch) {
            return Err(EngineError::Order {
                call: Call::Forward(microbatch),
                state: "is in flight already",
            });
        }
        Ok(self.buffer())
    }

    /// A buffer for no microbatch; goes back by [`Self::rest`].
    pub fn buffer(&mut self) -> Saved {
        self.saved.pop().unwrap_or_else(|| Saved::new(&self.extent))
    }

    pub fn keep(&mut self, microbatch: usize, saved: Saved) {
        self.in_flight.push(InFlight { microbatch, saved, pending: None });
    }

    pub fn rest(&mut self, saved: Saved) {
        self.saved.push(saved);
    }

    /// The buffers for the input half of `microbatch`, which must have had its forward and no more.
    pub fn pend(&mut self, microbatch: usize) -> Result<(&mut Saved, &mut Pending), EngineError> {
        let refuse = |state| Err(EngineError::Order { call: Call::BackwardInput(microbatch), state });
        match self.in_flight.iter_mut().find(|f| f.microbatch == microbatch) {
            None => refuse("is not in flight"),
            Some(InFlight { pending: Some(_), .. }) => refuse("had its input half already"),
            Some(InFlight { saved, pending, .. }) => {
                let fresh = || Pending::new(&self.extent);
                Ok((saved, pending.insert(self.pending.pop().unwrap_or_else(fresh))))
            }
        }
    }

    /// Takes `microbatch` out of flight for its weight half; both go back by [`Self::finish`].
    pub fn take(&mut self, microbatch: usize) -> Result<(Saved, Pending), EngineError> {
        let refuse = |state| EngineError::Order { call: Call::BackwardWeight(microbatch), state };
        let at = self.in_flight.iter().position(|f| f.microbatch == microbatch);
        let at = at.ok_or_else(|| refuse("is not in flight"))?;
        let pending = self.in_flight[at].pending.take().ok_or_else(|| refuse("had no input half yet"))?;
        Ok((self.in_flight.swap_remove(at).saved, pending))
    }

    pub fn finish(&mut self, saved: Saved, pending: Pending) {
        self.saved.push(saved);
        self.pending.push(pending);
    }

    /// Takes everything out of flight.
    pub fn clear(&mut self) {
        for InFlight { saved, pending, .. } in self.in_flight.drain(..) {
            self.saved.push(saved);
            self.pending.extend(pending);
        }
    }

    /// Buffers ever made, of both kinds.
    #[cfg(test)]
    pub fn buffers(&self) -> usize {
        let pending = self.in_flight.iter().filter(|f| f.pending.is_some()).count();
        self.saved.len() + self.pending.len() + self.in_flight.len() + pending
    }
}
