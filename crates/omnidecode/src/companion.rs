//! What rides along a request: companions of the registry, which bend the model or its law, and judges.
use crate::error::Result;
use crate::llm::Llm;
use omnidecode_core::Token;
use omnidecode_engine::{Error as EngineError, Judge, Request};
use omnidecode_models::tokenizer::Tokenizer;
use omnidecode_strategies::companions::{self, Context, Vocabulary};
use omnidecode_strategies::params::Options;
use std::sync::Arc;

/// A tokenizer as companions that look at text see it.
struct Words {
    tokenizer: Tokenizer,
    len: usize,
}

impl Vocabulary for Words {
    fn len(&self) -> usize {
        self.len
    }
    fn bytes(&self, token: Token) -> Option<Vec<u8>> {
        let bytes = self.tokenizer.token_bytes(token).ok()?;
        (!bytes.is_empty() && !self.tokenizer.is_special(token)).then(|| bytes.to_vec())
    }
    fn encode(&self, text: &str) -> Vec<Token> {
        self.tokenizer.encode(text, false).unwrap_or_default()
    }
}

/// The vocabulary of a model with `len` logits: one for all requests, as grammars keep what they make of it.
pub(crate) fn vocabulary(tokenizer: &Tokenizer, len: usize) -> Arc<dyn Vocabulary> {
    Arc::new(Words { tokenizer: tokenizer.clone(), len })
}

impl Llm {
    /// Let a companion of the registry ride along a request, after those already there.
    ///
    /// # Errors
    /// [`Error::Companion`](crate::Error::Companion) when there is no such name, its parameters are refused, or it does
    /// not fit this model.
    pub fn attach(&self, request: &mut Request, name: &str, options: &Options, prompt: &[Token]) -> Result<()> {
        let to = Context { card: self.card(), prompt, vocabulary: Some(self.vocabulary().clone()) };
        Ok(companions::attach(name, options, &to, request)?)
    }
    /// Let a judge score the texts that the request's strategy finds.
    ///
    /// # Errors
    /// [`Error::Engine`](crate::Error::Engine) when the strategy asks no judge.
    pub fn attach_judge(&self, request: &mut Request, judge: Arc<dyn Judge>) -> Result<()> {
        if !request.strategy.judged {
            return Err(EngineError::UnaskedJudge { strategy: request.strategy.name.clone() }.into());
        }
        request.judge = Some(judge);
        Ok(())
    }
}
