//! The feed-forward part, dense or a mixture of experts.
use super::layer::Next;
use super::{ADD, CHOSEN, GATED, LIFT, Planner, STORE, Standing};
use crate::gpu::GpuDecoder;
use crate::gpu::model::{Experts, Feed, Inner};
use omnidecode_kernels::cuda::args::*;
use omnidecode_kernels::cuda::{Call, Entry};

impl Planner<'_> {
    /// The forms of rows that the first products of a feed-forward part read.
    pub(super) fn feed_forms(&self, inner: &Inner, stand: Standing) -> u32 {
        match inner {
            Inner::Dense { gate: Some(gate), up, .. } => self.form(&[*gate, *up], stand),
            Inner::Dense { up, .. } => self.form(&[*up], stand),
            Inner::Sparse(experts) => self.form(&[experts.router], stand) | experts.up.format.form(),
        }
    }

    /// `x += scale * norm(feed(input))`.
    pub(super) fn feed(&mut self, index: usize, feed: &Feed, input: Acts, next: Option<Next>, stand: Standing) {
        let GpuDecoder { config, arena, .. } = self.decoder;
        let (gate, up, down) = match feed.inner {
            Inner::Dense { gate, up, down } => (gate, up, down),
            Inner::Sparse(experts) => return self.experts(index, feed, &experts, input, next, stand),
        };
        let lifted = arena.lifted.acts(self.form(&[down], stand), None);
        let (clamps, count) = arena.sections.clamps(index);
        let mut args = ProductArgs {
            input,
            next: lifted,
            act: feed.act,
            mode: LIFT,
            scale: 1.0,
            rows: self.input(arena.sections.rows),
            clamps: self.input(clamps),
            clamp_count: self.input(count),
            ..ProductArgs::default()
        };
        (args.w[0], args.bias[0]) = (up.weights, up.bias);
        if let Some(gate) = gate {
            args.mode = GATED;
            (args.w[0], args.bias[0]) = (gate.weights, gate.bias);
            (args.w[1], args.bias[1]) = (up.weights, up.bias);
        }
        self.product(&up, args, stand, (config.intermediate as u32).div_ceil(TILE as u32), index);
        self.join(&down, feed.post, lifted, next, stand, index);
    }

    /// Each row goes to the experts that its router prefers: scores, with the choice at their end; two products over pairs of row
    /// and expert, and at the end of the second the sum of what a row's experts give, in the order of their ids.
    fn experts(
        &mut self,
        index: usize,
        feed: &Feed,
        experts: &Experts,
        input: Acts,
        next: Option<Next>,
        stand: Standing,
    ) {
        let GpuDecoder { config, arena, .. } = self.decoder;
        let mixture = &arena.mixture;
        let (scores, chosen, shares) = (mixture.scores.address(), mixture.chosen.address(), mixture.shares.address());
        let (count, per) = (experts.count as u32, experts.per_token as u32);
        let route = RouteArgs {
            scores,
            chosen,
            shares,
            stand: stand.header,
            experts: count,
            per,
            normalize: u32::from(experts.normalize),
            reserved: 0,
        };
        let mut tail = ProductArgs::default();
        if stand.few() {
            (tail.tail, tail.route, tail.counters) = (CHOSEN, route, self.counters());
        }
        self.store(&[(experts.router, scores)], tail, input, stand, index);
        if !stand.few() {
            self.launch(Entry::Route, Call::Route(route), [stand.rows, 1, 1]);
        }
        let lifted = mixture.lifted.acts(experts.down.format.form(), None);
        let both = ProductArgs { act: feed.act, scale: 1.0, chosen, per, experts: count, ..ProductArgs::default() };
        let mut lift = ProductArgs { input, next: lifted, mode: GATED, bank: experts.lifts, ..both };
        lift.w[0] = experts.up.weights;
        self.expert_product(lift, experts.up.format.is_quantized(), stand, index);
        let (ready, gain) = self.ready(next);
        let (parts, arrived) = (mixture.parts.address(), mixture.arrived.address());
        let mut down = ProductArgs { input: lifted, bank: experts.downs, shares, parts, arrived, ..both };
        down.w[0] = experts.down.weights;
        let scale = config.residual_scale;
        match feed.post {
            None => {
                (down.mode, down.x, down.scale, down.next, down.gain) = (ADD, arena.x.address(), scale, ready, gain);
                self.expert_product(down, experts.down.format.is_quantized(), stand, index);
            }
            Some(post) => {
                (down.mode, down.out[0]) = (STORE, arena.h.address());
                self.expert_product(down, experts.down.format.is_quantized(), stand, index);
                let mut norm = self.norm(Some(post), stand, index);
                (norm.h, norm.stride, norm.add) = (arena.h.address(), norm.k, arena.x.address());
                (norm.scale, norm.next, norm.gain) = (scale, ready, gain);
                self.norm_rows(Some(norm), stand);
            }
        }
        self.apart(next, stand, index + 1);
    }

    /// The matrices of all experts in one launch; an expert has at most all rows.
    fn expert_product(&mut self, mut args: ProductArgs, quantized: bool, stand: Standing, layer: usize) {
        self.common(&mut args, stand, layer);
        let tiles = args.w[0].n.div_ceil(TILE as u32) as usize;
        let (entry, tall) = match (quantized, stand.rows <= 32) {
            (true, true) => (Entry::Experts16, 16),
            (true, false) => (Entry::Experts64, 64),
            (false, true) => (Entry::ExpertLines16, 16),
            (false, false) => (Entry::ExpertLines64, 64),
        };
        let grid = [tiles, stand.rows.div_ceil(tall), args.experts as usize];
        self.launch(entry, Call::Product(args), grid);
    }
}
