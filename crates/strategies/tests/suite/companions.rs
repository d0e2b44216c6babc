//! Laws of companions: whatever rides along, `Exact` means as plain decoding with the same companions; neutral values
//! are absent; what does not fit is refused.

use crate::common::bent::attach;
use crate::common::value;
use crate::common::{config, options, params, prompts, request, sampling, tokens};
use omnidecode_engine::testing::TableNetwork;
use omnidecode_engine::{Answer, Config, Error, Guarantee, NamedNetwork, Request};
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
    let grammar = || ("grammar", options(json!({"regex": "[a-f]{3}[0-9a-f]*"})));
    let caps = |params| ("rectification", options(params));
    let lazy = || ("lazyllm", options(json!({"after": [0.5], "drop": [40.0], "decode": false})));
    let all = vec![
        vec![mark()],
        vec![blocks],
        vec![sink()],
        vec![clamp()],
        vec![grammar()],
        vec![caps(json!({}))],
        vec![caps(json!({"cap": "first", "epsilon": 0.2, "method": "passes"}))],
        vec![lazy()],
        vec![clamp(), mark(), sink(), grammar(), caps(json!({})), lazy()],
    ];
    for entry in companions::ALL {
        assert!(all.iter().flatten().any(|c| c.0 == entry.card.name), "{}: give it a case", entry.card.name);
    }
    all
}

/// Whether an entry runs on the networks here.
fn causal(entry: &Entry) -> bool {
    entry.card.needs.iter().all(|need| ["draft", "adapter", "expert"].contains(need))
}
fn exact() -> impl Iterator<Item = &'static Entry> {
    ALL.iter().filter(|e| causal(e) && e.card.guarantee == Guarantee::Exact)
}
/// A main model that may be asked for a canvas too, and what strategies and companions need beside it.
fn networks() -> Vec<NamedNetwork> {
    let net = |role: &str, own| NamedNetwork::new(role, Box::new(TableNetwork::new(7, own)));
    let mut all = value::valued(-1.3);
    let main = TableNetwork::new(7, 11).with_card(|c| (c.bytes, c.bidirectional) = (2000, true));
    all[0] = NamedNetwork::new("main", Box::new(main));
    all.extend([net("expert", 19), net("adapter", 23)]);
    all
}
fn together(config: Config, requests: Vec<Request>) -> Vec<Answer> {
    crate::common::together_on(networks(), config, requests)
}
#[test]
fn exact_strategies_are_plain_with_the_same_companions() {
    let prompts = prompts(40);
    for temperature in [0.0, 1.0] {
        let ask = |name: &str, with: &[(&str, Options)], i: usize| -> Request {
            let mut request = request(name, &params(name, 8), &prompts[i], &sampling(i, temperature));
            with.iter().for_each(|(c, params)| attach(c, params, &prompts[i], &mut request).expect("fits"));
            request
        };
        let rides = |name: &str, case: &[(&str, Options)]| {
            let mut request = request(name, &params(name, 8), &[1, 2], &sampling(0, temperature));
            case.iter().all(|(c, params)| attach(c, params, &[1, 2], &mut request).is_ok())
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
                if !rides(entry.card.name, &case) {
                    continue;
                }
                let answers = together(config(), each().map(|i| ask(entry.card.name, &case, i)).collect());
                for (i, (answer, plain)) in answers.iter().zip(&plain).enumerate() {
                    let name = entry.card.name;
                    assert_eq!(tokens(answer), tokens(plain), "{name} with {names:?} at {temperature}, prompt {i}");
                    let end = answer.end.as_ref().expect("ended");
                    assert_eq!(end.guarantee, Guarantee::Exact);
                    let plain = plain.end.as_ref().expect("ended");
                    assert_eq!((end.reason, &end.notes), (plain.reason, &plain.notes), "{name} with {names:?}");
                }
                mixed.extend(each().step_by(3).map(|i| ask(name_of(entry), &case, i)));
                expected.extend(each().step_by(3).map(|i| (name_of(entry), names.clone(), tokens(&plain[i]).to_vec())));
            }
        }
        // All strategies with all companions in one engine, with too few pages for all. (A sequence with tokens left out
        // cannot be set aside: such requests take turns.)
        let few = Config { pages: 24, max_running: 6, tail: 256, chunk: 16, ..config() };
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
        ("lazyllm", json!({"drop": [0.0]})),
        ("lazyllm", json!({"after": []})),
        ("lazyllm", json!({"after": [0.1]})),
    ];
    let prompts = prompts(30);
    for (name, params) in neutral {
        for temperature in [0.0, 1.0] {
            let ask = |i: usize, with: bool| {
                let mut request = request("plain", &Options::new(), &prompts[i], &sampling(i, temperature));
                if with {
                    attach(name, &options(params.clone()), &prompts[i], &mut request).expect("fits");
                    assert!(
                        request.processors.is_empty() && request.edits.is_none() && request.carriers.is_empty(),
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
        ("rectification", json!({"passes": 3})),
        ("rectification", json!({"epsilon": 1.5})),
        ("lazyllm", json!({"after": [0.5, 0.2]})),
        ("lazyllm", json!({"drop": [10.0, 20.0]})),
        ("lazyllm", json!({"drop": [101.0]})),
        ("lazyllm", json!({"revive": false, "decode": false})),
    ];
    let mut asked = request("plain", &Options::new(), &[1, 2], &sampling(0, 0.0));
    for (name, params) in refused {
        let error = attach(name, &options(params.clone()), &[1, 2], &mut asked).expect_err("does not fit");
        assert!(matches!(error, CompanionError::Params(_) | CompanionError::Unfit { .. }), "{name} {params}: {error}");
        assert!(asked.processors.is_empty() && asked.edits.is_none() && asked.carriers.is_empty());
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

/// What takes part in forwards rides along every strategy or is refused when it is attached: never later, never in part.
#[test]
fn carriers_ride_along_or_are_refused_at_once() {
    let prompts = prompts(12);
    let lazy = |decode: bool| options(json!({"after": [0.5], "drop": [40.0], "decode": decode}));
    let carriers = [("rectification", options(json!({}))), ("lazyllm", lazy(true)), ("lazyllm", lazy(false))];
    let mut carried = Vec::new();
    for entry in ALL.iter().filter(|e| causal(e) || crate::common::denoises(e)) {
        let name = entry.card.name;
        for (companion, with) in &carriers {
            let mut asked = Vec::new();
            for (i, prompt) in prompts.iter().enumerate() {
                let mut request = request(name, &params(name, 8), prompt, &sampling(i, 1.0));
                match attach(companion, with, prompt, &mut request) {
                    Ok(()) => asked.push(request),
                    Err(CompanionError::Unfit { reason, .. }) => {
                        assert!(reason.contains(name) && reason.contains("take "), "{reason}")
                    }
                    Err(e) => panic!("{name}: {e}"),
                }
            }
            assert!(asked.is_empty() || asked.len() == prompts.len());
            carried.extend((!asked.is_empty()).then_some((name, *companion)));
            for answer in together(config(), asked) {
                let end = answer.end.unwrap_or_else(|e| panic!("{name} with {companion} {with:?}: {e}"));
                assert_eq!(end.guarantee, entry.card.guarantee, "{name} with {companion}");
            }
        }
    }
    for name in ["plain", "prompt-lookup", "token-recycling", "rsd-s", "best-of-n", "beam", "a-star", "first"] {
        for companion in ["rectification", "lazyllm"] {
            assert!(carried.contains(&(name, companion)), "{name} carries no {companion}: {carried:?}");
        }
    }
    assert!(carried.contains(&("kangaroo", "rectification")) && !carried.contains(&("kangaroo", "lazyllm")));
}

/// A strategy of which nothing is known beforehand is told by its plans.
#[test]
fn unknown_plans_fail_when_they_come() {
    use omnidecode_engine::{Mask, Plan, Readout, Row, Strategy};
    let ask =
        |companion: &str, with: serde_json::Value, plan: fn() -> Plan| {
            let own = Strategy::new("own", Guarantee::Approximate, move |mut seq| async move {
                seq.forward(plan()).await.map(drop)
            });
            let mut request = Request::new(vec![1, 2, 3], own, sampling(0, 0.0));
            attach(companion, &options(with), &[1, 2, 3], &mut request).expect("nothing is known of its plans");
            together(config(), vec![request]).remove(0).end
        };
    let window = || Plan::rows(vec![Row::Token(4); 2], Mask::Full, Readout::CHOICE);
    let chain = || Plan::chain(&[4, 5], Readout::CHOICE);
    let hidden = || Plan::next(Readout::CHOICE.hidden(0));
    let lazy = || json!({"after": [0.5], "drop": [40.0]});
    let refused = |end: Result<_, Error>, with: &str| {
        assert!(matches!(&end, Err(Error::Companion { reason, .. }) if reason.contains(with)), "{end:?}");
    };
    refused(ask("rectification", json!({}), window), "follow");
    refused(ask("lazyllm", lazy(), chain), "drafts");
    refused(ask("lazyllm", lazy(), hidden), "layer 1");
    assert!(ask("rectification", json!({}), chain).is_ok());
    assert!(ask("lazyllm", json!({"after": [0.5], "drop": [40.0], "decode": false}), chain).is_ok());
}
