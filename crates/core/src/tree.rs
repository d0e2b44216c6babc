//! Draft trees (sheet 00 §2): what is proposed below the last committed token, and how it was proposed.
use crate::Token;
use crate::mask::Mask;

/// The node above all nodes: the last committed token. It is the parent of the first level and is not stored.
pub const ROOT: u32 = u32::MAX;

/// How the children of a node were found. It decides which verifier is lossless (sheet 00 §6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proposal {
    /// Chosen without randomness (look-up, top-k): verify by matching the target's own choice.
    #[default]
    Deterministic,
    /// Drawn from a draft law.
    Sampled {
        /// Siblings are independent draws (duplicates are legal), rather than draws without replacement.
        replacement: bool,
    },
}

/// A token tree in topological order: a parent stands before its children, and siblings stand in draw order.
///
/// The draw order is part of the law of a sampled tree. Never sort siblings and never drop one because of its value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DraftTree {
    tokens: Vec<Token>,
    parents: Vec<u32>,
    depths: Vec<u32>,
    proposal: Proposal,
}

impl DraftTree {
    /// An empty tree: verifying it is a plain step.
    pub fn new(proposal: Proposal) -> Self {
        Self { proposal, ..Self::default() }
    }

    /// Tokens that follow one another.
    pub fn chain(tokens: Vec<Token>, proposal: Proposal) -> Self {
        let parents = (0..tokens.len() as u32).map(|i| i.checked_sub(1).unwrap_or(ROOT)).collect();
        let depths = (0..tokens.len() as u32).collect();
        Self { tokens, parents, depths, proposal }
    }

    /// A tree from its arrays; `None` unless the lengths agree and every parent stands before its child.
    pub fn from_parents(tokens: Vec<Token>, parents: &[u32], proposal: Proposal) -> Option<Self> {
        if tokens.len() != parents.len() {
            return None;
        }
        let mut tree = Self::new(proposal);
        for (i, (&parent, token)) in parents.iter().zip(tokens).enumerate() {
            if parent != ROOT && parent as usize >= i {
                return None;
            }
            tree.add(parent, token);
        }
        Some(tree)
    }

    /// Hang a token below `parent` ([`ROOT`] or an earlier node), as its last child so far. Returns the new node.
    ///
    /// # Panics
    /// When `parent` is no node of this tree: a bug in the drafter, not a matter of input.
    pub fn add(&mut self, parent: u32, token: Token) -> u32 {
        let depth = if parent == ROOT { 0 } else { self.depths[parent as usize] + 1 };
        self.tokens.push(token);
        self.parents.push(parent);
        self.depths.push(depth);
        self.tokens.len() as u32 - 1
    }

    /// Nodes, the root not counted.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }
    /// No node but the root.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
    /// How children were proposed.
    pub fn proposal(&self) -> Proposal {
        self.proposal
    }
    /// Tokens, by node.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }
    /// Parents, by node.
    pub fn parents(&self) -> &[u32] {
        &self.parents
    }
    /// Steps below the first level: 0 for children of the root.
    pub fn depth(&self, node: u32) -> usize {
        self.depths[node as usize] as usize
    }
    /// Levels: the longest path that could be accepted.
    pub fn levels(&self) -> usize {
        self.depths.iter().max().map_or(0, |&d| d as usize + 1)
    }
    /// Children of a node in draw order.
    pub fn children(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        let from = if node == ROOT { 0 } else { node as usize + 1 };
        (from..self.len()).filter(move |&i| self.parents[i] == node).map(|i| i as u32)
    }
    /// The first child with this token.
    pub fn child(&self, node: u32, token: Token) -> Option<u32> {
        self.children(node).find(|&c| self.tokens[c as usize] == token)
    }
    /// Nodes from the first level down to `node`.
    pub fn path(&self, node: u32) -> Vec<u32> {
        let mut path = Vec::new();
        let mut at = node;
        while at != ROOT {
            path.push(at);
            at = self.parents[at as usize];
        }
        path.reverse();
        path
    }
    /// Ancestor sets, each node in its own: `words()` 64-bit words a node, bit j of node i set when i sees j.
    pub fn ancestor_bits(&self) -> Vec<u64> {
        let words = self.words();
        let mut bits = vec![0u64; words * self.len()];
        for (i, &parent) in self.parents.iter().enumerate() {
            if parent != ROOT {
                let (above, here) = bits.split_at_mut(i * words);
                here[..words].copy_from_slice(&above[parent as usize * words..(parent as usize + 1) * words]);
            }
            bits[i * words + i / 64] |= 1 << (i % 64);
        }
        bits
    }
    /// 64-bit words of one ancestor set.
    pub fn words(&self) -> usize {
        self.len().div_ceil(64)
    }
    /// Who sees whom when the tree is verified.
    pub fn mask(&self) -> Mask {
        Mask::Tree(self.parents.clone())
    }

    /// The tree in breadth-first order, cut to at most `nodes` nodes and `levels` levels. Siblings keep their order.
    ///
    /// A cut by rank does not depend on what was drawn, so a sampled tree keeps its law as long as `nodes` and
    /// `levels` do not depend on the draws either.
    pub fn cut(&self, nodes: usize, levels: usize) -> DraftTree {
        let mut order: Vec<usize> = (0..self.len()).filter(|&i| (self.depths[i] as usize) < levels).collect();
        order.sort_by_key(|&i| self.depths[i]);
        // Within a level the order of parents decides first, so that a node's children stay together.
        let mut rank = vec![usize::MAX; self.len()];
        let mut tree = DraftTree::new(self.proposal);
        let mut from = 0;
        while from < order.len() {
            let depth = self.depths[order[from]];
            let to = from + order[from..].partition_point(|&i| self.depths[i] == depth);
            order[from..to].sort_by_key(|&i| (self.parents[i].checked_add(1).map_or(0, |p| rank[p as usize - 1]), i));
            for &i in &order[from..to] {
                if tree.len() == nodes {
                    return tree;
                }
                rank[i] = tree.len();
                let parent = self.parents[i];
                tree.add(if parent == ROOT { ROOT } else { rank[parent as usize] as u32 }, self.tokens[i]);
            }
            from = to;
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> DraftTree {
        let mut t = DraftTree::new(Proposal::Deterministic);
        let a = t.add(ROOT, 10);
        let b = t.add(a, 11); // depth first on purpose
        t.add(b, 12);
        let c = t.add(ROOT, 20);
        t.add(c, 21);
        t.add(a, 13);
        t
    }

    #[test]
    fn ancestors_and_paths() {
        let t = sample();
        assert_eq!(t.path(2), [0, 1, 2]);
        assert_eq!(t.ancestor_bits(), [0b1, 0b11, 0b111, 0b1000, 0b11000, 0b100001]);
        assert_eq!(t.children(ROOT).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(t.children(0).collect::<Vec<_>>(), [1, 5]);
        assert_eq!(t.child(0, 13), Some(5));
        assert_eq!(t.levels(), 3);
    }

    #[test]
    fn cut_is_a_breadth_first_prefix() {
        let t = sample().cut(4, 9);
        assert_eq!(t.tokens(), [10, 20, 11, 13]);
        assert_eq!(t.parents(), [ROOT, ROOT, 0, 0]);
        assert_eq!(sample().cut(9, 1).tokens(), [10, 20]);
        assert_eq!(sample().cut(9, 9).tokens(), [10, 20, 11, 13, 21, 12]);
        assert!(sample().cut(0, 9).is_empty());
    }

    #[test]
    fn chain_and_refusals() {
        let c = DraftTree::chain(vec![5, 6, 7], Proposal::Deterministic);
        assert_eq!(c.parents(), [ROOT, 0, 1]);
        assert_eq!(c.path(2), [0, 1, 2]);
        assert!(DraftTree::from_parents(vec![1, 2], &[1, ROOT], Proposal::Deterministic).is_none());
        assert!(DraftTree::from_parents(vec![1], &[], Proposal::Deterministic).is_none());
        assert_eq!(DraftTree::from_parents(vec![5, 6, 7], &[ROOT, 0, 1], Proposal::Deterministic), Some(c));
    }

    #[test]
    fn wide_trees_need_several_words() {
        let mut t = DraftTree::default();
        let mut at = ROOT;
        for i in 0..130 {
            at = t.add(at, i);
        }
        assert_eq!(t.words(), 3);
        let bits = t.ancestor_bits();
        assert_eq!(&bits[129 * 3..], [u64::MAX, u64::MAX, 0b11]);
    }
}
