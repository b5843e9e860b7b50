//! SparseLoCo: every H steps, the error-fed top-k of how far each replica moved (arXiv 2508.15706; the average and
//! the order of the error feedback as in Covenant-72B, equations 1 and 2).
//!
//! ```text
//!   delta_r  = theta - theta_r                    theta: equal on all replicas since the last exchange
//!   frame_r  = Q(TopK(beta e_r + delta_r))        e_r keeps what was not sent, quantisation error included
//!   theta   <- theta - alpha * sum_r w_r frame_r  in replica order: the same bits everywhere
//! ```
//! `w_r` is replica r's share of the tokens: 1 / R where replicas are alike, as in the papers; less for a replica that
//! sees fewer tokens a step, whose movement is noisier for it (Decoupled DiLoCo, arXiv 2604.21428, weighs so too).
//!
//! On the wire, to each peer: the frames of the units it shares, each behind its length (u32, little-endian).
//! All sends are handed over before the first receive, so the slowest link sets the time, not their sum.

use std::time::{Duration, Instant};

use narrows_compress::error_feedback::ErrorFeedback;
use narrows_compress::frame::{FrameError, decode_add};
use narrows_compress::topk::TopK;
use narrows_transport::link::{LinkError, Tag};
use narrows_transport::mesh::Mesh;

use super::Ownership;

/// The exchange's state on one rank.
pub struct Sparse {
    /// Parameters as of the last exchange: the theta of the formula.
    pub start: Vec<f32>,
    /// One error-feedback buffer a unit.
    pub feedback: Vec<ErrorFeedback>,
    top_k: TopK,
    outer_rate: f32,
    /// By replica: its share of the tokens.
    shares: Vec<f32>,
    incoming: Vec<Vec<u8>>,
    sum: Vec<f32>,
}

/// How pseudo-gradients become an outer step.
#[derive(Debug, Clone, PartialEq)]
pub struct Outer {
    /// Values kept of every 4096.
    pub top_k: TopK,
    /// Decay of the error feedback (beta).
    pub decay: f32,
    /// Outer learning rate (alpha).
    pub outer_rate: f32,
    /// By replica: its share of the tokens; they sum to 1.
    pub shares: Vec<f32>,
}

/// What an exchange sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes that the codec produced for one peer.
    pub codec_bytes: u64,
}

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum SparseError {
    /// A peer or the network.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Values that cannot be sent: training has diverged.
    #[error(
        "unit {unit}: its pseudo-gradient cannot be coded: {cause}\n  hint: the loss has diverged; lower the learning rate"
    )]
    Diverged {
        /// Which unit.
        unit: String,
        /// What the codec says.
        cause: String,
    },
    /// A peer's message is not what the plan says.
    #[error("rank {peer}: its message for unit {unit} does not parse: {cause}")]
    Frame {
        /// Sender.
        peer: u32,
        /// Which unit.
        unit: String,
        /// What is wrong.
        cause: String,
    },
}

impl Sparse {
    /// Starts from `parameters`, equal on all replicas.
    pub fn new(ownership: &Ownership, parameters: &[f32], outer: &Outer) -> Self {
        let &Outer { top_k, decay, outer_rate, ref shares } = outer;
        let feedback = ownership
            .units
            .iter()
            .map(|u| {
                ErrorFeedback::new(u.range.len(), decay).expect("settings hold the decay within 0 and 1")
            })
            .collect();
        let longest = ownership.units.iter().map(|u| u.range.len()).max().unwrap_or(0);
        Self {
            start: parameters.to_vec(),
            feedback,
            top_k,
            outer_rate,
            shares: shares.clone(),
            incoming: vec![Vec::new(); ownership.peers().len()],
            sum: vec![0.0; longest],
        }
    }

    /// Exchanges and sets `parameters` (and the next round's start) to the new theta. Returns bytes by peer.
    pub fn exchange(
        &mut self,
        ownership: &Ownership,
        mesh: &Mesh,
        tag: Tag,
        wait: Duration,
        parameters: &mut [f32],
    ) -> Result<Vec<(u32, Sent)>, SparseError> {
        let frames = self.compress(ownership, parameters)?;
        let peers = ownership.peers();
        let mut sent = Vec::new();
        for (&peer, units) in &peers {
            let message = pack(units.iter().map(|&u| frames[u].as_slice()));
            let codec_bytes = units.iter().map(|&u| frames[u].len() as u64).sum();
            mesh.send(peer, tag, message)?;
            sent.push((peer, Sent { codec_bytes }));
        }
        let deadline = Instant::now() + wait;
        for (buffer, &peer) in self.incoming.iter_mut().zip(peers.keys()) {
            mesh.recv(peer, tag, buffer, deadline)?;
        }
        self.apply(ownership, &frames, parameters)?;
        Ok(sent)
    }

    fn compress(&mut self, ownership: &Ownership, parameters: &[f32]) -> Result<Vec<Vec<u8>>, SparseError> {
        let frames = ownership.units.iter().zip(&mut self.feedback).map(|(unit, feedback)| {
            let (start, now) = (&self.start[unit.range.clone()], &parameters[unit.range.clone()]);
            let delta: Vec<f32> = start.iter().zip(now).map(|(s, n)| s - n).collect();
            feedback
                .compress(&delta, self.top_k)
                .map_err(|e| SparseError::Diverged { unit: unit.name.clone(), cause: e.to_string() })
        });
        frames.collect()
    }

    /// Decodes every owner's frame in replica order and takes the outer step.
    fn apply(
        &mut self,
        ownership: &Ownership,
        mine: &[Vec<u8>],
        parameters: &mut [f32],
    ) -> Result<(), SparseError> {
        let peers = ownership.peers();
        let mut theirs: Vec<(u32, Unpack<'_>)> =
            peers.keys().zip(&self.incoming).map(|(&peer, bytes)| (peer, Unpack(bytes))).collect();
        for (index, unit) in ownership.units.iter().enumerate() {
            let sum = &mut self.sum[..unit.range.len()];
            sum.fill(0.0);
            for (&owner, &share) in unit.owners.iter().zip(&self.shares) {
                let bad = |cause: String| SparseError::Frame { peer: owner, unit: unit.name.clone(), cause };
                let frame = if owner == ownership.rank {
                    mine[index].as_slice()
                } else {
                    let (_, rest) = theirs.iter_mut().find(|(p, _)| *p == owner).expect("owners are peers");
                    rest.next().ok_or_else(|| bad("the message ends early".into()))?
                };
                decode_add(frame, share, sum).map_err(|e: FrameError| bad(e.to_string()))?;
            }
            let start = &mut self.start[unit.range.clone()];
            for (theta, change) in start.iter_mut().zip(&*sum) {
                *theta -= self.outer_rate * change;
            }
            parameters[unit.range.clone()].copy_from_slice(start);
        }
        Ok(())
    }
}

fn pack<'a>(frames: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut message = Vec::new();
    for frame in frames {
        message.extend((frame.len() as u32).to_le_bytes());
        message.extend(frame);
    }
    message
}

/// Takes frames off the front of a message.
struct Unpack<'a>(&'a [u8]);

impl<'a> Iterator for Unpack<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let (frame, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        self.0 = rest;
        Some(frame)
    }
}
