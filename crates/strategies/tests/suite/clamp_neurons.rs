//! Sheet 42 on the golden Llama: contract items 4 to 7, the part that is the engine's. (Items 1 to 3 and 8 are of the
//! map of neurons, which reads weights.)

use crate::common::bent::{Place, folder, golden, read, read_with};
use omnidecode_engine::{Clamp, ClampAction, Edits, Readout, Token};
use omnidecode_models::{Network, Weights};
use omnidecode_strategies::companions::{Attachment, CompanionError, Context, find};
use serde_json::json;

const CASE: &str = "llama";
const PROMPT: [Token; 11] = [1, 30, 77, 12, 250, 9, 41, 41, 8, 199, 300];
const LAYER: usize = 1;

fn attached(params: serde_json::Value) -> Result<Attachment, CompanionError> {
    let network = golden(CASE);
    let entry = find("clamp-neurons").expect("registered");
    (entry.attach)(
        &crate::common::options(params),
        &Context { card: network.card(), prompt: &PROMPT, vocabulary: None },
    )
}
fn edits(params: serde_json::Value) -> Option<Edits> {
    attached(params).expect("fits").edits
}
fn clamp(neuron: usize, mode: &str, value: f64) -> Option<Edits> {
    edits(json!({"neurons": [LAYER, neuron], "values": [value], "mode": mode}))
}
fn everything() -> Readout {
    Readout::LOGITS.hidden(1).hidden(2).hidden(3)
}
fn run(edits: Option<Edits>) -> Vec<Place> {
    read(CASE, edits, &PROMPT, &[], &everything())
}
/// The state that leaves the clamped layer, of the three that are read.
fn after(place: &Place) -> &[f32] {
    let wide = place.hidden.len() / 3;
    &place.hidden[wide..2 * wide]
}
fn before(place: &Place) -> &[f32] {
    &place.hidden[..place.hidden.len() / 3]
}
fn bits(places: &[Place]) -> Vec<u32> {
    places.iter().flat_map(|p| p.logits.iter().chain(&p.hidden)).map(|x| x.to_bits()).collect()
}
/// Column of the down-projection: what a neuron writes.
fn writes(neuron: usize) -> Vec<f32> {
    let weights = Weights::open(folder(CASE)).expect("opens");
    let down = weights.tensor("model.layers.1.mlp.down_proj.weight").expect("the down-projection");
    let (columns, all) = (down.columns(), down.to_f32().expect("floats"));
    all.chunks(columns).map(|row| row[neuron]).collect()
}
/// How far `b` is from `a` along what the neuron writes: the change of its product, and the part that is elsewhere.
fn change(a: &Place, b: &Place, column: &[f32]) -> (f64, f64) {
    let delta: Vec<f64> = after(a).iter().zip(after(b)).map(|(a, b)| f64::from(b - a)).collect();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let column: Vec<f64> = column.iter().map(|c| f64::from(*c)).collect();
    let along = dot(&delta, &column) / dot(&column, &column);
    let off = delta.iter().zip(&column).map(|(d, c)| (d - along * c).abs()).fold(0.0, f64::max);
    (along, off)
}

/// Contract 4: nothing clamped is the model as it is, bit for bit; a neuron held at its own value changes nothing.
#[test]
fn neutral_is_absent() {
    let plain = run(None);
    assert!(edits(json!({})).is_none() && edits(json!({"mode": "post"})).is_none());
    assert_eq!(bits(&plain), bits(&run(Some(Edits::default()))));
    for (mode, value) in [("add", 0.0), ("scale", 1.0)] {
        assert_eq!(bits(&plain), bits(&run(clamp(33, mode, value))), "{mode} {value}");
    }
}

/// Contract 7 and the four modes: the layer's output moves by the change of the product times what the neuron writes.
#[test]
fn clamps_are_linear_in_what_the_neuron_writes() {
    let plain = run(None);
    for neuron in [0, 33, 159] {
        let column = writes(neuron);
        let moved = |mode, value| {
            let clamped = run(clamp(neuron, mode, value));
            let each = plain.iter().zip(&clamped).map(|(a, b)| change(a, b, &column)).collect::<Vec<_>>();
            assert!(each.iter().all(|c| c.1 < 2e-5), "{mode} {value}: something else moved: {each:?}");
            each.into_iter().map(|c| c.0).collect::<Vec<f64>>()
        };
        // old = -(change when the product is held at 0); act(gate) = change of the product per unit of up.
        let old: Vec<f64> = moved("post", 0.0).iter().map(|c| -c).collect();
        let gate = moved("add", 1.0);
        let close = |what: &str, found: Vec<f64>, expected: &dyn Fn(usize) -> f64| {
            for (place, c) in found.iter().enumerate() {
                let e = expected(place);
                assert!((c - e).abs() < 1e-4 * e.abs().max(1.0), "{what}, neuron {neuron}, place {place}: {c} for {e}");
            }
        };
        close("post 2", moved("post", 2.0), &|i| 2.0 - old[i]);
        close("post -3", moved("post", -3.0), &|i| -3.0 - old[i]);
        close("set 0", moved("set", 0.0), &|i| -old[i]);
        close("set 1.5", moved("set", 1.5), &|i| 1.5 * gate[i] - old[i]);
        close("scale -2", moved("scale", -2.0), &|i| -3.0 * old[i]);
        close("add 4", moved("add", 4.0), &|i| 4.0 * gate[i]);
        // Held at its own value, at one place, nothing changes beyond rounding.
        let place = PROMPT.len() - 1;
        let own = |action, value: f64| Clamp {
            layer: LAYER as u32,
            neuron: neuron as u32,
            from: place as u32,
            action,
            value: value as f32,
        };
        let up = old[place] / gate[place];
        for clamp in [own(ClampAction::Post, old[place]), own(ClampAction::Set, up)] {
            let held = run(Some(Edits { biases: Vec::new(), clamps: vec![clamp] }));
            let worst = plain[place].logits.iter().zip(&held[place].logits).map(|(a, b)| (a - b).abs());
            assert!(worst.fold(0.0, f32::max) < 1e-3, "{clamp:?}");
        }
    }
}

/// Contract 5: layers before the clamped one do not know; those behind do.
#[test]
fn only_later_layers_see_it() {
    let (plain, clamped) = (run(None), run(clamp(33, "post", 5.0)));
    for (place, (a, b)) in plain.iter().zip(&clamped).enumerate() {
        assert_eq!(before(a), before(b), "place {place}");
        assert_ne!(after(a), after(b), "place {place}");
        assert_ne!(a.logits, b.logits);
    }
    // Generated places only: the prompt's rows stay as they are.
    let fresh = edits(json!({"neurons": [LAYER, 33], "values": [5.0], "mode": "post", "prompt": false}));
    let (plain, fresh) =
        (read(CASE, None, &PROMPT, &[7, 8], &everything()), read(CASE, fresh, &PROMPT, &[7, 8], &everything()));
    assert_eq!(bits(&plain[..PROMPT.len()]), bits(&fresh[..PROMPT.len()]));
    assert_ne!(bits(&plain[PROMPT.len()..]), bits(&fresh[PROMPT.len()..]));
}

/// Contract 6: token by token is the whole prompt, and what runs beside it changes nothing. Several clamps add up.
#[test]
fn incremental_is_full() {
    let several =
        || edits(json!({"neurons": [0, 5, 1, 33, 1, 34, 2, 100], "values": [1.0, -2.0, 3.0, 0.5], "mode": "set"}));
    let full = run(several());
    for cut in [1, 4, 10] {
        let steps = read(CASE, several(), &PROMPT[..cut], &PROMPT[cut..], &everything());
        assert_eq!(bits(&full), bits(&steps), "cut at {cut}");
    }
    assert_eq!(bits(&full), bits(&read_with(CASE, several(), &PROMPT, &[], &everything(), true)), "in a crowd");
    let twice = [clamp(33, "add", 1.0), clamp(33, "add", 1.0)];
    let clamps = twice.into_iter().flatten().flat_map(|e| e.clamps).collect();
    let (twice, once) = (run(Some(Edits { biases: Vec::new(), clamps })), run(clamp(33, "add", 2.0)));
    let worst = after(&twice[3]).iter().zip(after(&once[3])).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "two clamps on one neuron add up: {worst}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = [
        json!({"neurons": [1]}),
        json!({"neurons": [3, 0], "values": [1.0]}),
        json!({"neurons": [0, 160], "values": [1.0]}),
        json!({"neurons": [0, 1], "values": []}),
        json!({"neurons": [0, 1, 0, 2, 0, 3], "values": [1.0, 2.0]}),
        json!({"neurons": [0, 1], "values": [1.0], "mode": "mul"}),
    ];
    for bad in refused {
        let error = attached(bad.clone()).err().unwrap_or_else(|| panic!("{bad} was taken"));
        assert!(matches!(error, CompanionError::Params(_) | CompanionError::Unfit { .. }), "{error}");
    }
}
