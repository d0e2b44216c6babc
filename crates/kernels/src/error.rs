//! What can be wrong with the bytes, shapes and settings that reach the kernels.

use crate::dtype::Dtype;

/// An input that no kernel can work on: what was expected and what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The bytes given for a matrix do not hold `n × k` values of its type.
    #[error(
        "a {dtype} matrix of {n} rows and {k} columns takes {expected} bytes, found {found}; the file is cut short or its shape is wrong"
    )]
    ByteCount {
        /// Type of the matrix.
        dtype: Dtype,
        /// Output rows.
        n: usize,
        /// Input columns.
        k: usize,
        /// Bytes that the shape asks for.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The input width is not a whole number of blocks.
    #[error(
        "a row of a {dtype} matrix holds whole blocks of {block} values, found a width of {k}; convert the matrix to a type with smaller blocks"
    )]
    Block {
        /// Type of the matrix.
        dtype: Dtype,
        /// Values in one block.
        block: usize,
        /// Width that was given.
        k: usize,
    },
    /// The byte count of the shape does not fit the address space.
    #[error("a {dtype} matrix of {n} rows and {k} columns is larger than the address space; its shape is wrong")]
    TooLarge {
        /// Type of the matrix.
        dtype: Dtype,
        /// Output rows.
        n: usize,
        /// Input columns.
        k: usize,
    },
    /// Memory for a packed matrix could not be had.
    #[error("no memory for {bytes} bytes; close other programs or load a smaller model")]
    Memory {
        /// Bytes that were asked for.
        bytes: usize,
    },
    /// A type number that these kernels do not know.
    #[error(
        "GGUF tensor type {0} is not supported; use F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K"
    )]
    UnknownType(u32),
    /// A slice of a product has the wrong length.
    #[error("{what}: expected {expected} values, found {found}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Values that were expected (at least).
        expected: usize,
        /// Values that were found.
        found: usize,
    },
    /// The weights and the activations of a product differ in width, or a gate and its up matrix differ in shape.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which dimension.
        what: &'static str,
        /// Size that was expected.
        expected: usize,
        /// Size that was found.
        found: usize,
    },
    /// The activations were not loaded in the form that a matrix multiplies with.
    #[error(
        "the activations lack the {0} form; load them with the union of `Matrix::form` over all matrices that read them"
    )]
    Form(&'static str),
    /// A row index points behind the loaded rows.
    #[error("activation row {row} was asked for, but only {rows} are loaded")]
    Row {
        /// Index that was asked for.
        row: usize,
        /// Rows that are loaded.
        rows: usize,
    },
    /// The environment names an instruction set that does not exist.
    #[error(
        "OMNIDECODE_TIER={0:?} is unknown; use one of portable, avx2, avxvnni, avx512, avx512bf16, neon, or unset it"
    )]
    UnknownTier(String),
    /// The environment names an instruction set that this machine lacks.
    #[error("OMNIDECODE_TIER={wanted} is not available on this processor; available: {available}")]
    TierUnavailable {
        /// The tier that was asked for.
        wanted: crate::tier::Tier,
        /// The tiers that this machine has, separated by commas.
        available: String,
    },
}

/// A row of activations holds a NaN or an infinity: the request that it belongs to must fail, the others go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "activation row {row} holds a NaN or an infinity; the model's weights or the input embedding are broken for this request"
)]
pub struct NotFinite {
    /// Index of the first such row.
    pub row: usize,
}
