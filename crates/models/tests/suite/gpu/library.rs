//! The mode that gives up row-invariance: products of many rows by the library, for which the host has a stand-in.
use super::scene::{PAGES, TAIL, append, prompt, read_all, run};
use crate::common::in_bf16;
use omnidecode_kernels::cuda::emulate::Emulator;
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::gpu::{self, GpuDecoder};
use omnidecode_models::{Network, Step, Weights};

fn load(weights: &Weights, row_invariant: bool, has_library: bool) -> Option<GpuDecoder> {
    let mut device = Emulator::new()?;
    device.has_library = has_library;
    let options = gpu::Options { row_invariant, ..gpu::Options::default() };
    let mut gpu = GpuDecoder::load(weights, Box::new(device), &options).expect("loads");
    gpu.reserve(PAGES, TAIL).expect("memory");
    Some(gpu)
}

/// With gates and biases, without a gate, with norms behind branches, with experts.
#[test]
fn many_rows_by_the_library() {
    for case in ["qwen2", "gpt2", "gemma2", "mixtral"] {
        let place = in_bf16(case);
        let weights = Weights::open(place.path()).expect("opens");
        let Some(mut own) = load(&weights, true, true) else { return };
        let mut fast = load(&weights, false, true).expect("a compiler");
        let mut without = load(&weights, false, false).expect("a compiler");
        let mut cpu = Decoder::load(&weights, &Options { threads: Some(1), ..Options::default() }).expect("loads");
        cpu.reserve(PAGES, TAIL).expect("memory");
        let (ids, layers) = (prompt(case), cpu.card().layers);
        let (mut few, mut many) = (Step::default(), Step::default());
        append(&mut few, &ids, 0, 0, false, layers);
        (0..4).for_each(|i| append(&mut many, &ids, 8 * i, 0, false, layers));
        read_all(&mut few, None);
        read_all(&mut many, None);
        let expected = run(&mut own, &many).expect("finite").logits;
        // bf16 activations are rounded apart where sums in f32 differ in their last bits, and layers spread it.
        let near = |found: &[f32], what: &str| {
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let apart = norm(&mut found.iter().zip(&expected).map(|(f, e)| f - e));
            let share = apart / norm(&mut expected.iter().copied());
            assert!(share < 0.02, "{case}, {what}: {share} of the logits");
        };
        near(&run(&mut cpu, &many).expect("finite").logits, "processor");
        // Few rows: the own products, the same bits.
        let row = expected.len() / 96;
        assert!(run(&mut fast, &few).expect("finite").logits == expected[..24 * row], "{case}: few rows");
        assert_eq!(fast.counts().library_products, 0);
        near(&run(&mut fast, &many).expect("finite").logits, "library");
        assert!(fast.counts().library_products >= 4 * layers as u64, "{case}: {:?}", fast.counts());
        // Replayed as a graph.
        let again = run(&mut fast, &many).expect("finite").logits;
        assert!(run(&mut fast, &many).expect("finite").logits == again);
        assert_eq!(own.counts().library_products, 0, "the default is row-invariant");
        // Nothing is refused where there is no library.
        assert!(run(&mut without, &many).expect("finite").logits == expected, "{case}: without");
        assert_eq!(without.counts().library_products, 0);
    }
}
