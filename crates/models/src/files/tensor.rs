//! One tensor as it lies in its file.
use super::dtype::{Dtype, row_bytes};
use crate::error::{ModelError, Result};
use std::borrow::Cow;
use std::ops::Range;

/// A tensor: row-major, the last size contiguous. Its bytes borrow from the mapped file wherever the file holds them in
/// this order; only a transposed matrix (GPT-2) is a copy. They may lie at any alignment.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Name in the file; a slice of a fused tensor keeps the fused tensor's name.
    pub name: &'a str,
    /// Number format.
    pub dtype: Dtype,
    /// Sizes, outermost first: `[out, in]` for a matrix.
    pub shape: Vec<usize>,
    /// Exactly `rows() * row_bytes()` bytes, little endian.
    pub bytes: Cow<'a, [u8]>,
}

/// Whether the product of these sizes, zeros left out, fits in memory: then no product of some of them overflows.
pub(super) fn countable(shape: &[usize]) -> bool {
    let product = shape.iter().try_fold(1usize, |product, size| product.checked_mul((*size).max(1)));
    product.is_some_and(|product| isize::try_from(product).is_ok())
}

impl<'a> Tensor<'a> {
    /// Length of a row: the last size.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    /// Number of rows: the product of all sizes but the last.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        row_bytes(self.dtype, self.columns()).unwrap_or(0)
    }
    /// Number of numbers.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The numbers as f32, of a tensor stored as F32, F16 or BF16 (norms, biases, positions).
    ///
    /// # Errors
    /// [`ModelError::UnsupportedDtype`] for a quantized tensor: those are read by the kernels, block by block.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(match self.dtype {
            Dtype::F32 => self.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => self.bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::Bf16 => {
                self.bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
            }
            found => {
                return Err(ModelError::UnsupportedDtype {
                    tensor: self.name.to_string(),
                    found: format!("{found} where full precision is needed"),
                });
            }
        })
    }

    /// Rows of a matrix, as a view of the same bytes. `None` if they are not all there.
    pub(crate) fn slice_rows(self, rows: Range<usize>) -> Option<Self> {
        let columns = self.columns();
        let row = self.row_bytes();
        if rows.start > rows.end || rows.end > self.rows() {
            return None;
        }
        let range = rows.start * row..rows.end * row;
        let bytes = match self.bytes {
            Cow::Borrowed(all) => Cow::Borrowed(all.get(range)?),
            Cow::Owned(all) => Cow::Owned(all.get(range)?.to_vec()),
        };
        // A slice of a vector (a bias) stays a vector: its "rows" are its elements, see `slice`.
        Some(Self { name: self.name, dtype: self.dtype, shape: vec![rows.len(), columns], bytes })
    }

    /// Part of the outermost dimension: rows of a matrix, elements of a vector.
    pub(crate) fn slice(mut self, range: Range<usize>) -> Option<Self> {
        if self.shape.len() == 1 && self.dtype.block() == 1 {
            let len = range.len();
            self.shape.push(1);
            let mut part = self.slice_rows(range)?;
            part.shape = vec![len];
            return Some(part);
        }
        self.slice_rows(range)
    }

    /// Matrix `index` of a stack of matrices.
    pub(crate) fn layer(mut self, index: usize) -> Option<Self> {
        let [stack, rows, columns] = self.shape[..] else {
            return None;
        };
        if index >= stack {
            return None;
        }
        self.shape = vec![stack * rows, columns];
        self.slice_rows(index * rows..(index + 1) * rows)
    }

    /// The transpose of a matrix, as a copy. `None` for quantized numbers, whose blocks lie along the rows.
    pub(crate) fn transposed(&self) -> Option<Self> {
        let [rows, columns] = self.shape[..] else {
            return None;
        };
        if self.dtype.block() != 1 {
            return None;
        }
        let size = self.dtype.block_bytes();
        let mut bytes = vec![0; self.bytes.len()];
        for (row, line) in self.bytes.chunks_exact(columns.checked_mul(size)?.max(1)).enumerate() {
            for (column, number) in line.chunks_exact(size).enumerate() {
                let at = (column * rows + row) * size;
                bytes.get_mut(at..at + size)?.copy_from_slice(number);
            }
        }
        Some(Self { name: self.name, dtype: self.dtype, shape: vec![columns, rows], bytes: Cow::Owned(bytes) })
    }
}
