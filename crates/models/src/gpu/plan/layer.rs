//! A layer: attention, and what joins it to the residual stream.
use super::{ADD, Planner, ROTATED, Standing};
use crate::gpu::GpuDecoder;
use crate::gpu::memory::{Store, split, tile, units, units_of_a_row};
use crate::gpu::model::{Before, Linear, Norm};
use omnidecode_kernels::cuda::args::*;
use omnidecode_kernels::cuda::{Address, Call, Entry};

/// The product behind, for who adds to the residual stream: its norm, what it reads, the norm's gain.
pub(super) type Next = (Before, Acts, Address);

impl Planner<'_> {
    /// `x += scale * norm(W y + b)`, and `x` ready for the product behind.
    pub(super) fn join(
        &mut self,
        linear: &Linear,
        post: Option<Norm>,
        input: Acts,
        next: Option<Next>,
        stand: Standing,
        layer: usize,
    ) {
        let (h, x) = (self.decoder.arena.h.address(), self.decoder.arena.x.address());
        let scale = self.decoder.config.residual_scale;
        let (ready, gain) = self.ready(next);
        let Some(post) = post else {
            let mut args = ProductArgs { input, next: ready, gain, x, mode: ADD, scale, ..ProductArgs::default() };
            (args.w[0], args.bias[0]) = (linear.weights, linear.bias);
            let tiles = linear.weights.n.div_ceil(TILE as u32);
            args.ends = [tiles; 3];
            // A norm that stands apart has all it needs when the sum is there.
            let norm = next.and_then(|next| self.norm_of(next, stand, layer + 1));
            let left = norm.and_then(|norm| self.behind(&mut args, norm, stand));
            self.product(linear, args, stand, tiles, layer);
            return self.norm_rows(left, stand);
        };
        let mut norm = self.norm(Some(post), stand, layer);
        (norm.h, norm.stride, norm.add) = (h, norm.k, x);
        (norm.scale, norm.next, norm.gain) = (scale, ready, gain);
        let mut tail = ProductArgs::default();
        let left = self.behind(&mut tail, norm, stand);
        self.store(&[(*linear, h)], tail, input, stand, layer);
        self.norm_rows(left, stand);
        self.apart(next, stand, layer + 1);
    }

    /// What a launch that adds to the residual stream leaves for the product behind: nothing where a norm stands apart.
    pub(super) fn ready(&self, next: Option<Next>) -> (Acts, Address) {
        match next {
            Some((before, acts, gain)) if !matches!(before, Before::Apart(_)) => (acts, gain),
            _ => (self.decoder.arena.hidden.acts(0, None), Address(0)),
        }
    }
    /// That norm.
    fn norm_of(&self, next: Next, stand: Standing, layer: usize) -> Option<NormArgs> {
        let (Before::Apart(norm), acts, gain) = next else { return None };
        Some(NormArgs { next: acts, gain, ..self.norm(Some(norm), stand, layer) })
    }
    /// The same as a launch.
    pub(super) fn apart(&mut self, next: Option<Next>, stand: Standing, layer: usize) {
        self.norm_rows(next.and_then(|next| self.norm_of(next, stand, layer)), stand);
    }

    /// A layer; `onward`: the same rows run the next one.
    pub(super) fn layer(&mut self, index: usize, stand: Standing, onward: bool) {
        let GpuDecoder { model, arena, .. } = self.decoder;
        let layer = &model.layers[index];
        let next = model.layers.get(index + 1).filter(|_| onward).map(|next| {
            let (acts, gain) = self.first_of(next, stand);
            (next.before, acts, gain)
        });
        let (input, _) = self.first_of(layer, stand);
        let [q, k, v] = layer.qkv;
        let out = [arena.q.address(), arena.k.address(), arena.v.address()];
        let rope = self.rope(index, stand);
        let mut tail = ProductArgs::default();
        if stand.few() {
            (tail.tail, tail.rope, tail.counters) = (ROTATED, rope, self.counters());
        }
        self.store(&[(q, out[0]), (k, out[1]), (v, out[2])], tail, input, stand, index);
        if !stand.few() {
            self.launch(Entry::Rope, Call::Rope(rope), [stand.rows, 1, 1]);
        }
        let attended = self.attend(index, stand);
        self.mass(index);
        let Some(feed) = &layer.feed else {
            return self.join(&layer.o, layer.post, attended, next, stand, index);
        };
        let (acts, gain) = self.reads_of(feed.before, self.feed_forms(&feed.inner, stand));
        self.join(&layer.o, layer.post, attended, Some((feed.before, acts, gain)), stand, index);
        self.feed(index, feed, acts, next, stand);
    }

    fn rope(&self, index: usize, stand: Standing) -> RopeArgs {
        let GpuDecoder { config, model, arena, store, .. } = self.decoder;
        let (layer, Some(store)) = (&model.layers[index], store) else { return RopeArgs::default() };
        let angles = layer.rope.map(|r| model.angles[r]);
        let [q_unit, k_unit, v_unit] = units(config);
        RopeArgs {
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
            q_unit: q_unit as u32,
            k_unit: k_unit as u32,
            v_unit: v_unit as u32,
            units: units_of_a_row(config) as u32,
            interleaved: u32::from(config.rope_layout == crate::config::RopeLayout::Interleaved),
            dtype: store.dtype,
            pages: store.pages as u32,
            reserved: 0,
            eps: config.norm_eps,
            positions: config.context as u32,
        }
    }

    /// Attention; gives what the output product reads.
    fn attend(&mut self, index: usize, stand: Standing) -> Acts {
        let GpuDecoder { config, model, arena, store, .. } = self.decoder;
        let layer = &model.layers[index];
        let form = self.form(&[layer.o], stand);
        let wanted = arena.attended.acts(form, None);
        let Some(store) = store else { return wanted };
        // Groups of 32 must not cross heads; else the rows are made ready by a launch of their own.
        let whole = config.head_dim.is_multiple_of(32) || form == F32;
        let out = if whole { wanted } else { arena.attended.acts(F32, None) };
        let (_, groups, _) = tile(config);
        let shared = split(config, stand.rows, self.stretches);
        let args = AttendArgs {
            of: self.attention(index, store),
            out,
            rows: self.input(arena.sections.rows),
            index: stand.index,
            stand: stand.header,
            tiles: stand.tiles,
            spans: self.input(arena.sections.spans),
            extras: self.input(arena.sections.extras),
            table: self.input(arena.sections.pages),
            partials: arena.partials.address(),
            counters: arena.counters.address(),
            bad: self.bad(),
            split: u32::from(shared),
            layer: index as u32,
        };
        let entry = match config.head_dim {
            0..=64 => Entry::Attend64,
            65..=128 => Entry::Attend128,
            _ => Entry::Attend256,
        };
        let grid = [if shared { self.stretches } else { 1 }, config.kv_heads * groups, stand.most];
        self.launch(entry, Call::Attend(args), grid);
        if !whole {
            let mut norm = self.norm(None, stand, index);
            (norm.h, norm.stride) = (arena.attended.floats(), wanted.kp);
            (norm.k, norm.next) = (wanted.k, wanted);
            self.norm_rows(Some(norm), stand);
        }
        wanted
    }

    fn attention(&self, index: usize, store: &Store) -> Attention {
        let GpuDecoder { config, model, arena, .. } = self.decoder;
        let layer = &model.layers[index];
        let (biases, count) = arena.sections.biases(index);
        Attention {
            q: arena.q.address(),
            kv: store.kv.at(index * store.layer),
            biases: self.input(biases),
            bias_count: self.input(count),
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            dim: config.head_dim as u32,
            dtype: store.dtype,
            pages: store.pages as u32,
            window: layer.window.unwrap_or(0).min(u32::MAX as usize) as u32,
            scale: layer.scale,
            softcap: config.attention_softcap.unwrap_or(0.0),
        }
    }

    /// Attention weights that are read in a layer.
    fn mass(&mut self, index: usize) {
        let GpuDecoder { config, arena, store, .. } = self.decoder;
        let (Some(store), Some(&count)) = (store, self.masses.get(index)) else { return };
        if count == 0 {
            return;
        }
        let first: usize = self.masses[..index].iter().sum();
        let args = MassArgs {
            of: self.attention(index, store),
            masses: self.input(arena.sections.masses + first * size_of::<Mass>()),
            keys: self.input(arena.sections.keys),
            weights: arena.mass_room.address(),
            out: arena.masses.address(),
            counters: arena.mass_counters.address(),
        };
        self.launch(Entry::Mass, Call::Mass(args), [config.heads, count, 1]);
    }
}
