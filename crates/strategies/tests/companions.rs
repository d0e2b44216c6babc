//! Laws of companions: whatever rides along, `Exact` means as plain decoding with the same companions; neutral values
//! are absent; what does not fit is refused.
#[path = "common/bent.rs"]
mod bent;
mod common;

use bent::attach;
use common::{config, options, prompts, request, sampling, together, tokens};

use omnidecode_engine::{Config, Guarantee, Request};
use omnidecode_strategies::companions::{self, CompanionError};
use omnidecode_strategies::params::Options;
use omnidecode_strategies::{ALL, Entry};
use serde_json::json;

/// Every registered companion at work, alone and together.
fn cases() -> Vec<Vec<(&'static str, Options)>> {
    let mark = || ("majormark", options(json!({"message": "10110100", "delta": 3.0})));
    let blocks = ("majormark", options(json!({"message": "10110100", "delta": 3.0, "blocks": 2})));
    let sink = || ("zero-tuning", options(json!({"gamma": 2.0})));
    let clamp = || ("clamp-neurons", options(json!({"neurons": [0, 1, 1, 7], "values": [0.5]})));
    let grammar = ("grammar", options(json!({"regex": "[a-f]{3}[0-9a-f]*"})));
    let all = vec![
        vec![mark()],
        vec![blocks],
        vec![sink()],
        vec![clamp()],
        vec![grammar.clone()],
        vec![clamp(), mark(), sink(), grammar],
    ];
    for entry in companions::ALL {
        assert!(all.iter().flatten().any(|c| c.0 == entry.card.name), "{}: give it a case", entry.card.name);
    }
    all
}

/// Whether an entry runs on a causal main model and a draft.
fn causal(entry: &Entry) -> bool {
    entry.card.needs.iter().all(|need| *need == "draft")
}
fn exact() -> impl Iterator<Item = &'static Entry> {
    ALL.iter().filter(|e| causal(e) && e.card.guarantee == Guarantee::Exact)
}
#[test]
fn exact_strategies_are_plain_with_the_same_companions() {
    let prompts = prompts(40);
    for temperature in [0.0, 1.0] {
        let ask = |name: &str, with: &[(&str, Options)], i: usize| -> Request {
            let mut request = request(name, &Options::new(), &prompts[i], &sampling(i, temperature));
            with.iter().for_each(|(c, params)| attach(c, params, &prompts[i], &mut request).expect("fits"));
            request
        };
        let each = || 0..prompts.len();
        let untouched = together(config(), each().map(|i| ask("plain", &[], i)).collect());
        let (mut mixed, mut expected) = (Vec::new(), Vec::new());
        for case in cases() {
            let names: Vec<&str> = case.iter().map(|c| c.0).collect();
            let plain = together(config(), each().map(|i| ask("plain", &case, i)).collect());
            let differ = plain.iter().zip(&untouched).filter(|(a, b)| tokens(a) != tokens(b)).count();
            assert!(differ > prompts.len() / 4, "{names:?} changes {differ} of {} answers", prompts.len());
            for entry in exact() {
                let answers = together(config(), each().map(|i| ask(entry.card.name, &case, i)).collect());
                for (i, (answer, plain)) in answers.iter().zip(&plain).enumerate() {
                    let name = entry.card.name;
                    assert_eq!(tokens(answer), tokens(plain), "{name} with {names:?} at {temperature}, prompt {i}");
                    let end = answer.end.as_ref().expect("ended");
                    assert_eq!(end.guarantee, Guarantee::Exact);
                    assert_eq!(end.reason, plain.end.as_ref().expect("ended").reason);
                }
                mixed.extend(each().step_by(3).map(|i| ask(name_of(entry), &case, i)));
                expected.extend(each().step_by(3).map(|i| (name_of(entry), names.clone(), tokens(&plain[i]).to_vec())));
            }
        }
        // All strategies with all companions in one engine, with too few pages for all.
        let few = Config { pages: 24, tail: 256, chunk: 16, ..config() };
        for (answer, (name, with, plain)) in together(few, mixed).iter().zip(&expected) {
            assert_eq!(tokens(answer), plain, "{name} with {with:?} in a mixed batch at {temperature}");
        }
    }
}
fn name_of(entry: &Entry) -> &'static str {
    entry.card.name
}

/// Law 9: a companion at its neutral value is absent.
#[test]
fn neutral_values_are_absent() {
    let neutral = [
        ("majormark", json!({"message": "10", "delta": 0.0})),
        ("zero-tuning", json!({"gamma": 1.0})),
        ("zero-tuning", json!({})),
        ("clamp-neurons", json!({})),
    ];
    let prompts = prompts(30);
    for (name, params) in neutral {
        for temperature in [0.0, 1.0] {
            let ask = |i: usize, with: bool| {
                let mut request = request("plain", &Options::new(), &prompts[i], &sampling(i, temperature));
                if with {
                    attach(name, &options(params.clone()), &prompts[i], &mut request).expect("fits");
                    assert!(
                        request.processors.is_empty() && request.edits.is_none(),
                        "{name} {params} brings something"
                    );
                }
                request
            };
            let without = together(config(), (0..30).map(|i| ask(i, false)).collect());
            let with = together(config(), (0..30).map(|i| ask(i, true)).collect());
            for (a, b) in with.iter().zip(&without) {
                assert_eq!(a.delta, b.delta, "{name} {params}");
                assert_eq!(a.end, b.end, "{name} {params}: the same forwards, too");
            }
        }
    }
}

/// Law 7: what a companion does not know or cannot do is refused, and the request is as before.
#[test]
fn parameters_are_typed_and_described() {
    let refused = [
        ("majormark", json!({})),
        ("majormark", json!({"message": "12"})),
        ("majormark", json!({"message": "1111"})),
        ("majormark", json!({"message": "1011", "blocks": 2})),
        ("majormark", json!({"message": "1011", "delta": -1.0})),
        ("grammar", json!({})),
        ("zero-tuning", json!({"gamma": 2.0, "heads": [1]})),
        ("clamp-neurons", json!({"neurons": [0, 8], "values": [1.0]})),
    ];
    let mut asked = request("plain", &Options::new(), &[1, 2], &sampling(0, 0.0));
    for (name, params) in refused {
        let error = attach(name, &options(params.clone()), &[1, 2], &mut asked).expect_err("does not fit");
        assert!(matches!(error, CompanionError::Params(_) | CompanionError::Unfit { .. }), "{name} {params}: {error}");
        assert!(asked.processors.is_empty() && asked.edits.is_none());
    }
    let unknown = attach("no-such-companion", &Options::new(), &[1], &mut asked).expect_err("unknown");
    assert!(matches!(&unknown, CompanionError::Unknown { known, .. } if known.contains("majormark")), "{unknown}");
    for entry in companions::ALL {
        let name = entry.card.name;
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
        assert!(["law", "model"].contains(&entry.card.bends) && !entry.card.summary.is_empty());
        let no_such = options(json!({"no_such_parameter": 1}));
        assert!(matches!(attach(name, &no_such, &[1], &mut asked), Err(CompanionError::Params(_))), "{name}");
        for param in (entry.params)() {
            assert!(param.doc.ends_with('.'), "{name}.{}: a sentence", param.name);
            let wrong = options(json!({ param.name: {"an": "object"} }));
            assert!(matches!(attach(name, &wrong, &[1], &mut asked), Err(CompanionError::Params(_))), "{name}");
        }
    }
}
