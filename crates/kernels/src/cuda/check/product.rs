//! Products in every format.
use super::{Bench, close, noise};
use crate::cuda::args::*;
use crate::cuda::pack::{Format, pack};
use crate::cuda::{Address, Call, Entry};
use crate::dtype::quantize::quantize;
use crate::dtype::{Dtype, dequantize};

const ALL: [Dtype; 11] = [
    Dtype::F32,
    Dtype::F16,
    Dtype::Bf16,
    Dtype::Q8_0,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q4K,
    Dtype::Q5K,
    Dtype::Q6K,
];

pub(super) fn values(dtype: Dtype, seed: u64, n: usize, k: usize) -> (Vec<u8>, Vec<f32>) {
    let bytes = quantize(dtype, &noise(seed, n * k)).unwrap();
    let mut values = vec![0.0; n * k];
    dequantize(dtype, &bytes, &mut values).unwrap();
    (bytes, values)
}

pub(super) fn upload(bench: &mut Bench, dtype: Dtype, bytes: &[u8], n: usize, k: usize) -> (Weights, Format) {
    let packed = pack(dtype, bytes, n, k).unwrap();
    let [codes, scales, supers] = [&packed.codes, &packed.scales, &packed.supers].map(|b| bench.put(&b[..]).address());
    let (n, k, kp) = (n as u32, k as u32, packed.kp as u32);
    (Weights { codes, scales, supers, format: packed.format as u32, n, k, kp }, packed.format)
}

/// 16, 32 or 64 rows a block.
pub(super) fn entry(format: Format, rows: usize) -> (Entry, u32) {
    let entries = match format.is_quantized() {
        true => [Entry::Product16, Entry::Product32, Entry::Product64],
        false => [Entry::Line16, Entry::Line32, Entry::Line64],
    };
    let which = if rows <= 16 {
        0
    } else if rows <= 32 {
        1
    } else {
        2
    };
    (entries[which], rows.div_ceil(16 << which) as u32)
}

/// What the product reads: codes and scales give back the values.
fn as_read(bench: &mut Bench, acts: &Acts, buffers: &[crate::cuda::Buffer; 5], form: u32, rows: usize) -> Vec<f64> {
    let (k, kp) = (acts.k as usize, acts.kp as usize);
    let mut out = Vec::new();
    let codes: Vec<u8> = bench.get(&buffers[0]);
    let scales: Vec<f32> = bench.get(&buffers[1]);
    let bf16: Vec<u16> = bench.get(&buffers[2]);
    let floats: Vec<f32> = bench.get(&buffers[3]);
    for row in 0..rows {
        for e in 0..k {
            let (group, inner) = (e / 32, e % 32);
            let byte = inner % 16 / 4 * 8 + inner / 16 * 4 + inner % 4;
            out.push(match form {
                INT8 => {
                    let code = f64::from(codes[row * kp + group * 32 + byte] as i8);
                    code * f64::from(scales[(row * kp / 32 + group) * 2])
                }
                BF16 => f64::from(f32::from_bits(u32::from(bf16[row * kp + e]) << 16)),
                _ => f64::from(floats[row * kp + e]),
            });
        }
    }
    out
}

pub(super) fn store(bench: &mut Bench, w: Weights, format: Format, acts: Acts, rows: usize, bias: Address) -> Vec<f32> {
    let out = bench.poisoned(rows * w.n as usize);
    let (index, stand) = bench.stand(rows);
    let mut args =
        ProductArgs { input: acts, scale: 1.0, index: index.address(), stand: stand.address(), ..Default::default() };
    let tiles = w.n.div_ceil(TILE as u32);
    (args.w[0], args.out[0], args.bias[0], args.ends) = (w, out.address(), bias, [tiles; 3]);
    let (entry, blocks) = entry(format, rows);
    bench.run(entry, Call::Product(args), [tiles, blocks, 1]);
    bench.get(&out)
}

pub(super) fn products_follow_their_definition_and_rows_are_invariant(bench: &mut Bench) {
    for dtype in ALL {
        for (n, k) in [(40, 256usize), (32, 768), (7, 96)] {
            if !k.is_multiple_of(dtype.block()) {
                continue;
            }
            let (bytes, weights) = values(dtype, 3, n, k);
            let (w, format) = upload(bench, dtype, &bytes, n, k);
            let rows = 70;
            let x = noise(5, rows * k);
            let bias = noise(6, n);
            let bias_at = bench.put(&bias).address();
            let (acts, buffers) = bench.prepare(&x, k, format.form(), None, 0.0);
            let read = as_read(bench, &acts, &buffers, format.form(), rows);
            let off = x.iter().zip(&read).map(|(x, r)| (f64::from(*x) - r).abs()).fold(0.0, f64::max);
            assert!(off < 0.005, "{dtype}: activations are off by {off}");
            let whole = store(bench, w, format, acts, rows, bias_at);
            let mut expected = Vec::new();
            for row in 0..rows {
                for c in 0..n {
                    let dot: f64 = (0..k).map(|e| read[row * k + e] * f64::from(weights[c * k + e])).sum();
                    expected.push(dot + f64::from(bias[c]));
                }
            }
            // Minima of two levels are rounded to f32 in other places than the reference's.
            close(&format!("{dtype} {n} x {k}"), &whole, &expected, 2e-5);
            // One row alone, 16, 17 and 33 of them: the same bits.
            for (from, some) in [(0, 1), (69, 1), (3, 16), (20, 17), (11, 33)] {
                let (acts, _own) = bench.prepare(&x[from * k..(from + some) * k], k, format.form(), None, 0.0);
                let part = store(bench, w, format, acts, some, bias_at);
                assert!(part == whole[from * n..(from + some) * n], "{dtype} {n} x {k}: rows {from}..{}", from + some);
            }
        }
    }
}

/// The norm before, the residual sum and the norm behind, in one launch.
pub(super) fn a_branch_with_its_norms(bench: &mut Bench) {
    let (rows, k, n, eps) = (5, 96, 64, 1e-5);
    let (bytes, weights) = values(Dtype::F32, 3, n, k);
    let (w, _) = upload(bench, Dtype::F32, &bytes, n, k);
    let (x, gain, residual, behind) = (noise(1, rows * k), noise(2, k), noise(4, rows * n), noise(8, n));
    let (acts, _own) = bench.prepare(&x, k, F32, Some(&gain), eps);
    let (next, buffers) = bench.acts(rows, n, F32 | INT8, true, eps);
    let (index, stand) = bench.stand(rows);
    let (to, behind_at, bad) = (bench.put(&residual), bench.put(&behind), bench.put(&vec![NONE; rows]));
    let mut args = ProductArgs {
        input: acts,
        next,
        gain: behind_at.address(),
        x: to.address(),
        index: index.address(),
        stand: stand.address(),
        bad: bad.address(),
        mode: 1,
        scale: 0.5,
        ..Default::default()
    };
    args.w[0] = w;
    bench.run(Entry::Line16, Call::Product(args), [2, 1, 1]);
    let found: Vec<f32> = bench.get(&to);
    let mut expected = Vec::new();
    for r in 0..rows {
        let row: Vec<f64> = x[r * k..(r + 1) * k].iter().map(|&x| f64::from(x)).collect();
        let rms = (row.iter().map(|x| x * x).sum::<f64>() / k as f64 + f64::from(eps)).sqrt();
        for c in 0..n {
            let dot: f64 = (0..k).map(|e| row[e] / rms * f64::from(gain[e]) * f64::from(weights[c * k + e])).sum();
            expected.push(f64::from(residual[r * n + c]) + 0.5 * dot);
        }
    }
    close("residual", &found, &expected, 1e-5);
    let floats: Vec<f32> = bench.get(&buffers[3]);
    let squares: Vec<f32> = bench.get(&buffers[4]);
    for r in 0..rows {
        let sum: f64 = expected[r * n..(r + 1) * n].iter().map(|x| x * x).sum();
        let found: f32 = squares[r * n / 32..(r + 1) * n / 32].iter().sum();
        assert!((f64::from(found) - sum).abs() < 1e-4 * sum);
        let gained: Vec<f64> = (0..n).map(|c| expected[r * n + c] * f64::from(behind[c])).collect();
        close("ready for the next", &floats[r * n..(r + 1) * n], &gained, 1e-5);
    }
    assert!(bench.get::<u32>(&bad).iter().all(|&b| b == NONE));
}

pub(super) fn gated_products_and_rows_that_are_not_numbers(bench: &mut Bench) {
    let (rows, k, n) = (3, 64, 48);
    let (gate_bytes, gate) = values(Dtype::Q8_0, 3, n, k);
    let (up_bytes, up) = values(Dtype::Q4_1, 4, n, k);
    let (gate_w, format) = upload(bench, Dtype::Q8_0, &gate_bytes, n, k);
    let (up_w, _) = upload(bench, Dtype::Q4_1, &up_bytes, n, k);
    let x = noise(1, rows * k);
    let (acts, buffers) = bench.prepare(&x, k, format.form(), None, 0.0);
    let read = as_read(bench, &acts, &buffers, INT8, rows);
    let (next, out) = bench.acts(rows, n, F32, false, 0.0);
    let (index, stand) = bench.stand(rows);
    let bad = bench.put(&vec![NONE; rows]);
    let mut args = ProductArgs {
        input: acts,
        next,
        index: index.address(),
        stand: stand.address(),
        bad: bad.address(),
        mode: 2,
        layer: 7,
        scale: 1.0,
        ..Default::default()
    };
    (args.w[0], args.w[1]) = (gate_w, up_w);
    bench.run(Entry::Product16, Call::Product(args), [2, 1, 1]);
    let found: Vec<f32> = bench.get(&out[3]);
    for r in 0..rows {
        let dot = |w: &[f32], c: usize| (0..k).map(|e| read[r * k + e] * f64::from(w[c * k + e])).sum::<f64>();
        let expected: Vec<f64> = (0..n).map(|c| dot(&gate, c) / (1.0 + (-dot(&gate, c)).exp()) * dot(&up, c)).collect();
        close("gated", &found[r * 64..r * 64 + n], &expected, 2e-5);
        assert!(found[r * 64 + n..(r + 1) * 64].iter().all(|&x| x == 0.0), "padding");
    }
    // A scale that is infinite: its row alone is named, with the layer.
    let mut scales: Vec<f32> = bench.get(&buffers[1]);
    scales[2 * 2] = f32::INFINITY;
    bench.device.write(&buffers[1], 0, f32::bytes(&scales)).unwrap();
    bench.run(Entry::Product16, Call::Product(args), [2, 1, 1]);
    assert_eq!(bench.get::<u32>(&bad), [NONE, 7, NONE]);
}
