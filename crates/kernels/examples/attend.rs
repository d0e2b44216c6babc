//! Times attention: one layer of a shape, over contexts, rows and dtypes.
//!
//! `cargo run -p omnidecode-kernels --example attend -- 9 3 64`: heads, kv heads, head size; then, if wanted, the one
//! number of rows and context to time.
use omnidecode_kernels::attend::{Group, Heads, Query, Sight, attend};
use omnidecode_kernels::kv::{KvDtype, KvStore, PAGE};
use omnidecode_kernels::pool::Pool;
use std::time::Instant;

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let [heads, kv_heads, dim, ref only @ ..] = sizes[..] else {
        return println!("expected: heads, kv heads, head size");
    };
    let heads = Heads { heads, kv_heads, dim, scale: 1.0 / (dim as f32).sqrt(), softcap: None, window: None };
    println!(
        "{:>5} {:>6} {:>8} {:>7} {:>10} {:>8} {:>8}",
        "dtype", "rows", "context", "threads", "µs", "GFLOP/s", "GB/s"
    );
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
        for (rows, context) in [(1, 512), (4, 512), (8, 512), (1, 2048), (8, 2048), (64, 2048), (512, 512), (512, 2048)]
        {
            if only.len() == 2 && only != [rows, context] {
                continue;
            }
            for threads in [1, 2] {
                let micros = time(dtype, &heads, rows, context, threads, if only.is_empty() { 150 } else { 1000 });
                // The last row sees the whole context; earlier ones less.
                let keys: usize = (0..rows).map(|r| context - r).sum();
                let flops = (keys * heads.heads * dim * 4) as f64;
                let bytes = (context * kv_heads * dim * 2 * dtype.bytes()) as f64;
                println!(
                    "{:>5} {rows:>6} {context:>8} {threads:>7} {micros:>10.1} {:>8.1} {:>8.2}",
                    format!("{dtype:?}"),
                    flops / micros / 1e3,
                    bytes / micros / 1e3
                );
            }
        }
    }
}

/// Processor time of this thread, in microseconds: what a loaded machine does not blur. With more threads, wall time.
fn clock(threads: usize) -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    // SAFETY: `now` is valid for the write.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}

/// Microseconds of the fastest of many calls, each on other layers' keys so that they come from memory.
fn time(dtype: KvDtype, heads: &Heads, rows: usize, context: usize, threads: usize, millis: u128) -> f64 {
    let layers = 30;
    let mut kv = KvStore::new(dtype, &vec![heads.kv_heads; layers], heads.dim, context).expect("memory");
    let n = heads.kv_heads * heads.dim;
    for slot in 0..context {
        let row: Vec<f32> = (0..n).map(|i| ((slot * 31 + i * 17) % 101) as f32 / 101.0 - 0.5).collect();
        (0..layers).for_each(|layer| kv.write(layer, slot as u32, &row, &row));
    }
    let pages: Vec<u32> = (0..context.div_ceil(PAGE) as u32).collect();
    let places = (context - rows..context).map(|p| p as u32);
    let spans: Vec<(u32, u32)> = places.clone().map(|p| (0, p + 1)).collect();
    let queries: Vec<Query> =
        places.enumerate().map(|(i, place)| Query { row: i as u32, place, spans: i..i + 1, extras: 0..0 }).collect();
    let groups = [Group { table: 0..pages.len(), queries: 0..rows, biases: 0..0 }];
    let sight = Sight { groups: &groups, queries: &queries, spans: &spans, pages: &pages, ..Sight::default() };
    let q: Vec<f32> = (0..rows * heads.heads * heads.dim).map(|i| ((i * 13) % 37) as f32 / 37.0 - 0.5).collect();
    let (mut out, pool) = (vec![0.0; q.len()], Pool::new(threads));
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed().as_millis() < millis {
        for layer in 0..layers {
            let start = clock(threads);
            attend(&pool, &mut kv, layer, heads, &q, &sight, &mut out);
            best = best.min(clock(threads) - start);
        }
    }
    best
}
