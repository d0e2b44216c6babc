//! Sheet 06: what its Contract asks beyond the laws, and what the text adds to a cold table.

use crate::common::{config, options, prompts, request, sampling, together, tokens};
use omnidecode_engine::{Answer, Sampling};
use serde_json::json;

fn run(name: &str, params: serde_json::Value, temperature: f32) -> Vec<Answer> {
    let prompts = prompts(150);
    let each = prompts.iter().enumerate();
    let ask = |(i, p): (usize, &Vec<_>)| request(name, &options(params.clone()), p, &sampling(i, temperature));
    together(config(), each.map(ask).collect())
}

/// Contract 1 and 2.
#[test]
fn exact_whatever_drafts() {
    for temperature in [0.0, 1.0] {
        let plain = run("plain", json!({}), temperature);
        for params in [
            json!({}),
            json!({"max_ngram": 0}),
            json!({"max_ngram": 16, "table": "request", "k": 1}),
            json!({"max_ngram": 1, "max_nodes": 3, "prefer_accepted": true}),
            json!({"adaptive": false, "init_from_prompt": true}),
        ] {
            for (i, (answer, plain)) in
                run("token-recycling", params.clone(), temperature).iter().zip(&plain).enumerate()
            {
                assert_eq!(tokens(answer), tokens(plain), "{params} at {temperature}, prompt {i}");
            }
        }
    }
}

fn forwards(name: &str, params: serde_json::Value) -> usize {
    let sampling = Sampling { ignore_eos: true, max_tokens: Some(40), ..Sampling::default() };
    let cold = |prompt: &Vec<_>| {
        let ask = request(name, &options(params.clone()), prompt, &sampling);
        together(config(), vec![ask])[0].end.as_ref().expect("ended").usage.forwards
    };
    prompts(40).iter().map(cold).sum()
}

/// With a table that is empty at each start, the text makes up for it: fewer forwards than by the table alone, and no more than
/// prompt lookup takes.
#[test]
fn the_text_drafts_from_a_cold_start() {
    let table = forwards("token-recycling", json!({"table": "request", "max_ngram": 0}));
    let both = forwards("token-recycling", json!({"table": "request"}));
    let text = forwards("prompt-lookup", json!({}));
    assert!(both < table && both <= text, "{both} forwards; table alone {table}, prompt lookup {text}");
}

/// The paper's own drafting is not touched by what is ours.
#[test]
fn the_template_asks_the_table_alone() {
    let usage = |max_ngram: usize| -> Vec<_> {
        let params = json!({"adaptive": false, "table": "request", "max_ngram": max_ngram});
        let each = run("token-recycling", params, 0.0);
        each.iter().map(|a| a.end.as_ref().map(|e| (e.usage.drafted, e.usage.forwards)).expect("ended")).collect()
    };
    assert_eq!(usage(6), usage(0));
}
