//! Which guesses are committed after a forward (sheet 00-diffusion §3, sheet 03).
use super::guess::Guess;
use omnidecode_core::noise::{Key, Purpose};
use std::ops::Range;

/// A block that is about to be denoised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its places.
    pub places: Range<usize>,
    /// Undecided ones.
    pub masked: usize,
    /// Forwards planned for it.
    pub steps: usize,
}

/// After a forward: which places to commit.
pub trait Unmasker {
    /// A block begins.
    fn enter(&mut self, _block: &Block) {}
    /// Which of `guesses` (undecided places of the block, ascending) are committed, as indices, surest first.
    fn pick(&mut self, guesses: &[Guess]) -> Vec<usize>;
}

/// How many of `masked` places each of `steps` forwards commits: as evenly as can be, the surplus first.
pub fn quota(masked: usize, steps: usize) -> Vec<usize> {
    let steps = steps.max(1);
    (0..steps).map(|j| masked / steps + usize::from(j < masked % steps)).collect()
}

/// Indices of guesses, surest first, the first place on a tie.
pub fn ranked(guesses: &[Guess]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..guesses.len()).collect();
    order.sort_unstable_by(|&a, &b| guesses[b].confidence.total_cmp(&guesses[a].confidence).then(a.cmp(&b)));
    order
}

/// The quota of a block, forward by forward.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    quota: Vec<usize>,
    step: usize,
}
impl Pace {
    fn enter(&mut self, block: &Block) {
        *self = Pace { quota: quota(block.masked, block.steps), step: 0 };
    }
    fn next(&mut self) -> usize {
        self.step += 1;
        self.quota.get(self.step - 1).copied().unwrap_or(1)
    }
}

/// The surest, as many as the quota says (LLaDA's loop).
#[derive(Clone, Debug, Default)]
pub struct Static(Pace);
impl Unmasker for Static {
    fn enter(&mut self, block: &Block) {
        self.0.enter(block);
    }
    fn pick(&mut self, guesses: &[Guess]) -> Vec<usize> {
        let n = self.0.next();
        ranked(guesses).into_iter().take(n).collect()
    }
}

/// All that are at least so sure, and never fewer than the quota (Fast-dLLM, SDAR's dynamic loop).
#[derive(Clone, Debug)]
pub struct Threshold {
    threshold: f64,
    pace: Pace,
}
impl Threshold {
    /// Commits what is at least `threshold` sure.
    pub fn new(threshold: f64) -> Self {
        Threshold { threshold, pace: Pace::default() }
    }
}
impl Unmasker for Threshold {
    fn enter(&mut self, block: &Block) {
        self.pace.enter(block);
    }
    fn pick(&mut self, guesses: &[Guess]) -> Vec<usize> {
        let (order, least) = (ranked(guesses), self.pace.next().max(1));
        let sure = order.iter().take_while(|&&i| guesses[i].confidence >= self.threshold).count();
        order.into_iter().take(sure.max(least)).collect()
    }
}

/// The largest n with (n + 1)(1 - c_n) below the factor: where the product of marginals has the joint law's mode
/// (Fast-dLLM, theorem 1).
#[derive(Clone, Debug)]
pub struct Factor {
    factor: f64,
    pace: Pace,
}
impl Factor {
    /// Commits as many as `factor` allows.
    pub fn new(factor: f64) -> Self {
        Factor { factor, pace: Pace::default() }
    }
}
impl Unmasker for Factor {
    fn enter(&mut self, block: &Block) {
        self.pace.enter(block);
    }
    fn pick(&mut self, guesses: &[Guess]) -> Vec<usize> {
        let (order, least) = (ranked(guesses), self.pace.next().max(1));
        let fits = |n: &usize| (*n as f64 + 1.0) * (1.0 - guesses[order[n - 1]].confidence) < self.factor;
        let n = (1..=order.len()).rev().find(fits).unwrap_or(0);
        order.into_iter().take(n.max(least)).collect()
    }
}

/// The longest run of least entropies whose sum stays within a bound (arXiv:2505.24857; SDAR).
#[derive(Clone, Debug)]
pub struct Entropy {
    bound: f64,
    /// Whether the largest of the sum counts: SDAR counts it, the paper does not.
    plain: bool,
    pace: Pace,
}
impl Entropy {
    /// Commits within `bound` nats.
    pub fn new(bound: f64, plain: bool) -> Self {
        Entropy { bound, plain, pace: Pace::default() }
    }
}
impl Unmasker for Entropy {
    fn enter(&mut self, block: &Block) {
        self.pace.enter(block);
    }
    fn pick(&mut self, guesses: &[Guess]) -> Vec<usize> {
        let (order, least) = (ranked(guesses), self.pace.next().max(1));
        let mut sum = 0.0;
        let within = |&&i: &&usize| {
            let entropy = guesses[i].entropy; // ascending: the newest is the largest
            let cost = if self.plain { sum + entropy } else { sum };
            sum += entropy;
            cost <= self.bound
        };
        let n = order.iter().take_while(within).count();
        order.into_iter().take(n.max(least)).collect()
    }
}

/// A threshold that is lower near very sure places (LocalLeap, sheet 03).
#[derive(Clone, Debug)]
pub struct LocalLeap {
    /// What makes an anchor.
    pub threshold: f64,
    /// What suffices near one.
    pub relaxed: f64,
    /// How far near reaches, in places.
    pub radius: usize,
    /// Committed whatever happens.
    pub pace: Pace,
}
impl Unmasker for LocalLeap {
    fn enter(&mut self, block: &Block) {
        self.pace.enter(block);
    }
    fn pick(&mut self, guesses: &[Guess]) -> Vec<usize> {
        let (order, least) = (ranked(guesses), self.pace.next().max(1));
        let anchors: Vec<usize> = guesses.iter().filter(|g| g.confidence >= self.threshold).map(|g| g.place).collect();
        let near = |place: usize| {
            let at = anchors.partition_point(|&a| a < place);
            let left = at.checked_sub(1).map(|i| place - anchors[i]);
            let right = anchors.get(at).map(|a| a - place);
            left.into_iter().chain(right).any(|d| d <= self.radius)
        };
        let passes = |g: &Guess| g.confidence >= if near(g.place) { self.relaxed } else { self.threshold };
        let kept = order.into_iter().enumerate().filter(|&(rank, i)| rank < least || passes(&guesses[i]));
        kept.map(|(_, i)| i).collect()
    }
}

/// Dream's schedule: times fall evenly from 1 to epsilon, and with each a share of the canvas is decided.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Forwards of the run.
    pub steps: usize,
    /// The last time but one.
    pub epsilon: f64,
    /// Whether every place is decided by a coin of its own (`origin`).
    pub coins: bool,
    /// Above 0: places are drawn from the softmax of confidence over this, rather than the surest taken.
    pub temperature: f64,
    /// Seed of the coins.
    pub seed: u64,
    /// Forwards done.
    pub step: usize,
}
impl Unmasker for Schedule {
    fn pick(&mut self, guesses: &[Guess]) -> Vec<usize> {
        let time = |j: usize| 1.0 - (1.0 - self.epsilon) * j as f64 / self.steps as f64;
        let share = 1.0 - time(self.step + 1) / time(self.step);
        let last = self.step + 1 >= self.steps;
        let lane = self.step as u64;
        self.step += 1;
        let coin = |g: &Guess, purpose| Key::new(self.seed, g.place, purpose).uniform(lane);
        if last {
            return ranked(guesses);
        }
        if self.coins {
            return (0..guesses.len()).filter(|&i| coin(&guesses[i], Purpose::Canvas) < share).collect();
        }
        let n = (guesses.len() as f64 * share) as usize;
        if self.temperature == 0.0 {
            return ranked(guesses).into_iter().take(n).collect();
        }
        // Gumbel's race draws without replacement.
        let race = |g: &Guess| Guess {
            confidence: g.confidence / self.temperature - (-coin(g, Purpose::Search).ln()).ln(),
            ..g.clone()
        };
        let raced: Vec<Guess> = guesses.iter().map(race).collect();
        ranked(&raced).into_iter().take(n).collect()
    }
}
