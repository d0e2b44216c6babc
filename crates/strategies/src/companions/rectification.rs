//! Rectification (arXiv:2302.14003, sheet 51): a value model says for every token how likely the finished text will be
//! undesired, and the model's probability of the token is capped by the chance that it will not.
//!
//! The value model has the role `value`, the same vocabulary, and logits that are Q in [-1, 0]. Where no law can keep the
//! caps, the caps are the law, and the result notes a `dead_end` at the place.
use super::{Attachment, Companion, CompanionCard, CompanionError, Context};
use crate::params::ParamError;
use futures_util::future::try_join;
use omnidecode_core::law::{log_sum_exp, softmax};
use omnidecode_engine::{
    Bend, Carriage, Carried, Carrier, Error, KvAction, LATENT, Mask, Outcome, Plan, Plans, ROOT, Readout, Row, Rows,
    Sequence, Warp,
};
use std::sync::Arc;

const NAME: &str = "rectification";
const NO: f32 = f32::NEG_INFINITY;

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

impl Companion for Params {
    const CARD: CompanionCard = CompanionCard {
        name: NAME,
        bends: "law",
        summary: "Caps every token's probability by a value model's chance of a good end.",
        source: "arXiv:2302.14003, sheet 51",
    };

    fn attach(self, _to: &Context<'_>) -> Result<Attachment, CompanionError> {
        if self.method != "passes" && self.passes != Params::default().passes {
            return Err(CompanionError::Params(ParamError::Bad {
                owner: NAME.into(),
                name: "passes".into(),
                expected: "its default, unless method is passes".into(),
                found: self.passes.to_string(),
            }));
        }
        Ok(Attachment { carriers: vec![Arc::new(self)], ..Attachment::default() })
    }
}

impl Carrier for Params {
    fn name(&self) -> &'static str {
        NAME
    }
    fn carries(&self, plans: Plans) -> Result<(), String> {
        let why = match plans {
            Plans::Canvas => "a canvas is filled in any order, and a value is of a token after those before it",
            Plans::Vectors => "the value model reads tokens, not vectors or mixtures of them",
            Plans::Joined => {
                "the strategy joins the laws of several models after companions bent them, and would break the caps"
            }
            _ => return Ok(()),
        };
        Err(format!("{why}; take a strategy that commits one token after another"))
    }
    fn open(&self, seq: &mut Sequence) -> Result<Box<dyn Carriage>, Error> {
        let model = seq.require("value")?;
        let (main, own) = (seq.card().vocab, seq.card_of(model).vocab);
        if main != own {
            return Err(unfit(format!(
                "the value model speaks of {own} tokens, the model of {main}: give one trained for it"
            )));
        }
        let warp = seq.warp();
        if self.cap == "last" && !warp.is_greedy() && !warp.keeps_all() {
            // The capped law is the last word: what would cut it again is applied before.
            seq.set_warp(Warp::default());
        }
        Ok(Box::new(Rider { params: self.clone(), warp, value: seq.sibling(model).unbent() }))
    }
}

/// The value model beside one sequence.
struct Rider {
    params: Params,
    /// The request's, before the caps.
    warp: Warp,
    value: Sequence,
}

impl Carriage for Rider {
    fn fork(&self) -> Box<dyn Carriage> {
        Box::new(Rider { params: self.params.clone(), warp: self.warp, value: self.value.fork(0) })
    }
    fn bends(&self) -> bool {
        true
    }
    fn carry<'a>(&'a mut self, seq: &'a mut Sequence, plan: Plan) -> Carried<'a> {
        Box::pin(async move {
            if plan.rows.is_empty() && plan.read.is_nothing() {
                // A text for branches to share is computed by both models.
                self.value.follow(seq);
                let beside = Plan::next(Readout::NOTHING).leave(plan.leave);
                return Ok(try_join(seq.forward(plan), self.value.forward(beside)).await?.0);
            }
            if !(plan.read.choice || plan.read.logits) {
                return seq.forward(plan).await;
            }
            let (mirror, first) = self.mirror(seq, &plan)?;
            let worth = self.value.forward(mirror).await?;
            let q = Values::of(&worth, plan.rows.len(), first);
            let (params, before, after) = (self.params.clone(), self.warp, seq.warp());
            let bend = Bend::new(move |own, logits| {
                let kept = params.rectify(logits, q.at(own)?, &before, &after);
                (!kept).then_some("dead_end")
            });
            seq.forward(Plan { bend: Some(bend), ..plan }).await
        })
    }
}

impl Rider {
    /// The same rows for the value model, and which of its own rows the first of the plan's is.
    fn mirror(&mut self, seq: &Sequence, plan: &Plan) -> Result<(Plan, usize), Error> {
        let token = |row: &Row| match row {
            Row::Token(_) => true,
            _ => matches!(plan.kv, KvAction::Rerun(_)),
        };
        if !plan.mask.is_causal() || plan.at.is_some() || plan.kv == KvAction::Overwrite {
            return Err(unfit("the law of rows that do not follow the committed tokens was asked for".into()));
        }
        if seq.tokens().contains(&LATENT) || !plan.rows.iter().all(token) {
            return Err(unfit("the value model reads tokens: the plan holds vectors or mixtures".into()));
        }
        let read = Readout::LOGITS;
        let at_rows = if plan.at_rows == Rows::All { Rows::Own } else { plan.at_rows.clone() };
        if !matches!(plan.kv, KvAction::Extend | KvAction::Rerun(_)) {
            self.value.follow(seq);
            let (layers, bend) = (None, None);
            return Ok((Plan { read, at_rows, layers, bend, root: plan.leave == 0, ..plan.clone() }, 0));
        }
        // All rows in flight at once: those that are computed are few, and what was read of them is gone.
        let (mut rows, parents, base) = seq.in_flight();
        let first = match plan.kv {
            KvAction::Rerun(first) => first as usize,
            _ => rows.len(),
        };
        let mut parents = parents;
        if plan.kv == KvAction::Extend {
            parents.extend((0..plan.rows.len()).map(|i| plan.mask.parent(i, first).unwrap_or(ROOT)));
            rows.extend_from_slice(&plan.rows);
        }
        if !rows.iter().all(|row| matches!(row, Row::Token(_))) {
            return Err(unfit("the value model reads tokens: rows in flight are vectors or mixtures".into()));
        }
        self.value.follow(seq);
        let whole = Plan::rows(rows, Mask::Tree(parents), read).leave(seq.len() - base);
        Ok((whole, first))
    }
}

/// Q at the rows of a plan: `[rows, vocab]`.
struct Values {
    root: Option<Vec<f32>>,
    own: Vec<Option<Vec<f32>>>,
}
impl Values {
    fn of(seen: &Outcome, rows: usize, first: usize) -> Values {
        let root = seen.has_root().then(|| seen.root().logits().to_vec());
        let own = (first..first + rows).map(|i| seen.row_if_read(i).map(|row| row.logits().to_vec()));
        Values { root, own: own.collect() }
    }
    fn at(&self, own: Option<usize>) -> Option<&[f32]> {
        match own {
            Some(row) => self.own.get(row)?.as_deref(),
            None => self.root.as_deref(),
        }
    }
}

fn unfit(reason: String) -> Error {
    Error::Companion { name: NAME, reason }
}

impl Params {
    /// Bend logits so that `after` draws from the capped law of what `before` leaves (or of the model's own law); whether
    /// the caps could be kept.
    fn rectify(&self, logits: &mut [f32], q: &[f32], before: &Warp, after: &Warp) -> bool {
        let caps = caps(q, self.epsilon);
        let first = self.cap == "first" || after.is_greedy();
        let law = if first { softmax(logits, 1.0) } else { before.law(logits) };
        let scale = if first { 1.0 } else { after.temperature };
        if law.iter().zip(&caps).all(|(p, s)| f64::from(*p) <= *s) {
            // Nothing is capped: the logits as they are, but for what the warp would have cut.
            if !first && after != before {
                let kept = |(l, p): (&mut f32, &f32)| *l = if *p > 0.0 { *l / before.temperature * scale } else { NO };
                logits.iter_mut().zip(&law).for_each(kept);
            }
            return true;
        }
        let (capped, kept) = match self.method.as_str() {
            "passes" => {
                let kept = feasible(&law, &caps);
                let law: Vec<f32> = law.iter().map(|p| p.ln()).collect();
                (passes(&law, &caps, self.passes), kept)
            }
            _ => cap(&law, &caps),
        };
        logits.iter_mut().zip(&capped).for_each(|(l, p)| *l = p.ln() as f32 * scale);
        kept
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
}
