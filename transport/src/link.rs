//! A link: tagged messages of bytes between this rank and one peer.
//!
//! * Messages of one tag arrive in the order in which they were handed over; tags may overtake each other.
//! * Data travels before it is asked for, within a window; beyond it the sender stops (`flow`).
//! * Every wait has a deadline; a failed peer fails every wait on it at once, by name.
//!
//! `frame` is bytes <-> header, `flow` decides (no socket, no clock), `tcp` moves bytes, `conformance` is what every
//! kind of link must pass.
//!
//! Not here: reconnecting (membership's), priorities among messages of one link (they leave in the order given).

#[cfg(test)]
mod conformance;
pub(crate) mod flow;
pub(crate) mod frame;
pub(crate) mod tcp;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Which conversation a message belongs to. Both ends choose the same number; the transport gives it no meaning.
/// Tags need no setting up and cost nothing once their messages are taken, so one may be made for each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a rank was doing when its link failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Handing over a message.
    Send,
    /// Waiting for a message.
    Receive,
    /// Waiting until everything handed over has left.
    Flush,
    /// Saying goodbye.
    Close,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Send => "sending to",
            Operation::Receive => "receiving from",
            Operation::Flush => "flushing to",
            Operation::Close => "closing the link to",
        })
    }
}

/// A failed operation on a link: who, doing what, with whom, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("rank {rank}, step {step}: {operation} rank {peer}{}: {cause}", tag_suffix(*.tag))]
pub struct LinkError {
    /// This rank.
    pub rank: u32,
    /// The rank at the other end.
    pub peer: u32,
    /// What was being done.
    pub operation: Operation,
    /// The tag, where the operation has one.
    pub tag: Option<Tag>,
    /// The step last set with [`crate::Mesh::set_step`].
    pub step: u64,
    /// Why it failed.
    pub cause: Cause,
}

fn tag_suffix(tag: Option<Tag>) -> String {
    tag.map(|tag| format!(", tag {tag}")).unwrap_or_default()
}

/// Why an operation on a link failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Cause {
    /// Time ran out first.
    #[error("not done after {:.3} s: {found}", waited.as_secs_f64())]
    Deadline {
        /// From the call to its deadline.
        waited: Duration,
        /// What was there when time ran out, and the way out where there is one.
        found: String,
    },
    /// The peer said goodbye and has no more to give.
    #[error("the peer has closed the link")]
    Closed,
    /// The peer's socket ended without a goodbye: the process died or the network is cut.
    #[error("the peer is lost: {0}")]
    Lost(Arc<std::io::Error>),
    /// The peer gave up and said why.
    #[error("the peer aborted: {reason}")]
    PeerAborted {
        /// What the peer passed to [`crate::Mesh::abort`].
        reason: String,
    },
    /// This rank gave up.
    #[error("this rank aborted: {reason}")]
    Aborted {
        /// What was passed to [`crate::Mesh::abort`].
        reason: String,
    },
    /// The peer broke the protocol. The link is closed.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The message is longer than the peer takes.
    #[error(
        "a message of {bytes} B, at most {limit} B are taken; raise max_message_bytes on every rank or send it in parts"
    )]
    TooLong {
        /// Length of the message.
        bytes: u64,
        /// `max_message_bytes` of the configuration.
        limit: u64,
    },
    /// There is no link to that rank.
    #[error("this mesh has no link to that rank; connect was given {peers:?}")]
    NoSuchPeer {
        /// Whom there are links to.
        peers: Vec<u32>,
    },
}

/// What has passed to and from one peer, exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// The rank at the other end.
    pub peer: u32,
    /// Bytes of messages written to the socket.
    pub sent_payload_bytes: u64,
    /// All bytes written to the socket: payload, headers, flow control, handshake.
    pub sent_wire_bytes: u64,
    /// Bytes of messages read from the socket.
    pub received_payload_bytes: u64,
    /// All bytes read from the socket.
    pub received_wire_bytes: u64,
}
