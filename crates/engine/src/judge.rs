//! A judge of texts, for searches: given with a request, asked in batches, its work counted.
use crate::error::{Error, Result};
use crate::plan::LATENT;
use crate::sequence::Sequence;
use omnidecode_core::Token;
use std::sync::Arc;

/// A text to be judged, whole or in part.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Tokens of the prompt.
    pub prompt: &'a [Token],
    /// Text of the prompt; empty without a detokenizer.
    pub question: &'a str,
    /// Tokens after the prompt, an end-of-text token included.
    pub tokens: &'a [Token],
    /// Their text; empty without a detokenizer.
    pub text: &'a str,
    /// Whether nothing will follow.
    pub finished: bool,
}

/// Says how good texts are: a rule, a model of another kind, a callable of Python. It runs on the engine thread, where
/// everybody waits for it: what takes long should look at the whole batch at once.
pub trait Judge: Send + Sync {
    /// One score a candidate, more is better. Searches that take scores for probabilities (particle filtering, A*)
    /// expect them in [0, 1].
    ///
    /// # Errors
    /// Fails the request, with this message.
    fn judge(&self, batch: &[Candidate<'_>]) -> std::result::Result<Vec<f32>, String>;
}

impl<F> Judge for F
where
    F: Fn(&[Candidate<'_>]) -> std::result::Result<Vec<f32>, String> + Send + Sync,
{
    fn judge(&self, batch: &[Candidate<'_>]) -> std::result::Result<Vec<f32>, String> {
        self(batch)
    }
}

impl Sequence {
    /// The judge that came with the request.
    pub fn judge(&self) -> Option<Arc<dyn Judge>> {
        self.rules.judge.clone()
    }
    /// Ask a judge, and count it.
    ///
    /// # Errors
    /// [`Error::Strategy`] when the judge fails, or does not give one finite score a candidate.
    pub fn ask(&self, judge: &dyn Judge, batch: &[Candidate<'_>]) -> Result<Vec<f32>> {
        self.count_judged(batch.len());
        let scores = judge.judge(batch).map_err(|e| Error::Strategy(format!("the judge failed: {e}")))?;
        if scores.len() != batch.len() || scores.iter().any(|s| !s.is_finite()) {
            let n = batch.len();
            return Err(Error::Strategy(format!("the judge gave {scores:?}: {n} finite numbers are expected")));
        }
        Ok(scores)
    }
    /// Count one batch of judged texts, however they were judged.
    pub fn count_judged(&self, texts: usize) {
        self.with(|s| {
            let usage = &mut s.meter.borrow_mut().usage;
            usage.judge_calls += 1;
            usage.judged += texts;
        });
    }

    /// Text of any tokens, as if an answer began with them; empty without a detokenizer.
    pub fn decode(&self, tokens: &[Token]) -> String {
        let Some(detokenizer) = &self.rules.text else { return String::new() };
        let mut stream = detokenizer.stream();
        let mut text = String::new();
        tokens.iter().filter(|&&t| t != LATENT).for_each(|&t| stream.push(t, &mut text));
        stream.finish(&mut text);
        text
    }
    /// Text of this sequence so far, without half characters; empty without a detokenizer. An end-of-text token that
    /// ended it has no text.
    pub fn text(&mut self) -> &str {
        let (ended, told) = match &self.progress.end {
            Some(end) => (true, end.by_token()),
            None => (false, false),
        };
        self.progress.read(&self.rules, &self.tokens[self.prompt..], told);
        match &mut self.progress.text {
            Some(text) => {
                if ended {
                    text.finish();
                }
                text.as_str()
            }
            None => "",
        }
    }
    /// Whether tokens have a text in this request.
    pub fn has_text(&self) -> bool {
        self.rules.text.is_some()
    }
    /// Whether anything but the warp changes the model's law for this request: then only `choice` and `logits` know it.
    pub fn is_bent(&self) -> bool {
        !self.rules.processors.is_empty() || self.carriages.iter().any(|c| c.bends())
    }
}
