//! A step as bytes: what kernels read of it, at places that depend on the arena only.
use super::masses::Masses;
use super::memory::{Arena, tile};
use crate::config::Config;
use crate::step::{ClampAction, Edits, Entry, Step};
use omnidecode_kernels::cuda::args::{AttendTile, Clamp, KeyBias, Mass, Plain, Row, STRETCH, Stand};
use std::ops::Range;

macro_rules! needs {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How much of everything a step has.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(super) struct Needs { $($(#[$doc])* pub $name: usize,)* }
        impl Needs {
            fn zip(&self, other: &Needs, f: impl Fn(usize, usize) -> usize) -> Self {
                Needs { $($name: f(self.$name, other.$name),)* }
            }
            pub fn contains(&self, other: &Needs) -> bool {
                true $(&& self.$name >= other.$name)*
            }
        }
    };
}
needs! {
    rows,
    stands,
    spans,
    extras,
    pages,
    mixes,
    vectors,
    taps,
    /// Of one layer.
    biases,
    /// Of one layer.
    clamps,
    /// Rows whose attention weights are read, in all layers.
    masses,
    /// Keys of the rows whose attention weights are read.
    keys,
    /// Attention weights that are read.
    weights,
    /// The same in one layer: every head needs room for them.
    layer_weights,
    asked,
    stretches,
}
impl Needs {
    /// What is there from the start: plain decoding of a few requests, small trees.
    pub fn least() -> Self {
        Needs {
            rows: 64,
            stands: 1,
            spans: 64,
            extras: 1024,
            pages: 1024,
            asked: 64,
            stretches: 16,
            ..Needs::default()
        }
    }
    pub fn joined(&self, other: &Needs) -> Self {
        self.zip(other, usize::max)
    }
    /// Powers of two, so that buffers grow a few times only.
    pub fn rounded(&self) -> Self {
        self.zip(self, |n, _| if n == 0 { 0 } else { n.next_power_of_two() })
    }
    pub fn of(step: &Step, config: &Config, masses: &Masses) -> Self {
        let most = |count: &dyn Fn(&Edits, usize) -> usize| {
            let layer = |layer| step.edits.iter().map(|(_, e)| count(e, layer)).sum();
            if step.edits.is_empty() { 0 } else { (0..config.layers.len()).map(layer).max().unwrap_or(0) }
        };
        Needs {
            rows: step.rows.len(),
            stands: 1 + runs(step, config.layers.len()).len(),
            spans: step.spans.len(),
            extras: step.extras.len(),
            pages: step.pages.len(),
            mixes: step.mixes.len(),
            vectors: step.vectors.len(),
            taps: step.taps.len(),
            biases: most(&|e, layer| e.biases.iter().filter(|b| b.layer as usize == layer).count()),
            clamps: most(&|e, layer| e.clamps.iter().filter(|c| c.layer as usize == layer).count()),
            masses: step.masses.len(),
            keys: masses.keys.len(),
            weights: masses.weights,
            layer_weights: masses.layer_weights,
            asked: step.asked.len(),
            stretches: stretches(step, 0..step.rows.len()),
        }
    }
}

/// Stretches of places that hold a key which some of these rows see.
fn stretches(step: &Step, rows: Range<usize>) -> usize {
    let end = |row: usize| {
        let row = &step.rows[row];
        let spans = step.spans[row.spans.clone()].last().map_or(0, |s| s.1);
        spans.max(step.extras[row.extras.clone()].last().map_or(0, |e| e.place + 1))
    };
    (rows.map(end).max().unwrap_or(0) as usize).div_ceil(STRETCH)
}

/// Layers that the same rows run through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub layers: Range<usize>,
    /// Segments that run; `None`: all.
    pub segments: Option<Vec<usize>>,
}

/// A step's layers, cut where its rows change. A range may end behind the last of the model's `layers`: it means all.
pub(super) fn runs(step: &Step, layers: usize) -> Vec<Run> {
    let ends = |s: &crate::step::Segment| [s.layers.start.min(layers), s.layers.end.min(layers)];
    let mut cuts: Vec<usize> = step.segments.iter().flat_map(ends).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let run = |cut: &[usize]| {
        let layers = cut[0]..cut[1];
        let here = |s: &usize| step.segments[*s].layers.contains(&layers.start);
        let segments: Vec<usize> = (0..step.segments.len()).filter(here).collect();
        let all = segments.len() == step.segments.len();
        (!segments.is_empty()).then_some(Run { layers, segments: if all { None } else { Some(segments) } })
    };
    cuts.windows(2).filter_map(run).collect()
}

/// A list for each layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lists {
    counts: usize,
    items: usize,
    /// Bytes of the items of a layer.
    layer: usize,
}
impl Lists {
    /// Items of a layer, and how many.
    fn at(&self, layer: usize) -> (usize, usize) {
        (self.items + layer * self.layer, self.counts + layer * 4)
    }
    fn put<T: Plain>(&self, layer: usize, items: &[T], staging: &mut [u8]) {
        let (at, count) = self.at(layer);
        put(staging, at, items);
        put(staging, count, &[items.len() as u32]);
    }
}

/// Where each part of the inputs begins, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sections {
    pub rows: usize,
    stands: usize,
    /// Bytes of one stand: header, index, tiles.
    stand: usize,
    index: usize,
    tiles: usize,
    pub spans: usize,
    pub extras: usize,
    pub pages: usize,
    pub mixes: usize,
    biases: Lists,
    clamps: Lists,
    /// Rows whose attention weights are read, layer by layer, and their keys.
    pub masses: usize,
    pub keys: usize,
    /// Count, then pairs, for each boundary of layers: all boundaries share the room of `taps` pairs.
    pub taps: usize,
    pub vectors: usize,
    pub bytes: usize,
}
impl Sections {
    pub fn of(needs: &Needs, layers: usize) -> Self {
        let mut at = 0usize;
        let mut take = |bytes: usize| {
            let from = at.next_multiple_of(16);
            at = from + bytes;
            from
        };
        let rows = take(needs.rows * size_of::<Row>());
        let index = size_of::<Stand>();
        let tiles = (index + needs.rows * 4).next_multiple_of(16);
        let stand = (tiles + needs.rows * size_of::<AttendTile>()).next_multiple_of(16);
        let stands = take(stand * needs.stands);
        let spans = take(needs.spans * 8);
        let extras = take(needs.extras * 8);
        let pages = take(needs.pages * 4);
        let mixes = take(needs.mixes * 8);
        let mut lists = |layer: usize| Lists { counts: take(layers * 4), items: take(layer * layers), layer };
        let biases = lists(needs.biases * size_of::<KeyBias>());
        let clamps = lists(needs.clamps * size_of::<Clamp>());
        let masses = take(needs.masses * size_of::<Mass>());
        let keys = take(needs.keys * 8);
        let taps = take((layers + 1) * 4 + needs.taps * 8);
        let vectors = take(needs.vectors * 4);
        let bytes = at.max(16);
        Sections {
            rows,
            stands,
            stand,
            index,
            tiles,
            spans,
            extras,
            pages,
            mixes,
            biases,
            clamps,
            masses,
            keys,
            taps,
            vectors,
            bytes,
        }
    }
    /// Header, index and tiles of a stand.
    pub fn stand(&self, i: usize) -> (usize, usize, usize) {
        let at = self.stands + i * self.stand;
        (at, at + self.index, at + self.tiles)
    }
    /// Biases of a layer, and how many.
    pub fn biases(&self, layer: usize) -> (usize, usize) {
        self.biases.at(layer)
    }
    /// Clamped neurons of a layer, and how many.
    pub fn clamps(&self, layer: usize) -> (usize, usize) {
        self.clamps.at(layer)
    }
    /// Pairs of the taps before `layer`, and how many; `first`: taps of the layers before.
    pub fn taps(&self, layer: usize, layers: usize, first: usize) -> (usize, usize) {
        (self.taps + (layers + 1) * 4 + first * 8, self.taps + layer * 4)
    }
}

/// What the plan must know of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Laid {
    pub rows: usize,
    /// Tiles of the first stand.
    pub tiles: usize,
    pub stretches: usize,
    /// With the stand of each.
    pub runs: Vec<(Range<usize>, usize)>,
    /// Rows of each stand.
    pub stands: Vec<usize>,
    /// Taps before each layer.
    pub taps: Vec<usize>,
    /// Rows whose attention weights are read, of each layer.
    pub masses: Vec<usize>,
}

fn put<T: Plain>(staging: &mut [u8], at: usize, values: &[T]) {
    let bytes = T::bytes(values);
    staging[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Lay out a step that fits.
pub(super) fn lay(step: &Step, config: &Config, masses: &Masses, arena: &Arena, staging: &mut Vec<u8>) -> Laid {
    let sections = &arena.sections;
    staging.clear();
    staging.resize(sections.vectors + step.vectors.len() * 4, 0);
    let mut rows = vec![Row::default(); step.rows.len()];
    for segment in &step.segments {
        for i in segment.rows.clone() {
            let row = &step.rows[i];
            let (kind, at, count) = match &row.entry {
                Entry::Token(token) => (0, *token as usize, 0),
                Entry::Embedding(at) => (1, *at, 0),
                Entry::Mix(range) => (2, range.start, range.len()),
                Entry::Hidden(at) => (3, *at, 0),
            };
            rows[i] = Row {
                kind,
                at: at as u32,
                count: count as u32,
                position: row.position,
                place: row.place,
                slot: row.slot,
                span: row.spans.start as u32,
                span_end: row.spans.end as u32,
                extra: row.extras.start as u32,
                extra_end: row.extras.end as u32,
                page: segment.table.start as u32,
                page_end: segment.table.end as u32,
            };
        }
    }
    put(staging, sections.rows, &rows);
    let words = |pairs: &mut dyn Iterator<Item = [u32; 2]>| pairs.collect::<Vec<_>>();
    put(staging, sections.spans, &words(&mut step.spans.iter().map(|s| [s.0, s.1])));
    put(staging, sections.extras, &words(&mut step.extras.iter().map(|e| [e.place, e.slot])));
    put(staging, sections.mixes, &words(&mut step.mixes.iter().map(|m| [m.0, m.1.to_bits()])));
    put(staging, sections.pages, &step.pages);
    put(staging, sections.vectors, &step.vectors);
    edits(step, config, sections, staging);
    put(staging, sections.masses, &masses.entries);
    put(staging, sections.keys, &words(&mut masses.keys.iter().map(|k| [k.place, k.slot])));
    let taps = taps(step, config, sections, staging);
    let all: Vec<usize> = (0..step.segments.len()).collect();
    let tiles = stand(step, config, sections, 0, &all, staging);
    let (mut laid_runs, mut stands) = (Vec::new(), vec![step.rows.len()]);
    for run in runs(step, config.layers.len()) {
        let which = match &run.segments {
            None => 0,
            Some(segments) => {
                stand(step, config, sections, stands.len(), segments, staging);
                stands.push(segments.iter().map(|&s| step.segments[s].rows.len()).sum());
                stands.len() - 1
            }
        };
        laid_runs.push((run.layers, which));
    }
    let stretches = stretches(step, 0..step.rows.len());
    Laid { rows: step.rows.len(), tiles, stretches, runs: laid_runs, stands, taps, masses: masses.counts.clone() }
}

/// Rows of some segments, as the kernels walk them. Gives the tiles.
fn stand(step: &Step, config: &Config, sections: &Sections, i: usize, segments: &[usize], staging: &mut [u8]) -> usize {
    let (_, _, tall) = tile(config);
    let (mut index, mut tiles, mut far) = (Vec::new(), Vec::new(), 0);
    for &s in segments {
        let rows = step.segments[s].rows.clone();
        for first in rows.clone().step_by(tall) {
            let count = tall.min(rows.end - first);
            tiles.push(AttendTile { first: (index.len() + first - rows.start) as u32, count: count as u32 });
        }
        index.extend(rows.clone().map(|r| r as u32));
        far = far.max(stretches(step, rows));
    }
    let header = Stand { rows: index.len() as u32, tiles: tiles.len() as u32, stretches: far as u32, reserved: 0 };
    let (at, index_at, tiles_at) = sections.stand(i);
    put(staging, at, &[header]);
    put(staging, index_at, &index);
    put(staging, tiles_at, &tiles);
    tiles.len()
}

/// Biases and clamps, layer by layer.
fn edits(step: &Step, config: &Config, sections: &Sections, staging: &mut [u8]) {
    if step.edits.is_empty() {
        return;
    }
    for layer in 0..config.layers.len() {
        let (mut biases, mut clamps) = (Vec::new(), Vec::new());
        for (segment, edits) in &step.edits {
            let (first, end) = (step.segments[*segment].rows.start as u32, step.segments[*segment].rows.end as u32);
            let own = edits.biases.iter().filter(|b| b.layer as usize == layer);
            biases.extend(own.map(|b| KeyBias { first, end, head: b.head, place: b.place, add: b.add }));
            let own = edits.clamps.iter().filter(|c| c.layer as usize == layer);
            clamps.extend(own.map(|c| Clamp {
                first,
                end,
                neuron: c.neuron,
                from: c.from,
                action: match c.action {
                    ClampAction::Set => 0,
                    ClampAction::Add => 1,
                    ClampAction::Scale => 2,
                    ClampAction::Post => 3,
                },
                value: c.value,
            }));
        }
        sections.biases.put(layer, &biases, staging);
        sections.clamps.put(layer, &clamps, staging);
    }
}

/// Residual streams that are read before each layer: rows, and where each goes among all taps.
fn taps(step: &Step, config: &Config, sections: &Sections, staging: &mut [u8]) -> Vec<usize> {
    let layers = config.layers.len();
    let mut counts = Vec::new();
    let mut first = 0;
    for layer in 0..=layers {
        let here = step.taps.iter().enumerate().filter(|(_, t)| t.layer == layer && layer < layers);
        let pairs: Vec<[u32; 2]> = here.map(|(i, t)| [t.row as u32, i as u32]).collect();
        if !pairs.is_empty() {
            let (at, count) = sections.taps(layer, layers, first);
            put(staging, at, &pairs);
            put(staging, count, &[pairs.len() as u32]);
        }
        first += pairs.len();
        counts.push(pairs.len());
    }
    counts
}
