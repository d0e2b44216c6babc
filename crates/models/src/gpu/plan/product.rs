//! Products: the project's own, and those of many rows by the library.
use super::{ADD, NORMED, Planner, STORE, Standing};
use crate::gpu::memory::{MANY, UNPACKED};
use crate::gpu::model::Linear;
use omnidecode_kernels::cuda::args::*;
use omnidecode_kernels::cuda::pack::Format;
use omnidecode_kernels::cuda::{Address, Call, Entry};

/// Rows that a block of `epilogue` finishes.
const WARPS: usize = 8;

impl Planner<'_> {
    /// What every product is told.
    pub(super) fn common(&self, args: &mut ProductArgs, stand: Standing, layer: usize) {
        (args.index, args.stand, args.bad, args.layer) = (stand.index, stand.header, self.bad(), layer as u32);
    }

    /// Whether the library multiplies these matrices, which share a launch here: in bf16 from more rows than a block takes, quantized
    /// ones from [`UNPACKED`].
    fn in_library(&self, mut formats: impl Iterator<Item = u32>, stand: Standing) -> bool {
        let takes = |format| match format {
            f if f == Format::Bf16 as u32 => stand.rows > MANY,
            f if f >= Format::Q8 as u32 => stand.rows >= UNPACKED,
            _ => false,
        };
        self.decoder.library && formats.all(takes)
    }
    /// The forms of rows that these matrices are multiplied with.
    pub(super) fn form(&self, linears: &[Linear], stand: Standing) -> u32 {
        match self.in_library(linears.iter().map(|l| l.weights.format), stand) {
            true => BF16,
            false => linears.iter().fold(0, |forms, l| forms | l.format.form()),
        }
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
        if self.in_library(args.w.iter().filter(|w| w.n > 0).map(|w| w.format), stand) {
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

    /// Some matrices of one kind side by side; `tail`: with what follows.
    pub(super) fn store(
        &mut self,
        linears: &[(Linear, Address)],
        tail: ProductArgs,
        input: Acts,
        stand: Standing,
        layer: usize,
    ) {
        let mut args = ProductArgs { input, mode: STORE, scale: 1.0, ..tail };
        let mut end = 0;
        for (i, (linear, out)) in linears.iter().enumerate() {
            end += linear.weights.n.div_ceil(TILE as u32);
            (args.w[i], args.bias[i], args.out[i]) = (linear.weights, linear.bias, *out);
            args.ends[i..].fill(end);
        }
        self.product(&linears[0].0, args, stand, end, layer);
    }

    /// A norm behind a product: done by its last blocks, or given back for a launch behind it.
    pub(super) fn behind(&self, args: &mut ProductArgs, norm: NormArgs, stand: Standing) -> Option<NormArgs> {
        if !stand.few() {
            return Some(norm);
        }
        (args.tail, args.norm, args.counters) = (NORMED, norm, self.counters());
        None
    }
    pub(super) fn counters(&self) -> Address {
        self.decoder.arena.tails.address()
    }

    /// The library leaves sums in f32, a launch of our own does the rest. It knows numbers, not codes: one matrix after the other is
    /// unpacked to the same memory.
    fn by_library(&mut self, mut args: ProductArgs, stand: Standing, tiles: u32) {
        let arena = &self.decoder.arena;
        args.sums = match args.mode {
            STORE => args.out,
            ADD => [arena.h.address(), Address(0), Address(0)],
            _ => [arena.sums[0].address(), arena.sums[1].address(), Address(0)],
        };
        for (w, out) in args.w.iter().zip(args.sums).filter(|(w, _)| w.n > 0) {
            let mut codes = w.codes;
            if w.format != Format::Bf16 as u32 {
                codes = self.decoder.unpacked.address();
                let unpack = UnpackArgs { w: *w, out: codes };
                self.launch(Entry::Unpack, Call::Unpack(unpack), [w.n.div_ceil(8) as usize, 1, 1]);
            }
            let (x, rows) = (args.input.bf16, stand.rows as u32);
            let call = MatmulArgs { w: codes, x, out, n: w.n, k: w.kp, rows, reserved: 0 };
            self.launch(Entry::Matmul, Call::Matmul(call), [1; 3]);
        }
        self.launch(Entry::Epilogue, Call::Product(args), [tiles as usize, stand.rows.div_ceil(WARPS), 1]);
    }
}
