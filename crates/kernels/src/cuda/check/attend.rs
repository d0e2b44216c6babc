//! Attention against the CPU's, and against itself in other company.
use super::{Bench, close, noise};
use crate::attend::{Group, Heads, KeyBias as CpuBias, Query, Sight, Visible, attend};
use crate::cuda::args::*;
use crate::cuda::{Call, Entry};
use crate::kv::{KvDtype, KvStore};
use crate::pool::Pool;
use omnidecode_core::noise::unit;

const PAGES: usize = 40;
const TAIL: usize = 64;

/// A store with the same contents for both.
struct Store {
    cpu: KvStore,
    gpu: Vec<f32>,
    dim: usize,
    kv_heads: usize,
}
fn store(kv_heads: usize, dim: usize) -> Store {
    let slots = PAGES * 32 + TAIL;
    let pages = slots / 32;
    let cpu = KvStore::new(KvDtype::F32, &[kv_heads], dim, slots).unwrap();
    let mut gpu = vec![0.0; kv_heads * pages * 64 * dim];
    for slot in 0..slots {
        let (k, v) = (noise(slot as u64, kv_heads * dim), noise(slot as u64 + 1_000_000, kv_heads * dim));
        cpu.write(0, slot as u32, &k, &v);
        for h in 0..kv_heads {
            let page = (h * pages + slot / 32) * 64 * dim;
            for e in 0..dim {
                gpu[page + e / 8 * 256 + slot % 32 * 8 + e % 8] = k[h * dim + e];
                gpu[page + 32 * dim + slot % 32 * dim + e] = v[h * dim + e];
            }
        }
    }
    Store { cpu, gpu, dim, kv_heads }
}

/// Rows of sequences, as both want them.
#[derive(Default, Clone)]
struct Scene {
    queries: Vec<Query>,
    groups: Vec<Group>,
    spans: Vec<(u32, u32)>,
    extras: Vec<Visible>,
    pages: Vec<u32>,
    biases: Vec<CpuBias>,
}
impl Scene {
    fn sequence(&mut self, table: &[u32], rows: &[(u32, Vec<(u32, u32)>, Vec<Visible>)]) {
        let (page, first) = (self.pages.len(), self.queries.len());
        self.pages.extend_from_slice(table);
        for (place, spans, extras) in rows {
            let (s, e) = (self.spans.len(), self.extras.len());
            self.spans.extend_from_slice(spans);
            self.extras.extend_from_slice(extras);
            let row = self.queries.len() as u32;
            self.queries.push(Query { row, place: *place, spans: s..self.spans.len(), extras: e..self.extras.len() });
        }
        self.groups.push(Group { table: page..self.pages.len(), queries: first..self.queries.len(), biases: 0..0 });
    }
}

fn on_cpu(store: &mut Store, heads: &Heads, q: &[f32], scene: &Scene) -> Vec<f32> {
    let sight = Sight {
        groups: &scene.groups,
        queries: &scene.queries,
        spans: &scene.spans,
        extras: &scene.extras,
        pages: &scene.pages,
        biases: &scene.biases,
    };
    let mut out = vec![0.0; q.len()];
    attend(&Pool::new(1), &mut store.cpu, 0, heads, q, &sight, &mut out);
    out
}

fn on_gpu(bench: &mut Bench, store: &Store, heads: &Heads, q: &[f32], scene: &Scene, split: bool) -> Vec<f32> {
    let rows = scene.queries.len();
    let per = heads.heads / heads.kv_heads;
    let wide = per.min(QUERIES);
    let tall = (QUERIES / wide).max(1);
    let mut all = vec![Row::default(); rows];
    let mut tiles = Vec::new();
    for group in &scene.groups {
        for r in group.queries.clone() {
            let query = &scene.queries[r];
            all[r] = Row {
                place: query.place,
                span: query.spans.start as u32,
                span_end: query.spans.end as u32,
                extra: query.extras.start as u32,
                extra_end: query.extras.end as u32,
                page: group.table.start as u32,
                page_end: group.table.end as u32,
                ..Row::default()
            };
        }
        for first in group.queries.clone().step_by(tall) {
            let count = tall.min(group.queries.end - first) as u32;
            tiles.push(AttendTile { first: first as u32, count });
        }
    }
    let ends = scene.spans.iter().map(|s| s.1).chain(scene.extras.iter().map(|e| e.place + 1));
    let stretches = (ends.max().unwrap_or(0) as usize).div_ceil(STRETCH);
    let stand = Stand { rows: rows as u32, tiles: tiles.len() as u32, stretches: stretches as u32, reserved: 0 };
    let biases: Vec<KeyBias> = scene
        .biases
        .iter()
        .map(|b| KeyBias { first: 0, end: rows as u32, head: b.head, place: b.place, add: b.add })
        .collect();
    let width = heads.heads * heads.dim;
    let (out, buffers) = bench.acts(rows, width, F32, false, 0.0);
    let grid = [
        if split { stretches.max(1) as u32 + 1 } else { 1 },
        (heads.kv_heads * per.div_ceil(wide)) as u32,
        tiles.len() as u32 + 1,
    ];
    let index: Vec<u32> = (0..rows as u32).collect();
    let flat: Vec<u32> = scene.spans.iter().flat_map(|s| [s.0, s.1]).collect();
    let extras: Vec<u32> = scene.extras.iter().flat_map(|v| [v.place, v.slot]).collect();
    let counters = bench.put(&vec![0u32; (grid[1] * grid[2]) as usize]);
    let bad = bench.put(&vec![NONE; rows]);
    let of = Attention {
        q: bench.put(q).address(),
        kv: bench.put(&store.gpu).address(),
        biases: bench.put(&biases).address(),
        bias_count: bench.put(&[biases.len() as u32]).address(),
        heads: heads.heads as u32,
        kv_heads: heads.kv_heads as u32,
        dim: heads.dim as u32,
        dtype: 0,
        pages: ((PAGES * 32 + TAIL) / 32) as u32,
        window: heads.window.unwrap_or(0) as u32,
        scale: heads.scale,
        softcap: heads.softcap.unwrap_or(0.0),
    };
    let args = AttendArgs {
        of,
        out,
        rows: bench.put(&all).address(),
        index: bench.put(&index).address(),
        stand: bench.put(&[stand]).address(),
        tiles: bench.put(&tiles).address(),
        spans: bench.put(&flat).address(),
        extras: bench.put(&extras).address(),
        table: bench.put(&scene.pages).address(),
        partials: bench.poisoned(rows * heads.heads * grid[0] as usize * (heads.dim + 2)).address(),
        counters: counters.address(),
        bad: bad.address(),
        split: u32::from(split),
        layer: 0,
    };
    let entry = if heads.dim <= 64 {
        Entry::Attend64
    } else if heads.dim <= 128 {
        Entry::Attend128
    } else {
        Entry::Attend256
    };
    bench.run(entry, Call::Attend(args), grid);
    assert!(bench.get::<u32>(&counters).iter().all(|&c| c == 0));
    assert!(bench.get::<u32>(&bad).iter().all(|&b| b == NONE));
    let padded: Vec<f32> = bench.get(&buffers[3]);
    padded.chunks_exact(width.next_multiple_of(CHUNK)).flat_map(|row| row[..width].to_vec()).collect()
}

/// Prompts, a tree behind a prefix, a keep-list, a row that sees nothing, places shared by many keys.
fn scene() -> Scene {
    let mut scene = Scene::default();
    let tail = (PAGES * 32) as u32;
    scene.sequence(&(0..20).collect::<Vec<_>>(), &[(600, vec![(0, 601)], vec![]), (601, vec![(0, 602)], vec![])]);
    let tree = |place: u32, slots: &[u32]| {
        let extras = slots.iter().map(|&s| Visible { place: 295 + s.min(place - 295), slot: tail + s }).collect();
        (place, vec![(0, 295)], extras)
    };
    let rows: Vec<_> = (0..7).map(|i| tree(295 + i, &(0..=i).collect::<Vec<_>>())).collect();
    scene.sequence(&[39, 3, 17, 5, 6, 30, 1, 2, 0, 21], &rows);
    scene.sequence(&[7, 8, 9], &[(80, vec![(0, 3), (9, 33), (64, 81)], vec![]), (5, vec![], vec![])]);
    let crowd = (0..50).map(|i| Visible { place: 70 + i / 5, slot: tail + 10 + i }).collect();
    scene.sequence(&[10, 11, 12], &[(90, vec![(0, 75)], crowd)]);
    scene
}

pub(super) fn attention_is_the_cpu_s_within_rounding(bench: &mut Bench) {
    let shapes =
        [(4, 2, 64, None, None), (8, 1, 40, None, Some(70)), (3, 3, 128, Some(5.0), None), (2, 1, 256, None, None)];
    for (heads, kv_heads, dim, softcap, window) in shapes {
        let mut store = store(kv_heads, dim);
        let heads = Heads { heads, kv_heads, dim, scale: 3.0 / (dim as f32).sqrt(), softcap, window };
        let mut scene = scene();
        if dim == 64 {
            scene.biases = vec![CpuBias { head: 1, place: 0, add: 1.5 }, CpuBias { head: 3, place: 72, add: -2.0 }];
            scene.groups.iter_mut().for_each(|g| g.biases = 0..2);
        }
        let q = noise(77, scene.queries.len() * heads.heads * dim);
        let expected: Vec<f64> = on_cpu(&mut store, &heads, &q, &scene).iter().map(|&x| f64::from(x)).collect();
        let walked = on_gpu(bench, &store, &heads, &q, &scene, false);
        close(&format!("{heads:?}"), &walked, &expected, 2e-6);
        let split = on_gpu(bench, &store, &heads, &q, &scene, true);
        assert!(walked == split, "{heads:?}: shared stretches");
    }
}

/// Bits of a row do not depend on other rows, on tiles, nor on where keys lie.
pub(super) fn rows_are_invariant(bench: &mut Bench) {
    let (heads, kv_heads, dim) = (4, 2, 64);
    let mut store = store(kv_heads, dim);
    // What lies in the tail also lies at places 295.. of the page table.
    let table = [39u32, 3, 17, 5, 6, 30, 1, 2, 0, 21];
    for i in 0..20u32 {
        let (from, to) = (PAGES as u32 * 32 + i, table[(295 + i) as usize / 32] * 32 + (295 + i) % 32);
        let pages = PAGES + TAIL / 32;
        for h in 0..kv_heads {
            let at = |s: u32, e: usize, value: bool| {
                let (page, lane) = ((h * pages + s as usize / 32) * 64 * dim, s as usize % 32);
                if value { page + 32 * dim + lane * dim + e } else { page + e / 8 * 256 + lane * 8 + e % 8 }
            };
            for e in 0..dim {
                for value in [false, true] {
                    store.gpu[at(to, e, value)] = store.gpu[at(from, e, value)];
                }
            }
        }
    }
    let heads = Heads { heads, kv_heads: store.kv_heads, dim: store.dim, scale: 0.3, softcap: None, window: None };
    let width = heads.heads * dim;
    let row = |i: u32, in_pages: u32| {
        let extras =
            (in_pages..=i).map(|j| Visible { place: 295 + j, slot: PAGES as u32 * 32 + j }).collect::<Vec<_>>();
        (295 + i, vec![(0, 295 + in_pages.min(i + 1))], if in_pages > i { vec![] } else { extras })
    };
    let q = noise(5, 20 * width);
    let mut scene = Scene::default();
    scene.sequence(&table, &(0..20).map(|i| row(i, 0)).collect::<Vec<_>>());
    let whole = on_gpu(bench, &store, &heads, &q, &scene, true);
    for in_pages in [1, 7, 25] {
        let mut scene = Scene::default();
        scene.sequence(&table, &(0..20).map(|i| row(i, in_pages)).collect::<Vec<_>>());
        assert!(on_gpu(bench, &store, &heads, &q, &scene, false) == whole, "{in_pages} in pages");
    }
    for i in [0u32, 3, 19] {
        let mut scene = Scene::default();
        scene.sequence(&table, &[row(i, (unit(u64::from(i)) * 9.0) as u32)]);
        let one = on_gpu(bench, &store, &heads, &q[i as usize * width..][..width], &scene, i % 2 == 0);
        assert!(one == whole[i as usize * width..][..width], "row {i} alone");
    }
}
