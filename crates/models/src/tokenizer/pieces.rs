//! The bytes of each token, and the rule that makes text of them.
use crate::error::{ModelError, Result, brief};
use serde_json::Value;
use std::collections::HashMap;
use tokenizers::Tokenizer as Model;

/// How the bytes of a sequence become its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Joined.
    Joined,
    /// Joined, then this many of this character taken from the start.
    Strip(u8, usize),
    /// Joined; the first token without the character that stands for a space.
    FirstWithout(char),
    /// By the library, whole.
    Other,
}

pub(super) struct Pieces {
    /// All tokens' bytes, one after another.
    bytes: Vec<u8>,
    /// Where each token's end.
    ends: Vec<usize>,
    special: Vec<bool>,
    pub(super) rule: Rule,
}

impl Pieces {
    pub(super) fn new(model: &Model) -> Result<Self> {
        let decoder = match model.get_decoder() {
            None => Value::Null,
            Some(decoder) => {
                serde_json::to_value(decoder).map_err(|e| ModelError::tokenizer("decoder", "a decoder", e))?
            }
        };
        let (rule, spelling) = Spelling::of(&decoder);
        let mut tokens: Vec<(u32, String)> = model.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        // An added token may have a name that the model's vocabulary gives to another id, or rename an id.
        let added = model.get_added_tokens_decoder();
        tokens.retain(|(id, _)| !added.contains_key(id));
        tokens.extend(added.iter().map(|(id, token)| (*id, token.content.clone())));
        tokens.sort_unstable();
        // Some gap in the ids is usual; a hostile file must not make a table of 2^32 entries.
        let most = 8 * tokens.len() + (1 << 16);
        if let Some((id, token)) = tokens.last().filter(|(id, _)| *id as usize >= most) {
            return Err(ModelError::tokenizer(format!("token {}", brief(token)), format!("an id below {most}"), id));
        }
        let count = tokens.last().map_or(0, |(id, _)| *id as usize + 1);
        let mut pieces = Self { bytes: Vec::new(), ends: Vec::new(), special: vec![false; count], rule };
        let mut tokens = tokens.into_iter().peekable();
        for id in 0..count as u32 {
            while let Some((_, token)) = tokens.next_if(|(at, _)| *at == id) {
                spelling.spell(&token, &mut pieces.bytes);
            }
            pieces.ends.push(pieces.bytes.len());
        }
        for (id, token) in added {
            pieces.special[id as usize] = token.special;
        }
        Ok(pieces)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let end = *self.ends.get(id as usize)?;
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] };
        Some(&self.bytes[start..end])
    }
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// How a token's name spells its bytes.
#[derive(Default)]
struct Spelling {
    /// Each character of the name is a byte, in the alphabet of GPT-2.
    bytes: Option<HashMap<char, u8>>,
    replace: Vec<(String, String)>,
    /// `<0x0A>` is one byte.
    fallback: bool,
}

impl Spelling {
    /// Read a decoder of `tokenizer.json`. What is not made of the steps known here is left to the library.
    fn of(decoder: &Value) -> (Rule, Self) {
        let mut spelling = Self::default();
        let mut rule = Rule::Joined;
        let mut fused = false;
        let single = [decoder.clone()];
        let steps = match decoder.get("decoders").and_then(Value::as_array) {
            Some(steps) if decoder["type"] == "Sequence" => &steps[..],
            _ => &single,
        };
        for step in steps {
            let known = match step["type"].as_str() {
                Some("ByteLevel") if steps.len() == 1 => {
                    spelling.bytes = Some(alphabet());
                    true
                }
                Some("Replace") if !fused => match (step["pattern"]["String"].as_str(), step["content"].as_str()) {
                    (Some(from), Some(to)) if !from.is_empty() => {
                        spelling.replace.push((from.to_string(), to.to_string()));
                        true
                    }
                    _ => false,
                },
                Some("ByteFallback") if !fused => {
                    spelling.fallback = true;
                    true
                }
                Some("Fuse") => {
                    fused = true;
                    true
                }
                Some("Strip") if fused && step["stop"] == 0 => {
                    match (step["content"].as_str().map(str::as_bytes), step["start"].as_u64()) {
                        (Some([byte]), Some(start)) if rule == Rule::Joined => {
                            rule = Rule::Strip(*byte, start as usize);
                            true
                        }
                        _ => false,
                    }
                }
                Some("Metaspace") if steps.len() == 1 => match step["replacement"].as_str() {
                    Some(space) => {
                        spelling.replace.push((space.to_string(), " ".to_string()));
                        if step["prepend_scheme"] != "never" {
                            rule = space.chars().next().map_or(Rule::Other, Rule::FirstWithout);
                        }
                        true
                    }
                    None => false,
                },
                _ => false,
            };
            if !known {
                return (Rule::Other, Self::default());
            }
        }
        (rule, spelling)
    }

    fn spell(&self, token: &str, out: &mut Vec<u8>) {
        if let Some(alphabet) = &self.bytes {
            let start = out.len();
            for c in token.chars() {
                match alphabet.get(&c) {
                    Some(byte) => out.push(*byte),
                    // A name outside the alphabet (an added token) is its own text.
                    None => {
                        out.truncate(start);
                        out.extend_from_slice(token.as_bytes());
                        return;
                    }
                }
            }
            return;
        }
        if self.fallback
            && let Some(byte) = byte_token(token)
        {
            out.push(byte);
            return;
        }
        match &self.replace[..] {
            [] => out.extend_from_slice(token.as_bytes()),
            [(from, to)] => out.extend_from_slice(token.replace(from, to).as_bytes()),
            several => {
                let text = several.iter().fold(token.to_string(), |text, (from, to)| text.replace(from, to));
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

/// The byte of a name like `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes, in order, for U+0100 on.
fn alphabet() -> HashMap<char, u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=255u8).filter(|b| !printable(*b)).zip('\u{100}'..);
    (0..=255u8).filter(|b| printable(*b)).map(|b| (char::from(b), b)).chain(others.map(|(b, c)| (c, b))).collect()
}
