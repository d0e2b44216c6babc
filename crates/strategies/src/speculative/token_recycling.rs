//! Token Recycling: yesterday's candidates are tomorrow's draft (arXiv:2408.08696, sheet 06).
//!
//! A table remembers, for every token, the k likeliest successors that the model gave the last time the token was an
//! input. A tree over that table is the draft; the verified rows, kept or not, refresh the table. The paper's tree is a
//! fixed template of ranks. Where it adapts, the tree is grown instead by what each candidate is worth: the likeliest node
//! first, as many as pay on this machine.
use super::worth;
use crate::registry::{Card, System};
use omnidecode_core::Token;
use omnidecode_core::tree::{DraftTree, Proposal, ROOT};
use omnidecode_engine::{Guarantee, Outcome, Plan, Readout, Result, Rows, Sequence};
use std::cell::RefCell;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::rc::Rc;

crate::params! {
    /// Successors remembered per token.
    k: usize = 8, within 1.0, 32.0;
    /// Most nodes of a draft.
    max_nodes: usize = 80, within 0.0, 80.0;
    /// Whether the draft is made of the likeliest nodes, as many as pay on this machine; off, it is the template.
    adaptive: bool = true;
    /// Where the table lives: `engine`, shared by all requests and warm, or `request`, cold at each start.
    table: String = "engine".into(), one_of "engine", "request";
    /// Whether the rows of the prompt fill the table too.
    init_from_prompt: bool = false;
    /// Whether, of several rows of one token, the accepted one is remembered rather than the last.
    prefer_accepted: bool = false;
}

/// Children of each node of the template, root first, breadth first (sheet 06: the 80-node tree).
const TEMPLATE: [u8; 81] = [
    8, 8, 4, 3, 2, 1, 1, 1, 1, 8, 3, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 5, 2, 1, 1, 1, 0, 0, 0,
    1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 3, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 0, 0, 1, 0, 0,
    0, 0, 0, 0, 0,
];

impl System for Params {
    const CARD: Card = Card {
        name: "token-recycling",
        guarantee: Guarantee::Exact,
        needs: &[],
        summary: "A table of the model's last candidates per token drafts a tree.",
        source: "arXiv:2408.08696, sheet 06",
    };

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let table = self.table(seq);
        let shape = Shape::template();
        let read = Readout::CHOICE.top(self.k);
        let at_rows = if self.init_from_prompt { Rows::All } else { Rows::Own };
        let seen = seq.forward(Plan::next(read.clone()).at_rows(at_rows)).await?;
        if self.init_from_prompt {
            let places = seen.places().filter(|&p| (p as u64) < seq.len() as u64);
            places.for_each(|p| {
                if let Some(seen) = seen.place(p) {
                    table.borrow_mut().matrix.learn(seq.tokens()[p], seen.top());
                }
            });
        }
        let mut next = seen.root().choice();
        while let Some(token) = seq.push(next)? {
            let levels = seq.room().saturating_sub(1);
            let tree = if self.adaptive {
                let nodes = table.borrow().likeliest(token, levels, self.max_nodes);
                let paying = worth(seq, nodes.iter().map(|n| n.chance));
                tree_of(&nodes[..paying])
            } else {
                table.borrow().matrix.fill(token, &shape, levels, self.max_nodes)
            };
            let seen = seq.forward(Plan::tree(&tree, read.clone())).await?;
            let verdict = seen.target_match(&tree);
            let mut known = table.borrow_mut();
            let path = verdict.path.iter().map(|&n| (tree.tokens()[n as usize], seen.at(n).choice()));
            std::iter::once((token, seen.root().choice())).chain(path).for_each(|(from, to)| known.judge(from, to));
            known.matrix.learn_all(token, &tree, &seen);
            if self.prefer_accepted {
                for &node in &verdict.path {
                    known.matrix.learn(tree.tokens()[node as usize], seen.at(node).top());
                }
            }
            drop(known);
            next = seq.accept(&verdict)?;
        }
        Ok(())
    }
}

impl Params {
    fn table(&self, seq: &Sequence) -> Rc<RefCell<Table>> {
        let new = || Rc::new(RefCell::new(Table::new(seq.card().vocab, self.k)));
        if self.table == "request" {
            return new();
        }
        // One table for each k: requests with different k do not spoil each other's.
        let tables = seq.resource(Tables::default);
        let mut tables = tables.borrow_mut();
        tables.entry(self.k).or_insert_with(new).clone()
    }
}

type Tables = std::collections::BTreeMap<usize, Rc<RefCell<Table>>>;

/// What is remembered: candidates, and how often candidates as sure as these were right.
struct Table {
    matrix: Matrix,
    odds: Odds,
}

/// A node of a draft that is still a list: its parent in the list (or [`ROOT`]) and its chance of being accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Node {
    parent: u32,
    token: Token,
    chance: f64,
}

fn tree_of(nodes: &[Node]) -> DraftTree {
    let mut tree = DraftTree::new(Proposal::Deterministic);
    nodes.iter().for_each(|n| {
        tree.add(n.parent, n.token);
    });
    tree
}

/// A candidate that could be the next node; the greatest is the likeliest, then the first that was thought of.
struct Open {
    node: Node,
    from: Token,
    rank: usize,
    depth: usize,
    turn: Reverse<usize>,
}
impl Ord for Open {
    fn cmp(&self, other: &Self) -> Ordering {
        self.node.chance.total_cmp(&other.node.chance).then(self.turn.cmp(&other.turn))
    }
}
impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Open {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Open {}

impl Table {
    /// Less likely nodes are not thought of.
    const LEAST: f64 = 1e-3;

    fn new(vocab: usize, k: usize) -> Table {
        Table { matrix: Matrix::new(vocab, k), odds: Odds::default() }
    }
    /// Up to `most` nodes below `root`, by falling chance of being accepted: any first of them are a tree.
    fn likeliest(&self, root: Token, levels: usize, most: usize) -> Vec<Node> {
        let mut nodes: Vec<Node> = Vec::new();
        let mut open = BinaryHeap::new();
        let mut turn = 0;
        // `limit`: the chance of the elder sibling, or of the parent.
        let mut think =
            |open: &mut BinaryHeap<Open>, parent: u32, from: Token, rank: usize, depth, above: f64, limit: f64| {
                let Some(&(token, sure)) = self.matrix.row(from).get(rank) else { return };
                let chance = (above * self.odds.of(sure)).min(limit);
                if depth < levels && chance >= Self::LEAST {
                    turn += 1;
                    open.push(Open { node: Node { parent, token, chance }, from, rank, depth, turn: Reverse(turn) });
                }
            };
        think(&mut open, ROOT, root, 0, 0, 1.0, 1.0);
        while nodes.len() < most
            && let Some(Open { node, from, rank, depth, .. }) = open.pop()
        {
            let above = if node.parent == ROOT { 1.0 } else { nodes[node.parent as usize].chance };
            let at = nodes.len() as u32;
            nodes.push(node);
            think(&mut open, node.parent, from, rank + 1, depth, above, node.chance);
            think(&mut open, at, node.token, 0, depth + 1, node.chance, node.chance);
        }
        nodes
    }
    /// The model chose `to` after `from`: learn what the candidates of `from` were worth. A first visit says nothing.
    fn judge(&mut self, from: Token, to: Token) {
        let Table { matrix, odds } = self;
        matrix.row(from).iter().for_each(|&(token, sure)| odds.learn(sure, token == to));
    }
}

/// How sure the model was of a candidate among its k: a step of [`SURE`].
type Sure = u8;
/// Shares of the k candidates' probability that bound the steps.
const SURE: [f32; 9] = [0.01, 0.03, 0.06, 0.12, 0.25, 0.45, 0.7, 0.9, 0.98];

/// How often candidates were the model's next choice when they were met again, by how sure it had been of them. Learned
/// at every accepted node, drafted below or not, so that a draft that shrank to nothing can come back.
#[derive(Clone, Debug)]
struct Odds([(f64, f64); SURE.len() + 1]);
impl Default for Odds {
    /// Six in ten of what the model thought the last time.
    fn default() -> Odds {
        Odds(std::array::from_fn(|step| {
            let low = if step == 0 { 0.0 } else { SURE[step - 1] };
            let high = SURE.get(step).copied().unwrap_or(1.0);
            (Self::PRIOR * 0.6 * f64::from(0.5 * (low + high)), Self::PRIOR)
        }))
    }
}
impl Odds {
    const PRIOR: f64 = 8.0;
    /// Trials after which the older half counts half.
    const MEMORY: f64 = 400.0;

    fn of(&self, sure: Sure) -> f64 {
        let (hits, trials) = self.0[sure as usize];
        hits / trials
    }
    fn learn(&mut self, sure: Sure, hit: bool) {
        let (hits, trials) = &mut self.0[sure as usize];
        *hits += f64::from(u8::from(hit));
        *trials += 1.0;
        if *trials > Self::MEMORY {
            (*hits, *trials) = (*hits / 2.0, *trials / 2.0);
        }
    }
}

/// The k last candidates of every token.
#[derive(Clone, Debug, PartialEq)]
struct Matrix {
    k: usize,
    rows: Vec<(Token, Sure)>,
}
impl Matrix {
    const UNSET: Token = Token::MAX;

    /// Nothing is known of any of `vocab` tokens.
    fn new(vocab: usize, k: usize) -> Self {
        Matrix { k, rows: vec![(Self::UNSET, 0); vocab * k] }
    }
    /// What is known of a token: nothing, or its candidates, likeliest first.
    fn row(&self, token: Token) -> &[(Token, Sure)] {
        let at = token as usize * self.k;
        let row = self.rows.get(at..at + self.k).unwrap_or(&[]);
        &row[..row.iter().position(|t| t.0 == Self::UNSET).unwrap_or(row.len())]
    }
    /// Remember the candidates that were seen after a token, with their raw logits.
    fn learn(&mut self, token: Token, top: &[(Token, f32)]) {
        let at = token as usize * self.k;
        let Some(row) = self.rows.get_mut(at..at + self.k) else { return };
        row.fill((Self::UNSET, 0));
        let Some(&(_, first)) = top.first() else { return };
        let share = |logit: f32| (logit - first).exp();
        let all: f32 = top.iter().map(|t| share(t.1)).sum();
        row.iter_mut().zip(top).for_each(|(slot, t)| {
            let p = share(t.1) / all;
            *slot = (t.0, SURE.partition_point(|&bound| bound <= p) as Sure);
        });
    }
    /// The root and every node, in the order they were run: of several rows of one token the last wins.
    fn learn_all(&mut self, root: Token, tree: &DraftTree, seen: &Outcome) {
        self.learn(root, seen.root().top());
        for (node, &token) in tree.tokens().iter().enumerate() {
            self.learn(token, seen.row(node).top());
        }
    }
    /// The template over the table, breadth first.
    fn fill(&self, root: Token, shape: &Shape, levels: usize, most: usize) -> DraftTree {
        let mut tree = DraftTree::new(Proposal::Deterministic);
        // Node of the tree for each node of the template, the root's first.
        let mut made: Vec<Option<(u32, Token)>> = vec![Some((ROOT, root))];
        for &(parent, rank) in &shape.nodes {
            let child = made[parent].and_then(|(node, token)| {
                let depth = if node == ROOT { 0 } else { tree.depth(node) + 1 };
                let token = self.row(token).get(rank)?.0;
                (depth < levels && tree.len() < most).then(|| (tree.add(node, token), token))
            });
            made.push(child);
        }
        tree
    }
}

/// The template: for each node, breadth first, its parent (0 is the root) and its rank among the parent's candidates.
struct Shape {
    nodes: Vec<(usize, usize)>,
}
impl Shape {
    fn template() -> Shape {
        let mut nodes = Vec::with_capacity(TEMPLATE.len());
        for (parent, &children) in TEMPLATE.iter().enumerate() {
            nodes.extend((0..children as usize).map(|rank| (parent, rank)));
        }
        // Ranks that the table does not hold are left out where it is asked.
        debug_assert_eq!(nodes.len(), TEMPLATE.len() - 1);
        Shape { nodes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_that_of_the_paper() {
        assert_eq!(TEMPLATE.iter().map(|&c| c as usize).sum::<usize>(), 80);
        let shape = Shape::template();
        let mut depth = vec![0usize; 81];
        let mut levels = [0; 7];
        for (i, &(parent, _)) in shape.nodes.iter().enumerate() {
            depth[i + 1] = depth[parent] + 1;
            levels[depth[i + 1]] += 1;
        }
        assert_eq!(levels[1..], [8, 21, 25, 15, 8, 3]);
        assert_eq!(TEMPLATE.iter().filter(|&&c| c == 0).count(), 40, "leaves");
    }

    #[test]
    fn nodes_without_a_row_are_left_out() {
        let mut matrix = Matrix::new(10, 2);
        let shape = Shape::template();
        assert!(matrix.fill(3, &shape, 9, 80).is_empty());
        matrix.learn(3, &[(4, 1.0), (5, 0.5)]);
        matrix.learn(4, &[(3, 1.0), (6, 0.5)]);
        let tree = matrix.fill(3, &shape, 9, 80);
        assert_eq!(tree.tokens()[..4], [4, 5, 3, 6]);
        assert_eq!(tree.parents()[..4], [ROOT, ROOT, 0, 0]);
        assert_eq!(matrix.fill(3, &shape, 1, 80).tokens(), [4, 5]);
        assert_eq!(matrix.fill(3, &shape, 9, 3).len(), 3);
    }

    #[test]
    fn the_likeliest_nodes_come_first() {
        let mut table = Table::new(10, 3);
        assert!(table.likeliest(3, 9, 80).is_empty(), "nothing is known");
        table.matrix.learn(3, &[(4, 9.0), (5, 7.0), (6, 1.0)]);
        table.matrix.learn(4, &[(7, 9.0), (3, 0.0), (6, 0.0)]);
        let nodes = table.likeliest(3, 9, 80);
        assert_eq!((nodes[0].token, nodes[0].parent), (4, ROOT));
        assert_eq!((nodes[1].token, nodes[1].parent), (7, 0), "what follows a sure token, before a poor sibling");
        assert!(nodes.iter().any(|n| (n.token, n.parent) == (5, ROOT)));
        assert!(nodes.is_sorted_by(|a, b| a.chance >= b.chance));
        let parents = nodes.iter().enumerate();
        assert!(
            parents.clone().all(|(i, n)| n.parent == ROOT || (n.parent as usize) < i),
            "any first nodes are a tree"
        );
        assert_eq!(table.likeliest(3, 1, 80).iter().filter(|n| n.parent != ROOT).count(), 0);
        assert_eq!(table.likeliest(3, 9, 2).len(), 2);
        assert_eq!(tree_of(&nodes[..2]).parents(), [ROOT, 0]);
        // What was never right is no longer thought of, and comes back when it is.
        (0..2000).for_each(|_| table.judge(3, 9));
        assert!(table.likeliest(3, 9, 80).is_empty());
        (0..20).for_each(|_| table.judge(3, 4));
        assert_eq!(table.likeliest(3, 9, 1)[0].token, 4);
    }
}
