//! Prophet: stop when the answer is clear (arXiv:2508.19982, sheet 19).
use super::guess::Guess;
use omnidecode_engine::Canvas;
use std::ops::Range;

/// Watches the gap between the two largest logits in the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Prophet {
    /// Mean gap that suffices in the first, second and last third of the forwards.
    pub gaps: [f64; 3],
    /// Places of the answer; `None`: all that are undecided (a generalisation of ours).
    pub answer: Option<Range<usize>>,
    /// Forwards of a run that is never stopped.
    pub total: usize,
}
impl Prophet {
    /// Places that are read for it, ascending: all that are undecided, and the answer.
    pub fn places(&self, canvas: &Canvas<'_>) -> Vec<usize> {
        let answer = self.answer.clone().unwrap_or(0..0);
        canvas.places().filter(|p| answer.contains(p) || canvas.is_masked(*p)).collect()
    }
    /// Whether the rest is to be filled after this forward, the `step`-th from 1; `guesses` are of [`Prophet::places`].
    pub fn is_clear(&self, step: usize, guesses: &[Guess]) -> bool {
        let watched = |g: &&Guess| self.answer.as_ref().is_none_or(|a| a.contains(&g.place));
        let gaps: Vec<f64> = guesses.iter().filter(watched).map(|g| g.gap).collect();
        let progress = step as f64 / self.total.max(1) as f64;
        let needed = self.gaps[if progress < 0.33 {
            0
        } else if progress < 0.67 {
            1
        } else {
            2
        }];
        !gaps.is_empty() && gaps.iter().sum::<f64>() / gaps.len() as f64 >= needed
    }
}
