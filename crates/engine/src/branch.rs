//! Other sequences of the same request: forks, siblings on other models, branches that become the answer.
use crate::error::{Error, Result};
use crate::inner::{ModelId, SeqState};
use crate::plan::LATENT;
use crate::processor::{self};
use crate::sequence::Sequence;
use crate::tail::Tail;
use omnidecode_core::tree::ROOT;
use std::collections::BTreeMap;

impl Sequence {
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
        let mut branch = self.twin(key, role);
        // What was read at the last place tells of the token that the branch commits first.
        let read = || self.with(|s| s.tail.outcome.as_ref().map(|(out, _)| (out.clone(), ROOT)));
        branch.spoke = self.spoke.clone().or_else(read);
        branch.carriages = self.carriages.iter().map(|c| c.fork()).collect();
        branch
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
            carriages: Vec::new(),
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
        std::mem::swap(&mut self.carriages, &mut branch.carriages);
        if self.output.is_some() {
            // Told again from the beginning, the branch's text ends where it ended.
            let tokens = std::mem::take(&mut self.tokens);
            let progress = std::mem::take(&mut self.progress);
            let ended = progress.end;
            self.progress.origins = progress.origins;
            self.progress.logprobs = progress.logprobs;
            self.progress.marks = progress.marks;
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
}
