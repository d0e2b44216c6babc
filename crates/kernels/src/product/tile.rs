//! One tile of weights times a few rows of activations: the inner loop of every product.
//!
//! A row's sum runs over the inputs in the order of the tile, in accumulators of its own, whatever the number of rows
//! beside it: this is what makes products bitwise row-invariant.

use super::columns::Columns;
use crate::activations::RECORD_BYTES;
use crate::dtype::{Dtype, GROUP};
use crate::pack::{LINE, code_bytes, groups_per_block, scale_bytes};

/// What a kernel works on.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// The packed tile.
    pub tile: *const u8,
    /// Bytes from `tile` up to which reading ahead makes sense: the end of what this thread reads next.
    pub ahead: usize,
    /// Inputs, filled up to whole steps.
    pub k: usize,
    /// One pointer for each row, to its activations.
    pub rows: *const *const u8,
    /// 16 outputs for each row.
    pub out: *mut f32,
    /// Values from one row's outputs to the next.
    pub stride: usize,
}

/// How far ahead of the sums the weights are asked for, in bytes; 0 where the processor's own prefetcher does better.
///
/// Measured on one core of Zen 4 with cold weights: at one row the formats that unpack with few instructions reach 25 to 33
/// GB/s unaided and a third less when asked for; the others gain up to two thirds. From two rows on all gain, up to twofold,
/// because the core is too busy to run ahead by itself.
pub(crate) const fn ahead(dtype: Dtype, rows: usize) -> usize {
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q4K if rows == 1 => 0,
        Dtype::Q4K | Dtype::Q5K | Dtype::Q6K => 4096,
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => 3072,
        _ => 2048,
    }
}

/// Asks for the lines that lie ahead of `bytes` bytes at `at`.
///
/// # Safety
/// The machine has the instruction set of `C`.
#[inline(always)]
pub(crate) unsafe fn read_ahead<C: Columns>(on: Operands, ahead: usize, at: *const u8, bytes: usize) {
    let behind = (at as usize).wrapping_sub(on.tile as usize);
    if ahead > 0 && behind + ahead < on.ahead {
        for line in 0..bytes / LINE {
            // SAFETY: the caller's duty; the address may be any.
            unsafe { C::prefetch(at.wrapping_add(ahead + line * LINE)) };
        }
    }
}

/// How the codes of a format become a sum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sum {
    /// Stored with 128 added; one scale.
    Offset,
    /// Unsigned; one scale, and a minimum that multiplies the sum of the activations.
    Minimum,
    /// Stored with 128 added; a scale for each half.
    Halves,
}

/// A quantized format, as the kernels read it.
pub(crate) trait Format {
    /// Its type.
    const DTYPE: Dtype;
    /// Its kind of sum.
    const SUM: Sum;
    /// Codes are unpacked to the upper bits of their byte, as multiples of `1 / UNIT`: 128 is then the offset of all.
    const UNIT: f32;

    /// Codes of groups of four inputs `p` and `p + 4`.
    ///
    /// # Safety
    /// As for [`Columns`]; `codes` points to the codes of a group.
    unsafe fn pair<C: Columns>(codes: *const u8, p: usize) -> (C::B, C::B);
}

macro_rules! format {
    ($name:ident, $sum:ident, $unit:expr, |$c:ident, $codes:ident, $p:ident| $pair:expr) => {
        /// See [`Dtype`].
        pub(crate) struct $name;

        impl Format for $name {
            const DTYPE: Dtype = Dtype::$name;
            const SUM: Sum = Sum::$sum;
            const UNIT: f32 = $unit;

            #[inline(always)]
            unsafe fn pair<$c: Columns>($codes: *const u8, $p: usize) -> ($c::B, $c::B) {
                // SAFETY: the caller's duty.
                unsafe { $pair }
            }
        }
    };
}

format!(Q8_0, Offset, 1.0, |C, codes, p| (C::bytes(codes.add(p * 64)), C::bytes(codes.add((p + 4) * 64))));
format!(Q4_0, Offset, 1.0 / 16.0, |C, codes, p| {
    let both = C::bytes(codes.add(p * 64));
    (C::shift_mask(both, 4, 0xF0), C::shift_mask(both, 0, 0xF0))
});
format!(Q4_1, Minimum, 1.0, |C, codes, p| nibbles::<C>(codes, p));
format!(Q4K, Minimum, 1.0, |C, codes, p| nibbles::<C>(codes, p));
format!(Q5_0, Offset, 1.0 / 8.0, |C, codes, p| {
    let (both, fifth) = (C::bytes(codes.add(p * 64)), C::bytes(codes.add(256)));
    let high = |g: usize| C::shift_mask(fifth, 7 - g as i32, 0x80);
    (C::or(C::shift_mask(both, 3, 0x78), high(p)), C::or(C::shift_mask(both, -1, 0x78), high(p + 4)))
});
format!(Q5_1, Minimum, 1.0, |C, codes, p| fives::<C>(codes, p));
format!(Q5K, Minimum, 1.0, |C, codes, p| fives::<C>(codes, p));
format!(Q6K, Halves, 1.0 / 4.0, |C, codes, p| {
    let both = C::bytes(codes.add(p * 64));
    let high = |half: usize| C::shift_mask(C::bytes(codes.add(256 + half * 64)), 6 - 2 * p as i32, 0xC0);
    (C::or(C::shift_mask(both, 2, 0x3C), high(0)), C::or(C::shift_mask(both, -2, 0x3C), high(1)))
});

/// Codes of 4 bits.
#[inline(always)]
unsafe fn nibbles<C: Columns>(codes: *const u8, p: usize) -> (C::B, C::B) {
    // SAFETY: as for `Format::pair`.
    unsafe {
        let both = C::bytes(codes.add(p * 64));
        (C::shift_mask(both, 0, 0x0F), C::shift_mask(both, -4, 0x0F))
    }
}

/// Codes of 5 bits.
#[inline(always)]
unsafe fn fives<C: Columns>(codes: *const u8, p: usize) -> (C::B, C::B) {
    // SAFETY: as for `Format::pair`.
    unsafe {
        let (low, high) = nibbles::<C>(codes, p);
        let fifth = C::bytes(codes.add(256));
        let bit = |g: usize| C::shift_mask(fifth, 4 - g as i32, 0x10);
        (C::or(low, bit(p)), C::or(high, bit(p + 4)))
    }
}

/// Quantized weights times the integer form, for `R` rows.
///
/// # Safety
/// The machine has the instruction set of `C`; the operands point to a whole tile of `F`, `R` rows of `k` inputs and room
/// for `16 · R` outputs.
#[inline(always)]
pub(crate) unsafe fn int8<C: Columns, F: Format, const R: usize>(on: Operands) {
    // SAFETY: all offsets below stay inside the tile and the rows, by their layouts; prefetches may point anywhere.
    unsafe {
        let (code_bytes, scale_bytes) = (code_bytes(F::DTYPE), scale_bytes(F::DTYPE));
        let rows: [*const u8; R] = std::array::from_fn(|r| *on.rows.add(r));
        let mut total = [C::zeros(); R];
        let groups = on.k / GROUP;
        let mut codes = on.tile;
        let mut index = 0;
        while index < groups {
            let block = groups_per_block(F::DTYPE).min(groups - index);
            let scales = codes.add(block * code_bytes);
            let shared = shared_scales::<C, F>(scales);
            for sub in 0..block {
                read_ahead::<C>(on, ahead(F::DTYPE, R), codes, code_bytes);
                let at = index * RECORD_BYTES;
                let records = std::array::from_fn(|r| rows[r].add(at));
                group::<C, F, R>(codes, scales, sub, shared, records, &mut total);
                codes = codes.add(code_bytes);
                index += 1;
            }
            read_ahead::<C>(on, ahead(F::DTYPE, R), scales, scale_bytes);
            codes = codes.add(scale_bytes);
        }
        for (r, total) in total.into_iter().enumerate() {
            C::store(on.out.add(r * on.stride), total);
        }
    }
}

/// The scales that the groups of a block share: of codes and of minima.
#[inline(always)]
unsafe fn shared_scales<C: Columns, F: Format>(scales: *const u8) -> (C::F, C::F) {
    // SAFETY: as for `int8`.
    unsafe {
        match F::DTYPE {
            Dtype::Q4K | Dtype::Q5K => {
                let m = C::mul(C::load_f16(scales.add(288)), C::constant(-1.0));
                (C::load_f16(scales.add(256)), m)
            }
            Dtype::Q6K => (C::mul(C::load_f16(scales.add(256)), C::constant(F::UNIT)), C::zeros()),
            _ => (C::zeros(), C::zeros()),
        }
    }
}

/// Adds 32 inputs to the totals.
#[expect(clippy::needless_range_loop, reason = "several arrays of rows walk together")]
#[inline(always)]
unsafe fn group<C: Columns, F: Format, const R: usize>(
    codes: *const u8,
    scales: *const u8,
    sub: usize,
    (d, m): (C::F, C::F),
    records: [*const u8; R],
    total: &mut [C::F; R],
) {
    // SAFETY: as for `int8`.
    unsafe {
        let word = |r: usize, at: usize| records[r].add(at);
        let (scale, second) = match F::DTYPE {
            Dtype::Q4K | Dtype::Q5K => {
                (C::mul(d, C::load_u8(scales.add(sub * 16))), C::mul(m, C::load_u8(scales.add(128 + sub * 16))))
            }
            Dtype::Q6K => {
                (C::mul(d, C::load_i8(scales.add(sub * 32))), C::mul(d, C::load_i8(scales.add(sub * 32 + 16))))
            }
            Dtype::Q4_1 | Dtype::Q5_1 => (C::load_f16(scales), C::load_f16(scales.add(32))),
            Dtype::Q8_0 => (C::load_f16(scales.add(sub * 32)), m),
            _ => (C::mul(C::load_f16(scales.add(sub * 32)), C::constant(F::UNIT)), m),
        };
        let mut sum: [C::I; R] = std::array::from_fn(|r| match F::SUM {
            Sum::Offset => C::begin_wide(word(r, 40).cast()),
            Sum::Minimum => C::none(),
            Sum::Halves => C::begin_wide(word(r, 44).cast()),
        });
        let mut upper: [C::I; R] = std::array::from_fn(|r| match F::SUM {
            Sum::Halves => C::begin_wide(word(r, 48).cast()),
            _ => C::none(),
        });
        for p in 0..4 {
            let (low, high) = F::pair::<C>(codes, p);
            let (low_at, high_at) = (p * 4, 16 + p * 4);
            match F::SUM {
                Sum::Minimum => {
                    for r in 0..R {
                        sum[r] = C::dot(sum[r], low, word(r, low_at).cast());
                        sum[r] = C::dot(sum[r], high, word(r, high_at).cast());
                    }
                }
                Sum::Offset => {
                    let (low, high) = (C::widen(low), C::widen(high));
                    for r in 0..R {
                        sum[r] = C::dot_wide(sum[r], low, word(r, low_at).cast());
                        sum[r] = C::dot_wide(sum[r], high, word(r, high_at).cast());
                    }
                }
                Sum::Halves => {
                    let (low, high) = (C::widen(low), C::widen(high));
                    for r in 0..R {
                        sum[r] = C::dot_wide(sum[r], low, word(r, low_at).cast());
                        upper[r] = C::dot_wide(upper[r], high, word(r, high_at).cast());
                    }
                }
            }
        }
        for r in 0..R {
            let d = C::splat(word(r, 32).cast());
            total[r] = match F::SUM {
                Sum::Offset => C::fma(C::to_float(sum[r]), C::mul(scale, d), total[r]),
                Sum::Minimum => {
                    let total = C::fma(C::to_float(sum[r]), C::mul(scale, d), total[r]);
                    C::fma(second, C::splat(word(r, 36).cast()), total)
                }
                Sum::Halves => {
                    let both = C::fma(C::to_float(upper[r]), second, C::mul(C::to_float(sum[r]), scale));
                    C::fma(both, d, total[r])
                }
            };
        }
    }
}

/// A format of floats that are widened to f32 on the way.
pub(crate) trait Floats {
    /// Its type.
    const DTYPE: Dtype;
    /// Bytes of two inputs of a tile.
    const STEP: usize;

    /// Two consecutive inputs.
    ///
    /// # Safety
    /// As for [`Columns`].
    unsafe fn pair<C: Columns>(at: *const u8) -> (C::F, C::F);
}

/// 32-bit floats.
pub(crate) struct F32;
/// Half floats.
pub(crate) struct F16;
/// Brain floats.
pub(crate) struct Bf16;

impl Floats for F32 {
    const DTYPE: Dtype = Dtype::F32;
    const STEP: usize = 128;

    #[inline(always)]
    unsafe fn pair<C: Columns>(at: *const u8) -> (C::F, C::F) {
        // SAFETY: the caller's duty.
        unsafe { (C::load(at), C::load(at.add(64))) }
    }
}

impl Floats for F16 {
    const DTYPE: Dtype = Dtype::F16;
    const STEP: usize = 64;

    #[inline(always)]
    unsafe fn pair<C: Columns>(at: *const u8) -> (C::F, C::F) {
        // SAFETY: the caller's duty.
        unsafe { (C::load_f16(at), C::load_f16(at.add(32))) }
    }
}

impl Floats for Bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    const STEP: usize = 64;

    #[inline(always)]
    unsafe fn pair<C: Columns>(at: *const u8) -> (C::F, C::F) {
        // SAFETY: the caller's duty.
        unsafe { C::load_bf16(at) }
    }
}

/// Float weights times f32 activations, for `R` rows. Even and odd inputs have totals of their own, so that one row alone
/// does not wait for its own sums; they meet at the end.
///
/// # Safety
/// As for [`int8`]; `k` is even.
#[inline(always)]
pub(crate) unsafe fn floats<C: Columns, F: Floats, const R: usize>(on: Operands) {
    // SAFETY: as for `int8`.
    unsafe {
        let rows: [*const f32; R] = std::array::from_fn(|r| (*on.rows.add(r)).cast());
        let mut even = [C::zeros(); R];
        let mut odd = [C::zeros(); R];
        for step in 0..on.k / 2 {
            let at = step * F::STEP;
            read_ahead::<C>(on, ahead(F::DTYPE, R), on.tile.add(at), F::STEP);
            let (first, second) = F::pair::<C>(on.tile.add(at));
            for r in 0..R {
                even[r] = C::fma(first, C::splat(rows[r].add(2 * step)), even[r]);
                odd[r] = C::fma(second, C::splat(rows[r].add(2 * step + 1)), odd[r]);
            }
        }
        for r in 0..R {
            C::store(on.out.add(r * on.stride), C::add(even[r], odd[r]));
        }
    }
}
