//! Law 1 on a real decoder: a thousand prompts on a tiny checkpoint, greedy and sampled.

use crate::common::{config, prompts, request, sampling, together_on, tokens};
use omnidecode_engine::{Guarantee, NamedNetwork, Request};
use omnidecode_models::Weights;
use omnidecode_models::decoder::{Decoder, Options as Load};
use omnidecode_strategies::ALL;
use omnidecode_strategies::params::Options;
use std::path::Path;

fn network() -> Vec<NamedNetwork> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
    let weights = Weights::open(folder).expect("a golden checkpoint");
    let decoder = Decoder::load(&weights, &Load { threads: Some(1), ..Load::default() }).expect("loads");
    vec![NamedNetwork::new("main", Box::new(decoder))]
}

#[test]
fn a_thousand_prompts_on_a_tiny_llama() {
    let prompts = prompts(1000);
    for temperature in [0.0, 1.0] {
        let ask = |name: &str| -> Vec<Request> {
            let each = prompts.iter().enumerate();
            each.map(|(i, p)| request(name, &Options::new(), p, &sampling(i, temperature))).collect()
        };
        let plain = together_on(network(), config(), ask("plain"));
        for entry in ALL.iter().filter(|e| e.card.guarantee == Guarantee::Exact && e.card.needs.is_empty()) {
            let answers = together_on(network(), config(), ask(entry.card.name));
            for (i, (answer, plain)) in answers.iter().zip(&plain).enumerate() {
                assert_eq!(tokens(answer), tokens(plain), "{} at {temperature}, prompt {i}", entry.card.name);
            }
        }
    }
}
