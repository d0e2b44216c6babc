//! What an engine must know of a model to run it: sizes, special tokens, how its logits line up.
use omnidecode_core::Token;

/// The facts of a loaded model. Strategies dispatch on these fields, never on a model's name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelCard {
    /// Vocabulary size: the length of a row of logits.
    pub vocab: usize,
    /// Width of a hidden state, in floats.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Longest sequence the model was made for, in tokens.
    pub context: usize,
    /// Width of the feed-forward activation, in floats (per expert where there are experts).
    pub intermediate: usize,
    /// Token that opens a sequence, if the tokenizer adds one.
    pub bos: Option<Token>,
    /// Tokens that end a text (`eos_token_id` of config and generation config, end-of-turn tokens).
    pub eos: Vec<Token>,
    /// Token of an undecided canvas position (diffusion models).
    pub mask: Option<Token>,
    /// Padding token, if any.
    pub pad: Option<Token>,
    /// 1 when row i speaks of position i + 1 (causal models, Dream), 0 when of its own position (LLaDA).
    pub shift: usize,
    /// Whether the model was trained with bidirectional attention over a canvas.
    pub bidirectional: bool,
    /// An adapter's layer of the main model: the states that leave it are its embeddings.
    pub exit_layer: Option<usize>,
    /// Block length of a block-causal diffusion model.
    pub block: Option<usize>,
    /// Bytes of weights that one row reads (experts counted as active).
    pub bytes: u64,
    /// Parameters.
    pub parameters: u64,
}
