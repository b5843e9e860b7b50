//! Link over TCP: one peer, one stream. `Flow` decides; this file moves bytes.
//!
//! Two loops per link on the mesh's runtime, `pump_out` and `pump_in`; compute threads meet them at one mutex: a
//! condition wakes threads, a notification wakes the outgoing pump. Payload is read into the very buffer that the
//! receiver will take, and written from the one that the sender gave.
//!
//! On an emulated path (`shape`) a chunk reserves the path just before it is written, goes to the socket at once
//! stamped with its time of delivery, and the pump offers no other chunk until the reservation ends. So this machine's
//! timers bound only how finely flows take turns, never the rate; the receiver alone waits exactly.
//!
//! An orderly end is `Goodbye` both ways. A socket that ends without one is a lost peer.
//!
//! Not here: connecting and who the peer is (`mesh::handshake`), several streams, TLS.

use super::flow::{Departure, Drained, Flow, Landed, Next, Sizes, Take};
use super::frame::{Chunk, Frame, HEADER_BYTES, Limits, REASON_BYTES_MAX};
use super::{Cause, PeerCounters, Tag};
use crate::clock::{instant_of, monotonic_ns};
use crate::shape::{Route, Shape};
use bytes::{Buf, BufMut, Bytes};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};

/// Largest chunk where nothing is emulated: large enough that a system call per chunk costs nothing.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Headers and short messages are read through this; what is left of longer payload goes past it, uncopied.
const READ_AHEAD_BYTES: usize = 8 * 1024;
/// How long the peer's last words are waited for when it stops taking ours.
const LAST_WORDS: Duration = Duration::from_millis(200);

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
        self.work.notify_one();
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

    /// Moves the link's bytes until it ends.
    pub async fn run(self: Arc<Self>, socket: TcpStream) {
        let (reader, writer) = socket.into_split();
        self.run_pumps(reader, writer).await;
        // The socket is closed by now.
        let mut state = self.lock();
        (state.silent, state.gone) = (true, true);
        self.tell_everyone(state);
    }

    async fn run_pumps(&self, reader: OwnedReadHalf, writer: OwnedWriteHalf) {
        let mut incoming = std::pin::pin!(self.pump_in(reader));
        let mut outgoing = std::pin::pin!(self.pump_out(writer));
        tokio::select! {
            cause = &mut incoming => {
                let closed = matches!(cause, Cause::Closed);
                self.end(cause);
                if closed {
                    // Our own goodbye is still to be said.
                    let _ = outgoing.await;
                }
            }
            written = &mut outgoing => {
                self.fall_silent();
                match written {
                    Ok(Parting::Abort { .. }) => drop(timeout(LAST_WORDS, incoming).await),
                    Ok(_) => self.end(incoming.await),
                    // What the peer said last explains a broken pipe better than the pipe does.
                    Err(e) => self.end(timeout(LAST_WORDS, incoming).await.unwrap_or_else(|_| lost(e))),
                }
            }
        }
    }

    /// Writes what the flow says until this rank parts; returns how.
    async fn pump_out(&self, mut socket: OwnedWriteHalf) -> io::Result<Parting> {
        loop {
            match self.next_step() {
                Step::Flow(Next::Control(frame)) => self.write(&mut socket, frame, Bytes::new()).await?,
                Step::Flow(Next::Chunk(departure)) => self.write_chunk(&mut socket, departure).await?,
                Step::Flow(Next::Until(ns)) => tokio::select! {
                    () = sleep_until(instant_of(ns).into()) => {}
                    () = self.work.notified() => {}
                },
                Step::Flow(Next::Idle) => self.work.notified().await,
                Step::Part(parting) => return self.part(&mut socket, parting).await,
            }
        }
    }

    fn next_step(&self) -> Step {
        let mut state = self.lock();
        match &state.parting {
            Parting::Abort { .. } => return Step::Part(state.parting.clone()),
            Parting::Goodbye if state.flow.ended().is_some() => return Step::Part(Parting::Goodbye),
            _ => {}
        }
        let now_ns = monotonic_ns();
        match (state.flow.next(now_ns), state.flow.outgoing.drained(now_ns)) {
            (Next::Idle, Drained::Yes) if state.parting == Parting::Goodbye => Step::Part(Parting::Goodbye),
            (Next::Idle, Drained::At(ns)) => Step::Flow(Next::Until(ns)),
            (next, _) => Step::Flow(next),
        }
    }

    async fn write_chunk(&self, socket: &mut OwnedWriteHalf, departure: Departure) -> io::Result<()> {
        let Departure { mut chunk, payload, eligible_ns } = departure;
        let mut line_free_ns = 0;
        if let Some(Path { shape, route }) = &self.path {
            line_free_ns = shape.reserve(route, eligible_ns, payload.len()).end_ns;
            chunk.deliver_at_ns = line_free_ns + route.latency_ns();
        }
        self.write(socket, Frame::Chunk(chunk), payload).await?;
        let mut state = self.lock();
        state.flow.outgoing.written(line_free_ns);
        if chunk.is_last() {
            self.tell_threads(state);
        }
        Ok(())
    }

    async fn part(&self, socket: &mut OwnedWriteHalf, parting: Parting) -> io::Result<Parting> {
        if let Parting::Abort { reason } = &parting {
            let reason = &reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES_MAX as usize)];
            let frame = Frame::Abort { payload_bytes: reason.len() as u32 };
            self.write(socket, frame, Bytes::copy_from_slice(reason)).await?;
        } else {
            self.write(socket, Frame::Goodbye, Bytes::new()).await?;
        }
        socket.shutdown().await?;
        Ok(parting)
    }

    async fn write(&self, socket: &mut OwnedWriteHalf, frame: Frame, payload: Bytes) -> io::Result<()> {
        let payload_bytes = payload.len() as u64;
        let header = frame.encode();
        let mut rest = Buf::chain(header.as_slice(), payload);
        while rest.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 2];
            let filled = rest.chunks_vectored(&mut slices);
            let written = socket.write_vectored(&slices[..filled]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest.advance(written);
            self.sent.wire_bytes.fetch_add(written as u64, Relaxed);
        }
        if matches!(frame, Frame::Chunk(_)) {
            self.sent.payload_bytes.fetch_add(payload_bytes, Relaxed);
        }
        Ok(())
    }

    /// Reads frames until the peer ends; returns how it did.
    async fn pump_in(&self, socket: OwnedReadHalf) -> Cause {
        let mut reader = BufReader::with_capacity(READ_AHEAD_BYTES, socket);
        loop {
            match self.read_frame(&mut reader).await {
                Ok(()) => {}
                Err(cause) => return cause,
            }
        }
    }

    async fn read_frame(&self, reader: &mut BufReader<OwnedReadHalf>) -> Result<(), Cause> {
        let mut header = [0; HEADER_BYTES];
        reader.read_exact(&mut header).await.map_err(lost)?;
        self.received.wire_bytes.fetch_add(HEADER_BYTES as u64, Relaxed);
        let frame = Frame::parse(&header, &self.limits).map_err(|e| Cause::Protocol(e.to_string()))?;
        match frame {
            Frame::Chunk(chunk) => self.read_chunk(reader, chunk).await,
            Frame::Goodbye => Err(Cause::Closed),
            Frame::Abort { payload_bytes } => {
                let reason = self.read_payload(reader, Vec::new(), payload_bytes).await?;
                Err(Cause::PeerAborted { reason: String::from_utf8_lossy(&reason).into_owned() })
            }
            control => {
                let mut state = self.lock();
                state.flow.control(control, monotonic_ns()).map_err(|broken| Cause::Protocol(broken.0))?;
                self.work.notify_one();
                Ok(())
            }
        }
    }

    async fn read_chunk(&self, reader: &mut BufReader<OwnedReadHalf>, chunk: Chunk) -> Result<(), Cause> {
        let begun = self.lock().flow.incoming.begin(&chunk);
        let buffer = begun.map_err(|broken| Cause::Protocol(broken.0))?;
        let buffer = self.read_payload(reader, buffer, chunk.payload_bytes).await?;
        self.received.payload_bytes.fetch_add(chunk.payload_bytes.into(), Relaxed);
        let mut state = self.lock();
        let landed = state.flow.incoming.landed(&chunk, buffer);
        self.tell_pump(&state);
        if landed == Landed::Awaited {
            self.tell_threads(state);
        }
        Ok(())
    }

    /// Appends so many bytes to `buffer`.
    async fn read_payload(
        &self,
        reader: &mut BufReader<OwnedReadHalf>,
        mut buffer: Vec<u8>,
        payload_bytes: u32,
    ) -> Result<Vec<u8>, Cause> {
        let mut missing = payload_bytes as usize;
        while missing > 0 {
            let read = reader.read_buf(&mut (&mut buffer).limit(missing)).await.map_err(lost)?;
            if read == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
            missing -= read;
            self.received.wire_bytes.fetch_add(read as u64, Relaxed);
        }
        Ok(buffer)
    }

    fn await_message<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        tag: Tag,
        deadline: Instant,
    ) -> (MutexGuard<'a, State>, Result<(Vec<u8>, u64), Cause>) {
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

    fn end(&self, cause: Cause) {
        let mut state = self.lock();
        state.flow.end(cause);
        self.tell_everyone(state);
    }

    fn fall_silent(&self) {
        let mut state = self.lock();
        state.silent = true;
        self.tell_threads(state);
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

enum Step {
    Flow(Next),
    Part(Parting),
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

fn lost(error: io::Error) -> Cause {
    Cause::Lost(Arc::new(error))
}
