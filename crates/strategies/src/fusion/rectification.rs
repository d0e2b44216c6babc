//! Rectification (arXiv:2302.14003, sheet 51): a value model says for every token how likely the finished text will be
//! undesired, and the model's probability of the token is capped by the chance that it will not.
//!
//! The value model has the role `value`, the same vocabulary, and logits that are Q in [-1, 0]. Where no law can keep the
//! caps, the caps are the law, and the result notes a `dead_end` at the place.
use crate::registry::{Card, System};
use futures_util::future::try_join;
use omnidecode_core::Token;
use omnidecode_core::law::{choose, log_sum_exp, softmax};
use omnidecode_core::noise::{Key, Purpose};
use omnidecode_engine::{Error, Guarantee, Readout, Result, Sequence, Warp};

crate::params! {
    /// Slack: taken off every cap; more is stricter.
    epsilon: f64 = 0.0, within 0.0, 1.0;
    /// How the caps are kept: `exact` solves for the law, `passes` caps logits and renormalises so many times.
    method: String = "exact".into(), one_of "exact", "passes";
    /// Of `passes`.
    passes: usize = 2, within 1.0, 100.0;
    /// When: `last` caps the law that temperature, top-k and the like left; `first` the model's own, before them. Greedy
    /// decoding takes the largest of the model's own capped law.
    cap: String = "last".into(), one_of "last", "first";
}

impl System for Params {
    const CARD: Card = Card {
        name: "rectification",
        guarantee: Guarantee::Approximate,
        needs: &["value"],
        summary: "Caps every token's probability by a value model's chance of a good end.",
        source: "arXiv:2302.14003, sheet 51",
    };

    fn check(&self) -> Result<(), crate::params::ParamError> {
        if self.method != "passes" && self.passes != Params::default().passes {
            return Err(crate::params::ParamError::Bad {
                owner: Self::CARD.name.into(),
                name: "passes".into(),
                expected: "its default, unless method is passes".into(),
                found: self.passes.to_string(),
            });
        }
        Ok(())
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let model = seq.require("value")?;
        let (main, own) = (seq.card().vocab, seq.card_of(model).vocab);
        if main != own {
            return Err(Error::Strategy(format!(
                "rectification: the value model speaks of {own} tokens, the model of {main}: give one trained for it"
            )));
        }
        let mut value = seq.sibling(model);
        // What bends the model's law has no say in the value's: its raw logits are asked for.
        let bent = value.is_bent();
        let ask = if bent { Readout::NOTHING.top(own) } else { Readout::LOGITS };
        while !seq.finished() {
            value.follow(seq);
            let (said, worth) = try_join(seq.next(Readout::LOGITS), value.next(ask.clone())).await?;
            let q = if bent { ordered(worth.root().top(), own) } else { worth.root().logits().to_vec() };
            let key = Key::new(seq.seed(), seq.len(), Purpose::Sample);
            let (token, kept) = self.rectify(said.root().logits(), &q, &seq.warp(), key);
            if !kept {
                seq.note("dead_end", seq.len(), Vec::new());
            }
            seq.push(token)?;
        }
        Ok(())
    }
}

fn ordered(top: &[(Token, f32)], vocab: usize) -> Vec<f32> {
    let mut logits = vec![f32::NEG_INFINITY; vocab];
    for &(token, logit) in top.iter().filter(|t| (t.0 as usize) < vocab) {
        logits[token as usize] = logit;
    }
    logits
}

impl Params {
    /// A token of the capped law, and whether the caps could be kept.
    fn rectify(&self, logits: &[f32], q: &[f32], warp: &Warp, key: Key) -> (Token, bool) {
        let caps = caps(q, self.epsilon);
        let first = self.cap == "first" || warp.is_greedy();
        let law = if first { softmax(logits, 1.0) } else { warp.law(logits) };
        if law.iter().zip(&caps).all(|(p, s)| f64::from(*p) <= *s) {
            return (choose(logits, warp, key), true); // Nothing is capped: the model's own choice, to the bit.
        }
        let (capped, kept) = match self.method.as_str() {
            "passes" => {
                let logits: Vec<f32> = law.iter().map(|p| p.ln()).collect();
                let kept = feasible(&law, &caps);
                (passes(&logits, &caps, self.passes), kept)
            }
            _ => cap(&law, &caps),
        };
        let bent: Vec<f32> = capped.iter().map(|p| p.ln() as f32).collect();
        let whole = Warp::default();
        (choose(&bent, if first { warp } else { &whole }, key), kept)
    }
}

/// Caps of Q: 1 + q - epsilon, in [1e-7, 1].
pub fn caps(q: &[f32], epsilon: f64) -> Vec<f64> {
    q.iter().map(|q| (1.0 + f64::from(*q) - epsilon).clamp(1e-7, 1.0)).collect()
}

/// Whether a law can keep the caps where `law` has mass.
fn feasible(law: &[f32], caps: &[f64]) -> bool {
    law.iter().zip(caps).filter(|(p, _)| **p > 0.0).map(|(_, s)| s).sum::<f64>() >= 1.0
}

/// The law min(s, c p) that sums to 1, and true; or, where no c does, the caps themselves, normalised over what has
/// mass, and false: a dead end.
pub fn cap(law: &[f32], caps: &[f64]) -> (Vec<f64>, bool) {
    let p: Vec<f64> = law.iter().map(|p| f64::from(*p)).collect();
    let alive = |v: usize| p[v] > 0.0;
    if !feasible(law, caps) {
        let sum: f64 = (0..p.len()).filter(|&v| alive(v)).map(|v| caps[v]).sum();
        return ((0..p.len()).map(|v| if alive(v) { caps[v] / sum } else { 0.0 }).collect(), false);
    }
    // With more tokens capped, c grows, and what was capped stays so: a few rounds end at the solution.
    let mut capped = vec![false; p.len()];
    let mut c = 1.0;
    loop {
        let (mut held, mut free, mut grown) = (0.0, 0.0, false);
        for v in (0..p.len()).filter(|&v| alive(v)) {
            if capped[v] || c * p[v] > caps[v] {
                grown |= !capped[v];
                capped[v] = true;
                held += caps[v];
            } else {
                free += p[v];
            }
        }
        if !grown || free <= 0.0 {
            break;
        }
        c = ((1.0 - held) / free).max(c);
    }
    let each = |v: usize| if capped[v] { caps[v] } else { c * p[v] };
    let mut out: Vec<f64> = (0..p.len()).map(each).collect();
    let sum: f64 = out.iter().sum(); // 1 but for rounding
    out.iter_mut().for_each(|p| *p /= sum);
    (out, true)
}

/// The reference's rule: z = min(z, ln s + logsumexp(z)), so many times, then softmax.
pub fn passes(logits: &[f32], caps: &[f64], times: usize) -> Vec<f64> {
    let mut z = logits.to_vec();
    for _ in 0..times {
        let sum = log_sum_exp(&z);
        z.iter_mut().zip(caps).for_each(|(z, s)| *z = z.min(s.ln() as f32 + sum));
    }
    softmax(&z, 1.0).into_iter().map(f64::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnidecode_core::noise::{pair, unit};

    /// A law and Q of so many tokens.
    fn draw(seed: u64, n: usize, low: f64) -> (Vec<f32>, Vec<f32>) {
        let at = |stream: u64, v: usize| unit(pair(pair(seed, stream), v as u64));
        let logits: Vec<f32> = (0..n).map(|v| 6.0 * at(0, v) as f32).collect();
        (softmax(&logits, 1.0), (0..n).map(|v| (-low * at(1, v)) as f32).collect())
    }
    fn close(a: &[f64], b: &[f64], by: f64) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() <= by)
    }

    /// Contract 1, 2, 4, 6, 7.
    #[test]
    fn the_exact_law() {
        let mut bound = 0;
        for seed in 0..300 {
            let n = [2, 3, 8, 50][seed as usize % 4];
            let (law, q) = draw(seed, n, 1.0);
            let p: Vec<f64> = law.iter().map(|p| f64::from(*p)).collect();
            let (free, kept) = cap(&law, &caps(&vec![0.0; n], 0.0));
            assert!(kept && close(&free, &p, 1e-6), "Q = 0 changes nothing");
            let s = caps(&q, 0.05);
            let (out, kept) = cap(&law, &s);
            assert!((out.iter().sum::<f64>() - 1.0).abs() < 1e-9 && out.iter().all(|p| p.is_finite()));
            assert!(caps(&q, 0.2).iter().zip(&s).all(|(strict, s)| strict <= s), "more slack, lower caps");
            if !kept {
                assert!(s.iter().sum::<f64>() < 1.0);
                continue;
            }
            assert!(out.iter().zip(&s).all(|(p, s)| *p <= s + 1e-6), "the caps hold");
            let open: Vec<usize> = (0..n).filter(|&v| out[v] < s[v] - 1e-9).collect();
            for w in open.windows(2) {
                let (a, b) = (w[0], w[1]);
                assert!((out[a] / out[b] - p[a] / p[b]).abs() < 1e-6 * (p[a] / p[b]), "ratios of the uncapped stay");
            }
            bound += usize::from(open.len() < n);
            for v in 0..n {
                let mut lower = q.clone();
                lower[v] -= 0.1;
                let (less, still) = cap(&law, &caps(&lower, 0.05));
                assert!(!still || less[v] <= out[v] + 1e-9, "a lower value never raises a token");
            }
        }
        assert!(bound > 50, "caps that bind: {bound}");
    }

    /// Contract 3: the reference's passes against a plain transcription, and their approach to the exact law.
    #[test]
    fn passes_approach_the_exact_law() {
        for seed in 0..100 {
            let (law, q) = draw(seed, 2000, 0.999);
            let s = caps(&q, 0.0);
            let logits: Vec<f32> = law.iter().map(|p| p.ln()).collect();
            let two = passes(&logits, &s, 2);
            let mut p: Vec<f64> = law.iter().map(|p| f64::from(*p)).collect();
            for _ in 0..2 {
                let sum: f64 = p.iter().sum();
                p = p.iter().zip(&s).map(|(p, s)| p.min(s * sum)).collect();
            }
            let sum: f64 = p.iter().sum();
            p.iter_mut().for_each(|p| *p /= sum);
            assert!(close(&two, &p, 1e-5));
            let (exact, kept) = cap(&law, &s);
            assert!(kept);
            let far = |n| passes(&logits, &s, n).iter().zip(&exact).map(|(a, b)| (a - b).abs()).sum::<f64>();
            let distances: Vec<f64> = [1, 2, 4, 16].map(far).to_vec();
            assert!(distances.is_sorted_by(|a, b| *b <= a + 1e-5) && distances[3] < 1e-4, "{distances:?}");
        }
    }

    /// Contract 5 and 8, and the sheet's example of a rectified law that is worse.
    #[test]
    fn dead_ends_are_flagged() {
        let (out, kept) = cap(&[0.7, 0.2, 0.1], &caps(&[-1.0, 0.0, -0.2], 0.0));
        assert!(kept && out[0] <= 1.001e-7, "{out:?}");
        let (out, kept) = cap(&[0.9, 0.1], &caps(&[-0.2, -0.9], 0.0));
        assert!(!kept && close(&out, &[0.8 / 0.9, 0.1 / 0.9], 1e-6));
        let rate = out[0] * 0.2 + out[1] * 0.9;
        assert!((rate - 0.278).abs() < 1e-3 && rate > 0.9 * 0.2 + 0.1 * 0.9, "worse than the base's 0.27");
        let (out, kept) = cap(&[0.5, 0.5, 0.0], &caps(&[-1.0, -1.0, 0.0], 0.0));
        assert!(!kept && out == [0.5, 0.5, 0.0], "what the model forbids stays forbidden");
        let (_, kept) = cap(&[1.0, 0.0], &caps(&[-0.5, 0.0], 0.0));
        assert!(!kept);
    }

    #[test]
    fn what_is_not_honoured_is_refused() {
        assert!(Params { passes: 3, ..Params::default() }.check().is_err());
        assert!(Params { passes: 3, method: "passes".into(), ..Params::default() }.check().is_ok());
    }
}
