//! What a request may ask of the law and of the end of its text.
use crate::error::{Error, Result};
use omnidecode_core::Token;
use omnidecode_core::law::Warp;

/// Sampling parameters, in the names of vLLM. The neutral value of each gives plain greedy decoding's law.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// In [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// In (0, 1]; 1 keeps all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens of the prompt and the answer; 1 is neutral.
    pub repetition_penalty: f32,
    /// Taken once from tokens of the answer, in [-2, 2].
    pub presence_penalty: f32,
    /// Taken per use from tokens of the answer, in [-2, 2].
    pub frequency_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(Token, f32)>,
    /// Token sequences that may not appear.
    pub bad_words: Vec<Vec<Token>>,
    /// Only these tokens may appear.
    pub allowed_token_ids: Option<Vec<Token>>,
    /// No stop condition but `max_tokens` before so many tokens.
    pub min_tokens: usize,
    /// Most tokens of the answer; `None` means as far as the context reaches.
    pub max_tokens: Option<usize>,
    /// Strings that end the text; needs a detokenizer.
    pub stop: Vec<String>,
    /// Tokens that end the text.
    pub stop_token_ids: Vec<Token>,
    /// Do not stop at the model's end-of-text tokens.
    pub ignore_eos: bool,
    /// Leave the stop string or token's text in the text.
    pub include_stop_str_in_output: bool,
    /// Report the log-probability of each token and of so many of the likeliest.
    pub logprobs: Option<usize>,
    /// Seed of all noise.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy, 16 tokens.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            allowed_token_ids: None,
            min_tokens: 0,
            max_tokens: Some(16),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            include_stop_str_in_output: false,
            logprobs: None,
            seed: 0,
        }
    }
}

impl Sampling {
    /// The bending that happens where the logits are.
    pub fn warp(&self) -> Warp {
        Warp {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
        }
    }

    /// Refuse what makes no sense for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// [`Error::Sampling`] names the parameter; [`Error::UnknownToken`] a token id that does not exist.
    pub fn check(&self, vocab: usize, has_text: bool) -> Result<()> {
        let real = |name, value: f32, ok: bool, expected| {
            if ok && value.is_finite() {
                Ok(())
            } else {
                Err(Error::Sampling { name, found: value.to_string(), expected })
            }
        };
        let t = self.temperature;
        real("temperature", t, t >= 0.0, "a finite number of at least 0")?;
        real("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "a number in (0, 1]")?;
        real("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "a number in [0, 1]")?;
        real("typical_p", self.typical_p, self.typical_p > 0.0 && self.typical_p <= 1.0, "a number in (0, 1]")?;
        real("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "a finite number above 0")?;
        let penalty = -2.0..=2.0;
        real(
            "presence_penalty",
            self.presence_penalty,
            penalty.contains(&self.presence_penalty),
            "a number in [-2, 2]",
        )?;
        real(
            "frequency_penalty",
            self.frequency_penalty,
            penalty.contains(&self.frequency_penalty),
            "a number in [-2, 2]",
        )?;
        for &(_, bias) in &self.logit_bias {
            real("logit_bias", bias, true, "finite numbers")?;
        }
        let refuse = |name, found: String, expected| Err(Error::Sampling { name, found, expected });
        if self.bad_words.iter().any(Vec::is_empty) {
            return refuse("bad_words", "an empty word".into(), "words of at least one token");
        }
        if self.allowed_token_ids.as_ref().is_some_and(Vec::is_empty) {
            return refuse("allowed_token_ids", "no token".into(), "at least one token, or nothing");
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("stop", "an empty string".into(), "strings of at least one character");
        }
        if !self.stop.is_empty() && !has_text {
            return refuse("stop", format!("{:?}", self.stop), "no stop strings, as this request has no detokenizer");
        }
        if let Some(max) = self.max_tokens
            && self.min_tokens > max
        {
            return refuse("min_tokens", self.min_tokens.to_string(), "at most max_tokens");
        }
        if self.logprobs.is_some_and(|n| n > vocab) {
            return refuse("logprobs", format!("{:?}", self.logprobs), "at most the size of the vocabulary");
        }
        let bias = self.logit_bias.iter().map(|b| &b.0);
        let words = self.bad_words.iter().flatten();
        let allowed = self.allowed_token_ids.iter().flatten();
        let mut ids = bias.chain(words).chain(allowed).chain(&self.stop_token_ids);
        match ids.find(|&&t| t as usize >= vocab) {
            Some(&token) => Err(Error::UnknownToken { token, vocab }),
            None => Ok(()),
        }
    }
}
