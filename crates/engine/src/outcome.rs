//! What came back of a forward: flat, already reduced, one read-back.
use crate::plan::{Plan, Readout, Rows};
use omnidecode_core::Token;
use omnidecode_core::tree::{DraftTree, ROOT};
use omnidecode_core::verify::{Verdict, target_match};
use omnidecode_models::{Reading, RowRead, Stats};
use std::rc::Rc;

/// Readings of one forward. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Outcome(Rc<Readings>);

#[derive(Clone, Debug, Default)]
pub(crate) struct Readings {
    /// Readings before those of own rows; the last of them is the root's.
    pub head: usize,
    /// Place of the first reading when debt was read.
    pub first: usize,
    /// Own rows read, when not all.
    pub only: Option<Vec<u32>>,
    /// Entries of `tops` a row, and those that the plan asked for.
    pub top: usize,
    pub asked_top: usize,
    pub vocab: usize,
    pub rows: usize,
    pub choices: Vec<Token>,
    pub chosen: Vec<f32>,
    pub tops: Vec<(Token, f32)>,
    pub stats: Vec<Stats>,
    pub asked: Vec<f32>,
    pub logits: Vec<f32>,
    /// Unbent logits, kept only where a log-probability may be asked that is in no list.
    pub raw: Vec<f32>,
    pub hidden: Vec<f32>,
    pub masses: Vec<Vec<f32>>,
    /// Whether `raw` is kept, and whether attention weights are read.
    pub keeps_raw: bool,
    pub weighs: bool,
    /// Marks of the plan's bend, one a row where there is one.
    pub marks: Vec<Option<&'static str>>,
}

impl Readings {
    pub fn start(plan: &Plan, read: &Readout, vocab: usize) -> Self {
        let weighs = !read.mass.is_empty();
        let (top, asked_top) = (read.top.min(vocab), plan.read.top.min(vocab));
        Readings { top, asked_top, vocab, weighs, ..Readings::default() }
    }
    /// All is read: of which own rows, the plan says.
    pub fn end(mut self, plan: &mut Plan) -> Outcome {
        self.only = match &mut plan.at_rows {
            Rows::These(rows) => Some(std::mem::take(rows)),
            Rows::Last if !plan.rows.is_empty() => Some(vec![plan.rows.len() as u32 - 1]),
            _ => None,
        };
        Outcome::new(self)
    }
    /// Room for so many rows.
    pub fn reserve(&mut self, read: &Readout, rows: usize) {
        if read.choice {
            self.choices.reserve(rows);
            self.chosen.reserve(rows);
        }
        self.tops.reserve(rows * self.top);
        self.asked.reserve(rows * read.logprobs.len());
        if read.stats {
            self.stats.reserve(rows);
        }
    }
    pub fn add(&mut self, read: &RowRead, seen: Reading<'_>) {
        self.rows += 1;
        if read.choice.is_some() {
            self.choices.push(seen.choice.unwrap_or(Token::MAX));
            self.chosen.push(seen.logprob);
        }
        if read.top > 0 {
            let from = self.tops.len();
            self.tops.extend_from_slice(&seen.top[..seen.top.len().min(self.top)]);
            self.tops.resize(from + self.top, (Token::MAX, f32::NEG_INFINITY));
        }
        if read.stats {
            self.stats.push(seen.stats);
        }
        self.asked.extend_from_slice(seen.asked);
        if read.logits {
            self.logits.extend_from_slice(seen.logits);
        }
        self.hidden.extend_from_slice(seen.hidden);
        if self.weighs {
            self.masses.push(seen.mass.to_vec());
        }
    }
    /// Append the readings of a later chunk.
    pub fn join(&mut self, mut more: Readings) {
        self.rows += more.rows;
        self.choices.append(&mut more.choices);
        self.chosen.append(&mut more.chosen);
        self.tops.append(&mut more.tops);
        self.stats.append(&mut more.stats);
        self.asked.append(&mut more.asked);
        self.logits.append(&mut more.logits);
        self.raw.append(&mut more.raw);
        self.hidden.append(&mut more.hidden);
        self.masses.append(&mut more.masses);
        self.marks.append(&mut more.marks);
    }
    pub fn bytes(&self) -> usize {
        let masses: usize = self.masses.iter().map(Vec::len).sum();
        4 * (self.choices.len() + self.chosen.len() + self.asked.len() + self.logits.len() + self.hidden.len() + masses)
            + 8 * self.tops.len()
            + 20 * self.stats.len()
    }
    /// Which reading an own row has.
    fn index(&self, row: usize) -> Option<usize> {
        match &self.only {
            Some(only) => only.binary_search(&(row as u32)).ok().map(|i| self.head + i),
            None => (self.head + row < self.rows).then_some(self.head + row),
        }
    }
    fn each(len: usize, rows: usize) -> usize {
        len.checked_div(rows).unwrap_or(0)
    }
}

/// The readings at one row. Asking for what was not read panics, which fails the request: the plan is the place to ask.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    out: &'a Readings,
    row: usize,
}

impl<'a> Seen<'a> {
    /// The target's own choice.
    pub fn choice(self) -> Token {
        self.out.choices[self.row]
    }
    /// Raw log-probability of the choice.
    pub fn logprob(self) -> f32 {
        self.out.chosen[self.row]
    }
    /// The largest raw logits with their tokens, descending.
    pub fn top(self) -> &'a [(Token, f32)] {
        &self.out.tops[self.row * self.out.top..][..self.out.asked_top]
    }
    /// Statistics of the raw logits.
    pub fn stats(self) -> Stats {
        self.out.stats[self.row]
    }
    /// Log-probabilities of the tokens asked for, in their order.
    pub fn asked(self) -> &'a [f32] {
        let n = Readings::each(self.out.asked.len(), self.out.rows);
        &self.out.asked[self.row * n..(self.row + 1) * n]
    }
    /// All logits, bent: `[vocab]`.
    pub fn logits(self) -> &'a [f32] {
        &self.out.logits[self.row * self.out.vocab..(self.row + 1) * self.out.vocab]
    }
    /// Hidden states in ascending order of the layers asked for: `[layers, hidden]`.
    pub fn hidden(self) -> &'a [f32] {
        let n = Readings::each(self.out.hidden.len(), self.out.rows);
        &self.out.hidden[self.row * n..(self.row + 1) * n]
    }
    /// Attention weights in ascending order of the layers asked for, each over the keys the row sees, by place.
    pub fn mass(self) -> &'a [f32] {
        &self.out.masses[self.row]
    }

    /// Raw log-probability of any token, where the readings tell it.
    pub(crate) fn logprob_of(self, token: Token) -> Option<f32> {
        let out = self.out;
        if out.choices.get(self.row) == Some(&token) {
            return out.chosen.get(self.row).copied();
        }
        let lse = out.stats.get(self.row)?.lse;
        if let Some(l) = self.list().iter().find(|t| t.0 == token) {
            return Some(l.1 - lse);
        }
        let raw = if out.raw.is_empty() { &out.logits } else { &out.raw };
        raw.get(self.row * out.vocab + token as usize).map(|l| l - lse)
    }
    /// What the plan's bend marked it with.
    pub(crate) fn mark(self) -> Option<&'static str> {
        self.out.marks.get(self.row).copied().flatten()
    }
    pub(crate) fn lse(self) -> Option<f32> {
        self.out.stats.get(self.row).map(|s| s.lse)
    }
    /// The whole list, which may be longer than the plan asked for.
    pub(crate) fn list(self) -> &'a [(Token, f32)] {
        self.out.tops.get(self.row * self.out.top..(self.row + 1) * self.out.top).unwrap_or(&[])
    }
}

impl Outcome {
    pub(crate) fn new(readings: Readings) -> Self {
        Outcome(Rc::new(readings))
    }
    /// Rows read.
    pub fn len(&self) -> usize {
        self.0.rows
    }
    /// Nothing was read.
    pub fn is_empty(&self) -> bool {
        self.0.rows == 0
    }
    /// Whether the root was run and read.
    pub fn has_root(&self) -> bool {
        self.0.head > 0
    }
    /// What was seen at the last committed token.
    ///
    /// # Panics
    /// When the root was not read: ask with [`Rows::Own`] and `root`.
    pub fn root(&self) -> Seen<'_> {
        assert!(self.0.head > 0, "the root was not read in this forward");
        Seen { out: &self.0, row: self.0.head - 1 }
    }
    /// What was seen at own row `i` of the plan.
    ///
    /// # Panics
    /// When that row was not read.
    pub fn row(&self, i: usize) -> Seen<'_> {
        match self.0.index(i) {
            Some(row) => Seen { out: &self.0, row },
            None => panic!("row {i} was not read in this forward"),
        }
    }
    /// As [`Outcome::row`]; `None` when that row was not read.
    pub fn row_if_read(&self, i: usize) -> Option<Seen<'_>> {
        self.0.index(i).map(|row| Seen { out: &self.0, row })
    }
    /// What was seen at a tree node, [`ROOT`] being the last committed token.
    ///
    /// # Panics
    /// When that row was not read.
    pub fn at(&self, node: u32) -> Seen<'_> {
        if node == ROOT { self.root() } else { self.row(node as usize) }
    }
    /// What was seen at a committed place, with [`Rows::All`]; `None` where it was not run in this forward.
    pub fn place(&self, place: usize) -> Option<Seen<'_>> {
        let row = place.checked_sub(self.0.first)?;
        (row < self.0.head).then_some(Seen { out: &self.0, row })
    }
    /// Places read with [`Rows::All`].
    pub fn places(&self) -> std::ops::Range<usize> {
        self.0.first..self.0.first + self.0.head
    }
    /// V0 and V1 (sheet 00 §6): keep what the target itself chose.
    pub fn target_match(&self, tree: &DraftTree) -> Verdict {
        target_match(tree, |node| self.at(node).choice())
    }

    /// The only row read, taken for the root's at `place`: a row that stood in for the last committed token.
    #[must_use]
    pub fn as_root(&self, place: usize) -> Outcome {
        debug_assert!(self.0.rows <= 1 && self.0.head == 0, "one own row was read");
        Outcome::new(Readings { head: self.0.rows, first: place, only: None, ..(*self.0).clone() })
    }
    /// What was seen at the root in this forward, and at own rows in a later one.
    #[must_use]
    pub fn join(&self, rows: &Outcome) -> Outcome {
        let mut all = Readings { only: rows.0.only.clone(), ..(*self.0).clone() };
        all.join((*rows.0).clone());
        Outcome::new(all)
    }

    pub(crate) fn at_if_read(&self, node: u32) -> Option<Seen<'_>> {
        let row = if node == ROOT { self.0.head.checked_sub(1)? } else { self.0.index(node as usize)? };
        Some(Seen { out: &self.0, row })
    }
}
