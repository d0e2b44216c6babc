//! FIRST (arXiv:2406.15657, sheet 01): the passages of a window are ordered by what the model would say first: one
//! prefill, no decoding.
//!
//! The answer is the permutation, as label tokens; the result's note `scores` holds them with their raw log-probabilities,
//! the note `law` the likeliest of all tokens with the entropy of the law in nats.
//! `listwise` has the windows, the question and the labels.
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_core::Token;
use omnidecode_engine::{Error, Guarantee, Plans, Readout, Result, Sequence};

crate::params! {
    /// Token ids of the labels, in the old order of what is ranked.
    labels: Vec<usize> = Vec::new(), within 0.0, 4294967294.0;
    /// `first` reads the order off one forward; `generate` writes label after label, each the likeliest of those left:
    /// the baseline.
    mode: String = "first".into(), one_of "first", "generate";
    /// Of `generate`: token ids written between two labels.
    separator: Vec<usize> = Vec::new(), within 0.0, 4294967294.0;
}

impl System for Params {
    const CARD: Card = Card {
        name: "first",
        guarantee: Guarantee::Approximate,
        needs: &[],
        summary: "Ranks labels by the logits of the first one: one forward, no decoding.",
        source: "arXiv:2406.15657, sheet 01",
    };
    const PLANS: Plans = Plans::Steps;

    fn check(&self) -> Result<(), ParamError> {
        let bad = |name: &str, expected: &str, found: String| {
            Err(ParamError::Bad { owner: Self::CARD.name.into(), name: name.into(), expected: expected.into(), found })
        };
        let mut sorted = self.labels.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|w| w[0] == w[1]) {
            return bad("labels", "tokens that differ", format!("{} twice", twice[0]));
        }
        if self.mode == "first" && !self.separator.is_empty() {
            return bad("separator", "none, unless mode is generate", format!("{:?}", self.separator));
        }
        Ok(())
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let labels: Vec<Token> = self.labels.iter().map(|&t| t as Token).collect();
        let vocab = seq.card().vocab;
        if let Some(&token) = labels.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::UnknownToken { token, vocab });
        }
        if seq.room() < labels.len() {
            let (room, n) = (seq.room(), labels.len());
            return Err(Error::Strategy(format!("first: {n} labels do not fit in {room} tokens: raise max_tokens")));
        }
        let ranked = match self.mode.as_str() {
            "generate" => self.generate(seq, labels).await?,
            _ => {
                let (ranked, law) = rank(seq, labels).await?;
                if let Some(law) = law {
                    seq.note("law", seq.len(), vec![law]);
                }
                ranked
            }
        };
        seq.note("scores", seq.len(), ranked.clone());
        for (label, _) in ranked {
            if seq.push(label)?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// Labels with their log-probabilities; the likeliest token of all with the entropy in nats.
type Ranked = (Vec<(Token, f32)>, Option<(Token, f32)>);

/// Labels by their raw log-probability after the sequence, likeliest first, ties in their old order; and the
/// likeliest of all tokens with the entropy of the law, unless there was nothing to ask. Raw: a temperature or a law on logits has no say.
///
/// # Errors
/// As [`Sequence::next`].
pub async fn rank(seq: &mut Sequence, labels: Vec<Token>) -> Result<Ranked> {
    if labels.len() < 2 {
        return Ok((labels.into_iter().map(|t| (t, 0.0)).collect(), None));
    }
    let seen = seq.next(Readout::NOTHING.stats().logprobs(labels.clone())).await?;
    let mut ranked: Vec<(Token, f32)> = labels.into_iter().zip(seen.root().asked().iter().copied()).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let law = seen.root().stats();
    Ok((ranked, Some((law.argmax, law.entropy))))
}

impl Params {
    /// The likeliest label of those left, behind those written so far.
    async fn generate(&self, seq: &Sequence, mut left: Vec<Token>) -> Result<Vec<(Token, f32)>> {
        let mut text = seq.fork(0);
        let mut written = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let best = rank(&mut text, left.clone()).await?.0[0];
            left.retain(|t| *t != best.0);
            written.push(best);
            if !left.is_empty() {
                text.extend(best.0)?;
                self.separator.iter().try_for_each(|&t| text.extend(t as Token))?;
            }
        }
        Ok(written)
    }
}
