//! The decoder of GPUs on kernels that the host runs, beside the decoder of CPUs, which is tested against transformers: the
//! same steps through both. Skipped, with a word on stderr, where there is no C++ compiler.
mod library;
mod parts;
mod scene;

use crate::common::{CASES, Golden};
use omnidecode_core::noise::{Key, Purpose};
use omnidecode_kernels::cuda::emulate::Emulator;
use omnidecode_models::config::NormKind;
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::gpu::{self, GpuDecoder};
use omnidecode_models::{Choice, Network, RowRead, Step, Tap, Warp, Weights};
use scene::{FIRST_TAIL, append, behind, close, on_cpu, on_gpu, prompt, read_all, run};

#[test]
fn every_architecture() {
    for case in CASES {
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
    for case in ["llama", "qwen3", "gemma2", "mistral-window", "gpt2", "mixtral", "qwen3-moe"] {
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

/// At most six launches a layer and five, of any model: five a layer where it is dense, six where it is a mixture of experts.
#[test]
fn six_launches_a_layer_and_five() {
    for case in CASES {
        let Some(gpu) = on_gpu(case, true) else { return };
        let layers = gpu.card().layers;
        let a_layer = if gpu.config().experts.is_some() { 6 } else { 5 };
        // A layer norm before the first layer rides on nothing.
        let apart = usize::from(gpu.config().norm == NormKind::Layer);
        for rows in [1, 2, 8, 16, 32, 64] {
            let (all, _) = gpu.launches(rows);
            assert_eq!(all, a_layer * layers + 5 + apart, "{case}, {rows} rows");
            assert!(all <= 6 * layers + 5, "{case}, {rows} rows");
        }
        // What the last blocks of a product would do has a launch of its own where rows are many.
        assert!(gpu.launches(128).0 > gpu.launches(64).0, "{case}");
    }
    let Some(gpu) = on_gpu("llama", true) else { return };
    assert_eq!(gpu.launches(512).0, 6 * gpu.card().layers + 5);
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
            row: 6,
            choice: choice(5, Warp { top_k: 70, top_p: 0.5, min_p: 0.001, ..Warp::default() }),
            ..RowRead::default()
        },
        RowRead { row: 7, choice: choice(6, Warp { typical_p: 0.6, ..Warp::default() }), ..RowRead::default() },
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
    assert_eq!(gpu.counts().host_rows, 3, "typical mass, bent, and more than 64");
    // More reads than there is room for logits: a prompt whose every row is read, twice over.
    let mut long = Step::default();
    for i in 0..4 {
        append(&mut long, &prompt("qwen2"), 8 * i, 0, false, layers);
    }
    read_all(&mut long, None);
    close("groups", &run(&mut gpu, &long).unwrap().logits, &run(&mut cpu, &long).unwrap().logits, 1e-4);
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
    assert_eq!(gpu.launches(1).1, 5);
}
