//! Tokenizers give the ids that transformers gives, and streams give the text that decoding gives.
use omnidecode_models::{Tokenizer, Weights};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A model named by an environment variable, or `None` after saying so.
fn model(variable: &str) -> Option<Tokenizer> {
    let Ok(path) = std::env::var(variable) else {
        eprintln!("skipped: set {variable} to the path of its GGUF file");
        return None;
    };
    Some(Weights::open(path).unwrap().tokenizer().unwrap())
}

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn reproduces(variable: &str, name: &str) {
    let Some(tokenizer) = model(variable) else {
        return;
    };
    for item in golden(name)["items"].as_array().unwrap() {
        let text = item["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(item["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{name}: {text}");
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

#[test]
fn smollm2_ids_are_those_of_transformers() {
    reproduces("OMNIDECODE_TEST_GGUF", "smollm2-135m-instruct.json");
}

#[test]
fn qwen_ids_are_those_of_transformers() {
    reproduces("OMNIDECODE_TEST_GGUF_QWEN", "qwen2.5-coder-0.5b.json");
}

#[test]
fn gemma_ids_are_those_of_transformers() {
    reproduces("OMNIDECODE_TEST_GGUF_GEMMA", "gemma-3-270m.json");
}

/// Every text of the project's data, or the sample beside this test.
fn texts() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = std::env::var("OMNIDECODE_DATA").map_or_else(|_| root.join("../../../shared/data"), PathBuf::from);
    let mut texts: Vec<String> = serde_json::from_str(include_str!("../data/texts.json")).unwrap();
    let mut folders = vec![data.clone()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        let mut entries: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        entries.sort();
        for path in entries {
            match path.extension().and_then(|e| e.to_str()) {
                _ if path.is_dir() && !path.ends_with("golden") => folders.push(path),
                Some("txt") => texts.extend(std::fs::read_to_string(&path).unwrap().split("\n\n").map(String::from)),
                Some("jsonl") => {
                    for line in std::fs::read_to_string(&path).unwrap().lines() {
                        collect(&serde_json::from_str(line).unwrap(), &mut texts);
                    }
                }
                _ => {}
            }
        }
    }
    eprintln!("{} texts, from {} and the sample", texts.len(), data.display());
    texts
}

fn collect(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|v| collect(v, texts)),
        Value::Object(map) => map.values().for_each(|v| collect(v, texts)),
        _ => {}
    }
}

#[test]
fn real_text_survives_the_round_trip() {
    let Some(tokenizer) = model("OMNIDECODE_TEST_GGUF") else {
        return;
    };
    for text in texts() {
        let ids = tokenizer.encode(&text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text);
        assert_eq!(streamed(&tokenizer, &ids, false), text);
    }
}

/// What a stream gives, checked to be whole characters by the type.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
    let mut stream = tokenizer.stream(skip);
    let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
    text.push_str(&stream.finish());
    text
}

/// The alphabet of GPT-2: name of each byte.
fn byte_names() -> Vec<String> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = '\u{100}'..;
    (0..=255u8).map(|b| if printable(b) { char::from(b) } else { others.next().unwrap() }.to_string()).collect()
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special})
}

fn build(vocab: Vec<String>, rest: Value, decoder: Value, added: Vec<Value>, normalizer: Value) -> Tokenizer {
    let vocab: serde_json::Map<String, Value> =
        vocab.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    let mut bpe = json!({"type": "BPE", "vocab": vocab, "merges": [], "fuse_unk": true});
    bpe.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    let pre = if decoder["type"] == "ByteLevel" {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
    } else {
        Value::Null
    };
    let json = json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}, "padding": null,
        "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": null, "decoder": decoder, "model": bpe});
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

static BYTE_LEVEL: LazyLock<Tokenizer> = LazyLock::new(|| {
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    build(
        byte_names(),
        json!({}),
        decoder,
        vec![added(256, "<|end|>", true), added(257, "två ord", false)],
        Value::Null,
    )
});

fn sentence_piece(decoder: Value) -> Tokenizer {
    let mut vocab = vec!["<unk>".to_string(), "<s>".into()];
    vocab.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
    vocab.extend(["\u{2581}", "a", "b", "é", "\u{2581}a", "\u{2581}\u{2581}", "\u{2581}\u{2581}b"].map(String::from));
    let normalizer = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]});
    build(vocab, json!({"byte_fallback": true, "unk_token": "<unk>"}), decoder, vec![added(1, "<s>", true)], normalizer)
}

static STRIPPED: LazyLock<Tokenizer> = LazyLock::new(|| {
    sentence_piece(json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}))
});
static METASPACE: LazyLock<Tokenizer> = LazyLock::new(|| {
    sentence_piece(json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true}))
});
static WORDS: LazyLock<Tokenizer> =
    LazyLock::new(|| sentence_piece(json!({"type": "WordPiece", "prefix": "##", "cleanup": true})));

proptest! {
    /// Any ids at all, also those that no text gives: half characters, broken ones, special and unknown tokens.
    #[test]
    fn a_stream_gives_exactly_what_decoding_gives(ids in prop::collection::vec(0u32..270, 0..40), skip: bool) {
        for tokenizer in [&*BYTE_LEVEL, &*STRIPPED, &*METASPACE, &*WORDS] {
            prop_assert_eq!(streamed(tokenizer, &ids, skip), tokenizer.decode(&ids, skip));
        }
    }

    #[test]
    fn any_text_survives_the_round_trip(text in "\\PC{0,30}|[ \n\ta-cé日本🎉]{0,30}") {
        // SentencePiece cannot tell its stand-in from a space.
        prop_assume!(!text.contains('\u{2581}'));
        for tokenizer in [&*BYTE_LEVEL, &*STRIPPED] {
            let ids = tokenizer.encode(&text, true).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, false), text.clone());
            prop_assert_eq!(streamed(tokenizer, &ids, false), text.clone());
        }
    }
}

#[test]
fn a_character_is_held_until_it_is_whole() {
    let ids = BYTE_LEVEL.encode("é🎉", false).unwrap();
    assert_eq!(ids.len(), 6);
    let mut stream = BYTE_LEVEL.stream(true);
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "🎉"]);
    assert_eq!(stream.finish(), "");
    let mut stream = BYTE_LEVEL.stream(true);
    assert_eq!(stream.push(ids[0]), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
}

#[test]
fn special_tokens_in_a_text_are_recognised() {
    let ids = BYTE_LEVEL.encode("a<|end|>två ord", false).unwrap();
    assert_eq!(ids, [97, 256, 257]);
    assert!(BYTE_LEVEL.is_special(256) && !BYTE_LEVEL.is_special(257));
    assert_eq!(BYTE_LEVEL.decode(&ids, true), "atvå ord");
    assert_eq!(BYTE_LEVEL.id("<|end|>"), Some(256));
    assert_eq!(BYTE_LEVEL.vocab(), 258);
    assert_eq!(BYTE_LEVEL.token_bytes(0xC3).unwrap(), [0xC3]);
    assert!(BYTE_LEVEL.token_bytes(258).is_err());
    assert_eq!(STRIPPED.token_bytes(2 + 0xE2).unwrap(), [0xE2]);
    // Truncation in the file is left out: nothing is cut silently.
    assert_eq!(BYTE_LEVEL.encode("abcdefgh", true).unwrap().len(), 8);
}
