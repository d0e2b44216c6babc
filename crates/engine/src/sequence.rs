//! Committed tokens and a page table on one model. Tokens not yet computed are *debt*: the next forward runs them
//! first. Prefill, the pushed token, a draft model catching up and recovery from eviction are all the same debt.
use crate::answer::{Output, Progress, Rules};
use crate::canvas::Canvas;
use crate::error::{Error, Result};
use crate::inner::{Meter, ModelId, SeqState, Shared, TaskId, Ticket};
use crate::outcome::{Outcome, Seen};
use crate::plan::{LATENT, Plan, Readout, Row};
use crate::processor::{self, States};
use crate::request::TokenLogprob;
use crate::sampling::Sampling;
use crate::tail::Tail;
use crate::usage::{Origin, Source, Usage};
use omnidecode_core::Token;
use omnidecode_core::law::Warp;
use omnidecode_core::tree::ROOT;
use omnidecode_core::verify::{Noise, Verdict};
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
    role: u64,
    /// Where the token that follows the last accepted row was read.
    spoke: Option<(Outcome, u32)>,
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
    fn states(&self) -> States {
        let (prompt, made) = self.tokens.split_at(self.prompt);
        let mut states: States = self.rules.processors.iter().map(|p| p.start(prompt)).collect();
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
        let others = self.others();
        let inner = self.shared.borrow();
        let model = &inner.models[inner.seqs[self.key].model];
        let time = |n| model.cost.relative(n, self.tokens.len());
        if others == 0 { time(rows) } else { time(others + rows) / time(others + 1) }
    }
    /// As [`Sequence::cost`], in units of a forward of one row of `main`'s model: what drafting on a small model costs
    /// beside a large one. By the measured times where both are known, else by the bytes of weights that a row reads.
    pub fn cost_beside(&self, rows: usize, main: &Sequence) -> f64 {
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

    /// One forward: the debt, then the plan's rows. The only place a strategy waits for the model. Rows in flight are
    /// given up unless the plan is `Extend` or `Rerun`.
    ///
    /// # Errors
    /// [`Error::Plan`] and its kin for a plan that cannot run, [`Error::OutOfPages`] and [`Error::OutOfTail`] when it
    /// never fits, [`Error::NotFinite`] and [`Error::Unsupported`] from the network.
    pub async fn forward(&mut self, plan: Plan) -> Result<Outcome> {
        self.spoke = None;
        Ticket::launch(&self.shared, self.key, plan)?.await
    }
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

    // ---- commits ----

    /// Commit one token. `None` when there is nothing more to say.
    ///
    /// # Errors
    /// [`Error::UnknownToken`].
    pub fn push(&mut self, token: Token) -> Result<Option<Token>> {
        let vocab = self.card().vocab;
        if token as usize >= vocab {
            return Err(Error::UnknownToken { token, vocab });
        }
        if self.finished() {
            return Ok(None);
        }
        let tail = self.shared.borrow_mut().clear_tail(self.key);
        let spoke = self.spoke.take().or_else(|| tail.outcome.as_ref().map(|(out, _)| (out.clone(), ROOT)));
        let seen = spoke.as_ref().and_then(|(out, row)| out.at_if_read(*row));
        self.commit(token, seen, Origin::default());
        self.with(|s| {
            s.tokens.push(token);
            processor::advance(&mut s.states, token);
        });
        self.publish();
        Ok((!self.finished()).then_some(token))
    }

    /// Commit a path of the rows in flight, their keys and values included, and give the token that follows, for
    /// `push`. Stops at a stop condition inside the path.
    ///
    /// # Errors
    /// [`Error::Sequence`] when the path is not one of the rows in flight.
    pub fn accept(&mut self, verdict: &Verdict) -> Result<Token> {
        let mut tail = self.with(|s| std::mem::take(&mut s.tail));
        let (mut kept, committed) = (0, self.tokens.len());
        let checked = self.check_path(&tail, &verdict.path);
        if checked.is_ok() {
            kept = self.walk(&tail, &verdict.path);
        }
        {
            let usage = &mut self.with(|s| s.meter.clone());
            let usage = &mut usage.borrow_mut().usage;
            usage.drafted += tail.places.iter().filter(|&&p| p as usize >= committed).count();
            usage.accepted += self.tokens.len() - committed;
        }
        let last = verdict.path[..kept].last().copied().unwrap_or(ROOT);
        self.settle(&mut tail, &verdict.path[..kept]);
        checked?;
        self.spoke = tail.outcome.take().and_then(|(out, before)| Some((out, shift(last, before)?)));
        self.publish();
        Ok(verdict.next)
    }
    /// Move the keys and values of a path of rows that were in flight, and whose tokens are committed, behind the
    /// prefix, and give up the rest.
    fn settle(&self, tail: &mut Tail, path: &[u32]) {
        let mut guard = self.shared.borrow_mut();
        let inner = &mut *guard;
        let (seq, prefix_cache) = (&mut inner.seqs[self.key], inner.config.prefix_cache);
        let model = &mut inner.models[seq.model];
        let layers = model.card.layers;
        // Without its pages, a page more, or all its layers, a row is debt.
        let some = !path.is_empty();
        let mut keep = some && seq.table.len() == tail.base && !tail.slots.is_empty();
        keep = keep && seq.table.grow(&mut model.pool, tail.base + path.len(), &mut model.moves);
        for (j, &row) in path.iter().enumerate() {
            keep = keep && tail.done[row as usize] == layers;
            if keep {
                model.moves.push((tail.slots[row as usize], seq.table.slot(tail.base + j)));
                seq.table.advance(tail.base + j + 1);
            }
        }
        let computed = seq.table.len();
        seq.table.truncate(&mut model.pool, computed); // pages that were made writable and not used
        seq.pinned |= keep && !tail.pure;
        if let (true, Some(salt)) = (prefix_cache, seq.shares()) {
            seq.table.publish(&mut model.pool, &seq.tokens, salt);
        }
        model.slots.give(&mut tail.slots);
        // What was read at the last row kept tells of the token that follows.
        let old_states = match path.last() {
            Some(&last) if !tail.states.is_empty() => {
                std::mem::replace(&mut seq.states, std::mem::take(&mut tail.states[last as usize]))
            }
            _ => States::new(),
        };
        drop(guard);
        drop(old_states);
    }
    /// The path must go down from the root, row by row.
    fn check_path(&self, tail: &Tail, path: &[u32]) -> Result<()> {
        let bad = |m: String| Err(Error::Sequence(format!("cannot accept: {m}")));
        let mut parent = ROOT;
        for (j, &row) in path.iter().enumerate() {
            let Some(&place) = tail.places.get(row as usize) else {
                return bad(format!("row {row} of {} in flight", tail.rows.len()));
            };
            if place as usize != tail.base + j || (tail.ordered && tail.parents[row as usize] != parent) {
                return bad(format!("row {row} (at place {place}) does not follow row {parent} of the path"));
            }
            let token = tail.rows[row as usize].token();
            if self.tokens.get(tail.base + j).is_some_and(|&t| t != token) {
                return bad(format!("row {row} is token {token}, place {place} is committed otherwise"));
            }
            parent = row;
        }
        Ok(())
    }
    /// Commit tokens along a path until the end; rows kept.
    fn walk(&mut self, tail: &Tail, path: &[u32]) -> usize {
        let mut parent = ROOT;
        for (j, &row) in path.iter().enumerate() {
            if self.finished() {
                return j;
            }
            let place = tail.base + j;
            if place >= self.tokens.len() {
                let row_in = &tail.rows[row as usize];
                let read = tail.outcome.as_ref();
                let seen = read.and_then(|(out, before)| out.at_if_read(shift(parent, *before)?));
                let origin = Origin { source: Source::Draft, depth: j as u32 + 1, ..Origin::default() };
                self.commit(row_in.token(), seen, origin);
                self.with(|s| {
                    s.tokens.push(row_in.token());
                    if row_in.token() == LATENT {
                        s.vectors.insert(place, row_in.clone());
                    }
                });
            }
            parent = row;
        }
        path.len()
    }

    pub(crate) fn commit(&mut self, token: Token, seen: Option<Seen<'_>>, origin: Origin) {
        self.tokens.push(token);
        let forward =
            if origin.forward > 0 { origin.forward } else { self.with(|s| s.meter.borrow().usage.forwards) as u32 };
        self.progress.origins.push(Origin { forward, branch: self.role, ..origin });
        if let Some(n) = self.rules.sampling.logprobs {
            self.progress.logprobs.push(reported(token, seen, n));
        }
        let wants_text = self.output.is_some();
        self.progress.judge(&self.rules, &self.tokens[self.prompt..], self.prompt, wants_text);
    }
    /// Hand what is committed to the reader, if this is the answer.
    pub(crate) fn publish(&mut self) {
        if let Some(output) = &self.output {
            let generated = &self.tokens[self.prompt..];
            output.borrow_mut().take(generated, &self.progress, &self.rules.sampling.stop);
            let tokens = output.borrow().tokens;
            self.with(|s| s.meter.borrow_mut().usage.generated = tokens);
        }
    }

    /// Append a token without stop conditions: to the prompt, as long as nothing is generated, or to a sequence that
    /// is not the answer.
    ///
    /// # Errors
    /// [`Error::UnknownToken`], and [`Error::Sequence`] once the answer has begun.
    pub fn extend(&mut self, token: Token) -> Result<()> {
        let vocab = self.card().vocab;
        if token as usize >= vocab {
            return Err(Error::UnknownToken { token, vocab });
        }
        self.append(Row::Token(token))
    }
    /// Append a vector in place of a token's embedding (a latent thought): debt as any other.
    ///
    /// # Errors
    /// [`Error::Plan`] for a vector of the wrong width, [`Error::Sequence`] once the answer has begun.
    pub fn extend_vector(&mut self, vector: impl Into<Arc<[f32]>>) -> Result<()> {
        let row = Row::Embedding(vector.into());
        Plan::rows(vec![row.clone()], Default::default(), Readout::NOTHING).check(&self.card(), 0)?;
        self.append(row)
    }
    fn append(&mut self, row: Row) -> Result<()> {
        let begun = self.tokens.len() > self.prompt;
        if self.output.is_some() && begun {
            return Err(Error::Sequence("the answer has begun: commit with `push`, or extend a fork".into()));
        }
        let context = self.rules.context;
        if self.tokens.len() >= context {
            return Err(Error::ContextFull { place: self.tokens.len(), context });
        }
        let tail = self.shared.borrow_mut().clear_tail(self.key);
        drop(tail);
        let (place, token) = (self.tokens.len(), row.token());
        self.tokens.push(token);
        let states = if self.output.is_some() {
            self.prompt += 1;
            Some(self.states())
        } else {
            self.progress.latents += usize::from(token == LATENT);
            self.progress.origins.push(Origin { branch: self.role, ..Origin::default() });
            if self.rules.sampling.logprobs.is_some() {
                self.progress.logprobs.push(reported(token, None, 0));
            }
            None
        };
        self.with(|s| {
            s.tokens.push(token);
            if token == LATENT {
                s.vectors.insert(place, row);
            }
            match states {
                Some(states) => s.states = states,
                None if token != LATENT => processor::advance(&mut s.states, token),
                None => {}
            }
        });
        Ok(())
    }

    /// Forget all but the first `len` places.
    ///
    /// # Errors
    /// [`Error::Sequence`] when some of them were handed to the reader.
    pub fn rollback(&mut self, len: usize) -> Result<()> {
        let sent = self.output.as_ref().map_or(0, |o| o.borrow().places);
        if len >= self.tokens.len() {
            return Ok(());
        }
        if len < self.prompt + sent && self.output.is_some() {
            return Err(Error::Sequence(format!("place {len} was handed to the reader: roll back a fork instead")));
        }
        self.cut(len);
        Ok(())
    }
    pub(crate) fn cut(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.prompt = self.prompt.min(len);
        let made = len - self.prompt;
        self.progress.end = None;
        self.progress.text = None;
        self.progress.origins.truncate(made);
        self.progress.logprobs.truncate(made);
        self.progress.latents = self.generated().iter().filter(|&&t| t == LATENT).count();
        let states = self.states();
        let mut guard = self.shared.borrow_mut();
        let tail = guard.clear_tail(self.key);
        let inner = &mut *guard;
        let seq = &mut inner.seqs[self.key];
        seq.tokens.truncate(len);
        seq.vectors.split_off(&len);
        let old = std::mem::replace(&mut seq.states, states);
        seq.table.truncate(&mut inner.models[seq.model].pool, len);
        drop(guard);
        drop((tail, old));
    }

    // ---- other sequences ----

    /// A branch: same tokens, shared pages, its own noise keyed by `role` (0 keeps the noise). It streams nothing.
    pub fn fork(&self, role: u64) -> Sequence {
        let (states, mut seed) = self.with(|s| (processor::fork(&s.states), s.seed));
        if role > 0 {
            seed = omnidecode_core::noise::pair(seed, role);
        }
        let mut guard = self.shared.borrow_mut();
        let inner = &mut *guard;
        let mine = &inner.seqs[self.key];
        let state = SeqState {
            task: mine.task,
            model: mine.model,
            tokens: self.tokens.clone(),
            vectors: mine.vectors.clone(),
            table: mine.table.fork(&mut inner.models[mine.model].pool),
            tail: Tail::default(),
            states,
            warp: mine.warp,
            seed,
            floor: mine.floor,
            pinned: mine.pinned,
            salt: mine.salt,
            edits: mine.edits.clone(),
            logprobs: mine.logprobs,
            prompt: 0,
            meter: mine.meter.clone(),
            last_rows: 0,
        };
        let key = inner.seqs.insert(state);
        drop(guard);
        self.twin(key, role)
    }
    /// The same tokens on another model, nothing computed yet.
    pub fn sibling(&self, model: ModelId) -> Sequence {
        let states = self.states();
        let mut guard = self.shared.borrow_mut();
        let inner = &mut *guard;
        let mine = &inner.seqs[self.key];
        let state = SeqState {
            task: mine.task,
            model,
            tokens: self.tokens.clone(),
            // Vectors are of the width of the model they were made for.
            vectors: BTreeMap::new(),
            table: Default::default(),
            tail: Tail::default(),
            states,
            warp: mine.warp,
            seed: mine.seed,
            floor: usize::MAX,
            pinned: false,
            salt: mine.salt,
            edits: None,
            logprobs: mine.logprobs,
            prompt: 0,
            meter: mine.meter.clone(),
            last_rows: 0,
        };
        let key = inner.seqs.insert(state);
        drop(guard);
        self.twin(key, self.role)
    }
    fn twin(&self, key: usize, role: u64) -> Sequence {
        Sequence {
            shared: self.shared.clone(),
            key,
            tokens: self.tokens.clone(),
            prompt: self.prompt,
            rules: self.rules.clone(),
            progress: self.progress.fork(),
            output: None,
            role,
            spoke: None,
        }
    }
    /// The branch becomes the answer; what it has that the reader has not is handed over.
    ///
    /// # Errors
    /// [`Error::Sequence`] when the reader has seen tokens that the branch does not begin with.
    pub fn adopt(&mut self, mut branch: Sequence) -> Result<()> {
        let sent = self.output.as_ref().map_or(0, |o| o.borrow().places);
        let seen = &self.tokens[..self.prompt + sent];
        let same_model = self.with(|s| s.model) == branch.with(|s| s.model);
        if !branch.tokens.starts_with(seen) || branch.prompt != self.prompt || !same_model {
            return Err(Error::Sequence("a branch can be adopted if it goes on from what the reader has seen".into()));
        }
        std::mem::swap(&mut self.key, &mut branch.key);
        std::mem::swap(&mut self.tokens, &mut branch.tokens);
        std::mem::swap(&mut self.progress, &mut branch.progress);
        std::mem::swap(&mut self.role, &mut branch.role);
        if self.output.is_some() {
            // Told again from the beginning, the branch's text ends where it ended.
            let tokens = std::mem::take(&mut self.tokens);
            let progress = std::mem::take(&mut self.progress);
            let ended = progress.end;
            self.progress.origins = progress.origins;
            self.progress.logprobs = progress.logprobs;
            for end in self.prompt + 1..=tokens.len() {
                self.progress.judge(&self.rules, &tokens[self.prompt..end], self.prompt, true);
            }
            self.tokens = tokens;
            self.progress.end = ended;
            self.publish();
        }
        Ok(())
    }
    /// Make this sequence's tokens those of `other`, keeping what is computed of them, in pages or in flight (a draft
    /// model catching up).
    pub fn follow(&mut self, other: &Sequence) {
        let theirs = other.with(|s| s.vectors.clone());
        let mine = self.with(|s| s.vectors.clone());
        let same = |i: &usize| {
            self.tokens[*i] == other.tokens[*i] && (self.tokens[*i] != LATENT || mine.get(i) == theirs.get(i))
        };
        let common = (0..self.tokens.len().min(other.tokens.len())).take_while(same).count();
        let mut from = common;
        if common < self.tokens.len() {
            self.cut(common);
        } else {
            let mut tail = self.with(|s| std::mem::take(&mut s.tail));
            let path = tail.along(common, &other.tokens[common..]);
            from += path.len();
            let kept = &other.tokens[common..from];
            self.tokens.extend_from_slice(kept);
            self.with(|s| {
                s.tokens.extend_from_slice(kept);
                if tail.states.is_empty() {
                    kept.iter().for_each(|&t| processor::advance(&mut s.states, t));
                }
            });
            self.settle(&mut tail, &path);
        }
        let new = &other.tokens[from..];
        self.tokens.extend_from_slice(new);
        self.prompt = self.prompt.max(other.prompt.min(self.tokens.len()));
        self.progress.end = None;
        self.progress.latents = self.generated().iter().filter(|&&t| t == LATENT).count();
        self.with(|s| {
            s.tokens.extend_from_slice(new);
            new.iter().filter(|&&t| t != LATENT).for_each(|&t| processor::advance(&mut s.states, t));
        });
    }

    /// Lay out a canvas over `places`, which may begin inside what is committed (a prompt seen by everybody) and goes
    /// on with mask tokens. Its places are no debt: the strategy computes them.
    ///
    /// # Errors
    /// [`Error::Sequence`] when the model has no mask token or the places do not fit.
    pub fn canvas(&mut self, places: Range<usize>) -> Result<Canvas<'_>> {
        Canvas::open(self, places)
    }
}

fn shift(row: u32, before: usize) -> Option<u32> {
    if row == ROOT { Some(ROOT) } else { row.checked_sub(before as u32) }
}

/// What is reported of a committed token.
fn reported(token: Token, seen: Option<Seen<'_>>, n: usize) -> TokenLogprob {
    let Some(seen) = seen else { return TokenLogprob { token, logprob: None, top: Vec::new() } };
    let lse = seen.lse().unwrap_or(0.0);
    let top = seen.list().iter().take(n).map(|&(t, l)| (t, l - lse)).collect();
    TokenLogprob { token, logprob: seen.logprob_of(token), top }
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
