//! Which values of a chunk are sent: the k of largest magnitude of every [`CHUNK`] contiguous values.
//!
//! Finding the k-th largest takes cheap passes that vectorise instead of a sort:
//!
//! ```text
//!  chunk as rows of G:   x0 x1 x2 ... xG-1        1. the maximum of every column (vertical, so it vectorises)
//!                        xG ...                   2. bar = k-th largest of the G column maxima
//!                        ...                      3. candidates = all values >= bar, in order
//!                        max max max ... max      4. exact selection among the few candidates
//! ```
//!
//! k columns hold a value at or above the bar, so the k-th largest value is at or above it: no guess can fail. With
//! G = 4k about 1.15 k candidates are left of independent values. Equal magnitudes: the lower index wins.
//!
//! Source: SparseLoCo (arXiv 2508.15706) keeps k of 4096 (there 64 x 64 blocks of matrices; here the flat tensor).
//! Limits: values must be finite, which [`error_feedback`](crate::error_feedback) makes sure of.

/// Values per chunk. The last chunk of a tensor may be shorter.
pub const CHUNK: usize = 4096;

/// How many values of each chunk are kept; at least one, at most all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopK(u16);

/// A number of kept values that no chunk can satisfy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("top-k keeps 1 to {CHUNK} values of each chunk of {CHUNK}, not {0}; usual are 32 to 256")]
pub struct TopKError(pub usize);

impl TopK {
    /// Keeps `per_chunk` values of each full chunk.
    ///
    /// # Errors
    /// [`TopKError`] unless `1 <= per_chunk <= CHUNK`.
    pub fn new(per_chunk: usize) -> Result<Self, TopKError> {
        let fits = (1..=CHUNK).contains(&per_chunk);
        fits.then_some(Self(per_chunk as u16)).ok_or(TopKError(per_chunk))
    }

    /// Values kept of a full chunk.
    pub fn per_chunk(self) -> usize {
        usize::from(self.0)
    }

    /// Values kept of a chunk of `len` values: in proportion, rounded to nearest, at least one.
    ///
    /// # Panics
    /// If `len` is 0 or above [`CHUNK`].
    pub fn kept(self, len: usize) -> usize {
        assert!((1..=CHUNK).contains(&len), "a chunk holds 1 to {CHUNK} values, not {len}");
        ((self.per_chunk() * len + CHUNK / 2) / CHUNK).max(1)
    }

    /// Values kept of a tensor of `elements` values.
    pub fn kept_of(self, elements: u64) -> u64 {
        let (full, rest) = (elements / CHUNK as u64, (elements % CHUNK as u64) as usize);
        full * self.per_chunk() as u64 + if rest > 0 { self.kept(rest) as u64 } else { 0 }
    }
}

/// A kept value: magnitude in the upper half, inverted index in the lower, so that the larger key is to be sent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

impl Key {
    #[inline]
    fn new(magnitude: f32, index: usize) -> Self {
        Self(u64::from(magnitude.to_bits()) << 32 | u64::from(!(index as u32)))
    }

    /// Index in the chunk.
    #[inline]
    pub fn index(self) -> usize {
        !(self.0 as u32) as usize
    }

    /// `|x|`.
    #[inline]
    pub fn magnitude(self) -> f32 {
        f32::from_bits((self.0 >> 32) as u32)
    }
}

/// Values whose hits are looked for together; the chunk's groups with a hit are few.
const GROUP: usize = 8;
/// Columns whose maxima are held in registers down the rows.
const TILE: usize = 16;

/// Selects; keeps its working memory from chunk to chunk.
pub(crate) struct Selector {
    maxima: Vec<f32>,
    groups: Vec<u16>,
    candidates: Vec<Key>,
    ranked: Vec<Key>,
}

impl Selector {
    /// A selector with room for any chunk.
    pub fn new() -> Self {
        let room = || vec![Key(0); CHUNK];
        let groups = vec![0; CHUNK.div_ceil(GROUP)];
        Self { maxima: Vec::with_capacity(CHUNK), groups, candidates: room(), ranked: room() }
    }

    /// The `kept` values of largest magnitude of `chunk` (all finite), by ascending index.
    pub fn select(&mut self, chunk: &[f32], kept: usize) -> &[Key] {
        assert!((1..=chunk.len()).contains(&kept) && chunk.len() <= CHUNK);
        let bar = self.lower_bound(chunk, kept);
        let found = self.collect_from(chunk, bar);
        let ranked = &mut self.ranked[..found];
        ranked.copy_from_slice(&self.candidates[..found]);
        let (_, &mut last_kept, _) = ranked.select_nth_unstable(found - kept);
        retain_from(&mut self.candidates[..found], last_kept);
        &self.candidates[..kept]
    }

    /// A magnitude that at least `kept` values of `chunk` reach: the `kept`-th largest of the column maxima.
    fn lower_bound(&mut self, chunk: &[f32], kept: usize) -> f32 {
        let rows = (chunk.len() / (4 * kept)).min(64);
        // Whole tiles: the few values beyond them only loosen the bound.
        let columns = if rows < 2 { 0 } else { chunk.len() / rows / TILE * TILE };
        if columns < kept {
            return 0.0;
        }
        self.maxima.clear();
        for tile in (0..columns).step_by(TILE) {
            let mut maxima = [0.0_f32; TILE];
            for row in chunk.chunks_exact(columns).take(rows) {
                for (maximum, value) in maxima.iter_mut().zip(&row[tile..tile + TILE]) {
                    // Not `f32::max`, whose care for NaN costs three instructions.
                    *maximum = if value.abs() > *maximum { value.abs() } else { *maximum };
                }
            }
            self.maxima.extend_from_slice(&maxima);
        }
        *self.maxima.select_nth_unstable_by(columns - kept, f32::total_cmp).1
    }

    /// Puts the keys of all values at or above `bar` to the front of the candidates, in order; gives their number.
    ///
    /// Two passes without a branch on the data: the groups with a hit, then the hits within those.
    fn collect_from(&mut self, chunk: &[f32], bar: f32) -> usize {
        let mut hit_groups = 0;
        for (index, group) in chunk.chunks(GROUP).enumerate() {
            self.groups[hit_groups] = index as u16;
            hit_groups += usize::from(any_reaches(group, bar));
        }
        let mut found = 0;
        for &group in &self.groups[..hit_groups] {
            let first = usize::from(group) * GROUP;
            for (at, value) in chunk[first..chunk.len().min(first + GROUP)].iter().enumerate() {
                self.candidates[found] = Key::new(value.abs(), first + at);
                found += usize::from(value.abs() >= bar);
            }
        }
        found
    }
}

#[inline]
fn any_reaches(group: &[f32], bar: f32) -> bool {
    match group.first_chunk::<GROUP>() {
        Some(whole) => whole.iter().fold(false, |any, value| any | (value.abs() >= bar)),
        None => true,
    }
}

/// Moves the keys at or above `least` to the front, order kept.
fn retain_from(keys: &mut [Key], least: Key) {
    let mut count = 0;
    for at in 0..keys.len() {
        let key = keys[at];
        keys[count] = key;
        count += usize::from(key >= least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn selected(chunk: &[f32], kept: usize) -> Vec<usize> {
        Selector::new().select(chunk, kept).iter().map(|key| key.index()).collect()
    }

    fn by_sorting(chunk: &[f32], kept: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..chunk.len()).collect();
        order.sort_by(|&a, &b| chunk[b].abs().total_cmp(&chunk[a].abs()).then(a.cmp(&b)));
        order.truncate(kept);
        order.sort_unstable();
        order
    }

    proptest! {
        #[test]
        fn the_selection_is_that_of_a_full_sort(
            // Few distinct magnitudes, so that ties are everywhere.
            chunk in prop::collection::vec((-40_i8..40).prop_map(f32::from), 1..=CHUNK),
            share in 0.0..1.0_f64,
        ) {
            let kept = (share * chunk.len() as f64) as usize + 1;
            prop_assert_eq!(selected(&chunk, kept.min(chunk.len())), by_sorting(&chunk, kept.min(chunk.len())));
        }

        #[test]
        fn few_of_many_distinct_values_are_those_of_a_full_sort(
            chunk in prop::collection::vec(any::<f32>().prop_filter("finite", |x| x.is_finite()), CHUNK),
            kept in 1_usize..300,
        ) {
            prop_assert_eq!(selected(&chunk, kept), by_sorting(&chunk, kept));
        }
    }

    #[test]
    fn equal_magnitudes_go_to_the_lower_index() {
        assert_eq!(selected(&[1.0, -2.0, 2.0, -2.0, 1.0], 2), [1, 2]);
        assert_eq!(selected(&[0.0; CHUNK], 3), [0, 1, 2]);
    }

    #[test]
    fn the_magnitude_comes_with_the_index() {
        let mut selector = Selector::new();
        assert_eq!(selector.select(&[0.5, -3.0, 1.0], 1)[0].magnitude(), 3.0);
    }

    #[test]
    fn a_short_chunk_keeps_in_proportion_and_at_least_one() {
        let top_k = TopK::new(64).unwrap();
        assert_eq!([1, 32, 95, 96, 2048, CHUNK].map(|len| top_k.kept(len)), [1, 1, 1, 2, 32, 64]);
        assert_eq!(top_k.kept_of(2 * CHUNK as u64 + 2048), 160);
        assert_eq!(TopK::new(CHUNK).unwrap().kept(7), 7);
    }

    #[test]
    fn impossible_numbers_are_refused() {
        assert_eq!(TopK::new(0), Err(TopKError(0)));
        assert_eq!(TopK::new(CHUNK + 1), Err(TopKError(CHUNK + 1)));
    }
}
