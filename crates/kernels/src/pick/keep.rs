//! Which tokens may be chosen, and the choice.
use super::race::{Race, Runner, Threshold};
use super::scan::{Mass, peak};
use super::{PIECE, PickError, piece, pieces, top_k};
use crate::pool::Pool;
use crate::simd::dispatch;
use omnidecode_core::noise::Key;

/// How a choice bends the softmax. Applied in this order (vLLM's): temperature, min-p, top-k, top-p; then, as in
/// transformers, typical. Each looks at the probabilities that the ones before it have left, renormalised. Where a cut
/// falls among equal logits, lower ids stay (vLLM's top-k keeps all of them).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Law {
    /// 0 means the largest logit, lowest id on a tie; the rest is then ignored, because it keeps that token.
    pub temperature: f32,
    /// Keep the k largest; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest largest whose mass reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep what has at least this share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// Keep the fewest whose mass reaches this, those first whose surprise is nearest to the entropy (locally typical
    /// sampling); 1 keeps all.
    pub typical_p: f32,
}
impl Law {
    /// The largest logit.
    pub const GREEDY: Law = Law { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, typical_p: 1.0 };
    /// The softmax as it is.
    pub const PLAIN: Law = Law { temperature: 1.0, ..Law::GREEDY };
}

/// Memory for [`sample`], reused from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    top: Vec<(u32, f32)>,
    ids: Vec<u32>,
}

/// Choose a token: filter by `law`, then let every kept token `v` run `-ln(key.uniform(v)) / p_v`; the smallest wins.
/// Equal to Gumbel-max. Identical logits, law and key give the identical token on any number of threads.
///
/// # Errors
/// A logit is NaN or +inf, or none is finite.
pub fn sample(logits: &[f32], law: &Law, key: Key, scratch: &mut Scratch) -> Result<u32, PickError> {
    choose(None, logits, law, key, scratch)
}

/// [`sample`], shared among threads.
///
/// # Errors
/// As [`sample`].
pub fn sample_with(
    pool: &Pool,
    logits: &[f32],
    law: &Law,
    key: Key,
    scratch: &mut Scratch,
) -> Result<u32, PickError> {
    choose(Some(pool), logits, law, key, scratch)
}

fn choose(pool: Option<&Pool>, logits: &[f32], law: &Law, key: Key, scratch: &mut Scratch) -> Result<u32, PickError> {
    let (argmax, max, _) = peak(pool, logits)?;
    if law.temperature <= 0.0 {
        return Ok(argmax);
    }
    let row = Row { logits, max, temperature: f64::from(law.temperature) };
    let threshold = row.threshold(pool, law, scratch);
    if law.typical_p < 1.0 {
        row.typical(threshold, f64::from(law.typical_p), scratch);
        let mut best = Runner::default();
        for &id in &scratch.ids {
            best.join(Runner::of(key, id, logits[id as usize], max, row.temperature));
        }
        return Ok(best.id);
    }
    // The favourite runs first, so that most of the others are refused without an exact logarithm.
    let start = Runner::of(key, argmax, max, max, row.temperature);
    let mut best = start;
    let race = |i: usize, best: Runner| {
        let first = (i * PIECE) as u32;
        dispatch(Race { logits: piece(logits, i), first, max, temperature: law.temperature, threshold, key, best })
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

    /// What temperature, min-p, top-k and top-p leave: all of them cut the same order, by logit and then id.
    fn threshold(&self, pool: Option<&Pool>, law: &Law, scratch: &mut Scratch) -> Threshold {
        let mut threshold = Threshold::OPEN;
        if law.min_p > 0.0 {
            // w >= min_p, with the cut in the logits' own precision.
            let cut = f64::from(self.max) + f64::from(law.min_p).min(1.0).ln() * self.temperature;
            threshold.least = (cut as f32).min(self.max).max(f32::MIN);
        }
        if law.top_k > 0 && law.top_k < self.logits.len() {
            top_k(self.logits, law.top_k, &mut scratch.top);
            if let Some(&(id, logit)) = scratch.top.last()
                && logit >= threshold.least
            {
                threshold = Threshold { least: logit, last: id };
            }
        }
        if law.top_p < 1.0 {
            threshold = self.nucleus(pool, threshold, f64::from(law.top_p.max(0.0)), &mut scratch.top);
        }
        threshold
    }

    /// Cut to the fewest largest whose mass reaches `share` of what `threshold` lets through; at least one.
    fn nucleus(&self, pool: Option<&Pool>, threshold: Threshold, share: f64, top: &mut Vec<(u32, f32)>) -> Threshold {
        let mass = self.mass(pool, threshold);
        let mut wanted = 64;
        loop {
            top_k(self.logits, wanted, top);
            let mut sum = 0.0;
            for &(id, logit) in top.iter() {
                if !threshold.lets(id, logit) {
                    return threshold;
                }
                sum += self.weight(logit);
                if sum >= share * mass {
                    return Threshold { least: logit, last: id };
                }
            }
            if top.len() < wanted {
                return threshold;
            }
            wanted *= 16;
        }
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
