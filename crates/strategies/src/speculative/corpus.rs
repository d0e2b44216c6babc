//! Tri-grams counted on texts (sheet 16): what `aded` knows before it has decoded anything, and the file it lies in.
use omnidecode_core::Token;
use std::collections::HashMap;
use std::io::{Error, ErrorKind, Read, Result, Write};

/// Two tokens that follow each other.
pub type Pair = (Token, Token);

/// Counts of tri-grams, text after text.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    trigrams: HashMap<[Token; 3], u32>,
    tokens: u64,
}
impl Counts {
    /// Count a text. Tri-grams do not reach from one text into the next.
    pub fn add(&mut self, text: &[Token]) {
        self.tokens += text.len() as u64;
        for w in text.windows(3) {
            *self.trigrams.entry([w[0], w[1], w[2]]).or_default() += 1;
        }
    }
    /// Tokens that were read.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
    /// The table of what was counted: the weight of a successor is its share among all of its pair. Of these at most
    /// [`Corpus::KEPT`] stay, the heaviest, and none that was seen fewer than `least` times.
    pub fn corpus(&self, least: u32) -> Corpus {
        let mut all: Vec<([Token; 3], u32)> = self.trigrams.iter().map(|(w, n)| (*w, *n)).collect();
        all.sort_unstable();
        let mut corpus = Corpus::default();
        for group in all.chunk_by(|x, y| x.0[..2] == y.0[..2]) {
            let total: f64 = group.iter().map(|g| f64::from(g.1)).sum();
            let kept = group.iter().filter(|g| g.1 >= least);
            let row: Vec<_> = kept.map(|g| (g.0[2], (f64::from(g.1) / total) as f32)).collect();
            corpus.push((group[0].0[0], group[0].0[1]), row);
        }
        corpus
    }
}

/// Successors of pairs of tokens with their weights, heaviest first, ties by lower id. Sorted arrays, in memory as in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Corpus {
    pairs: Vec<Pair>,
    /// Where the successors of each pair end.
    ends: Vec<u32>,
    next: Vec<(Token, f32)>,
}
impl Corpus {
    /// Successors kept of each pair.
    pub const KEPT: usize = 12;
    const MAGIC: &'static [u8; 8] = b"trigram2";

    /// The table of some texts, with nothing left out but by [`Corpus::KEPT`].
    pub fn count<'a>(texts: impl IntoIterator<Item = &'a [Token]>) -> Corpus {
        let mut counts = Counts::default();
        texts.into_iter().for_each(|text| counts.add(text));
        counts.corpus(1)
    }
    /// Pairs come in their order.
    fn push(&mut self, pair: Pair, mut row: Vec<(Token, f32)>) {
        row.sort_by(heavier);
        row.truncate(Self::KEPT);
        if !row.is_empty() {
            self.next.extend(row);
            self.pairs.push(pair);
            self.ends.push(self.next.len() as u32);
        }
    }
    /// Successors of a pair, heaviest first.
    pub fn after(&self, pair: Pair) -> &[(Token, f32)] {
        let Ok(at) = self.pairs.binary_search(&pair) else { return &[] };
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.next[start as usize..self.ends[at] as usize]
    }
    /// Pairs whose successors are known.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }
    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
    /// All successors of all pairs.
    pub fn trigrams(&self) -> usize {
        self.next.len()
    }

    /// Write the table of a model with `vocab` tokens: little-endian words, as [`Corpus::read`] takes them.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, vocab: usize, mut to: impl Write) -> Result<()> {
        to.write_all(Self::MAGIC)?;
        let sizes = [vocab as u32, self.pairs.len() as u32, self.next.len() as u32];
        let pairs = self.pairs.iter().flat_map(|p| [p.0, p.1]);
        let next = self.next.iter().flat_map(|n| [n.0, n.1.to_bits()]);
        for word in sizes.into_iter().chain(pairs).chain(self.ends.iter().copied()).chain(next) {
            to.write_all(&word.to_le_bytes())?;
        }
        Ok(())
    }
    /// Read a table that was counted for a model with `vocab` tokens.
    ///
    /// # Errors
    /// Those of the reader; [`ErrorKind::InvalidData`] for anything but what [`Corpus::write`] writes, and for a table of
    /// another vocabulary.
    pub fn read(vocab: usize, mut from: impl Read) -> Result<Corpus> {
        let bad = |what: String| Error::new(ErrorKind::InvalidData, what);
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let Some(rest) = bytes.strip_prefix(Self::MAGIC) else {
            return Err(bad("not a table of tri-grams; `omnidecode index` writes one".into()));
        };
        let broken = || bad("a table of tri-grams that is broken; write it again with `omnidecode index`".into());
        let (words, odd) = rest.as_chunks::<4>();
        let words: Vec<u32> = words.iter().map(|w| u32::from_le_bytes(*w)).collect();
        let [counted, pairs, next, words @ ..] = &words[..] else { return Err(broken()) };
        if *counted as usize != vocab {
            return Err(bad(format!(
                "a table counted for {counted} tokens, where the model has {vocab}: expected one of the same tokenizer"
            )));
        }
        let (pairs, next) = (*pairs as usize, *next as usize);
        if !odd.is_empty() || words.len() != 3 * pairs + 2 * next {
            return Err(broken());
        }
        let (pair_words, words) = words.split_at(2 * pairs);
        let (ends, next_words) = words.split_at(pairs);
        let corpus = Corpus {
            pairs: pair_words.as_chunks::<2>().0.iter().map(|p| (p[0], p[1])).collect(),
            ends: ends.to_vec(),
            next: next_words.as_chunks::<2>().0.iter().map(|n| (n[0], f32::from_bits(n[1]))).collect(),
        };
        let sorted = corpus.pairs.is_sorted_by(|a, b| a < b) && corpus.ends.is_sorted_by(|a, b| a < b);
        let whole = corpus.ends.first().is_none_or(|e| *e > 0) && corpus.ends.last().map_or(0, |e| *e as usize) == next;
        let sane = corpus.next.iter().all(|n| (n.0 as usize) < vocab && n.1 > 0.0 && n.1 <= 1.0);
        if !(sorted && whole && sane) {
            return Err(broken());
        }
        Ok(corpus)
    }
}

/// The order of successors.
pub(super) fn heavier(a: &(Token, f32), b: &(Token, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sheet 16, contract 8.
    #[test]
    fn counts_are_shares_and_the_heaviest_stay() {
        let text: Vec<Token> = (0..20).flat_map(|c| [1, 2, 100 + c]).collect();
        let table = Corpus::count([&text[..], &[1, 2, 100, 1, 2, 100]]);
        let row = table.after((1, 2));
        assert_eq!(row.len(), Corpus::KEPT);
        assert_eq!(row[0], (100, 3.0 / 22.0));
        assert!(row.is_sorted_by(|a, b| a.1 > b.1 || (a.1 == b.1 && a.0 < b.0)));
        let few = Corpus::count([&[5, 6, 7, 5, 6, 8, 5, 6, 7][..]]);
        assert_eq!(few.after((5, 6)), [(7, 2.0 / 3.0), (8, 1.0 / 3.0)]);
        assert!((few.after((5, 6)).iter().map(|n| n.1).sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(few.after((6, 5)).is_empty());
        assert!(Corpus::count([&[1, 2][..], &[3, 4]]).is_empty(), "texts are apart");
    }

    #[test]
    fn what_is_rare_is_left_out() {
        let mut counts = Counts::default();
        counts.add(&[5, 6, 7, 5, 6, 8, 5, 6, 7]);
        let table = counts.corpus(2);
        assert_eq!(table.after((5, 6)), [(7, 2.0 / 3.0)], "a share of all that were counted");
        assert_eq!((table.len(), table.trigrams(), counts.tokens()), (1, 1, 9));
    }

    #[test]
    fn tables_are_written_and_read() {
        let table = Corpus::count([&[5, 6, 7, 5, 6, 8, 5, 6, 7][..]]);
        let mut bytes = Vec::new();
        table.write(9, &mut bytes).expect("memory");
        assert_eq!(Corpus::read(9, &bytes[..]).expect("what was written"), table);
        let other = Corpus::read(10, &bytes[..]).expect_err("another vocabulary");
        assert!(other.to_string().contains("9 tokens") && other.to_string().contains("10"), "{other}");
        for cut in 0..bytes.len() {
            assert!(Corpus::read(9, &bytes[..cut]).is_err(), "{cut} bytes of {}", bytes.len());
        }
        for at in (0..bytes.len() - 4).step_by(4).filter(|at| ![8, 12, 16].contains(at)) {
            let mut hurt = bytes.clone();
            hurt[at + 3] = 0xFF;
            let found = Corpus::read(9, &hurt[..]);
            // A first token that is larger and still in its order is a table as well.
            assert!(found.is_err() || (20..20 + 8 * table.len()).contains(&at), "byte {at}");
        }
        let mut none = Vec::new();
        Corpus::default().write(9, &mut none).expect("memory");
        assert!(Corpus::read(9, &none[..]).expect("an empty table").is_empty());
    }
}
