//! Text out of tokens that arrive one by one.
use super::Tokenizer;
use super::pieces::Rule;

/// Decodes token after token. What [`push`](Self::push) returns never ends inside a character, and all that it and
/// [`finish`](Self::finish) return, joined, is exactly [`Tokenizer::decode`] of the ids.
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Bytes that may be the start of a character: at most three.
    pending: Vec<u8>,
    /// Characters still to be taken from the start of the text.
    strip: usize,
    /// Whether no token has been seen.
    first: bool,
    /// For [`Rule::Other`]: all ids, and how many bytes of their text have been given out.
    ids: Vec<u32>,
    given: usize,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let strip = match tokenizer.0.pieces.rule {
            Rule::Strip(_, count) => count,
            _ => 0,
        };
        Self { tokenizer, skip_special, pending: Vec::new(), strip, first: true, ids: Vec::new(), given: 0 }
    }

    /// The text that this token completes; empty if it ends inside a character.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_onto(id, &mut text);
        text
    }

    /// As [`push`](Self::push), appended to `text`.
    pub fn push_onto(&mut self, id: u32, text: &mut String) {
        let pieces = &self.tokenizer.0.pieces;
        let Some(bytes) = pieces.bytes(id) else {
            return;
        };
        if self.skip_special && pieces.is_special(id) {
            return;
        }
        match pieces.rule {
            Rule::Other => {
                self.ids.push(id);
                let whole = self.tokenizer.decode_by_model(&self.ids, self.skip_special);
                // What may still change is not given out: a broken character at the end.
                let stable = whole.trim_end_matches('\u{FFFD}');
                if let Some(new) = stable.get(self.given..) {
                    text.push_str(new);
                    self.given = stable.len();
                }
                return;
            }
            Rule::FirstWithout(space) if std::mem::take(&mut self.first) => {
                let name = self.tokenizer.token(id).unwrap_or_default();
                self.pending.extend(name.chars().filter(|c| *c != space).collect::<String>().bytes());
            }
            Rule::Strip(byte, _) if self.strip > 0 => {
                let taken = bytes.iter().take(self.strip).take_while(|b| **b == byte).count();
                self.pending.extend_from_slice(&bytes[taken..]);
                self.strip = if taken == bytes.len() { self.strip - taken } else { 0 };
            }
            _ => self.pending.extend_from_slice(bytes),
        }
        self.take_whole_characters(text);
    }

    fn take_whole_characters(&mut self, text: &mut String) {
        let mut rest = &self.pending[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(broken) = error.error_len() else {
                        rest = after;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[broken..];
                }
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
    }

    /// What is left when no token follows: U+FFFD for a character that was never completed.
    pub fn finish(self) -> String {
        if let Rule::Other = self.tokenizer.0.pieces.rule {
            let whole = self.tokenizer.decode_by_model(&self.ids, self.skip_special);
            return whole.get(self.given..).unwrap_or_default().to_string();
        }
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}
