//! Sheet 34: thoughts in vectors, on the table networks and on a real decoder.

use crate::common::{config, options, prompts, request, sampling, together, tokens};
use omnidecode_engine::testing::{Bench, TableNetwork, networks};
use omnidecode_engine::{
    Answer, Config, Guarantee, NamedNetwork, Plan, Prompt, Readout, Request, Row, Rows, Sampling, Strategy, Token,
};
use omnidecode_models::Weights;
use omnidecode_models::decoder::{Decoder, Options as Load};
use omnidecode_strategies::params::Options;
use omnidecode_strategies::strategy;
use serde_json::json;
use std::path::PathBuf;
use std::sync::mpsc::channel;

fn llama() -> Vec<NamedNetwork> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
    let weights = Weights::open(&path).expect("a golden checkpoint");
    let load = Load { threads: Some(2), ..Load::default() };
    vec![NamedNetwork::new("main", Box::new(Decoder::load(&weights, &load).expect("it loads")))]
}
fn ask(models: Vec<NamedNetwork>, requests: Vec<Request>) -> Vec<Answer> {
    let mut bench = Bench::new(config(), models).expect("starts");
    let handles: Vec<_> = requests.into_iter().map(|r| bench.submit(r)).collect();
    bench.run();
    assert_eq!((bench.stats().pages_used, bench.leftovers()), (0, (0, 0, 0)));
    handles.into_iter().map(|h| h.collect()).collect()
}
fn greedy(most: usize) -> Sampling {
    Sampling { max_tokens: Some(most), ignore_eos: true, ..Sampling::default() }
}
const PROMPT: [Token; 6] = [5, 17, 33, 60, 4, 41];

/// Contract 1.
#[test]
fn no_thoughts_and_no_markers_are_plain_decoding() {
    let prompts = prompts(60);
    for temperature in [0.0, 1.0] {
        let ask = |name: &str, params: &Options| -> Vec<Request> {
            prompts.iter().enumerate().map(|(i, p)| request(name, params, p, &sampling(i, temperature))).collect()
        };
        let none = options(json!({"latents": 0}));
        let plain = together(config(), ask("plain", &Options::new()));
        for (a, b) in together(config(), ask("coconut", &none)).iter().zip(&plain) {
            assert_eq!(tokens(a), tokens(b));
        }
        assert_eq!(strategy("coconut", &none).expect("fits").guarantee, Guarantee::Exact);
    }
}

/// Contract 2: a vector that is a token's embedding is that token, in a prompt and behind it.
#[test]
fn the_embedding_of_a_token_is_the_token() {
    let table = TableNetwork::new(7, 11);
    let mut mixed = Prompt::from(vec![5, 6]);
    mixed.push_vector(table.embedding(9));
    mixed.push(12);
    let plain = || strategy("plain", &Options::new()).expect("fits");
    let by_vector = ask(networks(), vec![Request::new(mixed, plain(), greedy(12))]);
    let by_token = ask(networks(), vec![Request::new(vec![5, 6, 9, 12], plain(), greedy(12))]);
    assert_eq!(tokens(&by_vector[0]), tokens(&by_token[0]));
    // In the words of the strategy, on its own sequence.
    let vector = table.embedding(9);
    let extended = Strategy::new("probe", Guarantee::Exact, move |mut seq| async move {
        seq.next(Readout::NOTHING).await?;
        seq.extend_vector(vector)?;
        seq.extend(12)?;
        loop {
            let next = seq.next(Readout::CHOICE).await?.root().choice();
            if seq.push(next)?.is_none() {
                return Ok(());
            }
        }
    });
    let by_verb = ask(networks(), vec![Request::new(vec![5, 6], extended, greedy(12))]);
    assert_eq!(tokens(&by_verb[0]), tokens(&by_token[0]));
}

/// Logits after the prompt, `start`, so many thoughts and `end`, by the passes of the paper: every pass runs all from the
/// beginning, with the thoughts found so far in their places. `layer` is where thoughts are read.
fn reference(models: Vec<NamedNetwork>, latents: usize, markers: [Token; 2], layer: usize) -> Vec<f32> {
    let (sender, receiver) = channel();
    let probe = Strategy::new("probe", Guarantee::Approximate, move |mut seq| async move {
        let mut rows: Vec<Row> = PROMPT.iter().chain(&markers[..1]).map(|&t| Row::Token(t)).collect();
        let pass = |rows: &[Row], read: Readout| {
            let plan = Plan::rows(rows.to_vec(), Default::default(), read).at_rows(Rows::Last);
            Plan { at: Some(0), keep: Some(Vec::new()), root: false, leave: 1, ..plan }
        };
        for _ in 0..latents {
            let seen = seq.forward(pass(&rows, Readout::default().hidden(layer))).await?;
            rows.push(Row::Embedding(seen.row(rows.len() - 1).hidden().into()));
        }
        rows.push(Row::Token(markers[1]));
        let seen = seq.forward(pass(&rows, Readout::LOGITS)).await?;
        let _ = sender.send(seen.row(rows.len() - 1).logits().to_vec());
        Ok(())
    });
    let answers = ask(models, vec![Request::new(vec![1], probe, greedy(4))]);
    assert!(answers[0].end.is_ok(), "{:?}", answers[0].end);
    receiver.recv().expect("logits")
}
/// The same, step by step on the cache.
fn incremental(models: Vec<NamedNetwork>, latents: usize, markers: [Token; 2]) -> Vec<f32> {
    let (sender, receiver) = channel();
    let probe = Strategy::new("probe", Guarantee::Approximate, move |mut seq| async move {
        let layers = seq.card().layers;
        seq.extend(markers[0])?;
        for _ in 0..latents {
            let seen = seq.next(Readout::default().hidden(layers)).await?;
            seq.extend_vector(seen.root().hidden())?;
        }
        seq.extend(markers[1])?;
        let seen = seq.next(Readout::LOGITS).await?;
        let _ = sender.send(seen.root().logits().to_vec());
        Ok(())
    });
    ask(models, vec![Request::new(PROMPT.to_vec(), probe, greedy(4))]);
    receiver.recv().expect("logits")
}
fn far(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
fn argmax(logits: &[f32]) -> Token {
    omnidecode_core::law::argmax(logits)
}

/// Contracts 3 and 5: steps on the cache are the reference's passes, and thoughts are states behind the final norm.
#[test]
fn thoughts_are_those_of_the_reference() {
    for latents in [0, 1, 2, 5] {
        let (golden, layers) = (reference(llama(), latents, [7, 9], 3), 3);
        let ours = incremental(llama(), latents, [7, 9]);
        assert!(far(&golden, &ours) < 1e-3, "{latents} thoughts: {}", far(&golden, &ours));
        let params = options(json!({"latents": latents, "start": 7, "end": 9}));
        let answer = &ask(llama(), vec![request("coconut", &params, &PROMPT, &greedy(3))])[0];
        assert_eq!(tokens(answer)[0], argmax(&golden), "{latents} thoughts");
        if latents > 0 {
            // Before the last layer no norm was applied: such a thought is another one.
            let raw = reference(llama(), latents, [7, 9], layers - 1);
            assert!(far(&raw, &ours) > 1e-2, "where thoughts are read makes no difference: {}", far(&raw, &ours));
        }
    }
}

/// Contract 4: a forward for the prompt, one a thought, one a token but the first; thoughts run no head.
#[test]
fn forwards_and_reads() {
    for models in [networks, llama] {
        for (latents, made) in [(0, 1), (1, 1), (6, 1), (6, 9)] {
            let params = options(json!({"latents": latents, "start": 7, "end": 9}));
            let answer = &ask(models(), vec![request("coconut", &params, &PROMPT, &greedy(made))])[0];
            assert_eq!(tokens(answer).len(), made);
            let usage = &answer.end.as_ref().expect("ended").usage;
            assert_eq!(usage.forwards, 1 + latents + made - 1);
            assert_eq!(usage.rows, PROMPT.len() + 2 + latents + made - 1, "every place once");
            assert_eq!(usage.prompt_tokens, PROMPT.len());
            assert_eq!(usage.head_rows, made, "thoughts run no head");
        }
    }
}

/// The read-out: the head's view of each thought, which changes nothing.
#[test]
fn thoughts_are_told() {
    let run = |readout: usize| {
        let params = options(json!({"latents": 4, "start": 7, "end": 9, "readout": readout}));
        ask(llama(), vec![request("coconut", &params, &PROMPT, &greedy(5))]).remove(0)
    };
    let (silent, told) = (run(0), run(3));
    assert_eq!(tokens(&silent), tokens(&told));
    let (silent, told) = (silent.end.expect("ended"), told.end.expect("ended"));
    assert_eq!(
        (silent.usage.head_rows, told.usage.head_rows),
        (5, 5 + 4),
        "only reading thoughts runs the head on them"
    );
    assert!(silent.notes.is_empty());
    let notes = told.notes;
    assert_eq!(notes.len(), 4);
    for (i, note) in notes.iter().enumerate() {
        assert_eq!((note.label, note.place, note.tokens.len()), ("thought", PROMPT.len() + 1 + i, 3));
        assert!(note.tokens.is_sorted_by(|a, b| a.1 >= b.1) && note.tokens.iter().all(|t| (0.0..=1.0).contains(&t.1)));
    }
    // The first thought is read where plain decoding would choose.
    let plain = request("plain", &Options::new(), &[5, 17, 33, 60, 4, 41, 7], &greedy(1));
    assert_eq!(tokens(&ask(llama(), vec![plain])[0]), [notes[0].tokens[0].0]);
}

/// Contracts 6 and 10: with other numbers of thoughts beside them, with little memory, again: always the same.
#[test]
fn batches_are_single_runs() {
    let prompts = prompts(24);
    let make = |i: usize| {
        let params = options(json!({"latents": i % 5, "start": 7, "end": 9}));
        request("coconut", &params, &prompts[i], &sampling(i, 1.0))
    };
    let crowd = together(config(), (0..24).map(make).collect());
    let few = Config { pages: 12, tail: 64, chunk: 5, ..config() };
    let scarce = together(few, (0..24).map(make).collect());
    for i in 0..24 {
        let alone = together(config(), vec![make(i)]);
        assert_eq!(tokens(&alone[0]), tokens(&crowd[i]), "prompt {i}");
        assert_eq!(tokens(&alone[0]), tokens(&scarce[i]), "prompt {i}, few pages");
    }
}

#[test]
fn unknown_markers_are_refused() {
    let params = options(json!({"start": 64}));
    let answer = &ask(networks(), vec![request("coconut", &params, &PROMPT, &greedy(3))])[0];
    assert_eq!(answer.end.as_ref().expect_err("no such token").to_string(), "token 64 is outside the vocabulary of 64");
}
