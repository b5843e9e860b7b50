//! Seeded random tensors for tests.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// `len` nearly normal numbers: sums of twelve uniform ones.
pub(crate) fn gaussian(seed: u64, len: usize) -> Vec<f32> {
    let mut stream = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = || (0..12).map(|_| stream.next_u32() as f32 / u32::MAX as f32).sum::<f32>() - 6.0;
    (0..len).map(|_| normal()).collect()
}
