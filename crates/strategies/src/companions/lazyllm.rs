//! LazyLLM (arXiv:2407.14057, sheet 43): a prompt token passes a layer only when it is needed there. After some layers
//! those that the last token attends to least are left out; in later steps each may come back, from where it stopped.
//!
//! Every prompt token has a depth: it has keys and values in all layers before it, and waits with its hidden state at
//! that layer. Layers between two pruning points are one forward. Positions are the original ones throughout.
use super::{Attachment, Companion, CompanionCard, CompanionError, Context};
use crate::params::ParamError;
use omnidecode_core::Token;
use omnidecode_engine::{
    Bend, Carriage, Carried, Carrier, Error, KvAction, LATENT, Outcome, Plan, Plans, Readout, Row, Rows, Sequence,
};
use std::ops::Range;
use std::sync::Arc;

const NAME: &str = "lazyllm";

crate::params! {
    /// After which layers tokens are left out, as shares of the depth.
    after: Vec<f64> = vec![0.28, 0.59, 0.88], within 0.0, 1.0;
    /// Percent of the tokens that entered such a layer to leave out: one number a point, or one for all.
    drop: Vec<f64> = vec![30.0], within 0.0, 100.0;
    /// Whether tokens are left out in decode steps too; off, the first step behind the prompt brings all of them back.
    decode: bool = true;
    /// Whether tokens may come back; off, what the prompt's pass left out stays out.
    revive: bool = true;
}

impl Companion for Params {
    const CARD: CompanionCard = CompanionCard {
        name: NAME,
        bends: "model",
        summary: "Leaves prompt tokens out of the layers where the last token does not look at them.",
        source: "arXiv:2407.14057, sheet 43",
    };

    fn attach(self, to: &Context<'_>) -> Result<Attachment, CompanionError> {
        let bad = |name: &str, expected: String, found: String| {
            Err(CompanionError::Params(ParamError::Bad { owner: NAME.into(), name: name.into(), expected, found }))
        };
        if self.after.windows(2).any(|w| w[0] >= w[1]) {
            return bad("after", "ascending shares".into(), format!("{:?}", self.after));
        }
        if self.drop.len() != 1 && self.drop.len() != self.after.len() {
            return bad("drop", format!("1 or {} numbers", self.after.len()), format!("{:?}", self.drop));
        }
        if !self.revive && !self.decode {
            return bad("decode", "true, as without `revive` nothing comes back".into(), "false".into());
        }
        let pruned = Pruned::of(&self, to.card.layers);
        if pruned.drop.is_empty() {
            return Ok(Attachment::default()); // nothing is left out anywhere
        }
        Ok(Attachment { carriers: vec![Arc::new(Lazy(pruned))], ..Attachment::default() })
    }
}

/// What every sequence of a request begins as.
struct Lazy(Pruned);
impl Carrier for Lazy {
    fn name(&self) -> &'static str {
        NAME
    }
    fn carries(&self, plans: Plans) -> Result<(), String> {
        match plans {
            Plans::Drafts | Plans::Joined if self.0.later => Err(NO_DRAFTS.into()),
            Plans::Layers => Err("both cut the layers into parts of their own; take another strategy".into()),
            Plans::Vectors => {
                Err("places that hold vectors cannot be told from one another; take another strategy".into())
            }
            Plans::Canvas => Err("what a canvas attends to changes with every look; take a causal strategy".into()),
            _ => Ok(()),
        }
    }
    fn open(&self, _seq: &mut Sequence) -> Result<Box<dyn Carriage>, Error> {
        Ok(self.0.fork())
    }
}
const NO_DRAFTS: &str = "each token chooses anew which of the prompt it looks at, so drafts cannot be verified together; \
                         take `decode` = false, with which all are back behind the prompt, or a strategy without drafts";
fn unfit<T>(reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::Companion { name: NAME, reason: reason.into() })
}

/// What is computed of each token of a sequence, and where it waits.
#[derive(Clone, Default)]
struct Pruned {
    /// Layers between two of these are run in one forward: 0, the pruning points, all layers.
    bounds: Vec<usize>,
    /// Percent left out at each bound but the first and last.
    drop: Vec<f64>,
    later: bool,
    revive: bool,
    /// The tokens that the rest is of.
    tokens: Vec<Token>,
    /// Layers that each token has passed.
    depth: Vec<usize>,
    /// The state entering layer `depth`, of tokens that have not passed all.
    waiting: Vec<Option<Arc<[f32]>>>,
    /// All are back, for good: plans pass as they are.
    whole: bool,
}

impl Carriage for Pruned {
    fn fork(&self) -> Box<dyn Carriage> {
        Box::new(self.clone())
    }
    fn carry<'a>(&'a mut self, seq: &'a mut Sequence, plan: Plan) -> Carried<'a> {
        Box::pin(async move {
            if self.whole {
                return seq.forward(plan).await;
            }
            self.fits(seq, &plan)?;
            self.recall(seq);
            let end = seq.len() - plan.leave;
            if !self.later && !self.depth.is_empty() && end > seq.prompt().len() {
                self.all_back(seq).await?;
                return seq.forward(plan).await;
            }
            let root = self.step(seq, end, &plan).await?;
            if plan.rows.is_empty() {
                return Ok(root);
            }
            self.all_back(seq).await?;
            let rows = seq.forward(plan.without_root()).await?;
            Ok(if root.is_empty() { rows } else { root.join(&rows) })
        })
    }
}

impl Pruned {
    fn of(params: &Params, layers: usize) -> Pruned {
        let (mut bounds, mut drop) = (vec![0], Vec::new());
        for (i, share) in params.after.iter().enumerate() {
            let at = (share * layers as f64).round() as usize;
            let percent = params.drop[if params.drop.len() == 1 { 0 } else { i }];
            if at > bounds[bounds.len() - 1] && at < layers && percent > 0.0 {
                bounds.push(at);
                drop.push(percent);
            }
        }
        bounds.push(layers);
        Pruned { bounds, drop, later: params.decode, revive: params.revive, ..Pruned::default() }
    }

    /// Refuse what cannot be carried out.
    fn fits(&self, seq: &Sequence, plan: &Plan) -> Result<(), Error> {
        let behind = matches!(plan.kv, KvAction::Append | KvAction::Discard) && plan.at.is_none();
        if !plan.rows.is_empty() && !behind {
            return unfit("rows that stand in for committed ones, or extend others, while tokens are left out");
        }
        if !plan.rows.is_empty() && self.later {
            return unfit(NO_DRAFTS);
        }
        if plan.keep.is_some() || seq.tokens().contains(&LATENT) {
            return unfit("a plan that chooses what is attended to itself, or places that hold vectors");
        }
        let own = self.bounds[self.bounds.len() - 2];
        if plan.read.hidden.iter().chain(&plan.read.mass).any(|l| *l < own) {
            return unfit(format!("what happens before layer {own} cannot be read: tokens are left out there"));
        }
        Ok(())
    }
    /// Forget what the sequence has taken back.
    fn recall(&mut self, seq: &Sequence) {
        let same = self.tokens.iter().zip(seq.tokens()).take_while(|(a, b)| a == b).count();
        let known = same.min(seq.computed());
        self.tokens.truncate(known);
        self.depth.truncate(known);
        self.waiting.truncate(known);
    }

    /// Bring the last of the first `end` tokens through all layers, and the others as far as it looks at them; what the
    /// plan reads at the root.
    async fn step(&mut self, seq: &mut Sequence, end: usize, plan: &Plan) -> Result<Outcome, Error> {
        let fresh = self.depth.len() < end;
        if end == 0 || !(fresh || plan.root && self.depth.len() == end) {
            return Ok(Outcome::default());
        }
        let begins = self.depth.is_empty();
        self.tokens.extend_from_slice(&seq.tokens()[self.tokens.len()..end]);
        self.depth.resize(end, 0);
        self.waiting.resize(end, None);
        let (last, prompt) = (end - 1, seq.prompt().len());
        (self.depth[last], self.waiting[last]) = (0, None);
        let prunes = begins || self.later || last < prompt;
        let rooted = plan.rows.is_empty() || matches!(plan.at_rows, Rows::Own | Rows::All);
        let read = if rooted { plan.read.clone() } else { Readout::NOTHING };
        let mut wanted: Vec<usize> = (0..end).collect();
        for (g, layers) in self.bounds.clone().windows(2).map(|w| w[0]..w[1]).enumerate() {
            if !begins && !self.revive {
                wanted.retain(|&i| i == last || self.depth[i] >= layers.end);
            }
            let Some(&percent) = self.drop.get(g) else {
                let bend = plan.bend.clone().map(Bend::of_root);
                let noise = plan.noise;
                let with = Plan { read, bend, noise, at_rows: Rows::Last, ..Plan::default() };
                let (seen, _) = self.pass(seq, layers, &wanted, with).await?;
                return Ok(if seen.is_empty() { seen } else { seen.as_root(last) });
            };
            let read = Readout::NOTHING.hidden(layers.end);
            let read = if prunes { read.mass(layers.end - 1) } else { read };
            let (seen, row) = self.pass(seq, layers, &wanted, Plan { read, ..Plan::default() }).await?;
            if prunes {
                wanted = keep(&wanted, seen.row(row).mass(), percent, |i| i < prompt && i != last);
            }
        }
        Ok(Outcome::default())
    }
    /// Bring every token through all layers.
    async fn all_back(&mut self, seq: &mut Sequence) -> Result<(), Error> {
        let all: Vec<usize> = (0..self.depth.len()).collect();
        let through = self.bounds[self.bounds.len() - 1];
        for layers in self.bounds.clone().windows(2).map(|w| w[0]..w[1]) {
            let rows: Vec<usize> = all.iter().copied().filter(|&i| self.depth[i] == layers.start).collect();
            if !rows.is_empty() {
                let read = if layers.end < through { Readout::NOTHING.hidden(layers.end) } else { Readout::NOTHING };
                self.run(seq, &layers, &all, &rows, Plan { read, ..Plan::default() }).await?;
            }
        }
        self.whole = true;
        Ok(())
    }

    /// Through these layers: the wanted tokens that are not beyond them, the last one at the end. What was read there, and
    /// the last one's row.
    async fn pass(
        &mut self,
        seq: &mut Sequence,
        layers: Range<usize>,
        wanted: &[usize],
        with: Plan,
    ) -> Result<(Outcome, usize), Error> {
        let mut rows: Vec<usize> = wanted.iter().copied().filter(|&i| self.depth[i] == layers.start).collect();
        // Attention weights are wanted of the last token only: where that is worth a forward, the others go first.
        if !with.read.mass.is_empty() && rows.len() > FEW {
            let rest = rows.split_off(rows.len() - 1);
            let read = Readout::NOTHING.hidden(layers.end);
            self.run(seq, &layers, wanted, &rows, Plan { read, ..Plan::default() }).await?;
            rows = rest;
        }
        let seen = self.run(seq, &layers, wanted, &rows, with).await?;
        Ok((seen, rows.len() - 1))
    }
    /// These rows, over the wanted tokens before each.
    async fn run(
        &mut self,
        seq: &mut Sequence,
        layers: &Range<usize>,
        wanted: &[usize],
        rows: &[usize],
        with: Plan,
    ) -> Result<Outcome, Error> {
        let enter = |&i: &usize| match &self.waiting[i] {
            Some(state) => Row::Hidden(state.clone()),
            None => Row::Token(seq.tokens()[i]),
        };
        let plan = Plan {
            rows: rows.iter().map(enter).collect(),
            kv: KvAction::Overwrite,
            at: Some(0),
            offsets: rows.iter().map(|&i| i as u32).collect(),
            keep: Some(spans(wanted.iter().copied().filter(|i| rows.binary_search(i).is_err()))),
            layers: Some(layers.clone()),
            ..with
        };
        let seen = seq.forward(plan).await?;
        let through = self.bounds[self.bounds.len() - 1] == layers.end;
        for (row, &i) in rows.iter().enumerate() {
            self.depth[i] = layers.end;
            self.waiting[i] = if through { None } else { Some(seen.row(row).hidden().into()) };
        }
        Ok(seen)
    }
}

/// Rows of which all attention weights may be read rather than those of the last in a forward of its own.
const FEW: usize = 16;

/// The tokens left of those that entered a layer: without the floor(n percent / 100) of least weight, of equals the
/// later ones, as far as they are `open` to be left out. A sliding window gives weights to the last tokens only.
fn keep(entered: &[usize], mass: &[f32], percent: f64, open: impl Fn(usize) -> bool) -> Vec<usize> {
    let n = entered.len();
    let weight = |k: usize| (mass.len() + k).checked_sub(n).map_or(0.0, |at| mass[at]);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| weight(a).total_cmp(&weight(b)).then(b.cmp(&a)));
    let mut out = vec![false; n];
    order[..(n as f64 * percent / 100.0) as usize].iter().for_each(|&k| out[k] = open(entered[k]));
    entered.iter().zip(out).filter(|(_, out)| !out).map(|(i, _)| *i).collect()
}

/// Ascending places as ranges.
fn spans(places: impl Iterator<Item = usize>) -> Vec<(u32, u32)> {
    let mut spans: Vec<(u32, u32)> = Vec::new();
    for place in places.map(|p| p as u32) {
        match spans.last_mut() {
            Some(last) if last.1 == place => last.1 += 1,
            _ => spans.push((place, place + 1)),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The integer rule, ties, what is never left out, windows.
    #[test]
    fn who_is_left_out() {
        let entered = [0, 2, 3, 5, 8, 9];
        let all = |_| true;
        assert_eq!(keep(&entered, &[0.5, 0.1, 0.2, 0.0, 0.1, 0.1], 34.0, all), [0, 2, 3, 8]);
        assert_eq!(keep(&entered, &[0.5, 0.1, 0.2, 0.0, 0.1, 0.1], 33.0, all), [0, 2, 3, 8, 9]);
        assert_eq!(keep(&entered, &[0.5, 0.1, 0.2, 0.0, 0.1, 0.1], 34.0, |i| i < 8), [0, 2, 3, 8, 9]);
        assert_eq!(keep(&entered, &[0.1; 6], 50.0, all), [0, 2, 3], "of equals the later ones");
        assert_eq!(keep(&entered, &[0.4, 0.3, 0.3], 50.0, all), [5, 8, 9], "what the window has left goes first");
        assert_eq!(keep(&entered, &[0.1; 6], 0.0, all), entered);
        assert_eq!(spans([0, 1, 2, 5, 7, 8].into_iter()), [(0, 3), (5, 6), (7, 9)]);
    }

    #[test]
    fn points_scale_with_the_depth() {
        let bounds = |layers| Pruned::of(&Params::default(), layers).bounds;
        assert_eq!(bounds(32), [0, 9, 19, 28, 32]);
        assert_eq!(bounds(30), [0, 8, 18, 26, 30]);
        assert_eq!(bounds(2), [0, 1, 2]);
        assert_eq!(bounds(1), [0, 1]);
        let none = Params { drop: vec![0.0], ..Params::default() };
        assert_eq!(Pruned::of(&none, 32).bounds, [0, 32]);
    }
}
