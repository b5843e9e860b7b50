//! What crosses from one pipeline stage to the next: rows of activations forward, of their gradients back.
//!
//! | codec | bytes a row | loss |
//! | --- | --- | --- |
//! | none | 4 width | none |
//! | bf16 | 2 width | 2^-8 of each value at most |
//! | int8 | width + 4 | 1/254 of the row's largest |
//! | subspace | 2 rank | what lies outside the subspace, then as bf16 |
//!
//! Little endian, no header: both ends know codec and shape from the plan, and the link frames the message. The length
//! follows from the shape alone, so receives are posted ahead. NaN and infinity are carried, never hidden: a diverging
//! run must show at the loss.
//!
//! Not here: whether a boundary is worth compressing (the planner's).

use crate::{Subspace, bf16, int8};

/// A codec without what it works with: enough to tell its cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundaryKind {
    /// f32 as they are.
    None,
    /// bfloat16.
    Bf16,
    /// 8-bit integers with a scale per row.
    Int8,
    /// Coordinates in a subspace, as bfloat16.
    Subspace {
        /// Directions of the subspace.
        rank: usize,
    },
}

impl BoundaryKind {
    /// Bytes of a message of `rows` by `width` values.
    pub fn encoded_len(self, rows: usize, width: usize) -> usize {
        rows * match self {
            Self::None => 4 * width,
            Self::Bf16 => 2 * width,
            Self::Int8 => width + int8::SCALE_BYTES,
            Self::Subspace { rank } => 2 * rank,
        }
    }
}

/// How the rows of one boundary are coded.
#[derive(Debug, Clone, PartialEq)]
pub enum BoundaryCodec {
    /// f32 as they are.
    None,
    /// bfloat16.
    Bf16,
    /// 8-bit integers with a scale per row.
    Int8,
    /// Coordinates in a subspace, as bfloat16.
    Subspace(Subspace),
}

/// Why a codec or a message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoundaryError {
    /// More directions than the rows have, or none.
    #[error("a subspace of rank {rank} in width {width}: expected a rank of 1 to {width}")]
    Rank {
        /// Directions asked for.
        rank: usize,
        /// Values of a row.
        width: usize,
    },
    /// A message of another shape or codec.
    #[error("boundary message of [{rows}, {width}] coded as {kind:?}: expected {expected} bytes, got {got}")]
    Length {
        /// The codec.
        kind: BoundaryKind,
        /// Rows expected.
        rows: usize,
        /// Values of a row.
        width: usize,
        /// Bytes of such a message.
        expected: usize,
        /// Bytes of this one.
        got: usize,
    },
}

impl BoundaryCodec {
    /// The codec without its basis.
    pub fn kind(&self) -> BoundaryKind {
        match self {
            Self::None => BoundaryKind::None,
            Self::Bf16 => BoundaryKind::Bf16,
            Self::Int8 => BoundaryKind::Int8,
            Self::Subspace(subspace) => BoundaryKind::Subspace { rank: subspace.rank() },
        }
    }

    /// Bytes that [`encode`](Self::encode) appends for `rows` by `width` values, exactly.
    pub fn encoded_len(&self, rows: usize, width: usize) -> usize {
        self.kind().encoded_len(rows, width)
    }

    /// Appends `x [rows, width]` to `out`. `anchor`, of the same shape, is what the receiver knows of `x` beforehand
    /// (activations: the embedding; gradients: `None`); only the subspace codec uses it.
    ///
    /// # Panics
    /// If `x` is not whole rows, `anchor` not as long, or the subspace of another width.
    pub fn encode(&self, x: &[f32], width: usize, anchor: Option<&[f32]>, out: &mut Vec<u8>) {
        self.check_shape(x.len(), width, anchor);
        match self {
            Self::None => encode_plain(x, out),
            Self::Bf16 => bf16::encode(x, out),
            Self::Int8 => int8::encode(x, width, out),
            Self::Subspace(subspace) => subspace.encode(x, anchor, out),
        }
    }

    /// Reads `bytes` into `out [rows, width]`; `anchor` as given to [`encode`](Self::encode).
    ///
    /// # Errors
    /// [`BoundaryError::Length`] if `bytes` is not a message of this shape; then `out` is as before.
    ///
    /// # Panics
    /// If `out` or `anchor` is not `rows * width` long, or the subspace of another width.
    pub fn decode(
        &self,
        bytes: &[u8],
        rows: usize,
        width: usize,
        anchor: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<(), BoundaryError> {
        assert_eq!(out.len(), rows * width, "target of a boundary message [{rows}, {width}]");
        self.check_shape(out.len(), width, anchor);
        let (kind, expected, got) = (self.kind(), self.encoded_len(rows, width), bytes.len());
        if got != expected {
            return Err(BoundaryError::Length { kind, rows, width, expected, got });
        }
        match self {
            Self::None => decode_plain(bytes, out),
            Self::Bf16 => bf16::decode(bytes, out),
            Self::Int8 => int8::decode(bytes, width, out),
            Self::Subspace(subspace) => subspace.decode(bytes, anchor, out),
        }
        Ok(())
    }

    fn check_shape(&self, len: usize, width: usize, anchor: Option<&[f32]>) {
        assert!(width > 0 && len.is_multiple_of(width), "{len} values are not rows of {width}");
        assert!(anchor.is_none_or(|anchor| anchor.len() == len), "anchor of another shape");
        if let Self::Subspace(subspace) = self {
            assert_eq!(subspace.width(), width, "subspace of another width than the rows");
        }
    }
}

fn encode_plain(values: &[f32], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + 4 * values.len(), 0);
    for (word, value) in out[start..].as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *word = value.to_le_bytes();
    }
}

fn decode_plain(bytes: &[u8], out: &mut [f32]) {
    for (value, &word) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::gaussian;

    const WIDTH: usize = 48;

    fn codecs() -> [BoundaryCodec; 4] {
        let subspace = Subspace::from_seed(1, WIDTH, 12).unwrap();
        [BoundaryCodec::None, BoundaryCodec::Bf16, BoundaryCodec::Int8, BoundaryCodec::Subspace(subspace)]
    }

    fn coded(codec: &BoundaryCodec, x: &[f32]) -> Vec<f32> {
        let (mut bytes, mut back) = (Vec::new(), vec![0.0; x.len()]);
        codec.encode(x, WIDTH, None, &mut bytes);
        codec.decode(&bytes, x.len() / WIDTH, WIDTH, None, &mut back).unwrap();
        back
    }

    #[test]
    fn encoding_appends_exactly_the_stated_length() {
        for codec in codecs() {
            for rows in [0, 1, 7, 300] {
                let mut out = vec![7; 3];
                codec.encode(&gaussian(2, rows * WIDTH), WIDTH, None, &mut out);
                assert_eq!(out.len() - 3, codec.encoded_len(rows, WIDTH), "{codec:?}, {rows} rows");
                assert_eq!(out[..3], [7; 3]);
            }
        }
    }

    #[test]
    fn the_loss_is_that_of_the_table() {
        let x = gaussian(3, 5 * WIDTH);
        let largest_error = |codec| {
            let back = coded(codec, &x);
            x.iter().zip(back).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
        };
        let [none, bf16, int8, _] = codecs();
        let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        assert_eq!(largest_error(&none), 0.0);
        assert!((1e-4..=largest / 256.0).contains(&largest_error(&bf16)));
        assert!((1e-3..=largest / 253.9).contains(&largest_error(&int8)));
    }

    #[test]
    fn a_diverging_value_shows_through_every_codec() {
        for codec in codecs() {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = gaussian(4, 2 * WIDTH);
                x[5] = bad;
                let back = coded(&codec, &x);
                assert!(back[..WIDTH].iter().any(|y| !y.is_finite()), "{codec:?} hid {bad}");
                assert!(back[WIDTH..].iter().all(|y| y.is_finite()), "{codec:?} spread {bad} to another row");
            }
        }
    }

    #[test]
    fn a_message_of_another_length_is_refused_and_changes_nothing() {
        for codec in codecs() {
            let expected = codec.encoded_len(3, WIDTH);
            for got in [0, expected - 1, expected + 1] {
                let mut out = vec![1.0; 3 * WIDTH];
                let error = codec.decode(&vec![0; got], 3, WIDTH, None, &mut out).unwrap_err();
                let kind = codec.kind();
                assert_eq!(error, BoundaryError::Length { kind, rows: 3, width: WIDTH, expected, got });
                assert!(out.iter().all(|&x| x == 1.0));
            }
        }
    }
}
