//! The loop of every diffusion strategy.
use super::cache::Policy;
use super::credit::Credit;
use super::guess::{Chooser, Guess, Guide};
use super::prophet::Prophet;
use super::unmask::{Block, Unmasker};
use omnidecode_engine::{Canvas, Look, Readout, Result, Token};
use std::borrow::Cow;
use std::ops::Range;

/// What the loop is made of.
pub struct Denoise<'a> {
    /// Blocks with the forwards planned for each, from left to right.
    pub blocks: Vec<(Range<usize>, usize)>,
    /// Which places run.
    pub policy: Policy,
    /// What they would be.
    pub chooser: Chooser,
    /// What they are turned away from.
    pub guide: Option<Guide<'a>>,
    /// How guesses are bent.
    pub credit: Option<Credit>,
    /// Which guesses are committed.
    pub unmasker: Box<dyn Unmasker>,
    /// When the rest is filled at once.
    pub prophet: Option<Prophet>,
    /// Whether decided text is handed over as soon as nothing before it is undecided, rather than a block at a time.
    pub eager: bool,
    /// Whether finished blocks are stored by one more forward.
    pub store: bool,
}

/// Denoise a canvas until it is full or the answer has ended.
///
/// # Errors
/// As [`Canvas::look`] and [`Canvas::commit`].
pub async fn denoise(canvas: &mut Canvas<'_>, with: &mut Denoise<'_>) -> Result<()> {
    let mut step = 0;
    let blocks = std::mem::take(&mut with.blocks);
    for (number, (places, steps)) in blocks.iter().enumerate() {
        let masked = canvas.masked(places.clone()).len();
        let block = Block { places: places.clone(), masked, steps: *steps };
        with.policy.enter(places.clone());
        with.unmasker.enter(&block);
        if let Some(credit) = &mut with.credit {
            credit.enter(places.len());
        }
        loop {
            let undecided = canvas.masked(places.clone());
            if undecided.is_empty() {
                break;
            }
            step += 1;
            let filled = forward(canvas, with, &undecided, step).await?;
            if with.eager || filled {
                let decided = canvas.open_places().find(|&p| canvas.is_masked(p)).unwrap_or(canvas.places().end);
                if !canvas.settle(decided)? {
                    return Ok(());
                }
            }
        }
        if !canvas.settle(places.end)? {
            return Ok(());
        }
        if with.store && number + 1 < blocks.len() {
            store(canvas, places.clone()).await?;
        }
    }
    Ok(())
}

/// Store the keys and values of a finished block.
///
/// # Errors
/// As [`Canvas::look`].
pub async fn store(canvas: &mut Canvas<'_>, block: Range<usize>) -> Result<()> {
    canvas.look(Look::full(block, true, Readout::NOTHING)).await.map(drop)
}

/// One forward and its commits. True when the whole canvas was filled.
async fn forward(canvas: &mut Canvas<'_>, with: &mut Denoise<'_>, undecided: &[usize], step: usize) -> Result<bool> {
    let window = with.policy.next(canvas);
    // Prophet judges forwards that see all it may have to fill.
    let watched = with.prophet.as_ref().map(|p| p.places(canvas)).unwrap_or_default();
    let judged = !watched.is_empty() && watched.iter().all(|p| window.full || window.places.binary_search(p).is_ok());
    let mut about = Cow::Borrowed(undecided);
    if judged {
        let about = about.to_mut();
        about.extend(watched);
        about.sort_unstable();
        about.dedup();
    }
    let asks = with.credit.as_ref().map(|c| c.asks(undecided)).unwrap_or_default();
    let look = Look { noise: step as u64, ..Look::at(window.places, window.refresh, Readout::NOTHING) };
    let mut guesses = with.chooser.look(canvas, with.guide.as_mut(), look, &about, &asks).await?;
    if with.prophet.as_ref().is_some_and(|p| judged && p.is_clear(step, &guesses)) {
        let rest: Vec<Guess> = guesses.into_iter().filter(|g| canvas.is_masked(g.place)).collect();
        for guess in rest {
            commit(canvas, with.guide.as_mut(), guess.place, guess.best, guess.prob)?;
        }
        return Ok(true);
    }
    if judged {
        guesses.retain(|g| undecided.binary_search(&g.place).is_ok());
    }
    if let Some(credit) = &mut with.credit {
        credit.revise(&mut guesses, &asks);
    }
    for i in with.unmasker.pick(&guesses) {
        commit(canvas, with.guide.as_mut(), guesses[i].place, guesses[i].token, guesses[i].prob)?;
    }
    Ok(false)
}

fn commit(canvas: &mut Canvas<'_>, guide: Option<&mut Guide<'_>>, place: usize, token: Token, prob: f64) -> Result<()> {
    if let Some(guide) = guide {
        guide.canvas.commit(place, token, prob as f32)?;
    }
    canvas.commit(place, token, prob as f32)
}

/// Blocks of `size` places from `start` to `end`; the last may be shorter.
pub fn blocks(start: usize, end: usize, size: usize) -> Vec<Range<usize>> {
    (start..end).step_by(size.max(1)).map(|s| s..(s + size).min(end)).collect()
}
