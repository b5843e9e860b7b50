//! Bytes <-> frame header.
//!
//! Everything on a link is a frame: a header of 56 bytes and, for some kinds, payload. Little-endian:
//!
//! ```text
//!   0  magic        4   "NRW1"
//!   4  kind         1   1 chunk, 2 granted chunk, 3 offer, 4 grant, 5 credit, 6 goodbye, 7 abort
//!   5  zero         3
//!   8  tag          8   chunk, offer
//!  16  serial       8   number of the message on this link and direction: chunk, offer, grant
//!  24  message      8   its whole length, bytes: chunk, offer
//!  32  offset       8   where the chunk starts in it: chunk; bytes returned: credit
//!  40  deliver_at   8   CLOCK_MONOTONIC ns before which it counts as not yet arrived, 0 without emulation: chunk
//!  48  payload      4   bytes that follow the header: chunk, abort (a reason in UTF-8)
//!  52  crc32        4   IEEE, over bytes 0..52
//! ```
//!
//! Fields that a kind does not use are zero. Parsing is total: any 56 bytes give a frame or an error, and a frame that
//! parsed encodes to the same bytes. The checksum is there to name a broken stream, not to resist an attacker (the
//! handshake's key does that; TLS will).
//!
//! Not here: whether a frame makes sense now (`flow`).

use super::Tag;

pub const HEADER_BYTES: usize = 56;
/// Longest reason that an abort carries, bytes.
pub const REASON_BYTES_MAX: u32 = 1024;

const MAGIC: [u8; 4] = *b"NRW1";
const CRC_AT: usize = 52;
const _: () = assert!(CRC_AT + 4 == HEADER_BYTES);

/// A parsed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Part of a message; `payload_bytes` follow.
    Chunk(Chunk),
    /// The sender has this message but no credit for it.
    Offer { tag: Tag, serial: u64, message_bytes: u64 },
    /// The receiver waits for this message: send it without credit.
    Grant { serial: u64 },
    /// So many bytes of the window are free again.
    Credit { bytes: u64 },
    /// The last frame of an orderly sender.
    Goodbye,
    /// The sender gives up; the reason follows.
    Abort { payload_bytes: u32 },
}

/// Part of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub tag: Tag,
    pub serial: u64,
    pub message_bytes: u64,
    pub offset: u64,
    pub payload_bytes: u32,
    pub deliver_at_ns: u64,
    pub charge: Charge,
}

/// Who pays for a chunk's room at the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// The window.
    Window,
    /// The receive that waits for it.
    Granted,
}

impl Chunk {
    /// What a chunk takes out of the window: payload and header, so that empty messages are not free.
    pub fn cost_bytes(&self) -> u64 {
        u64::from(self.payload_bytes) + HEADER_BYTES as u64
    }

    /// Whether it completes its message.
    pub fn is_last(&self) -> bool {
        self.offset + u64::from(self.payload_bytes) == self.message_bytes
    }
}

/// What a header may claim.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest message.
    pub message_bytes: u64,
    /// Longest payload of one frame.
    pub payload_bytes: u32,
}

/// What is wrong with a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame starts with {got:02x?}, expected {MAGIC:02x?}")]
    Magic { got: [u8; 4] },
    #[error("header checksum {got:08x}, expected {expected:08x}")]
    Checksum { got: u32, expected: u32 },
    #[error("unknown frame kind {got}, expected 1 to 7")]
    Kind { got: u8 },
    #[error("a field that its kind does not use is not zero")]
    Stray,
    #[error("{field} is {got} B, at most {limit} B are taken")]
    TooLong { field: &'static str, got: u64, limit: u64 },
    #[error("a chunk of {payload} B at offset {offset} of a message of {message} B")]
    Overrun { offset: u64, payload: u32, message: u64 },
}

impl Frame {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        Fields::of(self).encode()
    }

    pub fn parse(header: &[u8; HEADER_BYTES], limits: &Limits) -> Result<Frame, FrameError> {
        let fields = Fields::decode(header)?;
        let frame = fields.frame(limits)?;
        // One check for all kinds: what the frame does not hold must have been zero.
        if Fields::of(&frame) != fields {
            return Err(FrameError::Stray);
        }
        Ok(frame)
    }
}

/// The header's fields, of whatever kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fields {
    kind: u8,
    tag: u64,
    serial: u64,
    message: u64,
    offset: u64,
    deliver_at: u64,
    payload: u32,
}

impl Fields {
    fn of(frame: &Frame) -> Fields {
        match *frame {
            Frame::Chunk(chunk) => Fields {
                kind: if chunk.charge == Charge::Window { 1 } else { 2 },
                tag: chunk.tag.0,
                serial: chunk.serial,
                message: chunk.message_bytes,
                offset: chunk.offset,
                deliver_at: chunk.deliver_at_ns,
                payload: chunk.payload_bytes,
            },
            Frame::Offer { tag, serial, message_bytes } => {
                Fields { kind: 3, tag: tag.0, serial, message: message_bytes, ..Fields::default() }
            }
            Frame::Grant { serial } => Fields { kind: 4, serial, ..Fields::default() },
            Frame::Credit { bytes } => Fields { kind: 5, offset: bytes, ..Fields::default() },
            Frame::Goodbye => Fields { kind: 6, ..Fields::default() },
            Frame::Abort { payload_bytes } => Fields { kind: 7, payload: payload_bytes, ..Fields::default() },
        }
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&MAGIC);
        header[4] = self.kind;
        let words = [self.tag, self.serial, self.message, self.offset, self.deliver_at];
        for (bytes, word) in header[8..48].chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        header[48..52].copy_from_slice(&self.payload.to_le_bytes());
        let crc = crc32(&header[..CRC_AT]);
        header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    fn decode(header: &[u8; HEADER_BYTES]) -> Result<Fields, FrameError> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let magic: [u8; 4] = std::array::from_fn(|i| header[i]);
        if magic != MAGIC {
            return Err(FrameError::Magic { got: magic });
        }
        let (got, expected) = (u32_at(CRC_AT), crc32(&header[..CRC_AT]));
        if got != expected {
            return Err(FrameError::Checksum { got, expected });
        }
        if header[5..8] != [0; 3] {
            return Err(FrameError::Stray);
        }
        Ok(Fields {
            kind: header[4],
            tag: u64_at(8),
            serial: u64_at(16),
            message: u64_at(24),
            offset: u64_at(32),
            deliver_at: u64_at(40),
            payload: u32_at(48),
        })
    }

    fn frame(&self, limits: &Limits) -> Result<Frame, FrameError> {
        let tag = Tag(self.tag);
        within("message", self.message, limits.message_bytes)?;
        within("payload", self.payload.into(), limits.payload_bytes.into())?;
        match self.kind {
            1 => self.chunk(Charge::Window),
            2 => self.chunk(Charge::Granted),
            3 => Ok(Frame::Offer { tag, serial: self.serial, message_bytes: self.message }),
            4 => Ok(Frame::Grant { serial: self.serial }),
            5 => Ok(Frame::Credit { bytes: self.offset }),
            6 => Ok(Frame::Goodbye),
            7 => {
                within("reason", self.payload.into(), REASON_BYTES_MAX.into())?;
                Ok(Frame::Abort { payload_bytes: self.payload })
            }
            got => Err(FrameError::Kind { got }),
        }
    }

    fn chunk(&self, charge: Charge) -> Result<Frame, FrameError> {
        let end = self.offset.checked_add(self.payload.into());
        // An empty chunk is a whole empty message: anything else would make no progress.
        let idle = self.payload == 0 && self.message != 0;
        if idle || end.is_none_or(|end| end > self.message) {
            return Err(FrameError::Overrun {
                offset: self.offset,
                payload: self.payload,
                message: self.message,
            });
        }
        Ok(Frame::Chunk(Chunk {
            tag: Tag(self.tag),
            serial: self.serial,
            message_bytes: self.message,
            offset: self.offset,
            payload_bytes: self.payload,
            deliver_at_ns: self.deliver_at,
            charge,
        }))
    }
}

fn within(field: &'static str, got: u64, limit: u64) -> Result<(), FrameError> {
    if got > limit { Err(FrameError::TooLong { field, got, limit }) } else { Ok(()) }
}

/// CRC-32 (IEEE 802.3, reflected, polynomial 0xEDB88320).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| (crc >> 8) ^ CRC_TABLE[((crc ^ u32::from(byte)) & 0xff) as usize])
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { message_bytes: 1 << 40, payload_bytes: 1 << 20 };

    fn frames() -> impl Strategy<Value = Frame> {
        let charge = prop_oneof![Just(Charge::Window), Just(Charge::Granted)];
        let chunk =
            (any::<u64>(), any::<u64>(), 0..1u64 << 39, 1..1u32 << 20, 0..1u64 << 20, any::<u64>(), charge);
        prop_oneof![
            chunk.prop_map(|(tag, serial, offset, payload_bytes, rest, deliver_at_ns, charge)| {
                let message_bytes = offset + u64::from(payload_bytes) + rest;
                let tag = Tag(tag);
                Frame::Chunk(Chunk {
                    tag,
                    serial,
                    message_bytes,
                    offset,
                    payload_bytes,
                    deliver_at_ns,
                    charge,
                })
            }),
            (any::<u64>(), any::<u64>(), 0..1u64 << 40).prop_map(|(tag, serial, message_bytes)| {
                Frame::Offer { tag: Tag(tag), serial, message_bytes }
            }),
            any::<u64>().prop_map(|serial| Frame::Grant { serial }),
            any::<u64>().prop_map(|bytes| Frame::Credit { bytes }),
            Just(Frame::Goodbye),
            (0..=REASON_BYTES_MAX).prop_map(|payload_bytes| Frame::Abort { payload_bytes }),
        ]
    }

    proptest! {
        #[test]
        fn every_frame_survives_the_wire(frame in frames()) {
            prop_assert_eq!(Frame::parse(&frame.encode(), &LIMITS), Ok(frame));
        }

        #[test]
        fn a_flipped_bit_is_noticed(frame in frames(), bit in 0..HEADER_BYTES * 8) {
            let mut header = frame.encode();
            header[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Frame::parse(&header, &LIMITS).is_err());
        }

        /// Headers with a right magic and checksum around arbitrary fields: what random bytes would never reach.
        #[test]
        fn what_parses_encodes_to_the_same_bytes(mut header in prop::array::uniform::<_, HEADER_BYTES>(any::<u8>()),
                                                 kind in 0..9u8, sparse in any::<[bool; 6]>()) {
            header[0..4].copy_from_slice(&MAGIC);
            header[4..8].copy_from_slice(&[kind, 0, 0, 0]);
            for (i, _) in sparse.iter().enumerate().filter(|(_, zero)| **zero) {
                header[8 + 8 * i..CRC_AT.min(16 + 8 * i)].fill(0);
            }
            let crc = crc32(&header[..CRC_AT]);
            header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
            if let Ok(frame) = Frame::parse(&header, &Limits { message_bytes: u64::MAX, payload_bytes: u32::MAX }) {
                prop_assert_eq!(frame.encode(), header);
            }
        }
    }

    #[test]
    fn checksum_is_the_ieee_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn claims_beyond_the_limits_are_refused() {
        let chunk = |message_bytes, offset, payload_bytes| {
            let (tag, serial, deliver_at_ns, charge) = (Tag(1), 0, 0, Charge::Window);
            Frame::Chunk(Chunk { tag, serial, message_bytes, offset, payload_bytes, deliver_at_ns, charge })
                .encode()
        };
        let refusal =
            |header| Frame::parse(&header, &Limits { message_bytes: 100, payload_bytes: 10 }).unwrap_err();
        assert_eq!(refusal(chunk(101, 0, 1)), FrameError::TooLong { field: "message", got: 101, limit: 100 });
        assert_eq!(refusal(chunk(100, 0, 11)), FrameError::TooLong { field: "payload", got: 11, limit: 10 });
        assert_eq!(refusal(chunk(5, 0, 6)), FrameError::Overrun { offset: 0, payload: 6, message: 5 });
        assert_eq!(
            refusal(chunk(5, u64::MAX, 1)),
            FrameError::Overrun { offset: u64::MAX, payload: 1, message: 5 }
        );
        assert_eq!(refusal(chunk(5, 3, 0)), FrameError::Overrun { offset: 3, payload: 0, message: 5 });
    }
}
