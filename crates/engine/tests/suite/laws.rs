//! Exact is `==`: over 1000 prompts, alone and mixed, greedy and sampled, bent or not, with room and without.
use crate::common::strategies::*;
use crate::common::*;
use omnidecode_engine::*;

#[test]
fn exact_alone_and_mixed() {
    for (temperature, bent) in [(0.0, false), (1.0, false), (0.0, true), (1.0, true)] {
        let want: Vec<_> = (0..1000).map(|i| oracle(&request(i, plain(), temperature, bent), &prompt(i))).collect();
        let mut exact = EXACT.to_vec();
        if temperature == 0.0 {
            exact.push(("draft-model", draft_model));
        }
        for (name, make) in &exact {
            let mut b = bench(Config { pages: 64, tail: 64, ..Config::default() });
            for i in 0..1000 {
                let h = b.submit(request(i, make(), temperature, bent));
                b.run();
                let got = h.collect();
                let case = format!("{name} alone, prompt {i}, t {temperature}, bent {bent}: {:?}", got.end);
                assert_eq!(got.delta.tokens, want[i as usize].0, "{case}");
                assert_eq!(got.delta.text, want[i as usize].1, "{case}");
            }
            assert_empty(&mut b, 64);
        }
        // Mixed, all at once, approximate strategies beside; then chunked prefill, few pages and few tail slots.
        let roomy = Config { pages: 4000, tail: 4000, budget: 4000, max_running: 2000, ..Config::default() };
        let tight = Config { pages: 120, tail: 70, chunk: 7, budget: 100, max_running: 64, ..Config::default() };
        for config in [roomy, tight] {
            let mut b = bench(config.clone());
            let hs: Vec<_> = (0..1000u64)
                .map(|i| b.submit(request(i, exact[i as usize % exact.len()].1(), temperature, bent)))
                .collect();
            let noise: Vec<_> =
                (0..60u64).map(|i| b.submit(request(i, OTHERS[i as usize % 5](), temperature, bent))).collect();
            b.run();
            for (i, h) in hs.into_iter().enumerate() {
                let got = h.collect();
                let case = format!("mixed, prompt {i}, {}: {:?}", exact[i % exact.len()].0, got.end);
                assert_eq!((got.delta.tokens, got.delta.text), want[i], "{case}");
            }
            let failed: Vec<_> = noise.into_iter().filter_map(|h| h.collect().end.err()).collect();
            println!("t {temperature} bent {bent}: {:?}\n  side failures {failed:?}", b.stats());
            assert_empty(&mut b, config.pages);
        }
    }
}

#[test]
fn shaped_sampling_is_exact_for_every_strategy() {
    let shaped = |i: u64, make: Make| {
        let mut r = request(i, make(), if i.is_multiple_of(2) { 0.8 } else { 0.0 }, false);
        r.sampling.repetition_penalty = 1.3;
        r.sampling.frequency_penalty = 0.2;
        r.sampling.presence_penalty = -0.3;
        r.sampling.logit_bias = vec![(9, 1.5), (10, -3.0)];
        r.sampling.bad_words = vec![vec![12], vec![20, 21], vec![7, 8, 9]];
        r.sampling.min_tokens = r.sampling.max_tokens.unwrap_or(0).min(i as usize % 9);
        r.sampling.top_k = 20;
        r.sampling.top_p = 0.95;
        r.sampling.min_p = 0.01;
        r.sampling.typical_p = 0.98;
        if i.is_multiple_of(5) {
            r.sampling.allowed_token_ids = Some((3..50).collect());
        }
        r
    };
    let mut b = bench(Config::default());
    for i in 0..200 {
        let hs: Vec<_> = EXACT.iter().map(|(_, make)| b.submit(shaped(i, *make))).collect();
        b.run();
        let got: Vec<_> = hs.into_iter().map(|h| h.collect()).collect();
        for (g, (name, _)) in got.iter().zip(EXACT) {
            assert_eq!(g.delta.tokens, got[0].delta.tokens, "{name}, prompt {i}: {:?}", g.end);
            assert!(!g.delta.tokens.contains(&12) && !g.delta.tokens.windows(2).any(|w| w == [20, 21]));
        }
    }
    assert_empty(&mut b, 1024);
}

#[test]
fn one_batched_forward_a_model_and_step() {
    for n in [1u64, 8, 64, 256] {
        let config =
            Config { pages: 1 << 12, budget: 1 << 20, tail: 1 << 13, max_running: 1 << 10, ..Config::default() };
        let mut b = bench(config);
        let hs: Vec<_> = (0..n)
            .map(|i| {
                let mut r = request(i, [plain, lookup, recycling][i as usize % 3](), 0.0, false);
                r.sampling.max_tokens = Some(30);
                b.submit(r)
            })
            .collect();
        b.run();
        let most = hs.into_iter().map(|h| h.collect().end.unwrap().usage.forwards).max().unwrap() as u64;
        let s = b.stats();
        assert_eq!((s.steps, s.forwards), (most, most), "as many steps as the longest request: {s:?}");
    }
    // Children of one request: 8 branches, one step a token.
    let mut b = bench(Config::default());
    let mut r = request(4, best_of(8), 1.0, false);
    r.sampling = Sampling { temperature: 1.0, max_tokens: Some(20), ignore_eos: true, ..Sampling::default() };
    let h = b.submit(r);
    b.run();
    let usage = h.collect().end.unwrap().usage;
    let s = b.stats();
    assert_eq!((s.forwards, usage.forwards, usage.nfe), (21, 21, 1 + 8 * 20), "prefill, then 20 steps: {s:?}");
    // Two models of one request: both in one step.
    let mut b = bench(Config::default());
    let h = b.submit(request(4, contrastive(), 0.0, false));
    b.run();
    let (usage, s) = (h.collect().end.unwrap().usage, b.stats());
    assert_eq!((usage.forwards as u64, s.forwards), (s.forwards, 2 * s.steps), "{s:?}");
    assert_eq!(usage.forwards_by_model, [s.steps as usize, s.steps as usize]);
}

#[test]
fn drafts_save_forwards() {
    let mean = |make: Make| {
        let mut b = bench(Config::default());
        let (mut forwards, mut tokens) = (0, 0);
        for i in 0..100 {
            let h = b.submit(request(i, make(), 0.0, false));
            b.run();
            let answer = h.collect();
            forwards += answer.end.unwrap().usage.forwards_by_model[0];
            tokens += answer.delta.tokens.len();
        }
        tokens as f64 / forwards as f64
    };
    assert!(mean(plain) <= 1.0);
    for (name, make, least) in
        [("recycling", recycling as Make, 1.2), ("level-tree", level_tree, 1.3), ("draft-model", draft_model, 1.1)]
    {
        let got = mean(make);
        println!("{name}: {got:.2} tokens a forward of the main model");
        assert!(got > least, "{name}: {got}");
    }
}

/// The sampled law of a rejection strategy against plain sampling's, over the whole engine.
#[test]
fn rejection_keeps_the_law() {
    let n = 6000;
    let first_two = |make: Make| {
        let mut b = bench(Config { max_running: 600, ..Config::default() });
        let hs: Vec<_> = (0..n)
            .map(|seed| {
                let s = Sampling {
                    temperature: 1.0,
                    top_k: 3,
                    seed,
                    max_tokens: Some(4),
                    ignore_eos: true,
                    ..Sampling::default()
                };
                b.submit(Request::new(vec![3, 8, 21], make(), s))
            })
            .collect();
        b.run();
        let mut counts = std::collections::HashMap::new();
        hs.into_iter().for_each(|h| *counts.entry(h.collect().delta.tokens[1..3].to_vec()).or_insert(0.0f64) += 1.0);
        counts
    };
    let (p, q) = (first_two(plain), first_two(draft_model));
    // Two samples of one law: chi2 = sum (a - b)^2 / (a + b), one degree of freedom a cell less one.
    let cells: std::collections::BTreeSet<_> = p.keys().chain(q.keys()).cloned().collect();
    let get = |m: &std::collections::HashMap<Vec<u32>, f64>, c: &Vec<u32>| m.get(c).copied().unwrap_or(0.0);
    let chi: f64 = cells.iter().map(|c| (get(&p, c) - get(&q, c)).powi(2) / (get(&p, c) + get(&q, c))).sum();
    let df = cells.len() as f64 - 1.0;
    println!("chi2 {chi:.1} for {df} degrees of freedom");
    assert!(df > 5.0 && chi < df + 4.0 * (2.0 * df).sqrt());
}
