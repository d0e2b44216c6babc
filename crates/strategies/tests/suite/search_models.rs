//! Searches with a judge on a small trained model (models/countdown-ar): what a judge is worth, by its noise.

use crate::common::{options, request};
use omnidecode_core::noise::{mix, unit};
use omnidecode_engine::testing::Bench;
use omnidecode_engine::{Config, Detokenizer, NamedNetwork, Request, Sampling, TextStream, Token};
use omnidecode_models::Weights;
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_strategies::search::countdown;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

const BOS: Token = 3;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/countdown-ar")
}
fn network() -> NamedNetwork {
    let weights = Weights::open(folder()).expect("a model of this repository");
    let options = Options { threads: Some(2), ..Options::default() };
    NamedNetwork::new("main", Box::new(Decoder::load(&weights, &options).expect("it loads")))
}

/// A token is a character.
#[derive(Clone)]
struct Alphabet(Arc<Vec<String>>);
impl Alphabet {
    fn open() -> Alphabet {
        let file = std::fs::read_to_string(folder().join("tokenizer.json")).expect("a tokenizer");
        let json: Value = serde_json::from_str(&file).expect("JSON");
        let vocab = json["model"]["vocab"].as_object().expect("a vocabulary");
        let ids: HashMap<u64, &String> = vocab.iter().map(|(c, id)| (id.as_u64().expect("an id"), c)).collect();
        let size = ids.keys().max().expect("tokens") + 1;
        // The first eight are special and have no text.
        Alphabet(Arc::new(
            (0..size).map(|id| ids.get(&id).filter(|_| id >= 8).map(|c| c.to_string()).unwrap_or_default()).collect(),
        ))
    }
    fn encode(&self, text: &str) -> Vec<Token> {
        let id = |c: char| self.0.iter().position(|s| s.starts_with(c) && s.len() == c.len_utf8()).expect("in it");
        std::iter::once(BOS).chain(text.chars().map(|c| id(c) as Token)).collect()
    }
}
impl Detokenizer for Alphabet {
    fn stream(&self) -> Box<dyn TextStream> {
        Box::new(self.clone())
    }
}
impl TextStream for Alphabet {
    fn push(&mut self, token: Token, text: &mut String) {
        text.push_str(&self.0[token as usize]);
    }
    fn finish(&mut self, _: &mut String) {}
}

/// Questions that have an answer.
fn questions(count: u64) -> Vec<String> {
    let draw = |i: u64, most: u64| 1 + (unit(mix(i)) * most as f64) as i64;
    let mut found = Vec::new();
    for i in 0.. {
        let [a, b, c, target] = [draw(7 * i, 99), draw(7 * i + 1, 99), draw(7 * i + 2, 99), draw(7 * i + 3, 89) + 9];
        let question = format!("{a},{b},{c},{target}=");
        if ![a, b, c].contains(&target) && countdown::judge(&question, "", false) == 1.0 {
            found.push(question);
        }
        if found.len() as u64 == count {
            return found;
        }
    }
    found
}

/// Right answers, tokens sampled (rows behind the prompts) and texts judged.
fn measure(name: &str, params: Value, questions: &[String], alphabet: &Alphabet) -> (usize, usize, usize) {
    let mut bench = Bench::new(Config { pages: 4096, ..Config::default() }, vec![network()]).expect("starts");
    let ask = |(i, question): (usize, &String)| {
        let sampling = Sampling { temperature: 0.8, seed: i as u64, max_tokens: Some(24), ..Sampling::default() };
        let prompt = alphabet.encode(question);
        let text: Arc<dyn Detokenizer> = Arc::new(alphabet.clone());
        bench.submit(Request { text: Some(text), ..request(name, &options(params.clone()), &prompt, &sampling) })
    };
    let handles: Vec<_> = questions.iter().enumerate().map(ask).collect();
    bench.run();
    let (mut right, mut rows, mut judged) = (0, 0, 0);
    for (handle, question) in handles.into_iter().zip(questions) {
        let answer = handle.collect();
        let usage = answer.end.expect("ended").usage;
        right += countdown::judge(question, &answer.delta.text, true) as usize;
        rows += usage.rows - usage.prompt_tokens.min(usage.rows);
        judged += usage.judged;
    }
    assert_eq!((bench.leftovers(), bench.stats().pages_used), ((0, 0, 0), 0));
    (right, rows, judged)
}

#[test]
fn judges_are_worth_what_they_know() {
    let alphabet = Alphabet::open();
    let questions = questions(60);
    let base = |own: Value, noise: f64| {
        let mut params = json!({"judge": "countdown", "judge_noise": noise});
        params.as_object_mut().expect("an object").extend(own.as_object().expect("an object").clone());
        params
    };
    let run = |name: &str, params: Value| {
        let found = measure(name, params.clone(), &questions, &alphabet);
        println!("{name} {params}: {} of {} right, {} rows, {} judged", found.0, questions.len(), found.1, found.2);
        found
    };
    let plain = run("plain", json!({}));
    let agree = run("self-consistency", json!({"n": 8}));
    assert!(agree.0 + 6 >= plain.0, "a majority does no harm");
    let steps = json!({"boundary": ",", "step_tokens": 24, "depth": 8});
    let with = |own: Value| {
        let mut params = steps.clone();
        params.as_object_mut().expect("an object").extend(own.as_object().expect("an object").clone());
        params
    };
    for (name, own) in [
        ("best-of-n", json!({"n": 8})),
        ("particle", with(json!({"n": 8}))),
        ("judge-beam", with(json!({"n": 8, "width": 4}))),
        ("a-star", with(json!({"k": 4}))),
    ] {
        let right: Vec<usize> = [0.0, 0.4, 1.0].map(|noise| run(name, base(own.clone(), noise)).0).to_vec();
        assert!(right[0] > plain.0 + 8, "{name}: {right:?} with a judge, {} without", plain.0);
        assert!(right[0] > right[2] + 8, "{name}: a judge that knows nothing helps as much: {right:?}");
        assert!(right[0] >= right[1], "{name}: {right:?}");
    }
}
