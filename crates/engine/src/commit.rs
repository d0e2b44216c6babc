//! What becomes of tokens: pushed, accepted from flight, appended, rolled back.
use crate::answer::{End, Progress};
use crate::error::{Error, Result};
use crate::outcome::Seen;
use crate::plan::{LATENT, Plan, Readout, Row};
use crate::processor::{self, States};
use crate::request::{Alternative, Note, TokenLogprob};
use crate::sequence::Sequence;
use crate::tail::Tail;
use crate::usage::{Origin, Source};
use omnidecode_core::Token;
use omnidecode_core::tree::ROOT;
use omnidecode_core::verify::Verdict;
use std::sync::Arc;

impl Sequence {
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
        let spoke = self.spoke.take().or_else(|| self.with(|s| s.tail.outcome.take()).map(|(out, _)| (out, ROOT)));
        let old = self.shared.borrow_mut().clear_tail(self.key);
        drop(old);
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
        let seen = tail.outcome.take().and_then(|(out, before)| Some((out, shift(last, before)?)));
        // Of nothing in flight, what a companion read elsewhere still speaks.
        self.spoke = seen.or(self.spoke.take().filter(|_| last == ROOT));
        self.publish();
        Ok(verdict.next)
    }
    /// Move the keys and values of a path of rows that were in flight, and whose tokens are committed, behind the
    /// prefix, and give up the rest.
    pub(crate) fn settle(&self, tail: &mut Tail, path: &[u32]) {
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
                seq.pinned |= !tail.pure;
                model.moves.push((tail.slots[row as usize], seq.table.slot(tail.base + j)));
                seq.table.advance(tail.base + j + 1);
            }
        }
        let computed = seq.table.len();
        seq.table.truncate(&mut model.pool, computed); // pages that were made writable and not used
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
        if let Some(label) = seen.and_then(Seen::mark) {
            self.progress.marks.push((self.tokens.len() - 1 - self.prompt, label));
        }
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
            let told = output.borrow().places;
            output.borrow_mut().take(generated, &self.progress, &self.rules.sampling.stop);
            let new = self.progress.marks.iter().filter(|m| m.0 >= told);
            let note = |&(made, label): &(usize, _)| Note { label, place: self.prompt + made, tokens: Vec::new() };
            output.borrow_mut().notes.extend(new.map(note));
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
    /// Append a weighted sum of token embeddings in place of one token's (superposed drafts): debt as any other.
    ///
    /// # Errors
    /// [`Error::UnknownToken`], and [`Error::Sequence`] once the answer has begun.
    pub fn extend_mix(&mut self, parts: impl Into<Arc<[(Token, f32)]>>) -> Result<()> {
        let row = Row::Mix(parts.into());
        Plan::rows(vec![row.clone()], Default::default(), Readout::NOTHING).check(&self.card(), 0)?;
        self.append(row)
    }
    /// Another text that was found, with its score: handed over with the end, in this order. It ends at the first stop
    /// condition in it.
    pub fn offer(&mut self, mut tokens: Vec<Token>, score: f64) {
        let Some(output) = &self.output else { return };
        let mut progress = Progress::default();
        let end = (1..=tokens.len()).find(|&end| {
            progress.judge(&self.rules, &tokens[..end], self.prompt, true);
            progress.end.is_some()
        });
        tokens.truncate(end.unwrap_or(tokens.len()));
        if let Some(text) = &mut progress.text {
            text.finish();
        }
        let text = progress.text.as_ref().map(|text| text.as_str().to_owned()).unwrap_or_default();
        let End { reason, stop: stop_reason } = progress.end.unwrap_or_default();
        output.borrow_mut().others.push(Alternative { tokens, text, score, reason, stop_reason });
    }
    /// What the answer is worth on the strategy's own scale: handed over with the end.
    pub fn rate(&mut self, score: f64) {
        if let Some(output) = &self.output {
            output.borrow_mut().score = Some(score);
        }
    }
    /// Something that was seen on the way and becomes no token, for reports: handed over with the end.
    pub fn note(&mut self, label: &'static str, place: usize, tokens: Vec<(Token, f32)>) {
        if let Some(output) = &self.output {
            output.borrow_mut().notes.push(Note { label, place, tokens });
        }
    }
    /// Count tokens that were proposed and judged otherwise than by [`Sequence::accept`].
    pub fn judged(&mut self, proposed: usize, kept: usize) {
        self.with(|s| {
            let usage = &mut s.meter.borrow_mut().usage;
            usage.drafted += proposed;
            usage.accepted += kept.min(proposed);
        });
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
        let old = self.shared.borrow_mut().clear_tail(self.key);
        drop(old);
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
        self.progress.marks.retain(|m| m.0 < made);
        self.progress.latents = self.generated().iter().filter(|&&t| t == LATENT).count();
        let states = self.states();
        let mut guard = self.shared.borrow_mut();
        let tail_states = guard.clear_tail(self.key);
        let inner = &mut *guard;
        let seq = &mut inner.seqs[self.key];
        seq.tokens.truncate(len);
        seq.vectors.split_off(&len);
        let old = std::mem::replace(&mut seq.states, states);
        seq.table.truncate(&mut inner.models[seq.model].pool, len);
        drop(guard);
        drop((tail_states, old));
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
