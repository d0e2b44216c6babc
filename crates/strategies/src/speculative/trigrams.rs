//! What follows two tokens: what was counted on a corpus, and over it what is learned while decoding (sheet 16); and how
//! far that is to be trusted.
use super::corpus::{Corpus, Pair, heavier};
use omnidecode_core::Token;
use omnidecode_core::tree::{DraftTree, ROOT};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::Result;
use std::rc::Rc;

/// A table of tri-grams. What is learned lies over a corpus that is shared and never written.
#[derive(Clone, Debug, Default)]
pub struct Trigrams {
    corpus: Rc<Corpus>,
    learned: HashMap<Pair, (u64, Vec<(Token, f32)>)>,
    clock: u64,
    backoff: bool,
}
/// Stands for every first token of a pair.
const ANY: Token = Token::MAX;

impl Trigrams {
    /// No weight grows beyond this.
    pub const HEAVIEST: f32 = 3.0;
    /// Pairs that are learned before the half that was used longest ago is forgotten.
    pub const CAPACITY: usize = 1 << 18;
    /// Successors that are learned of a token alone.
    const WIDEST: usize = 48;

    /// Nothing learned yet, over a corpus.
    pub fn over(corpus: Rc<Corpus>) -> Trigrams {
        Trigrams { corpus, ..Trigrams::default() }
    }
    /// As it is, but for a pair that is unknown what was learned of its second token answers.
    pub fn with_backoff(self, backoff: bool) -> Trigrams {
        Trigrams { backoff, ..self }
    }
    /// Successors of a pair, heaviest first. Of those of a pair's second token alone, no more than a corpus keeps of a pair.
    pub fn after(&self, pair: Pair) -> &[(Token, f32)] {
        let known = self.after_both(pair);
        if !known.is_empty() || !self.backoff {
            return known;
        }
        let row = self.after_both((ANY, pair.1));
        &row[..row.len().min(Corpus::KEPT)]
    }
    fn after_both(&self, pair: Pair) -> &[(Token, f32)] {
        match self.learned.get(&pair) {
            Some((_, row)) => row,
            None => self.corpus.after(pair),
        }
    }
    /// Whether successors of the pair itself are known.
    pub fn knows(&self, pair: Pair) -> bool {
        !self.after_both(pair).is_empty()
    }
    /// The weight of a tri-gram, 0 when it is unknown.
    pub fn weight(&self, pair: Pair, token: Token) -> f32 {
        self.after(pair).iter().find(|n| n.0 == token).map_or(0.0, |n| n.1)
    }
    /// Every tri-gram of a text becomes heavier by `step`.
    pub fn learn(&mut self, text: &[Token], step: f32) {
        for w in text.windows(3) {
            self.add((w[0], w[1]), w[2], step);
            if self.backoff {
                self.add((ANY, w[1]), w[2], step);
            }
        }
        if self.learned.len() > Self::CAPACITY {
            let mut times: Vec<u64> = self.learned.values().map(|l| l.0).collect();
            let middle = times.len() / 2;
            let cut = *times.select_nth_unstable(middle).1;
            self.learned.retain(|_, l| l.0 > cut);
        }
    }
    fn add(&mut self, pair: Pair, token: Token, step: f32) {
        self.clock += 1;
        let corpus = &self.corpus;
        let (used, row) = self.learned.entry(pair).or_insert_with(|| (0, corpus.after(pair).to_vec()));
        *used = self.clock;
        match row.iter_mut().find(|n| n.0 == token) {
            Some(found) => found.1 = (found.1 + step).min(Self::HEAVIEST),
            None => {
                if pair.0 == ANY {
                    row.truncate(Self::WIDEST - 1); // what follows "the" has no end
                }
                row.push((token, step.min(Self::HEAVIEST)));
            }
        }
        row.sort_by(heavier);
    }
    /// Forget what was learned; the corpus stays.
    pub fn reset(&mut self) {
        self.learned.clear();
    }
    /// Pairs whose successors are known.
    pub fn len(&self) -> usize {
        let new = |p: &&Pair| p.0 != ANY && self.corpus.after(**p).is_empty();
        self.corpus.len() + self.learned.keys().filter(new).count()
    }
    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.corpus.is_empty() && self.learned.is_empty()
    }
}

/// How often successors were what the model chose, by their share of their pair's weight and by that weight (what was seen
/// once in a prompt is not what a corpus says), those of pairs and of single tokens apart. Learned at every token, drafted
/// or not, so that a draft that shrank to nothing can come back.
#[derive(Clone, Debug)]
pub struct Odds([[[(f64, f64); SHARES.len() + 1]; Odds::WEIGHTS]; 2]);
/// Bounds of the classes of shares.
const SHARES: [f32; 9] = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.99];

impl Default for Odds {
    /// Half of what the table says.
    fn default() -> Odds {
        let class = |at: usize| {
            let low = if at == 0 { 0.0 } else { SHARES[at - 1] };
            let high = SHARES.get(at).copied().unwrap_or(1.0);
            (Self::PRIOR * 0.25 * f64::from(low + high), Self::PRIOR)
        };
        Odds([[std::array::from_fn(class); Self::WEIGHTS]; 2])
    }
}
impl Odds {
    const PRIOR: f64 = 8.0;
    const WEIGHTS: usize = 8;
    /// Trials after which the older half counts half.
    const MEMORY: f64 = 400.0;

    /// Classes of a weight (octaves from 0.04 on, what a tri-gram gains at a time) and of a share of it.
    fn class(total: f32, weight: f32) -> (usize, usize) {
        let octave = (total / 0.039).log2().clamp(0.0, (Self::WEIGHTS - 1) as f32);
        (octave as usize, SHARES.partition_point(|&bound| bound <= weight / total))
    }
    fn of(&self, table: &Trigrams, pair: Pair, token: Token) -> f64 {
        let row = table.after(pair);
        let total: f32 = row.iter().map(|n| n.1).sum();
        let Some(found) = row.iter().find(|n| n.0 == token) else { return 0.0 };
        let (octave, share) = Self::class(total, found.1);
        let (hits, trials) = self.0[usize::from(table.knows(pair))][octave][share];
        hits / trials
    }
    /// `token` is what followed a pair.
    pub fn learn(&mut self, table: &Trigrams, pair: Pair, token: Token) {
        let row = table.after(pair);
        let total: f32 = row.iter().map(|n| n.1).sum();
        for &(successor, weight) in row {
            let (octave, share) = Self::class(total, weight);
            let (hits, trials) = &mut self.0[usize::from(table.knows(pair))][octave][share];
            *hits += f64::from(u8::from(successor == token));
            *trials += 1.0;
            if *trials > Self::MEMORY {
                (*hits, *trials) = (*hits / 2.0, *trials / 2.0);
            }
        }
    }
    /// The nodes of a tree under `pair` with their chances of being accepted, likeliest first, parents before children.
    pub fn order(&self, table: &Trigrams, pair: Pair, tree: &DraftTree) -> Vec<(u32, f64)> {
        let mut known: Vec<(Pair, f64)> = Vec::with_capacity(tree.len());
        for (&parent, &token) in tree.parents().iter().zip(tree.tokens()) {
            let (pair, above) = if parent == ROOT { (pair, 1.0) } else { known[parent as usize] };
            known.push(((pair.1, token), above * self.of(table, pair, token)));
        }
        let mut order: Vec<(u32, f64)> = known.iter().enumerate().map(|(n, k)| (n as u32, k.1)).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        order
    }
}

/// What requests share: the table, and how far it is to be trusted.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// What follows what.
    pub trigrams: Trigrams,
    /// How often it did.
    pub odds: Odds,
}

/// What an engine holds: corpora by their path, "" is none, and over each what was learned, with backoff and without.
#[derive(Default)]
pub(super) struct Tables(BTreeMap<String, (Rc<Corpus>, [Rc<RefCell<Table>>; 2])>);
impl Tables {
    /// The shared table over a corpus for a model of `vocab` tokens, or one of its own that has learned nothing.
    pub fn get(
        &mut self,
        corpus: Option<&str>,
        vocab: usize,
        backoff: bool,
        shared: bool,
    ) -> Result<Rc<RefCell<Table>>> {
        let path = corpus.unwrap_or("");
        let over = |corpus: &Rc<Corpus>, backoff| {
            let trigrams = Trigrams::over(corpus.clone()).with_backoff(backoff);
            Rc::new(RefCell::new(Table { trigrams, odds: Odds::default() }))
        };
        if !self.0.contains_key(path) {
            let counted = Rc::new(match corpus {
                Some(path) => Corpus::read(vocab, std::fs::File::open(path)?)?,
                None => Corpus::default(),
            });
            let tables = [false, true].map(|backoff| over(&counted, backoff));
            self.0.insert(path.to_owned(), (counted, tables));
        }
        let (counted, tables) = &self.0[path];
        Ok(if shared { tables[usize::from(backoff)].clone() } else { over(counted, backoff) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnidecode_core::tree::Proposal;

    /// Sheet 16, contract 2.
    #[test]
    fn weights_grow_by_occurrences() {
        let mut table = Trigrams::over(Rc::new(Corpus::count([&[5, 6, 7, 5, 6, 8, 5, 6, 7][..]])));
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
        assert!(table.after((5, 6)).len() > Corpus::KEPT, "what is learned may exceed the cut");
        table.reset();
        assert_eq!(table.weight((5, 6), 9), 0.0);
        assert!((table.weight((5, 6), 7) - 2.0 / 3.0).abs() < 1e-6, "the corpus stays");
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

    /// Chances multiply along a path, fall with what was wrong and come back with what was right.
    #[test]
    fn trust_is_learned() {
        let mut table = Trigrams::default();
        table.learn(&[1, 2, 3, 4], 0.04);
        let mut tree = DraftTree::new(Proposal::Deterministic);
        let first = tree.add(ROOT, 3);
        tree.add(first, 4);
        let chances = |odds: &Odds| odds.order(&table, (1, 2), &tree).iter().map(|n| n.1).collect::<Vec<_>>();
        let mut odds = Odds::default();
        let before = chances(&odds);
        assert!((before[1] - before[0] * before[0]).abs() < 1e-12 && before[0] < 0.6);
        (0..50).for_each(|_| odds.learn(&table, (1, 2), 9));
        let worse = chances(&odds);
        assert!(worse[0] < 0.1 && worse[1] < worse[0], "{worse:?}");
        (0..400).for_each(|_| odds.learn(&table, (1, 2), 3));
        assert!(chances(&odds)[0] > 0.85);
        // A weight of another octave is another matter.
        (0..30).for_each(|_| table.learn(&[7, 8, 9], 0.04));
        assert_eq!(odds.order(&table, (7, 8), &DraftTree::chain(vec![9], Proposal::Deterministic))[0].1, before[0]);
        assert_eq!(odds.of(&table, (1, 2), 5), 0.0, "what the table does not hold");
    }

    /// An unknown pair has the successors of its second token, where that was asked for; they are trusted apart.
    #[test]
    fn an_unknown_pair_backs_off() {
        let text = [1, 2, 3, 1, 2, 3, 5, 2, 4];
        let mut paper = Trigrams::default();
        paper.learn(&text, 0.04);
        assert!(paper.after((9, 2)).is_empty() && paper.len() == 5);
        let mut table = Trigrams::default().with_backoff(true);
        table.learn(&text, 0.04);
        assert_eq!(table.len(), paper.len(), "pairs are counted, not what they back off to");
        for pair in [(1, 2), (2, 3), (5, 2)] {
            assert_eq!(table.after(pair), paper.after(pair), "a pair that is known has its own successors");
        }
        assert_eq!(table.after((9, 2)).iter().map(|n| n.0).collect::<Vec<_>>(), [3, 4]);
        assert!((table.weight((9, 2), 3) - 0.08).abs() < 1e-6 && table.after((2, 9)).is_empty());
        let mut odds = Odds::default();
        let before = odds.of(&table, (1, 2), 3);
        (0..100).for_each(|_| odds.learn(&table, (9, 2), 7));
        assert!(odds.of(&table, (9, 2), 3) < 0.1 && odds.of(&table, (1, 2), 3) == before);
        // What follows a token alone is bounded, and what is new finds a place.
        (0..200).for_each(|new| table.learn(&[100 + new, 2, 200 + new], 0.04));
        assert_eq!(table.after((9, 2)).len(), Corpus::KEPT);
        (0..3).for_each(|_| table.learn(&[7, 2, 999], 0.04));
        assert_eq!(table.after((9, 2))[0].0, 999);
        table.reset();
        assert!(table.after((9, 2)).is_empty());
    }
}
