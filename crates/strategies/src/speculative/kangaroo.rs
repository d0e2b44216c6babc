//! Kangaroo (arXiv:2404.18911, sheet 50): the first layers of the model and a small trained adapter draft, the other
//! layers verify, on the states that are there already.
//!
//! The adapter is a model with the role `adapter`: one attention layer that takes the states leaving layer `exit_layer`
//! for embeddings, with the main model's head. It chooses with the noise of the target, so that only the target's own
//! choice is kept, at every temperature.
use super::worth::{Depths, best};
use crate::autoregressive::plain;
use crate::registry::{Card, System};
use omnidecode_core::Token;
use omnidecode_core::verify::Verdict;
use omnidecode_engine::{Error, Guarantee, KvAction, Mask, Plan, Plans, Readout, Result, Row, Rows, Sequence};
use std::sync::Arc;

crate::params! {
    /// Layers that draft; null is what the adapter was trained for, or 2.
    exit_layer: Option<usize> = None, within 1.0, 1000.0;
    /// Most tokens that are drafted.
    gamma: usize = 6, within 1.0, 64.0;
    /// Drafting ends behind a token of less confidence than this: the adapter's largest probability.
    eta: f64 = 0.6, within 0.0, 2.0;
    /// Whether the draft shrinks to the length that pays on this machine; off, `gamma` and `eta` alone decide.
    adaptive: bool = true;
    /// Whether the result's notes hold each round's draft, `early` what was kept and `late` what the last layers refused,
    /// with the adapter's confidence.
    trace: bool = false;
}

impl System for Params {
    const CARD: Card = Card {
        name: "kangaroo",
        guarantee: Guarantee::Exact,
        needs: &["adapter"],
        summary: "The model's own first layers draft through a small adapter.",
        source: "arXiv:2404.18911, sheet 50",
    };
    const PLANS: Plans = Plans::Layers;

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let mut pouch = Pouch::open(seq, self.exit_layer)?;
        let depths = Depths::shared(seq, Self::CARD.name, self.gamma);
        // The states of the whole prompt are needed to draft, and a prefix cache has none: where earlier requests have shown
        // that no draft pays, none is prepared.
        if self.adaptive && pouch.worth(seq, &depths.borrow(), self.gamma) == 0 {
            let start = seq.len();
            plain::Params::default().decode(seq).await?;
            (start..seq.len()).for_each(|_| depths.borrow_mut().learn(0, 0));
            return Ok(());
        }
        pouch.prefill(seq).await?;
        loop {
            let mut most = self.gamma.min(pouch.room(seq));
            if self.adaptive {
                most = pouch.worth(seq, &depths.borrow(), most);
            }
            let (drafted, verdict) = pouch.round(seq, most, self.eta).await?;
            // The first row of the path is the committed token that the round began with.
            let right = verdict.path.len().saturating_sub(1);
            depths.borrow_mut().learn(drafted.len(), right);
            if self.trace {
                let (early, late) = drafted.split_at(right);
                for (label, tokens, place) in [("early", early, seq.len()), ("late", late, seq.len() + right)] {
                    if !tokens.is_empty() {
                        seq.note(label, place, tokens.to_vec());
                    }
                }
            }
            let next = seq.accept(&verdict)?;
            if seq.push(next)?.is_none() {
                return Ok(());
            }
        }
    }
}

/// The adapter's own sequence: at each place of the text the state that leaves the exit layer there. Of the last
/// committed token there is none yet.
struct Pouch {
    adapter: Sequence,
    exit: usize,
    layers: usize,
}

impl Pouch {
    fn open(seq: &Sequence, exit: Option<usize>) -> Result<Pouch> {
        let model = seq.require("adapter")?;
        let (card, own) = (seq.card(), seq.card_of(model));
        let exit = exit.or(own.exit_layer).unwrap_or(2);
        if exit >= card.layers {
            return Err(Error::Strategy(format!(
                "kangaroo: exit_layer = {exit} of a model with {} layers: expected 1 to {}",
                card.layers,
                card.layers.saturating_sub(1)
            )));
        }
        if (own.hidden, own.vocab) != (card.hidden, card.vocab) {
            return Err(Error::Strategy(format!(
                "kangaroo: the adapter is made for width {} and {} tokens, the model has {} and {}: load its own adapter",
                own.hidden, own.vocab, card.hidden, card.vocab
            )));
        }
        let mut adapter = seq.sibling(model);
        adapter.rollback(0)?;
        Ok(Pouch { adapter, exit, layers: card.layers })
    }
    /// The prompt up to its last token, with its states.
    async fn prefill(&mut self, seq: &mut Sequence) -> Result<()> {
        let known = seq.len() - 1;
        let read = Readout::NOTHING.hidden(self.exit);
        let seen = seq.forward(Plan::next(read).leave(1).at_rows(Rows::All)).await?;
        for place in 0..known {
            let state = seen.place(place).ok_or_else(|| Error::Strategy(format!("place {place} was not read")))?;
            self.adapter.extend_vector(state.hidden())?;
        }
        Ok(())
    }
    /// The root and drafted tokens through the first layers, the adapter behind each; then all through the others.
    /// Gives the drafted tokens with the adapter's confidence, and what to keep of the rows, the root's first.
    async fn round(&mut self, seq: &mut Sequence, most: usize, eta: f64) -> Result<(Vec<(Token, f32)>, Verdict)> {
        let place = seq.len() - 1;
        if most == 0 {
            let seen = seq.next(Readout::CHOICE.hidden(self.exit)).await?;
            self.adapter.extend_vector(seen.root().hidden())?;
            return Ok((Vec::new(), Verdict { path: Vec::new(), next: seen.root().choice() }));
        }
        let mut drafted: Vec<(Token, f32)> = Vec::new();
        let mut states: Vec<Arc<[f32]>> = Vec::new();
        let mut sure = f64::INFINITY;
        loop {
            let token = drafted.last().map_or(seq.tokens()[place], |d| d.0);
            let row = vec![Row::Token(token)];
            let plan = Plan::rows(row, Mask::Causal, Readout::NOTHING.hidden(self.exit)).layers(0..self.exit).leave(1);
            let plan = if states.is_empty() { plan } else { plan.kv(KvAction::Extend) };
            states.push(seq.forward(plan).await?.row(0).hidden().into());
            // The pass through the first layers comes before the question: the last drafted token is verified too.
            if drafted.len() >= most || sure < eta {
                break;
            }
            self.adapter.extend_vector(states[states.len() - 1].clone())?;
            let seen = self.adapter.next(Readout::CHOICE.stats()).await?;
            let stats = seen.root().stats();
            sure = f64::from((stats.max - stats.lse).exp());
            drafted.push((seen.root().choice(), sure as f32));
        }
        let rows = states.iter().map(|s| Row::Hidden(s.clone())).collect();
        let plan = Plan::rows(rows, Mask::Causal, Readout::CHOICE).layers(self.exit..self.layers).without_root();
        let seen = seq.forward(plan.kv(KvAction::Rerun(0))).await?;
        let right = drafted.iter().enumerate().take_while(|(i, d)| seen.row(*i).choice() == d.0).count();
        // What the adapter has seen of refused tokens goes; what it lacks of the last accepted one comes as debt.
        self.adapter.rollback(place + right + 1)?;
        for state in &states[self.adapter.len() - place..=right] {
            self.adapter.extend_vector(state.clone())?;
        }
        Ok((drafted, Verdict { path: (0..=right as u32).collect(), next: seen.row(right).choice() }))
    }
    /// Most tokens that can be drafted: what is left of the answer and of the adapter's context.
    fn room(&self, seq: &Sequence) -> usize {
        let context = self.adapter.card().context;
        let left = if context == 0 { usize::MAX } else { (context + 1).saturating_sub(seq.len()) };
        seq.room().saturating_sub(1).min(left)
    }
    /// How long a draft pays: each token takes a pass of the first layers and one of the adapter with the head.
    fn worth(&self, seq: &Sequence, depths: &Depths, most: usize) -> usize {
        let shallow = self.exit as f64 / self.layers as f64;
        let token = shallow + self.adapter.cost_beside(1, seq);
        let deep = |rows: usize| (1.0 - shallow) * seq.cost(rows) + shallow * seq.cost(1);
        let options = depths.tokens().take(most + 1).enumerate();
        best(seq.others(), options.map(|(n, tokens)| (tokens, deep(n + 1) + n as f64 * token)))
    }
}
