//! Sheets 00 §6, 15 and 40: strategies with a draft model.

use crate::common::law;
use crate::common::{config, options, prompts, request, sampling, together, tokens};
use omnidecode_core::tree::{DraftTree, ROOT};
use omnidecode_engine::testing::{Bench, TableNetwork, networks};
use omnidecode_engine::{
    Answer, Config, Cost, Guarantee, NamedNetwork, Request, Sampling, Sequence, Strategy, Token, Usage,
};
use omnidecode_strategies::params::Options;
use omnidecode_strategies::speculative::drafting::{Draft, Verifier};
use omnidecode_strategies::speculative::dyspec::{Limits, by_level, by_value};
use omnidecode_strategies::speculative::{rsd_c, rsd_s};
use omnidecode_strategies::strategy;
use serde_json::json;
use std::sync::mpsc::channel;

/// Each strategy in several shapes, without the choice of size by cost.
fn shapes() -> Vec<(&'static str, serde_json::Value)> {
    vec![
        ("draft-model", json!({"tokens": 4, "adaptive": false})),
        ("draft-model", json!({"tokens": 1, "adaptive": false, "confidence": 0.3})),
        ("draft-model", json!({"tokens": 3, "adaptive": false, "schedule": "heuristic", "draft_temperature": 0.7})),
        ("draft-model", json!({"adaptive": true})),
        ("rsd-c", json!({"branching": [2, 2, 1]})),
        ("rsd-c", json!({"branching": [1, 1, 1], "adaptive": true})),
        ("rsd-s", json!({"width": 3, "depth": 3})),
        ("rsd-s", json!({"width": 1, "depth": 4, "draft_temperature": 0.5})),
        ("dyspec", json!({"mode": "heap", "nodes": 6})),
        ("dyspec", json!({"mode": "threshold", "threshold": 0.15, "nodes": 32})),
        ("dyspec", json!({"nodes": 12, "adaptive": true, "draft_temperature": null})),
    ]
}
fn with(mut params: serde_json::Value, name: &str, value: &str) -> Options {
    params[name] = json!(value);
    options(params)
}

/// A greedy target, or the verifier `match`: the tokens of plain decoding, for any draft and shape.
#[test]
fn exact_where_it_is_claimed() {
    let prompts = prompts(120);
    for (temperature, verifier) in [(0.0, "rejection"), (0.0, "match"), (1.0, "match")] {
        let ask = |name: &str, params: &Options| -> Vec<Request> {
            let each = prompts.iter().enumerate();
            each.map(|(i, p)| request(name, params, p, &sampling(i, temperature))).collect()
        };
        let plain = together(config(), ask("plain", &Options::new()));
        for (name, params) in shapes() {
            let params = with(params, "verifier", verifier);
            for (i, answer) in together(config(), ask(name, &params)).iter().enumerate() {
                assert_eq!(tokens(answer), tokens(&plain[i]), "{name} {params:?} at {temperature}, prompt {i}");
            }
        }
    }
}

#[test]
fn guarantees_follow_the_parameters() {
    for name in ["draft-model", "rsd-c", "rsd-s", "dyspec"] {
        for (verifier, guarantee) in [("match", Guarantee::Exact), ("rejection", Guarantee::Distribution)] {
            let made = strategy(name, &options(json!({"verifier": verifier}))).expect("fits");
            assert_eq!(made.guarantee, guarantee, "{name} {verifier}");
        }
        assert!(strategy(name, &options(json!({"verifier": "typical"}))).is_err());
    }
    for wrong in [json!([]), json!([64, 64]), json!([0]), json!(3), json!([2.5])] {
        assert!(strategy("rsd-c", &options(json!({"branching": wrong}))).is_err(), "{wrong}");
    }
}

/// Without a draft model there is no such strategy.
#[test]
fn a_missing_draft_is_said() {
    for name in ["draft-model", "rsd-c", "rsd-s", "dyspec"] {
        let mut bench = Bench::new(config(), networks().into_iter().take(1).collect()).expect("starts");
        let handle = bench.submit(request(name, &Options::new(), &[1, 2], &Sampling::default()));
        bench.run();
        let error = handle.collect().end.expect_err("no draft");
        assert!(error.to_string().contains("draft"), "{error}");
        assert_eq!(bench.leftovers(), (0, 0, 0));
    }
}

/// Law 2, through the engine (sheet 00 §6.2; the samplers alone are tested in `core`).
#[test]
fn the_law_is_the_targets() {
    for (name, params) in shapes() {
        if name == "draft-model" && params["adaptive"] == true {
            continue;
        }
        let params = with(params, "verifier", "rejection");
        law::case(&format!("{name} {params:?}"), true, || strategy(name, &params).expect("fits"));
    }
}

/// Run one closure on a sequence and give back what it finds.
macro_rules! probe {
    ($sampling:expr, $prompt:expr, |$seq:ident| $body:expr) => {{
        let (sender, receiver) = channel();
        let strategy = Strategy::new("probe", Guarantee::Exact, move |mut seq| async move {
            let $seq: &mut Sequence = &mut seq;
            let _ = sender.send($body);
            Ok(())
        });
        let mut bench = Bench::new(config(), networks()).expect("starts");
        let handle = bench.submit(Request::new($prompt, strategy, $sampling));
        bench.run();
        handle.collect().end.expect("ended");
        receiver.recv().expect("a finding")
    }};
}
fn warm(seed: u64, temperature: f32) -> Sampling {
    Sampling { temperature, seed, max_tokens: Some(40), ..Sampling::default() }
}
fn nodes(tree: &DraftTree) -> Vec<Vec<Token>> {
    let text = |n: u32| tree.path(n).iter().map(|&m| tree.tokens()[m as usize]).collect::<Vec<_>>();
    let mut all: Vec<_> = (0..tree.len() as u32).map(text).collect();
    all.sort();
    all
}
fn siblings_differ(tree: &DraftTree) {
    let mut edges: Vec<(u32, Token)> = tree.parents().iter().copied().zip(tree.tokens().iter().copied()).collect();
    edges.sort_unstable();
    edges.dedup();
    assert_eq!(edges.len(), tree.len(), "siblings repeat");
}

/// Sheet 40, contract 5 and 8; the draft's rows are kept for the next step.
#[test]
fn shapes_of_rsd_trees() {
    for seed in 0..20 {
        let (c, s, cost) = probe!(warm(seed, 2.0), vec![3, 1, 4], |seq| {
            let mut draft = Draft::open(seq, None, Verifier::Rejection)?;
            let c = rsd_c::grow(&mut draft, seq, &[3, 2, 1]).await?;
            let before = seq.usage();
            let s = rsd_s::grow(&mut draft, seq, 4, 5).await?;
            let after = seq.usage();
            (c, s, (after.forwards - before.forwards, after.rows - before.rows))
        });
        assert_eq!(c.len(), 3 + 6 + 6);
        assert_eq!((s.len(), s.levels()), (20, 5), "levels of {} nodes", s.len());
        for level in 0..5 {
            assert_eq!((0..20).filter(|&n| s.depth(n) == level).count(), 4);
        }
        siblings_differ(&c);
        siblings_differ(&s);
        assert_eq!(cost, (5, 1 + 4 * 4), "one draft forward a level");
    }
    // One-hot draft: every level has one node.
    let one_hot = Sampling { top_k: 1, ..warm(1, 2.0) };
    let one = probe!(one_hot, vec![3, 1, 4], |seq| {
        let mut draft = Draft::open(seq, None, Verifier::Rejection)?;
        rsd_s::grow(&mut draft, seq, 4, 3).await?
    });
    assert_eq!((one.len(), one.levels()), (3, 3), "{one:?}");
}

/// Sheet 40, contract 3: the last level is a sample of sequences without replacement.
#[test]
fn stochastic_beams_hold_sequences_by_their_law() {
    let n = 4000;
    let (sender, receiver) = channel();
    let mut bench = Bench::new(config(), networks()).expect("starts");
    let handles: Vec<_> = (0..n)
        .map(|seed| {
            let sender = sender.clone();
            let strategy = Strategy::new("probe", Guarantee::Exact, move |seq| async move {
                let mut draft = Draft::open(&seq, None, Verifier::Rejection)?;
                // All laws once, from one tree that has every node.
                let tree = rsd_c::grow(&mut draft, &seq, &[4, 4]).await?;
                let q = |node: u32, t: Token| f64::from(draft.law(node)[t as usize]);
                let mut law: Vec<(Vec<Token>, f64)> = Vec::new();
                if seed == 0 {
                    for a in tree.children(ROOT) {
                        let first = tree.tokens()[a as usize];
                        for b in tree.children(a) {
                            let second = tree.tokens()[b as usize];
                            law.push((vec![first, second], q(ROOT, first) * q(a, second)));
                        }
                    }
                }
                let beam = rsd_s::grow(&mut draft, &seq, 2, 2).await?;
                let last = (0..beam.len() as u32).filter(|&v| beam.depth(v) == 1);
                let texts: Vec<Vec<Token>> =
                    last.map(|v| beam.path(v).iter().map(|&m| beam.tokens()[m as usize]).collect()).collect();
                let _ = sender.send((law, texts));
                Ok(())
            });
            bench.submit(Request::new(law::PROMPT.to_vec(), strategy, law::sampling(seed)))
        })
        .collect();
    bench.run();
    handles.into_iter().for_each(|h| assert!(h.collect().end.is_ok()));
    drop(sender);
    let (mut law, mut seen) = (Vec::new(), Vec::new());
    for (l, texts) in receiver {
        assert_eq!(texts.len(), 2);
        law.extend(l);
        seen.push(texts);
    }
    assert_eq!(law.len(), 16);
    assert!((law.iter().map(|l| l.1).sum::<f64>() - 1.0).abs() < 1e-5);
    // P(i included) = p_i + sum over j of p_j p_i / (1 - p_j)
    for (text, p) in &law {
        let included: f64 = p + law.iter().filter(|l| l.0 != *text).map(|l| l.1 * p / (1.0 - l.1)).sum::<f64>();
        let count = seen.iter().filter(|t| t.contains(text)).count() as f64;
        let sigma = (n as f64 * included * (1.0 - included)).sqrt().max(1.0);
        assert!((count - n as f64 * included).abs() < 4.5 * sigma, "{text:?}: {count} of {n}, expected {included}");
    }
    // The order of two is the order of drawing: the first has the law itself.
    for (text, p) in &law {
        let count = seen.iter().filter(|t| t[0] == *text).count() as f64;
        let sigma = (n as f64 * p * (1.0 - p)).sqrt().max(1.0);
        assert!((count - n as f64 * p).abs() < 4.5 * sigma, "{text:?} first: {count} of {n}, expected {p}");
    }
}

/// Sheet 40, contract 4: one child a level is chain speculative decoding, token for token.
#[test]
fn thin_trees_are_chains() {
    let prompts = prompts(80);
    let ask = |name: &str, params: serde_json::Value| {
        let each = prompts.iter().enumerate();
        let asked = each.map(|(i, p)| request(name, &options(params.clone()), p, &sampling(i, 1.0))).collect();
        together(config(), asked).iter().map(|a| tokens(a).to_vec()).collect::<Vec<_>>()
    };
    let chain = ask("draft-model", json!({"tokens": 3, "adaptive": false, "verifier": "rejection"}));
    assert_eq!(chain, ask("rsd-c", json!({"branching": [1, 1, 1]})));
    assert_eq!(chain, ask("rsd-s", json!({"width": 1, "depth": 3})));
}

fn twins() -> Vec<NamedNetwork> {
    let twin = |role| NamedNetwork::new(role, Box::new(TableNetwork::new(7, 11)));
    vec![twin("main"), twin("draft")]
}
fn alone(networks: Vec<NamedNetwork>, name: &str, params: serde_json::Value, sampling: Sampling) -> (Answer, Usage) {
    let mut bench = Bench::new(config(), networks).expect("starts");
    let handle = bench.submit(request(name, &options(params), &[3, 1, 4], &sampling));
    bench.run();
    let answer = handle.collect();
    let usage = answer.end.clone().expect("ended").usage;
    (answer, usage)
}

/// q = p: every first sibling is accepted (sheet 40, contract 7; sheet 15, contract 6).
#[test]
fn a_draft_that_is_the_target_is_always_right() {
    let endless = |temperature| Sampling { ignore_eos: true, max_tokens: Some(41), ..warm(5, temperature) };
    for temperature in [0.0, 1.0] {
        for (name, params) in [
            ("rsd-c", json!({"branching": [3, 2, 1, 1]})),
            ("draft-model", json!({"tokens": 4, "adaptive": false})),
            ("draft-model", json!({"tokens": 4, "adaptive": false, "verifier": "rejection"})),
            ("rsd-s", json!({"width": 1, "depth": 4})),
        ] {
            let (answer, usage) = alone(twins(), name, params.clone(), endless(temperature));
            assert_eq!(answer.delta.tokens.len(), 41);
            // 1 from the prompt's pass, then 5 a step.
            assert_eq!(usage.forwards_by_model[0], 9, "{name} {params} at {temperature}: {usage:?}");
            assert_eq!(usage.accepted, 32, "{name} {params} at {temperature}");
        }
        let (_, usage) =
            alone(twins(), "dyspec", json!({"nodes": 12, "draft_temperature": null}), endless(temperature));
        assert!(usage.forwards_by_model[0] <= 21, "each step takes a first child at least: {usage:?}");
    }
}

/// What is computed of accepted tokens is kept on both models: rows grow by what is new.
#[test]
fn no_row_of_the_draft_is_computed_twice() {
    let sampling = Sampling { ignore_eos: true, max_tokens: Some(41), ..warm(5, 1.0) };
    let (_, usage) = alone(twins(), "rsd-c", json!({"branching": [1, 1, 1, 1]}), sampling.clone());
    // The draft: 3 of the prompt and 1, then a step of 4 drafts computes the 3 that are fed and, next time, 2 tokens.
    let steps = 8;
    assert_eq!(usage.rows_by_model, [3 + steps * 5, 3 + 1 + 3 + (steps - 1) * (2 + 3)], "{usage:?}");
    let (_, usage) = alone(twins(), "draft-model", json!({"tokens": 4, "adaptive": false}), sampling);
    assert_eq!(usage.rows_by_model, [3 + steps * 5, 3 + 1 + 3 + (steps - 1) * (2 + 3)], "{usage:?}");
    assert_eq!(usage.forwards_by_model, [9, 32]);
}

/// Sheet 15, contracts 2, 3, 5, 7, 8.
#[test]
fn dyspec_trees() {
    for seed in 0..30 {
        let (a, b, spent) = probe!(warm(seed, 2.5), vec![3, 1, 4], |seq| {
            let mut draft = Draft::open(seq, None, Verifier::Rejection)?;
            let a = by_value(&mut draft, seq, Limits { nodes: 12, levels: 9, threshold: 0.0 }).await?;
            let threshold = *a.values.last().expect("grown");
            let before = seq.usage().forwards;
            let b = by_level(&mut draft, seq, Limits { nodes: 999, levels: 9, threshold }).await?;
            (a, b, seq.usage().forwards - before)
        });
        assert!(a.values.windows(2).all(|w| w[0] >= w[1]), "values rise: {:?}", a.values);
        assert_eq!(a.tree.len(), 12);
        assert!(a.forwards <= 12);
        siblings_differ(&a.tree);
        assert_eq!(nodes(&a.tree), nodes(&b.tree), "seed {seed}: both variants, one tree");
        assert_eq!(b.forwards, spent);
        assert!(b.forwards >= b.tree.levels() && b.forwards <= b.tree.levels() + 1, "a draft forward a level");
    }
    let (one, same, none) = probe!(warm(1, 2.5), vec![3, 1, 4], |seq| {
        let mut draft = Draft::open(seq, None, Verifier::Rejection)?;
        let one = by_value(&mut draft, seq, Limits { nodes: 1, levels: 9, threshold: 0.0 }).await?;
        let same = by_level(&mut draft, seq, Limits { nodes: 99, levels: 9, threshold: 1.0 }).await?;
        let none = by_level(&mut draft, seq, Limits { nodes: 99, levels: 9, threshold: 1.5 }).await?;
        (one.tree, same.tree, none.tree)
    });
    assert_eq!((one.len(), none.len()), (1, 0));
    assert_eq!(one, same, "m = 1 and t = 1 draw one token");
    let one_hot = Sampling { top_k: 1, ..warm(1, 2.0) };
    let (a, b) = probe!(one_hot, vec![3, 1, 4], |seq| {
        let mut draft = Draft::open(seq, None, Verifier::Rejection)?;
        let limits = Limits { nodes: 99, levels: 6, threshold: 0.0 };
        let a = by_value(&mut draft, seq, limits).await?;
        (a, by_level(&mut draft, seq, Limits { threshold: 0.01, ..limits }).await?)
    });
    assert_eq!((a.tree.len(), a.tree.levels()), (6, 6), "a one-hot draft gives a chain");
    assert_eq!(a.tree, b.tree);
}

/// Law 5: a draft as dear as the target is not asked.
#[test]
fn dear_drafts_are_not_made() {
    let dear = Config { cost: Cost::Fixed(vec![(1, 1.0), (64, 64.0)]), ..config() };
    for (name, params) in
        [("draft-model", json!({})), ("rsd-c", json!({"adaptive": true})), ("rsd-s", json!({"adaptive": true}))]
    {
        let mut bench = Bench::new(dear.clone(), networks()).expect("starts");
        let handle = bench.submit(request(name, &options(params), &[3, 1, 4], &warm(2, 0.0)));
        bench.run();
        let usage = handle.collect().end.expect("ended").usage;
        assert_eq!((usage.drafted, usage.forwards_by_model.get(1).copied().unwrap_or(0)), (0, 0), "{name}");
    }
    // Where rows are nearly free it drafts.
    let (_, usage) = alone(networks(), "draft-model", json!({}), warm(2, 0.0));
    assert!(usage.drafted > 0 && usage.accepted > 0, "{usage:?}");
}
