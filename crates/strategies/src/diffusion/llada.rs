//! LLaDA's loop: block after block, the surest guesses first (arXiv:2502.09992, sheet 00-diffusion §3), with the
//! parallel unmaskers and caches that were made for it.
use super::denoise::{Denoise, denoise};
use super::guess::{Guide, Order};
use super::settings::{bidirectional, cached, canvas_params, clash, planned};
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_engine::{Guarantee, Plans, Result, Sequence, Token};

canvas_params! {
    /// What sure means: `confidence`, `margin`, `entropy`, `random` or `sequential`.
    order: String = "confidence".into(), one_of "confidence", "margin", "entropy", "random", "sequential";
    /// Places of a block; blocks are decoded from left to right. As long as the canvas or longer: all at once.
    block: usize = 32, within 1.0, f64::INFINITY;
    /// Forwards over all blocks, spread evenly; null: one a token.
    steps: Option<usize> = None, within 1.0, f64::INFINITY;
}

impl System for Params {
    const CARD: Card = Card {
        name: "llada",
        guarantee: Guarantee::Approximate,
        needs: &["mask"],
        summary: "A canvas is denoised block by block, the surest guesses first.",
        source: "arXiv:2502.09992, arXiv:2505.22618, sheets 00-diffusion, 03, 19, 20",
    };
    const PLANS: Plans = Plans::Canvas;

    fn check(&self) -> Result<(), ParamError> {
        let working = self.check_canvas(self.order != "confidence")?;
        if self.steps.is_some() && working != "static" {
            let expected = format!("null, as `{working}` has its own pace");
            return Err(clash(Self::CARD.name, "steps", &expected, "a number"));
        }
        Ok(())
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        if seq.finished() {
            return Ok(());
        }
        let (owner, rules, early, card) = (Self::CARD.name, self.rules(), self.early(), seq.card());
        bidirectional(owner, &card)?;
        let working = rules.working(early.host);
        let (start, end) = (seq.len(), rules.end(seq)?);
        let steps = if working == "static" { self.steps } else { None };
        let blocks = planned(owner, start..end, self.block, steps)?;
        let total = blocks.iter().map(|b| b.1).sum();
        // Of the parallel unmaskers, the quota is one.
        let blocks = blocks.into_iter().map(|(b, s)| if working == "static" { (b, s) } else { (b.clone(), b.len()) });
        let mut free = if self.guidance > 0.0 { Some(without_prompt(seq)?) } else { None };
        let mut guide = match &mut free {
            Some(free) => Some(Guide { canvas: free.canvas(0..end)?, weight: self.guidance as f32 }),
            None => None,
        };
        let mut canvas = seq.canvas(0..end)?;
        rules.give(&mut canvas, guide.as_mut())?;
        let chooser = rules.chooser(&mut canvas, &card, working, Order::named(&self.order))?;
        if let Some(guide) = &mut guide {
            guide.canvas.ban(&chooser.banned);
        }
        let prophet = if rules.unmasker == "prophet" { Some(early.prophet(start, end, total)?) } else { None };
        let mut with = Denoise {
            blocks: blocks.collect(),
            policy: cached(&self.cache, self.refresh_every, 8),
            chooser,
            guide,
            credit: rules.credit(working),
            unmasker: rules.unmasker(working, false, None),
            prophet,
            eager: false,
            store: false,
        };
        denoise(&mut canvas, &mut with).await
    }
}

/// A branch whose prompt is masked: what guidance turns away from.
pub(super) fn without_prompt(seq: &Sequence) -> Result<Sequence> {
    let mask: Token = seq.card().mask.unwrap_or_default();
    let mut free = seq.fork(0);
    free.rollback(0)?;
    (0..seq.len()).try_for_each(|_| free.extend(mask))?;
    Ok(free)
}
