//! A tokenizer from the metadata of a GGUF file: byte-level BPE by its merges, or SentencePiece by its scores.
use super::Tokenizer;
use crate::error::{ModelError, Result};
use crate::files::gguf::Header;
use std::collections::HashMap;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Model};

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Most characters of a token that is joined of others; trainers stop far below. All ways to split a longer one would
/// take time in the square of its length.
const LONGEST: usize = 512;

/// SentencePiece's stand-in for a space.
const SPACE: &str = "\u{2581}";

// Patterns as the tokenizers' authors published them with their models.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<Kind>,
}

impl Vocabulary<'_> {
    fn ids(&self) -> Vocab {
        // Of two equal names the first id is the token.
        self.tokens.iter().enumerate().rev().map(|(id, token)| ((*token).to_string(), id as u32)).collect()
    }
}

fn wrong(at: &str, expected: impl Into<String>, found: impl ToString) -> ModelError {
    ModelError::tokenizer(format!("tokenizer.ggml.{at}"), expected, found)
}

impl Tokenizer {
    /// Build from GGUF metadata; `file` is the file that `header` was read from.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] for a kind of tokenizer that is not known, or parts that contradict each other.
    pub fn from_gguf(header: &Header, file: &[u8]) -> Result<Self> {
        let model =
            header.text("tokenizer.ggml.model")?.ok_or_else(|| wrong("model", "gpt2 or llama", "no such key"))?;
        let tokens = header
            .texts("tokenizer.ggml.tokens", file)?
            .ok_or_else(|| wrong("tokens", "a list of tokens", "no such key"))?;
        let kinds = match header.numbers("tokenizer.ggml.token_type", file)? {
            None => vec![Kind::Normal; tokens.len()],
            Some(list) if list.len() == tokens.len() => list.into_iter().map(kind).collect::<Result<_>>()?,
            Some(list) => {
                return Err(wrong("token_type", format!("{} of them", tokens.len()), list.len()));
            }
        };
        let vocabulary = Vocabulary { tokens, kinds };
        let (mut built, opens) = match model {
            "gpt2" => byte_level(header, file, &vocabulary)?,
            "llama" => sentence_piece(header, file, &vocabulary)?,
            other => {
                return Err(wrong("model", "gpt2 (byte-level BPE) or llama (SentencePiece)", other));
            }
        };
        let added = vocabulary.tokens.iter().zip(&vocabulary.kinds).filter_map(|(token, kind)| {
            let special = match kind {
                Kind::Control => true,
                Kind::UserDefined => false,
                _ => return None,
            };
            (!token.is_empty()).then(|| AddedToken::from(*token, special).normalized(false))
        });
        built.add_tokens(added).map_err(|e| wrong("tokens", "tokens that can be added", e))?;
        let id = |key: &str, added: bool| -> Result<Option<u32>> {
            let name = format!("tokenizer.ggml.{key}");
            match header.unsigned(&name)? {
                _ if !added => Ok(None),
                Some(id) if id < vocabulary.tokens.len() as u64 => Ok(Some(id as u32)),
                None => Ok(None),
                Some(id) => Err(wrong(key, format!("an id below {}", vocabulary.tokens.len()), id)),
            }
        };
        let before = id("bos_token_id", header.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(opens))?;
        let after = id("eos_token_id", header.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(false))?;
        Self::new(built, before, after)
    }
}

fn kind(number: f64) -> Result<Kind> {
    Ok(match number as i64 {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => return Err(wrong("token_type", "1 to 6", number)),
    })
}

/// Byte-level BPE, and whether it opens a text with its bos token unless told otherwise.
fn byte_level(header: &Header, file: &[u8], vocabulary: &Vocabulary<'_>) -> Result<(Model, bool)> {
    let merges = header
        .texts("tokenizer.ggml.merges", file)?
        .ok_or_else(|| wrong("merges", "a list of merges", "no such key"))?;
    let merges = merges
        .into_iter()
        .map(|merge| {
            merge
                .split_once(' ')
                .map(|(l, r)| (l.to_string(), r.to_string()))
                .ok_or_else(|| wrong("merges", "two tokens with a space between", merge))
        })
        .collect::<Result<Vec<_>>>()?;
    let pre = header.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let (pattern, whole_words, opens) = match pre {
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "dbrx" | "smaug-bpe" => (LLAMA3, true, true),
        "tekken" => (TEKKEN, true, true),
        "gpt-4o" | "llama4" => (O200K, true, false),
        "qwen2" | "deepseek-r1-qwen" | "megrez" => (QWEN2, false, false),
        _ => (GPT2, false, false),
    };
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    match pre {
        "gpt-2" | "gpt2" | "phi-2" | "olmo" | "mpt" | "jais" | "gigachat" => {
            steps.push(ByteLevel::new(false, true, true).into())
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            steps.push(Digits::new(true).into());
            steps.push(ByteLevel::new(false, true, true).into());
        }
        "default" => {
            // Punctuation stands alone, then GPT-2's words, then runs of digits.
            for pattern in [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"] {
                steps.push(split(pattern)?);
            }
            steps.push(ByteLevel::new(false, true, false).into());
        }
        _ if pattern == GPT2 => {
            return Err(wrong(
                "pre",
                "default, gpt-2, smollm, starcoder, refact, command-r, llama-bpe, dbrx, tekken, gpt-4o, qwen2 or one of their kin",
                pre,
            ));
        }
        _ => {
            steps.push(split(pattern)?);
            steps.push(ByteLevel::new(false, true, false).into());
        }
    }
    let bpe = BPE::builder().vocab_and_merges(vocabulary.ids(), merges).ignore_merges(whole_words).build();
    let mut model = Model::new(bpe.map_err(|e| wrong("merges", "merges of tokens that are there", e))?);
    if matches!(pre, "qwen2" | "deepseek-r1-qwen" | "olmo") {
        model.with_normalizer(Some(NFC)).map_err(|e| wrong("pre", "a normalizer", e))?;
    }
    model.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    model.with_decoder(Some(ByteLevel::new(false, true, false)));
    Ok((model, opens))
}

fn split(pattern: &str) -> Result<PreTokenizerWrapper> {
    let split = Split::new(SplitPattern::Regex(pattern.to_string()), SplitDelimiterBehavior::Isolated, false);
    Ok(split.map_err(|e| wrong("pre", "a pattern", e))?.into())
}

/// SentencePiece by score: the pair whose join has the highest score is joined first.
fn sentence_piece(header: &Header, file: &[u8], vocabulary: &Vocabulary<'_>) -> Result<(Model, bool)> {
    let scores = header
        .numbers("tokenizer.ggml.scores", file)?
        .ok_or_else(|| wrong("scores", "a score for each token", "no such key"))?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(wrong("scores", format!("{} of them", vocabulary.tokens.len()), scores.len()));
    }
    let unknown = vocabulary.kinds.iter().position(|k| *k == Kind::Unknown);
    let unknown = unknown.or(header.unsigned("tokenizer.ggml.unknown_token_id")?.map(|id| id as usize));
    let mut bpe = BPE::builder()
        .vocab_and_merges(vocabulary.ids(), merges(vocabulary, &scores))
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(token) = unknown.and_then(|id| vocabulary.tokens.get(id)) {
        bpe = bpe.unk_token((*token).to_string());
    }
    let bpe = bpe.build().map_err(|e| wrong("tokens", "a consistent vocabulary", e))?;
    let prefix = header.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut model = Model::new(bpe);
    let replace = |from: &str, to: &str| Replace::new(from, to).map_err(|e| wrong("tokens", "a replacement", e));
    let mut normal = Vec::new();
    if prefix {
        normal.push(Prepend::new(SPACE.to_string()).into());
    }
    normal.push(replace(" ", SPACE)?.into());
    model.with_normalizer(Some(Normalizers::new(normal))).map_err(|e| wrong("tokens", "a normalizer", e))?;
    let mut decoders = vec![replace(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    model.with_decoder(Some(Decoders::new(decoders)));
    Ok((model, true))
}

/// The merges that a scored vocabulary implies: every way to split a token in two tokens, best score first; among equal
/// scores the longer left part, as the published conversions order them.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<(String, String)> {
    let joins = |kind: Kind| matches!(kind, Kind::Normal | Kind::UserDefined);
    let ids: HashMap<&str, usize> = vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| joins(vocabulary.kinds[*id]))
        .map(|(id, token)| (*token, id))
        .collect();
    let mut found: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| joins(vocabulary.kinds[*id])) {
        let length = token.chars().count();
        if length > LONGEST {
            continue;
        }
        let start = found.len();
        for (left, (cut, _)) in token.char_indices().enumerate().skip(1) {
            let (l, r) = token.split_at(cut);
            if ids.contains_key(l) && ids.contains_key(r) {
                found.push((scores[id], left, length - left, l, r));
            }
        }
        found[start..].sort_by_key(|(_, _, _, l, r)| (ids[l], ids[r]));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    found.into_iter().map(|(_, _, _, l, r)| (l.to_string(), r.to_string())).collect()
}
