//! Training text as bytes: a memory-mapped file, a token per byte, and a batch that depends on nothing but the seed,
//! the step and the sequence's place in the global batch.
//!
//! So how the batch is divided over replicas, stages or processes never changes what is trained on: one process and
//! any plan read the same sequences at the same step. Every stage that needs tokens (the first for inputs, the last
//! for targets, compressed boundaries for their anchor) reads them from its own copy of the file; none are sent.
//!
//! Not here: tokenisers other than bytes.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

/// Tokens of a byte vocabulary.
pub const VOCABULARY: u32 = 256;

/// A text, mapped.
pub struct Text {
    path: PathBuf,
    bytes: Mmap,
}

/// Why a text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file could not be opened or mapped.
    #[error("{}: cannot be read: {source}\n  hint: [data] paths are relative to the run file", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is shorter than one sequence and its target.
    #[error(
        "{}: {bytes} bytes, but one sequence of {sequence} tokens and its target need {}\n  hint: give a longer text \
         or a shorter [model] sequence", path.display(), sequence + 1
    )]
    TooShort {
        /// Which file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// Tokens per sequence.
        sequence: usize,
    },
}

/// Which sequences of a step's global batch: `first..first + count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequences {
    /// Index of the first within the global batch.
    pub first: usize,
    /// How many.
    pub count: usize,
}

impl Text {
    /// Maps `path`; it must hold at least one sequence and its target.
    pub fn open(path: &Path, sequence: usize) -> Result<Self, DataError> {
        let unreadable = |source| DataError::Unreadable { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let bytes = map(&file).map_err(unreadable)?;
        if bytes.len() < sequence + 1 {
            return Err(DataError::TooShort { path: path.to_owned(), bytes: bytes.len(), sequence });
        }
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole text.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Inputs and targets (the inputs moved on by one), each `[count * sequence]`, of some sequences of step `step`.
    pub fn batch(&self, seed: u64, step: u64, which: Sequences, sequence: usize) -> (Vec<u32>, Vec<u32>) {
        let places = (self.bytes.len() - sequence) as u64;
        let mut inputs = Vec::with_capacity(which.count * sequence);
        let mut targets = Vec::with_capacity(which.count * sequence);
        for index in which.first..which.first + which.count {
            let start = (mix(seed, step, index as u64) % places) as usize;
            let window = &self.bytes[start..start + sequence + 1];
            inputs.extend(window[..sequence].iter().map(|&b| u32::from(b)));
            targets.extend(window[1..].iter().map(|&b| u32::from(b)));
        }
        (inputs, targets)
    }

    /// Inputs and targets of sequence `index` of the text cut end to end: what validation reads.
    pub fn window(&self, index: usize, sequence: usize) -> (Vec<u32>, Vec<u32>) {
        let windows = (self.bytes.len() - 1) / sequence;
        let start = (index % windows) * sequence;
        let window = &self.bytes[start..start + sequence + 1];
        (
            window[..sequence].iter().map(|&b| u32::from(b)).collect(),
            window[1..].iter().map(|&b| u32::from(b)).collect(),
        )
    }
}

/// Cross-entropy in nats per byte of `validation` under a bigram model of `train` with add-one smoothing: the loss
/// that a model of one byte's context cannot beat by much.
pub fn bigram_loss_nats(train: &[u8], validation: &[u8]) -> f64 {
    let mut counts = vec![[0u32; 256]; 256];
    for pair in train.windows(2) {
        counts[usize::from(pair[0])][usize::from(pair[1])] += 1;
    }
    let totals: Vec<f64> = counts.iter().map(|row| row.iter().map(|&c| f64::from(c)).sum::<f64>()).collect();
    let nats = |pair: &[u8]| {
        let (a, b) = (usize::from(pair[0]), usize::from(pair[1]));
        -((f64::from(counts[a][b]) + 1.0) / (totals[a] + 256.0)).ln()
    };
    validation.windows(2).map(nats).sum::<f64>() / (validation.len().max(2) - 1) as f64
}

/// Maps a file read-only.
#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read as bytes, every value of which is valid. A file truncated by someone else during
    // the run ends the process with SIGBUS, which the launcher reports as any other death of a rank.
    unsafe { Mmap::map(file) }
}

/// SplitMix64's finaliser over the three coordinates of a sequence.
fn mix(seed: u64, step: u64, index: u64) -> u64 {
    let finalise = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    let spread = |x: u64| finalise(x.wrapping_add(0x9E37_79B9_7F4A_7C15));
    spread(spread(spread(seed) ^ step) ^ index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn text(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_batch_is_the_same_however_it_is_divided() {
        let file = text(&(0..=255).cycle().take(5000).collect::<Vec<u8>>());
        let text = Text::open(file.path(), 16).unwrap();
        let whole = text.batch(7, 3, Sequences { first: 0, count: 8 }, 16);
        let mut parts = (Vec::new(), Vec::new());
        for first in (0..8).step_by(2) {
            let (x, y) = text.batch(7, 3, Sequences { first, count: 2 }, 16);
            parts.0.extend(x);
            parts.1.extend(y);
        }
        assert_eq!(whole, parts);
        assert_ne!(whole, text.batch(7, 4, Sequences { first: 0, count: 8 }, 16), "steps differ");
        assert_ne!(whole, text.batch(8, 3, Sequences { first: 0, count: 8 }, 16), "seeds differ");
    }

    #[test]
    fn targets_are_the_inputs_moved_on_by_one() {
        let file = text(&(0..=255).cycle().take(1000).collect::<Vec<u8>>());
        let text = Text::open(file.path(), 10).unwrap();
        let (x, y) = text.batch(1, 1, Sequences { first: 0, count: 3 }, 10);
        assert!(x.iter().zip(&y).all(|(x, y)| (x + 1) % 256 == *y));
    }

    #[test]
    fn an_empty_or_short_text_is_refused_by_name() {
        let file = text(b"");
        let error = Text::open(file.path(), 16).err().unwrap().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
        assert!(error.contains("need 17"), "{error}");
        assert!(Text::open(text(&[1; 17]).path(), 16).is_ok(), "just long enough");
    }

    #[test]
    fn a_bigram_model_of_a_deterministic_text_loses_almost_nothing() {
        let bytes: Vec<u8> = b"ab".iter().copied().cycle().take(200_000).collect();
        assert!(bigram_loss_nats(&bytes, &bytes) < 0.01);
        let uniform: Vec<u8> = (0..200_000u64).map(|i| mix(1, 2, i) as u8).collect();
        assert!((bigram_loss_nats(&uniform, &uniform) - 256f64.ln()).abs() < 0.2);
    }
}
