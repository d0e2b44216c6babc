//! Sheet 51 in the engine: contract items 1, 4, 5, 8 and 10 on table networks, the value model's included; the companion
//! at every node of drafted trees, and what it cannot ride along.

use crate::common::bent::attach;
use crate::common::law;
use crate::common::value::valued;
use crate::common::{config, options, prompts, request, sampling, together_on, tokens};
use omnidecode_core::law::choose;
use omnidecode_core::noise::{Key, Purpose};
use omnidecode_engine::testing::{Bench, TableNetwork, VOCAB};
use omnidecode_engine::{
    Answer, Error, Guarantee, NamedNetwork, Note, Readout, Request, Sampling, Strategy, Token, Warp,
};
use omnidecode_strategies::companions::CompanionError;
use omnidecode_strategies::companions::rectification::{cap, caps};
use serde_json::{Value, json};
use std::sync::mpsc::channel;

fn run(low: f32, requests: Vec<Request>) -> Vec<Answer> {
    together_on(valued(low), config(), requests)
}
/// A strategy with its parameters, rectified.
fn rectified(name: &str, params: Value, caps: Value, prompt: &[Token], sampling: &Sampling) -> Request {
    let mut request = request(name, &options(params), prompt, sampling);
    attach("rectification", &options(caps), prompt, &mut request).expect("fits");
    request
}
fn notes(answer: &Answer) -> &[Note] {
    &answer.end.as_ref().expect("ended").notes
}

/// Contract 1 and 4: with Q = 0 and no slack, the tokens are plain decoding's.
#[test]
fn no_value_is_plain() {
    let prompts = prompts(60);
    for temperature in [0.0, 0.7, 1.0] {
        let sampling = |i| sampling(i, temperature);
        let bare = |i: usize| request("plain", &options(json!({})), &prompts[i], &sampling(i));
        let plain = run(0.0, (0..60).map(bare).collect());
        for method in ["exact", "passes"] {
            let ask = |i: usize| rectified("plain", json!({}), json!({"method": method}), &prompts[i], &sampling(i));
            for (answer, plain) in run(0.0, (0..60).map(ask).collect()).iter().zip(&plain) {
                assert_eq!(tokens(answer), tokens(plain));
                // Contract 10: one forward of each model a step.
                let (usage, base) =
                    (&answer.end.as_ref().expect("ended").usage, &plain.end.as_ref().expect("ended").usage);
                assert_eq!(usage.forwards_by_model, [base.forwards, 0, base.forwards]);
                assert_eq!(usage.rows_by_model, [base.rows, 0, base.rows], "nothing is computed twice");
                assert!(notes(answer).is_empty(), "no dead end");
            }
        }
    }
}

/// Both models run in one step: a rectified request takes no more of them than a plain one, and joins in their batches.
#[test]
fn the_value_runs_in_the_same_step() {
    let sampling = Sampling { max_tokens: Some(10), ignore_eos: true, ..Sampling::default() };
    let mut bench = Bench::new(config(), valued(-1.2)).expect("starts");
    let one = bench.submit(rectified("plain", json!({}), json!({}), &[1, 2, 3], &sampling));
    bench.turn();
    let two = bench.submit(rectified("plain", json!({}), json!({}), &[4, 5], &sampling));
    let three = bench.submit(request("plain", &options(json!({})), &[7, 8], &sampling));
    bench.run();
    assert!([one, two, three].into_iter().all(|h| tokens(&h.collect()).len() == 10));
    assert_eq!((bench.stats().steps, bench.stats().forwards), (11, 22));
}

/// Raw logits of a model after a text, computed anew.
fn after(low: f32, role: &'static str, text: &[Token], sampling: Sampling) -> Vec<f32> {
    let (sender, receiver) = channel();
    let probe = Strategy::new("probe", Guarantee::Approximate, move |seq| async move {
        let mut seq = if role == "main" { seq } else { seq.sibling(seq.require(role)?) };
        let _ = sender.send(seq.next(Readout::LOGITS).await?.root().logits().to_vec());
        Ok(())
    });
    let mut bench = Bench::new(config(), valued(low)).expect("starts");
    let handle = bench.submit(Request::new(text.to_vec(), probe, sampling));
    bench.run();
    drop(handle);
    receiver.recv().expect("logits")
}

/// Contract 10: every token is what a computation of both whole texts gives, so the value's incremental keys and values
/// are right, behind drafts too; with a law on logits beside it, the value is asked for its own still.
#[test]
fn incremental_is_recomputed() {
    let (mut bound, mut dead) = (0, 0);
    for (low, epsilon, order) in [(-1.2, 0.0, "last"), (-1.2, 0.3, "first"), (-3.0, 0.3, "last")] {
        for (i, warp) in [(0, (1.0, 0)), (1, (0.7, 0)), (2, (0.0, 0)), (3, (1.3, 0)), (4, (0.8, 4))] {
            for name in ["plain", "token-recycling"] {
                let prompt = &prompts(8)[i];
                let (temperature, top_k) = warp;
                let warp = Warp { temperature, top_k, ..Warp::default() };
                let mut sampling =
                    Sampling { temperature, top_k, seed: i as u64, max_tokens: Some(8), ..Sampling::default() };
                if i == 3 {
                    sampling.allowed_token_ids = Some((1..40).collect());
                }
                let params = json!({"epsilon": epsilon, "cap": order});
                let answer = run(low, vec![rectified(name, json!({}), params, prompt, &sampling)]).remove(0);
                let mut text = prompt.clone();
                let mut ends = Vec::new();
                for &token in tokens(&answer) {
                    let one = Sampling { max_tokens: Some(9), ignore_eos: true, ..sampling.clone() };
                    let logits = after(low, "main", &text, one.clone());
                    let q = after(low, "value", &text, Sampling { allowed_token_ids: None, ..one });
                    let first = order == "first" || temperature == 0.0;
                    let law = if first { Warp::default().law(&logits) } else { warp.law(&logits) };
                    let (capped, kept) = cap(&law, &caps(&q, epsilon));
                    let capped: Vec<f32> = capped.iter().map(|p| p.ln() as f32).collect();
                    let key = Key::new(i as u64, text.len(), Purpose::Sample);
                    let law = if first { warp } else { Warp::default() };
                    assert_eq!(token, choose(&capped, &law, key), "{name}, low {low}, {order}, {warp:?}");
                    bound += usize::from(token != choose(&logits, &warp, key));
                    ends.extend((!kept).then_some(text.len()));
                    text.push(token);
                }
                assert!(notes(&answer).iter().all(|n| n.label == "dead_end" && n.tokens.is_empty()));
                let noted: Vec<usize> = notes(&answer).iter().map(|n| n.place).collect();
                assert_eq!(noted, ends, "{name}: dead ends are noted");
                dead += ends.len();
            }
        }
    }
    assert!(bound > 10 && dead > 0, "{bound} choices were changed, {dead} dead ends");
}

/// Law 2 at the nodes of sampled trees: what is emitted follows the capped law, by enumeration; the model's own is another.
#[test]
fn sampled_drafts_follow_the_capped_law() {
    let ride = |request: &mut Request| {
        attach("rectification", &options(json!({})), &law::PROMPT, request).expect("fits");
    };
    for name in ["rsd-s", "draft-model"] {
        let make = || omnidecode_strategies::strategy(name, &options(json!({}))).expect("registered");
        law::case_with(name, true, || valued(-0.9), make, ride, ride);
    }
    let plain = || omnidecode_strategies::strategy("rsd-s", &options(json!({}))).expect("registered");
    law::case_with("rsd-s without caps", false, || valued(-0.9), plain, ride, |_| {});
}

/// Branches: the value model's pages are shared by them, and the answer's notes are its own.
#[test]
fn branches_share_the_value() {
    let prompt: Vec<Token> = (0..40).map(|i| 1 + i % 50).collect();
    let sampling = Sampling { temperature: 1.0, max_tokens: Some(6), ignore_eos: true, ..Sampling::default() };
    let mut dead = 0;
    for name in ["best-of-n", "self-consistency", "particle", "judge-beam", "beam"] {
        let params = match name {
            "beam" => json!({"width": 3}),
            "judge-beam" => json!({"n": 4, "width": 2, "step_tokens": 3}),
            _ => json!({"n": 3}),
        };
        let answer = &run(-3.0, vec![rectified(name, params, json!({"epsilon": 0.3}), &prompt, &sampling)])[0];
        let usage = &answer.end.as_ref().unwrap_or_else(|e| panic!("{name}: {e}")).usage;
        assert_eq!(usage.rows_by_model[0], usage.rows_by_model[2], "{name}: {usage:?}");
        let places: Vec<usize> = notes(answer).iter().map(|n| n.place).collect();
        assert!(places.is_sorted() && places.iter().all(|p| (40..40 + tokens(answer).len()).contains(p)), "{places:?}");
        dead += places.len();
    }
    assert!(dead > 0, "strict caps end somewhere");
}

#[test]
fn what_does_not_fit_is_refused() {
    let ask = || rectified("plain", json!({}), json!({}), &[1, 2], &sampling(0, 0.0));
    let answer = crate::common::together(config(), vec![ask()]);
    assert!(matches!(&answer[0].end, Err(Error::NoModel { role, .. }) if role == "value"), "{:?}", answer[0].end);
    let mut all = omnidecode_engine::testing::networks();
    let small = TableNetwork::new(7, 21).with_card(|card| card.vocab = VOCAB + 1);
    all.push(NamedNetwork::new("value", Box::new(small)));
    let mut bench = Bench::new(config(), all).expect("starts");
    let handle = bench.submit(ask());
    bench.run();
    assert!(matches!(handle.collect().end, Err(Error::Companion { reason, .. }) if reason.contains("65")));
    for name in ["llada", "sdar", "superposed", "coconut", "fs-gen"] {
        let mut asked = request(name, &options(json!({})), &[1, 2], &sampling(0, 0.0));
        let error = attach("rectification", &options(json!({})), &[1, 2], &mut asked).expect_err(name);
        assert!(matches!(&error, CompanionError::Unfit { reason, .. } if reason.contains(name)), "{error}");
        assert!(asked.carriers.is_empty(), "{name}: the request is as before");
    }
    let mut asked = request("plain", &options(json!({})), &[1, 2], &sampling(0, 0.0));
    assert!(attach("rectification", &options(json!({"passes": 3})), &[1, 2], &mut asked).is_err());
    let passes = json!({"passes": 3, "method": "passes"});
    assert!(attach("rectification", &options(passes), &[1, 2], &mut asked).is_ok());
    let error = omnidecode_strategies::strategy("rectification", &options(json!({}))).expect_err("a companion");
    assert!(error.to_string().contains("is a companion"), "{error}");
}
