//! What things cost, one documented formula a function: FLOPs and times of passes, bytes of memory, boundaries and
//! exchanges, the beat of a pipeline. Every constant comes from the inventory or stands here with its source.
//!
//! ```text
//!   compute   FLOPs of a stage's passes / achieved rate           memory    states + activations in flight
//!   boundary  coded bytes / route                                 exchange  all-reduce, or sparse frames
//!   tensor    all-reduces inside a tensor-parallel group          pipeline  fill + (m - 1) beats of 1F1B
//! ```
//! Closed forms: they feed the search. They see neither queues behind a shared link nor the optimiser's step (it
//! reads its states once: milliseconds); the simulator sees the first.
//!
//! Not here: which GPU does what (`search`), the timeline (`simulate`).

pub mod boundary;
pub mod compute;
pub mod exchange;
pub mod framework;
pub mod memory;
pub mod pipeline;
pub mod tensor;
