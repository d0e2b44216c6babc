//! Adapters: a norm and attention behind a layer of another model, whose head they use.
mod common;

use common::folder;
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::{Network, Weights};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

/// An adapter in the format of the Python recipe.
fn write(at: &std::path::Path, change: impl Fn(&mut serde_json::Value)) {
    let mut config = json!({
        "model_type": "kangaroo", "exit_layer": 2, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 320,
        "target_layers": 3, "torch_dtype": "float16"
    });
    change(&mut config);
    std::fs::write(at.join("config.json"), config.to_string()).expect("written");
    let square: Vec<u8> = (0..64 * 64).flat_map(|i| half(((i * 37 % 101) as f32 - 50.0) / 400.0)).collect();
    let ones: Vec<u8> = (0..64).flat_map(|_| half(1.0)).collect();
    let names = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| format!("layers.0.self_attn.{n}.weight"));
    let norms = ["layers.0.input_layernorm.weight", "norm.weight"];
    let view = |shape: &[usize], data| TensorView::new(Dtype::F16, shape.to_vec(), data).expect("sizes fit");
    let squares = names.iter().map(|n| (n.as_str(), view(&[64, 64], &square)));
    let all: Vec<_> = squares.chain(norms.map(|n| (n, view(&[64], &ones)))).collect();
    safetensors::serialize_to_file(all, None, &at.join("model.safetensors")).expect("written");
}
fn half(x: f32) -> [u8; 2] {
    half::f16::from_f32(x).to_le_bytes()
}

#[test]
fn an_adapter_loads_beside_its_model_only() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    write(at, |_| {});
    let options = Options { threads: Some(1), ..Options::default() };
    let main = Decoder::load(&Weights::open(folder("llama")).expect("golden"), &options).expect("loads");
    let weights = Weights::open(at).expect("opens");
    let adapter = Decoder::load_adapter(&weights, &main, &options).expect("fits");
    let card = adapter.card();
    assert_eq!((card.exit_layer, card.layers, card.hidden, card.vocab), (Some(2), 1, 64, 320));
    assert!(card.bytes > 0 && card.bytes < main.card().bytes);
    assert!(Decoder::load(&weights, &options).err().expect("no model").to_string().contains("adapter"));
    let whole = Weights::open(folder("llama")).expect("golden");
    assert!(Decoder::load_adapter(&whole, &main, &options).is_err(), "a whole model is no adapter");
    for (key, value) in [("exit_layer", json!(3)), ("vocab_size", json!(321))] {
        write(at, |config| config[key] = value.clone());
        let weights = Weights::open(at).expect("opens");
        assert!(Decoder::load_adapter(&weights, &main, &options).is_err(), "{key} does not fit");
    }
    write(at, |config| config["hidden_size"] = json!(32));
    assert!(Weights::open(at).is_err() || Decoder::load_adapter(&Weights::open(at).unwrap(), &main, &options).is_err());
}
