//! Counters, exact and public.

/// What one request cost. Every number is exact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, tokens whose keys and values were found in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub generated: usize,
    /// Batched forwards this request had rows in, over all models.
    pub forwards: usize,
    /// Evaluations of its sequences: as `forwards`, but two branches in one batched forward count two. Stored passes
    /// count too.
    pub nfe: usize,
    /// Rows run, over all models.
    pub rows: usize,
    /// Rows times the layers they passed.
    pub row_layers: usize,
    /// Rows whose logits were computed.
    pub head_rows: usize,
    /// Rows that were judged by `accept`.
    pub drafted: usize,
    /// Of those, rows that were kept.
    pub accepted: usize,
    /// Forwards whose outcome was read by the host.
    pub host_reads: usize,
    /// Bytes of those outcomes.
    pub host_bytes: usize,
    /// Batches of texts that a judge was given.
    pub judge_calls: usize,
    /// Texts in them.
    pub judged: usize,
    /// Times a sequence of this request had to give up its pages.
    pub evictions: usize,
    /// `forwards`, by model.
    pub forwards_by_model: Vec<usize>,
    /// `rows`, by model.
    pub rows_by_model: Vec<usize>,
}

/// What the engine did since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Steps: at most one batched forward a model each.
    pub steps: u64,
    /// Batched forwards.
    pub forwards: u64,
    /// Parts of plans run (a chunk of a prompt is one).
    pub plans: u64,
    /// Rows run.
    pub rows: u64,
    /// Sequences that had to give up their pages.
    pub evictions: u64,
    /// Strategies polled.
    pub polls: u64,
    /// Rows of logits that left the device of their network: something about them was left to the host.
    pub host_rows: u64,
    /// Products in a library whose sums depend on how many rows there are: none where decoding is row-invariant.
    pub library_products: u64,
    /// Nanoseconds inside networks.
    pub network_ns: u64,
    /// Nanoseconds from the start of a turn that ran a step to its end.
    pub turn_ns: u64,
    /// Nanoseconds of turns that ran none: ends of requests, and waking their readers.
    pub rest_ns: u64,
    /// Requests running.
    pub running: usize,
    /// Requests not yet started.
    pub waiting: usize,
    /// Pages in use by sequences, over all models.
    pub pages_used: usize,
    /// Tail slots in use, over all models.
    pub tail_used: usize,
    /// Pages found in prefix caches.
    pub prefix_hits: u64,
}

/// How a token of the answer was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The target's own next token.
    #[default]
    Target,
    /// A drafted token that was accepted.
    Draft,
    /// A canvas position.
    Canvas,
}

/// Where a token of the answer came from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Origin {
    /// How it was found.
    pub source: Source,
    /// [`Usage::forwards`] when it was committed.
    pub forward: u32,
    /// Steps below the root in the draft, from 1; 0 for the target's own tokens and canvas positions.
    pub depth: u32,
    /// Noise role of the branch that found it, 0 for the answer itself.
    pub branch: u64,
    /// What the strategy thought of a canvas position; `None` for the others.
    pub confidence: Option<f32>,
}
