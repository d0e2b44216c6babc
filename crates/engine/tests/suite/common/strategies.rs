//! Small strategies of every kind, written with the public verbs only.
use futures_util::future::try_join_all;
use futures_util::try_join;
use omnidecode_core::law::{draw, softmax};
use omnidecode_core::noise::{Key, Purpose};
use omnidecode_core::verify::rejection;
use omnidecode_engine::testing::VOCAB;
use omnidecode_engine::*;

pub fn plain() -> Strategy {
    Strategy::new("plain", Guarantee::Exact, |mut seq| async move {
        while !seq.finished() {
            let seen = seq.next(Readout::CHOICE).await?;
            seq.push(seen.root().choice())?;
        }
        Ok(())
    })
}

/// Draft what followed the last occurrence of the current pair.
pub fn lookup() -> Strategy {
    Strategy::new("lookup", Guarantee::Exact, |mut seq| async move {
        while !seq.finished() {
            let tree = DraftTree::chain(look_up(seq.tokens(), 6.min(seq.room() - 1)), Proposal::Deterministic);
            let seen = seq.forward(Plan::tree(&tree, Readout::CHOICE)).await?;
            let next = seq.accept(&seen.target_match(&tree))?;
            seq.push(next)?;
        }
        Ok(())
    })
}
fn look_up(tokens: &[Token], most: usize) -> Vec<Token> {
    let Some(split) = tokens.len().checked_sub(2) else { return Vec::new() };
    let key = &tokens[split..];
    let at = (0..split).rev().find(|&i| &tokens[i..i + 2] == key);
    at.map_or(Vec::new(), |at| tokens[at + 2..].iter().copied().take(most).collect())
}

struct Adjacency(Vec<Vec<Token>>);

/// Token Recycling: a tree grown over past top-k lists, shared by all requests.
pub fn recycling() -> Strategy {
    Strategy::new("recycling", Guarantee::Exact, |mut seq| async move {
        let matrix = seq.resource(|| Adjacency(vec![Vec::new(); VOCAB]));
        let read = || Readout::CHOICE.top(3);
        let mut root = seq.next(read()).await?.root().choice();
        while let Some(token) = seq.push(root)? {
            let levels = seq.room() - 1;
            let tree = grow(&matrix.borrow().0, token).cut(14, levels);
            let seen = seq.forward(Plan::tree(&tree, read())).await?;
            let learn = |matrix: &mut Adjacency, token: Token, seen: Seen| {
                matrix.0[token as usize] = seen.top().iter().map(|t| t.0).collect();
            };
            learn(&mut matrix.borrow_mut(), token, seen.root());
            for (i, &token) in tree.tokens().iter().enumerate() {
                learn(&mut matrix.borrow_mut(), token, seen.row(i));
            }
            root = seq.accept(&seen.target_match(&tree))?;
        }
        Ok(())
    })
}
fn grow(matrix: &[Vec<Token>], root: Token) -> DraftTree {
    let mut tree = DraftTree::new(Proposal::Deterministic);
    let mut level = vec![(ROOT, root)];
    for width in [3, 2, 1, 1] {
        let mut below = Vec::new();
        for (parent, token) in level {
            for &child in matrix[token as usize].iter().take(width) {
                below.push((tree.add(parent, child), child));
            }
        }
        level = below;
    }
    tree
}

/// A tree that the draft model grows level by level (rows in flight extended), verified by matching.
pub fn level_tree() -> Strategy {
    Strategy::new("level-tree", Guarantee::Exact, |mut seq| async move {
        let draft = seq.require("draft")?;
        let mut small = seq.sibling(draft);
        while !seq.finished() {
            small.follow(&seq);
            let mut tree = DraftTree::new(Proposal::Deterministic);
            let mut frontier = vec![ROOT];
            let mut seen = small.next(Readout::NOTHING.top(2)).await?;
            let levels = 3.min(seq.room() - 1);
            for level in 0..levels {
                let first = tree.len();
                for &at in &frontier {
                    let at_row =
                        if at == ROOT { seen.root() } else { seen.row(at as usize - (first - frontier.len())) };
                    let tokens: Vec<Token> = at_row.top().iter().map(|t| t.0).collect();
                    for t in tokens {
                        tree.add(at, t);
                    }
                }
                frontier = (first as u32..tree.len() as u32).collect();
                if level + 1 < levels {
                    let rows = tree.tokens()[first..].iter().map(|&t| Row::Token(t)).collect();
                    let mask = Mask::Tree(tree.parents()[first..].to_vec());
                    let plan = Plan::rows(rows, mask, Readout::NOTHING.top(2)).without_root();
                    let kv = if level == 0 { KvAction::Append } else { KvAction::Extend };
                    seen = small.forward(plan.kv(kv)).await?;
                }
            }
            let seen = seq.forward(Plan::tree(&tree, Readout::CHOICE)).await?;
            let next = seq.accept(&seen.target_match(&tree))?;
            seq.push(next)?;
        }
        Ok(())
    })
}

/// Draft through the first layer only, then bring the same rows through the second (Kangaroo's shape).
pub fn early_exit() -> Strategy {
    Strategy::new("early-exit", Guarantee::Exact, |mut seq| async move {
        while !seq.finished() {
            seq.prefill().await?;
            let root = seq.tokens()[seq.len() - 1];
            let mut chain = vec![root];
            let mut states: Vec<Row> = Vec::new();
            let steps = 4.min(seq.room());
            for i in 0..steps {
                let row = vec![Row::Token(chain[i])];
                let kv = if i == 0 { KvAction::Append } else { KvAction::Extend };
                let plan = Plan::rows(row, Mask::Causal, Readout::NOTHING.hidden(1)).leave(1).layers(0..1).kv(kv);
                let seen = seq.forward(plan).await?;
                states.push(Row::Hidden(seen.row(0).hidden().into()));
                if i + 1 < steps {
                    // a poor adapter: guess from the table of what followed this token before
                    chain.push(look_up(&chain_after(seq.tokens(), &chain), 1).first().copied().unwrap_or(chain[i] ^ 1));
                }
            }
            let plan = Plan::rows(states, Mask::Causal, Readout::CHOICE).leave(1).layers(1..2).kv(KvAction::Rerun(0));
            let seen = seq.forward(plan).await?;
            let (mut path, mut next) = (vec![0u32], seen.row(0).choice());
            while chain.get(path.len()) == Some(&next) {
                next = seen.row(path.len()).choice();
                path.push(path.len() as u32);
            }
            let next = seq.accept(&Verdict { path, next })?;
            seq.push(next)?;
        }
        Ok(())
    })
}
fn chain_after(tokens: &[Token], chain: &[Token]) -> Vec<Token> {
    tokens.iter().chain(&chain[1..]).copied().collect()
}

/// A small model drafts a chain, judged by rejection: same law as plain sampling.
pub fn draft_model() -> Strategy {
    Strategy::new("draft-model", Guarantee::Distribution, |mut seq| async move {
        let mut small = seq.sibling(seq.require("draft")?);
        while !seq.finished() {
            let noise = seq.noise();
            small.follow(&seq);
            let (mut chain, mut laws) = (Vec::new(), Vec::new());
            for i in 0..4.min(seq.room() - 1) {
                let law = seq.warp().law(small.next(Readout::LOGITS).await?.root().logits());
                let token = draw(&law, Key::new(noise.seed, noise.base + i, Purpose::Draft).uniform(0));
                small.extend(token)?;
                chain.push(token);
                laws.push(law);
            }
            let tree = DraftTree::chain(chain, Proposal::Sampled { replacement: false });
            let seen = seq.forward(Plan::tree(&tree, Readout::LOGITS)).await?;
            let warp = seq.warp();
            let target = |at| warp.law(seen.at(at).logits());
            let draft = |at: u32| &laws[at.wrapping_add(1) as usize];
            let next = seq.accept(&rejection(&tree, Rule::Recursive, noise, target, draft))?;
            seq.push(next)?;
        }
        Ok(())
    })
}

/// n sampled continuations, the likeliest wins.
pub fn best_of(n: u64) -> Strategy {
    Strategy::new("best-of-n", Guarantee::Approximate, move |mut seq| async move {
        seq.prefill().await?;
        let done = try_join_all((1..=n).map(|i| sample(seq.fork(i)))).await?;
        if let Some((branch, _)) = done.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
            seq.adopt(branch)?;
        }
        Ok(())
    })
}
async fn sample(mut branch: Sequence) -> Result<(Sequence, f32)> {
    let mut score = 0.0;
    while !branch.finished() {
        let seen = branch.next(Readout::CHOICE.logprob()).await?;
        score += seen.root().logprob();
        branch.push(seen.root().choice())?;
    }
    let len = branch.generated().len().max(1) as f32;
    Ok((branch, score / len))
}

/// Beam search by fork, join and drop.
pub fn beam(width: usize) -> Strategy {
    Strategy::new("beam", Guarantee::Approximate, move |mut seq| async move {
        seq.prefill().await?;
        let mut beams = vec![(seq.fork(0), 0.0f32)];
        while beams.iter().any(|(b, _)| !b.finished()) {
            let open = beams.iter_mut().filter(|(b, _)| !b.finished());
            let seen = try_join_all(open.map(|(b, _)| b.next(Readout::LOGITS))).await?;
            let mut seen = seen.iter();
            let mut next = Vec::new();
            for (i, (beam, score)) in beams.iter().enumerate() {
                if beam.finished() {
                    next.push((i, None, *score));
                    continue;
                }
                let law = softmax(seen.next().expect("one a beam").root().logits(), 1.0);
                next.extend(law.iter().enumerate().map(|(v, p)| (i, Some(v as u32), score + p.ln())));
            }
            next.sort_by(|a, b| b.2.total_cmp(&a.2));
            next.truncate(width);
            let mut grown = Vec::new();
            for (parent, token, score) in next {
                let mut child = beams[parent].0.fork(0);
                if let Some(token) = token {
                    child.push(token)?;
                }
                grown.push((child, score));
            }
            beams = grown;
        }
        seq.adopt(beams.swap_remove(0).0)
    })
}

/// Masked diffusion, block after block; the finished block's KV is stored by one more forward.
pub fn blocks(block: usize, threshold: f32) -> Strategy {
    Strategy::new("blocks", Guarantee::Approximate, move |mut seq| async move {
        loop {
            let start = seq.len();
            let window = start..start + block.min(seq.room());
            let mut canvas = seq.canvas(start..window.end)?;
            let mut forward = 1;
            loop {
                let masked = canvas.masked(window.clone());
                let read = Readout::CHOICE.logprob().stats();
                let look = Look { noise: forward, ..Look::full(window.clone(), true, read) };
                let seen = canvas.look(look).await?;
                forward += 1;
                if masked.is_empty() {
                    break;
                }
                let mut sure: Vec<(usize, Token, f32)> =
                    masked.into_iter().map(|p| (p, seen.at(p).choice(), seen.at(p).logprob().exp())).collect();
                sure.sort_by(|a, b| b.2.total_cmp(&a.2));
                let n = sure.iter().filter(|s| s.2 > threshold).count().max(1);
                sure[..n].iter().try_for_each(|&(p, token, c)| canvas.commit(p, token, c))?;
            }
            if !canvas.settle(window.end)? {
                return Ok(());
            }
        }
    })
}

/// Expert minus amateur, two models awaited at once.
pub fn contrastive() -> Strategy {
    Strategy::new("contrastive", Guarantee::Approximate, |mut seq| async move {
        let mut amateur = seq.sibling(seq.require("draft")?);
        while !seq.finished() {
            amateur.follow(&seq);
            let (strong, weak) = try_join!(seq.next(Readout::LOGITS), amateur.next(Readout::LOGITS))?;
            let (e, a) = (softmax(strong.root().logits(), 1.0), softmax(weak.root().logits(), 1.0));
            let floor = 0.1 * e.iter().copied().fold(0.0, f32::max);
            let score = |v: usize| if e[v] < floor { f32::NEG_INFINITY } else { 1.5 * e[v].ln() - 0.5 * a[v].ln() };
            let best = (0..e.len()).max_by(|&x, &y| score(x).total_cmp(&score(y))).expect("a vocabulary");
            seq.push(best as Token)?;
        }
        Ok(())
    })
}

pub type Make = fn() -> Strategy;
pub const EXACT: [(&str, Make); 5] = [
    ("plain", plain),
    ("lookup", lookup),
    ("recycling", recycling),
    ("level-tree", level_tree),
    ("early-exit", early_exit),
];
pub const OTHERS: [Make; 5] = [draft_model, || best_of(4), || beam(3), || blocks(8, 0.3), contrastive];
