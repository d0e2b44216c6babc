//! Hostile files: bytes from anywhere, and valid files with a few bytes changed. Every loader answers with a typed error
//! or a sound result; none panics, none allocates in proportion to what a file only claims.
use omnidecode_models::config::{Config, GenerationConfig};
use omnidecode_models::files::{gguf, safetensors};
use omnidecode_models::{ChatTemplate, Conversation, Tokenizer, Weights};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

/// Counts what this thread allocates, so that a claim of a file that became an allocation shows.
struct Counting;
thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}
// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATED.try_with(|total| total.set(total.get().saturating_add(layout.size())));
        // SAFETY: the caller's duty is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's duty is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that `work` allocates in all.
fn allocated(work: impl FnOnce()) -> usize {
    let before = ALLOCATED.get();
    work();
    ALLOCATED.get() - before
}

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A small, valid GGUF with a model, and a tokenizer of either kind.
fn valid_gguf(sentence_piece: bool) -> Vec<u8> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut key = |name: &str, kind: u32, value: &[u8]| {
        let mut out = Vec::new();
        text(&mut out, name);
        out.extend(kind.to_le_bytes());
        out.extend(value);
        keys.push(out);
    };
    let string = |s: &str| {
        let mut out = Vec::new();
        text(&mut out, s);
        out
    };
    let list = |kind: u32, count: usize, items: Vec<u8>| {
        [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), &items].concat()
    };
    key("general.architecture", 8, &string("llama"));
    for (name, value) in [
        ("block_count", 1u32),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        key(&format!("llama.{name}"), 4, &value.to_le_bytes());
    }
    key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u{2581}", "<0x41>"];
    let strings = |items: &[&str]| items.iter().flat_map(|item| string(item)).collect::<Vec<u8>>();
    key("tokenizer.ggml.model", 8, &string(if sentence_piece { "llama" } else { "gpt2" }));
    key("tokenizer.ggml.pre", 8, &string("smollm"));
    key("tokenizer.ggml.tokens", 9, &list(8, 8, strings(&tokens)));
    key("tokenizer.ggml.scores", 9, &list(6, 8, (0..8).flat_map(|i| (-(i as f32)).to_le_bytes()).collect()));
    key(
        "tokenizer.ggml.token_type",
        9,
        &list(5, 8, [2i32, 3, 3, 1, 1, 1, 1, 6].iter().flat_map(|k| k.to_le_bytes()).collect()),
    );
    key("tokenizer.ggml.merges", 9, &list(8, 1, strings(&["a b"])));
    key("tokenizer.ggml.bos_token_id", 4, &1u32.to_le_bytes());
    key("tokenizer.ggml.eos_token_id", 4, &2u32.to_le_bytes());
    key("tokenizer.chat_template", 8, &string("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"));
    let tensors: [(&str, &[u64], u32); 12] = [
        ("token_embd.weight", &[32, 8], 8),
        ("output_norm.weight", &[32], 0),
        ("blk.0.attn_norm.weight", &[32], 0),
        ("blk.0.ffn_norm.weight", &[32], 0),
        ("blk.0.attn_q.weight", &[32, 32], 2),
        ("blk.0.attn_k.weight", &[32, 16], 3),
        ("blk.0.attn_v.weight", &[32, 16], 6),
        ("blk.0.attn_output.weight", &[32, 32], 7),
        ("blk.0.ffn_gate.weight", &[32, 32], 1),
        ("blk.0.ffn_up.weight", &[32, 32], 30),
        ("blk.0.ffn_down.weight", &[32, 32], 8),
        ("rope_freqs.weight", &[8], 0),
    ];
    let bytes_of_32 = |kind: u32| match kind {
        0 => 128,
        1 | 30 => 64,
        2 => 18,
        3 => 20,
        6 => 22,
        7 => 24,
        _ => 34,
    };
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    out.extend(keys.concat());
    let mut data = Vec::new();
    for (name, sizes, kind) in tensors {
        text(&mut out, name);
        out.extend((sizes.len() as u32).to_le_bytes());
        out.extend(sizes.iter().flat_map(|s| s.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        let elements: u64 = sizes.iter().product();
        data.resize(data.len() + (elements as usize * bytes_of_32(kind)).div_ceil(32), 0x3c);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

/// Everything that can be asked of a model's files.
fn use_everything(weights: &Weights) {
    let _ = weights.check();
    for name in weights.names() {
        if let Ok(tensor) = weights.tensor(name) {
            assert_eq!(tensor.bytes.len(), tensor.rows() * tensor.row_bytes());
            let _ = tensor.to_f32();
        }
    }
    for rope in &weights.config().ropes {
        let (frequencies, _) = rope.inverse_frequencies(100);
        assert_eq!(frequencies.len(), rope.rotary / 2);
    }
    if let Ok(tokenizer) = weights.tokenizer()
        && let Ok(ids) = tokenizer.encode("ab a 12 é🎉", true)
    {
        tokenizer.decode(&ids, true);
    }
    if let Ok(template) = weights.chat_template() {
        let messages = [json!({"role": "user", "content": "hi"})];
        let _ = template.render(&Conversation { messages: &messages, ..Conversation::default() });
    }
}

fn open_bytes(bytes: &[u8]) -> Option<Weights> {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Weights::open(file.path()).ok()
}

#[test]
fn the_valid_files_are_valid() {
    for sentence_piece in [false, true] {
        let weights = open_bytes(&valid_gguf(sentence_piece)).unwrap();
        weights.check().unwrap();
        assert_eq!(weights.tokenizer().unwrap().encode("ab", false).unwrap().last(), Some(&5));
        use_everything(&weights);
    }
}

/// Cut, overwrite and insert.
fn mutate(mut bytes: Vec<u8>, edits: &[(usize, u8, u8)]) -> Vec<u8> {
    for (at, kind, value) in edits {
        if bytes.is_empty() {
            break;
        }
        let at = at % bytes.len();
        match kind % 8 {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, *value),
            2 => drop(bytes.remove(at)),
            // A length of all ones, or a huge one.
            3 => bytes[at..].iter_mut().take(8).for_each(|b| *b = 0xff),
            4 => bytes[at..].iter_mut().skip(4).take(3).for_each(|b| *b = *value),
            _ => bytes[at] = *value,
        }
    }
    bytes
}

/// Edits near the start of a file, where its header is.
fn edits(within: usize) -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    prop::collection::vec((0..within, any::<u8>(), any::<u8>()), 1..6)
}

/// What a header of `length` bytes may cost: names, entries and error texts, with room.
fn fair(length: usize) -> usize {
    64 * length + (1 << 16)
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..300).prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        "[a-z_0-9]{0,12}".prop_map(Value::from),
        Just(json!("yarn")),
        Just(json!("longrope")),
        Just(json!("sliding_attention")),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(
                (prop_oneof![Just("rope_type".to_string()), Just("factor".to_string()), "[a-z]{1,6}"], inner),
                0..4
            )
            .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let cost = allocated(|| {
            let _ = gguf::read(&bytes);
            let _ = gguf::read(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
            let _ = safetensors::read(&bytes);
        });
        prop_assert!(cost < 4 * fair(bytes.len()), "{cost} bytes");
        let _ = Tokenizer::from_json(&bytes);
    }

    #[test]
    fn changed_gguf(edits in edits(2200), sentence_piece: bool) {
        let bytes = mutate(valid_gguf(sentence_piece), &edits);
        let cost = allocated(|| drop(gguf::read(&bytes)));
        prop_assert!(cost < fair(bytes.len()), "{cost} bytes");
        if let Some(weights) = open_bytes(&bytes) {
            use_everything(&weights);
        }
    }

    #[test]
    fn changed_safetensors(edits in edits(1200)) {
        let valid = std::fs::read(golden("llama/model.safetensors")).unwrap();
        let bytes = mutate(valid, &edits);
        let header = bytes.first_chunk().map_or(0, |n| u64::from_le_bytes(*n)).min(bytes.len() as u64) as usize;
        let cost = allocated(|| drop(safetensors::read(&bytes)));
        prop_assert!(cost < fair(header), "{cost} bytes for a header of {header}");
        if safetensors::read(&bytes).is_ok() {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("model.safetensors"), &bytes).unwrap();
            std::fs::copy(golden("llama/config.json"), folder.path().join("config.json")).unwrap();
            if let Ok(weights) = Weights::open(folder.path()) {
                use_everything(&weights);
            }
        }
    }

    #[test]
    fn changed_configuration(which in 0usize..15, changes in prop::collection::vec((any::<prop::sample::Index>(), json_value()), 1..4), nested: bool) {
        const NAMES: [&str; 15] = ["gemma2", "gemma3", "gpt2", "granite", "llama", "llama-yarn", "llama3-rope", "mistral-window", "mixtral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3-moe", "smollm3"];
        const MORE: [&str; 8] = ["rope_scaling", "rope_parameters", "no_rope_layers", "mask_token_id", "attention", "block_size", "text_config", "rope_theta"];
        let mut config: Value = serde_json::from_slice(&std::fs::read(golden(NAMES[which]).join("config.json")).unwrap()).unwrap();
        for (index, value) in changes {
            let object = config.as_object_mut().unwrap();
            let inner = object.get("rope_parameters").is_some_and(Value::is_object) && nested;
            let target = if inner { object["rope_parameters"].as_object_mut().unwrap() } else { object };
            let mut keys: Vec<String> = target.keys().cloned().collect();
            keys.extend(MORE.map(String::from));
            let key = index.get(&keys).clone();
            target.insert(key, value);
        }
        if let Ok(config) = Config::from_json(&config) {
            for rope in &config.ropes {
                let (frequencies, _) = rope.inverse_frequencies(config.context);
                prop_assert_eq!(frequencies.len(), rope.rotary / 2);
            }
        }
        let _ = GenerationConfig::from_json(&config);
    }

    #[test]
    fn changed_tokenizer(edits in edits(1500)) {
        let valid = include_bytes!("../data/tokenizer.json");
        Tokenizer::from_json(valid).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_json(&mutate(valid.to_vec(), &edits))
            && let Ok(ids) = tokenizer.encode("Hello, world! é🎉 <s>12", true)
        {
            let text = tokenizer.decode(&ids, false);
            let mut stream = tokenizer.stream(false);
            let streamed: String = ids.iter().map(|id| stream.push(*id)).collect();
            prop_assert_eq!(streamed + &stream.finish(), text);
        }
    }

    #[test]
    fn changed_template(which in 0usize..9, edits in edits(3000), garbage in "\\PC{0,40}") {
        let chats: Value = serde_json::from_str(include_str!("../data/chats.json")).unwrap();
        let source = chats["templates"].as_object().unwrap().values().nth(which).unwrap()["source"].as_str().unwrap();
        let changed = String::from_utf8_lossy(&mutate(source.as_bytes().to_vec(), &edits)).into_owned();
        let messages = [json!({"role": "user", "content": "hi"}), json!({"role": "assistant", "content": garbage})];
        for source in [&changed, &garbage, &format!("{{% {garbage} %}}"), &format!("{{{{ {garbage} }}}}")] {
            if let Ok(template) = ChatTemplate::new(source, [("bos_token", "<s>")]) {
                let _ = template.render(&Conversation { messages: &messages, ..Conversation::default() });
            }
        }
    }
}
