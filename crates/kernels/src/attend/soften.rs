//! Scores into weights: the online softmax of some rows over up to 32 keys.
use super::Heads;
use crate::kv::PAGE;
use crate::math;
use crate::simd::{MAX_LANES, Simd, Task};
use std::f32::consts::LOG2_E;

/// Lane numbers.
static LANES: [f32; PAGE] = {
    let mut lanes = [0.0; PAGE];
    let mut i = 0;
    while i < PAGE {
        lanes[i] = i as f32;
        i += 1;
    }
    lanes
};

/// 2^x of one number, by the vector code.
#[inline(always)]
pub(super) fn exp2<S: Simd>(s: S, x: f32) -> f32 {
    let mut out = [0f32; MAX_LANES];
    // SAFETY: `out` holds a vector.
    unsafe { s.store(out.as_mut_ptr(), math::exp2(s, s.splat(x))) };
    out[0]
}

/// Turn the first `n` scores of each row into weights and join them to the row's maximum and sum.
///
/// # Safety (of making one)
/// `scores` is valid for PAGE floats a row, `stride` apart; `adds` is null or holds PAGE floats a row; `weights` holds
/// PAGE, `sums` a vector, `factors` and `max` one float a row.
pub(super) struct Soften<'a> {
    pub heads: &'a Heads,
    pub rows: usize,
    pub n: usize,
    pub scores: *const f32,
    pub stride: usize,
    /// Biases, or null.
    pub adds: *const f32,
    pub weights: *mut f32,
    /// Weights are left as bfloat16, PAGE of them where a row's floats begin.
    pub short: bool,
    /// What the accumulator must be scaled by before these keys are added.
    pub factors: *mut f32,
    /// Sums of weights by lane.
    pub sums: *mut f32,
    /// Maxima, in log2.
    pub max: *mut f32,
}
impl Task for Soften<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(self.heads.scale);
        let (hidden, count) = (s.splat(f32::NEG_INFINITY), s.splat(self.n as f32));
        // The tops of some rows, then their factors side by side, then their weights: no row waits for another.
        let mut first = 0;
        while first < self.rows {
            let some = (self.rows - first).min(S::LANES);
            let mut tops = [f32::NEG_INFINITY; MAX_LANES];
            for (r, row_top) in tops.iter_mut().enumerate().take(some) {
                let r = first + r;
                let mut top = hidden;
                for lane in (0..PAGE).step_by(S::LANES) {
                    // SAFETY: the maker's duty.
                    unsafe {
                        let mut v = s.mul(s.load(self.scores.add(r * self.stride + lane)), scale);
                        if let Some(cap) = self.heads.softcap {
                            v = s.mul(math::tanh(s, s.div(v, s.splat(cap))), s.splat(cap));
                        }
                        if !self.adds.is_null() {
                            v = s.add(v, s.load(self.adds.add(r * PAGE + lane)));
                        }
                        v = s.mul(v, s.splat(LOG2_E));
                        // Selected, not multiplied: what lies in the other lanes may be anything.
                        v = s.pick_less(s.load(LANES.as_ptr().add(lane)), count, v, hidden);
                        s.store(self.weights.add(r * PAGE + lane), v);
                        top = s.max(top, v);
                    }
                }
                *row_top = s.reduce_max(top);
            }
            let mut highs = [0f32; MAX_LANES];
            // SAFETY: the maker's duty; `some` rows are left, the arrays hold a vector.
            unsafe {
                let old = s.load_part(self.max.add(first), some, f32::NEG_INFINITY);
                let max = s.max(s.load(tops.as_ptr()), old);
                s.store_part(self.max.add(first), some, max);
                // Nothing but -inf so far: against any finite maximum its weights are 0.
                let high = s.pick_less(hidden, max, max, s.splat(0.0));
                s.store(highs.as_mut_ptr(), high);
                s.store_part(self.factors.add(first), some, math::exp2(s, s.sub(old, high)));
            }
            for (r, high) in highs.iter().enumerate().take(some) {
                let r = first + r;
                let high = s.splat(*high);
                let mut sum = s.splat(0.0);
                // SAFETY: the maker's duty.
                unsafe {
                    for lane in (0..PAGE).step_by(S::LANES) {
                        let at = self.weights.add(r * PAGE + lane);
                        let weight = math::exp2(s, s.sub(s.load(at), high));
                        sum = s.add(sum, weight);
                        if self.short {
                            // Lies before what is still to be read.
                            s.store_bf16(self.weights.add(r * PAGE).cast::<u16>().add(lane), weight);
                        } else {
                            s.store(at, weight);
                        }
                    }
                    let sums = self.sums.add(r * S::LANES);
                    s.store(sums, s.fma(s.load(sums), s.splat(*self.factors.add(r)), sum));
                }
            }
            first += some;
        }
    }
}
