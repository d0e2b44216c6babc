//! Parts of the model: layer ranges, what is fed in, what requests change and read inside.
use super::scene::{PAGES, TAIL, append, behind, close, on_cpu, on_gpu, prompt, read_all, run};
use crate::common::{folder, write_adapter};
use omnidecode_kernels::cuda::emulate::Emulator;
use omnidecode_models::decoder::{self, Decoder};
use omnidecode_models::gpu::{self, GpuDecoder};
use omnidecode_models::{Bias, Clamp, ClampAction, Edits, Entry, Network, NetworkError, RowRead, Step, Tap, Weights};
use std::sync::Arc;

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

/// Attention weights: in pages, behind a window, in the tail, of rows that run some layers only, biased.
#[test]
fn attention_weights() {
    for case in ["llama", "mistral-window", "gemma2", "qwen3-moe"] {
        let Some(mut gpu) = on_gpu(case, true) else { return };
        let mut cpu = on_cpu(case);
        let (ids, layers) = (prompt(case), cpu.card().layers);
        let mut both = |step: &Step, what: &str| {
            let (found, expected) = (run(&mut gpu, step).unwrap(), run(&mut cpu, step).unwrap());
            assert_eq!(found.masses, expected.masses, "{case}, {what}");
            assert!(found.mass.iter().sum::<f32>() > 0.5);
            close(&format!("{case}, {what}"), &found.mass, &expected.mass, 1e-5);
            close(&format!("{case}, {what}"), &found.logits, &expected.logits, 1e-4);
            found.mass
        };
        // One segment ends after the first layer: behind it, rows have other numbers.
        let mut prefill = Step::default();
        append(&mut prefill, &ids[..8], 8, 0, false, 1);
        append(&mut prefill, &ids, 0, 0, false, layers);
        prefill.reads = [0, 7, 20, 31].map(|row| RowRead { row, logits: row == 31, ..RowRead::default() }).to_vec();
        prefill.masses = vec![Tap { row: 7, layer: 0 }, Tap { row: 7, layer: 1 }];
        prefill.masses.extend((0..layers).flat_map(|layer| [20, 31].map(|row| Tap { row, layer })));
        prefill.masses.sort_by_key(|tap| (tap.row, tap.layer));
        let plain = both(&prefill, "prompt");
        let biases = (0..2).map(|head| Bias { layer: 0, head, place: 3, add: 1.5 }).collect();
        prefill.edits = vec![(1, Arc::new(Edits { biases, clamps: Vec::new() }))];
        assert!(both(&prefill, "biased") != plain);
        let places = [24, 25, 25, 26];
        let mut tail = behind(&ids[..4], &places, 24, |i, j| j <= i && (i, j) != (2, 1), layers);
        read_all(&mut tail, None);
        tail.masses = (0..4).map(|row| Tap { row, layer: 1 }).collect();
        both(&tail, "tail");
    }
}

/// Neurons held, moved and scaled, by requests side by side; with a gate and without one.
#[test]
fn clamped_neurons() {
    for case in ["llama", "gpt2", "gemma3"] {
        let Some(mut gpu) = on_gpu(case, true) else { return };
        let mut cpu = on_cpu(case);
        let (ids, layers) = (prompt(case), cpu.card().layers);
        let clamp = |layer, neuron, from, action, value| Clamp { layer, neuron, from, action, value };
        let edits = |clamps| Arc::new(Edits { biases: Vec::new(), clamps });
        let some = vec![
            clamp(0, 3, 0, ClampAction::Set, 2.0),
            clamp(0, 40, 5, ClampAction::Add, -1.5),
            clamp(0, 40, 9, ClampAction::Scale, 3.0),
            clamp(1, 7, 12, ClampAction::Post, 4.0),
            clamp(1, 7, 20, ClampAction::Post, -4.0),
        ];
        let mut step = Step::default();
        append(&mut step, &ids, 0, 0, false, layers);
        append(&mut step, &ids, 8, 0, false, layers);
        append(&mut step, &ids, 16, 0, false, layers);
        read_all(&mut step, None);
        let plain = run(&mut gpu, &step).unwrap().logits;
        step.edits = vec![(0, edits(some)), (2, edits(vec![clamp(1, 50, 3, ClampAction::Set, 1.0)]))];
        let (found, expected) = (run(&mut gpu, &step).unwrap().logits, run(&mut cpu, &step).unwrap().logits);
        close(case, &found, &expected, 1e-4);
        let row = plain.len() / 72;
        let same = |a: usize, b: usize| plain[a * row..b * row] == found[a * row..b * row];
        assert!(same(24, 48) && same(48, 51) && !same(0, 1) && !same(51, 52), "{case}: a request changes only itself");
        // Neutral ones are none.
        let neutral = vec![clamp(0, 3, 0, ClampAction::Add, 0.0), clamp(1, 9, 0, ClampAction::Scale, 1.0)];
        step.edits = vec![(1, edits(neutral))];
        assert!(run(&mut gpu, &step).unwrap().logits == plain, "{case}: neutral");
    }
}

/// An adapter beside its model, on the states that leave one of its layers; it keeps what it uses when the model goes.
#[test]
fn an_adapter_uses_the_model_s_head() {
    let place = tempfile::tempdir().expect("a folder");
    write_adapter(place.path(), |_| {});
    let weights = Weights::open(place.path()).expect("opens");
    let (Some(main), Some(device)) = (on_gpu("llama", true), Emulator::new()) else { return };
    let options = gpu::Options::default();
    assert!(GpuDecoder::load(&weights, Box::new(Emulator::new().unwrap()), &options).is_err());
    let whole = Weights::open(folder("llama")).unwrap();
    assert!(GpuDecoder::load_adapter(&whole, &main, Box::new(Emulator::new().unwrap()), &options).is_err());
    let mut gpu = GpuDecoder::load_adapter(&weights, &main, Box::new(device), &options).expect("fits");
    drop(main);
    let cpu_main = on_cpu("llama");
    let on_one = decoder::Options { threads: Some(1), ..decoder::Options::default() };
    let mut cpu = Decoder::load_adapter(&weights, &cpu_main, &on_one).expect("fits");
    for network in [&mut gpu as &mut dyn Network, &mut cpu] {
        network.reserve(PAGES, TAIL).unwrap();
    }
    assert_eq!((gpu.card().exit_layer, gpu.card().layers), (Some(2), 1));
    assert!(gpu.card().bytes > gpu.weight_bytes() as u64, "a row reads the head too");
    let width = gpu.card().hidden;
    let mut step = Step::default();
    append(&mut step, &[0; 9], 0, 0, false, 1);
    step.vectors = (0..9 * width).map(|i| (i as f32 * 0.37).sin()).collect();
    step.rows.iter_mut().enumerate().for_each(|(i, row)| row.entry = Entry::Embedding(i * width));
    read_all(&mut step, Some(1));
    let (found, expected) = (run(&mut gpu, &step).unwrap(), run(&mut cpu, &step).unwrap());
    close("logits", &found.logits, &expected.logits, 1e-4);
    close("hidden", &found.hidden, &expected.hidden, 1e-4);
}

#[test]
fn rows_that_are_not_numbers_say_so() {
    let Some(mut gpu) = on_gpu("llama", true) else { return };
    let layers = gpu.card().layers;
    let mut step = Step::default();
    append(&mut step, &[1, 2, 3], 0, 0, false, layers);
    read_all(&mut step, None);
    step.vectors = vec![f32::NAN; gpu.card().hidden];
    step.rows[1].entry = Entry::Embedding(0);
    assert!(matches!(run(&mut gpu, &step), Err(NetworkError::NotFinite { row: 1, .. })));
    step.rows[1].entry = Entry::Token(2);
    run(&mut gpu, &step).expect("a bad row leaves nothing behind");
}
