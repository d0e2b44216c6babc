//! The one face that the engine sees of a model on a device.
use crate::card::ModelCard;
use crate::step::{Reading, Step};
pub use omnidecode_core::PAGE;

/// Why a forward failed. The engine fails the named rows' requests only.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NetworkError {
    /// An activation became infinite or NaN; the rows whose requests must fail.
    #[error(
        "the activations of row {row} at layer {layer} are not finite; expected finite numbers: check the weights, the embeddings fed in, or the interventions of this request"
    )]
    NotFinite {
        /// Row of the step.
        row: usize,
        /// Layer at which it was seen; the number of layers means the head.
        layer: usize,
    },
    /// The KV store does not fit.
    #[error("{0}")]
    Memory(String),
    /// The device failed: a driver's error, in its words.
    #[error("the device failed: {0}")]
    Device(String),
    /// The step asks for something this network does not do.
    #[error("{0}")]
    Unsupported(String),
}

/// A model on a device with its KV store.
///
/// The KV store is an array of *slots*: slot `s` holds the keys and values of one row in every layer. Slots
/// `0..pages * PAGE` belong to pages (slot = page * PAGE + offset), the `tail` slots behind them to rows in flight.
/// The engine owns the bookkeeping; the network only reads and writes the slots it is told to.
pub trait Network: Send {
    /// The model's facts.
    fn card(&self) -> &ModelCard;

    /// Make the KV store: `pages` pages of [`PAGE`] slots, then `tail` slots. Called once, before any step.
    ///
    /// # Errors
    /// [`NetworkError::Memory`] when the system refuses that much memory.
    fn reserve(&mut self, pages: usize, tail: usize) -> Result<(), NetworkError>;

    /// Run every row of the step through its layers, writing keys and values, then read what `step.reads` and
    /// `step.taps` ask for.
    ///
    /// `bend(i, logits)` is called for each read `i` with `bend` set, before its choice is made; it may change the
    /// logits in place (processors). `each(i, reading)` is called once per read, in order.
    fn run(
        &mut self,
        step: &Step,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError>;

    /// Copy whole slots, in order, in every layer: copy-on-write of a page and accepting tail rows are the same thing.
    /// `moves` are (from, to).
    fn copy(&mut self, moves: &[(u32, u32)]);

    /// Bytes of one slot over all layers.
    fn slot_bytes(&self) -> usize;

    /// Whether the bits of a row depend on nothing that runs beside it. Where they do, no answer is exact.
    fn row_invariant(&self) -> bool {
        true
    }

    /// Rows of logits that left their device so far, because something about them was left to the host.
    fn host_rows(&self) -> u64 {
        0
    }

    /// Products so far that ran in a library whose sums depend on how many rows there are.
    fn library_products(&self) -> u64 {
        0
    }
}
