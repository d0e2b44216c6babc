//! The exponential race: every token runs E_v / w_v with E_v = -ln u_v, the smallest wins. Equal in law to drawing from
//! w / sum(w), and in outcome to Gumbel-max; token `v` always draws the same noise, whoever else runs.
use crate::math;
use crate::simd::{Simd, Task};
use omnidecode_core::noise::{Key, mix};

/// Tokens that may run: logit above `least`, or equal to it with an id not above `last`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Threshold {
    pub least: f32,
    pub last: u32,
}
impl Threshold {
    /// Everything with a finite logit.
    pub const OPEN: Threshold = Threshold { least: f32::MIN, last: u32::MAX };

    pub fn lets(self, id: u32, logit: f32) -> bool {
        logit > self.least || (logit == self.least && id <= self.last)
    }
}

/// The best runner so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runner {
    pub id: u32,
    pub time: f64,
}
impl Default for Runner {
    fn default() -> Self {
        Runner { id: u32::MAX, time: f64::INFINITY }
    }
}
impl Runner {
    /// Smaller time, then lower id.
    pub fn join(&mut self, other: Runner) {
        if other.time < self.time || (other.time == self.time && other.id < self.id) {
            *self = other;
        }
    }
    /// How one token runs, in f64: the definition.
    pub fn of(key: Key, id: u32, logit: f32, max: f32, temperature: f64) -> Runner {
        let weight = ((f64::from(logit) - f64::from(max)) / temperature).exp();
        Runner { id, time: -key.uniform(u64::from(id)).ln() / weight }
    }
}

/// Run a piece of the row.
pub(super) struct Race<'a> {
    pub logits: &'a [f32],
    /// Id of the first.
    pub first: u32,
    pub max: f32,
    pub temperature: f32,
    pub threshold: Threshold,
    pub key: Key,
    /// A runner that counts already.
    pub best: Runner,
}
impl Task for Race<'_> {
    type Out = Runner;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Runner {
        let Race { logits, first, max, temperature, threshold, key, mut best } = self;
        let word = mix(key.word());
        let (inverse, top) = (s.splat(1.0 / temperature), s.splat(max));
        // -ln u >= 1 - u, so a token with 1 - u > time * weight cannot win. The left side is rounded down (24 bits of
        // the hash, complemented), the right side up.
        let mut bound = best.time as f32 * 1.0001;
        let mut early = [0f32; 64];
        let mut i = 0;
        while i < logits.len() {
            let n = (logits.len() - i).min(64);
            for (lane, early) in early.iter_mut().enumerate() {
                let v = u64::from(first.wrapping_add((i + lane) as u32));
                let hash = mix(mix(word ^ v.rotate_left(17)));
                *early = (!(hash >> 40) as u32 & 0xFF_FFFF) as f32;
            }
            let mut candidates = 0u64;
            let limit = s.splat(bound * 16_777_216.0);
            let mut j = 0;
            while j < n {
                // SAFETY: n - j logits are left; `early` holds 64.
                unsafe {
                    let x = s.load_part(logits.as_ptr().add(i + j), n - j, f32::NEG_INFINITY);
                    let y = s.max(s.mul(s.sub(x, top), inverse), s.splat(-104.0));
                    let reach = s.fma(math::exp(s, y), limit, s.splat(1.0));
                    let x = s.greater(s.splat(threshold.least), x) as u64;
                    let late = u64::from(s.greater(s.load(early.as_ptr().add(j)), reach));
                    candidates |= (!(x | late) & (u64::MAX >> (64 - S::LANES))) << j;
                }
                j += S::LANES;
            }
            candidates &= u64::MAX >> (64 - n);
            while candidates != 0 {
                let at = i + candidates.trailing_zeros() as usize;
                candidates &= candidates - 1;
                let (id, logit) = (first + at as u32, logits[at]);
                if threshold.lets(id, logit) {
                    best.join(Runner::of(key, id, logit, max, f64::from(temperature)));
                    bound = best.time as f32 * 1.0001;
                }
            }
            i += 64;
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnidecode_core::noise::{pair, unit};
    #[test]
    fn the_fast_hash_is_the_key_s() {
        let key = Key::new(5, 77, omnidecode_core::noise::Purpose::Sample);
        for v in [0u64, 1, 99, 150_000] {
            let hash = mix(mix(mix(key.word()) ^ v.rotate_left(17)));
            assert_eq!(((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64, key.uniform(v));
            assert_eq!(unit(pair(key.word(), v)), key.uniform(v));
        }
    }
}
