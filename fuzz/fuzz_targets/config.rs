#![no_main]
//! `config.json` and `generation_config.json`, to the frequencies that they ask for.
use libfuzzer_sys::fuzz_target;
use omnidecode_models::config::{Config, GenerationConfig};

fuzz_target!(|text: &[u8]| {
    let Ok(json) = serde_json::from_slice(text) else { return };
    let _ = GenerationConfig::from_json(&json);
    if let Ok(config) = Config::from_json(&json) {
        for rope in &config.ropes {
            assert_eq!(rope.inverse_frequencies(config.context).0.len(), rope.rotary / 2);
        }
    }
});
