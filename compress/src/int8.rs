//! Values as 8-bit integers with a scale per row.
//!
//! ```text
//!  row: [ scale : f32 ][ q : i8 ] * width        q = round(x / scale), scale = max |x| / 127, value = q * scale
//! ```
//!
//! Error at most half the scale: 1/254 of the row's largest magnitude. A row with a NaN or an infinity anywhere gets the
//! scale NaN and decodes to NaN everywhere, so that a diverging run shows. Widths of a row: `width + 4` bytes.

/// Bytes of a row's scale.
pub(crate) const SCALE_BYTES: usize = 4;

const Q_MAX: f32 = 127.0;
/// The largest scale whose 127-fold is finite: one step below the quotient, which is rounded up.
const SCALE_MAX: f32 = f32::from_bits((f32::MAX / Q_MAX).to_bits() - 1);
/// Adding 1.5 * 2^23 rounds to nearest, ties to even, and leaves the integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Appends the rows of `values`.
pub(crate) fn encode(values: &[f32], width: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + values.len() / width * (width + SCALE_BYTES), 0);
    for (row, bytes) in values.chunks_exact(width).zip(out[start..].chunks_exact_mut(width + SCALE_BYTES)) {
        let scale = scale_of(row);
        let (head, quantised) = bytes.split_at_mut(SCALE_BYTES);
        head.copy_from_slice(&scale.to_le_bytes());
        for (q, &value) in quantised.iter_mut().zip(row) {
            *q = (value / scale + ROUND).to_bits() as u8;
        }
    }
}

/// The values of `bytes`.
pub(crate) fn decode(bytes: &[u8], width: usize, out: &mut [f32]) {
    for (bytes, row) in bytes.chunks_exact(width + SCALE_BYTES).zip(out.chunks_exact_mut(width)) {
        let (head, quantised) =
            bytes.split_first_chunk::<SCALE_BYTES>().expect("a row begins with its scale");
        let scale = f32::from_le_bytes(*head);
        for (value, &q) in row.iter_mut().zip(quantised) {
            *value = f32::from(q as i8) * scale;
        }
    }
}

/// A normal number, so that dividing by it is safe, of finite multiples; NaN if the row holds one or an infinity.
fn scale_of(row: &[f32]) -> f32 {
    // Bits of magnitudes order as the numbers do, infinity and NaN above all of them.
    let largest = row.iter().fold(0, |largest: i32, value| largest.max(value.abs().to_bits() as i32));
    let largest = f32::from_bits(largest as u32);
    if largest.is_finite() { (largest / Q_MAX).clamp(f32::MIN_POSITIVE, SCALE_MAX) } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(values: &[f32], width: usize) -> Vec<f32> {
        let mut bytes = Vec::new();
        encode(values, width, &mut bytes);
        let mut back = vec![0.0; values.len()];
        decode(&bytes, width, &mut back);
        back
    }

    proptest! {
        #[test]
        fn the_error_is_at_most_half_a_step_of_the_row(
            values in prop::collection::vec((-1.0..1.0_f32, -30..30_i32), 3 * 37),
        ) {
            let values: Vec<f32> = values.iter().map(|&(m, e)| m * 2_f32.powi(e)).collect();
            let back = round_trip(&values, 37);
            for (row, back) in values.chunks(37).zip(back.chunks(37)) {
                let largest = row.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                for (x, y) in row.iter().zip(back) {
                    prop_assert!((x - y).abs() <= largest / 253.9, "{x} became {y}, largest {largest}");
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_come_back() {
        assert_eq!(round_trip(&[127.0, -127.0, 1.0, 0.0], 4), [127.0, -127.0, 1.0, 0.0]);
        assert_eq!(round_trip(&[0.0, -0.0], 2), [0.0, 0.0]);
        let tiny = f32::from_bits(1);
        assert_eq!(round_trip(&[tiny, 1e-38], 2)[0], 0.0);
        assert!(round_trip(&[f32::MAX, 1.0], 2)[0].is_finite());
    }

    #[test]
    fn a_row_that_is_not_finite_shows_and_leaves_its_neighbours() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let back = round_trip(&[1.0, bad, 2.0, 2.0], 2);
            assert!(back[..2].iter().all(|x| x.is_nan()));
            assert_eq!(back[2..], [2.0, 2.0]);
        }
    }
}
