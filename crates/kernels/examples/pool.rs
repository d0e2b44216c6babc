//! What a dispatch costs, alone and while another process burns a core.
//!
//! `cargo run --release --example pool -- [threads]`. The work of a loop is fixed (16 chunks of some microseconds), as in a
//! decode step; a pool that spins for a worker without a core would take milliseconds where this takes its share longer.

use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use omnidecode_kernels::pool::{Pool, default_threads};

fn main() {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("burn") {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            black_box(work(1000));
        }
        return;
    }
    let threads = argument.and_then(|text| text.parse().ok()).unwrap_or_else(default_threads);
    let pool = Pool::new(threads);
    let alone = Pool::new(1);
    report("one thread", &alone);
    report("pool", &pool);
    let this = std::env::current_exe().expect("this program");
    let mut burner = Command::new(this).arg("burn").spawn().expect("a second process");
    std::thread::sleep(Duration::from_millis(200));
    report("one thread, a core burning", &alone);
    report("pool, a core burning", &pool);
    burner.kill().expect("the second process ends");
    burner.wait().expect("the second process ends");
}

/// Prints the median, the mean and the 99th percentile of a loop's time.
fn report(what: &str, pool: &Pool) {
    let mut empty = Vec::new();
    let mut full = Vec::new();
    for _ in 0..3000 {
        let start = Instant::now();
        pool.run(pool.threads() * 2, &|chunk| {
            black_box(chunk);
        });
        empty.push(start.elapsed());
        let start = Instant::now();
        pool.run(16, &|_| {
            black_box(work(3000));
        });
        full.push(start.elapsed());
    }
    for (name, mut times) in [("empty", empty), ("16 chunks", full)] {
        times.sort();
        let mean = times.iter().sum::<Duration>() / times.len() as u32;
        let at = |share: usize| times[times.len() * share / 1000].as_secs_f64() * 1e6;
        println!(
            "{what:28} {name:10} median {:7.2} µs, mean {:7.2}, 99 % {:8.2}, 99.9 % {:8.2}",
            at(500),
            mean.as_secs_f64() * 1e6,
            at(990),
            at(999)
        );
    }
}

/// A chain of multiplications: a nanosecond each.
fn work(steps: u64) -> u64 {
    (0..steps).fold(1, |x, step| black_box((x * 5 + step) & 0xFF_FFFF))
}
