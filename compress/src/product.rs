//! Matrix products of f32, all row-major, on one thread. Bits depend on the CPU's kernel, not on threads.
#![allow(unsafe_code)]

/// A row-major matrix's shape and how it is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right<'a> {
    /// `[inner, columns]`.
    AsIs(&'a [f32]),
    /// `[columns, inner]`, taken transposed.
    Transposed(&'a [f32]),
}

/// What becomes of the values that the product is written over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// They are lost.
    Set,
    /// The product is added to them.
    Add,
}

/// `out[rows, columns]  =  left[rows, inner] * right[inner, columns]`, or `+=`.
///
/// # Panics
/// If the lengths do not fit `rows`, `inner` and `columns`.
pub(crate) fn product(
    [rows, inner, columns]: [usize; 3],
    left: &[f32],
    right: Right<'_>,
    over: Over,
    out: &mut [f32],
) {
    let (right, row_stride, column_stride) = match right {
        Right::AsIs(right) => (right, columns, 1),
        Right::Transposed(right) => (right, 1, inner),
    };
    assert_eq!(left.len(), rows * inner, "left of a product [{rows}, {inner}]");
    assert_eq!(right.len(), inner * columns, "right of a product [{inner}, {columns}]");
    assert_eq!(out.len(), rows * columns, "out of a product [{rows}, {columns}]");
    // SAFETY: the three slices hold exactly the elements that shapes and strides reach, as asserted above; `out` is
    // borrowed mutably, so it overlaps neither.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            columns as isize,
            over == Over::Add,
            left.as_ptr(),
            1,
            inner as isize,
            right.as_ptr(),
            column_stride as isize,
            row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

    #[test]
    fn a_product_by_hand() {
        let mut out = [9.0; 4];
        product([2, 3, 2], &LEFT, Right::AsIs(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), Over::Set, &mut out);
        assert_eq!(out, [4.0, 5.0, 10.0, 11.0]);
        product([2, 3, 2], &LEFT, Right::Transposed(&[1.0, 0.0, 1.0, 0.0, 1.0, 1.0]), Over::Add, &mut out);
        assert_eq!(out, [8.0, 10.0, 20.0, 22.0]);
    }

    #[test]
    #[should_panic(expected = "right of a product [3, 2]")]
    fn a_short_matrix_is_caught_before_it_is_read() {
        product([2, 3, 2], &LEFT, Right::AsIs(&[0.0; 5]), Over::Set, &mut [0.0; 4]);
    }
}
