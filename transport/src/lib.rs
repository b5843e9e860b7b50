//! Moves bytes between ranks. Knows no tensor, no codec, no plan.
//!
//! ```text
//!   compute threads --send/recv--> mesh -> link (flow decides, tcp moves) -> the peer's link -> mesh
//!                                           |
//!                                         shape: an emulated network in front of the socket
//! ```
//!
//! * [`mesh`]: a rank's endpoint; blocking calls for threads that compute.
//! * [`link`]: one peer; tags, errors, counters; framing, flow control and sockets beneath.
//! * [`collective`]: all-gather, all-reduce, barrier over a mesh.
//! * [`shape`]: rates, latencies and shared network cards, emulated on one machine.
//! * [`clock`]: the one clock that all ranks of a machine share.
//!
//! Not here: who is a member (the coordinator's), what a message means (the runtime's), TLS, RDMA and shared memory
//! (later kinds of link behind the same calls).

pub mod clock;
pub mod collective;
pub mod link;
pub mod mesh;
pub mod shape;

pub use link::{Cause, LinkError, Operation, PeerCounters, Tag};
pub use mesh::{JobKey, Mesh, MeshBuilder, MeshConfig, MeshError};
pub use shape::{Shape, ShapeError, ShapeSpec};
