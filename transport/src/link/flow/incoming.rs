//! The receiver's half: chunks become messages, in order per tag; the window is charged and paid back.
//!
//! A tag has an inbox while it has arrivals or receives waiting; then it is forgotten, so tags may be made freely.
//! The first n arrivals of a tag with n receives waiting are *wanted*: what they took of the window is paid back, and
//! if they are only offered they are granted.

use super::Broken;
use crate::link::Tag;
use crate::link::frame::{Charge, Chunk, Frame, HEADER_BYTES};
use std::collections::{HashMap, VecDeque};

#[derive(Debug)]
pub struct Incoming {
    window_bytes: u64,
    inboxes: HashMap<Tag, Inbox>,
    /// Taken out of the window and not yet paid back: what lies here plus `refund_bytes`.
    held_bytes: u64,
    /// To be paid back with the next credit.
    refund_bytes: u64,
    offers: usize,
    control: VecDeque<Frame>,
    /// Buffers to land in, from callers who took a message and left theirs.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Inbox {
    waiting: usize,
    arrivals: VecDeque<Arrival>,
}

#[derive(Debug)]
struct Arrival {
    serial: u64,
    message_bytes: u64,
    received_bytes: u64,
    whole: bool,
    /// Away at the reader while a chunk lands.
    buffer: Vec<u8>,
    charged_bytes: u64,
    deliver_at_ns: u64,
    claim: Claim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    None,
    Offered,
    Granted,
}

/// What a receive finds.
#[derive(Debug)]
pub enum Take {
    /// The message, and the time before which it had not arrived.
    Whole { message: Vec<u8>, deliver_at_ns: u64 },
    /// All here, but the emulated network delivers it then.
    At(u64),
    /// Not here yet.
    Pending,
}

/// What a chunk has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landed {
    Part,
    /// A whole message that nobody waits for yet.
    Ahead,
    /// A whole message, and a receive that waits for its tag.
    Awaited,
}

/// Buffers kept for reuse, at most; a window of bytes at most, or one of any length. Fresh memory costs as much as the
/// copy into it (page faults).
const SPARE_BUFFERS: usize = 64;

impl Incoming {
    pub fn new(window_bytes: u64) -> Self {
        Incoming {
            window_bytes,
            inboxes: HashMap::new(),
            held_bytes: 0,
            refund_bytes: 0,
            offers: 0,
            control: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// A receive starts to wait on `tag`; [`Incoming::leave`] ends it.
    pub fn wait(&mut self, tag: Tag) {
        self.inboxes.entry(tag).or_default().waiting += 1;
        self.settle(tag);
    }

    pub fn leave(&mut self, tag: Tag) {
        let inbox = self.inboxes.get_mut(&tag).expect("an inbox lives while a receive waits");
        inbox.waiting -= 1;
        self.forget_if_idle(tag);
    }

    /// The first message of `tag`, if it has arrived by `now_ns`.
    pub fn take(&mut self, tag: Tag, now_ns: u64) -> Take {
        let Some(inbox) = self.inboxes.get_mut(&tag) else { return Take::Pending };
        match inbox.arrivals.front() {
            Some(first) if first.whole && first.deliver_at_ns > now_ns => Take::At(first.deliver_at_ns),
            Some(first) if first.whole => {
                let arrival = inbox.arrivals.pop_front().expect("just seen");
                self.refund(arrival.charged_bytes);
                self.forget_if_idle(tag);
                Take::Whole { message: arrival.buffer, deliver_at_ns: arrival.deliver_at_ns }
            }
            _ => Take::Pending,
        }
    }

    /// A buffer that is done with, for a later message to land in.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        let kept_bytes: usize = self.spare.iter().map(Vec::capacity).sum();
        let fits = (kept_bytes + buffer.capacity()) as u64 <= self.window_bytes;
        // One of any length: messages longer than the window come one at a time.
        let keep = self.spare.is_empty() || (fits && self.spare.len() < SPARE_BUFFERS);
        if keep && buffer.capacity() > 0 {
            self.spare.push(buffer);
        }
    }

    /// The sender has a message but no credit.
    pub fn offer(&mut self, tag: Tag, serial: u64, message_bytes: u64) -> Result<(), Broken> {
        // Each offered message stands in the sender's queue and costs a header there.
        if self.offers as u64 >= self.window_bytes.div_ceil(HEADER_BYTES as u64) {
            return Err(Broken(format!("{} messages offered at once", self.offers)));
        }
        self.flush_refund();
        let arrival = self.arrival(tag, serial, message_bytes)?;
        if arrival.claim != Claim::None {
            return Err(Broken(format!("message {serial}, tag {tag}, offered twice")));
        }
        arrival.claim = Claim::Offered;
        self.offers += 1;
        self.settle(tag);
        Ok(())
    }

    /// A chunk's header has arrived: checks it and gives the buffer to which its payload is to be appended.
    pub fn begin(&mut self, chunk: &Chunk) -> Result<Vec<u8>, Broken> {
        self.charge(chunk)?;
        let spare = self.spare_for(chunk);
        let arrival = self.arrival(chunk.tag, chunk.serial, chunk.message_bytes)?;
        arrival.expects(chunk)?;
        if chunk.charge == Charge::Window {
            arrival.charged_bytes += chunk.cost_bytes();
        }
        Ok(spare.unwrap_or_else(|| std::mem::take(&mut arrival.buffer)))
    }

    /// The chunk's payload has been appended to `buffer`.
    pub fn landed(&mut self, chunk: &Chunk, buffer: Vec<u8>) -> Landed {
        let inbox = self.inboxes.get_mut(&chunk.tag).expect("begun");
        let mut arrivals = inbox.arrivals.iter_mut().rev();
        let arrival = arrivals.find(|arrival| arrival.serial == chunk.serial).expect("begun");
        arrival.received_bytes += u64::from(chunk.payload_bytes);
        assert_eq!(buffer.len() as u64, arrival.received_bytes, "the payload was appended");
        arrival.buffer = buffer;
        arrival.deliver_at_ns = arrival.deliver_at_ns.max(chunk.deliver_at_ns);
        arrival.whole = chunk.is_last();
        let landed = match arrival.whole {
            false => Landed::Part,
            true if inbox.waiting > 0 => Landed::Awaited,
            true => Landed::Ahead,
        };
        if arrival.whole && arrival.claim != Claim::None {
            self.offers -= 1;
        }
        self.settle(chunk.tag);
        landed
    }

    /// What to tell the sender.
    pub fn next_control(&mut self) -> Option<Frame> {
        self.control.pop_front()
    }

    pub fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// For messages: how far the first message of `tag` is, and what lies here untaken.
    pub fn describe(&self, tag: Tag) -> String {
        let progress = match self.inboxes.get(&tag).and_then(|inbox| inbox.arrivals.front()) {
            Some(first) if first.whole => "the message is still under way on the emulated network".into(),
            Some(first) => {
                format!("{} of {} B of the message have arrived", first.received_bytes, first.message_bytes)
            }
            None => "nothing has arrived".into(),
        };
        let mut others: Vec<Tag> = self.inboxes.keys().copied().filter(|&other| other != tag).collect();
        others.sort_unstable();
        match others.first() {
            None => progress,
            Some(first) => format!(
                "{progress}; {} of {} B of the window hold other tags ({} of them, such as {first})",
                self.held_bytes,
                self.window_bytes,
                others.len()
            ),
        }
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    #[cfg(test)]
    pub fn spare_bytes(&self) -> usize {
        self.spare.iter().map(Vec::capacity).sum()
    }

    #[cfg(test)]
    pub fn inboxes(&self) -> usize {
        self.inboxes.len()
    }

    /// Pays back and grants what receives wait for.
    fn settle(&mut self, tag: Tag) {
        let Some(inbox) = self.inboxes.get_mut(&tag) else { return };
        let mut refund_bytes = 0;
        for arrival in inbox.arrivals.iter_mut().take(inbox.waiting) {
            refund_bytes += std::mem::take(&mut arrival.charged_bytes);
            if arrival.claim == Claim::Offered && !arrival.whole {
                arrival.claim = Claim::Granted;
                self.control.push_back(Frame::Grant { serial: arrival.serial });
            }
        }
        self.refund(refund_bytes);
    }

    fn refund(&mut self, bytes: u64) {
        self.refund_bytes += bytes;
        if self.refund_bytes >= self.window_bytes / 4 {
            self.flush_refund();
        }
    }

    fn flush_refund(&mut self) {
        if self.refund_bytes > 0 {
            self.control.push_back(Frame::Credit { bytes: self.refund_bytes });
            self.held_bytes -= std::mem::take(&mut self.refund_bytes);
        }
    }

    fn charge(&mut self, chunk: &Chunk) -> Result<(), Broken> {
        if chunk.charge == Charge::Window {
            self.held_bytes += chunk.cost_bytes();
        }
        if self.held_bytes > self.window_bytes {
            return Err(Broken(format!(
                "{} B sent into a window of {} B",
                self.held_bytes, self.window_bytes
            )));
        }
        Ok(())
    }

    /// A buffer for a message's first chunk: the smallest spare one that holds it, or a new one.
    fn spare_for(&mut self, chunk: &Chunk) -> Option<Vec<u8>> {
        if chunk.offset != 0 {
            return None;
        }
        let length = chunk.message_bytes as usize;
        // Nor much larger: a short message would walk off with a long one's buffer.
        let fits = length..=length.max(1024) * 4;
        let fitting = self.spare.iter().enumerate().filter(|(_, buffer)| fits.contains(&buffer.capacity()));
        let best = fitting.min_by_key(|(_, buffer)| buffer.capacity()).map(|(index, _)| index);
        let mut buffer =
            best.map_or_else(|| Vec::with_capacity(length), |index| self.spare.swap_remove(index));
        buffer.clear();
        Some(buffer)
    }

    /// The arrival with that serial, or a new one behind all others of its tag.
    fn arrival(&mut self, tag: Tag, serial: u64, message_bytes: u64) -> Result<&mut Arrival, Broken> {
        let arrivals = &mut self.inboxes.entry(tag).or_default().arrivals;
        let found = arrivals.iter().rposition(|arrival| arrival.serial == serial);
        let index = match found {
            Some(index) if arrivals[index].message_bytes == message_bytes => index,
            Some(index) => {
                let known = arrivals[index].message_bytes;
                return Err(Broken(format!(
                    "message {serial}, tag {tag}, was {known} B long and is {message_bytes} B"
                )));
            }
            None => {
                if let Some(last) = arrivals.back().filter(|last| last.serial > serial) {
                    return Err(Broken(format!(
                        "message {serial}, tag {tag}, starts after message {}",
                        last.serial
                    )));
                }
                arrivals.push_back(Arrival::new(serial, message_bytes));
                arrivals.len() - 1
            }
        };
        Ok(&mut arrivals[index])
    }

    fn forget_if_idle(&mut self, tag: Tag) {
        if self.inboxes.get(&tag).is_some_and(|inbox| inbox.waiting == 0 && inbox.arrivals.is_empty()) {
            self.inboxes.remove(&tag);
        }
    }
}

impl Arrival {
    fn new(serial: u64, message_bytes: u64) -> Self {
        Arrival {
            serial,
            message_bytes,
            received_bytes: 0,
            whole: false,
            buffer: Vec::new(),
            charged_bytes: 0,
            deliver_at_ns: 0,
            claim: Claim::None,
        }
    }

    fn expects(&self, chunk: &Chunk) -> Result<(), Broken> {
        let (serial, tag) = (chunk.serial, chunk.tag);
        if self.whole || chunk.offset != self.received_bytes {
            let (got, expected) = (chunk.offset, self.received_bytes);
            return Err(Broken(format!(
                "message {serial}, tag {tag}: chunk at {got}, expected at {expected}"
            )));
        }
        if chunk.charge == Charge::Granted && self.claim != Claim::Granted {
            return Err(Broken(format!("message {serial}, tag {tag}, was sent as granted, which it is not")));
        }
        Ok(())
    }
}
