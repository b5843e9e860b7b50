//! Link over TCP: one peer, one stream. `Flow` decides; this file is where threads that compute meet the flow, and
//! `pump` moves the bytes.
//!
//! Both sides share one mutex; a condition wakes threads, a notification wakes the outgoing pump. No call holds the
//! lock while it reads, writes or waits.
//!
//! An orderly end is `Goodbye` both ways. A socket that ends without one is a lost peer.
//!
//! Not here: connecting and who the peer is (`mesh::handshake`), several streams, TLS.

mod pump;

use super::flow::{Drained, Flow, Sizes, Take};
use super::frame::Limits;
use super::{Cause, PeerCounters, Tag};
use crate::clock::{instant_of, monotonic_ns};
use crate::shape::{Route, Shape};
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Largest chunk where nothing is emulated: large enough that a system call per chunk costs nothing.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// The link to one peer.
#[derive(Debug)]
pub struct TcpLink {
    pub peer: u32,
    state: Mutex<State>,
    /// Something a thread may wait for has changed.
    changed: Condvar,
    /// The outgoing pump has something to look at.
    work: Notify,
    sent: Count,
    received: Count,
    limits: Limits,
    path: Option<Path>,
}

/// The emulated way to the peer.
#[derive(Debug)]
pub struct Path {
    pub shape: Shape,
    pub route: Route,
}

#[derive(Debug)]
struct State {
    flow: Flow,
    parting: Parting,
    /// Threads that wait for `changed`.
    waiting: usize,
    /// The outgoing pump has ended.
    silent: bool,
    /// Both pumps have ended and the socket is closed.
    gone: bool,
}

/// How this rank means to end the link.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Parting {
    Open,
    Goodbye,
    Abort { reason: String },
}

#[derive(Debug, Default)]
struct Count {
    payload_bytes: AtomicU64,
    wire_bytes: AtomicU64,
}

/// A message and the time at which it counts as delivered, in nanoseconds.
type Delivered = (Vec<u8>, u64);

/// What a link is made with.
#[derive(Debug)]
pub struct LinkConfig {
    pub peer: u32,
    pub window_bytes: u64,
    pub peer_window_bytes: u64,
    pub max_message_bytes: u64,
    pub path: Option<Path>,
    /// What the handshake has cost each way.
    pub handshake_bytes: (u64, u64),
}

impl TcpLink {
    /// A link over a socket whose handshake is done. [`TcpLink::run`] moves its bytes.
    pub fn new(config: LinkConfig) -> Arc<Self> {
        let chunk = config.path.as_ref().map_or(CHUNK_BYTES, |path| path.route.chunk_bytes());
        // A quarter: the window holds several chunks, so that credit comes back while others travel.
        let chunk = chunk.min(config.peer_window_bytes as usize / 4);
        let sizes = Sizes { window: config.window_bytes, peer_window: config.peer_window_bytes, chunk };
        let state =
            State { flow: Flow::new(sizes), parting: Parting::Open, waiting: 0, silent: false, gone: false };
        Arc::new(TcpLink {
            peer: config.peer,
            state: Mutex::new(state),
            changed: Condvar::new(),
            work: Notify::new(),
            sent: Count::starting_at(config.handshake_bytes.0),
            received: Count::starting_at(config.handshake_bytes.1),
            limits: Limits {
                message_bytes: config.max_message_bytes,
                payload_bytes: u32::try_from(config.window_bytes).unwrap_or(u32::MAX),
            },
            path: config.path,
        })
    }

    /// Hands a message over; waits while the queue is full.
    pub fn send(&self, tag: Tag, mut bytes: Bytes, deadline: Instant) -> Result<(), Cause> {
        let called = Instant::now();
        let (length, limit) = (bytes.len() as u64, self.limits.message_bytes);
        if length > limit {
            return Err(Cause::TooLong { bytes: length, limit });
        }
        let mut state = self.lock();
        loop {
            state.is_open()?;
            match state.flow.outgoing.submit(tag, bytes, monotonic_ns()) {
                Ok(()) => break,
                Err(returned) => bytes = returned,
            }
            if Instant::now() >= deadline {
                return Err(full_queue(called, &state));
            }
            state = self.wait(state, deadline);
        }
        self.work.notify_one();
        Ok(())
    }

    /// Waits for the next message of `tag` and swaps it into `into`; `into` is untouched on failure. Returns the time
    /// at which the message counts as delivered, 0 without emulation.
    pub fn receive(&self, tag: Tag, into: &mut Vec<u8>, deadline: Instant) -> Result<u64, Cause> {
        let mut state = self.lock();
        state.flow.incoming.wait(tag);
        self.tell_pump(&state);
        let (mut state, outcome) = self.await_message(state, tag, deadline);
        state.flow.incoming.leave(tag);
        let (message, deliver_at_ns) = outcome?;
        state.flow.incoming.recycle(std::mem::replace(into, message));
        self.tell_pump(&state);
        Ok(deliver_at_ns)
    }

    /// Waits until all that was handed over has left this rank (on an emulated path: has been transmitted).
    pub fn flush(&self, deadline: Instant) -> Result<(), Cause> {
        let called = Instant::now();
        let mut state = self.lock();
        loop {
            let wake = match state.flow.outgoing.drained(monotonic_ns()) {
                Drained::Yes => return Ok(()),
                Drained::At(ns) => deadline.min(instant_of(ns)),
                Drained::No => deadline,
            };
            state.is_open()?;
            if Instant::now() >= deadline {
                return Err(full_queue(called, &state));
            }
            state = self.wait(state, wake);
        }
    }

    /// Ends the link now: everyone who waits on it fails, the peer is told why.
    pub fn abort(&self, reason: &str) {
        let mut state = self.lock();
        state.parting = Parting::Abort { reason: reason.to_owned() };
        state.flow.end(Cause::Aborted { reason: reason.to_owned() });
        self.tell_everyone(state);
    }

    /// Starts an orderly end: what was handed over still leaves. [`TcpLink::wait_closed`] waits for it.
    pub fn say_goodbye(&self) {
        let mut state = self.lock();
        if state.parting == Parting::Open {
            state.parting = Parting::Goodbye;
        }
        self.tell_everyone(state);
    }

    /// Waits until both ends have said goodbye.
    pub fn wait_closed(&self, deadline: Instant) -> Result<(), Cause> {
        let called = Instant::now();
        let mut state = self.lock();
        while !state.gone {
            if Instant::now() >= deadline {
                let found = "the peer has not said goodbye".into();
                return Err(Cause::Deadline { waited: called.elapsed(), found });
            }
            state = self.wait(state, deadline);
        }
        match state.flow.ended() {
            None | Some(Cause::Closed) => Ok(()),
            Some(cause) => Err(cause.clone()),
        }
    }

    /// After [`TcpLink::abort`]: waits until the peer has been told, for a while.
    pub fn linger_after_abort(&self, deadline: Instant) {
        let mut state = self.lock();
        while matches!(state.parting, Parting::Abort { .. }) && !state.silent && Instant::now() < deadline {
            state = self.wait(state, deadline);
        }
    }

    pub fn counters(&self) -> PeerCounters {
        PeerCounters {
            peer: self.peer,
            sent_payload_bytes: self.sent.payload_bytes.load(Relaxed),
            sent_wire_bytes: self.sent.wire_bytes.load(Relaxed),
            received_payload_bytes: self.received.payload_bytes.load(Relaxed),
            received_wire_bytes: self.received.wire_bytes.load(Relaxed),
        }
    }

    fn await_message<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        tag: Tag,
        deadline: Instant,
    ) -> (MutexGuard<'a, State>, Result<Delivered, Cause>) {
        let called = Instant::now();
        loop {
            if let Err(cause) = state.is_not_parting() {
                return (state, Err(cause));
            }
            let wake = match state.flow.incoming.take(tag, monotonic_ns()) {
                Take::Whole { message, deliver_at_ns } => return (state, Ok((message, deliver_at_ns))),
                Take::At(ns) => deadline.min(instant_of(ns)),
                Take::Pending => match state.flow.ended().cloned() {
                    Some(cause) => return (state, Err(cause)),
                    None => deadline,
                },
            };
            if Instant::now() >= deadline {
                let found = state.flow.incoming.describe(tag);
                return (state, Err(Cause::Deadline { waited: called.elapsed(), found }));
            }
            state = self.wait(state, wake);
        }
    }

    fn tell_everyone(&self, state: MutexGuard<'_, State>) {
        self.tell_threads(state);
        self.work.notify_one();
    }

    /// Lets the lock go first, and asks first whether anyone waits: a notification is a system call in any case.
    fn tell_threads(&self, state: MutexGuard<'_, State>) {
        let waiting = state.waiting;
        drop(state);
        if waiting > 0 {
            self.changed.notify_all();
        }
    }

    fn tell_pump(&self, state: &State) {
        if state.flow.incoming.has_control() {
            self.work.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked has left the flow between two whole calls: each leaves it consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>, until: Instant) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let left = until.saturating_duration_since(Instant::now());
        let (mut state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> u64 {
        self.lock().flow.incoming.held_bytes()
    }
}

impl State {
    fn is_open(&self) -> Result<(), Cause> {
        self.is_not_parting()?;
        self.flow.ended().map_or(Ok(()), |cause| Err(cause.clone()))
    }

    fn is_not_parting(&self) -> Result<(), Cause> {
        match &self.parting {
            Parting::Open => Ok(()),
            Parting::Goodbye => Err(Cause::Aborted { reason: "it has closed its mesh".into() }),
            Parting::Abort { reason } => Err(Cause::Aborted { reason: reason.clone() }),
        }
    }
}

impl Count {
    fn starting_at(wire_bytes: u64) -> Self {
        Count { payload_bytes: AtomicU64::new(0), wire_bytes: AtomicU64::new(wire_bytes) }
    }
}

fn full_queue(called: Instant, state: &State) -> Cause {
    let queue = state.flow.outgoing.describe();
    let found = format!("{queue}; receive in the order sent, or raise window_bytes");
    Cause::Deadline { waited: called.elapsed(), found }
}
