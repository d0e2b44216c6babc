//! Mixtures of experts, products by the library, clamped neurons, attention weights.
use super::product::{entry, store, upload, values};
use super::{Bench, close, noise};
use crate::cuda::args::*;
use crate::cuda::pack::Format;
use crate::cuda::{Address, Call, Entry};
use crate::dtype::Dtype;
use omnidecode_core::noise::unit;

const EXPERTS: usize = 5;
const PER: usize = 2;

/// The largest softmax weights with their experts, ascending, and their shares.
pub(super) fn experts_are_chosen_by_weight(bench: &mut Bench) {
    let rows = 9;
    for (experts, per) in [(EXPERTS, PER), (128, 8), (70, 64), (3, 3)] {
        let mut scores: Vec<f32> = noise(experts as u64, rows * experts).iter().map(|x| x * 4.0).collect();
        // A tie: the lower id is chosen.
        scores[..experts].fill(0.5);
        for normalize in [0, 1] {
            let (_, stand) = bench.stand(rows);
            let (chosen, shares) = (bench.put(&vec![NONE; rows * per]), bench.poisoned(rows * per));
            let args = RouteArgs {
                scores: bench.put(&scores).address(),
                chosen: chosen.address(),
                shares: shares.address(),
                stand: stand.address(),
                experts: experts as u32,
                per: per as u32,
                normalize,
                reserved: 0,
            };
            bench.run(Entry::Route, Call::Route(args), [16, 1, 1]);
            let (found, shares): (Vec<u32>, Vec<f32>) = (bench.get(&chosen), bench.get(&shares));
            for r in 0..rows {
                let row: Vec<f64> = scores[r * experts..][..experts].iter().map(|&s| f64::from(s).exp()).collect();
                let mut order: Vec<usize> = (0..experts).collect();
                order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
                order.truncate(per);
                let taken: f64 = order.iter().map(|&e| row[e]).sum();
                let total = if normalize == 1 { taken } else { row.iter().sum() };
                order.sort_unstable();
                assert!(
                    found[r * per..][..per].iter().map(|&e| e as usize).eq(order.iter().copied()),
                    "{experts}: {r}"
                );
                let expected: Vec<f64> = order.iter().map(|&e| row[e] / total).collect();
                close("shares", &shares[r * per..][..per], &expected, 1e-6);
            }
        }
    }
}

/// What comes of a row and its expert has the bits of the dense product with that expert's matrices; the experts' sum joins
/// the residual stream.
pub(super) fn experts_give_the_bits_of_dense_products(bench: &mut Bench) {
    let (k, n, hidden) = (96, 64, 40);
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_1] {
        let part = |bench: &mut Bench, seed: u64, n, k| -> (Vec<Weights>, Format) {
            let all: Vec<(Weights, Format)> = (0..EXPERTS)
                .map(|e| {
                    let (bytes, _) = values(dtype, seed + e as u64, n, k);
                    upload(bench, dtype, &bytes, n, k)
                })
                .collect();
            (all.iter().map(|a| a.0).collect(), all[0].1)
        };
        let (gates, format) = part(bench, 10, n, k);
        let (ups, _) = part(bench, 20, n, k);
        let (downs, _) = part(bench, 30, hidden, n);
        let lifts = bench.put(&[&gates[..], &ups[..]].concat());
        let down_bank = bench.put(&downs);
        let form = format.form();
        let quantized = format.is_quantized();
        for rows in [3, 70] {
            // The second expert is everybody's: more rows than a block takes.
            let chosen: Vec<u32> =
                (0..rows).flat_map(|r| if r % 3 == 0 { [0, 1] } else { [1, 2 + (r % 3) as u32] }).collect();
            let shares: Vec<f32> = (0..rows * PER).map(|i| unit(i as u64) as f32).collect();
            let x = noise(5, rows * k);
            let (input, _own) = bench.prepare(&x, k, form, None, 0.0);
            let (index, stand) = bench.stand(rows);
            let bad = bench.put(&vec![NONE; rows]);
            let common = ProductArgs {
                index: index.address(),
                stand: stand.address(),
                bad: bad.address(),
                scale: 1.0,
                ..Default::default()
            };
            // Each expert's dense product of all rows.
            let mut dense = Vec::new();
            for e in 0..EXPERTS {
                let (next, lifted) = bench.acts(rows, n, form | F32, false, 0.0);
                let mut args = ProductArgs { input, next, mode: 2, ..common };
                (args.w[0], args.w[1]) = (gates[e], ups[e]);
                let (entry, blocks) = entry(format, rows);
                bench.run(entry, Call::Product(args), [2, blocks, 1]);
                let down = store(bench, downs[e], format, next, rows, Address(0));
                dense.push((bench.get::<f32>(&lifted[3]), down));
            }
            let chosen_at = bench.put(&chosen).address();
            let mixture = ProductArgs { chosen: chosen_at, per: PER as u32, experts: EXPERTS as u32, ..common };
            for (entries, tall) in
                [([Entry::Experts16, Entry::ExpertLines16], 16), ([Entry::Experts64, Entry::ExpertLines64], 64)]
            {
                let entry = entries[usize::from(!quantized)];
                let blocks = rows.div_ceil(tall) as u32;
                let (next, lifted) = bench.acts(rows * PER, n, form | F32, false, 0.0);
                let mut args = ProductArgs { input, next, mode: 2, bank: lifts.address(), ..mixture };
                args.w[0] = gates[0];
                bench.run(entry, Call::Product(args), [2, blocks, EXPERTS as u32]);
                let (parts, floats) = (bench.poisoned(rows * PER * hidden), bench.get::<f32>(&lifted[3]));
                for (pair, &e) in chosen.iter().enumerate() {
                    let lift = &dense[e as usize].0[pair / PER * n..][..n];
                    assert!(floats[pair * n..][..n] == *lift, "{dtype} {rows}: lifted {pair}");
                }
                let residual = noise(8, rows * hidden);
                let arrived = bench.put(&vec![0u32; rows * 2]);
                // Twice: what counts is as it was.
                for _ in 0..2 {
                    let to = bench.put(&residual);
                    let (ready, _own) = bench.acts(rows, hidden, F32, false, 0.0);
                    let mut args = ProductArgs {
                        input: next,
                        bank: down_bank.address(),
                        next: ready,
                        mode: 1,
                        scale: 0.5,
                        x: to.address(),
                        parts: parts.address(),
                        arrived: arrived.address(),
                        shares: bench.put(&shares).address(),
                        ..mixture
                    };
                    args.w[0] = downs[0];
                    bench.run(entry, Call::Product(args), [2, blocks, EXPERTS as u32]);
                    let down: Vec<f32> = bench.get(&parts);
                    for (pair, &e) in chosen.iter().enumerate() {
                        let sums = &dense[e as usize].1[pair / PER * hidden..][..hidden];
                        assert!(down[pair * hidden..][..hidden] == *sums, "{dtype} {rows}: {pair}");
                    }
                    let expected: Vec<f64> = (0..rows * hidden)
                        .map(|i| {
                            let pairs = (0..PER).map(|c| i / hidden * PER + c);
                            let sum: f64 =
                                pairs.map(|p| f64::from(shares[p]) * f64::from(down[p * hidden + i % hidden])).sum();
                            f64::from(residual[i]) + 0.5 * sum
                        })
                        .collect();
                    close("sum of experts", &bench.get::<f32>(&to), &expected, 1e-6);
                }
                assert!(bench.get::<u32>(&arrived).iter().all(|&c| c == 0));
            }
            assert!(bench.get::<u32>(&bad).iter().all(|&b| b == NONE));
        }
    }
}

/// `epilogue` behind raw sums gives the bits of the product that ends by itself; the library's sums are near.
pub(super) fn products_by_the_library_end_as_the_own(bench: &mut Bench) {
    let (rows, k, n, eps) = (70, 128, 64, 1e-5);
    let part = |bench: &mut Bench, seed| {
        let (bytes, _) = values(Dtype::Bf16, seed, n, k);
        upload(bench, Dtype::Bf16, &bytes, n, k).0
    };
    let (gate, up) = (part(bench, 1), part(bench, 2));
    let (x, gain, bias) = (noise(3, rows * k), noise(4, k), noise(5, n));
    let (input, _own) = bench.prepare(&x, k, BF16, Some(&gain), eps);
    let raw = Acts { squares: Address(0), ..input };
    let sums = [gate, up].map(|w| store(bench, w, Format::Bf16, raw, rows, Address(0)));
    let sums_at = sums.each_ref().map(|s| bench.put(s).address());
    let (index, stand) = bench.stand(rows);
    let bias_at = bench.put(&bias).address();
    let residual = noise(6, rows * n);
    let tiles = 2;
    // Gated, added, stored.
    for mode in [2, 1, 0] {
        let mut found = Vec::new();
        for own in [true, false] {
            let (next, buffers) = bench.acts(rows, n, BF16 | F32, true, eps);
            let (x, out) = (bench.put(&residual), bench.poisoned(rows * n));
            let bad = bench.put(&vec![NONE; rows]);
            let mut args = ProductArgs {
                input,
                next,
                mode,
                x: x.address(),
                index: index.address(),
                stand: stand.address(),
                bad: bad.address(),
                scale: 0.7,
                ends: [tiles; 3],
                sums: [sums_at[0], sums_at[1], Address(0)],
                ..Default::default()
            };
            (args.w[0], args.w[1], args.bias[0], args.out[0]) = (gate, up, bias_at, out.address());
            if own {
                bench.run(Entry::Line64, Call::Product(args), [tiles, 2, 1]);
            } else {
                bench.run(Entry::Epilogue, Call::Product(args), [tiles, rows.div_ceil(8) as u32, 1]);
            }
            let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            found.push([&x, &out, &buffers[3], &buffers[4]].map(|b| bits(bench.get(b))));
            assert!(bench.get::<u32>(&bad).iter().all(|&b| b == NONE));
        }
        assert!(found[0] == found[1], "mode {mode}");
    }
    if bench.device.library().is_err() {
        return;
    }
    let out = bench.poisoned(rows * n);
    let (x, out_at) = (input.bf16, out.address());
    let args = MatmulArgs { w: gate.codes, x, out: out_at, n: n as u32, k: gate.kp, rows: rows as u32, reserved: 0 };
    bench.run(Entry::Matmul, Call::Matmul(args), [1; 3]);
    let expected: Vec<f64> = sums[0].iter().map(|&s| f64::from(s)).collect();
    close("library", &bench.get::<f32>(&out), &expected, 1e-4);
}

/// Set, moved and scaled before the gate's product, set behind it: some rows, some places, one neuron.
pub(super) fn neurons_are_clamped(bench: &mut Bench) {
    let (rows, k, n) = (4, 64, 64);
    let (gate_bytes, gate) = values(Dtype::F32, 1, n, k);
    let (up_bytes, up) = values(Dtype::F32, 2, n, k);
    let (gate_w, _) = upload(bench, Dtype::F32, &gate_bytes, n, k);
    let (up_w, _) = upload(bench, Dtype::F32, &up_bytes, n, k);
    let x = noise(3, rows * k);
    let (input, _own) = bench.prepare(&x, k, F32, None, 0.0);
    let (index, stand) = bench.stand(rows);
    let places: Vec<Row> = (0..rows as u32).map(|place| Row { place: 10 + place, ..Row::default() }).collect();
    let clamp = |neuron, from, action, value| Clamp { first: 1, end: 4, neuron, from, action, value };
    let clamps = [
        clamp(5, 0, 0, 2.0),
        clamp(33, 12, 1, 1.5),
        clamp(33, 13, 2, -2.0),
        clamp(63, 11, 3, 9.0),
        clamp(5, 99, 3, 7.0),
    ];
    let clamps_at = bench.put(&clamps).address();
    let rows_at = bench.put(&places).address();
    let count = bench.put(&[clamps.len() as u32]).address();
    for gated in [true, false] {
        let (next, buffers) = bench.acts(rows, n, F32, false, 0.0);
        let bad = bench.put(&vec![NONE; rows]);
        let mut args = ProductArgs {
            input,
            next,
            mode: if gated { 2 } else { 3 },
            index: index.address(),
            stand: stand.address(),
            bad: bad.address(),
            rows: rows_at,
            clamps: clamps_at,
            clamp_count: count,
            scale: 1.0,
            ..Default::default()
        };
        (args.w[0], args.w[1]) = if gated { (gate_w, up_w) } else { (up_w, Weights::default()) };
        bench.run(Entry::Line16, Call::Product(args), [2, 1, 1]);
        let found: Vec<f32> = bench.get(&buffers[3]);
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let mut expected = Vec::new();
        for r in 0..rows {
            for c in 0..n {
                let dot = |w: &[f32]| (0..k).map(|e| f64::from(x[r * k + e]) * f64::from(w[c * k + e])).sum::<f64>();
                let mut lifted = dot(&up);
                match (r, c) {
                    (1.., 5) => lifted = 2.0,
                    (2, 33) => lifted += 1.5,
                    (3, 33) => lifted = (lifted + 1.5) * -2.0,
                    _ => {}
                }
                let z = if gated { silu(dot(&gate)) * lifted } else { silu(lifted) };
                expected.push(if r > 0 && c == 63 { 9.0 } else { z });
            }
        }
        close("clamped", &found, &expected, 1e-5);
    }
}

/// The mean over heads of the softmax over a row's keys, whatever their slots.
pub(super) fn attention_weights_are_the_softmax(bench: &mut Bench) {
    let (heads, kv_heads, dim, pages) = (4usize, 2usize, 16usize, 12usize);
    let kv = noise(1, kv_heads * pages * 2 * 32 * dim);
    let q = noise(2, 2 * heads * dim);
    // 300 keys of the first row, 1 of the second.
    let keys: Vec<[u32; 2]> = (0..300).map(|i| [i, (i * 7) % (32 * pages as u32)]).collect();
    let masses = [
        Mass { row: 1, step_row: 3, key: 0, keys: 300, out: 0, before: 0 },
        Mass { row: 0, step_row: 0, key: 17, keys: 1, out: 300, before: 300 },
    ];
    let biases = [
        KeyBias { first: 2, end: 4, head: 1, place: 5, add: 2.0 },
        KeyBias { first: 0, end: 3, head: 0, place: 9, add: 5.0 },
    ];
    let out = bench.poisoned(301);
    for softcap in [0.0f32, 1.5] {
        let of = Attention {
            q: bench.put(&q).address(),
            kv: bench.put(&kv).address(),
            biases: bench.put(&biases).address(),
            bias_count: bench.put(&[2u32]).address(),
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            dim: dim as u32,
            dtype: 0,
            pages: pages as u32,
            window: 0,
            scale: 0.8,
            softcap,
        };
        let args = MassArgs {
            of,
            masses: bench.put(&masses).address(),
            keys: bench.put(&keys).address(),
            weights: bench.poisoned(301 * heads).address(),
            out: out.address(),
            counters: bench.put(&[0u32; 2]).address(),
        };
        bench.run(Entry::Mass, Call::Mass(args), [heads as u32, 2, 1]);
        let found: Vec<f32> = bench.get(&out);
        let mut expected = vec![0.0f64; 300];
        for head in 0..heads {
            let score = |[place, slot]: [u32; 2]| {
                let (page, lane) = (slot as usize / 32, slot as usize % 32);
                let at = (head / 2 * pages + page) * 2 * 32 * dim;
                let key = |e: usize| f64::from(kv[at + e / 8 * 256 + lane * 8 + e % 8]);
                let dot: f64 = (0..dim).map(|e| f64::from(q[(heads + head) * dim + e]) * key(e)).sum();
                let cap = f64::from(softcap);
                let s = if softcap > 0.0 { cap * (dot * 0.8f32 as f64 / cap).tanh() } else { dot * 0.8f32 as f64 };
                s + if head == 1 && place == 5 { 2.0 } else { 0.0 }
            };
            let weights: Vec<f64> = keys.iter().map(|&key| score(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            expected.iter_mut().zip(&weights).for_each(|(e, w)| *e += w / sum / heads as f64);
        }
        close("row with 300 keys", &found[..300], &expected, 1e-6);
        assert_eq!(found[300], 1.0);
    }
}
