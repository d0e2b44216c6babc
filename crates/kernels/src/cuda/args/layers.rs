//! Arguments of the kernels of layers.
use super::{Acts, Address, Plain, Weights};

plain! {
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
    /// Arguments of `route`.
    RouteArgs {
        /// `[rows, experts]`.
        scores: Address,
        /// `[rows, per]`, ascending.
        chosen: Address,
        /// `[rows, per]`: their weights.
        shares: Address,
        /// How many rows.
        stand: Address,
        /// Experts.
        experts: u32,
        /// Experts of a row.
        per: u32,
        /// Whether the weights of a row sum to one.
        normalize: u32,
        /// 0.
        reserved: u32,
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
        /// Columns of queries that are done at once: whole heads, whole tiles of a product, whole norms.
        q_unit: u32,
        /// The same of keys.
        k_unit: u32,
        /// The same of values.
        v_unit: u32,
        /// How many such units a row has.
        units: u32,
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
    /// Arguments of `product*`, `line*`, `experts*`, `expert_lines*` and `epilogue`.
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
        /// With clamps: all rows of the step.
        rows: Address,
        /// Clamps of the layer.
        clamps: Address,
        /// How many, or none.
        clamp_count: Address,
        /// `epilogue`: `[rows, n]` of each matrix, before its end.
        sums: [Address; 3],
        /// `experts*`: matrices of all experts, of the sizes that `w` says.
        bank: Address,
        /// `[rows, per]`: the experts of each row.
        chosen: Address,
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
        /// Experts of a row.
        per: u32,
        /// Experts.
        experts: u32,
        /// `experts*`, what comes down: `[rows, per]`, how a row adds up what its experts give; none: nothing comes down.
        shares: Address,
        /// `[rows, per, n]`: what each expert gives.
        parts: Address,
        /// A zero for each row and tile of outputs.
        arrived: Address,
        /// Zeros: one for each row, or for each unit of each row; two where rows are normed.
        counters: Address,
        /// What follows a row's last output: 0 nothing, 1 `norm`, 2 `rope`, 3 `route`.
        tail: u32,
        /// 0.
        reserved: u32,
        /// What is normed where the rows end.
        norm: NormArgs,
        /// How queries, keys and values go on.
        rope: RopeArgs,
        /// How experts are chosen.
        route: RouteArgs,
    }
    /// Arguments of `unpack`.
    UnpackArgs {
        /// The matrix.
        w: Weights,
        /// `[n, kp]` of bf16.
        out: Address,
    }
    /// A product by the library: `out[rows, n] = x[rows, k] w[n, k]^T`, bf16 with sums in f32.
    MatmulArgs {
        /// `[n, k]` of bf16.
        w: Address,
        /// `[rows, k]` of bf16.
        x: Address,
        /// `[rows, n]` of f32.
        out: Address,
        /// Outputs.
        n: u32,
        /// Inputs, padded.
        k: u32,
        /// Rows.
        rows: u32,
        /// 0.
        reserved: u32,
    }
    /// A layer's queries, its store, and what bends the scores.
    Attention {
        /// Queries.
        q: Address,
        /// Keys and values of the layer.
        kv: Address,
        /// Biases of the layer.
        biases: Address,
        /// How many.
        bias_count: Address,
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
        /// Places a row looks back, itself included; 0: all. `mass` is told by its keys.
        window: u32,
        /// Factor of the scores.
        scale: f32,
        /// Soft cap of the scores, 0 for none.
        softcap: f32,
    }
    /// Arguments of `attend*`.
    AttendArgs {
        /// What is attended to, and how.
        of: Attention,
        /// What the output product reads.
        out: Acts,
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
        /// `[rows, heads, stretches, dim + 2]`.
        partials: Address,
        /// A zero for each block of rows and heads.
        counters: Address,
        /// First layer at which a row was not finite.
        bad: Address,
        /// Whether stretches are shared out to blocks.
        split: u32,
        /// Said of rows that are not finite.
        layer: u32,
    }
    /// Arguments of `mass`.
    MassArgs {
        /// What is attended to, and how.
        of: Attention,
        /// Rows that are read.
        masses: Address,
        /// Their keys.
        keys: Address,
        /// Room for the weights of every head.
        weights: Address,
        /// Where the means go.
        out: Address,
        /// A zero for each row that is read.
        counters: Address,
    }
}
