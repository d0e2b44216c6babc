//! Which drafted tokens are kept (sheet 00 §6). All verifiers walk the tree from the root; none ever looks at a draft
//! before the decision to draw it is judged.
use crate::Token;
use crate::law::draw;
use crate::noise::{Key, Purpose};
use crate::tree::{DraftTree, Proposal, ROOT};

/// Which nodes to keep, in order, and the token that follows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Nodes from the first level down.
    pub path: Vec<u32>,
    /// The token after the last of them, not yet in the tree or not accepted there.
    pub next: Token,
}

/// V0 and V1: walk down as long as the target's own choice is among the children. `choice` is asked at each node, the
/// root being [`ROOT`]; it must be the choice plain decoding would make there, and then so is the text.
pub fn target_match(tree: &DraftTree, mut choice: impl FnMut(u32) -> Token) -> Verdict {
    let (mut at, mut path) = (ROOT, Vec::new());
    loop {
        let next = choice(at);
        match tree.child(at, next) {
            Some(node) => {
                path.push(node);
                at = node;
            }
            None => return Verdict { path, next },
        }
    }
}

/// The state of V2 at one node: what the target still owes, and the law of the next sibling.
#[derive(Clone, Debug)]
pub struct Round {
    rest: Vec<f64>,
    draft: Vec<f64>,
    replacement: bool,
}
impl Round {
    /// `p`: the warped target law at the node; `q`: the warped law its children were drawn from.
    pub fn new(p: &[f32], q: &[f32], replacement: bool) -> Self {
        let wide = |law: &[f32]| law.iter().map(|&x| f64::from(x)).collect();
        Self { rest: wide(p), draft: wide(q), replacement }
    }
    /// Probability that a sibling `y` drawn now is accepted.
    pub fn acceptance(&self, y: Token) -> f64 {
        let (r, d) = (self.rest[y as usize], self.draft[y as usize]);
        if r <= 0.0 {
            0.0
        } else if r >= d {
            1.0
        } else {
            r / d
        }
    }
    /// `y` was refused. False when no further sibling can exist.
    pub fn refuse(&mut self, y: Token) -> bool {
        let left: f64 = self.rest.iter().zip(&self.draft).map(|(r, d)| (r - d).max(0.0)).sum();
        if left > 0.0 {
            for (r, d) in self.rest.iter_mut().zip(&self.draft) {
                *r = (*r - d).max(0.0) / left;
            }
        }
        if !self.replacement {
            self.draft[y as usize] = 0.0;
            let sum: f64 = self.draft.iter().sum();
            if sum <= 0.0 {
                return false;
            }
            self.draft.iter_mut().for_each(|d| *d /= sum);
        }
        true
    }
    /// The law of the token that follows when every sibling was refused.
    pub fn rest(&self) -> &[f64] {
        &self.rest
    }
    /// The law that the next sibling is drawn from.
    pub fn draft(&self) -> &[f64] {
        &self.draft
    }
}

/// V3, K-SEQ (arXiv:2310.15141), for `k` independent candidates at one node.
#[derive(Clone, Debug)]
pub struct KSeq {
    /// The discount of the acceptance ratio, in [1, k].
    pub rho: f64,
    /// Probability that some candidate is accepted.
    pub accept: f64,
    /// The law when none is, not normalised.
    pub rest: Vec<f64>,
}
impl KSeq {
    /// Solve for the discount by bisection.
    pub fn new(p: &[f32], q: &[f32], k: usize) -> Self {
        let pairs = || p.iter().zip(q).map(|(&p, &q)| (f64::from(p), f64::from(q)));
        let beta = |rho: f64| pairs().map(|(p, q)| q.min(p / rho)).sum::<f64>();
        let hit = |beta: f64| 1.0 - (1.0 - beta).max(0.0).powi(k as i32);
        let (mut low, mut high) = (1.0, k.max(1) as f64);
        for _ in 0..100 {
            let rho = 0.5 * (low + high);
            if hit(beta(rho)) >= rho * beta(rho) { low = rho } else { high = rho }
        }
        let rho = 0.5 * (low + high);
        let (b, accept) = (beta(rho), hit(beta(rho)));
        let share = if b > 0.0 { accept / b } else { 0.0 };
        let rest = pairs().map(|(p, q)| (p - q.min(p / rho) * share).max(0.0)).collect();
        Self { rho, accept, rest }
    }
    /// Probability that one candidate `y` is accepted.
    pub fn acceptance(&self, p: &[f32], q: &[f32], y: Token) -> f64 {
        let (p, q) = (f64::from(p[y as usize]), f64::from(q[y as usize]));
        if p <= 0.0 { 0.0 } else { (p / (self.rho * q)).min(1.0) }
    }
}

/// How sampled siblings are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// V2, recursive rejection: Leviathan and Chen on chains, SpecInfer with replacement, RSD without.
    #[default]
    Recursive,
    /// V3, only for siblings drawn with replacement; others are judged by V2.
    KSeq,
}

/// The noise of one verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// Seed of the request.
    pub seed: u64,
    /// Absolute position of the tree's first level.
    pub base: usize,
}

/// V2 or V3: the emitted law is the target's for trees drawn at random. `target` gives the warped law at a node,
/// `draft` the warped law its children were drawn from (asked only where there are children). Each position is judged
/// once in a text, so noise keyed by position is fresh.
pub fn rejection<P: AsRef<[f32]>, Q: AsRef<[f32]>>(
    tree: &DraftTree,
    rule: Rule,
    noise: Noise,
    mut target: impl FnMut(u32) -> P,
    mut draft: impl FnMut(u32) -> Q,
) -> Verdict {
    let replacement = matches!(tree.proposal(), Proposal::Sampled { replacement: true });
    let (mut at, mut path) = (ROOT, Vec::new());
    loop {
        let position = noise.base + path.len();
        let p = target(at);
        let p = p.as_ref();
        let bonus = Key::new(noise.seed, position, Purpose::Residual).uniform(0);
        let children: Vec<u32> = tree.children(at).collect();
        if children.is_empty() {
            return Verdict { path, next: draw(p, bonus) };
        }
        let q = draft(at);
        let q = q.as_ref();
        let coin = Key::new(noise.seed, position, Purpose::Accept);
        let judged = match rule {
            Rule::KSeq if replacement => by_k_seq(tree, &children, p, q, coin),
            _ => by_rounds(tree, &children, p, q, replacement, coin),
        };
        match judged {
            Ok(node) => {
                path.push(node);
                at = node;
            }
            Err(rest) => {
                let some = rest.iter().any(|&r| r > 0.0);
                return Verdict { path, next: if some { draw(&rest, bonus) } else { draw(p, bonus) } };
            }
        }
    }
}

fn by_rounds(
    tree: &DraftTree,
    children: &[u32],
    p: &[f32],
    q: &[f32],
    replacement: bool,
    coin: Key,
) -> Result<u32, Vec<f64>> {
    let mut round = Round::new(p, q, replacement);
    for (k, &child) in children.iter().enumerate() {
        let y = tree.tokens()[child as usize];
        if coin.uniform(k as u64) < round.acceptance(y) {
            return Ok(child);
        }
        if !round.refuse(y) {
            break;
        }
    }
    Err(round.rest)
}

fn by_k_seq(tree: &DraftTree, children: &[u32], p: &[f32], q: &[f32], coin: Key) -> Result<u32, Vec<f64>> {
    let law = KSeq::new(p, q, children.len());
    let accepted =
        |(k, child): (usize, &u32)| coin.uniform(k as u64) < law.acceptance(p, q, tree.tokens()[*child as usize]);
    match children.iter().enumerate().find(|c| accepted(*c)) {
        Some((_, &child)) => Ok(child),
        None => Err(law.rest),
    }
}

/// V4, typical acceptance (Medusa, arXiv:2401.10774). **Not lossless.** A child is taken when its target probability
/// exceeds `min(epsilon, alpha * exp(-entropy))`; of the paths whose every node is taken, the longest is kept, ties
/// by the larger sum of log-probabilities. `law` and `choice` are asked at nodes, the root being [`ROOT`].
pub fn typical<P: AsRef<[f32]>>(
    tree: &DraftTree,
    epsilon: f64,
    alpha: f64,
    mut law: impl FnMut(u32) -> P,
    mut choice: impl FnMut(u32) -> Token,
) -> Verdict {
    let mut best = (0, 0.0, ROOT);
    let mut open = vec![(0usize, 0.0f64, ROOT)];
    while let Some((length, score, at)) = open.pop() {
        if length > best.0 || (length == best.0 && score > best.1 && at != ROOT) {
            best = (length, score, at);
        }
        if tree.children(at).next().is_none() {
            continue;
        }
        let p = law(at);
        let p = p.as_ref();
        let entropy: f64 = p.iter().filter(|x| **x > 0.0).map(|&x| -f64::from(x) * f64::from(x).ln()).sum();
        let floor = epsilon.min(alpha * (-entropy).exp());
        for child in tree.children(at) {
            let x = f64::from(p[tree.tokens()[child as usize] as usize]);
            if x > floor {
                open.push((length + 1, score + x.ln(), child));
            }
        }
    }
    Verdict { path: tree.path(best.2), next: choice(best.2) }
}
