//! Error feedback: what a frame leaves out is kept and offered again.
//!
//! ```text
//!  e <- decay * e + delta        (SparseLoCo, arXiv 2508.15706, algorithm 1; decay 0.95 there)
//!  frame = Q(TopK(e))
//!  e <- e - decoded(frame)       so the error of the quantiser is fed back too
//! ```
//!
//! Frame and buffer together hold `decay * e + delta`: unsent values to the bit; sent ones to the bit where the level is
//! within a factor of two of the value (then the difference of two floats is exact), else to half an ulp of the larger.
//!
//! Not here: the outer optimiser, whose rate is applied once, by it (the authors' code applies it here and there).

use rayon::prelude::*;

use crate::{
    frame,
    topk::{CHUNK, TopK},
};

/// What is carried from one compression of a tensor to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorFeedback {
    buffer: Vec<f32>,
    decay: f32,
}

/// Why nothing was compressed or restored.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// A delta or buffer of another tensor.
    #[error("error feedback of {expected} elements given {got}")]
    Elements {
        /// Elements of the buffer.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// NaN or infinite.
    #[error(
        "element {index} is {value}; pseudo-gradients must be finite: lower the inner rate or clip gradients"
    )]
    NotFinite {
        /// The first such element.
        index: usize,
        /// The value: `decay * e + delta`, or the buffer's to be restored.
        value: f32,
    },
    /// A decay that would grow the buffer or is no number.
    #[error("decay of the error feedback is {0}, expected 0 to 1 (SparseLoCo: 0.95)")]
    Decay(f32),
}

impl ErrorFeedback {
    /// A zero buffer for a tensor of `elements` values; `decay` of it is carried on each time.
    ///
    /// # Errors
    /// [`CompressError::Decay`] unless `0 <= decay <= 1`.
    pub fn new(elements: usize, decay: f32) -> Result<Self, CompressError> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(CompressError::Decay(decay));
        }
        Ok(Self { buffer: vec![0.0; elements], decay })
    }

    /// Adds `delta` to what is carried and moves the top k of it into a frame ([`frame`](crate::frame)).
    ///
    /// # Errors
    /// [`CompressError::Elements`], [`CompressError::NotFinite`]; then the buffer is as before.
    pub fn compress(&mut self, delta: &[f32], top_k: TopK) -> Result<Vec<u8>, CompressError> {
        self.check_length(delta)?;
        let decay = self.decay;
        // A pass of its own, so that a bad value leaves the buffer whole.
        check_finite(&self.buffer, delta, |e, d| decay * e + d)?;
        Ok(frame::extract(&mut self.buffer, top_k, |at, chunk| {
            for (e, &d) in chunk.iter_mut().zip(&delta[at..]) {
                *e = decay * *e + d;
            }
        }))
    }

    /// What is carried: one value an element of the tensor.
    pub fn buffer(&self) -> &[f32] {
        &self.buffer
    }

    /// Restores what is carried, from a checkpoint.
    ///
    /// # Errors
    /// [`CompressError::Elements`], [`CompressError::NotFinite`]; then the buffer is as before.
    pub fn set_buffer(&mut self, buffer: &[f32]) -> Result<(), CompressError> {
        self.check_length(buffer)?;
        check_finite(buffer, buffer, |_, e| e)?;
        self.buffer.copy_from_slice(buffer);
        Ok(())
    }

    fn check_length(&self, values: &[f32]) -> Result<(), CompressError> {
        let (expected, got) = (self.buffer.len(), values.len());
        if got == expected { Ok(()) } else { Err(CompressError::Elements { expected, got }) }
    }
}

/// Whether `of(a, b)` is finite everywhere.
fn check_finite(
    a: &[f32],
    b: &[f32],
    of: impl Fn(f32, f32) -> f32 + Sync + Copy,
) -> Result<(), CompressError> {
    let finite = match a.len() / frame::BLOCK {
        0 => all_finite(a, b, of),
        _ => a.par_chunks(frame::BLOCK).zip(b.par_chunks(frame::BLOCK)).all(|(a, b)| all_finite(a, b, of)),
    };
    if finite {
        return Ok(());
    }
    let mut values = a.iter().zip(b).map(|(&a, &b)| of(a, b)).enumerate();
    let (index, value) = values.find(|(_, value)| !value.is_finite()).expect("one was not");
    Err(CompressError::NotFinite { index, value })
}

fn all_finite(a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> f32) -> bool {
    a.chunks(CHUNK).zip(b.chunks(CHUNK)).all(|(a, b)| {
        // Zero times a finite number is zero, times NaN or infinity NaN: sixteen sums tell without a branch.
        let mut zeros = [0.0_f32; 16];
        let (a, a_rest) = a.as_chunks::<16>();
        let (b, b_rest) = b.as_chunks::<16>();
        for (a, b) in a.iter().zip(b) {
            (0..16).for_each(|lane| zeros[lane] += 0.0 * of(a[lane], b[lane]));
        }
        zeros.iter().all(|&sum| sum == 0.0) && a_rest.iter().zip(b_rest).all(|(&a, &b)| of(a, b).is_finite())
    })
}
