//! Best-of-N: so many samples side by side, the best one is the answer (sheet 04, baselines).
use super::answers::{Answer, Extraction, vote};
use super::branch::{Boundary, best, grow, hand_in, spread};
use super::judging::Judging;
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_engine::{Guarantee, Plans, Result, Sequence};

super::settings::judged! {
    /// Samples. 1 is plain decoding.
    n: usize = 4, within 1.0, 4096.0;
    /// Whether texts with the same answer put their scores together, and the best text of the best answer wins.
    weighted: bool = false;
    /// Where the answer stands in a text, for `weighted`: a regular expression whose last match (its first group) it is;
    /// empty for the whole text.
    answer: String = String::new();
    /// Samples that are told, the answer among them: the others come with their scores, best first; 1 tells the answer only.
    texts: usize = 1, within 1.0, 4096.0;
}

impl System for Params {
    const CARD: Card = Card {
        name: "best-of-n",
        guarantee: Guarantee::Approximate,
        needs: &[],
        summary: "Many samples side by side; the one that a judge scores best is the answer.",
        source: "sheet 04, baselines",
    };
    const PLANS: Plans = Plans::Steps;

    fn guarantee(&self) -> Guarantee {
        if self.n == 1 { Guarantee::Exact } else { Guarantee::Approximate }
    }
    fn check(&self) -> Result<(), ParamError> {
        Extraction::parse(Self::CARD.name, "answer", &self.answer)?;
        self.judge_settings().check(Self::CARD.name)
    }
    fn asks_judge(&self) -> bool {
        self.judge_settings().asks_request()
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let mut judging = Judging::open(seq, &self.judge_settings())?;
        let mut branches = spread(seq, self.n).await?;
        grow(&mut branches, &Boundary { most: usize::MAX, ..Boundary::default() }).await?;
        judging.score(seq, &mut branches).await?;
        let scores: Vec<f64> = branches.iter().map(|b| b.last()).collect();
        let chosen = if self.weighted {
            let extraction = Extraction::parse(Self::CARD.name, "answer", &self.answer).unwrap_or(Extraction::Whole);
            let answers: Vec<Answer> = branches.iter_mut().map(|b| extraction.answer(b)).collect();
            let winner = vote(&answers, &scores);
            let among = |(score, answer): (&f64, &Answer)| if *answer == winner { *score } else { f64::NEG_INFINITY };
            best(scores.iter().zip(&answers).map(among))
        } else {
            best(scores.iter().copied())
        };
        let answer = branches.remove(chosen);
        let score = answer.last();
        branches.sort_by(|a, b| b.last().total_cmp(&a.last()));
        let others: Vec<_> = branches.iter().take(self.texts - 1).map(|b| (b.tokens().to_vec(), b.last())).collect();
        drop(branches);
        hand_in(seq, answer, score, &others)
    }
}
