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
    /// Arguments of `embed`.
    EmbedArgs {
        /// Embedding.
        table: Weights,
        /// What the first layer reads.
        next: Acts,
        /// Learned positions, or none.
        positions: Address,
        /// Gain of the first norm, or none.
        gain: Address,
        /// Given vectors.
        vectors: Address,
        /// Parts of mixes: token, weight.
        mixes: Address,
        /// All rows of the step.
        rows: Address,
        /// Those that run.
        index: Address,
        /// How many.
        stand: Address,
        /// Residual stream.
        x: Address,
        /// First layer at which a row was not finite.
        bad: Address,
        /// Width.
        hidden: u32,
        /// Learned positions.
        learned: u32,
        /// Factor on embeddings.
        scale: f32,
        /// Said of rows that are not finite.
        layer: u32,
    }
    /// Arguments of `norm_rows`.
    NormArgs {
        /// What the next product reads.
        next: Acts,
        /// Residual stream.
        x: Address,
        /// What is normed instead of `x`, by running row; or none.
        h: Address,
        /// Where the norm of `h` is added, or none.
        add: Address,
        /// Of this norm; none: no norm.
        weight: Address,
        /// Of this norm.
        bias: Address,
        /// Of the norm behind.
        gain: Address,
        /// The rows in f32, or none.
        out: Address,
        /// Rows that run.
        index: Address,
        /// How many.
        stand: Address,
        /// First layer at which a row was not finite.
        bad: Address,
        /// 0 RMS, 1 layer norm.
        kind: u32,
        /// Width.
        k: u32,
        /// Said of rows that are not finite.
        layer: u32,
        /// Under the root.
        eps: f32,
        /// Factor of the sum.
        scale: f32,
        /// Numbers from one row of `h` to the next.
        stride: u32,
    }
    /// Arguments of `product*` and `line*`.
    ProductArgs {
        /// Matrices: up to three side by side, or gate and up.
        w: [Weights; 3],
        /// Biases, or none.
        bias: [Address; 3],
        /// Where sums are stored, `[rows, n]`.
        out: [Address; 3],
        /// What is multiplied.
        input: Acts,
        /// What the next product reads.
        next: Acts,
        /// Gain of the norm between.
        gain: Address,
        /// Residual stream.
        x: Address,
        /// Rows that run.
        index: Address,
        /// How many.
        stand: Address,
        /// First layer at which a row was not finite.
        bad: Address,
        /// Tiles of outputs: where each matrix ends.
        ends: [u32; 3],
        /// 0 store, 1 add to `x`, 2 gated, 3 activated.
        mode: u32,
        /// Activation function.
        act: u32,
        /// Said of rows that are not finite.
        layer: u32,
        /// Factor of the outputs.
        scale: f32,
        /// Soft cap of stored outputs, 0 for none.
        cap: f32,
    }
    /// Arguments of `rope`.
    RopeArgs {
        /// Queries `[rows, heads * dim]`, rotated in place.
        q: Address,
        /// Keys.
        k: Address,
        /// Values.
        v: Address,
        /// Norm of queries, or none.
        q_norm: Address,
        /// Norm of keys, or none.
        k_norm: Address,
        /// `[positions, rotary]`, or none.
        angles: Address,
        /// Keys and values of the layer.
        kv: Address,
        /// All rows of the step.
        rows: Address,
        /// Rows that run.
        index: Address,
        /// How many.
        stand: Address,
        /// Query heads.
        heads: u32,
        /// Kv heads.
        kv_heads: u32,
        /// Head size.
        dim: u32,
        /// Numbers of a head that are rotated.
        rotary: u32,
        /// Numbers of a row of queries that are normed together.
        q_piece: u32,
        /// The same of keys.
        k_piece: u32,
        /// Pairs (2i, 2i + 1).
        interleaved: u32,
        /// 0 f32, 1 f16, 2 bf16.
        dtype: u32,
        /// Pages of the store.
        pages: u32,
        /// 0.
        reserved: u32,
        /// Under the root.
        eps: f32,
        /// Rows of `angles`.
        positions: u32,
    }
    /// Arguments of `attend*`.
    AttendArgs {
        /// What the output product reads.
        out: Acts,
        /// Queries.
        q: Address,
        /// Keys and values of the layer.
        kv: Address,
        /// All rows of the step.
        rows: Address,
        /// Rows that run.
        index: Address,
        /// How many.
        stand: Address,
        /// Tiles of rows.
        tiles: Address,
        /// Visible places.
        spans: Address,
        /// Visible keys outside the pages.
        extras: Address,
        /// Page tables.
        table: Address,
        /// Biases of the layer.
        biases: Address,
        /// How many.
        bias_count: Address,
        /// `[rows, heads, stretches, dim + 2]`.
        partials: Address,
        /// A zero for each block of rows and heads.
        counters: Address,
        /// Query heads.
        heads: u32,
        /// Kv heads.
        kv_heads: u32,
        /// Head size.
        dim: u32,
        /// 0 f32, 1 f16, 2 bf16.
        dtype: u32,
        /// Pages of the store.
        pages: u32,
        /// Places a row looks back, itself included; 0: all.
        window: u32,
        /// Whether stretches are shared out to blocks.
        split: u32,
        /// Said of rows that are not finite.
        layer: u32,
        /// Factor of the scores.
        scale: f32,
        /// Soft cap of the scores, 0 for none.
        softcap: f32,
        /// First layer at which a row was not finite.
        bad: Address,
    }
    /// Arguments of `gather`.
    GatherArgs {
        /// Residual stream.
        x: Address,
        /// Pairs: row, place in `out`.
        from: Address,
        /// Where they go.
        out: Address,
        /// How many.
        count: Address,
        /// Width.
        width: u32,
        /// 0.
        reserved: u32,
    }
    /// What is asked of a row of logits.
    Ask {
        /// The word behind the noise's key.
        key: u64,
        /// 0: the largest.
        temperature: f32,
        /// Least share of the largest probability.
        min_p: f32,
        /// How many of the largest.
        top: u32,
        /// First of the asked tokens.
        asked: u32,
        /// Behind the last.
        asked_end: u32,
        /// 1 choose, 2 statistics.
        flags: u32,
    }
    /// The peak of a piece of a row.
    Peak {
        /// Largest logit.
        max: f32,
        /// Second largest.
        second: f32,
        /// Token of the largest.
        id: u32,
        /// 0: NaN or +inf was there.
        sound: u32,
    }
    /// What was found in a row.
    Found {
        /// Token of the largest logit.
        argmax: u32,
        /// Largest logit.
        max: f32,
        /// Second largest.
        second: f32,
        /// Log of the sum of exponentials, where statistics were asked for.
        lse: f32,
        /// Entropy.
        entropy: f32,
        /// The choice.
        choice: u32,
        /// Log-probability of the choice.
        logprob: f32,
        /// 0 fine, 1 not finite, 2 nothing left.
        state: u32,
    }
    /// A token and its logit.
    Candidate {
        /// Token; [`NONE`]: the row has no more.
        id: u32,
        /// Logit.
        logit: f32,
    }
    /// What `pick` keeps of a piece.
    Piece {
        /// Sum of exponentials.
        sum: f64,
        /// Sum of y e^y.
        tilt: f64,
        /// Best time of the race.
        time: f64,
        /// Whose.
        id: u32,
        /// 0.
        reserved: u32,
    }
    /// Arguments of `peak` and `pick`.
    PickArgs {
        /// `[rows, vocab]`.
        logits: Address,
        /// What is asked of each row.
        asks: Address,
        /// Tokens whose log-probability is asked.
        asked: Address,
        /// How many rows.
        stand: Address,
        /// `[rows, pieces]`.
        peaks: Address,
        /// `[rows, pieces]`.
        pieces: Address,
        /// `[rows, pieces, TOP]`.
        candidates: Address,
        /// `[rows, TOP]`.
        tops: Address,
        /// Of the asked.
        logprobs: Address,
        /// `[rows]`.
        found: Address,
        /// A zero for each row.
        counters: Address,
        /// Tokens.
        vocab: u32,
        /// Pieces.
        count: u32,
    }
    /// Arguments of `verify`.
    VerifyArgs {
        /// Tokens of the nodes.
        tokens: Address,
        /// Parents of the nodes, [`NONE`] for the root.
        parents: Address,
        /// Of the root, then of the nodes.
        found: Address,
        /// How many nodes.
        nodes: Address,
        /// Length of the path, next token, path.
        verdict: Address,
    }
    /// Arguments of `accept`.
    AcceptArgs {
        /// The whole store.
        kv: Address,
        /// Pairs of slots: from, to.
        moves: Address,
        /// How many.
        count: Address,
        /// Head size.
        dim: u32,
        /// 0 f32, 1 f16, 2 bf16.
        dtype: u32,
        /// Pages of the store.
        pages: u32,
        /// 0.
        reserved: u32,
    }
}
