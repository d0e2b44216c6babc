//! What is looked at on a canvas, and what was seen there.
use crate::outcome::{Outcome, Seen};
use crate::plan::{Readout, Row};
use omnidecode_core::Token;
use omnidecode_core::mask::Mask;
use std::ops::Range;

/// One look at a window of a canvas.
#[derive(Clone, Debug)]
pub struct Look {
    /// Places to be run, ascending.
    pub places: Vec<usize>,
    /// Who sees whom among them; outside of them all committed places, or those of `keep`.
    pub mask: Mask,
    /// Whether their keys and values replace what was there, or are forgotten.
    pub refresh: bool,
    /// What is read, of the predictions *for* places: the model's logit shift is accounted for.
    pub read: Readout,
    /// Places whose predictions are read, ascending; `None`: all that are run. The rows that speak of them are run too
    /// (of a shifting model, those one place before).
    pub about: Option<Vec<usize>>,
    /// Committed places that the window may see.
    pub keep: Option<Vec<(u32, u32)>>,
    /// Rows to stand in for the tokens (soft embeddings), one for each of `places`; empty: the tokens.
    pub rows: Vec<Row>,
    /// Variants of the window, run side by side without seeing each other: what stands where in each, instead of the
    /// canvas' own tokens. Empty: the canvas as it is.
    pub drafts: Vec<Vec<(usize, Token)>>,
    /// Mixed into the seed of its choices: the number of the forward, so that a place is not drawn with the same noise
    /// again and again. Each draft has its own: this, and one more for each.
    pub noise: u64,
}
impl Look {
    /// Everybody sees everybody.
    pub fn full(window: Range<usize>, refresh: bool, read: Readout) -> Look {
        Look::at(window.collect(), refresh, read)
    }
    /// As [`Look::full`], of any places.
    pub fn at(places: Vec<usize>, refresh: bool, read: Readout) -> Look {
        let (about, keep, rows, drafts) = (None, None, Vec::new(), Vec::new());
        Look { places, mask: Mask::Full, refresh, read, about, keep, rows, drafts, noise: 0 }
    }
}

/// What a look saw.
#[derive(Clone, Debug)]
pub struct View {
    outcome: Outcome,
    aim: Aim,
}

/// Which rows of a look speak of which places.
#[derive(Clone, Debug)]
pub struct Aim {
    pub(crate) run: Vec<usize>,
    pub(crate) shift: usize,
}
impl Aim {
    /// The row that speaks of a place in a draft; `None` when that place was not run.
    pub fn row(&self, draft: usize, place: usize) -> Option<usize> {
        let row = self.run.binary_search(&place.saturating_sub(self.shift)).ok()?;
        Some(draft * self.run.len() + row)
    }
    /// What a forward of the plan saw.
    pub fn view(self, outcome: Outcome) -> View {
        View { outcome, aim: self }
    }
}
impl View {
    /// The prediction for a place.
    ///
    /// # Panics
    /// When it was not read.
    pub fn at(&self, place: usize) -> Seen<'_> {
        self.draft(0, place)
    }
    /// The prediction for a place in a draft.
    ///
    /// # Panics
    /// When it was not read.
    pub fn draft(&self, draft: usize, place: usize) -> Seen<'_> {
        match self.aim.row(draft, place) {
            Some(row) => self.outcome.row(row),
            None => panic!("place {place} was not read in this forward"),
        }
    }
}
