//! What kernels are given: the structs of `kernels/step.cuh`, field for field. A test compares every size with what the
//! C++ compiler says.
use super::Address;

/// Forms of activations: codes of 8 bits.
pub const INT8: u32 = 1;
/// Rounded to bf16.
pub const BF16: u32 = 2;
/// As they are.
pub const F32: u32 = 4;

/// Nothing: no parent, no bad layer.
pub const NONE: u32 = u32::MAX;
/// Tokens that [`Ask::top`] may ask for.
pub const TOP: usize = 64;
/// Tokens of a row that one block reduces.
pub const PIECE: usize = 4096;
/// Places whose softmax is formed in one go.
pub const STRETCH: usize = 256;
/// Queries (rows times heads of one kv head) of an attention block.
pub const QUERIES: usize = 8;
/// Outputs of a block of a product.
pub const TILE: usize = 32;
/// Inputs are padded to a multiple.
pub const CHUNK: usize = 64;

/// A struct that goes to a kernel, by value or in device memory, as its bytes.
pub trait Plain: Copy {
    /// The bytes of some values.
    fn bytes(values: &[Self]) -> &[u8];
    /// Values from bytes; what does not fill a value is left out.
    fn from_bytes(bytes: &[u8]) -> Vec<Self>;
}

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => { $(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = {
            let sum = 0 $(+ size_of::<$type>())*;
            assert!(sum == size_of::<$name>(), concat!(stringify!($name), " has padding"));
        };
        impl_plain!($name);
    )* };
}
macro_rules! impl_plain {
    ($($name:ty),*) => { $(
        impl Plain for $name {
            fn bytes(values: &[Self]) -> &[u8] {
                // SAFETY: numbers without padding, so every byte is initialised.
                unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
            }
            fn from_bytes(bytes: &[u8]) -> Vec<Self> {
                let read = |chunk: &[u8]| {
                    // SAFETY: the chunk has the size; any bits are numbers; unaligned.
                    unsafe { chunk.as_ptr().cast::<Self>().read_unaligned() }
                };
                bytes.chunks_exact(size_of::<Self>()).map(read).collect()
            }
        }
    )* };
}
impl_plain!(u8, u16, u32, f32, [u32; 2], Address);

mod head;
mod layers;
pub use head::*;
pub use layers::*;

plain! {
    /// A matrix `[n, k]`; see `kernels/weights.cuh` for its layouts.
    Weights {
        /// Codes or floats.
        codes: Address,
        /// Scales of groups.
        scales: Address,
        /// Scales of scales.
        supers: Address,
        /// [`super::pack::Format`] as a number.
        format: u32,
        /// Outputs.
        n: u32,
        /// Inputs.
        k: u32,
        /// Inputs, padded.
        kp: u32,
    }
    /// Rows of activations, ready for a product.
    Acts {
        /// `[rows, kp]` of i8.
        codes: Address,
        /// `[rows, kp / 32, 2]`.
        scales: Address,
        /// `[rows, kp]`.
        bf16: Address,
        /// `[rows, kp]`.
        floats: Address,
        /// `[rows, kp / 32]`, or none: rows need no norm.
        squares: Address,
        /// Inputs.
        k: u32,
        /// Inputs, padded.
        kp: u32,
        /// Which are kept.
        forms: u32,
        /// Of the norm.
        eps: f32,
    }
    /// The rows that run in a stretch of layers.
    Stand {
        /// Rows.
        rows: u32,
        /// Tiles of attention.
        tiles: u32,
        /// Stretches of places that hold a visible key.
        stretches: u32,
        /// 0.
        reserved: u32,
    }
    /// A row of the step; ranges are of the arrays beside it.
    Row {
        /// 0 token, 1 embedding, 2 mix, 3 hidden state.
        kind: u32,
        /// Token, or where its part of the array begins.
        at: u32,
        /// Parts of a mix.
        count: u32,
        /// Rotary position.
        position: u32,
        /// Absolute place.
        place: u32,
        /// Slot of its keys and values.
        slot: u32,
        /// First visible span.
        span: u32,
        /// Behind the last.
        span_end: u32,
        /// First visible key outside the pages.
        extra: u32,
        /// Behind the last.
        extra_end: u32,
        /// First page of its table.
        page: u32,
        /// Behind the last.
        page_end: u32,
    }
    /// Neighbouring rows of one sequence that share an attention block.
    AttendTile {
        /// First row, counted among those that run.
        first: u32,
        /// Rows.
        count: u32,
    }
    /// Added to the score of the keys at one place.
    KeyBias {
        /// First row of the step that it is for.
        first: u32,
        /// Behind the last.
        end: u32,
        /// Query head.
        head: u32,
        /// Place of the key.
        place: u32,
        /// In nats.
        add: f32,
    }
    /// A neuron of the feed-forward part that a request moves.
    Clamp {
        /// First row of the step that it is for.
        first: u32,
        /// Behind the last.
        end: u32,
        /// Which.
        neuron: u32,
        /// First place of the rows.
        from: u32,
        /// 0 set, 1 add, 2 scale: before the gate's product; 3 set the product.
        action: u32,
        /// By what.
        value: f32,
    }
    /// A row whose attention weights are read.
    Mass {
        /// Among the rows that run.
        row: u32,
        /// Of the step.
        step_row: u32,
        /// First of its keys.
        key: u32,
        /// How many.
        keys: u32,
        /// Where its weights go.
        out: u32,
        /// Keys of the rows before it in this launch.
        before: u32,
    }
}
