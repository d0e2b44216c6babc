//! Which tokens may be chosen, and the choice.
use super::race::{Race, Runner, Threshold};
use super::scan::{Mass, Weights, peak};
use super::{PIECE, PickError, piece, pieces, top_k};
use crate::pool::Pool;
use crate::simd::dispatch;
pub use omnidecode_core::law::Warp;
use omnidecode_core::noise::Key;

/// Memory for [`sample`], reused from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    top: Vec<(u32, f32)>,
    ids: Vec<u32>,
    weights: Vec<f32>,
    shelves: Vec<f64>,
}

/// Choose a token: filter by `warp`, then let every kept token `v` run `-ln(key.uniform(v)) / p_v`; the smallest wins.
/// Equal to Gumbel-max. Identical logits, warp and key give the identical token on any number of threads.
///
/// # Errors
/// A logit is NaN or +inf, or none is finite.
pub fn sample(logits: &[f32], warp: &Warp, key: Key, scratch: &mut Scratch) -> Result<u32, PickError> {
    choose(None, logits, warp, key, scratch)
}

/// [`sample`], shared among threads.
///
/// # Errors
/// As [`sample`].
pub fn sample_with(
    pool: &Pool,
    logits: &[f32],
    warp: &Warp,
    key: Key,
    scratch: &mut Scratch,
) -> Result<u32, PickError> {
    choose(Some(pool), logits, warp, key, scratch)
}

fn choose(pool: Option<&Pool>, logits: &[f32], warp: &Warp, key: Key, scratch: &mut Scratch) -> Result<u32, PickError> {
    let (argmax, max, _) = peak(pool, logits)?;
    if warp.temperature <= 0.0 {
        return Ok(argmax);
    }
    let row = Row { logits, max, temperature: f64::from(warp.temperature) };
    let (threshold, listed) = row.threshold(pool, warp, scratch);
    if warp.typical_p < 1.0 {
        row.typical(threshold, f64::from(warp.typical_p), scratch);
        return Ok(row.race(key, scratch.ids.iter().copied()));
    }
    if listed {
        let kept = scratch.top.iter().filter(|&&(id, logit)| threshold.lets(id, logit));
        return Ok(row.race(key, kept.map(|x| x.0)));
    }
    // The favourite runs first, so that most of the others are refused without an exact logarithm.
    let start = Runner::of(key, argmax, max, max, row.temperature);
    let mut best = start;
    let race = |i: usize, best: Runner| {
        let first = (i * PIECE) as u32;
        dispatch(Race { logits: piece(logits, i), first, max, temperature: warp.temperature, threshold, key, best })
    };
    match pool {
        Some(_) => pieces(pool, logits.len(), |i| race(i, start), |runner| best.join(runner)),
        None => (0..logits.len().div_ceil(PIECE)).for_each(|i| best = race(i, best)),
    }
    Ok(best.id)
}

/// A row under a temperature.
struct Row<'a> {
    logits: &'a [f32],
    max: f32,
    temperature: f64,
}
impl Row<'_> {
    /// Unnormalised probability of a logit; 1 for the largest.
    fn weight(&self, logit: f32) -> f64 {
        ((f64::from(logit) - f64::from(self.max)) / self.temperature).exp()
    }

    /// The race of a few tokens.
    fn race(&self, key: Key, ids: impl Iterator<Item = u32>) -> u32 {
        let mut best = Runner::default();
        for id in ids {
            best.join(Runner::of(key, id, self.logits[id as usize], self.max, self.temperature));
        }
        best.id
    }

    /// What temperature, min-p, top-k and top-p leave: all of them cut the same order, by logit and then id. True if
    /// all of it stands in `scratch.top`.
    fn threshold(&self, pool: Option<&Pool>, warp: &Warp, scratch: &mut Scratch) -> (Threshold, bool) {
        let mut threshold = Threshold::OPEN;
        let mut listed = false;
        if warp.min_p > 0.0 {
            // w >= min_p, with the cut in the logits' own precision.
            let cut = f64::from(self.max) + f64::from(warp.min_p).min(1.0).ln() * self.temperature;
            threshold.least = (cut as f32).min(self.max).max(f32::MIN);
        }
        if warp.top_k > 0 && warp.top_k < self.logits.len() {
            top_k(self.logits, warp.top_k, &mut scratch.top);
            listed = true;
            if let Some(&(id, logit)) = scratch.top.last()
                && logit >= threshold.least
            {
                threshold = Threshold { least: logit, last: id };
            }
        }
        if warp.top_p < 1.0 {
            let share = f64::from(warp.top_p.max(0.0));
            return self.nucleus(pool, threshold, share, listed, scratch);
        }
        (threshold, listed)
    }

    /// Cut to the fewest largest whose mass reaches `share` of what `threshold` lets through; at least one. `listed` as
    /// in [`Self::threshold`].
    fn nucleus(
        &self,
        pool: Option<&Pool>,
        threshold: Threshold,
        share: f64,
        listed: bool,
        scratch: &mut Scratch,
    ) -> (Threshold, bool) {
        if listed {
            let kept = scratch.top.iter().filter(|&&(id, logit)| threshold.lets(id, logit));
            let mass: f64 = kept.map(|x| self.weight(x.1)).sum();
            return (self.reach(threshold, share * mass, 0.0, &scratch.top).unwrap_or(threshold), true);
        }
        let wanted = share * self.mass(pool, threshold);
        // Most rows reach it within a few tokens.
        top_k(self.logits, 64, &mut scratch.top);
        match self.reach(threshold, wanted, 0.0, &scratch.top) {
            Some(cut) => (cut, true),
            None => (self.deep_nucleus(threshold, wanted, scratch), false),
        }
    }

    /// The threshold at which candidates in descending order bring `sum` to `wanted`, or run out of what may stay; `None`
    /// where the candidates end before.
    fn reach(&self, threshold: Threshold, wanted: f64, mut sum: f64, candidates: &[(u32, f32)]) -> Option<Threshold> {
        for &(id, logit) in candidates {
            if !threshold.lets(id, logit) {
                return Some(threshold);
            }
            sum += self.weight(logit);
            if sum >= wanted {
                return Some(Threshold { least: logit, last: id });
            }
        }
        (candidates.len() == self.logits.len()).then_some(threshold)
    }

    /// [`Self::nucleus`] of a flat row: weights are summed by shelves of nearly equal logits, and only the shelf on
    /// which the sum is reached is sorted.
    fn deep_nucleus(&self, threshold: Threshold, wanted: f64, scratch: &mut Scratch) -> Threshold {
        const SHELVES: usize = 2048;
        let Scratch { top, weights, shelves, .. } = scratch;
        // Down to e^-32 of the largest; the last shelf takes the rest.
        let fine = (SHELVES as f64 / (32.0 * self.temperature)) as f32;
        let shelf = |logit: f32| (((self.max - logit) * fine) as usize).min(SHELVES - 1);
        shelves.clear();
        shelves.resize(SHELVES, 0.0);
        let scale = (1.0 / self.temperature) as f32;
        for i in 0..self.logits.len().div_ceil(PIECE) {
            let logits = piece(self.logits, i);
            weights.clear();
            weights.extend_from_slice(logits);
            dispatch(Weights { logits: weights, max: self.max, scale });
            for (at, (&logit, &weight)) in logits.iter().zip(&*weights).enumerate() {
                if threshold.lets((i * PIECE + at) as u32, logit) {
                    shelves[shelf(logit)] += f64::from(weight);
                }
            }
        }
        let mut sum = 0.0;
        let mut reached = SHELVES - 1;
        for (i, mass) in shelves.iter().enumerate() {
            if sum + mass >= wanted {
                reached = i;
                break;
            }
            if i < SHELVES - 1 {
                sum += mass;
            }
        }
        top.clear();
        let ids = self.logits.iter().enumerate().map(|(id, &logit)| (id as u32, logit));
        top.extend(ids.filter(|&(id, logit)| shelf(logit) == reached && threshold.lets(id, logit)));
        top.sort_unstable_by(super::top::order);
        self.reach(threshold, wanted, sum, top).unwrap_or_else(|| match top.last() {
            // Rounding left the sum just short at the end of its shelf.
            Some(&(id, logit)) => Threshold { least: logit, last: id },
            None => threshold,
        })
    }

    /// Sum of the weights that `threshold` lets through.
    fn mass(&self, pool: Option<&Pool>, threshold: Threshold) -> f64 {
        let (mut sum, mut ties) = (0.0, 0);
        let scale = (1.0 / self.temperature) as f32;
        pieces(
            pool,
            self.logits.len(),
            |i| {
                let logits = piece(self.logits, i);
                dispatch(Mass { logits, max: self.max, scale, least: threshold.least }).0
            },
            |s| sum += s,
        );
        if threshold.last != u32::MAX {
            let beyond = self.logits.get(threshold.last as usize + 1..).unwrap_or_default();
            ties = beyond.iter().filter(|&&x| x == threshold.least).count();
        }
        sum - ties as f64 * self.weight(threshold.least)
    }

    /// The ids that locally typical sampling keeps, into `scratch.ids`.
    fn typical(&self, threshold: Threshold, share: f64, scratch: &mut Scratch) {
        let ids = &mut scratch.ids;
        ids.clear();
        ids.extend((0..self.logits.len() as u32).filter(|&id| threshold.lets(id, self.logits[id as usize])));
        let log = |id: u32| (f64::from(self.logits[id as usize]) - f64::from(self.max)) / self.temperature;
        let (mut sum, mut tilt) = (0.0, 0.0);
        for &id in ids.iter() {
            sum += log(id).exp();
            tilt += log(id) * log(id).exp();
        }
        // Surprise minus entropy is (ln sum - y) - (ln sum - tilt / sum).
        let centre = tilt / sum;
        let far = |id: &u32| (log(*id) - centre).abs();
        ids.sort_unstable_by(|a, b| far(a).total_cmp(&far(b)).then(a.cmp(b)));
        let (mut mass, mut keep) = (0.0, 0);
        while keep < ids.len() && (keep == 0 || mass < share * sum) {
            mass += log(ids[keep]).exp();
            keep += 1;
        }
        ids.truncate(keep);
    }
}
