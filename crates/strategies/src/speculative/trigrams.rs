//! What follows two tokens, and how often: counted on a corpus, sharpened while decoding.
use omnidecode_core::Token;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::rc::Rc;

/// Successors with their weights, heaviest first, ties by lower id.
type Row = Vec<(Token, f32)>;

/// A table of tri-grams. What is learned lies over a corpus that is shared and never written.
#[derive(Clone, Debug, Default)]
pub struct Trigrams {
    corpus: Rc<HashMap<(Token, Token), Row>>,
    learned: HashMap<(Token, Token), (u64, Row)>,
    clock: u64,
}

impl Trigrams {
    /// Successors kept of each pair of a corpus.
    pub const KEPT: usize = 12;
    /// No weight grows beyond this.
    pub const HEAVIEST: f32 = 3.0;
    /// Pairs that are learned before the half that was used longest ago is forgotten.
    pub const CAPACITY: usize = 1 << 18;
    const MAGIC: &'static [u8; 8] = b"trigram1";

    /// Count texts: the weight of a successor is its share among those of its pair; of these the heaviest are kept.
    pub fn count<'a>(texts: impl IntoIterator<Item = &'a [Token]>) -> Trigrams {
        let mut counts: HashMap<(Token, Token), HashMap<Token, u32>> = HashMap::new();
        for text in texts {
            for w in text.windows(3) {
                *counts.entry((w[0], w[1])).or_default().entry(w[2]).or_default() += 1;
            }
        }
        let share = |(pair, next): (_, HashMap<Token, u32>)| {
            let total: u32 = next.values().sum();
            let mut row: Row = next.into_iter().map(|(t, n)| (t, n as f32 / total as f32)).collect();
            row.sort_by(heavier);
            row.truncate(Self::KEPT);
            (pair, row)
        };
        Trigrams { corpus: Rc::new(counts.into_iter().map(share).collect()), ..Trigrams::default() }
    }
    /// Successors of a pair, heaviest first.
    pub fn after(&self, pair: (Token, Token)) -> &[(Token, f32)] {
        match self.learned.get(&pair) {
            Some((_, row)) => row,
            None => self.corpus.get(&pair).map_or(&[], |row| row),
        }
    }
    /// The weight of a tri-gram, 0 when it is unknown.
    pub fn weight(&self, pair: (Token, Token), token: Token) -> f32 {
        self.after(pair).iter().find(|n| n.0 == token).map_or(0.0, |n| n.1)
    }
    /// Every tri-gram of a text becomes heavier by `step`.
    pub fn learn(&mut self, text: &[Token], step: f32) {
        for w in text.windows(3) {
            self.clock += 1;
            let pair = (w[0], w[1]);
            let corpus = &self.corpus;
            let (used, row) =
                self.learned.entry(pair).or_insert_with(|| (0, corpus.get(&pair).cloned().unwrap_or_default()));
            *used = self.clock;
            match row.iter_mut().find(|n| n.0 == w[2]) {
                Some(found) => found.1 = (found.1 + step).min(Self::HEAVIEST),
                None => row.push((w[2], step.min(Self::HEAVIEST))),
            }
            row.sort_by(heavier);
        }
        if self.learned.len() > Self::CAPACITY {
            let mut times: Vec<u64> = self.learned.values().map(|l| l.0).collect();
            let middle = times.len() / 2;
            let cut = *times.select_nth_unstable(middle).1;
            self.learned.retain(|_, l| l.0 > cut);
        }
    }
    /// Forget what was learned; the corpus stays.
    pub fn reset(&mut self) {
        self.learned.clear();
    }
    /// Pairs whose successors are known.
    pub fn len(&self) -> usize {
        self.corpus.len() + self.learned.keys().filter(|p| !self.corpus.contains_key(p)).count()
    }
    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.corpus.is_empty() && self.learned.is_empty()
    }

    /// Write all that is known, pair after pair: little-endian words, as `read` takes them.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, mut to: impl Write) -> Result<()> {
        let mut rows: BTreeMap<_, &[(Token, f32)]> = self.corpus.iter().map(|(p, r)| (*p, &r[..])).collect();
        rows.extend(self.learned.iter().map(|(p, (_, r))| (*p, &r[..])));
        to.write_all(Self::MAGIC)?;
        to.write_all(&(rows.len() as u64).to_le_bytes())?;
        for ((a, b), row) in rows {
            for word in [a, b, row.len() as u32] {
                to.write_all(&word.to_le_bytes())?;
            }
            for (token, weight) in row {
                to.write_all(&token.to_le_bytes())?;
                to.write_all(&weight.to_le_bytes())?;
            }
        }
        Ok(())
    }
    /// Read a table as a corpus: of each pair the heaviest successors.
    ///
    /// # Errors
    /// Those of the reader; [`ErrorKind::InvalidData`] for anything but what `write` writes.
    pub fn read(mut from: impl Read) -> Result<Trigrams> {
        let bad = |m: &str| Error::new(ErrorKind::InvalidData, format!("not a table of tri-grams: {m}"));
        let mut magic = [0; 8];
        from.read_exact(&mut magic)?;
        if &magic != Self::MAGIC {
            return Err(bad("it begins otherwise"));
        }
        let mut word = [0; 4];
        let mut next = || from.read_exact(&mut word).map(|()| u32::from_le_bytes(word));
        let count = u64::from(next()?) | u64::from(next()?) << 32;
        let mut corpus = HashMap::new();
        for _ in 0..count {
            let (pair, length) = ((next()?, next()?), next()?);
            let mut row = Row::new();
            for _ in 0..length {
                let (token, weight) = (next()?, f32::from_bits(next()?));
                if !(weight > 0.0 && weight <= Self::HEAVIEST) {
                    return Err(bad("a weight is outside (0, 3]"));
                }
                row.push((token, weight));
            }
            row.sort_by(heavier);
            row.truncate(Self::KEPT);
            corpus.insert(pair, row);
        }
        Ok(Trigrams { corpus: Rc::new(corpus), ..Trigrams::default() })
    }
}

fn heavier(a: &(Token, f32), b: &(Token, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The tables of an engine, by the corpus they lie on; "" is none.
#[derive(Default)]
pub(super) struct Tables(BTreeMap<String, Rc<RefCell<Trigrams>>>);
impl Tables {
    /// The shared table over a corpus, or one of its own that has learned nothing.
    pub fn get(&mut self, corpus: Option<&str>, shared: bool) -> Result<Rc<RefCell<Trigrams>>> {
        let path = corpus.unwrap_or("");
        if !self.0.contains_key(path) {
            let table = match corpus {
                Some(path) => Trigrams::read(std::io::BufReader::new(std::fs::File::open(path)?))?,
                None => Trigrams::default(),
            };
            self.0.insert(path.to_owned(), Rc::new(RefCell::new(table)));
        }
        let table = &self.0[path];
        if shared {
            return Ok(table.clone());
        }
        let corpus = table.borrow().corpus.clone();
        Ok(Rc::new(RefCell::new(Trigrams { corpus, ..Trigrams::default() })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sheet 16, contract 8.
    #[test]
    fn counts_are_shares_and_the_heaviest_stay() {
        let text: Vec<Token> = (0..20).flat_map(|c| [1, 2, 100 + c]).collect();
        let table = Trigrams::count([&text[..], &[1, 2, 100, 1, 2, 100]]);
        let row = table.after((1, 2));
        assert_eq!(row.len(), Trigrams::KEPT);
        assert_eq!(row[0], (100, 3.0 / 22.0));
        assert!(row.is_sorted_by(|a, b| a.1 > b.1 || (a.1 == b.1 && a.0 < b.0)));
        let few = Trigrams::count([&[5, 6, 7, 5, 6, 8, 5, 6, 7][..]]);
        assert_eq!(few.after((5, 6)), [(7, 2.0 / 3.0), (8, 1.0 / 3.0)]);
        assert!((few.after((5, 6)).iter().map(|n| n.1).sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(few.after((6, 5)).is_empty());
    }

    /// Sheet 16, contract 2.
    #[test]
    fn weights_grow_by_occurrences() {
        let mut table = Trigrams::count([&[5, 6, 7, 5, 6, 8, 5, 6, 7][..]]);
        let text = [5, 6, 7, 5, 6, 7, 5, 6, 9];
        table.learn(&text, 0.04);
        assert!((table.weight((5, 6), 7) - (2.0 / 3.0 + 0.08)).abs() < 1e-6);
        assert!((table.weight((5, 6), 8) - 1.0 / 3.0).abs() < 1e-6, "others are unchanged");
        assert!((table.weight((5, 6), 9) - 0.04).abs() < 1e-6);
        (0..200).for_each(|_| table.learn(&text, 0.04));
        assert_eq!(table.weight((5, 6), 7), 3.0, "no more than the cap");
        for token in 0..30 {
            table.learn(&[5, 6, 100 + token], 0.04);
        }
        assert!(table.after((5, 6)).len() > Trigrams::KEPT, "what is learned may exceed the cut");
        table.reset();
        assert_eq!(table.weight((5, 6), 9), 0.0);
        assert!((table.weight((5, 6), 7) - 2.0 / 3.0).abs() < 1e-6, "the corpus stays");
    }

    #[test]
    fn tables_are_written_and_read() {
        let mut table = Trigrams::count([&[5, 6, 7, 5, 6, 8, 5, 6, 7][..]]);
        table.learn(&[5, 6, 9, 1], 0.04);
        let mut bytes = Vec::new();
        table.write(&mut bytes).expect("memory");
        let again = Trigrams::read(&bytes[..]).expect("what was written");
        for pair in [(5, 6), (6, 7), (6, 9), (7, 5)] {
            assert_eq!(again.after(pair), table.after(pair));
        }
        assert_eq!(again.len(), table.len());
        for cut in 0..bytes.len() {
            assert!(Trigrams::read(&bytes[..cut]).is_err(), "{cut} bytes of {}", bytes.len());
        }
        bytes[40] = 0xFF;
        bytes[8] = 0xFF;
        assert!(Trigrams::read(&bytes[..]).is_err());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = Trigrams::default();
        let text: Vec<Token> = (0..Trigrams::CAPACITY as u32 + 10).collect();
        table.learn(&text, 0.04);
        assert!(table.len() <= Trigrams::CAPACITY);
        let last = text.len() - 1;
        assert!(table.weight((text[last - 2], text[last - 1]), text[last]) > 0.0, "what is recent stays");
        assert_eq!(table.weight((0, 1), 2), 0.0, "what is old goes");
    }
}
