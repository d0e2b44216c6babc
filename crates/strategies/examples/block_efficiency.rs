//! Tokens a forward of the target at equal numbers of verified nodes, for strategies with a draft model: on the
//! table-driven networks, or on a target and a draft given as paths.
//!
//! `cargo run -p omnidecode-strategies --example block_efficiency [TARGET DRAFT]`
use omnidecode_engine::testing::{Bench, networks};
use omnidecode_engine::{Config, NamedNetwork, Request, Sampling, Token};
use omnidecode_models::Weights;
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_strategies::strategy;
use serde_json::json;

/// Verified nodes, and a shape of each strategy that has so many.
const BUDGETS: [(usize, &[usize], (usize, usize)); 5] = [
    (6, &[2, 1, 1], (2, 3)),
    (10, &[2, 2, 1], (2, 5)),
    (14, &[2, 2, 2], (2, 7)),
    (21, &[3, 2, 2], (3, 7)),
    (30, &[2, 2, 2, 2], (5, 6)),
];

fn models(paths: &[String]) -> Vec<NamedNetwork> {
    let [target, draft] = paths else { return networks() };
    let open = |path: &String, options: &Options| {
        let weights = Weights::open(path).unwrap_or_else(|e| panic!("{e}"));
        Decoder::load(&weights, options).unwrap_or_else(|e| panic!("{e}"))
    };
    let main = open(target, &Options::default());
    let options = Options { pool: Some(main.pool().clone()), ..Options::default() };
    let draft = open(draft, &options);
    vec![NamedNetwork::new("main", Box::new(main)), NamedNetwork::new("draft", Box::new(draft))]
}

fn main() {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let real = paths.len() == 2;
    let (requests, tokens) = if real { (4, 64) } else { (200, 64) };
    let prompt = |i: usize| -> Vec<Token> { (0..8).map(|j| 1 + ((i * 37 + j * j * 11) % 60) as Token).collect() };
    println!("| temperature | nodes | chain | rsd-c | rsd-s | dyspec |\n|---|---|---|---|---|---|");
    let mut bench = Bench::new(Config { tail: 4096, ..Config::default() }, models(&paths)).expect("the engine starts");
    for temperature in [0.0, 0.6, 1.0] {
        for (nodes, branching, (width, depth)) in BUDGETS {
            let shapes = [
                ("draft-model", json!({"tokens": nodes, "adaptive": false, "verifier": "rejection"})),
                ("rsd-c", json!({"branching": branching})),
                ("rsd-s", json!({"width": width, "depth": depth})),
                ("dyspec", json!({"nodes": nodes, "mode": "heap", "draft_temperature": null})),
            ];
            let mut line = format!("| {temperature} | {nodes} |");
            for (name, params) in shapes {
                let params = params.as_object().expect("an object").clone();
                let ask = |i: usize| {
                    let seed = i as u64;
                    let max_tokens = Some(tokens);
                    let sampling = Sampling { temperature, seed, max_tokens, ignore_eos: true, ..Sampling::default() };
                    Request::new(prompt(i), strategy(name, &params).unwrap_or_else(|e| panic!("{e}")), sampling)
                };
                let handles: Vec<_> = (0..requests).map(|i| bench.submit(ask(i))).collect();
                bench.run();
                let (mut made, mut steps) = (0, 0);
                for handle in handles {
                    let usage = handle.collect().end.unwrap_or_else(|e| panic!("{e}")).usage;
                    // The pass over the prompt is no step; its token is none of theirs.
                    made += usage.generated - 1;
                    steps += usage.forwards_by_model[0] - 1;
                }
                line += &format!(" {:.3} |", made as f64 / steps as f64);
            }
            println!("{line}");
        }
    }
}
