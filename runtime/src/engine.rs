//! The native training engine: a range of layers of a GPT-2-like decoder on the CPU, in f32, forward and backward
//! written by hand.
//!
//! ```text
//! x0 = token[t] + position[i]                                  the embedding (first stage)
//! u  = x  + P·attention(norm(x))                               a block: pre-layer-norm, causal,
//! x' = u  + W2·gelu(W1·norm(u))                                GELU in its tanh form, biases everywhere
//! loss = mean over tokens of cross-entropy(Head·norm(xL))      the head (last stage), untied, no bias
//! ```
//!
//! A stage speaks of one *microbatch*: `micro_batch` sequences of `sequence` tokens, laid out token-major, so an
//! activation is `[tokens, hidden]` with `tokens = micro_batch * sequence`. Many microbatches may be in flight. Each
//! passes through three calls, and a schedule may put anything between them:
//!
//! 1. [`GptStage::forward`] keeps what backward needs ([`GptStage::activation_bytes_per_microbatch`]);
//! 2. [`GptStage::backward_input`] gives the gradient that the stage before waits for, and keeps a little more
//!    ([`GptStage::pending_bytes_per_microbatch`]);
//! 3. [`GptStage::backward_weight`] adds the weight gradients and gives all of it back to the pool. Zero-bubble
//!    schedules (Qi et al. 2023, arXiv:2401.10241, section 2) fill bubbles with it.
//!
//! Parameters, gradients and optimiser state are flat f32 buffers, a *unit* (embedding, one layer, head) in one piece,
//! so exchange, checksums and checkpoints work on slices. The same input and seed give the same bits for any number of
//! threads and any cut into stages: every sum has a fixed order, and threads only divide rows among themselves.
//! Between kinds of CPU this is not promised, the matrix products using the instructions at hand.
//!
//! Not here: tensor parallelism, recomputation, mixed precision, dropout, the schedule, the data.

mod adamw;
mod attention;
mod block;
mod config;
mod embedding;
mod error;
mod gelu;
mod head;
mod initial;
mod lanes;
mod layout;
mod matrix;
mod norm;
mod saved;
mod simd;
mod stage;

pub use adamw::{AdamW, squared_norm};
pub use config::GptConfig;
pub use error::{Call, EngineError};
pub use layout::{TensorSpec, Unit};
pub use stage::{Goal, GptStage, Input, Output, Upstream};
