//! What the last blocks of a product do with rows that are whole: bit for bit what a launch of its own does.
use super::product::{entry, upload, values};
use super::{Bench, noise};
use crate::cuda::args::*;
use crate::cuda::pack::Format;
use crate::cuda::{Buffer, Call, Entry};
use crate::dtype::Dtype;
use crate::rope::{Rope, RopeLayout};

const KINDS: [Dtype; 2] = [Dtype::F32, Dtype::Q8_0];
/// One row, more than a block of the smallest product takes, all that one of the largest does.
const ROWS: [usize; 3] = [1, 20, 64];
const K: usize = 64;

fn bits(bench: &mut Bench, buffers: &[&Buffer]) -> Vec<Vec<u8>> {
    buffers.iter().map(|buffer| bench.get(buffer)).collect()
}

/// Rows of noise and what a product of them is told.
fn product(bench: &mut Bench, form: u32, rows: usize) -> ProductArgs {
    let (input, _) = bench.prepare(&noise(rows as u64, rows * K), K, form, None, 0.0);
    let (index, stand) = bench.stand(rows);
    let bad = bench.put(&vec![NONE; rows]).address();
    ProductArgs { input, scale: 1.0, index: index.address(), stand: stand.address(), bad, ..ProductArgs::default() }
}
fn launch(bench: &mut Bench, format: Format, args: ProductArgs, rows: usize) {
    let (entry, blocks) = entry(format, rows);
    bench.run(entry, Call::Product(args), [args.ends[2], blocks, 1]);
}
/// With a tail, twice: what counts must be as it was.
fn with_tail(bench: &mut Bench, format: Format, args: ProductArgs, rows: usize, counters: usize) {
    let zeros = bench.put(&vec![0u32; counters]);
    launch(bench, format, ProductArgs { counters: zeros.address(), ..args }, rows);
    assert!(bench.get::<u32>(&zeros).iter().all(|&c| c == 0), "{rows} rows: counters");
}

/// A norm behind the residual sum, and a norm of the branch that is then added.
pub(super) fn norms_behind_products(bench: &mut Bench) {
    let n = 96;
    for dtype in KINDS {
        let (bytes, _) = values(dtype, 3, n, K);
        let (w, format) = upload(bench, dtype, &bytes, n, K);
        let (weight, bias) = (bench.put(&noise(4, n)).address(), bench.put(&noise(5, n)).address());
        for rows in ROWS {
            for branch in [false, true] {
                let mut found = Vec::new();
                for (own, runs) in [(true, 1), (false, 2)] {
                    let mut args = product(bench, format.form(), rows);
                    (args.w[0], args.ends) = (w, [3; 3]);
                    for _ in 0..runs {
                        let (x, h) = (bench.put(&noise(6, rows * n)), bench.poisoned(rows * n));
                        let (next, ready) = bench.acts(rows, n, F32 | INT8, true, 1e-5);
                        let mut norm = NormArgs {
                            next,
                            x: x.address(),
                            weight,
                            index: args.index,
                            stand: args.stand,
                            bad: args.bad,
                            k: n as u32,
                            eps: 1e-5,
                            scale: 0.5,
                            ..NormArgs::default()
                        };
                        if branch {
                            (norm.h, norm.stride, norm.add, norm.gain) = (h.address(), n as u32, x.address(), bias);
                            args.out[0] = h.address();
                        } else {
                            (norm.kind, norm.bias) = (1, bias);
                            (args.mode, args.x) = (1, x.address());
                        }
                        if own {
                            launch(bench, format, args, rows);
                            bench.run(Entry::NormRows, Call::Norm(norm), [rows as u32, 1, 1]);
                        } else {
                            with_tail(bench, format, ProductArgs { tail: 1, norm, ..args }, rows, 2);
                        }
                        found.push(bits(bench, &[&x, &ready[0], &ready[1], &ready[3], &ready[4]]));
                    }
                }
                assert!(found[0] == found[1] && found[1] == found[2], "{dtype}, {rows} rows, branch {branch}");
            }
        }
    }
}

/// Queries, keys and values, normed by head or as a whole, rotated, in their slots.
pub(super) fn rotation_behind_products(bench: &mut Bench) {
    let (heads, kv_heads, dim, pages) = (4usize, 2usize, 24usize, 4usize);
    let rope = Rope::new((0..8).map(|i| 0.5f32.powi(i)).collect(), 1.0, RopeLayout::Halves);
    let angles = bench.put(&rope.table(100)).address();
    for (dtype, whole) in [(Dtype::F32, false), (Dtype::Q8_0, true), (Dtype::Q8_0, false)] {
        let widths = [heads * dim, kv_heads * dim, kv_heads * dim];
        let all: Vec<(Weights, Format)> = widths
            .iter()
            .enumerate()
            .map(|(i, &n)| {
                let (bytes, _) = values(dtype, i as u64, n, K);
                upload(bench, dtype, &bytes, n, K)
            })
            .collect();
        let format = all[0].1;
        let norms = [bench.put(&noise(7, widths[0])).address(), bench.put(&noise(8, widths[1])).address()];
        for rows in ROWS {
            let row = |i: usize| Row { position: (i * 7 % 100) as u32, slot: (i * 37 % 128) as u32, ..Row::default() };
            let step = bench.put(&(0..rows).map(row).collect::<Vec<_>>()).address();
            let mut found = Vec::new();
            for (own, runs) in [(true, 1), (false, 2)] {
                let mut args = product(bench, format.form(), rows);
                // 96, 48 and 48 outputs; four heads fill three tiles.
                args.ends = [3, 5, 7];
                for _ in 0..runs {
                    let out = widths.map(|n| bench.poisoned(rows * n));
                    let kv = bench.put(&vec![0f32; kv_heads * pages * 64 * dim]);
                    for i in 0..3 {
                        (args.w[i], args.out[i]) = (all[i].0, out[i].address());
                    }
                    let unit = |n: usize| if whole { n as u32 } else { 96 };
                    let rope = RopeArgs {
                        q: args.out[0],
                        k: args.out[1],
                        v: args.out[2],
                        q_norm: norms[0],
                        k_norm: norms[1],
                        angles,
                        kv: kv.address(),
                        rows: step,
                        index: args.index,
                        stand: args.stand,
                        heads: heads as u32,
                        kv_heads: kv_heads as u32,
                        dim: dim as u32,
                        rotary: 16,
                        q_piece: if whole { widths[0] as u32 } else { dim as u32 },
                        k_piece: if whole { widths[1] as u32 } else { dim as u32 },
                        q_unit: unit(widths[0]),
                        k_unit: unit(widths[1]),
                        v_unit: 96,
                        units: 3,
                        pages: pages as u32,
                        eps: 1e-6,
                        positions: 100,
                        ..RopeArgs::default()
                    };
                    if own {
                        launch(bench, format, args, rows);
                        bench.run(Entry::Rope, Call::Rope(rope), [rows as u32, 1, 1]);
                    } else {
                        with_tail(bench, format, ProductArgs { tail: 2, rope, ..args }, rows, 3 * rows);
                    }
                    found.push(bits(bench, &[&out[0], &out[1], &out[2], &kv]));
                }
            }
            assert!(found[0] == found[1] && found[1] == found[2], "{dtype}, {rows} rows, whole {whole}");
        }
    }
}

/// The choice of experts behind the router's scores.
pub(super) fn choices_behind_routers(bench: &mut Bench) {
    let (experts, per) = (40usize, 3usize);
    for dtype in KINDS {
        let (bytes, _) = values(dtype, 9, experts, K);
        let (w, format) = upload(bench, dtype, &bytes, experts, K);
        for rows in ROWS {
            let mut found = Vec::new();
            for (own, runs) in [(true, 1), (false, 2)] {
                let mut args = product(bench, format.form(), rows);
                let scores = bench.poisoned(rows * experts);
                (args.w[0], args.out[0], args.ends) = (w, scores.address(), [2; 3]);
                for _ in 0..runs {
                    let (chosen, shares) = (bench.put(&vec![NONE; rows * per]), bench.poisoned(rows * per));
                    let route = RouteArgs {
                        scores: scores.address(),
                        chosen: chosen.address(),
                        shares: shares.address(),
                        stand: args.stand,
                        experts: experts as u32,
                        per: per as u32,
                        normalize: 1,
                        reserved: 0,
                    };
                    if own {
                        launch(bench, format, args, rows);
                        bench.run(Entry::Route, Call::Route(route), [rows as u32, 1, 1]);
                    } else {
                        with_tail(bench, format, ProductArgs { tail: 3, route, ..args }, rows, rows);
                    }
                    found.push(bits(bench, &[&scores, &chosen, &shares]));
                }
            }
            assert!(found[0] == found[1] && found[1] == found[2], "{dtype}, {rows} rows");
            assert_ne!(found[0][1], vec![255; rows * per * 4], "something was chosen");
        }
    }
}

/// Every quantized format as bf16: what the twin gives, rounded.
pub(super) fn quantized_weights_are_unpacked(bench: &mut Bench) {
    for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K] {
        for (n, k) in [(40, 256usize), (7, 96)] {
            if !k.is_multiple_of(dtype.block()) {
                continue;
            }
            let (bytes, expected) = values(dtype, 5, n, k);
            let (w, _) = upload(bench, dtype, &bytes, n, k);
            let kp = w.kp as usize;
            let out = bench.put(&vec![0x7fffu16; n * kp]);
            let args = UnpackArgs { w, out: out.address() };
            bench.run(Entry::Unpack, Call::Unpack(args), [n.div_ceil(8) as u32, 1, 1]);
            let found: Vec<u16> = bench.get(&out);
            for (i, &found) in found.iter().enumerate() {
                let (row, column) = (i / kp, i % kp);
                let expected = if column < k { expected[row * k + column] } else { 0.0 };
                let found = f32::from_bits(u32::from(found) << 16);
                // Rounding, and minima of two levels, which are rounded to f16 or f32 in other places than the twin's.
                assert!((found - expected).abs() <= expected.abs() / 250.0 + 2e-3, "{dtype}: {found} for {expected}");
            }
        }
    }
}
