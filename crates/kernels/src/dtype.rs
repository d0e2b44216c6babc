//! The number formats of weights, as GGUF files store them, and the naive definition of each.

mod group;
pub mod quantize;

use std::fmt;

pub(crate) use group::Group;
#[cfg(feature = "cuda")]
pub(crate) use group::offset;

use crate::error::KernelError;

/// Values that share one activation scale: every quantized format is walked in groups of this many.
pub(crate) const GROUP: usize = 32;

/// The type of a weight matrix. Names and byte layouts are those of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// IEEE half floats.
    F16,
    /// Brain floats: the upper half of a 32-bit float.
    Bf16,
    /// 4 bits, one scale per 32 values.
    Q4_0,
    /// 4 bits, scale and minimum per 32 values.
    Q4_1,
    /// 5 bits, one scale per 32 values.
    Q5_0,
    /// 5 bits, scale and minimum per 32 values.
    Q5_1,
    /// 8 bits, one scale per 32 values.
    Q8_0,
    /// 4 bits, 6-bit scales and minima per 32 values in blocks of 256.
    Q4K,
    /// 5 bits, 6-bit scales and minima per 32 values in blocks of 256.
    Q5K,
    /// 6 bits, 8-bit scales per 16 values in blocks of 256.
    Q6K,
}

impl Dtype {
    /// Every type.
    pub const ALL: [Dtype; 11] = [
        Dtype::F32,
        Dtype::F16,
        Dtype::Bf16,
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_0,
        Dtype::Q5_1,
        Dtype::Q8_0,
        Dtype::Q4K,
        Dtype::Q5K,
        Dtype::Q6K,
    ];

    /// The type that GGUF (and ggml) gives this number.
    ///
    /// # Errors
    /// A number of no type, or of one that these kernels lack.
    pub fn from_ggml(number: u32) -> Result<Dtype, KernelError> {
        Ok(match number {
            0 => Dtype::F32,
            1 => Dtype::F16,
            2 => Dtype::Q4_0,
            3 => Dtype::Q4_1,
            6 => Dtype::Q5_0,
            7 => Dtype::Q5_1,
            8 => Dtype::Q8_0,
            12 => Dtype::Q4K,
            13 => Dtype::Q5K,
            14 => Dtype::Q6K,
            30 => Dtype::Bf16,
            _ => return Err(KernelError::UnknownType(number)),
        })
    }

    /// Values in one block: a row holds whole blocks.
    pub fn block(self) -> usize {
        match self {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => 1,
            Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q8_0 => 32,
            Dtype::Q4K | Dtype::Q5K | Dtype::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::Q4_0 => 18,
            Dtype::Q4_1 => 20,
            Dtype::Q5_0 => 22,
            Dtype::Q5_1 => 24,
            Dtype::Q8_0 => 34,
            Dtype::Q4K => 144,
            Dtype::Q5K => 176,
            Dtype::Q6K => 210,
        }
    }

    /// Bytes of `values` values in whole blocks; `None` where they do not fit the address space.
    pub fn bytes(self, values: usize) -> Option<usize> {
        values.div_ceil(self.block()).checked_mul(self.block_bytes())
    }

    /// Whether products with this type run on integers.
    pub fn is_quantized(self) -> bool {
        self.block() > 1
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_1 => "Q4_1",
            Dtype::Q5_0 => "Q5_0",
            Dtype::Q5_1 => "Q5_1",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q4K => "Q4_K",
            Dtype::Q5K => "Q5_K",
            Dtype::Q6K => "Q6_K",
        })
    }
}

/// Writes the values of `bytes` (whole blocks of `dtype`) to `out`, one after the other: the definition that every kernel
/// is tested against, and what loaders use for small tensors.
///
/// # Errors
/// `out` is not a whole number of blocks, or `bytes` is not what they take.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    check_bytes(dtype, bytes, 1, out.len())?;
    match dtype {
        Dtype::F32 => {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*raw);
            }
        }
        Dtype::F16 | Dtype::Bf16 => {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks().0) {
                *value = half_to_f32(dtype, u16::from_le_bytes(*raw));
            }
        }
        _ => {
            for (index, values) in out.as_chunks_mut().0.iter_mut().enumerate() {
                Group::read(dtype, bytes, index).expand(dtype, values);
            }
        }
    }
    Ok(())
}

/// The value of a 16-bit float of either kind.
pub(crate) fn half_to_f32(dtype: Dtype, bits: u16) -> f32 {
    match dtype {
        Dtype::Bf16 => f32::from_bits(u32::from(bits) << 16),
        _ => half::f16::from_bits(bits).to_f32(),
    }
}

/// Refuses bytes that are not `n` rows of `k` values.
pub(crate) fn check_bytes(dtype: Dtype, bytes: &[u8], n: usize, k: usize) -> Result<(), KernelError> {
    if !k.is_multiple_of(dtype.block()) {
        return Err(KernelError::Block { dtype, block: dtype.block(), k });
    }
    let expected = dtype
        .bytes(k)
        .and_then(|row| row.checked_mul(n))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or(KernelError::TooLarge { dtype, n, k })?;
    if bytes.len() != expected {
        return Err(KernelError::ByteCount { dtype, n, k, expected, found: bytes.len() });
    }
    Ok(())
}
