//! Configurations: frequencies as transformers computes them, old and new fields, and values that cannot be.
use omnidecode_models::config::{Attention, Config, GenerationConfig, NormKind, QkNorm, RopeScaling};
use omnidecode_models::{ModelError, config};
use serde_json::{Value, json};

fn parse(config: Value) -> Result<Config, ModelError> {
    Config::from_json(&config)
}

fn llama(changes: Value) -> Value {
    let mut config = json!({"model_type": "llama", "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 160, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2});
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// `data/rope.json` holds what ROPE_INIT_FUNCTIONS of transformers 5.23 return (torch, f32) for each configuration.
#[test]
fn frequencies_are_those_of_transformers() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../data/rope.json")).unwrap();
    for case in &cases {
        let config = parse(case["config"].clone()).unwrap();
        let (found, attention) = config.ropes[0].inverse_frequencies(case["length"].as_u64().unwrap() as usize);
        let expected: Vec<f64> = serde_json::from_value(case["frequencies"].clone()).unwrap();
        let name = &case["name"];
        assert_eq!(found.len(), expected.len(), "{name}");
        for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
            assert!(
                (f64::from(*f) / e - 1.0).abs() < 5e-7,
                "{name} at {}, frequency {i}: {f} instead of {e}",
                case["length"]
            );
        }
        let expected = case["attention"].as_f64().unwrap();
        assert!((f64::from(attention) / expected - 1.0).abs() < 1e-6, "{name}: {attention} instead of {expected}");
    }
    assert!(cases.len() >= 15);
}

#[test]
fn old_and_new_fields_mean_the_same() {
    let new = llama(
        json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 64}}),
    );
    let old = llama(
        json!({"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
    );
    assert_eq!(parse(new).unwrap(), parse(old).unwrap());
    let gemma = |rope: Value| {
        let mut config = llama(
            json!({"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 24}),
        );
        config.as_object_mut().unwrap().extend(rope.as_object().unwrap().clone());
        parse(config).unwrap()
    };
    let old = gemma(
        json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    );
    let new = gemma(
        json!({"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    );
    assert_eq!(old, new);
    assert_eq!(old.ropes[old.layers[2].rope.unwrap()].scaling, RopeScaling::Linear { factor: 8.0 });
}

#[test]
fn diffusion_models_are_described() {
    let llada = json!({"model_type": "llada", "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 128, "vocab_size": 126464,
        "embedding_size": 126464, "max_sequence_length": 4096, "rope_theta": 5e5, "rms_norm_eps": 1e-5, "weight_tying": false, "include_bias": false,
        "include_qkv_bias": false, "activation_type": "silu", "eos_token_id": 126081, "pad_token_id": 126081, "mask_token_id": 126336});
    let c = parse(llada).unwrap();
    assert_eq!((c.attention, c.logit_shift, c.mask), (Attention::Full, 0, Some(126336)));
    assert_eq!((c.intermediate, c.context, c.tied, c.qkv_bias), (128, 4096, false, false));
    let dream = parse(llama(json!({"model_type": "Dream", "vocab_size": 152064}))).unwrap();
    assert_eq!(
        (dream.attention, dream.logit_shift, dream.mask, dream.qkv_bias),
        (Attention::Full, 1, Some(151666), true)
    );
    let sdar =
        parse(llama(json!({"model_type": "sdar", "head_dim": 16, "vocab_size": 151936, "block_size": 8}))).unwrap();
    assert_eq!(
        (sdar.attention, sdar.logit_shift, sdar.mask, sdar.qk_norm),
        (Attention::Block(8), 0, Some(151669), QkNorm::PerHead)
    );
    let moe = |shared: u32| {
        parse(
            json!({"model_type": "llada", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
            "dense_intermediate_size": 128, "expert_intermediate_size": 32, "shared_expert_intermediate_size": shared, "num_experts": 8,
            "num_experts_per_tok": 2, "moe_layer_freq": [0, 1], "qk_layernorm": true, "vocab_size": 157184, "rope_theta": 5e4}),
        )
    };
    let c = moe(0).unwrap();
    assert_eq!((c.attention, c.logit_shift, c.mask, c.qk_norm), (Attention::Full, 0, Some(156895), QkNorm::PerHead));
    let experts = c.experts.unwrap();
    assert_eq!((experts.count, experts.per_token, experts.normalize, experts.intermediate), (8, 2, false, 32));
    assert_eq!((c.intermediate, c.layers[0].sparse, c.layers[1].sparse), (128, false, true));
    assert!(moe(16).unwrap_err().to_string().contains("shared_expert_intermediate_size"));
    let own = parse(llama(json!({"attention": "full", "logit_shift": 0, "mask_token_id": 319}))).unwrap();
    assert_eq!((own.attention, own.logit_shift, own.mask), (Attention::Full, 0, Some(319)));
    // A published default that a small vocabulary lacks is no mask token.
    assert_eq!(parse(llama(json!({"model_type": "Dream"}))).unwrap().mask, None);
}

#[test]
fn multimodal_configurations_give_their_text_part() {
    let text = llama(json!({"model_type": "gemma3_text", "head_dim": 32, "eos_token_id": 2}));
    let c = parse(json!({"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106], "vision_config": {}}))
        .unwrap();
    assert_eq!((c.norm, &c.eos[..]), (NormKind::RmsPlusOne, &[1, 2, 106][..]));
}

#[test]
fn impossible_values_are_typed_errors() {
    let cases = [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(1u64 << 40)),
        ("hidden_size", json!("wide")),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(63)),
        ("vocab_size", json!(u64::MAX)),
        ("num_hidden_layers", json!(1_000_000)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(7)),
        ("intermediate_size", json!(null)),
        ("max_position_embeddings", json!(0)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!("big")),
        ("rope_scaling", json!({"rope_type": "linear"})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0})),
        ("rope_scaling", json!({"rope_type": "upside-down", "factor": 2})),
        ("rope_scaling", json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]})),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}),
        ),
        ("rope_scaling", json!([])),
        ("eos_token_id", json!([2, 320])),
        ("eos_token_id", json!("</s>")),
        ("hidden_act", json!("mystery")),
        ("layer_types", json!(["full_attention"])),
        ("layer_types", json!(["full_attention", "sliding_attention", "full_attention"])),
        ("no_rope_layers", json!([1])),
        ("attention", json!("sideways")),
        ("logit_shift", json!(2)),
        ("partial_rotary_factor", json!(1.5)),
        ("model_type", json!(null)),
    ];
    for (field, value) in cases {
        let error = parse(llama(json!({field: value}))).expect_err(&format!("{field} = {value}"));
        assert!(matches!(error, ModelError::Config { .. }), "{field} = {value}: {error:?}");
        let text = error.to_string();
        assert!(text.contains("expected") && text.contains("found") && text.contains("correct the field"), "{text}");
    }
    assert!(matches!(parse(llama(json!({"model_type": "novel"}))), Err(ModelError::UnsupportedConfig { .. })));
    assert!(matches!(parse(json!([])), Err(ModelError::Config { .. })));
    assert!(GenerationConfig::from_json(&json!({"top_p": 1.5})).is_err());
    let generation =
        GenerationConfig::from_json(&json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "eos_token_id": 7}))
            .unwrap();
    assert_eq!(
        generation,
        config::GenerationConfig {
            do_sample: Some(true),
            temperature: Some(0.6),
            top_k: Some(20),
            eos: vec![7],
            ..Default::default()
        }
    );
}
