//! What a decoder computes, as fields: read from `config.json` or from GGUF metadata, the same [`Config`] either way.
mod check;
mod fields;
mod generation;
pub(crate) mod gguf;
mod json;
mod positions;
pub mod rope;

pub use generation::GenerationConfig;
pub(crate) use gguf::Tensors;
pub use rope::{RopeScaling, RopeSpec};

/// The function between the feed-forward products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// x · Φ(x) with the error function.
    Gelu,
    /// x · Φ(x) by its tanh approximation.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    ReluSquared,
}

/// How a norm scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// x / rms(x) · w.
    Rms,
    /// x / rms(x) · (1 + w): Gemma's checkpoints (a GGUF file already holds 1 + w, and is `Rms`).
    RmsPlusOne,
    /// (x − mean) / σ · w + b.
    Layer,
}

/// Where the norms of a layer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention and before the feed-forward part.
    Pre,
    /// Before and after each (Gemma 2, Gemma 3).
    Sandwich,
    /// After each, before the residual sum (OLMo 2).
    Post,
}

/// Norm of queries and keys, before the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself, weights of `head_dim` numbers (Qwen 3, Gemma 3).
    PerHead,
    /// The whole projection at once, weights of `heads · head_dim` numbers (OLMo 2).
    Whole,
}

/// Which two numbers of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// i and i + rotary/2: checkpoints of transformers, most GGUF architectures.
    Halves,
    /// 2i and 2i + 1: GGUF files whose query and key rows were permuted for it (llama, granite, smollm3, llada).
    Interleaved,
}

/// Whom a row of the prompt sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Itself and what is before it.
    Causal,
    /// Everything.
    Full,
    /// Its own block of this many positions and the blocks before it.
    Block(usize),
}

/// Mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a sparse layer.
    pub count: usize,
    /// Experts that a row uses.
    pub per_token: usize,
    /// Whether the chosen experts' softmax weights are divided by their sum.
    pub normalize: bool,
    /// Width of an expert's activation.
    pub intermediate: usize,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerConfig {
    /// Index into [`Config::ropes`]; `None`: queries and keys are not rotated.
    pub rope: Option<usize>,
    /// A row sees the keys at places within `window` of its own, itself included: place − key < window.
    pub window: Option<usize>,
    /// Factor on queries · keys.
    pub attention_scale: f32,
    /// Whether the feed-forward part is [`Config::experts`].
    pub sparse: bool,
}

/// A decoder, by its fields. Every size has been checked: none but `intermediate` is zero, heads divide, products fit in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `model_type` or `general.architecture`, for messages; nothing else depends on it once the fields are read.
    pub architecture: String,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the dense feed-forward activation; 0 where layers are attention alone.
    pub intermediate: usize,
    /// Its function.
    pub activation: Activation,
    /// Whether it is act(gate) · up, or act(up) alone (GPT-2).
    pub gated: bool,
    /// Kind of all norms.
    pub norm: NormKind,
    /// Added under the root.
    pub norm_eps: f32,
    /// Where norms stand.
    pub norm_placement: NormPlacement,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// The different rotary embeddings, most often one.
    pub ropes: Vec<RopeSpec>,
    /// How rotated numbers are paired.
    pub rope_layout: RopeLayout,
    /// The layers.
    pub layers: Vec<LayerConfig>,
    /// Whom a row sees.
    pub attention: Attention,
    /// cap · tanh(score / cap) on attention scores.
    pub attention_softcap: Option<f32>,
    /// The same on logits.
    pub final_softcap: Option<f32>,
    /// Whether the query, key and value products add a bias.
    pub qkv_bias: bool,
    /// Whether the attention output adds a bias.
    pub o_bias: bool,
    /// Whether the feed-forward products add a bias.
    pub mlp_bias: bool,
    /// An adapter behind this layer of another model, whose head it uses; it has no embedding and no head of its own.
    pub exit_layer: Option<usize>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Factor on embeddings, already rounded as the model's number format would (Gemma: √hidden).
    pub embedding_scale: f32,
    /// Factor on what attention and feed-forward add to the residual stream (Granite).
    pub residual_scale: f32,
    /// Factor on logits: 1 / `logits_scaling` (Granite).
    pub logit_scale: f32,
    /// Mixture of experts.
    pub experts: Option<Experts>,
    /// Rows of the learned position embedding (GPT-2).
    pub learned_positions: Option<usize>,
    /// Longest sequence the model was made for, in tokens.
    pub context: usize,
    /// Token that opens a sequence.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// Padding token.
    pub pad: Option<u32>,
    /// Token of an undecided position (diffusion).
    pub mask: Option<u32>,
    /// 1 when row i speaks of position i + 1, 0 when of its own.
    pub logit_shift: usize,
}
