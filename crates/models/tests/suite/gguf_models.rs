//! Real GGUF models against transformers on the same weights dequantized to f32.
//!
//! Our activations are rounded to 8 bits per block of 32, so logits differ by the noise that this makes: measured on
//! these files the root mean square over the top ten is 0.06 to 0.25, the worst single one 1.6. A wrong scale, a
//! wrong norm or a swapped layer is far outside. The files are found through environment variables, because they are
//! too large for the repository; `make test` sets the first.

use crate::common::Runner;
use serde_json::Value;
use std::path::PathBuf;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}
fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|v| v as u32).collect()
}

/// Teacher-forced over the 48 reference tokens: at each the ten largest logits are compared.
fn compare(variable: &str, golden: &str) {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else {
        return println!("skipped: set {variable} to the model file to compare with {golden}");
    };
    let file = crate::common::folder(golden);
    let golden: Value = serde_json::from_slice(&std::fs::read(file).expect("in the repository")).expect("JSON");
    let (mut squares, mut count, mut worst, mut agreed, mut clear) = (0.0, 0, 0f64, 0, 0);
    for item in golden["items"].as_array().expect("items") {
        let mut runner = Runner::open(&path);
        let (prompt, greedy) = (ids(&item["ids"]), ids(&item["greedy"]));
        let mut seen = runner.last(&prompt);
        for (step, top) in item["top"].as_array().expect("tops").iter().enumerate() {
            let (tokens, logits) = (ids(&top["ids"]), numbers(&top["logits"]));
            let row = &seen.logits[seen.logits.len() - runner.vocab()..];
            for (&token, &expected) in tokens.iter().zip(&logits) {
                let off = (f64::from(row[token as usize]) - expected).abs();
                squares += off * off;
                count += 1;
                worst = worst.max(off);
            }
            // Where the first leads by more than the noise, the choice must be the same.
            if logits[0] - logits[1] > 1.5 {
                clear += 1;
                agreed += usize::from(seen.argmax() == tokens[0]);
            }
            seen = runner.last(&greedy[step..=step]);
        }
    }
    let rms = (squares / f64::from(count)).sqrt();
    println!("{variable}: rms {rms:.3}, worst {worst:.3}, {agreed} of {clear} clear choices agree");
    assert!(clear > 30 && agreed == clear, "{agreed} of {clear} clear choices agree");
    assert!(rms < 0.5 && worst < 3.0, "rms {rms}, worst {worst}");
}

#[test]
fn smollm2_135m_instruct_q4_1() {
    compare("OMNIDECODE_TEST_GGUF", "smollm2-135m-instruct.json");
}

#[test]
fn qwen2_5_coder_0_5b_q4_k_m() {
    compare("OMNIDECODE_TEST_GGUF_QWEN", "qwen2.5-coder-0.5b.json");
}

#[test]
fn gemma_3_270m_q4_k_m() {
    compare("OMNIDECODE_TEST_GGUF_GEMMA", "gemma-3-270m.json");
}
