//! The inputs of products: rows of activations, quantized or rounded once and shared by every matrix that reads them.
//!
//! The integer form has a scale for every 32 values (`d = max |x| / 127`, codes rounded to nearest even), and with it what
//! the weights' offsets and minima multiply: sums of codes. One group is one record, so that a row is one stream:
//!
//! ```text
//! 0  32 × i8 codes   32  f32 d   36  f32 d·Σ codes   40  i32 −128·Σ codes   44, 48  the same over each half
//! ```

#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::BitOr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::dtype::GROUP;
use crate::error::NotFinite;
use crate::pack::padded_inputs;
use crate::pool::Pool;
use crate::rows::each_row_of;
use crate::tier::Tier;

/// Words (of four bytes) in the record of a group.
const RECORD: usize = 13;

/// Values that the caller quantizes by itself: fewer cost less than a dispatch.
const VALUES_ALONE: usize = 2048;

/// Bytes of a group's record.
pub(crate) const RECORD_BYTES: usize = RECORD * 4;

/// A set of forms in which activations are kept: the union of [`crate::matrix::Matrix::form`] over the matrices that read
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Forms(u8);

impl Forms {
    /// No form.
    pub const NONE: Forms = Forms(0);
    /// Codes of 8 bits with a scale per 32 values: for quantized weights.
    pub const INT8: Forms = Forms(1);
    /// Rounded to bf16: for bf16 weights where the processor multiplies them.
    pub const BF16: Forms = Forms(2);
    /// As they are: for float weights.
    pub const F32: Forms = Forms(4);

    /// The name of a single form.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Forms::INT8 => "INT8",
            Forms::BF16 => "BF16",
            Forms::F32 => "F32",
            _ => "combined",
        }
    }

    /// Whether every form of `other` is in this set.
    pub fn contains(self, other: Forms) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Forms {
    type Output = Forms;

    fn bitor(self, other: Forms) -> Forms {
        Forms(self.0 | other.0)
    }
}

/// Rows of activations in the forms that products read. Its buffers grow to the largest step and stay.
pub struct Activations {
    tier: Tier,
    rows: usize,
    k: usize,
    forms: Forms,
    int8: Vec<u32>,
    bf16: Vec<u16>,
    f32: Vec<f32>,
    written: Vec<AtomicBool>,
}

impl Activations {
    /// No rows yet, for the tier in use.
    pub fn new() -> Activations {
        Activations::on(Tier::current())
    }

    /// No rows yet, for a given tier: products with them run on it.
    ///
    /// # Panics
    /// This machine lacks the tier.
    pub fn on(tier: Tier) -> Activations {
        assert!(tier.is_available(), "this processor lacks {tier}");
        Activations {
            tier,
            rows: 0,
            k: 0,
            forms: Forms::NONE,
            int8: Vec::new(),
            bf16: Vec::new(),
            f32: Vec::new(),
            written: Vec::new(),
        }
    }

    /// The tier that products with these activations run on.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Rows that are loaded.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The forms that are loaded.
    pub fn forms(&self) -> Forms {
        self.forms
    }

    /// Loads `rows` rows of `k` values, one after the other in `x`.
    ///
    /// # Errors
    /// A row holds a NaN or an infinity: the first such row. The other rows are loaded and may be used.
    ///
    /// # Panics
    /// `x` does not hold `rows · k` values.
    pub fn load(&mut self, pool: &Pool, x: &[f32], rows: usize, k: usize, forms: Forms) -> Result<(), NotFinite> {
        assert_eq!(x.len(), rows * k, "activations of {rows} rows and {k} columns");
        // The rows are read through a shared slice, so nothing is asked of the row that is given.
        self.load_each(pool, (rows, k), forms, &mut [], 0, &|row, _| &x[row * k..][..k])
    }

    /// Loads `rows` rows of `k` values that `make(row, room)` computes, each on one thread; `room` is that row's part of
    /// `scratch`, `width` values.
    ///
    /// # Errors
    /// As for [`Activations::load`].
    ///
    /// # Panics
    /// `scratch` is too short, or `make` gives a slice that is not of `k` values.
    pub fn load_each<'x>(
        &mut self,
        pool: &Pool,
        (rows, k): (usize, usize),
        forms: Forms,
        scratch: &'x mut [f32],
        width: usize,
        make: &(dyn Fn(usize, &'x mut [f32]) -> &'x [f32] + Sync),
    ) -> Result<(), NotFinite> {
        let writer = self.begin(rows, k, forms);
        let first = AtomicUsize::new(usize::MAX);
        // A dispatch costs as much as some thousand values.
        let chunk = (VALUES_ALONE / k.max(1)).max(rows.div_ceil(pool.threads() * 4)).max(1);
        // As many chunks for each thread.
        let chunk = rows.div_ceil(rows.div_ceil(chunk).next_multiple_of(pool.threads())).max(1);
        each_row_of(pool, rows, chunk, scratch, width, &|row, room| {
            if !writer.set(row, make(row, room)) {
                first.fetch_min(row, Ordering::Relaxed);
            }
        });
        match first.into_inner() {
            usize::MAX => Ok(()),
            row => Err(NotFinite { row }),
        }
    }

    /// Makes room for `rows` rows of `k` values; each is then written by [`Writer::set`], for instance by the norm that
    /// computes it. A row that is never set holds what an earlier step left there.
    pub fn begin(&mut self, rows: usize, k: usize, forms: Forms) -> Writer<'_> {
        (self.rows, self.k, self.forms) = (rows, k, forms);
        let room = |form: Forms, stride: usize| {
            if forms.contains(form) { rows * stride } else { 0 }
        };
        grow(&mut self.int8, room(Forms::INT8, int8_stride(k)));
        grow(&mut self.bf16, room(Forms::BF16, padded_inputs(k)));
        grow(&mut self.f32, room(Forms::F32, padded_inputs(k)));
        for flag in &mut self.written {
            *flag.get_mut() = false;
        }
        if self.written.len() < rows {
            self.written.resize_with(rows, AtomicBool::default);
        }
        Writer {
            tier: self.tier,
            rows,
            k,
            forms,
            int8: self.int8.as_mut_ptr(),
            bf16: self.bf16.as_mut_ptr(),
            f32: self.f32.as_mut_ptr(),
            written: &self.written,
        }
    }

    /// Where a row of one form begins; the caller has checked row and form.
    pub(crate) fn row(&self, form: Forms, row: usize) -> *const u8 {
        debug_assert!(row < self.rows && self.forms.contains(form));
        match form {
            Forms::INT8 => self.int8[row * int8_stride(self.k)..].as_ptr().cast(),
            Forms::BF16 => self.bf16[row * padded_inputs(self.k)..].as_ptr().cast(),
            _ => self.f32[row * padded_inputs(self.k)..].as_ptr().cast(),
        }
    }

    /// Bytes of a row in one form.
    pub(crate) fn row_bytes(&self, form: Forms) -> usize {
        match form {
            Forms::INT8 => int8_stride(self.k) * 4,
            Forms::BF16 => padded_inputs(self.k) * 2,
            _ => padded_inputs(self.k) * 4,
        }
    }
}

impl Default for Activations {
    fn default() -> Self {
        Activations::new()
    }
}

/// Words of a row in the integer form.
fn int8_stride(k: usize) -> usize {
    k.div_ceil(GROUP) * RECORD
}

/// Lengthens a buffer, never shortens it.
fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// Writes the rows of [`Activations`], from any thread, each row once.
pub struct Writer<'a> {
    tier: Tier,
    rows: usize,
    k: usize,
    forms: Forms,
    int8: *mut u32,
    bf16: *mut u16,
    f32: *mut f32,
    written: &'a [AtomicBool],
}

// SAFETY: the pointers are into buffers that are borrowed mutably for 'a; a row is written only by the one call that
// turned its flag from false to true, and rows do not overlap.
unsafe impl Send for Writer<'_> {}
// SAFETY: as above.
unsafe impl Sync for Writer<'_> {}

impl Writer<'_> {
    /// Writes one row in every form; false where it holds a NaN or an infinity (the request that it belongs to must fail).
    ///
    /// # Panics
    /// The row does not exist or was written before, or `x` does not hold `k` values.
    pub fn set(&self, row: usize, x: &[f32]) -> bool {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(x.len(), self.k, "values of an activation row");
        assert!(!self.written[row].swap(true, Ordering::Relaxed), "activation row {row} is written twice");
        let room = |form: Forms, stride: usize| if self.forms.contains(form) { stride } else { 0 };
        let int8 = room(Forms::INT8, int8_stride(self.k));
        let bf16 = room(Forms::BF16, padded_inputs(self.k));
        let f32 = room(Forms::F32, padded_inputs(self.k));
        // SAFETY: `begin` made room for `rows` rows of every form asked for, and this row is ours alone (see `Sync`); `tier`
        // was checked when the activations were made.
        unsafe {
            let row = Row {
                x,
                int8: std::slice::from_raw_parts_mut(self.int8.add(row * int8), int8),
                bf16: std::slice::from_raw_parts_mut(self.bf16.add(row * bf16), bf16),
                f32: std::slice::from_raw_parts_mut(self.f32.add(row * f32), f32),
            };
            row.write_on(self.tier)
        }
    }
}

/// Bits of positive infinity: NaN and infinities are at or above it, as integers, once the sign is gone.
const INFINITY: u32 = 0x7F80_0000;

/// The largest magnitude, as bits.
#[inline(always)]
fn largest(x: &[f32]) -> u32 {
    x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7FFF_FFFF))
}

/// A row and where its forms go; a form that was not asked for has no room.
struct Row<'a> {
    x: &'a [f32],
    int8: &'a mut [u32],
    bf16: &'a mut [u16],
    f32: &'a mut [f32],
}

impl Row<'_> {
    /// Writes every form with the vectors of a tier; false where a value is not finite. The arithmetic is the same on all.
    ///
    /// # Safety
    /// The machine has the tier.
    unsafe fn write_on(self, tier: Tier) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let only_int8 = !self.int8.is_empty() && self.bf16.is_empty() && self.f32.is_empty();
            if tier.avx512() && only_int8 && self.x.len().is_multiple_of(GROUP) {
                // SAFETY: the tier has these features.
                return unsafe { x86::quantize(self.x, self.int8) } < INFINITY;
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
fn scales(bits: u32) -> (f32, f32) {
    /// Below this the scale, or its inverse, would leave the normal range: such a group is 0.
    const SMALLEST: f32 = 127.0 * f32::MIN_POSITIVE;
    let most = f32::from_bits(bits);
    if most >= SMALLEST { (most / 127.0, 127.0 / most) } else { (0.0, 0.0) }
}

/// What stands behind the codes of a record: the scale, and what follows from the sums of both halves.
#[inline(always)]
fn finish(record: &mut [u32; RECORD], d: f32, [first, second]: [i32; 2]) {
    let sum = first.wrapping_add(second);
    record[8] = d.to_bits();
    record[9] = (d * sum as f32).to_bits();
    record[10] = sum.wrapping_mul(-128) as u32;
    record[11] = first.wrapping_mul(-128) as u32;
    record[12] = second.wrapping_mul(-128) as u32;
}

#[cfg(test)]
mod tests;
