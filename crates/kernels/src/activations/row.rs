//! One row, or a part of it, in every form that is asked for.

use super::RECORD;
use crate::dtype::GROUP;
use crate::tier::Tier;

/// Bits of positive infinity: NaN and infinities are at or above it, as integers, once the sign is gone.
const INFINITY: u32 = 0x7F80_0000;

/// The largest magnitude, as bits.
#[inline(always)]
fn largest(x: &[f32]) -> u32 {
    x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7FFF_FFFF))
}

/// A row, or a part of it, and where its forms go; a form that was not asked for has no room.
pub(super) struct Row<'a> {
    pub x: &'a [f32],
    pub int8: &'a mut [u32],
    pub bf16: &'a mut [u16],
    pub f32: &'a mut [f32],
}

impl Row<'_> {
    /// Writes every form with the vectors of a tier; false where a value is not finite. The arithmetic is the same on all.
    ///
    /// # Safety
    /// The machine has the tier.
    pub unsafe fn write_on(self, tier: Tier) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let only_int8 = !self.int8.is_empty() && self.bf16.is_empty() && self.f32.is_empty();
            if tier.avx512() && only_int8 && self.x.len().is_multiple_of(GROUP) {
                // SAFETY: the tier has these features.
                return unsafe { super::x86::quantize(self.x, self.int8) } < INFINITY;
            }
            // The compiler makes slower code of it with AVX-512.
            #[target_feature(enable = "avx2,fma")]
            fn avx2(row: Row<'_>) -> bool {
                row.write()
            }
            if tier.avx2() {
                // SAFETY: the tier has these features.
                return unsafe { avx2(self) };
            }
        }
        let _ = tier;
        self.write()
    }

    #[inline(always)]
    fn write(self) -> bool {
        if !self.bf16.is_empty() {
            let (values, padding) = self.bf16.split_at_mut(self.x.len());
            for (y, x) in values.iter_mut().zip(self.x) {
                // To nearest, ties to even. What is not finite comes out wrong, but it is told of.
                let bits = x.to_bits();
                *y = (bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16;
            }
            padding.fill(0);
        }
        if !self.f32.is_empty() {
            let (values, padding) = self.f32.split_at_mut(self.x.len());
            values.copy_from_slice(self.x);
            padding.fill(0.0);
        }
        if self.int8.is_empty() { largest(self.x) < INFINITY } else { quantize_row(self.x, self.int8) }
    }
}

/// Writes the records of a row; false where a value is not finite.
#[inline(always)]
fn quantize_row(x: &[f32], records: &mut [u32]) -> bool {
    let mut finite = true;
    let (whole, rest) = x.as_chunks::<GROUP>();
    let (records, _) = records.as_chunks_mut::<RECORD>();
    for (group, record) in whole.iter().zip(records.iter_mut()) {
        finite &= quantize_group(group, record);
    }
    if !rest.is_empty() {
        let mut group = [0.0; GROUP];
        group[..rest.len()].copy_from_slice(rest);
        finite &= quantize_group(&group, &mut records[whole.len()]);
    }
    finite
}

#[inline(always)]
fn quantize_group(x: &[f32; GROUP], record: &mut [u32; RECORD]) -> bool {
    /// Adding this leaves the nearest integer, ties to even, in the low bits of the mantissa, for |x| < 2^22.
    const MAGIC: f32 = 12_582_912.0;
    let bits = largest(x);
    let (d, inverse) = scales(bits);
    let mut codes = [0i32; GROUP];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
    }
    let mut packed = [0u8; GROUP];
    for (byte, code) in packed.iter_mut().zip(codes) {
        *byte = code as u8;
    }
    for (word, bytes) in record.iter_mut().zip(packed.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    let sum = |half: &[i32]| half.iter().fold(0i32, |sum, code| sum.wrapping_add(*code));
    finish(record, d, [sum(&codes[..16]), sum(&codes[16..])]);
    bits < INFINITY
}

/// The scale of a group whose largest magnitude has these bits, and its inverse.
#[inline(always)]
pub(super) fn scales(bits: u32) -> (f32, f32) {
    /// Below this the scale, or its inverse, would leave the normal range: such a group is 0.
    const SMALLEST: f32 = 127.0 * f32::MIN_POSITIVE;
    let most = f32::from_bits(bits);
    if most >= SMALLEST { (most / 127.0, 127.0 / most) } else { (0.0, 0.0) }
}

/// What stands behind the codes of a record: the scale, and what follows from the sums of both halves.
#[inline(always)]
pub(super) fn finish(record: &mut [u32; RECORD], d: f32, [first, second]: [i32; 2]) {
    let sum = first.wrapping_add(second);
    record[8] = d.to_bits();
    record[9] = (d * sum as f32).to_bits();
    record[10] = sum.wrapping_mul(-128) as u32;
    record[11] = first.wrapping_mul(-128) as u32;
    record[12] = second.wrapping_mul(-128) as u32;
}
