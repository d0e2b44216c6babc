//! The mode that gives up row-invariance: products of many rows by the library, for which the host has a stand-in. Quantized
//! weights are unpacked for it.
use super::scene::{PAGES, TAIL, append, prompt, read_all, run};
use crate::common::in_bf16;
use omnidecode_core::noise::unit;
use omnidecode_kernels::cuda::emulate::Emulator;
use omnidecode_kernels::dtype::Dtype;
use omnidecode_kernels::dtype::quantize::quantize;
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

/// A Llama of two layers in quantized numbers of several kinds, as a GGUF.
fn quantized() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut keys = vec![[text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("llama")].concat()];
    for (name, value) in [
        ("block_count", 2u32),
        ("context_length", 256),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        let name = text(&format!("llama.{name}"));
        keys.push([&name[..], &4u32.to_le_bytes(), &value.to_le_bytes()].concat());
    }
    let name = text("llama.attention.layer_norm_rms_epsilon");
    keys.push([&name[..], &6u32.to_le_bytes(), &1e-5f32.to_le_bytes()].concat());
    let (f32s, q4_0, q4_1, q8_0) = ((0u32, Dtype::F32), (2, Dtype::Q4_0), (3, Dtype::Q4_1), (8, Dtype::Q8_0));
    let mut tensors = vec![("token_embd.weight".to_string(), vec![64u64, 320], q8_0)];
    tensors.push(("output_norm.weight".into(), vec![64], f32s));
    for layer in 0..2 {
        for (name, sizes, kind) in [
            ("attn_norm", vec![64], f32s),
            ("ffn_norm", vec![64], f32s),
            ("attn_q", vec![64, 64], q4_0),
            ("attn_k", vec![64, 32], q4_1),
            ("attn_v", vec![64, 32], q8_0),
            ("attn_output", vec![64, 64], q4_1),
            ("ffn_gate", vec![64, 96], q8_0),
            ("ffn_up", vec![64, 96], q4_1),
            ("ffn_down", vec![96, 64], q8_0),
        ] {
            tensors.push((format!("blk.{layer}.{name}.weight"), sizes, kind));
        }
    }
    let mut out = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
    out.extend([tensors.len() as u64, keys.len() as u64].map(u64::to_le_bytes).concat());
    out.extend(keys.concat());
    let mut data = Vec::new();
    for (i, (name, sizes, (kind, dtype))) in tensors.iter().enumerate() {
        out.extend(text(name));
        out.extend((sizes.len() as u32).to_le_bytes());
        out.extend(sizes.iter().flat_map(|s| s.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        let count = sizes.iter().product::<u64>();
        let value = |at: u64| (unit((i as u64) << 32 | at) as f32 - 0.5) * 0.5;
        let norm = |at: u64| 1.0 + value(at);
        let values: Vec<f32> = (0..count).map(|at| if sizes.len() == 1 { norm(at) } else { value(at) }).collect();
        data.extend(quantize(*dtype, &values).expect("whole blocks"));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    [out, data].concat()
}

/// From 256 rows on they are unpacked; up to there the own products run, in both modes.
#[test]
fn quantized_weights_of_many_rows_by_the_library() {
    let place = tempfile::tempdir().expect("a folder");
    std::fs::write(place.path().join("model.gguf"), quantized()).expect("written");
    let weights = Weights::open(place.path().join("model.gguf")).expect("opens");
    let Some(mut own) = load(&weights, true, true) else { return };
    let mut fast = load(&weights, false, true).expect("a compiler");
    let ids: Vec<u32> = (0..140).map(|i| (i * i * 7 + 11) % 320).collect();
    let step = |sequences: u32| {
        let mut step = Step::default();
        (0..sequences).for_each(|i| append(&mut step, &ids, 8 * i, 0, false, 2));
        read_all(&mut step, None);
        step
    };
    let expected = run(&mut own, &step(1)).expect("finite").logits;
    assert!(run(&mut fast, &step(1)).expect("finite").logits == expected, "140 rows: the own products");
    assert_eq!((fast.counts().library_products, fast.counts().unpacked), (0, 0));
    let two = run(&mut own, &step(2)).expect("finite").logits;
    assert!(two[..expected.len()] == expected && two[expected.len()..] == expected, "rows are invariant");
    let found = run(&mut fast, &step(2)).expect("finite").logits;
    // Seven matrices in each of two layers.
    assert_eq!((fast.counts().library_products, fast.counts().unpacked), (14, 14));
    assert_eq!((own.counts().library_products, own.counts().unpacked), (0, 0));
    assert_eq!((fast.library_products(), fast.row_invariant(), own.row_invariant()), (14, false, true));
    // Activations of 8 bits here, bf16 there.
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let share = norm(&mut found.iter().zip(&two).map(|(f, e)| f - e)) / norm(&mut two.iter().copied());
    assert!(share > 0.0 && share < 0.03, "{share} of the logits");
    // A graph of its own.
    assert!(run(&mut fast, &step(2)).expect("finite").logits == found);
    assert!(run(&mut fast, &step(1)).expect("finite").logits == expected);
}
