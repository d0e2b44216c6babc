//! The MajorMark detector on a model's tokenizer: no weights are read, no prompt is needed.
use crate::companion::vocabulary;
use crate::error::{Error, Result};
use omnidecode_core::Token;
use omnidecode_models::Weights;
use omnidecode_models::tokenizer::Tokenizer;
use omnidecode_strategies::companions::CompanionError;
use omnidecode_strategies::companions::majormark::{Code, Found};
use std::path::Path;

/// Reads MajorMark watermarks (sheet 41) out of texts of one model, for one key.
pub struct Detector {
    code: Code,
    tokenizer: Tokenizer,
    vocab: usize,
}

impl Detector {
    /// For the model at this path, whose tokenizer wrote the text: messages of `bits` bits in `blocks` blocks, as the
    /// companion `majormark` was given them.
    ///
    /// # Errors
    /// [`Error::Model`] when the tokenizer cannot be read, [`Error::Companion`] for a code that cannot be.
    pub fn open(path: impl AsRef<Path>, key: u64, bits: usize, blocks: usize) -> Result<Detector> {
        let weights = Weights::open(path)?;
        let (tokenizer, vocab) = (weights.tokenizer()?, weights.config().vocab);
        let words = vocabulary(&tokenizer, vocab);
        let words = (0..vocab as Token).filter(|&t| words.bytes(t).is_some()).collect();
        let unfit = |reason| Error::Companion(CompanionError::Unfit { name: "majormark", reason });
        Ok(Detector { code: Code::new(key, bits, blocks, words).map_err(unfit)?, tokenizer, vocab })
    }
    /// What the tokens of a text say. `dedup`: a context with its token counts once, without which the p-value is too
    /// small for texts that repeat themselves.
    ///
    /// # Errors
    /// [`Error::Engine`] for a token that the model does not have.
    pub fn detect(&self, tokens: &[Token], dedup: bool) -> Result<Found> {
        match tokens.iter().find(|&&t| t as usize >= self.vocab) {
            Some(&token) => Err(omnidecode_engine::Error::UnknownToken { token, vocab: self.vocab }.into()),
            None => Ok(self.code.detect(tokens, dedup)),
        }
    }
    /// The tokens of a text, without special ones. Not always those that were written: a text has several spellings.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn tokens(&self, text: &str) -> Result<Vec<Token>> {
        Ok(self.tokenizer.encode(text, false)?)
    }
}
