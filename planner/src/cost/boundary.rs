//! Bytes and time of one microbatch's crossing of a stage boundary, one way.
//!
//! ```text
//!   rows = b s tokens of width h      none  4 B a value (fp32), 2 B (16-bit)      bf16  2 B
//!                                     int8  1 B a value + 4 B a row               subspace  2 B x rank a row
//! ```
//! The gradient goes the other way with the same bytes. Time on an idle route: bytes / rate + latency.
//! Source: the codecs' layouts (narrows-compress). Worked: 128 rows of 256: 131072, 65536, 33280; rank 32: 8192 B.
//!
//! Not here: time of coding (a matrix product with h x rank, below 1 % of a layer), sharing (`simulate`).

use narrows_compress::BoundaryKind;
use narrows_compress::cost::boundary_bytes;

use crate::model::Precision;
use crate::plan::Codec;

/// Bytes of `rows` activations or gradients of width `hidden`.
pub fn coded_bytes(codec: Codec, precision: Precision, rows: u64, hidden: u32) -> u64 {
    let kind = match codec {
        Codec::None if precision == Precision::Fp32 => BoundaryKind::None,
        Codec::None | Codec::Bf16 => BoundaryKind::Bf16,
        Codec::Int8 => BoundaryKind::Int8,
        Codec::Subspace { rank } => BoundaryKind::Subspace { rank: rank as usize },
    };
    boundary_bytes(kind, rows as usize, hidden as usize) as u64
}

/// Seconds that a message occupies an idle route of this rate; latency comes on top.
pub fn occupancy_s(bytes: u64, rate_bytes_per_s: f64) -> f64 {
    bytes as f64 / rate_bytes_per_s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_worked_numbers() {
        let bytes = |codec| coded_bytes(codec, Precision::Fp32, 128, 256);
        assert_eq!(bytes(Codec::None), 131_072);
        assert_eq!(bytes(Codec::Bf16), 65_536);
        assert_eq!(bytes(Codec::Int8), 33_280);
        assert_eq!(bytes(Codec::Subspace { rank: 32 }), 8_192);
        assert_eq!(coded_bytes(Codec::None, Precision::Bf16, 128, 256), 65_536);
    }

    #[test]
    fn a_message_occupies_its_route_for_bytes_over_rate() {
        assert_eq!(occupancy_s(131_072, 1e6), 0.131_072);
    }
}
