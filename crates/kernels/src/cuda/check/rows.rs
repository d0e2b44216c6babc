//! Embedding, norms, rotation, slots, trees.
use super::{Bench, close, noise};
use crate::cuda::args::*;
use crate::cuda::pack::pack;
use crate::cuda::{Address, Call, Entry};
use crate::dtype::quantize::quantize;
use crate::dtype::{Dtype, dequantize};
use crate::norm::layer_norm;
use crate::rope::{Rope, RopeLayout};
use omnidecode_core::noise::unit;
use omnidecode_core::tree::{DraftTree, Proposal, ROOT};
use omnidecode_core::verify::target_match;

pub(super) fn embeddings_of_every_format(bench: &mut Bench) {
    for dtype in [
        Dtype::F32,
        Dtype::F16,
        Dtype::Bf16,
        Dtype::Q8_0,
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_1,
        Dtype::Q4K,
        Dtype::Q6K,
    ] {
        let (n, k) = (41, 256);
        let bytes = quantize(dtype, &noise(3, n * k)).unwrap();
        let mut values = vec![0.0; n * k];
        dequantize(dtype, &bytes, &mut values).unwrap();
        let packed = pack(dtype, &bytes, n, k).unwrap();
        let [codes, scales, supers] =
            [&packed.codes, &packed.scales, &packed.supers].map(|b| bench.put(&b[..]).address());
        let table = Weights { codes, scales, supers, format: packed.format as u32, n: 41, k: 256, kp: 256 };
        let vectors = noise(9, k);
        let rows = [
            Row { kind: 0, at: 40, ..Row::default() },
            Row { kind: 1, ..Row::default() },
            Row { kind: 2, at: 1, count: 2, ..Row::default() },
            Row { kind: 3, ..Row::default() },
            Row { kind: 0, at: 7, ..Row::default() },
        ];
        let mixes = [0u32, 0, 3, 0.25f32.to_bits(), 9, 0.75f32.to_bits()];
        let (x, bad) = (bench.poisoned(5 * k), bench.put(&[0u32; 5]));
        let (index, stand) = bench.stand(5);
        let (next, buffers) = bench.acts(5, k, F32, true, 1e-6);
        let args = EmbedArgs {
            table,
            next,
            vectors: bench.put(&vectors).address(),
            mixes: bench.put(&mixes).address(),
            rows: bench.put(&rows).address(),
            index: index.address(),
            stand: stand.address(),
            x: x.address(),
            bad: bad.address(),
            hidden: k as u32,
            scale: 2.0,
            ..EmbedArgs::default()
        };
        bench.run(Entry::Embed, Call::Embed(args), [8, 1, 1]);
        let row = |t: usize| values[t * k..(t + 1) * k].iter().map(|&v| f64::from(v) * 2.0);
        let mut expected: Vec<f64> = row(40).collect();
        expected.extend(vectors.iter().map(|&v| f64::from(v) * 2.0));
        expected.extend(row(3).zip(row(9)).map(|(a, b)| 0.25 * a + 0.75 * b));
        expected.extend(vectors.iter().map(|&v| f64::from(v)));
        expected.extend(row(7));
        close(&dtype.to_string(), &bench.get::<f32>(&x), &expected, 1e-6);
        close(&dtype.to_string(), &bench.get::<f32>(&buffers[3]), &expected, 1e-6);
        assert_eq!(bench.get::<u32>(&bad), [NONE; 5]);
    }
}

pub(super) fn norms_of_their_own(bench: &mut Bench) {
    let (rows, k, eps) = (3, 80, 1e-5);
    let (h, x, w, b) = (noise(1, rows * k), noise(2, rows * k), noise(3, k), noise(4, k));
    for kind in [0, 1] {
        let (index, stand) = bench.stand(rows);
        let (to, out, bad) = (bench.put(&x), bench.poisoned(rows * k), bench.put(&[NONE; 3]));
        let (next, buffers) = bench.acts(rows, k, F32, false, 0.0);
        let args = NormArgs {
            next,
            x: to.address(),
            h: bench.put(&h).address(),
            add: to.address(),
            weight: bench.put(&w).address(),
            bias: if kind == 1 { bench.put(&b).address() } else { Address(0) },
            out: out.address(),
            index: index.address(),
            stand: stand.address(),
            bad: bad.address(),
            kind,
            k: k as u32,
            eps,
            stride: k as u32,
            scale: 0.5,
            ..NormArgs::default()
        };
        bench.run(Entry::NormRows, Call::Norm(args), [4, 1, 1]);
        let mut expected = Vec::new();
        for r in 0..rows {
            let row = &h[r * k..(r + 1) * k];
            let mut normed = vec![0.0; k];
            if kind == 1 {
                layer_norm(row, &w, Some(&b), eps, &mut normed);
            } else {
                crate::norm::rms_norm(row, &w, crate::norm::Gain::Weight, eps, &mut normed);
            }
            expected.extend(normed.iter().zip(&x[r * k..]).map(|(n, x)| 0.5 * f64::from(*n) + f64::from(*x)));
        }
        for found in [&to, &out] {
            close("sum", &bench.get::<f32>(found), &expected, 1e-6);
        }
        let floats: Vec<f32> = bench.get(&buffers[3]);
        for r in 0..rows {
            close("ready", &floats[r * 128..r * 128 + k], &expected[r * k..(r + 1) * k], 1e-6);
        }
    }
}

pub(super) fn rotation_is_the_twin_s_and_fills_slots(bench: &mut Bench) {
    let (rows, heads, kv_heads, dim, rotary, pages) = (3, 4, 2, 48, 32, 4);
    for layout in [RopeLayout::Halves, RopeLayout::Interleaved] {
        let frequencies: Vec<f32> = (0..rotary / 2).map(|i| 10_000f32.powf(-(i as f32) / 16.0)).collect();
        let rope = Rope::new(frequencies.clone(), 1.5, layout);
        let table = rope.table(100);
        let (q, k, v) =
            (noise(1, rows * heads * dim), noise(2, rows * kv_heads * dim), noise(3, rows * kv_heads * dim));
        let positions = [0u32, 99, 7];
        let slots = [5u32, 96, 33];
        let row = |i: usize| Row { position: positions[i], slot: slots[i], ..Row::default() };
        let buffers = [bench.put(&q), bench.put(&k), bench.put(&v)];
        let kv = bench.put(&vec![0f32; kv_heads * pages * 64 * dim]);
        let (index, stand) = bench.stand(rows);
        let args = RopeArgs {
            q: buffers[0].address(),
            k: buffers[1].address(),
            v: buffers[2].address(),
            angles: bench.put(&table).address(),
            kv: kv.address(),
            rows: bench.put(&[row(0), row(1), row(2)]).address(),
            index: index.address(),
            stand: stand.address(),
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            dim: dim as u32,
            rotary: rotary as u32,
            interleaved: u32::from(layout == RopeLayout::Interleaved),
            pages: pages as u32,
            positions: 100,
            // Two heads fill three tiles.
            q_unit: 96,
            k_unit: 96,
            v_unit: 96,
            units: 4,
            ..RopeArgs::default()
        };
        bench.run(Entry::Rope, Call::Rope(args), [4, 1, 1]);
        let (mut q, mut k) = (q, k);
        for r in 0..rows {
            rope.rotate(&mut q[r * heads * dim..(r + 1) * heads * dim], heads, dim, positions[r]);
            rope.rotate(&mut k[r * kv_heads * dim..(r + 1) * kv_heads * dim], kv_heads, dim, positions[r]);
        }
        assert_eq!(bench.get::<f32>(&buffers[0]), q);
        let store: Vec<f32> = bench.get(&kv);
        for (r, &slot) in slots.iter().enumerate().take(rows) {
            for h in 0..kv_heads {
                let page = (h * pages + slot as usize / 32) * 64 * dim;
                let lane = slot as usize % 32;
                for e in 0..dim {
                    let at = (r * kv_heads + h) * dim + e;
                    assert_eq!(store[page + e / 8 * 256 + lane * 8 + e % 8], k[at]);
                    assert_eq!(store[page + 32 * dim + lane * dim + e], v[at]);
                }
            }
        }
    }
}

pub(super) fn slots_are_copied_in_order(bench: &mut Bench) {
    let (heads, pages, dim) = (3, 4, 16);
    let before: Vec<u16> = (0..heads * pages * 64 * dim).map(|i| i as u16).collect();
    let moves = [[40u32, 3], [3, 100], [127, 0], [0, 127]];
    let kv = bench.put(&before);
    let args = AcceptArgs {
        kv: kv.address(),
        moves: bench.put(&moves).address(),
        count: bench.put(&[4u32]).address(),
        dim: dim as u32,
        dtype: 1,
        pages: pages as u32,
        reserved: 0,
    };
    bench.run(Entry::Accept, Call::Accept(args), [heads as u32, 1, 1]);
    let mut expected = before;
    for [from, to] in moves.map(|m| m.map(|s| s as usize)) {
        for h in 0..heads {
            for e in 0..dim {
                let key = |s: usize| (h * pages + s / 32) * 64 * dim + e / 8 * 256 + s % 32 * 8 + e % 8;
                let value = |s: usize| (h * pages + s / 32) * 64 * dim + 32 * dim + s % 32 * dim + e;
                expected[key(to)] = expected[key(from)];
                expected[value(to)] = expected[value(from)];
            }
        }
    }
    assert!(bench.get::<u16>(&kv) == expected);
}

pub(super) fn trees_are_verified_as_the_twin_does(bench: &mut Bench) {
    let mut accepted = 0;
    for case in 0..200u64 {
        let draw = |i: u64, n: u64| (unit(case * 1000 + i) * n as f64) as u64;
        let nodes = draw(0, 70) as usize;
        let mut tree = DraftTree::new(Proposal::Deterministic);
        for i in 0..nodes as u64 {
            let parent = draw(1 + i, i + 1);
            tree.add(if parent == 0 { ROOT } else { parent as u32 - 1 }, draw(100 + i, 4) as u32);
        }
        let choices: Vec<u32> = (0..=nodes as u64).map(|i| draw(200 + i, 4) as u32).collect();
        let expected = target_match(&tree, |node| choices[if node == ROOT { 0 } else { node as usize + 1 }]);
        let found: Vec<Found> = choices.iter().map(|&choice| Found { choice, ..Found::default() }).collect();
        let verdict = bench.put(&vec![NONE; nodes + 2]);
        let args = VerifyArgs {
            tokens: bench.put(tree.tokens()).address(),
            parents: bench.put(tree.parents()).address(),
            found: bench.put(&found).address(),
            nodes: bench.put(&[nodes as u32]).address(),
            verdict: verdict.address(),
        };
        bench.run(Entry::Verify, Call::Verify(args), [1, 1, 1]);
        let found: Vec<u32> = bench.get(&verdict);
        assert_eq!((found[0] as usize, found[1]), (expected.path.len(), expected.next), "{case}");
        assert_eq!(found[2..2 + expected.path.len()], expected.path, "{case}");
        accepted += expected.path.len();
    }
    assert!(accepted > 100, "only {accepted}");
}

pub(super) fn rows_are_gathered(bench: &mut Bench) {
    let width = 300;
    let x = noise(2, 5 * width);
    let out = bench.poisoned(3 * width);
    let args = GatherArgs {
        x: bench.put(&x).address(),
        from: bench.put(&[[4u32, 1], [0, 2], [4, 0]]).address(),
        out: out.address(),
        count: bench.put(&[3u32]).address(),
        width: width as u32,
        reserved: 0,
    };
    bench.run(Entry::Gather, Call::Gather(args), [4, 1, 1]);
    let row = |i: usize| &x[i * width..(i + 1) * width];
    assert!(bench.get::<f32>(&out) == [row(4), row(4), row(0)].concat());
}
