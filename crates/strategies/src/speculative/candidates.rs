//! What may follow, and how likely: the model's last candidates for every token (sheet 06), what followed the same words in
//! the text so far, and how often candidates of such a kind were right.
use super::ngrams::Index;
use omnidecode_core::Token;
use omnidecode_core::tree::{DraftTree, Proposal, ROOT};
use omnidecode_engine::Outcome;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// What is remembered: candidates, and how often candidates of such a kind were right.
#[derive(Clone, Debug)]
pub struct Table {
    pub matrix: Matrix,
    odds: Odds,
}

/// A text and its n-grams, which propose what followed them.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    pub tokens: &'a [Token],
    pub index: &'a Index,
}

/// A node of a draft that is still a list: its parent in the list (or [`ROOT`]) and its chance of being accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    pub parent: u32,
    pub token: Token,
    pub chance: f64,
}

/// The tree of a list whose parents stand before their children.
pub fn tree_of(nodes: &[Node]) -> DraftTree {
    let mut tree = DraftTree::new(Proposal::Deterministic);
    nodes.iter().for_each(|n| {
        tree.add(n.parent, n.token);
    });
    tree
}

/// A candidate that could be the next node; the greatest is the likeliest, then the first that was thought of.
struct Open {
    node: Node,
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

    /// Nothing is known of any of `vocab` tokens, of which `k` candidates each are to be remembered.
    pub fn new(vocab: usize, k: usize) -> Table {
        Table { matrix: Matrix::new(vocab, k), odds: Odds::default() }
    }
    /// Nodes of at most `levels` levels below the last token of a text, by falling chance of being accepted: any first of
    /// them are a tree. What follows a node is looked up when more is asked for.
    pub fn likeliest<'a>(&'a self, text: Text<'a>, levels: usize) -> Likeliest<'a> {
        let (nodes, open, tail) = (Vec::new(), BinaryHeap::new(), Vec::new());
        Likeliest { table: self, text, levels, nodes, open, turn: 0, tail, below: (ROOT, 1.0, 0) }
    }
    /// What may follow `tail`, without repetition: what the model said of its last token, and what the text says.
    fn candidates(&self, text: Text, tail: &[Token]) -> Vec<(Token, Class)> {
        let mut found: Vec<(Token, Class)> = Vec::with_capacity(2 * self.matrix.k);
        for (ngram, place) in text.index.after(tail) {
            let token = text.tokens[place];
            match found.iter_mut().find(|c| c.0 == token) {
                Some(known) => known.1.ngram = ngram,
                None => found.push((token, Class { ngram, sure: None })),
            }
        }
        let row = tail.last().map_or(&[][..], |&last| self.matrix.row(last));
        for &(token, sure) in row {
            match found.iter_mut().find(|c| c.0 == token) {
                Some(known) => known.1.sure = Some(sure),
                None => found.push((token, Class { ngram: 0, sure: Some(sure) })),
            }
        }
        found
    }
    /// The model chose `path` after a text, one by one: learn what the candidates at each of them were worth. The text's
    /// n-grams are those of before the path.
    pub fn judge(&mut self, text: Text, path: impl IntoIterator<Item = Token>) {
        let mut tail = Vec::new();
        tail_of(text, &[], ROOT, &mut tail);
        for chosen in path {
            for (token, class) in self.candidates(text, &tail) {
                self.odds.learn(class, token == chosen);
            }
            tail.push(chosen);
        }
    }
}

/// See [`Table::likeliest`].
pub struct Likeliest<'a> {
    table: &'a Table,
    text: Text<'a>,
    levels: usize,
    /// What was given out.
    nodes: Vec<Node>,
    open: BinaryHeap<Open>,
    turn: usize,
    tail: Vec<Token>,
    /// The last of it, whose children are not open yet: node, chance and depth of its children.
    below: (u32, f64, usize),
}
impl Iterator for Likeliest<'_> {
    type Item = Node;

    fn next(&mut self) -> Option<Node> {
        let (parent, above, depth) = self.below;
        if depth < self.levels {
            tail_of(self.text, &self.nodes, parent, &mut self.tail);
            for (token, class) in self.table.candidates(self.text, &self.tail) {
                let chance = above * self.table.odds.of(class);
                if chance >= Table::LEAST {
                    self.turn += 1;
                    self.open.push(Open { node: Node { parent, token, chance }, depth, turn: Reverse(self.turn) });
                }
            }
        }
        let next = self.open.pop()?;
        self.below = (self.nodes.len() as u32, next.node.chance, next.depth + 1);
        self.nodes.push(next.node);
        Some(next.node)
    }
}

/// The last tokens of a text and of the path below it that ends with `node`.
fn tail_of(text: Text, nodes: &[Node], node: u32, tail: &mut Vec<Token>) {
    tail.clear();
    let longest = text.index.longest().max(1);
    let mut at = node;
    while at != ROOT && tail.len() < longest {
        tail.push(nodes[at as usize].token);
        at = nodes[at as usize].parent;
    }
    tail.extend(text.tokens.iter().rev().take(longest - tail.len()));
    tail.reverse();
}

/// How sure the model was of a candidate among its k: a step of [`SURE`].
type Sure = u8;
/// Shares of the k candidates' probability that bound the steps.
const SURE: [f32; 9] = [0.01, 0.03, 0.06, 0.12, 0.25, 0.45, 0.7, 0.9, 0.98];

/// Why a candidate is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class {
    /// Length of the longest n-gram that it followed in the text; 0: of none.
    ngram: usize,
    /// How sure the model was of it the last time; `None`: it was not among the k candidates, or there were none.
    sure: Option<Sure>,
}

/// How often candidates were the model's next choice when they were met, by why they were candidates. Learned at every
/// accepted node, drafted below or not, so that a draft that shrank to nothing can come back.
#[derive(Clone, Debug)]
struct Odds([[(f64, f64); SURE.len() + 2]; Odds::NGRAM.len()]);
impl Default for Odds {
    /// As if either reason alone could make a candidate right.
    fn default() -> Odds {
        let middle = |step: usize| {
            let low = if step == 0 { 0.0 } else { SURE[step - 1] };
            f64::from(0.5 * (low + SURE.get(step).copied().unwrap_or(1.0)))
        };
        Odds(Self::NGRAM.map(|followed| {
            std::array::from_fn(|at| {
                let said = at.checked_sub(1).map_or(0.0, |step| Self::AGAIN * middle(step));
                let chance = 1.0 - (1.0 - followed) * (1.0 - said);
                (Self::PRIOR * chance, Self::PRIOR)
            })
        }))
    }
}
impl Odds {
    /// How often what followed the longest n-gram of the text follows again, by its length; the last is of all longer ones.
    /// Counted, as `AGAIN`, on answers of a model of 135 million parameters to questions of all kinds; counts of the request
    /// outweigh it after a few steps.
    const NGRAM: [f64; 7] = [0.0, 0.1, 0.33, 0.45, 0.55, 0.65, 0.8];
    /// How much of what the model thought of a token's candidates holds the next time the token is met.
    const AGAIN: f64 = 0.42;
    /// Trials that this counts for.
    const PRIOR: f64 = 8.0;
    /// Trials after which the older half counts half.
    const MEMORY: f64 = 400.0;

    fn place(class: Class) -> (usize, usize) {
        (class.ngram.min(Self::NGRAM.len() - 1), class.sure.map_or(0, |sure| 1 + sure as usize))
    }
    fn of(&self, class: Class) -> f64 {
        let (ngram, sure) = Self::place(class);
        let (hits, trials) = self.0[ngram][sure];
        hits / trials
    }
    fn learn(&mut self, class: Class, hit: bool) {
        let (ngram, sure) = Self::place(class);
        let (hits, trials) = &mut self.0[ngram][sure];
        *hits += f64::from(u8::from(hit));
        *trials += 1.0;
        if *trials > Self::MEMORY {
            (*hits, *trials) = (*hits / 2.0, *trials / 2.0);
        }
    }
}

/// The k last candidates of every token.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    k: usize,
    rows: Vec<(Token, Sure)>,
}
impl Matrix {
    const UNSET: Token = Token::MAX;

    /// Nothing is known of any of `vocab` tokens.
    pub fn new(vocab: usize, k: usize) -> Self {
        Matrix { k, rows: vec![(Self::UNSET, 0); vocab * k] }
    }
    fn row(&self, token: Token) -> &[(Token, Sure)] {
        let at = token as usize * self.k;
        let row = self.rows.get(at..at + self.k).unwrap_or(&[]);
        &row[..row.iter().position(|t| t.0 == Self::UNSET).unwrap_or(row.len())]
    }
    /// The candidate of a rank, 0 the likeliest; `None` where so many are not known.
    pub fn ranked(&self, token: Token, rank: usize) -> Option<Token> {
        Some(self.row(token).get(rank)?.0)
    }
    /// Remember the candidates that were seen after a token, with their raw logits.
    pub fn learn(&mut self, token: Token, top: &[(Token, f32)]) {
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
    pub fn learn_all(&mut self, root: Token, tree: &DraftTree, seen: &Outcome) {
        self.learn(root, seen.root().top());
        for (node, &token) in tree.tokens().iter().enumerate() {
            self.learn(token, seen.row(node).top());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn likeliest(table: &Table, text: Text, levels: usize, most: usize) -> Vec<Node> {
        table.likeliest(text, levels).take(most).collect()
    }
    fn no_ngrams() -> Index {
        let longest = 0;
        Index::new(1..=longest)
    }

    #[test]
    fn the_likeliest_nodes_come_first() {
        let mut table = Table::new(10, 3);
        let index = no_ngrams();
        let text = Text { tokens: &[8, 3], index: &index };
        assert!(likeliest(&table, text, 9, 80).is_empty(), "nothing is known");
        table.matrix.learn(3, &[(4, 9.0), (5, 7.0), (6, 1.0)]);
        table.matrix.learn(4, &[(7, 9.0), (3, 0.0), (6, 0.0)]);
        let nodes = likeliest(&table, text, 9, 80);
        assert_eq!((nodes[0].token, nodes[0].parent), (4, ROOT));
        assert_eq!((nodes[1].token, nodes[1].parent), (7, 0), "what follows a sure token, before a poor sibling");
        assert!(nodes.iter().any(|n| (n.token, n.parent) == (5, ROOT)));
        assert!(nodes.is_sorted_by(|a, b| a.chance >= b.chance));
        let parents = nodes.iter().enumerate();
        assert!(
            parents.clone().all(|(i, n)| n.parent == ROOT || (n.parent as usize) < i),
            "any first nodes are a tree"
        );
        assert_eq!(likeliest(&table, text, 1, 80).iter().filter(|n| n.parent != ROOT).count(), 0);
        assert_eq!(likeliest(&table, text, 9, 2).len(), 2);
        assert!(likeliest(&table, text, 0, 80).is_empty() && likeliest(&table, text, 9, 0).is_empty());
        assert_eq!(tree_of(&nodes[..2]).parents(), [ROOT, 0]);
        // What was never right is no longer thought of, and comes back when it is.
        (0..2000).for_each(|_| table.judge(text, [9]));
        assert!(likeliest(&table, text, 9, 80).is_empty());
        (0..20).for_each(|_| table.judge(text, [4]));
        assert_eq!(likeliest(&table, text, 9, 1)[0].token, 4);
    }

    #[test]
    fn the_text_proposes_what_followed_before() {
        let mut table = Table::new(20, 2);
        let tokens = [1, 2, 3, 4, 5, 6, 9, 3, 1, 2, 3];
        let mut index = Index::new(1..=6);
        index.read(&tokens);
        let text = Text { tokens: &tokens, index: &index };
        let nodes = likeliest(&table, text, 3, 80);
        let chain: Vec<Token> = nodes.iter().filter(|n| n.chance > 0.1).map(|n| n.token).collect();
        assert_eq!(chain, [4, 5, 6], "an empty table drafts what followed the longest n-gram");
        assert_eq!(nodes.iter().map(|n| n.parent).take(3).collect::<Vec<_>>(), [ROOT, 0, 1]);
        // What followed 3 alone is the 1 of place 8: a poorer sibling.
        assert!(nodes.iter().any(|n| (n.token, n.parent) == (1, ROOT) && n.chance < 0.2));
        // Both reasons are better than one, and a node has one parent and no twin.
        table.matrix.learn(3, &[(4, 5.0), (7, 4.5)]);
        let both = likeliest(&table, text, 3, 80);
        assert!(both[0].token == 4 && both[0].chance > nodes[0].chance);
        assert_eq!(both.iter().filter(|n| (n.token, n.parent) == (4, ROOT)).count(), 1);
        assert!(both.iter().any(|n| (n.token, n.parent) == (7, ROOT)));
        // The odds of what a text says are learned apart from those of the table.
        (0..100).for_each(|_| table.judge(text, [7]));
        let after = likeliest(&table, text, 3, 80);
        assert_eq!(after[0].token, 7, "{after:?}");
        // Along a path the n-grams end in the path.
        let mut table = Table::new(20, 2);
        (0..100).for_each(|_| table.judge(text, [4, 9]));
        let nodes = likeliest(&table, text, 2, 80);
        assert!(nodes[0].token == 4 && nodes[0].chance > 0.9);
        assert!(nodes.iter().all(|n| n.token != 5 || n.chance < 0.1), "what did not follow 3, 4 again: {nodes:?}");
    }

    #[test]
    fn the_table_alone_where_no_ngram_is_kept() {
        let mut table = Table::new(20, 2);
        let tokens = [1, 2, 3, 4, 1, 2, 3];
        let index = no_ngrams();
        let text = Text { tokens: &tokens, index: &index };
        assert!(likeliest(&table, text, 9, 80).is_empty());
        table.matrix.learn(3, &[(5, 1.0)]);
        assert_eq!(likeliest(&table, text, 9, 80).len(), 1);
    }
}
