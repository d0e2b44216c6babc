//! A weight matrix, repacked once at load into the order in which products read it.

use std::sync::Mutex;

use crate::activations::Forms;
use crate::dtype::{Dtype, GROUP, check_bytes, half_to_f32};
use crate::error::KernelError;
use crate::pack::memory::Memory;
use crate::pack::{COLUMNS, float_at, padded_inputs, read_group, tile_bytes, write_tile};
use crate::pool::Pool;
use crate::tier::Tier;

/// A matrix of `n` outputs by `k` inputs: `y = W x`. Packed, immutable; the bytes it was made from are not kept.
pub struct Matrix {
    dtype: Dtype,
    n: usize,
    k: usize,
    tile_bytes: usize,
    memory: Memory,
}

impl Matrix {
    /// Packs `n` rows of `k` values, row by row as checkpoints store them, on the calling thread.
    ///
    /// # Errors
    /// No rows or columns, a width that is not a whole number of blocks, a wrong number of bytes, or no memory.
    pub fn pack(dtype: Dtype, bytes: &[u8], n: usize, k: usize) -> Result<Matrix, KernelError> {
        Matrix::pack_with(&Pool::new(1), dtype, bytes, n, k)
    }

    /// As [`Matrix::pack`], on the threads of a pool.
    ///
    /// # Errors
    /// As [`Matrix::pack`].
    pub fn pack_with(pool: &Pool, dtype: Dtype, bytes: &[u8], n: usize, k: usize) -> Result<Matrix, KernelError> {
        for (what, found) in [("rows of a matrix", n), ("columns of a matrix", k)] {
            if found == 0 {
                return Err(KernelError::Shape { what, expected: 1, found });
            }
        }
        check_bytes(dtype, bytes, n, k)?;
        let too_large = KernelError::TooLarge { dtype, n, k };
        let tile = tile_bytes(dtype, k).ok_or(too_large.clone())?;
        let total = tile.checked_mul(n.div_ceil(COLUMNS)).ok_or(too_large)?;
        let mut memory = Memory::zeroed(total)?;
        let rows = bytes.chunks(COLUMNS * (bytes.len() / n));
        let tiles = memory.as_mut_slice().chunks_exact_mut(tile);
        // Uncontended but for the moment of taking the next tile.
        let work = Mutex::new(rows.zip(tiles));
        pool.run(pool.threads(), &|_| {
            while let Some((rows, tile)) = { work.lock().unwrap_or_else(|e| e.into_inner()).next() } {
                write_tile(dtype, rows, k, tile);
            }
        });
        Ok(Matrix { dtype, n, k, tile_bytes: tile, memory })
    }

    /// Outputs: rows of the stored matrix.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs: columns of the stored matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Type of the stored values.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes that the packed matrix takes; what one pass over it reads.
    pub fn bytes(&self) -> usize {
        self.as_bytes().len()
    }

    /// The packed bytes: what a product reads.
    pub fn as_bytes(&self) -> &[u8] {
        self.memory.as_slice()
    }

    /// The form in which a product with this matrix wants its activations, on the tier in use.
    pub fn form(&self) -> Forms {
        self.form_on(Tier::current())
    }

    /// The form in which a product with this matrix wants its activations, on a given tier.
    pub fn form_on(&self, tier: Tier) -> Forms {
        match self.dtype {
            Dtype::F32 | Dtype::F16 => Forms::F32,
            Dtype::Bf16 if tier == Tier::Avx512Bf16 => Forms::BF16,
            Dtype::Bf16 => Forms::F32,
            _ => Forms::INT8,
        }
    }

    /// Writes row `row`, dequantized exactly as [`crate::dtype::dequantize`] defines it: an embedding look-up in a matrix
    /// that is also the head.
    ///
    /// # Errors
    /// No such row, or `out` does not hold `k` values.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        if row >= self.n {
            return Err(KernelError::Row { row, rows: self.n });
        }
        if out.len() != self.k {
            return Err(KernelError::Length { what: "a row of a matrix", expected: self.k, found: out.len() });
        }
        let (tile, column) = (self.tile(row / COLUMNS), row % COLUMNS);
        match self.dtype {
            Dtype::F32 => {
                for (input, value) in out.iter_mut().enumerate() {
                    let at = float_at(self.dtype, column, input);
                    *value = f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]]);
                }
            }
            Dtype::F16 | Dtype::Bf16 => {
                for (input, value) in out.iter_mut().enumerate() {
                    let at = float_at(self.dtype, column, input);
                    *value = half_to_f32(self.dtype, u16::from_le_bytes([tile[at], tile[at + 1]]));
                }
            }
            _ => {
                for (index, values) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                    read_group(self.dtype, self.k / GROUP, index, column, tile).expand(self.dtype, values);
                }
            }
        }
        Ok(())
    }

    /// Inputs that a kernel walks: `k`, filled up to whole steps for floats.
    pub(crate) fn padded_k(&self) -> usize {
        if self.dtype.is_quantized() { self.k } else { padded_inputs(self.k) }
    }

    /// Sixteen-column tiles.
    pub(crate) fn tiles(&self) -> usize {
        self.n.div_ceil(COLUMNS)
    }

    /// Bytes of one tile.
    pub(crate) fn tile_bytes(&self) -> usize {
        self.tile_bytes
    }

    /// The packed bytes of one tile.
    pub(crate) fn tile(&self, index: usize) -> &[u8] {
        &self.as_bytes()[index * self.tile_bytes..][..self.tile_bytes]
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} {}×{})", self.dtype, self.n, self.k)
    }
}
