//! LazyLLM (arXiv:2407.14057, sheet 43): a prompt token passes a layer only when it is needed there. After some layers
//! those that the last token attends to least are left out; in later steps each may come back, from where it stopped.
//!
//! Every prompt token has a depth: it has keys and values in all layers before it, and waits with its hidden state at
//! that layer. Layers between two pruning points are one forward. Positions are the original ones throughout.
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_core::Token;
use omnidecode_engine::{Error, Guarantee, KvAction, Mask, Outcome, Plan, Readout, Result, Row, Rows, Sequence};
use std::ops::Range;
use std::sync::Arc;

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

impl System for Params {
    const CARD: Card = Card {
        name: "lazyllm",
        guarantee: Guarantee::Approximate,
        needs: &[],
        summary: "Leaves prompt tokens out of the layers where the last token does not look at them.",
        source: "arXiv:2407.14057, sheet 43",
    };

    fn guarantee(&self) -> Guarantee {
        if self.drop.iter().all(|k| *k == 0.0) || self.after.is_empty() {
            Guarantee::Exact
        } else {
            Guarantee::Approximate
        }
    }
    fn check(&self) -> Result<(), ParamError> {
        let bad = |name: &str, expected: String, found: String| {
            Err(ParamError::Bad { owner: Self::CARD.name.into(), name: name.into(), expected, found })
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
        Ok(())
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let mut tokens = Pruned::open(&self, seq.card().layers, seq.prompt().len());
        while !seq.finished() {
            let next = tokens.step(seq).await?;
            seq.push(next)?;
        }
        Ok(())
    }
}

/// What is computed of each token, and where it waits.
struct Pruned {
    /// Layers between two of these are run in one forward: 0, the pruning points, all layers.
    bounds: Vec<usize>,
    /// Percent left out at each bound but the first and last.
    drop: Vec<f64>,
    prompt: usize,
    later: bool,
    revive: bool,
    /// Layers that each token has passed.
    depth: Vec<usize>,
    /// The state entering layer `depth`, of tokens that have not passed all.
    waiting: Vec<Option<Arc<[f32]>>>,
}

impl Pruned {
    fn open(params: &Params, layers: usize, prompt: usize) -> Pruned {
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
        let (later, revive) = (params.decode, params.revive);
        Pruned { bounds, drop, prompt, later, revive, depth: Vec::new(), waiting: Vec::new() }
    }

    /// Bring the last token through all layers, and the others as far as it looks at them; its choice.
    async fn step(&mut self, seq: &mut Sequence) -> Result<Token> {
        let prefill = self.depth.is_empty();
        self.depth.resize(seq.len(), 0);
        self.waiting.resize(seq.len(), None);
        let last = seq.len() - 1;
        let mut wanted: Vec<usize> = (0..seq.len()).collect();
        let mut choice = None;
        for (g, layers) in self.bounds.clone().windows(2).map(|w| w[0]..w[1]).enumerate() {
            if !prefill && !self.revive {
                wanted.retain(|&i| i == last || self.depth[i] >= layers.end);
            }
            let Some(&percent) = self.drop.get(g) else {
                let last = self.pass(seq, layers, &wanted, Readout::CHOICE).await?;
                seq.spoken_by(&last.seen, last.row);
                choice = Some(last.choice());
                break;
            };
            let prunes = prefill || self.later;
            let read = Readout::NOTHING.hidden(layers.end);
            let read = if prunes { read.mass(layers.end - 1) } else { read };
            let seen = self.pass(seq, layers, &wanted, read).await?;
            if prunes {
                wanted = keep(&wanted, seen.mass(), percent, |i| i < self.prompt && i != last);
            }
        }
        choice.ok_or_else(|| Error::Strategy("lazyllm: the model has no layers".into()))
    }

    /// Through these layers: the wanted tokens that are not beyond them, the last one at the end. What was read there.
    async fn pass(
        &mut self,
        seq: &mut Sequence,
        layers: Range<usize>,
        wanted: &[usize],
        read: Readout,
    ) -> Result<Last> {
        let mut rows: Vec<usize> = wanted.iter().copied().filter(|&i| self.depth[i] == layers.start).collect();
        // Attention weights are wanted of the last token only: where that is worth a forward, the others go first.
        if !read.mass.is_empty() && rows.len() > FEW {
            let rest = rows.split_off(rows.len() - 1);
            let seen = self.run(seq, &layers, wanted, &rows, Readout::NOTHING.hidden(layers.end)).await?;
            self.passed(&layers, &rows, &seen);
            rows = rest;
        }
        let seen = self.run(seq, &layers, wanted, &rows, read).await?;
        self.passed(&layers, &rows, &seen);
        Ok(Last { seen, row: rows.len() - 1 })
    }
    async fn run(
        &self,
        seq: &mut Sequence,
        layers: &Range<usize>,
        wanted: &[usize],
        rows: &[usize],
        read: Readout,
    ) -> Result<Outcome> {
        let enter = |&i: &usize| match &self.waiting[i] {
            Some(state) => Row::Hidden(state.clone()),
            None => Row::Token(seq.tokens()[i]),
        };
        let at_rows = if read.needs_head() { Rows::Last } else { Rows::Own };
        let plan = Plan {
            at: Some(0),
            offsets: rows.iter().map(|&i| i as u32).collect(),
            keep: Some(spans(wanted.iter().copied().filter(|i| rows.binary_search(i).is_err()))),
            ..Plan::rows(rows.iter().map(enter).collect(), Mask::Causal, read)
        };
        seq.forward(plan.kv(KvAction::Overwrite).layers(layers.clone()).at_rows(at_rows).without_root()).await
    }
    fn passed(&mut self, layers: &Range<usize>, rows: &[usize], seen: &Outcome) {
        let through = self.bounds[self.bounds.len() - 1] == layers.end;
        for (row, &i) in rows.iter().enumerate() {
            self.depth[i] = layers.end;
            self.waiting[i] = if through { None } else { Some(seen.row(row).hidden().into()) };
        }
    }
}

/// What was read at the last token.
struct Last {
    seen: Outcome,
    row: usize,
}
impl Last {
    fn choice(&self) -> Token {
        self.seen.row(self.row).choice()
    }
    fn mass(&self) -> &[f32] {
        self.seen.row(self.row).mass()
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
        let bounds = |layers| Pruned::open(&Params::default(), layers, 1).bounds;
        assert_eq!(bounds(32), [0, 9, 19, 28, 32]);
        assert_eq!(bounds(30), [0, 8, 18, 26, 30]);
        assert_eq!(bounds(2), [0, 1, 2]);
        assert_eq!(bounds(1), [0, 1]);
        let none = Params { drop: vec![0.0], ..Params::default() };
        assert_eq!(Pruned::open(&none, 32, 1).bounds, [0, 32]);
        assert_eq!((none.guarantee(), Params::default().guarantee()), (Guarantee::Exact, Guarantee::Approximate));
    }
}
