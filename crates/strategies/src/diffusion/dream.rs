//! Dream's loop: the whole canvas at once, a growing share of it decided with every forward (arXiv:2508.15487, sheet
//! 00-diffusion §3b).
use super::denoise::{Denoise, denoise};
use super::guess::{Guide, Order};
use super::llada::without_prompt;
use super::settings::{bidirectional, cached, canvas_params, clash};
use super::unmask::Schedule;
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_engine::{Guarantee, Plans, Result, Sequence};

canvas_params! {
    /// Dream's algorithm: `origin` (every place by a coin of its own), `maskgit-plus`, `topk-margin` or `entropy`.
    order: String = "maskgit-plus".into(), one_of "origin", "maskgit-plus", "topk-margin", "entropy";
    /// Forwards; null: one a place.
    steps: Option<usize> = None, within 1.0, f64::INFINITY;
    /// The time that the schedule falls to.
    epsilon: f64 = 0.001, within 0.0, 0.999;
    /// Above 0: places are drawn from the softmax of what they are ranked by over this, rather than the surest taken.
    alg_temp: f64 = 0.0, within 0.0, f64::INFINITY;
    /// Whether sure is meant of the law after temperature, top-k and top-p.
    filtered: bool = true;
}

impl System for Params {
    const CARD: Card = Card {
        name: "dream",
        guarantee: Guarantee::Approximate,
        needs: &["mask"],
        summary: "The whole canvas is denoised at once, by a schedule.",
        source: "arXiv:2508.15487, sheet 00-diffusion",
    };
    const PLANS: Plans = Plans::Canvas;

    fn check(&self) -> Result<(), ParamError> {
        let owner = Self::CARD.name;
        let working = self.check_canvas(self.order != "maskgit-plus")?;
        let default = Self::default();
        let scheduled = [
            ("steps", self.steps.is_some()),
            ("epsilon", self.epsilon != default.epsilon),
            ("alg_temp", self.alg_temp != default.alg_temp),
        ];
        if let Some((name, _)) = scheduled.iter().find(|s| s.1 && working != "static") {
            return Err(clash(owner, name, &format!("its default, as `{working}` has its own pace"), "another value"));
        }
        if self.alg_temp > 0.0 && self.order == "origin" {
            return Err(clash(owner, "alg_temp", "0 with the order `origin`", &self.alg_temp.to_string()));
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
        let steps = self.steps.unwrap_or(end - start);
        let mut free = if self.guidance > 0.0 { Some(without_prompt(seq)?) } else { None };
        let mut guide = match &mut free {
            Some(free) => Some(Guide { canvas: free.canvas(0..end)?, weight: self.guidance as f32 }),
            None => None,
        };
        let seed = seq.seed();
        let mut canvas = seq.canvas(0..end)?;
        rules.give(&mut canvas, guide.as_mut())?;
        let mut chooser = rules.chooser(&mut canvas, &card, working, Order::named(&self.order))?;
        // Credit is of the model's own law.
        chooser.filtered = self.filtered && working != "credit";
        if let Some(guide) = &mut guide {
            guide.canvas.ban(&chooser.banned);
        }
        let prophet = if rules.unmasker == "prophet" { Some(early.prophet(start, end, steps)?) } else { None };
        let schedule = Schedule {
            steps,
            epsilon: self.epsilon,
            coins: self.order == "origin",
            temperature: self.alg_temp,
            seed,
            step: 0,
        };
        let mut with = Denoise {
            blocks: vec![(start..end, if working == "static" { steps } else { end - start })],
            policy: cached(&self.cache, self.refresh_every, 4),
            chooser,
            guide,
            credit: rules.credit(working),
            unmasker: rules.unmasker(working, false, Some(Box::new(schedule))),
            prophet,
            eager: true,
            store: false,
        };
        denoise(&mut canvas, &mut with).await
    }
}
