//! Text to token ids and back: a `tokenizer.json`, or the vocabulary inside a GGUF file.
mod gguf;
mod pieces;
mod stream;

use crate::error::{ModelError, Result, brief};
use crate::files::Weights;
use pieces::{Pieces, Rule};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
pub use stream::TextStream;
use tokenizers::Tokenizer as Model;

/// A tokenizer. Cloning is cheap, and clones may be used from several threads.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    model: Model,
    /// Bytes and kind of each token, and how they become text.
    pieces: Pieces,
    /// Tokens put before and behind a text besides those of the model's own post-processor.
    before: Option<u32>,
    after: Option<u32>,
}

impl Tokenizer {
    /// Read a `tokenizer.json`. Its truncation and padding are left out: a prompt is never cut silently.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Tokenizer`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| ModelError::io(path, &e))?;
        Self::from_json(&bytes)
    }

    /// Read the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`].
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let damaged = |found: &dyn fmt::Display| {
            ModelError::tokenizer("tokenizer.json", "a tokenizer of the `tokenizers` library", found)
        };
        // The library states some of its expectations by panicking.
        let model = catch_unwind(|| Model::from_bytes(json)).map_err(|_| damaged(&"contradictory parts"))?;
        Self::new(model.map_err(|e| damaged(&e))?, None, None)
    }

    fn new(mut model: Model, before: Option<u32>, after: Option<u32>) -> Result<Self> {
        model.with_truncation(None).map_err(|e| ModelError::tokenizer("truncation", "none", e))?;
        model.with_padding(None);
        let pieces = Pieces::new(&model)?;
        Ok(Self(Arc::new(Inner { model, pieces, before, after })))
    }

    /// Token ids of a text. Special tokens written in the text are recognised, as in transformers; `add_special` puts
    /// the model's own before and behind (a chat template has written them already).
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] for a text that the tokenizer cannot express.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encode = || self.0.model.encode_fast(text, add_special);
        let cannot = |found: &dyn fmt::Display| {
            ModelError::tokenizer("encoding a text", "text that its vocabulary covers", found)
        };
        let encoding = catch_unwind(AssertUnwindSafe(encode)).map_err(|_| cannot(&"contradictory parts"))?;
        let encoding = encoding.map_err(|e| cannot(&e))?;
        let ids = encoding.get_ids();
        let (before, after) = if add_special { (self.0.before, self.0.after) } else { (None, None) };
        Ok(before.into_iter().chain(ids.iter().copied()).chain(after).collect())
    }

    /// Text of token ids; ids without a token give nothing. Bytes that are no UTF-8 become U+FFFD, one for each
    /// maximal broken sequence.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = self.stream(skip_special);
        if let Rule::Other = self.0.pieces.rule {
            return self.decode_by_model(ids, skip_special);
        }
        let mut text = String::new();
        for id in ids {
            stream.push_onto(*id, &mut text);
        }
        text.push_str(&stream.finish());
        text
    }

    fn decode_by_model(&self, ids: &[u32], skip_special: bool) -> String {
        catch_unwind(AssertUnwindSafe(|| self.0.model.decode(ids, skip_special).unwrap_or_default()))
            .unwrap_or_default()
    }

    /// A decoder of ids that arrive one by one.
    pub fn stream(&self, skip_special: bool) -> TextStream {
        TextStream::new(self.clone(), skip_special)
    }

    /// Id of a token by its exact name in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.model.token_to_id(token)
    }

    /// Name of a token in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.0.model.id_to_token(id)
    }

    /// The bytes that a token stands for in a text; part of a character for some. Empty for an id without a token.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        self.0.pieces.bytes(id).ok_or(ModelError::TokenId { found: id, vocab: self.vocab() })
    }

    /// Whether a token is special: skipped when text is shown.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.pieces.is_special(id)
    }

    /// One more than the largest id. A model's vocabulary may be larger (padded).
    pub fn vocab(&self) -> usize {
        self.0.pieces.len()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab())
    }
}

impl Weights {
    /// The model's tokenizer: `tokenizer.json` in its folder, else the vocabulary inside its GGUF.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if there is neither, or it is unusable.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        if let Some((header, file)) = self.gguf() {
            return Tokenizer::from_gguf(header, file);
        }
        let path = self.folder().map(|folder| folder.join("tokenizer.json"));
        match path {
            Some(path) if path.is_file() => Tokenizer::from_file(path),
            path => {
                let folder =
                    path.as_deref().and_then(Path::parent).map_or_else(String::new, |f| f.display().to_string());
                Err(ModelError::tokenizer("the model's folder", "a tokenizer.json", brief(format!("none in {folder}"))))
            }
        }
    }
}
