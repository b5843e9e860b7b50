//! Codecs for what crosses narrow links. Slices in, bytes out: no I/O, no clock, never waits.
//!
//! ```text
//!  between replicas, once per outer step              between stages, once per microbatch
//!  delta -> error_feedback -> topk -> quantize        activations -> boundary -> none | bf16 | int8
//!                                  -> index                                   -> subspace
//!                                  -> chunk -> frame                gradients -> the same, no anchor
//! ```
//!
//! [`cost`] tells a planner what each of these weighs without running it. Large tensors are worked on in blocks by the
//! current rayon pool; the bytes do not depend on its size.
//!
//! Not here: which link is narrow (the planner's), who sends to whom and the mean over senders (the runtime's).

mod bf16;
mod bits;
pub mod boundary;
mod chunk;
pub mod cost;
pub mod error_feedback;
pub mod frame;
mod index;
mod int8;
mod product;
pub mod quantize;
#[cfg(test)]
mod sample;
pub mod subspace;
pub mod topk;

pub use boundary::{BoundaryCodec, BoundaryError, BoundaryKind};
pub use error_feedback::{CompressError, ErrorFeedback};
pub use frame::{Frame, FrameError, Header, decode_add};
pub use quantize::Quantiser;
pub use subspace::Subspace;
pub use topk::{CHUNK, TopK, TopKError};
