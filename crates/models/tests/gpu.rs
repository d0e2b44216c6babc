//! The decoder of GPUs on kernels that the host runs, beside the decoder of CPUs, which is tested against transformers: the
//! same steps through both. Skipped, with a word on stderr, where there is no C++ compiler.
#![cfg(feature = "emulator")]
mod common;

use common::{CASES, Golden, folder};
use omnidecode_core::noise::{Key, Purpose};
use omnidecode_kernels::cuda::emulate::Emulator;
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::gpu::{self, GpuDecoder};
use omnidecode_models::step::Visible;
use omnidecode_models::{
    Bias, Choice, Clamp, ClampAction, Edits, Entry, ModelError, Network, NetworkError, RowEntry, RowRead, Segment,
    Step, Tap, Warp, Weights,
};
use std::sync::Arc;

/// All but those with experts, which the GPU does not have yet.
fn dense() -> impl Iterator<Item = &'static str> {
    CASES.into_iter().filter(|case| !["mixtral", "qwen3-moe"].contains(case))
}
const PAGES: usize = 64;
const TAIL: usize = 64;
const FIRST_TAIL: u32 = (PAGES * 32) as u32;

fn on_gpu(case: &str, graphs: bool) -> Option<GpuDecoder> {
    let weights = Weights::open(folder(case)).unwrap();
    let options = gpu::Options { graphs, ..gpu::Options::default() };
    let mut decoder = GpuDecoder::load(&weights, Box::new(Emulator::new()?), &options).unwrap();
    decoder.reserve(PAGES, TAIL).unwrap();
    Some(decoder)
}
fn on_cpu(case: &str) -> Decoder {
    let weights = Weights::open(folder(case)).unwrap();
    let mut decoder = Decoder::load(&weights, &Options { threads: Some(1), ..Options::default() }).unwrap();
    decoder.reserve(PAGES, TAIL).unwrap();
    decoder
}

/// What was read: logits and hidden states, one after the other.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    logits: Vec<f32>,
    hidden: Vec<f32>,
    choices: Vec<u32>,
    /// Statistics, largest, asked.
    numbers: Vec<f32>,
}
fn run(network: &mut dyn Network, step: &Step) -> Result<Seen, NetworkError> {
    let mut seen = Seen::default();
    network.run(step, &mut |_, row| row[3] += 100.0, &mut |_, reading| {
        assert_eq!(reading.error, None);
        seen.logits.extend_from_slice(reading.logits);
        seen.hidden.extend_from_slice(reading.hidden);
        seen.choices.extend(reading.choice);
        seen.choices.extend(reading.top.iter().map(|t| t.0));
        seen.numbers.extend(reading.top.iter().map(|t| t.1));
        let s = reading.stats;
        seen.numbers.extend([s.max, s.second, s.lse, s.entropy, reading.logprob]);
        seen.numbers.extend_from_slice(reading.asked);
    })?;
    Ok(seen)
}

fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max);
    assert!(worst <= tolerance && found.iter().all(|x| x.is_finite()), "{what}: off by {worst}");
}

/// Rows appended behind `from` places of the sequence that begins at page `first`.
fn append(step: &mut Step, ids: &[u32], first: u32, from: u32, full: bool, layers: usize) {
    let (row, page) = (step.rows.len(), step.pages.len());
    step.pages.extend(first..first + 8);
    for (i, &id) in ids.iter().enumerate() {
        let place = from + i as u32;
        let span = step.spans.len();
        step.spans.push((0, if full { from + ids.len() as u32 } else { place + 1 }));
        step.rows.push(RowEntry {
            entry: Entry::Token(id),
            position: place,
            place,
            slot: first * 32 + place,
            spans: span..span + 1,
            extras: 0..0,
        });
    }
    step.segments.push(Segment { rows: row..step.rows.len(), table: page..step.pages.len(), layers: 0..layers });
}
/// Rows in the tail; row `i` sees `committed` places and the rows that `sees` names.
fn behind(ids: &[u32], places: &[u32], committed: u32, sees: impl Fn(usize, usize) -> bool, layers: usize) -> Step {
    let mut step = Step { pages: (0..8).collect(), spans: vec![(0, committed)], ..Step::default() };
    for (i, &id) in ids.iter().enumerate() {
        let first = step.extras.len();
        let seen = (0..ids.len()).filter(|&j| sees(i, j));
        step.extras.extend(seen.map(|j| Visible { place: places[j], slot: FIRST_TAIL + j as u32 }));
        let (position, place, slot) = (places[i], places[i], FIRST_TAIL + i as u32);
        let extras = first..step.extras.len();
        step.rows.push(RowEntry { entry: Entry::Token(id), position, place, slot, spans: 0..1, extras });
    }
    step.segments.push(Segment { rows: 0..ids.len(), table: 0..8, layers: 0..layers });
    step
}
/// Read all logits and, with `taps`, every hidden state.
fn read_all(step: &mut Step, taps: Option<usize>) {
    for row in 0..step.rows.len() {
        step.reads.push(RowRead { row, logits: true, ..RowRead::default() });
        if let Some(layers) = taps {
            step.taps.extend((0..=layers).map(|layer| Tap { row, layer }));
        }
    }
}
fn prompt(case: &str) -> Vec<u32> {
    Golden::open(case).ids("input_ids")[..24].to_vec()
}

#[test]
fn every_dense_architecture() {
    for case in dense() {
        let Some(mut gpu) = on_gpu(case, true) else { return };
        let mut cpu = on_cpu(case);
        let (ids, layers) = (prompt(case), cpu.card().layers);
        // A prompt with its hidden states, then a tree behind it, then a few rows that see both sides.
        let mut first = Step::default();
        append(&mut first, &ids, 0, 0, false, layers);
        read_all(&mut first, Some(layers));
        let places: Vec<u32> = [0, 1, 1, 2, 2, 3].map(|d| 24 + d).to_vec();
        let ancestors = [vec![0], vec![0, 1], vec![0, 2], vec![0, 1, 3], vec![0, 2, 4], vec![0, 1, 3, 5]];
        let mut tree = behind(&ids[3..9], &places, 24, |i, j| ancestors[i].contains(&j), layers);
        read_all(&mut tree, None);
        let mut full = Step::default();
        append(&mut full, &ids[..11], 8, 0, true, layers);
        read_all(&mut full, None);
        for (what, step) in [("prompt", &first), ("tree", &tree), ("full", &full)] {
            let (found, expected) = (run(&mut gpu, step).unwrap(), run(&mut cpu, step).unwrap());
            close(&format!("{case}, {what}"), &found.logits, &expected.logits, 1e-4);
            close(&format!("{case}, {what}, hidden"), &found.hidden, &expected.hidden, 1e-4);
        }
        let golden = Golden::open(case).floats("logits");
        let mut again = Step::default();
        append(&mut again, &ids, 16, 0, false, layers);
        read_all(&mut again, None);
        let found = run(&mut gpu, &again).unwrap().logits;
        close(&format!("{case}, transformers"), &found, &golden[..found.len()], 1e-4);
    }
}

#[test]
fn rows_are_invariant_bitwise_and_graphs_change_nothing() {
    for case in ["llama", "qwen3", "gemma2", "mistral-window", "gpt2"] {
        let Some(mut gpu) = on_gpu(case, true) else { return };
        let layers = gpu.card().layers;
        let ids = prompt(case);
        let whole = |gpu: &mut GpuDecoder, chunk: usize| {
            let mut all = Vec::new();
            for (i, ids) in ids.chunks(chunk).enumerate() {
                let mut step = Step::default();
                append(&mut step, ids, 0, (i * chunk) as u32, false, layers);
                read_all(&mut step, None);
                all.extend(run(gpu, &step).unwrap().logits);
            }
            all
        };
        let expected = whole(&mut gpu, 24);
        for chunk in [1, 5, 17] {
            assert!(whole(&mut gpu, chunk) == expected, "{case}: chunks of {chunk}");
        }
        assert!(gpu.counts().graphs > 20, "{case}: {:?}", gpu.counts());
        let mut eager = on_gpu(case, false).unwrap();
        assert!(whole(&mut eager, 5) == expected, "{case}: launch by launch");
        assert_eq!(eager.counts().graphs, 0);
        // Beside other sequences.
        let mut both = Step::default();
        append(&mut both, &ids[..7], 16, 0, false, layers);
        append(&mut both, &ids, 0, 0, false, layers);
        append(&mut both, &[5; 40], 24, 0, false, layers);
        read_all(&mut both, None);
        let row = expected.len() / 24;
        let found = run(&mut gpu, &both).unwrap().logits;
        assert!(found[7 * row..31 * row] == expected, "{case}: in company");
        // The last rows in the tail.
        let mut tail = behind(&ids[17..], &(17..24).collect::<Vec<_>>(), 17, |i, j| j <= i, layers);
        read_all(&mut tail, None);
        assert!(run(&mut gpu, &tail).unwrap().logits == expected[17 * row..], "{case}: tail");
        // Accepted, they are where they would have been.
        gpu.copy(&(0..6).map(|i| (FIRST_TAIL + i, 17 + i)).collect::<Vec<_>>());
        let mut last = Step::default();
        append(&mut last, &ids[23..], 0, 23, false, layers);
        read_all(&mut last, None);
        assert!(run(&mut gpu, &last).unwrap().logits == expected[23 * row..], "{case}: accepted");
    }
}

#[test]
fn six_launches_a_layer_and_five() {
    let Some(gpu) = on_gpu("llama", true) else { return };
    let layers = gpu.card().layers;
    for rows in [1, 2, 8, 16, 32, 64] {
        assert_eq!(gpu.launches(rows), (6 * layers + 5, 6), "{rows} rows");
    }
}

#[test]
fn every_readout() {
    let Some(mut gpu) = on_gpu("qwen2", true) else { return };
    let mut cpu = on_cpu("qwen2");
    let layers = cpu.card().layers;
    let mut step = Step::default();
    append(&mut step, &prompt("qwen2"), 0, 0, false, layers);
    let key = |i: usize| Key::new(3, i, Purpose::Sample);
    let choice = |i: usize, warp: Warp| Some(Choice { warp, key: key(i) });
    step.asked = vec![1, 2, 3, 4];
    step.reads = vec![
        RowRead { row: 0, choice: choice(0, Warp::GREEDY), logprob: true, ..RowRead::default() },
        RowRead { row: 2, choice: choice(1, Warp::default()), top: 8, stats: true, ..RowRead::default() },
        RowRead {
            row: 3,
            choice: choice(2, Warp { temperature: 0.7, min_p: 0.05, ..Warp::default() }),
            logprob: true,
            ..RowRead::default()
        },
        RowRead {
            row: 5,
            choice: choice(3, Warp { top_p: 0.8, ..Warp::default() }),
            logprob: true,
            ..RowRead::default()
        },
        RowRead {
            row: 9,
            bend: true,
            choice: choice(4, Warp::GREEDY),
            logprob: true,
            logits: true,
            ..RowRead::default()
        },
        RowRead { row: 11, top: 70, asked: 1..3, ..RowRead::default() },
        RowRead { row: 12, asked: 0..1, ..RowRead::default() },
        RowRead { row: 20, ..RowRead::default() },
    ];
    step.taps = vec![Tap { row: 20, layer: 1 }, Tap { row: 20, layer: layers }];
    let (found, expected) = (run(&mut gpu, &step).unwrap(), run(&mut cpu, &step).unwrap());
    assert_eq!(found.choices, expected.choices);
    close("numbers", &found.numbers, &expected.numbers, 1e-4);
    close("hidden", &found.hidden, &expected.hidden, 1e-4);
    assert_eq!(gpu.counts().host_rows, 3, "top-p, bent, and more than 64");
    // More reads than there is room for logits: a prompt whose every row is read, twice over.
    let mut long = Step::default();
    for i in 0..4 {
        append(&mut long, &prompt("qwen2"), 8 * i, 0, false, layers);
    }
    read_all(&mut long, None);
    close("groups", &run(&mut gpu, &long).unwrap().logits, &run(&mut cpu, &long).unwrap().logits, 1e-4);
}

/// Layer ranges, hidden states and mixes fed in, biases.
#[test]
fn parts_of_the_model() {
    let Some(mut gpu) = on_gpu("llama", true) else { return };
    let mut cpu = on_cpu("llama");
    let (layers, width) = (cpu.card().layers, cpu.card().hidden);
    let ids = prompt("llama");
    let mut start = Step::default();
    append(&mut start, &ids[..8], 0, 0, false, 1);
    append(&mut start, &ids, 8, 0, false, layers);
    read_all(&mut start, None);
    start.reads.drain(..8);
    start.taps = (0..8).map(|row| Tap { row, layer: 1 }).collect();
    let reads = (0..8).map(|row| RowRead { row, ..RowRead::default() });
    start.reads.splice(..0, reads);
    let mut both = |step: &Step, what: &str| {
        let (found, expected) = (run(&mut gpu, step).unwrap(), run(&mut cpu, step).unwrap());
        close(what, &found.logits, &expected.logits, 1e-4);
        close(what, &found.hidden, &expected.hidden, 1e-4);
        found
    };
    let hidden = both(&start, "the first layer of some rows, all of others").hidden;
    let mut rest = Step::default();
    append(&mut rest, &ids[..8], 0, 0, false, layers);
    rest.segments[0].layers = 1..layers;
    rest.rows.iter_mut().enumerate().for_each(|(i, row)| row.entry = Entry::Hidden(i * width));
    rest.vectors = hidden;
    read_all(&mut rest, None);
    both(&rest, "the other layers");
    let mut fed = Step::default();
    append(&mut fed, &ids[..4], 0, 8, false, layers);
    fed.vectors = (0..width).map(|i| (i as f32 * 0.7).sin()).collect();
    fed.rows[1].entry = Entry::Embedding(0);
    fed.mixes = vec![(3, 0.5), (9, 0.25), (11, 0.25)];
    fed.rows[2].entry = Entry::Mix(0..3);
    let bias = |layer, head, place, add| Bias { layer, head, place, add };
    let edits = Edits { biases: vec![bias(0, 1, 0, 2.0), bias(1, 0, 5, -3.0)], clamps: Vec::new() };
    fed.edits = vec![(0, Arc::new(edits))];
    read_all(&mut fed, None);
    let bent = both(&fed, "vectors, mixes, biases").logits;
    fed.edits.clear();
    assert!(run(&mut gpu, &fed).unwrap().logits != bent, "a bias does something");
    fed.edits = vec![(0, Arc::new(Edits { biases: vec![bias(0, 1, 0, 0.0)], clamps: Vec::new() }))];
    let neutral = run(&mut gpu, &fed).unwrap().logits;
    fed.edits.clear();
    assert!(run(&mut gpu, &fed).unwrap().logits == neutral, "a bias of zero is none");
}

#[test]
fn what_is_not_there_says_so() {
    let Some(mut gpu) = on_gpu("llama", true) else { return };
    let layers = gpu.card().layers;
    let mut step = Step::default();
    append(&mut step, &[1, 2, 3], 0, 0, false, layers);
    read_all(&mut step, None);
    step.masses = vec![Tap { row: 0, layer: 0 }];
    assert!(matches!(run(&mut gpu, &step), Err(NetworkError::Unsupported(m)) if m.contains("attention weights")));
    step.masses.clear();
    let clamp = Clamp { layer: 0, neuron: 0, from: 0, action: ClampAction::Set, value: 0.0 };
    step.edits = vec![(0, Arc::new(Edits { biases: Vec::new(), clamps: vec![clamp] }))];
    assert!(matches!(run(&mut gpu, &step), Err(NetworkError::Unsupported(m)) if m.contains("clamped")));
    step.edits.clear();
    step.vectors = vec![f32::NAN; gpu.card().hidden];
    step.rows[1].entry = Entry::Embedding(0);
    assert!(matches!(run(&mut gpu, &step), Err(NetworkError::NotFinite { row: 1, .. })));
    step.rows[1].entry = Entry::Token(2);
    run(&mut gpu, &step).expect("a bad row leaves nothing behind");
    for case in ["mixtral", "qwen3-moe"] {
        let weights = Weights::open(folder(case)).unwrap();
        let loaded = GpuDecoder::load(&weights, Box::new(Emulator::new().unwrap()), &gpu::Options::default());
        assert!(matches!(loaded.err(), Some(ModelError::UnsupportedConfig { .. })), "{case}");
    }
}

/// A real model in GGUF, whose products run on integers on both sides: the same greedy tokens as the CPU's, as far as the first
/// leads clearly. Needs `OMNIDECODE_TEST_GGUF`.
#[test]
fn a_quantized_model() {
    let Some(path) = std::env::var_os("OMNIDECODE_TEST_GGUF") else { return };
    let Some(device) = Emulator::new() else { return };
    let weights = Weights::open(path).unwrap();
    let mut gpu = GpuDecoder::load(&weights, Box::new(device), &gpu::Options::default()).unwrap();
    let mut cpu = Decoder::load(&weights, &Options { threads: Some(1), ..Options::default() }).unwrap();
    let layers = cpu.card().layers;
    for network in [&mut gpu as &mut dyn Network, &mut cpu] {
        network.reserve(8, 8).unwrap();
    }
    let ids = weights.tokenizer().unwrap().encode("The capital of France is", false).unwrap();
    let mut step = Step::default();
    append(&mut step, &ids, 0, 0, false, layers);
    step.pages = (0..8).collect();
    read_all(&mut step, None);
    let (found, expected) = (run(&mut gpu, &step).unwrap().logits, run(&mut cpu, &step).unwrap().logits);
    let vocab = cpu.card().vocab;
    // What matters of logits is how they differ. Codes of activations that lie between two values are rounded apart here and
    // there, and every layer spreads it: the two are as far from each other as from the model in f32.
    let centred = |x: &[f32]| {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / vocab as f64;
        x.iter().map(|&x| f64::from(x) - mean).collect::<Vec<_>>()
    };
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    for (row, (found, expected)) in found.chunks(vocab).zip(expected.chunks(vocab)).enumerate() {
        let (f, e) = (centred(found), centred(expected));
        let apart: Vec<f64> = f.iter().zip(&e).map(|(f, e)| f - e).collect();
        let share = norm(&apart) / norm(&e);
        eprintln!("row {row}: {share:.3} of the logits' spread");
        assert!(share < 0.3, "row {row}: {share} of the logits' spread");
        let best = |x: &[f32]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap();
        let (f, e) = (best(found), best(expected));
        assert!(f == e || expected[e] - expected[f] < 1.0, "row {row}: {f} for {e}");
    }
    // The last row alone, its keys in the pages: the same bits.
    let last = ids.len() - 1;
    let mut alone = Step::default();
    append(&mut alone, &ids[last..], 0, last as u32, false, layers);
    alone.pages = (0..8).collect();
    read_all(&mut alone, None);
    assert!(run(&mut gpu, &alone).unwrap().logits == found[last * vocab..]);
    assert_eq!(gpu.launches(1).1, 6);
}
