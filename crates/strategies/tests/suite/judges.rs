//! Judges of searches: a second model, and scores that err.

use crate::common::judged::{each, judged, one, usage, warm};
use crate::common::{config, options, request};
use omnidecode_core::noise::mix;
use omnidecode_engine::testing::{Bench, TableNetwork, networks};
use omnidecode_engine::{Config, Guarantee, NamedNetwork, Readout, Request, Sampling, Strategy, Token};
use serde_json::json;
use std::sync::mpsc::channel;

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
