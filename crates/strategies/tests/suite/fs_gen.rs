//! Sheet 33: its Contract on the table networks. The small model has the role `draft`, the tuned one `expert`.

use crate::common::law;
use crate::common::{config, options, prompts, request, sampling};
use omnidecode_engine::testing::{Bench, TableNetwork, networks};
use omnidecode_engine::{Answer, Guarantee, NamedNetwork, Readout, Request, Sampling, Strategy, Token, Usage};
use omnidecode_strategies::strategy;
use serde_json::json;

fn net(role: &str, own: u64) -> NamedNetwork {
    NamedNetwork::new(role, Box::new(TableNetwork::new(7, own)))
}
fn three(small: u64, expert: u64) -> Vec<NamedNetwork> {
    vec![net("main", 11), net("draft", small), net("expert", expert)]
}
fn asked(temperature: f32) -> Vec<(Vec<Token>, Sampling)> {
    prompts(60).into_iter().enumerate().map(|(i, p)| (p, sampling(i, temperature))).collect()
}
fn run(networks: Vec<NamedNetwork>, name: &str, params: serde_json::Value, temperature: f32) -> Vec<Answer> {
    let asked = asked(temperature);
    let requests = asked.iter().map(|(p, s)| request(name, &options(params.clone()), p, s));
    drive(networks, requests.collect())
}
fn drive(networks: Vec<NamedNetwork>, requests: Vec<Request>) -> Vec<Answer> {
    let mut bench = Bench::new(config(), networks).expect("starts");
    let handles: Vec<_> = requests.into_iter().map(|r| bench.submit(r)).collect();
    bench.run();
    assert_eq!(bench.leftovers(), (0, 0, 0));
    handles.into_iter().map(|h| h.collect()).collect()
}
fn same(a: &[Answer], b: &[Answer], what: &str) {
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a.end.is_ok(), "{what}: {:?}", a.end);
        assert_eq!(a.delta.tokens, b.delta.tokens, "{what}, prompt {i}");
    }
}
fn usage(answer: &Answer) -> &Usage {
    &answer.end.as_ref().expect("ended").usage
}

/// Contract 1, 2, 7.
#[test]
fn routers_at_their_ends() {
    for temperature in [0.0, 1.0] {
        let large = run(vec![net("main", 11)], "plain", json!({}), temperature);
        let small = run(vec![net("main", 13)], "plain", json!({}), temperature);
        let fused = |params: serde_json::Value| run(three(13, 19), "fs-gen", params, temperature);
        let none = fused(json!({"method": "oracle", "router": "none"}));
        same(&none, &small, "none is the small model");
        assert!(none.iter().all(|a| usage(a).forwards_by_model[0] == 0), "the large model is never asked");
        let all = fused(json!({"method": "oracle"}));
        same(&all, &large, "normal and oracle is the large model");
        same(
            &fused(json!({"router": "threshold", "threshold": 0.0, "method": "oracle"})),
            &small,
            "threshold 0 is never",
        );
        same(
            &fused(json!({"router": "threshold", "threshold": 1.1, "method": "oracle"})),
            &large,
            "threshold above 1 is always",
        );
        same(&fused(json!({"router": "none"})), &small, "contrastive, never asked");
        let expert = run(vec![net("main", 19)], "plain", json!({}), temperature);
        same(&fused(json!({"method": "proxy", "router": "none"})), &expert, "a proxy falls back on the expert");
    }
}

/// Contract 3: speculation is the large model, for every length, in fewer of its forwards.
#[test]
fn speculation_is_the_large_model() {
    for temperature in [0.0, 1.0] {
        let large = run(vec![net("main", 11)], "plain", json!({}), temperature);
        for drafts in [1, 2, 5, 8] {
            let params = json!({"method": "speculative", "drafts": drafts});
            let answers = run(networks(), "fs-gen", params, temperature);
            same(&answers, &large, "speculative");
            for a in &answers {
                assert!(usage(a).forwards_by_model[0] <= a.delta.tokens.len());
                assert!(usage(a).drafted <= drafts * usage(a).forwards_by_model[0]);
                assert_eq!(a.end.as_ref().expect("ended").guarantee, Guarantee::Exact);
            }
        }
    }
}

/// Contract 10.
#[test]
fn speculation_with_rejection_has_the_large_models_law() {
    let params = options(json!({"method": "speculative", "verifier": "rejection", "drafts": 3}));
    law::case("fs-gen speculative", true, || strategy("fs-gen", &params).expect("fits"));
}

/// Contract 4 and 5: twins agree everywhere.
#[test]
fn twins_never_disagree() {
    for temperature in [0.0, 1.0] {
        let large = run(vec![net("main", 11)], "plain", json!({}), temperature);
        for params in [
            json!({"method": "oracle"}),
            json!({"contrast": "interp", "alpha": 0.0}),
            json!({"contrast": "extrap", "beta": 0.7, "alpha": 0.0}),
        ] {
            let answers = run(three(11, 19), "fs-gen", params.clone(), temperature);
            same(&answers, &large, &params.to_string());
            for a in &answers {
                assert_eq!(usage(a).drafted, usage(a).accepted, "no disagreement: {params}");
                assert_eq!(usage(a).drafted, a.delta.tokens.len(), "always asked");
            }
        }
        // Proxy: the expert is the small model itself.
        same(
            &run(three(13, 13), "fs-gen", json!({"method": "proxy"}), temperature),
            &large,
            "proxy without a difference",
        );
        for params in [json!({"beta": 1.0, "alpha": 0.0}), json!({"contrast": "extrap", "beta": 0.0, "alpha": 0.0})] {
            same(&run(three(13, 19), "fs-gen", params.clone(), temperature), &large, &params.to_string());
        }
    }
    // The fusions do something where the models differ.
    let large = run(vec![net("main", 11)], "plain", json!({}), 0.0);
    for params in
        [json!({"beta": 0.1}), json!({"contrast": "extrap", "beta": 3.0}), json!({"method": "proxy", "strength": 2.0})]
    {
        let answers = run(three(13, 19), "fs-gen", params, 0.0);
        assert!(answers.iter().zip(&large).any(|(a, b)| a.delta.tokens != b.delta.tokens));
    }
}

/// Contract 8: a cache that lags is caught up in one forward, and nothing else changes.
#[test]
fn a_lagging_cache_changes_nothing() {
    const THRESHOLD: f32 = 0.2;
    for temperature in [0.0, 1.0] {
        let params = json!({"method": "oracle", "router": "threshold", "threshold": 0.2});
        let routed = run(three(13, 19), "fs-gen", params, temperature);
        let eager = |(prompt, sampling): (Vec<Token>, Sampling)| {
            let strategy = Strategy::new("eager", Guarantee::Approximate, |mut seq| async move {
                let mut small = seq.sibling(seq.require("draft")?);
                while !seq.finished() {
                    small.follow(&seq);
                    let said = small.next(Readout::CHOICE.stats()).await?;
                    let large = seq.next(Readout::CHOICE).await?;
                    let s = said.root().stats();
                    let asks = (s.max - s.lse).exp() < THRESHOLD;
                    seq.push(if asks { large.root().choice() } else { said.root().choice() })?;
                }
                Ok(())
            });
            Request::new(prompt, strategy, sampling)
        };
        let always = drive(three(13, 19), asked(temperature).into_iter().map(eager).collect());
        same(&routed, &always, "asked always, heeded sometimes");
        let (mut asked, mut total) = (0, 0);
        for (a, b) in routed.iter().zip(&always) {
            let (a_use, b_use) = (usage(a), usage(b));
            // Contract 9: disagreements <= questions <= tokens; each question is one forward of the large model.
            assert!(a_use.accepted <= a_use.drafted && a_use.drafted <= a.delta.tokens.len());
            assert_eq!(a_use.forwards_by_model[0], a_use.drafted);
            assert!(a_use.rows_by_model[0] <= b_use.rows_by_model[0], "the same places, each once");
            asked += a_use.drafted;
            total += a.delta.tokens.len();
        }
        assert!(0 < asked && asked < total, "{asked} of {total} tokens: the router must choose");
    }
}

/// Contract 9: on the same prefix a router disagrees no more often than asking always.
#[test]
fn a_router_finds_some_of_the_disagreements() {
    let all = run(three(13, 19), "fs-gen", json!({"method": "oracle"}), 0.0);
    let routed = run(three(13, 19), "fs-gen", json!({"method": "oracle", "router": "delta"}), 0.0);
    for (a, r) in all.iter().zip(&routed) {
        // Until the first disagreement that the router misses, both write the same.
        let same = a.delta.tokens.iter().zip(&r.delta.tokens).take_while(|(a, r)| a == r).count();
        if same == a.delta.tokens.len() && same == r.delta.tokens.len() {
            let missed = |u: &Usage| u.drafted - u.accepted;
            assert!(missed(usage(r)) <= missed(usage(a)));
        }
    }
}

/// Contract 7 and 9 of the learned router: it asks where its machine says so, every token has a note that says who decided,
/// and the notes agree with the counters.
#[test]
fn the_learned_router_and_the_trace() {
    // Asks where the likeliest token has less than about 0.2: exp(-8 (x - 0.3)^2) against exp(-8 (x - 0.1)^2).
    let svm = json!({"gamma": 8.0, "bias": 0.0, "vectors": [[0.3], [0.1]], "weights": [-1.0, 1.0]}).to_string();
    let params = json!({"method": "oracle", "router": "svm", "svm": svm, "trace": 3});
    for temperature in [0.0, 1.0] {
        let routed = run(three(13, 19), "fs-gen", params.clone(), temperature);
        let by_hand = json!({"method": "oracle", "router": "threshold", "threshold": 0.2, "trace": 3});
        let by_hand = run(three(13, 19), "fs-gen", by_hand, temperature);
        same(&routed, &by_hand, "the machine is a threshold of 0.2");
        let mut labels = [0; 3];
        for a in &routed {
            let notes = &a.end.as_ref().expect("ended").notes;
            assert_eq!(notes.len(), a.delta.tokens.len(), "a note a token");
            let count = |label: &str| notes.iter().filter(|n| n.label == label).count();
            let (alone, agreed, overruled) = (count("alone"), count("agreed"), count("overruled"));
            assert_eq!(alone + agreed + overruled, notes.len());
            assert_eq!((usage(a).drafted, usage(a).accepted), (agreed + overruled, agreed));
            for note in notes {
                let law: Vec<f32> = note.tokens.iter().map(|t| t.1).collect();
                assert!(law.len() == 3 && law.windows(2).all(|w| w[0] >= w[1]) && law.iter().sum::<f32>() < 1.001);
                assert_eq!(note.label == "alone", law[0] >= 0.2, "{note:?}");
            }
            labels = [labels[0] + alone, labels[1] + agreed, labels[2] + overruled];
        }
        assert!(labels.iter().all(|&n| n > 0), "{labels:?}");
        let silent = json!({"method": "oracle", "router": "threshold", "threshold": 0.2});
        same(&run(three(13, 19), "fs-gen", silent, temperature), &routed, "a trace changes nothing");
    }
}

#[test]
fn an_expert_that_is_missing_is_said() {
    let answers = run(networks(), "fs-gen", json!({"method": "proxy"}), 0.0);
    assert!(answers[0].end.as_ref().expect_err("refused").to_string().contains("expert"));
    for wrong in [
        json!({"method": "oracle", "beta": 0.1}),
        json!({"threshold": 0.2}),
        json!({"method": "speculative", "router": "delta"}),
        json!({"method": "vote"}),
        json!({"router": "svm"}),
        json!({"router": "svm", "svm": "{}"}),
        json!({"svm": "{\"gamma\": 1, \"bias\": 0, \"vectors\": [[1]], \"weights\": [1]}"}),
        json!({"method": "speculative", "trace": 3}),
    ] {
        assert!(strategy("fs-gen", &options(wrong.clone())).is_err(), "{wrong}");
    }
}
