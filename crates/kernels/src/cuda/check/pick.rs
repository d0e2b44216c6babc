//! Reductions of logits against the CPU's.
use super::{Bench, noise};
use crate::cuda::args::*;
use crate::cuda::{Address, Call, Entry};
use crate::pick;
use omnidecode_core::law::Warp;
use omnidecode_core::noise::{Key, Purpose};

fn reduce(
    bench: &mut Bench,
    logits: &[f32],
    vocab: usize,
    asks: &[Ask],
    asked: &[u32],
) -> (Vec<Found>, Vec<Candidate>, Vec<f32>) {
    let (rows, pieces) = (logits.len() / vocab, vocab.div_ceil(PIECE));
    let found = bench.put(&vec![Found::default(); rows]);
    let tops = bench.put(&vec![Candidate::default(); rows * TOP]);
    let logprobs = bench.poisoned(asked.len().max(1));
    let counters = bench.put(&vec![0u32; rows]);
    let (_, stand) = bench.stand(rows);
    let args = PickArgs {
        logits: bench.put(logits).address(),
        asks: bench.put(asks).address(),
        asked: bench.put(asked).address(),
        stand: stand.address(),
        peaks: bench.put(&vec![Peak::default(); rows * pieces]).address(),
        pieces: bench.put(&vec![Piece::default(); rows * pieces]).address(),
        candidates: bench.put(&vec![Candidate::default(); rows * pieces * TOP]).address(),
        tops: tops.address(),
        logprobs: logprobs.address(),
        found: found.address(),
        edges: bench.put(&vec![Address(u64::MAX); rows]).address(),
        counters: counters.address(),
        vocab: vocab as u32,
        count: pieces as u32,
    };
    // Twice, as a graph would: counters must be as they were.
    for _ in 0..2 {
        for entry in [Entry::Peak, Entry::Pick] {
            bench.run(entry, Call::Pick(args), [pieces as u32, rows as u32 + 1, 1]);
        }
    }
    assert!(bench.get::<u32>(&counters).iter().all(|&c| c == 0));
    (bench.get(&found), bench.get(&tops), bench.get(&logprobs))
}

pub(super) fn statistics_largest_and_choices_are_the_cpu_s(bench: &mut Bench) {
    for vocab in [5usize, 300, 4096, 9000] {
        let rows = 6;
        let mut logits: Vec<f32> = noise(vocab as u64, rows * vocab).iter().map(|x| x * 9.0).collect();
        logits[3] = logits[1]; // a tie
        logits[vocab..2 * vocab].iter_mut().skip(2).for_each(|l| *l = f32::NEG_INFINITY); // two tokens left
        let temperature = |row: usize| [0.0, 1.0, 0.3, 2.0, 1.0, 1.0][row];
        let min_p = |row: usize| [0.0, 0.0, 0.0, 0.0, 0.2, 0.01][row];
        let keys: Vec<Key> = (0..rows).map(|r| Key::new(11, r, Purpose::Sample)).collect();
        let ask = |row: usize| Ask {
            key: keys[row].word(),
            temperature: temperature(row),
            min_p: min_p(row),
            top_p: 1.0,
            top_k: 0,
            top: [0, 4, 8, 64, 1, 3][row],
            asked: row as u32,
            asked_end: row as u32 + 1,
            flags: 3,
        };
        let asks: Vec<Ask> = (0..rows).map(ask).collect();
        let asked: Vec<u32> = (0..rows as u32).map(|r| r % vocab as u32).collect();
        let (found, tops, logprobs) = reduce(bench, &logits, vocab, &asks, &asked);
        let mut top = Vec::new();
        for (row, l) in logits.chunks_exact(vocab).enumerate() {
            let stats = pick::stats(l).unwrap();
            let f = found[row];
            assert_eq!(
                (f.argmax, f.max, f.second, f.state),
                (stats.argmax, stats.max, stats.second, 0),
                "{vocab} {row}"
            );
            assert!(
                (f.lse - stats.lse).abs() < 1e-5 && (f.entropy - stats.entropy).abs() < 1e-4,
                "{f:?} for {stats:?}"
            );
            let warp = Warp { temperature: temperature(row), min_p: min_p(row), ..Warp::default() };
            let choice = pick::sample(l, &warp, keys[row], &mut pick::Scratch::default()).unwrap();
            assert_eq!(f.choice, choice, "{vocab} {row}");
            assert!((f.logprob - (l[choice as usize] - stats.lse)).abs() < 1e-5);
            let asked = l[row % vocab] - stats.lse;
            assert!(logprobs[row] == asked || (logprobs[row] - asked).abs() < 1e-5);
            pick::top_k(l, asks[row].top as usize, &mut top);
            let mine = &tops[row * TOP..][..asks[row].top as usize];
            for (i, t) in mine.iter().enumerate() {
                match top.get(i) {
                    Some(&(id, logit)) => assert_eq!((t.id, t.logit), (id, logit), "{vocab} {row} {i}"),
                    None => assert!(t.id == NONE || t.logit == f32::NEG_INFINITY, "{vocab} {row} {i}: {t:?}"),
                }
            }
        }
    }
}

pub(super) fn rows_without_an_answer_say_so(bench: &mut Bench) {
    let vocab = 5000;
    let mut logits = noise(1, 4 * vocab);
    logits[4500] = f32::NAN;
    logits[vocab + 7] = f32::INFINITY;
    logits[2 * vocab..3 * vocab].fill(f32::NEG_INFINITY);
    let asks = [Ask { temperature: 1.0, top_p: 0.5, top_k: 3, flags: 3, ..Ask::default() }; 4];
    let (found, ..) = reduce(bench, &logits, vocab, &asks, &[]);
    assert_eq!(found.iter().map(|f| f.state).collect::<Vec<_>>(), [1, 1, 2, 0]);
}

/// Tokens that a cut leaves, by its definition: in order of logit and id, to the number, then to the mass.
fn kept(logits: &[f32], warp: &Warp) -> Vec<u32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |id: u32| ((f64::from(logits[id as usize]) - f64::from(max)) / f64::from(warp.temperature)).exp();
    let mut ids: Vec<u32> = (0..logits.len() as u32).filter(|&id| logits[id as usize] > f32::NEG_INFINITY).collect();
    ids.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap().then(a.cmp(&b)));
    if warp.top_k > 0 {
        ids.truncate(warp.top_k);
    }
    ids.retain(|&id| weight(id) >= f64::from(warp.min_p));
    let wanted = f64::from(warp.top_p) * ids.iter().map(|&id| weight(id)).sum::<f64>();
    let (mut sum, mut some) = (0.0, 0);
    while some < ids.len() && (some == 0 || sum < wanted) {
        sum += weight(ids[some]);
        some += 1;
    }
    ids.truncate(some);
    ids
}

/// Choices under top-k, top-p and min-p: the processor's for the same key, among what the definition leaves, and over many keys
/// all of that.
pub(super) fn choices_are_cut_as_the_cpu_cuts(bench: &mut Bench) {
    let cut = |temperature, top_k, top_p, min_p| Warp { temperature, top_k, top_p, min_p, ..Warp::default() };
    let warps = [
        cut(1.0, 1, 1.0, 0.0),
        cut(0.7, 5, 1.0, 0.0),
        cut(2.0, 70, 1.0, 0.0),
        cut(1.0, 0, 0.6, 0.0),
        cut(3.0, 0, 0.95, 0.0),
        cut(1.5, 0, 0.0, 0.0),
        cut(1.0, 40, 0.5, 0.0),
        cut(1.0, 0, 0.9, 0.02),
        cut(1.0, 4000, 0.999, 0.0),
        cut(1.0, 100_000, 1.0, 0.0),
    ];
    for vocab in [5usize, 300, 5000] {
        for kind in 0..3 {
            let mut row: Vec<f32> = noise(vocab as u64, vocab).iter().map(|x| x * 7.0).collect();
            match kind {
                0 => {}
                // Few values, so that ties are cut by ids; both zeros.
                1 => row
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, x)| *x = if i % 7 == 3 { -0.0 } else { (*x / 4.0).round() }),
                // Two tokens left.
                _ => row.iter_mut().skip(2).for_each(|x| *x = f32::NEG_INFINITY),
            }
            let logits = row.repeat(warps.len());
            let mut seen = vec![std::collections::BTreeSet::new(); warps.len()];
            for seed in 0..if vocab == 5 { 10 } else { 2 } {
                let key = Key::new(seed, 5, Purpose::Sample);
                let ask = |warp: &Warp| Ask {
                    key: key.word(),
                    temperature: warp.temperature,
                    min_p: warp.min_p,
                    top_p: warp.top_p,
                    top_k: warp.top_k as u32,
                    flags: 1,
                    ..Ask::default()
                };
                let asks: Vec<Ask> = warps.iter().map(ask).collect();
                let (found, ..) = reduce(bench, &logits, vocab, &asks, &[]);
                for (i, warp) in warps.iter().enumerate() {
                    let choice = pick::sample(&row, warp, key, &mut pick::Scratch::default()).unwrap();
                    assert_eq!(found[i].choice, choice, "{vocab} {kind} {warp:?}");
                    assert!(kept(&row, warp).contains(&choice), "{vocab} {kind} {warp:?}");
                    seen[i].insert(choice);
                }
            }
            for (i, warp) in warps.iter().enumerate().filter(|_| vocab == 5 && kind == 1) {
                let all = kept(&row, warp).len();
                assert!(seen[i].len() == all || (all > 2 && seen[i].len() > 1), "{warp:?}: {:?} of {all}", seen[i]);
            }
        }
    }
}
