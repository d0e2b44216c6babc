use super::*;
use omnidecode_core::noise::{Key, Purpose, pair, unit};
use proptest::prelude::*;

fn key(seed: u64) -> Key {
    Key::new(seed, 17, Purpose::Sample)
}
/// Logits in about (-6, 6), some equal, some excluded.
fn row(seed: u64, n: usize, ties: bool) -> Vec<f32> {
    (0..n as u64)
        .map(|i| {
            let u = unit(pair(seed, i));
            let x = (u + unit(pair(seed, i + (1 << 40))) - 1.0) * 6.0;
            let x = if ties { x.round() + 0.0 } else { x };
            if unit(pair(seed, i + (1 << 41))) < 0.05 && i > 0 { f32::NEG_INFINITY } else { x as f32 }
        })
        .collect()
}

/// Ids by logit, descending, ties by id.
fn sorted(logits: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).filter(|&v| logits[v as usize] != f32::NEG_INFINITY).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    ids
}

/// The law by its definition, in f64: kept ids with their probabilities.
fn law(logits: &[f32], warp: &Warp) -> Vec<(u32, f64)> {
    let ids = sorted(logits);
    let max = f64::from(logits[ids[0] as usize]);
    let mut kept: Vec<(u32, f64)> =
        ids.iter().map(|&v| (v, ((f64::from(logits[v as usize]) - max) / f64::from(warp.temperature)).exp())).collect();
    kept.retain(|&(_, w)| w >= f64::from(warp.min_p));
    if warp.top_k > 0 {
        kept.truncate(warp.top_k);
    }
    let cut = |kept: &mut Vec<(u32, f64)>, share: f32| {
        let total: f64 = kept.iter().map(|x| x.1).sum();
        let mut sum = 0.0;
        let n = kept
            .iter()
            .take_while(|x| {
                let go = sum < f64::from(share) * total;
                sum += x.1;
                go
            })
            .count();
        kept.truncate(n.max(1));
    };
    if warp.top_p < 1.0 {
        cut(&mut kept, warp.top_p);
    }
    if warp.typical_p < 1.0 {
        let total: f64 = kept.iter().map(|x| x.1).sum();
        let entropy: f64 = kept.iter().map(|x| -(x.1 / total) * (x.1 / total).ln()).sum();
        let far = |x: &(u32, f64)| (-(x.1 / total).ln() - entropy).abs();
        kept.sort_by(|a, b| far(a).total_cmp(&far(b)).then(a.0.cmp(&b.0)));
        cut(&mut kept, warp.typical_p);
    }
    let total: f64 = kept.iter().map(|x| x.1).sum();
    kept.into_iter().map(|(v, w)| (v, w / total)).collect()
}

/// The race by its definition.
fn race(kept: &[(u32, f64)], key: Key) -> u32 {
    let time = |&(v, p): &(u32, f64)| -key.uniform(u64::from(v)).ln() / p;
    kept.iter().min_by(|a, b| time(a).total_cmp(&time(b))).unwrap().0
}

fn warps() -> Vec<Warp> {
    let plain = Warp { temperature: 1.0, ..Warp::GREEDY };
    vec![
        plain,
        Warp { temperature: 0.3, ..plain },
        Warp { temperature: 2.5, ..plain },
        Warp { top_k: 1, ..plain },
        Warp { top_k: 7, ..plain },
        Warp { top_k: 200, ..plain },
        Warp { top_p: 0.9, ..plain },
        Warp { top_p: 0.05, temperature: 1.5, ..plain },
        Warp { top_p: 0.999, temperature: 2.0, ..plain },
        Warp { min_p: 0.1, ..plain },
        Warp { top_k: 20, top_p: 0.7, min_p: 0.02, temperature: 0.8, ..plain },
        Warp { typical_p: 0.6, ..plain },
        Warp { typical_p: 0.9, top_k: 30, ..plain },
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn reductions_equal_their_definition(seed in any::<u64>(), n in prop_oneof![1usize..200, 4000usize..9000], ties in any::<bool>(), k in 1usize..80) {
        let logits = row(seed, n, ties);
        let ids = sorted(&logits);
        let pool = Pool::new(2);
        let at = |i: usize| ids.get(i).map_or(f32::NEG_INFINITY, |&v| logits[v as usize]);
        prop_assert_eq!(argmax(&logits), Ok(ids[0]));
        let got = stats(&logits).unwrap();
        prop_assert_eq!((got.argmax, got.max, got.second), (ids[0], at(0), at(1)));
        let sum: f64 = ids.iter().map(|&v| (f64::from(logits[v as usize]) - f64::from(at(0))).exp()).sum();
        let lse = f64::from(at(0)) + sum.ln();
        let entropy: f64 = ids.iter().map(|&v| f64::from(logits[v as usize]) - lse).map(|y| -y * y.exp()).sum();
        prop_assert!((f64::from(got.lse) - lse).abs() < 2e-6 * (1.0 + lse.abs()), "{} {}", got.lse, lse);
        prop_assert!((f64::from(got.entropy) - entropy).abs() < 1e-5, "{} {}", got.entropy, entropy);
        prop_assert_eq!(stats_with(&pool, &logits).unwrap(), got);
        prop_assert_eq!(argmax_with(&pool, &logits), Ok(ids[0]));
        let mut top = Vec::new();
        top_k(&logits, k, &mut top);
        let want: Vec<(u32, f32)> = ids.iter().take(k).map(|&v| (v, logits[v as usize])).collect();
        top.retain(|x| x.1 != f32::NEG_INFINITY);
        prop_assert_eq!(top, want);
    }

    #[test]
    fn a_choice_equals_its_definition(seed in any::<u64>(), n in prop_oneof![1usize..300, 4000usize..9000], ties in any::<bool>()) {
        let logits = row(seed, n, ties);
        let (pool, mut scratch) = (Pool::new(2), Scratch::default());
        for (i, warp) in warps().into_iter().enumerate() {
            let kept = law(&logits, &warp);
            for draw in 0..8u64 {
                let key = key(seed ^ (draw << 8) ^ i as u64);
                let got = sample(&logits, &warp, key, &mut scratch);
                prop_assert_eq!(got, Ok(race(&kept, key)), "{:?}", warp);
                prop_assert_eq!(sample_with(&pool, &logits, &warp, key, &mut scratch), got);
            }
        }
    }
}

#[test]
fn degenerate_rows_have_typed_answers() {
    const LOW: f32 = f32::NEG_INFINITY;
    let mut scratch = Scratch::default();
    let plain = Warp { temperature: 1.0, ..Warp::GREEDY };
    for (row, want) in [
        (vec![], PickError::Empty),
        (vec![LOW; 5000], PickError::Empty),
        (vec![1.0, f32::NAN, 2.0], PickError::NotFinite),
        ([vec![0.0; 4999], vec![f32::NAN]].concat(), PickError::NotFinite),
        (vec![f32::INFINITY, 1.0], PickError::NotFinite),
        (vec![LOW, f32::NAN], PickError::NotFinite),
    ] {
        assert_eq!(argmax(&row), Err(want));
        assert_eq!(stats(&row).map(|_| ()), Err(want));
        for warp in [Warp::GREEDY, plain] {
            assert_eq!(sample(&row, &warp, key(1), &mut scratch), Err(want));
        }
    }
    let one = [vec![LOW; 77], vec![f32::MIN], vec![LOW; 9]].concat();
    for warp in warps() {
        assert_eq!(sample(&one, &warp, key(1), &mut scratch), Ok(77));
    }
    assert_eq!(stats(&one).unwrap(), Stats { argmax: 77, max: f32::MIN, second: LOW, lse: f32::MIN, entropy: 0.0 });
    assert_eq!(
        sample(&[3.0, 3.0, 1.0], &Warp { temperature: 1e-40, ..plain }, key(3), &mut scratch).map(|v| v < 2),
        Ok(true)
    );
    let mut top = vec![(1, 1.0)];
    top_k(&[f32::NAN, 2.0, -0.0, 0.0], 3, &mut top);
    assert_eq!(top, [(1, 2.0), (2, 0.0), (3, 0.0)]);
}

/// Pearson's statistic of `draws` draws against `want`, and its degrees of freedom.
fn chi_square(logits: &[f32], warp: &Warp, want: &[(u32, f64)], draws: u64, seed: u64) -> (f64, f64) {
    let (mut counts, mut scratch) = (vec![0u64; logits.len()], Scratch::default());
    for i in 0..draws {
        let key = Key::new(seed, i as usize, Purpose::Sample);
        counts[sample(logits, warp, key, &mut scratch).unwrap() as usize] += 1;
    }
    let kept: f64 = want.iter().map(|x| counts[x.0 as usize] as f64).sum();
    if kept < draws as f64 {
        return (f64::INFINITY, 1.0);
    }
    let sum = want.iter().map(|&(v, p)| {
        let expected = p * draws as f64;
        (counts[v as usize] as f64 - expected).powi(2) / expected
    });
    (sum.sum(), (want.len() - 1) as f64)
}
/// About six standard deviations above the mean of the χ² law.
fn far(degrees: f64) -> f64 {
    degrees + 6.0 * (2.0 * degrees).sqrt() + 12.0
}

#[test]
fn draws_follow_the_law_and_controls_do_not() {
    const DRAWS: u64 = 120_000;
    // Between e^0 and e^-4, so that every expected count is large.
    let logits: Vec<f32> = (0..48).map(|i| -4.0 * (unit(pair(5, i)) as f32)).collect();
    for (i, warp) in warps().into_iter().enumerate() {
        let want = law(&logits, &warp);
        let (x, degrees) = chi_square(&logits, &warp, &want, DRAWS, i as u64);
        assert!(x < far(degrees), "{warp:?}: {x} with {degrees} degrees of freedom");
    }
    let plain = Warp { temperature: 1.0, ..Warp::GREEDY };
    for wrong in [
        Warp { temperature: 1.05, ..plain },
        Warp { top_k: 47, ..plain },
        Warp { top_p: 0.98, ..plain },
        Warp { min_p: 0.03, ..plain },
        Warp { typical_p: 0.9, ..plain },
    ] {
        let (x, degrees) = chi_square(&logits, &plain, &law(&logits, &wrong), DRAWS, 1);
        assert!(x > far(degrees), "control {wrong:?} passed: {x} with {degrees} degrees of freedom");
    }
}
