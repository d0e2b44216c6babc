//! Sheet 44: its Contract on the table networks.

use crate::common::{config, options, prompts, request};
use omnidecode_engine::testing::{Bench, TableNetwork, networks};
use omnidecode_engine::{Answer, Guarantee, NamedNetwork, Readout, Request, Sampling, Strategy, Token};
use omnidecode_strategies::parallel::superposed::{Params, Written};
use omnidecode_strategies::strategy;
use serde_json::json;
use std::sync::mpsc::channel;

fn greedy(max_tokens: usize) -> Sampling {
    Sampling { max_tokens: Some(max_tokens), ..Sampling::default() }
}
fn run(name: &str, params: serde_json::Value, prompt: &[Token], sampling: Sampling) -> Answer {
    run_on(|_| {}, name, params, prompt, sampling)
}
fn run_on(
    change: impl Fn(&mut Vec<NamedNetwork>),
    name: &str,
    params: serde_json::Value,
    prompt: &[Token],
    sampling: Sampling,
) -> Answer {
    let mut networks = networks();
    change(&mut networks);
    let mut bench = Bench::new(config(), networks).expect("starts");
    let handle = bench.submit(request(name, &options(params), prompt, &sampling));
    bench.run();
    assert_eq!(bench.leftovers(), (0, 0, 0));
    assert_eq!((bench.stats().pages_used, bench.stats().tail_used), (0, 0));
    handle.collect()
}
fn search(params: Params, prompt: &[Token], sampling: Sampling) -> Vec<Written> {
    let (sender, receiver) = channel();
    let probe = Strategy::new("probe", Guarantee::Exact, move |mut seq| async move {
        let _ = sender.send(params.search(&mut seq).await?);
        Ok(())
    });
    let mut bench = Bench::new(config(), networks()).expect("starts");
    let handle = bench.submit(Request::new(prompt.to_vec(), probe, sampling));
    bench.run();
    handle.collect().end.expect("ended");
    receiver.recv().expect("drafts")
}

/// Contract 1: one draft without n-grams is greedy decoding up to the first end, at any temperature.
#[test]
fn one_draft_is_greedy_decoding() {
    let mut ended = 0;
    // Many tokens end a text, so that some texts end.
    let ends = |networks: &mut Vec<NamedNetwork>| {
        let main = TableNetwork::new(7, 11).with_card(|card| card.eos = (0..6).collect());
        networks[0] = NamedNetwork::new("main", Box::new(main));
    };
    for prompt in prompts(60) {
        let run = |name: &str, params: serde_json::Value| run_on(ends, name, params, &prompt, greedy(30));
        let plain = run("plain", json!({}));
        for temperature in [0.06, 1.0] {
            let answer = run("superposed", json!({"k": 1, "alpha": 0.0, "temperature": temperature}));
            assert_eq!(answer.delta.tokens, plain.delta.tokens);
            // The finished text is first; the one that went on comes with it.
            if plain.delta.tokens.last().is_some_and(|&t| t < 6) {
                ended += 1;
                let others = answer.end.expect("ended").others;
                assert!(others.iter().all(|o| o.tokens != plain.delta.tokens));
            }
        }
    }
    assert!(ended > 10, "some texts must end");
}

/// Contract 2: one forward a step, one row each, for every k; the prompt is run once.
#[test]
fn a_step_is_one_forward_of_one_row() {
    for k in [1, 2, 3, 8] {
        let sampling = Sampling { ignore_eos: true, ..greedy(10) };
        let answer = run("superposed", json!({"k": k}), &[3, 1, 4, 1, 5], sampling);
        let usage = answer.end.expect("ended").usage;
        assert_eq!((usage.forwards, usage.nfe, usage.rows), (10, 10, 5 + 9), "k = {k}");
        assert_eq!(answer.delta.tokens.len(), 10);
    }
}

/// Contract 3: a mix of one token is that token.
#[test]
fn a_mix_of_one_is_the_token() {
    let (sender, receiver) = channel();
    let probe = Strategy::new("probe", Guarantee::Exact, move |seq| async move {
        let (mut token, mut mix, mut two) = (seq.fork(0), seq.fork(0), seq.fork(0));
        token.extend(9)?;
        mix.extend_mix(vec![(9, 1.0)])?;
        two.extend_mix(vec![(9, 0.5), (10, 0.5)])?;
        let a = token.next(Readout::LOGITS).await?.root().logits().to_vec();
        let b = mix.next(Readout::LOGITS).await?.root().logits().to_vec();
        let c = two.next(Readout::LOGITS).await?.root().logits().to_vec();
        assert!(two.extend_mix(vec![(64, 1.0)]).is_err(), "an unknown token");
        let _ = sender.send((a, b, c));
        Ok(())
    });
    let mut bench = Bench::new(config(), networks()).expect("starts");
    let handle = bench.submit(Request::new(vec![3, 1, 4], probe, greedy(4)));
    bench.run();
    handle.collect().end.expect("ended");
    let (a, b, c) = receiver.recv().expect("logits");
    assert_eq!(a, b);
    assert_ne!(a, c);
}

/// Contract 4: drafts differ, are sorted, and their scores fall with their length.
#[test]
fn drafts_differ_and_are_sorted() {
    for prompt in prompts(30) {
        let params = Params { k: 4, temperature: 0.5, ..Params::default() };
        let mut before: Option<f64> = None;
        for length in 1..8 {
            let texts = search(Params { length: Some(length), ..params.clone() }, &prompt, greedy(30));
            assert!(texts.len() >= 4.min(texts.len()) && texts.is_sorted_by(|a, b| a.log >= b.log));
            let mut distinct: Vec<_> = texts.iter().map(|t| &t.tokens).collect();
            distinct.sort();
            distinct.dedup();
            assert_eq!(distinct.len(), texts.len(), "two drafts are the same text");
            assert!(before.is_none_or(|b| texts[0].log <= b + 1e-9), "a longer text scored better");
            before = Some(texts[0].log);
        }
    }
}

/// Contract 6: without n-grams, candidates are the outer sum of drafts and tokens: two steps by hand.
#[test]
fn without_ngrams_scores_add_up() {
    let prompt = [3, 1, 4];
    let params = Params { k: 2, alpha: 0.0, temperature: 1.0, length: Some(1), ..Params::default() };
    let one = search(params.clone(), &prompt, Sampling { ignore_eos: true, ..greedy(30) });
    let two = search(Params { length: Some(2), ..params }, &prompt, Sampling { ignore_eos: true, ..greedy(30) });
    assert_eq!((one.len(), two.len()), (2, 2));
    // One law for all drafts: the best token is the best after each, and the gap between drafts is kept.
    let best = two[0].tokens[1];
    assert_eq!(two[0].tokens[0], one[0].tokens[0]);
    let gain = two[0].log - one[0].log;
    if two[1].tokens == [one[1].tokens[0], best] {
        assert!((two[1].log - one[1].log - gain).abs() < 1e-9);
    } else {
        assert_eq!(two[1].tokens[0], one[0].tokens[0]);
        assert!(two[1].log >= one[1].log + gain - 1e-9);
    }
}

/// The published rule that makes scores of drafts without n-grams large: every token of one costs the penalty, which tells
/// drafts apart only from those that have n-grams to go by. Without it a score is a weighted sum of log-probabilities.
#[test]
fn a_draft_without_ngrams_pays_the_penalty_for_every_token() {
    let run = |penalty: f64| {
        let params = Params { k: 3, penalty, learn_prompt: false, length: Some(8), ..Params::default() };
        search(params, &[3, 1, 4], Sampling { ignore_eos: true, ..greedy(8) })
    };
    let (published, none) = (run(200.0), run(0.0));
    assert_eq!(published.len(), 3);
    for (one, other) in published.iter().zip(&none) {
        assert_eq!((&one.tokens, one.tokens.len()), (&other.tokens, 8));
        assert!((one.log - (other.log - 8.0 * 200.0)).abs() < 1e-6, "{} against {}", one.log, other.log);
        assert!(other.log <= 0.0);
    }
}

/// Contract 7: with n-grams alone, tokens come from those of the model that the n-grams know.
#[test]
fn ngrams_alone_choose_among_the_models_tokens() {
    let prompt: Vec<Token> = (0..60).map(|i| 1 + (i * 7 % 5)).collect();
    let params = json!({"alpha": 1.0, "k": 1, "top": 60, "temperature": 10.0});
    let answer = run("superposed", params, &prompt, greedy(10));
    let whole: Vec<Token> = prompt.iter().chain(&answer.delta.tokens).copied().collect();
    for w in whole[prompt.len() - 1..].windows(2) {
        assert!(prompt.windows(2).any(|p| p == w), "{w:?} does not occur in the prompt");
    }
}

/// Contract 9, and what a request gets.
#[test]
fn the_best_is_the_answer_and_the_others_come_with_it() {
    let prompt: Vec<Token> = (0..50).map(|i| 1 + i % 40).collect();
    let mut bench = Bench::new(config(), networks()).expect("starts");
    let mut answers = Vec::new();
    for _ in 0..2 {
        // The second finds the prompt's pages in the prefix cache.
        let handle = bench.submit(request("superposed", &options(json!({"k": 3})), &prompt, &greedy(8)));
        bench.run();
        answers.push(handle.collect());
    }
    let ends: Vec<_> = answers.iter().map(|a| a.end.clone().expect("ended")).collect();
    assert!(ends[1].usage.cached_tokens > 0, "the prefix is found");
    assert_eq!(answers[0].delta.tokens, answers[1].delta.tokens);
    assert_eq!(ends[0].others, ends[1].others);
    assert!(ends[0].others.len() >= 2 && ends[0].others.windows(2).all(|w| w[0].score >= w[1].score));
    assert!(ends[0].others.iter().all(|o| o.tokens != answers[0].delta.tokens));
    assert_eq!(ends[0].guarantee, Guarantee::Approximate);
    assert!(strategy("superposed", &options(json!({"k": 3, "top": 5}))).is_err(), "fewer than 2 k");
    let missing = run("superposed", json!({"corpus": "/no/such/file"}), &prompt, greedy(3));
    assert!(missing.end.expect_err("refused").to_string().contains("/no/such/file"));
}

/// Contract 10: on demand, how near the superposition's logits are to the weighted sum of the drafts' own. One draft is its own
/// sum; asking changes nothing but the forwards.
#[test]
fn linearity_is_told_on_demand() {
    for prompt in prompts(10) {
        for k in [1, 3] {
            let params = |on: bool| json!({"k": k, "length": 6, "linearity": on});
            let (asked, silent) = (
                run("superposed", params(true), &prompt, greedy(9)),
                run("superposed", params(false), &prompt, greedy(9)),
            );
            assert_eq!(asked.delta.tokens, silent.delta.tokens);
            let (end, quiet) = (asked.end.expect("ended"), silent.end.expect("ended"));
            assert!(quiet.notes.is_empty() && end.usage.nfe > quiet.usage.nfe);
            assert!(!end.notes.is_empty());
            for (i, note) in end.notes.iter().enumerate() {
                assert_eq!((note.label, note.place), ("linearity", prompt.len() + i + 1));
                let cosine = note.tokens[0].1;
                assert!(note.tokens.len() <= k && note.tokens.iter().all(|t| t.1 == cosine));
                assert!(if k == 1 { (cosine - 1.0).abs() < 1e-5 } else { cosine.abs() <= 1.0001 }, "{cosine}");
            }
        }
    }
}
