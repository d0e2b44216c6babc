//! What a strategy asks for: rows, who sees whom, what becomes of their keys and values, what is read.
use crate::carrier::Bend;
use crate::error::{Error, Result};
use omnidecode_core::Token;
use omnidecode_core::mask::Mask;
use omnidecode_core::tree::{DraftTree, ROOT};
use omnidecode_models::ModelCard;
use std::ops::Range;
use std::sync::Arc;

/// Stands for a place that holds no token but a vector (a latent thought, an image patch). Never sent to a reader.
pub const LATENT: Token = Token::MAX;

/// One position to run.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// A token.
    Token(Token),
    /// A vector in place of an embedding: `[hidden]`.
    Embedding(Arc<[f32]>),
    /// A weighted sum of token embeddings.
    Mix(Arc<[(Token, f32)]>),
    /// The residual stream entering the plan's first layer: `[hidden]`.
    Hidden(Arc<[f32]>),
}
impl Row {
    /// The token, or [`LATENT`].
    pub fn token(&self) -> Token {
        match self {
            Row::Token(token) => *token,
            _ => LATENT,
        }
    }
}
impl From<Token> for Row {
    fn from(token: Token) -> Self {
        Row::Token(token)
    }
}

/// What becomes of the keys and values of a plan's own rows. (Debt rows always become pages.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvAction {
    /// In flight until `accept` or the next forward that is not `Extend` or `Rerun`.
    #[default]
    Append,
    /// As `Append`, behind the rows in flight already, which stay: a tree that grows level by level. `Tree` parents,
    /// `Bits` columns and node numbers count the older rows first.
    Extend,
    /// Bring the rows in flight from this one on through the plan's layers, in their places.
    Rerun(u32),
    /// Written over the committed places from [`Plan::at`] on.
    Overwrite,
    /// Forgotten after the forward.
    Discard,
}

/// Which rows are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rows {
    /// The root when it is run (the last committed token), and every own row.
    #[default]
    Own,
    /// The last own row; without own rows, the root.
    Last,
    /// Every row run, debt too: `Outcome::place`. Turns the prefix cache off for this forward.
    All,
    /// These own rows, ascending; no root.
    These(Vec<u32>),
}

/// What to compute where the logits are. A set, because one forward often serves several readers. `top`, `stats` and
/// `logprobs` are of the model's raw law; `choice` and `logits` of the law that the request's processors bent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readout {
    /// The target's own choice: arg-max, or a sample keyed by (seed, position).
    pub choice: bool,
    /// The raw log-probability of the choice.
    pub logprob: bool,
    /// So many largest logits.
    pub top: usize,
    /// Arg-max, two largest logits, log-sum-exp, entropy.
    pub stats: bool,
    /// Log-probabilities of these tokens.
    pub logprobs: Vec<Token>,
    /// All logits.
    pub logits: bool,
    /// The residual stream before these layers (the number of layers: after the last one and the final norm).
    pub hidden: Vec<usize>,
    /// Attention weights of these layers, averaged over query heads.
    pub mass: Vec<usize>,
}
impl Readout {
    /// Run only.
    pub const NOTHING: Readout = Readout::of(false, false, false);
    /// The target's own choice.
    pub const CHOICE: Readout = Readout::of(true, false, false);
    /// Statistics.
    pub const STATS: Readout = Readout::of(false, true, false);
    /// All logits, bent.
    pub const LOGITS: Readout = Readout::of(false, false, true);

    const fn of(choice: bool, stats: bool, logits: bool) -> Readout {
        Readout {
            choice,
            logprob: false,
            top: 0,
            stats,
            logprobs: Vec::new(),
            logits,
            hidden: Vec::new(),
            mass: Vec::new(),
        }
    }
    /// Also the choice.
    pub fn choice(self) -> Self {
        Self { choice: true, ..self }
    }
    /// Also the choice and its raw log-probability.
    pub fn logprob(self) -> Self {
        Self { choice: true, logprob: true, ..self }
    }
    /// Also the k largest logits.
    pub fn top(self, k: usize) -> Self {
        Self { top: k, ..self }
    }
    /// Also statistics.
    pub fn stats(self) -> Self {
        Self { stats: true, ..self }
    }
    /// Also log-probabilities of these tokens.
    pub fn logprobs(self, ids: impl Into<Vec<Token>>) -> Self {
        Self { logprobs: ids.into(), ..self }
    }
    /// Also all logits.
    pub fn logits(self) -> Self {
        Self { logits: true, ..self }
    }
    /// Also the hidden state before this layer.
    pub fn hidden(mut self, layer: usize) -> Self {
        if let Err(at) = self.hidden.binary_search(&layer) {
            self.hidden.insert(at, layer);
        }
        self
    }
    /// Also the attention weights of this layer.
    pub fn mass(mut self, layer: usize) -> Self {
        if let Err(at) = self.mass.binary_search(&layer) {
            self.mass.insert(at, layer);
        }
        self
    }
    /// Whether anything needs the head.
    pub fn needs_head(&self) -> bool {
        self.choice || self.top > 0 || self.stats || self.logits || !self.logprobs.is_empty()
    }
    /// Whether nothing is read.
    pub fn is_nothing(&self) -> bool {
        !self.needs_head() && self.hidden.is_empty() && self.mass.is_empty()
    }
}

/// One forward of one sequence: first its debt (committed tokens that were not computed), then these rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Own rows.
    pub rows: Vec<Row>,
    /// Who sees whom among them.
    pub mask: Mask,
    /// What becomes of their keys and values.
    pub kv: KvAction,
    /// Place of offset 0; `None`: the first place not computed. Committed places that own rows stand in for are
    /// hidden from them.
    pub at: Option<usize>,
    /// Offset of each row's place. Empty: row number, depth in the tree, or number within its copy.
    pub offsets: Vec<u32>,
    /// Rotary position of each row. Empty: its place.
    pub positions: Vec<u32>,
    /// Committed places that own rows may see, as sorted disjoint ranges; `None`: all.
    pub keep: Option<Vec<(u32, u32)>>,
    /// Layers that own rows pass; `None`: all.
    pub layers: Option<Range<usize>>,
    /// What is read.
    pub read: Readout,
    /// Where it is read.
    pub at_rows: Rows,
    /// Committed tokens at the end to leave uncomputed.
    pub leave: usize,
    /// Whether the root must be seen: without debt it is run again.
    pub root: bool,
    /// Mixed into the seed of this forward's choices, for loops that draw at one position more than once. Each of
    /// several copies has its own: this number, and one more for each.
    pub noise: u64,
    /// Bends the law at the rows read, after the request's processors: of companions that know something of these rows.
    pub bend: Option<Bend>,
}

impl Plan {
    /// No rows of its own: compute what is committed, read at its end.
    pub fn next(read: Readout) -> Plan {
        Plan { read, root: true, ..Plan::default() }
    }
    /// Tokens that follow the committed ones, each seeing those before it.
    pub fn chain(tokens: &[Token], read: Readout) -> Plan {
        Plan { rows: tokens.iter().map(|&t| Row::Token(t)).collect(), read, root: true, ..Plan::default() }
    }
    /// A draft tree, each node seeing its ancestors.
    pub fn tree(tree: &DraftTree, read: Readout) -> Plan {
        Plan { mask: tree.mask(), ..Plan::chain(tree.tokens(), read) }
    }
    /// Rows that all see each other, standing at `at` and after.
    pub fn window(tokens: &[Token], at: usize, kv: KvAction, read: Readout) -> Plan {
        Plan { mask: Mask::Full, kv, at: Some(at), root: false, ..Plan::chain(tokens, read) }
    }
    /// Any rows under any mask.
    pub fn rows(rows: Vec<Row>, mask: Mask, read: Readout) -> Plan {
        Plan { rows, mask, read, root: true, ..Plan::default() }
    }
    /// With another KV action.
    pub fn kv(self, kv: KvAction) -> Plan {
        Plan { kv, ..self }
    }
    /// Through these layers only.
    pub fn layers(self, layers: Range<usize>) -> Plan {
        Plan { layers: Some(layers), ..self }
    }
    /// Leaving the last `n` committed tokens uncomputed, so that own rows may stand in their places.
    pub fn leave(self, n: usize) -> Plan {
        Plan { leave: n, root: false, ..self }
    }
    /// Seeing only these committed places.
    pub fn keep(self, spans: Vec<(u32, u32)>) -> Plan {
        Plan { keep: Some(spans), ..self }
    }
    /// Read at these rows only.
    pub fn at_rows(self, rows: Rows) -> Plan {
        Plan { at_rows: rows, ..self }
    }
    /// Without running the root again when it is computed already.
    pub fn without_root(self) -> Plan {
        Plan { root: false, ..self }
    }
    /// With other rotary positions.
    pub fn positions(self, positions: Vec<u32>) -> Plan {
        Plan { positions, ..self }
    }
    /// With other places, as offsets.
    pub fn offsets(self, offsets: Vec<u32>) -> Plan {
        Plan { offsets, ..self }
    }

    /// The rows that older rows in flight stand before, with their places relative to the first of all.
    pub(crate) fn places(&self, base: usize, before: &[u32]) -> Vec<u32> {
        let n = self.rows.len();
        let base = base as u32;
        if !self.offsets.is_empty() {
            return self.offsets.iter().map(|&o| base.saturating_add(o)).collect();
        }
        let first = before.last().map_or(base, |p| p + 1);
        match &self.mask {
            Mask::Tree(parents) => {
                let mut places: Vec<u32> = Vec::with_capacity(n);
                for &p in parents {
                    places.push(match p {
                        ROOT => base,
                        p if (p as usize) < before.len() => before[p as usize] + 1,
                        p => places[p as usize - before.len()] + 1,
                    });
                }
                places
            }
            Mask::Copies(k) => (0..n).map(|i| base + (i % (n / k)) as u32).collect(),
            _ => (0..n as u32).map(|i| first + i).collect(),
        }
    }

    /// From the first of those places to behind the last; `0..0` without rows.
    pub(crate) fn span(&self, base: usize, before: &[u32]) -> Range<usize> {
        let n = self.rows.len();
        let ends = |places: &[u32]| {
            let ends = places.iter().fold((u32::MAX, 0), |(low, high), &p| (p.min(low), p.max(high)));
            ends.0 as usize..ends.1 as usize + 1
        };
        match &self.mask {
            _ if n == 0 => 0..0,
            _ if !self.offsets.is_empty() => {
                let ends = ends(&self.offsets);
                base + ends.start..base + ends.end
            }
            Mask::Tree(_) => ends(&self.places(base, before)),
            Mask::Copies(k) => base..base + n / k,
            _ => {
                let first = before.last().map_or(base, |&p| p as usize + 1);
                first..first + n
            }
        }
    }
    /// Whether each own row stands behind the one before it. Of trees and copies it is not asked.
    pub(crate) fn ascends(&self) -> bool {
        match self.mask {
            _ if !self.offsets.is_empty() => self.offsets.is_sorted_by(|a, b| a < b),
            Mask::Tree(_) | Mask::Copies(_) => false,
            _ => true,
        }
    }

    /// Refuse what this model cannot run. `before`: older rows in flight that an `Extend` counts first.
    pub(crate) fn check(&self, card: &ModelCard, before: usize) -> Result<()> {
        let n = self.rows.len();
        let bad = |m: String| Err(Error::Plan(m));
        for row in &self.rows {
            match row {
                Row::Token(t) => known(*t, card)?,
                Row::Embedding(v) | Row::Hidden(v) if v.len() != card.hidden => {
                    return bad(format!("a vector of {} floats for a model of width {}", v.len(), card.hidden));
                }
                Row::Embedding(v) | Row::Hidden(v) if v.iter().any(|x| !x.is_finite()) => {
                    return bad("a vector holds infinite or NaN values: feed finite numbers".into());
                }
                Row::Mix(parts) => parts.iter().try_for_each(|(t, _)| known(*t, card))?,
                _ => {}
            }
        }
        self.mask.check(n, before)?;
        if before > 0 && !matches!(self.mask, Mask::Causal | Mask::Tree(_) | Mask::Bits(_)) {
            return bad("only Causal, Tree and Bits rows can extend rows in flight".into());
        }
        for (name, len) in [("offsets", self.offsets.len()), ("positions", self.positions.len())] {
            if len != 0 && len != n {
                return bad(format!("{n} rows but {len} {name}: give one a row or none"));
            }
        }
        if self.mask == Mask::Causal && self.offsets.windows(2).any(|w| w[0] >= w[1]) {
            return bad("places of a causal chain must ascend".into());
        }
        let layers = self.layers.clone().unwrap_or(0..card.layers);
        if layers.start >= layers.end || layers.end > card.layers {
            return bad(format!("layers {layers:?} of a model that has {}", card.layers));
        }
        if layers.start > 0 && self.rows.iter().any(|r| !matches!(r, Row::Hidden(_))) {
            return bad(format!("rows that enter layer {} must be hidden states", layers.start));
        }
        if n > 0 && layers.end < card.layers && self.read.needs_head() {
            return bad(format!(
                "rows leave at layer {} of {}: only hidden states can be read",
                layers.end, card.layers
            ));
        }
        if let Some(l) = self.read.hidden.iter().find(|&&l| l > layers.end || (l < layers.start && n > 0)) {
            return bad(format!("hidden state at layer {l} of rows that pass layers {layers:?}"));
        }
        if let Some(l) = self.read.mass.iter().find(|l| !layers.contains(l)) {
            return bad(format!("attention of layer {l} of rows that pass layers {layers:?}"));
        }
        if let Some(&token) = self.read.logprobs.iter().find(|&&t| t as usize >= card.vocab) {
            return Err(Error::UnknownToken { token, vocab: card.vocab });
        }
        if let Some(keep) = &self.keep
            && (keep.iter().any(|s| s.0 >= s.1) || keep.windows(2).any(|w| w[0].1 > w[1].0))
        {
            return bad(format!("keep ranges {keep:?} are not sorted, disjoint and non-empty"));
        }
        if let Rows::These(rows) = &self.at_rows
            && (rows.windows(2).any(|w| w[0] >= w[1]) || rows.last().is_some_and(|&r| r as usize >= n))
        {
            return bad(format!("rows {rows:?} to be read, of {n}: give ascending row numbers"));
        }
        Ok(())
    }
}

fn known(token: Token, card: &ModelCard) -> Result<()> {
    if (token as usize) < card.vocab { Ok(()) } else { Err(Error::UnknownToken { token, vocab: card.vocab }) }
}
