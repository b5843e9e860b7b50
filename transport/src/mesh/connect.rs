//! Wiring the mesh: of two ranks the lower one dials, the higher one listens.
//!
//! A dial is tried again until the deadline, for ranks do not start at the same time. What knocks at the listener is
//! given a few seconds to prove itself; at most [`PENDING_MAX`] may be at it at once, more are closed unheard (a real
//! rank dials again). Only ranks that are expected get in, each once.
//!
//! Not here: finding the addresses (the coordinator's); ranks that join later (membership's).

use super::MeshError;
use super::handshake::{self, HandshakeError, Identity, Peer};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};

/// Strangers that may be at the door at once.
pub const PENDING_MAX: usize = 64;
/// How long a stranger may take to prove itself. The world of trusted ranks answers in milliseconds.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
const REDIAL_AFTER: Duration = Duration::from_millis(50);

/// A socket with a peer that has proven itself.
pub type Proven = (Peer, TcpStream);

/// Connects to all of `peers` (this rank not among them).
pub async fn connect(
    me: &Identity,
    listener: &TcpListener,
    peers: &[(u32, SocketAddr)],
    deadline: Instant,
) -> Result<Vec<Proven>, MeshError> {
    let mut wiring = Wiring::new(me, peers);
    // Not `timeout_at(.., wiring.run())` alone: what is still missing is the error.
    let finished = timeout_at(deadline.into(), wiring.run(listener)).await;
    match finished {
        Ok(()) => Ok(wiring.proven.into_values().collect()),
        Err(_) => Err(MeshError::Connect { rank: me.rank, missing: wiring.missing() }),
    }
}

struct Wiring<'a> {
    me: &'a Identity,
    peers: &'a [(u32, SocketAddr)],
    proven: BTreeMap<u32, Proven>,
    /// The last that went wrong with each peer that is dialled.
    trouble: BTreeMap<u32, String>,
    dials: JoinSet<(u32, Result<Proven, HandshakeError>)>,
    knocks: JoinSet<(SocketAddr, Result<Proven, HandshakeError>)>,
}

impl<'a> Wiring<'a> {
    fn new(me: &'a Identity, peers: &'a [(u32, SocketAddr)]) -> Self {
        let (proven, trouble) = (BTreeMap::new(), BTreeMap::new());
        Wiring { me, peers, proven, trouble, dials: JoinSet::new(), knocks: JoinSet::new() }
    }

    async fn run(&mut self, listener: &TcpListener) {
        for &(peer, address) in self.peers.iter().filter(|(peer, _)| *peer > self.me.rank) {
            self.dials.spawn(dial(self.me.clone(), peer, address, Duration::ZERO));
        }
        while self.proven.len() < self.peers.len() {
            tokio::select! {
                Some(dialled) = self.dials.join_next() => self.dialled(dialled.expect("dialling does not panic")),
                Some(knock) = self.knocks.join_next() => self.answered(knock.expect("a handshake does not panic")),
                Ok((socket, address)) = listener.accept() => self.knock(socket, address),
            }
        }
    }

    fn dialled(&mut self, (peer, outcome): (u32, Result<Proven, HandshakeError>)) {
        match outcome {
            Ok(proven) => drop(self.proven.insert(peer, proven)),
            Err(trouble) => {
                self.trouble.insert(peer, trouble.to_string());
                let address = self.address(peer).expect("only given peers are dialled");
                self.dials.spawn(dial(self.me.clone(), peer, address, REDIAL_AFTER));
            }
        }
    }

    fn knock(&mut self, mut socket: TcpStream, address: SocketAddr) {
        if self.knocks.len() >= PENDING_MAX {
            tracing::warn!(rank = self.me.rank, %address, "closed a connection unheard: {PENDING_MAX} wait already");
            return;
        }
        let me = self.me.clone();
        self.knocks.spawn(async move {
            let outcome = timeout(PROOF_TIMEOUT, handshake::accept(&mut socket, &me)).await;
            let outcome =
                outcome.unwrap_or_else(|_| Err(HandshakeError::Socket(std::io::ErrorKind::TimedOut.into())));
            (address, outcome.map(|peer| (peer, socket)))
        });
    }

    fn answered(&mut self, (address, outcome): (SocketAddr, Result<Proven, HandshakeError>)) {
        match outcome {
            Ok((peer, socket)) if self.awaits(peer.rank) => {
                drop(self.proven.insert(peer.rank, (peer, socket)))
            }
            Ok((peer, _)) => {
                tracing::warn!(rank = self.me.rank, %address, peer = peer.rank, "closed: not awaited")
            }
            Err(error) => tracing::warn!(rank = self.me.rank, %address, %error, "closed a connection"),
        }
    }

    fn awaits(&self, peer: u32) -> bool {
        peer < self.me.rank && self.address(peer).is_some() && !self.proven.contains_key(&peer)
    }

    fn address(&self, peer: u32) -> Option<SocketAddr> {
        self.peers.iter().find(|(rank, _)| *rank == peer).map(|(_, address)| *address)
    }

    /// Whom there is no socket to, and what is known about why.
    fn missing(&self) -> String {
        let missing = self.peers.iter().filter(|(peer, _)| !self.proven.contains_key(peer));
        let told = missing.map(|(peer, address)| match self.trouble.get(peer) {
            Some(trouble) => format!("rank {peer} at {address}: {trouble}"),
            None if *peer < self.me.rank => format!("rank {peer} has not dialled"),
            None => format!("rank {peer} at {address} has not answered"),
        });
        told.collect::<Vec<_>>().join("; ")
    }
}

async fn dial(
    me: Identity,
    peer: u32,
    address: SocketAddr,
    after: Duration,
) -> (u32, Result<Proven, HandshakeError>) {
    sleep(after).await;
    let attempt = async {
        let mut socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let proven = handshake::dial(&mut socket, &me, peer).await?;
        Ok((proven, socket))
    };
    (peer, attempt.await)
}
