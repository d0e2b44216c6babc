//! The detector: counts shards, needs neither model nor prompt.
use super::Code;
use omnidecode_core::Token;
use std::collections::HashSet;

/// What a detector found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The message, as 0s and 1s.
    pub bits: Vec<bool>,
    /// Score of the best hypothesis of each block, and of the runner-up.
    pub scores: Vec<(f64, f64)>,
    /// Whether `|std(c_1) - std(c_0)| > 2` (sheet 41; MajorMark with one block only): in counts, so
    /// that a long text passes easily; `p_value` does not depend on the length.
    pub marked: Option<bool>,
    /// Tokens that were counted.
    pub counted: usize,
    /// Chance that a text without this watermark has shards as uneven: of each block the most uneven hypothesis by
    /// Pearson's test, corrected for how many were tried, the blocks joined by Fisher's method. Holds with `dedup`.
    pub p_value: f64,
    /// `p_value` as a standard normal deviate; positive speaks for a watermark.
    pub z: f64,
}

impl Code {
    /// Read a message from a text's tokens. `dedup`: a context with its token counts once.
    pub fn detect(&self, tokens: &[Token], dedup: bool) -> Found {
        let hypotheses: Vec<u64> = if self.blocks == 1 { vec![0, 1] } else { (1..self.width as u64).collect() };
        let mut counts = vec![vec![vec![0usize; self.width]; hypotheses.len()]; self.blocks];
        let known: HashSet<Token> = self.words.iter().copied().collect();
        let (mut seen, mut counted) = (HashSet::new(), 0);
        for window in tokens.windows(3) {
            let (before, token) = ([window[0], window[1]], window[2]);
            if !known.contains(&token) || (dedup && !seen.insert((before, token))) {
                continue;
            }
            counted += 1;
            let j = self.block(before);
            for (h, &hypothesis) in hypotheses.iter().enumerate() {
                let deck = self.deal(j, hypothesis, before);
                if let Some(index) = deck.iter().position(|t| *t == token) {
                    counts[j][h][self.shard(index)] += 1;
                }
            }
        }
        let (p_value, z) = self.chance(&counts);
        let mut found = Found { bits: Vec::new(), scores: Vec::new(), marked: None, counted, p_value, z };
        for block in &counts {
            self.read(block, &mut found);
        }
        found
    }
    /// Chance of counts as uneven as these, `[blocks][hypotheses][shards]`, where tokens fall at random.
    fn chance(&self, counts: &[Vec<Vec<usize>>]) -> (f64, f64) {
        let freedom = (self.width - 1) as f64;
        let mut fisher = 0.0;
        for block in counts {
            let least = block.iter().map(|c| upper_gamma(freedom / 2.0, self.pearson(c) / 2.0)).fold(1.0, f64::min);
            // The histograms of two hypotheses come of two permutations: independent. 1 - (1 - p)^n without cancellation.
            let tried = -f64::exp_m1(block.len() as f64 * f64::ln_1p(-least.min(1.0 - 1e-16)));
            fisher -= tried.max(f64::MIN_POSITIVE).ln();
        }
        let p = upper_gamma(counts.len() as f64, fisher);
        (p, deviate(p))
    }
    /// Pearson's statistic of one histogram against shards of their sizes.
    fn pearson(&self, counts: &[usize]) -> f64 {
        let total = counts.iter().sum::<usize>() as f64;
        let words = self.words.len();
        let size = words / self.width;
        let share = |i: usize| if i + 1 < self.width { size } else { words - size * i } as f64 / words as f64;
        let cell = |(i, &c): (usize, &usize)| {
            let expected = total * share(i);
            if expected > 0.0 { (c as f64 - expected).powi(2) / expected } else { 0.0 }
        };
        counts.iter().enumerate().map(cell).sum()
    }
    fn read(&self, counts: &[Vec<usize>], found: &mut Found) {
        if self.blocks == 1 {
            let spread: Vec<f64> = counts.iter().map(|c| deviation(c)).collect();
            let best = usize::from(spread[1] > spread[0]);
            found.marked = Some((spread[1] - spread[0]).abs() > 2.0);
            found.scores.push((spread[best], spread[1 - best]));
            let upper = upper_cluster(&counts[best]);
            found.bits.extend(upper.into_iter().map(|up| up == (best == 1)));
            return;
        }
        let large = |ones: usize| (2 * ones >= self.width, ones.max(self.width - ones));
        let score = |h: usize| separation(&counts[h], large(h + 1).1);
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        let best = order[0];
        found.scores.push((score(best), order.get(1).map_or(0.0, |&h| score(h))));
        let (majority, many) = large(best + 1);
        let mut shards: Vec<usize> = (0..self.width).collect();
        shards.sort_by(|&a, &b| counts[best][b].cmp(&counts[best][a]).then(a.cmp(&b)));
        let mut bits = vec![!majority; self.width];
        shards[..many].iter().for_each(|&s| bits[s] = majority);
        found.bits.extend(bits);
    }
}

pub(super) fn deviation(counts: &[usize]) -> f64 {
    let n = counts.len() as f64;
    let mean = counts.iter().sum::<usize>() as f64 / n;
    (counts.iter().map(|&c| (c as f64 - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// Mean of the k largest less mean of the rest, scaled so that different k compare (sheet 41).
fn separation(counts: &[usize], k: usize) -> f64 {
    let d = counts.len();
    let mut sorted = counts.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let total: usize = sorted.iter().sum();
    let mean = |c: &[usize]| c.iter().sum::<usize>() as f64 / c.len().max(1) as f64;
    let gap = mean(&sorted[..k]) - mean(&sorted[k..]);
    gap * ((k * (d - k)) as f64).sqrt() / d as f64 / (total.max(1) as f64).sqrt()
}

/// Exact 2-means in one dimension: which counts are in the upper cluster.
pub fn upper_cluster(counts: &[usize]) -> Vec<bool> {
    let mut sorted = counts.to_vec();
    sorted.sort_unstable();
    let cost = |part: &[usize]| deviation(part).powi(2) * part.len() as f64;
    let split = (1..sorted.len()).min_by(|&a, &b| {
        let at = |s: usize| cost(&sorted[..s]) + cost(&sorted[s..]);
        at(a).total_cmp(&at(b))
    });
    let least = split.map_or(usize::MAX, |s| sorted[s]);
    counts.iter().map(|&c| c >= least).collect()
}

/// Regularised upper incomplete gamma function Q(a, x): the tail of a chi-square law of 2a degrees of freedom at 2x.
/// By its series below a + 1, by Lentz's continued fraction above.
fn upper_gamma(a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    let front = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum, mut n) = (1.0 / a, 1.0 / a, a);
        while term > sum * 1e-16 {
            n += 1.0;
            term *= x / n;
            sum += term;
        }
        return (1.0 - front * sum).max(0.0);
    }
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (1e300, 1.0 / b);
    let mut h = d;
    for i in 1..10_000 {
        let an = -f64::from(i) * (f64::from(i) - a);
        b += 2.0;
        d = 1.0 / (an * d + b);
        c = b + an / c;
        h *= d * c;
        if (d * c - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * h
}

/// Logarithm of the gamma function, by Stirling's series behind a shift.
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 10.0 {
        shift += x.ln();
        x += 1.0;
    }
    let y = 1.0 / (x * x);
    let series = (1.0 / 12.0 - y * (1.0 / 360.0 - y * (1.0 / 1260.0 - y / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - shift
}

/// The standard normal deviate that is exceeded with probability `p`, within what f64 can tell (38 at most).
fn deviate(p: f64) -> f64 {
    // P(Z > |z|) is half the tail of a chi-square law with one degree of freedom at z * z.
    let tail = |z: f64| upper_gamma(0.5, z * z / 2.0) / 2.0;
    let (wanted, sign) = if p <= 0.5 { (p, 1.0) } else { (1.0 - p, -1.0) };
    let (mut low, mut high) = (0.0, 38.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if tail(middle) > wanted { low = middle } else { high = middle }
    }
    sign * low
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnidecode_core::noise::{pair, unit};

    /// Against tables of the chi-square and the normal law.
    #[test]
    fn tails() {
        for (freedom, x, p) in [(1.0, 3.841459, 0.05), (7.0, 24.32189, 0.001), (15.0, 8.54676, 0.9), (2.0, 1400.0, 0.0)]
        {
            assert!((upper_gamma(freedom / 2.0, x / 2.0) - p).abs() < 1e-6, "{freedom} {x}");
        }
        for (p, z) in [(0.5, 0.0), (0.025, 1.959964), (0.975, -1.959964), (1e-9, 5.997807)] {
            assert!((deviate(p) - z).abs() < 1e-5, "{p}: {}", deviate(p));
        }
        assert!(deviate(0.0) > 37.0 && deviate(1.0) < -37.0);
    }

    /// Contract 7: on texts without a watermark the p-value is uniform, so that its false positives are what it says.
    #[test]
    fn p_values_of_other_texts_are_uniform() {
        for blocks in [1, 4] {
            let code = Code::new(7, 16, blocks, (0..200).collect()).expect("a code");
            let n = 300;
            let below = |limit: f64| {
                let text =
                    |seed: u64| -> Vec<Token> { (0..120).map(|i| (unit(pair(seed, i)) * 200.0) as Token).collect() };
                (0..n).filter(|&seed| code.detect(&text(seed), true).p_value < limit).count()
            };
            for limit in [0.05, 0.3] {
                let (found, expected) = (below(limit) as f64, limit * n as f64);
                let spread = (expected * (1.0 - limit)).sqrt();
                assert!((found - expected).abs() < 4.0 * spread, "{blocks} blocks: {found} of {n} below {limit}");
            }
        }
    }

    /// Contract 6, 8 and 10.
    #[test]
    fn one_token_touches_three_places() {
        let code = Code::new(7, 8, 1, (0..100).collect()).expect("a code");
        let text: Vec<Token> = (0..60).map(|i| (unit(pair(3, i)) * 100.0) as Token).collect();
        let places = |text: &[Token]| -> Vec<(usize, usize)> {
            let of = |w: &[Token], h| {
                code.shard(code.deal(0, h, [w[0], w[1]]).iter().position(|t| *t == w[2]).expect("a word"))
            };
            text.windows(3).map(|w| (of(w, 0), of(w, 1))).collect()
        };
        let before = places(&text);
        for at in 0..text.len() {
            let mut other = text.clone();
            other[at] = (other[at] + 1) % 100;
            let differ = before.iter().zip(places(&other)).enumerate().filter(|(_, (a, b))| **a != *b);
            assert!(differ.map(|(i, _)| i).all(|i| (at.saturating_sub(2)..=at).contains(&i)));
        }
        assert_eq!(code.detect(&text, false).counted, text.len() - 2);
        let repeated = [&text[..], &text[..]].concat();
        assert_eq!(code.detect(&repeated, true).counted, text.len(), "each context with its token once");
    }
}
