//! Token Recycling: yesterday's candidates are tomorrow's draft (arXiv:2408.08696, sheet 06).
//!
//! A table remembers, for every token, the k likeliest successors that the model gave the last time the token was an
//! input. A tree over that table is the draft; the verified rows, kept or not, refresh the table. The paper's tree is a
//! fixed template of ranks. Where it adapts, the tree is grown instead by what each candidate is worth: the likeliest node
//! first, as many as pay on this machine; and what followed the same words in the text so far are candidates too, so that
//! a table that knows nothing yet is no loss.
use super::candidates::{Matrix, Table, Text, tree_of};
use super::ngrams::Index;
use super::worthy;
use crate::registry::{Card, System};
use omnidecode_core::Token;
use omnidecode_core::tree::{DraftTree, Proposal, ROOT};
use omnidecode_engine::{Guarantee, Plan, Readout, Result, Rows, Sequence};
use std::cell::RefCell;
use std::rc::Rc;

crate::params! {
    /// Successors remembered per token.
    k: usize = 8, within 1.0, 32.0;
    /// Most nodes of a draft.
    max_nodes: usize = 80, within 0.0, 80.0;
    /// Whether the draft is made of the likeliest nodes, as many as pay on this machine; off, it is the template.
    adaptive: bool = true;
    /// Longest n-gram of the text so far, prompt and answer, that proposes what followed it, beside the table, in tokens;
    /// 0: the table alone, as in the paper. Of the adaptive draft: the template is filled from the table alone.
    max_ngram: usize = 6, within 0.0, 16.0;
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
        let mut index = Index::new(1..=if self.adaptive { self.max_ngram } else { 0 });
        while let Some(token) = seq.push(next)? {
            index.read(seq.tokens());
            let levels = seq.room().saturating_sub(1);
            let tree = if self.adaptive {
                let text = Text { tokens: seq.tokens(), index: &index };
                let known = table.borrow();
                tree_of(&worthy(seq, self.max_nodes, known.likeliest(text, levels), |node| node.chance))
            } else {
                shape.fill(&table.borrow().matrix, token, levels, self.max_nodes)
            };
            let seen = seq.forward(Plan::tree(&tree, read.clone())).await?;
            let verdict = seen.target_match(&tree);
            let mut known = table.borrow_mut();
            let path = verdict.path.iter().map(|&n| tree.tokens()[n as usize]);
            known.judge(Text { tokens: seq.tokens(), index: &index }, path.chain([verdict.next]));
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
    /// The template over a table, breadth first: at most so many levels and nodes.
    fn fill(&self, matrix: &Matrix, root: Token, levels: usize, most: usize) -> DraftTree {
        let mut tree = DraftTree::new(Proposal::Deterministic);
        // Node of the tree for each node of the template, the root's first.
        let mut made: Vec<Option<(u32, Token)>> = vec![Some((ROOT, root))];
        for &(parent, rank) in &self.nodes {
            let child = made[parent].and_then(|(node, token)| {
                let depth = if node == ROOT { 0 } else { tree.depth(node) + 1 };
                let token = matrix.ranked(token, rank)?;
                (depth < levels && tree.len() < most).then(|| (tree.add(node, token), token))
            });
            made.push(child);
        }
        tree
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
        assert!(shape.fill(&matrix, 3, 9, 80).is_empty());
        matrix.learn(3, &[(4, 1.0), (5, 0.5)]);
        matrix.learn(4, &[(3, 1.0), (6, 0.5)]);
        let tree = shape.fill(&matrix, 3, 9, 80);
        assert_eq!(tree.tokens()[..4], [4, 5, 3, 6]);
        assert_eq!(tree.parents()[..4], [ROOT, ROOT, 0, 0]);
        assert_eq!(shape.fill(&matrix, 3, 1, 80).tokens(), [4, 5]);
        assert_eq!(shape.fill(&matrix, 3, 9, 3).len(), 3);
    }
}
