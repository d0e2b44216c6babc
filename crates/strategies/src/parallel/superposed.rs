//! Superposed decoding (arXiv:2405.18400, sheet 44): k drafts in one forward a step. The input is the sum of the drafts'
//! last embeddings, weighted by the drafts' scores; n-gram statistics make the one law that comes out each draft's own.
//!
//! The best draft is the answer; the others are handed over beside it, with their scores.
use super::ngrams::{Corpora, NGrams};
use crate::params::ParamError;
use crate::registry::{Card, System};
use crate::speculative::drafting::{largest, misfit};
use omnidecode_core::Token;
use omnidecode_engine::{Error, Guarantee, Plans, Readout, Result, Sequence};
use std::rc::Rc;

crate::params! {
    /// Drafts.
    k: usize = 3, within 1.0, 64.0;
    /// Weight of the n-grams against the model's law: 0 is the model alone, 1 the n-grams alone.
    alpha: f64 = 0.54, within 0.0, 1.0;
    /// Temperature of the model's law; it is low to weigh it well against n-grams. The request's own temperature and its
    /// kin play no part: nothing is drawn.
    temperature: f64 = 0.06, within 0.001, 10.0;
    /// Tokens of the model's law that are looked at; null is 3 k, and fewer than 2 k are refused.
    top: Option<usize> = None, within 1.0, 1000.0;
    /// Weights of the shares of n-grams of 2, 3, ... tokens.
    weights: Vec<f64> = vec![0.01, 0.04, 0.15, 0.18, 0.12], within 0.0, 1.0;
    /// Taken from the score of a token where a draft has no n-gram to go by.
    penalty: f64 = 200.0, within 0.0, 1000000.0;
    /// File of token ids whose n-grams are counted: 32-bit words, texts set apart by 0xFFFFFFFF.
    corpus: Option<String> = None;
    /// Whether the n-grams of the prompt count too.
    learn_prompt: bool = true;
    /// Most tokens of a draft; null goes on to `max_tokens`. Superposition holds for about 10.
    length: Option<usize> = None, within 1.0, 1000000.0;
    /// Whether the result's notes hold under `linearity`, for each step, the drafts' last tokens with the cosine between the
    /// logits of their superposition and the weighted sum of the logits that each draft has alone: k forwards more a step.
    linearity: bool = false;
}

impl System for Params {
    const CARD: Card = Card {
        name: "superposed",
        guarantee: Guarantee::Approximate,
        needs: &[],
        summary: "Several texts from one pass: superposed embeddings in, n-grams to tell the drafts apart.",
        source: "arXiv:2405.18400, sheet 44",
    };
    const PLANS: Plans = Plans::Vectors;

    fn check(&self) -> Result<(), ParamError> {
        match self.top {
            Some(top) if top < 2 * self.k => {
                Err(misfit(Self::CARD.name, "top", format!("at least 2 k = {}", 2 * self.k), top))
            }
            _ => Ok(()),
        }
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let found = self.search(seq).await?;
        let Some((best, others)) = found.split_first() else { return Ok(()) };
        seq.rate(best.log);
        others.iter().for_each(|draft| seq.offer(draft.tokens.clone(), draft.log));
        for &token in &best.tokens {
            if seq.push(token)?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// A text that is being written, or has ended, and its score: a sum of interpolated log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Tokens after the prompt.
    pub tokens: Vec<Token>,
    /// Score.
    pub log: f64,
}

/// Cosine between the logits of a superposition and the sum, weighted as the superposition is, of those of its drafts, each
/// computed on its own text (sheet 44, contract 10).
async fn linearity(clean: &mut Sequence, alive: &[Written], mixed: &[f32]) -> Result<f64> {
    let mut sum = vec![0.0; mixed.len()];
    for (draft, weight) in alive.iter().zip(shares(alive)) {
        let mut own = clean.fork(0);
        draft.tokens.iter().try_for_each(|&token| own.extend(token))?;
        let seen = own.next(Readout::LOGITS).await?;
        sum.iter_mut().zip(seen.root().logits()).for_each(|(s, &l)| *s += weight * f64::from(l));
    }
    let finite =
        || sum.iter().zip(mixed).map(|(s, m)| (*s, f64::from(*m))).filter(|(s, m)| s.is_finite() && m.is_finite());
    let dot = |f: fn((f64, f64)) -> f64| finite().map(f).sum::<f64>();
    Ok(dot(|(a, b)| a * b) / (dot(|(a, _)| a * a) * dot(|(_, b)| b * b)).sqrt().max(f64::MIN_POSITIVE))
}

impl Params {
    /// All drafts, alive and finished, best first.
    ///
    /// # Errors
    /// As [`Sequence::forward`], and [`Error::Strategy`] when the corpus cannot be read.
    pub async fn search(&self, seq: &mut Sequence) -> Result<Vec<Written>> {
        let (corpus, own) = self.grams(seq)?;
        let ends = if seq.sampling().ignore_eos { Vec::new() } else { seq.card().eos.clone() };
        let steps = self.length.unwrap_or(usize::MAX).min(seq.room());
        let mut seen = seq.next(Readout::LOGITS).await?;
        let mut mixed = seq.fork(0);
        let mut clean = self.linearity.then(|| seq.fork(0));
        let mut alive = vec![Written { tokens: Vec::new(), log: 0.0 }];
        let mut finished: Vec<Written> = Vec::new();
        for step in 0..steps {
            if step > 0 {
                mixed.extend_mix(superposition(&alive))?;
                seen = mixed.next(Readout::LOGITS).await?;
                if let Some(clean) = &mut clean {
                    let cosine = linearity(clean, &alive, seen.root().logits()).await? as f32;
                    let last = alive.iter().filter_map(|draft| draft.tokens.last());
                    seq.note("linearity", seq.len() + step, last.map(|&token| (token, cosine)).collect());
                }
            }
            let law = self.law(seen.root().logits());
            let mut next: Vec<Written> = Vec::new();
            for draft in &alive {
                let context: Vec<Token> = seq.tokens().iter().chain(&draft.tokens).copied().collect();
                let shares: Vec<f64> = law.iter().map(|l| self.share([&corpus, &own], &context, l.0)).collect();
                let grams = shares.iter().any(|&q| q > 0.0);
                for (&(token, log), share) in law.iter().zip(shares) {
                    let score = self.score(log, share, grams);
                    if score > f64::NEG_INFINITY {
                        let tokens = draft.tokens.iter().copied().chain([token]).collect();
                        next.push(Written { tokens, log: draft.log + score });
                    }
                }
            }
            let logs: Vec<f64> = next.iter().map(|n| n.log).collect();
            // Of 2 k candidates k go on. An end counts where it is among the k best, as in beam search: one draft without
            // n-grams is greedy decoding then.
            alive.clear();
            for (rank, i) in largest(&logs, 2 * self.k).into_iter().enumerate() {
                let ended = next[i].tokens.last().is_some_and(|t| ends.contains(t));
                match ended {
                    true if rank < self.k => finished.push(next[i].clone()),
                    false if alive.len() < self.k => alive.push(next[i].clone()),
                    _ => {}
                }
            }
            sort(&mut finished);
            finished.truncate(self.k);
            // Scores only fall: no draft alive can overtake k finished ones that are ahead.
            let ahead = |best: &Written| finished.len() == self.k && finished.iter().all(|f| f.log >= best.log);
            if alive.is_empty() || ahead(&alive[0]) {
                break;
            }
        }
        finished.append(&mut alive);
        sort(&mut finished);
        Ok(finished)
    }
    fn grams(&self, seq: &Sequence) -> Result<(Rc<NGrams>, Rc<NGrams>)> {
        let longest = self.weights.len() + 1;
        let corpus = match &self.corpus {
            Some(path) => {
                let corpora = seq.resource(Corpora::default);
                let read = corpora.borrow_mut().get(path, longest);
                read.map_err(|e| Error::Strategy(format!("superposed: the corpus {path:?}: {e}")))?
            }
            None => Rc::new(NGrams::new(longest)),
        };
        let mut own = NGrams::new(longest);
        if self.learn_prompt {
            own.count(seq.prompt());
        }
        Ok((corpus, Rc::new(own)))
    }
    /// The likeliest tokens with their renormalised log-probabilities at this strategy's temperature.
    fn law(&self, logits: &[f32]) -> Vec<(Token, f64)> {
        let scores: Vec<f64> = logits.iter().map(|&l| f64::from(l) / self.temperature).collect();
        let top = largest(&scores, self.top.unwrap_or(3 * self.k));
        let most = top.first().map_or(0.0, |&v| scores[v]);
        let lse = most + top.iter().map(|&v| (scores[v] - most).exp()).sum::<f64>().ln();
        top.into_iter().map(|v| (v as Token, scores[v] - lse)).collect()
    }
    /// Weighted share of a token after a context; an unknown context gives nothing.
    fn share(&self, tables: [&NGrams; 2], context: &[Token], token: Token) -> f64 {
        let of = |n: usize| {
            let context = context.get(context.len().checked_sub(n)?..)?;
            tables.iter().find_map(|table| table.share(context, token))
        };
        self.weights.iter().enumerate().map(|(i, weight)| weight * of(i + 1).unwrap_or(0.0)).sum()
    }
    /// `grams`: whether some token of this draft has an n-gram to go by.
    fn score(&self, log: f64, share: f64, grams: bool) -> f64 {
        let model = if self.alpha < 1.0 { (1.0 - self.alpha) * log } else { 0.0 };
        match (self.alpha, grams) {
            (0.0, _) => log,
            (_, true) => model + self.alpha * share.ln(),
            (_, false) => model - self.penalty,
        }
    }
}

fn sort(texts: &mut [Written]) {
    texts.sort_by(|a, b| b.log.total_cmp(&a.log));
}

/// Normalised scores: `[drafts]`.
fn shares(drafts: &[Written]) -> Vec<f64> {
    let most = drafts.iter().map(|d| d.log).fold(f64::NEG_INFINITY, f64::max);
    let each: Vec<f64> = drafts.iter().map(|d| (d.log - most).exp()).collect();
    let total: f64 = each.iter().sum();
    each.into_iter().map(|weight| weight / total).collect()
}

/// Last tokens of the drafts, weighted by normalised scores; equal tokens add their weights.
fn superposition(drafts: &[Written]) -> Vec<(Token, f32)> {
    let mut parts: Vec<(Token, f32)> = Vec::new();
    for (draft, weight) in drafts.iter().zip(shares(drafts)) {
        let (weight, token) = (weight as f32, draft.tokens.last().copied());
        match (token, parts.iter_mut().find(|p| Some(p.0) == token)) {
            (_, Some(part)) => part.1 += weight,
            (Some(token), None) if weight > 0.0 => parts.push((token, weight)),
            _ => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sheet 44, contract 5.
    #[test]
    fn weights_sum_to_one_and_do_not_depend_on_a_shift() {
        let drafts = |shift: f64| -> Vec<Written> {
            [(4, -1.0), (9, -2.5), (4, -3.0)].map(|(t, l)| Written { tokens: vec![7, t], log: l + shift }).to_vec()
        };
        let parts = superposition(&drafts(0.0));
        assert_eq!(parts.iter().map(|p| p.0).collect::<Vec<_>>(), [4, 9]);
        assert!((parts.iter().map(|p| p.1).sum::<f32>() - 1.0).abs() < 1e-6);
        for (a, b) in parts.iter().zip(superposition(&drafts(-5000.0))) {
            assert!((a.1 - b.1).abs() < 1e-6);
        }
        assert_eq!(superposition(&drafts(0.0)[..1]), [(4, 1.0)]);
    }

    /// Sheet 44, contracts 6 and 7.
    #[test]
    fn scores_at_the_ends_of_alpha() {
        let at = |alpha| Params { alpha, ..Params::default() };
        assert_eq!(at(0.0).score(-1.5, 0.3, true), -1.5);
        assert_eq!(at(0.0).score(-1.5, 0.0, true), -1.5, "without n-grams' weight a missing one does not matter");
        assert_eq!(at(1.0).score(-1.5, 0.3, true), 0.3f64.ln());
        assert_eq!(at(1.0).score(-9.0, 0.3, true), 0.3f64.ln(), "n-grams alone rank");
        assert_eq!(at(0.5).score(-1.5, 0.0, true), f64::NEG_INFINITY);
        assert_eq!(at(0.5).score(-1.5, 0.0, false), -0.75 - 200.0);
    }
}
