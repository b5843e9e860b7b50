//! A rank's endpoint: links to all ranks it talks with, behind blocking calls.
//!
//! Threads that compute are not async: they hand a message over and go on, and wait where they need one. A thread of
//! the mesh's own moves bytes meanwhile, so what is sent travels and what arrives is kept (within the window) while
//! they compute.
//!
//! ```no_run
//! # use narrows_transport::{JobKey, MeshConfig, Mesh, Tag};
//! # use std::time::{Duration, Instant};
//! # fn example(key: JobKey, peers: &[(u32, std::net::SocketAddr)]) -> Result<(), Box<dyn std::error::Error>> {
//! let soon = || Instant::now() + Duration::from_secs(30);
//! let builder = Mesh::bind(MeshConfig::new(0, 2, key, "127.0.0.1:0".parse()?))?;
//! println!("rank 0 listens at {}", builder.address());      // tell the others; learn theirs
//! let mesh = builder.connect(peers, soon())?;
//! mesh.send(1, Tag(7), vec![1, 2, 3])?;
//! let mut answer = Vec::new();
//! mesh.recv(1, Tag(7), &mut answer, soon())?;
//! mesh.close(soon())?;
//! # Ok(()) }
//! ```
//!
//! Not here: who the ranks are and where (the coordinator's), what the bytes mean.

mod connect;
mod handshake;

use crate::link::frame::HEADER_BYTES;
use crate::link::tcp::{LinkConfig, Path, TcpLink};
use crate::link::{Cause, LinkError, Operation, PeerCounters, Tag};
use crate::shape::Shape;
use bytes::Bytes;
use handshake::Identity;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// What a mesh is made with.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// This rank.
    pub rank: u32,
    /// Ranks of the job, the same number on all.
    pub world: u32,
    /// What all ranks of the job know and nobody else.
    pub key: JobKey,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Per peer: room for what arrives before it is asked for, and for what is handed over and has not left.
    /// At least [`WINDOW_BYTES_MIN`]; a window below rate x round trip slows a link down.
    pub window_bytes: u64,
    /// Longest message, either way.
    pub max_message_bytes: u64,
    /// How long `send` waits for room in its queue.
    pub send_timeout: Duration,
    /// The emulated network; none: as fast as the sockets are.
    pub shape: Option<Shape>,
}

/// Smallest window, bytes: four chunks of the smallest kind.
pub const WINDOW_BYTES_MIN: u64 = 16 * 1024;

impl MeshConfig {
    /// A window of 64 MiB per peer, messages of up to 1 GiB, two minutes for a full queue, nothing emulated.
    pub fn new(rank: u32, world: u32, key: JobKey, listen: SocketAddr) -> Self {
        MeshConfig {
            rank,
            world,
            key,
            listen,
            window_bytes: 64 << 20,
            max_message_bytes: 1 << 30,
            send_timeout: Duration::from_secs(120),
            shape: None,
        }
    }
}

/// The secret of a job: 32 random bytes, made by the launcher. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct JobKey([u8; 32]);

impl JobKey {
    /// A key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        JobKey(bytes)
    }

    /// Reads 64 hexadecimal digits, as `NARROWS_JOB_KEY` holds them; none if they are not that.
    pub fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| JobKey(*hash.as_bytes()))
    }

    fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobKey(..)")
    }
}

/// A mesh that listens and is not yet connected.
#[derive(Debug)]
pub struct MeshBuilder {
    config: MeshConfig,
    runtime: Runtime,
    listener: TcpListener,
    address: SocketAddr,
}

/// A rank's links. Shared by reference among its threads. Dropping it without [`Mesh::close`] is, to the peers, a death.
#[derive(Debug)]
pub struct Mesh {
    rank: u32,
    world: u32,
    step: AtomicU64,
    send_timeout: Duration,
    links: BTreeMap<u32, Arc<TcpLink>>,
    /// One thread that moves bytes. Taken only by drop.
    runtime: Option<Runtime>,
}

impl Mesh {
    /// Starts to listen. Fails where the address is taken or the configuration cannot hold.
    pub fn bind(config: MeshConfig) -> Result<MeshBuilder, MeshError> {
        if config.window_bytes < WINDOW_BYTES_MIN {
            return Err(MeshError::Window { rank: config.rank, got_bytes: config.window_bytes });
        }
        let listen = config.listen;
        let failed = |source| MeshError::Bind { rank: config.rank, listen, source };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(format!("narrows-net-{}", config.rank))
            .enable_all()
            .build()
            .map_err(failed)?;
        let listener = runtime.block_on(TcpListener::bind(listen)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(MeshBuilder { config, runtime, listener, address })
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Ranks of the job.
    pub fn world(&self) -> u32 {
        self.world
    }

    /// The ranks there are links to, rising.
    pub fn peers(&self) -> impl Iterator<Item = u32> + '_ {
        self.links.keys().copied()
    }

    /// Errors from now on name this step.
    pub fn set_step(&self, step: u64) {
        self.step.store(step, Relaxed);
    }

    /// Hands a message over. Returns at once, unless a window of bytes waits to leave for that peer: then when there is
    /// room, at most after `send_timeout`.
    pub fn send(&self, to: u32, tag: Tag, bytes: impl Into<Bytes>) -> Result<(), LinkError> {
        let deadline = Instant::now() + self.send_timeout;
        let sent = self.link(to).and_then(|link| link.send(tag, bytes.into(), deadline));
        sent.map_err(|cause| self.error(Operation::Send, to, Some(tag), cause))
    }

    /// Waits for the next message of `tag` from `from` and puts it into `into`, whose old buffer is kept for a later
    /// message: pass the same one again and nothing is allocated or copied. On failure `into` is untouched.
    pub fn recv(&self, from: u32, tag: Tag, into: &mut Vec<u8>, deadline: Instant) -> Result<(), LinkError> {
        self.recv_stamped(from, tag, into, deadline).map(drop)
    }

    /// [`Mesh::recv`], and when the emulated network delivered the message ([`crate::clock`]); 0 where nothing is
    /// emulated. A measurement by these times knows nothing of this machine's timers.
    pub fn recv_stamped(
        &self,
        from: u32,
        tag: Tag,
        into: &mut Vec<u8>,
        deadline: Instant,
    ) -> Result<u64, LinkError> {
        let received = self.link(from).and_then(|link| link.receive(tag, into, deadline));
        received.map_err(|cause| self.error(Operation::Receive, from, Some(tag), cause))
    }

    /// Waits until all that was handed over has left for every peer.
    pub fn flush(&self, deadline: Instant) -> Result<(), LinkError> {
        self.links.values().try_for_each(|link| {
            link.flush(deadline).map_err(|cause| self.error(Operation::Flush, link.peer, None, cause))
        })
    }

    /// Gives up: every call that waits, here and at the peers, fails at once with `reason`, and so does every later one.
    pub fn abort(&self, reason: &str) {
        self.links.values().for_each(|link| link.abort(reason));
    }

    /// Ends in order: sends what was handed over, says goodbye, waits for the peers' goodbyes. A peer that never says
    /// it, or is lost, is the error; all links are closed nonetheless. Later calls fail.
    pub fn close(&self, deadline: Instant) -> Result<(), LinkError> {
        self.links.values().for_each(|link| link.say_goodbye());
        let ends = self.links.values().map(|link| {
            link.wait_closed(deadline).map_err(|cause| self.error(Operation::Close, link.peer, None, cause))
        });
        // Collected first: one lost peer must not cut short the goodbyes of the others.
        ends.collect::<Vec<_>>().into_iter().collect()
    }

    /// What has passed to and from each peer.
    pub fn counters(&self) -> Vec<PeerCounters> {
        self.links.values().map(|link| link.counters()).collect()
    }

    fn link(&self, peer: u32) -> Result<&TcpLink, Cause> {
        let found = self.links.get(&peer).map(Arc::as_ref);
        found.ok_or_else(|| Cause::NoSuchPeer { peers: self.peers().collect() })
    }

    fn error(&self, operation: Operation, peer: u32, tag: Option<Tag>, cause: Cause) -> LinkError {
        LinkError { rank: self.rank, peer, operation, tag, step: self.step.load(Relaxed), cause }
    }

    #[cfg(test)]
    pub(crate) fn held_bytes(&self, peer: u32) -> u64 {
        self.links[&peer].held_bytes()
    }
}

/// How long a mesh that aborted stays to tell its peers.
const LINGER: Duration = Duration::from_millis(500);

impl Drop for Mesh {
    fn drop(&mut self) {
        let deadline = Instant::now() + LINGER;
        self.links.values().for_each(|link| link.linger_after_abort(deadline));
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: a mesh may be dropped inside another runtime.
            runtime.shutdown_background();
        }
    }
}

impl MeshBuilder {
    /// Where this rank listens, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connects with every one of `peers` (this rank's own entry is passed over) and stops listening. Each of them must
    /// name this rank among theirs.
    pub fn connect(self, peers: &[(u32, SocketAddr)], deadline: Instant) -> Result<Mesh, MeshError> {
        let MeshBuilder { config, runtime, listener, .. } = self;
        let MeshConfig { rank, world, ref key, window_bytes, .. } = config;
        let me = Identity { rank, world, window_bytes, key: key.clone() };
        let others: Vec<_> = peers.iter().copied().filter(|(peer, _)| *peer != rank).collect();
        let proven = runtime.block_on(connect::connect(&me, &listener, &others, deadline))?;
        let mut links = BTreeMap::new();
        for (peer, socket) in proven {
            socket.set_nodelay(true).map_err(|source| MeshError::Socket { rank, peer: peer.rank, source })?;
            let link = TcpLink::new(link_config(&config, &peer)?);
            runtime.spawn(link.clone().run(socket));
            links.insert(peer.rank, link);
        }
        let (step, send_timeout) = (AtomicU64::new(0), config.send_timeout);
        Ok(Mesh { rank, world, step, send_timeout, links, runtime: Some(runtime) })
    }
}

fn link_config(config: &MeshConfig, peer: &handshake::Peer) -> Result<LinkConfig, MeshError> {
    let &handshake::Peer { rank, window_bytes: peer_window_bytes, handshake_bytes } = peer;
    if peer_window_bytes < WINDOW_BYTES_MIN {
        return Err(MeshError::Window { rank, got_bytes: peer_window_bytes });
    }
    let path = config.shape.as_ref().and_then(|shape| {
        let route = shape.route(config.rank, rank)?.clone();
        Some(Path { shape: shape.clone(), route })
    });
    let (window_bytes, max_message_bytes) = (config.window_bytes, config.max_message_bytes);
    Ok(LinkConfig { peer: rank, window_bytes, peer_window_bytes, max_message_bytes, path, handshake_bytes })
}

const _: () = assert!(WINDOW_BYTES_MIN >= 4 * (1_500 + HEADER_BYTES as u64));

/// Why a mesh could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// Listening failed.
    #[error("rank {rank}: listening at {listen}: {source}; give a free port, or port 0")]
    Bind {
        /// This rank.
        rank: u32,
        /// Where.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not everyone was there in time.
    #[error("rank {rank}: the mesh is not complete at its deadline: {missing}")]
    Connect {
        /// This rank.
        rank: u32,
        /// Who is missing and what is known about why.
        missing: String,
    },
    /// A connected socket failed.
    #[error("rank {rank}: setting up the socket to rank {peer}: {source}")]
    Socket {
        /// This rank.
        rank: u32,
        /// At the other end.
        peer: u32,
        /// What the system said.
        source: std::io::Error,
    },
    /// A window is too small to work.
    #[error("rank {rank} has a window of {got_bytes} B, expected at least {WINDOW_BYTES_MIN} B")]
    Window {
        /// Whose.
        rank: u32,
        /// What it is.
        got_bytes: u64,
    },
}
