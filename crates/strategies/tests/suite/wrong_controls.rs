//! Wrong verifications of drafts (sheet 00 §6.2): the test of laws that `two_models` trusts must flag each of them.

use crate::common::law;
use omnidecode_core::law::draw;
use omnidecode_core::noise::{Key, Purpose};
use omnidecode_core::tree::{DraftTree, ROOT};
use omnidecode_core::verify::{Rule, rejection};
use omnidecode_engine::{Guarantee, Noise, Outcome, Plan, Readout, Strategy, Verdict, Warp};
use omnidecode_strategies::speculative::drafting::{Draft, Verifier};
use omnidecode_strategies::speculative::{rsd_c, rsd_s};

/// A strategy that drafts and judges as the closure says.
macro_rules! wrong {
    ($draft:ident, $seq:ident, $grow:expr, $judge:expr) => {
        || {
            Strategy::new("wrong", Guarantee::Distribution, |mut seq| async move {
                let $seq = &mut seq;
                // Cooler than the target, so that much is refused.
                let mut draft = Draft::open($seq, Some(1.0), Verifier::Rejection)?;
                let mut next = $seq.next(Readout::CHOICE).await?.root().choice();
                while $seq.push(next)?.is_some() {
                    let $draft = &mut draft;
                    let tree: DraftTree = $grow;
                    let seen = $seq.forward(Plan::tree(&tree, Readout::LOGITS)).await?;
                    let warp = $seq.warp();
                    let verdict = $judge(&tree, &*$draft, &seen, warp, $seq.noise());
                    next = $seq.accept(&verdict)?;
                }
                Ok(())
            })
        }
    };
}
type Judged<'a> = (&'a DraftTree, &'a Draft, &'a Outcome, Warp, Noise);

/// The tree with some nodes left out or siblings turned round, and the old name of each node.
fn rebuilt(tree: &DraftTree, keep: impl Fn(u32) -> bool, reverse: bool) -> (DraftTree, Vec<u32>) {
    let (mut out, mut names) = (DraftTree::new(tree.proposal()), Vec::new());
    let mut open = vec![(ROOT, ROOT)];
    while let Some((at, new)) = open.pop() {
        let mut kids: Vec<u32> = tree.children(at).filter(|&c| keep(c)).collect();
        if reverse {
            kids.reverse();
        }
        for kid in kids {
            names.push(kid);
            open.push((kid, out.add(new, tree.tokens()[kid as usize])));
        }
    }
    (out, names)
}
fn judge_rebuilt((tree, draft, seen, warp, noise): Judged<'_>, keep: impl Fn(u32) -> bool, reverse: bool) -> Verdict {
    let (other, names) = rebuilt(tree, keep, reverse);
    let old = |node: u32| if node == ROOT { ROOT } else { names[node as usize] };
    let mut verdict = rejection(
        &other,
        Rule::Recursive,
        noise,
        |node| warp.law(seen.at(old(node)).logits()),
        |node| draft.law(old(node)),
    );
    verdict.path.iter_mut().for_each(|node| *node = old(*node));
    verdict
}

/// Recursive rejection that takes a drawn token out of the draft's law and forgets to scale the rest.
fn judge_unscaled(tree: &DraftTree, draft: &Draft, seen: &Outcome, warp: Warp, noise: Noise) -> Verdict {
    let wide = |law: &[f32]| law.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let (mut path, mut at) = (Vec::new(), ROOT);
    loop {
        let key = |purpose| Key::new(noise.seed, noise.base + path.len(), purpose);
        let mut rest = wide(&warp.law(seen.at(at).logits()));
        let mut law = if tree.children(at).next().is_some() { wide(&draft.law(at)) } else { Vec::new() };
        let mut accepted = None;
        for (k, child) in tree.children(at).enumerate() {
            let y = tree.tokens()[child as usize] as usize;
            if key(Purpose::Accept).uniform(k as u64) * law[y] <= rest[y] && rest[y] > 0.0 {
                accepted = Some(child);
                break;
            }
            let left: Vec<f64> = rest.iter().zip(&law).map(|(r, d)| (r - d).max(0.0)).collect();
            let sum: f64 = left.iter().sum();
            if sum > 0.0 {
                rest = left.into_iter().map(|r| r / sum).collect();
            }
            law[y] = 0.0;
        }
        match accepted {
            Some(child) => {
                path.push(child);
                at = child;
            }
            None => {
                let next = draw(&rest, key(Purpose::Residual).uniform(0));
                return Verdict { path, next };
            }
        }
    }
}

/// Wrong verifications are flagged, so the test of laws can fail.
#[test]
fn wrong_controls_are_flagged() {
    law::case(
        "RSD-S, nothing wrong",
        true,
        wrong!(draft, seq, rsd_s::grow(draft, seq, 3, 3.min(draft.levels(seq))).await?, |t, d, s, w, n| {
            judge_rebuilt((t, d, s, w, n), |_| true, false)
        }),
    );
    law::case(
        "RSD-S, siblings reversed",
        false,
        wrong!(draft, seq, rsd_s::grow(draft, seq, 3, 3.min(draft.levels(seq))).await?, |t, d, s, w, n| {
            judge_rebuilt((t, d, s, w, n), |_| true, true)
        }),
    );
    law::case(
        "pruned by drawn value",
        false,
        wrong!(
            draft,
            seq,
            rsd_c::grow(draft, seq, &[2, 2, 1][..3.min(draft.levels(seq))]).await?,
            |t: &DraftTree, d: &Draft, s, w, n| {
                let keep = |c: u32| d.law(t.parents()[c as usize])[t.tokens()[c as usize] as usize] >= 0.25;
                judge_rebuilt((t, d, s, w, n), keep, false)
            }
        ),
    );
    law::case(
        "what is left of the draft's law is not renormalised",
        false,
        wrong!(draft, seq, rsd_c::grow(draft, seq, &[3, 3][..2.min(draft.levels(seq))]).await?, judge_unscaled),
    );
    law::case(
        "an own sample of the target for each path, the longest kept",
        false,
        wrong!(
            draft,
            seq,
            rsd_c::grow(draft, seq, &[2, 2, 1][..3.min(draft.levels(seq))]).await?,
            |t: &DraftTree, _d, s: &Outcome, w: Warp, n: Noise| {
                let leaves = (0..t.len() as u32).filter(|&c| t.children(c).next().is_none());
                let walk = |leaf: u32| {
                    let (mut kept, mut at) = (Vec::new(), ROOT);
                    for node in t.path(leaf).into_iter().chain([ROOT]) {
                        let key = Key::new(n.seed, n.base + kept.len(), Purpose::Accept);
                        let choice = draw(&w.law(s.at(at).logits()), key.uniform(u64::from(leaf)));
                        if node == ROOT || t.tokens()[node as usize] != choice {
                            return Verdict { path: kept, next: choice };
                        }
                        kept.push(node);
                        at = node;
                    }
                    unreachable!("the path ends")
                };
                let plain = Verdict { path: Vec::new(), next: draw(&w.law(s.at(ROOT).logits()), 0.5) };
                leaves.map(walk).max_by_key(|v| v.path.len()).unwrap_or(plain)
            }
        ),
    );
}
