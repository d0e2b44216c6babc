//! Plain quantizers, for tests, benches and synthetic models: correct blocks, without the search for the best scale that a
//! model converter does.

use half::{bf16, f16};

use super::{Dtype, check_bytes};
use crate::error::KernelError;

/// The blocks of `dtype` that stand for `values`.
///
/// # Errors
/// The values are not a whole number of blocks.
pub fn quantize(dtype: Dtype, values: &[f32]) -> Result<Vec<u8>, KernelError> {
    let bytes = dtype.bytes(values.len()).unwrap_or(usize::MAX);
    if !values.len().is_multiple_of(dtype.block()) {
        check_bytes(dtype, &[], 1, values.len())?;
    }
    let mut out = Vec::with_capacity(bytes);
    for block in values.chunks_exact(dtype.block()) {
        match dtype {
            Dtype::F32 => out.extend(block[0].to_le_bytes()),
            Dtype::F16 => out.extend(f16::from_f32(block[0]).to_le_bytes()),
            Dtype::Bf16 => out.extend(bf16::from_f32(block[0]).to_le_bytes()),
            Dtype::Q8_0 => {
                let d = put_f16(&mut out, largest(block).abs() / 127.0);
                out.extend(block.iter().map(|x| code(x / d + 128.0, 255) ^ 0x80));
            }
            Dtype::Q4_0 => {
                let d = put_f16(&mut out, largest(block) / -8.0);
                let codes: Vec<u8> = block.iter().map(|x| code(x / d + 8.0, 15)).collect();
                out.extend((0..16).map(|j| codes[j] | codes[j + 16] << 4));
            }
            Dtype::Q5_0 => {
                let d = put_f16(&mut out, largest(block) / -16.0);
                put_five(&mut out, block.iter().map(|x| code(x / d + 16.0, 31)));
            }
            Dtype::Q4_1 => {
                let (low, range) = span(block);
                let d = put_f16(&mut out, range / 15.0);
                let m = put_f16(&mut out, low);
                let codes: Vec<u8> = block.iter().map(|x| code((x - m) / d, 15)).collect();
                out.extend((0..16).map(|j| codes[j] | codes[j + 16] << 4));
            }
            Dtype::Q5_1 => {
                let (low, range) = span(block);
                let d = put_f16(&mut out, range / 31.0);
                let m = put_f16(&mut out, low);
                put_five(&mut out, block.iter().map(|x| code((x - m) / d, 31)));
            }
            Dtype::Q4K | Dtype::Q5K => put_k(&mut out, dtype, block),
            Dtype::Q6K => put_q6k(&mut out, block),
        }
    }
    Ok(out)
}

/// The value of the largest magnitude, with its sign.
fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0.0f32, |best, x| if x.abs() > best.abs() { *x } else { best })
}

/// The smallest value, and how far the largest is from it.
fn span(block: &[f32]) -> (f32, f32) {
    let low = block.iter().copied().fold(f32::INFINITY, f32::min);
    (low, block.iter().copied().fold(f32::NEG_INFINITY, f32::max) - low)
}

/// Appends `x` as f16 and returns what was stored.
fn put_f16(out: &mut Vec<u8>, x: f32) -> f32 {
    let stored = f16::from_f32(x);
    out.extend(stored.to_le_bytes());
    stored.to_f32()
}

/// The nearest code; a block of zeros has scale 0 and may take any.
fn code(x: f32, most: u8) -> u8 {
    if x.is_finite() { x.round().clamp(0.0, f32::from(most)) as u8 } else { 0 }
}

/// 32 codes of 5 bits: the fifth bits, then nibbles.
fn put_five(out: &mut Vec<u8>, codes: impl Iterator<Item = u8>) {
    let codes: Vec<u8> = codes.collect();
    let high = codes.iter().enumerate().fold(0u32, |bits, (j, code)| bits | u32::from(code >> 4) << j);
    out.extend(high.to_le_bytes());
    out.extend((0..16).map(|j| (codes[j] & 15) | (codes[j + 16] & 15) << 4));
}

/// A block of Q4_K or Q5_K.
fn put_k(out: &mut Vec<u8>, dtype: Dtype, block: &[f32]) {
    let most: u8 = if dtype == Dtype::Q4K { 15 } else { 31 };
    let spans: Vec<(f32, f32)> = block
        .chunks_exact(32)
        .map(|group| {
            let (low, range) = span(group);
            // The minimum is subtracted and cannot be negative.
            let minimum = (-low).max(0.0);
            ((range + low + minimum) / f32::from(most), minimum)
        })
        .collect();
    let d = put_f16(out, spans.iter().fold(0.0, |best, s| f32::max(best, s.0)) / 63.0);
    let m = put_f16(out, spans.iter().fold(0.0, |best, s| f32::max(best, s.1)) / 63.0);
    let scales: Vec<u8> = spans.iter().map(|s| code(s.0 / d, 63)).collect();
    let minima: Vec<u8> = spans.iter().map(|s| code(s.1 / m, 63)).collect();
    let mut packed = [0u8; 12];
    for j in 0..4 {
        packed[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        packed[j + 4] = minima[j] | (minima[j + 4] >> 4) << 6;
        packed[j + 8] = (scales[j + 4] & 15) | (minima[j + 4] & 15) << 4;
    }
    out.extend(packed);
    let codes: Vec<u8> = block
        .iter()
        .enumerate()
        .map(|(j, x)| {
            let (scale, minimum) = (d * f32::from(scales[j / 32]), m * f32::from(minima[j / 32]));
            code((x + minimum) / scale, most)
        })
        .collect();
    if dtype == Dtype::Q5K {
        out.extend((0..32).map(|j| (0..8).fold(0, |bits, sub| bits | (codes[sub * 32 + j] >> 4) << sub)));
    }
    for pair in codes.chunks_exact(64) {
        out.extend((0..32).map(|j| (pair[j] & 15) | (pair[j + 32] & 15) << 4));
    }
}

/// A block of Q6_K.
fn put_q6k(out: &mut Vec<u8>, block: &[f32]) {
    let wanted: Vec<f32> = block.chunks_exact(16).map(|part| largest(part) / -32.0).collect();
    let d = f16::from_f32(largest(&wanted) / -128.0);
    let scales: Vec<i8> = wanted.iter().map(|s| (code(s / d.to_f32() + 128.0, 255) ^ 0x80) as i8).collect();
    let codes: Vec<u8> =
        block.iter().enumerate().map(|(j, x)| code(x / (d.to_f32() * f32::from(scales[j / 16])) + 32.0, 63)).collect();
    for half in codes.chunks_exact(128) {
        out.extend((0..64).map(|j| (half[j] & 15) | (half[j + 64] & 15) << 4));
    }
    for half in codes.chunks_exact(128) {
        out.extend((0..32).map(|j| (0..4).fold(0, |bits, part| bits | (half[part * 32 + j] >> 4) << (part * 2))));
    }
    out.extend(scales.iter().map(|s| *s as u8));
    out.extend(d.to_le_bytes());
}
