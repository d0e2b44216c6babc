//! One batched forward as the engine lays it out: which rows run, where their keys and values go, who sees whom,
//! what is read. Flat vectors, reused from step to step.
use omnidecode_core::Token;
pub use omnidecode_core::law::Warp;
use omnidecode_core::noise::Key;
pub use omnidecode_kernels::attend::Visible;
pub use omnidecode_kernels::pick::{PickError, Stats};
use std::ops::Range;
use std::sync::Arc;

/// What a row enters its first layer with.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// The embedding of a token.
    Token(Token),
    /// `hidden` floats of [`Step::vectors`] from this offset, in place of an embedding (before any embedding scale).
    Embedding(usize),
    /// A weighted sum of embeddings: this range of [`Step::mixes`].
    Mix(Range<usize>),
    /// `hidden` floats of [`Step::vectors`] from this offset: the residual stream entering the segment's first layer.
    Hidden(usize),
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowEntry {
    /// What it enters with.
    pub entry: Entry,
    /// Rotary position.
    pub position: u32,
    /// Absolute place in its sequence: orders keys in attention, decides sliding windows.
    pub place: u32,
    /// Slot that its keys and values are written to, in every layer it passes. A later step may bring the same slot
    /// through further layers (early exit, token revival): layers are written independently.
    pub slot: u32,
    /// Committed places it sees: this range of [`Step::spans`]. Sorted, disjoint, and including its own place when
    /// its slot belongs to a page.
    pub spans: Range<usize>,
    /// Rows outside the pages that it sees (tail): this range of [`Step::extras`], sorted by place, itself included
    /// when its slot is in the tail.
    pub extras: Range<usize>,
}

/// Consecutive rows of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// Page table of the sequence: this range of [`Step::pages`]. Place `p` is slot `pages[p / PAGE] * PAGE + p % PAGE`.
    pub table: Range<usize>,
    /// Layers these rows pass: `0..layers` for a whole forward.
    pub layers: Range<usize>,
}

/// A choice to be made where the logits are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The law's bending.
    pub warp: Warp,
    /// Noise of the position the choice is for.
    pub key: Key,
}

/// What is read at one row. Everything but `choice` and `logits` is of the raw logits, before any bending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowRead {
    /// Row of the step.
    pub row: usize,
    /// Call `bend` on this row's logits.
    pub bend: bool,
    /// Choose a token.
    pub choice: Option<Choice>,
    /// Also give the raw log-probability of the chosen token.
    pub logprob: bool,
    /// The k largest logits with their ids, descending, ties by lower id.
    pub top: usize,
    /// Statistics of the row.
    pub stats: bool,
    /// Log-probabilities of these tokens: this range of [`Step::asked`].
    pub asked: Range<usize>,
    /// The whole row, bent.
    pub logits: bool,
}

/// A hidden state to be read: the residual stream of `row` before layer `layer` (`layer == layers`: after the last
/// layer and the final norm).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tap {
    /// Row of the step.
    pub row: usize,
    /// Layer boundary.
    pub layer: usize,
}

/// What a request changes inside the model (an intervention). Empty is bit-identical to absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    /// Added to the scaled attention score of one key, per layer and query head, before the softmax.
    pub biases: Vec<Bias>,
    /// Activations of the feed-forward set, moved or scaled.
    pub clamps: Vec<Clamp>,
}

/// An attention bias on one key place (ZeroTuning: `ln(gamma)` at place 0).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bias {
    /// Layer.
    pub layer: u32,
    /// Query head.
    pub head: u32,
    /// Absolute place of the key.
    pub place: u32,
    /// Added to the score, in nats.
    pub add: f32,
}

/// One neuron of a feed-forward layer held, moved or scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// Layer.
    pub layer: u32,
    /// Index of the neuron in `0..intermediate`.
    pub neuron: u32,
    /// First absolute place it applies to.
    pub from: u32,
    /// What is done.
    pub action: ClampAction,
    /// The value.
    pub value: f32,
}

/// How a [`Clamp`] acts. `Set`, `Add` and `Scale` act on the up-projection before the gate's product, `Post` sets the
/// product itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClampAction {
    /// up = value
    Set,
    /// up += value
    Add,
    /// up *= value
    Scale,
    /// act(gate) * up = value
    Post,
}

/// What was read at one row; the fields that were not asked for are empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading<'a> {
    /// The chosen token; `None` when none was asked for, or when there is an `error`.
    pub choice: Option<Token>,
    /// Why nothing could be read from the row's logits: they are not numbers, or every token is excluded. The row's
    /// request fails, the others go on.
    pub error: Option<PickError>,
    /// Raw log-probability of the chosen token (of the unbent softmax), where [`RowRead::logprob`] asks for it.
    pub logprob: f32,
    /// Largest logits, descending.
    pub top: &'a [(Token, f32)],
    /// Statistics.
    pub stats: Stats,
    /// Log-probabilities of the asked tokens, in the order asked.
    pub asked: &'a [f32],
    /// All logits, bent.
    pub logits: &'a [f32],
    /// Hidden states tapped at this row, in the order of [`Step::taps`], `hidden` floats each.
    pub hidden: &'a [f32],
    /// Attention weights asked by [`Step::masses`] at this row: for each, the mean over query heads of the softmax
    /// weight of every key the row sees, in place order.
    pub mass: &'a [f32],
}

/// The whole forward.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Rows, grouped by segment.
    pub rows: Vec<RowEntry>,
    /// Backing of [`Entry::Embedding`] and [`Entry::Hidden`].
    pub vectors: Vec<f32>,
    /// Backing of [`Entry::Mix`].
    pub mixes: Vec<(Token, f32)>,
    /// The sequences.
    pub segments: Vec<Segment>,
    /// Backing of [`Segment::table`].
    pub pages: Vec<u32>,
    /// Backing of [`RowEntry::spans`]: visible committed places, start and end.
    pub spans: Vec<(u32, u32)>,
    /// Backing of [`RowEntry::extras`].
    pub extras: Vec<Visible>,
    /// Rows to be read, ascending. A row with taps only is read too, so that its hidden states come back.
    pub reads: Vec<RowRead>,
    /// Backing of [`RowRead::asked`].
    pub asked: Vec<Token>,
    /// Hidden states to be read, sorted by row, then layer; each row named here has an entry in `reads`.
    pub taps: Vec<Tap>,
    /// Attention weights to be read: of `row` in layer `layer`. Sorted by row, then layer; each row has an entry in
    /// `reads`. Costs a pass over the row's keys.
    pub masses: Vec<Tap>,
    /// Interventions of segments: (segment, edits), ascending. Segments not named run untouched.
    pub edits: Vec<(usize, Arc<Edits>)>,
}
impl Step {
    /// Forget everything, keep the memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.vectors.clear();
        self.mixes.clear();
        self.segments.clear();
        self.pages.clear();
        self.spans.clear();
        self.extras.clear();
        self.reads.clear();
        self.asked.clear();
        self.taps.clear();
        self.masses.clear();
        self.edits.clear();
    }
}
