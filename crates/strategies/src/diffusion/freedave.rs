//! FreeDave: several states ahead are guessed from one forward and verified in the next, all at once (arXiv:2510.00294,
//! sheet 08). What comes out is what the static loop of `llada` (of `sdar` on block-causal models) gives with the same
//! cache, order and seed, in fewer forwards.
use super::cache::{Cache, Policy};
use super::denoise::store;
use super::guess::{Chooser, Guess, Order};
use super::sdar::absolute;
use super::settings::{Honoured, Rules, bidirectional, cached, planned};
use super::unmask::{quota, ranked};
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_engine::{Canvas, Error, Guarantee, Look, Plans, Readout, Result, Sequence, Token};
use std::ops::Range;

crate::params! {
    /// Most states verified in one forward; 1 is the static loop.
    drafts: usize = 4, within 1.0, 1024.0;
    /// What sure means: `confidence`, `margin`, `entropy`, `random` or `sequential`.
    order: String = "confidence".into(), one_of "confidence", "margin", "entropy", "random", "sequential";
    /// Places of a block; null: 32, or what the model says if it is block-causal.
    block: Option<usize> = None, within 1.0, f64::INFINITY;
    /// Forwards of the static loop over all blocks (of each block, if the model is block-causal); null: one a token.
    steps: Option<usize> = None, within 1.0, f64::INFINITY;
    /// What is kept from forward to forward: `none`, `prefix` or `dual`; block-causal models keep finished blocks.
    cache: String = "none".into(), one_of "none", "prefix", "dual";
    /// Places of the canvas; null: as many as `max_tokens` and the context allow.
    length: Option<usize> = None, within 1.0, f64::INFINITY;
    /// Offsets in the canvas at which tokens are given (infilling, templates).
    given_at: Vec<usize> = Vec::new();
    /// The tokens given there.
    given: Vec<usize> = Vec::new(), within 0.0, 4294967294.0;
    /// End-of-text tokens: `free`, `last` (committed only where nothing else is left to commit) or `banned`.
    eos: String = "free".into(), one_of "free", "last", "banned";
}

impl Params {
    fn rules(&self) -> Rules<'_> {
        let (given_at, given, eos) = (&self.given_at[..], &self.given[..], &self.eos[..]);
        Rules { unmasker: "static", length: self.length, given_at, given, eos, ..Rules::default() }
    }
}

impl System for Params {
    const CARD: Card = Card {
        name: "freedave",
        guarantee: Guarantee::Exact,
        needs: &["mask"],
        summary: "The static diffusion loop, several of its states verified in one forward.",
        source: "arXiv:2510.00294, sheet 08",
    };
    const PLANS: Plans = Plans::Canvas;

    fn check(&self) -> Result<(), ParamError> {
        self.rules().check(Self::CARD.name, "static", false, &Honoured::new())
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        if seq.finished() {
            return Ok(());
        }
        let (owner, rules, card) = (Self::CARD.name, self.rules(), seq.card());
        let (start, end) = (seq.len(), rules.end(seq)?);
        let (blocks, mut policy, first) = if card.block.is_some() {
            if self.cache != "none" || self.block.is_some_and(|b| Some(b) != card.block) {
                let fixed = "its blocks and their cache are the model's: leave `cache` and `block` alone";
                return Err(Error::Strategy(format!("{owner} on a block-causal model: {fixed}")));
            }
            let blocks = absolute(owner, &card, start, end)?;
            let first = blocks[0].start;
            let blocks = blocks.into_iter().map(|b| (b.clone(), self.steps.unwrap_or(b.len()))).collect();
            (blocks, Policy::new(Cache::Blocks, None), first)
        } else {
            bidirectional(owner, &card)?;
            (planned(owner, start..end, self.block.unwrap_or(32), self.steps)?, cached(&self.cache, None, 0), 0)
        };
        let mut canvas = seq.canvas(first..end)?;
        rules.give(&mut canvas, None)?;
        let chooser = rules.chooser(&mut canvas, &card, "static", Order::named(&self.order))?;
        let mut step = 0;
        for (number, (places, steps)) in blocks.iter().enumerate() {
            policy.enter(places.clone());
            self.block(&mut canvas, &chooser, &mut policy, (places, *steps), &mut step).await?;
            if !canvas.settle(places.end)? {
                return Ok(());
            }
            if card.block.is_some() && number + 1 < blocks.len() {
                store(&mut canvas, places.clone()).await?;
            }
        }
        Ok(())
    }
}

impl Params {
    /// Denoise one block. `step` counts the steps of the static loop.
    async fn block(
        &self,
        canvas: &mut Canvas<'_>,
        chooser: &Chooser,
        policy: &mut Policy,
        (places, steps): (&Range<usize>, usize),
        step: &mut u64,
    ) -> Result<()> {
        let undecided = canvas.masked(places.clone());
        let quota: Vec<usize> = quota(undecided.len(), steps).into_iter().filter(|n| *n > 0).collect();
        if quota.is_empty() {
            return Ok(());
        }
        let window = policy.next(canvas);
        let look = Look { noise: *step + 1, ..Look::at(window.places, window.refresh, Readout::NOTHING) };
        let mut guesses = chooser.look(canvas, None, look, &undecided, &[]).await?;
        let mut at = 0;
        loop {
            let left = &quota[at..];
            let drafts = ahead(&guesses, &left[..self.drafts.min(left.len())]);
            // The first is what the static loop commits now: it needs no verification.
            commit(canvas, &drafts[0])?;
            if left.len() == 1 {
                *step += 1;
                return Ok(());
            }
            // A draft that leaves nothing undecided need not run: whether it is right, the one before it tells.
            let run = drafts.len().min(left.len() - 1);
            let mut filled: Vec<(usize, Token)> = Vec::new();
            let states = drafts[..run].iter().map(|d| {
                filled.extend(d.iter().map(|g| (g.place, g.token)));
                filled.clone()
            });
            let states: Vec<_> = states.collect();
            let about: Vec<usize> = guesses.iter().map(|g| g.place).filter(|p| !has(&drafts[0], *p)).collect();
            let read = chooser.readout(&[], false);
            let window = policy.next(canvas);
            let look =
                Look { drafts: states, noise: *step + 2, about: Some(about), ..Look::at(window.places, false, read) };
            let view = canvas.look(look).await?;
            // How far the static loop would have come by the same way.
            let mut accepted = vec![drafts[0].clone()];
            loop {
                let k = accepted.len();
                if k > run {
                    guesses.clear();
                    break;
                }
                guesses.retain(|g| !has(&accepted[k - 1], g.place));
                let noise = *step + 1 + k as u64;
                guesses = guesses.iter().map(|g| chooser.guess(view.draft(k - 1, g.place), g.place, noise)).collect();
                let Some(draft) = drafts.get(k) else { break };
                let true_next = first(&guesses, left[k]);
                let agrees = |g: &Guess| draft.iter().any(|d| (d.place, d.token) == (g.place, g.token));
                if !true_next.iter().all(agrees) {
                    break;
                }
                accepted.push(true_next);
            }
            accepted[1..].iter().try_for_each(|step| commit(canvas, step))?;
            at += accepted.len();
            *step += accepted.len() as u64;
            if at == quota.len() {
                return Ok(());
            }
        }
    }
}

fn has(guesses: &[Guess], place: usize) -> bool {
    guesses.iter().any(|g| g.place == place)
}
fn first(guesses: &[Guess], n: usize) -> Vec<Guess> {
    ranked(guesses).into_iter().take(n).map(|i| guesses[i].clone()).collect()
}
/// What each of the next steps would commit if nothing changed: the drafts, step by step.
fn ahead(guesses: &[Guess], quota: &[usize]) -> Vec<Vec<Guess>> {
    let mut order = ranked(guesses).into_iter().map(|i| guesses[i].clone());
    quota.iter().map(|&n| order.by_ref().take(n).collect()).collect()
}
fn commit(canvas: &mut Canvas<'_>, guesses: &[Guess]) -> Result<()> {
    guesses.iter().try_for_each(|g| canvas.commit(g.place, g.token, g.prob as f32))
}
