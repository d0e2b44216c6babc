//! Sheets 00-diffusion, 03, 19 and 20: every loop, cache and unmasker is the loop written out over dense forwards.

use crate::common::canvas::{
    Dense, Ran, Spot, TABLE_MASK, answer, best, blocked, naive, plainly, pretend, prompts, run, share, table,
};
use omnidecode_engine::Token;
use omnidecode_models::Network;
use serde_json::{Value, json};

type Rule = Box<dyn FnMut(&[Spot], usize, usize) -> Vec<(usize, Token)>>;

/// The surest, as many as the pace says; `per`: tokens a forward.
fn pace(key: fn(&Spot) -> f64, per: usize) -> Rule {
    Box::new(move |spots, j, masks| {
        let n = share(masks, masks.div_ceil(per), j);
        best(spots, key).into_iter().take(n).map(|i| (i, spots[i].token())).collect()
    })
}
fn threshold(tau: f64) -> Rule {
    Box::new(move |spots, _, _| {
        let order = best(spots, Spot::prob);
        let kept = order.iter().enumerate().filter(|&(rank, &i)| rank == 0 || spots[i].prob() >= tau);
        kept.map(|(_, &i)| (i, spots[i].token())).collect()
    })
}
fn factor(f: f64) -> Rule {
    Box::new(move |spots, _, _| {
        let order = best(spots, Spot::prob);
        let mut n = 1;
        for k in 1..=order.len() {
            if (k as f64 + 1.0) * (1.0 - spots[order[k - 1]].prob()) < f {
                n = k;
            }
        }
        order[..n].iter().map(|&i| (i, spots[i].token())).collect()
    })
}
fn entropy(bound: f64, sdar: bool) -> Rule {
    Box::new(move |spots, _, _| {
        let order = best(spots, |s| -s.entropy());
        let mut n = 1;
        for k in 1..=order.len() {
            let all: f64 = order[..k].iter().map(|&i| spots[i].entropy()).sum();
            let largest = order[..k].iter().map(|&i| spots[i].entropy()).fold(0.0, f64::max);
            if all - if sdar { 0.0 } else { largest } <= bound {
                n = k;
            }
        }
        order[..n].iter().map(|&i| (i, spots[i].token())).collect()
    })
}
fn leap(kappa: f64, tau: f64, radius: usize) -> Rule {
    Box::new(move |spots, _, _| {
        let anchors: Vec<usize> = spots.iter().filter(|s| s.prob() >= kappa).map(|s| s.place).collect();
        let near = |p: usize| anchors.iter().any(|a| a.abs_diff(p) <= radius);
        let order = best(spots, Spot::prob);
        let passes = |s: &Spot| s.prob() >= if near(s.place) { tau } else { kappa };
        let kept = order.iter().enumerate().filter(|&(rank, &i)| rank == 0 || passes(&spots[i]));
        kept.map(|(_, &i)| (i, spots[i].token())).collect()
    })
}
/// Credits in a dense table, as the paper has them.
fn credit(tau: f64, rates: Option<[f64; 3]>) -> Rule {
    let mut credits: Vec<Vec<f64>> = Vec::new();
    Box::new(move |spots, j, masks| {
        let share = 1.0 - spots.len() as f64 / masks as f64;
        let [fusion, decay, exponent] = rates.unwrap_or([share, share, 1.0]);
        if j == 0 {
            credits = vec![vec![0.0; spots[0].logits.len()]; 4096];
        }
        credits.iter_mut().flatten().for_each(|c| *c *= decay);
        let fused: Vec<Spot> = spots
            .iter()
            .map(|s| {
                credits[s.place][s.token() as usize] += s.prob().powf(exponent);
                let bent = |(l, c): (&f32, &f64)| (f64::from(*l) + fusion * c.ln_1p()) as f32;
                Spot::new(s.place, s.logits.iter().zip(&credits[s.place]).map(bent).collect())
            })
            .collect();
        let order = best(&fused, Spot::prob);
        let kept = order.iter().enumerate().filter(|&(rank, &i)| rank == 0 || fused[i].prob() >= tau);
        kept.map(|(_, &i)| (i, fused[i].token())).collect()
    })
}

/// Every loop with the parameters that ask for it.
fn loops() -> Vec<(Value, Rule)> {
    vec![
        (json!({}), pace(Spot::prob, 1)),
        (json!({"order": "margin"}), pace(|s| s.two().0 - s.two().1, 1)),
        (json!({"order": "entropy"}), pace(|s| -s.entropy(), 1)),
        (json!({"order": "sequential"}), pace(|s| -(s.place as f64), 1)),
        (json!({"unmasker": "threshold", "threshold": 0.6}), threshold(0.6)),
        (json!({"unmasker": "factor", "factor": 1.5}), factor(1.5)),
        (json!({"unmasker": "localleap", "threshold": 0.8, "relaxed": 0.4, "radius": 2}), leap(0.8, 0.4, 2)),
        (json!({"unmasker": "credit", "threshold": 0.7}), credit(0.7, Some([0.7, 0.8, 0.2]))),
        (json!({"unmasker": "credit", "threshold": 0.6, "credit_adaptive": true}), credit(0.6, None)),
    ]
}

/// 00-diffusion §3, §4: tokens, the forward that decided each, and NFE, of every loop with every cache.
#[test]
fn llada_is_the_loop_written_out() {
    for shift in [0, 1] {
        let mut dense = Dense::new(Box::new(table(shift)));
        for cache in ["none", "prefix", "dual", "delayed"] {
            for (i, prompt) in prompts(6).iter().enumerate() {
                let more = (json!({"unmasker": "entropy", "entropy_bound": 1.5}), entropy(1.5, false));
                for (mut params, rule) in loops().into_iter().chain([more]) {
                    params["block"] = json!(8);
                    params["cache"] = json!(cache);
                    let expected = naive(&mut dense, prompt, 20, 8, cache, rule);
                    let seen = run(table(shift), "llada", params.clone(), prompt, 20);
                    assert_eq!(seen, expected, "{params}, shift {shift}, prompt {i}");
                }
            }
        }
    }
}

/// The same on a real decoder: windows, copies and pages give the bits of a dense forward.
#[test]
fn llada_on_a_decoder() {
    for shift in [0, 1] {
        let load = || pretend("tests/golden/llama", shift);
        let vocab = load().card().vocab as Token;
        let mut dense = Dense::new(Box::new(load()));
        let prompt: Vec<Token> = (0..11).map(|i| (i * 37 + 5) % (vocab - 1)).collect();
        for cache in ["none", "prefix", "dual", "delayed"] {
            let expected = naive(&mut dense, &prompt, 24, 8, cache, pace(Spot::prob, 2));
            let params = json!({"block": 8, "steps": 12, "cache": cache});
            let seen = run(load(), "llada", params.clone(), &prompt, 24);
            assert_eq!(seen, expected, "{cache}, shift {shift}");
            if cache != "delayed" {
                let drafts = run(load(), "freedave", params, &prompt, 24);
                assert_eq!(drafts.tokens, expected.tokens, "freedave, {cache}, shift {shift}");
                assert!(drafts.forwards <= expected.forwards);
            }
        }
    }
}

/// Sheet 19: the check comes before the commit, over the answer, with the threshold of its third; then one shot.
#[test]
fn prophet_is_the_loop_written_out() {
    let mut left_early = 0;
    for prompt in prompts(8) {
        for (answer, gaps) in [(Some(18), [0.6, 0.4, 0.25]), (None, [0.5, 0.4, 0.3]), (Some(3), [1.0, 0.8, 0.1])] {
            let (start, length) = (prompt.len(), 24);
            let mut dense = Dense::new(Box::new(table(0)));
            let mut canvas = prompt.clone();
            canvas.resize(start + length, TABLE_MASK);
            let (mut step, mut done) = (0, false);
            for s in (start..start + length).step_by(8) {
                while !done && (s..s + 8).any(|p| canvas[p] == TABLE_MASK) {
                    step += 1;
                    let all: Vec<usize> = (0..canvas.len()).collect();
                    let rows = dense.run(&canvas, &all, &all);
                    let spots: Vec<Spot> = all.iter().zip(rows).map(|(&p, l)| Spot::new(p, l)).collect();
                    let watched: Vec<f64> = spots[start..]
                        .iter()
                        .filter(|s| match answer {
                            Some(at) => (start + at..start + at + 5).contains(&s.place),
                            None => canvas[s.place] == TABLE_MASK,
                        })
                        .map(|s| {
                            let mut l = s.logits.clone();
                            l.sort_by(|a, b| b.total_cmp(a));
                            f64::from(l[0]) - f64::from(l[1])
                        })
                        .collect();
                    let progress = f64::from(step) / 24.0;
                    let bound = gaps[if progress < 0.33 {
                        0
                    } else if progress < 0.67 {
                        1
                    } else {
                        2
                    }];
                    if watched.iter().sum::<f64>() / watched.len() as f64 >= bound {
                        for s in spots.iter().filter(|s| canvas[s.place] == TABLE_MASK).cloned().collect::<Vec<_>>() {
                            canvas[s.place] = s.token();
                        }
                        done = true;
                    } else {
                        let open: Vec<Spot> = spots
                            .into_iter()
                            .filter(|x| (s..s + 8).contains(&x.place) && canvas[x.place] == TABLE_MASK)
                            .collect();
                        let i = best(&open, Spot::prob)[0];
                        canvas[open[i].place] = open[i].token();
                    }
                }
            }
            let params = json!({"block": 8, "unmasker": "prophet", "exit_gaps": gaps, "answer_at": answer});
            let seen = run(table(0), "llada", params.clone(), &prompt, length);
            assert_eq!((seen.forwards, &seen.tokens[..]), (step as usize, &canvas[start..]), "{params}");
            left_early += usize::from(done);
        }
    }
    assert!(left_early > 5, "the test says nothing if nothing is ever clear: {left_early}");
}

/// 00-diffusion §3b: its algorithms, written out, greedy.
#[test]
fn dream_is_the_loop_written_out() {
    let keys: [(&str, fn(&Spot) -> f64); 3] =
        [("maskgit-plus", Spot::prob), ("topk-margin", |s| s.two().0 - s.two().1), ("entropy", |s| -s.entropy())];
    for shift in [0, 1] {
        let mut dense = Dense::new(Box::new(table(shift)));
        for prompt in prompts(5) {
            for (order, key) in keys {
                for steps in [4usize, 16, 23] {
                    let time = |j: usize| 1.0 - 0.999 * j as f64 / steps as f64;
                    let rule = |spots: &[Spot], j: usize, _: usize| {
                        let n = (spots.len() as f64 * (1.0 - time(j + 1) / time(j))) as usize;
                        let n = if j + 1 == steps { spots.len() } else { n };
                        best(spots, key).into_iter().take(n).map(|i| (i, spots[i].token())).collect()
                    };
                    let expected = naive(&mut dense, &prompt, 16, 16, "none", rule);
                    let seen = run(table(shift), "dream", json!({"order": order, "steps": steps}), &prompt, 16);
                    assert_eq!(seen, expected, "{order}, {steps} steps, shift {shift}");
                }
            }
        }
    }
    // Coins: all places are decided in the end, most of them not in the last forward.
    let coins = run(table(1), "dream", json!({"order": "origin", "steps": 10}), &[3, 1], 40);
    assert_eq!((coins.forwards, coins.tokens.len()), (10, 40));
    assert!(coins.when.iter().filter(|w| **w < 10).count() > 20);
    let drawn = run(table(1), "dream", json!({"alg_temp": 0.5, "steps": 10}), &[3, 1], 40);
    assert_ne!(drawn.when, run(table(1), "dream", json!({"steps": 10}), &[3, 1], 40).when);
}

/// Block-causal: the exact cache is the masked full forward; one more forward stores each finished block but the last.
#[test]
fn sdar_is_the_loop_written_out() {
    for size in [4, 8] {
        let mut dense = Dense::new(Box::new(blocked(size)));
        for prompt in prompts(6) {
            let rules: Vec<(Value, Rule)> = vec![
                (json!({}), pace(Spot::prob, 1)),
                (json!({"order": "sequential"}), pace(|s| -(s.place as f64), 1)),
                (json!({"unmasker": "threshold", "threshold": 0.5}), threshold(0.5)),
                (json!({"unmasker": "entropy", "entropy_bound": 1.2}), entropy(1.2, true)),
            ];
            for (params, rule) in rules {
                // The loop is over absolute blocks: the first holds the end of the prompt.
                let lead = prompt.len() % size;
                let mut masked_lead = rule;
                let (mut forwards, mut when, mut tokens) = (0, Vec::new(), Vec::new());
                let mut so_far = prompt.clone();
                let mut first = true;
                while tokens.len() < 21 {
                    let length = (if first { size - lead } else { size }).min(21 - tokens.len());
                    first = false;
                    let block = naive(&mut dense, &so_far, length, length, "none", &mut masked_lead);
                    when.extend(block.when.iter().map(|w| w + forwards));
                    forwards += block.forwards as u32 + 1;
                    so_far.extend(&block.tokens);
                    tokens.extend(block.tokens);
                }
                let seen = run(blocked(size), "sdar", params.clone(), &prompt, 21);
                let expected = Ran { tokens, when, forwards: forwards as usize - 1 };
                // The prompt's whole blocks are computed with the first forward of the first block.
                assert_eq!(seen, expected, "{params}, blocks of {size}");
            }
        }
    }
}

/// Guidance: the two canvases, combined by hand; off, it is absent.
#[test]
fn guidance_is_the_loop_written_out() {
    for prompt in prompts(5) {
        let (mut with, mut without) = (Dense::new(Box::new(table(0))), Dense::new(Box::new(table(0))));
        let start = prompt.len();
        let mut canvas = prompt.clone();
        canvas.resize(start + 16, TABLE_MASK);
        let all: Vec<usize> = (0..canvas.len()).collect();
        for s in [start, start + 8] {
            for _ in 0..8 {
                let open: Vec<usize> = (s..s + 8).filter(|&p| canvas[p] == TABLE_MASK).collect();
                let mut free = canvas.clone();
                free[..start].fill(TABLE_MASK);
                let rows = with.run(&canvas, &all, &open).into_iter().zip(without.run(&free, &all, &open));
                let bent = rows.map(|(c, u)| {
                    c.iter().zip(u).map(|(c, u)| if c.is_finite() { u + 2.5 * (c - u) } else { *c }).collect()
                });
                let spots: Vec<Spot> = open.iter().zip(bent).map(|(&p, l): (_, Vec<f32>)| Spot::new(p, l)).collect();
                let i = best(&spots, Spot::prob)[0];
                canvas[spots[i].place] = spots[i].token();
            }
        }
        let seen = answer(table(0), "llada", json!({"block": 8, "guidance": 1.5}), &prompt, plainly(16));
        assert_eq!(seen.delta.tokens, canvas[start..]);
        let usage = seen.end.expect("ended").usage;
        assert_eq!((usage.nfe, usage.forwards), (32, 16), "two evaluations a step, in one forward");
    }
}
