//! The engine's view of a tokenizer.
use omnidecode_core::Token;
use omnidecode_engine::{Detokenizer, TextStream};
use omnidecode_models::tokenizer::{self, Tokenizer};

/// Makes text out of the tokens of an answer.
pub(crate) struct Text {
    pub tokenizer: Tokenizer,
    pub skip_special: bool,
}

impl Detokenizer for Text {
    fn stream(&self) -> Box<dyn TextStream> {
        Box::new(Stream(Some(self.tokenizer.stream(self.skip_special))))
    }
}

/// `None` once finished.
struct Stream(Option<tokenizer::TextStream>);

impl TextStream for Stream {
    fn push(&mut self, token: Token) -> String {
        self.0.as_mut().map(|stream| stream.push(token)).unwrap_or_default()
    }
    fn finish(&mut self) -> String {
        self.0.take().map(tokenizer::TextStream::finish).unwrap_or_default()
    }
}
