//! The law a token is drawn from: softmax, warping, drawing.
use crate::Token;
use crate::noise::Key;

/// How a choice bends the law of a row. Applied in the order temperature, min-p, top-k, top-p, typical, each on what
/// the one before left, renormalised (vLLM's order; typical last, as vLLM has none).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warp {
    /// 0 means the largest logit (lowest id on a tie).
    pub temperature: f32,
    /// Keep the k largest, ties by lower id; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set whose mass reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep what has at least this share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// Locally typical mass (arXiv:2202.00666); 1 keeps all.
    pub typical_p: f32,
}

impl Default for Warp {
    /// The model's own law: temperature 1, nothing cut off.
    fn default() -> Self {
        Warp { temperature: 1.0, ..Warp::GREEDY }
    }
}

impl Warp {
    /// The largest logit.
    pub const GREEDY: Warp = Warp { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, typical_p: 1.0 };

    /// Whether the largest logit wins.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
    /// Whether nothing is cut off.
    pub fn keeps_all(&self) -> bool {
        self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0 && self.typical_p >= 1.0
    }

    /// The warped law of a row of logits: probabilities that sum to 1, one-hot when greedy.
    pub fn law(&self, logits: &[f32]) -> Vec<f32> {
        if self.is_greedy() {
            let mut law = vec![0.0; logits.len()];
            if let Some(p) = law.get_mut(argmax(logits) as usize) {
                *p = 1.0;
            }
            return law;
        }
        let mut law = softmax(logits, self.temperature);
        self.cut(&mut law);
        law
    }

    fn cut(&self, law: &mut [f32]) {
        if self.min_p > 0.0 {
            let floor = self.min_p * law.iter().copied().fold(0.0, f32::max);
            law.iter_mut().filter(|p| **p < floor).for_each(|p| *p = 0.0);
            normalise(law);
        }
        if self.top_k > 0 && self.top_k < law.len() {
            let mut ids = alive(law);
            if ids.len() > self.top_k {
                ids.select_nth_unstable_by(self.top_k - 1, |&a, &b| descending(law, a, b));
                ids[self.top_k..].iter().for_each(|&v| law[v as usize] = 0.0);
                normalise(law);
            }
        }
        if self.top_p < 1.0 {
            let mut ids = alive(law);
            ids.sort_unstable_by(|&a, &b| descending(law, a, b));
            keep_mass(law, &ids, self.top_p);
        }
        if self.typical_p < 1.0 {
            let mut ids = alive(law);
            let entropy: f64 = law.iter().filter(|p| **p > 0.0).map(|&p| -f64::from(p) * f64::from(p).ln()).sum();
            let surprise = |v: u32| (-f64::from(law[v as usize]).ln() - entropy).abs();
            ids.sort_by(|&a, &b| surprise(a).total_cmp(&surprise(b)).then(a.cmp(&b)));
            keep_mass(law, &ids, self.typical_p);
        }
    }
}

fn alive(law: &[f32]) -> Vec<Token> {
    (0..law.len() as Token).filter(|&v| law[v as usize] > 0.0).collect()
}
fn descending(law: &[f32], a: Token, b: Token) -> std::cmp::Ordering {
    law[b as usize].total_cmp(&law[a as usize]).then(a.cmp(&b))
}
/// Keep ids in order until their mass reaches `mass`; at least one.
fn keep_mass(law: &mut [f32], ids: &[Token], mass: f32) {
    let mut before = 0.0f64;
    let mut first = true;
    for &v in ids {
        let p = f64::from(law[v as usize]);
        if before >= f64::from(mass) && !first {
            law[v as usize] = 0.0;
        }
        before += p;
        first = false;
    }
    normalise(law);
}
fn normalise(law: &mut [f32]) {
    let sum: f64 = law.iter().map(|&p| f64::from(p)).sum();
    if sum > 0.0 {
        law.iter_mut().for_each(|p| *p = (f64::from(*p) / sum) as f32);
    }
}

/// Softmax of logits at a temperature above zero.
pub fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut law: Vec<f32> = logits.iter().map(|l| ((l - max) / temperature).exp()).collect();
    normalise(&mut law);
    law
}

/// Log of the sum of exponentials.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    (f64::from(max) + sum.ln()) as f32
}

/// The largest logit, lowest id on a tie.
pub fn argmax(logits: &[f32]) -> Token {
    let mut best = (0, f32::NEG_INFINITY);
    for (v, &l) in logits.iter().enumerate() {
        if l > best.1 {
            best = (v as Token, l);
        }
    }
    best.0
}

/// The token under `u` of the cumulated law (which need not be normalised).
pub fn draw<T: Copy + Into<f64>>(law: &[T], u: f64) -> Token {
    let total: f64 = law.iter().map(|&p| p.into()).sum();
    let mut left = u * total;
    let mut last = 0;
    for (v, &p) in law.iter().enumerate() {
        let p: f64 = p.into();
        if p > 0.0 {
            last = v;
            left -= p;
            if left < 0.0 {
                break;
            }
        }
    }
    last as Token
}

/// The target's own choice: the largest of `logit / temperature + Gumbel noise` over what the warp keeps. The noise of
/// token `v` is lane `v` of the key, so the choice does not depend on how the row came to be computed (sheet 00, V1).
pub fn choose(logits: &[f32], warp: &Warp, key: Key) -> Token {
    if warp.is_greedy() {
        return argmax(logits);
    }
    let law = if warp.keeps_all() { None } else { Some(warp.law(logits)) };
    let mut best = (0, f64::NEG_INFINITY);
    for (v, &l) in logits.iter().enumerate() {
        if l == f32::NEG_INFINITY || law.as_ref().is_some_and(|law| law[v] <= 0.0) {
            continue;
        }
        let score = f64::from(l) / f64::from(warp.temperature) - (-key.uniform(v as u64).ln()).ln();
        if score > best.1 {
            best = (v as Token, score);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Purpose;

    const LOGITS: [f32; 5] = [2.0, 1.0, 3.0, 1.0, f32::NEG_INFINITY];

    fn kept(warp: Warp) -> Vec<Token> {
        alive(&warp.law(&LOGITS))
    }
    fn plain() -> Warp {
        Warp::default()
    }

    #[test]
    fn each_cut_by_hand() {
        // softmax of 3, 2, 1, 1: 0.6103, 0.2245, 0.0826, 0.0826
        assert_eq!(kept(plain()), [0, 1, 2, 3]);
        assert_eq!(kept(Warp { top_k: 3, ..plain() }), [0, 1, 2], "a tie goes to the lower id");
        assert_eq!(kept(Warp { top_p: 0.6, ..plain() }), [2]);
        assert_eq!(kept(Warp { top_p: 0.62, ..plain() }), [0, 2]);
        assert_eq!(kept(Warp { top_p: 1e-9, ..plain() }), [2]);
        assert_eq!(kept(Warp { min_p: 0.3, ..plain() }), [0, 2]);
        assert_eq!(kept(Warp { temperature: 0.0, ..plain() }), [2]);
        // entropy 1.0485; surprises 0.494, 1.494, 2.494: distances 0.555, 0.445, 1.445: token 0 is the most typical
        assert_eq!(kept(Warp { typical_p: 0.2, ..plain() }), [0]);
        assert_eq!(kept(Warp { typical_p: 0.3, ..plain() }), [0, 2]);
        // min-p first: the mass that top-p counts is what min-p left (0.731, 0.269)
        assert_eq!(kept(Warp { min_p: 0.3, top_p: 0.7, ..plain() }), [2]);
    }

    #[test]
    fn laws_sum_to_one_and_choices_follow_them() {
        let warp = Warp { temperature: 0.8, top_k: 3, top_p: 0.97, ..plain() };
        let law = warp.law(&LOGITS);
        assert!((law.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let n = 60_000;
        let mut counts = [0.0f64; 5];
        let mut drawn = [0.0f64; 5];
        for i in 0..n {
            counts[choose(&LOGITS, &warp, Key::new(7, i, Purpose::Sample)) as usize] += 1.0;
            drawn[draw(&law, Key::new(7, i, Purpose::Draft).uniform(0)) as usize] += 1.0;
        }
        for v in 0..5 {
            let sigma = (f64::from(law[v]) * n as f64).sqrt().max(1.0);
            assert!((counts[v] - f64::from(law[v]) * n as f64).abs() < 4.5 * sigma, "{v}: {counts:?} {law:?}");
            assert!((drawn[v] - f64::from(law[v]) * n as f64).abs() < 4.5 * sigma, "{v}: {drawn:?} {law:?}");
        }
        assert_eq!(counts[4], 0.0);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(argmax(&[1.0, 2.0, 2.0]), 1);
        assert_eq!(choose(&[1.0, 2.0, 2.0], &Warp::GREEDY, Key::new(0, 0, Purpose::Sample)), 1);
        assert!((log_sum_exp(&[0.0, 0.0]) - 2f32.ln()).abs() < 1e-6);
    }
}
