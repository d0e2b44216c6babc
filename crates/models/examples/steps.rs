//! Time of a forward by rows, on a model file: `cargo run --release -p omnidecode-models --example steps -- MODEL
//! [CONTEXT] [ROWS,ROWS..] [ROUNDS]`. Prints milliseconds of 1, 2, 3, 4, 8, 16, 32 rows in the tail behind CONTEXT
//! places, their ratio to the first, the bytes of weights read over the bandwidth of the machine, and the prompt's rows a second. Medians over rounds that alternate the sizes.
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::network::PAGE;
use omnidecode_models::step::{Choice, Entry, RowEntry, RowRead, Segment, Step, Visible, Warp};
use omnidecode_models::{Network, Weights};
use std::time::Instant;

const SIZES: &str = "1,2,3,4,8,16,32";

fn choice() -> Option<Choice> {
    let key = omnidecode_core::noise::Key::new(0, 0, omnidecode_core::noise::Purpose::Sample);
    Some(Choice { warp: Warp::GREEDY, key })
}

/// `rows` rows behind `context` places, in the tail or in pages.
fn step(rows: usize, context: usize, pages: usize, tail: bool, layers: usize) -> Step {
    let mut step = Step { pages: (0..pages as u32).collect(), ..Step::default() };
    for i in 0..rows {
        let place = (context + i) as u32;
        let (span, first) = (step.spans.len(), step.extras.len());
        step.spans.push((0, if tail { context as u32 } else { place + 1 }));
        let base = (pages * PAGE) as u32;
        if tail {
            step.extras.extend((0..=i as u32).map(|j| Visible { place: context as u32 + j, slot: base + j }));
        }
        let slot = if tail { base + i as u32 } else { place };
        step.rows.push(RowEntry {
            entry: Entry::Token(100 + i as u32),
            position: place,
            place,
            slot,
            spans: span..span + 1,
            extras: first..step.extras.len(),
        });
        if tail || i + 1 == rows {
            step.reads.push(RowRead { row: i, choice: choice(), top: 8, ..RowRead::default() });
        }
    }
    step.segments.push(Segment { rows: 0..rows, table: 0..pages, layers: 0..layers });
    step
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Bytes a second that all threads together read from memory: the best of some passes over more than any cache holds.
fn read_bandwidth(threads: usize) -> f64 {
    const WORDS: usize = 32 << 20;
    let parts: Vec<Vec<u64>> = (0..threads).map(|i| vec![i as u64 + 1; WORDS]).collect();
    let pass = || {
        let clock = Instant::now();
        let sum = |part: &Vec<u64>| part.iter().fold(0u64, |sum, x| sum.wrapping_add(*x));
        std::thread::scope(|scope| {
            let running: Vec<_> =
                parts.iter().map(|part| scope.spawn(move || std::hint::black_box(sum(part)))).collect();
            running.into_iter().for_each(|r| {
                r.join().expect("a sum");
            });
        });
        (threads * WORDS * 8) as f64 / clock.elapsed().as_secs_f64()
    };
    (0..7).map(|_| pass()).fold(0.0, f64::max)
}

fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("a model folder or file");
    let context: usize = args.next().map_or(512, |c| c.parse().expect("a number of places"));
    let sizes = args.next().unwrap_or_else(|| SIZES.into());
    let sizes: Vec<usize> = sizes.split(',').map(|n| n.parse().expect("numbers of rows")).collect();
    let rounds: usize = args.next().map_or(21, |n| n.parse().expect("a number of rounds"));
    let clock = Instant::now();
    let weights = Weights::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let mut decoder = Decoder::load(&weights, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let read = read_bandwidth(decoder.pool().threads());
    println!("memory is read at {:.1} GB/s by {} threads", read / 1e9, decoder.pool().threads());
    let pages = (context + 1024).div_ceil(PAGE);
    decoder.reserve(pages, 64).expect("memory");
    let (layers, bytes) = (decoder.card().layers, decoder.card().bytes as f64);
    println!("loaded in {:.2} s, {:.1} MB a row", clock.elapsed().as_secs_f64(), bytes / 1e6);
    let mut run = |step: &Step| {
        let clock = Instant::now();
        decoder.run(step, &mut |_, _| {}, &mut |_, _| {}).expect("finite");
        clock.elapsed().as_secs_f64()
    };
    let prompt = step(context, 0, pages, false, layers);
    let prefill = median((0..3).map(|_| run(&prompt)).collect());
    println!("prompt of {context}: {:.0} rows/s", context as f64 / prefill);
    let steps = sizes.iter().map(|&n| step(n, context, pages, true, layers));
    let steps: Vec<Step> = steps.collect();
    let mut times = vec![Vec::new(); sizes.len()];
    for _ in 0..rounds {
        for (step, times) in steps.iter().zip(&mut times) {
            times.push(run(step));
        }
    }
    let times: Vec<f64> = times.into_iter().map(median).collect();
    for (n, t) in sizes.iter().zip(&times) {
        let speed = bytes / t;
        println!(
            "{n:3} rows {:8.3} ms  {:5.2}x  {:6.1} GB/s, {:.2} of the bandwidth",
            t * 1e3,
            t / times[0],
            speed / 1e9,
            speed / read
        );
    }
}
