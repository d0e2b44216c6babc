//! Normalisations of one row. The order of every sum depends on the length alone, so a row's bits do too.
use crate::simd::{Simd, Task, dispatch};

/// Independent partial sums, to hide the latency of an addition.
const PARTS: usize = 4;

/// Sum of f(x[i]) in a fixed order.
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32], f: impl Fn(S::V, S::V) -> S::V) -> f32 {
    // `f(x, acc)` must leave `acc` as it is for x = 0.
    let mut parts = [s.splat(0.0); PARTS];
    let (n, step) = (x.len(), PARTS * S::LANES);
    let mut i = 0;
    while i + step <= n {
        for (j, part) in parts.iter_mut().enumerate() {
            // SAFETY: i + step <= n.
            *part = f(unsafe { s.load(x.as_ptr().add(i + j * S::LANES)) }, *part);
        }
        i += step;
    }
    let mut j = 0;
    while i < n {
        // SAFETY: n - i floats are left.
        parts[j] = f(unsafe { s.load_part(x.as_ptr().add(i), n - i, 0.0) }, parts[j]);
        i += S::LANES;
        j += 1;
    }
    s.reduce_add(s.add(s.add(parts[0], parts[2]), s.add(parts[1], parts[3])))
}

#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    sum(s, x, |v, acc| s.fma(v, v, acc))
}

/// The weight of an RMS norm, as the checkpoint stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gain {
    /// y = w x / rms
    Weight,
    /// y = (1 + w) x / rms (Gemma)
    PlusOne,
}

struct Rms<'a> {
    x: *const f32,
    weight: &'a [f32],
    gain: Gain,
    eps: f32,
    out: *mut f32,
}
impl Rms<'_> {
    /// # Safety
    /// `x` is readable and `out` writable for as many floats as `weight` has; they are the same or do not overlap.
    #[inline(always)]
    unsafe fn go<S: Simd>(self, s: S) {
        let n = self.weight.len();
        // SAFETY: the caller's duty. The slice ends before `out` is written.
        let squares = sum_of_squares(s, unsafe { std::slice::from_raw_parts(self.x, n) });
        let scale = s.splat(1.0 / (squares / n as f32 + self.eps).sqrt());
        let shift = s.splat(if self.gain == Gain::PlusOne { 1.0 } else { 0.0 });
        let mut i = 0;
        while i < n {
            // SAFETY: i < n, the caller's duty.
            unsafe {
                let x = s.load_part(self.x.add(i), n - i, 0.0);
                let w = s.add(s.load_part(self.weight.as_ptr().add(i), n - i, 0.0), shift);
                s.store_part(self.out.add(i), n - i, s.mul(s.mul(x, scale), w));
            }
            i += S::LANES;
        }
    }
}

struct RmsRow<'a>(&'a [f32], &'a [f32], Gain, f32, &'a mut [f32]);
impl Task for RmsRow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(x, weight, gain, eps, out) = self;
        assert!(x.len() == weight.len() && out.len() == weight.len(), "rms_norm: lengths differ");
        // SAFETY: three slices of one length.
        unsafe { Rms { x: x.as_ptr(), weight, gain, eps, out: out.as_mut_ptr() }.go(s) }
    }
}

/// RMS norm of one row: `out = x / sqrt(mean(x^2) + eps) * weight` ([`Gain`] says how the weight is stored).
///
/// # Panics
/// When the lengths differ.
pub fn rms_norm(x: &[f32], weight: &[f32], gain: Gain, eps: f32, out: &mut [f32]) {
    dispatch(RmsRow(x, weight, gain, eps, out));
}

struct RmsHeads<'a>(&'a mut [f32], &'a [f32], Gain, f32);
impl Task for RmsHeads<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(x, weight, gain, eps) = self;
        assert!(x.len().is_multiple_of(weight.len()), "rms_norm_heads: not whole heads");
        for head in x.chunks_exact_mut(weight.len()) {
            // SAFETY: a head has the weight's length; in place.
            unsafe { Rms { x: head.as_ptr(), weight, gain, eps, out: head.as_mut_ptr() }.go(s) }
        }
    }
}

/// RMS norm in place of each head of a row, [heads * weight.len()] (query and key norm).
///
/// # Panics
/// When the row is not whole heads, or the weight is empty.
pub fn rms_norm_heads(x: &mut [f32], weight: &[f32], gain: Gain, eps: f32) {
    dispatch(RmsHeads(x, weight, gain, eps));
}

struct LayerRow<'a>(&'a [f32], &'a [f32], Option<&'a [f32]>, f32, &'a mut [f32]);
impl Task for LayerRow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(x, weight, bias, eps, out) = self;
        let n = x.len();
        assert!(weight.len() == n && out.len() == n, "layer_norm: lengths differ");
        assert!(bias.is_none_or(|b| b.len() == n), "layer_norm: lengths differ");
        let mean = s.splat(sum(s, x, |v, acc| s.add(acc, v)) / n as f32);
        let mut i = 0;
        while i < n {
            // SAFETY: i < n, equal lengths.
            unsafe {
                let v = s.load_part(x.as_ptr().add(i), n - i, 0.0);
                s.store_part(out.as_mut_ptr().add(i), n - i, s.sub(v, mean));
            }
            i += S::LANES;
        }
        let scale = s.splat(1.0 / (sum_of_squares(s, out) / n as f32 + eps).sqrt());
        let mut i = 0;
        while i < n {
            // SAFETY: as above.
            unsafe {
                let v = s.mul(s.load_part(out.as_ptr().add(i), n - i, 0.0), scale);
                let w = s.load_part(weight.as_ptr().add(i), n - i, 0.0);
                let b = match bias {
                    Some(b) => s.load_part(b.as_ptr().add(i), n - i, 0.0),
                    None => s.splat(0.0),
                };
                s.store_part(out.as_mut_ptr().add(i), n - i, s.add(s.mul(v, w), b));
            }
            i += S::LANES;
        }
    }
}

/// Layer norm of one row: `out = (x - mean) / sqrt(var + eps) * weight + bias`.
///
/// # Panics
/// When the lengths differ.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    dispatch(LayerRow(x, weight, bias, eps, out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnidecode_core::noise::unit;

    fn noise(seed: u64, n: usize) -> Vec<f32> {
        (0..n).map(|i| (unit(seed * 7919 + i as u64) * 4.0 - 1.7) as f32).collect()
    }
    fn close(got: &[f32], want: impl Iterator<Item = f64>) {
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*g) - w).abs() < 2e-6 * (1.0 + w.abs()), "{i}: {g} for {w}");
        }
    }

    #[test]
    fn norms_follow_their_formula() {
        for n in [1, 5, 8, 16, 63, 64, 65, 576, 1000, 2048] {
            let (x, w, b) = (noise(1, n), noise(2, n), noise(3, n));
            let d = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let (xd, wd, bd) = (d(&x), d(&w), d(&b));
            let rms = (xd.iter().map(|x| x * x).sum::<f64>() / n as f64 + 1e-5).sqrt();
            let mut out = vec![0.0; n];
            rms_norm(&x, &w, Gain::Weight, 1e-5, &mut out);
            close(&out, (0..n).map(|i| xd[i] / rms * wd[i]));
            rms_norm(&x, &w, Gain::PlusOne, 1e-5, &mut out);
            close(&out, (0..n).map(|i| xd[i] / rms * (1.0 + wd[i])));
            let mut heads = [x.clone(), x.clone(), x.clone()].concat();
            rms_norm_heads(&mut heads, &w, Gain::PlusOne, 1e-5);
            assert_eq!(heads, [out.clone(), out.clone(), out.clone()].concat());
            let mean = xd.iter().sum::<f64>() / n as f64;
            let sd = (xd.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64 + 1e-5).sqrt();
            layer_norm(&x, &w, Some(&b), 1e-5, &mut out);
            if n > 1 {
                close(&out, (0..n).map(|i| (xd[i] - mean) / sd * wd[i] + bd[i]));
            }
        }
    }
}
