//! Sheet 04: the contract of the A* search, on the table networks with letters for tokens.

use crate::common::judged::{Letters, each, fair, judged, one, plain, usage, warm, whim};
use crate::common::{options, tokens};
use omnidecode_engine::{Detokenizer, Guarantee, Judge, Request, Sampling, Strategy, Token, Usage};
use omnidecode_strategies::registry::ParamSet;
use omnidecode_strategies::search::a_star;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::mpsc::channel;

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
