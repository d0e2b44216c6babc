//! A step as a list of launches.
use super::GpuDecoder;
use super::layout::Laid;
use super::load::{Before, Layer, Linear, Norm};
use super::memory::{READS, bucket, split, tile};
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

/// Epilogues, as `kernels/step.cuh` numbers them.
const STORE: u32 = 0;
const ADD: u32 = 1;
const GATED: u32 = 2;
const LIFT: u32 = 3;

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

pub(super) struct Planner<'a> {
    decoder: &'a GpuDecoder,
    stretches: usize,
    launches: Vec<Launch>,
}

impl<'a> Planner<'a> {
    pub fn new(decoder: &'a GpuDecoder, stretches: usize) -> Self {
        Planner { decoder, stretches, launches: Vec::new() }
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

    /// A step whose rows change between layers, or that taps the residual stream.
    pub fn cut(&mut self, laid: &Laid) {
        let stand = |planner: &Self, i: usize| {
            let rows = bucket(laid.stands[i]);
            planner.standing(i, rows, rows)
        };
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

    /// What the product behind `before` reads: the forms of its matrices, and what it multiplies by.
    fn reads_of(&self, before: Before, linears: &[Linear]) -> (Acts, Address) {
        let forms = linears.iter().fold(0, |forms, l| forms | l.format.form());
        match before {
            Before::Rides(norm) => (self.decoder.arena.hidden.acts(forms, Some(norm.eps)), norm.weight),
            Before::Plain | Before::Apart(_) => (self.decoder.arena.hidden.acts(forms, None), Address(0)),
        }
    }
    fn first_of(layer: &Layer) -> [Linear; 3] {
        layer.qkv
    }

    fn embed(&mut self, stand: Standing, ready: bool) {
        let GpuDecoder { config, model, arena, .. } = self.decoder;
        let layer = model.layers.first().filter(|_| ready);
        let (mut next, gain) =
            layer.map_or((arena.hidden.acts(0, None), Address(0)), |l| self.reads_of(l.before, &Self::first_of(l)));
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
        let (next, gain) = self.reads_of(before, &Self::first_of(of));
        self.norm_apart(before, next, gain, stand, layer);
    }
    fn norm_apart(&mut self, before: Before, next: Acts, gain: Address, stand: Standing, layer: usize) {
        let norm = if let Before::Apart(norm) = before { Some(norm) } else { None };
        let mut args = self.norm(norm, stand, layer);
        (args.next, args.gain) = (next, gain);
        self.launch(Entry::NormRows, Call::Norm(args), [stand.rows, 1, 1]);
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

    /// Products of 32 outputs and 16, 32 or 64 rows a block.
    fn product(&mut self, linear: &Linear, mut args: ProductArgs, stand: Standing, tiles: u32, layer: usize) {
        (args.index, args.stand, args.bad, args.layer) = (stand.index, stand.header, self.bad(), layer as u32);
        let entries = match linear.format.is_quantized() {
            true => [Entry::Product16, Entry::Product32, Entry::Product64],
            false => [Entry::Line16, Entry::Line32, Entry::Line64],
        };
        let which = if stand.rows <= 16 {
            0
        } else if stand.rows <= 32 {
            1
        } else {
            2
        };
        self.launch(entries[which], Call::Product(args), [tiles as usize, stand.rows.div_ceil(16 << which), 1]);
    }

    /// Some matrices side by side: one launch for those that run on integers, one for the others.
    fn store(&mut self, linears: &[(Linear, Address)], input: Acts, stand: Standing, layer: usize) {
        for quantized in [true, false] {
            let mut args = ProductArgs { input, mode: STORE, scale: 1.0, ..ProductArgs::default() };
            let (mut end, mut used) = (0, Vec::new());
            for (linear, out) in linears.iter().filter(|l| l.0.format.is_quantized() == quantized) {
                let i = used.len();
                end += linear.weights.n.div_ceil(TILE as u32);
                (args.w[i], args.bias[i], args.out[i]) = (linear.weights, linear.bias, *out);
                used.push(*linear);
                args.ends[i..].fill(end);
            }
            if let Some(linear) = used.first() {
                self.product(linear, args, stand, end, layer);
            }
        }
    }

    /// `x += scale * norm(W y + b)`, and `x` ready for the product behind.
    fn join(
        &mut self,
        linear: &Linear,
        post: Option<Norm>,
        input: Acts,
        next: Option<(Before, Acts, Address)>,
        stand: Standing,
        layer: usize,
    ) {
        let arena = &self.decoder.arena;
        let scale = self.decoder.config.residual_scale;
        let nothing = arena.hidden.acts(0, None);
        let (ready, gain, apart) = match next {
            Some((Before::Apart(_), ..)) => (nothing, Address(0), true),
            Some((_, acts, gain)) => (acts, gain, false),
            None => (nothing, Address(0), false),
        };
        match post {
            None => {
                let mut args = ProductArgs {
                    input,
                    next: ready,
                    gain,
                    x: arena.x.address(),
                    mode: ADD,
                    scale,
                    ..ProductArgs::default()
                };
                (args.w[0], args.bias[0]) = (linear.weights, linear.bias);
                self.product(linear, args, stand, linear.weights.n.div_ceil(TILE as u32), layer);
            }
            Some(norm) => {
                let (h, x) = (arena.h.address(), arena.x.address());
                self.store(&[(*linear, h)], input, stand, layer);
                let mut args = self.norm(Some(norm), stand, layer);
                (args.h, args.stride, args.add) = (h, args.k, x);
                (args.scale, args.next, args.gain) = (scale, ready, gain);
                self.launch(Entry::NormRows, Call::Norm(args), [stand.rows, 1, 1]);
            }
        }
        if let (true, Some((before, acts, gain))) = (apart, next) {
            self.norm_apart(before, acts, gain, stand, layer + 1);
        }
    }

    /// A layer; `onward`: the same rows run the next one.
    fn layer(&mut self, index: usize, stand: Standing, onward: bool) {
        let GpuDecoder { config, model, arena, .. } = self.decoder;
        let layer = &model.layers[index];
        let next = model.layers.get(index + 1).filter(|_| onward).map(|next| {
            let (acts, gain) = self.reads_of(next.before, &Self::first_of(next));
            (next.before, acts, gain)
        });
        let (input, _) = self.reads_of(layer.before, &layer.qkv);
        let [q, k, v] = layer.qkv;
        let out = [arena.q.address(), arena.k.address(), arena.v.address()];
        self.store(&[(q, out[0]), (k, out[1]), (v, out[2])], input, stand, index);
        self.rope(index, stand);
        let attended = self.attend(index, stand);
        let Some(feed) = &layer.feed else {
            return self.join(&layer.o, layer.post, attended, next, stand, index);
        };
        let linears = [feed.up, feed.gate.unwrap_or(feed.up)];
        let (acts, gain) = self.reads_of(feed.before, &linears);
        self.join(&layer.o, layer.post, attended, Some((feed.before, acts, gain)), stand, index);
        let lifted = arena.lifted.acts(feed.down.format.form(), None);
        let mut args =
            ProductArgs { input: acts, next: lifted, act: feed.act, mode: LIFT, scale: 1.0, ..ProductArgs::default() };
        (args.w[0], args.bias[0]) = (feed.up.weights, feed.up.bias);
        if let Some(gate) = feed.gate {
            args.mode = GATED;
            (args.w[0], args.bias[0]) = (gate.weights, gate.bias);
            (args.w[1], args.bias[1]) = (feed.up.weights, feed.up.bias);
        }
        self.product(&feed.up, args, stand, (config.intermediate as u32).div_ceil(TILE as u32), index);
        self.join(&feed.down, feed.post, lifted, next, stand, index);
    }

    fn rope(&mut self, index: usize, stand: Standing) {
        let GpuDecoder { config, model, arena, store, .. } = self.decoder;
        let (layer, Some(store)) = (&model.layers[index], store) else { return };
        let angles = layer.rope.map(|r| model.angles[r]);
        let args = RopeArgs {
            q: arena.q.address(),
            k: arena.k.address(),
            v: arena.v.address(),
            q_norm: layer.q_norm.map_or(Address(0), |n| n.weight),
            k_norm: layer.k_norm.map_or(Address(0), |n| n.weight),
            angles: angles.map_or(Address(0), |a| a.table),
            kv: store.kv.at(index * store.layer),
            rows: self.input(arena.sections.rows),
            index: stand.index,
            stand: stand.header,
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            dim: config.head_dim as u32,
            rotary: angles.map_or(0, |a| a.rotary as u32),
            q_piece: layer.q_norm.map_or(0, |n| n.width as u32),
            k_piece: layer.k_norm.map_or(0, |n| n.width as u32),
            interleaved: u32::from(config.rope_layout == crate::config::RopeLayout::Interleaved),
            dtype: store.dtype,
            pages: store.pages as u32,
            reserved: 0,
            eps: config.norm_eps,
            positions: config.context as u32,
        };
        self.launch(Entry::Rope, Call::Rope(args), [stand.rows, 1, 1]);
    }

    /// Attention; gives what the output product reads.
    fn attend(&mut self, index: usize, stand: Standing) -> Acts {
        let GpuDecoder { config, model, arena, store, .. } = self.decoder;
        let layer = &model.layers[index];
        let form = layer.o.format.form();
        let wanted = arena.attended.acts(form, None);
        let Some(store) = store else { return wanted };
        // Groups of 32 must not cross heads; else the rows are made ready by a launch of their own.
        let whole = config.head_dim.is_multiple_of(32) || form == F32;
        let out = if whole { wanted } else { arena.attended.acts(F32, None) };
        let (_, groups, _) = tile(config);
        let shared = split(config, stand.rows, self.stretches);
        let (biases, count) = arena.sections.biases(index);
        let args = AttendArgs {
            out,
            q: arena.q.address(),
            kv: store.kv.at(index * store.layer),
            rows: self.input(arena.sections.rows),
            index: stand.index,
            stand: stand.header,
            tiles: stand.tiles,
            spans: self.input(arena.sections.spans),
            extras: self.input(arena.sections.extras),
            table: self.input(arena.sections.pages),
            biases: self.input(biases),
            bias_count: self.input(count),
            partials: arena.partials.address(),
            counters: arena.counters.address(),
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            dim: config.head_dim as u32,
            dtype: store.dtype,
            pages: store.pages as u32,
            window: layer.window.unwrap_or(0).min(u32::MAX as usize) as u32,
            split: u32::from(shared),
            layer: index as u32,
            scale: layer.scale,
            softcap: config.attention_softcap.unwrap_or(0.0),
            bad: self.bad(),
        };
        let entry = match config.head_dim {
            ..=64 => Entry::Attend64,
            ..=128 => Entry::Attend128,
            _ => Entry::Attend256,
        };
        let grid = [if shared { self.stretches } else { 1 }, config.kv_heads * groups, stand.most];
        self.launch(entry, Call::Attend(args), grid);
        if !whole {
            let mut norm = self.norm(None, stand, index);
            (norm.h, norm.stride) = (arena.attended.floats(), wanted.kp);
            (norm.k, norm.next) = (wanted.k, wanted);
            self.launch(Entry::NormRows, Call::Norm(norm), [stand.rows, 1, 1]);
        }
        wanted
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
        self.launch(Entry::NormRows, Call::Norm(norm), [stand.rows, 1, 1]);
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
        Laid { rows, tiles, stretches, runs: vec![(0..2, 0)], stands: vec![rows], taps: vec![0; 3] }
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
