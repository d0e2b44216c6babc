use super::weights::visible;
use super::*;
use crate::kv::KvDtype;
use crate::tier::Tier;
use omnidecode_core::noise::{pair, unit};
use proptest::prelude::*;

/// Deterministic numbers in (-1, 1).
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| (unit(pair(seed, i)) * 2.0 - 1.0) as f32).collect()
}

/// A store of one layer, full of NaN: what is not written must not be felt.
fn store(dtype: KvDtype, heads: &Heads, slots: usize) -> KvStore {
    let kv = KvStore::new(dtype, &[heads.kv_heads], heads.dim, slots).unwrap();
    let poison = vec![f32::NAN; heads.kv_heads * heads.dim];
    (0..slots as u32).for_each(|slot| kv.write(0, slot, &poison, &poison));
    kv
}

/// Keys and values of a token, the same wherever it is written.
fn write(kv: &KvStore, heads: &Heads, slot: u32, token: u64) {
    let n = heads.kv_heads * heads.dim;
    kv.write(0, slot, &numbers(pair(token, 1), n), &numbers(pair(token, 2), n));
}

/// A sight that owns its lists.
#[derive(Clone, Debug, Default)]
struct Scene {
    groups: Vec<Group>,
    queries: Vec<Query>,
    spans: Vec<(u32, u32)>,
    extras: Vec<Visible>,
    pages: Vec<u32>,
    biases: Vec<KeyBias>,
}
impl Scene {
    fn sight(&self) -> Sight<'_> {
        Sight {
            groups: &self.groups,
            queries: &self.queries,
            spans: &self.spans,
            extras: &self.extras,
            pages: &self.pages,
            biases: &self.biases,
        }
    }
    /// Begin a group over these pages.
    fn group(&mut self, pages: &[u32]) {
        let table = self.pages.len()..self.pages.len() + pages.len();
        self.pages.extend(pages);
        let (q, b) = (self.queries.len(), self.biases.len());
        self.groups.push(Group { table, queries: q..q, biases: b..b });
    }
    /// Add a row to the last group.
    fn row(&mut self, place: u32, spans: &[(u32, u32)], extras: &[Visible]) {
        let (s, e) = (self.spans.len(), self.extras.len());
        self.spans.extend(spans);
        self.extras.extend(extras);
        self.queries.push(Query {
            row: self.queries.len() as u32,
            place,
            spans: s..s + spans.len(),
            extras: e..e + extras.len(),
        });
        self.groups.last_mut().unwrap().queries.end = self.queries.len();
    }
    fn run_on(&self, tier: Tier, threads: usize, kv: &KvStore, heads: &Heads, q: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; q.len()];
        Job { tier, kv, layer: 0, heads: *heads, q, sight: self.sight() }.attend(&Pool::new(threads), &mut out);
        out
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

const SHAPES: [(usize, usize); 6] = [(9, 3), (4, 1), (14, 2), (8, 8), (1, 1), (40, 1)];
const DIMS: [usize; 7] = [8, 16, 32, 64, 80, 128, 256];
const DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::F16, KvDtype::Bf16];

fn heads(shape: (usize, usize), dim: usize, softcap: Option<f32>, window: Option<usize>) -> Heads {
    Heads { heads: shape.0, kv_heads: shape.1, dim, scale: 3.0 / (dim as f32).sqrt(), softcap, window }
}

/// The definition, in f64, one key at a time.
fn naive(kv: &mut KvStore, heads: &Heads, q: &[f32], scene: &Scene) -> Vec<f64> {
    let mut out = vec![0.0; q.len()];
    for (g, group) in scene.groups.iter().enumerate() {
        for query in &scene.queries[group.queries.clone()] {
            let keys: Vec<Visible> = visible(heads, &scene.sight(), g, query).collect();
            for h in 0..heads.heads {
                let at = (query.row as usize * heads.heads + h) * heads.dim;
                let mut weights = Vec::new();
                let q = &q[at..at + heads.dim];
                weights_of(kv, heads, q, scene, g, query, h, &keys, &mut weights);
                for (key, w) in keys.iter().zip(&weights) {
                    for e in 0..heads.dim {
                        out[at + e] += w * kv.element(0, h / (heads.heads / heads.kv_heads), key.slot, true, e);
                    }
                }
            }
        }
    }
    out
}

#[allow(clippy::too_many_arguments)]
fn weights_of(
    kv: &mut KvStore,
    heads: &Heads,
    q: &[f32],
    scene: &Scene,
    group: usize,
    query: &Query,
    head: usize,
    keys: &[Visible],
    out: &mut Vec<f64>,
) {
    let kv_head = head / (heads.heads / heads.kv_heads);
    for key in keys {
        assert!(heads.window.is_none_or(|w| key.place as usize + w > query.place as usize));
        let dot: f64 = (0..heads.dim).map(|e| f64::from(q[e]) * kv.element(0, kv_head, key.slot, false, e)).sum();
        let score = dot * f64::from(heads.scale);
        let score = heads.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        let adds = scene.biases[scene.groups[group].biases.clone()].iter();
        out.push(
            score
                + adds
                    .filter(|b| b.head as usize == head && b.place == key.place)
                    .map(|b| f64::from(b.add))
                    .sum::<f64>(),
        );
    }
    let top = out.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = out.iter().map(|x| (x - top).exp()).sum();
    out.iter_mut().for_each(|x| *x = (*x - top).exp() / sum);
}

/// A scene of anything: groups, permuted pages, holes in what is committed, shared places, biases.
#[derive(Clone, Debug)]
struct Anything {
    shape: usize,
    dim: usize,
    dtype: usize,
    softcap: bool,
    window: Option<usize>,
    groups: Vec<(u32, usize)>,
    biased: bool,
    seed: u64,
}
fn anything() -> impl Strategy<Value = Anything> {
    let lengths =
        prop_oneof![Just(0u32), Just(1), Just(31), Just(32), Just(33), Just(255), Just(256), Just(257), 0..700u32];
    (
        0..SHAPES.len(),
        0..DIMS.len(),
        0..DTYPES.len(),
        any::<bool>(),
        proptest::option::of(1..300usize),
        proptest::collection::vec((lengths, 1..12usize), 1..4),
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(shape, dim, dtype, softcap, window, groups, biased, seed)| Anything {
            shape,
            dim,
            dtype,
            softcap,
            window,
            groups,
            biased,
            seed,
        })
}
impl Anything {
    fn build(&self) -> (Heads, KvStore, Scene, Vec<f32>) {
        let softcap = self.softcap.then_some(5.0);
        let heads = heads(SHAPES[self.shape], DIMS[self.dim], softcap, self.window);
        let mut draw = {
            let mut i = 0;
            move |n: u32| {
                i += 1;
                (unit(pair(self.seed, i)) * f64::from(n)) as u32
            }
        };
        let tables: Vec<u32> = self.groups.iter().map(|g| g.0.div_ceil(PAGE as u32)).collect();
        let pages: u32 = tables.iter().sum();
        let mut order: Vec<u32> = (0..pages).collect();
        (1..pages).rev().for_each(|i| order.swap(i as usize, draw(i + 1) as usize));
        let tail = 200;
        let kv = store(DTYPES[self.dtype], &heads, pages as usize * PAGE + tail);
        let mut scene = Scene::default();
        let mut token = self.seed;
        for (&(n, rows), pages_of) in self.groups.iter().zip(&tables) {
            let table: Vec<u32> = order.drain(..*pages_of as usize).collect();
            scene.group(&table);
            for place in 0..n {
                token = token.wrapping_add(1);
                write(&kv, &heads, table[place as usize / PAGE] * PAGE as u32 + place % PAGE as u32, token);
            }
            if self.biased {
                for _ in 0..3 {
                    let (head, place) = (draw(heads.heads as u32), draw(n + 8));
                    scene.biases.push(KeyBias { head, place, add: draw(5) as f32 - 2.0 });
                }
                scene.groups.last_mut().unwrap().biases.end = scene.biases.len();
            }
            for _ in 0..rows {
                let mut spans = Vec::new();
                match draw(4) {
                    0 => {}
                    1 if n > 0 => {
                        let mut at = draw(20.min(n));
                        while at < n {
                            let end = (at + 1 + draw(60)).min(n);
                            spans.push((at, end));
                            at = end + draw(90);
                        }
                    }
                    _ if n > 0 => spans.push((0, n)),
                    _ => {}
                }
                let mut places: Vec<u32> = (0..draw(50)).map(|_| (n + 20).saturating_sub(draw(40))).collect();
                places.sort_unstable();
                let base = pages * PAGE as u32;
                let extras: Vec<Visible> =
                    places.into_iter().map(|place| Visible { place, slot: base + draw(tail as u32) }).collect();
                for key in &extras {
                    write(&kv, &heads, key.slot, u64::from(key.slot) << 32);
                }
                scene.row(n + draw(20), &spans, &extras);
            }
        }
        let q = numbers(self.seed ^ 77, scene.queries.len() * heads.heads * heads.dim);
        (heads, kv, scene, q)
    }
}

/// The scene with one query alone in its group.
fn alone(scene: &Scene, index: usize) -> Scene {
    let group = scene.groups.iter().find(|g| g.queries.contains(&index)).unwrap().clone();
    let mut one = scene.clone();
    one.queries = vec![Query { row: 0, ..scene.queries[index].clone() }];
    one.groups = vec![Group { queries: 0..1, ..group }];
    one
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn anything_equals_its_definition_and_no_company_is_felt(case in anything()) {
        let (heads, mut kv, scene, q) = case.build();
        // A bf16 store multiplies queries and weights of that type: the weights' rounding is what the bound allows.
        let short = kv.dtype() == KvDtype::Bf16;
        let round = |x: &f32| if short { half::bf16::from_f32(*x).to_f32() } else { *x };
        let want = naive(&mut kv, &heads, &q.iter().map(round).collect::<Vec<_>>(), &scene);
        let bound = if short { 1.0 / 512.0 } else { 3e-5 };
        let width = heads.heads * heads.dim;
        for tier in Tier::available() {
            let got = scene.run_on(tier, 1, &kv, &heads, &q);
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                prop_assert!((f64::from(*g) - w).abs() < bound, "{tier} {i}: {g} for {w}");
            }
            prop_assert_eq!(bits(&got), bits(&scene.run_on(tier, 3, &kv, &heads, &q)));
            for index in 0..scene.queries.len() {
                let row = index * width..(index + 1) * width;
                let one = alone(&scene, index).run_on(tier, 1 + index % 2, &kv, &heads, &q[row.clone()]);
                prop_assert_eq!(bits(&one), bits(&got[row]), "{} row {}", tier, index);
            }
        }
    }
}

/// A tree whose node `i` has parent `parents[i]` (smaller, or the prefix), as tail rows and as each path laid out in
/// pages.
fn tree(case: &Heads, dtype: KvDtype, n: u32, parents: &[Option<usize>]) {
    let pages = (n as usize + parents.len()).div_ceil(PAGE) as u32;
    let tail = pages * PAGE as u32 + 5;
    let kv = store(dtype, case, tail as usize + parents.len());
    let table: Vec<u32> = (0..pages).rev().collect();
    let slot = |place: u32| table[place as usize / PAGE] * PAGE as u32 + place % PAGE as u32;
    (0..n).for_each(|place| write(&kv, case, slot(place), u64::from(place)));
    let node = |i: usize| 1_000_000 + i as u64;
    let paths: Vec<Vec<usize>> = (0..parents.len())
        .map(|i| {
            let mut path: Vec<usize> = std::iter::successors(Some(i), |&j| parents[j]).collect();
            path.reverse();
            path
        })
        .collect();
    // Slots of the tail in an order that has nothing to do with places.
    let tail_slot = |i: usize| tail + (i * 7 % parents.len()) as u32;
    let distinct = !parents.len().is_multiple_of(7);
    let mut scene = Scene::default();
    scene.group(&table);
    for (i, path) in paths.iter().enumerate() {
        write(&kv, case, if distinct { tail_slot(i) } else { tail + i as u32 }, node(i));
        let extras: Vec<Visible> = path
            .iter()
            .enumerate()
            .map(|(depth, &j)| Visible {
                place: n + depth as u32,
                slot: if distinct { tail_slot(j) } else { tail + j as u32 },
            })
            .collect();
        scene.row(n + path.len() as u32 - 1, &[(0, n)][..usize::from(n > 0)], &extras);
    }
    let width = case.heads * case.dim;
    let q = numbers(9, parents.len() * width);
    for tier in Tier::available() {
        let got = scene.run_on(tier, 2, &kv, case, &q);
        assert!(got.iter().all(|x| x.is_finite()));
        for (i, path) in paths.iter().enumerate() {
            for (depth, &j) in path.iter().enumerate() {
                write(&kv, case, slot(n + depth as u32), node(j));
            }
            let end = n + path.len() as u32;
            let mut flat = Scene::default();
            flat.group(&table);
            flat.row(end - 1, &[(0, end)], &[]);
            let row = i * width..(i + 1) * width;
            let want = flat.run_on(tier, 1, &kv, case, &q[row.clone()]);
            assert_eq!(bits(&got[row]), bits(&want), "{tier} {case:?} {dtype:?} n {n} node {i}");
        }
    }
}

#[test]
fn a_tree_in_the_tail_has_the_bits_of_its_paths_in_pages() {
    for (i, n) in [0, 1, 30, 31, 32, 33, 63, 250, 256, 300].into_iter().enumerate() {
        for (j, shape) in SHAPES.into_iter().enumerate() {
            let parents: Vec<Option<usize>> = (0..20usize)
                .map(|k| (k > 0).then(|| (unit(pair(n.into(), k as u64)) * k as f64) as usize).filter(|_| k % 6 != 5))
                .collect();
            let window = [None, Some(7), Some(40)][(i + j) % 3];
            let case = heads(shape, DIMS[(i + j) % 5], [None, Some(3.0)][j % 2], window);
            tree(&case, DTYPES[i % 3], n, &parents);
        }
    }
}

#[test]
fn a_prompt_has_the_same_bits_in_any_chunks() {
    for (shape, dim, window) in
        [((9, 3), 64, None), ((4, 1), 128, Some(50)), ((8, 8), 16, None), ((14, 2), 64, Some(300))]
    {
        let case = heads(shape, dim, None, window);
        let (n, width) = (333u32, case.heads * dim);
        let table: Vec<u32> = (0..11).rev().collect();
        let kv = store(KvDtype::F16, &case, 11 * PAGE);
        let slot = |place: u32| table[place as usize / PAGE] * PAGE as u32 + place % PAGE as u32;
        let q = numbers(4, n as usize * width);
        let run = |tier, threads, sizes: &[u32]| {
            let (mut out, mut at) = (Vec::new(), 0);
            for size in sizes.iter().cycle() {
                let end = (at + size).min(n);
                (at..end).for_each(|place| write(&kv, &case, slot(place), u64::from(place)));
                let mut scene = Scene::default();
                scene.group(&table);
                (at..end).for_each(|place| scene.row(place, &[(0, place + 1)], &[]));
                out.extend(scene.run_on(tier, threads, &kv, &case, &q[at as usize * width..end as usize * width]));
                at = end;
                if at == n {
                    break;
                }
            }
            out
        };
        for tier in Tier::available() {
            let whole = run(tier, 2, &[n]);
            for (threads, sizes) in [(1, vec![n]), (2, vec![1]), (3, vec![32]), (1, vec![5, 64, 1, 31, 33])] {
                assert_eq!(bits(&whole), bits(&run(tier, threads, &sizes)), "{tier} {case:?} {sizes:?}");
            }
        }
    }
}

/// Rows that see the same keys go together, with holes among the keys too, whichever rows around them see others.
#[test]
fn neighbours_that_see_the_same_scattered_keys_have_the_bits_of_each_alone() {
    for (shape, dim, dtype) in DTYPES.map(|dtype| ((9, 3), 32, dtype)).into_iter().chain([((40, 1), 16, KvDtype::Bf16)])
    {
        let case = heads(shape, dim, None, None);
        let (n, width) = (150u32, case.heads * dim);
        let table: Vec<u32> = (0..5).rev().collect();
        let kv = store(dtype, &case, 6 * PAGE);
        (0..6 * PAGE as u32).for_each(|slot| write(&kv, &case, slot, u64::from(slot)));
        let mut scene = Scene::default();
        scene.group(&table);
        let kept = |place: u32| place % 3 != 1 && place % 7 != 2;
        let tail = [(100, 5), (100, 6), (131, 9)].map(|(place, slot)| Visible { place, slot: 5 * PAGE as u32 + slot });
        for (row, place) in (60..n).filter(|&p| kept(p)).enumerate() {
            let spans: Vec<(u32, u32)> = (0..=place).filter(|&p| kept(p)).map(|p| (p, p + 1)).collect();
            // Some neighbours differ by a tail key in an earlier block, or by a key that is missing there.
            match row % 11 {
                7 => scene.row(place, &spans[3..], &[]),
                4 | 5 => scene.row(place, &spans, &tail[..row % 3 + 1]),
                _ => scene.row(place, &spans, &[]),
            }
        }
        let rows = scene.queries.len();
        let q = numbers(8, rows * width);
        for tier in Tier::available() {
            let got = scene.run_on(tier, 2, &kv, &case, &q);
            for index in 0..rows {
                let row = index * width..(index + 1) * width;
                let one = alone(&scene, index).run_on(tier, 1, &kv, &case, &q[row.clone()]);
                assert_eq!(bits(&one), bits(&got[row]), "{tier} {case:?} {dtype:?} row {index}");
            }
        }
    }
}

#[test]
fn a_neutral_bias_is_no_bias_and_a_strong_one_is_felt() {
    let case = heads((4, 2), 32, None, None);
    let kv = store(KvDtype::F32, &case, 64);
    (0..40).for_each(|slot| write(&kv, &case, slot, u64::from(slot)));
    let mut scene = Scene::default();
    scene.group(&[0, 1]);
    (30..40).for_each(|place| scene.row(place, &[(0, place + 1)], &[]));
    let q = numbers(3, 10 * 128);
    let plain = scene.run_on(Tier::best(), 1, &kv, &case, &q);
    for (add, same) in [(0.0, true), (2.0, false)] {
        scene.biases = vec![KeyBias { head: 1, place: 0, add }];
        scene.groups[0].biases = 0..1;
        let got = scene.run_on(Tier::best(), 1, &kv, &case, &q);
        for (i, (a, b)) in plain.chunks(32).zip(got.chunks(32)).enumerate() {
            assert_eq!(bits(a) == bits(b), same || i % 4 != 1, "row and head {i}, bias {add}");
        }
    }
}

#[test]
fn weights_are_the_softmax_in_place_order() {
    let case = heads((4, 2), 16, None, Some(20));
    let mut kv = store(KvDtype::F32, &case, 96);
    (0..64).for_each(|slot| write(&kv, &case, slot, u64::from(slot)));
    let mut scene = Scene::default();
    scene.group(&[1, 0]);
    let extras = [Visible { place: 38, slot: 60 }, Visible { place: 40, slot: 61 }];
    scene.row(40, &[(0, 39)], &extras);
    let q = numbers(3, 64);
    for head in 0..4 {
        let mut got = Vec::new();
        let query = (0, &scene.queries[0]);
        weights(&mut kv, 0, &case, &q[head * 16..][..16], &scene.sight(), query, head, &mut got);
        // Places 21 to 38, then 38 and 40 of the tail.
        assert_eq!(got.len(), 20);
        assert!((got.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let mut want = vec![0.0; 16];
        for (w, key) in got.iter().zip(visible(&case, &scene.sight(), 0, &scene.queries[0])) {
            for (e, want) in want.iter_mut().enumerate() {
                *want += f64::from(*w) * kv.element(0, head / 2, key.slot, true, e);
            }
        }
        let out = scene.run_on(Tier::best(), 1, &kv, &case, &q);
        for (g, w) in out[head * 16..][..16].iter().zip(want) {
            assert!((f64::from(*g) - w).abs() < 1e-5);
        }
    }
}
