//! ADED (arXiv:2407.12021, sheet 16): a table of tri-grams stands for the model, sharpened by what the model says; a
//! tree search with a PUCT score picks the continuations that are tried.
use super::trigrams::{Table, Tables, Trigrams};
use super::worth;
use crate::registry::{Card, System};
use omnidecode_core::Token;
use omnidecode_core::noise::{pair, unit};
use omnidecode_core::tree::{DraftTree, Proposal, ROOT};
use omnidecode_engine::{Error, Guarantee, Plan, Readout, Result, Sequence};
use std::cell::RefCell;
use std::rc::Rc;

crate::params! {
    /// Rounds of the search; 0 drafts nothing.
    iterations: usize = 150, within 0.0, 10000.0;
    /// Most nodes of a draft.
    max_nodes: usize = 64, within 1.0, 1024.0;
    /// Sentences that the search hands over.
    sentences: usize = 24, within 1.0, 1024.0;
    /// Tokens of a sentence; a draft is one longer.
    length: usize = 3, within 1.0, 16.0;
    /// Weight of the table's own guess in the search.
    c1: f64 = 32.0, within 0.0, 1000.0;
    /// How slowly that weight grows with visits.
    c2: f64 = 8.0, within 0.001, 1000000.0;
    /// Added to the weight of each tri-gram of the last `window` tokens, step by step.
    step: f64 = 0.04, within 0.0, 3.0;
    /// Tokens at the end of the text that sharpen the table.
    window: usize = 16, within 3.0, 4096.0;
    /// Whether the whole prompt sharpens the table once; the paper learns of its end alone, false.
    learn_prompt: bool = true;
    /// Whether the successors of the last token alone are tried where nothing is known of the last two; the paper's table
    /// holds tri-grams only, false.
    backoff: bool = true;
    /// Worth of a path: `sum` of its tri-grams' weights, or that of the first release, `reference`, nearly always 1.
    reward: String = "sum".into(), one_of "sum", "reference";
    /// Which sentences go when there are too many nodes: the least visited, or, as in the first release, the longest.
    cut: String = "visits".into(), one_of "visits", "reference";
    /// Where what was learned lives: `engine`, shared by all requests and warm, or `request`, cold at each start.
    table: String = "engine".into(), one_of "engine", "request";
    /// File of a table counted on a corpus, by `omnidecode index`.
    corpus: Option<String> = None;
    /// Whether the draft shrinks to the nodes that pay on this machine.
    adaptive: bool = true;
}

impl System for Params {
    const CARD: Card = Card {
        name: "aded",
        guarantee: Guarantee::Exact,
        needs: &[],
        summary: "A search in a table of tri-grams drafts a tree; what the model says sharpens the table.",
        source: "arXiv:2407.12021, sheet 16",
    };

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let table = self.open(seq)?;
        if self.learn_prompt {
            // As heavy as if it had been decoded: there each tri-gram is met as long as it is in the window.
            let step = self.step * (self.window - 2) as f64;
            table.borrow_mut().trigrams.learn(seq.prompt(), step as f32);
        }
        let mut next = seq.next(Readout::CHOICE).await?.root().choice();
        let mut known = seq.len();
        while seq.push(next)?.is_some() {
            let draft = {
                let Table { trigrams, odds } = &mut *table.borrow_mut();
                let text = seq.tokens();
                for end in known.max(2)..text.len() {
                    odds.learn(trigrams, (text[end - 2], text[end - 1]), text[end]);
                }
                known = text.len();
                trigrams.learn(&text[text.len().saturating_sub(self.window)..], self.step as f32);
                let tree = self.draft(trigrams, text, pair(seq.seed(), text.len() as u64));
                let mut order = match *text {
                    [.., a, b] => odds.order(trigrams, (a, b), &tree),
                    _ => Vec::new(),
                };
                let levels = seq.room().saturating_sub(1);
                order.retain(|n| tree.depth(n.0) < levels);
                let size = if self.adaptive { worth(seq, order.iter().map(|n| n.1)) } else { order.len() };
                keep(&tree, &order[..size])
            };
            let seen = seq.forward(Plan::tree(&draft, Readout::CHOICE)).await?;
            next = seq.accept(&seen.target_match(&draft))?;
        }
        Ok(())
    }
}

impl Params {
    fn open(&self, seq: &Sequence) -> Result<Rc<RefCell<Table>>> {
        let tables = seq.resource(Tables::default);
        let mut tables = tables.borrow_mut();
        let found = tables.get(self.corpus.as_deref(), seq.card().vocab, self.backoff, self.table == "engine");
        found.map_err(|e| Error::Strategy(format!("aded: the corpus {:?}: {e}", self.corpus.as_deref().unwrap_or(""))))
    }
    /// Search, and the tree of what was found: a function of the table, the text's last two tokens and the key.
    pub fn draft(&self, table: &Trigrams, text: &[Token], key: u64) -> DraftTree {
        let [.., a, b] = *text else { return DraftTree::new(Proposal::Deterministic) };
        let mut search = Search { table, params: self, nodes: vec![Node::new(ROOT, (a, b), 0, 0.0)], key, drawn: 0 };
        (0..self.iterations).for_each(|_| search.round());
        search.extract()
    }
}

/// Only these nodes of a tree, which hold the parents of each.
fn keep(tree: &DraftTree, chosen: &[(u32, f64)]) -> DraftTree {
    let mut nodes: Vec<u32> = chosen.iter().map(|c| c.0).collect();
    nodes.sort_unstable();
    let mut kept = DraftTree::new(Proposal::Deterministic);
    for &node in &nodes {
        let parent = tree.parents()[node as usize];
        let new = nodes.binary_search(&parent).map_or(ROOT, |p| p as u32);
        kept.add(new, tree.tokens()[node as usize]);
    }
    kept
}

struct Node {
    parent: u32,
    /// The last two tokens.
    pair: (Token, Token),
    depth: usize,
    prior: f64,
    children: std::ops::Range<u32>,
    visits: u32,
    score: f64,
}
impl Node {
    fn new(parent: u32, pair: (Token, Token), depth: usize, prior: f64) -> Node {
        Node { parent, pair, depth, prior, children: 0..0, visits: 0, score: 0.0 }
    }
}

struct Search<'a> {
    table: &'a Trigrams,
    params: &'a Params,
    nodes: Vec<Node>,
    key: u64,
    drawn: u64,
}

impl Search<'_> {
    fn round(&mut self) {
        let mut at = 0usize;
        while !self.nodes[at].children.is_empty() {
            at = self.best_child(at);
        }
        if self.nodes[at].depth < self.params.length {
            at = self.expand(at).unwrap_or(at);
        }
        let reward = 1.0 + self.gained(at) + self.roll_out(at);
        let mut up = at as u32;
        while up != ROOT {
            let node = &mut self.nodes[up as usize];
            node.visits += 1;
            node.score += reward;
            up = node.parent;
        }
    }
    fn best_child(&self, at: usize) -> usize {
        let n = f64::from(self.nodes[at].visits);
        let weight = (self.params.c1 + ((n + self.params.c2 + 1.0) / self.params.c2).ln()) * n.sqrt();
        let mut best = (0, f64::NEG_INFINITY);
        for child in self.nodes[at].children.clone() {
            let node = &self.nodes[child as usize];
            let visits = f64::from(node.visits);
            let puct = match node.visits {
                0 => f64::INFINITY,
                _ => node.score / visits + weight * node.prior / (1.0 + visits),
            };
            if puct > best.1 {
                best = (child as usize, puct);
            }
        }
        best.0
    }
    /// All successors become children; the search goes on from the last of them.
    fn expand(&mut self, at: usize) -> Option<usize> {
        let (pair, depth, first) = (self.nodes[at].pair, self.nodes[at].depth, self.nodes.len() as u32);
        for &(token, weight) in self.table.after(pair) {
            self.nodes.push(Node::new(at as u32, (pair.1, token), depth + 1, f64::from(weight)));
        }
        self.nodes[at].children = first..self.nodes.len() as u32;
        (!self.nodes[at].children.is_empty()).then(|| self.nodes.len() - 1)
    }
    fn worth(&self, pair: (Token, Token), token: Token) -> f64 {
        // The first release looked the second token of the pair up, not its successor.
        let token = if self.params.reward == "reference" { pair.1 } else { token };
        f64::from(self.table.weight(pair, token))
    }
    fn gained(&self, at: usize) -> f64 {
        let (mut sum, mut at) = (0.0, at);
        while self.nodes[at].parent != ROOT {
            let node = &self.nodes[at];
            let above = node.parent as usize;
            sum += self.worth(self.nodes[above].pair, node.pair.1);
            at = above;
        }
        sum
    }
    fn roll_out(&mut self, at: usize) -> f64 {
        let (mut pair, mut sum) = (self.nodes[at].pair, 0.0);
        for _ in self.nodes[at].depth..self.params.length {
            let after = self.table.after(pair);
            let total: f64 = after.iter().map(|n| f64::from(n.1)).sum();
            self.drawn += 1;
            let mut left = unit(omnidecode_core::noise::pair(self.key, self.drawn)) * total;
            let drawn = after.iter().find(|n| {
                left -= f64::from(n.1);
                left < 0.0
            });
            let Some(&(token, _)) = drawn.or(after.last()) else { break };
            sum += self.worth(pair, token);
            pair = (pair.1, token);
        }
        sum
    }
    fn sentence(&self, mut at: usize) -> Vec<Token> {
        let mut tokens = Vec::new();
        while self.nodes[at].parent != ROOT {
            tokens.push(self.nodes[at].pair.1);
            at = self.nodes[at].parent as usize;
        }
        tokens.reverse();
        tokens
    }
    /// The most visited sentences, each one token longer, as a tree.
    fn extract(&self) -> DraftTree {
        let mut ranked: Vec<usize> = (0..self.nodes.len()).filter(|&n| self.nodes[n].visits > 0).collect();
        ranked.sort_by(|&a, &b| self.nodes[b].visits.cmp(&self.nodes[a].visits).then(a.cmp(&b)));
        ranked.truncate(self.params.sentences);
        let mut sentences: Vec<Vec<Token>> = Vec::new();
        for at in ranked.into_iter().filter(|&at| at > 0) {
            let mut tokens = self.sentence(at);
            tokens.extend(self.table.after(self.nodes[at].pair).first().map(|n| n.0));
            if !sentences.contains(&tokens) {
                sentences.push(tokens);
            }
        }
        if self.params.cut == "reference" {
            let distinct = |s: &Vec<Token>| (0..s.len()).filter(|&i| !s[..i].contains(&s[i])).count();
            while sentences.iter().map(distinct).sum::<usize>() > self.params.max_nodes {
                let Some(longest) = (0..sentences.len()).max_by_key(|&i| (sentences[i].len(), i)) else { break };
                sentences.remove(longest);
            }
        }
        self.plant(&sentences)
    }
    /// A trie of the sentences, most visited first, as long as they fit.
    fn plant(&self, sentences: &[Vec<Token>]) -> DraftTree {
        let mut tree = DraftTree::new(Proposal::Deterministic);
        for tokens in sentences {
            let (mut known, mut at) = (0, ROOT);
            while let Some(child) = tokens.get(known).and_then(|&t| tree.child(at, t)) {
                (known, at) = (known + 1, child);
            }
            if tree.len() + tokens.len() - known <= self.params.max_nodes {
                tokens[known..].iter().for_each(|&token| at = tree.add(at, token));
            }
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::super::corpus::Corpus;
    use super::*;

    /// Sheet 16, contract 5: every round visits the root and one child of it, and a sibling that was never visited goes before
    /// one that was.
    #[test]
    fn visits_add_up() {
        let texts: Vec<Vec<Token>> = (0..12).map(|i| (0..60).map(|j| (i * j * j + j) % 17).collect()).collect();
        let table = Trigrams::over(Rc::new(Corpus::count(texts.iter().map(Vec::as_slice))));
        let params = Params::default();
        let root = Node::new(ROOT, (1, 2), 0, 0.0);
        assert!(table.after((1, 2)).len() > 1, "the root has successors");
        let mut search = Search { table: &table, params: &params, nodes: vec![root], key: 9, drawn: 0 };
        for round in 1..=params.iterations as u32 {
            search.round();
            for (at, node) in search.nodes.iter().enumerate() {
                let each =
                    search.nodes[node.children.start as usize..node.children.end as usize].iter().map(|c| c.visits);
                let (below, least) = (each.clone().sum::<u32>(), each.clone().min().unwrap_or(0));
                // Others than the root were a leaf once, in the round that made them.
                assert!(below == node.visits || (at > 0 && below + 1 == node.visits) || node.children.is_empty());
                assert!(least > 0 || each.max().unwrap_or(0) <= 1, "siblings take turns first");
            }
            assert_eq!(search.nodes[0].visits, round);
        }
        assert_eq!(search.nodes[0].visits, 150);
    }
}
