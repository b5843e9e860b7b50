//! Collectives of the first version: direct exchange over a full mesh of links.
//!
//! ```text
//!   all-gather    every member sends its frame to every other            (n-1) * bytes out, the same in
//!   all-reduce    reduce-scatter then all-gather, both direct            2 (n-1)/n * bytes out, the same in
//! ```
//!
//! Both move the bytes of a ring (all-reduce) with two latencies in place of 2 (n-1); they want a link between every two
//! members and rates that are not too unlike. Sums are taken in the order of `group` by one owner per shard, who sends
//! the result to all: every member ends with the same bits.
//!
//! `group` lists the members, this rank among them, in the same order on every member. Concurrent collectives need
//! distinct tags; one after another may share a tag.
//!
//! On failure the caller's data is as it was before the call; messages of this collective may still be on their way, so
//! give the tag up (a new epoch has new tags). Whether the *others* have completed is unknown to the one that failed:
//! [`Mesh::abort`] makes them fail too.
//!
//! Not here: rings and trees over unlike rates, compression (frames are opaque), retrying.

use crate::link::{LinkError, Tag};
use crate::mesh::Mesh;
use bytes::Bytes;
use std::ops::Range;
use std::time::Instant;

/// Gathers one frame of each member, in the order of `group`; frames may differ in length.
pub fn all_gather_frames(
    mesh: &Mesh,
    group: &[u32],
    tag: Tag,
    mine: &[u8],
    deadline: Instant,
) -> Result<Vec<Vec<u8>>, CollectiveError> {
    let me = position(mesh, group)?;
    let shared = Bytes::copy_from_slice(mine);
    for peer in others(group, me) {
        mesh.send(peer, tag, shared.clone())?;
    }
    group.iter().map(|&member| gather_one(mesh, member, tag, mine, deadline)).collect()
}

/// Adds up `data` of all members, elementwise; every member ends with the same bits. `data` has the same length on
/// every member and is changed only on success.
pub fn all_reduce_direct(
    mesh: &Mesh,
    group: &[u32],
    tag: Tag,
    data: &mut [f32],
    deadline: Instant,
) -> Result<(), CollectiveError> {
    let me = position(mesh, group)?;
    for (owner, peer) in group.iter().enumerate().filter(|(owner, _)| *owner != me) {
        mesh.send(*peer, tag, to_bytes(&data[shard(data.len(), group.len(), owner)]))?;
    }
    let sum = reduce_shard(mesh, group, tag, &data[shard(data.len(), group.len(), me)], deadline)?;
    let shared = Bytes::from(to_bytes(&sum));
    for peer in others(group, me) {
        mesh.send(peer, tag, shared.clone())?;
    }
    let sums = gather_shards(mesh, group, tag, data.len(), sum, deadline)?;
    data.copy_from_slice(&sums);
    Ok(())
}

/// Returns once every member has called it.
pub fn barrier(mesh: &Mesh, group: &[u32], tag: Tag, deadline: Instant) -> Result<(), CollectiveError> {
    all_gather_frames(mesh, group, tag, &[], deadline).map(drop)
}

/// The elements of `length` that member `index` of `members` owns: as even as can be, the longer ones first.
pub fn shard(length: usize, members: usize, index: usize) -> Range<usize> {
    let (each, longer) = (length / members, length % members);
    let start = index * each + index.min(longer);
    start..start + each + usize::from(index < longer)
}

/// Why a collective failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CollectiveError {
    /// A link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// This rank is not one of the group.
    #[error("rank {rank} called a collective of {group:?}, of which it is no member")]
    NotMember {
        /// This rank.
        rank: u32,
        /// The group it gave.
        group: Vec<u32>,
    },
    /// A member came with another length.
    #[error(
        "all-reduce, tag {tag}: rank {peer} sent {got_bytes} B for a shard, expected {expected_bytes} B; every member must give as many values"
    )]
    Length {
        /// The other member.
        peer: u32,
        /// Of the collective.
        tag: Tag,
        /// By this rank's length.
        expected_bytes: usize,
        /// By the peer's.
        got_bytes: usize,
    },
}

fn position(mesh: &Mesh, group: &[u32]) -> Result<usize, CollectiveError> {
    let rank = mesh.rank();
    let found = group.iter().position(|&member| member == rank);
    found.ok_or_else(|| CollectiveError::NotMember { rank, group: group.to_vec() })
}

/// The other members, each rank beginning with the one after itself: no member is everyone's first.
fn others(group: &[u32], me: usize) -> impl Iterator<Item = u32> {
    (1..group.len()).map(move |i| group[(me + i) % group.len()])
}

fn gather_one(
    mesh: &Mesh,
    member: u32,
    tag: Tag,
    mine: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, CollectiveError> {
    if member == mesh.rank() {
        return Ok(mine.to_vec());
    }
    let mut frame = Vec::new();
    mesh.recv(member, tag, &mut frame, deadline)?;
    Ok(frame)
}

/// This rank's shard, summed over the members in the order of the group.
fn reduce_shard(
    mesh: &Mesh,
    group: &[u32],
    tag: Tag,
    mine: &[f32],
    deadline: Instant,
) -> Result<Vec<f32>, CollectiveError> {
    let mut sum = vec![0.0f32; mine.len()];
    let mut frame = Vec::new();
    for (i, &member) in group.iter().enumerate() {
        // The first is copied, not added to zero: 0.0 + -0.0 would lose its sign.
        let combine = |old: f32, new: f32| if i == 0 { new } else { old + new };
        if member == mesh.rank() {
            sum.iter_mut().zip(mine).for_each(|(sum, &value)| *sum = combine(*sum, value));
        } else {
            receive_shard(mesh, member, tag, mine.len(), &mut frame, deadline)?;
            sum.iter_mut().zip(values(&frame)).for_each(|(sum, value)| *sum = combine(*sum, value));
        }
    }
    Ok(sum)
}

/// All shards in order: `mine` and what the other owners send.
fn gather_shards(
    mesh: &Mesh,
    group: &[u32],
    tag: Tag,
    length: usize,
    mine: Vec<f32>,
    deadline: Instant,
) -> Result<Vec<f32>, CollectiveError> {
    let mut sums = Vec::with_capacity(length);
    let mut frame = Vec::new();
    for (owner, &member) in group.iter().enumerate() {
        if member == mesh.rank() {
            sums.extend_from_slice(&mine);
        } else {
            receive_shard(mesh, member, tag, shard(length, group.len(), owner).len(), &mut frame, deadline)?;
            sums.extend(values(&frame));
        }
    }
    Ok(sums)
}

fn receive_shard(
    mesh: &Mesh,
    peer: u32,
    tag: Tag,
    length: usize,
    frame: &mut Vec<u8>,
    deadline: Instant,
) -> Result<(), CollectiveError> {
    mesh.recv(peer, tag, frame, deadline)?;
    let expected_bytes = length * size_of::<f32>();
    if frame.len() != expected_bytes {
        return Err(CollectiveError::Length { peer, tag, expected_bytes, got_bytes: frame.len() });
    }
    Ok(())
}

const _: () = assert!(cfg!(target_endian = "little"), "values cross the wire in little-endian order");

fn to_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn values(frame: &[u8]) -> impl Iterator<Item = f32> {
    frame.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_every_element_once_and_evenly() {
        for (length, members) in [(0, 1), (0, 3), (2, 3), (7, 3), (1024, 5)] {
            let shards: Vec<_> = (0..members).map(|i| shard(length, members, i)).collect();
            assert_eq!(shards.iter().cloned().flatten().collect::<Vec<_>>(), (0..length).collect::<Vec<_>>());
            let lengths = shards.iter().map(|s| s.len());
            assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
        }
    }
}
