//! Parameters that diffusion strategies share, and what is made of them.
use super::cache::{Cache, Policy};
use super::credit::{Credit, Rates};
use super::denoise::blocks;
use super::guess::{Chooser, Guide, Needs, Order};
use super::prophet::Prophet;
use super::unmask::{Entropy, Factor, LocalLeap, Pace, Static, Threshold, Unmasker, quota};
use crate::params::ParamError;
use omnidecode_engine::{Canvas, Error, ModelCard, Result, Sequence, Token};
use std::ops::Range;

/// Parameters that are not at their default, with the unmaskers that honour them.
pub type Honoured = Vec<(&'static str, &'static [&'static str])>;

/// What decides which guesses are committed, out of the parameters of [`unmask_params!`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rules<'a> {
    pub unmasker: &'a str,
    pub threshold: f64,
    pub relaxed: f64,
    pub radius: usize,
    pub factor: f64,
    pub entropy_bound: f64,
    pub credit: Rates,
    pub credit_adaptive: bool,
    pub length: Option<usize>,
    pub given_at: &'a [usize],
    pub given: &'a [usize],
    pub eos: &'a str,
}

/// The parameters of a strategy, and behind them those of unmaskers and canvases.
macro_rules! unmask_params {
    ($($own:tt)*) => {
        $crate::params! {
            $($own)*
            /// How sure a place must be to be committed beside the surest; what makes an anchor of `localleap`.
            threshold: f64 = 0.9;
            /// How sure a place near an anchor of `localleap` must be.
            relaxed: f64 = 0.75;
            /// How far near reaches, in places.
            radius: usize = 4;
            /// Of `factor`: n places are committed when (n + 1)(1 - confidence of the n-th) is below this.
            factor: f64 = 1.0, within 0.0, f64::INFINITY;
            /// Of `entropy`: most nats committed at once.
            entropy_bound: f64 = 0.35, within 0.0, f64::INFINITY;
            /// Of `credit`: weight of the logarithm of credit.
            credit_fusion: f64 = 0.7, within 0.0, f64::INFINITY;
            /// Of `credit`: what is left of credit a forward later.
            credit_decay: f64 = 0.8, within 0.0, 1.0;
            /// Of `credit`: exponent of the probability that is earned.
            credit_exponent: f64 = 0.2, within 0.0, f64::INFINITY;
            /// Of `credit`: fusion and decay one less the block's share of masks, exponent 1, in place of the three above.
            credit_adaptive: bool = false;
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
            fn honoured(&self) -> $crate::diffusion::settings::Honoured {
                let default = Self::default();
                let mut honoured = $crate::diffusion::settings::Honoured::new();
                let credit: &[&str] = &["credit"];
                let mut note = |changed: bool, name, by| if changed { honoured.push((name, by)) };
                note(self.threshold != default.threshold, "threshold", &["threshold", "localleap", "credit"]);
                note(self.relaxed != default.relaxed, "relaxed", &["localleap"]);
                note(self.radius != default.radius, "radius", &["localleap"]);
                note(self.factor != default.factor, "factor", &["factor"]);
                note(self.entropy_bound != default.entropy_bound, "entropy_bound", &["entropy"]);
                note(self.credit_fusion != default.credit_fusion, "credit_fusion", credit);
                note(self.credit_decay != default.credit_decay, "credit_decay", credit);
                note(self.credit_exponent != default.credit_exponent, "credit_exponent", credit);
                note(self.credit_adaptive != default.credit_adaptive, "credit_adaptive", credit);
                honoured
            }
            fn rules(&self) -> $crate::diffusion::settings::Rules<'_> {
                $crate::diffusion::settings::Rules {
                    unmasker: &self.unmasker,
                    threshold: self.threshold,
                    relaxed: self.relaxed,
                    radius: self.radius,
                    factor: self.factor,
                    entropy_bound: self.entropy_bound,
                    credit: $crate::diffusion::credit::Rates {
                        fusion: self.credit_fusion,
                        decay: self.credit_decay,
                        exponent: self.credit_exponent,
                    },
                    credit_adaptive: self.credit_adaptive,
                    length: self.length,
                    given_at: &self.given_at,
                    given: &self.given,
                    eos: &self.eos,
                }
            }
        }
    };
}
/// As `unmask_params!`, with what only loops over a whole canvas have: all unmaskers, caches, guidance, and an early end.
macro_rules! canvas_params {
    ($($own:tt)*) => {
        $crate::diffusion::settings::unmask_params! {
            /// Which guesses are committed: `static` (at the pace of `steps`), `threshold`, `factor`, `entropy`, `localleap`,
            /// `credit`, or `prophet` (fills the rest as soon as the answer is clear).
            unmasker: String = "static".into(),
                one_of "static", "threshold", "factor", "entropy", "prophet", "localleap", "credit";
            $($own)*
            /// What is kept from forward to forward: `none`, `prefix`, `dual` or `delayed`; all but `none` approximate.
            cache: String = "none".into(), one_of "none", "prefix", "dual", "delayed";
            /// Forwards from one full forward to the next, counted in each block; null: at its start only (`delayed`: 8, Dream 4).
            refresh_every: Option<usize> = None, within 1.0, f64::INFINITY;
            /// Weight of classifier-free guidance, away from the canvas without its prompt; 0 is none, else every step is two forwards.
            guidance: f64 = 0.0, within 0.0, f64::INFINITY;
            /// Of `prophet`: the unmasker that decides until the answer is clear.
            host: String = "static".into(), one_of "static", "threshold", "factor", "entropy", "localleap", "credit";
            /// Of `prophet`: mean gap of logits that is clear in the first, second and last third of the steps.
            exit_gaps: Vec<f64> = vec![7.5, 5.0, 2.5];
            /// Of `prophet`: offset of the answer in the canvas; null: all that is undecided.
            answer_at: Option<usize> = None;
            /// Of `prophet`: places of the answer.
            answer_length: usize = 5, within 1.0, f64::INFINITY;
        }
        impl Params {
            /// Refuse what does not fit together, `ordered` being whether `order` is not at its default; the unmasker at work.
            fn check_canvas(&self, ordered: bool) -> Result<&str, $crate::params::ParamError> {
                use $crate::diffusion::settings::clash;
                let owner = <Self as $crate::registry::System>::CARD.name;
                let (rules, early) = (self.rules(), self.early());
                let working = rules.working(early.host);
                rules.check(owner, early.host, ordered, &self.honoured())?;
                early.check(owner, &rules, &self.early_changes())?;
                if self.refresh_every.is_some() && self.cache == "none" {
                    return Err(clash(owner, "refresh_every", "null, as nothing is cached", "a number"));
                }
                if self.guidance > 0.0 && working == "credit" {
                    let found = self.guidance.to_string();
                    return Err(clash(owner, "guidance", "0 with the unmasker `credit`", &found));
                }
                Ok(working)
            }
            fn early_changes(&self) -> Vec<&'static str> {
                let default = Self::default();
                let mut changed = Vec::new();
                let mut note = |differs: bool, name: &'static str| if differs { changed.push(name) };
                note(self.host != default.host, "host");
                note(self.exit_gaps != default.exit_gaps, "exit_gaps");
                note(self.answer_at != default.answer_at, "answer_at");
                note(self.answer_length != default.answer_length, "answer_length");
                changed
            }
            fn early(&self) -> $crate::diffusion::settings::Early<'_> {
                $crate::diffusion::settings::Early {
                    host: &self.host,
                    gaps: &self.exit_gaps,
                    at: self.answer_at,
                    length: self.answer_length,
                }
            }
        }
    };
}
pub(crate) use {canvas_params, unmask_params};

/// Prophet's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Early<'a> {
    pub host: &'a str,
    pub gaps: &'a [f64],
    pub at: Option<usize>,
    pub length: usize,
}
impl Early<'_> {
    /// Refuse what does not fit together; `changed` names those that are not at their default.
    pub fn check(&self, owner: &str, rules: &Rules<'_>, changed: &[&'static str]) -> Result<(), ParamError> {
        if rules.unmasker != "prophet" {
            return match changed.first() {
                Some(name) => Err(clash(owner, name, "nothing, as `unmasker` is not `prophet`", "a value of its own")),
                None => Ok(()),
            };
        }
        if self.gaps.len() != 3 {
            let found = format!("{} numbers", self.gaps.len());
            return Err(clash(owner, "exit_gaps", "three numbers, one for each third of the steps", &found));
        }
        if self.at.is_none() && changed.contains(&"answer_length") {
            return Err(clash(
                owner,
                "answer_length",
                "nothing, as `answer_at` does not say where it begins",
                "a value of its own",
            ));
        }
        Ok(())
    }
    /// The stopper for a canvas that begins at `start`, of a run of `total` forwards.
    pub fn prophet(&self, start: usize, end: usize, total: usize) -> Result<Prophet> {
        let answer = self.at.map(|at| start + at..start + at + self.length);
        if answer.as_ref().is_some_and(|a| a.end > end) {
            let found = format!("an answer that ends at offset {}", self.at.unwrap_or(0) + self.length);
            return Err(Error::Strategy(format!(
                "{found} of a canvas of {} places: shorten `answer_length` or move `answer_at`",
                end - start
            )));
        }
        Ok(Prophet { gaps: [self.gaps[0], self.gaps[1], self.gaps[2]], answer, total })
    }
}

/// The error of parameters that do not fit together.
pub fn clash(owner: &str, name: &str, expected: &str, found: &str) -> ParamError {
    ParamError::Bad { owner: owner.into(), name: name.into(), expected: expected.into(), found: found.into() }
}

impl<'a> Rules<'a> {
    /// The unmasker at work: Prophet's host, or the named one.
    pub fn working(&self, host: &'a str) -> &'a str {
        if self.unmasker == "prophet" { host } else { self.unmasker }
    }
    /// Refuse what does not fit together. `ordered`: whether `order` is not at its default.
    pub fn check(&self, owner: &str, host: &'a str, ordered: bool, honoured: &Honoured) -> Result<(), ParamError> {
        let working = self.working(host);
        for (name, by) in honoured {
            if !by.contains(&working) {
                let expected =
                    format!("its default, as `unmasker` is `{working}`; it is a parameter of {}", by.join(", "));
                return Err(clash(owner, name, &expected, "another value"));
            }
        }
        if ordered && working != "static" {
            return Err(clash(
                owner,
                "order",
                &format!("its default, as `{working}` has its own order"),
                "another value",
            ));
        }
        if self.credit_adaptive && honoured.iter().any(|h| h.0.starts_with("credit_") && h.0 != "credit_adaptive") {
            return Err(clash(owner, "credit_adaptive", "false where the rates of credit are given", "true"));
        }
        if self.given.len() != self.given_at.len() {
            let found = format!("{} tokens at {} offsets", self.given.len(), self.given_at.len());
            return Err(clash(owner, "given", "as many tokens as `given_at` has offsets", &found));
        }
        let mut places = self.given_at.to_vec();
        places.sort_unstable();
        if places.windows(2).any(|w| w[0] == w[1]) {
            return Err(clash(owner, "given_at", "every offset once", "an offset twice"));
        }
        Ok(())
    }
    /// The unmasker; `plain`: what `static` is.
    pub fn unmasker(&self, working: &str, sdar: bool, plain: Option<Box<dyn Unmasker>>) -> Box<dyn Unmasker> {
        match working {
            "threshold" | "credit" => Box::new(Threshold::new(self.threshold)),
            "factor" => Box::new(Factor::new(self.factor)),
            "entropy" => Box::new(Entropy::new(self.entropy_bound, sdar)),
            "localleap" => {
                let (threshold, relaxed, radius) = (self.threshold, self.relaxed, self.radius);
                Box::new(LocalLeap { threshold, relaxed, radius, pace: Pace::default() })
            }
            _ => plain.unwrap_or_else(|| Box::<Static>::default()),
        }
    }
    /// Credits, if that is the unmasker at work.
    pub fn credit(&self, working: &str) -> Option<Credit> {
        (working == "credit").then(|| Credit::new(self.credit, self.credit_adaptive))
    }
    /// Which place the canvas ends before.
    pub fn end(&self, seq: &Sequence) -> Result<usize> {
        let length = self.length.unwrap_or_else(|| seq.room());
        if length > 1 << 24 {
            return Err(Error::Strategy("the canvas has no end: give `max_tokens` or `length`".into()));
        }
        Ok(seq.len() + length)
    }
    /// Write what is given.
    pub fn give(&self, canvas: &mut Canvas<'_>, guide: Option<&mut Guide<'_>>) -> Result<()> {
        let start = canvas.open_places().start;
        let end = canvas.places().end;
        let mut guide = guide;
        for (&at, &token) in self.given_at.iter().zip(self.given) {
            if start + at >= end {
                return Err(Error::Strategy(format!(
                    "a token is given at offset {at} of a canvas of {} places: lengthen the canvas",
                    end - start
                )));
            }
            canvas.commit(start + at, token as Token, 1.0)?;
            if let Some(guide) = guide.as_mut() {
                guide.canvas.commit(start + at, token as Token, 1.0)?;
            }
        }
        Ok(())
    }
    /// The chooser of a canvas; bans what is not to be chosen.
    pub fn chooser(&self, canvas: &mut Canvas<'_>, card: &ModelCard, working: &str, order: Order) -> Result<Chooser> {
        let order = if working == "entropy" { Order::Entropy } else { order };
        let mut chooser = Chooser::new(canvas, order);
        chooser.needs = Needs { entropy: working == "entropy", gap: self.unmasker == "prophet" };
        if working == "credit" && !chooser.warp.is_greedy() {
            let found = chooser.warp.temperature.to_string();
            return Err(Error::Sampling { name: "temperature", found, expected: "0 with the unmasker `credit`" });
        }
        match self.eos {
            "banned" => {
                canvas.ban(&card.eos);
                chooser.banned.extend(&card.eos);
            }
            "last" => chooser.last.clone_from(&card.eos),
            _ => {}
        }
        Ok(chooser)
    }
}

/// The model must denoise whole canvases.
pub fn bidirectional(owner: &str, card: &ModelCard) -> Result<()> {
    if card.bidirectional {
        return Ok(());
    }
    let what =
        if card.block.is_some() { "a block-causal one: use `sdar`" } else { "a causal one: use a strategy for such" };
    Err(Error::Strategy(format!("{owner} expects a model with bidirectional attention, found {what}")))
}

/// The blocks of a canvas with the forwards planned for each.
pub fn planned(
    owner: &str,
    canvas: Range<usize>,
    block: usize,
    steps: Option<usize>,
) -> Result<Vec<(Range<usize>, usize)>> {
    let blocks = blocks(canvas.start, canvas.end, block);
    let shares = match steps {
        Some(steps) if steps < blocks.len() => {
            return Err(Error::Strategy(format!(
                "{owner}: {steps} steps for {} blocks: give at least one a block",
                blocks.len()
            )));
        }
        Some(steps) => quota(steps, blocks.len()),
        None => blocks.iter().map(Range::len).collect(),
    };
    Ok(blocks.into_iter().zip(shares).collect())
}

/// The policy of a canvas, `delayed` being how often the delayed cache is refreshed.
pub fn cached(cache: &str, every: Option<usize>, delayed: usize) -> Policy {
    let cache = Cache::named(cache);
    let every = every.or((cache == Cache::Delayed).then_some(delayed));
    Policy::new(cache, every)
}
