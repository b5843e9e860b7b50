//! A bit stream, least significant bit first, over a 64-bit window.
//!
//! Bit `i` of the stream is bit `i % 8` of byte `i / 8`. Both ends touch eight bytes at a time whatever the field's
//! width, so neither branches on it. Not here: what the bits mean (`index`, `quantize`), checking (`chunk`).

/// The widest field that [`BitWriter::put`] takes and a [`BitReader::window`] surely holds: 64 less a started byte.
pub(crate) const FIELD_BITS: u32 = 56;

/// Writes fields one after another into room reserved at the start.
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    whole_bytes: usize,
    /// The started byte, `started_bits < 8` of it.
    started: u64,
    started_bits: u32,
}

impl BitWriter {
    /// A writer with room for `bits` bits; writing more is a bug and panics.
    pub fn with_room(bits: usize) -> Self {
        Self { bytes: vec![0; bits / 8 + 16], whole_bytes: 0, started: 0, started_bits: 0 }
    }

    /// Appends the low `count` bits of `value`; the bits above them must be zero.
    #[inline]
    pub fn put(&mut self, value: u64, count: u32) {
        debug_assert!(count <= FIELD_BITS && value >> count == 0, "{value:#x} does not fit {count} bits");
        self.started |= value << self.started_bits;
        self.bytes[self.whole_bytes..][..8].copy_from_slice(&self.started.to_le_bytes());
        let bits = self.started_bits + count;
        self.whole_bytes += (bits / 8) as usize;
        self.started >>= bits & !7;
        self.started_bits = bits & 7;
    }

    /// The stream, its last byte filled up with zeros.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.truncate(self.whole_bytes + usize::from(self.started_bits > 0));
        self.bytes
    }
}

/// Reads fields; past the end there are zeros, and [`BitReader::is_spent`] tells whether they were touched.
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    position_bits: usize,
}

impl<'a> BitReader<'a> {
    /// A reader at the first bit of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position_bits: 0 }
    }

    /// The next bits, at least [`FIELD_BITS`] of them, without moving on.
    #[inline]
    pub fn window(&self) -> u64 {
        let at = self.position_bits / 8;
        let bytes = match self.bytes.get(at..at + 8) {
            Some(whole) => whole.try_into().expect("a range of eight"),
            None => self.tail(at),
        };
        u64::from_le_bytes(bytes) >> (self.position_bits % 8)
    }

    /// Moves on by `count` bits.
    #[inline]
    pub fn skip(&mut self, count: u32) {
        self.position_bits += count as usize;
    }

    /// The next `count < 32` bits, moving on.
    #[inline]
    pub fn take(&mut self, count: u32) -> u32 {
        let value = self.window() & ((1 << count) - 1);
        self.skip(count);
        value as u32
    }

    /// Whether exactly the whole stream was read: the position lies in its last byte and the rest of that is zero.
    pub fn is_spent(&self) -> bool {
        self.position_bits.div_ceil(8) == self.bytes.len() && self.window() == 0
    }

    #[cold]
    fn tail(&self, at: usize) -> [u8; 8] {
        let rest = self.bytes.get(at..).unwrap_or_default();
        let mut bytes = [0; 8];
        bytes[..rest.len()].copy_from_slice(rest);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_come_back_and_the_stream_is_then_spent(
            fields in prop::collection::vec((any::<u64>(), 0..=31_u32), 0..200),
        ) {
            let mut writer = BitWriter::with_room(fields.len() * 31);
            for &(value, count) in &fields {
                writer.put(value & ((1 << count) - 1), count);
            }
            let bytes = writer.finish();
            let bits: u32 = fields.iter().map(|field| field.1).sum();
            prop_assert_eq!(bytes.len(), bits.div_ceil(8) as usize);
            let mut reader = BitReader::new(&bytes);
            for &(value, count) in &fields {
                prop_assert_eq!(u64::from(reader.take(count)), value & ((1 << count) - 1));
            }
            prop_assert!(reader.is_spent());
        }
    }

    #[test]
    fn past_the_end_there_are_zeros_and_the_reader_says_so() {
        let mut reader = BitReader::new(&[0xff]);
        assert_eq!(reader.take(8), 0xff);
        assert!(reader.is_spent());
        assert_eq!(reader.take(20), 0);
        assert!(!reader.is_spent());
    }

    #[test]
    fn unread_ones_in_the_last_byte_are_not_spent() {
        let mut reader = BitReader::new(&[0b1000_0001]);
        reader.skip(1);
        assert!(!reader.is_spent());
    }
}
