//! The sendable side: what crosses the thread boundary, in and out.
use crate::canvas::Mark;
use crate::carrier::{Carrier, Plans};
use crate::error::{Error, Result};
use crate::judge::Judge;
use crate::plan::{LATENT, Row};
use crate::processor::LogitsProcessor;
use crate::sampling::Sampling;
use crate::sequence::Sequence;
use crate::text::Detokenizer;
use crate::usage::{Origin, Usage};
use omnidecode_core::Token;
use omnidecode_models::Edits;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A strategy at work. It lives and dies on the engine thread and need not be `Send`.
pub type LocalFuture = Pin<Box<dyn Future<Output = Result<()>>>>;

/// What the answer is worth (DESIGN: guarantees).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// Token for token what plain decoding gives with the same seed and companions.
    Exact,
    /// The same law as plain decoding.
    Distribution,
    /// Neither.
    Approximate,
}
impl Guarantee {
    /// In small letters.
    pub fn as_str(self) -> &'static str {
        match self {
            Guarantee::Exact => "exact",
            Guarantee::Distribution => "distribution",
            Guarantee::Approximate => "approximate",
        }
    }
}

/// How tokens are found: a name for reports, a claim, and the coroutine.
pub struct Strategy {
    /// Name for reports; the engine never looks at it.
    pub name: String,
    /// What it claims.
    pub guarantee: Guarantee,
    /// Whether it asks the judge that comes with its request; a judge beside a strategy that does not is refused.
    pub judged: bool,
    /// What plans it makes.
    pub plans: Plans,
    /// Only the closure is `Send`; the future it makes stays on the engine thread.
    pub start: Box<dyn FnOnce(Sequence) -> LocalFuture + Send>,
}
impl Strategy {
    /// A strategy from an async closure.
    pub fn new<F, Fut>(name: impl Into<String>, guarantee: Guarantee, start: F) -> Self
    where
        F: FnOnce(Sequence) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        let start = Box::new(move |seq| -> LocalFuture { Box::pin(start(seq)) });
        Strategy { name: name.into(), guarantee, judged: false, plans: Plans::Any, start }
    }
    /// Say whether it asks the judge that comes with its request.
    #[must_use]
    pub fn judged(self, judged: bool) -> Self {
        Strategy { judged, ..self }
    }
    /// Say what plans it makes.
    #[must_use]
    pub fn plans(self, plans: Plans) -> Self {
        Strategy { plans, ..self }
    }
}
impl std::fmt::Debug for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Strategy").field("name", &self.name).field("guarantee", &self.guarantee).finish_non_exhaustive()
    }
}

/// What is given: tokens, and vectors at some places (whose token is [`LATENT`]).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    pub(crate) tokens: Vec<Token>,
    pub(crate) vectors: Vec<(usize, Row)>,
}
impl Prompt {
    /// Append a token.
    pub fn push(&mut self, token: Token) {
        self.tokens.push(token);
    }
    /// Append a vector in place of an embedding.
    pub fn push_vector(&mut self, vector: impl Into<Arc<[f32]>>) {
        self.vectors.push((self.tokens.len(), Row::Embedding(vector.into())));
        self.tokens.push(LATENT);
    }
    /// Places.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }
    /// Nothing is given.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}
impl From<Vec<Token>> for Prompt {
    fn from(tokens: Vec<Token>) -> Self {
        Prompt { tokens, vectors: Vec::new() }
    }
}

/// One request.
pub struct Request {
    /// What is given.
    pub prompt: Prompt,
    /// How tokens are found.
    pub strategy: Strategy,
    /// Law and end of the answer.
    pub sampling: Sampling,
    /// Law-bending companions, in order, after those that `sampling` stands for.
    pub processors: Vec<Arc<dyn LogitsProcessor>>,
    /// Companions that take part in forwards, the innermost first.
    pub carriers: Vec<Arc<dyn Carrier>>,
    /// Changes inside the main model for this request.
    pub edits: Option<Arc<Edits>>,
    /// Makes the text; without it there is none, and no stop strings.
    pub text: Option<Arc<dyn Detokenizer>>,
    /// Requests share prefixes only with requests of the same salt; `None` shares nothing.
    pub salt: Option<u64>,
    /// Says how good texts are, for searches that ask.
    pub judge: Option<Arc<dyn Judge>>,
    /// Tell the changes of a canvas as they are made ([`Delta::marks`]).
    pub watch: bool,
}
impl Request {
    /// A request without companions and text.
    pub fn new(prompt: impl Into<Prompt>, strategy: Strategy, sampling: Sampling) -> Self {
        Self {
            prompt: prompt.into(),
            strategy,
            sampling,
            processors: Vec::new(),
            carriers: Vec::new(),
            edits: None,
            text: None,
            salt: Some(0),
            judge: None,
            watch: false,
        }
    }
}

/// The log-probability of a committed token under the raw model, and the likeliest tokens at its place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: Token,
    /// Its log-probability; `None` where the strategy did not read it.
    pub logprob: Option<f32>,
    /// (token, log-probability), descending.
    pub top: Vec<(Token, f32)>,
}

/// New tokens of an answer. What was sent is never taken back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Tokens.
    pub tokens: Vec<Token>,
    /// Text that became certain.
    pub text: String,
    /// One a token when `Sampling::logprobs` is set.
    pub logprobs: Vec<TokenLogprob>,
    /// Where each token came from.
    pub origins: Vec<Origin>,
    /// Changes of the canvas, in their order, where the request asks to watch it; unlike the rest they may be taken back.
    pub marks: Vec<Mark>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// A stop condition, or the strategy had no more to say.
    #[default]
    Stop,
    /// `max_tokens`, or the model's context.
    Length,
    /// Cancelled.
    Abort,
}

/// The condition that stopped an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// One of `stop_token_ids`.
    Token(Token),
    /// One of `stop`.
    Text(String),
}

/// A text that was found beside the answer, ended as an answer ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// Its tokens, after the prompt.
    pub tokens: Vec<Token>,
    /// Their text; empty without a detokenizer.
    pub text: String,
    /// Its score, of the strategy's own kind; more is better.
    pub score: f64,
    /// Why it ended.
    pub reason: Reason,
    /// What stopped it.
    pub stop_reason: Option<StopReason>,
}

/// What a strategy saw on its way, for reports: a reading that became no token of the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// What it is of (`thought`).
    pub label: &'static str,
    /// The place it was seen at.
    pub place: usize,
    /// Tokens with their weights (probabilities, say), the largest first.
    pub tokens: Vec<(Token, f32)>,
}

/// The end of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// The answer's score, of the strategy's own kind, where it has one; more is better.
    pub score: Option<f64>,
    /// Other texts that the strategy found, in its order.
    pub others: Vec<Alternative>,
    /// What it saw on its way.
    pub notes: Vec<Note>,
    /// Why it ended.
    pub reason: Reason,
    /// What stopped it; `None` for end-of-text tokens, length and the strategy's own end.
    pub stop_reason: Option<StopReason>,
    /// What it cost.
    pub usage: Usage,
    /// What it is worth.
    pub guarantee: Guarantee,
}

impl Finish {
    /// The end of a request that was cancelled.
    pub(crate) fn abort(usage: Usage, guarantee: Guarantee) -> Finish {
        let (others, notes) = (Vec::new(), Vec::new());
        Finish { score: None, others, notes, reason: Reason::Abort, stop_reason: None, usage, guarantee }
    }
}

/// What a reader of an answer sees.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// More of the answer.
    Delta(Delta),
    /// The end.
    Done(Finish),
    /// The end, by an error.
    Failed(Error),
}
