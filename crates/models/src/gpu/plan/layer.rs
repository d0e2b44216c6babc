//! A layer: attention, and what joins it to the residual stream.
use super::{ADD, Planner, Standing};
use crate::gpu::GpuDecoder;
use crate::gpu::load::{Before, Linear, Norm};
use crate::gpu::memory::{split, tile};
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
        let arena = &self.decoder.arena;
        let scale = self.decoder.config.residual_scale;
        let (ready, gain) = self.ready(next);
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
    pub(super) fn apart(&mut self, next: Option<Next>, stand: Standing, layer: usize) {
        if let Some((before @ Before::Apart(_), acts, gain)) = next {
            self.norm_apart(before, acts, gain, stand, layer);
        }
    }

    /// A layer; `onward`: the same rows run the next one.
    pub(super) fn layer(&mut self, index: usize, stand: Standing, onward: bool) {
        let GpuDecoder { model, arena, .. } = self.decoder;
        let layer = &model.layers[index];
        let next = model.layers.get(index + 1).filter(|_| onward).map(|next| {
            let (acts, gain) = self.first_of(next);
            (next.before, acts, gain)
        });
        let (input, _) = self.first_of(layer);
        let [q, k, v] = layer.qkv;
        let out = [arena.q.address(), arena.k.address(), arena.v.address()];
        self.store(&[(q, out[0]), (k, out[1]), (v, out[2])], input, stand, index);
        self.rope(index, stand);
        let attended = self.attend(index, stand);
        self.mass(index);
        let Some(feed) = &layer.feed else {
            return self.join(&layer.o, layer.post, attended, next, stand, index);
        };
        let (acts, gain) = self.reads_of(feed.before, feed.inner.forms());
        self.join(&layer.o, layer.post, attended, Some((feed.before, acts, gain)), stand, index);
        self.feed(index, feed, acts, next, stand);
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
            self.launch(Entry::NormRows, Call::Norm(norm), [stand.rows, 1, 1]);
        }
        wanted
    }

    /// Attention weights that are read in a layer.
    fn mass(&mut self, index: usize) {
        let GpuDecoder { config, model, arena, store, .. } = self.decoder;
        let (Some(store), Some(&count)) = (store, self.masses.get(index)) else { return };
        if count == 0 {
            return;
        }
        let first: usize = self.masses[..index].iter().sum();
        let (biases, bias_count) = arena.sections.biases(index);
        let args = MassArgs {
            q: arena.q.address(),
            kv: store.kv.at(index * store.layer),
            masses: self.input(arena.sections.masses + first * size_of::<Mass>()),
            keys: self.input(arena.sections.keys),
            biases: self.input(biases),
            bias_count: self.input(bias_count),
            weights: arena.mass_room.address(),
            out: arena.masses.address(),
            counters: arena.mass_counters.address(),
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            dim: config.head_dim as u32,
            dtype: store.dtype,
            pages: store.pages as u32,
            reserved: 0,
            scale: model.layers[index].scale,
            softcap: config.attention_softcap.unwrap_or(0.0),
        };
        self.launch(Entry::Mass, Call::Mass(args), [config.heads, count, 1]);
    }
}
