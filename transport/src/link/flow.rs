//! What a link decides: order, credit, back-pressure, when. No socket, no clock: it is told events and `now` and says
//! what to do.
//!
//! ```text
//!   sender                                     receiver
//!   submit -> queue (<= window) --chunk-->     window (<= window bytes)  -> take
//!                               <--credit--    room again, a quarter of the window at a time
//!                               --offer-->     "I have message s for tag t, but no credit"
//!                               <--grant--     "a receive waits for it: send it without"
//! ```
//!
//! **Ahead of the receive** data travels within the receiver's window. **A message that a receive waits for** needs no
//! window: what arrived of it is paid back at once, and if the sender is out of credit its offer is granted.
//!
//! # Why a full window does not deadlock
//!
//! Say the window is full of tag A, which nobody asks for, and the receiver waits for tag B. The sender, out of credit,
//! has offered everything in its queue; B's offer meets the waiting receive, is granted, overtakes A and arrives. So *a
//! receive makes progress as soon as the sender has handed its message over*, whatever lies untaken on other tags.
//! What can still stand still is a sender that cannot hand B over, because its own queue (a window too) is full of A:
//! two windows of bytes sent in one order and awaited in another. No bounded memory can rescue that program; its `send`
//! ends at its deadline, naming the tags in the way.
//!
//! Memory per peer: one window at the receiver and one at the sender, plus one message for each receive in progress
//! (its caller pays), plus one message at the sender, for a queue that is empty takes any length, plus a window of
//! buffers kept for reuse.
//!
//! Not here: several streams per peer, priorities (messages leave in the order given unless blocked).

mod incoming;
mod outgoing;

use super::Cause;
use super::frame::{Chunk, Frame};
use bytes::Bytes;
pub use incoming::{Incoming, Landed, Take};
pub use outgoing::{Drained, Outgoing};

/// The two directions of a link and its end.
#[derive(Debug)]
pub struct Flow {
    pub outgoing: Outgoing,
    pub incoming: Incoming,
    ended: Option<Cause>,
}

/// What the side that moves bytes should do next.
#[derive(Debug)]
pub enum Next {
    /// Write this header.
    Control(Frame),
    /// Write this header and payload, then say [`Outgoing::written`].
    Chunk(Departure),
    /// Nothing before this time, unless something is told first. Nanoseconds.
    Until(u64),
    /// Nothing until something is told.
    Idle,
}

/// A chunk that may leave.
#[derive(Debug)]
pub struct Departure {
    pub chunk: Chunk,
    pub payload: Bytes,
    /// Since when it could have left, in nanoseconds: when its message was handed over, when the chunk before it had
    /// been transmitted or when credit came, whichever was last. A pump that wakes late is no excuse.
    pub eligible_ns: u64,
}

/// A peer that broke the rules: expected and got.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

/// Sizes of a link, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Room for what arrives before it is asked for; also the longest queue of what is handed over.
    pub window: u64,
    /// The peer's room.
    pub peer_window: u64,
    /// Largest payload of one chunk.
    pub chunk: usize,
}

impl Flow {
    pub fn new(sizes: Sizes) -> Self {
        Flow { outgoing: Outgoing::new(sizes), incoming: Incoming::new(sizes.window), ended: None }
    }

    /// The next thing to write.
    pub fn next(&mut self, now_ns: u64) -> Next {
        match self.incoming.next_control() {
            Some(frame) => Next::Control(frame),
            None => self.outgoing.next(now_ns),
        }
    }

    /// The link is over; the first cause stands, but an abort of our own overrules.
    pub fn end(&mut self, cause: Cause) {
        if self.ended.is_none() || matches!(cause, Cause::Aborted { .. }) {
            self.ended = Some(cause);
        }
    }

    pub fn ended(&self) -> Option<&Cause> {
        self.ended.as_ref()
    }

    /// A header other than chunk, goodbye or abort has arrived.
    pub fn control(&mut self, frame: Frame, now_ns: u64) -> Result<(), Broken> {
        match frame {
            Frame::Credit { bytes } => self.outgoing.credit(bytes, now_ns),
            Frame::Grant { serial } => {
                self.outgoing.grant(serial, now_ns);
                Ok(())
            }
            Frame::Offer { tag, serial, message_bytes } => self.incoming.offer(tag, serial, message_bytes),
            other => Err(Broken(format!("{other:?} is no control frame"))),
        }
    }
}

#[cfg(test)]
mod tests;
