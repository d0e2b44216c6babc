//! DySpec (arXiv:2410.11744, sheet 15): the tree grows where another draw is most likely to be looked at, taking the
//! draft's probability of a token for its chance of being accepted.
//!
//! The value of one more child of v is path(v) * (1 - S(v)): the probability of the path, times what is left of v's law
//! after the children drawn so far. It is known before the draw, and a drawn token always stays: that is why the law of
//! the answer is the target's.
use super::drafting::{Draft, Verifier, largest};
use super::worth::best;
use crate::registry::{Card, System};
use omnidecode_core::tree::{DraftTree, ROOT};
use omnidecode_engine::{Guarantee, Readout, Result, Sequence};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

crate::params! {
    /// Most nodes of a tree.
    nodes: usize = 64, within 1.0, 1024.0;
    /// `heap` draws where the value is largest (a draft forward a node); `threshold` level by level, wherever it is at
    /// least `threshold` (a draft forward a level).
    mode: String = "threshold".into(), one_of "threshold", "heap";
    /// Least value of a draw; 1 draws one token, more than 1 none. Null is 1 / `nodes`, and nothing with `heap`.
    threshold: Option<f64> = None, within 0.000001, 2.0;
    /// `rejection` keeps the target's law, `match` what the target itself chooses (exact, fewer accepted tokens).
    verifier: String = "rejection".into(), one_of "rejection", "match";
    /// Temperature of the draft; null is the target's, and 1 beside a greedy target.
    draft_temperature: Option<f64> = Some(0.6), within 0.01, 10.0;
    /// Whether the tree shrinks to the nodes that paid in the step before; with `rejection` the same seed may then give
    /// other tokens of the same law.
    adaptive: bool = false;
}

impl System for Params {
    const CARD: Card = Card {
        name: "dyspec",
        guarantee: Guarantee::Distribution,
        needs: &["draft"],
        summary: "A draft model's tree that grows where its next draw is likeliest to be accepted.",
        source: "arXiv:2410.11744, sheet 15",
    };

    fn guarantee(&self) -> Guarantee {
        Verifier::named(&self.verifier).guarantee()
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let mut draft = Draft::open(seq, self.draft_temperature, Verifier::named(&self.verifier))?;
        let least = if self.mode == "heap" { 0.0 } else { 1.0 / self.nodes as f64 };
        let threshold = self.threshold.unwrap_or(least);
        let mut nodes = self.nodes;
        let mut next = seq.next(Readout::CHOICE).await?.root().choice();
        while seq.push(next)?.is_some() {
            let limits = Limits { nodes, levels: draft.levels(seq), threshold };
            let grown = if self.mode == "heap" {
                by_value(&mut draft, seq, limits).await?
            } else {
                by_level(&mut draft, seq, limits).await?
            };
            let verdict = draft.verify(seq, &grown.tree).await?;
            if self.adaptive {
                nodes = grown.worth(&draft, seq, nodes).min(self.nodes);
            }
            next = seq.accept(&verdict)?;
        }
        Ok(())
    }
}

/// What bounds a tree.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nodes.
    pub nodes: usize,
    /// Levels.
    pub levels: usize,
    /// Least value of a draw.
    pub threshold: f64,
}

/// A tree, the value of each draw, and the forwards of the draft model it took.
#[derive(Clone, Debug)]
pub struct Grown {
    /// The tree.
    pub tree: DraftTree,
    /// By node: its value before it was drawn.
    pub values: Vec<f64>,
    /// Draft forwards.
    pub forwards: usize,
}
impl Grown {
    /// Nodes that would have paid, by the values; a little more than were drawn where all of them did.
    fn worth(&self, draft: &Draft, target: &Sequence, asked: usize) -> usize {
        let mut values = self.values.clone();
        values.sort_by(|a, b| b.total_cmp(a));
        let n = values.len();
        let share = self.forwards as f64 * draft.cost(1, target) / n.max(1) as f64;
        let mut tokens = 1.0;
        let options = values.iter().enumerate().map(|(i, value)| {
            tokens += value;
            (tokens, target.cost(i + 2) + share * (i + 1) as f64)
        });
        match best(target.others(), std::iter::once((1.0, target.cost(1))).chain(options)) {
            most if most == n => asked.max(n) + 1 + n / 4,
            // Nothing tried, nothing learned: one node tells whether more would pay.
            most => most.max(1),
        }
    }
}

/// A node that may be given another child. `sum`: the law of the children drawn so far.
struct Open {
    value: f64,
    node: u32,
    path: f64,
    sum: f64,
    drawn: usize,
}
impl PartialEq for Open {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Open {}
impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Open {
    /// By value, ties to the older node, the root being the oldest.
    fn cmp(&self, other: &Self) -> Ordering {
        let age = |node: u32| node.wrapping_add(1);
        self.value.total_cmp(&other.value).then(age(other.node).cmp(&age(self.node)))
    }
}

/// What is left of a law below this is nothing: sums round.
const EXHAUSTED: f64 = 1e-7;

fn value(path: f64, sum: f64) -> f64 {
    let left = 1.0 - sum;
    if left < EXHAUSTED { 0.0 } else { path * left }
}

/// The draw order below each node, found as far as it is needed.
#[derive(Default)]
struct Orders(Vec<Vec<u32>>);
impl Orders {
    fn get(&mut self, draft: &Draft, tree: &DraftTree, node: u32, rank: usize) -> Option<u32> {
        let at = node.wrapping_add(1) as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, Vec::new());
        }
        if self.0[at].len() <= rank {
            let found = largest(&draft.scores(tree, node), (2 * rank).max(8));
            self.0[at] = found.into_iter().map(|v| v as u32).collect();
        }
        self.0[at].get(rank).copied()
    }
}

/// Variant A: always where the value is largest; the draft's law is computed when a node is first chosen.
///
/// # Errors
/// As [`Sequence::forward`].
pub async fn by_value(draft: &mut Draft, target: &Sequence, limits: Limits) -> Result<Grown> {
    let mut out = Grown { tree: draft.start(target), values: Vec::new(), forwards: 0 };
    let mut orders = Orders::default();
    let mut heap = BinaryHeap::from([Open { value: 1.0, node: ROOT, path: 1.0, sum: 0.0, drawn: 0 }]);
    let nodes = if limits.levels == 0 { 0 } else { limits.nodes };
    while out.tree.len() < nodes {
        let Some(open) = heap.pop() else { break };
        if open.value <= 0.0 || open.value < limits.threshold {
            break;
        }
        if !draft.knows(open.node) {
            draft.think(&out.tree, &[open.node]).await?;
            out.forwards += 1;
        }
        let Some(token) = orders.get(draft, &out.tree, open.node, open.drawn) else { continue };
        let share = f64::from(draft.law(open.node)[token as usize]);
        let node = out.tree.add(open.node, token);
        out.values.push(open.value);
        let path = open.path * share;
        if out.tree.depth(node) + 1 < limits.levels {
            heap.push(Open { value: path, node, path, sum: 0.0, drawn: 0 });
        }
        let sum = open.sum + share;
        heap.push(Open { value: value(open.path, sum), sum, drawn: open.drawn + 1, ..open });
    }
    Ok(out)
}

/// Variant B: level by level, every draw whose value is at least the threshold.
///
/// # Errors
/// As [`Sequence::forward`].
pub async fn by_level(draft: &mut Draft, target: &Sequence, limits: Limits) -> Result<Grown> {
    let mut out = Grown { tree: draft.start(target), values: Vec::new(), forwards: 0 };
    let mut orders = Orders::default();
    let mut level = if limits.threshold <= 1.0 { vec![(ROOT, 1.0)] } else { Vec::new() };
    for _ in 0..limits.levels {
        if level.is_empty() || out.tree.len() >= limits.nodes {
            break;
        }
        let nodes: Vec<u32> = level.iter().map(|l| l.0).collect();
        draft.think(&out.tree, &nodes).await?;
        out.forwards += 1;
        let mut below = Vec::new();
        for (at, path) in level {
            let law = draft.law(at);
            let (mut sum, mut drawn) = (0.0, 0);
            while out.tree.len() < limits.nodes && value(path, sum) >= limits.threshold {
                let Some(token) = orders.get(draft, &out.tree, at, drawn) else { break };
                out.values.push(value(path, sum));
                let share = f64::from(law[token as usize]);
                below.push((out.tree.add(at, token), path * share));
                sum += share;
                drawn += 1;
            }
        }
        // Where the number of nodes cuts, it cuts the weakest; siblings keep the order they were drawn in.
        below.retain(|b| b.1 >= limits.threshold);
        below.sort_by(|a, b| b.1.total_cmp(&a.1));
        level = below;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Contract 4: the closed form is the paper's recursion.
    #[test]
    fn values_telescope() {
        let q = [0.4, 0.3, 0.2, 0.06, 0.04];
        for path in [1.0, 0.37, 1e-3] {
            let (mut v, mut left, mut sum) = (path, 1.0, 0.0);
            for share in q {
                assert!((v - value(path, sum)).abs() < 1e-6);
                let renormalised = share / left;
                v *= 1.0 - renormalised;
                left -= share;
                sum += share;
            }
            assert_eq!(value(path, sum), 0.0);
        }
    }
}
