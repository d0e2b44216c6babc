//! What followed the same words before: the n-grams of a text, by where they ended last (sheet 00 §11).
use omnidecode_core::Token;
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// Where each n-gram of a text ended last, so that a look-up does not walk the text.
#[derive(Clone, Debug)]
pub struct Index {
    lengths: RangeInclusive<usize>,
    ends: HashMap<Vec<Token>, usize>,
    seen: usize,
}
impl Index {
    /// Of n-grams of these lengths, at least 1. An empty range knows nothing.
    pub fn new(lengths: RangeInclusive<usize>) -> Index {
        Index { lengths, ends: HashMap::new(), seen: 0 }
    }
    /// Tokens of the longest n-grams; 0 where there are none.
    pub fn longest(&self) -> usize {
        if self.lengths.is_empty() { 0 } else { *self.lengths.end() }
    }
    /// Take in what was appended to the text: every n-gram that has a token after it.
    pub fn read(&mut self, text: &[Token]) {
        for end in self.seen.max(1)..text.len() {
            for n in self.lengths.clone().take_while(|&n| n <= end) {
                self.ends.insert(text[end - n..end].to_vec(), end);
            }
        }
        self.seen = text.len();
    }
    /// The n-grams at the end of `tail` that the text holds, shortest first: length, and the place in the text of what
    /// followed the last of them.
    pub fn after<'a>(&'a self, tail: &'a [Token]) -> impl Iterator<Item = (usize, usize)> + 'a {
        // Where an n-gram is unknown, longer ones that end with it are.
        let found = |n: usize| Some((n, *self.ends.get(&tail[tail.len().checked_sub(n)?..])?));
        self.lengths.clone().map_while(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_match_at_its_latest_place() {
        let text: Vec<Token> = (0..400u32).map(|i| (i * i * 7 + i / 3) % 5).collect();
        for (shortest, longest) in [(1, 3), (2, 5), (1, 1), (4, 3)] {
            let lengths = shortest..=longest;
            let mut index = Index::new(lengths.clone());
            for length in (1..text.len()).step_by(3) {
                let text = &text[..length];
                index.read(text);
                let naive = lengths.clone().filter(|&n| n <= length).filter_map(|n| {
                    let tail = &text[length - n..];
                    (n..length).rev().find(|&end| text[end - n..end] == *tail).map(|end| (n, end))
                });
                assert!(index.after(text).eq(naive), "{lengths:?} after {length} tokens");
            }
        }
    }
}
