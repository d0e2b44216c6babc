//! What can go wrong with a request. Every error says what was expected, what was found and what to do.
use omnidecode_core::Token;
use omnidecode_core::mask::MaskError;

/// Result of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request, or the start of an engine, failed. A failure hurts one request only.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// One request alone does not fit the page pool.
    #[error(
        "needs {need} pages of the KV cache, the pool has {have}: shorten the prompt, fork less, or enlarge the pool"
    )]
    OutOfPages {
        /// Pages that the request would hold.
        need: usize,
        /// Pages of the pool.
        have: usize,
    },
    /// More rows in flight than there are tail slots.
    #[error("{need} rows in flight do not fit the {have} tail slots: draft less or enlarge `tail`")]
    OutOfTail {
        /// Slots needed.
        need: usize,
        /// Slots there are.
        have: usize,
    },
    /// A prompt without tokens.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// A prompt that leaves no room to generate.
    #[error("the prompt has {tokens} tokens, the model's context is {context}: shorten the prompt")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Context of the model.
        context: usize,
    },
    /// A row beyond the model's context.
    #[error("place {place} lies beyond the model's context of {context}: draft no further than `room()`")]
    ContextFull {
        /// Place of the row.
        place: usize,
        /// Context of the model.
        context: usize,
    },
    /// A token that the model does not have.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    UnknownToken {
        /// The token.
        token: Token,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A sampling parameter outside its range.
    #[error("{name} = {found}: expected {expected}")]
    Sampling {
        /// Parameter.
        name: &'static str,
        /// What it was.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A mask that does not fit its rows.
    #[error("bad plan: {0}")]
    Mask(#[from] MaskError),
    /// A plan that cannot be run.
    #[error("bad plan: {0}")]
    Plan(String),
    /// A verb that does not fit the state of its sequence.
    #[error("{0}")]
    Sequence(String),
    /// A judge for a strategy that asks none.
    #[error(
        "a judge was given, and the strategy `{strategy}` asks none: leave it out, or take a strategy that judges texts"
    )]
    UnaskedJudge {
        /// Name of the strategy.
        strategy: String,
    },
    /// A companion that does not fit the strategy or its plans.
    #[error("companion `{name}`: {reason}")]
    Companion {
        /// The companion.
        name: &'static str,
        /// What cannot be carried out, why, and what to do.
        reason: String,
    },
    /// A role that no loaded model has.
    #[error("no model has the role {role:?}; there are {have:?}: load one when the engine starts")]
    NoModel {
        /// The role asked for.
        role: String,
        /// The roles there are.
        have: Vec<String>,
    },
    /// Activations of this request became infinite or NaN.
    #[error(
        "activations at layer {layer} are not finite: check the weights, the vectors fed in, or the interventions of this request"
    )]
    NotFinite {
        /// Layer; the number of layers means the head.
        layer: usize,
    },
    /// No token can be chosen: the processors exclude all, or the logits are not numbers.
    #[error("no token can be chosen: {0}")]
    NoChoice(String),
    /// The network does not do what the plan asks for.
    #[error("the network refused: {0}")]
    Unsupported(String),
    /// The device that runs the network failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// The KV cache does not fit the memory.
    #[error("the KV cache does not fit: {0}; load with fewer pages")]
    Memory(String),
    /// The engine was given something it cannot start with.
    #[error("cannot start: {0}")]
    Config(String),
    /// More requests wait than the engine takes.
    #[error("{waiting} requests are waiting already: try again later or raise `max_waiting`")]
    Busy {
        /// Requests that wait.
        waiting: usize,
    },
    /// A panic in a strategy, a processor or a network.
    #[error("panicked: {0}")]
    Panicked(String),
    /// A strategy's own failure.
    #[error("{0}")]
    Strategy(String),
    /// The engine stopped before the request was done.
    #[error("the engine was shut down")]
    Shutdown,
}
