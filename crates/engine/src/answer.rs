//! What is sent of a request's answer, and when it ends.
use crate::canvas::Mark;
use crate::handle::Outbox;
use crate::judge::Judge;
use crate::plan::LATENT;
use crate::processor::LogitsProcessor;
use crate::request::{Alternative, Delta, Event, Note, Reason, StopReason, TokenLogprob};
use crate::sampling::Sampling;
use crate::text::{Detokenizer, Text};
use crate::usage::Origin;
use omnidecode_core::Token;
use std::sync::Arc;

/// What all sequences of a request share.
pub(crate) struct Rules {
    pub sampling: Sampling,
    pub processors: Vec<Arc<dyn LogitsProcessor>>,
    pub text: Option<Arc<dyn Detokenizer>>,
    pub judge: Option<Arc<dyn Judge>>,
    /// Whether the reader follows the canvas.
    pub watch: bool,
    /// End-of-text tokens of the main model.
    pub eos: Vec<Token>,
    pub context: usize,
}
impl Rules {
    /// The same without processors.
    pub fn without_processors(&self) -> Rules {
        Rules {
            sampling: self.sampling.clone(),
            processors: Vec::new(),
            text: self.text.clone(),
            judge: self.judge.clone(),
            watch: self.watch,
            eos: self.eos.clone(),
            context: self.context,
        }
    }
    /// Most tokens of an answer to a prompt of so many.
    pub fn most(&self, prompt: usize) -> usize {
        let context = self.context.saturating_sub(prompt);
        self.sampling.max_tokens.map_or(context, |m| m.min(context))
    }
}

/// Why a sequence has ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct End {
    pub reason: Reason,
    pub stop: Option<StopReason>,
}
impl End {
    /// Whether the last token ended it, not its text or the length.
    pub fn by_token(&self) -> bool {
        self.reason == Reason::Stop && !matches!(self.stop, Some(StopReason::Text(_)))
    }
}

/// Generated tokens of one sequence as a reader would see them.
#[derive(Default)]
pub(crate) struct Progress {
    pub end: Option<End>,
    pub text: Option<Text>,
    /// One for each generated place.
    pub origins: Vec<Origin>,
    pub logprobs: Vec<TokenLogprob>,
    /// What companions marked of them: number, label.
    pub marks: Vec<(usize, &'static str)>,
    /// Generated places that hold no token.
    pub latents: usize,
}

impl Progress {
    /// A branch's progress; its text is made when it is needed.
    pub fn fork(&self) -> Progress {
        Progress {
            end: self.end.clone(),
            text: None,
            origins: self.origins.clone(),
            logprobs: self.logprobs.clone(),
            marks: self.marks.clone(),
            latents: self.latents,
        }
    }
    /// Judge the last of `generated`, which was just committed.
    pub fn judge(&mut self, rules: &Rules, generated: &[Token], prompt: usize, wants_text: bool) {
        let Some(&token) = generated.last() else { return };
        if token == LATENT {
            self.latents += 1;
            return;
        }
        let s = &rules.sampling;
        let made = generated.len() - self.latents;
        let may_stop = made > s.min_tokens || s.min_tokens == 0;
        let mut end = None;
        if may_stop && s.stop_token_ids.contains(&token) {
            end = Some(End { reason: Reason::Stop, stop: Some(StopReason::Token(token)) });
        } else if may_stop && !s.ignore_eos && rules.eos.contains(&token) {
            end = Some(End::default());
        }
        if wants_text || self.text.is_some() || !s.stop.is_empty() {
            let last_is_end = end.is_some();
            let from = self.read(rules, generated, last_is_end);
            if let (Some(text), true) = (&mut self.text, may_stop && !last_is_end)
                && let Some(stop) = text.stop(from, &s.stop, s.include_stop_str_in_output)
            {
                end = Some(End { reason: Reason::Stop, stop: Some(StopReason::Text(stop)) });
            }
        }
        if end.is_none() && (made >= rules.most(prompt) || generated.len() + prompt >= rules.context) {
            end = Some(End { reason: Reason::Length, stop: None });
        }
        if end.is_some()
            && let Some(text) = &mut self.text
        {
            text.finish();
        }
        self.end = end;
    }
    /// Bring the text up to date; returns where the last token's text begins.
    pub fn read(&mut self, rules: &Rules, generated: &[Token], last_is_end: bool) -> usize {
        let Some(detokenizer) = &rules.text else { return 0 };
        let text = self.text.get_or_insert_with(|| Text::new(&**detokenizer));
        let mut from = text.as_str().len();
        while text.fed < generated.len() {
            let token = generated[text.fed];
            let silent = last_is_end && text.fed + 1 == generated.len() && !rules.sampling.include_stop_str_in_output;
            if token == LATENT || silent {
                text.skip();
            } else {
                from = text.push(token);
            }
        }
        from
    }
}

/// The one answer of a request, on its way to the reader. Events are sent after each poll of the strategy.
pub(crate) struct Output {
    pub outbox: Outbox,
    /// Generated places and bytes of text handed over.
    pub places: usize,
    bytes: usize,
    pending: Delta,
    /// Tokens sent or pending.
    pub tokens: usize,
    pub end: End,
    pub score: Option<f64>,
    pub others: Vec<Alternative>,
    pub notes: Vec<Note>,
}

impl Output {
    pub fn new(outbox: Outbox) -> Self {
        Self {
            outbox,
            places: 0,
            bytes: 0,
            pending: Delta::default(),
            tokens: 0,
            end: End::default(),
            score: None,
            others: Vec::new(),
            notes: Vec::new(),
        }
    }
    /// Hand over what is new.
    pub fn take(&mut self, generated: &[Token], progress: &Progress, stops: &[String]) {
        let new = generated.len().saturating_sub(self.places);
        self.pending.tokens.reserve(new);
        self.pending.origins.reserve(new);
        for (i, &token) in generated.iter().enumerate().skip(self.places) {
            if token != LATENT {
                self.pending.tokens.push(token);
                self.tokens += 1;
                self.pending.origins.push(progress.origins.get(i).copied().unwrap_or_default());
                if let Some(l) = progress.logprobs.get(i) {
                    self.pending.logprobs.push(l.clone());
                }
            }
        }
        self.places = self.places.max(generated.len());
        if let Some(text) = &progress.text {
            let safe = text.safe(stops);
            if safe > self.bytes {
                self.pending.text.push_str(&text.as_str()[self.bytes..safe]);
                self.bytes = safe;
            }
        }
        if let Some(end) = &progress.end {
            self.end = end.clone();
        }
    }
    /// A canvas changed.
    pub fn mark(&mut self, mark: Mark) {
        self.pending.marks.push(mark);
    }
    /// What is pending, to be sent.
    fn pending(&mut self) -> Option<Event> {
        let Delta { tokens, text, marks, .. } = &self.pending;
        let some = !tokens.is_empty() || !text.is_empty() || !marks.is_empty();
        some.then(|| Event::Delta(std::mem::take(&mut self.pending)))
    }
    /// Send what is pending; whether there was anything.
    pub fn flush(&mut self) -> bool {
        let delta = self.pending();
        let some = delta.is_some();
        if some {
            self.outbox.send(delta);
        }
        some
    }
    /// Send what is pending, and the end.
    pub fn end(&mut self, end: Event) {
        let delta = self.pending();
        self.outbox.send(delta.into_iter().chain([end]));
    }
}
