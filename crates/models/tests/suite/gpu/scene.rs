//! Decoders on both devices, and steps for both.
use crate::common::{Golden, folder};
use omnidecode_kernels::cuda::emulate::Emulator;
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::gpu::{self, GpuDecoder};
use omnidecode_models::step::Visible;
use omnidecode_models::{Entry, Network, NetworkError, RowEntry, RowRead, Segment, Step, Tap, Weights};

pub const PAGES: usize = 64;
pub const TAIL: usize = 64;
pub const FIRST_TAIL: u32 = (PAGES * 32) as u32;

pub fn on_gpu(case: &str, graphs: bool) -> Option<GpuDecoder> {
    let weights = Weights::open(folder(case)).unwrap();
    let options = gpu::Options { graphs, ..gpu::Options::default() };
    let mut decoder = GpuDecoder::load(&weights, Box::new(Emulator::new()?), &options).unwrap();
    decoder.reserve(PAGES, TAIL).unwrap();
    Some(decoder)
}
pub fn on_cpu(case: &str) -> Decoder {
    let weights = Weights::open(folder(case)).unwrap();
    let mut decoder = Decoder::load(&weights, &Options { threads: Some(1), ..Options::default() }).unwrap();
    decoder.reserve(PAGES, TAIL).unwrap();
    decoder
}

/// What was read: logits and hidden states, one after the other.
#[derive(Debug, Default, PartialEq)]
pub struct Seen {
    pub logits: Vec<f32>,
    pub hidden: Vec<f32>,
    pub choices: Vec<u32>,
    /// Statistics, largest, asked.
    pub numbers: Vec<f32>,
    /// Attention weights, and how many came at each read.
    pub mass: Vec<f32>,
    pub masses: Vec<usize>,
}
pub fn run(network: &mut dyn Network, step: &Step) -> Result<Seen, NetworkError> {
    let mut seen = Seen::default();
    network.run(step, &mut |_, row| row[3] += 100.0, &mut |_, reading| {
        assert_eq!(reading.error, None);
        seen.logits.extend_from_slice(reading.logits);
        seen.hidden.extend_from_slice(reading.hidden);
        seen.mass.extend_from_slice(reading.mass);
        seen.masses.push(reading.mass.len());
        seen.choices.extend(reading.choice);
        seen.choices.extend(reading.top.iter().map(|t| t.0));
        seen.numbers.extend(reading.top.iter().map(|t| t.1));
        let s = reading.stats;
        seen.numbers.extend([s.max, s.second, s.lse, s.entropy, reading.logprob]);
        seen.numbers.extend_from_slice(reading.asked);
    })?;
    Ok(seen)
}

pub fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max);
    assert!(worst <= tolerance && found.iter().all(|x| x.is_finite()), "{what}: off by {worst}");
}

/// Rows appended behind `from` places of the sequence that begins at page `first`.
pub fn append(step: &mut Step, ids: &[u32], first: u32, from: u32, full: bool, layers: usize) {
    let (row, page) = (step.rows.len(), step.pages.len());
    step.pages.extend(first..first + 8);
    for (i, &id) in ids.iter().enumerate() {
        let place = from + i as u32;
        let span = step.spans.len();
        step.spans.push((0, if full { from + ids.len() as u32 } else { place + 1 }));
        step.rows.push(RowEntry {
            entry: Entry::Token(id),
            position: place,
            place,
            slot: first * 32 + place,
            spans: span..span + 1,
            extras: 0..0,
        });
    }
    step.segments.push(Segment { rows: row..step.rows.len(), table: page..step.pages.len(), layers: 0..layers });
}
/// Rows in the tail; row `i` sees `committed` places and the rows that `sees` names.
pub fn behind(ids: &[u32], places: &[u32], committed: u32, sees: impl Fn(usize, usize) -> bool, layers: usize) -> Step {
    let mut step = Step { pages: (0..8).collect(), spans: vec![(0, committed)], ..Step::default() };
    for (i, &id) in ids.iter().enumerate() {
        let first = step.extras.len();
        let seen = (0..ids.len()).filter(|&j| sees(i, j));
        step.extras.extend(seen.map(|j| Visible { place: places[j], slot: FIRST_TAIL + j as u32 }));
        let (position, place, slot) = (places[i], places[i], FIRST_TAIL + i as u32);
        let extras = first..step.extras.len();
        step.rows.push(RowEntry { entry: Entry::Token(id), position, place, slot, spans: 0..1, extras });
    }
    step.segments.push(Segment { rows: 0..ids.len(), table: 0..8, layers: 0..layers });
    step
}
/// Read all logits and, with `taps`, every hidden state.
pub fn read_all(step: &mut Step, taps: Option<usize>) {
    for row in 0..step.rows.len() {
        step.reads.push(RowRead { row, logits: true, ..RowRead::default() });
        if let Some(layers) = taps {
            step.taps.extend((0..=layers).map(|layer| Tap { row, layer }));
        }
    }
}
pub fn prompt(case: &str) -> Vec<u32> {
    Golden::open(case).ids("input_ids")[..24].to_vec()
}
