//! Who is at the other end: both prove that they hold the job's key, without showing it, and name their ranks.
//!
//! ```text
//!   acceptor  -> connector   challenge  "NARROWS" version(1) nonce_a(32)                              40 bytes
//!   connector -> acceptor    hello      from(4) to(4) world(4) zero(4) window(8) nonce_c(32) mac(32)  88 bytes
//!   acceptor  -> connector   welcome    window(8) mac(32)                                             40 bytes
//!
//!   hello's mac    = BLAKE3 keyed by the job key of "hello"   nonce_a, hello without mac
//!   welcome's mac  = BLAKE3 keyed by the job key of "welcome" nonce_a, nonce_c, window
//! ```
//!
//! Little-endian. Fresh nonces on both sides: nothing recorded can be played again; distinct labels: nothing can be
//! reflected. Macs are compared in constant time (`blake3::Hash`). All messages are of fixed size: a peer that is
//! silent, wrong or talks something else costs a timer, at most 88 bytes and a closed socket.
//!
//! Not here: secrecy and integrity of what follows (TLS, where a link leaves a trusted fabric).

use super::JobKey;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const GREETING: [u8; 8] = *b"NARROWS\x01";
const CHALLENGE_BYTES: usize = 8 + 32;
const HELLO_BYTES: usize = 4 * 4 + 8 + 32 + 32;
const WELCOME_BYTES: usize = 8 + 32;
const MAC_BYTES: usize = 32;

/// What this rank says of itself.
#[derive(Debug, Clone)]
pub struct Identity {
    pub rank: u32,
    pub world: u32,
    pub window_bytes: u64,
    pub key: JobKey,
}

/// What the peer has proven.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub rank: u32,
    pub window_bytes: u64,
    /// What the handshake has cost: sent, received.
    pub handshake_bytes: (u64, u64),
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("{0} (a peer with another job key closes the socket)")]
    Socket(#[from] io::Error),
    #[error(
        "the other side greets with {got:02x?}, expected {GREETING:02x?}: no Narrows rank of this version"
    )]
    Greeting { got: [u8; 8] },
    #[error("the other side does not hold this job's key")]
    Key,
    #[error("{what} is {got}, expected {expected}")]
    Mismatch { what: &'static str, got: u32, expected: u32 },
}

/// The side that dialled, expecting to find `to`.
pub async fn dial(socket: &mut TcpStream, me: &Identity, to: u32) -> Result<Peer, HandshakeError> {
    let challenge: [u8; CHALLENGE_BYTES] = read(socket).await?;
    let (greeting, nonce_a) = split::<8, 32>(&challenge);
    if greeting != GREETING {
        return Err(HandshakeError::Greeting { got: greeting });
    }
    let nonce_c = nonce()?;
    let claims = [me.rank, to, me.world, 0].map(u32::to_le_bytes).concat();
    let mut hello = [claims.as_slice(), &me.window_bytes.to_le_bytes(), &nonce_c].concat();
    hello.extend(mac(&me.key, b"hello", &[&nonce_a, &hello]).as_bytes());
    socket.write_all(&hello).await?;
    let welcome: [u8; WELCOME_BYTES] = read(socket).await?;
    let (window, proof) = split::<8, MAC_BYTES>(&welcome);
    if mac(&me.key, b"welcome", &[&nonce_a, &nonce_c, &window]) != proof {
        return Err(HandshakeError::Key);
    }
    let handshake_bytes = (HELLO_BYTES as u64, (CHALLENGE_BYTES + WELCOME_BYTES) as u64);
    Ok(Peer { rank: to, window_bytes: u64::from_le_bytes(window), handshake_bytes })
}

/// The side that was dialled. Says nothing but a nonce until the other side has proven itself.
pub async fn accept(socket: &mut TcpStream, me: &Identity) -> Result<Peer, HandshakeError> {
    let nonce_a = nonce()?;
    socket.write_all(&[GREETING.as_slice(), &nonce_a].concat()).await?;
    let hello: [u8; HELLO_BYTES] = read(socket).await?;
    let (claims, proof) = split::<{ HELLO_BYTES - MAC_BYTES }, MAC_BYTES>(&hello);
    if mac(&me.key, b"hello", &[&nonce_a, &claims]) != proof {
        return Err(HandshakeError::Key);
    }
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| claims[at + i]));
    expect("the rank dialled", word(4), me.rank)?;
    expect("the world size", word(8), me.world)?;
    let peer_window = u64::from_le_bytes(std::array::from_fn(|i| claims[16 + i]));
    let window = me.window_bytes.to_le_bytes();
    let proof = mac(&me.key, b"welcome", &[&nonce_a, &claims[24..], &window]);
    socket.write_all(&[window.as_slice(), proof.as_bytes()].concat()).await?;
    let handshake_bytes = ((CHALLENGE_BYTES + WELCOME_BYTES) as u64, HELLO_BYTES as u64);
    Ok(Peer { rank: word(0), window_bytes: peer_window, handshake_bytes })
}

async fn read<const N: usize>(socket: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn split<const A: usize, const B: usize>(bytes: &[u8]) -> ([u8; A], [u8; B]) {
    assert_eq!(bytes.len(), A + B, "messages have a fixed size");
    (std::array::from_fn(|i| bytes[i]), std::array::from_fn(|i| bytes[A + i]))
}

fn expect(what: &'static str, got: u32, expected: u32) -> Result<(), HandshakeError> {
    if got == expected { Ok(()) } else { Err(HandshakeError::Mismatch { what, got, expected }) }
}

fn mac(key: &JobKey, label: &[u8], parts: &[&[u8]]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key.bytes());
    hasher.update(label);
    for part in parts {
        // Every part has a fixed length, so the concatenation is unambiguous.
        hasher.update(part);
    }
    hasher.finalize()
}

fn nonce() -> io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    let filled = rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())?;
    // The kernel fills requests of up to 256 bytes whole.
    assert_eq!(filled, nonce.len(), "getrandom fills short requests");
    Ok(nonce)
}
