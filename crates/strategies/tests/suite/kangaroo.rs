//! Sheet 50 on the golden Llama: its Contract, with adapters that are right, wrong and absent-minded.

use crate::common::{options, prompts, sampling};
use omnidecode_engine::testing::Bench;
use omnidecode_engine::{Answer, Config, Cost, NamedNetwork, Origin, Request, Sampling, Source, Token, Usage};
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::step::{Entry, Segment, Step, Tap};
use omnidecode_models::{ModelCard, Network, NetworkError, Reading, Weights};
use omnidecode_strategies::strategy;
use serde_json::json;
use std::ops::Range;

const LAYERS: usize = 3;

fn golden() -> Decoder {
    let folder = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
    let weights = Weights::open(&folder).expect("the golden folder is in the repository");
    Decoder::load(&weights, &Options { threads: Some(1), ..Options::default() }).expect("loads")
}

/// Some layers of the model, entered by embeddings: the remaining ones are an oracle, others a wrong adapter.
struct Slice {
    inner: Decoder,
    card: ModelCard,
    layers: Range<usize>,
}
impl Slice {
    fn of(layers: Range<usize>) -> Slice {
        let inner = golden();
        let card = ModelCard { layers: layers.len(), bytes: 100, ..inner.card().clone() };
        Slice { inner, card, layers }
    }
}
impl Network for Slice {
    fn card(&self) -> &ModelCard {
        &self.card
    }
    fn reserve(&mut self, pages: usize, tail: usize) -> Result<(), NetworkError> {
        self.inner.reserve(pages, tail)
    }
    fn run(
        &mut self,
        step: &Step,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        let mut step = step.clone();
        for row in &mut step.rows {
            match row.entry {
                Entry::Embedding(at) => row.entry = Entry::Hidden(at),
                ref other => panic!("an adapter is fed states, not {other:?}"),
            }
        }
        let shift = |layers: &Range<usize>| layers.start + self.layers.start..layers.end + self.layers.start;
        step.segments.iter_mut().for_each(|s: &mut Segment| s.layers = shift(&s.layers));
        step.taps.iter_mut().for_each(|t: &mut Tap| t.layer += self.layers.start);
        self.inner.run(&step, bend, each)
    }
    fn copy(&mut self, moves: &[(u32, u32)]) {
        self.inner.copy(moves);
    }
    fn slot_bytes(&self) -> usize {
        self.inner.slot_bytes()
    }
}

fn config() -> Config {
    Config { pages: 128, tail: 256, cost: Cost::Fixed(vec![(1, 1.0), (8, 1.1), (32, 3.0)]), ..Config::default() }
}
fn decode(
    adapter: Option<Slice>,
    name: &str,
    params: serde_json::Value,
    asked: &[(Vec<Token>, Sampling)],
) -> Vec<Answer> {
    let mut networks = vec![NamedNetwork::new("main", Box::new(golden()))];
    networks.extend(adapter.map(|a| NamedNetwork::new("adapter", Box::new(a))));
    let mut bench = Bench::new(config(), networks).expect("starts");
    let request = |(prompt, sampling): &(Vec<Token>, Sampling)| {
        Request::new(prompt.clone(), strategy(name, &options(params.clone())).expect("fits"), sampling.clone())
    };
    let handles: Vec<_> = asked.iter().map(|a| bench.submit(request(a))).collect();
    bench.run();
    assert_eq!(bench.leftovers(), (0, 0, 0));
    assert_eq!((bench.stats().pages_used, bench.stats().tail_used), (0, 0));
    handles.into_iter().map(|h| h.collect()).collect()
}
fn usage(answer: &Answer) -> Usage {
    answer.end.clone().expect("ended").usage
}
fn asked(count: usize, temperature: f32) -> Vec<(Vec<Token>, Sampling)> {
    prompts(count).into_iter().enumerate().map(|(i, p)| (p, sampling(i, temperature))).collect()
}
fn endless() -> Vec<(Vec<Token>, Sampling)> {
    let sampling = Sampling { ignore_eos: true, max_tokens: Some(37), ..Sampling::default() };
    vec![(vec![1, 17, 250, 3, 9], sampling)]
}

/// Token for token plain decoding, for every exit layer, length and confidence, right and wrong adapters.
#[test]
fn exact_for_every_exit_length_and_confidence() {
    for temperature in [0.0, 1.0] {
        let asked = asked(24, temperature);
        let plain = decode(None, "plain", json!({}), &asked);
        for exit in 1..LAYERS {
            for (wrong, layers) in [(false, exit..LAYERS), (true, 0..1)] {
                for gamma in [1, 3, 6] {
                    for eta in [0.0, 0.3, 2.0] {
                        let params = json!({"exit_layer": exit, "gamma": gamma, "eta": eta, "adaptive": gamma == 6});
                        let answers = decode(Some(Slice::of(layers.clone())), "kangaroo", params.clone(), &asked);
                        for (i, (a, p)) in answers.iter().zip(&plain).enumerate() {
                            let what = format!("{params}, wrong {wrong}, at {temperature}, prompt {i}");
                            assert_eq!(a.delta.tokens, p.delta.tokens, "{what}");
                            assert_eq!(a.end.as_ref().map(|e| e.reason), p.end.as_ref().map(|e| e.reason), "{what}");
                        }
                    }
                }
            }
        }
    }
}

/// The real remaining layers as adapter: everything is accepted.
#[test]
fn an_oracle_is_always_right() {
    for temperature in [0.0, 1.0] {
        let mut asked = endless();
        asked[0].1.temperature = temperature;
        for exit in 1..LAYERS {
            let params = json!({"exit_layer": exit, "gamma": 5, "eta": 0.0, "adaptive": false});
            let answers = decode(Some(Slice::of(exit..LAYERS)), "kangaroo", params, &asked);
            let u = usage(&answers[0]);
            // 37 tokens in rounds of 6, and the last round may draft none.
            assert_eq!(u.accepted, u.drafted, "{u:?}");
            assert_eq!(u.drafted, 30, "{u:?}");
            let depths: Vec<u32> = answers[0].delta.origins.iter().take(6).map(|o: &Origin| o.depth).collect();
            assert!(
                answers[0].delta.origins[..5].iter().all(|o| o.source == Source::Draft),
                "which tokens were drafted"
            );
            assert!(depths[5] == 0 && depths[..5].iter().all(|&d| d > 0), "{depths:?}");
        }
    }
}

/// Above 1, eta stops every draft after one token; at 0, drafts are gamma long. No layer runs twice for what is kept.
#[test]
fn rounds_cost_what_they_should() {
    for (eta, long) in [(2.0, 1), (0.0, 4)] {
        let params = json!({"exit_layer": 2, "gamma": 4, "eta": eta, "adaptive": false});
        let answers = decode(Some(Slice::of(2..LAYERS)), "kangaroo", params, &endless());
        let u = usage(&answers[0]);
        let emitted = long + 1;
        let rounds = 37usize.div_ceil(emitted);
        // The last round is cut to what is left.
        let last = (37 - (rounds - 1) * emitted).min(emitted) - 1;
        let drafted = (rounds - 1) * long + last;
        assert_eq!(u.drafted, drafted, "eta {eta}: {u:?}");
        // Main: prompt 4 rows; a round of d drafts has d + 1 rows through all three layers, each once.
        let main = 4 * LAYERS + (drafted + rounds) * LAYERS;
        // Adapter: one layer; all but the last places of the text pass once.
        let adapter = u.rows_by_model[1];
        assert_eq!(u.row_layers, main + adapter, "eta {eta}: {u:?}");
        assert!(adapter <= 4 + drafted + rounds, "the adapter computes each place once: {u:?}");
    }
}

/// More tokens a draft, no fewer a round.
#[test]
fn longer_drafts_never_commit_less_a_round() {
    let mut before = 0.0;
    for gamma in 1..=6 {
        let params = json!({"exit_layer": 2, "gamma": gamma, "eta": 0.0, "adaptive": false});
        let answers = decode(Some(Slice::of(0..1)), "kangaroo", params, &endless());
        let u = usage(&answers[0]);
        let rounds = (u.generated - u.accepted) as f64;
        let mean = u.generated as f64 / rounds;
        assert!((1.0..=gamma as f64 + 1.0).contains(&mean), "{mean}");
        assert!(mean >= before - 0.05, "gamma {gamma}: {mean} after {before}"); // the cut last round blurs it
        before = mean;
    }
}

/// Which tokens exited where: every drafted token is in a note, kept ones as `early` at their places, and a trace changes
/// nothing.
#[test]
fn the_trace_tells_where_tokens_left() {
    for (adapter, temperature) in [(2..LAYERS, 0.0), (0..1, 1.0)] {
        let asked = asked(8, temperature);
        let go = |trace: bool| {
            let params = json!({"exit_layer": 2, "gamma": 4, "eta": 0.1, "adaptive": false, "trace": trace});
            decode(Some(Slice::of(adapter.clone())), "kangaroo", params, &asked)
        };
        for (i, (answer, silent)) in go(true).iter().zip(&go(false)).enumerate() {
            assert_eq!(answer.delta.tokens, silent.delta.tokens);
            assert!(silent.end.as_ref().expect("ended").notes.is_empty());
            let (u, prompt) = (usage(answer), asked[i].0.len());
            let notes = &answer.end.as_ref().expect("ended").notes;
            let all = |label: &str| notes.iter().filter(|n| n.label == label).map(|n| n.tokens.len()).sum::<usize>();
            assert_eq!((all("early") + all("late"), all("early")), (u.drafted, u.accepted));
            for note in notes {
                assert!(note.tokens.iter().all(|t| (0.0..=1.0).contains(&t.1)), "confidences: {note:?}");
                let at = note.place - prompt;
                if note.label == "early" {
                    let kept = answer.delta.tokens.iter().skip(at).zip(&answer.delta.origins[at..]);
                    for ((token, origin), early) in kept.zip(&note.tokens) {
                        assert_eq!((*token, origin.source), (early.0, Source::Draft), "prompt {i}: {note:?}");
                    }
                } else if let Some(token) = answer.delta.tokens.get(at) {
                    assert_ne!(*token, note.tokens[0].0, "prompt {i}: refused for another: {note:?}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let fails = |adapter: Option<Slice>, params: serde_json::Value| {
        let answers = decode(adapter, "kangaroo", params, &endless());
        answers[0].end.clone().expect_err("refused").to_string()
    };
    assert!(fails(None, json!({})).contains("adapter"));
    let deep = fails(Some(Slice::of(2..3)), json!({"exit_layer": 3}));
    assert!(deep.contains("3 layers") && deep.contains("1 to 2"), "{deep}");
    let mut narrow = Slice::of(2..3);
    narrow.card.hidden = 32;
    assert!(fails(Some(narrow), json!({"exit_layer": 2})).contains("width 32"));
    assert!(strategy("kangaroo", &options(json!({"gamma": 0}))).is_err());
}

/// An adapter with a short context stops drafting there; the text goes on.
#[test]
fn the_adapters_context_bounds_drafts() {
    let mut short = Slice::of(2..LAYERS);
    short.card.context = 20;
    let params = json!({"exit_layer": 2, "eta": 0.0, "adaptive": false});
    let answers = decode(Some(short), "kangaroo", params, &endless());
    let plain = decode(None, "plain", json!({}), &endless());
    assert_eq!(answers[0].delta.tokens, plain[0].delta.tokens);
    assert!(usage(&answers[0]).drafted > 0);
}
