//! Everything in one engine: 72 requests of all strategies that the table networks can carry, with companions, that arrive and
//! are cancelled at random. What a request says does not depend on the crowd, and nothing stays behind.

use crate::common::bent::attach;
use crate::common::value;
use crate::common::{config, denoises, options, params, prompts, request, sampling};
use omnidecode_core::noise::{mix, pair, unit};
use omnidecode_engine::testing::{Bench, TableNetwork};
use omnidecode_engine::{Answer, Candidate, Config, Guarantee, Handle, Judge, NamedNetwork, Reason, Request, Usage};
use omnidecode_strategies::companions::CompanionError;
use omnidecode_strategies::{ALL, Entry, find};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

const REQUESTS: usize = 72;

/// A main model that may be asked for a canvas too, and the models that strategies with two or three need.
fn networks() -> Vec<NamedNetwork> {
    let net = |role: &str, own, bytes| {
        let card = |c: &mut omnidecode_engine::ModelCard| (c.bytes, c.bidirectional) = (bytes, role == "main");
        NamedNetwork::new(role, Box::new(TableNetwork::new(7, own).with_card(card)))
    };
    let value = NamedNetwork::new("value", Box::new(value::Value::of(-1.3)));
    let beside = [("draft", 13), ("expert", 19), ("adapter", 23)].map(|(role, own)| net(role, own, 100));
    [net("main", 11, 2000), value].into_iter().chain(beside).collect()
}
fn entries() -> Vec<&'static Entry> {
    let held = ["draft", "expert", "adapter", "mask"];
    ALL.iter().filter(|e| e.card.needs.iter().all(|need| held.contains(need))).collect()
}
fn judge() -> Arc<dyn Judge> {
    let score = |c: &Candidate<'_>| unit(c.tokens.iter().fold(7, |h, &t| pair(h, u64::from(t)))) as f32;
    Arc::new(move |batch: &[Candidate<'_>]| -> Result<Vec<f32>, String> { Ok(batch.iter().map(score).collect()) })
}
/// Request `i`, with the companions that ride along: none, each alone, all.
fn make(i: usize, entry: &Entry, prompt: &[u32]) -> Request {
    let sampling = sampling(i, if i.is_multiple_of(3) { 0.0 } else { 1.0 });
    let mut request = request(entry.card.name, &params(entry.card.name, 16), prompt, &sampling);
    request.salt = mix(i as u64).is_multiple_of(2).then_some(0);
    if ["best-of-n", "particle", "judge-beam", "a-star"].contains(&entry.card.name) {
        request.judge = Some(judge());
    }
    let companions = [
        ("majormark", json!({"message": "10110100", "delta": 3.0})),
        ("zero-tuning", json!({"gamma": 2.0})),
        ("clamp-neurons", json!({"neurons": [0, 1, 1, 7], "values": [0.5]})),
        ("grammar", json!({"regex": "[a-f]{3}[0-9a-f]*"})),
        ("rectification", json!({"epsilon": 0.1})),
        ("lazyllm", json!({"after": [0.5], "drop": [40.0]})),
        ("lazyllm", json!({"after": [0.5], "drop": [40.0], "decode": false})),
    ];
    let causal = entry.card.needs.iter().all(|need| ["draft", "adapter"].contains(need));
    for (at, (name, with)) in companions.into_iter().enumerate() {
        let chosen = i % 9 == at + 1 || (i % 9 == 8 && at != 5);
        if !(chosen && causal) {
            continue;
        }
        match attach(name, &options(with), prompt, &mut request) {
            Err(CompanionError::Unfit { reason, .. }) if reason.contains("does not ride along") => {}
            attached => attached.expect("it fits"),
        }
    }
    request
}
fn usage(answer: &Answer) -> &Usage {
    &answer.end.as_ref().unwrap_or_else(|e| panic!("{e}")).usage
}
/// What a crowd may not change; the rest (cached prefixes, chunks, evictions) is how the work was cut.
fn said(answer: &Answer) -> (Vec<u32>, Reason, Guarantee, [usize; 4]) {
    let end = answer.end.as_ref().unwrap_or_else(|e| panic!("{e}"));
    let u = &end.usage;
    (answer.delta.tokens.clone(), end.reason, end.guarantee, [u.prompt_tokens, u.generated, u.judged, u.judge_calls])
}

/// One of the requests, by number; and the entry it is of.
type Ask<'a> = &'a dyn Fn(usize) -> (Request, &'static Entry);

/// Requests that arrive and are cancelled at random, against each alone. Memory for all, and memory for a few at a time.
fn crowd(networks: fn() -> Vec<NamedNetwork>, requests: usize, ask: Ask<'_>, kinds: usize) {
    let lone: Vec<Answer> = (0..requests)
        .map(|i| {
            let mut bench = Bench::new(config(), networks()).expect("starts");
            let handle = bench.submit(ask(i).0);
            bench.run();
            handle.collect()
        })
        .collect();
    for (seed, few) in [(1, false), (2, false), (3, true), (4, true), (5, true)] {
        let config = if few { Config { pages: 40, tail: 256, chunk: 16, ..config() } } else { config() };
        let mut word = mix(seed);
        let mut draw = move |n: u64| {
            word = mix(word);
            word % n
        };
        let mut order: Vec<usize> = (0..requests).collect();
        (1..requests).rev().for_each(|i| order.swap(i, draw(i as u64 + 1) as usize));
        let mut bench = Bench::new(config, networks()).expect("starts");
        let mut handles: Vec<(usize, Handle)> = Vec::new();
        let mut cancelled = BTreeSet::new();
        while !order.is_empty() {
            for _ in 0..draw(4) {
                handles.extend(order.pop().map(|i| (i, bench.submit(ask(i).0))));
            }
            (0..draw(3)).for_each(|_| {
                bench.turn();
            });
            if !handles.is_empty() && draw(5) == 0 {
                let (i, handle) = &handles[draw(handles.len() as u64) as usize];
                handle.cancel();
                cancelled.insert(*i);
            }
        }
        bench.run();
        assert_eq!(bench.leftovers(), (0, 0, 0), "seed {seed}: something is left behind");
        assert_eq!((bench.stats().pages_used, bench.stats().tail_used), (0, 0), "seed {seed}: pages are left behind");
        let mut ended = BTreeSet::new();
        for (i, handle) in handles {
            let entry = ask(i).1;
            let name = entry.card.name;
            let answer = handle.collect();
            if cancelled.contains(&i) {
                let told = answer.delta.tokens;
                assert!(lone[i].delta.tokens.starts_with(&told), "{name}, request {i}, seed {seed}: cut, not changed");
                continue;
            }
            assert_eq!(said(&answer), said(&lone[i]), "{name}, request {i}, seed {seed}");
            let (crowd, alone) = (usage(&answer), usage(&lone[i]));
            assert_eq!(crowd.rows, crowd.rows_by_model.iter().sum::<usize>(), "{name}");
            assert!(crowd.accepted <= crowd.drafted && crowd.nfe >= crowd.forwards, "{name}: {crowd:?}");
            assert_eq!(crowd.generated, answer.delta.tokens.len(), "{name}");
            // A draft that adapts is smaller in a crowd, and what others taught a table helps.
            let adapts = (entry.params)().iter().any(|p| p.name == "adaptive");
            if !few && !adapts && crowd.cached_tokens == alone.cached_tokens {
                let work = |u: &Usage| (u.drafted, u.accepted, u.forwards_by_model.clone());
                assert_eq!(work(crowd), work(alone), "{name}, request {i}, seed {seed}");
                // Who shares its prefixes may find, behind its prompt too, what others have computed.
                let fewer = |found: usize, of: usize| found == of || (found < of && ask(i).0.salt.is_some());
                assert!(fewer(crowd.rows, alone.rows), "{name}, request {i}, seed {seed}: {crowd:?}, {alone:?}");
                assert!(fewer(crowd.row_layers, alone.row_layers), "{name}, request {i}, seed {seed}");
            }
            ended.insert(name);
        }
        assert!(ended.len() >= kinds, "seed {seed}: {ended:?}");
        assert!(!cancelled.is_empty(), "seed {seed} cancels nothing");
    }
}

#[test]
fn requests_of_every_kind_in_one_engine() {
    let entries = entries();
    let kinds: BTreeSet<&str> = entries.iter().map(|e| e.card.name).collect();
    assert!(kinds.len() >= 20 && entries.iter().any(|e| denoises(e)) && kinds.contains("kangaroo"), "{kinds:?}");
    let prompts = prompts(REQUESTS);
    let ask = |i: usize| {
        let entry = entries[i % entries.len()];
        (make(i, entry, &prompts[i]), entry)
    };
    crowd(networks, REQUESTS, &ask, 15);
}

/// A model that sees whole blocks carries what denoises block by block, and nothing that follows token by token.
#[test]
fn block_by_block_in_one_engine() {
    let entries: Vec<&Entry> = ALL.iter().filter(|e| e.card.needs.contains(&"block")).collect();
    let names: BTreeSet<&str> = entries.iter().map(|e| e.card.name).collect();
    assert!(names.contains("sdar"), "{names:?}");
    let prompts = prompts(24);
    let ask = |i: usize| {
        let entry = entries[i % entries.len()];
        (make(i, entry, &prompts[i]), entry)
    };
    crowd(|| crate::common::networks_of(find("sdar").expect("registered")), 24, &ask, entries.len());
}
