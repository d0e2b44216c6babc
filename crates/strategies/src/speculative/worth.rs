//! How large a draft pays (law 5): the size at which expected tokens a second are most, by the measured cost of rows.
use omnidecode_engine::Sequence;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The number of drafted rows that pay, out of candidates whose probabilities of being accepted are `chances`, best first:
/// see [`worthy`]. 0 when no draft pays.
pub fn worth(seq: &Sequence, chances: impl IntoIterator<Item = f64>) -> usize {
    let chances: Vec<f64> = chances.into_iter().collect();
    worthy(seq, chances.len(), chances.into_iter(), |chance| *chance).len()
}

/// The candidates of a draft that pay, at most `most`, out of candidates whose chances of being accepted do not rise. They
/// maximise (others + 1 + sum of chances) / cost(1 + rows), where the other requests of the batch count a token for each
/// of their rows: a draft that slows them down must earn that. None when no draft pays. No more are asked for than could
/// pay whatever follows them.
pub fn worthy<T>(
    seq: &Sequence,
    most: usize,
    candidates: impl Iterator<Item = T>,
    chance: impl Fn(&T) -> f64,
) -> Vec<T> {
    paying(seq.others(), seq.costs(), most, candidates, chance)
}

fn paying<T>(
    others: usize,
    cost: impl Fn(usize) -> f64,
    most: usize,
    candidates: impl Iterator<Item = T>,
    chance: impl Fn(&T) -> f64,
) -> Vec<T> {
    let rate = |tokens: f64, drafts: usize| (others as f64 + tokens) / cost(1 + drafts).max(1e-9);
    let (mut tokens, mut kept) = (1.0, Vec::new());
    let (mut choice, mut best) = (0, rate(tokens, 0));
    for candidate in candidates.take(most) {
        let (chance, drafts) = (chance(&candidate), kept.len());
        let could = |all: usize| rate(tokens + (all - drafts) as f64 * chance, all) > best * (1.0 + 1e-9);
        if !(drafts + 1..=most).any(could) {
            break;
        }
        tokens += chance;
        kept.push(candidate);
        if rate(tokens, kept.len()) > best * (1.0 + 1e-9) {
            (choice, best) = (kept.len(), rate(tokens, kept.len()));
        }
    }
    kept.truncate(choice);
    kept
}

/// Which of several ways to spend a step pays best, each as (expected tokens, cost). A tie goes to the earlier one: put
/// those of fewer rows first, as they leave room for other requests, which count a token for each of their rows.
pub fn best(others: usize, options: impl IntoIterator<Item = (f64, f64)>) -> usize {
    let (mut choice, mut most) = (0, 0.0);
    for (i, (tokens, cost)) in options.into_iter().enumerate() {
        let rate = (others as f64 + tokens) / cost.max(1e-9);
        if rate > most * (1.0 + 1e-9) {
            (choice, most) = (i, rate);
        }
    }
    choice
}

/// Shares of drafts that were right at each depth, given that all above were: learned while decoding, for drafters
/// whose every level costs a forward.
#[derive(Clone, Debug)]
pub struct Depths(Vec<f64>);
impl Depths {
    const PRIOR: f64 = 0.7;

    /// Nothing is known of any of `levels` depths.
    pub fn new(levels: usize) -> Self {
        Depths(vec![Self::PRIOR; levels])
    }
    /// What all requests of a strategy in this engine have learned, greedy and sampled ones apart: a draft that does not
    /// pay is found out once. Only for verifiers whose tokens do not depend on the draft, or a request's tokens would
    /// depend on the requests before it.
    pub fn shared(seq: &Sequence, strategy: &'static str, levels: usize) -> Rc<RefCell<Depths>> {
        let all = seq.resource(Shared::default);
        let key = (strategy, levels, seq.warp().is_greedy());
        let mut all = all.borrow_mut();
        all.entry(key).or_insert_with(|| Rc::new(RefCell::new(Depths::new(levels)))).clone()
    }
    /// Of `drafted` levels, the first `accepted` were right. Without a draft, what is known fades, so that a draft that
    /// shrank to nothing is tried again one day.
    pub fn learn(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            self.0.iter_mut().for_each(|share| *share += 0.02 * (Self::PRIOR - *share));
        }
        for (depth, share) in self.0.iter_mut().enumerate().take(drafted.min(accepted + 1)) {
            *share += 0.1 * (f64::from(u8::from(depth < accepted)) - *share);
        }
    }
    /// Expected tokens of a step with 0, 1, 2, ... levels of draft.
    pub fn tokens(&self) -> impl Iterator<Item = f64> + '_ {
        let mut state = (1.0, 1.0);
        std::iter::once(1.0).chain(self.0.iter().map(move |share| {
            state.1 *= share;
            state.0 += state.1;
            state.0
        }))
    }
}

type Shared = BTreeMap<(&'static str, usize, bool), Rc<RefCell<Depths>>>;

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pay, by trying every size.
    fn most(others: usize, cost: impl Fn(usize) -> f64, chances: impl IntoIterator<Item = f64>) -> usize {
        let mut tokens = 1.0;
        let drafts = chances.into_iter().enumerate().map(|(i, chance)| {
            tokens += chance;
            (tokens, cost(i + 2))
        });
        best(others, std::iter::once((1.0, cost(1))).chain(drafts))
    }

    #[test]
    fn drafts_shrink_to_what_pays() {
        fn pay(others: usize, cost: impl Fn(usize) -> f64, chances: impl AsRef<[f64]>) -> usize {
            let chances = chances.as_ref();
            paying(others, cost, chances.len(), chances.iter(), |chance| **chance).len()
        }
        let free = |_: usize| 1.0;
        let dear = |rows: usize| rows as f64;
        let steps = |rows: usize| if rows <= 4 { 1.0 } else { 3.0 };
        assert_eq!(pay(0, free, [0.5, 0.25, 0.1]), 3);
        assert_eq!(pay(0, dear, [0.9, 0.8, 0.7]), 0, "rows at full price never pay");
        assert_eq!(pay(0, steps, [0.5; 7]), 3, "as many as are free");
        assert_eq!(pay(0, free, [0.0, 0.0]), 0, "no chance, no draft");
        assert_eq!(pay(0, free, []), 0);
        let beside = |rows: usize| (20 + rows) as f64 / 21.0;
        assert_eq!(pay(20, beside, [0.9, 0.8]), 0, "a row that slows twenty others is not free");
    }

    #[test]
    fn what_pays_is_found_without_asking_for_the_rest() {
        use omnidecode_core::noise::{mix, unit};
        let mut spared = 0;
        for case in 0..400u64 {
            let draw = |i: u64| unit(mix(case * 1000 + i));
            let mut chances: Vec<f64> = (0..40).map(|i| draw(i).powi(3)).collect();
            chances.sort_by(|a, b| b.total_cmp(a));
            // Rows cost nothing, or something, from place to place.
            let steps: Vec<f64> = (0..50).map(|i| (draw(100 + i) - 0.4).max(0.0) * draw(99)).collect();
            let cost = |rows: usize| 1.0 + steps[..rows].iter().sum::<f64>();
            let others = (draw(98) * 4.0) as usize;
            let mut asked = 0;
            let kept = paying(others, cost, chances.len(), chances.iter().inspect(|_| asked += 1), |c| **c);
            assert_eq!(kept.len(), most(others, cost, chances.iter().copied()), "case {case}");
            spared += chances.len() - asked;
        }
        assert!(spared > 4000, "{spared} of 16000");
    }

    #[test]
    fn depths_are_learned_and_forgotten() {
        let mut depths = Depths::new(3);
        (0..200).for_each(|_| depths.learn(3, 1));
        let tokens: Vec<f64> = depths.tokens().collect();
        assert!((tokens[1] - 2.0).abs() < 1e-6 && (tokens[2] - 2.0).abs() < 1e-6, "{tokens:?}");
        assert_eq!(tokens.len(), 4);
        (0..500).for_each(|_| depths.learn(0, 0));
        assert!((depths.tokens().nth(1).unwrap() - 1.7).abs() < 1e-3);
    }
}
