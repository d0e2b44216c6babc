//! Particle filtering over steps of a text (arXiv:2502.01618; sheet 04, baselines): weights are a softmax of the judge's
//! scores as logits over a temperature; particles are drawn anew by them after every step.
use super::branch::{Branch, best, grow, hand_in, spread};
use super::judging::Judging;
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_core::noise::{Key, Purpose};
use omnidecode_engine::{Guarantee, Plans, Result, Sequence};

super::settings::stepped! {
    /// Particles. 1 is plain decoding.
    n: usize = 4, within 1.0, 4096.0;
    /// Temperature of the weights; towards 0 only the best particle goes on.
    weight_temperature: f64 = 1.0, within 0.0001, 1000.0;
    /// How particles are drawn: `systematic` (one draw, evenly spaced) or `multinomial` (each on its own).
    resampling: String = "systematic".into(), one_of "systematic", "multinomial";
    /// Whether finished particles are drawn anew with the others; if not they stay.
    resample_finished: bool = true;
}

impl System for Params {
    const CARD: Card = Card {
        name: "particle",
        guarantee: Guarantee::Approximate,
        needs: &[],
        summary: "Samples go on step by step, those that a judge scores well in more copies.",
        source: "arXiv:2502.01618, sheet 04",
    };
    const PLANS: Plans = Plans::Steps;

    fn guarantee(&self) -> Guarantee {
        if self.n == 1 { Guarantee::Exact } else { Guarantee::Approximate }
    }
    fn check(&self) -> Result<(), ParamError> {
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
        let mut particles = spread(seq, self.n).await?;
        let boundary = self.step();
        for step in 0..self.depth {
            let was_done: Vec<bool> = particles.iter().map(|p| p.done).collect();
            grow(&mut particles, &boundary).await?;
            // Only what is new is judged; a finished particle keeps its score.
            let (mut old, mut new): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
            for (slot, (particle, was_done)) in particles.into_iter().zip(was_done).enumerate() {
                if was_done { old.push((slot, particle)) } else { new.push((slot, particle)) }
            }
            let (slots, mut fresh): (Vec<usize>, Vec<Branch>) = new.into_iter().unzip();
            judging.score(seq, &mut fresh).await?;
            old.extend(slots.into_iter().zip(fresh));
            old.sort_by_key(|(slot, _)| *slot);
            particles = old.into_iter().map(|(_, particle)| particle).collect();
            if particles.iter().all(|p| p.done) || step + 1 == self.depth {
                break;
            }
            let key = Key::new(seq.seed(), step, Purpose::Search);
            particles = self.resample(particles, key, (step + 1) as u64 * self.n as u64);
        }
        let chosen = best(particles.iter().map(|p| self.worth(p)));
        let answer = particles.swap_remove(chosen);
        drop(particles);
        let score = self.worth(&answer);
        hand_in(seq, answer, score, &[])
    }
}

impl Params {
    /// Particles drawn anew by their weights. `role` is the first of the noise roles that copies get.
    fn resample(&self, particles: Vec<Branch>, key: Key, role: u64) -> Vec<Branch> {
        let (stay, drawn): (Vec<Branch>, Vec<Branch>) =
            particles.into_iter().partition(|p| p.done && !self.resample_finished);
        let rewards: Vec<f64> = drawn.iter().map(|p| self.worth(p)).collect();
        let counts = draw(&weights(&rewards, self.weight_temperature), &self.resampling, key);
        let mut next = stay;
        for (particle, count) in drawn.into_iter().zip(counts) {
            // The first copy is the particle itself, with its noise; one drawn no more is dropped with its pages.
            for copy in 1..count {
                next.push(particle.fork(role + copy as u64));
            }
            if count > 0 {
                next.push(particle);
            }
        }
        next
    }
}

/// Softmax of the rewards' logits over a temperature. Rewards outside (0, 1) are brought just inside.
pub fn weights(rewards: &[f64], temperature: f64) -> Vec<f64> {
    let inside = |r: f64| r.clamp(f64::EPSILON, 1.0 - f64::EPSILON);
    let logits: Vec<f64> = rewards.iter().map(|&r| (inside(r) / (1.0 - inside(r))).ln() / temperature).collect();
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let odds: Vec<f64> = logits.iter().map(|l| (l - most).exp()).collect();
    let sum: f64 = odds.iter().sum();
    odds.iter().map(|o| o / sum).collect()
}

/// How often each of the weighted is drawn, as often as there are weights in all.
pub fn draw(weights: &[f64], how: &str, key: Key) -> Vec<usize> {
    let n = weights.len();
    let mut counts = vec![0; n];
    for i in 0..n {
        let at = match how {
            "multinomial" => key.uniform(i as u64),
            _ => (i as f64 + key.uniform(0)) / n as f64,
        };
        let mut sum = 0.0;
        let hit = weights.iter().position(|w| {
            sum += w;
            at < sum
        });
        // Rounding may leave the sum a little short of 1.
        let last = weights.iter().rposition(|w| *w > 0.0).unwrap_or(0);
        counts[hit.unwrap_or(last)] += 1;
    }
    counts
}
