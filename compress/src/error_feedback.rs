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

    /// Adds `delta` to what is carried and moves the top k of it into a frame ([`crate::frame`]).
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode_add, sample::gaussian};
    use proptest::prelude::*;

    fn top(kept: usize) -> TopK {
        TopK::new(kept).unwrap()
    }

    /// Steps of one tensor, with magnitudes over many binades.
    fn steps() -> impl Strategy<Value = Vec<Vec<f32>>> {
        let value = || (-1.0_f32..1.0, -8..8_i32).prop_map(|(m, e)| m * 2_f32.powi(e));
        (1..2 * CHUNK)
            .prop_flat_map(move |len| prop::collection::vec(prop::collection::vec(value(), len), 1..4))
    }

    proptest! {
        #[test]
        fn frame_and_buffer_together_hold_all(deltas in steps(), kept in 1_usize..400, decay in 0.0_f32..=1.0) {
            let mut feedback = ErrorFeedback::new(deltas[0].len(), decay).unwrap();
            for delta in &deltas {
                let whole: Vec<f32> = feedback.buffer().iter().zip(delta).map(|(e, d)| decay * e + d).collect();
                let frame = feedback.compress(delta, top(kept)).unwrap();
                let mut level = vec![0.0; delta.len()];
                decode_add(&frame, 1.0, &mut level).unwrap();
                let mut sum = feedback.buffer().to_vec();
                decode_add(&frame, 1.0, &mut sum).unwrap();
                for i in 0..delta.len() {
                    let (whole, level) = (whole[i], level[i]);
                    let exact = level == 0.0 || (0.5..=2.0).contains(&(whole / level));
                    let ulp = if exact { 0.0 } else { f32::EPSILON * whole.abs().max(level.abs()) };
                    prop_assert!((sum[i] - whole).abs() <= ulp, "{i}: {} is not {whole}, level {level}", sum[i]);
                }
            }
        }
    }

    #[test]
    fn what_is_left_out_is_sent_later() {
        let delta = gaussian(1, CHUNK);
        let mut feedback = ErrorFeedback::new(CHUNK, 1.0).unwrap();
        let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        feedback.compress(&delta, top(256)).unwrap();
        for _ in 0..40 {
            feedback.compress(&[0.0; CHUNK], top(256)).unwrap();
        }
        assert!(norm(feedback.buffer()) < 0.02 * norm(&delta), "{} left", norm(feedback.buffer()));
    }

    #[test]
    fn a_value_that_is_not_finite_is_named_and_changes_nothing() {
        let elements = frame::BLOCK + 37;
        for (at, bad) in [(5, f32::NAN), (frame::BLOCK + 36, f32::INFINITY), (CHUNK, f32::NEG_INFINITY)] {
            let mut feedback = ErrorFeedback::new(elements, 0.95).unwrap();
            feedback.compress(&gaussian(2, elements), top(64)).unwrap();
            let before = feedback.clone();
            let mut delta = gaussian(3, elements);
            delta[at] = bad;
            match feedback.compress(&delta, top(64)) {
                Err(CompressError::NotFinite { index, .. }) => assert_eq!(index, at),
                other => panic!("{other:?}"),
            }
            assert_eq!(feedback, before);
        }
    }

    #[test]
    fn a_sum_that_overflows_is_not_finite_either() {
        let mut feedback = ErrorFeedback::new(2, 1.0).unwrap();
        feedback.set_buffer(&[0.0, f32::MAX]).unwrap();
        let error = feedback.compress(&[0.0, f32::MAX], top(64)).unwrap_err();
        assert_eq!(error, CompressError::NotFinite { index: 1, value: f32::INFINITY });
    }

    #[test]
    fn a_restored_buffer_goes_on_with_the_same_bytes() {
        let deltas = [4, 5].map(|seed| gaussian(seed, 3 * CHUNK + 9));
        let mut whole = ErrorFeedback::new(deltas[0].len(), 0.9).unwrap();
        whole.compress(&deltas[0], top(64)).unwrap();
        let mut resumed = ErrorFeedback::new(deltas[0].len(), 0.9).unwrap();
        resumed.set_buffer(whole.buffer()).unwrap();
        assert_eq!(
            whole.compress(&deltas[1], top(64)).unwrap(),
            resumed.compress(&deltas[1], top(64)).unwrap()
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for decay in [-0.1, 1.1, f32::NAN] {
            assert!(matches!(ErrorFeedback::new(4, decay), Err(CompressError::Decay(_))));
        }
        let mut feedback = ErrorFeedback::new(4, 0.5).unwrap();
        let elements = CompressError::Elements { expected: 4, got: 5 };
        assert_eq!(feedback.compress(&[0.0; 5], top(1)), Err(elements));
        assert_eq!(feedback.set_buffer(&[0.0; 5]), Err(elements));
        let error = feedback.set_buffer(&[0.0, f32::INFINITY, 0.0, 0.0]).unwrap_err();
        assert_eq!(error, CompressError::NotFinite { index: 1, value: f32::INFINITY });
    }
}
