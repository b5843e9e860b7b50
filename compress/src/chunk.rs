//! One chunk's kept values as bits.
//!
//! ```text
//!  [ low, high : 2 x bf16 ] then per kept value, by ascending index: [ Rice code of the gap ][ 2-bit code ]
//! ```
//!
//! Gap and code stand side by side so that reading needs one window a value and no list of indices between.
//! Lengths and counts are not here: `frame` knows them.

use crate::{
    bits::{BitReader, BitWriter},
    index::Rice,
    quantize::{CODE_BITS, LEVELS_BITS, Levels},
    topk::{CHUNK, Selector},
};

/// Takes values out of chunks; keeps its working memory from chunk to chunk.
pub(crate) struct Extractor {
    selector: Selector,
    magnitudes: Vec<f32>,
}

impl Extractor {
    /// An extractor for chunks of any length.
    pub fn new() -> Self {
        Self { selector: Selector::new(), magnitudes: Vec::with_capacity(CHUNK) }
    }

    /// Writes the `kept` largest of `values` (all finite) to `bits` and subtracts from them what was written.
    pub fn extract(&mut self, values: &mut [f32], kept: usize, bits: &mut BitWriter) {
        let keys = self.selector.select(values, kept);
        self.magnitudes.clear();
        self.magnitudes.extend(keys.iter().map(|key| key.magnitude()));
        let levels = Levels::fit(&self.magnitudes);
        let rice = Rice::new(values.len(), kept);
        levels.put(bits);
        let mut next = 0;
        for key in keys {
            let value = &mut values[key.index()];
            let code = levels.code(*value);
            rice.put(bits, key.index() - next);
            bits.put(u64::from(code), CODE_BITS);
            *value -= levels.value(code);
            next = key.index() + 1;
        }
    }
}

/// What is wrong with a chunk's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkFault {
    /// Not `0 <= low <= high < inf`.
    Levels,
    /// An index past the chunk's end.
    Index,
}

/// Reads a chunk of `len` values, `kept` of them sent, and hands each (index, value) to `each`.
pub(crate) fn read(
    bits: &mut BitReader<'_>,
    len: usize,
    kept: usize,
    mut each: impl FnMut(usize, f32),
) -> Result<(), ChunkFault> {
    let levels = Levels::take(bits).ok_or(ChunkFault::Levels)?;
    let rice = Rice::new(len, kept);
    let mut next = 0;
    for left in (0..kept).rev() {
        // `left` more indices must still fit behind this one.
        let gap_max = len - 1 - next - left;
        let index = next + rice.take(bits, gap_max).ok_or(ChunkFault::Index)?;
        each(index, levels.value(bits.take(CODE_BITS)));
        next = index + 1;
    }
    Ok(())
}

/// The most bits that a chunk can take.
pub(crate) fn bits_max(len: usize, kept: usize) -> usize {
    LEVELS_BITS as usize + kept * CODE_BITS as usize + Rice::new(len, kept).bits_max(len, kept)
}

/// Mean bits of a chunk whose kept values lie anywhere with equal chance.
pub(crate) fn bits_expected(len: usize, kept: usize) -> f64 {
    f64::from(LEVELS_BITS)
        + (kept * CODE_BITS as usize) as f64
        + Rice::new(len, kept).bits_expected(len, kept)
}
