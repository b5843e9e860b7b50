//! A boundary through a fixed subspace: rows are sent as their coordinates in `rank` directions.
//!
//! ```text
//!  U [width, rank], orthonormal columns, the same at both ends (drawn from a seed)
//!  activations  Z = (X - X0) U,  X^ = Z U^T + X0      X0: the anchor both ends know (embedding of the tokens), or none
//!  gradients    Z = G U,         G^ = Z U^T           Z [rows, rank] goes as bfloat16
//! ```
//!
//! Exact to rounding when every row of X - X0 lies in span U, which constrained weights give (arXiv 2506.01260: what
//! writes to the residual stream is projected after each step); otherwise the projection onto it (arXiv 2601.02360).
//!
//! U is QR of a random matrix by modified Gram-Schmidt, done twice, in f64. Every operation is an IEEE addition,
//! multiplication, division or root in a fixed order, and the normal numbers are sums of twelve uniform ones, so any
//! machine draws the same bits; a library's logarithm would not promise that.
//!
//! Not here: constraining weights (the engine's), learning U.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::{
    bf16,
    boundary::BoundaryError,
    product::{Over, Right, product},
};

/// Rows projected at a time, to keep the difference to the anchor in cache.
const ROWS: usize = 128;

/// The subspace of a boundary.
#[derive(Clone, PartialEq)]
pub struct Subspace {
    /// U, row-major: what both products read along their rows.
    basis: Vec<f32>,
    width: usize,
    rank: usize,
}

impl Subspace {
    /// Draws a subspace of `rank` directions of `width`; same arguments, same bits, on any machine.
    ///
    /// # Errors
    /// [`BoundaryError::Rank`] unless `1 <= rank <= width`.
    pub fn from_seed(seed: u64, width: usize, rank: usize) -> Result<Self, BoundaryError> {
        if !(1..=width).contains(&rank) {
            return Err(BoundaryError::Rank { rank, width });
        }
        let mut columns = normal_columns(seed, width, rank);
        orthonormalise(&mut columns, width);
        let mut basis = vec![0.0; width * rank];
        for (direction, column) in columns.chunks_exact(width).enumerate() {
            for (at, &value) in column.iter().enumerate() {
                basis[at * rank + direction] = value as f32;
            }
        }
        Ok(Self { basis, width, rank })
    }

    /// U, row-major `[width, rank]`.
    pub fn basis(&self) -> &[f32] {
        &self.basis
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Values sent of a row.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// `(X - anchor) U` of `x [rows, width]` as `[rows, rank]`.
    ///
    /// # Panics
    /// If `x` is not whole rows or `anchor` not as long.
    pub fn project(&self, x: &[f32], anchor: Option<&[f32]>) -> Vec<f32> {
        assert_eq!(x.len() % self.width, 0, "{} values are not rows of {}", x.len(), self.width);
        let rows = x.len() / self.width;
        let mut z = vec![0.0; rows * self.rank];
        let Some(anchor) = anchor else {
            product([rows, self.width, self.rank], x, Right::AsIs(&self.basis), Over::Set, &mut z);
            return z;
        };
        assert_eq!(anchor.len(), x.len(), "anchor of other rows than the activations");
        let mut difference = Vec::with_capacity(ROWS.min(rows) * self.width);
        let block = ROWS * self.width;
        for ((x, anchor), z) in x.chunks(block).zip(anchor.chunks(block)).zip(z.chunks_mut(ROWS * self.rank))
        {
            difference.clear();
            difference.extend(x.iter().zip(anchor).map(|(x, anchor)| x - anchor));
            let shape = [x.len() / self.width, self.width, self.rank];
            product(shape, &difference, Right::AsIs(&self.basis), Over::Set, z);
        }
        z
    }

    /// `Z U^T + anchor` of `z [rows, rank]` into `out [rows, width]`.
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn lift(&self, z: &[f32], anchor: Option<&[f32]>, out: &mut [f32]) {
        let shape = [z.len() / self.rank, self.rank, self.width];
        let over = match anchor {
            Some(anchor) => {
                out.copy_from_slice(anchor);
                Over::Add
            }
            None => Over::Set,
        };
        product(shape, z, Right::Transposed(&self.basis), over, out);
    }

    /// Appends the coordinates of `x` as bfloat16.
    pub(crate) fn encode(&self, x: &[f32], anchor: Option<&[f32]>, out: &mut Vec<u8>) {
        bf16::encode(&self.project(x, anchor), out);
    }

    /// The rows whose coordinates are `bytes`.
    pub(crate) fn decode(&self, bytes: &[u8], anchor: Option<&[f32]>, out: &mut [f32]) {
        let mut z = vec![0.0; bytes.len() / 2];
        bf16::decode(bytes, &mut z);
        self.lift(&z, anchor, out);
    }
}

impl std::fmt::Debug for Subspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subspace({} of {})", self.rank, self.width)
    }
}

/// `rank` columns of `width` nearly normal numbers, one after another.
fn normal_columns(seed: u64, width: usize, rank: usize) -> Vec<f64> {
    let mut key = [0; 32];
    key[..24].copy_from_slice(b"narrows.subspace.basis.1");
    key[24..].copy_from_slice(&seed.to_le_bytes());
    let mut stream = ChaCha8Rng::from_seed(key);
    // Irwin-Hall: the sum of 12 uniform numbers has variance 1.
    let mut normal = || (0..12).map(|_| f64::from(stream.next_u32()) / 2_f64.powi(32)).sum::<f64>() - 6.0;
    (0..width * rank).map(|_| normal()).collect()
}

/// Makes columns of `width` orthonormal, each against those before it, twice: once leaves errors that grow with the
/// condition number, twice is enough (Kahan and Parlett).
fn orthonormalise(columns: &mut [f64], width: usize) {
    for at in 0..columns.len() / width {
        let (before, rest) = columns.split_at_mut(at * width);
        let column = &mut rest[..width];
        for _ in 0..2 {
            for other in before.chunks_exact(width) {
                let overlap = dot(other, column);
                column.iter_mut().zip(other).for_each(|(value, other)| *value -= overlap * other);
            }
        }
        let norm = dot(column, column).sqrt();
        column.iter_mut().for_each(|value| *value /= norm);
    }
}

/// Eight sums in a fixed order: the compiler may use vectors, not another order.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        (0..8).for_each(|lane| sums[lane] += a[lane] * b[lane]);
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BoundaryCodec, sample::gaussian};

    const BASIS_CRC: u32 = 0x6d3d_34e1;
    const ROWS_TRIED: usize = 2 * ROWS + 3;

    fn subspace() -> Subspace {
        Subspace::from_seed(7, 96, 17).unwrap()
    }

    fn largest(values: impl Iterator<Item = f32>) -> f32 {
        values.fold(0.0, |m, x| m.max(x.abs()))
    }

    #[test]
    fn the_basis_is_orthonormal() {
        for (width, rank) in [(96, 17), (8, 8), (1, 1), (1024, 64)] {
            let subspace = Subspace::from_seed(3, width, rank).unwrap();
            let mut gram = vec![0.0; rank * width];
            subspace.lift(&identity(rank), None, &mut gram);
            let gram = subspace.project(&gram, None);
            assert!(largest(gram.iter().zip(identity(rank)).map(|(a, b)| a - b)) < 2e-6, "{width} {rank}");
        }
    }

    fn identity(rank: usize) -> Vec<f32> {
        (0..rank * rank).map(|at| if at % (rank + 1) == 0 { 1.0 } else { 0.0 }).collect()
    }

    #[test]
    fn every_machine_draws_these_bits() {
        let bytes: Vec<u8> = subspace().basis().iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(crc32fast::hash(&bytes), BASIS_CRC);
        assert_ne!(Subspace::from_seed(8, 96, 17).unwrap(), subspace());
    }

    #[test]
    fn rows_in_the_anchored_subspace_come_back() {
        let subspace = subspace();
        let anchor = gaussian(1, ROWS_TRIED * 96);
        let mut x = vec![0.0; anchor.len()];
        subspace.lift(&gaussian(2, ROWS_TRIED * 17), Some(&anchor), &mut x);
        let mut back = vec![0.0; x.len()];
        subspace.lift(&subspace.project(&x, Some(&anchor)), Some(&anchor), &mut back);
        assert!(largest(x.iter().zip(&back).map(|(x, y)| x - y)) < 5e-6);
        // As a message the coordinates are rounded: 2^-8 of the part in the subspace.
        let codec = BoundaryCodec::Subspace(subspace);
        let mut bytes = Vec::new();
        codec.encode(&x, 96, Some(&anchor), &mut bytes);
        codec.decode(&bytes, ROWS_TRIED, 96, Some(&anchor), &mut back).unwrap();
        assert!(largest(x.iter().zip(&back).map(|(x, y)| x - y)) < 0.02);
    }

    #[test]
    fn other_rows_come_back_as_their_nearest_point() {
        let subspace = subspace();
        let x = gaussian(3, ROWS_TRIED * 96);
        let mut back = vec![0.0; x.len()];
        subspace.lift(&subspace.project(&x, None), None, &mut back);
        // What is lost has no part in the subspace.
        let lost: Vec<f32> = x.iter().zip(&back).map(|(x, y)| x - y).collect();
        assert!(largest(lost.iter().copied()) > 1.0);
        assert!(largest(subspace.project(&lost, None).into_iter()) < 1e-5);
    }

    #[test]
    fn impossible_ranks_are_refused() {
        for rank in [0, 97] {
            assert_eq!(Subspace::from_seed(0, 96, rank), Err(BoundaryError::Rank { rank, width: 96 }));
        }
    }
}
