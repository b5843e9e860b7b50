//! A stage boundary as one rank sees it: the peer on the other side, and the codec that the plan gives the boundary.
//!
//! Activations and their gradients, `[tokens, hidden]` f32, go through the same codec. Both sides of a subspace
//! boundary build the same basis from the run's seed; nothing of it travels.
//!
//! Not here: the codecs (`narrows_compress`).

use narrows_compress::boundary::{BoundaryCodec, BoundaryError};
use narrows_compress::subspace::Subspace;
use narrows_planner::plan::Codec;

/// One boundary.
pub struct Boundary {
    codec: BoundaryCodec,
    rows: usize,
    width: usize,
}

impl Boundary {
    /// For activations of `rows` tokens by `width`.
    pub fn new(codec: Codec, rows: usize, width: usize, seed: u64) -> Self {
        let codec = match codec {
            Codec::None => BoundaryCodec::None,
            Codec::Bf16 => BoundaryCodec::Bf16,
            Codec::Int8 => BoundaryCodec::Int8,
            Codec::Subspace { rank } => {
                let subspace = Subspace::from_seed(seed, width, rank as usize);
                BoundaryCodec::Subspace(subspace.expect("a checked plan has a rank below the width"))
            }
        };
        Self { codec, rows, width }
    }

    /// The message for an activation or a gradient.
    pub fn encode(&self, values: &[f32]) -> Vec<u8> {
        let mut message = Vec::with_capacity(self.codec.encoded_len(self.rows, self.width));
        self.codec.encode(values, self.width, None, &mut message);
        message
    }

    /// What the peer's message says, into `values`.
    pub fn decode(&self, message: &[u8], values: &mut [f32]) -> Result<(), BoundaryError> {
        self.codec.decode(message, self.rows, self.width, None, values)
    }
}
