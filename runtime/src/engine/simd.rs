//! Plain loops, compiled for the vector width of the CPU at hand.
//!
//! The crate is built for x86-64 as such (4 lanes). [`vectorised!`] compiles a function a second time for AVX2 (8 lanes)
//! and calls that where the CPU has it. Rust contracts no multiply-add by itself, so both give the same bits. Sums keep
//! [`LANES`] partial sums, whose order no width changes.
//!
//! Not here: products of matrices (`matrix`).

/// Partial sums kept side by side in [`dot`] and its like.
const LANES: usize = 16;

/// Wraps a function: compiled for the baseline and for AVX2, chosen at each call.
macro_rules! vectorised {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$attribute])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($argument: $type),*) $(-> $result)? {
                plain($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the CPU has AVX2, asked just above; the function is safe otherwise.
                return unsafe { avx2($($argument),*) };
            }
            plain($($argument),*)
        }
    };
}
pub(super) use vectorised;

/// Σ aᵢ·bᵢ·cᵢ in a fixed order.
#[inline(always)]
pub(super) fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    assert!(a.len() == b.len() && b.len() == c.len(), "summed over slices of one length");
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let (c_chunks, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a_chunks.iter().zip(b_chunks).zip(c_chunks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i] * c[i];
        }
    }
    for (i, ((a, b), c)) in a_rest.iter().zip(b_rest).zip(c_rest).enumerate() {
        lanes[i] += a * b * c;
    }
    fold(lanes, |x, y| x + y)
}

/// Σ aᵢ·bᵢ in a fixed order.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "summed over two slices of one length");
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] += a * b;
    }
    fold(lanes, |x, y| x + y)
}

/// Σ f(aᵢ) in a fixed order.
#[inline(always)]
pub(super) fn sum(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        lanes[i] += f(x);
    }
    fold(lanes, |x, y| x + y)
}

/// The largest element.
#[inline(always)]
pub(super) fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let larger = |x: f32, y: f32| if y > x { y } else { x };
    let (chunks, rest) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        lanes[i] = larger(lanes[i], x);
    }
    fold(lanes, larger)
}

/// `exp(x)` within 2 ulp; flushes to 0 below -87 and saturates above 88.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, so exp(x) = 2ⁿ·exp(r): a polynomial for exp(r) and n put into the exponent's
/// bits. ln 2 is in two parts (Cody and Waite 1980), so r loses nothing. No table and no branch: it vectorises.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// 1.5·2²³: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > 88.0 { 88.0 } else { x };
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // exp(r) = 1 + r + r²·q(r): fitted by least squares for the smallest relative error on the interval, 3e-9.
    let mut q = 0.001_381_454;
    for c in [0.008_368_745, 0.041_668_39, 0.166_665_21, 0.499_999_94] {
        q = q * r + c;
    }
    let p = q * (r * r) + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.0 { 0.0 } else { p * power }
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_and_flushes_at_the_ends() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let (got, want) = (exp(x) as f64, (x as f64).exp());
            assert!((got / want - 1.0).abs() < 2.4e-7, "exp({x}) = {got}, not {want}");
        }
        assert_eq!((exp(-1000.0), exp(0.0), exp(f32::NEG_INFINITY)), (0.0, 1.0, 0.0));
        assert!(exp(1000.0) > 1e38 && exp(1000.0).is_finite() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_have_the_same_bits_at_every_vector_width() {
        let a: Vec<f32> = (0..1003).map(|i| exp((i % 17) as f32 * -0.31)).collect();
        vectorised! {
            fn wide(a: &[f32]) -> (f32, f32, f32) {
                (sum(a, exp), dot(a, a), max(a))
            }
        }
        let plain = (sum(&a, exp), dot(&a, &a), max(&a));
        assert_eq!(wide(&a), plain);
        let exact: f64 = a.iter().map(|x| *x as f64 * *x as f64).sum();
        assert!((plain.1 as f64 / exact - 1.0).abs() < 1e-6 && plain.2 == 1.0);
    }
}
