//! The two register tiles of attention: scores of rows against 32 keys, and values summed into rows.
use crate::kv::PAGE;
use crate::simd::Simd;

/// How an element of the store is read.
pub(super) trait Element: Copy {
    /// Already f32: nothing is gained by widening a block once for many rows.
    const WIDE: bool;
    /// # Safety
    /// `p` is valid for the read of a vector.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
}
impl Element for f32 {
    const WIDE: bool = true;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's duty.
        unsafe { s.load(p) }
    }
}
/// A stored half.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct F16(u16);
impl Element for F16 {
    const WIDE: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const F16) -> S::V {
        // SAFETY: the caller's duty.
        unsafe { s.load_f16(p.cast()) }
    }
}
/// A stored bfloat16.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Bf16(u16);
impl Element for Bf16 {
    const WIDE: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Bf16) -> S::V {
        // SAFETY: the caller's duty.
        unsafe { s.load_bf16(p.cast()) }
    }
}

/// Widen `n` elements, a multiple of 16.
///
/// # Safety
/// `from` and `to` are valid for `n` elements.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, T: Element>(s: S, from: *const T, to: *mut f32, n: usize) {
    let mut i = 0;
    while i < n {
        // SAFETY: the caller's duty; LANES divides 16.
        unsafe { s.store(to.add(i), T::load(s, from.add(i))) };
        i += S::LANES;
    }
}

/// Scores of `R` rows (`q`, stride `dim`) against the 32 keys of a page, one chain of multiply-adds over `dim` each.
#[inline(always)]
unsafe fn scores_of<S: Simd, T: Element, const R: usize>(
    s: S,
    dim: usize,
    q: *const f32,
    keys: *const T,
    out: *mut f32,
    stride: usize,
) {
    let mut lane = 0;
    while lane < PAGE {
        let mut acc = [[s.splat(0.0); 2]; R];
        // SAFETY: `keys` holds [dim][PAGE] elements, `q` R rows of `dim`, `out` R rows of PAGE, by the caller's duty.
        unsafe {
            for e in 0..dim {
                let at = keys.add(e * PAGE + lane);
                let k = [T::load(s, at), T::load(s, at.add(S::LANES))];
                for r in 0..R {
                    let x = s.splat(*q.add(r * dim + e));
                    acc[r][0] = s.fma(x, k[0], acc[r][0]);
                    acc[r][1] = s.fma(x, k[1], acc[r][1]);
                }
            }
            for r in 0..R {
                s.store(out.add(r * stride + lane), acc[r][0]);
                s.store(out.add(r * stride + lane + S::LANES), acc[r][1]);
            }
        }
        lane += 2 * S::LANES;
    }
}

/// `out[r][0..32] = q[r] . keys[0..32]` for `rows` rows; `q` has row stride `dim`, `out` has `stride`.
///
/// # Safety
/// `q` is valid for `rows * dim` floats, `keys` for `dim * PAGE` elements, `out` for `rows` rows of `PAGE` floats.
#[inline(always)]
pub(super) unsafe fn scores<S: Simd, T: Element>(
    s: S,
    dim: usize,
    rows: usize,
    q: *const f32,
    keys: *const T,
    out: *mut f32,
    stride: usize,
) {
    let mut r = 0;
    while r < rows {
        // SAFETY: the caller's duty; n rows are left.
        unsafe {
            let (q, out) = (q.add(r * dim), out.add(r * stride));
            r += match (rows - r).min(S::TILE) {
                8.. => {
                    scores_of::<S, T, 8>(s, dim, q, keys, out, stride);
                    8
                }
                4.. => {
                    scores_of::<S, T, 4>(s, dim, q, keys, out, stride);
                    4
                }
                3 => {
                    scores_of::<S, T, 3>(s, dim, q, keys, out, stride);
                    3
                }
                2 => {
                    scores_of::<S, T, 2>(s, dim, q, keys, out, stride);
                    2
                }
                _ => {
                    scores_of::<S, T, 1>(s, dim, q, keys, out, stride);
                    1
                }
            };
        }
    }
}

/// Weights and factors of some rows of a tile.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Weights, PAGE a row.
    pub weights: *const f32,
    /// What the row's accumulator is scaled by first.
    pub factors: *const f32,
    /// Accumulators, `width` a row.
    pub acc: *mut f32,
}

/// `acc[r] = acc[r] * factor[r] + sum_i weight[r][i] * values[i]`, i in order, for `R` rows and `C` vectors of columns.
#[inline(always)]
unsafe fn values_of<S: Simd, T: Element, const R: usize, const C: usize>(
    s: S,
    width: usize,
    rows: Rows,
    column: usize,
    values: &[*const T],
) {
    let mut acc = [[s.splat(0.0); C]; R];
    // SAFETY: the caller's duty.
    unsafe {
        for r in 0..R {
            let factor = s.splat(*rows.factors.add(r));
            for c in 0..C {
                acc[r][c] = s.mul(s.load(rows.acc.add(r * width + column + c * S::LANES)), factor);
            }
        }
        for (i, value) in values.iter().enumerate() {
            let mut v = [s.splat(0.0); C];
            for c in 0..C {
                v[c] = T::load(s, value.add(column + c * S::LANES));
            }
            for r in 0..R {
                let w = s.splat(*rows.weights.add(r * PAGE + i));
                for c in 0..C {
                    acc[r][c] = s.fma(w, v[c], acc[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                s.store(rows.acc.add(r * width + column + c * S::LANES), acc[r][c]);
            }
        }
    }
}

/// All columns of `R` rows, `C` vectors at a time, then fewer.
#[inline(always)]
unsafe fn values_rows<S: Simd, T: Element, const R: usize, const C: usize>(
    s: S,
    width: usize,
    rows: Rows,
    values: &[*const T],
) {
    let mut column = 0;
    // SAFETY: the caller's duty; `width` is a multiple of LANES.
    unsafe {
        while column + C * S::LANES <= width {
            values_of::<S, T, R, C>(s, width, rows, column, values);
            column += C * S::LANES;
        }
        while column < width {
            values_of::<S, T, R, 1>(s, width, rows, column, values);
            column += S::LANES;
        }
    }
}

/// Add up to 32 weighted values to `n` rows.
///
/// # Safety
/// `rows` is valid for `n` rows, each of `values` for `width` elements.
#[inline(always)]
pub(super) unsafe fn values<S: Simd, T: Element>(s: S, width: usize, n: usize, mut rows: Rows, values: &[*const T]) {
    let mut left = n;
    while left > 0 {
        // SAFETY: the caller's duty; `left` rows are left.
        unsafe {
            let done = match left.min(S::TILE) {
                8.. => {
                    values_rows::<S, T, 8, 2>(s, width, rows, values);
                    8
                }
                4.. if S::TILE == 8 => {
                    values_rows::<S, T, 4, 4>(s, width, rows, values);
                    4
                }
                4.. => {
                    values_rows::<S, T, 4, 2>(s, width, rows, values);
                    4
                }
                3 if S::TILE == 8 => {
                    values_rows::<S, T, 3, 4>(s, width, rows, values);
                    3
                }
                2.. => {
                    values_rows::<S, T, 2, 2>(s, width, rows, values);
                    2
                }
                _ => {
                    values_rows::<S, T, 1, 4>(s, width, rows, values);
                    1
                }
            };
            rows = Rows {
                weights: rows.weights.add(done * PAGE),
                factors: rows.factors.add(done),
                acc: rows.acc.add(done * width),
            };
            left -= done;
        }
    }
}
