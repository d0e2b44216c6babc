//! How often words follow words: counts of n-grams of several lengths over token ids.
use omnidecode_core::Token;
use std::collections::{BTreeMap, HashMap};
use std::io::{Error, ErrorKind, Result};
use std::rc::Rc;

/// How often a context was followed at all, and by which tokens.
type Followers = (u32, BTreeMap<Token, u32>);

/// Counts of what follows each context of up to `longest - 1` tokens.
#[derive(Clone, Debug, Default)]
pub struct NGrams {
    longest: usize,
    after: HashMap<Box<[Token]>, Followers>,
}

impl NGrams {
    /// Nothing counted; n-grams of 2 to `longest` tokens will be.
    pub fn new(longest: usize) -> NGrams {
        NGrams { longest, after: HashMap::new() }
    }
    /// Count a text.
    pub fn count(&mut self, text: &[Token]) {
        for n in 2..=self.longest {
            for gram in text.windows(n) {
                let (context, token) = (&gram[..n - 1], gram[n - 1]);
                if !self.after.contains_key(context) {
                    self.after.insert(context.into(), Default::default());
                }
                if let Some((total, next)) = self.after.get_mut(context) {
                    *total += 1;
                    *next.entry(token).or_default() += 1;
                }
            }
        }
    }
    /// Share of `token` among what followed this context; `None` when the context is unknown.
    pub fn share(&self, context: &[Token], token: Token) -> Option<f64> {
        let (total, next) = self.after.get(context)?;
        Some(f64::from(next.get(&token).copied().unwrap_or(0)) / f64::from(*total))
    }
    /// Contexts that are known.
    pub fn len(&self) -> usize {
        self.after.len()
    }
    /// Nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.after.is_empty()
    }
    /// Count a file of token ids: 32-bit little-endian words, texts set apart by the largest word.
    ///
    /// # Errors
    /// Those of reading; [`ErrorKind::InvalidData`] when the length is no multiple of four.
    pub fn read(path: &str, longest: usize) -> Result<NGrams> {
        let bytes = std::fs::read(path)?;
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(Error::new(ErrorKind::InvalidData, format!("{} bytes are no 32-bit token ids", bytes.len())));
        }
        let tokens: Vec<Token> = words.iter().map(|w| Token::from_le_bytes(*w)).collect();
        let mut grams = NGrams::new(longest);
        tokens.split(|&t| t == Token::MAX).for_each(|text| grams.count(text));
        Ok(grams)
    }
}

/// Corpora of an engine, by path and longest n-gram.
#[derive(Default)]
pub(super) struct Corpora(BTreeMap<(String, usize), Rc<NGrams>>);
impl Corpora {
    /// The counts of a file, made once.
    pub fn get(&mut self, path: &str, longest: usize) -> Result<Rc<NGrams>> {
        if let Some(found) = self.0.get(&(path.to_owned(), longest)) {
            return Ok(found.clone());
        }
        let read = Rc::new(NGrams::read(path, longest)?);
        self.0.insert((path.to_owned(), longest), read.clone());
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sheet 44, contract 8.
    #[test]
    fn shares_are_those_of_a_brute_force_count() {
        let text: Vec<Token> = (0..300u32).map(|i| (i * i * 7 + i / 3) % 5).collect();
        let mut grams = NGrams::new(4);
        grams.count(&text);
        for n in 2..=4usize {
            for context in text.windows(n - 1) {
                let seen: Vec<Token> = text.windows(n).filter(|w| w[..n - 1] == *context).map(|w| w[n - 1]).collect();
                if seen.is_empty() {
                    continue;
                }
                let mut sum = 0.0;
                for token in 0..5 {
                    let share = grams.share(context, token).expect("seen");
                    let brute = seen.iter().filter(|&&t| t == token).count() as f64 / seen.len() as f64;
                    assert!((share - brute).abs() < 1e-12);
                    sum += share;
                }
                assert!((sum - 1.0).abs() < 1e-12);
            }
        }
        assert_eq!(grams.share(&[9], 1), None);
    }

    #[test]
    fn files_of_ids() {
        let place = std::env::temp_dir().join(format!("omnidecode-ngrams-{}", std::process::id()));
        let words = [1u32, 2, 3, u32::MAX, 3, 1, 2];
        std::fs::write(&place, words.map(u32::to_le_bytes).concat()).expect("written");
        let grams = NGrams::read(place.to_str().expect("a name"), 3).expect("read");
        assert_eq!(grams.share(&[1], 2), Some(1.0));
        assert_eq!(grams.share(&[3], 1), Some(1.0));
        assert_eq!(grams.share(&[2, 3], 3), None, "no n-gram crosses texts");
        std::fs::write(&place, [1, 2, 3]).expect("written");
        assert!(NGrams::read(place.to_str().expect("a name"), 3).is_err());
        std::fs::remove_file(&place).expect("removed");
    }
}
