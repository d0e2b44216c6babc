//! The feed-forward part, dense or a mixture of experts.
use super::layer::Next;
use super::{GATED, LIFT, Planner, STORE, Standing};
use crate::gpu::GpuDecoder;
use crate::gpu::load::{Experts, Feed, Inner};
use omnidecode_kernels::cuda::args::*;
use omnidecode_kernels::cuda::{Call, Entry};

impl Planner<'_> {
    /// `x += scale * norm(feed(input))`.
    pub(super) fn feed(&mut self, index: usize, feed: &Feed, input: Acts, next: Option<Next>, stand: Standing) {
        let GpuDecoder { config, arena, .. } = self.decoder;
        let (gate, up, down) = match feed.inner {
            Inner::Dense { gate, up, down } => (gate, up, down),
            Inner::Sparse(experts) => return self.experts(index, feed, &experts, input, next, stand),
        };
        let lifted = arena.lifted.acts(down.format.form(), None);
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

    /// Each row goes to the experts that its router prefers: scores, choice, two products over pairs of row and expert, and
    /// the sum of what a row's experts give, in the order of their ids.
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
        self.store(&[(experts.router, scores)], input, stand, index);
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
        self.launch(Entry::Route, Call::Route(route), [stand.rows, 1, 1]);
        let lifted = mixture.lifted.acts(experts.down.format.form(), None);
        let both = ProductArgs { act: feed.act, scale: 1.0, chosen, per, experts: count, ..ProductArgs::default() };
        let mut lift = ProductArgs { input, next: lifted, mode: GATED, bank: experts.lifts, ..both };
        lift.w[0] = experts.up.weights;
        self.expert_product(lift, experts.up.format.is_quantized(), stand, index);
        let mut down = ProductArgs { input: lifted, mode: STORE, bank: experts.downs, ..both };
        (down.w[0], down.out[0]) = (experts.down.weights, mixture.down.address());
        self.expert_product(down, experts.down.format.is_quantized(), stand, index);
        let (ready, gain) = self.ready(next);
        let mut args = self.norm(feed.post, stand, index);
        (args.h, args.stride, args.add) = (mixture.down.address(), args.k, arena.x.address());
        (args.shares, args.parts) = (shares, per);
        (args.scale, args.next, args.gain) = (config.residual_scale, ready, gain);
        self.launch(Entry::NormRows, Call::Norm(args), [stand.rows, 1, 1]);
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
