//! Token Recycling: yesterday's candidates are tomorrow's draft (arXiv:2408.08696, sheet 06).
//!
//! A table remembers, for every token, the k likeliest successors that the model gave the last time the token was an
//! input. A fixed tree of ranks over that table is the draft; the verified rows, kept or not, refresh the table.
//! Of the tree, as many nodes are run as pay on this machine, the likeliest first.
use super::worth;
use crate::registry::{Card, System};
use omnidecode_core::Token;
use omnidecode_core::tree::{DraftTree, Proposal, ROOT};
use omnidecode_engine::{Guarantee, Outcome, Plan, Readout, Result, Rows, Sequence};
use std::cell::RefCell;
use std::rc::Rc;

crate::params! {
    /// Successors remembered per token.
    k: usize = 8, within 1.0, 32.0;
    /// Most nodes of a draft.
    max_nodes: usize = 80, within 0.0, 80.0;
    /// Whether the draft shrinks to the nodes that pay on this machine; off, all of the template are run.
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
        let matrix = self.matrix(seq);
        let shape = Shape::template(self.k);
        // How often the target's choice had each rank in the table: what a node is worth.
        let mut ranks = Ranks::new(self.k);
        let read = Readout::CHOICE.top(self.k);
        let at_rows = if self.init_from_prompt { Rows::All } else { Rows::Own };
        let seen = seq.forward(Plan::next(read.clone()).at_rows(at_rows)).await?;
        if self.init_from_prompt {
            let places = seen.places().filter(|&p| (p as u64) < seq.len() as u64);
            places.for_each(|p| {
                if let Some(seen) = seen.place(p) {
                    matrix.borrow_mut().learn(seq.tokens()[p], seen.top());
                }
            });
        }
        let mut next = seen.root().choice();
        while let Some(token) = seq.push(next)? {
            let levels = seq.room().saturating_sub(1);
            let (tree, order) = matrix.borrow().grow(token, &shape, &ranks, levels, self.max_nodes);
            let tree = if self.adaptive { keep(&tree, &order[..worth(seq, order.iter().map(|n| n.1))]) } else { tree };
            let seen = seq.forward(Plan::tree(&tree, read.clone())).await?;
            let verdict = seen.target_match(&tree);
            ranks.learn(&matrix.borrow(), token, &tree, &verdict.path, &seen);
            matrix.borrow_mut().learn_all(token, &tree, &seen);
            if self.prefer_accepted {
                for &node in &verdict.path {
                    matrix.borrow_mut().learn(tree.tokens()[node as usize], seen.at(node).top());
                }
            }
            next = seq.accept(&verdict)?;
        }
        Ok(())
    }
}

impl Params {
    fn matrix(&self, seq: &Sequence) -> Rc<RefCell<Matrix>> {
        if self.table == "request" {
            return Rc::new(RefCell::new(Matrix::new(seq.card().vocab, self.k)));
        }
        // One table for each k: requests with different k do not spoil each other's.
        let tables = seq.resource(Tables::default);
        let mut tables = tables.borrow_mut();
        tables.entry(self.k).or_insert_with(|| Rc::new(RefCell::new(Matrix::new(seq.card().vocab, self.k)))).clone()
    }
}

type Tables = std::collections::BTreeMap<usize, Rc<RefCell<Matrix>>>;

/// The k last candidates of every token.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    k: usize,
    rows: Vec<Token>,
}
impl Matrix {
    const UNSET: Token = Token::MAX;

    /// Nothing is known of any of `vocab` tokens.
    pub fn new(vocab: usize, k: usize) -> Self {
        Matrix { k, rows: vec![Self::UNSET; vocab * k] }
    }
    /// What is known of a token: nothing, or its candidates, likeliest first.
    pub fn row(&self, token: Token) -> &[Token] {
        let at = token as usize * self.k;
        let row = self.rows.get(at..at + self.k).unwrap_or(&[]);
        &row[..row.iter().position(|&t| t == Self::UNSET).unwrap_or(row.len())]
    }
    /// Remember the candidates that were seen after a token.
    pub fn learn(&mut self, token: Token, top: &[(Token, f32)]) {
        let at = token as usize * self.k;
        let Some(row) = self.rows.get_mut(at..at + self.k) else { return };
        row.fill(Self::UNSET);
        row.iter_mut().zip(top).for_each(|(slot, t)| *slot = t.0);
    }
    /// The root and every node, in the order they were run: of several rows of one token the last wins.
    fn learn_all(&mut self, root: Token, tree: &DraftTree, seen: &Outcome) {
        self.learn(root, seen.root().top());
        for (node, &token) in tree.tokens().iter().enumerate() {
            self.learn(token, seen.row(node).top());
        }
    }
    /// The template over the table, breadth first, and its nodes by falling chance of being accepted (a parent comes
    /// before its children).
    fn grow(
        &self,
        root: Token,
        shape: &Shape,
        ranks: &Ranks,
        levels: usize,
        most: usize,
    ) -> (DraftTree, Vec<(u32, f64)>) {
        let mut tree = DraftTree::new(Proposal::Deterministic);
        let mut chances = Vec::new();
        // Node of the tree for each node of the template, the root's first.
        let mut made: Vec<Option<(u32, Token, f64)>> = vec![Some((ROOT, root, 1.0))];
        for &(parent, rank) in &shape.nodes {
            let child = made[parent].and_then(|(node, token, chance)| {
                let depth = if node == ROOT { 0 } else { tree.depth(node) + 1 };
                let token = *self.row(token).get(rank)?;
                (depth < levels && tree.len() < most)
                    .then(|| (tree.add(node, token), token, chance * ranks.chance(rank)))
            });
            if let Some((_, _, chance)) = child {
                chances.push(chance);
            }
            made.push(child);
        }
        let mut order: Vec<(u32, f64)> = chances.into_iter().enumerate().map(|(i, c)| (i as u32, c)).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        (tree, order)
    }
}

/// The nodes in `chosen`, in the order of the tree.
fn keep(tree: &DraftTree, chosen: &[(u32, f64)]) -> DraftTree {
    let mut nodes: Vec<u32> = chosen.iter().map(|c| c.0).collect();
    nodes.sort_unstable();
    let mut out = DraftTree::new(tree.proposal());
    let mut names = vec![ROOT; tree.len()];
    for node in nodes {
        let parent = tree.parents()[node as usize];
        let parent = if parent == ROOT { ROOT } else { names[parent as usize] };
        names[node as usize] = out.add(parent, tree.tokens()[node as usize]);
    }
    out
}

/// The template: for each node, breadth first, its parent (0 is the root) and its rank among the parent's candidates.
struct Shape {
    nodes: Vec<(usize, usize)>,
}
impl Shape {
    fn template(k: usize) -> Shape {
        let mut nodes = Vec::with_capacity(TEMPLATE.len());
        for (parent, &children) in TEMPLATE.iter().enumerate() {
            nodes.extend((0..children as usize).map(|rank| (parent, rank)));
        }
        // Ranks that the table does not hold are left out where it is asked.
        debug_assert!(k > 0 && nodes.len() == TEMPLATE.len() - 1);
        Shape { nodes }
    }
}

/// Share of the target's choices at each rank of the table. Learned at every accepted node, drafted below or not, so
/// that a draft that shrank to nothing can come back.
struct Ranks(Vec<f64>);
impl Ranks {
    fn new(k: usize) -> Self {
        Ranks((0..k).map(|rank| 0.4 / f64::powi(2.0, rank as i32)).collect())
    }
    /// Chances fall with rank, so that parents and elder siblings come first.
    fn chance(&self, rank: usize) -> f64 {
        self.0[..=rank].iter().copied().fold(1.0, f64::min)
    }
    fn learn(&mut self, matrix: &Matrix, root: Token, tree: &DraftTree, path: &[u32], seen: &Outcome) {
        for at in std::iter::once(ROOT).chain(path.iter().copied()) {
            let token = if at == ROOT { root } else { tree.tokens()[at as usize] };
            let row = matrix.row(token);
            if row.is_empty() {
                continue; // a first visit says nothing of the table
            }
            let choice = seen.at(at).choice();
            for (rank, share) in self.0.iter_mut().enumerate() {
                *share += 0.05 * (f64::from(u8::from(row.get(rank) == Some(&choice))) - *share);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_that_of_the_paper() {
        assert_eq!(TEMPLATE.iter().map(|&c| c as usize).sum::<usize>(), 80);
        let shape = Shape::template(8);
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
        let (shape, ranks) = (Shape::template(2), Ranks::new(2));
        assert!(matrix.grow(3, &shape, &ranks, 9, 80).0.is_empty());
        matrix.learn(3, &[(4, 1.0), (5, 0.5)]);
        matrix.learn(4, &[(3, 1.0), (6, 0.5)]);
        let (tree, order) = matrix.grow(3, &shape, &ranks, 9, 80);
        assert_eq!(tree.tokens()[..4], [4, 5, 3, 6]);
        assert_eq!(tree.parents()[..4], [ROOT, ROOT, 0, 0]);
        assert_eq!(matrix.grow(3, &shape, &ranks, 1, 80).0.tokens(), [4, 5]);
        assert_eq!(matrix.grow(3, &shape, &ranks, 9, 3).0.len(), 3);
        // Any number of the likeliest is a tree.
        for n in 0..=tree.len() {
            assert_eq!(keep(&tree, &order[..n]).len(), n);
        }
        assert_eq!(keep(&tree, &order).tokens(), tree.tokens());
    }
}
