//! A step as a list of launches.
mod feed;
mod layer;
mod product;

use super::GpuDecoder;
use super::layout::Laid;
use super::memory::{MANY, READS, bucket};
use super::model::{Before, Layer, Norm};
use omnidecode_kernels::cuda::args::*;
use omnidecode_kernels::cuda::{Address, Call, Entry, Launch};

/// What a plan depends on, besides its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Rows, rounded up.
    pub rows: usize,
    /// Tiles of attention, rounded up.
    pub tiles: usize,
    /// Stretches of places, rounded up.
    pub stretches: usize,
    /// Rows of logits, rounded up; 0: the head does not run.
    pub reads: usize,
}

/// A plan and the number of its graph.
pub(super) struct Planned {
    pub number: u64,
    pub launches: Vec<Launch>,
}

/// Ends of a product, as `kernels/step.cuh` numbers them.
const STORE: u32 = 0;
const ADD: u32 = 1;
const GATED: u32 = 2;
const LIFT: u32 = 3;
/// What follows a product, as `kernels/step.cuh` numbers it.
const NORMED: u32 = 1;
const ROTATED: u32 = 2;
const CHOSEN: u32 = 3;

impl Key {
    pub(super) fn of(laid: &Laid, reads: usize) -> Key {
        Key {
            rows: bucket(laid.rows),
            tiles: bucket(laid.tiles),
            stretches: laid.stretches.max(1).next_power_of_two(),
            reads: if reads == 0 { 0 } else { bucket(reads) },
        }
    }
}

/// A stand, for launches.
#[derive(Clone, Copy)]
struct Standing {
    header: Address,
    index: Address,
    tiles: Address,
    /// Rows and tiles of the grid.
    rows: usize,
    most: usize,
}
impl Standing {
    /// Rows so few that launches, not what they do, take the time: what stands between two products is done by the last blocks
    /// of the first. The rows of more would wait in line there, and get a launch of their own.
    fn few(self) -> bool {
        self.rows <= MANY
    }
}

pub(super) struct Planner<'a> {
    decoder: &'a GpuDecoder,
    stretches: usize,
    /// Rows whose attention weights are read, of each layer; empty: none.
    masses: Vec<usize>,
    launches: Vec<Launch>,
}

impl<'a> Planner<'a> {
    pub fn new(decoder: &'a GpuDecoder, stretches: usize) -> Self {
        Planner { decoder, stretches, masses: Vec::new(), launches: Vec::new() }
    }
    pub fn done(self) -> Vec<Launch> {
        self.launches
    }

    fn launch(&mut self, entry: Entry, call: Call, grid: [usize; 3]) {
        self.launches.push(Launch { entry, call, grid: grid.map(|g| g as u32) });
    }
    fn standing(&self, i: usize, rows: usize, tiles: usize) -> Standing {
        let arena = &self.decoder.arena;
        let (header, index, at) = arena.sections.stand(i);
        let inputs = &arena.inputs;
        Standing { header: inputs.at(header), index: inputs.at(index), tiles: inputs.at(at), rows, most: tiles }
    }
    fn bad(&self) -> Address {
        self.decoder.arena.outputs.address()
    }
    fn input(&self, at: usize) -> Address {
        self.decoder.arena.inputs.at(at)
    }

    /// The whole step of a key: embedding, all layers for all rows.
    pub fn whole(&mut self, key: &Key) {
        let stand = self.standing(0, key.rows, key.tiles);
        let layers = self.decoder.model.layers.len();
        self.embed(stand, true);
        for layer in 0..layers {
            self.layer(layer, stand, layer + 1 < layers);
        }
    }

    /// A step whose rows change between layers, or of which more is read than logits.
    pub fn cut(&mut self, laid: &Laid) {
        let stand = |planner: &Self, i: usize| {
            let rows = bucket(laid.stands[i]);
            planner.standing(i, rows, rows)
        };
        self.masses.clone_from(&laid.masses);
        let all = stand(self, 0);
        self.embed(all, false);
        let layers = self.decoder.model.layers.len();
        for (range, which) in &laid.runs {
            let stand = stand(self, *which);
            for layer in range.clone() {
                self.tap(laid, layer);
                if layer == range.start {
                    self.prepare(
                        self.decoder.model.layers[layer].before,
                        &self.decoder.model.layers[layer],
                        stand,
                        layer,
                    );
                }
                self.layer(layer, stand, layer + 1 < range.end);
            }
        }
        // What is read behind the last layer that runs.
        let end = laid.runs.last().map_or(0, |r| r.0.end);
        if end < layers {
            self.tap(laid, end);
        }
    }

    fn tap(&mut self, laid: &Laid, layer: usize) {
        let arena = &self.decoder.arena;
        let count = laid.taps[layer];
        if count == 0 {
            return;
        }
        let first = laid.taps[..layer].iter().sum();
        let (pairs, number) = arena.sections.taps(layer, laid.taps.len() - 1, first);
        let args = GatherArgs {
            x: arena.x.address(),
            from: self.input(pairs),
            out: arena.taps.address(),
            count: self.input(number),
            width: self.decoder.config.hidden as u32,
            reserved: 0,
        };
        self.launch(Entry::Gather, Call::Gather(args), [count, 1, 1]);
    }

    /// What the product behind `before` reads: these forms, and what it multiplies by.
    pub(super) fn reads_of(&self, before: Before, forms: u32) -> (Acts, Address) {
        match before {
            Before::Rides(norm) => (self.decoder.arena.hidden.acts(forms, Some(norm.eps)), norm.weight),
            Before::Plain | Before::Apart(_) => (self.decoder.arena.hidden.acts(forms, None), Address(0)),
        }
    }
    /// The same of a layer's first products.
    fn first_of(&self, layer: &Layer, stand: Standing) -> (Acts, Address) {
        self.reads_of(layer.before, self.form(&layer.qkv, stand))
    }

    fn embed(&mut self, stand: Standing, ready: bool) {
        let GpuDecoder { config, model, arena, .. } = self.decoder;
        let layer = model.layers.first().filter(|_| ready);
        let (mut next, gain) = layer.map_or((arena.hidden.acts(0, None), Address(0)), |l| self.first_of(l, stand));
        let apart = matches!(layer.map(|l| l.before), Some(Before::Apart(_)));
        if apart {
            next.forms = 0;
        }
        let args = EmbedArgs {
            table: model.embedding.weights,
            next,
            positions: model.learned.map_or(Address(0), |l| l.0),
            gain,
            vectors: self.input(arena.sections.vectors),
            mixes: self.input(arena.sections.mixes),
            rows: self.input(arena.sections.rows),
            index: stand.index,
            stand: stand.header,
            x: arena.x.address(),
            bad: self.bad(),
            hidden: config.hidden as u32,
            learned: model.learned.map_or(1, |l| l.1) as u32,
            scale: config.embedding_scale,
            layer: 0,
        };
        self.launch(Entry::Embed, Call::Embed(args), [stand.rows, 1, 1]);
        if apart && let Some(layer) = layer {
            self.prepare(layer.before, layer, stand, 0);
        }
    }

    /// Rows of the residual stream, ready for a layer's first product: a launch of its own.
    fn prepare(&mut self, before: Before, of: &Layer, stand: Standing, layer: usize) {
        let (next, gain) = self.first_of(of, stand);
        self.norm_apart(before, next, gain, stand, layer);
    }
    fn norm_apart(&mut self, before: Before, next: Acts, gain: Address, stand: Standing, layer: usize) {
        let norm = if let Before::Apart(norm) = before { Some(norm) } else { None };
        let mut args = self.norm(norm, stand, layer);
        (args.next, args.gain) = (next, gain);
        self.norm_rows(Some(args), stand);
    }
    /// A norm with a launch of its own, if there is one.
    fn norm_rows(&mut self, norm: Option<NormArgs>, stand: Standing) {
        if let Some(norm) = norm {
            self.launch(Entry::NormRows, Call::Norm(norm), [stand.rows, 1, 1]);
        }
    }
    fn norm(&self, norm: Option<Norm>, stand: Standing, layer: usize) -> NormArgs {
        NormArgs {
            x: self.decoder.arena.x.address(),
            weight: norm.map_or(Address(0), |n| n.weight),
            bias: norm.map_or(Address(0), |n| n.bias),
            index: stand.index,
            stand: stand.header,
            bad: self.bad(),
            kind: norm.map_or(2, |n| u32::from(n.layer_norm)),
            k: self.decoder.config.hidden as u32,
            layer: layer as u32,
            eps: norm.map_or(0.0, |n| n.eps),
            scale: 1.0,
            ..NormArgs::default()
        }
    }

    /// Final norm, and (`logits`) the head with its reductions, of up to [`READS`] rows.
    pub fn head(&mut self, rows: usize, logits: bool) {
        let GpuDecoder { config, model, arena, .. } = self.decoder;
        debug_assert!(rows <= READS);
        let (inputs, parts) = (&arena.read_inputs, &arena.parts);
        let stand = Standing {
            header: inputs.address(),
            index: inputs.at(parts.index),
            tiles: Address(0),
            rows: bucket(rows),
            most: 0,
        };
        let acts = arena.head.acts(model.head.format.form(), None);
        let mut norm = self.norm(model.norm, stand, model.layers.len());
        (norm.next, norm.out) = (acts, arena.normed.address());
        self.norm_rows(Some(norm), stand);
        if !logits {
            return;
        }
        let tiles = model.head.weights.n.div_ceil(TILE as u32);
        let mut args = ProductArgs {
            input: acts,
            mode: STORE,
            scale: config.logit_scale,
            cap: config.final_softcap.unwrap_or(0.0),
            ends: [tiles; 3],
            ..ProductArgs::default()
        };
        (args.w[0], args.out[0]) = (model.head.weights, arena.logits.address());
        self.product(&model.head, args, stand, tiles, model.layers.len());
        let pieces = config.vocab.div_ceil(PIECE);
        let args = PickArgs {
            logits: arena.logits.address(),
            asks: inputs.at(parts.asks),
            asked: inputs.at(parts.asked),
            stand: stand.header,
            peaks: arena.peaks.address(),
            pieces: arena.pieces.address(),
            candidates: arena.candidates.address(),
            tops: arena.outputs.at(parts.tops),
            logprobs: arena.outputs.at(parts.logprobs),
            found: arena.outputs.at(parts.found),
            edges: arena.edges.address(),
            counters: arena.pick_counters.address(),
            vocab: config.vocab as u32,
            count: pieces as u32,
        };
        self.launch(Entry::Peak, Call::Pick(args), [pieces, stand.rows, 1]);
        self.launch(Entry::Pick, Call::Pick(args), [pieces, stand.rows, 1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid(rows: usize, tiles: usize, stretches: usize) -> Laid {
        Laid { rows, tiles, stretches, runs: vec![(0..2, 0)], stands: vec![rows], taps: vec![0; 3], masses: vec![0; 2] }
    }

    #[test]
    fn few_keys_serve_all_steps() {
        let mut keys = std::collections::HashSet::new();
        for rows in 1..=256 {
            for context in [1, 255, 256, 257, 2000, 2048, 2049] {
                let key = Key::of(&laid(rows, rows.div_ceil(2), usize::div_ceil(context, STRETCH)), 1);
                assert!(key.rows >= rows && key.tiles >= rows.div_ceil(2) && key.stretches * STRETCH >= context);
                assert!(key.rows < 2 * rows || key.rows == rows.next_multiple_of(64), "{rows}: {key:?}");
                keys.insert(key);
            }
        }
        // Seven buckets up to 64 rows and three beyond, five of contexts, at most two of tiles each.
        assert!(keys.len() <= 10 * 5 * 2, "{}", keys.len());
    }

    #[test]
    fn a_key_says_all_that_a_plan_depends_on() {
        assert_eq!(Key::of(&laid(5, 3, 2), 1), Key::of(&laid(8, 4, 2), 1));
        assert_ne!(Key::of(&laid(8, 4, 2), 1), Key::of(&laid(9, 4, 2), 1));
        assert_ne!(Key::of(&laid(8, 4, 2), 1), Key::of(&laid(8, 4, 3), 1));
        assert_ne!(Key::of(&laid(8, 4, 2), 1), Key::of(&laid(8, 4, 2), 2));
        assert_ne!(Key::of(&laid(8, 4, 2), 1), Key::of(&laid(8, 4, 2), 0), "without the head");
        assert_eq!(Key::of(&laid(8, 4, 0), 1).stretches, 1);
    }
}
