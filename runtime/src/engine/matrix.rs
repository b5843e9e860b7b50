//! Strided views of f32 matrices, and their product.
//!
//! Attention works on columns of the fused qkv matrix, and threads write to disjoint columns of one buffer. Slices
//! cannot say that, so a view is a pointer with its shape; every view is made from a slice, checked there, and only
//! ever narrowed. Products go to the `gemm` crate, one thread each: threads divide rows among themselves (`lanes`).
//!
//! The bits of a product must not depend on how its rows were divided. The kernel adds in order of k inside a block of
//! k and rounds once a block; it chooses the block by all three sizes once k > 512, so [`K_BLOCK`] fixes it here. Below
//! 256 elements, or with one row or column, it turns to other kernels with another order: the divisions of `lanes` stay
//! above that.
//!
//! Not here: threads, bias and everything else that is not a product.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

/// The longest inner dimension that one call of the kernel takes.
const K_BLOCK: usize = 512;

/// A matrix for reading: any strides.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: *const f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    of: PhantomData<&'a [f32]>,
}

/// A matrix for writing: the elements of a row are neighbours.
pub(super) struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Mat` reads what a `&[f32]` of the same lifetime may read.
unsafe impl Send for Mat<'_> {}
// SAFETY: as above.
unsafe impl Sync for Mat<'_> {}
// SAFETY: a `MatMut` owns the elements of its rows and columns as a `&mut [f32]` owns its own, and is not `Clone`.
unsafe impl Send for MatMut<'_> {}

impl<'a> Mat<'a> {
    /// A whole slice as a row-major matrix with `cols` columns.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        assert!(data.len().is_multiple_of(cols), "{} elements are no rows of {cols}", data.len());
        Mat {
            data: data.as_ptr(),
            rows: data.len() / cols,
            cols,
            row_stride: cols,
            col_stride: 1,
            of: PhantomData,
        }
    }

    /// Rows and columns exchanged.
    pub fn t(self) -> Self {
        Mat {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the rows.
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let data = self.data.wrapping_add(range.start * self.row_stride);
        Mat { data, rows: range.len(), ..self }
    }

    /// Some of the columns.
    pub fn cols(self, range: Range<usize>) -> Self {
        self.t().rows(range).t()
    }

    /// One row, whose elements must be neighbours.
    pub fn row(self, row: usize) -> &'a [f32] {
        assert!(row < self.rows && self.col_stride == 1, "row {row} of {}", self.rows);
        // SAFETY: the row lies inside the slice that the view was made from, which lives for 'a.
        unsafe { std::slice::from_raw_parts(self.data.add(row * self.row_stride), self.cols) }
    }

    /// How many rows.
    pub fn height(self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn width(self) -> usize {
        self.cols
    }
}

impl<'a> MatMut<'a> {
    /// A whole slice as a row-major matrix with `cols` columns.
    pub fn new(data: &'a mut [f32], cols: usize) -> Self {
        assert!(data.len().is_multiple_of(cols), "{} elements are no rows of {cols}", data.len());
        let rows = data.len() / cols;
        MatMut { data: data.as_mut_ptr(), rows, cols, row_stride: cols, of: PhantomData }
    }

    /// The same elements for reading, as long as this borrow lasts.
    pub fn view(&self) -> Mat<'_> {
        Mat {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: 1,
            of: PhantomData,
        }
    }

    /// The same elements for writing, as long as this borrow lasts.
    pub fn borrow(&mut self) -> MatMut<'_> {
        MatMut { of: PhantomData, ..*self }
    }

    /// Some of the rows, as long as this borrow lasts.
    pub fn rows(&mut self, range: Range<usize>) -> MatMut<'_> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let data = self.data.wrapping_add(range.start * self.row_stride);
        MatMut { data, rows: range.len(), of: PhantomData, ..*self }
    }

    /// One row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row lies inside the slice that the view was made from, and the view alone owns its elements.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.cols) }
    }

    /// The first `width` columns, and the rest.
    pub fn split_cols(self, width: usize) -> (MatMut<'a>, MatMut<'a>) {
        assert!(width <= self.cols, "{width} columns of {}", self.cols);
        let rest = self.data.wrapping_add(width);
        (
            MatMut { cols: width, of: PhantomData, ..self },
            MatMut { data: rest, cols: self.cols - width, of: PhantomData, ..self },
        )
    }
}

/// `dst = scale · lhs · rhs`.
pub(super) fn multiply(dst: MatMut<'_>, lhs: Mat<'_>, rhs: Mat<'_>, scale: f32) {
    product(dst, lhs, rhs, scale, Onto::Nothing);
}

/// `dst += scale · lhs · rhs`.
pub(super) fn multiply_add(dst: MatMut<'_>, lhs: Mat<'_>, rhs: Mat<'_>, scale: f32) {
    product(dst, lhs, rhs, scale, Onto::Dst);
}

#[derive(Clone, Copy, PartialEq)]
enum Onto {
    Nothing,
    Dst,
}

fn product(dst: MatMut<'_>, lhs: Mat<'_>, rhs: Mat<'_>, scale: f32, onto: Onto) {
    let (m, n, k) = (dst.rows, dst.cols, lhs.cols);
    assert!(
        lhs.rows == m && rhs.cols == n && rhs.rows == k,
        "[{m}, {n}] from [{}, {k}] and [{}, {}]",
        lhs.rows,
        rhs.rows,
        rhs.cols
    );
    for start in (0..k).step_by(K_BLOCK) {
        let onto_dst = start > 0 || onto == Onto::Dst;
        let depth = K_BLOCK.min(k - start);
        // SAFETY: the shapes agree (above), every element of the three views lies inside a slice that is borrowed for
        // the length of this call, and `dst` overlaps neither operand, being borrowed for writing.
        unsafe {
            gemm::gemm(
                m,
                n,
                depth,
                dst.data,
                1,
                dst.row_stride as isize,
                onto_dst,
                lhs.data.add(start * lhs.col_stride),
                lhs.col_stride as isize,
                lhs.row_stride as isize,
                rhs.data.add(start * rhs.row_stride),
                rhs.col_stride as isize,
                rhs.row_stride as isize,
                1.0,
                scale,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize) -> Vec<f32> {
        let mut state = 1u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(next).collect()
    }

    fn by_hand(lhs: Mat<'_>, rhs: Mat<'_>) -> Vec<f64> {
        let at = |m: Mat<'_>, i, j| if m.col_stride == 1 { m.row(i)[j] } else { m.t().row(j)[i] } as f64;
        let dot = |i, j| (0..lhs.cols).map(|k| at(lhs, i, k) * at(rhs, k, j)).sum();
        (0..lhs.rows).flat_map(|i| (0..rhs.cols).map(move |j| (i, j))).map(|(i, j)| dot(i, j)).collect()
    }

    #[test]
    fn product_of_every_orientation_and_over_several_k_blocks_is_right() {
        for (m, n, k) in [(3, 5, 7), (33, 17, 600), (20, 40, 1100)] {
            let (a, b) = (numbers(m * k), numbers(k * n));
            for (lhs, rhs) in [
                (Mat::new(&a, k), Mat::new(&b, n)),
                (Mat::new(&a, m).t(), Mat::new(&b, n)),
                (Mat::new(&a, k), Mat::new(&b, k).t()),
            ] {
                let mut dst = vec![0.25; m * n];
                multiply_add(MatMut::new(&mut dst, n), lhs, rhs, 2.0);
                for (got, want) in dst.iter().zip(by_hand(lhs, rhs)) {
                    assert!((*got as f64 - 0.25 - 2.0 * want).abs() < 1e-4, "{m} {n} {k}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_how_rows_are_divided() {
        for (m, n, k) in [(64, 8, 8), (96, 24, 768), (130, 64, 1030), (192, 8, 600), (257, 96, 256)] {
            let (a, b) = (numbers(m * k), numbers(k * n));
            for (lhs, rhs) in [
                (Mat::new(&a, k), Mat::new(&b, n)),
                (Mat::new(&a, m).t(), Mat::new(&b, n)),
                (Mat::new(&a, k), Mat::new(&b, k).t()),
            ] {
                let mut whole = vec![0.0; m * n];
                multiply(MatMut::new(&mut whole, n), lhs, rhs, 1.0);
                for band in [64, 96, 128] {
                    let mut parts = vec![0.0; m * n];
                    let mut view = MatMut::new(&mut parts, n);
                    // As `lanes` divides: no short band at the end.
                    let starts: Vec<_> = (0..m).step_by(band).filter(|s| *s == 0 || m - s >= 64).collect();
                    for (i, &start) in starts.iter().enumerate() {
                        let rows = start..starts.get(i + 1).copied().unwrap_or(m);
                        multiply(view.rows(rows.clone()), lhs.rows(rows), rhs, 1.0);
                    }
                    assert!(whole == parts, "[{m}, {k}] x [{k}, {n}] in bands of {band}");
                }
            }
        }
    }

    #[test]
    fn views_narrow_to_the_elements_that_they_name() {
        let mut data: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let (left, mut right) = MatMut::new(&mut data, 4).split_cols(1);
        right.row(1)[2] = 70.0;
        assert_eq!(left.view().t().row_stride, 1);
        assert_eq!(right.view().rows(1..2).cols(1..3).row(0), [6.0, 70.0]);
        assert_eq!(right.rows(2..3).row(0), [9.0, 10.0, 11.0]);
    }
}
