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
    fn push(&mut self, token: Token, text: &mut String) {
        if let Some(stream) = &mut self.0 {
            stream.push_onto(token, text);
        }
    }
    fn finish(&mut self, text: &mut String) {
        if let Some(stream) = self.0.take() {
            text.push_str(&stream.finish());
        }
    }
}
