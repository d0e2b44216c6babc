//! Largest, second, log-sum-exp, entropy.
use super::{PickError, piece, pieces};
use crate::math;
use crate::pool::Pool;
use crate::simd::{MAX_LANES, Simd, Task, dispatch};

/// Statistics of a row of logits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Token of the largest logit, lowest id on a tie.
    pub argmax: u32,
    /// Largest logit.
    pub max: f32,
    /// Second largest logit (equal to the largest on a tie; -inf if there is no other token).
    pub second: f32,
    /// Log of the sum of exponentials.
    pub lse: f32,
    /// Entropy of the softmax, in nats.
    pub entropy: f32,
}

/// Largest and second of a piece, and whether all is finite or -inf.
#[derive(Clone, Copy)]
struct Peak {
    max: f32,
    second: f32,
    sound: bool,
}
impl Default for Peak {
    fn default() -> Self {
        Peak { max: f32::NEG_INFINITY, second: f32::NEG_INFINITY, sound: true }
    }
}
impl Peak {
    fn join(&mut self, other: Peak) {
        let (high, low) = if other.max > self.max { (other, *self) } else { (*self, other) };
        self.max = high.max;
        self.second = if high.second > low.max { high.second } else { low.max };
        self.sound &= other.sound;
    }
}

struct FindPeak<'a>(&'a [f32]);
impl Task for FindPeak<'_> {
    type Out = Peak;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Peak {
        const PARTS: usize = 4;
        let low = s.splat(f32::NEG_INFINITY);
        let (mut max, mut second) = ([low; PARTS], [low; PARTS]);
        let mut nan = s.splat(0.0);
        let (x, n) = (self.0.as_ptr(), self.0.len());
        let mut i = 0;
        while i < n {
            for j in 0..PARTS {
                let at = i + j * S::LANES;
                if at < n {
                    // SAFETY: n - at floats are left.
                    let v = unsafe { s.load_part(x.add(at), n - at, f32::NEG_INFINITY) };
                    // x - x is 0 for finite x, so sums of it find what is not; -inf is clamped away first.
                    let finite = s.max(s.splat(f32::MIN), v);
                    nan = s.add(nan, s.sub(finite, finite));
                    second[j] = s.max(second[j], s.min(max[j], v));
                    max[j] = s.max(max[j], v);
                }
            }
            i += PARTS * S::LANES;
        }
        let mut peak = Peak { sound: s.nan(nan) == 0, ..Peak::default() };
        for j in 0..PARTS {
            let (mut m, mut t) = ([0f32; MAX_LANES], [0f32; MAX_LANES]);
            // SAFETY: both hold a vector.
            unsafe {
                s.store(m.as_mut_ptr(), max[j]);
                s.store(t.as_mut_ptr(), second[j]);
            }
            for l in 0..S::LANES {
                peak.join(Peak { max: m[l], second: t[l], sound: true });
            }
        }
        peak
    }
}

struct Find<'a>(&'a [f32], f32);
impl Task for Find<'_> {
    type Out = Option<usize>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<usize> {
        let (x, n) = (self.0.as_ptr(), self.0.len());
        let below = s.splat(self.1);
        let mut i = 0;
        while i < n {
            // The first that is not smaller than the largest is the largest.
            // SAFETY: n - i floats are left.
            let smaller = s.greater(below, unsafe { s.load_part(x.add(i), n - i, f32::NEG_INFINITY) });
            let found = !smaller & (u32::MAX >> (32 - S::LANES));
            if found != 0 {
                let at = i + found.trailing_zeros() as usize;
                return (at < n).then_some(at);
            }
            i += S::LANES;
        }
        None
    }
}

/// The row's peak and the lowest id that has it.
pub(super) fn peak(pool: Option<&Pool>, logits: &[f32]) -> Result<(u32, f32, f32), PickError> {
    let mut all = Peak::default();
    let mut holder = 0;
    let mut index = 0;
    pieces(
        pool,
        logits.len(),
        |i| dispatch(FindPeak(piece(logits, i))),
        |p| {
            if p.max > all.max {
                holder = index;
            }
            all.join(p);
            index += 1;
        },
    );
    if !all.sound {
        return Err(PickError::NotFinite);
    }
    if all.max == f32::NEG_INFINITY {
        return Err(PickError::Empty);
    }
    let at = dispatch(Find(piece(logits, holder), all.max)).ok_or(PickError::Empty)?;
    Ok(((holder * super::PIECE + at) as u32, all.max, all.second))
}

/// Token of the largest logit, lowest id on a tie.
///
/// # Errors
/// A logit is NaN or +inf, or none is finite.
pub fn argmax(logits: &[f32]) -> Result<u32, PickError> {
    peak(None, logits).map(|p| p.0)
}

/// [`argmax`], shared among threads.
///
/// # Errors
/// As [`argmax`].
pub fn argmax_with(pool: &Pool, logits: &[f32]) -> Result<u32, PickError> {
    peak(Some(pool), logits).map(|p| p.0)
}

/// Sums over a piece of e^y and y e^y, with y = scale * (x - max).
pub(super) struct Mass<'a> {
    pub logits: &'a [f32],
    pub max: f32,
    pub scale: f32,
    /// Only what is not smaller.
    pub least: f32,
}
impl Task for Mass<'_> {
    type Out = (f64, f64);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f64, f64) {
        const PARTS: usize = 2;
        let (x, n) = (self.logits.as_ptr(), self.logits.len());
        let (max, scale, least) = (s.splat(self.max), s.splat(self.scale), s.splat(self.least));
        let (mut sum, mut tilt) = ([s.splat(0.0); PARTS], [s.splat(0.0); PARTS]);
        let mut i = 0;
        while i < n {
            for j in 0..PARTS {
                let at = i + j * S::LANES;
                if at < n {
                    // SAFETY: n - at floats are left.
                    let v = unsafe { s.load_part(x.add(at), n - at, f32::NEG_INFINITY) };
                    let v = s.pick_less(v, least, s.splat(f32::NEG_INFINITY), v);
                    // Bounded, so that y e^y is 0 and not NaN for -inf.
                    let y = s.max(s.mul(s.sub(v, max), scale), s.splat(-200.0));
                    let e = math::exp(s, y);
                    sum[j] = s.add(sum[j], e);
                    tilt[j] = s.fma(y, e, tilt[j]);
                }
            }
            i += PARTS * S::LANES;
        }
        let (sum, tilt) = (s.add(sum[0], sum[1]), s.add(tilt[0], tilt[1]));
        (f64::from(s.reduce_add(sum)), f64::from(s.reduce_add(tilt)))
    }
}

/// Logits into unnormalised probabilities, in place.
pub(super) struct Weights<'a> {
    pub logits: &'a mut [f32],
    pub max: f32,
    pub scale: f32,
}
impl Task for Weights<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (max, scale) = (s.splat(self.max), s.splat(self.scale));
        math::map(s, self.logits, |v| math::exp(s, s.mul(s.sub(v, max), scale)));
    }
}

fn stats_of(pool: Option<&Pool>, logits: &[f32]) -> Result<Stats, PickError> {
    let (argmax, max, second) = peak(pool, logits)?;
    let (mut sum, mut tilt) = (0.0, 0.0);
    pieces(
        pool,
        logits.len(),
        |i| dispatch(Mass { logits: piece(logits, i), max, scale: 1.0, least: f32::MIN }),
        |(s, t)| {
            sum += s;
            tilt += t;
        },
    );
    let lse = f64::from(max) + sum.ln();
    Ok(Stats { argmax, max, second, lse: lse as f32, entropy: (sum.ln() - tilt / sum).max(0.0) as f32 })
}

/// Statistics of a row, in two passes.
///
/// # Errors
/// A logit is NaN or +inf, or none is finite.
pub fn stats(logits: &[f32]) -> Result<Stats, PickError> {
    stats_of(None, logits)
}

/// [`stats`], shared among threads.
///
/// # Errors
/// As [`stats`].
pub fn stats_with(pool: &Pool, logits: &[f32]) -> Result<Stats, PickError> {
    stats_of(Some(pool), logits)
}

/// Append the log-probabilities of these tokens, `logits[id] - lse`.
///
/// # Panics
/// When an id is not in the row.
pub fn logprobs(logits: &[f32], lse: f32, ids: &[u32], out: &mut Vec<f32>) {
    out.extend(ids.iter().map(|&id| logits[id as usize] - lse));
}
