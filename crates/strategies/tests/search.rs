//! Sheet 04: searches with a judge, on the table networks with letters for tokens.
mod common;

use common::{config, options, prompts, request, sampling, together, tokens};
use omnidecode_core::noise::{Key, Purpose, mix, pair, unit};
use omnidecode_engine::testing::{Bench, TableNetwork, networks};
use omnidecode_engine::{
    Answer, Candidate, Config, Detokenizer, Guarantee, Judge, NamedNetwork, Readout, Request, Sampling, Strategy,
    TextStream, Token, Usage,
};
use omnidecode_models::{Weights, decoder};
use omnidecode_strategies::params::Options;
use omnidecode_strategies::registry::ParamSet;
use omnidecode_strategies::search::branch::{Boundary, grow, spread};
use omnidecode_strategies::search::{a_star, particle};
use omnidecode_strategies::strategy;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::mpsc::channel;

/// A letter a token; every eighth is half of a paragraph's end.
struct Letters;
impl Detokenizer for Letters {
    fn stream(&self) -> Box<dyn TextStream> {
        Box::new(Letters)
    }
}
impl TextStream for Letters {
    fn push(&mut self, token: Token) -> String {
        if token % 8 == 3 { "\n".into() } else { char::from_u32(0x30 + token).map(String::from).unwrap_or_default() }
    }
    fn finish(&mut self) -> String {
        String::new()
    }
}

type Scores = std::result::Result<Vec<f32>, String>;
fn each(score: impl Fn(&Candidate<'_>) -> f32 + Send + Sync + 'static) -> Arc<dyn Judge> {
    Arc::new(move |batch: &[Candidate<'_>]| -> Scores { Ok(batch.iter().map(&score).collect()) })
}
fn fair() -> Arc<dyn Judge> {
    each(|_| 0.5)
}
/// Any score, a function of the text.
fn whim() -> Arc<dyn Judge> {
    each(|c| unit(c.tokens.iter().fold(7, |h, &t| pair(h, u64::from(t)))) as f32)
}
/// A request with texts, and with the judge if its strategy asks one.
fn judged(name: &str, params: Value, prompt: &[Token], sampling: &Sampling, judge: &Arc<dyn Judge>) -> Request {
    let text: Arc<dyn Detokenizer> = Arc::new(Letters);
    let request = request(name, &options(params), prompt, sampling);
    let judge = request.strategy.judged.then(|| judge.clone());
    Request { judge, text: Some(text), ..request }
}
fn warm(seed: u64, most: usize) -> Sampling {
    Sampling { temperature: 1.5, seed, max_tokens: Some(most), ..Sampling::default() }
}
fn usage(answer: &Answer) -> &Usage {
    &answer.end.as_ref().expect("ended").usage
}
fn plain(prompt: &[Token], sampling: &Sampling) -> Answer {
    together(config(), vec![request("plain", &Options::new(), prompt, sampling)]).remove(0)
}
fn one(request: Request) -> Answer {
    together(config(), vec![request]).remove(0)
}
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

/// Contract 1: k = 1 asks the judge once a step.
#[test]
fn a_star_of_one_sample_asks_once_a_step() {
    for seed in 0..10 {
        let sampling = warm(seed, 21);
        let params = json!({"k": 1, "step_tokens": 4, "boundary": "", "depth": 1000});
        let answer = one(judged("a-star", params, &[3, 1, 4], &sampling, &whim()));
        let steps = tokens(&answer).len().div_ceil(4);
        assert_eq!((usage(&answer).judge_calls, usage(&answer).judged), (steps, steps));
        // Steps that end behind a text: the same tokens, a step a paragraph.
        let by_text = one(judged("a-star", json!({"k": 1, "depth": 1000}), &[3, 1, 4], &sampling, &whim()));
        assert_eq!(tokens(&by_text), tokens(&answer));
        let halves = tokens(&by_text).iter().map(|t| t % 8 == 3).collect::<Vec<_>>();
        let (mut ends, mut last) = (1, false);
        for (i, &half) in halves.iter().enumerate() {
            let end = half && last;
            ends += usize::from(end && i + 1 < halves.len());
            last = half && !end;
        }
        assert_eq!(usage(&by_text).judge_calls, ends, "{:?}", by_text.delta.text);
    }
}

/// What an A* search did.
#[derive(Clone, Debug, Default)]
struct Trace {
    popped: Vec<(Vec<Token>, f64, f64, usize)>,
    expanded: Vec<(usize, usize, usize)>,
    found: Vec<Token>,
}
fn trace(params: Value, sampling: Sampling, judge: &Arc<dyn Judge>) -> (Trace, Usage) {
    let params = a_star::Params::parse("a-star", &options(params)).expect("fits");
    let (sender, receiver) = channel();
    let probe = Strategy::new("probe", Guarantee::Approximate, move |mut seq| async move {
        let mut trace = Trace::default();
        let node = a_star::search(&params, &mut seq, &mut |event| match event {
            a_star::Event::Popped(tokens, g, h, depth) => trace.popped.push((tokens.to_vec(), g, h, depth)),
            a_star::Event::Expanded(samples, tokens, new) => trace.expanded.push((samples, tokens, new)),
        })
        .await?;
        trace.found = node.branch.tokens().to_vec();
        let _ = sender.send(trace);
        seq.adopt(node.branch.seq)
    });
    let text: Arc<dyn Detokenizer> = Arc::new(Letters);
    let request = Request {
        judge: Some(judge.clone()),
        text: Some(text),
        ..Request::new(vec![3, 1, 4], probe.judged(true), sampling)
    };
    let answer = one(request);
    let trace = receiver.recv().expect("a trace");
    assert_eq!(tokens(&answer), trace.found);
    (trace, usage(&answer).clone())
}

/// Contract 2: a judge that sees no difference makes one chain, deeper at every step.
#[test]
fn a_star_with_a_constant_judge_goes_straight_down() {
    for seed in 0..10 {
        let sampling = warm(seed, 20);
        let params = json!({"k": 3, "step_tokens": 4, "boundary": ""});
        let (trace, usage) = trace(params, sampling.clone(), &fair());
        assert!(trace.popped.iter().enumerate().all(|(i, p)| p.3 == i), "{:?}", trace.popped);
        assert_eq!(trace.found, tokens(&plain(&[3, 1, 4], &sampling)), "the first sample is plain decoding's");
        let steps = trace.expanded.len();
        assert_eq!(steps, trace.found.len().div_ceil(4));
        assert!(trace.expanded.iter().all(|e| e.0 == 3 && e.1 <= 12));
        assert_eq!(usage.judge_calls, steps);
    }
}

/// Contract 3: an oracle finds the gold text in depth x k samples.
#[test]
fn a_star_with_an_oracle_finds_gold() {
    let gold: [Token; 6] = [5, 33, 9, 9, 20, 33];
    let oracle = each(move |c| f32::from(u8::from(gold.starts_with(c.tokens))));
    let sampling = Sampling {
        temperature: 20.0,
        max_tokens: Some(6),
        ignore_eos: true,
        allowed_token_ids: Some(vec![5, 9, 20, 33]),
        ..Sampling::default()
    };
    for (seed, cost) in [(1, "increase"), (2, "decrease"), (3, "step")] {
        let params = json!({"k": 40, "step_tokens": 1, "boundary": "", "cost": cost});
        let (trace, usage) = trace(params, Sampling { seed, ..sampling.clone() }, &oracle);
        assert_eq!(trace.found, gold, "{cost}");
        assert_eq!(trace.expanded.iter().map(|e| e.0).sum::<usize>(), 6 * 40);
        assert!(usage.judged <= 6 * 4, "duplicates are judged once: {}", usage.judged);
    }
}

/// Contract 4: f of popped texts does not fall under `decrease`; g never falls along a path.
#[test]
fn a_star_costs() {
    for cost in ["increase", "decrease", "step"] {
        for seed in 0..12 {
            let params = json!({"k": 3, "step_tokens": 2, "boundary": "", "cost": cost, "budget_judged": 90});
            let sampling = Sampling { ignore_eos: true, ..warm(seed, 14) };
            let (trace, _) = trace(params, sampling, &whim());
            let popped = &trace.popped;
            assert!(popped.len() > 5, "{popped:?}");
            if cost == "decrease" {
                assert!(popped.is_sorted_by(|a, b| a.1 + a.2 <= b.1 + b.2 + 1e-9), "{popped:?}");
            }
            for (i, a) in popped.iter().enumerate() {
                assert!(a.1 >= 0.0);
                for b in &popped[i + 1..] {
                    assert!(!b.0.starts_with(&a.0) || b.1 >= a.1, "{cost}: g fell from {a:?} to {b:?}");
                }
            }
        }
    }
}

/// Contract 5: counters are recounts, and no budget is passed by more than one expansion.
#[test]
fn a_star_counts_and_budgets() {
    for (seed, limit) in [(0, 10), (1, 33), (2, 80)] {
        for (name, most) in [("budget_tokens", 3 * 4), ("budget_judged", 3)] {
            let mut params = json!({"k": 3, "step_tokens": 4, "boundary": ""});
            params[name] = json!(limit);
            let (trace, usage) = trace(params, warm(seed, 40), &whim());
            let tokens: usize = trace.expanded.iter().map(|e| e.1).sum();
            let judged: usize = trace.expanded.iter().map(|e| e.2).sum();
            assert_eq!((usage.judged, usage.judge_calls), (judged, trace.expanded.len()));
            // Rows: the prompt, a row a token sampled (each but the last of a chain is run), and greedy completion.
            let spent = if name == "budget_tokens" { tokens } else { judged };
            assert!(spent < limit + most, "{spent} of {limit}");
            let before = spent - trace.expanded.last().map_or(0, |e| if name == "budget_tokens" { e.1 } else { e.2 });
            assert!(before < limit, "one expansion after the limit at most");
        }
    }
    // Nothing finished within the budget: the best text is completed, up to the length that was asked for.
    let params = json!({"k": 2, "step_tokens": 2, "boundary": "", "budget_judged": 2});
    let sampling = Sampling { ignore_eos: true, ..warm(5, 17) };
    let (trace, usage) = trace(params, sampling, &whim());
    assert_eq!((trace.found.len(), usage.judged), (17, 2));
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
        let mut text: String = tokens.iter().map(|&t| Letters.push(t)).collect();
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

/// A second model as a judge: the probability of one token against another behind a tag.
#[test]
fn a_model_judges() {
    let models = || {
        let mut models = networks();
        models.push(NamedNetwork::new("judge", Box::new(TableNetwork::new(7, 23))));
        models
    };
    let asked =
        json!({"n": 6, "texts": 6, "judge": "model", "judge_suffix": [44, 45], "judge_good": 20, "judge_bad": 30});
    let mut bench = Bench::new(config(), models()).expect("starts");
    let handle = bench.submit(request("best-of-n", &options(asked), &[3, 1, 4], &warm(2, 10)));
    bench.run();
    let answer = handle.collect();
    let end = answer.end.expect("ended");
    assert_eq!((end.usage.judge_calls, end.usage.judged, end.others.len()), (1, 6, 5));
    assert_eq!(bench.leftovers(), (0, 0, 0));
    // The same verdict, read from the judge's own logits.
    for other in &end.others {
        let text: Vec<Token> = [3, 1, 4].iter().chain(&other.tokens).chain(&[44, 45]).copied().collect();
        let alone = vec![NamedNetwork::new("main", Box::new(TableNetwork::new(7, 23)))];
        let mut bench = Bench::new(config(), alone).expect("starts");
        let (sender, receiver) = channel();
        let probe = Strategy::new("probe", Guarantee::Exact, move |mut seq| async move {
            let asked = Readout::default().logprobs([20, 30]);
            let _ = sender.send(seq.next(asked).await?.root().asked().to_vec());
            Ok(())
        });
        let keep = bench.submit(Request::new(text, probe, Sampling::default()));
        bench.run();
        drop(keep);
        let seen = receiver.recv().expect("two log-probabilities");
        let score = f64::from(seen[0]).exp() / (f64::from(seen[0]).exp() + f64::from(seen[1]).exp());
        assert!((score - other.score).abs() < 1e-6, "{score} for {}", other.score);
    }
    // Steps are judged on what the judge has computed already.
    for (name, own) in
        [("particle", json!({"n": 3})), ("judge-beam", json!({"n": 4, "width": 2})), ("a-star", json!({"k": 2}))]
    {
        let mut params = own;
        for (key, value) in [("judge", json!("model")), ("judge_good", json!(20)), ("step_tokens", json!(5))] {
            params[key] = value;
        }
        let mut bench = Bench::new(Config { prefix_cache: false, ..config() }, models()).expect("starts");
        let long: Vec<Token> = (0..100).map(|i| 1 + i % 50).collect();
        let sampling = Sampling { ignore_eos: true, ..warm(2, 20) };
        let handle = bench.submit(request(name, &options(params), &long, &sampling));
        bench.run();
        let usage = usage(&handle.collect()).clone();
        assert!(usage.judge_calls >= 4, "{name}: {usage:?}");
        // The prompt once, five tokens and a root a judged step.
        assert!(usage.rows_by_model[2] <= 100 + usage.judged * 6, "{name}: {usage:?}");
    }
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

/// Noise takes the place of a share of the scores, the same for the same text and seed.
#[test]
fn judges_err_as_often_as_asked() {
    for noise in [0.0, 0.2, 0.4, 1.0] {
        let (mut wrong, mut all) = (0, 0);
        for seed in 0..40 {
            let params = json!({"n": 16, "texts": 16, "judge_noise": noise});
            let sampling = Sampling { ignore_eos: true, ..warm(mix(seed), 8) };
            let ask = || one(judged("best-of-n", params.clone(), &[3, 1, 4], &sampling, &each(|_| 1.0)));
            let (answer, again) = (ask(), ask());
            let end = answer.end.expect("ended");
            assert_eq!(end.others, again.end.expect("ended").others);
            all += end.others.len();
            wrong += end.others.iter().filter(|o| o.score < 1.0).count();
        }
        // The best of sixteen, which is told without a score, is right nearly always.
        let share = wrong as f64 / all as f64;
        assert!((share - noise * 16.0 / 15.0).abs() < 0.07, "{share} for {noise}");
    }
}
