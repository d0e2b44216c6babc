//! A small model guesses ahead, token after token (arXiv:2211.17192, arXiv:2302.01318; sheet 00 §6, §11).
//!
//! With the verifier `match` the draft chooses with the noise of the target, so that both often choose alike, and only
//! the target's own choice is kept: exact at every temperature. With `rejection` it draws with noise of its own and the
//! law is the target's.
use super::drafting::{Draft, Verifier};
use super::worth::Depths;
use crate::registry::{Card, System};
use omnidecode_engine::{Guarantee, Readout, Result, Sequence};
use std::cell::RefCell;
use std::rc::Rc;

crate::params! {
    /// Tokens that are drafted, at the beginning with `heuristic`.
    tokens: usize = 5, within 1.0, 64.0;
    /// How the length goes on: `constant`, or `heuristic`, two more after a draft that was all right, else one less.
    schedule: String = "constant".into(), one_of "constant", "heuristic";
    /// Whether the draft shrinks to the length that pays on this machine; off, `schedule` alone decides. With `rejection`
    /// the same seed may then give other tokens of the same law.
    adaptive: bool = true;
    /// Drafting ends behind a token that the draft gave less than this probability; 0 drafts on.
    confidence: f64 = 0.0, within 0.0, 1.0;
    /// `match` keeps what the target chooses (exact), `rejection` the target's law (more accepted tokens).
    verifier: String = "match".into(), one_of "match", "rejection";
    /// Temperature of the draft; null is the target's.
    draft_temperature: Option<f64> = None, within 0.01, 10.0;
}

impl System for Params {
    const CARD: Card = Card {
        name: "draft-model",
        guarantee: Guarantee::Exact,
        needs: &["draft"],
        summary: "A small model guesses ahead, the large one checks in one forward.",
        source: "arXiv:2211.17192, arXiv:2302.01318, sheet 00",
    };

    fn guarantee(&self) -> Guarantee {
        Verifier::named(&self.verifier).guarantee()
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let mut draft = Draft::open(seq, self.draft_temperature, Verifier::named(&self.verifier))?;
        let depths = match self.guarantee() {
            Guarantee::Exact => Depths::shared(seq, Self::CARD.name, MOST),
            _ => Rc::new(RefCell::new(Depths::new(MOST))),
        };
        let mut length = self.tokens;
        let mut next = seq.next(Readout::CHOICE).await?.root().choice();
        while seq.push(next)?.is_some() {
            let mut levels = length.min(draft.levels(seq));
            if self.adaptive {
                levels = draft.worth(seq, &depths.borrow(), (1..=levels).map(|n| (n, 1)));
            }
            let tree = draft.chain(seq, levels, self.confidence).await?;
            let verdict = draft.verify(seq, &tree).await?;
            let (drafted, right) = (tree.len(), verdict.path.len());
            depths.borrow_mut().learn(drafted, right);
            if self.schedule == "heuristic" && drafted > 0 {
                length = if right == drafted { (length + 2).min(MOST) } else { (length - 1).max(1) };
            }
            next = seq.accept(&verdict)?;
        }
        Ok(())
    }
}

/// Longest draft.
const MOST: usize = 64;
