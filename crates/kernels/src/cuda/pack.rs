//! Weights in the layouts of `kernels/weights.cuh`.
use super::args::{BF16, CHUNK, F32, INT8, TILE};
use crate::dtype::{Dtype, GROUP, Group, check_bytes, offset};
use crate::error::KernelError;
use half::f16;

/// How a matrix lies in device memory.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// f32.
    F32 = 0,
    /// f16, widened while it is read.
    F16 = 1,
    /// bf16.
    Bf16 = 2,
    /// Codes of 8 bits, an f16 scale per 32: Q8_0, Q5_0.
    Q8 = 3,
    /// Codes of 4 bits, an f16 scale and an f16 minimum per 32: Q4_0, Q4_1.
    Q4 = 4,
    /// Codes of 4 bits, two levels of scales and minima: Q4_K.
    Q4K = 5,
    /// Codes of 6 bits, two levels of scales, one per 16: Q6_K.
    Q6K = 6,
    /// Codes of 8 bits, an f32 scale and an f32 minimum per 32: Q5_1, Q5_K, and what fits nothing else.
    Wide = 7,
}
impl Format {
    /// The form of activations that it is multiplied with.
    pub fn form(self) -> u32 {
        match self {
            Format::F32 | Format::F16 => F32,
            Format::Bf16 => BF16,
            _ => INT8,
        }
    }
    /// Whether products with it run on integers (`product*`, else `line*`).
    pub fn is_quantized(self) -> bool {
        self.form() == INT8
    }
    /// Bytes of codes of a lane and chunk, of a scale, of a super-scale.
    fn sizes(self) -> (usize, usize, usize) {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => (0, 0, 0),
            Format::Q8 => (16, 2, 0),
            Format::Q4 => (8, 4, 0),
            Format::Q4K => (8, 2, 4),
            Format::Q6K => (12, 2, 2),
            Format::Wide => (16, 8, 0),
        }
    }
}

/// A packed matrix, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// Layout.
    pub format: Format,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Inputs, padded.
    pub kp: usize,
    /// Codes or floats.
    pub codes: Vec<u8>,
    /// Scales.
    pub scales: Vec<u8>,
    /// Scales of scales.
    pub supers: Vec<u8>,
}
impl Packed {
    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() + self.supers.len()
    }
}

const LANES: usize = 32;
/// Columns of a strip.
const STRIP: usize = 8;

/// Pack `n` rows of `k` values, on all processors.
///
/// # Errors
/// The bytes are not `n` rows of whole blocks.
pub fn pack(dtype: Dtype, bytes: &[u8], n: usize, k: usize) -> Result<Packed, KernelError> {
    check_bytes(dtype, bytes, n, k)?;
    let (kp, rows) = (k.next_multiple_of(CHUNK), n.next_multiple_of(TILE));
    let row = bytes.len() / n.max(1);
    if !dtype.is_quantized() {
        let (format, wide) = match dtype {
            Dtype::F32 => (Format::F32, 4),
            Dtype::F16 => (Format::F16, 2),
            _ => (Format::Bf16, 2),
        };
        let mut codes = vec![0; rows * kp * wide];
        for (to, from) in codes.chunks_exact_mut(kp * wide).zip(bytes.chunks_exact(row.max(1))) {
            to[..row].copy_from_slice(from);
        }
        return Ok(Packed { format, n, k, kp, codes, scales: Vec::new(), supers: Vec::new() });
    }
    let format = format_of(dtype, bytes);
    let (code, scale, super_) = format.sizes();
    let (strips, chunks, groups) = (rows / STRIP, kp / CHUNK, kp / GROUP);
    let sixes = if format == Format::Q6K { strips * chunks * LANES * 8 } else { 0 };
    let mut packed = Packed {
        format,
        n,
        k,
        kp,
        codes: vec![0; strips * chunks * LANES * code],
        scales: vec![0; strips * groups * STRIP * scale],
        supers: vec![0; strips * kp.div_ceil(256) * STRIP * super_],
    };
    let source = Source { dtype, format, bytes, row, n, k, kp };
    // High bits of six-bit codes are a plane of their own behind the nibbles.
    let end = if sixes > 0 { sixes } else { packed.codes.len() };
    let (low, high) = packed.codes.split_at_mut(end);
    let share = strips.div_ceil(std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let low_strip = low.len() / strips * share;
    let mut high_parts = high.chunks_mut((high.len() / strips * share).max(1));
    let mut super_parts = packed.supers.chunks_mut((kp.div_ceil(256) * STRIP * super_ * share).max(1));
    std::thread::scope(|scope| {
        let parts = low.chunks_mut(low_strip).zip(packed.scales.chunks_mut(groups * STRIP * scale * share));
        for (part, (low, scales)) in parts.enumerate() {
            let (high, supers) = (high_parts.next().unwrap_or_default(), super_parts.next().unwrap_or_default());
            let source = &source;
            scope.spawn(move || source.strips(part * share, share, low, high, scales, supers));
        }
    });
    Ok(packed)
}

fn format_of(dtype: Dtype, bytes: &[u8]) -> Format {
    match dtype {
        Dtype::Q8_0 | Dtype::Q5_0 => Format::Q8,
        // Eight times the scale must fit f16.
        Dtype::Q4_0 => {
            let fits = |b: &[u8]| (f16::from_le_bytes([b[0], b[1]]).to_f32() * 8.0).abs() <= f16::MAX.to_f32();
            if bytes.chunks_exact(dtype.block_bytes()).all(fits) { Format::Q4 } else { Format::Wide }
        }
        Dtype::Q4_1 => Format::Q4,
        Dtype::Q4K => Format::Q4K,
        Dtype::Q6K => Format::Q6K,
        _ => Format::Wide,
    }
}

struct Source<'a> {
    dtype: Dtype,
    format: Format,
    bytes: &'a [u8],
    row: usize,
    n: usize,
    k: usize,
    kp: usize,
}
impl Source<'_> {
    fn strips(
        &self,
        first: usize,
        count: usize,
        low: &mut [u8],
        high: &mut [u8],
        scales: &mut [u8],
        supers: &mut [u8],
    ) {
        let (chunks, groups) = (self.kp / CHUNK, self.kp / GROUP);
        let (_, scale, super_) = self.format.sizes();
        let code = if self.format == Format::Q6K { 8 } else { self.format.sizes().0 };
        for column in first * STRIP..((first + count) * STRIP).min(self.n) {
            let (strip, g) = (column / STRIP - first, column % STRIP);
            let bytes = &self.bytes[column * self.row..][..self.row];
            for index in 0..self.k / GROUP {
                let group = Group::read(self.dtype, bytes, index);
                let at = (strip * groups + index) * STRIP + g;
                self.scale(&group, &mut scales[at * scale..][..scale]);
                if super_ > 0 {
                    let at = (strip * self.kp.div_ceil(256) + index / 8) * STRIP + g;
                    supers[at * super_..][..2].copy_from_slice(&group.d.to_le_bytes());
                    if super_ == 4 {
                        supers[at * 4 + 2..][..2].copy_from_slice(&group.m.to_le_bytes());
                    }
                }
                for t in 0..4 {
                    let lane = (strip * chunks + index / 2) * LANES + g * 4 + t;
                    let half =
                        |h: usize| -> [u8; 4] { std::array::from_fn(|j| self.code(group.codes[h * 16 + t * 4 + j])) };
                    let (a, b) = (half(0), half(1));
                    let to = &mut low[lane * code + index % 2 * code / 2..][..code / 2];
                    if code == 16 {
                        to[..4].copy_from_slice(&a);
                        to[4..].copy_from_slice(&b);
                    } else {
                        to.iter_mut().zip(a.iter().zip(&b)).for_each(|(to, (a, b))| *to = (a & 15) | (b & 15) << 4);
                    }
                    if self.format == Format::Q6K {
                        let bits = |x: [u8; 4]| x.iter().enumerate().fold(0, |bits, (j, x)| bits | (x >> 4) << (2 * j));
                        high[lane * 4 + index % 2 * 2..][..2].copy_from_slice(&[bits(a), bits(b)]);
                    }
                }
            }
        }
    }

    /// The byte of a code: signed where the format says so.
    fn code(&self, code: u8) -> u8 {
        match self.format {
            Format::Q8 => code.wrapping_sub(offset(self.dtype) as u8),
            _ => code,
        }
    }

    fn scale(&self, group: &Group, to: &mut [u8]) {
        let (d, m) = (f16::from_bits(group.d), f16::from_bits(group.m));
        // What is subtracted from scale * code.
        let minimum = |scale: f32| m.to_f32() * f32::from(group.minimum) + scale * offset(self.dtype);
        match self.format {
            Format::Q8 => to.copy_from_slice(&group.d.to_le_bytes()),
            Format::Q4 => {
                to[..2].copy_from_slice(&group.d.to_le_bytes());
                to[2..].copy_from_slice(&f16::from_f32(minimum(d.to_f32())).to_le_bytes());
            }
            Format::Q4K => to.copy_from_slice(&[group.scales[0] as u8, group.minimum as u8]),
            Format::Q6K => to.copy_from_slice(&group.scales.map(|s| s as u8)),
            _ => {
                let scale = d.to_f32() * f32::from(group.scales[0]);
                to[..4].copy_from_slice(&scale.to_le_bytes());
                to[4..].copy_from_slice(&minimum(scale).to_le_bytes());
            }
        }
    }
}
