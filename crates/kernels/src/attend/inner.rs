//! The two register tiles of attention: scores of rows against 32 keys, and values summed into rows.
use crate::kv::PAGE;
use crate::simd::{MAX_LANES, Simd, Task};

/// What a lane of the store is read as: an element, or a pair of them that is summed over at once. Queries and weights
/// come in the same units.
pub(super) trait Element: Copy {
    /// Elements in a unit.
    const UNIT: usize;
    /// Nothing is gained by widening a block to f32 once for many rows.
    const WIDE: bool;
    /// # Safety
    /// `p` is valid for the read of a vector.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
    /// `acc` and, per lane, the sum of the products of two units.
    #[inline(always)]
    fn fma<S: Simd>(s: S, x: S::V, y: S::V, acc: S::V) -> S::V {
        s.fma(x, y, acc)
    }
}
impl Element for f32 {
    const UNIT: usize = 1;
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
    const UNIT: usize = 1;
    const WIDE: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const F16) -> S::V {
        // SAFETY: the caller's duty.
        unsafe { s.load_f16(p.cast()) }
    }
}
/// Two stored bfloat16.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct Pair(u32);
impl Pair {
    /// Of the units `a` and `b`, the elements at `half` of each, the second 0 where there is none.
    pub fn of((a, first): (Pair, usize), b: Option<(Pair, usize)>) -> Pair {
        let half = |(pair, at): (Pair, usize)| pair.0 >> (16 * at) & 0xFFFF;
        Pair(half((a, first)) | b.map_or(0, half) << 16)
    }
}
impl Element for Pair {
    const UNIT: usize = 2;
    const WIDE: bool = true;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Pair) -> S::V {
        // SAFETY: the caller's duty.
        unsafe { s.load(p.cast()) }
    }
    #[inline(always)]
    fn fma<S: Simd>(s: S, x: S::V, y: S::V, acc: S::V) -> S::V {
        s.dot_pairs(x, y, acc)
    }
}

/// Round `n` floats to bfloat16.
///
/// # Safety (of making one)
/// `from` and `to` are valid for `n` elements.
pub(super) struct Round {
    pub from: *const f32,
    pub to: *mut u16,
    pub n: usize,
}
impl Task for Round {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        while i < self.n {
            let some = (self.n - i).min(S::LANES);
            let mut short = [0u16; MAX_LANES];
            // SAFETY: the maker's duty; `short` holds a vector.
            unsafe {
                s.store_bf16(short.as_mut_ptr(), s.load_part(self.from.add(i), some, 0.0));
                std::ptr::copy_nonoverlapping(short.as_ptr(), self.to.add(i), some);
            }
            i += some;
        }
    }
}

/// Widen `n` elements, a multiple of 16.
///
/// # Safety (of making one)
/// `from` and `to` are valid for `n` elements.
pub(super) struct Widen<T> {
    pub from: *const T,
    pub to: *mut f32,
    pub n: usize,
}
impl<T: Element> Task for Widen<T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        while i < self.n {
            // SAFETY: the maker's duty; LANES divides 16.
            unsafe { s.store(self.to.add(i), T::load(s, self.from.add(i))) };
            i += S::LANES;
        }
    }
}

/// `out[r][0..32] = q[r] . keys[0..32]` for `rows` rows, one chain of multiply-adds over `dim` units each.
///
/// # Safety (of making one)
/// `q` is valid for `rows * dim` units, `keys` for `[dim][PAGE]` units, `out` for PAGE floats a row, `stride` apart.
pub(super) struct Scores<T> {
    pub dim: usize,
    pub rows: usize,
    pub q: *const f32,
    pub keys: *const T,
    pub out: *mut f32,
    pub stride: usize,
}
impl<T: Element> Scores<T> {
    /// Rows `r..r + R`.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&self, s: S, r: &mut usize) {
        let mut lane = 0;
        while lane < PAGE {
            let mut acc = [[s.splat(0.0); 2]; R];
            // SAFETY: the maker's duty; R rows are left.
            unsafe {
                let (q, out) = (self.q.add(*r * self.dim), self.out.add(*r * self.stride + lane));
                for e in 0..self.dim {
                    let at = self.keys.add(e * PAGE + lane);
                    let k = [T::load(s, at), T::load(s, at.add(S::LANES))];
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let x = s.splat(*q.add(i * self.dim + e));
                        acc[0] = T::fma(s, x, k[0], acc[0]);
                        acc[1] = T::fma(s, x, k[1], acc[1]);
                    }
                }
                for (i, acc) in acc.iter().enumerate() {
                    s.store(out.add(i * self.stride), acc[0]);
                    s.store(out.add(i * self.stride + S::LANES), acc[1]);
                }
            }
            lane += 2 * S::LANES;
        }
        *r += R;
    }
}
impl<T: Element> Task for Scores<T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut r = 0;
        if S::TILE >= 8 {
            while self.rows - r >= 8 {
                self.tile::<S, 8>(s, &mut r);
            }
        }
        if S::TILE >= 4 {
            while self.rows - r >= 4 {
                self.tile::<S, 4>(s, &mut r);
            }
            if self.rows - r == 3 {
                self.tile::<S, 3>(s, &mut r);
            }
        }
        while self.rows - r >= 2 {
            self.tile::<S, 2>(s, &mut r);
        }
        if self.rows > r {
            self.tile::<S, 1>(s, &mut r);
        }
    }
}

/// `acc[r] = acc[r] * factor[r] + sum_i weight[r][i] * values[i]`, i in order, for `rows` rows; i counts units of keys.
///
/// # Safety (of making one)
/// `values` point at `width` units each, a multiple of 16; `weights` holds PAGE words, `factors` one float, `acc`
/// `width` floats a row.
pub(super) struct Values<'a, T> {
    pub width: usize,
    pub rows: usize,
    pub values: &'a [*const T],
    pub weights: *const f32,
    pub factors: *const f32,
    pub acc: *mut f32,
}
impl<T: Element> Values<'_, T> {
    /// `C` vectors of columns of rows `r..r + R`.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const C: usize>(&self, s: S, r: usize, column: usize) {
        let mut sum = [[s.splat(0.0); C]; R];
        // SAFETY: the maker's duty; R rows and C vectors are left.
        unsafe {
            let acc = self.acc.add(r * self.width + column);
            for (i, sum) in sum.iter_mut().enumerate() {
                let factor = s.splat(*self.factors.add(r + i));
                for (c, sum) in sum.iter_mut().enumerate() {
                    *sum = s.mul(s.load(acc.add(i * self.width + c * S::LANES)), factor);
                }
            }
            let weights = self.weights.add(r * PAGE);
            for (k, value) in self.values.iter().enumerate() {
                let mut v = [s.splat(0.0); C];
                for (c, v) in v.iter_mut().enumerate() {
                    *v = T::load(s, value.add(column + c * S::LANES));
                }
                for (i, sum) in sum.iter_mut().enumerate() {
                    let w = s.splat(*weights.add(i * PAGE + k));
                    for (sum, v) in sum.iter_mut().zip(v) {
                        *sum = T::fma(s, w, v, *sum);
                    }
                }
            }
            for (i, sum) in sum.iter().enumerate() {
                for (c, sum) in sum.iter().enumerate() {
                    s.store(acc.add(i * self.width + c * S::LANES), *sum);
                }
            }
        }
    }

    /// All columns of rows `r..r + R`, `C` vectors at a time, then one.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const C: usize>(&self, s: S, r: &mut usize) {
        let mut column = 0;
        while column + C * S::LANES <= self.width {
            self.tile::<S, R, C>(s, *r, column);
            column += C * S::LANES;
        }
        while column < self.width {
            self.tile::<S, R, 1>(s, *r, column);
            column += S::LANES;
        }
        *r += R;
    }
}
impl<T: Element> Task for Values<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut r = 0;
        if S::TILE >= 8 {
            while self.rows - r >= 4 {
                self.rows::<S, 4, 4>(s, &mut r);
            }
            if self.rows - r == 3 {
                self.rows::<S, 3, 4>(s, &mut r);
            }
        } else if S::TILE >= 4 {
            while self.rows - r >= 4 {
                self.rows::<S, 4, 2>(s, &mut r);
            }
        }
        while self.rows - r >= 2 {
            self.rows::<S, 2, 2>(s, &mut r);
        }
        if self.rows > r {
            self.rows::<S, 1, 4>(s, &mut r);
        }
    }
}
