//! A region of mask tokens in a sequence, denoised in place. Places are absolute. What is settled is handed to the
//! reader and never changes again; everything else may be committed, remasked and edited in any order.
use crate::error::{Error, Result};
use crate::look::{Aim, Look, View};
use crate::plan::{KvAction, Plan, Row, Rows};
use crate::processor::{self, ProcessorState};
use crate::sequence::Sequence;
use crate::usage::{Origin, Source};
use omnidecode_core::Token;
use omnidecode_core::mask::Mask;
use std::ops::Range;
use std::rc::Rc;

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

/// The processor that keeps tokens off a canvas.
struct Ban(Rc<[Token]>);
impl ProcessorState for Ban {
    fn fork(&self) -> Box<dyn ProcessorState> {
        Box::new(Ban(self.0.clone()))
    }
    fn advance(&mut self, _token: Token) {}
    fn bend(&self, _position: usize, logits: &mut [f32]) {
        for &token in &*self.0 {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// A canvas. Dropping it forgets what was not settled.
pub struct Canvas<'s> {
    seq: &'s mut Sequence,
    sheet: Sheet,
    /// Dropping it leaves everything as it is.
    aside: bool,
}

/// What a canvas knows beside its sequence, put aside by [`Canvas::put_aside`] for [`Sequence::resume`].
#[derive(Debug, Default)]
pub struct Sheet {
    start: usize,
    settled: usize,
    mask: Token,
    /// Marks by place from `settled` at opening on.
    written: Vec<Option<(u32, f32)>>,
    first: usize,
    history: Vec<Mark>,
    /// Which of the sequence's processor states is [`Ban`].
    ban: usize,
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
        let old = seq.shared.borrow_mut().clear_tail(seq.key);
        drop(old);
        seq.tokens.extend(std::iter::repeat_n(mask, fresh));
        let ban = seq.with(|s| {
            s.tokens.extend(std::iter::repeat_n(mask, fresh));
            s.floor = places.start;
            s.states.push(Box::new(Ban(Rc::new([mask]))));
            s.states.len() - 1
        });
        let start = places.start;
        let written = vec![None; fresh];
        let history = Vec::with_capacity(fresh);
        let sheet = Sheet { start, settled: committed, mask, written, first: committed, history, ban };
        let canvas = Canvas { seq, sheet, aside: false };
        canvas.tell_undecided(committed..places.end);
        Ok(canvas)
    }
    pub(crate) fn resume(seq: &'s mut Sequence, sheet: Sheet) -> Self {
        Canvas { seq, sheet, aside: false }
    }
    /// Leave the sequence as it is, to go on with [`Sequence::resume`]; until then nothing else may be done with it but to
    /// run a plan of [`Canvas::prepare`].
    pub fn put_aside(mut self) -> Sheet {
        self.aside = true;
        std::mem::take(&mut self.sheet)
    }

    /// The sequence, for what is known of it.
    pub fn sequence(&self) -> &Sequence {
        self.seq
    }
    /// All places of the canvas.
    pub fn places(&self) -> Range<usize> {
        self.sheet.start..self.seq.tokens.len()
    }
    /// Places that are not handed over yet.
    pub fn open_places(&self) -> Range<usize> {
        self.sheet.settled..self.seq.tokens.len()
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
        self.sheet.mask
    }
    /// Whether a place is undecided.
    pub fn is_masked(&self, place: usize) -> bool {
        place >= self.sheet.settled && self.seq.tokens[place] == self.sheet.mask
    }
    /// Undecided places of a window, ascending.
    pub fn masked(&self, window: Range<usize>) -> Vec<usize> {
        let mut masked = Vec::with_capacity(window.len());
        masked.extend(window.filter(|&p| self.is_masked(p)));
        masked
    }
    /// Every change so far.
    pub fn history(&self) -> &[Mark] {
        &self.sheet.history
    }

    /// Tokens that are never chosen for this canvas from now on; the mask token never is.
    pub fn ban(&mut self, tokens: &[Token]) {
        let ban = Ban(tokens.iter().copied().chain([self.sheet.mask]).collect());
        let old = self.seq.with(|s| std::mem::replace(&mut s.states[self.sheet.ban], Box::new(ban)));
        drop(old);
    }

    /// Run some places.
    ///
    /// # Errors
    /// As [`Sequence::forward`].
    pub async fn look(&mut self, look: Look) -> Result<View> {
        let (plan, aim) = self.prepare(look)?;
        Ok(aim.view(self.seq.forward(plan).await?))
    }
    /// The plan of a look, and what its rows speak of.
    ///
    /// # Errors
    /// [`Error::Plan`] for places outside of the canvas, and drafts or rows that do not fit.
    pub fn prepare(&self, look: Look) -> Result<(Plan, Aim)> {
        let shift = self.seq.card().shift;
        let bad = |m: String| Err(Error::Plan(m));
        let Look { places, mask, refresh, read, about, keep, rows, drafts, noise } = look;
        let about = if read.is_nothing() { Vec::new() } else { about.unwrap_or_else(|| places.clone()) };
        for places in [&places, &about] {
            let inside = |end: Option<&usize>| end.is_none_or(|p| self.places().contains(p));
            let ascending = places.is_sorted_by(|a, b| a < b);
            if !ascending || !inside(places.first()) || !inside(places.last()) {
                return bad(format!(
                    "a look at places {places:?} of the canvas {:?}: give them ascending",
                    self.places()
                ));
            }
        }
        if !rows.is_empty() && rows.len() != places.len() {
            return bad(format!("{} rows for a window of {} places", rows.len(), places.len()));
        }
        if !drafts.is_empty() && (refresh || mask != Mask::Full || !rows.is_empty()) {
            return bad("drafts of a window are plain tokens under the full mask, and are not stored".into());
        }
        // Row j of a shifting model speaks of place j + 1.
        let speakers = about.iter().map(|p| p.saturating_sub(shift));
        let run = union(&places, speakers.clone());
        let (Some(&from), Some(&to)) = (run.first(), run.last()) else { return bad("a look at nothing".into()) };
        let copies = drafts.len().max(1);
        let mut entries = Vec::with_capacity(copies * run.len());
        for _ in 0..copies {
            let token = |&p: &usize| Row::Token(self.seq.tokens[p]);
            if rows.is_empty() {
                entries.extend(run.iter().map(token));
            } else {
                let row = |p| places.binary_search(p).map_or_else(|_| token(p), |i| rows[i].clone());
                entries.extend(run.iter().map(row));
            }
        }
        for (k, &(place, token)) in drafts.iter().enumerate().flat_map(|(k, d)| d.iter().map(move |e| (k, e))) {
            let Ok(row) = run.binary_search(&place) else {
                return bad(format!("draft {k} fills place {place}, which is not run"));
            };
            entries[k * run.len() + row] = Row::Token(token);
        }
        let mut read_at = Vec::with_capacity(copies * about.len());
        let mut row = 0;
        for speaker in speakers {
            row += run[row..].iter().take_while(|&&p| p < speaker).count();
            if read_at.last() != Some(&(row as u32)) {
                read_at.push(row as u32);
            }
        }
        let once = read_at.len();
        (1..copies).for_each(|k| (0..once).for_each(|i| read_at.push(read_at[i] + (k * run.len()) as u32)));
        // Without gaps places go without saying.
        let gaps = to - from >= run.len() || matches!(mask, Mask::Tree(_));
        let told = if gaps { copies } else { 0 };
        let mut offsets = Vec::with_capacity(told * run.len());
        (0..told).for_each(|_| offsets.extend(run.iter().map(|p| (p - from) as u32)));
        let plan = Plan {
            rows: entries,
            mask: if drafts.is_empty() { mask } else { Mask::Copies(copies) },
            kv: if refresh { KvAction::Overwrite } else { KvAction::Discard },
            at: Some(from),
            offsets,
            keep,
            read,
            at_rows: Rows::These(read_at),
            noise,
            ..Plan::default()
        };
        Ok((plan, Aim { run, shift }))
    }

    /// Decide a place.
    ///
    /// # Errors
    /// [`Error::Sequence`] for a settled place or the mask token, [`Error::UnknownToken`].
    pub fn commit(&mut self, place: usize, token: Token, confidence: f32) -> Result<()> {
        if token == self.sheet.mask {
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
        self.write(place, self.sheet.mask, 0.0)
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
        self.sheet.written[place - self.sheet.first] = (token != self.sheet.mask).then_some((forward, confidence));
        let mark = Mark { place, token, forward, confidence };
        self.sheet.history.push(mark);
        self.tell(std::iter::once(mark));
        Ok(())
    }
    /// Tell a reader that watches.
    fn tell(&self, marks: impl Iterator<Item = Mark>) {
        if let Some(output) = self.seq.output.as_ref().filter(|_| self.seq.rules.watch) {
            let mut output = output.borrow_mut();
            marks.for_each(|mark| output.mark(mark));
        }
    }
    fn tell_undecided(&self, places: Range<usize>) {
        let forward = self.seq.with(|s| s.meter.borrow().usage.forwards as u32);
        self.tell(places.map(|place| Mark { place, token: self.sheet.mask, forward, confidence: 0.0 }));
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
        if end < self.sheet.settled {
            return Err(Error::Sequence(format!("places up to {} are settled", self.sheet.settled)));
        }
        self.cut(end);
        Ok(())
    }
    fn cut(&mut self, end: usize) {
        let key = self.seq.key;
        self.seq.tokens.truncate(end);
        self.sheet.written.truncate(end.saturating_sub(self.sheet.first));
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
        let mask = self.sheet.mask;
        self.seq.tokens.resize(end, mask);
        self.sheet.written.resize(end - self.sheet.first, None);
        self.seq.with(|s| s.tokens.resize(end, mask));
        self.tell_undecided(end - count..end);
        Ok(())
    }

    /// Everything before `upto` is final: check stop conditions and hand it over. False when the answer has ended;
    /// what lies behind its end is gone then.
    ///
    /// # Errors
    /// [`Error::Sequence`] when one of the places is undecided.
    pub fn settle(&mut self, upto: usize) -> Result<bool> {
        if let Some(&place) = self.masked(self.sheet.settled..upto.min(self.seq.tokens.len())).first() {
            return Err(Error::Sequence(format!("place {place} is undecided and cannot be settled")));
        }
        let rest = self.seq.tokens.split_off(self.sheet.settled);
        let ready = upto.saturating_sub(self.sheet.settled).min(rest.len());
        self.seq.tokens.reserve(rest.len());
        self.seq.progress.origins.reserve(ready);
        for &token in &rest[..ready] {
            if self.seq.finished() {
                break;
            }
            let written = self.sheet.written[self.sheet.settled - self.sheet.first];
            let (forward, confidence) = (written.map_or(0, |w| w.0), written.map(|w| w.1));
            self.seq.commit(token, None, Origin { source: Source::Canvas, forward, confidence, ..Origin::default() });
            self.seq.with(|s| processor::advance(&mut s.states, token));
            self.sheet.settled += 1;
        }
        self.seq.publish();
        if self.seq.finished() {
            self.cut(self.sheet.settled);
            return Ok(false);
        }
        self.seq.tokens.extend_from_slice(&rest[ready..]);
        Ok(true)
    }
}

/// The places of two ascending lists, each once.
fn union(one: &[usize], other: impl ExactSizeIterator<Item = usize>) -> Vec<usize> {
    let mut all = Vec::with_capacity(one.len() + other.len());
    let mut rest = one.iter().copied().peekable();
    for place in other {
        while let Some(before) = rest.next_if(|&p| p <= place) {
            all.push(before);
        }
        if all.last() != Some(&place) {
            all.push(place);
        }
    }
    all.extend(rest);
    all
}

impl Drop for Canvas<'_> {
    fn drop(&mut self) {
        if self.aside {
            return;
        }
        self.cut(self.sheet.settled);
        let old = self.seq.with(|s| {
            s.floor = usize::MAX;
            s.states.remove(self.sheet.ban)
        });
        drop(old);
    }
}
