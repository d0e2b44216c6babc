//! Coconut (arXiv:2412.06769; sheet 34): behind the prompt the model thinks in vectors. Its state after the final norm is fed
//! back as the next input, so many times, before it answers. A thought needs no head, unless it is read out.
use crate::registry::{Card, System};
use omnidecode_engine::{Guarantee, Plans, Readout, Result, Seen, Sequence, Token};

crate::params! {
    /// Thoughts. 0, without markers, is plain decoding.
    latents: usize = 6, within 0.0, 4096.0;
    /// Token before the thoughts; null for none.
    start: Option<usize> = None;
    /// Token behind the thoughts; null for none.
    end: Option<usize> = None;
    /// Tokens that are told of each thought as the head reads it, likeliest first (notes named `thought`); 0 spares the head.
    readout: usize = 0, within 0.0, 256.0;
}

impl System for Params {
    const CARD: Card = Card {
        name: "coconut",
        guarantee: Guarantee::Approximate,
        needs: &[],
        summary: "Thinks in vectors, its last state fed back as the next input, before it answers in tokens.",
        source: "arXiv:2412.06769, sheet 34",
    };
    const PLANS: Plans = Plans::Vectors;

    fn guarantee(&self) -> Guarantee {
        let nothing = self.latents == 0 && self.start.is_none() && self.end.is_none();
        if nothing { Guarantee::Exact } else { Guarantee::Approximate }
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        if seq.finished() {
            return Ok(());
        }
        if let Some(start) = self.start {
            seq.extend(start as Token)?;
        }
        let norm = seq.card().layers; // the state before this layer is the one behind the last, normed
        let mut read = Readout::default().hidden(norm);
        if self.readout > 0 {
            read = read.stats().top(self.readout);
        }
        for _ in 0..self.latents {
            let seen = seq.next(read.clone()).await?;
            let thought = seen.root();
            if self.readout > 0 {
                let place = seq.len();
                seq.note("thought", place, probabilities(thought));
            }
            seq.extend_vector(thought.hidden())?;
        }
        if let Some(end) = self.end {
            seq.extend(end as Token)?;
        }
        crate::autoregressive::plain::Params::default().decode(seq).await
    }
}

/// What the head makes of a thought.
fn probabilities(seen: Seen<'_>) -> Vec<(Token, f32)> {
    let lse = seen.stats().lse;
    seen.top().iter().map(|&(token, logit)| (token, (logit - lse).exp())).collect()
}
