//! Self-consistency: the answer that most samples agree on (arXiv:2203.11171; sheet 04, baselines).
use super::answers::{Answer, Extraction, vote};
use super::branch::{Boundary, grow, hand_in, spread};
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_engine::{Guarantee, Plans, Result, Sequence};

crate::params! {
    /// Samples. 1 is plain decoding.
    n: usize = 8, within 1.0, 4096.0;
    /// Where the answer stands in a text: a regular expression whose last match (its first group) it is; empty for the
    /// whole text. Samples without an answer do not vote.
    answer: String = String::new();
    /// Samples that are told, the answer among them, those of the largest votes first; 1 tells the answer only.
    texts: usize = 1, within 1.0, 4096.0;
}

impl System for Params {
    const CARD: Card = Card {
        name: "self-consistency",
        guarantee: Guarantee::Approximate,
        needs: &[],
        summary: "Many samples side by side; the answer of the majority wins.",
        source: "arXiv:2203.11171, sheet 04",
    };
    const PLANS: Plans = Plans::Steps;

    fn guarantee(&self) -> Guarantee {
        if self.n == 1 { Guarantee::Exact } else { Guarantee::Approximate }
    }
    fn check(&self) -> Result<(), ParamError> {
        Extraction::parse(Self::CARD.name, "answer", &self.answer).map(drop)
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let extraction = Extraction::parse(Self::CARD.name, "answer", &self.answer).unwrap_or(Extraction::Whole);
        let mut branches = spread(seq, self.n).await?;
        grow(&mut branches, &Boundary { most: usize::MAX, ..Boundary::default() }).await?;
        let answers: Vec<Answer> = branches.iter_mut().map(|b| extraction.answer(b)).collect();
        let winner = vote(&answers, &vec![1.0; answers.len()]);
        // The first sample of the majority speaks for it.
        let chosen = answers.iter().position(|a| *a == winner).unwrap_or(0);
        let votes = |answer: &Answer| answers.iter().filter(|a| *a == answer).count() as f64;
        let mut scores: Vec<f64> = answers.iter().map(votes).collect();
        let (answer, score) = (branches.remove(chosen), scores.remove(chosen));
        let mut others: Vec<_> = branches.iter().zip(scores).map(|(b, votes)| (b.tokens().to_vec(), votes)).collect();
        drop(branches);
        others.sort_by(|a, b| b.1.total_cmp(&a.1)); // stable: samples in their order
        others.truncate(self.texts - 1);
        hand_in(seq, answer, score, &others)
    }
}
