//! The inputs of products: rows of activations, quantized or rounded once and shared by every matrix that reads them.
//!
//! The integer form has a scale for every 32 values (`d = max |x| / 127`, codes rounded to nearest even), and with it what
//! the weights' offsets and minima multiply: sums of codes. One group is one record, so that a row is one stream:
//!
//! ```text
//! 0  32 × i8 codes   32  f32 d   36  f32 d·Σ codes   40  i32 −128·Σ codes   44, 48  the same over each half
//! ```

mod row;
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
use row::Row;

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
        // A dispatch costs as much as some thousand values.
        let chunk = (VALUES_ALONE / k.max(1)).max(rows.div_ceil(pool.threads() * 4)).max(1);
        // As many chunks for each thread.
        let chunk = rows.div_ceil(rows.div_ceil(chunk).next_multiple_of(pool.threads())).max(1);
        each_row_of(pool, rows, chunk, scratch, width, &|row, room| {
            writer.set(row, make(row, room));
        });
        writer.finish()
    }

    /// Makes room for `rows` rows of `k` values; each is then written by [`Writer::set`], for instance by the norm that
    /// computes it, or part by part by the product whose outputs they are. A row that is never set holds what an earlier
    /// step left there.
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
            bad: AtomicUsize::new(usize::MAX),
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
#[derive(Debug)]
pub struct Writer<'a> {
    tier: Tier,
    rows: usize,
    k: usize,
    forms: Forms,
    int8: *mut u32,
    bf16: *mut u16,
    f32: *mut f32,
    written: &'a [AtomicBool],
    /// The first row that holds a NaN or an infinity.
    bad: AtomicUsize,
}

// SAFETY: the pointers are into buffers that are borrowed mutably for 'a; a row is written only by the one call that
// turned its flag from false to true, or in parts that do not overlap (`set_part`), and rows do not overlap.
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
        // SAFETY: the row exists and is ours alone (see `Sync`).
        unsafe { self.set_part(row, 0, x) }
    }

    /// Writes the values from `first` on of a row, as [`Writer::set`] does.
    ///
    /// # Safety
    /// The row exists, has these values and was claimed; nobody else writes them or the rest of their groups. `first` is a multiple of
    /// [`GROUP`], and the values are whole groups or reach to the row's end.
    pub(crate) unsafe fn set_part(&self, row: usize, first: usize, x: &[f32]) -> bool {
        let end = first + x.len();
        debug_assert!(row < self.rows && end <= self.k && first.is_multiple_of(GROUP));
        // Words or values of the part, behind those of the rows before; the last part fills up the row.
        let place = |form: Forms, stride: usize, from: usize, to: usize| {
            let to = if end == self.k { stride } else { to };
            if self.forms.contains(form) { (row * stride + from, to - from) } else { (0, 0) }
        };
        let (floats, groups) = (padded_inputs(self.k), [first / GROUP * RECORD, end.div_ceil(GROUP) * RECORD]);
        let int8 = place(Forms::INT8, int8_stride(self.k), groups[0], groups[1]);
        let (bf16, f32) = (place(Forms::BF16, floats, first, end), place(Forms::F32, floats, first, end));
        // SAFETY: `begin` made room for `rows` rows of every form asked for, and this part is ours alone; `tier` was checked
        // when the activations were made.
        let finite = unsafe {
            let part = Row {
                x,
                int8: std::slice::from_raw_parts_mut(self.int8.add(int8.0), int8.1),
                bf16: std::slice::from_raw_parts_mut(self.bf16.add(bf16.0), bf16.1),
                f32: std::slice::from_raw_parts_mut(self.f32.add(f32.0), f32.1),
            };
            part.write_on(self.tier)
        };
        if !finite {
            self.bad.fetch_min(row, Ordering::Relaxed);
        }
        finite
    }

    /// Says that all rows are about to be written in parts, by the caller alone.
    ///
    /// # Panics
    /// One was written before.
    pub(crate) fn claim(&self) {
        for (row, flag) in self.written[..self.rows].iter().enumerate() {
            assert!(!flag.swap(true, Ordering::Relaxed), "activation row {row} is written twice");
        }
    }

    /// Rows to write.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// That all rows are written.
    ///
    /// # Errors
    /// A row holds a NaN or an infinity: the first such row. The other rows may be used.
    pub fn finish(self) -> Result<(), NotFinite> {
        match self.bad.into_inner() {
            usize::MAX => Ok(()),
            row => Err(NotFinite { row }),
        }
    }
}

#[cfg(test)]
mod tests;
