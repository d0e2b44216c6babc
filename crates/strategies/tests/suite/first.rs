//! Sheet 01: the Contract of single-token reranking, on table networks.

use crate::common::{config, options, prompts, request, together, tokens};
use omnidecode_core::law::argmax;
use omnidecode_engine::testing::{Bench, networks};
use omnidecode_engine::{Answer, Config, Error, Guarantee, Readout, Request, Sampling, Strategy, Token};
use omnidecode_strategies::params::Options;
use omnidecode_strategies::scoring::listwise::windows;
use omnidecode_strategies::strategy;
use serde_json::json;
use std::sync::mpsc::channel;

const LABELS: [Token; 6] = [11, 40, 7, 23, 52, 9];

fn ask(labels: &[Token], prompt: &[Token], more: serde_json::Value) -> Request {
    let mut params = options(json!({"labels": labels}));
    params.extend(options(more));
    let sampling = Sampling { max_tokens: Some(26), temperature: 1.0, ignore_eos: true, ..Sampling::default() };
    request("first", &params, prompt, &sampling)
}
fn order(answer: &Answer) -> Vec<Token> {
    tokens(answer).to_vec()
}
/// Raw logits after a text.
fn logits(text: &[Token]) -> Vec<f32> {
    let (sender, receiver) = channel();
    let probe = Strategy::new("probe", Guarantee::Exact, move |mut seq| async move {
        let _ = sender.send(seq.next(Readout::LOGITS).await?.root().logits().to_vec());
        Ok(())
    });
    let handle = {
        let mut bench = Bench::new(config(), networks()).expect("starts");
        let handle = bench.submit(Request::new(text.to_vec(), probe, Sampling::default()));
        bench.run();
        handle
    };
    drop(handle);
    receiver.recv().expect("logits")
}

/// Contract 1, 2, 3, 4, 6: a permutation, one forward, by the raw logits of the whole vocabulary.
#[test]
fn the_order_is_that_of_the_logits() {
    let prompts = prompts(60);
    let answers = together(config(), prompts.iter().map(|p| ask(&LABELS, p, json!({}))).collect());
    let again = together(config(), prompts.iter().map(|p| ask(&LABELS, p, json!({}))).collect());
    let mut top = 0;
    for ((prompt, answer), again) in prompts.iter().zip(&answers).zip(&again) {
        assert_eq!(answer.delta.tokens, again.delta.tokens, "bit-identical on repeat");
        let (order, logits) = (order(answer), logits(prompt));
        let mut expected = LABELS.to_vec();
        expected.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        assert_eq!(order, expected);
        let end = answer.end.as_ref().expect("ended");
        assert_eq!((end.usage.forwards, end.usage.nfe, end.usage.rows), (1, 1, prompt.len()));
        let [law, note] = &end.notes[..] else { panic!("two notes: {:?}", end.notes) };
        assert_eq!((note.label, note.place, law.label), ("scores", prompt.len(), "law"));
        let scores = &note.tokens;
        assert_eq!(scores.iter().map(|s| s.0).collect::<Vec<_>>(), order);
        assert!(scores.windows(2).all(|w| w[0].1 >= w[1].1) && scores.iter().all(|s| s.1 < 0.0));
        let likeliest = argmax(&logits);
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let entropy: f64 = logits.iter().map(|&l| f64::from(l).exp() / sum).map(|p| -p * p.max(1e-300).ln()).sum();
        let [(first, seen)] = law.tokens[..] else { panic!("{law:?}") };
        assert!(first == likeliest && (f64::from(seen) - entropy).abs() < 1e-4, "{law:?}, {entropy}");
        if LABELS.contains(&likeliest) {
            top += 1;
            assert_eq!(order[0], likeliest, "contract 3");
        }
        // Contract 4: greedy decoding restricted to the labels begins with the same one.
        let sampling =
            Sampling { allowed_token_ids: Some(LABELS.to_vec()), max_tokens: Some(1), ..Sampling::default() };
        let greedy = together(config(), vec![request("plain", &Options::new(), prompt, &sampling)]);
        assert_eq!(tokens(&greedy[0]), &order[..1]);
    }
    assert!(top > 0, "no prompt had a label on top");
}

/// The baseline: each label the likeliest of those left behind what is written, n forwards, as restricted greedy.
#[test]
fn the_baseline_generates() {
    for prompt in prompts(20) {
        let answer =
            &together(config(), vec![ask(&LABELS, &prompt, json!({"mode": "generate", "separator": [3, 4]}))])[0];
        let (mut text, mut left, mut expected) = (prompt.clone(), LABELS.to_vec(), Vec::new());
        while !left.is_empty() {
            let logits = logits(&text);
            let best = *left.iter().max_by(|a, b| logits[**a as usize].total_cmp(&logits[**b as usize])).expect("left");
            expected.push(best);
            left.retain(|t| *t != best);
            text.extend([best, 3, 4]);
        }
        assert_eq!(order(answer), expected);
        // The last label is no question.
        let usage = &answer.end.as_ref().expect("ended").usage;
        assert_eq!(usage.forwards, LABELS.len() - 1);
        let first = &together(config(), vec![ask(&LABELS, &prompt, json!({}))])[0];
        assert_eq!(order(first)[0], expected[0]);
    }
}

/// Contract 2, 5: a sliding window runs one forward a window, and the shared head of its prompts is prefilled once.
#[test]
fn the_shared_head_is_prefilled_once() {
    let head: Vec<Token> = (0..64).map(|i| 1 + i % 50).collect();
    let run = |prefix_cache: bool| {
        let mut bench = Bench::new(Config { prefix_cache, ..config() }, networks()).expect("starts");
        let mut list: Vec<Token> = (5..45).collect();
        let (mut forwards, mut cached, mut rows) = (0, 0, 0);
        let spans = windows(list.len(), 6, 3).expect("fits");
        for span in &spans {
            let items = &list[span.clone()];
            let prompt: Vec<Token> = head.iter().chain(items).copied().collect();
            let handle = bench.submit(ask(&LABELS[..items.len()], &prompt, json!({})));
            bench.run();
            let answer = handle.collect();
            let place = |label: &Token| LABELS.iter().position(|l| l == label).expect("a label");
            let sorted: Vec<Token> = order(&answer).iter().map(|l| items[place(l)]).collect();
            let usage = answer.end.expect("ended").usage;
            (forwards, cached, rows) = (forwards + usage.forwards, cached + usage.cached_tokens, rows + usage.rows);
            list[span.clone()].copy_from_slice(&sorted);
        }
        assert_eq!(forwards, spans.len(), "forwards = windows");
        (list, cached, rows, spans.len())
    };
    let (with, cached, rows, n) = run(true);
    let (without, none, all, _) = run(false);
    assert_eq!(with, without, "the cache changes nothing");
    assert_eq!((cached, none), (64 * (n - 1), 0), "the head is computed once");
    assert_eq!(rows + cached, all);
    let mut sorted = with.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (5..45).collect::<Vec<_>>(), "nothing is lost");
}

#[test]
fn edges_and_bad_requests() {
    let one = &together(config(), vec![ask(&[9], &[1, 2], json!({})), ask(&[], &[1, 2], json!({}))]);
    assert_eq!((tokens(&one[0]), tokens(&one[1])), (&[9][..], &[][..]), "nothing to compare");
    assert_eq!(one[0].end.as_ref().expect("ended").usage.forwards, 0);
    let unknown = &together(config(), vec![ask(&[9, 64], &[1], json!({}))])[0];
    assert!(matches!(unknown.end, Err(Error::UnknownToken { token: 64, .. })), "{:?}", unknown.end);
    let short = Sampling { max_tokens: Some(2), ..Sampling::default() };
    let short = &together(config(), vec![request("first", &options(json!({"labels": [1, 2, 3]})), &[5], &short)])[0];
    assert!(matches!(&short.end, Err(Error::Strategy(m)) if m.contains("max_tokens")), "{:?}", short.end);
    assert!(strategy("first", &options(json!({"labels": [1, 2, 1]}))).is_err());
    assert!(strategy("first", &options(json!({"labels": [1, 2], "separator": [3]}))).is_err());
    // Companions and temperature have no say: the raw law ranks.
    let banned =
        Sampling { logit_bias: vec![(11, -100.0)], max_tokens: Some(9), ignore_eos: true, ..Sampling::default() };
    let params = options(json!({"labels": LABELS}));
    let bent =
        together(config(), vec![request("first", &params, &[1, 2, 3], &banned), ask(&LABELS, &[1, 2, 3], json!({}))]);
    assert_eq!(tokens(&bent[0]), tokens(&bent[1]));
}
