//! Recursive speculative decoding by stochastic beam search (RSD-S, arXiv:2402.14160, sheet 40): each level holds the
//! `width` best of all sequences by perturbed log-probability, which is a sample of sequences without replacement.
use super::drafting::{Draft, Verifier, largest};
use super::worth::Depths;
use crate::registry::{Card, System};
use omnidecode_core::Token;
use omnidecode_core::tree::{DraftTree, ROOT};
use omnidecode_engine::{Guarantee, Readout, Result, Sequence};

crate::params! {
    /// Sequences of each level.
    width: usize = 4, within 1.0, 64.0;
    /// Levels.
    depth: usize = 4, within 1.0, 32.0;
    /// `rejection` keeps the target's law, `match` what the target itself chooses (exact, fewer accepted tokens).
    verifier: String = "rejection".into(), one_of "rejection", "match";
    /// Temperature of the draft; null is the target's, and 1 beside a greedy target.
    draft_temperature: Option<f64> = None, within 0.01, 10.0;
    /// Whether levels that do not pay on this machine are left out; with `rejection` the same seed may then give other
    /// tokens of the same law.
    adaptive: bool = false;
}

impl System for Params {
    const CARD: Card = Card {
        name: "rsd-s",
        guarantee: Guarantee::Distribution,
        needs: &["draft"],
        summary: "A draft model's tree by stochastic beam search: distinct sequences, weak branches cut early.",
        source: "arXiv:2402.14160, sheet 40",
    };

    fn guarantee(&self) -> Guarantee {
        Verifier::named(&self.verifier).guarantee()
    }

    async fn decode(self, seq: &mut Sequence) -> Result<()> {
        let mut draft = Draft::open(seq, self.draft_temperature, Verifier::named(&self.verifier))?;
        let mut depths = Depths::new(self.depth);
        let mut next = seq.next(Readout::CHOICE).await?.root().choice();
        while seq.push(next)?.is_some() {
            let mut levels = self.depth.min(draft.levels(seq));
            if self.adaptive {
                levels = draft.worth(seq, &depths, (1..=levels).map(|l| (l * self.width, self.width)));
            }
            let tree = grow(&mut draft, seq, self.width, levels).await?;
            let verdict = draft.verify(seq, &tree).await?;
            depths.learn(tree.levels(), verdict.path.len());
            next = seq.accept(&verdict)?;
        }
        Ok(())
    }
}

/// A sequence of the beam: its node, its log-probability, and that with noise.
struct Item {
    node: u32,
    log: f64,
    noisy: f64,
}

/// The tree of this step: one draft forward a level.
///
/// # Errors
/// As [`Sequence::forward`].
pub async fn grow(draft: &mut Draft, target: &Sequence, width: usize, levels: usize) -> Result<DraftTree> {
    let mut tree = draft.start(target);
    let mut beam = vec![Item { node: ROOT, log: 0.0, noisy: 0.0 }];
    for _ in 0..levels {
        let nodes: Vec<u32> = beam.iter().map(|item| item.node).collect();
        draft.think(&tree, &nodes).await?;
        let mut all: Vec<(u32, Token, f64, f64)> = Vec::new();
        for item in &beam {
            let (scores, law) = (draft.scores(&tree, item.node), draft.law(item.node));
            // Of one item no more than `width` can be kept, and the map below keeps their order.
            let kept = largest(&scores, width);
            let bounds = under(item.noisy, &kept.iter().map(|&v| item.log + scores[v]).collect::<Vec<_>>());
            for (v, bound) in kept.into_iter().zip(bounds) {
                all.push((item.node, v as Token, item.log + f64::from(law[v]).ln(), bound));
            }
        }
        // Kept in descending order, and so added: the order of siblings is their draw order.
        let bounds: Vec<f64> = all.iter().map(|a| a.3).collect();
        beam = largest(&bounds, width)
            .into_iter()
            .map(|i| {
                let (parent, token, log, noisy) = all[i];
                Item { node: tree.add(parent, token), log, noisy }
            })
            .collect();
    }
    Ok(tree)
}

/// Gumbel variables `g` in descending order, conditioned on their maximum being `most`: -log(exp(-most) - exp(-g[0]) +
/// exp(-g)), in a form that neither over- nor underflows.
pub fn under(most: f64, g: &[f64]) -> Vec<f64> {
    let first = g.first().copied().unwrap_or(0.0);
    g.iter()
        .map(|&g| {
            let u = most - g + log1mexp(g - first);
            most - u.max(0.0) - (-u.abs()).exp().ln_1p()
        })
        .collect()
}
/// log(1 - exp(a)) for a <= 0.
fn log1mexp(a: f64) -> f64 {
    if a > -std::f64::consts::LN_2 { (-a.exp_m1()).ln() } else { (-a.exp()).ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sheet 40, contract 6.
    #[test]
    fn the_largest_becomes_the_bound_and_order_is_kept() {
        for most in [0.0, -50.0, 3.0, -700.0, -3000.0] {
            for shift in [0.0, -40.0, 25.0, 900.0] {
                let g: Vec<f64> = [0.0, -1e-12, -0.3, -5.0, -80.0].iter().map(|g| g + shift).collect();
                let out = under(most, &g);
                assert!((out[0] - most).abs() < 1e-5, "{most} {shift}: {out:?}");
                assert!(out.iter().all(|x| x.is_finite()), "{most} {shift}: {out:?}");
                assert!(out.windows(2).all(|w| w[0] >= w[1]), "{most} {shift}: {out:?}");
            }
        }
        let naive = |most: f64, g: &[f64]| -> Vec<f64> {
            g.iter().map(|g0| -((-most).exp() - (-g[0]).exp() + (-g0).exp()).ln()).collect()
        };
        let (g, most) = ([1.2, 0.7, -0.4, -2.0], 0.3);
        for (a, b) in under(most, &g).iter().zip(naive(most, &g)) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
        assert!(under(1.0, &[]).is_empty());
    }
}
