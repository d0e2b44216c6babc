//! One tile of query rows walks its keys, stretch by stretch.
use super::block::Block;
use super::inner::{Element, F16, Pair, Round};
use super::look::Look;
use super::soften::exp2;
use super::{Item, Job, STRETCH, Shared};
use crate::kv::{KvDtype, PAGE};
use crate::simd::{Simd, Task};

/// Floats of one partial result: accumulators, maxima (in log2), sums.
pub(super) fn partial_len(rows: usize, width: usize) -> usize {
    rows * (width + 2)
}

/// Memory of one thread, reused from call to call.
#[derive(Default)]
pub(super) struct Scratch {
    floats: Vec<f32>,
    scores: Vec<f32>,
    wide: Vec<f32>,
    pairs: Vec<Pair>,
    look: Look,
}

/// A running softmax of some rows.
pub(super) struct State<'a> {
    /// [rows, width]
    pub acc: &'a mut [f32],
    /// Maxima, in log2.
    pub max: &'a mut [f32],
    /// Sums of weights.
    pub sum: &'a mut [f32],
}
impl State<'_> {
    fn clear(&mut self) {
        self.acc.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }
}

/// Add the softmax of the next stretch of a row to what it has.
#[inline(always)]
fn join<S: Simd>(s: S, total: (&mut [f32], &mut f32, &mut f32), part: (&[f32], f32, f32)) {
    let (acc, max, sum) = total;
    let (part_acc, part_max, part_sum) = part;
    if part_max == f32::NEG_INFINITY {
        return;
    }
    if *max == f32::NEG_INFINITY {
        acc.copy_from_slice(part_acc);
        (*max, *sum) = (part_max, part_sum);
        return;
    }
    let high = if part_max > *max { part_max } else { *max };
    let (a, b) = (exp2(s, *max - high), exp2(s, part_max - high));
    let (va, vb) = (s.splat(a), s.splat(b));
    let mut c = 0;
    while c < acc.len() {
        // SAFETY: both hold `width` floats, a multiple of LANES.
        unsafe {
            let kept = s.mul(s.load(acc.as_ptr().add(c)), va);
            s.store(acc.as_mut_ptr().add(c), s.fma(s.load(part_acc.as_ptr().add(c)), vb, kept));
        }
        c += S::LANES;
    }
    *sum = *sum * a + part_sum * b;
    *max = high;
}

/// Walk an item.
pub(super) struct Walk<'a> {
    pub job: Job<'a>,
    pub item: &'a Item,
    pub scratch: &'a mut Scratch,
    pub partials: Shared,
    pub out: Shared,
}
impl Task for Walk<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.job.kv.dtype() {
            KvDtype::F32 => self.walk::<S, f32>(s),
            KvDtype::F16 => self.walk::<S, F16>(s),
            KvDtype::Bf16 => self.walk::<S, Pair>(s),
        }
    }
}

impl Walk<'_> {
    #[inline(always)]
    fn walk<S: Simd, T: Element>(self, s: S) {
        let Walk { job, item, scratch, partials, out } = self;
        let (dim, width, rows) = (job.heads.dim, job.kv.width(), item.rows());
        let need = rows * (dim + 2 * width + 4 + 3 * PAGE + 1 + S::LANES);
        if scratch.floats.len() < need {
            scratch.floats.resize(need, 0.0);
        }
        let mut rest = &mut scratch.floats[..];
        let mut take = |n: usize| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(rows * n);
            rest = others;
            part
        };
        let mut state = State { acc: take(width), max: take(1), sum: take(1) };
        let mut total = State { acc: take(width), max: take(1), sum: take(1) };
        let q = take(dim / T::UNIT);
        let some = item.heads.len() * dim;
        for (query, q) in job.sight.queries[item.queries.clone()].iter().zip(q.chunks_exact_mut(some / T::UNIT)) {
            let at = (query.row as usize * job.heads.heads + job.first_head(item)) * dim;
            let from = &job.q[at..at + some];
            if T::UNIT == 1 {
                q.copy_from_slice(from);
            } else {
                // SAFETY: two to a float fit.
                s.call(Round { from: from.as_ptr(), to: q.as_mut_ptr().cast(), n: some });
            }
        }
        let mut block = Block::<T> {
            job: &job,
            item,
            look: &mut scratch.look,
            q,
            weights: take(PAGE),
            gathered: take(PAGE),
            adds: take(PAGE),
            factors: take(1),
            sums: take(S::LANES),
            scores: &mut scratch.scores,
            wide: &mut scratch.wide,
            pairs: &mut scratch.pairs,
            element: std::marker::PhantomData,
        };
        total.clear();
        block.look.enter(&job, item, item.stretches.start * STRETCH);
        for stretch in item.stretches.clone() {
            state.clear();
            block.sums.fill(0.0);
            for index in 0..STRETCH / PAGE {
                block.visit(s, stretch * (STRETCH / PAGE) + index, &mut state);
            }
            for r in 0..rows {
                // SAFETY: `sums` holds a vector per row.
                state.sum[r] = s.reduce_add(unsafe { s.load(block.sums.as_ptr().add(r * S::LANES)) });
                if item.partial.is_none() {
                    let row = r * width..(r + 1) * width;
                    join(
                        s,
                        (&mut total.acc[row.clone()], &mut total.max[r], &mut total.sum[r]),
                        (&state.acc[row], state.max[r], state.sum[r]),
                    );
                }
            }
        }
        match item.partial {
            None => finish(job, item, &total, out),
            Some(at) => {
                // SAFETY: the plan gave this part of the partials to this item alone.
                let part = unsafe { partials.part(at, partial_len(rows, width)) };
                let (acc, rest) = part.split_at_mut(rows * width);
                acc.copy_from_slice(state.acc);
                rest[..rows].copy_from_slice(state.max);
                rest[rows..].copy_from_slice(state.sum);
            }
        }
    }
}

/// Divide by the sums and write the rows of a tile.
fn finish(job: Job, item: &Item, total: &State, out: Shared) {
    let (dim, width) = (job.heads.dim, job.kv.width());
    let first_head = job.first_head(item);
    for (index, query) in job.sight.queries[item.queries.clone()].iter().enumerate() {
        for h in 0..item.heads.len() {
            let r = index * item.heads.len() + h;
            // SAFETY: rows are distinct over all queries, and this tile alone has this head of this row.
            let out = unsafe { out.part((query.row as usize * job.heads.heads + first_head + h) * dim, dim) };
            if total.max[r] == f32::NEG_INFINITY {
                out.fill(0.0);
                continue;
            }
            let share = 1.0 / total.sum[r];
            for (o, a) in out.iter_mut().zip(&total.acc[r * width..]) {
                *o = a * share;
            }
        }
    }
}

/// Join the partial results of a tile's stretches and write its rows.
pub(super) struct Join<'a> {
    pub job: Job<'a>,
    pub tile: &'a Item,
    pub scratch: &'a mut Scratch,
    /// One partial per stretch of the tile.
    pub partials: &'a [f32],
    pub out: Shared,
}
impl Task for Join<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (width, rows) = (self.job.kv.width(), self.tile.rows());
        let floats = &mut self.scratch.floats;
        if floats.len() < partial_len(rows, width) {
            floats.resize(partial_len(rows, width), 0.0);
        }
        let (acc, rest) = floats.split_at_mut(rows * width);
        let (max, rest) = rest.split_at_mut(rows);
        let mut total = State { acc, max, sum: &mut rest[..rows] };
        total.clear();
        for part in self.partials.chunks_exact(partial_len(rows, width)).take(self.tile.stretches.len()) {
            let (acc, rest) = part.split_at(rows * width);
            for r in 0..rows {
                let row = r * width..(r + 1) * width;
                join(
                    s,
                    (&mut total.acc[row.clone()], &mut total.max[r], &mut total.sum[r]),
                    (&acc[row], rest[r], rest[rows + r]),
                );
            }
        }
        finish(self.job, self.tile, &total, self.out);
    }
}
