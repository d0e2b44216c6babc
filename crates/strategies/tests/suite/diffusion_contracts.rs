//! Sheets 00-diffusion, 03, 08, 19 and 20: their contracts.

use crate::common::canvas::{
    Dense, Ran, Spot, TABLE_MASK, answer, blocked, decode, options, plainly, prompts, run, table,
};
use omnidecode_engine::testing::{Bench, EOS, VOCAB};
use omnidecode_engine::{Config, Error, Event, NamedNetwork, Reason, Request, Sampling, Token};
use omnidecode_models::Network;
use omnidecode_strategies::params::Options;
use omnidecode_strategies::strategy;
use serde_json::{Value, json};

fn failure(network: impl Network + 'static, name: &str, params: Value, sampling: Sampling) -> Error {
    answer(network, name, params, &[1, 2, 3], sampling).end.expect_err("an error")
}

/// 00-diffusion contract 1 and 5: the pace.
#[test]
fn the_static_loop_commits_its_quota() {
    let whole = run(table(0), "llada", json!({"block": 24}), &[5, 6], 24);
    assert_eq!(whole.forwards, 24);
    let mut when = whole.when.clone();
    when.sort_unstable();
    assert_eq!(when, (1..=24).collect::<Vec<u32>>(), "one a forward");
    // 20 places in blocks of 8, 8, 4 and 7 forwards: 3, 2, 2.
    let paced = run(table(0), "llada", json!({"block": 8, "steps": 7}), &[5, 6], 20);
    let counts: Vec<usize> = (1..=7).map(|f| paced.when.iter().filter(|w| **w == f).count()).collect();
    assert_eq!((paced.forwards, counts), (7, vec![3, 3, 2, 4, 4, 2, 2]));
    for (n, steps) in [(10, 3), (7, 7), (3, 5), (0, 4), (32, 1)] {
        let quota = omnidecode_strategies::diffusion::unmask::quota(n, steps);
        assert_eq!((quota.len(), quota.iter().sum::<usize>()), (steps, n));
    }
    let error = failure(table(0), "llada", json!({"block": 8, "steps": 2}), plainly(20));
    assert!(error.to_string().contains("2 steps for 3 blocks"), "{error}");
}

/// 00-diffusion contract 2, 3 and the invariants of §4; 03 contract 1, 4; 19 contract 1, 2, 3; 20 contract 1; 9 of the laws.
#[test]
fn neutral_parameters_give_the_baseline() {
    let huge = 1e30;
    for prompt in prompts(5) {
        let go = |params: Value| run(table(0), "llada", params, &prompt, 24);
        let plain = go(json!({"block": 8}));
        let same = [
            json!({"block": 8, "unmasker": "threshold", "threshold": 1.5}),
            json!({"block": 8, "unmasker": "factor", "factor": 1e-12}),
            json!({"block": 8, "unmasker": "factor", "factor": 0.0}),
            json!({"block": 8, "unmasker": "localleap", "threshold": 1.5, "relaxed": 1.5}),
            json!({"block": 8, "unmasker": "prophet", "exit_gaps": [huge, huge, huge]}),
            json!({"block": 8, "guidance": 0.0}),
            json!({"block": 8, "cache": "prefix", "refresh_every": 1}),
            json!({"block": 8, "cache": "dual", "refresh_every": 1}),
            json!({"block": 8, "cache": "delayed", "refresh_every": 1}),
        ];
        for params in same {
            assert_eq!(go(params.clone()), plain, "{params}");
        }
        let entropy = |bound: f64| go(json!({"block": 8, "unmasker": "entropy", "entropy_bound": bound}));
        assert_eq!(entropy(0.0), go(json!({"block": 8, "order": "entropy"})));
        assert_eq!(entropy(1e9).forwards, 3);
        assert_eq!(go(json!({"block": 8, "unmasker": "threshold", "threshold": 0.0})).forwards, 3, "one a block");

        let sure = go(json!({"block": 8, "unmasker": "threshold", "threshold": 0.6}));
        for params in [
            json!({"block": 8, "unmasker": "localleap", "threshold": 0.6, "relaxed": 0.6}),
            json!({"block": 8, "unmasker": "localleap", "threshold": 0.6, "relaxed": 0.1, "radius": 0}),
            json!({"block": 8, "unmasker": "credit", "threshold": 0.6, "credit_fusion": 0.0}),
            json!({"block": 8, "unmasker": "prophet", "host": "threshold", "threshold": 0.6, "exit_gaps": [huge, huge, huge]}),
        ] {
            assert_eq!(go(params.clone()), sure, "{params}");
        }
        let mut before = usize::MAX;
        for gap in [50.0, 0.8, 0.5, 0.3, 0.2, -huge] {
            let early = go(json!({"block": 8, "unmasker": "prophet", "exit_gaps": [gap, gap, gap]}));
            assert!(early.forwards <= before.min(24), "a lower threshold never exits later");
            assert!(!early.tokens.contains(&TABLE_MASK) && early.tokens.len() == 24);
            before = early.forwards;
        }
        assert_eq!(before, 1);
    }
}

/// Sheet 03 contract 2 to 5, on the rule itself over random confidences.
#[test]
fn localleap_commits_what_its_contract_says() {
    use omnidecode_strategies::diffusion::guess::Guess;
    use omnidecode_strategies::diffusion::unmask::{LocalLeap, Pace, Threshold, Unmasker};
    let mut word = 9u64;
    for round in 0..2000 {
        let guesses: Vec<Guess> = (0..12)
            .map(|i| {
                word = omnidecode_core::noise::mix(word);
                let confidence = (word % 1000) as f64 / 1000.0;
                Guess {
                    place: 40 + i * (1 + round % 3),
                    token: 1,
                    prob: confidence,
                    entropy: 0.0,
                    best: 1,
                    gap: 0.0,
                    confidence,
                    asked: vec![],
                }
            })
            .collect();
        let picked = |relaxed, radius| {
            let mut picked = LocalLeap { threshold: 0.9, relaxed, radius, pace: Pace::default() }.pick(&guesses);
            picked.sort_unstable();
            picked
        };
        let sorted = |mut of: Vec<usize>| {
            of.sort_unstable();
            of
        };
        let plain = sorted(Threshold::new(0.9).pick(&guesses));
        let leap = picked(0.75, 4);
        assert!(plain.iter().all(|i| leap.contains(i)), "a superset of the plain threshold's");
        let anchors: Vec<usize> = guesses.iter().filter(|g| g.confidence >= 0.9).map(|g| g.place).collect();
        if anchors.is_empty() {
            assert_eq!(leap, plain);
        } else {
            assert_eq!(picked(0.75, 1000), sorted(Threshold::new(0.75).pick(&guesses)));
            for &i in &leap {
                let near = anchors.iter().any(|a| a.abs_diff(guesses[i].place) <= 4);
                assert!(guesses[i].confidence >= if near { 0.75 } else { 0.9 });
            }
        }
    }
}

/// Sheet 20 contract 3, 4, 6, and the gain needed to pass a threshold.
#[test]
fn credit_earns_what_its_contract_says() {
    use omnidecode_strategies::diffusion::credit::{Credit, Rates};
    use omnidecode_strategies::diffusion::guess::Guess;
    let guess = |prob: f64, asked: Vec<f64>| {
        vec![Guess { place: 3, token: 8, prob, entropy: 0.0, best: 8, gap: 0.0, confidence: prob, asked }]
    };
    let mut credit = Credit::new(Rates { fusion: 0.7, decay: 0.8, exponent: 0.2 }, false);
    credit.enter(4);
    let mut before = 0.0;
    for step in 0..30 {
        let asks = credit.asks(&[3]);
        assert_eq!(asks.len(), usize::from(step > 0));
        let mut guesses = guess(0.4, vec![0.4; asks.len()]);
        credit.revise(&mut guesses, &asks);
        assert_eq!(guesses[0].token, 8, "nothing else has credit");
        assert!(guesses[0].prob > before && guesses[0].prob > 0.4, "it rises");
        before = guesses[0].prob;
    }
    // The bound: credit below p^gamma / (1 - beta).
    let most = (1.0 + 0.4f64.powf(0.2) / 0.2).powf(0.7);
    assert!(before < 0.4 * most / (0.6 + 0.4 * most) && before > 0.99 * 0.4 * most / (0.6 + 0.4 * most));
    // A gain X lifts p to tau when X = tau / (1 - tau) * (1 / p - 1).
    let needed = before / (1.0 - before) * (1.0 / 0.4 - 1.0);
    assert!((0.4 * needed / (0.6 + 0.4 * needed) - before).abs() < 1e-12);
    credit.enter(4);
    assert!(credit.asks(&[3]).is_empty(), "credits end with their block");
}

/// 00-diffusion contract 4: Dream's schedule is not LLaDA's.
#[test]
fn dream_follows_its_schedule() {
    for (places, steps) in [(256, 256), (512, 512), (64, 32)] {
        let ran = run(table(1), "dream", json!({"steps": steps}), &[4, 9, 2], places);
        assert_eq!(ran.forwards, steps);
        let counts: Vec<usize> = (1..=steps as u32).map(|f| ran.when.iter().filter(|w| **w == f).count()).collect();
        let middle = if places == steps { 1 } else { 2 };
        assert_eq!((counts[0], counts[steps - 1]), (middle - 1, middle + 1), "{places} places in {steps}");
        assert!(counts[1..steps - 1].iter().all(|n| *n == middle), "{counts:?}");
    }
}

/// Sheet 08 contract 1, 2, 4: token for token the static loop, greedy and sampled, never more forwards.
#[test]
fn freedave_is_the_static_loop() {
    let asks: Vec<(Vec<Token>, Sampling)> = prompts(120)
        .into_iter()
        .enumerate()
        .map(|(i, p)| {
            let temperature = [0.0, 1.0][i % 2];
            let repetition_penalty = if i % 5 == 1 { 1.2 } else { 1.0 };
            (
                p,
                Sampling {
                    temperature,
                    seed: i as u64,
                    repetition_penalty,
                    max_tokens: Some(10 + i % 17),
                    ..Sampling::default()
                },
            )
        })
        .collect();
    let networks: [(&str, fn() -> Box<dyn Network>, Value); 5] = [
        ("llada", || Box::new(table(0)), json!({"block": 8})),
        ("llada", || Box::new(table(1)), json!({"block": 8, "cache": "dual"})),
        ("llada", || Box::new(table(0)), json!({"block": 16, "cache": "prefix", "order": "margin"})),
        ("llada", || Box::new(table(0)), json!({"block": 8, "steps": 9, "length": 27, "order": "random"})),
        ("sdar", || Box::new(blocked(8)), json!({})),
    ];
    for (baseline, network, params) in networks {
        let plain = decode(network(), baseline, &options(params.clone()), &asks);
        for drafts in [1, 4, 8] {
            let mut params = params.clone();
            if baseline == "sdar" {
                params = json!({});
            }
            params["drafts"] = json!(drafts);
            let fast = decode(network(), "freedave", &options(params.clone()), &asks);
            let mut saved = 0;
            for (i, (fast, plain)) in fast.iter().zip(&plain).enumerate() {
                let (fast, plain) = (Ran::of(fast), Ran::of(plain));
                assert_eq!(fast.tokens, plain.tokens, "{params}, prompt {i}");
                assert!(fast.forwards <= plain.forwards, "{params}, prompt {i}");
                assert!(drafts > 1 || fast == plain, "with one draft it is the same path");
                saved += plain.forwards - fast.forwards;
            }
            assert!(drafts == 1 || params["order"] == "random" || saved > 25, "{params}: only {saved} forwards saved");
        }
    }
}

/// Nothing but tokens comes out, whatever the logits say; what is given stays; the prompt is not touched.
#[test]
fn masks_never_come_out_and_what_is_given_stays() {
    let biased = Sampling { logit_bias: vec![(TABLE_MASK, 3e9)], temperature: 1.0, ..plainly(30) };
    let cases = [
        ("llada", json!({"block": 8})),
        ("llada", json!({"block": 8, "unmasker": "threshold", "threshold": 0.3})),
        ("dream", json!({})),
        ("freedave", json!({})),
    ];
    for (name, mut params) in cases {
        params["given_at"] = json!([4, 29, 0]);
        params["given"] = json!([21, 22, 23]);
        let seen = Ran::of(&answer(table(0), name, params.clone(), &[9, 8, 7], biased.clone()));
        assert_eq!(seen.tokens.len(), 30);
        assert!(!seen.tokens.contains(&TABLE_MASK), "{name}: {:?}", seen.tokens);
        assert_eq!((seen.tokens[4], seen.tokens[29], seen.tokens[0]), (21, 22, 23), "{name} {params}");
        assert!(name == "dream" || seen.forwards <= 27, "given places take no forward");
    }
    let seen = Ran::of(&answer(blocked(4), "sdar", json!({"given_at": [2, 9], "given": [5, 6]}), &[9, 8, 7], biased));
    assert_eq!((seen.tokens.len(), seen.tokens[2], seen.tokens[9]), (30, 5, 6));
    assert!(!seen.tokens.contains(&TABLE_MASK));
}

/// The end: limits inside a canvas, end-of-text, and its options.
#[test]
fn answers_end_where_they_should() {
    let long = run(table(0), "llada", json!({"block": 8, "length": 32}), &[1, 2, 3], 32);
    let short = answer(table(0), "llada", json!({"block": 8, "length": 32}), &[1, 2, 3], plainly(11));
    assert_eq!(short.delta.tokens, long.tokens[..11], "the canvas is longer than the answer");
    let end = short.end.expect("ended");
    assert_eq!((end.reason, end.usage.nfe), (Reason::Length, 16), "later blocks are not decoded");
    let (mut ended, mut early, asks) = (0, 0, prompts(60));
    for prompt in &asks {
        let logit_bias = vec![(EOS, 6.0)];
        let sampling = Sampling { max_tokens: Some(40), temperature: 1.0, logit_bias, ..Sampling::default() };
        let free = answer(table(0), "llada", json!({"block": 8}), prompt, sampling.clone());
        let end = free.end.as_ref().expect("ended");
        if end.reason == Reason::Stop {
            ended += 1;
            let made = free.delta.tokens.len();
            assert!(end.usage.nfe <= (made / 8 + 1) * 8, "nothing behind the block of the end is decoded");
            assert!(free.delta.tokens.iter().rev().skip(1).all(|t| *t != EOS));
        }
        for params in [json!({"block": 8, "eos": "banned"}), json!({"block": 8, "eos": "banned", "guidance": 0.5})] {
            let banned = answer(table(0), "llada", params, prompt, sampling.clone());
            assert!(banned.delta.tokens.len() == 40 && !banned.delta.tokens.contains(&EOS));
        }
        // Last: the end is not decided while there is anything else to decide.
        let whole = |eos: &str| {
            let sampling = Sampling { ignore_eos: true, ..sampling.clone() };
            let ran = Ran::of(&answer(table(0), "llada", json!({"block": 40, "eos": eos}), prompt, sampling));
            ran.tokens.iter().zip(&ran.when).filter(|t| *t.0 == EOS).map(|t| *t.1).min().unwrap_or(40)
        };
        let (free, last) = (whole("free"), whole("last"));
        assert!(last >= free, "{last} before {free}");
        early += usize::from(free < last);
    }
    assert!(early > 0, "{early}");
    assert!(ended > 5, "{ended}");
}

/// A block is handed over as soon as it is finished, and never changes again.
#[test]
fn finished_blocks_are_streamed() {
    let mut bench = Bench::new(Config::default(), vec![NamedNetwork::new("main", Box::new(table(0)))]).expect("starts");
    let build = strategy("llada", &options(json!({"block": 8}))).expect("builds");
    let mut handle = bench.submit(Request::new(vec![4, 5, 6], build, plainly(32)));
    let (mut seen, mut turns_at) = (Vec::new(), Vec::new());
    for turn in 0..64 {
        bench.turn();
        while let Some(event) = handle.try_next() {
            if let Event::Delta(delta) = event {
                seen.extend(delta.tokens);
                turns_at.push(turn);
            }
        }
    }
    assert_eq!(seen, run(table(0), "llada", json!({"block": 8}), &[4, 5, 6], 32).tokens);
    assert_eq!(turns_at.len(), 4, "block by block");
    assert!(turns_at.windows(2).all(|w| w[1] - w[0] == 8), "{turns_at:?}");
}

/// No row of logits leaves the network unless guidance mixes two of them: a place costs a choice with its log-probability,
/// that of the mask, and what the order asks for.
#[test]
fn a_forward_reads_a_few_numbers_a_place() {
    let rows = 2 * (1..=8).sum::<usize>();
    let cases = [
        (json!({}), rows * 12),
        (json!({"unmasker": "threshold", "threshold": 2.0}), rows * 12),
        (json!({"order": "entropy"}), rows * (12 + 20)),
        (json!({"order": "margin"}), rows * (12 + 20 + 3 * 8)),
        (json!({"guidance": 0.5}), 2 * rows * (8 + 4 * VOCAB)),
    ];
    for (mut params, bytes) in cases {
        params["block"] = json!(8);
        let end = answer(table(0), "llada", params.clone(), &[4, 5, 6], plainly(16)).end.expect("ended");
        assert_eq!(end.usage.host_bytes, bytes, "{params}");
    }
}

/// 00-diffusion contract 8: the sampler draws from the softmax.
#[test]
fn one_place_is_drawn_from_its_law() {
    let mut dense = Dense::new(Box::new(table(0)));
    let law = Spot::new(2, dense.run(&[5, 6, TABLE_MASK], &[0, 1, 2], &[2]).remove(0)).law;
    let asks: Vec<_> = (0..6000).map(|seed| (vec![5, 6], Sampling { temperature: 1.0, seed, ..plainly(1) })).collect();
    let mut counts = vec![0.0; law.len()];
    for seen in decode(Box::new(table(0)), "llada", &Options::new(), &asks) {
        counts[seen.delta.tokens[0] as usize] += 1.0;
    }
    let rare: f64 = law.iter().filter(|p| **p * 6000.0 < 8.0).sum();
    let mut chi = counts
        .iter()
        .zip(&law)
        .filter(|(_, p)| **p * 6000.0 >= 8.0)
        .map(|(n, p)| (n - p * 6000.0).powi(2) / (p * 6000.0))
        .sum::<f64>();
    let cells = law.iter().filter(|p| **p * 6000.0 >= 8.0).count() as f64;
    let rest: f64 = counts.iter().zip(&law).filter(|(_, p)| **p * 6000.0 < 8.0).map(|(n, _)| n).sum();
    chi += (rest - rare * 6000.0).powi(2) / (rare * 6000.0).max(1.0);
    assert!(cells > 3.0 && chi < cells + 5.0 * (2.0 * cells).sqrt(), "chi-squared {chi} over {cells} cells");
}

/// Likelihood: exact for one token; for two, one of the two values that the masks can give.
#[test]
fn likelihood_is_the_bound() {
    use omnidecode_strategies::diffusion::likelihood::request;
    let mut dense = Dense::new(Box::new(table(0)));
    let mut log = |canvas: &[Token], place: usize, token: Token| {
        let all: Vec<usize> = (0..canvas.len()).collect();
        Spot::new(place, dense.run(canvas, &all, &[place]).remove(0)).law[token as usize].ln()
    };
    let m = TABLE_MASK;
    let one = log(&[5, 6, m], 2, 9);
    let both = log(&[5, 6, m, m], 2, 9) + log(&[5, 6, m, m], 3, 4);
    let either = [log(&[5, 6, m, 4], 2, 9), log(&[5, 6, 9, m], 3, 4)];
    let ask = |answer: &[Token], draws: usize, seeds: u64| -> Vec<f64> {
        let network = NamedNetwork::new("main", Box::new(table(0)));
        let mut bench = Bench::new(Config::default(), vec![network]).expect("starts");
        let all: Vec<_> = (0..seeds)
            .map(|seed| {
                let (request, score) = request(vec![5, 6], answer.to_vec(), draws, seed);
                (bench.submit(request), score)
            })
            .collect();
        bench.run();
        assert_eq!(bench.leftovers(), (0, 0, 0));
        let scores = all.into_iter().map(|(handle, score)| {
            let answer = handle.collect();
            assert!(answer.delta.tokens.is_empty());
            assert_eq!(answer.end.expect("ended").usage.nfe, draws, "a forward a draw");
            score.recv().expect("a score")
        });
        scores.collect()
    };
    assert!((ask(&[9], 3, 1)[0] - one).abs() < 1e-4);
    // Two draws mask both tokens once, and one of them once, which counts twice.
    let mut times = [0; 2];
    for score in ask(&[9, 4], 2, 200) {
        let which = (0..2).find(|&i| ((both + 2.0 * either[i]) / 2.0 - score).abs() < 1e-4);
        times[which.unwrap_or_else(|| panic!("{score} is neither, {both} {either:?}"))] += 1;
    }
    assert!(times[0] > 60 && times[1] > 60, "{times:?}");
    assert!((either[0] - either[1]).abs() > 1e-2, "the two differ, or the test says nothing");
}

/// What does not fit together, or not this model, is refused with words.
#[test]
fn what_does_not_fit_is_refused() {
    let refused = [
        ("llada", json!({"factor": 0.5}), "factor"),
        ("llada", json!({"threshold": 0.5}), "threshold"),
        ("llada", json!({"unmasker": "threshold", "order": "random"}), "order"),
        ("llada", json!({"unmasker": "threshold", "steps": 4}), "steps"),
        ("llada", json!({"unmasker": "threshold", "radius": 3}), "radius"),
        ("llada", json!({"refresh_every": 3}), "refresh_every"),
        ("llada", json!({"answer_at": 3}), "answer_at"),
        ("llada", json!({"unmasker": "prophet", "exit_gaps": [1.0]}), "exit_gaps"),
        ("llada", json!({"unmasker": "prophet", "answer_length": 2}), "answer_length"),
        ("llada", json!({"unmasker": "credit", "guidance": 1.0}), "guidance"),
        ("llada", json!({"unmasker": "credit", "credit_adaptive": true, "credit_decay": 0.5}), "credit_adaptive"),
        ("llada", json!({"given": [1]}), "given"),
        ("llada", json!({"given": [1, 2], "given_at": [3, 3]}), "given_at"),
        ("llada", json!({"unmasker": "nobody"}), "unmasker"),
        ("dream", json!({"unmasker": "threshold", "alg_temp": 0.5}), "alg_temp"),
        ("dream", json!({"order": "origin", "alg_temp": 0.5}), "alg_temp"),
        ("dream", json!({"unmasker": "factor", "steps": 3}), "steps"),
        ("sdar", json!({"unmasker": "prophet"}), "unmasker"),
        ("sdar", json!({"cache": "dual"}), "cache"),
        ("freedave", json!({"cache": "delayed"}), "cache"),
        ("freedave", json!({"unmasker": "threshold"}), "unmasker"),
    ];
    for (name, params, word) in refused {
        let error = strategy(name, &options(params.clone())).err().unwrap_or_else(|| panic!("{name} {params}"));
        assert!(error.to_string().contains(&format!("`{word}`")), "{name} {params}: {error}");
    }
    let say = |error: Error, word: &str| assert!(error.to_string().contains(word), "{error}");
    let causal = || omnidecode_engine::testing::TableNetwork::new(7, 11);
    for name in ["llada", "dream", "freedave"] {
        say(failure(causal(), name, json!({}), plainly(8)), "bidirectional");
    }
    say(failure(blocked(4), "llada", json!({}), plainly(8)), "sdar");
    say(failure(table(0), "sdar", json!({}), plainly(8)), "llada");
    say(failure(blocked(4), "freedave", json!({"cache": "dual"}), plainly(8)), "block-causal");
    say(failure(table(0), "llada", json!({"given_at": [9], "given": [1]}), plainly(8)), "offset 9");
    say(failure(table(0), "llada", json!({"given_at": [1], "given": [63]}), plainly(8)), "mask token");
    say(failure(table(0), "llada", json!({"given_at": [1], "given": [64]}), plainly(8)), "vocabulary");
    say(failure(table(0), "llada", json!({"unmasker": "prophet", "answer_at": 6}), plainly(8)), "answer_length");
    say(failure(table(0), "llada", json!({"length": 5000}), plainly(8)), "context");
    let hot = Sampling { temperature: 1.0, ..plainly(8) };
    say(failure(table(0), "llada", json!({"unmasker": "credit"}), hot), "temperature");
    let unmasked = table(0).with_card(|c| c.mask = None);
    say(failure(unmasked, "llada", json!({}), plainly(8)), "mask");
}
