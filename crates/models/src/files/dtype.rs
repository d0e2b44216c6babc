//! Number formats of weights are those of the kernels.
pub use omnidecode_kernels::dtype::Dtype;

/// Bytes of a row of `columns` numbers; `None` if the row is not a whole number of blocks, or overflows.
pub(crate) fn row_bytes(dtype: Dtype, columns: usize) -> Option<usize> {
    if columns.is_multiple_of(dtype.block()) { dtype.bytes(columns) } else { None }
}
