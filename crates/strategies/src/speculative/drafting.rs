//! What strategies with a draft model share: its laws at the nodes of a tree that grows, its noise, and the verifier
//! that fits (sheet 00 §6). What to propose is each strategy's own.
use super::worth::{Depths, best};
use crate::params::ParamError;
use omnidecode_core::Token;
use omnidecode_core::noise::{Key, Purpose, pair};
use omnidecode_core::tree::{DraftTree, Proposal, ROOT};
use omnidecode_core::verify::{Rule, Verdict, rejection};
use omnidecode_engine::{Guarantee, KvAction, Mask, Plan, Readout, Result, Row, Sequence, Warp};
use std::rc::Rc;

/// How drafted tokens are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verifier {
    /// V1: keep what the target itself chooses. Exact; the draft shares the target's noise, so that both often choose alike.
    Match,
    /// V2, recursive rejection: the target's law, and more accepted tokens.
    Rejection,
}
impl Verifier {
    /// Of a `verifier` parameter.
    pub fn named(name: &str) -> Verifier {
        if name == "rejection" { Verifier::Rejection } else { Verifier::Match }
    }
    /// What it keeps of the target.
    pub fn guarantee(self) -> Guarantee {
        match self {
            Verifier::Match => Guarantee::Exact,
            Verifier::Rejection => Guarantee::Distribution,
        }
    }
}

/// Where the randomness of a draft comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Chance {
    /// None: the likeliest tokens, for a greedy target.
    Top,
    /// The target's own noise at the position.
    Shared,
    /// Its own, new at every node of every step.
    Fresh,
}

/// A draft model beside the target, and its laws at the nodes of the tree of this step.
pub struct Draft {
    seq: Sequence,
    chance: Chance,
    warp: Warp,
    vocab: usize,
    seed: u64,
    base: usize,
    /// By node, the row in flight that stands for it.
    rows: Vec<Option<u32>>,
    flying: u32,
    /// By node, the root first: the warped law its children are drawn from, `[vocab]`.
    laws: Vec<Option<Rc<[f32]>>>,
}

impl Draft {
    /// The model with the role `draft`. `temperature`: another than the target's.
    ///
    /// # Errors
    /// [`omnidecode_engine::Error::NoModel`].
    pub fn open(target: &Sequence, temperature: Option<f64>, verifier: Verifier) -> Result<Draft> {
        let mut seq = target.sibling(target.require("draft")?);
        let warp = target.warp();
        let chance = match verifier {
            _ if warp.is_greedy() => Chance::Top,
            Verifier::Match => Chance::Shared,
            Verifier::Rejection => Chance::Fresh,
        };
        let own = temperature.map_or(if warp.is_greedy() { 1.0 } else { warp.temperature }, |t| t as f32);
        let warp = Warp { temperature: own, ..warp };
        seq.set_warp(if chance == Chance::Top { Warp::GREEDY } else { warp });
        let (vocab, seed) = (target.card().vocab, target.seed());
        Ok(Draft { seq, chance, warp, vocab, seed, base: 0, rows: Vec::new(), flying: 0, laws: Vec::new() })
    }
    /// Whether drafts are kept where the target chooses the same: no law of the draft is needed then.
    pub fn matches(&self) -> bool {
        self.chance != Chance::Fresh
    }
    /// Levels that a tree may have now: what is left of the answer, and of the draft's own context.
    pub fn levels(&self, target: &Sequence) -> usize {
        let context = self.seq.card().context;
        let left = if context == 0 { usize::MAX } else { context.saturating_sub(target.len()) };
        target.room().saturating_sub(1).min(left)
    }
    /// Time of one forward of `rows` rows in forwards of one row of the target.
    pub fn cost(&self, rows: usize, target: &Sequence) -> f64 {
        self.seq.cost_beside(rows, target)
    }
    /// An empty tree below the last committed token.
    pub fn start(&mut self, target: &Sequence) -> DraftTree {
        self.seq.follow(target);
        (self.base, self.flying) = (target.len(), 0);
        self.rows.clear();
        self.laws.clear();
        let random = self.chance == Chance::Fresh;
        DraftTree::new(if random { Proposal::Sampled { replacement: false } } else { Proposal::Deterministic })
    }
    /// Compute the laws below these nodes, in one forward. The parent of each must have been thought of before.
    ///
    /// # Errors
    /// As [`Sequence::forward`].
    pub async fn think(&mut self, tree: &DraftTree, nodes: &[u32]) -> Result<()> {
        self.laws.resize(tree.len() + 1, None);
        self.rows.resize(tree.len(), None);
        if let [ROOT] = nodes {
            let seen = self.seq.next(Readout::LOGITS).await?;
            self.laws[0] = Some(self.law_of(seen.root().logits()));
            return Ok(());
        }
        let row = |node: u32| if node == ROOT { ROOT } else { self.rows[node as usize].unwrap_or(ROOT) };
        let parents = nodes.iter().map(|&n| row(tree.parents()[n as usize])).collect();
        let rows = nodes.iter().map(|&n| Row::Token(tree.tokens()[n as usize])).collect();
        let kv = if self.flying == 0 { KvAction::Append } else { KvAction::Extend };
        let plan = Plan::rows(rows, Mask::Tree(parents), Readout::LOGITS).kv(kv).without_root();
        let seen = self.seq.forward(plan).await?;
        for (i, &node) in nodes.iter().enumerate() {
            self.rows[node as usize] = Some(self.flying);
            self.flying += 1;
            self.laws[node as usize + 1] = Some(self.law_of(seen.row(i).logits()));
        }
        Ok(())
    }
    fn law_of(&self, logits: &[f32]) -> Rc<[f32]> {
        let mut law = self.warp.law(&logits[..logits.len().min(self.vocab)]);
        law.resize(self.vocab, 0.0);
        law.into()
    }
    /// Whether the law below a node is known.
    pub fn knows(&self, node: u32) -> bool {
        self.laws.get(node.wrapping_add(1) as usize).is_some_and(Option::is_some)
    }
    /// The law that the children of a node are drawn from: `[vocab]`.
    ///
    /// # Panics
    /// When the node was not thought of: a bug in the strategy.
    pub fn law(&self, node: u32) -> Rc<[f32]> {
        self.laws[node.wrapping_add(1) as usize].clone().expect("a node's law is asked after it was computed")
    }
    /// Log-probability plus noise of every token below a node: taken in descending order, tokens are a sample without
    /// replacement (Gumbel-top-k). Tokens of probability 0 are minus infinity.
    pub fn scores(&self, tree: &DraftTree, node: u32) -> Vec<f64> {
        let law = self.law(node);
        let depth = if node == ROOT { 0 } else { tree.depth(node) + 1 };
        let position = self.base + depth;
        let key = match self.chance {
            Chance::Top => None,
            Chance::Shared => Some(Key::new(self.seed, position, Purpose::Sample)),
            Chance::Fresh => {
                // Positions are drafted again after a refusal: the step and the path make the noise new.
                let step = pair(self.seed, self.base as u64);
                let path = tree.path(node).iter().fold(step, |h, &n| pair(h, u64::from(tree.tokens()[n as usize]) + 1));
                Some(Key::new(path, position, Purpose::Draft))
            }
        };
        let score = |(v, &q): (usize, &f32)| {
            let noise = key.filter(|_| q > 0.0).map_or(0.0, |k| gumbel(k.uniform(v as u64)));
            f64::from(q).ln() + noise
        };
        law.iter().enumerate().map(score).collect()
    }
    /// The first `count` tokens of the draw order below a node; fewer where no more have a probability.
    pub fn draws(&self, tree: &DraftTree, node: u32, count: usize) -> Vec<Token> {
        largest(&self.scores(tree, node), count).into_iter().map(|t| t as Token).collect()
    }
    /// Verify in one forward of the target. A greedy target and shared noise need no law of it.
    ///
    /// # Errors
    /// As [`Sequence::forward`].
    pub async fn verify(&self, target: &mut Sequence, tree: &DraftTree) -> Result<Verdict> {
        if self.matches() {
            let seen = target.forward(Plan::tree(tree, Readout::CHOICE)).await?;
            return Ok(seen.target_match(tree));
        }
        let seen = target.forward(Plan::tree(tree, Readout::LOGITS)).await?;
        let warp = target.warp();
        let p = |node| warp.law(seen.at(node).logits());
        Ok(rejection(tree, Rule::Recursive, target.noise(), p, |node| self.law(node)))
    }
    /// A chain of drafted tokens. Ends behind a token that the draft gave less than `confidence`.
    ///
    /// # Errors
    /// As [`Sequence::forward`].
    pub async fn chain(&mut self, target: &Sequence, levels: usize, confidence: f64) -> Result<DraftTree> {
        if self.matches() {
            return self.run_ahead(target, levels, confidence).await;
        }
        let mut tree = self.start(target);
        let mut at = ROOT;
        while tree.len() < levels {
            self.think(&tree, &[at]).await?;
            let Some(&token) = self.draws(&tree, at, 1).first() else { break };
            let sure = f64::from(self.law(at)[token as usize]);
            at = tree.add(at, token);
            if sure < confidence {
                break;
            }
        }
        Ok(tree)
    }
    /// The cheap way where the verifier matches: the draft's own choices, no laws.
    async fn run_ahead(&mut self, target: &Sequence, levels: usize, confidence: f64) -> Result<DraftTree> {
        let mut tokens = Vec::new();
        if levels > 0 {
            self.seq.follow(target);
        }
        while tokens.len() < levels {
            let seen = self.seq.next(Readout::CHOICE.logprob()).await?;
            let (choice, sure) = (seen.root().choice(), f64::from(seen.root().logprob().exp()));
            tokens.push(choice);
            if sure < confidence {
                break;
            }
            if tokens.len() < levels {
                self.seq.extend(choice)?; // the last one is computed once it is needed
            }
        }
        Ok(DraftTree::chain(tokens, Proposal::Deterministic))
    }
    /// How many levels pay, of those that `shape` gives as (nodes of the tree so far, nodes of its last level).
    pub fn worth(&self, target: &Sequence, depths: &Depths, shape: impl IntoIterator<Item = (usize, usize)>) -> usize {
        // The first level's forward runs what was committed since the last draft, too.
        let behind = target.len().saturating_sub(self.seq.len()).max(1);
        let (mut drafting, mut width) = (0.0, behind);
        let mut tokens = depths.tokens();
        let plain = (tokens.next().unwrap_or(1.0), target.cost(1));
        let options: Vec<(f64, f64)> = shape
            .into_iter()
            .zip(tokens)
            .map(|((nodes, level), tokens)| {
                drafting += self.cost(width, target);
                width = level;
                (tokens, target.cost(1 + nodes) + drafting)
            })
            .collect();
        best(target.others(), std::iter::once(plain).chain(options))
    }
}

fn gumbel(u: f64) -> f64 {
    -(-u.ln()).ln()
}

/// Indices of the `count` largest finite scores, descending, ties by lower index.
pub fn largest(scores: &[f64], count: usize) -> Vec<usize> {
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    let mut ids: Vec<usize> = (0..scores.len()).filter(|&i| scores[i] > f64::NEG_INFINITY).collect();
    if count < ids.len() {
        if count == 0 {
            return Vec::new();
        }
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// A refusal of a parameter that does not fit another.
pub fn misfit(owner: &str, name: &str, expected: impl Into<String>, found: impl ToString) -> ParamError {
    ParamError::Bad { owner: owner.into(), name: name.into(), expected: expected.into(), found: found.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sheet 40, contract 2: the law of the first two draws.
    #[test]
    fn descending_scores_are_draws_without_replacement() {
        let q = [0.45f64, 0.3, 0.2, 0.05, 0.0];
        let n = 100_000;
        let mut counts = [[0.0f64; 5]; 5];
        for i in 0..n {
            let key = Key::new(5, i, Purpose::Draft);
            let scores: Vec<f64> = (0..5).map(|v| q[v].ln() + gumbel(key.uniform(v as u64))).collect();
            let pair = largest(&scores, 2);
            counts[pair[0]][pair[1]] += 1.0;
        }
        let (mut chi, mut cells) = (0.0, 0);
        for a in 0..4 {
            for b in (0..4).filter(|&b| b != a) {
                let expected = n as f64 * q[a] * q[b] / (1.0 - q[a]);
                chi += (counts[a][b] - expected).powi(2) / expected;
                cells += 1;
            }
        }
        assert_eq!(cells, 12);
        assert!(chi < 31.3, "chi-square {chi} on 11 degrees of freedom"); // 0.001 in the tail
        assert!(largest(&[f64::NEG_INFINITY, 1.0, 1.0], 9) == [1, 2] && largest(&[1.0], 0).is_empty());
    }
}
