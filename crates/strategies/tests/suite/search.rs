//! Sheet 04: searches with a judge, on the table networks with letters for tokens.

use crate::common::judged::{Letters, Scores, each, fair, judged, one, plain, usage, warm, whim};
use crate::common::{config, options, prompts, request, sampling, together, tokens};
use omnidecode_core::noise::{Key, Purpose, pair, unit};
use omnidecode_engine::testing::{Bench, networks};
use omnidecode_engine::{
    Candidate, Config, Guarantee, Judge, NamedNetwork, Readout, Request, Sampling, Strategy, TextStream, Token,
};
use omnidecode_models::{Weights, decoder};
use omnidecode_strategies::search::branch::{Boundary, grow, spread};
use omnidecode_strategies::search::particle;
use omnidecode_strategies::strategy;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::mpsc::channel;

/// Every search in a shape that samples steps of a few tokens.
fn shapes() -> Vec<(&'static str, Value)> {
    let steps = json!({"step_tokens": 3});
    let with = |mut own: Value| {
        own.as_object_mut().expect("an object").extend(steps.as_object().expect("an object").clone());
        own
    };
    vec![
        ("best-of-n", json!({"n": 5})),
        ("best-of-n", json!({"n": 6, "weighted": true, "answer": "[A-F]", "texts": 6})),
        ("self-consistency", json!({"n": 5, "answer": "[A-Z]"})),
        ("particle", with(json!({"n": 5}))),
        ("particle", with(json!({"n": 4, "resampling": "multinomial", "resample_finished": false}))),
        ("judge-beam", with(json!({"n": 6, "width": 3}))),
        ("judge-beam", with(json!({"n": 6, "width": 2, "independent": true, "aggregate": "prod"}))),
        ("a-star", with(json!({"k": 3, "budget_tokens": 200}))),
        ("a-star", json!({"k": 2, "cost": "decrease", "aggregate": "min", "budget_judged": 30})),
    ]
}

/// Contract 7 and 1: one sample of each is plain sampling.
#[test]
fn one_sample_is_plain_decoding() {
    let ones = [
        ("best-of-n", json!({"n": 1})),
        ("self-consistency", json!({"n": 1})),
        ("particle", json!({"n": 1})),
        ("judge-beam", json!({"n": 1, "width": 1})),
        ("beam", json!({"width": 1})),
        ("a-star", json!({"k": 1, "step_tokens": 4, "depth": 1000})),
    ];
    for temperature in [0.0, 1.0] {
        for (i, prompt) in prompts(60).iter().enumerate() {
            let sampling = sampling(i, temperature);
            let golden = plain(prompt, &sampling);
            for (name, params) in &ones {
                let made = strategy(name, &options(params.clone())).expect("fits");
                assert_eq!(made.guarantee, Guarantee::Exact, "{name}");
                let answer = one(request(name, &options(params.clone()), prompt, &sampling));
                assert_eq!(tokens(&answer), tokens(&golden), "{name} {i}");
                assert_eq!(usage(&answer).forwards, usage(&golden).forwards, "{name} {i}");
                let (a, b) = (answer.end.as_ref().expect("ended"), golden.end.as_ref().expect("ended"));
                assert_eq!((a.reason, &a.stop_reason), (b.reason, &b.stop_reason), "{name} {i}");
            }
        }
    }
}

/// Contract 6: behind shared pages a child reads what a prompt of its tokens reads, to the bit.
#[test]
fn children_read_what_their_text_reads() {
    let llama = || {
        let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
        let load = decoder::Options { threads: Some(2), ..decoder::Options::default() };
        let weights = Weights::open(&path).expect("a golden checkpoint");
        vec![NamedNetwork::new("main", Box::new(decoder::Decoder::load(&weights, &load).expect("it loads")))]
    };
    for models in [networks, llama] {
        let ask = |request: Request| {
            let mut bench = Bench::new(config(), models()).expect("starts");
            let handle = bench.submit(request);
            bench.run();
            assert!(handle.collect().end.is_ok());
        };
        let (sender, receiver) = channel();
        let probe = Strategy::new("probe", Guarantee::Approximate, move |mut seq| async move {
            let mut branches = spread(&mut seq, 4).await?;
            grow(&mut branches, &Boundary { most: 5, ..Boundary::default() }).await?;
            let mut children: Vec<_> = branches.iter().map(|b| b.fork(9)).collect();
            drop(branches);
            grow(&mut children, &Boundary { most: 3, ..Boundary::default() }).await?;
            for child in &mut children {
                let logits = child.seq.next(Readout::LOGITS).await?.root().logits().to_vec();
                let _ = sender.send((child.seq.tokens().to_vec(), logits));
            }
            Ok(())
        });
        let sampling = Sampling { ignore_eos: true, ..warm(3, 20) };
        ask(Request::new((1..60).collect::<Vec<Token>>(), probe, sampling.clone()));
        let mut seen = 0;
        for (text, logits) in receiver.iter() {
            let (sender, receiver) = channel();
            let fresh = Strategy::new("probe", Guarantee::Exact, move |mut seq| async move {
                let _ = sender.send(seq.next(Readout::LOGITS).await?.root().logits().to_vec());
                Ok(())
            });
            ask(Request::new(text, fresh, sampling.clone()));
            assert_eq!(receiver.recv().expect("logits"), logits);
            seen += 1;
        }
        assert_eq!(seen, 4);
    }
}

/// Contract 7: particles.
#[test]
fn particles() {
    for (rewards, t) in [(vec![0.0, 1.0, 0.5], 1.0), (vec![0.2; 7], 0.1), (vec![1.0, 1.0, 0.0], 1.5)] {
        let weights = particle::weights(&rewards, t);
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12 && weights.iter().all(|w| *w >= 0.0), "{weights:?}");
    }
    assert!((particle::weights(&[0.8, 0.2], 1.0)[0] - 16.0 / 17.0).abs() < 1e-12, "odds of 4 against odds of 1/4");
    // Towards temperature 0 the best takes all.
    for how in ["systematic", "multinomial"] {
        for seed in 0..50 {
            let key = Key::new(seed, 3, Purpose::Search);
            assert_eq!(particle::draw(&particle::weights(&[0.3, 0.31, 0.2], 1e-4), how, key), [0, 3, 0]);
            assert_eq!(particle::draw(&particle::weights(&[0.4; 4], 1.0), how, key).iter().sum::<usize>(), 4);
        }
    }
    // Systematic draws are within one of their expectation, and right on average; neutral weights draw each once.
    let weights = [0.1, 0.45, 0.05, 0.4];
    let mut sums = [0usize; 4];
    for seed in 0..4000 {
        let counts = particle::draw(&weights, "systematic", Key::new(seed, 0, Purpose::Search));
        for (i, &count) in counts.iter().enumerate() {
            assert!((count as f64 - 4.0 * weights[i]).abs() < 1.0);
            sums[i] += count;
        }
        assert_eq!(particle::draw(&[0.25; 4], "systematic", Key::new(seed, 1, Purpose::Search)), [1; 4]);
    }
    for (sum, weight) in sums.iter().zip(weights) {
        assert!((*sum as f64 / 4000.0 - 4.0 * weight).abs() < 0.03, "{sums:?}");
    }
    // A judge that sees no difference: n chains of their own, the first of them plain decoding.
    let sampling = warm(4, 18);
    let params = json!({"n": 5, "step_tokens": 3, "boundary": ""});
    let answer = one(judged("particle", params, &[3, 1, 4], &sampling, &fair()));
    assert_eq!(tokens(&answer), tokens(&plain(&[3, 1, 4], &sampling)));
    // A judge that wants one token: the more it may choose, the more of it there is.
    let wish = each(|c| c.tokens.iter().filter(|t| **t % 4 == 1).count() as f32 / c.tokens.len() as f32);
    let count = |name: &str, params: Value| -> usize {
        let ask = |seed| judged(name, params.clone(), &[3, 1, 4], &warm(seed, 24), &wish);
        let answers = together(config(), (0..30).map(ask).collect());
        answers.iter().flat_map(|a| tokens(a).to_vec()).filter(|t| t % 4 == 1).count()
    };
    let steps = |key: &str, n: usize| json!({key: n, "step_tokens": 3, "boundary": ""});
    let alone = count("particle", steps("n", 1));
    let beam = count("judge-beam", json!({"n": 8, "width": 4, "step_tokens": 3, "boundary": ""}));
    for (name, found) in [
        ("particle", count("particle", json!({"n": 8, "step_tokens": 3, "boundary": "", "weight_temperature": 0.2}))),
        ("judge-beam", beam),
        ("best-of-n", count("best-of-n", json!({"n": 8}))),
    ] {
        assert!(found > alone + alone / 4, "{name}: {found} with a judge, {alone} without");
    }
}

/// Best of N, weighted, and the majority.
#[test]
fn the_best_and_the_majority() {
    let sampling = warm(11, 12);
    // Everything that was found, by asking for all of it.
    let all = one(judged("best-of-n", json!({"n": 8, "texts": 8}), &[3, 1, 4], &sampling, &whim()));
    let end = all.end.as_ref().expect("ended");
    assert_eq!((end.others.len(), end.usage.judged, end.usage.judge_calls), (7, 8, 1));
    assert!(end.others.is_sorted_by(|a, b| a.score >= b.score));
    let score = |tokens: &[Token]| unit(tokens.iter().fold(7, |h, &t| pair(h, u64::from(t)))) as f32;
    assert!(end.others.iter().all(|o| f64::from(score(&o.tokens)) == o.score && score(tokens(&all)) >= o.score as f32));
    let mut texts: Vec<&[Token]> = end.others.iter().map(|o| &o.tokens[..]).chain([tokens(&all)]).collect();
    assert!(texts.contains(&tokens(&plain(&[3, 1, 4], &sampling))));
    texts.sort_unstable();
    texts.dedup();
    assert!(texts.len() > 4, "samples differ");
    // Without a judge the model's own probability ranks.
    let own = one(request("best-of-n", &options(json!({"n": 8, "texts": 8})), &[3, 1, 4], &sampling));
    let end = own.end.as_ref().expect("ended");
    assert!(end.usage.judge_calls == 0 && end.others.iter().all(|o| o.score > 0.0 && o.score < 1.0));

    // Texts vote by their last capital letter; the majority is counted by hand.
    let letter = |tokens: &[Token]| {
        let mut text = String::new();
        tokens.iter().for_each(|&t| Letters.push(t, &mut text));
        while text.pop().map(|c| text.push(c)).is_some() && !text.ends_with(|c: char| c.is_ascii_uppercase()) {
            text.pop();
        }
        text.pop()
    };
    for seed in 0..20 {
        let sampling = warm(seed, 12);
        let all = one(judged("best-of-n", json!({"n": 9, "texts": 9}), &[3, 1, 4], &sampling, &whim()));
        let mut found: Vec<Vec<Token>> = all.end.expect("ended").others.into_iter().map(|o| o.tokens).collect();
        found.push(all.delta.tokens);
        let mut votes = std::collections::BTreeMap::<char, (usize, f64)>::new();
        for text in &found {
            let without_end = text.strip_suffix(&[0]).unwrap_or(text);
            if let Some(c) = letter(without_end) {
                let vote = votes.entry(c).or_default();
                *vote = (vote.0 + 1, vote.1 + f64::from(score(text)));
            }
        }
        let most = votes.values().map(|v| v.0).max().expect("some letter");
        let heaviest = votes.values().map(|v| v.1).fold(0.0, f64::max);
        let winner = |name: &str, params: Value| {
            let answer = one(judged(name, params, &[3, 1, 4], &sampling, &whim()));
            let text = tokens(&answer).to_vec();
            letter(text.strip_suffix(&[0]).unwrap_or(&text)).expect("a letter")
        };
        assert_eq!(votes[&winner("self-consistency", json!({"n": 9, "answer": "[A-Z]"}))].0, most);
        let weighted = winner("best-of-n", json!({"n": 9, "weighted": true, "answer": "[A-Z]"}));
        assert!((votes[&weighted].1 - heaviest).abs() < 1e-6);
    }
}

/// Contract 8: a request gives the same whatever runs beside it, and with little memory.
#[test]
fn searches_are_reproducible() {
    let prompts = prompts(18);
    let shapes = shapes();
    let make = |i: usize| {
        let (name, params) = &shapes[i % shapes.len()];
        judged(name, params.clone(), &prompts[i], &sampling(i, 1.0), &whim())
    };
    let crowd = together(config(), (0..18).map(make).collect());
    let few = Config { pages: 40, tail: 64, chunk: 7, prefix_cache: false, ..config() };
    let scarce = together(few, (0..18).map(make).collect());
    for i in 0..18 {
        let alone = one(make(i));
        assert_eq!(tokens(&alone), tokens(&crowd[i]), "{:?}", shapes[i % shapes.len()]);
        assert_eq!(tokens(&alone), tokens(&scarce[i]), "{:?}", shapes[i % shapes.len()]);
        let (a, b) = (usage(&alone), usage(&crowd[i]));
        assert_eq!((a.judged, a.judge_calls, a.nfe), (b.judged, b.judge_calls, b.nfe));
    }
}

/// Branches run in one batched step, share the pages of their prompt, and free what is theirs when they are dropped.
#[test]
fn branches_are_cheap() {
    let prompt: Vec<Token> = (0..320).map(|i| 1 + (i * 7 % 50) as Token).collect();
    let sampling = Sampling { ignore_eos: true, ..warm(1, 16) };
    let peak = |name: &str, params: Value| {
        let mut bench = Bench::new(config(), networks()).expect("starts");
        let handle = bench.submit(judged(name, params, &prompt, &sampling, &fair()));
        let mut peak = 0;
        while bench.turn() {
            peak = peak.max(bench.stats().pages_used);
        }
        (peak, usage(&handle.collect()).clone())
    };
    let (_, plain) = peak("plain", json!({}));
    for (name, params) in [
        ("best-of-n", json!({"n": 16})),
        ("self-consistency", json!({"n": 16})),
        ("particle", json!({"n": 16, "boundary": "", "step_tokens": 4})),
        ("judge-beam", json!({"n": 16, "boundary": "", "step_tokens": 4})),
        ("beam", json!({"width": 16})),
    ] {
        let (pages, usage) = peak(name, params);
        // Ten pages of the prompt once, and at most two of its own a branch (a beam's children live beside it).
        assert!(pages <= 10 + 16 * 3, "{name}: {pages} pages, alone {}", 11 * 16);
        assert!(usage.forwards <= plain.forwards + 1, "{name}: {} forwards", usage.forwards);
        assert!(usage.rows <= 320 + 16 * 17, "{name}: {} rows", usage.rows);
    }

    // Six searches at once: no more batched forwards than the longest alone.
    let mut bench = Bench::new(config(), networks()).expect("starts");
    let names = ["best-of-n", "self-consistency", "particle", "judge-beam", "beam", "plain"];
    let ask = |name: &&str| bench.submit(judged(name, json!({}), &[3, 1, 4], &sampling, &fair()));
    let handles: Vec<_> = names.iter().map(ask).collect();
    bench.run();
    let alone = handles.into_iter().map(|h| usage(&h.collect()).forwards).max().expect("six");
    assert!(bench.stats().forwards as usize <= alone + 1, "{} for {alone}", bench.stats().forwards);

    // Sixteen branches, then one.
    let (sender, receiver) = channel();
    let probe = Strategy::new("probe", Guarantee::Approximate, move |mut seq| async move {
        let mut branches = spread(&mut seq, 16).await?;
        grow(&mut branches, &Boundary { most: 8, ..Boundary::default() }).await?;
        let _ = sender.send("many");
        branches.truncate(1);
        let _ = sender.send("one");
        grow(&mut branches, &Boundary { most: 8, ..Boundary::default() }).await?;
        seq.adopt(branches.remove(0).seq)
    });
    let mut bench = Bench::new(config(), networks()).expect("starts");
    let handle = bench.submit(Request::new(prompt, probe, sampling.clone()));
    let mut seen = Vec::new();
    while bench.turn() {
        seen.push((bench.stats().pages_used, receiver.try_iter().count()));
    }
    let at = seen.iter().position(|s| s.1 == 2).expect("the branches were dropped");
    assert!(seen[at - 1].0 >= 10 + 16, "{seen:?}");
    assert!(seen[at..].iter().all(|s| s.0 <= 12), "pages of dropped branches are free at once: {seen:?}");
    assert!(handle.collect().end.is_ok());
}

/// What cannot be is said: before the request, or by it, which alone fails.
#[test]
fn bad_requests() {
    for (name, params) in [
        ("best-of-n", json!({"judge": "regex", "judge_pattern": "("})),
        ("best-of-n", json!({"answer": "["})),
        ("self-consistency", json!({"answer": "*"})),
        ("a-star", json!({"judge": "model"})),
        ("judge-beam", json!({"n": 6, "width": 4})),
        ("particle", json!({"judge": "oracle"})),
        ("beam", json!({"early_stopping": "maybe"})),
        ("beam", json!({"width": 0})),
    ] {
        let refused = strategy(name, &options(params.clone()));
        assert!(refused.is_err(), "{name} {params}");
    }
    let fails = |name: &str, params: Value, judge: Option<Arc<dyn Judge>>, expect: &str| {
        let request = Request { judge, ..request(name, &options(params), &[3, 1, 4], &warm(1, 8)) };
        let error = one(request).end.expect_err("cannot be").to_string();
        assert!(error.contains(expect), "{error}");
    };
    fails("best-of-n", json!({"judge": "request"}), None, "a judge given with the request");
    fails("best-of-n", json!({"judge": "countdown"}), None, "a request with a tokenizer");
    fails("a-star", json!({"judge": "model", "judge_good": 5}), None, "no model has the role \"judge\"");
    let short: Arc<dyn Judge> = Arc::new(|_: &[Candidate<'_>]| -> Scores { Ok(vec![1.0]) });
    fails("best-of-n", json!({"n": 3}), Some(short), "3 finite numbers are expected");
    fails("particle", json!({"n": 3}), Some(each(|_| f32::NAN)), "finite numbers");
    let angry: Arc<dyn Judge> = Arc::new(|_: &[Candidate<'_>]| -> Scores { Err("no idea".into()) });
    fails("judge-beam", json!({}), Some(angry), "the judge failed: no idea");
    let broken: Arc<dyn Judge> = Arc::new(|_: &[Candidate<'_>]| -> Scores { panic!("boom") });
    fails("a-star", json!({}), Some(broken), "boom");
}
