//! Requests of registered strategies on the table-driven networks of the engine.
pub mod bent;
pub mod canvas;
pub mod judged;
pub mod law;
pub mod schema;
pub mod value;

use omnidecode_engine::testing::{Bench, TableNetwork, networks};
use omnidecode_engine::{Answer, Config, Cost, NamedNetwork, Request, Sampling, Token};
use omnidecode_strategies::params::Options;
use omnidecode_strategies::{Entry, strategy};
use serde_json::json;

/// A request by name and JSON parameters.
pub fn request(name: &str, options: &Options, prompt: &[Token], sampling: &Sampling) -> Request {
    let strategy = strategy(name, options).unwrap_or_else(|e| panic!("{name}: {e}"));
    Request::new(prompt.to_vec(), strategy, sampling.clone())
}

/// JSON object literal to options.
pub fn options(value: serde_json::Value) -> Options {
    value.as_object().expect("an object").clone()
}

/// Parameters without which an entry says nothing here; canvases of so many places.
pub fn params(name: &str, canvas: usize) -> Options {
    options(match name {
        "kangaroo" => json!({"exit_layer": 1}),
        "first" => json!({"labels": [11, 40, 7, 23, 52, 9]}),
        "best-of-n" | "self-consistency" | "particle" => json!({"n": 3}),
        "judge-beam" => json!({"n": 4, "width": 2, "step_tokens": 3}),
        "a-star" => json!({"k": 2, "step_tokens": 3, "budget_tokens": 40}),
        "llada" | "dream" | "freedave" => json!({"length": canvas}),
        _ => json!({}),
    })
}

/// The prompts of the laws: repetitive ones, random ones, long ones. Tokens 1..62 of the table networks.
pub fn prompts(count: usize) -> Vec<Vec<Token>> {
    let mut word = 42u64;
    let mut draw = move |n: u64| {
        word = omnidecode_core::noise::mix(word);
        word % n
    };
    (0..count)
        .map(|i| {
            let len = 1 + draw(if i % 7 == 0 { 90 } else { 12 }) as usize;
            let span = if i % 3 == 0 { 4 } else { 60 };
            (0..len).map(|_| 1 + draw(span) as Token).collect()
        })
        .collect()
}

/// The sampling of prompt `i`: greedy and sampled, some with penalties and stops.
pub fn sampling(i: usize, temperature: f32) -> Sampling {
    Sampling {
        temperature,
        seed: i as u64,
        max_tokens: Some(8 + i % 17),
        repetition_penalty: if i % 5 == 1 { 1.2 } else { 1.0 },
        top_p: if i % 4 == 2 { 0.9 } else { 1.0 },
        top_k: if i % 6 == 3 { 5 } else { 0 },
        stop_token_ids: if i % 8 == 5 { vec![17] } else { Vec::new() },
        ..Sampling::default()
    }
}

/// An engine whose rows cost as on a machine where a few are nearly free.
pub fn config() -> Config {
    Config { pages: 256, tail: 512, cost: Cost::Fixed(vec![(1, 1.0), (8, 1.3), (32, 3.0)]), ..Config::default() }
}

/// Whether an entry can run on these networks.
pub fn runs_here(entry: &Entry) -> bool {
    entry.card.needs.iter().all(|need| ["draft", "mask", "block"].contains(need))
}
/// Whether it denoises a canvas.
pub fn denoises(entry: &Entry) -> bool {
    entry.card.needs.contains(&"mask")
}
/// The networks an entry runs on: a causal main model, one that sees a whole canvas (`mask`) or all up to the end of a
/// block (`block`); and a draft.
pub fn networks_of(entry: &Entry) -> Vec<NamedNetwork> {
    let mut all = networks();
    if denoises(entry) {
        let blocked = entry.card.needs.contains(&"block");
        let main = TableNetwork::new(7, 11).with_card(|c| {
            c.shift = usize::from(!blocked);
            c.bidirectional = !blocked;
            c.block = blocked.then_some(8);
        });
        all[0] = NamedNetwork::new("main", Box::new(main));
    }
    all
}

/// Run all requests in one engine at once.
pub fn together(config: Config, requests: Vec<Request>) -> Vec<Answer> {
    together_on(networks(), config, requests)
}
/// Run all requests in one engine at once, on these networks.
pub fn together_on(networks: Vec<NamedNetwork>, config: Config, requests: Vec<Request>) -> Vec<Answer> {
    let mut bench = Bench::new(config, networks).expect("the engine starts");
    let handles: Vec<_> = requests.into_iter().map(|r| bench.submit(r)).collect();
    bench.run();
    assert_eq!(bench.leftovers(), (0, 0, 0), "something is left behind");
    assert_eq!((bench.stats().pages_used, bench.stats().tail_used), (0, 0), "pages are left behind");
    handles.into_iter().map(|h| h.collect()).collect()
}

/// The tokens of an answer that ended well.
pub fn tokens(answer: &Answer) -> &[Token] {
    assert!(answer.end.is_ok(), "{:?}", answer.end);
    &answer.delta.tokens
}
