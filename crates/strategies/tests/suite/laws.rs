//! The laws: tests that run for every registered strategy, by what it claims (DESIGN, laws 1, 3, 5, 6, 7, 9).

use crate::common::{
    config, denoises, networks_of, options, prompts, request, runs_here, sampling, together, together_on, tokens,
};
use omnidecode_engine::testing::Bench;
use omnidecode_engine::{Config, Cost, Guarantee, Reason, Request};
use omnidecode_strategies::params::Options;
use omnidecode_strategies::{ALL, Entry, RegistryError, strategy};
use serde_json::json;

fn mine() -> impl Iterator<Item = &'static Entry> {
    ALL.iter().filter(|e| runs_here(e))
}
/// What goes on from a text; loops over a canvas have another baseline, and their own tests.
fn causal() -> impl Iterator<Item = &'static Entry> {
    mine().filter(|e| !denoises(e))
}
fn exact() -> impl Iterator<Item = &'static Entry> {
    causal().filter(|e| e.card.guarantee == Guarantee::Exact)
}

/// Law 1: `Exact` is `==`, over a thousand prompts, greedy and sampled, alone and mixed, with few pages too.
#[test]
fn exact_strategies_give_the_tokens_of_plain_decoding() {
    let prompts = prompts(1000);
    for temperature in [0.0, 1.0] {
        let ask = |name: &str| -> Vec<Request> {
            let each = prompts.iter().enumerate();
            each.map(|(i, p)| request(name, &Options::new(), p, &sampling(i, temperature))).collect()
        };
        let plain = together(config(), ask("plain"));
        for entry in exact() {
            let answers = together(config(), ask(entry.card.name));
            for (i, (answer, plain)) in answers.iter().zip(&plain).enumerate() {
                assert_eq!(tokens(answer), tokens(plain), "{} at {temperature}, prompt {i}", entry.card.name);
                let (end, plain) = (answer.end.as_ref().expect("ended"), plain.end.as_ref().expect("ended"));
                assert_eq!((end.reason, &end.stop_reason), (plain.reason, &plain.stop_reason));
                assert_eq!(end.guarantee, Guarantee::Exact);
            }
        }
        // All strategies in one engine, with too few pages for all.
        let names: Vec<&str> = causal().map(|e| e.card.name).collect();
        let mixed: Vec<Request> = prompts
            .iter()
            .enumerate()
            .map(|(i, p)| request(names[i % names.len()], &Options::new(), p, &sampling(i, temperature)))
            .collect();
        let few = Config { pages: 24, tail: 256, chunk: 16, ..config() };
        for (i, (answer, plain)) in together(few, mixed).iter().zip(&plain).enumerate() {
            let name = names[i % names.len()];
            if exact().any(|e| e.card.name == name) {
                assert_eq!(tokens(answer), tokens(plain), "{name} in a mixed batch, prompt {i}");
            }
        }
    }
}

/// Law 6: the same seed gives the same tokens, whatever else runs.
#[test]
fn deterministic_under_a_seed() {
    let prompts = prompts(40);
    for entry in mine() {
        let ask = |i: usize| request(entry.card.name, &Options::new(), &prompts[i], &sampling(i, 1.0));
        let crowd = together_on(networks_of(entry), config(), (0..40).map(ask).collect());
        for (i, with_others) in crowd.iter().enumerate() {
            let alone = together_on(networks_of(entry), config(), vec![ask(i)]);
            assert_eq!(tokens(&alone[0]), tokens(with_others), "{}, prompt {i}", entry.card.name);
        }
    }
}

/// Law 6: cancelled between any two steps, nothing is left behind.
#[test]
fn cancelled_anywhere_nothing_is_left() {
    let prompt = prompts(8).pop().expect("a prompt");
    for entry in mine() {
        for steps in 0..12 {
            let mut bench = Bench::new(Config { chunk: 4, ..config() }, networks_of(entry)).expect("starts");
            let doomed = bench.submit(request(entry.card.name, &Options::new(), &prompt, &sampling(3, 1.0)));
            let other = bench.submit(request("plain", &Options::new(), &prompt, &sampling(4, 0.0)));
            (0..steps).for_each(|_| {
                bench.turn();
            });
            doomed.cancel();
            bench.run();
            assert_eq!(bench.leftovers(), (0, 0, 0), "{} after {steps} steps", entry.card.name);
            assert_eq!((bench.stats().pages_used, bench.stats().tail_used), (0, 0));
            assert!(!other.collect().delta.tokens.is_empty(), "the others go on");
        }
    }
}

/// Law 6: `max_tokens` holds inside a commit of several tokens, and usage adds up.
#[test]
fn limits_and_counters_hold() {
    let prompts = prompts(60);
    for entry in mine() {
        let requests = prompts.iter().enumerate();
        let asked: Vec<Request> =
            requests.map(|(i, p)| request(entry.card.name, &Options::new(), p, &sampling(i, 0.0))).collect();
        for (i, answer) in together_on(networks_of(entry), config(), asked).into_iter().enumerate() {
            let end = answer.end.expect("ended");
            let (most, made) = (8 + i % 17, answer.delta.tokens.len());
            assert!(made <= most, "{}: {made} of {most}", entry.card.name);
            assert!(end.reason != Reason::Length || made == most, "{}: ended early", entry.card.name);
            let u = &end.usage;
            assert_eq!((u.generated, u.prompt_tokens), (made, prompts[i].len()), "{}", entry.card.name);
            assert!(u.accepted <= u.drafted && u.nfe >= u.forwards && u.host_reads <= u.nfe, "{u:?}");
            assert_eq!(u.rows, u.rows_by_model.iter().sum::<usize>());
            assert_eq!(u.forwards >= 1, made > 0);
        }
    }
}

/// Law 5: where rows cost what a forward costs, drafts shrink to nothing and exact strategies run as plain does.
#[test]
fn drafts_that_do_not_pay_are_not_made() {
    let prompts = prompts(50);
    let dear = || Config { cost: Cost::Fixed(vec![(1, 1.0), (64, 64.0)]), ..config() };
    for entry in exact().filter(|e| e.card.needs.is_empty() && has(e, "adaptive")) {
        let asked: Vec<Request> = prompts
            .iter()
            .enumerate()
            .map(|(i, p)| request(entry.card.name, &Options::new(), p, &sampling(i, 0.0)))
            .collect();
        for answer in together(dear(), asked) {
            let usage = answer.end.expect("ended").usage;
            assert_eq!(usage.drafted, 0, "{}", entry.card.name);
        }
    }
}
fn has(entry: &Entry, name: &str) -> bool {
    (entry.params)().iter().any(|p| p.name == name)
}

/// Law 7: what a strategy does not know is refused; what it knows is described.
#[test]
fn parameters_are_typed_and_described() {
    for entry in ALL {
        let name = entry.card.name;
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
        assert!(!entry.card.summary.is_empty() && !entry.card.source.is_empty());
        assert!(strategy(name, &options(json!({"no_such_parameter": 1}))).is_err(), "{name}");
        for param in (entry.params)() {
            assert!(param.doc.ends_with('.'), "{name}.{}: a sentence", param.name);
            let default = options(json!({ param.name: param.default }));
            assert!(strategy(name, &default).is_ok(), "{name}: the default of {} is refused", param.name);
            let wrong = options(json!({ param.name: {"an": "object"} }));
            assert!(strategy(name, &wrong).is_err(), "{name}.{} takes an object", param.name);
            if let Some(max) = param.range.get(1).and_then(serde_json::Value::as_f64) {
                let kind = param.kind.trim_end_matches('?');
                let beyond = if kind == "int" { json!(max as u64 + 1) } else { json!(max + 1.0) };
                if kind == "int" || kind == "float" {
                    assert!(strategy(name, &options(json!({ param.name: beyond }))).is_err(), "{name}.{}", param.name);
                }
            }
        }
    }
    assert!(matches!(strategy("no-such-strategy", &Options::new()), Err(RegistryError::Unknown { .. })));
}
