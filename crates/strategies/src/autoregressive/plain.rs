//! Plain decoding: the target's own choice, one token a forward. What every guarantee is measured against.
use crate::registry::{Card, System};
use omnidecode_engine::{Guarantee, Plans, Readout, Result, Sequence};

crate::params! {}

impl System for Params {
    const CARD: Card = Card {
        name: "plain",
        guarantee: Guarantee::Exact,
        needs: &[],
        summary: "The model's own choice, one token a forward.",
        source: "the baseline",
    };
    const PLANS: Plans = Plans::Steps;

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        while !seq.finished() {
            let seen = seq.next(Readout::CHOICE).await?;
            seq.push(seen.root().choice())?;
        }
        Ok(())
    }
}
