//! Products: the project's own, and those of many rows by the library.
use super::{ADD, Planner, STORE, Standing};
use crate::gpu::load::Linear;
use omnidecode_kernels::cuda::args::*;
use omnidecode_kernels::cuda::pack::Format;
use omnidecode_kernels::cuda::{Address, Call, Entry};

/// Rows up to which the own products run even where the library is used: what one block takes.
const MANY: usize = 64;
/// Rows that a block of `epilogue` finishes.
const WARPS: usize = 8;

impl Planner<'_> {
    /// What every product is told.
    pub(super) fn common(&self, args: &mut ProductArgs, stand: Standing, layer: usize) {
        (args.index, args.stand, args.bad, args.layer) = (stand.index, stand.header, self.bad(), layer as u32);
    }

    /// Products of 32 outputs and 16, 32 or 64 rows a block.
    pub(super) fn product(
        &mut self,
        linear: &Linear,
        mut args: ProductArgs,
        stand: Standing,
        tiles: u32,
        layer: usize,
    ) {
        self.common(&mut args, stand, layer);
        if self.decoder.library
            && stand.rows > MANY
            && args.w.iter().all(|w| w.n == 0 || w.format == Format::Bf16 as u32)
        {
            return self.by_library(args, stand, tiles);
        }
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
    pub(super) fn store(&mut self, linears: &[(Linear, Address)], input: Acts, stand: Standing, layer: usize) {
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

    /// The library leaves sums in f32, a launch of our own does the rest.
    fn by_library(&mut self, mut args: ProductArgs, stand: Standing, tiles: u32) {
        let arena = &self.decoder.arena;
        args.sums = match args.mode {
            STORE => args.out,
            ADD => [arena.h.address(), Address(0), Address(0)],
            _ => [arena.sums[0].address(), arena.sums[1].address(), Address(0)],
        };
        for (w, out) in args.w.iter().zip(args.sums).filter(|(w, _)| w.n > 0) {
            let (x, rows) = (args.input.bf16, stand.rows as u32);
            let call = MatmulArgs { w: w.codes, x, out, n: w.n, k: w.kp, rows, reserved: 0 };
            self.launch(Entry::Matmul, Call::Matmul(call), [1; 3]);
        }
        self.launch(Entry::Epilogue, Call::Product(args), [tiles as usize, stand.rows.div_ceil(WARPS), 1]);
    }
}
