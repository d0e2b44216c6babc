//! Sheet 16: its Contract.

use crate::common::{config, options, prompts, request, sampling, tokens};
use omnidecode_core::tree::ROOT;
use omnidecode_engine::testing::{Bench, VOCAB, networks};
use omnidecode_engine::{Answer, Request, Sampling, Token};
use omnidecode_strategies::speculative::aded::Params;
use omnidecode_strategies::speculative::corpus::Corpus;
use omnidecode_strategies::speculative::trigrams::Trigrams;
use omnidecode_strategies::strategy;
use serde_json::json;
use std::rc::Rc;

/// A text in which pairs have several successors.
fn text() -> Vec<Token> {
    (0..4000u32).map(|i| 1 + (i * i * 7 + i / 3 + i % 11) % 13).collect()
}
fn corpus() -> Corpus {
    Corpus::count([&text()[..]])
}
fn known() -> Trigrams {
    Trigrams::over(Rc::new(corpus()))
}
fn edges(params: &Params, table: &Trigrams, text: &[Token], key: u64) -> Vec<(u32, Token)> {
    let tree = params.draft(table, text, key);
    tree.parents().iter().copied().zip(tree.tokens().iter().copied()).collect()
}
fn file(name: &str, table: &Corpus) -> String {
    let path = std::env::temp_dir().join(format!("omnidecode-{name}-{}", std::process::id()));
    table.write(VOCAB, std::fs::File::create(&path).expect("a file")).expect("written");
    path.to_str().expect("a name").to_owned()
}
fn run(requests: Vec<Request>) -> Vec<Answer> {
    let mut bench = Bench::new(config(), networks()).expect("starts");
    let handles: Vec<_> = requests.into_iter().map(|r| bench.submit(r)).collect();
    bench.run();
    handles.into_iter().map(|h| h.collect()).collect()
}

/// Contract 1 and 6: exact for empty, counted and hostile tables, greedy and sampled.
#[test]
fn exact_whatever_the_table() {
    let prompts = prompts(150);
    let hostile = Corpus::count((0..40u32).map(|_| &[1u32, 2, 60, 1, 2, 61, 60, 61, 60, 61, 1, 1, 1, 1][..]));
    let (counted, hostile) = (file("counted", &corpus()), file("hostile", &hostile));
    for temperature in [0.0, 1.0] {
        let ask = |name: &str, params: serde_json::Value| -> Vec<Request> {
            let each = prompts.iter().enumerate();
            each.map(|(i, p)| request(name, &options(params.clone()), p, &sampling(i, temperature))).collect()
        };
        let plain = run(ask("plain", json!({})));
        for params in [
            json!({}),
            json!({"table": "request", "adaptive": false, "learn_prompt": false}),
            json!({"corpus": counted, "adaptive": false}),
            json!({"corpus": hostile, "adaptive": false, "reward": "reference", "cut": "reference"}),
            json!({"iterations": 0, "adaptive": false}),
        ] {
            let answers = run(ask("aded", params.clone()));
            for (i, (a, p)) in answers.iter().zip(&plain).enumerate() {
                assert_eq!(tokens(a), tokens(p), "{params} at {temperature}, prompt {i}");
                let usage = &a.end.as_ref().expect("ended").usage;
                if params["iterations"] == 0 {
                    assert_eq!(usage.drafted, 0);
                }
                // Contract 7: one forward of one model a step, 1 to 5 tokens each.
                let made = a.delta.tokens.len();
                assert_eq!(usage.forwards_by_model.get(1).copied().unwrap_or(0), 0);
                assert!(made <= 5 * usage.forwards);
            }
        }
    }
    for path in [counted, hostile] {
        std::fs::remove_file(path).expect("removed");
    }
}

/// Contract 3: a tree is a function of the table, the text and the seed.
#[test]
fn the_same_seed_gives_the_same_tree() {
    let (params, text) = (Params::default(), text());
    let mut differ = 0;
    for end in (20..400).step_by(7) {
        let first = edges(&params, &known(), &text[..end], 5);
        assert!(!first.is_empty());
        assert_eq!(first, edges(&params, &known(), &text[..end], 5));
        differ += usize::from(first != edges(&params, &known(), &text[..end], 6));
    }
    assert!(differ > 0, "the seed plays a part");
    let (table, clock) = (known(), std::time::Instant::now());
    (0..200).for_each(|key| drop(edges(&params, &table, &text[..100], key)));
    println!("{} µs a draft", clock.elapsed().as_micros() / 200);
}

/// Contract 4 and 6.
#[test]
fn trees_keep_their_bounds() {
    let (table, text) = (known(), text());
    for cut in ["visits", "reference"] {
        for max_nodes in [1, 7, 64] {
            let params = Params { max_nodes, cut: cut.into(), ..Params::default() };
            for end in (20..600).step_by(13) {
                let known = &text[..end];
                let tree = params.draft(&table, known, 9);
                assert!(tree.len() <= max_nodes && tree.levels() <= 4, "{} nodes", tree.len());
                for node in 0..tree.len() as u32 {
                    let path = tree.path(node);
                    let words: Vec<Token> = path.iter().map(|&n| tree.tokens()[n as usize]).collect();
                    let whole: Vec<Token> = known[end - 2..].iter().chain(&words).copied().collect();
                    let n = whole.len();
                    assert!(table.weight((whole[n - 3], whole[n - 2]), whole[n - 1]) > 0.0, "an edge of the table");
                    let parent = tree.parents()[node as usize];
                    assert_eq!(tree.child(parent, tree.tokens()[node as usize]), Some(node), "siblings differ");
                    assert!(parent == ROOT || parent < node);
                }
            }
        }
    }
    // One sentence and a long search: the likeliest chain.
    let greedy = Params { sentences: 2, iterations: 5000, c1: 0.0, ..Params::default() };
    let chain = greedy.draft(&table, &text[..50], 1);
    assert!(chain.parents().iter().enumerate().all(|(i, &p)| p == (i as u32).checked_sub(1).unwrap_or(ROOT)));
    assert!(Params::default().draft(&Trigrams::default(), &text[..50], 1).is_empty(), "nothing known, nothing drafted");
    assert!(Params::default().draft(&table, &[60, 61], 1).is_empty(), "an unknown pair");
    assert!(Params::default().draft(&table, &[1], 1).is_empty(), "no pair");
}

/// What the model says sharpens the table: repeated requests take fewer forwards. A file that is none is said.
#[test]
fn the_table_learns_and_files_are_checked() {
    let mut bench = Bench::new(config(), networks()).expect("starts");
    let sampling = Sampling { ignore_eos: true, max_tokens: Some(60), ..Sampling::default() };
    let mut forwards = Vec::new();
    for _ in 0..3 {
        let handle = bench.submit(request("aded", &options(json!({})), &[3, 1, 4], &sampling));
        bench.run();
        forwards.push(handle.collect().end.expect("ended").usage.forwards);
    }
    assert!(forwards.iter().all(|f| (12..=60).contains(f)), "1 to 5 tokens a step: {forwards:?}");
    assert!(forwards[2] < forwards[0] && forwards[2] < 60, "{forwards:?}");
    let made = strategy("aded", &options(json!({"corpus": "/no/such/file"}))).expect("fits");
    let handle = bench.submit(Request::new(vec![1], made, sampling));
    bench.run();
    assert!(handle.collect().end.expect_err("refused").to_string().contains("/no/such/file"));
}
