//! The documents of the strategies are run: every pair of blocks `json` (a request) and `expect` (what must hold) in
//! `tests/strategies/<name>.md`, on the table-driven networks of the engine.
//!
//! `tests/companions/<name>.md` likewise. A request has `strategy`, `prompt`, and at choice `params`, `companions` (by name,
//! each with its parameters), `max_tokens`, `temperature`, `seed`; what it is compared with has the same companions. A line of `expect`
//! is `<variable> <operator> <value>`: variables `tokens`, `forwards`, `rows`, `drafted`, `accepted`, `nfe`; operators
//! `==`, `<=`, `>=`, `<`; the value is a number (for `tokens`: their number) or `plain`, what plain decoding has there
//! (for strategies that denoise: the static loop, `llada` or, on block-causal models, `sdar`).

use crate::common::bent;
use crate::common::value;
use crate::common::{config, denoises, networks_of, request};
use omnidecode_engine::testing::{Bench, TableNetwork};
use omnidecode_engine::{NamedNetwork, Sampling, Token, Usage};
use omnidecode_strategies::params::Options;
use omnidecode_strategies::{ALL, Entry, companions, find};
use serde_json::Value;
use std::path::PathBuf;

fn folder(of: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(of)
}

/// Fenced blocks with their languages.
fn blocks(text: &str) -> Vec<(String, String)> {
    let (mut found, mut open) = (Vec::new(), None);
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language.trim().to_owned(), String::new())),
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some((_, body))) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

/// Requests with what is expected of them.
fn pairs(text: &str) -> Result<Vec<(Value, String)>, String> {
    let (mut found, mut ask) = (Vec::new(), None);
    for (language, body) in blocks(text) {
        match (language.as_str(), ask.take()) {
            ("json", None) => ask = Some(serde_json::from_str(&body).map_err(|e| format!("{e} in {body}"))?),
            ("expect", Some(request)) => found.push((request, body)),
            ("json" | "expect", _) => return Err(format!("a request without expectation, or the other way: {body}")),
            (_, before) => ask = before,
        }
    }
    if ask.is_some() { Err("the last request expects nothing".into()) } else { Ok(found) }
}

/// What one run gave.
struct Ran {
    tokens: Vec<Token>,
    usage: Usage,
}
impl Ran {
    fn number(&self, variable: &str) -> Option<usize> {
        Some(match variable {
            "tokens" => self.tokens.len(),
            "forwards" => self.usage.forwards,
            "rows" => self.usage.rows,
            "drafted" => self.usage.drafted,
            "accepted" => self.usage.accepted,
            "nfe" => self.usage.nfe,
            _ => return None,
        })
    }
}

/// What an entry is compared with.
fn baseline(entry: &Entry) -> &'static str {
    match denoises(entry) {
        true if entry.card.needs.contains(&"block") => "sdar",
        true => "llada",
        false => "plain",
    }
}

fn run(ask: &Value, strategy: &str, params: &Options) -> Result<Ran, String> {
    let fields = ask.as_object().ok_or("a request must be an object")?;
    let known = ["strategy", "params", "companions", "prompt", "max_tokens", "temperature", "seed"];
    if let Some(name) = fields.keys().find(|k| !known.contains(&k.as_str())) {
        return Err(format!("unknown field `{name}`"));
    }
    let prompt: Option<Vec<Token>> =
        ask["prompt"].as_array().and_then(|p| p.iter().map(|t| t.as_u64().map(|t| t as Token)).collect());
    let sampling = Sampling {
        max_tokens: Some(ask["max_tokens"].as_u64().unwrap_or(24) as usize),
        temperature: ask["temperature"].as_f64().unwrap_or(0.0) as f32,
        seed: ask["seed"].as_u64().unwrap_or(0),
        ..Sampling::default()
    };
    let entry = find(strategy).ok_or(format!("no strategy `{strategy}`"))?;
    let mut models = networks_of(entry);
    for (i, role) in entry.card.needs.iter().filter(|n| !["draft", "mask", "block"].contains(n)).enumerate() {
        models.push(NamedNetwork::new(*role, Box::new(TableNetwork::new(7, 17 + i as u64))));
    }
    if !models.iter().any(|m| m.role == "value") {
        models.push(NamedNetwork::new("value", Box::new(value::Value::of(-0.8))));
    }
    let mut bench = Bench::new(config(), models).map_err(|e| e.to_string())?;
    let prompt = prompt.ok_or("`prompt` must be a list of tokens")?;
    let mut asked = request(strategy, params, &prompt, &sampling);
    for (name, params) in ask["companions"].as_object().into_iter().flatten() {
        let params = params.as_object().ok_or("a companion has an object of parameters")?;
        bent::attach(name, params, &prompt, &mut asked).map_err(|e| e.to_string())?;
    }
    let handle = bench.submit(asked);
    bench.run();
    let answer = handle.collect();
    let end = answer.end.map_err(|e| e.to_string())?;
    Ok(Ran { tokens: answer.delta.tokens, usage: end.usage })
}

/// Check one expectation.
fn judge(line: &str, seen: &Ran, plain: &Ran) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [variable, operator, value] = words[..] else { return Err(format!("`{line}`: three words are expected")) };
    let left = seen.number(variable).ok_or(format!("`{line}`: there is no `{variable}`"))?;
    let right = match value {
        "plain" if (variable, operator) == ("tokens", "==") => {
            return if seen.tokens == plain.tokens {
                Ok(())
            } else {
                Err(format!("tokens {:?} are not plain decoding's {:?}", seen.tokens, plain.tokens))
            };
        }
        "plain" => plain.number(variable).unwrap_or(0),
        number => number.parse().map_err(|_| format!("`{line}`: `{number}` is neither a number nor `plain`"))?,
    };
    let holds = match operator {
        "==" => left == right,
        "<=" => left <= right,
        ">=" => left >= right,
        "<" => left < right,
        _ => return Err(format!("`{line}`: there is no operator `{operator}`")),
    };
    if holds { Ok(()) } else { Err(format!("`{line}`: {variable} is {left}, compared with {right}")) }
}

fn check(name: &str, text: &str) -> Result<usize, String> {
    let pairs = pairs(text)?;
    for (ask, expected) in &pairs {
        let strategy = ask["strategy"].as_str().ok_or("a request names its `strategy`")?;
        if strategy != name && ask["companions"].get(name).is_none() {
            return Err(format!("a request for {strategy}"));
        }
        let params = ask["params"].as_object().cloned().unwrap_or_default();
        let entry = find(strategy).ok_or(format!("no strategy `{strategy}`"))?;
        let (seen, plain) = (run(ask, strategy, &params)?, run(ask, baseline(entry), &Options::new())?);
        let lines = expected.lines().filter(|l| !l.trim().is_empty());
        if lines.clone().count() == 0 {
            return Err("an empty `expect`".into());
        }
        for line in lines {
            judge(line, &seen, &plain).map_err(|e| format!("{ask}: {e}"))?;
        }
    }
    Ok(pairs.len())
}

/// What is wrong with the documents of a folder, of which there is one for each name.
fn wrong(of: &str, names: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in names {
        let path = folder(of).join(format!("{name}.md"));
        match std::fs::read_to_string(&path).map_err(|e| e.to_string()).and_then(|text| check(name, &text)) {
            Ok(0) => wrong.push(format!("{name}: no pair of `json` and `expect` blocks")),
            Ok(_) => {}
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    for file in std::fs::read_dir(folder(of)).expect("the folder of documents").flatten() {
        let stem = file.path().file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        if stem != "README" && !names.contains(&stem.as_str()) {
            wrong.push(format!("{of}/{stem}.md is of nothing that is registered"));
        }
    }
    wrong
}

#[test]
fn every_strategy_has_a_document_whose_claims_hold() {
    let wrong = wrong("strategies", &ALL.iter().map(|e| e.card.name).collect::<Vec<_>>());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
#[test]
fn every_companion_has_a_document_whose_claims_hold() {
    let wrong = wrong("companions", &companions::ALL.iter().map(|e| e.card.name).collect::<Vec<_>>());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn false_claims_are_found() {
    let claim = |expect: &str| {
        let ask = r#"{"strategy": "prompt-lookup", "prompt": [1, 2, 1, 2, 1], "max_tokens": 6}"#;
        check("prompt-lookup", &format!("Prose.\n```json\n{ask}\n```\nMore.\n```expect\n{expect}\n```\n"))
    };
    assert_eq!(claim("tokens == plain\ntokens == 6\nforwards <= plain"), Ok(1));
    for wrong in ["tokens == 5", "forwards < 1", "tokens", "steps == 3", "tokens != 3", "rows >= 1e3", ""] {
        assert!(claim(wrong).is_err(), "`{wrong}` was believed");
    }
    assert!(check("plain", "```json\n{}\n```\n").is_err(), "nothing is expected");
    assert!(check("plain", "```expect\ntokens == 1\n```\n").is_err(), "nothing is asked");
}
