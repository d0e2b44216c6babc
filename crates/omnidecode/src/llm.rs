//! A model, ready for requests.
use crate::builder::Builder;
use crate::chat::Message;
use crate::companion;
use crate::error::Result;
use crate::stream::Stream;
use crate::text::Text;
use omnidecode_core::Token;
use omnidecode_core::noise::pair;
use omnidecode_engine::{
    self as engine, Answer, Engine, Guarantee, Handle, KvAction, Mask, Outcome, Plan, Readout, Request, Rows, Sampling,
    Strategy,
};
use omnidecode_models::config::GenerationConfig;
use omnidecode_models::tokenizer::Tokenizer;
use omnidecode_models::{ChatTemplate, ModelCard, ModelError, Weights};
use omnidecode_strategies::companions::Vocabulary;
use omnidecode_strategies::diffusion::likelihood;
use omnidecode_strategies::params::Options;
use omnidecode_strategies::scoring::listwise;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A model with its tokenizer, its chat template and its engine. Shared by threads; requests of all of them run in one
/// batch. Dropping it cancels what runs.
pub struct Llm {
    engine: Engine,
    card: ModelCard,
    tokenizer: Tokenizer,
    vocabulary: Arc<dyn Vocabulary>,
    template: Option<ChatTemplate>,
    generation: GenerationConfig,
}

impl Llm {
    /// Open a model with default settings.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Llm> {
        Llm::builder(path).open()
    }
    /// Choose settings first.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path)
    }
    pub(crate) fn new(engine: Engine, card: ModelCard, weights: &Weights) -> Result<Llm> {
        let tokenizer = weights.tokenizer()?;
        let template = match weights.chat_template() {
            Ok(template) => Some(template),
            Err(ModelError::NoTemplate { .. }) => None, // an error once somebody wants to chat
            Err(error) => return Err(error.into()),
        };
        let vocabulary = companion::vocabulary(&tokenizer, card.vocab);
        let generation = weights.generation_config().clone();
        Ok(Llm { engine, card, tokenizer, vocabulary, template, generation })
    }

    /// The model's facts.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }
    /// The author's sampling defaults.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }
    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
    pub(crate) fn vocabulary(&self) -> &Arc<dyn Vocabulary> {
        &self.vocabulary
    }
    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }
    /// What the engine did since it started.
    pub fn stats(&self) -> engine::Stats {
        self.engine.stats()
    }

    /// A request with text, for a strategy of the registry. Hand it to [`Llm::submit`].
    ///
    /// # Errors
    /// [`Error::Strategy`]; [`Error::Engine`] for a prompt or sampling parameters that
    /// cannot be.
    pub fn request(
        &self,
        prompt: Vec<Token>,
        strategy: &str,
        options: &Options,
        sampling: Sampling,
    ) -> Result<Request> {
        self.request_with(prompt, crate::strategy(strategy, options)?, sampling, true)
    }
    /// A request for any strategy, the registry's or your own. `skip_special`: leave special tokens out of the text.
    ///
    /// # Errors
    /// [`Error::Engine`] for a prompt or sampling parameters that cannot be.
    pub fn request_with(
        &self,
        prompt: Vec<Token>,
        strategy: Strategy,
        sampling: Sampling,
        skip_special: bool,
    ) -> Result<Request> {
        self.check(&prompt)?;
        sampling.check(self.card.vocab, true)?;
        let mut request = Request::new(prompt, strategy, sampling);
        request.text = Some(Arc::new(Text { tokenizer: self.tokenizer.clone(), skip_special }));
        Ok(request)
    }
    /// Whether a prompt can be run at all.
    ///
    /// # Errors
    /// [`Error::Engine`].
    pub fn check(&self, prompt: &[Token]) -> Result<()> {
        let (vocab, context) = (self.card.vocab, self.card.context);
        if prompt.is_empty() {
            return Err(engine::Error::EmptyPrompt.into());
        }
        if prompt.len() >= context {
            return Err(engine::Error::PromptTooLong { tokens: prompt.len(), context }.into());
        }
        match prompt.iter().find(|&&token| token as usize >= vocab) {
            Some(&token) => Err(engine::Error::UnknownToken { token, vocab }.into()),
            None => Ok(()),
        }
    }
    /// Run a request; the handle gives its events as they come, and dropping it cancels the request.
    pub fn submit(&self, request: Request) -> Handle {
        self.engine.submit(request)
    }

    /// Complete a text.
    ///
    /// # Errors
    /// As [`Llm::request`], and whatever ends the request early.
    pub fn generate(&self, prompt: &str, strategy: &str, sampling: Sampling) -> Result<Answer> {
        self.stream(prompt, strategy, sampling)?.collect_answer()
    }
    /// Complete a text, piece by piece.
    ///
    /// # Errors
    /// As [`Llm::request`].
    pub fn stream(&self, prompt: &str, strategy: &str, sampling: Sampling) -> Result<Stream> {
        let prompt = self.tokenizer.encode(prompt, true)?;
        Ok(Stream::new(self.submit(self.request(prompt, strategy, &Options::new(), sampling)?)))
    }
    /// Answer a conversation, through the model's chat template.
    ///
    /// # Errors
    /// As [`Llm::request`]; [`Error::Model`] without a template, or when it refuses the conversation.
    pub fn chat(&self, messages: &[Message], strategy: &str, sampling: Sampling) -> Result<Answer> {
        self.chat_stream(messages, strategy, sampling)?.collect_answer()
    }
    /// Answer a conversation, piece by piece.
    ///
    /// # Errors
    /// As [`Llm::chat`].
    pub fn chat_stream(&self, messages: &[Message], strategy: &str, sampling: Sampling) -> Result<Stream> {
        let prompt = self.render(messages)?;
        let prompt = self.tokenizer.encode(&prompt, false)?; // the template wrote the special tokens
        Ok(Stream::new(self.submit(self.request(prompt, strategy, &Options::new(), sampling)?)))
    }

    /// Token sequences of words that may not appear, for [`Sampling::bad_words`]: each at the start of a text and after
    /// a space.
    ///
    /// # Errors
    /// [`Error::Model`] for a word that the tokenizer cannot express.
    pub fn bad_words(&self, words: &[String]) -> Result<Vec<Vec<Token>>> {
        let mut found: Vec<Vec<Token>> = Vec::new();
        for word in words {
            for text in [word.clone(), format!(" {}", word.trim_start())] {
                let ids = self.tokenizer.encode(&text, false)?;
                if !ids.is_empty() && !found.contains(&ids) {
                    found.push(ids);
                }
            }
        }
        Ok(found)
    }

    /// Logits of every row: `[rows, vocab]`, row-major, not bent.
    ///
    /// # Errors
    /// [`Error::Engine`] for tokens that cannot be run.
    pub fn logits(&self, tokens: Vec<Token>) -> Result<Vec<f32>> {
        let vocab = self.card.vocab;
        let mask = match self.card.block {
            Some(block) => Some(Mask::Block(block)),
            None => self.card.bidirectional.then_some(Mask::Full),
        };
        if let Some(mask) = mask {
            // Rows that see what comes after them run as one window that stands in for the whole prompt.
            let window = Plan { mask, at: Some(0), ..Plan::chain(&tokens, Readout::LOGITS) };
            let (rows, plan) = (tokens.len(), window.kv(KvAction::Discard).leave(tokens.len()));
            return self.read(tokens, plan, move |out| {
                (0..rows).flat_map(|row| out.row(row).logits().iter().copied().take(vocab)).collect()
            });
        }
        self.read(tokens, Plan::next(Readout::LOGITS).at_rows(Rows::All), move |out| {
            let rows = out.places().filter_map(|place| out.place(place));
            rows.flat_map(|seen| seen.logits().iter().copied().take(vocab)).collect()
        })
    }
    /// Log-probabilities of `labels` as the next token after `prompt`: one forward.
    ///
    /// # Errors
    /// [`Error::Engine`] for tokens that cannot be run.
    pub fn score(&self, prompt: Vec<Token>, labels: Vec<Token>) -> Result<Vec<f32>> {
        if labels.is_empty() {
            return Ok(Vec::new());
        }
        self.read(prompt, Plan::next(Readout::NOTHING.logprobs(labels)), |out| out.root().asked().to_vec())
    }
    /// Estimate of the log-likelihood, in nats, of `answer` as the canvas behind `prompt` under a masked diffusion model:
    /// a Monte Carlo mean over `draws` forwards (LLaDA's, arXiv:2502.09992), the same for the same seed.
    ///
    /// # Errors
    /// [`Error::Engine`] for an empty answer, no draws, a model that does not denoise whole canvases, and tokens that cannot
    /// be run.
    pub fn score_canvas(&self, prompt: Vec<Token>, answer: Vec<Token>, draws: usize, seed: u64) -> Result<f64> {
        self.check(&prompt)?;
        Ok(likelihood::score(&self.engine, prompt, answer, draws, seed)?)
    }
    /// The tokens of the identifiers `A`, `B`, ... behind an opening bracket, for the strategy `first`.
    ///
    /// # Errors
    /// [`Error::Engine`] when there are more than 26, or the tokenizer cannot say one of them in a token.
    pub fn listwise_labels(&self, n: usize) -> Result<Vec<Token>> {
        listwise::labels(&**self.vocabulary(), n).map_err(|reason| engine::Error::Strategy(reason).into())
    }
    /// One forward of a prompt, and what it tells.
    fn read<F>(&self, prompt: Vec<Token>, plan: Plan, tell: F) -> Result<Vec<f32>>
    where
        F: FnOnce(&Outcome) -> Vec<f32> + Send + 'static,
    {
        self.check(&prompt)?;
        let told = Arc::new(Mutex::new(Vec::new()));
        let here = told.clone();
        let strategy = Strategy::new("read", Guarantee::Exact, move |mut seq| async move {
            let out = seq.forward(plan).await?;
            *here.lock().unwrap_or_else(PoisonError::into_inner) = tell(&out);
            Ok(())
        });
        self.submit(Request::new(prompt, strategy, Sampling::default())).collect().end?;
        Ok(std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl std::fmt::Debug for Llm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Llm").field("card", &self.card).finish_non_exhaustive()
    }
}

/// The seed of answer `index` of a request that wants several: the first keeps the request's.
pub fn answer_seed(seed: u64, index: usize) -> u64 {
    if index == 0 { seed } else { pair(seed, index as u64) }
}

/// A strategy of the registry with its parameters, for [`Llm::request_with`].
///
/// # Errors
/// [`Error::Strategy`](crate::Error::Strategy).
pub fn strategy(name: &str, options: &Options) -> Result<Strategy> {
    Ok(omnidecode_strategies::strategy(name, options)?)
}
