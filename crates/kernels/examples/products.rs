//! How fast products read their weights, and what more rows cost.
//!
//! `cargo run --release --example products -- [types] [k×n,...] [threads] [rows,...] [MiB]`, for instance
//! `-- Q4_1,Q8_0 576x1536,2048x8192 2`. Weights come from memory, not from a cache: as many copies
//! take turns as fill the last number (256 MiB; 0 keeps one in the cache). Runs in
//! which another process or the hypervisor took a core are thrown away. Prints, for each type and shape, the
//! rate at one row beside the read bandwidth of the same minute, and t(m)/t(1).

use std::hint::black_box;
use std::time::Instant;

use omnidecode_kernels::activations::Activations;
use omnidecode_kernels::dtype::Dtype;
use omnidecode_kernels::dtype::quantize::quantize;
use omnidecode_kernels::matrix::Matrix;
use omnidecode_kernels::pool::{Pool, default_threads};
use omnidecode_kernels::product::{Job, product};
use omnidecode_kernels::tier::Tier;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |index: usize, default: &str| arguments.get(index).cloned().unwrap_or(default.to_owned());
    let types = argument(1, "Q8_0,Q4_0,Q4_1,Q5_0,Q5_1,Q4_K,Q5_K,Q6_K,BF16,F16,F32");
    let shapes = argument(2, "576x1536,2048x8192");
    let threads = argument(3, "").parse().unwrap_or_else(|_| default_threads());
    let rows: Vec<usize> =
        argument(4, "1,2,4,8,12,16,32,128,512").split(',').map(|m| m.parse().expect("rows")).collect();
    let cold: usize = argument(5, "256").parse().expect("MiB");
    let pool = Pool::new(threads);
    let tier = Tier::detect().unwrap_or_else(|error| panic!("{error}"));
    println!("tier {tier}, {threads} threads, dispatch {:.2} µs", dispatch(&pool) * 1e6);
    for dtype in Dtype::ALL.into_iter().filter(|d| types.split(',').any(|t| t == d.to_string())) {
        for shape in shapes.split(',') {
            let (k, n) = shape.split_once('x').expect("k×n");
            let (k, n): (usize, usize) = (k.parse().expect("k"), n.parse().expect("n"));
            if k % dtype.block() == 0 {
                line(&pool, tier, dtype, (n, k), &rows, cold << 20);
            }
        }
    }
}

fn line(pool: &Pool, tier: Tier, dtype: Dtype, (n, k): (usize, usize), rows: &[usize], cold: usize) {
    let pattern: Vec<f32> = (0..16 * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let bytes = quantize(dtype, &pattern).expect("blocks").repeat(n.div_ceil(16));
    let bytes = &bytes[..bytes.len() / n.next_multiple_of(16) * n];
    let copies = cold.div_ceil(bytes.len()).max(1);
    let matrices: Vec<Matrix> =
        (0..copies).map(|_| Matrix::pack_with(pool, dtype, bytes, n, k).expect("a matrix")).collect();
    let most = rows.iter().max().copied().unwrap_or(1);
    let x: Vec<f32> = (0..most * k).map(|i| ((i * 53 % 103) as f32 - 51.0) / 20.0).collect();
    let mut out = vec![0.0; most * n];
    let mut acts = Activations::on(tier);
    let mut next = 0;
    let mut times = vec![Vec::new(); rows.len()];
    let mut reads = Vec::new();
    for _ in 0..3 {
        reads.extend(clean(|| read(pool, &matrices)));
        for (times, &m) in times.iter_mut().zip(rows) {
            acts.load(pool, &x[..m * k], m, k, matrices[0].form_on(tier)).expect("finite");
            times.extend(clean(|| {
                let start = now(pool);
                let job = Job::store(&matrices[next % copies], &mut out[..m * n]);
                product(pool, &acts, &mut [job]).expect("shapes fit");
                next += 1;
                now(pool) - start
            }));
        }
    }
    black_box(&out);
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    let rate = matrices[0].bytes() as f64 / medians[0] / 1e9;
    let bandwidth = median(reads);
    print!("{:5} {k}x{n}  t(1) {:8.1} µs  {rate:5.1} of {bandwidth:5.1} GB/s ", dtype.to_string(), medians[0] * 1e6);
    for (m, t) in rows.iter().zip(&medians).skip(1) {
        print!(" {m}:{:.2}", t / medians[0]);
    }
    let macs = most as f64 * (n * k) as f64 / medians[medians.len() - 1] / 1e9;
    println!("  {macs:.0} GMAC/s");
}

/// Seconds; of this thread's processor time if it works alone, so that its breaks do not count.
fn now(pool: &Pool) -> f64 {
    let clock = if pool.threads() == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills `time`.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// GB/s at which the pool reads all copies.
fn read(pool: &Pool, matrices: &[Matrix]) -> f64 {
    let start = now(pool);
    pool.run(matrices.len().max(pool.threads() * 8), &|chunk| {
        if let Some(matrix) = matrices.get(chunk) {
            black_box(matrix.as_bytes().as_chunks().0.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word)));
        }
    });
    matrices.iter().map(Matrix::bytes).sum::<usize>() as f64 / (now(pool) - start) / 1e9
}

/// Seconds of an empty loop over two chunks for each thread.
fn dispatch(pool: &Pool) -> f64 {
    let runs = 20_000;
    let start = Instant::now();
    for _ in 0..runs {
        pool.run(pool.threads() * 2, &|chunk| {
            black_box(chunk);
        });
    }
    start.elapsed().as_secs_f64() / f64::from(runs)
}

/// The results of up to 20 windows in which nobody took a core from this process; after a
/// second of trying, the shortest one.
fn clean(mut window: impl FnMut() -> f64) -> Vec<f64> {
    let (mut all, mut undisturbed) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while undisturbed.len() < 20 && start.elapsed().as_secs_f64() < 1.0 {
        let before = taken();
        let result = window();
        all.push(result);
        if taken() == before {
            undisturbed.push(result);
        }
    }
    if undisturbed.is_empty() { all } else { undisturbed }
}

/// How often another process took a core from this one, and ticks that the hypervisor took.
fn taken() -> (i64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let steal = stat.split_whitespace().nth(8).and_then(|ticks| ticks.parse().ok()).unwrap_or(0);
    // SAFETY: plain data, filled by the call.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    (usage.ru_nivcsw, steal)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
