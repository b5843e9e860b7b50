//! Values as bfloat16: the upper half of an f32, rounded to nearest, ties to even. Two bytes a value, little endian.
//!
//! Relative error at most 2^-8 for normal numbers. NaN stays NaN and infinity infinity; a number above the largest
//! bfloat16 (3.39e38) becomes infinity. In integers rather than by `half` one at a time, so that the loops vectorise.

/// Appends two bytes for each value.
pub(crate) fn encode(values: &[f32], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + 2 * values.len(), 0);
    let (words, _) = out[start..].as_chunks_mut::<2>();
    for (word, &value) in words.iter_mut().zip(values) {
        *word = rounded(value).to_le_bytes();
    }
}

/// The values of `bytes`, two each.
pub(crate) fn decode(bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len(), 2 * out.len());
    for (value, &word) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(word)) << 16);
    }
}

#[inline]
fn rounded(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    // Rounding could carry a NaN's last mantissa bits away; a quiet NaN keeps the sign.
    let quiet = (bits >> 16) as u16 | 0x0040;
    if value.is_nan() { quiet } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_f32_rounds_as_in_half(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assert_eq!(rounded(value), bf16::from_f32(value).to_bits());
        }
    }

    #[test]
    fn edges_round_as_in_half() {
        for bits in
            [0, 0x8000_0000, 0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0xffff_ffff]
        {
            let value = f32::from_bits(bits);
            assert_eq!(rounded(value), bf16::from_f32(value).to_bits(), "{bits:#x}");
        }
    }
}
