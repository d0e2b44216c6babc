//! Sheet 00 §6.1, golden values by exact enumeration, and §6.2, the simulation with its controls that must fail.
use omnidecode_core::law::draw;
use omnidecode_core::noise::{Key, Purpose, pair, unit};
use omnidecode_core::tree::{DraftTree, Proposal, ROOT};
use omnidecode_core::verify::{KSeq, Noise, Round, Rule, Verdict, rejection, target_match, typical};

const P: [f32; 5] = [0.50, 0.20, 0.15, 0.10, 0.05];
const Q: [f32; 5] = [0.20, 0.40, 0.10, 0.25, 0.05];

/// (probability of accepting some sibling, emitted law), exactly.
fn enumerate(round: Round, k: usize, weight: f64, law: &mut [f64; 5]) -> f64 {
    let total: f64 = round.rest().iter().sum();
    if k == 0 {
        round.rest().iter().enumerate().for_each(|(v, r)| law[v] += weight * r / total);
        return 0.0;
    }
    let mut accepted = 0.0;
    let draft = round.draft().to_vec();
    for (y, &d) in draft.iter().enumerate().filter(|(_, d)| **d > 0.0) {
        let a = round.acceptance(y as u32);
        law[y] += weight * d * a;
        accepted += d * a;
        if a < 1.0 {
            let mut next = round.clone();
            next.refuse(y as u32);
            accepted += d * (1.0 - a) * enumerate(next, k - 1, weight * d * (1.0 - a), law);
        }
    }
    accepted
}

fn close(a: f64, b: f64, within: f64) {
    assert!((a - b).abs() < within, "{a} is not {b}");
}

#[test]
fn golden_table() {
    let rows = [(1, 0.65, 0.65, 1.0, 0.65), (2, 0.755, 0.805238, 1.460328, 0.788098)];
    let rows =
        rows.into_iter().chain([(3, 0.819, 0.910823, 1.792593, 0.858519), (4, 0.8552, 0.975442, 2.030036, 0.906007)]);
    for (k, iid, without, rho, kseq) in rows {
        for (replacement, want) in [(true, iid), (false, without)] {
            let mut law = [0.0; 5];
            close(enumerate(Round::new(&P, &Q, replacement), k, 1.0, &mut law), want, 1e-6);
            // f32 inputs: the law is the target's to their rounding
            (0..5).for_each(|v| close(law[v], f64::from(P[v]), 1e-7));
        }
        let solved = KSeq::new(&P, &Q, k);
        close(solved.rho, rho, 1e-6);
        close(solved.accept, kseq, 1e-6);
        let miss: f64 = 1.0 - (0..5).map(|v| f64::from(Q[v]) * solved.acceptance(&P, &Q, v as u32)).sum::<f64>();
        let tries = (1.0 - miss.powi(k as i32)) / (1.0 - miss);
        for v in 0..5 {
            let taken = f64::from(Q[v]) * solved.acceptance(&P, &Q, v as u32) * tries;
            close(taken + solved.rest[v], f64::from(P[v]), 1e-6);
        }
    }
    let mut round = Round::new(&P, &Q, true);
    round.refuse(1);
    [6.0 / 7.0, 0.0, 1.0 / 7.0, 0.0, 0.0].iter().zip(round.rest()).for_each(|(a, b)| close(*a, *b, 1e-6));
    // V1 over the draft's top-K: the mass of the target on them.
    let mut order: Vec<usize> = (0..5).collect();
    order.sort_by(|&a, &b| Q[b].total_cmp(&Q[a]));
    for (k, want) in [(1, 0.20), (2, 0.30), (3, 0.80)] {
        close(order[..k].iter().map(|&v| f64::from(P[v])).sum(), want, 1e-6);
    }
}

#[test]
fn chain_extremes() {
    let chain = DraftTree::chain(vec![0, 2, 1], Proposal::Sampled { replacement: false });
    for seed in 0..200 {
        let same = rejection(&chain, Rule::Recursive, Noise { seed, base: 9 }, |_| P, |_| P);
        assert_eq!(same.path, [0, 1, 2], "q = p keeps everything");
        let (left, right) = ([0.5f32, 0.5, 0.0, 0.0], [0.0f32, 0.0, 0.5, 0.5]);
        let alien = DraftTree::chain(vec![2, 3], Proposal::Sampled { replacement: false });
        let none = rejection(&alien, Rule::Recursive, Noise { seed, base: 9 }, |_| left, |_| right);
        assert!(none.path.is_empty() && none.next < 2, "disjoint supports keep nothing");
    }
}

#[test]
fn greedy_target_reduces_to_matching() {
    let mut tree = DraftTree::new(Proposal::Sampled { replacement: false });
    let a = tree.add(ROOT, 1);
    tree.add(ROOT, 0);
    tree.add(a, 2);
    tree.add(1, 3);
    let p =
        |node: u32| -> [f32; 5] { std::array::from_fn(|v| f32::from(u8::from(v == if node == ROOT { 0 } else { 3 }))) };
    let verdict = rejection(&tree, Rule::Recursive, Noise { seed: 1, base: 0 }, p, |_| Q);
    assert_eq!(verdict, target_match(&tree, |node| if node == ROOT { 0 } else { 3 }));
    assert_eq!(verdict, Verdict { path: vec![1, 3], next: 3 });
}

#[test]
fn typical_keeps_the_longest_plausible_path() {
    let mut tree = DraftTree::new(Proposal::Deterministic);
    let a = tree.add(ROOT, 0);
    let b = tree.add(ROOT, 1);
    tree.add(a, 4);
    tree.add(b, 2);
    // at P: entropy 1.3330, 0.3 * exp(-H) = 0.0791: tokens above that are taken
    let v = typical(&tree, 0.09, 0.3, |_| P, |_| 0);
    assert_eq!(v.path, [1, 3], "0 -> 4 is one long, 1 -> 2 is two long");
    assert!(typical(&tree, 0.6, 9.0, |_| P, |_| 0).path.is_empty());
}

// ---- the simulation ----
const V: usize = 4;
const DEPTH: usize = 3;
const RUNS: usize = 120_000;

struct World {
    p: Vec<[f32; V]>,
    q: Vec<[f32; V]>,
}
impl World {
    /// Dirichlet(0.6) tables, one a context of up to DEPTH tokens. Gamma(0.6) by its boosted normal-free form.
    fn new(seed: u64) -> Self {
        let mut at = 0u64;
        let mut uniform = move || {
            at += 1;
            unit(pair(seed, at))
        };
        // Johnk: Gamma(a) for a < 1 is Beta(a, 1 - a) times an exponential
        let mut gamma = |a: f64| loop {
            let (x, y) = (uniform().powf(1.0 / a), uniform().powf(1.0 / (1.0 - a)));
            if x + y <= 1.0 {
                return -uniform().ln() * x / (x + y);
            }
        };
        let mut table = |_| {
            let g: [f64; V] = std::array::from_fn(|_| gamma(0.6));
            let sum: f64 = g.iter().sum();
            std::array::from_fn(|v| (g[v] / sum) as f32)
        };
        let contexts = (0..=DEPTH as u32).map(|d| V.pow(d)).sum::<usize>();
        World { p: (0..contexts).map(&mut table).collect(), q: (0..contexts).map(&mut table).collect() }
    }
    fn context(tokens: &[u32]) -> usize {
        tokens.iter().fold(0, |c, &t| c * V + t as usize + 1)
    }
    fn exact(&self) -> Vec<f64> {
        (0..V.pow(DEPTH as u32))
            .map(|code| {
                let tokens = decode(code);
                (0..DEPTH).map(|d| f64::from(self.p[Self::context(&tokens[..d])][tokens[d] as usize])).product()
            })
            .collect()
    }
}
fn decode(code: usize) -> Vec<u32> {
    (0..DEPTH).map(|d| (code / V.pow((DEPTH - 1 - d) as u32) % V) as u32).collect()
}

struct Draws {
    key: Key,
    lane: u64,
}
impl Draws {
    fn next(&mut self) -> f64 {
        self.lane += 1;
        self.key.uniform(self.lane)
    }
}

fn path_tokens(tree: &DraftTree, node: u32) -> Vec<u32> {
    tree.path(node).iter().map(|&n| tree.tokens()[n as usize]).collect()
}

/// `branch[d]` siblings at depth d.
fn by_levels(w: &World, branch: &[usize], replacement: bool, draws: &mut Draws) -> DraftTree {
    let mut tree = DraftTree::new(Proposal::Sampled { replacement });
    let mut level = vec![ROOT];
    for &b in branch {
        let mut below = Vec::new();
        for at in level {
            let mut law = w.q[World::context(&path_tokens(&tree, at))];
            for _ in 0..b.min(V) {
                let y = draw(&law, draws.next());
                below.push(tree.add(at, y));
                if !replacement {
                    law[y as usize] = 0.0;
                }
            }
        }
        level = below;
    }
    tree
}

/// Stochastic beam search: RSD-S (sheet 40), siblings in order of their perturbed scores.
fn by_stochastic_beam(w: &World, width: usize, levels: usize, draws: &mut Draws) -> DraftTree {
    let mut tree = DraftTree::new(Proposal::Sampled { replacement: false });
    let mut beam = vec![(ROOT, 0.0f64, 0.0f64)];
    for _ in 0..levels {
        let mut all = Vec::new();
        for &(at, phi, psi) in &beam {
            let law = w.q[World::context(&path_tokens(&tree, at))];
            let scores: Vec<f64> = law.iter().map(|&q| phi + f64::from(q).ln()).collect();
            let noisy: Vec<f64> = scores.iter().map(|s| s - (-draws.next().ln()).ln()).collect();
            let z = noisy.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            for v in 0..V {
                let bound = -((-psi).exp() - (-z).exp() + (-noisy[v]).exp()).ln();
                all.push((at, v as u32, scores[v], bound));
            }
        }
        all.sort_by(|a, b| b.3.total_cmp(&a.3));
        all.truncate(width);
        beam = all.into_iter().map(|(at, y, phi, psi)| (tree.add(at, y), phi, psi)).collect();
    }
    tree
}

/// DySpec's heap (sheet 15): the next draw is made where it is most likely to be accepted, known before drawing.
fn by_heap(w: &World, nodes: usize, draws: &mut Draws) -> DraftTree {
    let mut tree = DraftTree::new(Proposal::Sampled { replacement: false });
    let mut heap: Vec<(f64, u32, Vec<f64>)> = vec![(1.0, ROOT, w.q[0].iter().map(|&x| f64::from(x)).collect())];
    while tree.len() < nodes && !heap.is_empty() {
        let best = (0..heap.len()).max_by(|&a, &b| heap[a].0.total_cmp(&heap[b].0)).unwrap();
        let (value, at, mut law) = heap.swap_remove(best);
        let total: f64 = law.iter().sum();
        let y = draw(&law, draws.next());
        let share = law[y as usize] / total;
        let node = tree.add(at, y);
        law[y as usize] = 0.0;
        if law.iter().sum::<f64>() > 1e-12 {
            heap.push((value * (1.0 - share), at, law));
        }
        if tree.depth(node) + 1 < DEPTH {
            let q = w.q[World::context(&path_tokens(&tree, node))];
            heap.push((value * share, node, q.iter().map(|&x| f64::from(x)).collect()));
        }
    }
    tree
}

type Judge<'a> = dyn Fn(&World, &DraftTree, u64) -> Verdict + 'a;

fn honest(rule: Rule) -> impl Fn(&World, &DraftTree, u64) -> Verdict {
    move |w, tree, seed| {
        let law = |laws: &Vec<[f32; V]>, at| laws[World::context(&path_tokens(tree, at))];
        rejection(tree, rule, Noise { seed, base: 0 }, |at| law(&w.p, at), |at| law(&w.q, at))
    }
}

/// (total variation, chi-square per degree of freedom) of the first DEPTH tokens against enumeration.
fn simulate(grow: &dyn Fn(&World, &mut Draws) -> DraftTree, judge: &Judge) -> (f64, f64) {
    let w = World::new(41);
    let exact = w.exact();
    let mut counts = vec![0.0; exact.len()];
    for run in 0..RUNS {
        let seed = pair(99, run as u64);
        let tree = grow(&w, &mut Draws { key: Key::new(seed, 0, Purpose::Draft), lane: 0 });
        let verdict = judge(&w, &tree, seed);
        let mut tokens: Vec<u32> = verdict.path.iter().map(|&n| tree.tokens()[n as usize]).collect();
        tokens.push(verdict.next);
        while tokens.len() < DEPTH {
            let u = Key::new(seed, tokens.len(), Purpose::Sample).uniform(0);
            tokens.push(draw(&w.p[World::context(&tokens)], u));
        }
        counts[tokens[..DEPTH].iter().fold(0, |c, &t| c * V + t as usize)] += 1.0;
    }
    let n = RUNS as f64;
    let tv = 0.5 * exact.iter().zip(&counts).map(|(e, c)| (e - c / n).abs()).sum::<f64>();
    let cells: Vec<_> = exact.iter().zip(&counts).filter(|(e, _)| **e * n >= 5.0).collect();
    let chi: f64 = cells.iter().map(|(e, c)| (*c - *e * n).powi(2) / (*e * n)).sum();
    (tv, chi / (cells.len() - 1) as f64)
}

fn case(name: &str, must_hold: bool, grow: &dyn Fn(&World, &mut Draws) -> DraftTree, judge: &Judge) {
    let (tv, chi) = simulate(grow, judge);
    println!("{name}: TV {tv:.4}, chi2/df {chi:.2}");
    // 64 cells: 3.5 standard deviations of chi2/df are 0.62 above 1
    assert_eq!(chi < 1.7, must_hold, "{name}: TV {tv:.4}, chi2/df {chi:.2}");
}

#[test]
fn lossless_samplers_pass() {
    let plain = honest(Rule::Recursive);
    case("chain", true, &|w, d| by_levels(w, &[1, 1, 1], false, d), &plain);
    case("RSD-C [2,2,1]", true, &|w, d| by_levels(w, &[2, 2, 1], false, d), &plain);
    case("iid [2,2,1]", true, &|w, d| by_levels(w, &[2, 2, 1], true, d), &plain);
    case("K-SEQ [3,2,1]", true, &|w, d| by_levels(w, &[3, 2, 1], true, d), &honest(Rule::KSeq));
    case("RSD-S W=3 L=3", true, &|w, d| by_stochastic_beam(w, 3, 3, d), &plain);
    case("DySpec heap m=6", true, &|w, d| by_heap(w, 6, d), &plain);
    let matching = |w: &World, tree: &DraftTree, seed: u64| {
        target_match(tree, |at| {
            let tokens = path_tokens(tree, at);
            draw(&w.p[World::context(&tokens)], Key::new(seed, tokens.len(), Purpose::Sample).uniform(0))
        })
    };
    case("target match", true, &|w, d| by_levels(w, &[2, 2, 1], false, d), &matching);
}

#[test]
fn wrong_controls_are_flagged() {
    let plain = honest(Rule::Recursive);
    let rebuilt = |tree: &DraftTree, keep: &dyn Fn(u32) -> bool, reverse: bool| {
        let mut out = DraftTree::new(tree.proposal());
        let mut open = vec![(ROOT, ROOT)];
        while let Some((at, new)) = open.pop() {
            let mut kids: Vec<u32> = tree.children(at).filter(|&c| keep(c)).collect();
            if reverse {
                kids.reverse();
            }
            open.extend(kids.into_iter().map(|c| (c, out.add(new, tree.tokens()[c as usize]))));
        }
        out
    };
    case("RSD-S, siblings reversed", false, &|w, d| rebuilt(&by_stochastic_beam(w, 3, 3, d), &|_| true, true), &plain);
    let pruned = |w: &World, d: &mut Draws| {
        let tree = by_levels(w, &[2, 2, 1], false, d);
        let value = |c: u32| {
            let path = path_tokens(&tree, c);
            w.q[World::context(&path[..path.len() - 1])][path[path.len() - 1] as usize]
        };
        rebuilt(&tree, &|c| value(c) > 0.2, false)
    };
    case("pruned by drawn value", false, &pruned, &plain);
    // D is zeroed but not renormalised.
    let stale = |w: &World, tree: &DraftTree, seed: u64| {
        let (mut at, mut path) = (ROOT, Vec::new());
        loop {
            let context = World::context(&path_tokens(tree, at));
            let (mut r, mut d) = (w.p[context].map(f64::from), w.q[context].map(f64::from));
            let coin = Key::new(seed, path.len(), Purpose::Accept);
            let hit = tree.children(at).enumerate().find(|&(k, c)| {
                let y = tree.tokens()[c as usize] as usize;
                if coin.uniform(k as u64) * d[y] <= r[y] && r[y] > 0.0 {
                    return true;
                }
                let rest: f64 = (0..V).map(|v| (r[v] - d[v]).max(0.0)).sum();
                if rest > 0.0 {
                    r = std::array::from_fn(|v| (r[v] - d[v]).max(0.0) / rest);
                }
                d[y] = 0.0;
                false
            });
            let Some((_, node)) = hit else {
                let u = Key::new(seed, path.len(), Purpose::Residual).uniform(0);
                return Verdict { path, next: draw(&r, u) };
            };
            path.push(node);
            at = node;
        }
    };
    case("D not renormalised", false, &|w, d| by_levels(w, &[3, 2, 1], false, d), &stale);
    // The target sampled anew on every path, the longest match kept.
    let per_path = |w: &World, tree: &DraftTree, seed: u64| {
        let mut best = Verdict::default();
        let leaves = (0..tree.len() as u32).filter(|&n| tree.children(n).next().is_none());
        for (i, leaf) in leaves.enumerate() {
            let (mut path, mut tokens) = (Vec::new(), Vec::new());
            let mut nodes = tree.path(leaf).into_iter();
            let next = loop {
                let u = Key::new(pair(seed, i as u64), tokens.len(), Purpose::Sample).uniform(0);
                let s = draw(&w.p[World::context(&tokens)], u);
                match nodes.next() {
                    Some(node) if tree.tokens()[node as usize] == s => {
                        path.push(node);
                        tokens.push(s);
                    }
                    _ => break s,
                }
            };
            if i == 0 || path.len() > best.path.len() {
                best = Verdict { path, next };
            }
        }
        best
    };
    case("independent sample per path", false, &|w, d| by_levels(w, &[2, 2, 1], false, d), &per_path);
}
