//! The processors that sampling parameters stand for: allowed ids, bad words, minimal length, bias, penalties, in the
//! order of vLLM.
use crate::processor::{LogitsProcessor, ProcessorState};
use crate::sampling::Sampling;
use omnidecode_core::Token;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// All built-in bending of one request.
pub(crate) struct Shaping {
    sampling: Sampling,
    /// Tokens that would end the text, banned before `min_tokens`.
    ends: Vec<Token>,
    allowed: Option<Vec<bool>>,
    /// Tokens of a bad word that the state must remember.
    memory: usize,
    penalises: bool,
}

impl Shaping {
    /// `None` when nothing is bent.
    pub fn new(sampling: &Sampling, eos: &[Token], vocab: usize) -> Option<Arc<Shaping>> {
        let penalises =
            sampling.repetition_penalty != 1.0 || sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
        let mut ends = sampling.stop_token_ids.clone();
        if !sampling.ignore_eos {
            ends.extend(eos.iter().filter(|&&t| (t as usize) < vocab));
        }
        if sampling.min_tokens == 0 {
            ends.clear();
        }
        let idle = !penalises && ends.is_empty() && sampling.logit_bias.is_empty() && sampling.bad_words.is_empty();
        if idle && sampling.allowed_token_ids.is_none() {
            return None;
        }
        let allowed = sampling.allowed_token_ids.as_ref().map(|ids| {
            let mut keep = vec![false; vocab];
            ids.iter().for_each(|&t| keep[t as usize] = true);
            keep
        });
        let memory = sampling.bad_words.iter().map(|w| w.len() - 1).max().unwrap_or(0);
        Some(Arc::new(Shaping { sampling: sampling.clone(), ends, allowed, memory, penalises }))
    }
}

/// A shared handle, so that states outlive the request's list.
pub(crate) struct Shaper(pub Arc<Shaping>);

impl LogitsProcessor for Shaper {
    fn start(&self, prompt: &[Token]) -> Box<dyn ProcessorState> {
        let mut counts: HashMap<Token, u32> = HashMap::new();
        if self.0.penalises {
            counts.extend(prompt.iter().map(|&t| (t, 0)));
        }
        let from = prompt.len() - self.0.memory.min(prompt.len());
        Box::new(ShapingState {
            rules: self.0.clone(),
            counts: Rc::new(counts),
            fresh: Vec::new(),
            recent: prompt[from..].to_vec(),
            made: 0,
        })
    }
}

/// Counts are shared by all forks; what a branch adds since is a short list.
#[derive(Clone)]
struct ShapingState {
    rules: Arc<Shaping>,
    /// Uses in the answer; present with 0 uses means in the prompt only.
    counts: Rc<HashMap<Token, u32>>,
    fresh: Vec<Token>,
    recent: Vec<Token>,
    made: usize,
}

const FRESH: usize = 48;

impl ProcessorState for ShapingState {
    fn fork(&self) -> Box<dyn ProcessorState> {
        Box::new(self.clone())
    }
    fn advance(&mut self, token: Token) {
        self.made += 1;
        if self.rules.penalises {
            self.fresh.push(token);
            if self.fresh.len() >= FRESH || Rc::strong_count(&self.counts) == 1 {
                let counts = Rc::make_mut(&mut self.counts);
                self.fresh.drain(..).for_each(|t| *counts.entry(t).or_insert(0) += 1);
            }
        }
        if self.rules.memory > 0 {
            self.recent.push(token);
            let surplus = self.recent.len().saturating_sub(self.rules.memory);
            self.recent.drain(..surplus);
        }
    }
    fn bend(&self, _position: usize, logits: &mut [f32]) {
        let Shaping { sampling, ends, allowed, .. } = &*self.rules;
        if let Some(keep) = allowed {
            for (logit, &keep) in logits.iter_mut().zip(keep) {
                if !keep {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        for word in &sampling.bad_words {
            if let Some((&last, before)) = word.split_last()
                && self.recent.ends_with(before)
            {
                logits[last as usize] = f32::NEG_INFINITY;
            }
        }
        if self.made < sampling.min_tokens {
            ends.iter().for_each(|&t| logits[t as usize] = f32::NEG_INFINITY);
        }
        for &(token, bias) in &sampling.logit_bias {
            logits[token as usize] += bias;
        }
        if self.rules.penalises {
            self.penalise(sampling, logits);
        }
    }
}

impl ShapingState {
    fn penalise(&self, sampling: &Sampling, logits: &mut [f32]) {
        let mut fresh: Vec<(Token, u32)> = Vec::with_capacity(self.fresh.len());
        for &token in &self.fresh {
            match fresh.iter_mut().find(|f| f.0 == token) {
                Some(f) => f.1 += 1,
                None => fresh.push((token, 1)),
            }
        }
        let mut one = |token: Token, uses: u32| {
            let Some(logit) = logits.get_mut(token as usize) else { return };
            let r = sampling.repetition_penalty;
            if r != 1.0 {
                *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
            }
            *logit -= sampling.frequency_penalty * uses as f32;
            if uses > 0 {
                *logit -= sampling.presence_penalty;
            }
        };
        for (&token, &uses) in &*self.counts {
            let more = fresh.iter().find(|f| f.0 == token).map_or(0, |f| f.1);
            one(token, uses + more);
        }
        for (token, uses) in fresh.into_iter().filter(|f| !self.counts.contains_key(&f.0)) {
            one(token, uses);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bent(sampling: Sampling, prompt: &[Token], made: &[Token]) -> Vec<f32> {
        let shaping = Shaping::new(&sampling, &[0], 6).expect("something is bent");
        let mut state = Shaper(shaping).start(prompt);
        let mut nodes = Vec::new();
        for &t in made {
            nodes.push(state.fork()); // a live fork forces the slow path
            state.advance(t);
        }
        let mut logits = vec![1.0, -1.0, 2.0, 3.0, 4.0, 5.0];
        state.fork().bend(0, &mut logits);
        logits
    }
    const NO: f32 = f32::NEG_INFINITY;

    #[test]
    fn nothing_to_bend_is_no_processor() {
        assert!(Shaping::new(&Sampling::default(), &[0], 6).is_none());
    }
    #[test]
    fn penalties_follow_their_formulas() {
        let s = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(bent(s, &[1, 2], &[4, 4]), [1.0, -2.0, 1.0, 3.0, 2.0, 5.0]);
        let s = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::default() };
        assert_eq!(bent(s, &[1, 2], &[4, 4, 2]), [1.0, -1.0, 1.25, 3.0, 3.0, 5.0]);
    }
    #[test]
    fn long_answers_fold_into_the_shared_counts() {
        let s = Sampling { frequency_penalty: 0.01, ..Sampling::default() };
        let made: Vec<Token> = (0..200).map(|i| i % 2).collect();
        let got = bent(s, &[], &made);
        assert!((got[0] - 0.0).abs() < 1e-5 && (got[1] + 2.0).abs() < 1e-5, "{got:?}");
    }
    #[test]
    fn bans() {
        let s = Sampling { bad_words: vec![vec![3], vec![4, 5]], ..Sampling::default() };
        assert_eq!(bent(s.clone(), &[], &[4]), [1.0, -1.0, 2.0, NO, 4.0, NO]);
        assert_eq!(bent(s.clone(), &[4], &[])[5], NO, "a bad word may begin in the prompt");
        assert_eq!(bent(s, &[], &[4, 1])[5], 5.0);
        let s = Sampling { allowed_token_ids: Some(vec![1, 2]), ..Sampling::default() };
        assert_eq!(bent(s, &[], &[]), [NO, -1.0, 2.0, NO, NO, NO]);
        let s = Sampling { min_tokens: 2, stop_token_ids: vec![5], ..Sampling::default() };
        assert_eq!(bent(s.clone(), &[], &[1]), [NO, -1.0, 2.0, 3.0, 4.0, NO]);
        assert_eq!(bent(s, &[], &[1, 1])[5], 5.0);
        let s = Sampling { logit_bias: vec![(1, 2.0)], ..Sampling::default() };
        assert_eq!(bent(s, &[], &[])[1], 1.0);
    }
}
