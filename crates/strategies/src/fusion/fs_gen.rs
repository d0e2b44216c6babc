//! Fast and slow generating (arXiv:2406.12295, sheet 33): a small model proposes every token, a router decides whether the
//! large one is asked, and a rule fuses what they say.
//!
//! The answer is a sequence on the large model. Tokens that the small model found alone are its debt, which the next
//! question to it pays in one forward. `usage.drafted` counts the questions, `usage.accepted` those where the small
//! model had said the same: the collaboration frequency is their difference by the number of tokens.
use super::router::Machine;
use crate::params::ParamError;
use crate::registry::{Card, System};
use crate::speculative::drafting::{Draft, Verifier, misfit};
use omnidecode_core::Token;
use omnidecode_core::law::choose;
use omnidecode_core::noise::{Key, Purpose};
use omnidecode_engine::{Guarantee, Outcome, Plans, Readout, Result, Sequence};

crate::params! {
    /// How a token is made of what the models say. `oracle`: the large model's. `contrastive`: both logits, mixed or
    /// contrasted. `proxy`: the large model, moved as the model `expert` moves away from the small one. `speculative`: the
    /// small model drafts, the large one verifies.
    method: String = "contrastive".into(), one_of "oracle", "contrastive", "proxy", "speculative";
    /// When the large model is asked: `normal` always, `none` never, `threshold` when the small model's largest
    /// probability is below `threshold`, `delta` when half the distance of its two largest is below `delta`, `svm` when a
    /// learned machine says so.
    router: String = "normal".into(), one_of "normal", "none", "threshold", "delta", "svm";
    /// Of the router `threshold`.
    threshold: f64 = 0.5, within 0.0, 2.0;
    /// Of the router `delta`.
    delta: f64 = 0.2, within 0.0, 1.0;
    /// Of the router `svm`: the machine as JSON, as `omnidecode.router.train` writes it.
    svm: String = String::new();
    /// Of `contrastive`: `interp` is s + beta (l - s), `extrap` is l + beta (l - s), l and s the logits of the large and
    /// the small model.
    contrast: String = "interp".into(), one_of "interp", "extrap";
    /// Of `contrastive`.
    beta: f64 = 0.5, within 0.0, 10.0;
    /// Of `contrastive`: tokens of less than this share of the large model's largest probability are left out; 0 keeps all.
    alpha: f64 = 0.1, within 0.0, 1.0;
    /// Of `proxy`: how far the large model is moved.
    strength: f64 = 1.0, within -10.0, 10.0;
    /// Of `speculative`: tokens drafted a step.
    drafts: usize = 5, within 1.0, 64.0;
    /// Of `speculative`: `match` keeps what the large model chooses (exact), `rejection` its law.
    verifier: String = "match".into(), one_of "match", "rejection";
    /// How many of the small model's likeliest tokens the result's notes hold for every token of the answer, under the labels
    /// `alone` (not asked), `agreed` and `overruled`; 0 notes nothing. Not of `speculative`.
    trace: usize = 0, within 0.0, 1024.0;
}

/// Parameters that only some methods or routers honour.
const OWNERS: [(&str, &str, &str); 9] = [
    ("threshold", "router", "threshold"),
    ("svm", "router", "svm"),
    ("delta", "router", "delta"),
    ("contrast", "method", "contrastive"),
    ("beta", "method", "contrastive"),
    ("alpha", "method", "contrastive"),
    ("strength", "method", "proxy"),
    ("drafts", "method", "speculative"),
    ("verifier", "method", "speculative"),
];

impl System for Params {
    const CARD: Card = Card {
        name: "fs-gen",
        guarantee: Guarantee::Approximate,
        needs: &["draft"],
        summary: "A small model writes, a large one is asked where a router says so; their logits are fused.",
        source: "arXiv:2406.12295, sheet 33",
    };
    const PLANS: Plans = Plans::Joined;

    fn guarantee(&self) -> Guarantee {
        match (self.method.as_str(), self.router.as_str()) {
            ("speculative", _) => Verifier::named(&self.verifier).guarantee(),
            ("oracle", "normal") => Guarantee::Exact,
            _ => Guarantee::Approximate,
        }
    }
    fn check(&self) -> Result<(), ParamError> {
        let default = Params::default();
        for (name, by, owner) in OWNERS {
            let changed = match name {
                "threshold" => self.threshold != default.threshold,
                "delta" => self.delta != default.delta,
                "svm" => self.svm != default.svm,
                "contrast" => self.contrast != default.contrast,
                "beta" => self.beta != default.beta,
                "alpha" => self.alpha != default.alpha,
                "strength" => self.strength != default.strength,
                "drafts" => self.drafts != default.drafts,
                _ => self.verifier != default.verifier,
            };
            let chosen = if by == "router" { &self.router } else { &self.method };
            if changed && chosen != owner {
                return Err(misfit(Self::CARD.name, name, format!("its default, unless {by} is {owner}"), chosen));
            }
        }
        if self.method == "speculative" && self.router != "normal" {
            return Err(misfit(Self::CARD.name, "router", "normal with the method speculative", &self.router));
        }
        if self.method == "speculative" && self.trace > 0 {
            return Err(misfit(Self::CARD.name, "trace", "0 with the method speculative", self.trace));
        }
        if self.router == "svm" {
            Machine::parse(&self.svm).map_err(|e| misfit(Self::CARD.name, "svm", "a machine as JSON", e))?;
        }
        Ok(())
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        if self.method == "speculative" { self.speculate(seq).await } else { self.collaborate(seq).await }
    }
}

impl Params {
    async fn collaborate(self, seq: &mut Sequence) -> Result<()> {
        let mut small = seq.sibling(seq.require("draft")?);
        // With a proxy, the expert proposes, and the small model it comes from is asked beside the large one.
        let mut expert = match self.method.as_str() {
            "proxy" => Some(seq.sibling(seq.require("expert")?)),
            _ => None,
        };
        let machine = if self.router == "svm" { Machine::parse(&self.svm).ok() } else { None };
        let seen = self.trace.max(machine.as_ref().map_or(0, Machine::k)).min(seq.card().vocab);
        let read = if seen > 0 { Readout::CHOICE.stats().top(seen) } else { Readout::CHOICE.stats() };
        let read = if self.method == "oracle" || self.router == "none" { read } else { read.logits() };
        while !seq.finished() {
            let first = expert.as_mut().unwrap_or(&mut small);
            first.follow(seq);
            let said = first.next(read.clone()).await?;
            let proposed = said.root().choice();
            let (token, label) = if self.asks(&said, machine.as_ref()) {
                let token = self.fuse(seq, &said, expert.is_some().then_some(&mut small)).await?;
                seq.judged(1, usize::from(token == proposed));
                (token, if token == proposed { "agreed" } else { "overruled" })
            } else {
                (proposed, "alone")
            };
            if self.trace > 0 {
                let lse = said.root().stats().lse;
                let law = said.root().top().iter().take(self.trace).map(|&(t, logit)| (t, (logit - lse).exp()));
                seq.note(label, seq.len(), law.collect());
            }
            seq.push(token)?;
        }
        Ok(())
    }
    /// The router, on the law of the model that proposed.
    fn asks(&self, said: &Outcome, machine: Option<&Machine>) -> bool {
        let s = said.root().stats();
        let (first, second) = (f64::from((s.max - s.lse).exp()), f64::from((s.second - s.lse).exp()));
        match self.router.as_str() {
            "none" => false,
            "threshold" => first < self.threshold,
            "delta" => (first - second) / 2.0 < self.delta,
            "svm" => machine.is_some_and(|machine| {
                let law: Vec<f64> = said.root().top().iter().map(|t| f64::from((t.1 - s.lse).exp())).collect();
                machine.asks(&law)
            }),
            _ => true,
        }
    }
    /// Ask the large model, which catches up in the same forward, and fuse. `base`: the model behind the expert.
    async fn fuse(&self, seq: &mut Sequence, said: &Outcome, base: Option<&mut Sequence>) -> Result<Token> {
        if self.method == "oracle" {
            return Ok(seq.next(Readout::CHOICE).await?.root().choice());
        }
        let position = seq.len();
        let fused = match base {
            Some(base) => {
                base.follow(seq);
                let (large, small) =
                    futures_util::future::try_join(seq.next(Readout::LOGITS), base.next(Readout::LOGITS)).await?;
                proxy(large.root().logits(), said.root().logits(), small.root().logits(), self.strength as f32)
            }
            None => {
                let large = seq.next(Readout::LOGITS).await?;
                self.contrast(large.root().logits(), said.root().logits())
            }
        };
        // The law is of both models now: the same noise as the large one's own choice, on fused logits.
        Ok(choose(&fused, &seq.warp(), Key::new(seq.seed(), position, Purpose::Sample)))
    }
    /// Contrastive fusion over the ids that both models have: `[vocab]` of the large model.
    pub fn contrast(&self, large: &[f32], small: &[f32]) -> Vec<f32> {
        let floor = large.iter().copied().fold(f32::NEG_INFINITY, f32::max) + (self.alpha as f32).ln();
        let beta = self.beta as f32;
        let each = |(v, &l): (usize, &f32)| match small.get(v) {
            Some(&s) if l >= floor && l > f32::NEG_INFINITY => {
                let apart = apart(l, s);
                if self.contrast == "interp" { l - (1.0 - beta) * apart } else { l + beta * apart }
            }
            _ => f32::NEG_INFINITY,
        };
        large.iter().enumerate().map(each).collect()
    }

    async fn speculate(self, seq: &mut Sequence) -> Result<()> {
        let mut draft = Draft::open(seq, None, Verifier::named(&self.verifier))?;
        let mut next = seq.next(Readout::CHOICE).await?.root().choice();
        while seq.push(next)?.is_some() {
            let levels = self.drafts.min(draft.levels(seq));
            let tree = draft.chain(seq, levels, 0.0).await?;
            let verdict = draft.verify(seq, &tree).await?;
            next = seq.accept(&verdict)?;
        }
        Ok(())
    }
}

/// a - b, and 0 where a processor has forbidden either.
fn apart(a: f32, b: f32) -> f32 {
    if a.is_finite() && b.is_finite() { a - b } else { 0.0 }
}

/// Proxy tuning over the ids that all models have: large + strength (expert - small).
pub fn proxy(large: &[f32], expert: &[f32], small: &[f32], strength: f32) -> Vec<f32> {
    let each = |(v, &l): (usize, &f32)| match (expert.get(v), small.get(v)) {
        (Some(&e), Some(&s)) => l + strength * apart(e, s),
        _ => f32::NEG_INFINITY,
    };
    large.iter().enumerate().map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnidecode_core::law::argmax;

    /// Contract 4, 5 and 6 on logits.
    #[test]
    fn fused_logits() {
        let (large, small) = ([2.0, 5.0, 4.5, -1.0, f32::NEG_INFINITY], [3.0, 1.0, 4.0, 6.0, f32::NEG_INFINITY]);
        let with = |contrast: &str, beta, alpha| Params { contrast: contrast.into(), beta, alpha, ..Params::default() };
        for contrast in ["interp", "extrap"] {
            for beta in [0.0, 0.3, 1.0, 4.0] {
                let p = with(contrast, beta, 0.1);
                assert_eq!(
                    p.contrast(&large, &large),
                    large.map(|l| if l >= 5.0 + 0.1f32.ln() { l } else { f32::NEG_INFINITY })
                );
                assert!(p.contrast(&large, &small)[1].is_finite(), "the mask spares the large model's choice");
                assert!(p.contrast(&large, &small).iter().all(|x| !x.is_nan()));
            }
        }
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a == b || (a - b).abs() < 1e-5);
        assert!(close(&with("interp", 1.0, 0.0).contrast(&large, &small), &large), "beta 1 is the large model");
        assert!(close(&with("extrap", 0.0, 0.0).contrast(&large, &small), &large), "beta 0 is the large model");
        assert!(close(&with("interp", 0.0, 0.0).contrast(&large, &small), &small), "beta 0 is the small model");
        assert_eq!(argmax(&with("interp", 0.0, 0.1).contrast(&large, &small)), 2, "within the mask");
        assert_eq!(with("interp", 0.5, 0.0).contrast(&large, &small)[1], 3.0, "beta 1/2 is the mean");
        assert_eq!(with("extrap", 1.0, 0.0).contrast(&large, &small)[1], 9.0);
        assert_eq!(proxy(&large, &small, &small, 1.0), large);
        assert_eq!(proxy(&[1.0, 2.0, 3.0], &[1.0, 3.0], &[0.0, 0.0], 1.0), [2.0, 5.0, f32::NEG_INFINITY]);
        assert_eq!(with("interp", 0.5, 0.0).contrast(&[1.0, 2.0, 3.0], &[1.0, 2.0])[2], f32::NEG_INFINITY);
    }

    #[test]
    fn what_is_not_honoured_is_refused() {
        let ok = |p: Params| p.check().is_ok();
        let base = Params::default;
        assert!(ok(base()));
        assert!(!ok(Params { threshold: 0.3, ..base() }));
        assert!(ok(Params { threshold: 0.3, router: "threshold".into(), ..base() }));
        assert!(!ok(Params { beta: 0.3, method: "oracle".into(), ..base() }));
        assert!(!ok(Params { method: "speculative".into(), router: "none".into(), ..base() }));
        assert!(ok(Params { method: "speculative".into(), drafts: 2, verifier: "rejection".into(), ..base() }));
        let claims =
            |method: &str, router: &str| Params { method: method.into(), router: router.into(), ..base() }.guarantee();
        assert_eq!(claims("oracle", "normal"), Guarantee::Exact);
        assert_eq!(claims("oracle", "threshold"), Guarantee::Approximate);
        assert_eq!(claims("speculative", "normal"), Guarantee::Exact);
    }
}
