//! Sheet 42, contracts 1 to 3 and 8, on the golden Llama and on a copy of it with planted neurons.
use omnidecode_models::neurons::{CHUNK, Neurons, View};
use omnidecode_models::{Field, Part, Weights};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama")
}
fn floats(weights: &Weights, layer: Option<usize>, part: Part) -> Vec<f32> {
    weights.part(layer, part, Field::Weight).expect("there").to_f32().expect("floats")
}

/// Chunked and by threads, it is the whole product: the law of each neuron by a plain loop in f64.
#[test]
fn laws_are_those_of_the_head() {
    let weights = Weights::open(golden()).expect("opens");
    let (hidden, vocab) = (weights.config().hidden, weights.config().vocab);
    let head = floats(&weights, None, Part::Output);
    for (threads, view) in [(1, View::default()), (2, View { cosine: true, negative: true, ..View::default() })] {
        let neurons = Neurons::open(&weights, view.clone(), Some(threads)).expect("opens");
        for layer in 0..neurons.layers() {
            let found = neurons.decode(layer, 3).expect("decodes");
            assert!(neurons.width() > CHUNK && found.lse.len() == neurons.width());
            let up = floats(&weights, Some(layer), Part::Up);
            for n in (0..neurons.width()).step_by(5) {
                let dot = |v: usize| -> f64 {
                    let (u, w) = (&up[n * hidden..][..hidden], &head[v * hidden..][..hidden]);
                    let dot: f64 = u.iter().zip(w).map(|(u, w)| f64::from(*u) * f64::from(*w)).sum();
                    let long: f64 = w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
                    if view.cosine { -dot / long } else { dot }
                };
                let logits: Vec<f64> = (0..vocab).map(dot).collect();
                let sum: f64 = logits.iter().map(|l| l.exp()).sum();
                let law: Vec<f64> = logits.iter().map(|l| l.exp() / sum).collect();
                assert!((law.iter().sum::<f64>() - 1.0).abs() < 1e-9);
                let mut order: Vec<usize> = (0..vocab).collect();
                order.sort_by(|&a, &b| law[b].total_cmp(&law[a]).then(a.cmp(&b)));
                for k in 0..3 {
                    let (token, p) = (found.tokens[3 * n + k] as usize, f64::from(found.probabilities[3 * n + k]));
                    assert!((p - law[order[k]]).abs() < 1e-5 * p.max(1e-3), "{layer} {n}: {p} for {}", law[order[k]]);
                    assert!(token == order[k] || (law[token] - law[order[k]]).abs() < 1e-6 * p);
                }
                let entropy: f64 = law.iter().map(|p| -p * p.ln()).sum();
                assert!((f64::from(found.entropy[n]) - entropy).abs() < 1e-3);
                assert!((f64::from(found.lse[n]) - sum.ln()).abs() < 1e-4);
            }
            let some = neurons.logits_of(layer, &[7, 200]).expect("logits");
            let all = floats(&weights, Some(layer), Part::Up);
            assert_eq!(some.len(), 2 * all.len() / hidden);
        }
        assert!(neurons.logits_of(0, &[vocab as u32]).is_err());
    }
}

/// A copy of the golden model in which some rows of an up-projection are replaced.
fn planted(rows: &[(usize, Vec<f32>)], layer: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(golden()).expect("listed").flatten() {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copied");
    }
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("read");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let tensor = &header[format!("model.layers.{layer}.mlp.up_proj.weight")];
    assert_eq!(tensor["dtype"], "F32");
    let from = 8 + length + tensor["data_offsets"][0].as_u64().expect("an offset") as usize;
    for (row, values) in rows {
        for (i, value) in values.iter().enumerate() {
            bytes[from + 4 * (row * values.len() + i)..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }
    std::fs::write(&path, bytes).expect("written");
    folder
}
fn open(folder: &Path) -> Weights {
    Weights::open(folder).expect("opens")
}

/// Contract 3: a neuron that points at a token's row of the head is read as that token, where rows are equally long (with
/// `cosine` they are), however long the neuron is.
#[test]
fn planted_neurons_are_found() {
    let head = floats(&open(&golden()), None, Part::Output);
    let hidden = open(&golden()).config().hidden;
    let tokens = [5usize, 77, 130, 201];
    for length in [0.1f32, 1.0, 30.0] {
        let row = |t: usize| {
            let w = &head[t * hidden..][..hidden];
            let long = w.iter().map(|v| v * v).sum::<f32>().sqrt();
            w.iter().map(|v| v * length / long).collect::<Vec<f32>>()
        };
        let rows: Vec<_> = tokens.iter().enumerate().map(|(i, &t)| (10 * i + 3, row(t))).collect();
        let folder = planted(&rows, 1);
        let weights = open(folder.path());
        let neurons = Neurons::open(&weights, View { cosine: true, ..View::default() }, Some(1)).expect("opens");
        let found = neurons.decode(1, 1).expect("decodes");
        for (i, &token) in tokens.iter().enumerate() {
            assert_eq!(found.tokens[10 * i + 3] as usize, token, "length {length}");
        }
        // Contract 2: the length changes how sharp the law is, not its order.
        let scaled = View { length: Some(7.0), cosine: true, ..View::default() };
        let scaled = Neurons::open(&weights, scaled, Some(1)).expect("opens").decode(1, 1).expect("decodes");
        assert_eq!(scaled.tokens[3] as usize, tokens[0]);
    }
}

#[test]
fn controls_keep_lengths_and_other_models_are_refused() {
    let weights = open(&golden());
    let view = |random| Neurons::open(&weights, View { random, ..View::default() }, Some(1)).expect("opens");
    let (own, random) = (view(None).directions(0).expect("rows"), view(Some(3)).directions(0).expect("rows"));
    let hidden = weights.config().hidden;
    for (a, b) in own.chunks(hidden).zip(random.chunks(hidden)) {
        let long = |r: &[f32]| r.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((long(a) - long(b)).abs() < 1e-4 * long(a) && a != b);
    }
    assert_eq!(random, view(Some(3)).directions(0).expect("rows"));
    assert!(Neurons::open(&weights, View { part: Part::Q, ..View::default() }, None).is_err());
    let sparse = golden().parent().map(|p| p.join("mixtral"));
    if let Some(sparse) = sparse.filter(|p| p.is_dir()) {
        let weights = open(&sparse);
        let error = Neurons::open(&weights, View::default(), None).err().expect("experts");
        assert!(error.to_string().contains("dense"), "{error}");
    }
}
