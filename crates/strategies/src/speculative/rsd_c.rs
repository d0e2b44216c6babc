//! Recursive speculative decoding with constant branching (RSD-C, arXiv:2402.14160, sheet 40): a tree of draws without
//! replacement, so that no sibling repeats another, verified by recursive rejection.
use super::drafting::{Draft, Verifier, misfit};
use super::worth::Depths;
use crate::params::ParamError;
use crate::registry::{Card, System};
use omnidecode_core::tree::{DraftTree, ROOT};
use omnidecode_engine::{Guarantee, Readout, Result, Sequence};

crate::params! {
    /// Children of each node, level by level.
    branching: Vec<usize> = vec![3, 2, 1], within 1.0, 64.0;
    /// `rejection` keeps the target's law, `match` what the target itself chooses (exact, fewer accepted tokens).
    verifier: String = "rejection".into(), one_of "rejection", "match";
    /// Temperature of the draft; null is the target's, and 1 beside a greedy target.
    draft_temperature: Option<f64> = None, within 0.01, 10.0;
    /// Whether levels that do not pay on this machine are left out; with `rejection` the same seed may then give other
    /// tokens of the same law.
    adaptive: bool = false;
}

/// Most nodes of a tree.
const MOST: usize = 1024;

impl System for Params {
    const CARD: Card = Card {
        name: "rsd-c",
        guarantee: Guarantee::Distribution,
        needs: &["draft"],
        summary: "A draft model's tree with fixed branching, drawn without replacement.",
        source: "arXiv:2402.14160, sheet 40",
    };

    fn guarantee(&self) -> Guarantee {
        Verifier::named(&self.verifier).guarantee()
    }
    fn check(&self) -> Result<(), ParamError> {
        let nodes = shape(&self.branching).last().map_or(0, |s| s.0);
        if (1..=MOST).contains(&nodes) {
            return Ok(());
        }
        let expected =
            format!("at least one level and at most {MOST} nodes, the sum of the products of its beginnings");
        Err(misfit(Self::CARD.name, "branching", expected, nodes))
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let mut draft = Draft::open(seq, self.draft_temperature, Verifier::named(&self.verifier))?;
        let mut depths = Depths::new(self.branching.len());
        let mut next = seq.next(Readout::CHOICE).await?.root().choice();
        while seq.push(next)?.is_some() {
            let mut levels = self.branching.len().min(draft.levels(seq));
            if self.adaptive {
                levels = draft.worth(seq, &depths, shape(&self.branching[..levels]));
            }
            let tree = grow(&mut draft, seq, &self.branching[..levels]).await?;
            let verdict = draft.verify(seq, &tree).await?;
            depths.learn(tree.levels(), verdict.path.len());
            next = seq.accept(&verdict)?;
        }
        Ok(())
    }
}

/// (nodes so far, nodes of this level) of each level.
fn shape(branching: &[usize]) -> Vec<(usize, usize)> {
    let (mut nodes, mut level) = (0usize, 1usize);
    let grown = branching.iter().map(|&b| {
        level = level.saturating_mul(b);
        nodes = nodes.saturating_add(level);
        (nodes, level)
    });
    grown.collect()
}

/// The tree of this step: one draft forward a level.
///
/// # Errors
/// As [`Sequence::forward`].
pub async fn grow(draft: &mut Draft, target: &Sequence, branching: &[usize]) -> Result<DraftTree> {
    let mut tree = draft.start(target);
    let mut level = vec![ROOT];
    for &children in branching {
        draft.think(&tree, &level).await?;
        let mut below = Vec::new();
        for at in level {
            for token in draft.draws(&tree, at, children) {
                below.push(tree.add(at, token));
            }
        }
        level = below;
    }
    Ok(tree)
}
