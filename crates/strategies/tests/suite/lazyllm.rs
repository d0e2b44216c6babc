//! Sheet 43 on the golden Llama: the Contract, with counters and against a computation that masks what was left out.

use crate::common::bent::golden;
use crate::common::{options, prompts, request, sampling};
use omnidecode_engine::testing::Bench;
use omnidecode_engine::{
    Answer, Config, Cost, Guarantee, KvAction, Mask, NamedNetwork, Plan, Readout, Request, Row, Sampling, Strategy,
    Token,
};
use omnidecode_models::Network;
use omnidecode_strategies::companions::{self, CompanionError, Context};
use serde_json::{Value, json};
use std::sync::mpsc::channel;

const LAYERS: usize = 3;

fn run(requests: Vec<Request>) -> Vec<Answer> {
    let network = golden("llama");
    let config = Config { pages: 128, tail: 256, cost: Cost::Fixed(vec![(1, 1.0), (8, 1.1)]), ..Config::default() };
    let mut bench = Bench::new(config, vec![NamedNetwork::new("main", Box::new(network))]).expect("starts");
    let handles: Vec<_> = requests.into_iter().map(|r| bench.submit(r)).collect();
    bench.run();
    assert_eq!(bench.leftovers(), (0, 0, 0));
    assert_eq!((bench.stats().pages_used, bench.stats().tail_used), (0, 0));
    handles.into_iter().map(|h| h.collect()).collect()
}
fn tokens(answer: &Answer) -> &[Token] {
    crate::common::tokens(answer)
}
fn row_layers(answer: &Answer) -> usize {
    answer.end.as_ref().expect("ended").usage.row_layers
}
fn prompt(n: usize) -> Vec<Token> {
    (0..n as u64).map(|i| 3 + (omnidecode_core::noise::mix(i + 77) % 300) as Token).collect()
}
fn attach(params: Value, prompt: &[Token], request: &mut Request) -> Result<(), CompanionError> {
    let card = golden("llama").card().clone();
    companions::attach("lazyllm", &options(params), &Context { card: &card, prompt, vocabulary: None }, request)
}
/// A strategy with its parameters, and tokens left out; with `null` nothing rides along.
fn ride(name: &str, own: Value, params: &Value, prompt: &[Token], sampling: &Sampling) -> Request {
    let mut request = request(name, &options(own), prompt, sampling);
    if !params.is_null() {
        attach(params.clone(), prompt, &mut request).expect("fits");
    }
    request
}
fn lazy(params: Value, prompt: &[Token], tokens: usize, seed: u64, temperature: f32) -> Request {
    let sampling = Sampling { temperature, seed, max_tokens: Some(tokens), ignore_eos: true, ..Sampling::default() };
    ride("plain", json!({}), &params, prompt, &sampling)
}

/// Contract 1 and 9: nothing left out is plain decoding to the bit, through the split forwards too; repeats agree.
#[test]
fn nothing_left_out_is_plain() {
    let prompts: Vec<Vec<Token>> = prompts(24).into_iter().map(|p| p.into_iter().take(60).collect()).collect();
    let ask = |params: Value, i: usize| ride("plain", json!({}), &params, &prompts[i], &sampling(i, (i % 2) as f32));
    let plain = run((0..24).map(|i| ask(Value::Null, i)).collect());
    // The second drops less than one token of a hundred: three groups of layers, all rows.
    for params in
        [json!({"drop": [0.0]}), json!({"after": [0.34, 0.67], "drop": [0.5]}), json!({"after": [], "drop": [30.0]})]
    {
        let lazy = run((0..24).map(|i| ask(params.clone(), i)).collect());
        for (lazy, plain) in lazy.iter().zip(&plain) {
            assert_eq!(tokens(lazy), tokens(plain), "{params}");
            assert_eq!(row_layers(lazy), row_layers(plain), "{params}");
        }
        let absent = params["drop"] == json!([0.0]) || params["after"] == json!([]);
        assert_eq!(ask(params, 0).carriers.is_empty(), absent);
    }
    let twice = || run((0..24).map(|i| ask(json!({"drop": [40.0]}), i)).collect());
    assert!(twice().iter().zip(&twice()).all(|(a, b)| a.delta.tokens == b.delta.tokens));
    let differ = twice().iter().zip(&plain).filter(|(a, b)| tokens(a) != tokens(b)).count();
    assert!(differ > 3, "leaving out 40 % of the tokens changes {differ} of 24 answers");
}

/// Contract 1: with nothing left out the logits are plain decoding's to the bit: log-probabilities of the twenty likeliest
/// tokens at every step, through one forward a step and through three.
#[test]
fn nothing_left_out_has_the_logits_of_plain() {
    let text = prompt(70);
    let ask = |params: Value| {
        let sampling = Sampling { logprobs: Some(20), max_tokens: Some(12), ignore_eos: true, ..Sampling::default() };
        let answer = run(vec![ride("plain", json!({}), &params, &text, &sampling)]).remove(0);
        answer.delta.logprobs.iter().map(|l| format!("{l:?}")).collect::<Vec<_>>()
    };
    let plain = ask(Value::Null);
    assert_eq!(plain.len(), 12);
    for params in [json!({"drop": [0.0]}), json!({"after": [0.34, 0.67], "drop": [0.5]})] {
        assert_eq!(ask(params.clone()), plain, "{params}");
    }
    assert_ne!(ask(json!({"drop": [40.0]})), plain, "leaving tokens out shows");
}

/// Contract 5: rows at a layer after m prunings follow the integer rule.
#[test]
fn rows_shrink_layer_by_layer() {
    for (n, percent) in [(40usize, 30.0), (100, 30.0), (41, 55.0), (1, 30.0), (2, 99.0)] {
        let answer = &run(vec![lazy(json!({"after": [0.34, 0.67], "drop": [percent]}), &prompt(n), 1, 0, 0.0)])[0];
        let rule = |n: usize| n - ((n as f64 * percent / 100.0) as usize).min(n - 1);
        let (second, third) = (rule(n), rule(rule(n)));
        let got = row_layers(answer);
        // The last token may be among those of least weight, and stays.
        assert!(
            (n + second + third..=n + second + third + 2).contains(&got),
            "{n} {percent}: {got} for {}",
            n + second + third
        );
    }
}

/// Contract 2 and 3: a token passes a layer at most once, whatever comes back.
#[test]
fn no_layer_is_passed_twice() {
    let (n, made) = (60, 30);
    let params = |more: serde_json::Value| {
        let mut all = json!({"after": [0.34, 0.67], "drop": [40.0]});
        all.as_object_mut().expect("an object").extend(options(more));
        all
    };
    let full = LAYERS * (n + made - 1);
    let counts = |p: serde_json::Value| row_layers(&run(vec![lazy(p, &prompt(n), made, 0, 0.0)])[0]);
    let (revived, stays) = (counts(params(json!({}))), counts(params(json!({"revive": false}))));
    assert!(revived <= full, "{revived} of {full}");
    let prefill = row_layers(&run(vec![lazy(params(json!({})), &prompt(n), 1, 0, 0.0)])[0]);
    assert!(revived > prefill + LAYERS * (made - 1), "some came back");
    assert_eq!(stays, prefill + LAYERS * (made - 1), "none came back");
}

/// Contract 6: with nothing left out from the second step on, all come back there, and are whole afterwards.
#[test]
fn the_second_step_can_bring_all_back() {
    let params = || json!({"after": [0.34, 0.67], "drop": [40.0], "decode": false});
    let n = 50;
    for made in [2, 3, 9] {
        let answer = &run(vec![lazy(params(), &prompt(n), made, 0, 0.0)])[0];
        assert_eq!(row_layers(answer), LAYERS * (n + made - 1), "{made} tokens");
    }
    let one = &run(vec![lazy(params(), &prompt(n), 1, 0, 0.0)])[0];
    assert!(row_layers(one) < LAYERS * n);
}

/// Contract 4 and 7: the prompt's pass is a computation, layer by layer and without a cache, in which tokens left out are
/// masked from then on.
#[test]
fn the_first_step_is_a_masked_computation() {
    for (n, percent) in [(12usize, 30.0), (33, 50.0), (80, 30.0)] {
        for (seed, temperature) in [(0u64, 0.0f32), (1, 1.0), (2, 1.5), (3, 2.0)] {
            let text = prompt(n);
            let answer =
                &run(vec![lazy(json!({"after": [0.34, 0.67], "drop": [percent]}), &text, 1, seed, temperature)])[0];
            let expected = masked(&text, percent, seed, temperature);
            assert_eq!(tokens(answer), [expected], "{n} tokens, {percent} %, seed {seed}");
        }
    }
}
fn masked(text: &[Token], percent: f64, seed: u64, temperature: f32) -> Token {
    let (sender, receiver) = channel();
    let n = text.len();
    let probe = Strategy::new("probe", Guarantee::Approximate, move |mut seq| async move {
        let mut kept: Vec<usize> = (0..n).collect();
        let mut states: Vec<Option<Vec<f32>>> = vec![None; n];
        for layer in 0..LAYERS {
            let rows = kept.iter().map(|&i| match &states[i] {
                Some(state) => Row::Hidden(state.clone().into()),
                None => Row::Token(seq.tokens()[i]),
            });
            let last = layer + 1 == LAYERS;
            let read = if last { Readout::CHOICE } else { Readout::NOTHING.hidden(layer + 1).mass(layer) };
            let mut plan =
                Plan::rows(rows.collect(), Mask::Causal, read).kv(KvAction::Discard).layers(layer..layer + 1);
            plan.at = Some(0);
            plan.offsets = kept.iter().map(|&i| i as u32).collect();
            plan.keep = Some(Vec::new());
            plan.leave = n;
            plan.root = false;
            let seen = seq.forward(plan).await?;
            let rows = kept.len();
            if last {
                let _ = sender.send(seen.row(rows - 1).choice());
                return Ok(());
            }
            for (row, &i) in kept.iter().enumerate() {
                states[i] = Some(seen.row(row).hidden().to_vec());
            }
            let mut weights: Vec<(f32, usize)> = seen.row(rows - 1).mass().iter().copied().zip(kept.clone()).collect();
            assert_eq!(weights.len(), rows);
            weights.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            let gone: Vec<usize> = weights[..(rows as f64 * percent / 100.0) as usize].iter().map(|w| w.1).collect();
            kept.retain(|i| !gone.contains(i) || *i == n - 1);
        }
        Ok(())
    });
    let sampling = Sampling { temperature, seed, max_tokens: Some(1), ignore_eos: true, ..Sampling::default() };
    let answer = run(vec![Request::new(text.to_vec(), probe, sampling)]).remove(0);
    receiver.recv().unwrap_or_else(|_| panic!("{:?}", answer.end))
}

#[test]
fn beside_others_it_is_the_same() {
    let ask = |i: usize| lazy(json!({"drop": [40.0]}), &prompt(20 + i), 12, i as u64, 1.0);
    let plain = |i: usize| request("plain", &options(json!({})), &prompt(9 + i), &sampling(i, 1.0));
    let crowd = run((0..8).flat_map(|i| [ask(i), plain(i)]).collect());
    for i in 0..8 {
        assert_eq!(tokens(&crowd[2 * i]), tokens(&run(vec![ask(i)])[0]));
        assert_eq!(tokens(&crowd[2 * i + 1]), tokens(&run(vec![plain(i)])[0]));
    }
}

/// With tokens left out of the prompt's pass only, drafts are verified as ever: token for token, and log-probability for
/// log-probability, what plain decoding gives with the same tokens left out.
#[test]
fn drafts_are_verified_behind_the_prompt() {
    let params = json!({"after": [0.34, 0.67], "drop": [40.0], "decode": false});
    for temperature in [0.0, 1.0] {
        for (i, prompt) in prompts(30).iter().enumerate() {
            let prompt: Vec<Token> = prompt.iter().copied().take(60).collect();
            let sampling = Sampling { logprobs: Some(2), ..sampling(i, temperature) };
            let plain = run(vec![ride("plain", json!({}), &params, &prompt, &sampling)]).remove(0);
            for name in ["prompt-lookup", "token-recycling"] {
                let answer = run(vec![ride(name, json!({}), &params, &prompt, &sampling)]).remove(0);
                assert_eq!(tokens(&answer), tokens(&plain), "{name}, prompt {i}");
                assert_eq!(answer.delta.logprobs, plain.delta.logprobs, "{name}, prompt {i}");
            }
        }
    }
}

/// Branches share what the prompt's pass computed, and each leaves out what its own last token does not look at.
#[test]
fn branches_share_the_pruned_prompt() {
    let (n, made) = (60, 8);
    let text = prompt(n);
    let sampling = Sampling { temperature: 1.0, max_tokens: Some(made), ignore_eos: true, ..Sampling::default() };
    let params = json!({"after": [0.34, 0.67], "drop": [40.0], "revive": false});
    for name in ["best-of-n", "self-consistency"] {
        let ask = |params: &Value| run(vec![ride(name, json!({"n": 3}), params, &text, &sampling)]).remove(0);
        let (lazy, whole) = (ask(&params), ask(&Value::Null));
        assert_eq!(tokens(&lazy).len(), made);
        assert_eq!(row_layers(&whole), LAYERS * (n - 1 + 3 * made), "{name}: the prompt is computed once");
        let left_out = row_layers(&whole) - row_layers(&lazy);
        // 59 tokens, less 23, less 14 of the rest, but for the last one, which stays.
        assert!((57..=60).contains(&left_out), "{name}: nothing comes back of {left_out}");
        let back = ask(&json!({"after": [0.34, 0.67], "drop": [40.0]}));
        assert!((row_layers(&lazy)..=row_layers(&whole) + 2 * left_out).contains(&row_layers(&back)), "{name}");
    }
}

#[test]
fn bad_parameters_are_refused() {
    let mut asked = request("plain", &options(json!({})), &[1, 2], &Sampling::default());
    for bad in [
        json!({"after": [0.5, 0.2]}),
        json!({"after": [1.5]}),
        json!({"drop": [10.0, 20.0]}),
        json!({"drop": []}),
        json!({"drop": [101.0]}),
        json!({"revive": false, "decode": false}),
    ] {
        assert!(attach(bad.clone(), &[1, 2], &mut asked).is_err(), "{bad}");
    }
}
