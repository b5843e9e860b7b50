//! The sender's half: a queue in the order given, credit, and the emulated line.
//!
//! The head of the queue goes while there is credit. Without, everything queued is offered, and only what is granted
//! goes. Messages of one tag keep their order: grants come for the first of a tag only, and the queue is searched from
//! its head.

use super::{Broken, Departure, Next, Sizes};
use crate::link::Tag;
use crate::link::frame::{Charge, Chunk, Frame, HEADER_BYTES};
use bytes::Bytes;
use std::collections::VecDeque;

#[derive(Debug)]
pub struct Outgoing {
    sizes: Sizes,
    /// Bytes that the peer has room for.
    credit_bytes: u64,
    queue: VecDeque<Queued>,
    queued_bytes: u64,
    next_serial: u64,
    /// When the line is free again: the end of the last reservation.
    line_free_ns: u64,
    /// When credit or a grant last opened the way.
    opened_ns: u64,
    /// A chunk was given out and is not yet written.
    writing: bool,
}

#[derive(Debug)]
struct Queued {
    tag: Tag,
    serial: u64,
    bytes: Bytes,
    sent: usize,
    queued_ns: u64,
    claim: Claim,
}

/// How a message stands with a receiver that is out of room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    None,
    Offered,
    Granted,
}

impl Outgoing {
    pub fn new(sizes: Sizes) -> Self {
        assert!(
            sizes.chunk as u64 + HEADER_BYTES as u64 <= sizes.peer_window,
            "one chunk fits the peer's window"
        );
        Outgoing {
            sizes,
            credit_bytes: sizes.peer_window,
            queue: VecDeque::new(),
            queued_bytes: 0,
            next_serial: 0,
            line_free_ns: 0,
            opened_ns: 0,
            writing: false,
        }
    }

    /// Takes a message over, or gives it back if the queue is full. An empty queue takes any length.
    pub fn submit(&mut self, tag: Tag, bytes: Bytes, now_ns: u64) -> Result<(), Bytes> {
        let cost_bytes = cost_bytes(&bytes);
        if !self.queue.is_empty() && self.queued_bytes + cost_bytes > self.sizes.window {
            return Err(bytes);
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        self.queued_bytes += cost_bytes;
        self.queue.push_back(Queued { tag, serial, bytes, sent: 0, queued_ns: now_ns, claim: Claim::None });
        Ok(())
    }

    pub fn next(&mut self, now_ns: u64) -> Next {
        if self.writing || self.queue.is_empty() {
            return Next::Idle;
        }
        if now_ns < self.line_free_ns {
            return Next::Until(self.line_free_ns);
        }
        if self.has_credit(&self.queue[0]) {
            return self.depart(0);
        }
        if let Some(offer) = self.offer() {
            return Next::Control(offer);
        }
        match self.queue.iter().position(|message| message.claim == Claim::Granted) {
            Some(index) => self.depart(index),
            None => Next::Idle,
        }
    }

    /// The chunk last given out is on its way and holds the line until then.
    pub fn written(&mut self, line_free_ns: u64) {
        assert!(self.writing, "a chunk was given out");
        self.writing = false;
        self.line_free_ns = line_free_ns;
    }

    /// The peer has room again.
    pub fn credit(&mut self, bytes: u64, now_ns: u64) -> Result<(), Broken> {
        let credit_bytes = self.credit_bytes.saturating_add(bytes);
        if credit_bytes > self.sizes.peer_window {
            let limit = self.sizes.peer_window;
            return Err(Broken(format!(
                "credit of {bytes} B makes {credit_bytes} B, of a window of {limit} B"
            )));
        }
        self.open(now_ns);
        self.credit_bytes = credit_bytes;
        Ok(())
    }

    /// A receive waits for this message. It may have left by now: then there is nothing to do.
    pub fn grant(&mut self, serial: u64, now_ns: u64) {
        self.open(now_ns);
        if let Some(message) = self.queue.iter_mut().find(|message| message.serial == serial) {
            message.claim = Claim::Granted;
        }
    }

    /// Whether all that was handed over has been transmitted; if only the line is still busy, until when.
    pub fn drained(&self, now_ns: u64) -> Drained {
        match self.queue.is_empty() && !self.writing {
            true if self.line_free_ns <= now_ns => Drained::Yes,
            true => Drained::At(self.line_free_ns),
            false => Drained::No,
        }
    }

    /// For messages: what stands in the queue.
    pub fn describe(&self) -> String {
        let first =
            self.queue.front().map(|message| format!(", tag {} first", message.tag)).unwrap_or_default();
        format!(
            "{} messages of {} B wait to leave{first}; the peer has room for {} of {} B",
            self.queue.len(),
            self.queued_bytes,
            self.credit_bytes,
            self.sizes.peer_window
        )
    }

    fn has_credit(&self, message: &Queued) -> bool {
        message.claim == Claim::Granted || self.credit_bytes >= message.next_cost_bytes(self.sizes.chunk)
    }

    fn offer(&mut self) -> Option<Frame> {
        let message = self.queue.iter_mut().find(|message| message.claim == Claim::None)?;
        message.claim = Claim::Offered;
        Some(Frame::Offer {
            tag: message.tag,
            serial: message.serial,
            message_bytes: message.bytes.len() as u64,
        })
    }

    fn depart(&mut self, index: usize) -> Next {
        let message = &mut self.queue[index];
        let eligible_ns = message.queued_ns.max(self.line_free_ns).max(self.opened_ns);
        let (chunk, payload) = message.cut(self.sizes.chunk);
        if chunk.charge == Charge::Window {
            self.credit_bytes -= chunk.cost_bytes();
        }
        if chunk.is_last() {
            self.queued_bytes -= cost_bytes(&message.bytes);
            self.queue.remove(index);
        }
        self.writing = true;
        Next::Chunk(Departure { chunk, payload, eligible_ns })
    }

    /// Only a sender that was blocked has waited for what opens the way.
    fn open(&mut self, now_ns: u64) {
        if self.queue.front().is_some_and(|head| !self.has_credit(head)) {
            self.opened_ns = now_ns;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Drained {
    Yes,
    At(u64),
    No,
}

impl Queued {
    fn next_cost_bytes(&self, chunk_bytes: usize) -> u64 {
        ((self.bytes.len() - self.sent).min(chunk_bytes) + HEADER_BYTES) as u64
    }

    fn cut(&mut self, chunk_bytes: usize) -> (Chunk, Bytes) {
        let end = self.bytes.len().min(self.sent + chunk_bytes);
        let payload = self.bytes.slice(self.sent..end);
        let chunk = Chunk {
            tag: self.tag,
            serial: self.serial,
            message_bytes: self.bytes.len() as u64,
            offset: self.sent as u64,
            payload_bytes: payload.len() as u32,
            deliver_at_ns: 0,
            charge: if self.claim == Claim::Granted { Charge::Granted } else { Charge::Window },
        };
        self.sent = end;
        (chunk, payload)
    }
}

/// A header's worth more than its bytes: a queue of empty messages is bounded too.
fn cost_bytes(bytes: &Bytes) -> u64 {
    (bytes.len() + HEADER_BYTES) as u64
}
