//! Prompt lookup: the text so far is the draft model (sheet 00 §11; n-gram drafts).
//!
//! The longest recent n-gram that occurred before is followed by what followed it then. How long a draft is tried
//! depends on how often such drafts were right, and on what rows cost here.
use super::ngrams::Index;
use super::worth;
use crate::registry::{Card, System};
use omnidecode_core::Token;
use omnidecode_core::tree::{DraftTree, Proposal};
use omnidecode_engine::{Guarantee, Plan, Readout, Result, Sequence};

crate::params! {
    /// Longest n-gram that is looked up, in tokens.
    max_ngram: usize = 3, within 1.0, 16.0;
    /// Shortest n-gram that is looked up, in tokens.
    min_ngram: usize = 1, within 1.0, 16.0;
    /// Most tokens that are drafted.
    max_tokens: usize = 10, within 1.0, 256.0;
    /// Whether the draft shrinks to the length that pays on this machine; off, `max_tokens` are always drafted.
    adaptive: bool = true;
}

impl System for Params {
    const CARD: Card = Card {
        name: "prompt-lookup",
        guarantee: Guarantee::Exact,
        needs: &[],
        summary: "What followed the same words before is tried again.",
        source: "sheet 00 §11; Saxena 2023, prompt lookup decoding",
    };

    fn check(&self) -> Result<(), crate::params::ParamError> {
        if self.min_ngram <= self.max_ngram {
            return Ok(());
        }
        Err(crate::params::ParamError::Bad {
            owner: Self::CARD.name.into(),
            name: "min_ngram".into(),
            expected: format!("at most max_ngram = {}", self.max_ngram),
            found: self.min_ngram.to_string(),
        })
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let mut index = Index::new(self.min_ngram..=self.max_ngram);
        // Share of drafted tokens that were right, by length of the n-gram that found them.
        let mut right = vec![0.5; self.max_ngram + 1];
        let mut next = seq.next(Readout::CHOICE).await?.root().choice();
        while seq.push(next)?.is_some() {
            index.read(seq.tokens());
            let found = index.after(seq.tokens()).last();
            let room = seq.room().saturating_sub(1);
            let mut draft: &[Token] = found.map_or(&[], |(_, at)| &seq.tokens()[at..]);
            draft = &draft[..draft.len().min(self.max_tokens).min(room)];
            if let (Some((ngram, _)), true) = (found, self.adaptive) {
                let chance = right[ngram];
                draft = &draft[..worth(seq, (1..=draft.len()).map(|i| f64::powi(chance, i as i32)))];
            }
            let tree = DraftTree::chain(draft.to_vec(), Proposal::Deterministic);
            let seen = seq.forward(Plan::tree(&tree, Readout::CHOICE)).await?;
            let verdict = seen.target_match(&tree);
            if let Some((ngram, at)) = found {
                // Without a draft it is still seen whether its first token would have been right.
                let tried = verdict.path.len() + usize::from(verdict.path.len() < tree.len().max(1));
                let lucky = tree.is_empty() && seq.tokens()[at] == verdict.next;
                let hits = verdict.path.len() + usize::from(lucky);
                for i in 0..tried {
                    right[ngram] += 0.1 * (f64::from(u8::from(i < hits)) - right[ngram]);
                }
            }
            next = seq.accept(&verdict)?;
        }
        Ok(())
    }
}
