//! The two loops of a link: `pump_out` writes what the flow says, `pump_in` tells it what has arrived.
//!
//! Payload is written from the buffer that the sender gave and read into the one that the receiver will take.
//!
//! On an emulated path (`shape`) a chunk reserves the path just before it is written, goes to the socket at once
//! stamped with its time of delivery, and the pump offers no other chunk until the reservation ends. So this machine's
//! timers bound only how finely flows take turns, never the rate; the receiver alone waits exactly.
//!
//! Not here: any decision (`flow`), what threads wait for (`tcp`).

use super::{Parting, Path, TcpLink};
use crate::clock::{instant_of, monotonic_ns};
use crate::link::Cause;
use crate::link::flow::{Departure, Drained, Landed, Next};
use crate::link::frame::{Chunk, Frame, HEADER_BYTES, REASON_BYTES_MAX};
use bytes::{Buf, BufMut, Bytes};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep_until, timeout};

/// Headers and short messages are read through this; what is left of longer payload goes past it, uncopied.
const READ_AHEAD_BYTES: usize = 8 * 1024;
/// How long the peer's last words are waited for when it stops taking ours.
const LAST_WORDS: Duration = Duration::from_millis(200);

impl TcpLink {
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
            let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX as usize)];
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
}

/// What the outgoing pump does next.
enum Step {
    Flow(Next),
    Part(Parting),
}

fn lost(error: io::Error) -> Cause {
    Cause::Lost(Arc::new(error))
}
