//! Beam search against texts and scores of transformers (tests/golden/beam-*.json, made by beam.py beside it), through the
//! real decoder.

use crate::common::{config, options, prompts, request, together, tokens};
use omnidecode_engine::testing::Bench;
use omnidecode_engine::{Config, NamedNetwork, Sampling, Token};
use omnidecode_models::Weights;
use omnidecode_models::decoder::{Decoder, Options};
use serde_json::{Value, json};
use std::path::PathBuf;

const MODELS: [&str; 3] = ["llama", "phi3", "qwen3"];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}
fn network(case: &str) -> NamedNetwork {
    let weights = Weights::open(folder().join(case)).expect("a golden checkpoint");
    let options = Options { threads: Some(2), ..Options::default() };
    NamedNetwork::new("main", Box::new(Decoder::load(&weights, &options).expect("it loads")))
}
fn ids(value: &Value) -> Vec<Token> {
    value.as_array().expect("a list").iter().map(|t| t.as_u64().expect("a token") as Token).collect()
}

#[test]
fn texts_and_scores_are_those_of_transformers() {
    let mut early = 0;
    for model in MODELS {
        let file = std::fs::read_to_string(folder().join(format!("beam-{model}.json"))).expect("in the repository");
        let golden: Value = serde_json::from_str(&file).expect("JSON");
        let cases = golden["cases"].as_array().expect("cases");
        assert!(cases.len() > 150, "{model}: {} cases", cases.len());
        let mut bench = Bench::new(Config { pages: 2048, ..Config::default() }, vec![network(model)]).expect("starts");
        for case in cases {
            let width = case["width"].as_u64().expect("a number") as usize;
            let params = options(json!({
                "width": width, "texts": width,
                "length_penalty": case["length_penalty"], "early_stopping": case["early_stopping"],
            }));
            let sampling = Sampling {
                max_tokens: Some(case["max_tokens"].as_u64().expect("a number") as usize),
                stop_token_ids: ids(&case["stop_token_ids"]),
                ignore_eos: true,
                logprobs: Some(0),
                ..Sampling::default()
            };
            let prompt = ids(&case["prompt"]);
            let handle = bench.submit(request("beam", &params, &prompt, &sampling));
            bench.run();
            let answer = handle.collect();
            let end = answer.end.expect("ended");
            let at = format!("{model} {prompt:?} {params:?} ends {:?}", sampling.stop_token_ids);
            // Of texts that were not found transformers gives the score -1e9.
            let texts: Vec<(Vec<Token>, f64)> = case["texts"]
                .as_array()
                .expect("texts")
                .iter()
                .zip(case["scores"].as_array().expect("scores"))
                .map(|(t, s)| (ids(t), s.as_f64().expect("a number")))
                .filter(|t| t.1 > -1e8)
                .collect();
            assert_eq!(answer.delta.tokens, texts[0].0, "{at}");
            let sum: f64 = answer.delta.logprobs.iter().map(|l| f64::from(l.logprob.expect("was read"))).sum();
            let penalty = case["length_penalty"].as_f64().expect("a number");
            let score = sum / (answer.delta.tokens.len() as f64).powf(penalty);
            let near = |a: f64, b: f64| (a - b).abs() < 1e-4 * (1.0 + b.abs());
            assert!(near(score, texts[0].1), "{at}: {score} for {}", texts[0].1);
            assert_eq!(end.others.len(), texts.len() - 1, "{at}");
            for (other, text) in end.others.iter().zip(&texts[1..]) {
                assert_eq!(other.tokens, text.0, "{at}");
                assert!(near(other.score, text.1), "{at}: {} for {}", other.score, text.1);
            }
            assert_eq!((bench.stats().pages_used, bench.leftovers()), (0, (0, 0, 0)));
            early += usize::from(end.usage.forwards < 14);
        }
    }
    assert!(early > 40, "too few searches ended early to test how they do: {early}");
}

/// What processors let through is normed and ranked; all logits are read then, else only the largest.
#[test]
fn both_ways_to_read_the_law_agree() {
    let params = options(json!({"width": 4, "texts": 4, "length_penalty": 0.5}));
    let ask = |allowed: Option<Vec<Token>>, temperature: f32| -> Vec<_> {
        let sampling =
            Sampling { max_tokens: Some(12), allowed_token_ids: allowed, temperature, ..Sampling::default() };
        let asked = prompts(30).iter().map(|p| request("beam", &params, p, &sampling)).collect();
        together(config(), asked)
    };
    let listed = ask(None, 0.0);
    for other in [ask(Some((0..64).collect()), 0.0), ask(Some((0..64).collect()), 1.0), ask(None, 1.0)] {
        for (a, b) in other.iter().zip(&listed) {
            assert_eq!(tokens(a), tokens(b));
            let (a, b) = (&a.end.as_ref().expect("ended").others, &b.end.as_ref().expect("ended").others);
            assert_eq!(a.len(), b.len());
            assert!(a.iter().zip(b).all(|(a, b)| a.tokens == b.tokens && (a.score - b.score).abs() < 1e-5));
        }
    }
}

/// As wide as there are texts, a beam search lists them all: their probabilities sum to one.
#[test]
fn a_beam_of_all_texts_finds_all() {
    let sampling = Sampling {
        max_tokens: Some(3),
        allowed_token_ids: Some(vec![5, 9, 20, 33]),
        ignore_eos: true,
        temperature: 2.0,
        ..Sampling::default()
    };
    let params = options(json!({"width": 64, "texts": 64, "length_penalty": 0.0}));
    let answer = together(config(), vec![request("beam", &params, &[3, 1, 4], &sampling)]).remove(0);
    let others = &answer.end.as_ref().expect("ended").others;
    assert_eq!(others.len(), 63);
    assert!(others.is_sorted_by(|a, b| a.score >= b.score));
    let rest: f64 = others.iter().map(|o| o.score.exp()).sum();
    assert!(rest < 1.0 && 1.0 - rest >= others[0].score.exp() - 1e-5, "the answer is the likeliest text");
    let mut all: Vec<_> = others.iter().map(|o| &o.tokens[..]).chain([tokens(&answer)]).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 64);
}
