//! Vectors of f32, one width per instruction set: a kernel is written once, over [`Simd`], and compiled for each set.
//!
//! A kernel is a [`Task`]; [`dispatch`] runs it under the widest set of this machine. Everything between the two is
//! `#[inline(always)]`, so that the intrinsics end up inside a function that has the features they need. Lanes never
//! mix except in the two reductions, whose order is fixed: a result depends on the set, never on where in a slice a
//! value lies.
use crate::tier::Tier;

/// A value of an implementing type proves that the machine has its instruction set.
pub(crate) trait Simd: Copy + Send + Sync {
    /// [`Self::LANES`] floats.
    type V: Copy;
    /// Floats in a vector.
    const LANES: usize;
    /// Rows of a register tile that is two vectors wide.
    const TILE: usize;

    /// Run a task as a function of its own with this set: keeps a large kernel from being inlined at every use.
    fn call<T: Task>(self, task: T) -> T::Out;
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Unaligned load of [`Self::LANES`] floats.
    ///
    /// # Safety
    /// `p` is valid for that read.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// Unaligned store.
    ///
    /// # Safety
    /// `p` is valid for that write.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Load halves and widen (exact).
    ///
    /// # Safety
    /// `p` is valid for the read of [`Self::LANES`] u16.
    unsafe fn load_f16(self, p: *const u16) -> Self::V;
    /// a + b
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a - b
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, with one rounding where the set has it.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a0 * b0 + a1 * b1 + c, where each lane of `a` and `b` is a pair of bfloat16, the first in the low half. Rounds as
    /// the set does.
    fn dot_pairs(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Round to bfloat16, to nearest with ties to even, and store; not for NaN.
    ///
    /// # Safety
    /// `p` is valid for the write of [`Self::LANES`] u16.
    unsafe fn store_bf16(self, p: *mut u16, v: Self::V);
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// |a|
    fn abs(self, a: Self::V) -> Self::V;
    /// Nearest integer, ties to even, for |a| < 2^22.
    fn round(self, a: Self::V) -> Self::V;
    /// v * 2^n for integral n in -252..=252.
    fn scale2(self, v: Self::V, n: Self::V) -> Self::V;
    /// Per lane: a < b ? x : y (y where either is NaN).
    fn pick_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Bit i is set where lane i of `a` is greater than that of `b`.
    fn greater(self, a: Self::V, b: Self::V) -> u32;
    /// Bit i is set where lane i is NaN.
    fn nan(self, a: Self::V) -> u32;
    /// Largest lane; unspecified when a lane is NaN.
    fn reduce_max(self, v: Self::V) -> f32;
    /// Sum of the lanes, pairwise: halves, quarters, ...
    fn reduce_add(self, v: Self::V) -> f32;

    /// The first `n` floats of `p`, `fill` in the other lanes.
    ///
    /// # Safety
    /// `p` is valid for the read of `min(n, LANES)` floats.
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize, fill: f32) -> Self::V {
        if n >= Self::LANES {
            // SAFETY: the caller's duty.
            return unsafe { self.load(p) };
        }
        let mut lanes = [fill; MAX_LANES];
        // SAFETY: n < LANES <= MAX_LANES floats are readable at `p` and fit `lanes`.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            self.load(lanes.as_ptr())
        }
    }
    /// Store the first `n` lanes.
    ///
    /// # Safety
    /// `p` is valid for the write of `min(n, LANES)` floats.
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: Self::V) {
        if n >= Self::LANES {
            // SAFETY: the caller's duty.
            return unsafe { self.store(p, v) };
        }
        let mut lanes = [0f32; MAX_LANES];
        // SAFETY: `lanes` holds a whole vector, and n floats are writable at `p`.
        unsafe {
            self.store(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }
}

/// Lanes of the widest set.
pub(crate) const MAX_LANES: usize = 16;

/// A kernel with its arguments.
pub(crate) trait Task {
    /// What it returns.
    type Out;
    /// The body; implement it `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Run a kernel under the widest instruction set in use.
#[inline]
pub(crate) fn dispatch<T: Task>(task: T) -> T::Out {
    dispatch_on(Tier::current(), task)
}

/// Run a kernel under the instruction set of a tier that this machine has.
#[inline]
pub(crate) fn dispatch_on<T: Task>(tier: Tier, task: T) -> T::Out {
    debug_assert!(tier.is_available());
    #[cfg(target_arch = "x86_64")]
    {
        if tier == Tier::Avx512Bf16 {
            // SAFETY: the tier says that the machine has AVX-512 F, BW, DQ, VL and BF16, FMA and F16C.
            return unsafe { x86::avx512_bf16(task) };
        }
        if tier == Tier::Avx512 {
            // SAFETY: the tier says that the machine has AVX-512 F, BW, DQ and VL, FMA and F16C.
            return unsafe { x86::avx512(task) };
        }
        if matches!(tier, Tier::Avx2 | Tier::AvxVnni) {
            // SAFETY: the tier says that the machine has AVX2, FMA and F16C.
            return unsafe { x86::avx2(task) };
        }
    }
    let _ = tier;
    task.run(portable::Portable)
}

#[path = "simd/portable.rs"]
pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
#[path = "simd/x86.rs"]
pub(crate) mod x86;

/// Run a kernel once per tier that this machine has.
#[cfg(test)]
pub(crate) fn every_set<T: Task + Clone>(task: T, mut each: impl FnMut(Tier, T::Out)) {
    for tier in Tier::available() {
        each(tier, dispatch_on(tier, task.clone()));
    }
}
