//! Committed tokens and a page table on one model. Tokens not yet computed are *debt*: the next forward runs them
//! first. Prefill, the pushed token, a draft model catching up and recovery from eviction are all the same debt.
use crate::answer::{Output, Progress, Rules};
use crate::canvas::{Canvas, Sheet};
use crate::carrier::Carriage;
use crate::error::{Error, Result};
use crate::inner::{Meter, ModelId, SeqState, Shared, TaskId};
use crate::outcome::Outcome;
use crate::plan::{LATENT, Plan, Readout, Row};
use crate::processor::{self, States};
use crate::sampling::Sampling;
use crate::tail::Tail;
use crate::usage::Usage;
use omnidecode_core::Token;
use omnidecode_core::law::Warp;
use omnidecode_core::verify::Noise;
use omnidecode_models::{Edits, ModelCard};
use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// What a strategy works on. Dropping it frees its pages.
pub struct Sequence {
    pub(crate) shared: Shared,
    pub(crate) key: usize,
    pub(crate) tokens: Vec<Token>,
    pub(crate) prompt: usize,
    pub(crate) rules: Rc<Rules>,
    pub(crate) progress: Progress,
    pub(crate) output: Option<Rc<RefCell<Output>>>,
    pub(crate) role: u64,
    /// Where the token that follows the last accepted row was read.
    pub(crate) spoke: Option<(Outcome, u32)>,
    /// What carries its plans out, the innermost first.
    pub(crate) carriages: Vec<Box<dyn Carriage>>,
}

pub(crate) struct Opening {
    pub task: TaskId,
    pub tokens: Vec<Token>,
    pub vectors: BTreeMap<usize, Row>,
    pub edits: Option<Arc<Edits>>,
    pub salt: Option<u64>,
    pub meter: Rc<RefCell<Meter>>,
}

impl Sequence {
    pub(crate) fn open(shared: &Shared, opening: Opening, rules: Rules, output: Rc<RefCell<Output>>) -> Sequence {
        let rules = Rc::new(rules);
        let prompt = opening.tokens.len();
        let mut seq = Sequence {
            shared: shared.clone(),
            key: usize::MAX,
            tokens: opening.tokens,
            prompt,
            progress: Progress::default(),
            rules,
            output: Some(output),
            role: 0,
            spoke: None,
            carriages: Vec::new(),
        };
        if seq.room() == 0 {
            seq.progress.end = Some(crate::answer::End { reason: crate::request::Reason::Length, stop: None });
        }
        let state = SeqState {
            task: opening.task,
            model: 0,
            tokens: seq.tokens.clone(),
            vectors: opening.vectors,
            table: Default::default(),
            tail: Tail::default(),
            states: seq.states(),
            warp: seq.rules.sampling.warp(),
            seed: seq.rules.sampling.seed,
            floor: usize::MAX,
            pinned: false,
            salt: opening.salt,
            edits: opening.edits,
            logprobs: seq.rules.sampling.logprobs,
            prompt,
            meter: opening.meter,
            last_rows: 0,
        };
        seq.key = shared.borrow_mut().seqs.insert(state);
        seq
    }
    /// Processor states folded anew over all tokens.
    pub(crate) fn states(&self) -> States {
        if self.rules.processors.is_empty() {
            return States::new();
        }
        let (prompt, made) = self.tokens.split_at(self.prompt);
        // Places of vectors have no token to be counted.
        let prompt: Vec<Token> = prompt.iter().copied().filter(|&t| t != LATENT).collect();
        let mut states: States = self.rules.processors.iter().map(|p| p.start(&prompt)).collect();
        made.iter().filter(|&&t| t != LATENT).for_each(|&t| processor::advance(&mut states, t));
        states
    }
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut SeqState) -> T) -> T {
        f(&mut self.shared.borrow_mut().seqs[self.key])
    }

    // ---- what is known ----

    /// Committed tokens, the prompt's first. Places that hold vectors are [`LATENT`].
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }
    /// Tokens of the prompt.
    pub fn prompt(&self) -> &[Token] {
        &self.tokens[..self.prompt]
    }
    /// Tokens after the prompt.
    pub fn generated(&self) -> &[Token] {
        &self.tokens[self.prompt..]
    }
    /// Committed places.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }
    /// Nothing is committed.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
    /// The request's sampling parameters.
    pub fn sampling(&self) -> &Sampling {
        &self.rules.sampling
    }
    /// Whether a stop condition was met.
    pub fn finished(&self) -> bool {
        self.progress.end.is_some()
    }
    /// How many more tokens may be committed: no draft need be longer than this less one.
    pub fn room(&self) -> usize {
        let made = self.tokens.len() - self.prompt - self.progress.latents;
        let context = self.rules.context.saturating_sub(self.tokens.len());
        (self.rules.most(self.prompt).saturating_sub(made)).min(context)
    }
    /// What the request has cost so far.
    pub fn usage(&self) -> Usage {
        self.with(|s| s.meter.borrow().usage.clone())
    }
    /// Seed of this sequence's noise: the request's, mixed with the roles of the forks that led here.
    pub fn seed(&self) -> u64 {
        self.with(|s| s.seed)
    }
    /// Noise for verifying a tree that hangs from the last committed token.
    pub fn noise(&self) -> Noise {
        Noise { seed: self.seed(), base: self.tokens.len() }
    }
    /// The model with this role.
    pub fn model(&self, role: &str) -> Option<ModelId> {
        self.shared.borrow().model(role)
    }
    /// The model with this role, or an error that names those there are.
    ///
    /// # Errors
    /// [`Error::NoModel`].
    pub fn require(&self, role: &str) -> Result<ModelId> {
        let have = || self.shared.borrow().models.iter().map(|m| m.role.clone()).collect();
        self.model(role).ok_or_else(|| Error::NoModel { role: role.into(), have: have() })
    }
    /// Facts of this sequence's model.
    pub fn card(&self) -> Rc<ModelCard> {
        let inner = self.shared.borrow();
        inner.models[inner.seqs[self.key].model].card.clone()
    }
    /// Facts of a model.
    pub fn card_of(&self, model: ModelId) -> Rc<ModelCard> {
        self.shared.borrow().models[model].card.clone()
    }
    /// Rows of other sequences in the last forward of this sequence's model: what it runs beside.
    pub fn others(&self) -> usize {
        let inner = self.shared.borrow();
        let seq = &inner.seqs[self.key];
        inner.models[seq.model].last_rows.saturating_sub(seq.last_rows)
    }
    /// Time of a forward of `rows` rows of this sequence, relative to one row, beside what runs with it now.
    pub fn cost(&self, rows: usize) -> f64 {
        self.costs()(rows)
    }
    /// [`Sequence::cost`] to be asked for many numbers of rows: what it rests on now is looked up once.
    pub fn costs(&self) -> impl Fn(usize) -> f64 + use<> {
        self.calibrate();
        let others = self.others();
        let inner = self.shared.borrow();
        let curve = inner.models[inner.seqs[self.key].model].cost.curve(self.tokens.len());
        let one = if others == 0 { 1.0 } else { curve.relative(others + 1) };
        move |rows| curve.relative(others + rows) / one
    }
    /// As [`Sequence::cost`], in units of a forward of one row of `main`'s model: what drafting on a small model costs
    /// beside a large one. By the measured times where both are known, else by the bytes of weights that a row reads.
    pub fn cost_beside(&self, rows: usize, main: &Sequence) -> f64 {
        self.calibrate();
        main.calibrate();
        let ratio = {
            let inner = self.shared.borrow();
            let (mine, theirs) = (&inner.models[inner.seqs[self.key].model], &inner.models[inner.seqs[main.key].model]);
            let places = main.tokens.len();
            match (mine.cost.one(places), theirs.cost.one(places)) {
                (Some(mine), Some(theirs)) => mine / theirs,
                _ if mine.card.bytes > 0 && theirs.card.bytes > 0 => mine.card.bytes as f64 / theirs.card.bytes as f64,
                _ => 1.0,
            }
        };
        ratio * self.cost(rows)
    }
    /// Measure what rows of its model cost, unless that was done.
    fn calibrate(&self) {
        let mut inner = self.shared.borrow_mut();
        let model = inner.seqs[self.key].model;
        inner.models[model].calibrate(&|| false);
    }
    /// One value per engine and type, made on first use: tables shared by all requests.
    pub fn resource<T: Any>(&self, make: impl FnOnce() -> T) -> Rc<RefCell<T>> {
        self.keyed_resource(None, make)
    }
    /// One value per model and type.
    pub fn resource_of<T: Any>(&self, model: ModelId, make: impl FnOnce() -> T) -> Rc<RefCell<T>> {
        self.keyed_resource(Some(model), make)
    }
    fn keyed_resource<T: Any>(&self, model: Option<ModelId>, make: impl FnOnce() -> T) -> Rc<RefCell<T>> {
        let key = (TypeId::of::<T>(), model);
        let found = self.shared.borrow().resources.get(&key).cloned();
        let any = match found {
            Some(any) => any,
            None => {
                let made: Rc<dyn Any> = Rc::new(RefCell::new(make())); // outside the borrow: foreign code
                self.shared.borrow_mut().resources.insert(key, made.clone());
                made
            }
        };
        any.downcast().unwrap_or_else(|_| unreachable!("resources are keyed by their type"))
    }

    // ---- how it is bent ----

    /// Another bending for this sequence's choices (a draft's temperature, say). Forks inherit it.
    pub fn set_warp(&mut self, warp: Warp) {
        self.with(|s| s.warp = warp);
    }
    /// The bending of its choices.
    pub fn warp(&self) -> Warp {
        self.with(|s| s.warp)
    }
    /// Change the model inside for this sequence from now on; what is computed stays as it is.
    pub fn set_edits(&mut self, edits: Option<Arc<Edits>>) {
        self.with(|s| {
            // KV of two kinds: neither to be shared nor to be computed again.
            s.pinned |= !s.table.is_empty() && s.edits != edits;
            s.edits = edits;
        });
    }

    // ---- forwards ----

    /// Compute what is committed, read at its end.
    ///
    /// # Errors
    /// As [`Sequence::forward`].
    pub async fn next(&mut self, read: Readout) -> Result<Outcome> {
        self.forward(Plan::next(read)).await
    }
    /// Compute all but the last committed token, so that forks share it and each still sees its root.
    ///
    /// # Errors
    /// As [`Sequence::forward`].
    pub async fn prefill(&mut self) -> Result<()> {
        self.forward(Plan::next(Readout::NOTHING).leave(1)).await.map(drop)
    }
    /// Lay out a canvas over `places`, which may begin inside what is committed (a prompt seen by everybody) and goes
    /// on with mask tokens. Its places are no debt: the strategy computes them.
    ///
    /// # Errors
    /// [`Error::Sequence`] when the model has no mask token or the places do not fit.
    pub fn canvas(&mut self, places: Range<usize>) -> Result<Canvas<'_>> {
        Canvas::open(self, places)
    }
    /// Go on with a canvas of this sequence that was put aside.
    pub fn resume(&mut self, sheet: Sheet) -> Canvas<'_> {
        Canvas::resume(self, sheet)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        if let Some(output) = self.output.take() {
            // The strategy ended without a stop condition: say what is left of the text.
            if self.progress.end.is_none() && !self.generated().is_empty() {
                if let Some(text) = &mut self.progress.text {
                    text.finish();
                }
                let generated = &self.tokens[self.prompt..];
                let told = generated.len().min(output.borrow().places);
                output.borrow_mut().take(&generated[..told], &self.progress, &self.rules.sampling.stop);
            }
        }
        if self.key != usize::MAX {
            let state = self.shared.borrow_mut().drop_seq(self.key);
            drop(state);
        }
    }
}
