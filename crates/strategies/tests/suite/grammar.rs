//! The companion `grammar`: what ends is valid, on every node of every draft tree, under every strategy.

use crate::common::bent;
use crate::common::bent::{Pieces, attach, text};
use crate::common::schema;
use crate::common::{config, options, prompts, request, together, tokens};
use omnidecode_engine::testing::{Bench, EOS, MASK, networks};
use omnidecode_engine::{
    Answer, Config, DraftTree, Guarantee, NamedNetwork, Plan, Proposal, ROOT, Readout, Reason, Request, Sampling,
    Strategy, Token,
};
use omnidecode_models::decoder::{Decoder, Options as Loading};
use omnidecode_models::{Network, Tokenizer, Weights};
use omnidecode_strategies::companions::grammar::accepts;
use omnidecode_strategies::companions::{self, CompanionError, Context, Vocabulary};
use omnidecode_strategies::params::Options;
use omnidecode_strategies::{ALL, Entry};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;

#[test]
fn texts_are_accepted_as_the_grammar_says() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
        "additionalProperties": false});
    let cases: [(Value, &[&str], &[&str]); 5] = [
        (
            json!({"json_schema": schema.to_string()}),
            &[r#"{"a": 1}"#, r#"{"a":-20}"#, "{ \"a\" : 0 }"],
            &["", "{", "{}", r#"{"a": "x"}"#, r#"{"a": 1} "#, r#"{"a":1,"b":2}"#, r#"{"a":01}"#],
        ),
        (json!({"regex": "[ab]+c?"}), &["a", "abbac", "bc"], &["", "c", "acc", "ac "]),
        (
            json!({"lark": "start: term (\"+\" term)*\nterm: /[0-9]+/ | \"(\" start \")\""}),
            &["1", "1+22", "(1+(2))+3"],
            &["", "1+", "(1", "1)", "+1"],
        ),
        (
            json!({"choice": ["yes", "no", "a\"b\\c\n", "é | x", "("]}),
            &["yes", "no", "a\"b\\c\n", "é | x", "("],
            &["", "y", "yesno", "x", "é "],
        ),
        (json!({"json_schema": "true"}), &["null", "[1, {\"a\": []}]", "\"\\u0001\""], &["nul", "[1,]", "'a'"]),
    ];
    for (params, good, bad) in cases {
        let params = options(params);
        for text in good {
            assert_eq!(accepts(&params, text), Ok(true), "{params:?}: {text}");
        }
        for text in bad {
            assert_eq!(accepts(&params, text), Ok(false), "{params:?}: {text}");
        }
    }
}

#[test]
fn bad_grammars_are_refused() {
    let mut deep = json!({"type": "string"});
    (0..3).for_each(|_| deep = json!({"$ref": "#/definitions/missing", "of": deep}));
    let refused = [
        json!({}),
        json!({"regex": "a", "choice": ["b"]}),
        json!({"json_schema": "{"}),
        json!({"json_schema": "17"}),
        json!({"json_schema": {"type": "object"}}),
        json!({"json_schema": "{\"type\": \"nothing\"}"}),
        json!({"json_schema": deep.to_string()}),
        json!({"json_schema": "{\"type\": \"string\", \"pattern\": \"(\"}"}),
        json!({"regex": "("}),
        json!({"lark": "start: other"}),
        json!({"lark": ""}),
        json!({"choice": [1]}),
        json!({"regex": 5}),
    ];
    for bad in refused {
        let mut asked = request("plain", &Options::new(), &[1], &Sampling::default());
        let error = attach("grammar", &options(bad.clone()), &[1], &mut asked).expect_err(&bad.to_string());
        assert!(matches!(error, CompanionError::Params(_) | CompanionError::Unfit { .. }), "{error}");
        assert!(error.to_string().len() < 2000, "{error}");
        assert!(asked.processors.is_empty());
    }
    let (vocabulary, options) = (None, options(json!({"regex": "a"})));
    let grammar = companions::find("grammar").expect("registered");
    let error =
        (grammar.attach)(&options, &Context { card: &bent::card(), prompt: &[], vocabulary }).err().expect("none");
    assert!(error.to_string().contains("tokenizer"), "{error}");
}

/// Every node of a draft tree has the mask of the text that leads to it, against enumeration of a finite language.
#[test]
fn every_node_of_a_tree_is_masked() {
    let texts = ["ab", "abba", "aba", "name", "no", "nob", "yes", "10", "104", "{\"a\":1}", "{}"];
    let legal = |text: &str, token: Token| match token {
        EOS => texts.contains(&text),
        MASK => false,
        t => {
            let longer = [text.as_bytes(), &Pieces.bytes(t).expect("a piece")].concat();
            texts.iter().any(|t| t.as_bytes().starts_with(&longer))
        }
    };
    let id = |word: &str| Pieces.encode(word)[0];
    // Branches that are right, that go wrong, and that go on behind the wrong and behind the end.
    let (a, b, n, x) = (id("a"), id("b"), id("n"), id("x"));
    let nodes: [(u32, Token); 14] = [
        (ROOT, a),
        (ROOT, id("ab")),
        (ROOT, x),
        (ROOT, n),
        (ROOT, id("{")),
        (0, b),
        (0, x),
        (1, id("ba")),
        (2, a),
        (3, id("o")),
        (4, id("}")),
        (5, EOS),
        (11, EOS),
        (9, b),
    ];
    let mut tree = DraftTree::new(Proposal::Deterministic);
    for (parent, token) in nodes {
        tree.add(parent, token);
    }
    let path = |node: u32| {
        let (mut node, mut path) = (node, Vec::new());
        while node != ROOT {
            path.push(nodes[node as usize].1);
            node = nodes[node as usize].0;
        }
        path.reverse();
        path
    };
    let (sender, receiver) = channel();
    let drafted = tree.clone();
    let probe = Strategy::new("probe", Guarantee::Approximate, move |mut seq| async move {
        for _ in 0..2 {
            let seen = seq.forward(Plan::tree(&drafted, Readout::LOGITS)).await?;
            let rows = (0..drafted.len() as u32).chain([ROOT]).map(|n| (n, seen.at(n).logits().to_vec()));
            let _ = sender.send(rows.collect::<Vec<_>>());
        }
        Ok(())
    });
    let prompt = [5, 6, 7];
    let mut asked = Request::new(prompt.to_vec(), probe, Sampling { max_tokens: Some(40), ..Sampling::default() });
    attach("grammar", &options(json!({"choice": texts})), &prompt, &mut asked).expect("fits");
    let mut bench = Bench::new(config(), networks()).expect("starts");
    let handle = bench.submit(asked);
    bench.run();
    assert!(handle.collect().end.is_ok());
    let mut checked = 0;
    for (node, logits) in receiver.iter().flatten() {
        let path = path(node);
        let ended = path.contains(&EOS);
        let so_far = text(&path);
        let possible = texts.iter().any(|t| t.starts_with(&so_far));
        for (token, logit) in logits.iter().enumerate() {
            let (token, open) = (token as Token, logit.is_finite());
            let expected = if ended { token == EOS } else { !possible || legal(&so_far, token) };
            // Behind a refused token nothing matters, but there must be something to choose.
            assert!(open == expected || !possible, "node {node} {so_far:?}, token {token}: {open}");
            checked += usize::from(possible);
        }
        assert!(possible || logits.iter().any(|l| l.is_finite()), "a dead node excludes everything");
    }
    assert!(checked > 1000);
}

fn cases() -> Vec<Options> {
    let person = json!({"type": "object", "properties": {"name": {"enum": ["al", "ice", "bab", "e1"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 50}, "tags": {"type": "array", "items": {"enum": ["a", "b", 10]},
        "maxItems": 3}}, "required": ["name", "size"], "additionalProperties": false});
    [
        json!({"json_schema": person.to_string()}),
        json!({"json_schema": "{\"type\": \"array\", \"items\": {\"type\": \"boolean\"}, \"minItems\": 1, \"maxItems\": 4}"}),
        json!({"regex": "[abc]{2,5}(e1|[0-9]){1,3}"}),
        json!({"lark": "start: \"{\" item (\",\" item)~0..3 \"}\"\nitem: /[a-f]/ | \"[\" item \"]\""}),
        json!({"choice": ["red", "green", "al", "no", "nob", "é"]}),
    ]
    .into_iter()
    .map(options)
    .collect()
}

/// Whether an entry runs on a causal main model and a draft.
fn causal(entry: &Entry) -> bool {
    entry.card.needs.iter().all(|need| *need == "draft")
}
/// Every strategy: what ends is valid, and what is `Exact` is plain decoding's.
#[test]
fn answers_that_end_are_valid_under_every_strategy() {
    let prompts = prompts(24);
    let (mut ended, mut answered) = (0, 0);
    for temperature in [0.0, 1.0] {
        for params in cases() {
            let ask = |name: &str, i: usize| {
                let sampling = Sampling { temperature, seed: i as u64, max_tokens: Some(40), ..Sampling::default() };
                let mut request = request(name, &Options::new(), &prompts[i], &sampling);
                attach("grammar", &params, &prompts[i], &mut request).expect("fits");
                request
            };
            let plain = together(config(), (0..prompts.len()).map(|i| ask("plain", i)).collect());
            for entry in ALL.iter().filter(|e| causal(e)) {
                let name = entry.card.name;
                let answers = together(config(), (0..prompts.len()).map(|i| ask(name, i)).collect());
                for (answer, plain) in answers.iter().zip(&plain) {
                    let made = tokens(answer);
                    if entry.card.guarantee == Guarantee::Exact {
                        assert_eq!(made, tokens(plain), "{name}");
                    } else if entry.card.guarantee == Guarantee::Approximate {
                        continue; // Their law is another one: they need not ask the target at every place.
                    }
                    answered += 1;
                    if answer.end.as_ref().expect("ended").reason == Reason::Stop {
                        let text = text(made);
                        assert_eq!(accepts(&params, &text), Ok(true), "{name}: {text}");
                        if let Some(schema) = params.get("json_schema").and_then(Value::as_str) {
                            let schema: Value = serde_json::from_str(schema).expect("a schema");
                            let value = serde_json::from_str(&text).expect("JSON");
                            assert_eq!(schema::violation(&schema, &value), None, "{name}");
                        }
                        ended += 1;
                    }
                }
            }
        }
    }
    assert!(ended * 2 > answered, "only {ended} of {answered} answers ended");
}

struct Text(Tokenizer);
impl Vocabulary for Text {
    fn len(&self) -> usize {
        self.0.vocab()
    }
    fn bytes(&self, token: Token) -> Option<Vec<u8>> {
        if self.0.is_special(token) { None } else { self.0.token_bytes(token).ok().map(<[u8]>::to_vec) }
    }
    fn encode(&self, text: &str) -> Vec<Token> {
        self.0.encode(text, false).unwrap_or_default()
    }
}

/// (name, schema): a few of JSONSchemaBench; with OMNIDECODE_TEST_SCHEMAS a file of more, evenly over their sizes.
fn schemas() -> Vec<(String, Value)> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/schemas.jsonl");
    let file = std::env::var("OMNIDECODE_TEST_SCHEMAS").map_or(own, PathBuf::from);
    let lines = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let all = lines.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    let mut all: Vec<(String, Value)> =
        all.map(|v| (v["id"].as_str().unwrap_or("").to_owned(), v["schema"].clone())).collect();
    all.sort_by_key(|(name, schema)| (schema.to_string().len(), name.clone()));
    let most = std::env::var("OMNIDECODE_TEST_SCHEMAS_MOST").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let step = (all.len() / most).max(1);
    all.into_iter().step_by(step).take(most).collect()
}

/// The draft for the model: the trained one of this repository, or else the model itself.
fn draft(main: &str) -> PathBuf {
    let trained = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/smollm2-draft");
    if trained.is_dir() { trained } else { main.into() }
}

/// Schemas under a real pair of models: all answers that end are valid under every strategy, deterministic drafts and sampled
/// trees alike, and exact ones agree with plain decoding.
#[test]
fn schemas_on_a_real_model() {
    let Ok(path) = std::env::var("OMNIDECODE_TEST_GGUF") else {
        eprintln!("skipped: OMNIDECODE_TEST_GGUF is not set");
        return;
    };
    let weights = Weights::open(&path).expect("opens");
    let tokenizer = Arc::new(Text(weights.tokenizer().expect("a tokenizer")));
    let vocabulary: Arc<dyn Vocabulary> = tokenizer.clone();
    let network = Decoder::load(&weights, &Loading::default()).expect("loads");
    let card = network.card().clone();
    let beside = Loading { pool: Some(network.pool().clone()), ..Loading::default() };
    let second = Decoder::load(&Weights::open(draft(&path)).expect("opens"), &beside).expect("loads");
    assert_eq!(second.card().vocab, card.vocab);
    let networks = vec![NamedNetwork::new("main", Box::new(network)), NamedNetwork::new("draft", Box::new(second))];
    let mut bench = Bench::new(Config { pages: 512, tail: 1024, ..Config::default() }, networks).expect("starts");
    let strategies = [
        ("plain", json!({})),
        ("token-recycling", json!({})),
        ("rsd-c", json!({"branching": [2, 2, 1]})),
        ("rsd-s", json!({"width": 3, "depth": 3})),
        ("dyspec", json!({"nodes": 10})),
        ("draft-model", json!({"tokens": 4, "adaptive": false})),
    ];
    let (mut ended, mut refused, mut answered) = (vec![0; strategies.len()], Vec::new(), 0);
    let mut seen = Vec::new();
    for (name, schema) in schemas() {
        let params = options(json!({"json_schema": schema.to_string()}));
        let ask = format!(
            "<|im_start|>user\nGive an example of: {}. Answer in JSON.<|im_end|>\n<|im_start|>assistant\n",
            schema["description"].as_str().or(schema["title"].as_str()).unwrap_or("a record")
        );
        let prompt = tokenizer.0.encode(&ask, false).expect("encodes");
        let sampling = Sampling { max_tokens: Some(64), temperature: 0.7, seed: 5, ..Sampling::default() };
        let mut handles = Vec::new();
        for (strategy, shape) in &strategies {
            let mut request = request(strategy, &options(shape.clone()), &prompt, &sampling);
            let to = Context { card: &card, prompt: &prompt, vocabulary: Some(vocabulary.clone()) };
            match companions::attach("grammar", &params, &to, &mut request) {
                Ok(()) => handles.push((*strategy, bench.submit(request))),
                Err(e) => refused.push(format!("{name}: {e}")),
            }
        }
        bench.run();
        let answers: Vec<(&str, Answer)> = handles.into_iter().map(|(s, h)| (s, h.collect())).collect();
        for (at, (strategy, answer)) in answers.iter().enumerate() {
            let Ok(end) = &answer.end else { panic!("{name} under {strategy}: {:?}", answer.end) };
            if end.guarantee == Guarantee::Exact {
                assert_eq!(answer.delta.tokens, answers[0].1.delta.tokens, "{name} under {strategy}");
            }
            answered += 1;
            if end.reason == Reason::Stop {
                let text = tokenizer.0.decode(&answer.delta.tokens, true);
                let value: Value =
                    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name} {strategy}: {e}: {text}"));
                assert_eq!(schema::violation(&schema, &value), None, "{name} under {strategy}");
                assert_eq!(accepts(&params, &text), Ok(true), "{name} under {strategy}: {text}");
                ended[at] += 1;
                seen.push(json!({"schema": schema, "value": value}).to_string());
            }
        }
    }
    let counts: Vec<_> = strategies.iter().map(|s| s.0).zip(&ended).collect();
    println!("of {answered} answers these ended, all valid: {counts:?}; refused: {refused:#?}");
    if let Ok(path) = std::env::var("OMNIDECODE_TEST_SCHEMAS_OUT") {
        std::fs::write(path, seen.join("\n")).expect("written");
    }
    assert!(ended.iter().all(|&n| n > 0) && refused.len() < answered, "{ended:?}");
}
