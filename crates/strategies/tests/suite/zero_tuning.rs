//! Sheet 29 on the golden Llama: the Contract, as far as it is the engine's. (Calibration is Python's; there is no
//! padding, so item 8 becomes: beside other requests.)

use crate::common::bent::{Place, golden, read, read_with};
use omnidecode_engine::{Bias, Edits, Readout, Token};
use omnidecode_models::Network;
use omnidecode_strategies::companions::{Attachment, CompanionError, Context, find};
use serde_json::json;

const CASE: &str = "llama";
const PROMPT: [Token; 17] = [1, 30, 77, 12, 250, 9, 41, 41, 8, 199, 300, 5, 77, 12, 61, 7, 90];

fn attached(params: serde_json::Value) -> Result<Attachment, CompanionError> {
    let network = golden(CASE);
    let entry = find("zero_tuning").expect("registered");
    let to = Context { card: network.card(), prompt: &PROMPT, vocabulary: None };
    (entry.attach)(&crate::common::options(params), &to)
}
fn edits(params: serde_json::Value) -> Option<Edits> {
    attached(params).expect("fits").edits
}

/// Attention of one head at every place of a layer, [place][key], read off the head-mean by pinning the others to key 0.
fn head(layer: usize, heads: usize, head: usize) -> Vec<Vec<f64>> {
    let pin = |h| Bias { layer: layer as u32, head: h as u32, place: 0, add: 80.0 };
    let others = (0..heads).filter(|&h| h != head).map(pin).collect();
    let places =
        read(CASE, Some(Edits { biases: others, clamps: Vec::new() }), &PROMPT, &[], &Readout::NOTHING.mass(layer));
    let one = |p: &Place| {
        let mut row: Vec<f64> = p.mass.iter().map(|m| f64::from(*m) * heads as f64).collect();
        row[0] -= heads as f64 - 1.0;
        row
    };
    places.iter().map(one).collect()
}

/// Contract 2, 3, 4: the bias is probability scaling, per layer and head.
#[test]
fn the_bias_is_probability_scaling() {
    let card = golden(CASE).card().clone();
    for layer in 0..card.layers {
        let heads: Vec<Vec<Vec<f64>>> = (0..card.heads).map(|h| head(layer, card.heads, h)).collect();
        let plain = read(CASE, None, &PROMPT, &[], &Readout::NOTHING.mass(layer));
        for (place, seen) in plain.iter().enumerate() {
            let mean = |j: usize| heads.iter().map(|h| h[place][j]).sum::<f64>() / heads.len() as f64;
            for (j, m) in seen.mass.iter().enumerate() {
                assert!((mean(j) - f64::from(*m)).abs() < 1e-5, "heads are read wrongly");
            }
        }
        let mut before = vec![0.0; PROMPT.len()];
        for (gamma, chosen) in [(0.25, vec![1]), (0.5, vec![0, 3]), (2.0, vec![0, 3]), (5.0, vec![0, 1, 2, 3])] {
            let tuned = edits(json!({"gamma": gamma, "heads": chosen, "layers": [layer]}));
            let seen = read(CASE, tuned, &PROMPT, &[], &Readout::NOTHING.mass(layer));
            for (place, seen) in seen.iter().enumerate() {
                let scaled: Vec<Vec<f64>> = (0..card.heads)
                    .map(|h| {
                        let a = &heads[h][place];
                        let gamma = if chosen.contains(&h) { gamma } else { 1.0 };
                        let d = 1.0 + (gamma - 1.0) * a[0];
                        a.iter().enumerate().map(|(j, a)| if j == 0 { gamma * a / d } else { a / d }).collect()
                    })
                    .collect();
                assert_eq!(seen.mass.len(), place + 1);
                assert!((seen.mass.iter().sum::<f32>() - 1.0).abs() < 1e-5, "a row sums to 1");
                for (j, m) in seen.mass.iter().enumerate() {
                    let expected = scaled.iter().map(|h| h[j]).sum::<f64>() / card.heads as f64;
                    assert!(
                        (expected - f64::from(*m)).abs() < 1e-5,
                        "layer {layer}, gamma {gamma}, place {place}, key {j}: {m} for {expected}"
                    );
                }
                if chosen == [0, 3] && place > 0 {
                    let first = f64::from(seen.mass[0]);
                    assert!(gamma < 1.0 || first > before[place], "more gamma, more weight on the first");
                    before[place] = first;
                }
            }
        }
    }
}

fn same(a: &[Place], b: &[Place]) -> bool {
    let bits = |p: &Place| p.logits.iter().chain(&p.hidden).map(|x| x.to_bits()).collect::<Vec<_>>();
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| bits(a) == bits(b))
}
fn everything() -> Readout {
    Readout::LOGITS.hidden(1).hidden(2).hidden(3)
}

/// Contract 1 and 5: gamma 1 and no head are the model as it is, bit for bit.
#[test]
fn neutral_is_absent() {
    let plain = read(CASE, None, &PROMPT, &[], &everything());
    assert!(edits(json!({"gamma": 1.0})).is_none(), "gamma 1 brings nothing");
    assert!(same(&plain, &read(CASE, edits(json!({})), &PROMPT, &[], &everything())));
    assert!(same(&plain, &read(CASE, Some(Edits::default()), &PROMPT, &[], &everything())));
    assert!(!same(&plain, &read(CASE, edits(json!({"gamma": 1.5})), &PROMPT, &[], &everything())));
}

/// Contract 6: all at once is layer by layer, head by head.
#[test]
fn layers_and_heads_compose() {
    let all = edits(json!({"gamma": 0.6})).expect("edits");
    let mut composed = Edits::default();
    for layer in 0..3 {
        for heads in [vec![2, 0], vec![1, 3]] {
            let part = edits(json!({"gamma": 0.6, "layers": [layer], "heads": heads})).expect("edits");
            composed.biases.extend(part.biases);
        }
    }
    assert!(same(
        &read(CASE, Some(all), &PROMPT, &[], &everything()),
        &read(CASE, Some(composed), &PROMPT, &[], &everything())
    ));
}

/// Contract 7 and 8: token by token is the whole prompt, and what runs beside it changes nothing.
#[test]
fn incremental_is_full() {
    let tuned = || edits(json!({"gamma": 3.0, "heads": [1, 2], "layers": [0, 2]}));
    let full = read(CASE, tuned(), &PROMPT, &[], &everything());
    for cut in [1, 5, 16] {
        let steps = read(CASE, tuned(), &PROMPT[..cut], &PROMPT[cut..], &everything());
        assert!(same(&full, &steps), "cut at {cut}");
    }
    assert!(same(&full, &read_with(CASE, tuned(), &PROMPT, &[], &everything(), true)), "in a crowd");
    // Row 0 sees itself only.
    assert!(same(&full[..1], &read(CASE, None, &PROMPT, &[], &everything())[..1]));
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = [
        json!({"gamma": 0.0}),
        json!({"gamma": -1.0}),
        json!({"gamma": 2.0, "heads": [4]}),
        json!({"gamma": 2.0, "layers": [3]}),
        json!({"gamma": 2.0, "place": PROMPT.len()}),
        json!({"gama": 2.0}),
    ];
    for bad in refused {
        let error = attached(bad.clone()).err().unwrap_or_else(|| panic!("{bad} was taken"));
        assert!(matches!(error, CompanionError::Params(_) | CompanionError::Unfit { .. }), "{error}");
    }
}
