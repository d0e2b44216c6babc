//! SDAR's loop: blocks one after the other as an autoregressive model has tokens, each denoised inside (arXiv:2510.06303,
//! arXiv:2503.09573, sheet 00-diffusion §3e). Finished blocks are stored: their keys and values are exact.
use super::cache::{Cache, Policy};
use super::denoise::{Denoise, denoise};
use super::guess::Order;
use super::settings::unmask_params;
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_engine::{Error, Guarantee, ModelCard, Plans, Result, Sequence};
use std::ops::Range;

unmask_params! {
    /// Which guesses are committed, never fewer than the pace of `steps`: `static` (just these), `threshold` (SDAR's
    /// dynamic), `factor`, `entropy` (bounded), `localleap` or `credit`.
    unmasker: String = "static".into(), one_of "static", "threshold", "factor", "entropy", "localleap", "credit";
    /// What sure means: `confidence`, `margin`, `entropy`, `random` or `sequential`.
    order: String = "confidence".into(), one_of "confidence", "margin", "entropy", "random", "sequential";
    /// Forwards of a block; null: one a token.
    steps: Option<usize> = None, within 1.0, f64::INFINITY;
}

impl System for Params {
    const CARD: Card = Card {
        name: "sdar",
        guarantee: Guarantee::Approximate,
        needs: &["mask", "block"],
        summary: "Blocks are denoised one after the other, finished ones cached exactly.",
        source: "arXiv:2510.06303, arXiv:2503.09573, sheet 00-diffusion",
    };
    const PLANS: Plans = Plans::Canvas;

    fn check(&self) -> Result<(), ParamError> {
        self.rules().check(Self::CARD.name, "static", self.order != "confidence", &self.honoured())
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        if seq.finished() {
            return Ok(());
        }
        let (rules, card) = (self.rules(), seq.card());
        let working = rules.unmasker;
        let end = rules.end(seq)?;
        let blocks = absolute(Self::CARD.name, &card, seq.len(), end)?;
        let mut canvas = seq.canvas(blocks[0].start..end)?;
        rules.give(&mut canvas, None)?;
        let chooser = rules.chooser(&mut canvas, &card, working, Order::named(&self.order))?;
        let planned = blocks.into_iter().map(|b| (b.clone(), self.steps.unwrap_or(b.len()))).collect();
        let mut with = Denoise {
            blocks: planned,
            policy: Policy::new(Cache::Blocks, None),
            chooser,
            guide: None,
            credit: rules.credit(working),
            unmasker: rules.unmasker(working, true, None),
            prophet: None,
            eager: false,
            store: true,
        };
        denoise(&mut canvas, &mut with).await
    }
}

/// Blocks of a block-causal model, which lie at multiples of its block length; the first may begin with a part of the
/// prompt.
pub(super) fn absolute(owner: &str, card: &ModelCard, prompt: usize, end: usize) -> Result<Vec<Range<usize>>> {
    let Some(block) = card.block.filter(|b| *b > 0) else {
        let what = if card.bidirectional { "one that sees everything: use `llada` or `dream`" } else { "a causal one" };
        return Err(Error::Strategy(format!("{owner} expects a block-causal model, found {what}")));
    };
    Ok(super::denoise::blocks(prompt / block * block, end, block))
}
