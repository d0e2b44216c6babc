//! The static loop on tiny checkpoints in the layouts of LLaDA, LLaDA-MoE, Dream and SDAR, against the loop that
//! `tests/golden/diffusion.py` wrote out over transformers.

use crate::common::canvas::{checkpoint, decode, options, plainly, root};
use omnidecode_engine::Token;
use serde_json::{Value, json};

#[test]
fn the_static_loop_of_published_layouts() {
    for (case, name, params) in [
        ("llada", "llada", json!({"block": 8})),
        ("llada-moe", "llada", json!({"block": 8})),
        ("dream", "llada", json!({"block": 8})),
        ("sdar", "sdar", json!({})),
        ("llada", "freedave", json!({"block": 8, "drafts": 3})),
        ("dream", "freedave", json!({"block": 8, "drafts": 3})),
        ("sdar", "freedave", json!({"drafts": 3})),
    ] {
        let folder = format!("tests/golden/{case}");
        let text = std::fs::read_to_string(root().join(&folder).join("static.json")).expect("in the repository");
        let golden: Value = serde_json::from_str(&text).expect("JSON");
        let tokens = |key: &str| -> Vec<Token> { serde_json::from_value(golden[key].clone()).expect("tokens") };
        let answers = decode(Box::new(checkpoint(&folder)), name, &options(params), &[(tokens("prompt"), plainly(16))]);
        assert_eq!(answers[0].delta.tokens, tokens("canvas"), "{name} on {case}");
    }
}
