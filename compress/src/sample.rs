//! Seeded random tensors for tests.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// `len` normal numbers (Box and Muller).
pub(crate) fn gaussian(seed: u64, len: usize) -> Vec<f32> {
    let mut stream = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || (f64::from(stream.next_u32()) + 0.5) / 2_f64.powi(32);
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..len).map(|_| normal() as f32).collect()
}
