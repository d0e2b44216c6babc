//! Sheet 51 in the engine: contract items 1, 4, 5, 8 and 10 on table networks, the value model's included.
mod common;

use common::{config, options, prompts, request, sampling, tokens};
use omnidecode_core::law::choose;
use omnidecode_core::noise::{Key, Purpose};
use omnidecode_engine::testing::{Bench, TableNetwork, VOCAB};
use omnidecode_engine::{Answer, Error, Guarantee, NamedNetwork, Readout, Request, Sampling, Strategy, Token, Warp};
use omnidecode_models::step::Step;
use omnidecode_models::{ModelCard, Network, NetworkError, Reading};
use omnidecode_strategies::fusion::rectification::{cap, caps};
use serde_json::json;
use std::sync::mpsc::channel;

/// Q of a table network's logits, which depend on all that was seen: `low` is the lowest.
#[derive(Clone)]
struct Value {
    inner: TableNetwork,
    low: f32,
}
impl Value {
    fn of(low: f32) -> Self {
        Value { inner: TableNetwork::new(7, 21), low }
    }
    fn q(&self, logit: f32) -> f32 {
        (self.low * (logit / 11.5).clamp(0.0, 1.0)).min(0.0)
    }
}
impl Network for Value {
    fn card(&self) -> &ModelCard {
        self.inner.card()
    }
    fn reserve(&mut self, pages: usize, tail: usize) -> Result<(), NetworkError> {
        self.inner.reserve(pages, tail)
    }
    fn run(
        &mut self,
        step: &Step,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        let me = self.clone_head();
        self.inner.run(step, bend, &mut |i, reading| {
            let logits: Vec<f32> = reading.logits.iter().map(|l| me(*l)).collect();
            let top: Vec<(Token, f32)> = reading.top.iter().map(|(t, l)| (*t, me(*l))).collect();
            each(i, Reading { logits: &logits, top: &top, ..reading });
        })
    }
    fn copy(&mut self, moves: &[(u32, u32)]) {
        self.inner.copy(moves);
    }
    fn slot_bytes(&self) -> usize {
        self.inner.slot_bytes()
    }
}
impl Value {
    fn clone_head(&self) -> impl Fn(f32) -> f32 + use<> {
        let me = self.clone();
        move |logit| me.q(logit)
    }
}

fn networks(low: f32) -> Vec<NamedNetwork> {
    let mut all = omnidecode_engine::testing::networks();
    all.push(NamedNetwork::new("value", Box::new(Value::of(low))));
    all
}
fn run(low: f32, requests: Vec<Request>) -> Vec<Answer> {
    let mut bench = Bench::new(config(), networks(low)).expect("starts");
    let handles: Vec<_> = requests.into_iter().map(|r| bench.submit(r)).collect();
    bench.run();
    assert_eq!(bench.leftovers(), (0, 0, 0));
    handles.into_iter().map(|h| h.collect()).collect()
}

/// Contract 1 and 4: with Q = 0 and no slack, the tokens are plain decoding's.
#[test]
fn no_value_is_plain() {
    let prompts = prompts(60);
    for temperature in [0.0, 1.0] {
        for method in ["exact", "passes"] {
            let ask = |name: &str, i: usize| {
                let params = if name == "plain" { json!({}) } else { json!({"method": method}) };
                request(name, &options(params), &prompts[i], &sampling(i, temperature))
            };
            let plain = run(0.0, (0..60).map(|i| ask("plain", i)).collect());
            for (answer, plain) in run(0.0, (0..60).map(|i| ask("rectification", i)).collect()).iter().zip(&plain) {
                assert_eq!(tokens(answer), tokens(plain));
                // Contract 10: one forward of each model a step.
                let (usage, base) =
                    (&answer.end.as_ref().expect("ended").usage, &plain.end.as_ref().expect("ended").usage);
                assert_eq!(usage.forwards_by_model, [base.forwards, 0, base.forwards]);
                assert_eq!(usage.rows_by_model, [base.rows, 0, base.rows], "nothing is computed twice");
                assert!(answer.end.as_ref().expect("ended").notes.is_empty(), "no dead end");
            }
        }
    }
}

/// Raw logits of a model after a text, computed anew.
fn after(low: f32, role: &'static str, text: &[Token], sampling: Sampling) -> Vec<f32> {
    let (sender, receiver) = channel();
    let probe = Strategy::new("probe", Guarantee::Approximate, move |seq| async move {
        let mut seq = if role == "main" { seq } else { seq.sibling(seq.require(role)?) };
        let _ = sender.send(seq.next(Readout::LOGITS).await?.root().logits().to_vec());
        Ok(())
    });
    let mut bench = Bench::new(config(), networks(low)).expect("starts");
    let handle = bench.submit(Request::new(text.to_vec(), probe, sampling));
    bench.run();
    drop(handle);
    receiver.recv().expect("logits")
}

/// Contract 10: every token is what a computation of both whole texts gives, so the value's incremental keys and values
/// are right; with a companion of the request, the value is asked for its own law still.
#[test]
fn incremental_is_recomputed() {
    let (mut bound, mut dead) = (0, 0);
    for (low, epsilon, order) in [(-1.2, 0.0, "last"), (-1.2, 0.3, "first"), (-3.0, 0.3, "last")] {
        for (i, temperature) in [(0, 1.0), (1, 0.7), (2, 0.0), (3, 1.3)] {
            let prompt = &prompts(8)[i];
            let ban = i == 3;
            let mut sampling = Sampling { temperature, seed: i as u64, max_tokens: Some(8), ..Sampling::default() };
            if ban {
                sampling.allowed_token_ids = Some((1..40).collect());
            }
            let params = options(json!({"epsilon": epsilon, "cap": order}));
            let answer = run(low, vec![request("rectification", &params, prompt, &sampling)]).remove(0);
            let mut text = prompt.clone();
            let mut ends = Vec::new();
            for &token in tokens(&answer) {
                let one = Sampling { max_tokens: Some(9), ignore_eos: true, ..sampling.clone() };
                let logits = after(low, "main", &text, one.clone());
                let q = after(low, "value", &text, Sampling { allowed_token_ids: None, ..one });
                let warp = Warp { temperature, ..Warp::default() };
                let first = order == "first" || temperature == 0.0;
                let law = if first { Warp::default().law(&logits) } else { warp.law(&logits) };
                let (capped, kept) = cap(&law, &caps(&q, epsilon));
                let capped: Vec<f32> = capped.iter().map(|p| p.ln() as f32).collect();
                let key = Key::new(i as u64, text.len(), Purpose::Sample);
                let law = if first { warp } else { Warp::default() };
                assert_eq!(token, choose(&capped, &law, key), "low {low}, {order}, temperature {temperature}");
                bound += usize::from(token != choose(&logits, &warp, key));
                ends.extend((!kept).then_some(text.len()));
                text.push(token);
            }
            let notes = &answer.end.as_ref().expect("ended").notes;
            assert!(notes.iter().all(|n| n.label == "dead_end" && n.tokens.is_empty()));
            assert_eq!(notes.iter().map(|n| n.place).collect::<Vec<_>>(), ends, "dead ends are noted");
            dead += ends.len();
        }
    }
    assert!(bound > 5 && dead > 0, "{bound} choices were changed, {dead} dead ends");
}

#[test]
fn a_value_model_is_needed() {
    let answer =
        common::together(config(), vec![request("rectification", &options(json!({})), &[1, 2], &sampling(0, 0.0))]);
    assert!(matches!(&answer[0].end, Err(Error::NoModel { role, .. }) if role == "value"), "{:?}", answer[0].end);
    let mut all = omnidecode_engine::testing::networks();
    let small = TableNetwork::new(7, 21).with_card(|card| card.vocab = VOCAB + 1);
    all.push(NamedNetwork::new("value", Box::new(small)));
    let mut bench = Bench::new(config(), all).expect("starts");
    let handle = bench.submit(request("rectification", &options(json!({})), &[1, 2], &sampling(0, 0.0)));
    bench.run();
    assert!(matches!(handle.collect().end, Err(Error::Strategy(m)) if m.contains("65")));
}
