//! Listwise reranking around single windows (sheet 01): which windows slide over a list, the question asked of one, the
//! identifiers, and the order read off a generated answer.
use crate::companions::Vocabulary;
use omnidecode_core::Token;
use std::ops::Range;

/// Passages that one window can name: A to Z.
pub const MOST: usize = 26;

/// Windows over a list of `n`, the last places first; each starts `step` before the one it follows. Their number is
/// 1 + ceil((n - window) / step), and 1 for n up to the window.
///
/// # Errors
/// When the step is not in 1..=window, or the window holds more than [`MOST`].
pub fn windows(n: usize, window: usize, step: usize) -> Result<Vec<Range<usize>>, String> {
    if step == 0 || step > window || window > MOST {
        return Err(format!("a window of {window} with step {step}: expected 1 <= step <= window <= {MOST}"));
    }
    let mut found = Vec::new();
    let mut end = n;
    loop {
        let begin = end.saturating_sub(window);
        found.push(begin..end);
        if begin == 0 {
            return Ok(found);
        }
        end -= step;
    }
}

/// Identifier of a passage.
///
/// # Panics
/// From [`MOST`] on.
pub fn letter(i: usize) -> char {
    assert!(i < MOST, "passage {i} of a window: at most {MOST}");
    char::from(b'A' + i as u8)
}

/// The tokens of the first `n` identifiers behind an opening bracket.
///
/// # Errors
/// When one of them is not a single token there: this tokenizer cannot be asked so.
pub fn labels(vocabulary: &dyn Vocabulary, n: usize) -> Result<Vec<Token>, String> {
    if n > MOST {
        return Err(format!("{n} passages in a window: at most {MOST}"));
    }
    let bracket = vocabulary.encode("[");
    (0..n)
        .map(|i| {
            let tokens = vocabulary.encode(&format!("[{}", letter(i)));
            match tokens.strip_prefix(bracket.as_slice()) {
                Some(&[label]) => Ok(label),
                _ => Err(format!(
                    "`[{}` is {} tokens, `[` is {}: one more is expected",
                    letter(i),
                    tokens.len(),
                    bracket.len()
                )),
            }
        })
        .collect()
}

/// A passage as it is shown: at most so many words, and nothing in it that looks like an identifier.
pub fn passage(text: &str, words: usize) -> String {
    let mut shown: String = text.split_whitespace().take(words).collect::<Vec<_>>().join(" ");
    let mut from = 0;
    while let Some(open) = shown[from..].find('[').map(|at| from + at) {
        let inside = shown[open + 1..].find(|c: char| !c.is_ascii_alphabetic()).map(|at| open + 1 + at);
        match inside {
            Some(close) if close > open + 1 && shown[close..].starts_with(']') => {
                shown.replace_range(close..close + 1, ")");
                shown.replace_range(open..open + 1, "(");
                from = close + 1;
            }
            _ => from = open + 1,
        }
    }
    shown
}

/// The question about one window: what stands before the passages is alike for all windows of a query, so that it is
/// prefilled once. The assistant's turn begins with `[`.
pub fn question(query: &str, passages: &[&str], words: usize) -> String {
    let n = passages.len();
    let mut text = format!(
        "Rank passages by how relevant they are to this search query: {query}\nEach passage has a letter in brackets.\n\n"
    );
    for (i, one) in passages.iter().enumerate() {
        text.push_str(&format!("[{}] {}\n\n", letter(i), passage(one, words)));
    }
    let example = if n > 3 { "[D] > [B] > [A]" } else { "[B] > [A]" };
    text.push_str(&format!(
        "Search query: {query}\nRank all {n} passages, the most relevant one first, as letters in brackets, such as {example}, \
         and write nothing else."
    ));
    text
}

/// The order that a generated answer gives: its letters in their order, each once, then those that are missing in their
/// old order. Always a permutation of `0..n`.
pub fn order(answer: &str, n: usize) -> Vec<usize> {
    let mut order = Vec::with_capacity(n);
    let mut take = |i: usize| {
        if i < n && !order.contains(&i) {
            order.push(i);
        }
    };
    for part in answer.split('[').skip(1) {
        let mut chars = part.chars();
        if let (Some(c @ 'A'..='Z'), Some(']')) = (chars.next(), chars.next()) {
            take((c as u8 - b'A') as usize);
        }
    }
    (0..n).for_each(take);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_list() {
        for n in 0..70 {
            for window in 1..=MOST {
                for step in 1..=window {
                    let found = windows(n, window, step).expect("fits");
                    let expected = if n <= window { 1 } else { 1 + (n - window).div_ceil(step) };
                    assert_eq!(found.len(), expected, "{n} {window} {step}");
                    assert_eq!((found[0].end, found[found.len() - 1].start), (n, 0));
                    assert!(found.iter().all(|w| w.len() <= window));
                    assert!(found.windows(2).all(|w| w[1].end >= w[0].start), "no place is skipped");
                }
            }
        }
        assert_eq!(windows(100, 20, 10).expect("fits").len(), 9);
        assert_eq!(windows(10, 20, 10).expect("fits"), std::slice::from_ref(&(0..10)));
        assert!(windows(5, 20, 0).is_err() && windows(5, 10, 11).is_err() && windows(5, 27, 3).is_err());
    }

    /// Contract 8: the best item climbs to the top, and window - step items ride along.
    #[test]
    fn the_best_bubble_up() {
        for seed in 0..50u64 {
            let mut list: Vec<u64> = (0..40).map(|i| omnidecode_core::noise::pair(seed, i)).collect();
            let (mut before, mut sorted) = (list.clone(), list.clone());
            for w in windows(40, 10, 6).expect("fits") {
                list[w].sort_unstable_by(|a, b| b.cmp(a));
            }
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            assert_eq!(list[..4], sorted[..4]);
            before.sort_unstable();
            list.sort_unstable();
            assert_eq!(before, list, "nothing is lost");
        }
    }

    #[test]
    fn answers_are_read_as_permutations() {
        assert_eq!(order("[C] > [A] > [B]", 3), [2, 0, 1]);
        assert_eq!(order("[C] > [C] > [Z] [b] [AB] A", 4), [2, 0, 1, 3]);
        assert_eq!(order("", 3), [0, 1, 2]);
        assert_eq!(order("[", 2), [0, 1]);
    }

    #[test]
    fn passages_hold_no_identifiers() {
        assert_eq!(passage("a  [B] c [12] [é] [x", 9), "a (B) c [12] [é] [x");
        assert_eq!(passage("[[AB]] [] [A]]", 9), "[(AB)] [] (A)]");
        assert_eq!(passage("one two three", 2), "one two");
        let text = question("q", &["x [A] y", "z"], 10);
        assert!(text.contains("[A] x (A) y\n") && text.contains("[B] z") && text.contains("all 2 passages"));
        let (one, two) = (question("q", &["x"], 10), question("q", &["y"], 10));
        let shared = one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b).count();
        assert!(one[..shared].ends_with("[A] "), "the head is shared");
    }
}
