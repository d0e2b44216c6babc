//! Beam search by a judge over steps of a text (sheet 04, baselines: PRM beam search and DVTS).
use super::branch::{Boundary, Branch, best, grow, hand_in, spread};
use super::judging::Judging;
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_engine::{Guarantee, Plans, Result, Sequence};

super::settings::stepped! {
    /// Steps that are sampled side by side.
    n: usize = 8, within 1.0, 4096.0;
    /// Samples that each kept text goes on in; `n / width` are kept.
    width: usize = 4, within 1.0, 4096.0;
    /// Whether each kept text has a tree of its own, whose best step alone goes on (DVTS): more unlike texts.
    independent: bool = false;
}

impl System for Params {
    const CARD: Card = Card {
        name: "judge-beam",
        guarantee: Guarantee::Approximate,
        needs: &[],
        summary: "Samples steps side by side and goes on from those that a judge scores best.",
        source: "arXiv:2502.01618, sheet 04",
    };
    const PLANS: Plans = Plans::Steps;

    fn guarantee(&self) -> Guarantee {
        if self.n == 1 { Guarantee::Exact } else { Guarantee::Approximate }
    }
    fn check(&self) -> Result<(), ParamError> {
        if !self.n.is_multiple_of(self.width) {
            return Err(ParamError::Bad {
                owner: Self::CARD.name.into(),
                name: "width".into(),
                expected: format!("a divisor of n = {}", self.n),
                found: self.width.to_string(),
            });
        }
        self.judge_settings().check(Self::CARD.name)
    }
    fn asks_judge(&self) -> bool {
        self.judge_settings().asks_request()
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        if self.n == 1 {
            return crate::autoregressive::plain::Params::default().decode(seq).await;
        }
        let mut judging = Judging::open(seq, &self.judge_settings())?;
        let boundary = self.step();
        let mut beams: Vec<Branch> = spread(seq, self.n).await?;
        let mut ended: Vec<Branch> = Vec::new();
        for step in 1..=self.depth {
            self.advance(seq, &mut judging, &boundary, &mut beams).await?;
            // Each kept text that has ended leaves one place less to fill.
            let (done, open): (Vec<Branch>, Vec<Branch>) = beams.into_iter().partition(|b| b.done);
            ended.extend(done);
            if step == self.depth {
                ended.extend(open);
                break;
            }
            beams = self.multiply(open, step);
            if beams.is_empty() {
                break;
            }
        }
        let chosen = best(ended.iter().map(|b| self.worth(b)));
        let answer = ended.swap_remove(chosen);
        drop(ended);
        let score = self.worth(&answer);
        hand_in(seq, answer, score, &[])
    }
}

impl Params {
    /// One step of all beams; the best of them are left.
    async fn advance(
        &self,
        seq: &Sequence,
        judging: &mut Judging,
        boundary: &Boundary,
        beams: &mut Vec<Branch>,
    ) -> Result<()> {
        grow(beams, boundary).await?;
        judging.score(seq, beams).await?;
        let worth: Vec<f64> = beams.iter().map(|b| self.worth(b)).collect();
        let mut keep = vec![false; beams.len()];
        if self.independent {
            for first in (0..beams.len()).step_by(self.width) {
                let group = &worth[first..(first + self.width).min(worth.len())];
                keep[first + best(group.iter().copied())] = true;
            }
        } else {
            let mut order: Vec<usize> = (0..beams.len()).collect();
            order.sort_by(|&a, &b| worth[b].total_cmp(&worth[a]));
            order.iter().take(beams.len() / self.width).for_each(|&i| keep[i] = true);
        }
        let mut kept = keep.into_iter();
        beams.retain(|_| kept.next().unwrap_or(false));
        Ok(())
    }
    /// Every kept text in `width` copies; the first has the noise it had.
    fn multiply(&self, kept: Vec<Branch>, step: usize) -> Vec<Branch> {
        let first = (step * self.n) as u64;
        let mut beams = Vec::with_capacity(kept.len() * self.width);
        for branch in kept {
            let copies: Vec<Branch> = (1..self.width as u64).map(|role| branch.fork(first + role)).collect();
            beams.push(branch);
            beams.extend(copies);
        }
        beams
    }
}
