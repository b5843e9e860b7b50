//! Initial values: a function of the seed and the tensor's name, so any cut of the model begins with the same bits.
//!
//! The stream is BLAKE3's extendable output over the seed and the name. A normal number is the sum of eight uniform
//! 16-bit numbers, centred and scaled (Irwin-Hall): additions alone, so it has the same bits on every machine, which the
//! system's `ln` and `cos` would not promise. Its tails end at 4.9 deviations.
//!
//! Source of the values: GPT-2's; `layout` has them.

/// What a tensor begins as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Initial {
    Zero,
    One,
    /// Normal about 0.
    Normal {
        deviation: f32,
    },
}

/// Fills one tensor.
pub(super) fn fill(tensor: &mut [f32], initial: Initial, seed: u64, name: &str) {
    match initial {
        Initial::Zero => tensor.fill(0.0),
        Initial::One => tensor.fill(1.0),
        Initial::Normal { deviation } => normal(tensor, deviation, seed, name),
    }
}

const TERMS: usize = 8;

fn normal(tensor: &mut [f32], deviation: f32, seed: u64, name: &str) {
    let mut hasher = blake3::Hasher::new_derive_key("narrows 2026 initial value of a parameter");
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    let mut stream = hasher.finalize_xof();
    // A uniform term on 0..65536 has variance 65536²/12.
    let unit = deviation * (12.0 / TERMS as f32).sqrt() / 65536.0;
    let mut bytes = [0; 512 * 2 * TERMS];
    for part in tensor.chunks_mut(512) {
        stream.fill(&mut bytes);
        for (value, terms) in part.iter_mut().zip(bytes.as_chunks::<{ 2 * TERMS }>().0) {
            let sum: i32 = terms.as_chunks().0.iter().map(|term| u16::from_le_bytes(*term) as i32).sum();
            // Twice the distance from the mean, TERMS·65535/2, so that it stays whole.
            *value = (2 * sum - TERMS as i32 * 65535) as f32 * 0.5 * unit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_values_have_the_right_moments_and_depend_on_seed_and_name_alone() {
        let make = |len: usize, seed, name| {
            let mut tensor = vec![0.0; len];
            fill(&mut tensor, Initial::Normal { deviation: 2.0 }, seed, name);
            tensor
        };
        let x = make(100_000, 1, "a");
        let moment = |n| x.iter().map(|x| (*x as f64).powi(n)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 0.03 && (moment(2) - 4.0).abs() < 0.08, "{} {}", moment(1), moment(2));
        // Irwin-Hall of 8: kurtosis 3 - 6/(5·8) = 2.85.
        assert!((moment(4) / 16.0 - 2.85).abs() < 0.1);
        assert_eq!(make(700, 1, "a"), x[..700]);
        assert_ne!(make(700, 1, "b"), x[..700]);
        assert_ne!(make(700, 2, "a"), x[..700]);
    }
}
