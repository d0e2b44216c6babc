//! A*-decoding (arXiv:2505.13672; sheet 04): a best-first search over texts cut at step boundaries. A text's estimate is
//! h = 1 - the judge's score; the text with the smallest f = g + h is expanded next, by `k` samples of one more step.
use super::branch::{Boundary, Branch, grow, hand_in};
use super::judging::Judging;
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_engine::{Guarantee, Plans, Result, Sequence, Warp};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

super::settings::stepped! {
    /// Samples of the next step of the text that is expanded. 1 is plain decoding, cut into steps.
    k: usize = 4, within 1.0, 1024.0;
    /// What g pays along an edge: `increase` (as published) each rise of h, `decrease` each fall (then f never falls along a
    /// path), `step` a fixed price.
    cost: String = "increase".into(), one_of "increase", "decrease", "step";
    /// For `step`: the price.
    price: f64 = 0.05, within 0.0, 1.0;
    /// Tokens after which no further text is expanded; null for no limit.
    budget_tokens: Option<usize> = None, within 1.0, 1e12;
    /// Judged texts after which no further text is expanded; null for no limit.
    budget_judged: Option<usize> = None, within 1.0, 1e12;
}

impl System for Params {
    const CARD: Card = Card {
        name: "a-star",
        guarantee: Guarantee::Approximate,
        needs: &[],
        summary: "Best-first search over steps: the most promising text so far is continued next.",
        source: "arXiv:2505.13672, sheet 04",
    };
    const PLANS: Plans = Plans::Steps;

    fn guarantee(&self) -> Guarantee {
        let unlimited = self.budget_tokens.is_none() && self.budget_judged.is_none();
        if self.k == 1 && unlimited { Guarantee::Exact } else { Guarantee::Approximate }
    }
    fn check(&self) -> Result<(), ParamError> {
        self.judge_settings().check(Self::CARD.name)
    }
    fn asks_judge(&self) -> bool {
        self.judge_settings().asks_request()
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let found = search(&self, seq, &mut |_| ()).await?;
        let score = 1.0 - found.h;
        hand_in(seq, found.branch, score, &[])
    }
}

/// A text on the way.
pub struct Node {
    /// The text.
    pub branch: Branch,
    /// Paid so far.
    pub g: f64,
    /// Estimate of what is left: 1 - the judge's score.
    pub h: f64,
    /// Steps.
    pub depth: usize,
    id: usize,
}
impl Node {
    /// What the search is ordered by.
    pub fn f(&self) -> f64 {
        self.g + self.h
    }
}
// The heap's largest is popped first: the smallest f, then the deepest, the smallest h, the oldest. Under
// `decrease` all of a path's fall is paid, and only the estimate tells texts of one depth apart.
impl Ord for Node {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_f = other.f().total_cmp(&self.f());
        by_f.then(self.depth.cmp(&other.depth)).then(other.h.total_cmp(&self.h)).then(other.id.cmp(&self.id))
    }
}
impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Node {}

/// What a search did, as it did it.
#[derive(Debug)]
pub enum Event<'a> {
    /// A text was taken off the queue: its tokens after the prompt, g, h and depth.
    Popped(&'a [u32], f64, f64, usize),
    /// It was continued by so many samples of so many tokens together, of which so many were new and judged.
    Expanded(usize, usize, usize),
}

/// Search until a finished text is the best, or a budget is spent.
///
/// # Errors
/// As [`Sequence::forward`], and what the judge fails with.
pub async fn search(params: &Params, seq: &mut Sequence, watch: &mut dyn FnMut(Event<'_>)) -> Result<Node> {
    let mut judging = Judging::open(seq, &params.judge_settings())?;
    let boundary = params.step();
    let (mut tokens, mut judged, mut made) = (0, 0, 1);
    if params.k > 1 && seq.len() > 1 {
        seq.prefill().await?;
    }
    let mut last = Node { branch: Branch::root(seq), g: 0.0, h: 1.0, depth: 0, id: 0 };
    let mut open = BinaryHeap::new();
    loop {
        watch(Event::Popped(last.branch.tokens(), last.g, last.h, last.depth));
        if last.branch.done || last.depth >= params.depth {
            return Ok(last);
        }
        let spent = |limit: Option<usize>, have: usize| limit.is_some_and(|limit| have >= limit);
        if spent(params.budget_tokens, tokens) || spent(params.budget_judged, judged) {
            open.push(last);
            return finish(open).await;
        }
        let mut children = expand(params, &last);
        let grown = grow(&mut children, &boundary).await?;
        let samples = children.len();
        drop_duplicates(&mut children);
        judging.score(seq, &mut children).await?;
        tokens += grown;
        judged += children.len();
        watch(Event::Expanded(samples, grown, children.len()));
        for branch in children {
            let h = 1.0 - params.worth(&branch);
            let paid = match params.cost.as_str() {
                "decrease" => (last.h - h).max(0.0),
                "step" => params.price,
                _ => (h - last.h).max(0.0),
            };
            open.push(Node { branch, g: last.g + paid, h, depth: last.depth + 1, id: made });
            made += 1;
        }
        // The text that was expanded is dropped here, its children hold what they share with it.
        match open.pop() {
            Some(next) => last = next,
            None => return Ok(last),
        }
    }
}

/// `k` branches of a text; the first has the noise that the text has, so that one sample a step is plain decoding.
fn expand(params: &Params, node: &Node) -> Vec<Branch> {
    let first = (node.depth * params.k) as u64;
    (0..params.k as u64).map(|i| node.branch.fork(if i == 0 { 0 } else { first + i })).collect()
}
fn drop_duplicates(children: &mut Vec<Branch>) {
    let mut seen: Vec<Vec<u32>> = Vec::new();
    children.retain(|child| {
        let new = !seen.iter().any(|s| s == child.tokens());
        if new {
            seen.push(child.tokens().to_vec());
        }
        new
    });
}

/// Nothing more may be spent: the best finished text, else the best text, completed greedily.
async fn finish(mut open: BinaryHeap<Node>) -> Result<Node> {
    let mut nodes: Vec<Node> = Vec::with_capacity(open.len());
    while let Some(node) = open.pop() {
        nodes.push(node);
    }
    let best = nodes.iter().position(|n| n.branch.done);
    let mut node = nodes.swap_remove(best.unwrap_or(0));
    drop(nodes);
    if best.is_none() {
        node.branch.seq.set_warp(Warp::GREEDY);
        let whole = Boundary { most: usize::MAX, ..Boundary::default() };
        grow(std::slice::from_mut(&mut node.branch), &whole).await?;
    }
    Ok(node)
}
