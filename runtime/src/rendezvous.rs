//! Where the ranks of a job meet: the coordinator (in the launching process) and each worker's line to it.
//!
//! ```text
//!   worker ── Hello { key, rank, address } ──> coordinator      within 30 s of connecting, or the socket is closed
//!          <── Start { peers, began } ──────                    when every rank has said hello
//!          ── Step, Shard, Failed, Done ──>                     as they happen
//!          <── Abort { reason } ────────────                    once; the worker ends
//! ```
//! Messages are JSON, one a line, at most 1 MiB. A connection counts for nothing until its hello carries the job's
//! key (compared in constant time); at most 256 may be waiting to say it. The coordinator keeps nothing that its
//! members could not tell it again. A worker whose line breaks ends itself, so no rank outlives its job.
//!
//! Not here: the ranks' traffic with each other (`narrows_transport`), starting processes (`launch`).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::checkpoint::Shard;
use crate::report::files::LinkBytes;

const HELLO_WITHIN: Duration = Duration::from_secs(30);
const LINE_BYTES_MAX: u64 = 1 << 20;
const STRANGERS_MAX: usize = 256;

/// Worker to coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The first message.
    Hello {
        /// The job's key, hexadecimal.
        key: String,
        /// Who it is.
        rank: u32,
        /// Where its peers reach it.
        address: SocketAddr,
    },
    /// An optimiser step is done.
    Step(StepDone),
    /// This rank's part of a checkpoint is on the disk.
    Shard {
        /// Optimiser steps done.
        step: u64,
        /// Its file.
        shard: Shard,
    },
    /// The rank gives up.
    Failed {
        /// The step it was in.
        step: u64,
        /// Whether it is only the victim of another rank's end.
        victim: bool,
        /// Why.
        error: String,
    },
    /// All steps are done.
    Done,
}

/// What a rank says after an optimiser step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepDone {
    /// Which, from 1.
    pub step: u64,
    /// Mean nats per token over this replica's microbatches; the last stage knows it.
    pub loss: Option<f64>,
    /// Mean nats per token over the validation windows, where they were evaluated.
    pub validation_loss: Option<f64>,
    /// Seconds since the run began at which the step ended, evaluation not counted.
    pub ended_s: f64,
    /// Seconds by which arithmetic exceeded the emulated device's.
    pub overrun_s: f64,
    /// Peak resident bytes of the process so far.
    pub peak_memory_bytes: u64,
    /// Bytes sent to each peer during the step.
    pub links: Vec<LinkBytes>,
    /// After an exchange: a hash of each unit of parameters that this rank holds.
    pub hashes: Vec<(String, String)>,
}

/// Coordinator to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Everybody is here.
    Start {
        /// Every rank's address.
        peers: Vec<(u32, SocketAddr)>,
        /// The run's zero on `CLOCK_MONOTONIC`, nanoseconds.
        began_ns: u64,
    },
    /// End at once.
    Abort {
        /// Why.
        reason: String,
    },
}

/// What the coordinator learns.
#[derive(Debug)]
pub enum Event {
    /// A rank said hello or reported.
    Report(u32, Report),
    /// A rank's line broke.
    Lost(u32),
}

/// The meeting point.
pub struct Coordinator {
    address: SocketAddr,
    events: Receiver<Event>,
    lines: Arc<Mutex<Vec<(u32, TcpStream)>>>,
}

impl Coordinator {
    /// Listens on a loopback port of the system's choice for `world_size` ranks that know `key`.
    pub fn listen(world_size: u32, key: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (sender, events) = channel();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let door =
            Door { world_size, key: key.to_owned(), sender, lines: lines.clone(), strangers: Arc::default() };
        thread::Builder::new().name("coordinator".into()).spawn(move || door.accept_all(listener))?;
        Ok(Self { address, events, lines })
    }

    /// What workers are given as `NARROWS_COORDINATOR`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next event, or `None` when `within` has passed.
    pub fn next(&self, within: Duration) -> Option<Event> {
        self.events.recv_timeout(within).ok()
    }

    /// Sends an order to every rank that is connected; those that cannot take it are noticed as lost.
    pub fn order_all(&self, order: &Order) {
        for (rank, line) in self.lines.lock().expect("no holder panics").iter_mut() {
            if let Err(error) = write_line(line, order) {
                tracing::debug!(rank, %error, "order not delivered");
            }
        }
    }
}

/// Admits connections.
#[derive(Clone)]
struct Door {
    world_size: u32,
    key: String,
    sender: Sender<Event>,
    lines: Arc<Mutex<Vec<(u32, TcpStream)>>>,
    strangers: Arc<AtomicUsize>,
}

impl Door {
    fn accept_all(self, listener: TcpListener) {
        for stream in listener.incoming().flatten() {
            if self.strangers.fetch_add(1, Ordering::Relaxed) >= STRANGERS_MAX {
                self.strangers.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let door = self.clone();
            let spawned =
                thread::Builder::new().name("coordinator-line".into()).spawn(move || door.serve(stream));
            if let Err(error) = spawned {
                tracing::warn!(%error, "a connection was dropped");
            }
        }
    }

    fn serve(self, stream: TcpStream) {
        let admitted = self.admit(&stream);
        self.strangers.fetch_sub(1, Ordering::Relaxed);
        let Some((rank, mut reader)) = admitted else { return };
        while let Some(report) = read_line::<Report>(&mut reader) {
            if self.sender.send(Event::Report(rank, report)).is_err() {
                return;
            }
        }
        let _ = self.sender.send(Event::Lost(rank));
    }

    /// A stranger becomes a rank by saying hello with the key, in time, under a rank that is free.
    fn admit(&self, stream: &TcpStream) -> Option<(u32, BufReader<TcpStream>)> {
        stream.set_read_timeout(Some(HELLO_WITHIN)).ok()?;
        stream.set_nodelay(true).ok()?;
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let Report::Hello { key, rank, address } = read_line(&mut reader)? else { return None };
        let mut lines = self.lines.lock().expect("no holder panics");
        let known = same_key(&key, &self.key);
        if !known || rank >= self.world_size || lines.iter().any(|(r, _)| *r == rank) {
            tracing::warn!(peer = ?stream.peer_addr().ok(), rank, known, "a connection was refused");
            return None;
        }
        stream.set_read_timeout(None).ok()?;
        lines.push((rank, stream.try_clone().ok()?));
        self.sender.send(Event::Report(rank, Report::Hello { key: String::new(), rank, address })).ok()?;
        Some((rank, reader))
    }
}

/// A worker's line to its coordinator.
pub struct Line {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    coordinator: SocketAddr,
}

/// Why a worker cannot go on with its coordinator.
#[derive(Debug, thiserror::Error)]
#[error("coordinator at {coordinator}: {action}: {cause}")]
pub struct LineError {
    coordinator: SocketAddr,
    action: &'static str,
    cause: String,
}

impl Line {
    /// Connects and says hello.
    pub fn connect(coordinator: SocketAddr, hello: &Report, deadline: Instant) -> Result<Self, LineError> {
        let failed =
            |action| move |e: std::io::Error| LineError { coordinator, action, cause: e.to_string() };
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut stream = TcpStream::connect_timeout(&coordinator, left).map_err(failed("connecting"))?;
        stream.set_nodelay(true).map_err(failed("connecting"))?;
        write_line(&mut stream, hello).map_err(failed("saying hello"))?;
        let reader = BufReader::new(stream.try_clone().map_err(failed("connecting"))?);
        Ok(Self { stream, reader, coordinator })
    }

    /// Waits for the order to start: all peers' addresses and the run's zero.
    pub fn wait_for_start(&mut self, deadline: Instant) -> Result<(Vec<(u32, SocketAddr)>, u64), LineError> {
        let error = |cause: &str| LineError {
            coordinator: self.coordinator,
            action: "waiting for the other ranks",
            cause: cause.to_owned(),
        };
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left)).map_err(|e| error(&e.to_string()))?;
        match read_line(&mut self.reader) {
            Some(Order::Start { peers, began_ns }) => {
                self.stream.set_read_timeout(None).map_err(|e| error(&e.to_string()))?;
                Ok((peers, began_ns))
            }
            Some(Order::Abort { reason }) => Err(error(&reason)),
            None => Err(error("the line closed or the deadline passed before every rank was there")),
        }
    }

    /// Splits into a half that reports and a thread that calls `ended` once, when the coordinator aborts or is gone.
    pub fn split(self, ended: impl FnOnce(String) + Send + 'static) -> std::io::Result<Reporter> {
        let mut reader = self.reader;
        thread::Builder::new().name("orders".into()).spawn(move || {
            ended(match read_line::<Order>(&mut reader) {
                Some(Order::Abort { reason }) => reason,
                _ => "the coordinator is gone".to_owned(),
            });
        })?;
        Ok(Reporter { stream: self.stream, coordinator: self.coordinator })
    }
}

/// The half of a worker's line that reports.
pub struct Reporter {
    stream: TcpStream,
    coordinator: SocketAddr,
}

impl Reporter {
    /// Sends a report.
    pub fn send(&mut self, report: &Report) -> Result<(), LineError> {
        write_line(&mut self.stream, report).map_err(|e| LineError {
            coordinator: self.coordinator,
            action: "reporting",
            cause: e.to_string(),
        })
    }
}

fn write_line(stream: &mut TcpStream, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// The next message; `None` at the end of the stream, after a time-out, or if what came is no message.
fn read_line<T: for<'a> Deserialize<'a>>(reader: &mut BufReader<TcpStream>) -> Option<T> {
    let mut line = Vec::new();
    reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

fn same_key(a: &str, b: &str) -> bool {
    blake3::hash(a.as_bytes()) == blake3::hash(b.as_bytes()) // constant time
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn hello(key: &str, rank: u32) -> Report {
        Report::Hello { key: key.into(), rank, address: "127.0.0.1:9".parse().unwrap() }
    }

    fn join(coordinator: &Coordinator, key: &str, rank: u32) -> Line {
        Line::connect(coordinator.address(), &hello(key, rank), Instant::now() + SOON).unwrap()
    }

    #[test]
    fn ranks_meet_report_and_are_ordered() {
        let coordinator = Coordinator::listen(2, "k").unwrap();
        let mut lines = [join(&coordinator, "k", 0), join(&coordinator, "k", 1)];
        for _ in 0..2 {
            assert!(matches!(coordinator.next(SOON), Some(Event::Report(_, Report::Hello { .. }))));
        }
        coordinator.order_all(&Order::Start { peers: vec![], began_ns: 7 });
        for line in &mut lines {
            assert_eq!(line.wait_for_start(Instant::now() + SOON).unwrap().1, 7);
        }
        let [a, b] = lines;
        let (sender, ended) = channel();
        let mut reporter = a.split(move |reason| sender.send(reason).unwrap()).unwrap();
        reporter.send(&Report::Done).unwrap();
        assert!(matches!(coordinator.next(SOON), Some(Event::Report(0, Report::Done))));
        drop(b);
        assert!(matches!(coordinator.next(SOON), Some(Event::Lost(1))));
        coordinator.order_all(&Order::Abort { reason: "rank 1 died".into() });
        assert_eq!(ended.recv_timeout(SOON).unwrap(), "rank 1 died");
    }

    #[test]
    fn strangers_wrong_keys_and_taken_ranks_are_closed_without_a_word() {
        let coordinator = Coordinator::listen(2, "k").unwrap();
        let _first = join(&coordinator, "k", 0);
        assert!(matches!(coordinator.next(SOON), Some(Event::Report(0, _))));
        for mut refused in
            [join(&coordinator, "wrong", 1), join(&coordinator, "k", 0), join(&coordinator, "k", 2)]
        {
            assert!(refused.wait_for_start(Instant::now() + SOON).is_err());
        }
        let mut garbage = TcpStream::connect(coordinator.address()).unwrap();
        garbage.write_all(&[0xff, b'\n']).unwrap();
        garbage.set_read_timeout(Some(SOON)).unwrap();
        assert!(matches!(garbage.read(&mut [0; 8]), Ok(0) | Err(_)), "closed");
        assert!(coordinator.next(Duration::from_millis(1)).is_none(), "nobody else was let in");
    }

    #[test]
    fn a_worker_learns_that_its_coordinator_is_gone() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let line =
            Line::connect(listener.local_addr().unwrap(), &hello("k", 0), Instant::now() + SOON).unwrap();
        let (sender, ended) = channel();
        let _reporter = line.split(move |reason| sender.send(reason).unwrap()).unwrap();
        drop(listener.accept().unwrap());
        assert!(ended.recv_timeout(SOON).unwrap().contains("gone"));
    }
}
