//! Beam search: the likeliest texts, found by keeping the best few beginnings (the rules of transformers' `generate`,
//! sheet 04 names none). A text's score is the sum of its log-probabilities / its length ^ `length_penalty`.
use super::branch::{Branch, hand_in};
use crate::registry::{Card, System};
use futures_util::future::try_join_all;
use omnidecode_core::law::log_sum_exp;
use omnidecode_engine::{Guarantee, Outcome, Plans, Readout, Result, Sequence, Token};

crate::params! {
    /// Beginnings that are kept. 1 is plain decoding.
    width: usize = 4, within 1.0, 256.0;
    /// Exponent of the length that a score is divided by: above 0 for longer texts, below 0 for shorter ones.
    length_penalty: f64 = 1.0, within -10.0, 10.0;
    /// When to stop: `true` as soon as `width` texts have ended, `false` when the best beginning, at its length, does not
    /// beat the worst of them, `never` when it does not even at the length that would suit it best.
    early_stopping: String = "false".into(), one_of "true", "false", "never";
    /// Texts that are told with the answer, best first, as far as there are so many; 1 tells the answer only.
    texts: usize = 1, within 1.0, 256.0;
}

impl System for Params {
    const CARD: Card = Card {
        name: "beam",
        guarantee: Guarantee::Approximate,
        needs: &[],
        summary: "Keeps the likeliest beginnings and gives the likeliest text.",
        source: "transformers 5, `generate(num_beams=...)`",
    };
    const PLANS: Plans = Plans::Steps;

    fn guarantee(&self) -> Guarantee {
        if self.width == 1 { Guarantee::Exact } else { Guarantee::Approximate }
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        if self.width == 1 {
            return crate::autoregressive::plain::Params::default().decode(seq).await;
        }
        if seq.finished() {
            return Ok(());
        }
        let longest = seq.room();
        let keep = self.candidates(seq);
        let mut running = vec![Branch::root(seq)];
        let mut ended = Ended { most: self.width, texts: Vec::new() };
        for made in 1.. {
            let ranked = rank(&mut running, keep).await?;
            let mut next: Vec<Branch> = Vec::with_capacity(self.width);
            let mut open = 0;
            for (i, found) in ranked.iter().enumerate() {
                // Past the best `width`, candidates only stand in for those that ended.
                if i >= self.width && next.len() == self.width {
                    break;
                }
                let mut branch = running[found.from].fork(i as u64 + 1);
                branch.logprob = found.logprob;
                branch.done = branch.seq.push(found.token)?.is_none();
                if !branch.done {
                    open += 1;
                    if next.len() < self.width {
                        next.push(branch);
                    }
                } else if i < self.width {
                    ended.add(branch, self.length_penalty);
                }
            }
            running = next;
            if open == 0 || self.is_over(&running, &ended, made, longest) {
                break;
            }
        }
        let mut texts = ended.texts.into_iter();
        let Some((chosen, score)) = texts.next() else { return Ok(()) };
        let others: Vec<_> = texts.take(self.texts - 1).map(|(b, score)| (b.tokens().to_vec(), score)).collect();
        hand_in(seq, chosen, score, &others)
    }
}

impl Params {
    /// Candidates a step: enough that `width` go on even if every beginning ends in every way.
    fn candidates(&self, seq: &Sequence) -> usize {
        let eos = if seq.sampling().ignore_eos { 0 } else { seq.card().eos.len() };
        let ends = eos + seq.sampling().stop_token_ids.len();
        (1 + ends).max(2) * self.width
    }
    /// Whether no beginning of `made` tokens is worth going on with.
    fn is_over(&self, running: &[Branch], ended: &Ended, made: usize, longest: usize) -> bool {
        if !ended.full() {
            return false;
        }
        if self.early_stopping == "true" {
            return true;
        }
        let length = if self.early_stopping == "never" && self.length_penalty > 0.0 { longest } else { made };
        let hope = running.first().map_or(f64::NEG_INFINITY, |b| score(b.logprob, length, self.length_penalty));
        hope <= ended.worst()
    }
}

fn score(logprob: f64, length: usize, penalty: f64) -> f64 {
    logprob / (length as f64).powf(penalty)
}

/// Texts that have ended, best first.
struct Ended {
    most: usize,
    texts: Vec<(Branch, f64)>,
}
impl Ended {
    fn full(&self) -> bool {
        self.texts.len() == self.most
    }
    fn worst(&self) -> f64 {
        self.texts.last().map_or(f64::NEG_INFINITY, |t| t.1)
    }
    fn add(&mut self, branch: Branch, penalty: f64) {
        let score = score(branch.logprob, branch.tokens().len(), penalty);
        let at = self.texts.partition_point(|t| t.1 >= score);
        self.texts.insert(at, (branch, score));
        self.texts.truncate(self.most);
    }
}

/// A beginning and the token that would follow.
struct Candidate {
    from: usize,
    token: Token,
    logprob: f64,
}

/// The likeliest continuations of all beginnings, in one forward.
async fn rank(running: &mut [Branch], keep: usize) -> Result<Vec<Candidate>> {
    // Where nothing bends the law, the largest logits are enough; else all of them are read.
    let bent = running.first().is_some_and(|b| b.seq.is_bent() || !(b.seq.warp().is_greedy() || is_raw(&b.seq)));
    let read = if bent { Readout::LOGITS } else { Readout::STATS.top(keep) };
    let seen = try_join_all(running.iter_mut().map(|b| b.seq.next(read.clone()))).await?;
    let mut found: Vec<Candidate> = Vec::new();
    for (from, (branch, out)) in running.iter().zip(&seen).enumerate() {
        let continuation =
            |(token, logprob): (Token, f64)| Candidate { from, token, logprob: branch.logprob + logprob };
        let all = if bent { likeliest(&branch.seq, out, keep) } else { listed(out) };
        found.extend(all.into_iter().map(continuation));
    }
    found.sort_by(|a, b| b.logprob.total_cmp(&a.logprob)); // stable: the better beginning first
    found.truncate(keep);
    Ok(found)
}
fn is_raw(seq: &Sequence) -> bool {
    let warp = seq.warp();
    warp.temperature == 1.0 && warp.keeps_all()
}
fn listed(out: &Outcome) -> Vec<(Token, f64)> {
    let root = out.root();
    let lse = f64::from(root.stats().lse);
    root.top().iter().filter(|t| t.1.is_finite()).map(|&(token, logit)| (token, f64::from(logit) - lse)).collect()
}
/// As `listed`, of the law that processors, temperature and cuts have bent.
fn likeliest(seq: &Sequence, out: &Outcome, keep: usize) -> Vec<(Token, f64)> {
    let (logits, warp) = (out.root().logits(), seq.warp());
    let mut all: Vec<(Token, f64)> = if warp.is_greedy() {
        let lse = f64::from(log_sum_exp(logits));
        logits.iter().enumerate().map(|(token, &l)| (token as Token, f64::from(l) - lse)).collect()
    } else {
        let law = warp.law(logits);
        law.iter().enumerate().map(|(token, &p)| (token as Token, f64::from(p).ln())).collect()
    };
    all.retain(|t| t.1.is_finite());
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(keep);
    all
}
