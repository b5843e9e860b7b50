//! Where the kept values lie: Rice codes of the gaps between ascending indices.
//!
//! ```text
//!  gap g = index - previous - 1 (previous of the first = -1), parameter b:
//!  [ g >> b zeros ][ 1 ][ low b bits of g ]          k = 64 of 4096, b = 5: 7.53 bits; bound log2 C(4096, 64) / 64 = 7.36
//! ```
//!
//! b = floor(log2(ln 2 * len / k)): both ends work it out of what they know, in whole numbers, and nothing is sent for
//! it. Source: Rice 1979; Golomb 1966 for geometric gaps. Indices that cluster cost less, none cost more than
//! [`Rice::bits_max`]: the gaps of a chunk sum to less than its length.

use crate::bits::{BitReader, BitWriter};

/// A run of zeros is cut into words of this many, so that a code always fits the window.
const RUN: u32 = 32;

/// The code of one chunk's gaps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rice {
    parameter: u32,
}

impl Rice {
    /// The code for `kept` indices out of `len`.
    pub fn new(len: usize, kept: usize) -> Self {
        // 2839 / 4096 = ln 2
        Self { parameter: (len * 2839 / (4096 * kept)).max(1).ilog2() }
    }

    /// Appends one gap.
    #[inline]
    pub fn put(self, bits: &mut BitWriter, gap: usize) {
        let mut zeros = (gap >> self.parameter) as u32;
        while zeros >= RUN {
            bits.put(0, RUN);
            zeros -= RUN;
        }
        let low = gap as u64 & ((1 << self.parameter) - 1);
        bits.put((low << 1 | 1) << zeros, zeros + 1 + self.parameter);
    }

    /// Reads one gap; `None` if it exceeds `gap_max` (or the stream is at its end).
    #[inline]
    pub fn take(self, bits: &mut BitReader<'_>, gap_max: usize) -> Option<usize> {
        let mut zeros = 0;
        let mut window = bits.window();
        while window as u32 == 0 {
            bits.skip(RUN);
            zeros += RUN as usize;
            if zeros > gap_max {
                return None;
            }
            window = bits.window();
        }
        let run = window.trailing_zeros();
        let low = (window >> (run + 1)) & ((1 << self.parameter) - 1);
        bits.skip(run + 1 + self.parameter);
        let gap = (zeros + run as usize) << self.parameter | low as usize;
        (gap <= gap_max).then_some(gap)
    }

    /// The most bits that `kept` indices out of `len` can take.
    pub fn bits_max(self, len: usize, kept: usize) -> usize {
        kept * (1 + self.parameter as usize) + ((len - kept) >> self.parameter)
    }

    /// Mean bits that `kept` indices take when all sets of `kept` out of `len` are equally likely.
    ///
    /// P(gap >= j) = C(len - j, kept) / C(len, kept), the same for every gap; the mean quotient sums it over the
    /// multiples of 2^b.
    pub fn bits_expected(self, len: usize, kept: usize) -> f64 {
        let (step, mut at_least, mut quotient) = (1 << self.parameter, 1.0, 0.0);
        for j in 1..=len - kept {
            at_least *= (len - kept + 1 - j) as f64 / (len + 1 - j) as f64;
            if j % step == 0 {
                quotient += at_least;
            }
        }
        kept as f64 * (1.0 + f64::from(self.parameter) + quotient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topk::CHUNK;
    use proptest::prelude::*;

    fn encoded(rice: Rice, indices: &[usize]) -> Vec<u8> {
        let mut bits = BitWriter::with_room(rice.bits_max(CHUNK, indices.len()));
        let mut next = 0;
        for &index in indices {
            rice.put(&mut bits, index - next);
            next = index + 1;
        }
        bits.finish()
    }

    proptest! {
        #[test]
        fn indices_come_back_within_the_bound(set in prop::collection::btree_set(0..CHUNK, 1..600)) {
            let indices: Vec<usize> = set.into_iter().collect();
            let rice = Rice::new(CHUNK, indices.len());
            let bytes = encoded(rice, &indices);
            prop_assert!(bytes.len() <= rice.bits_max(CHUNK, indices.len()).div_ceil(8));
            let mut bits = BitReader::new(&bytes);
            let mut next = 0;
            for &index in &indices {
                let gap = rice.take(&mut bits, CHUNK - 1 - next);
                prop_assert_eq!(gap, Some(index - next));
                next = index + 1;
            }
            prop_assert!(bits.is_spent());
        }
    }

    #[test]
    fn the_parameter_follows_the_density() {
        let parameters = [1, 32, 64, 128, 256, 4096].map(|kept| Rice::new(CHUNK, kept).parameter);
        assert_eq!(parameters, [11, 6, 5, 4, 3, 0]);
    }

    #[test]
    fn a_gap_past_the_chunk_is_refused() {
        let rice = Rice::new(CHUNK, 64);
        let bytes = encoded(rice, &[100]);
        assert_eq!(rice.take(&mut BitReader::new(&bytes), 100), Some(100));
        assert_eq!(rice.take(&mut BitReader::new(&bytes), 99), None);
        assert_eq!(rice.take(&mut BitReader::new(&[]), CHUNK), None);
    }

    #[test]
    fn the_expected_bits_are_the_published_ones() {
        // Geometric gaps of p = k / 4096 take 8.534, 7.526, 6.511 bits; drawing without replacement a little less.
        for (kept, geometric) in [(32, 8.534), (64, 7.526), (128, 6.511)] {
            let bits = Rice::new(CHUNK, kept).bits_expected(CHUNK, kept) / kept as f64;
            assert!((geometric - 0.07..geometric).contains(&bits), "k = {kept}: {bits}");
        }
    }
}
