//! Real checkpoints map onto the decoder's parts, completely and byte for byte.
use omnidecode_models::config::*;
use omnidecode_models::files::Dtype;
use omnidecode_models::{Field, ModelError, Part, Weights};
use std::path::{Path, PathBuf};

const TINY: [&str; 15] = [
    "gemma2",
    "gemma3",
    "gpt2",
    "granite",
    "llama",
    "llama-yarn",
    "llama3-rope",
    "mistral-window",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "smollm3",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn open(name: &str) -> Weights {
    Weights::open(golden(name)).unwrap()
}

/// Every number of the file is in some part, and every part that the configuration calls for is in the file.
#[test]
fn every_golden_checkpoint_maps_completely() {
    for name in TINY {
        let weights = open(name);
        weights.check().unwrap_or_else(|e| panic!("{name}: {e}"));
        let config = weights.config();
        let mapped: usize = std::iter::once(None)
            .chain((0..config.layers.len()).map(Some))
            .flat_map(|layer| weights.parts(layer))
            .map(|(_, _, tensor)| tensor.elements())
            .sum();
        let tied = if config.tied { config.vocab * config.hidden } else { 0 };
        assert_eq!(mapped as u64, weights.parameters() + tied as u64, "{name}");
    }
}

#[test]
fn views_borrow_and_only_a_transpose_copies() {
    use std::borrow::Cow;
    let phi = open("phi3");
    let fused = phi.tensor("model.layers.1.self_attn.qkv_proj.weight").unwrap();
    let mut joined = Vec::new();
    for part in [Part::Q, Part::K, Part::V] {
        let view = phi.part(Some(1), part, Field::Weight).unwrap();
        assert!(matches!(view.bytes, Cow::Borrowed(_)));
        joined.extend_from_slice(&view.bytes);
    }
    assert_eq!(joined, *fused.bytes);
    let gpt = open("gpt2");
    let fused = gpt.tensor("transformer.h.2.attn.c_attn.weight").unwrap().to_f32().unwrap();
    let (hidden, width) = (64, 192);
    let key = gpt.part(Some(2), Part::K, Field::Weight).unwrap();
    assert_eq!(key.shape, [64, 64]);
    let numbers = key.to_f32().unwrap();
    for out in 0..64 {
        for input in 0..hidden {
            assert_eq!(numbers[out * hidden + input], fused[input * width + 64 + out]);
        }
    }
    let bias = gpt.part(Some(2), Part::V, Field::Bias).unwrap();
    let whole = gpt.tensor("transformer.h.2.attn.c_attn.bias").unwrap();
    assert_eq!(bias.shape, [64]);
    assert_eq!(*bias.bytes, whole.bytes[128 * 4..]);
}

#[test]
fn configurations_say_what_their_fields_say() {
    let gemma = open("gemma3");
    let c = gemma.config();
    assert_eq!((c.norm, c.norm_placement, c.qk_norm), (NormKind::RmsPlusOne, NormPlacement::Sandwich, QkNorm::PerHead));
    assert_eq!(c.layers.iter().map(|l| l.window).collect::<Vec<_>>(), [Some(8), Some(8), Some(8), None]);
    let theta = |i: usize| c.ropes[c.layers[i].rope.unwrap()].theta;
    assert_eq!((theta(0), theta(3)), (1e4, 1e6));
    assert_eq!(c.layers[0].attention_scale, (24f64.powf(-0.5)) as f32);
    assert_eq!(c.embedding_scale, 8.0);
    let c2 = open("gemma2").config().clone();
    assert_eq!((c2.attention_softcap, c2.final_softcap, c2.tied), (Some(20.0), Some(10.0), true));
    let granite = open("granite").config().clone();
    assert_eq!(
        (granite.embedding_scale, granite.residual_scale, granite.logit_scale, granite.layers[0].attention_scale),
        (6.0, 0.3, 0.25, 0.1)
    );
    let smol = open("smollm3").config().clone();
    assert_eq!(smol.layers.iter().map(|l| l.rope).collect::<Vec<_>>(), [Some(0), Some(0), None]);
    assert_eq!(open("phi3").config().ropes[0].rotary, 8);
    let moe = open("qwen3-moe").config().experts.unwrap();
    assert_eq!(moe, Experts { count: 6, per_token: 2, normalize: true, intermediate: 48 });
    let gpt = open("gpt2").config().clone();
    assert_eq!((gpt.norm, gpt.gated, gpt.learned_positions), (NormKind::Layer, false, Some(256)));
    assert_eq!(open("olmo2").config().qk_norm, QkNorm::Whole);
    assert!(open("qwen2").config().qkv_bias && !open("qwen2").config().o_bias);
    assert_eq!(open("mistral-window").config().layers[0].window, Some(8));
}

/// The real GGUF named by OMNIDECODE_TEST_GGUF (SmolLM2-135M-Instruct, Q4_1).
#[test]
fn a_real_gguf_maps_completely() {
    let Ok(path) = std::env::var("OMNIDECODE_TEST_GGUF") else {
        eprintln!("skipped: set OMNIDECODE_TEST_GGUF to the path of SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let weights = Weights::open(path).unwrap();
    weights.check().unwrap();
    let c = weights.config();
    assert_eq!((c.hidden, c.layers.len(), c.heads, c.kv_heads, c.head_dim), (576, 30, 9, 3, 64));
    assert_eq!((c.vocab, c.context, c.tied, c.rope_layout), (49152, 8192, true, RopeLayout::Interleaved));
    assert_eq!((c.bos, &c.eos[..], c.pad), (Some(1), &[0, 2][..], Some(2)));
    assert_eq!(c.ropes[0].theta, 100_000.0);
    assert_eq!(weights.part(Some(29), Part::Down, Field::Weight).unwrap().dtype, Dtype::Q4_1);
    assert_eq!(weights.part(None, Part::Output, Field::Weight).unwrap().dtype, Dtype::Q8_0);
    assert_eq!(weights.parameters(), 134_515_008);
    let mapped: usize =
        (0..30).map(Some).chain([None]).flat_map(|l| weights.parts(l)).map(|(_, _, t)| t.elements()).sum();
    assert_eq!(mapped, 134_515_008 + 49152 * 576);
}

#[test]
fn pickles_and_strangers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let pickle = write("pytorch_model.bin", b"PK\x03\x04whatever");
    assert!(matches!(Weights::open(&pickle), Err(ModelError::Pickle { .. })));
    assert!(matches!(Weights::open(folder.path()), Err(ModelError::Pickle { .. })));
    assert!(matches!(Weights::open(write("notes.txt", b"hello")), Err(ModelError::UnknownFormat { .. })));
    assert!(matches!(Weights::open(folder.path().join("none")), Err(ModelError::Io { .. })));
    let empty = write("empty.gguf", b"");
    assert!(Weights::open(empty).is_err());
    write("model.safetensors.index.json", br#"{"weight_map": {"a": "../../etc/passwd"}}"#);
    let error = Weights::open(folder.path()).err().unwrap();
    assert!(matches!(error, ModelError::Malformed { .. }), "{error}");
}

#[test]
fn a_sharded_checkpoint_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let whole = open("llama");
    let bytes = std::fs::read(golden("llama/model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut map = serde_json::Map::new();
    for shard in 0..2 {
        let mut data = Vec::new();
        let mut kept = serde_json::Map::new();
        let file = format!("model-0000{}-of-00002.safetensors", shard + 1);
        for (i, (name, info)) in header.iter().filter(|(n, _)| *n != "__metadata__").enumerate() {
            if i % 2 == shard {
                let tensor = whole.tensor(name).unwrap();
                let mut info = info.clone();
                info["data_offsets"] = serde_json::json!([data.len(), data.len() + tensor.bytes.len()]);
                data.extend_from_slice(&tensor.bytes);
                kept.insert(name.clone(), info);
                map.insert(name.clone(), file.clone().into());
            }
        }
        let header = serde_json::to_vec(&kept).unwrap();
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header);
        out.extend(data);
        std::fs::write(folder.path().join(file), out).unwrap();
    }
    std::fs::write(
        folder.path().join("model.safetensors.index.json"),
        serde_json::json!({"weight_map": map}).to_string(),
    )
    .unwrap();
    std::fs::copy(golden("llama/config.json"), folder.path().join("config.json")).unwrap();
    std::fs::write(
        folder.path().join("generation_config.json"),
        r#"{"eos_token_id": [2, 5], "temperature": 0.6, "top_p": 0.9}"#,
    )
    .unwrap();
    let sharded = Weights::open(folder.path()).unwrap();
    sharded.check().unwrap();
    assert_eq!(sharded.config().eos, [2, 5]);
    assert_eq!(sharded.generation_config().temperature, Some(0.6));
    for name in whole.names() {
        assert_eq!(whole.tensor(name).unwrap(), sharded.tensor(name).unwrap());
    }
    // One shard missing is an error that names it.
    std::fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    let error = Weights::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("model-00002-of-00002"), "{error}");
}
