//! How large a draft pays (law 5): the size at which expected tokens a second are most, by the measured cost of rows.
use omnidecode_engine::Sequence;

/// The number of drafted rows to run, out of candidates whose probabilities of being accepted are `chances`, best
/// first. It maximises (others + 1 + sum of chances) / cost(1 + rows), where the other requests of the batch count a
/// token for each of their rows: a draft that slows them down must earn that. 0 when no draft pays.
pub fn worth(seq: &Sequence, chances: impl IntoIterator<Item = f64>) -> usize {
    most(seq.others(), |rows| seq.cost(rows), chances)
}

fn most(others: usize, cost: impl Fn(usize) -> f64, chances: impl IntoIterator<Item = f64>) -> usize {
    let mut tokens = 1.0 + others as f64;
    let (mut best, mut size) = (tokens / cost(1).max(1e-9), 0);
    for (i, chance) in chances.into_iter().enumerate() {
        tokens += chance;
        let rate = tokens / cost(i + 2).max(1e-9);
        // A tie goes to fewer rows: they leave room for other requests.
        if rate > best * (1.0 + 1e-9) {
            (best, size) = (rate, i + 1);
        }
    }
    size
}

#[cfg(test)]
mod tests {
    use super::most;

    #[test]
    fn drafts_shrink_to_what_pays() {
        let free = |_: usize| 1.0;
        let dear = |rows: usize| rows as f64;
        let steps = |rows: usize| if rows <= 4 { 1.0 } else { 3.0 };
        assert_eq!(most(0, free, [0.5, 0.25, 0.1]), 3);
        assert_eq!(most(0, dear, [0.9, 0.8, 0.7]), 0, "rows at full price never pay");
        assert_eq!(most(0, steps, [0.5; 7]), 3, "as many as are free");
        assert_eq!(most(0, free, [0.0, 0.0]), 0, "no chance, no draft");
        assert_eq!(most(0, free, []), 0);
        let beside = |rows: usize| (20 + rows) as f64 / 21.0;
        assert_eq!(most(20, beside, [0.9, 0.8]), 0, "a row that slows twenty others is not free");
    }
}
