//! The frame: one tensor's sparse pseudo-gradient as self-describing bytes. Little endian.
//!
//! ```text
//!  offset  bytes  field
//!       0      4  magic "NRWS"
//!       4      1  version, 1
//!       5      1  quantiser (`Quantiser`), 1 = two levels
//!       6      1  index coding, 1 = Rice gaps
//!       7      1  chunks per block as a power of two, 6
//!       8      4  values per chunk, 4096
//!      12      4  k: values kept of a full chunk
//!      16      8  elements of the tensor
//!      24      8  bytes of payload
//!      32      4  CRC-32 of the 32 bytes above and the payload
//!      36         payload: per block of 64 chunks the bytes of its stream (u32), then the streams one after another
//! ```
//!
//! A stream is its chunks' bits (`chunk`) without gaps, the last byte filled up with zeros. Blocks are what threads share
//! out; at k = 64 the table costs 0.08 % of the frame. How many values a chunk sends follows from k and its length
//! ([`TopK::kept`]).
//!
//! Bytes from a peer are hostile until [`Frame::parse`] has read them whole: it allocates nothing the length of which it
//! has not proven from the bytes at hand, and what it returns cannot fail later, so [`decode_add`] changes all of its
//! target or nothing. A stream has one valid form only. The CRC finds every burst of up to 32 bits; it proves no origin
//! (the transport's TLS does).
//!
//! Limits: chunk and block size are the constants of this version; another one is refused by name.
//! Not here: which tensor it is, which step, whose (the message around it).

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    bits::{BitReader, BitWriter},
    chunk::{self, ChunkFault, Extractor},
    quantize::Quantiser,
    topk::{CHUNK, TopK},
};

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 36;
/// Most elements that a frame may claim: 4 TiB of f32.
pub const ELEMENTS_MAX: u64 = 1 << 40;

const MAGIC: [u8; 4] = *b"NRWS";
const VERSION: u8 = 1;
const RICE_GAPS: u8 = 1;
const BLOCK_CHUNKS_LOG2: u8 = 6;
/// Elements per block.
pub(crate) const BLOCK: usize = CHUNK << BLOCK_CHUNKS_LOG2;
/// Bytes of a block's entry in the table.
pub(crate) const ENTRY_BYTES: usize = 4;

// Where each field of the header lies.
const VERSION_AT: usize = MAGIC.len();
const QUANTISER_AT: usize = VERSION_AT + 1;
const INDEX_AT: usize = QUANTISER_AT + 1;
const BLOCK_AT: usize = INDEX_AT + 1;
const CHUNK_AT: usize = BLOCK_AT + 1;
const KEPT_AT: usize = CHUNK_AT + size_of::<u32>();
const ELEMENTS_AT: usize = KEPT_AT + size_of::<u32>();
const PAYLOAD_AT: usize = ELEMENTS_AT + size_of::<u64>();
const CHECKSUM_AT: usize = PAYLOAD_AT + size_of::<u64>();
const _: () = assert!(CHUNK_AT == 8 && ELEMENTS_AT == 16 && CHECKSUM_AT == 32);
const _: () = assert!(CHECKSUM_AT + size_of::<u32>() == HEADER_BYTES);
// An entry of the table is a u32: no block may outgrow it, whatever k.
const _: () = assert!(BLOCK * 8 < u32::MAX as usize);

/// Why bytes are no frame, or not one for this target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Fewer bytes than a header.
    #[error("frame header: expected {HEADER_BYTES} bytes, got {got}")]
    HeaderLength {
        /// Bytes at hand.
        got: usize,
    },
    /// Not a frame at all.
    #[error("frame header: expected magic {MAGIC:?}, got {got:?}; these bytes are no sparse frame")]
    Magic {
        /// The first four bytes.
        got: [u8; 4],
    },
    /// A field holds what this version does not know.
    #[error(
        "frame header: {field} is {got}, this build reads {expected}; run the same release on every rank"
    )]
    Unsupported {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        got: u32,
        /// What can be read.
        expected: u32,
    },
    /// k is not 1 to the chunk length.
    #[error("frame header: k is {got}, expected 1 to {CHUNK}")]
    Kept {
        /// The k of the header.
        got: u32,
    },
    /// More elements than any tensor has.
    #[error("frame header: {got} elements, at most {ELEMENTS_MAX}")]
    TooManyElements {
        /// The count of the header.
        got: u64,
    },
    /// A payload length that no frame of this k and element count can have.
    #[error("frame header: payload of {got} bytes, expected {} to {}", possible.start(), possible.end())]
    PayloadLength {
        /// The length of the header.
        got: u64,
        /// The lengths that are possible.
        possible: std::ops::RangeInclusive<u64>,
    },
    /// The bytes do not end where the header says.
    #[error("frame: header claims {expected} bytes, got {got}")]
    Length {
        /// Header and payload by the header.
        expected: usize,
        /// Bytes at hand.
        got: usize,
    },
    /// Damaged on the way.
    #[error("frame: checksum {got:#010x}, header says {expected:#010x}; the bytes were damaged on the way")]
    Checksum {
        /// By the header.
        expected: u32,
        /// Of the bytes.
        got: u32,
    },
    /// The lengths in the table do not sum to the payload.
    #[error("frame: table claims {expected} bytes of streams, payload has {got}")]
    Table {
        /// Sum of the table.
        expected: u64,
        /// Payload less table.
        got: usize,
    },
    /// A stream that no encoder writes.
    #[error("frame: block {block} of {blocks}: {fault}")]
    Block {
        /// Which block.
        block: usize,
        /// Of how many.
        blocks: usize,
        /// What is wrong with it.
        fault: BlockFault,
    },
    /// A frame for another tensor.
    #[error("frame of {frame} elements added to a tensor of {target}")]
    Elements {
        /// Elements of the frame.
        frame: usize,
        /// Elements of the target.
        target: usize,
    },
}

/// What is wrong with a block's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockFault {
    /// Levels of a chunk not finite, negative or out of order.
    #[error("levels of a chunk are not 0 <= low <= high < inf")]
    Levels,
    /// An index past the end of its chunk.
    #[error("an index lies past the end of its chunk")]
    Index,
    /// The stream is longer or shorter than its chunks.
    #[error("the stream does not end with its last chunk")]
    End,
}

/// A header that may belong to a frame: every field is in range, the payload has not been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How values are coded.
    pub quantiser: Quantiser,
    /// Values kept of each chunk.
    pub top_k: TopK,
    elements: usize,
    payload_bytes: usize,
    checksum: u32,
}

impl Header {
    /// Reads the first [`HEADER_BYTES`] of `bytes`; what follows may be missing still.
    ///
    /// # Errors
    /// [`FrameError`] naming the field that is out of range.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let bytes: &[u8; HEADER_BYTES] =
            bytes.first_chunk().ok_or(FrameError::HeaderLength { got: bytes.len() })?;
        let magic = field(bytes, 0);
        if magic != MAGIC {
            return Err(FrameError::Magic { got: magic });
        }
        let u32_at = |at| u32::from_le_bytes(field(bytes, at));
        supported("version", bytes[VERSION_AT].into(), VERSION.into())?;
        let quantiser = Quantiser::from_tag(bytes[QUANTISER_AT]).ok_or(FrameError::Unsupported {
            field: "quantiser",
            got: bytes[QUANTISER_AT].into(),
            expected: Quantiser::TwoLevel as u32,
        })?;
        supported("index coding", bytes[INDEX_AT].into(), RICE_GAPS.into())?;
        supported("log2 of chunks per block", bytes[BLOCK_AT].into(), BLOCK_CHUNKS_LOG2.into())?;
        supported("values per chunk", u32_at(CHUNK_AT), CHUNK as u32)?;
        let kept = u32_at(KEPT_AT);
        let top_k = TopK::new(kept as usize).map_err(|_| FrameError::Kept { got: kept })?;
        let elements = u64::from_le_bytes(field(bytes, ELEMENTS_AT));
        if elements > ELEMENTS_MAX {
            return Err(FrameError::TooManyElements { got: elements });
        }
        let payload = u64::from_le_bytes(field(bytes, PAYLOAD_AT));
        let possible = payload_bytes_min(elements, top_k)..=payload_bytes_max(elements, top_k);
        if !possible.contains(&payload) {
            return Err(FrameError::PayloadLength { got: payload, possible });
        }
        Ok(Self {
            quantiser,
            top_k,
            elements: elements as usize,
            payload_bytes: payload as usize,
            checksum: u32_at(CHECKSUM_AT),
        })
    }

    /// Elements of the tensor.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Bytes of the whole frame, this header included.
    pub fn frame_len(&self) -> usize {
        HEADER_BYTES + self.payload_bytes
    }

    fn blocks(&self) -> usize {
        self.elements.div_ceil(BLOCK)
    }

    /// Elements of block `block`.
    fn range(&self, block: usize) -> Range<usize> {
        block * BLOCK..self.elements.min((block + 1) * BLOCK)
    }

    fn write(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&MAGIC);
        into.extend_from_slice(&[VERSION, self.quantiser as u8, RICE_GAPS, BLOCK_CHUNKS_LOG2]);
        into.extend_from_slice(&(CHUNK as u32).to_le_bytes());
        into.extend_from_slice(&(self.top_k.per_chunk() as u32).to_le_bytes());
        into.extend_from_slice(&(self.elements as u64).to_le_bytes());
        into.extend_from_slice(&(self.payload_bytes as u64).to_le_bytes());
        into.extend_from_slice(&self.checksum.to_le_bytes());
    }
}

/// A frame read whole and found sound, borrowed from its bytes.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    header: Header,
    /// One per block.
    streams: Vec<&'a [u8]>,
}

impl<'a> Frame<'a> {
    /// Checks `bytes`, which must be one frame and nothing else.
    ///
    /// # Errors
    /// [`FrameError`]; never panics, whatever the bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let header = Header::parse(bytes)?;
        if bytes.len() != header.frame_len() {
            return Err(FrameError::Length { expected: header.frame_len(), got: bytes.len() });
        }
        let payload = &bytes[HEADER_BYTES..];
        let got = checksum(&bytes[..CHECKSUM_AT], payload);
        if got != header.checksum {
            return Err(FrameError::Checksum { expected: header.checksum, got });
        }
        let frame = Self { header, streams: streams(payload, header.blocks())? };
        frame.check_blocks()?;
        Ok(frame)
    }

    /// The frame's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// `into[i] += weight * value` for every value of the frame.
    ///
    /// # Errors
    /// [`FrameError::Elements`] if `into` is not as long as the tensor was; then nothing is added.
    pub fn add_to(&self, weight: f32, into: &mut [f32]) -> Result<(), FrameError> {
        if into.len() != self.header.elements {
            return Err(FrameError::Elements { frame: self.header.elements, target: into.len() });
        }
        let add = |(block, into): (usize, &mut [f32])| {
            self.sound_block(block, |index, value| into[index] += weight * value);
        };
        match self.streams.len() {
            0 | 1 => into.chunks_mut(BLOCK).enumerate().for_each(add),
            _ => into.par_chunks_mut(BLOCK).enumerate().for_each(add),
        }
        Ok(())
    }

    /// Hands every sent (index, value) to `each`, by ascending index; to count senders per coordinate, for one.
    pub fn for_each(&self, mut each: impl FnMut(usize, f32)) {
        for block in 0..self.streams.len() {
            self.sound_block(block, |index, value| each(block * BLOCK + index, value));
        }
    }

    fn sound_block(&self, block: usize, each: impl FnMut(usize, f32)) {
        self.read_block(block, each).expect("`parse` has read this very block");
    }

    fn check_blocks(&self) -> Result<(), FrameError> {
        let blocks = self.streams.len();
        let check = |block| self.read_block(block, |_, _| ()).err().map(|fault| (block, fault));
        let first = match blocks {
            0 | 1 => (0..blocks).find_map(check),
            _ => (0..blocks).into_par_iter().find_map_first(check),
        };
        first.map_or(Ok(()), |(block, fault)| Err(FrameError::Block { block, blocks, fault }))
    }

    fn read_block(&self, block: usize, mut each: impl FnMut(usize, f32)) -> Result<(), BlockFault> {
        let mut bits = BitReader::new(self.streams[block]);
        let elements = self.header.range(block).len();
        for start in (0..elements).step_by(CHUNK) {
            let len = CHUNK.min(elements - start);
            let kept = self.header.top_k.kept(len);
            chunk::read(&mut bits, len, kept, |index, value| each(start + index, value))?;
        }
        if bits.is_spent() { Ok(()) } else { Err(BlockFault::End) }
    }
}

/// Checks `frame` and adds `weight` times its values to `into`, no dense tensor between.
///
/// # Errors
/// [`FrameError`]; then `into` is as before.
pub fn decode_add(frame: &[u8], weight: f32, into: &mut [f32]) -> Result<(), FrameError> {
    Frame::parse(frame)?.add_to(weight, into)
}

/// Moves the top k of `values` into a frame: what the frame says is subtracted from them.
///
/// `prepare(at, chunk)` is called on each chunk (first element `at` of `values`) just before, and must leave it finite.
pub(crate) fn extract(
    values: &mut [f32],
    top_k: TopK,
    prepare: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<u8> {
    let elements = values.len();
    let block = |(index, values): (usize, &mut [f32])| {
        extract_block(values, top_k, |at, chunk| prepare(index * BLOCK + at, chunk))
    };
    let streams: Vec<Vec<u8>> = match elements.div_ceil(BLOCK) {
        0 | 1 => values.chunks_mut(BLOCK).enumerate().map(block).collect(),
        _ => values.par_chunks_mut(BLOCK).enumerate().map(block).collect(),
    };
    assemble(elements, top_k, &streams)
}

fn extract_block(values: &mut [f32], top_k: TopK, prepare: impl Fn(usize, &mut [f32])) -> Vec<u8> {
    let mut bits = BitWriter::with_room(block_bits_max(values.len(), top_k) as usize);
    let mut extractor = Extractor::new();
    for (index, chunk) in values.chunks_mut(CHUNK).enumerate() {
        prepare(index * CHUNK, chunk);
        extractor.extract(chunk, top_k.kept(chunk.len()), &mut bits);
    }
    bits.finish()
}

fn assemble(elements: usize, top_k: TopK, streams: &[Vec<u8>]) -> Vec<u8> {
    let payload_bytes = streams.iter().map(|stream| ENTRY_BYTES + stream.len()).sum();
    let mut header = Header { quantiser: Quantiser::TwoLevel, top_k, elements, payload_bytes, checksum: 0 };
    let mut frame = Vec::with_capacity(header.frame_len());
    header.write(&mut frame);
    for stream in streams {
        frame.extend_from_slice(&(stream.len() as u32).to_le_bytes());
    }
    for stream in streams {
        frame.extend_from_slice(stream);
    }
    header.checksum = checksum(&frame[..CHECKSUM_AT], &frame[HEADER_BYTES..]);
    frame[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&header.checksum.to_le_bytes());
    frame
}

/// Cuts the payload into the streams of its table.
fn streams(payload: &[u8], blocks: usize) -> Result<Vec<&[u8]>, FrameError> {
    // The header's smallest possible payload counts the table, so it lies within.
    let (table, mut rest) = payload.split_at(blocks * ENTRY_BYTES);
    let lengths = || table.as_chunks::<ENTRY_BYTES>().0.iter().map(|entry| u32::from_le_bytes(*entry));
    let expected = lengths().map(u64::from).sum();
    if expected != rest.len() as u64 {
        return Err(FrameError::Table { expected, got: rest.len() });
    }
    let cut = |length: u32| rest.split_off(..length as usize).expect("the lengths sum to the rest");
    Ok(lengths().map(cut).collect())
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("the layout keeps fields within the header")
}

fn supported(field: &'static str, got: u32, expected: u32) -> Result<(), FrameError> {
    if got == expected { Ok(()) } else { Err(FrameError::Unsupported { field, got, expected }) }
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(payload);
    crc.finalize()
}

/// Bytes that the payload of a frame can take at most.
pub(crate) fn payload_bytes_max(elements: u64, top_k: TopK) -> u64 {
    let (full, rest) = (elements / BLOCK as u64, (elements % BLOCK as u64) as usize);
    let block = |elements: usize| ENTRY_BYTES as u64 + block_bits_max(elements, top_k).div_ceil(8);
    full * block(BLOCK) + if rest > 0 { block(rest) } else { 0 }
}

/// Bytes that it takes at least: every gap zero. A little less, in fact: it leaves out what fills up the last byte.
fn payload_bytes_min(elements: u64, top_k: TopK) -> u64 {
    let bits = elements.div_ceil(CHUNK as u64) * 32 + top_k.kept_of(elements) * 3;
    elements.div_ceil(BLOCK as u64) * ENTRY_BYTES as u64 + bits / 8
}

fn block_bits_max(elements: usize, top_k: TopK) -> u64 {
    let bits = |len: usize| chunk::bits_max(len, top_k.kept(len)) as u64;
    let (full, rest) = ((elements / CHUNK) as u64, elements % CHUNK);
    full * bits(CHUNK) + if rest > 0 { bits(rest) } else { 0 }
}

impl From<ChunkFault> for BlockFault {
    fn from(fault: ChunkFault) -> Self {
        match fault {
            ChunkFault::Levels => Self::Levels,
            ChunkFault::Index => Self::Index,
        }
    }
}

#[cfg(test)]
mod tests;
