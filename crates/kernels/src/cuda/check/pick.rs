//! Reductions of logits against the CPU's.
use super::{Bench, noise};
use crate::cuda::args::*;
use crate::cuda::{Call, Entry};
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
    let asks = [Ask { temperature: 1.0, flags: 3, ..Ask::default() }; 4];
    let (found, ..) = reduce(bench, &logits, vocab, &asks, &[]);
    assert_eq!(found.iter().map(|f| f.state).collect::<Vec<_>>(), [1, 1, 2, 0]);
}
