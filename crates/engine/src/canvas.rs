//! A region of mask tokens in a sequence, denoised in place. Places are absolute. What is settled is handed to the
//! reader and never changes again; everything else may be committed, remasked and edited in any order.
use crate::error::{Error, Result};
use crate::outcome::Outcome;
use crate::plan::{KvAction, Plan, Readout, Row, Rows};
use crate::processor;
use crate::sequence::Sequence;
use crate::usage::{Origin, Source};
use omnidecode_core::Token;
use omnidecode_core::mask::Mask;
use std::ops::Range;

/// One change of a canvas, for the report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// Place.
    pub place: usize,
    /// What stands there now.
    pub token: Token,
    /// `Usage::forwards` when it was written.
    pub forward: u32,
    /// What the strategy thought of it.
    pub confidence: f32,
}

/// One look at a window of a canvas.
#[derive(Clone, Debug)]
pub struct Look {
    /// Places to be run.
    pub window: Range<usize>,
    /// Who sees whom among them; outside the window all committed places, or those of `keep`.
    pub mask: Mask,
    /// Whether the window's keys and values replace what was there, or are forgotten.
    pub refresh: bool,
    /// What is read, of the predictions *for* the places of the window: the model's logit shift is accounted for.
    pub read: Readout,
    /// Committed places that the window may see.
    pub keep: Option<Vec<(u32, u32)>>,
    /// Rows to stand in for the tokens of the window (soft embeddings), one a place; empty: the tokens.
    pub rows: Vec<Row>,
    /// Mixed into the seed of its choices: the number of the forward, so that a place is not drawn with the same noise
    /// again and again.
    pub noise: u64,
}
impl Look {
    /// Everybody sees everybody.
    pub fn full(window: Range<usize>, refresh: bool, read: Readout) -> Look {
        Look { window, mask: Mask::Full, refresh, read, keep: None, rows: Vec::new(), noise: 0 }
    }
}

/// A canvas. Dropping it forgets what was not settled.
pub struct Canvas<'s> {
    seq: &'s mut Sequence,
    start: usize,
    settled: usize,
    mask: Token,
    /// Marks by place from `settled` at opening on.
    written: Vec<Option<(u32, f32)>>,
    first: usize,
    history: Vec<Mark>,
}

impl<'s> Canvas<'s> {
    pub(crate) fn open(seq: &'s mut Sequence, places: Range<usize>) -> Result<Self> {
        let bad = |m: String| Err(Error::Sequence(m));
        let card = seq.card();
        let Some(mask) = card.mask else {
            return bad("this model has no mask token: a canvas needs a diffusion model".into());
        };
        let committed = seq.len();
        if places.start > committed || places.end < committed || places.is_empty() {
            return bad(format!("a canvas over {places:?} of {committed} places: begin inside, end behind them"));
        }
        if places.end > seq.rules.context {
            return Err(Error::ContextFull { place: places.end - 1, context: seq.rules.context });
        }
        let fresh = places.end - committed;
        let tail = seq.shared.borrow_mut().clear_tail(seq.key);
        drop(tail);
        seq.tokens.extend(std::iter::repeat_n(mask, fresh));
        seq.with(|s| {
            s.tokens.extend(std::iter::repeat_n(mask, fresh));
            s.floor = places.start;
        });
        let start = places.start;
        let written = vec![None; fresh];
        Ok(Canvas { seq, start, settled: committed, mask, written, first: committed, history: Vec::new() })
    }

    /// The sequence, for what is known of it.
    pub fn sequence(&self) -> &Sequence {
        self.seq
    }
    /// All places of the canvas.
    pub fn places(&self) -> Range<usize> {
        self.start..self.seq.tokens.len()
    }
    /// Places that are not handed over yet.
    pub fn open_places(&self) -> Range<usize> {
        self.settled..self.seq.tokens.len()
    }
    /// What stands at a place.
    pub fn token(&self, place: usize) -> Token {
        self.seq.tokens[place]
    }
    /// All tokens, the committed ones before the canvas too.
    pub fn tokens(&self) -> &[Token] {
        &self.seq.tokens
    }
    /// The mask token.
    pub fn mask_token(&self) -> Token {
        self.mask
    }
    /// Whether a place is undecided.
    pub fn is_masked(&self, place: usize) -> bool {
        place >= self.settled && self.seq.tokens[place] == self.mask
    }
    /// Undecided places of a window, ascending.
    pub fn masked(&self, window: Range<usize>) -> Vec<usize> {
        window.filter(|&p| self.is_masked(p)).collect()
    }
    /// Every change so far.
    pub fn history(&self) -> &[Mark] {
        &self.history
    }

    /// Run a window. `outcome.row(i)` speaks of place `window.start + i`.
    ///
    /// # Errors
    /// As [`Sequence::forward`].
    pub async fn look(&mut self, look: Look) -> Result<Outcome> {
        let card = self.seq.card();
        let Range { start, end } = look.window;
        if start < self.start || end > self.seq.tokens.len() || start >= end {
            return Err(Error::Plan(format!("a window {start}..{end} of the canvas {:?}", self.places())));
        }
        if !look.rows.is_empty() && look.rows.len() != end - start {
            return Err(Error::Plan(format!("{} rows for a window of {} places", look.rows.len(), end - start)));
        }
        // Row j of a shifting model speaks of place j + 1: run one place more on the left, read one row less.
        let lead = card.shift.min(start);
        let from = start - lead;
        let mut rows: Vec<Row> = self.seq.tokens[from..start].iter().map(|&t| Row::Token(t)).collect();
        match look.rows.is_empty() {
            true => rows.extend(self.seq.tokens[start..end].iter().map(|&t| Row::Token(t))),
            false => rows.extend(look.rows),
        }
        let plan = Plan {
            rows,
            mask: look.mask,
            kv: if look.refresh { KvAction::Overwrite } else { KvAction::Discard },
            at: Some(from),
            keep: look.keep,
            read: look.read,
            at_rows: Rows::These((0..(end - start) as u32).collect()),
            noise: look.noise,
            ..Plan::default()
        };
        self.seq.forward(plan).await
    }

    /// Decide a place.
    ///
    /// # Errors
    /// [`Error::Sequence`] for a settled place or the mask token, [`Error::UnknownToken`].
    pub fn commit(&mut self, place: usize, token: Token, confidence: f32) -> Result<()> {
        if token == self.mask {
            return Err(Error::Sequence(format!("the mask token cannot be committed at place {place}: use `remask`")));
        }
        let vocab = self.seq.card().vocab;
        if token as usize >= vocab {
            return Err(Error::UnknownToken { token, vocab });
        }
        self.write(place, token, confidence)
    }
    /// Make a place undecided again.
    ///
    /// # Errors
    /// [`Error::Sequence`] for a settled place.
    pub fn remask(&mut self, place: usize) -> Result<()> {
        self.write(place, self.mask, 0.0)
    }
    fn write(&mut self, place: usize, token: Token, confidence: f32) -> Result<()> {
        if !self.open_places().contains(&place) {
            return Err(Error::Sequence(format!("place {place} is settled or outside the canvas")));
        }
        let forward = self.seq.with(|s| {
            s.tokens[place] = token;
            s.meter.borrow().usage.forwards as u32
        });
        self.seq.tokens[place] = token;
        self.written[place - self.first] = (token != self.mask).then_some((forward, confidence));
        self.history.push(Mark { place, token, forward, confidence });
        Ok(())
    }
    /// Decide every place from here to the end alike (end-of-text).
    ///
    /// # Errors
    /// As [`Canvas::commit`].
    pub fn fill(&mut self, from: usize, token: Token) -> Result<()> {
        (from..self.seq.tokens.len()).try_for_each(|p| self.commit(p, token, 1.0))
    }
    /// End the canvas here.
    ///
    /// # Errors
    /// [`Error::Sequence`] when settled places would go.
    pub fn truncate(&mut self, end: usize) -> Result<()> {
        if end < self.settled {
            return Err(Error::Sequence(format!("places up to {} are settled", self.settled)));
        }
        self.cut(end);
        Ok(())
    }
    fn cut(&mut self, end: usize) {
        let key = self.seq.key;
        self.seq.tokens.truncate(end);
        self.written.truncate(end.saturating_sub(self.first));
        let mut guard = self.seq.shared.borrow_mut();
        let inner = &mut *guard;
        let state = &mut inner.seqs[key];
        state.tokens.truncate(end);
        state.table.truncate(&mut inner.models[state.model].pool, end);
    }
    /// Append undecided places.
    ///
    /// # Errors
    /// [`Error::ContextFull`].
    pub fn expand(&mut self, count: usize) -> Result<()> {
        let end = self.seq.tokens.len() + count;
        if end > self.seq.rules.context {
            return Err(Error::ContextFull { place: end - 1, context: self.seq.rules.context });
        }
        let mask = self.mask;
        self.seq.tokens.resize(end, mask);
        self.written.resize(end - self.first, None);
        self.seq.with(|s| s.tokens.resize(end, mask));
        Ok(())
    }

    /// Everything before `upto` is final: check stop conditions and hand it over. False when the answer has ended;
    /// what lies behind its end is gone then.
    ///
    /// # Errors
    /// [`Error::Sequence`] when one of the places is undecided.
    pub fn settle(&mut self, upto: usize) -> Result<bool> {
        if let Some(&place) = self.masked(self.settled..upto.min(self.seq.tokens.len())).first() {
            return Err(Error::Sequence(format!("place {place} is undecided and cannot be settled")));
        }
        let rest = self.seq.tokens.split_off(self.settled);
        let ready = upto.saturating_sub(self.settled).min(rest.len());
        for &token in &rest[..ready] {
            if self.seq.finished() {
                break;
            }
            let (forward, _) = self.written[self.settled - self.first].unwrap_or_default();
            self.seq.commit(token, None, Origin { source: Source::Canvas, forward, ..Origin::default() });
            self.seq.with(|s| processor::advance(&mut s.states, token));
            self.settled += 1;
        }
        self.seq.publish();
        if self.seq.finished() {
            self.cut(self.settled);
            return Ok(false);
        }
        self.seq.tokens.extend_from_slice(&rest[ready..]);
        Ok(true)
    }
}

impl Drop for Canvas<'_> {
    fn drop(&mut self) {
        self.cut(self.settled);
        self.seq.with(|s| s.floor = usize::MAX);
    }
}
