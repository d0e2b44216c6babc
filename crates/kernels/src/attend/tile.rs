//! One tile of query rows walks its keys, block by block.
use super::inner::{self, Bf16, Element, F16, Rows};
use super::{Item, Job, Query, STRETCH, Shared, Visible};
use crate::kv::{KvDtype, PAGE};
use crate::math;
use crate::simd::{MAX_LANES, Simd, Task};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Floats of one partial result: accumulators, maxima (in log2), sums.
pub(super) fn partial_len(rows: usize, width: usize) -> usize {
    rows * (width + 2)
}

/// What a query sees of the block at hand.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Bit i: the key at the block's place i, in the page.
    page: u32,
    /// Keys outside the pages: a range of `Sight::extras`.
    extras: Range<usize>,
    /// Where the walk through spans and extras stands.
    span: usize,
    extra: usize,
}
impl Seen {
    /// A prefix of the page and nothing else: key i is the page's key i.
    fn plain(&self) -> bool {
        self.extras.is_empty() && self.page & self.page.wrapping_add(1) == 0
    }
}

/// Memory of one thread, reused from call to call.
#[derive(Default)]
pub(super) struct Scratch {
    floats: Vec<f32>,
    scores: Vec<f32>,
    wide: Vec<f32>,
    seen: Vec<Seen>,
    /// Slot pages whose scores are formed for the block at hand; the first is the table's.
    sheets: Vec<u32>,
    /// Keys of one query in place order: sheet * PAGE + lane, and place.
    keys: Vec<(u32, u32)>,
}

/// A running softmax of some rows.
struct State<'a> {
    /// [rows, width]
    acc: &'a mut [f32],
    /// Maxima, in log2.
    max: &'a mut [f32],
    /// Sums of weights.
    sum: &'a mut [f32],
}
impl State<'_> {
    fn clear(&mut self) {
        self.acc.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }
}

/// Lane numbers.
static LANES: [f32; PAGE] = {
    let mut lanes = [0.0; PAGE];
    let mut i = 0;
    while i < PAGE {
        lanes[i] = i as f32;
        i += 1;
    }
    lanes
};

#[inline(always)]
fn exp2_scalar<S: Simd>(s: S, x: f32) -> f32 {
    let mut out = [0f32; MAX_LANES];
    // SAFETY: `out` holds a vector.
    unsafe { s.store(out.as_mut_ptr(), math::exp2(s, s.splat(x))) };
    out[0]
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
    let (a, b) = (exp2_scalar(s, *max - high), exp2_scalar(s, part_max - high));
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
            KvDtype::Bf16 => self.walk::<S, Bf16>(s),
        }
    }
}

impl Walk<'_> {
    #[inline(always)]
    fn walk<S: Simd, T: Element>(self, s: S) {
        let Walk { job, item, scratch, partials, out } = self;
        let (dim, width, rows) = (job.heads.dim, job.kv.width(), item.rows());
        let Scratch { floats, scores, wide, seen, sheets, keys } = scratch;
        let need = rows * (dim + 2 * width + 4 + PAGE + 1 + S::LANES);
        if floats.len() < need {
            floats.resize(need, 0.0);
        }
        let (q, rest) = floats.split_at_mut(rows * dim);
        let (acc, rest) = rest.split_at_mut(rows * width);
        let (total_acc, rest) = rest.split_at_mut(rows * width);
        let (max, rest) = rest.split_at_mut(rows);
        let (sum, rest) = rest.split_at_mut(rows);
        let (total_max, rest) = rest.split_at_mut(rows);
        let (total_sum, rest) = rest.split_at_mut(rows);
        let (weights, rest) = rest.split_at_mut(rows * PAGE);
        let (factors, rest) = rest.split_at_mut(rows);
        let lanes = &mut rest[..rows * S::LANES];
        let mut state = State { acc, max, sum };
        let mut total = State { acc: total_acc, max: total_max, sum: total_sum };
        total.clear();

        let queries = &job.sight.queries[item.queries.clone()];
        let per_kv = job.heads.heads / job.heads.kv_heads;
        let (first_head, tall) = (item.kv_head * per_kv + item.heads.start, item.heads.len());
        for (query, q) in queries.iter().zip(q.chunks_exact_mut(tall * dim)) {
            let at = (query.row as usize * job.heads.heads + first_head) * dim;
            q.copy_from_slice(&job.q[at..at + tall * dim]);
        }
        let mut block = Block::<T> {
            job,
            group: item.group,
            queries,
            kv_head: item.kv_head,
            first_head,
            tall,
            q,
            seen,
            sheets,
            keys,
            scores,
            wide,
            weights,
            factors,
            lanes,
            element: std::marker::PhantomData,
        };
        block.enter(item.stretches.start * STRETCH);
        for stretch in item.stretches.clone() {
            state.clear();
            block.lanes.fill(0.0);
            for index in 0..STRETCH / PAGE {
                block.visit(s, stretch * (STRETCH / PAGE) + index, &mut state);
            }
            for r in 0..rows {
                // SAFETY: `lanes` holds a vector per row.
                state.sum[r] = s.reduce_add(unsafe { s.load(block.lanes.as_ptr().add(r * S::LANES)) });
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
    let per_kv = job.heads.heads / job.heads.kv_heads;
    let first_head = item.kv_head * per_kv + item.heads.start;
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

/// The walk's view of one block.
struct Block<'a, T> {
    job: Job<'a>,
    group: usize,
    queries: &'a [Query],
    kv_head: usize,
    /// First query head of the tile, and how many: rows are [queries, tall].
    first_head: usize,
    tall: usize,
    q: &'a [f32],
    seen: &'a mut Vec<Seen>,
    sheets: &'a mut Vec<u32>,
    keys: &'a mut Vec<(u32, u32)>,
    scores: &'a mut Vec<f32>,
    wide: &'a mut Vec<f32>,
    weights: &'a mut [f32],
    factors: &'a mut [f32],
    /// Sums of weights by lane, a vector per row.
    lanes: &'a mut [f32],
    element: std::marker::PhantomData<T>,
}

/// The table page is not read in this block.
const NO_PAGE: u32 = u32::MAX;

impl<T: Element> Block<'_, T> {
    /// Stand before the block that starts at `place`.
    fn enter(&mut self, place: usize) {
        let sight = self.job.sight;
        self.seen.clear();
        self.seen.extend(self.queries.iter().map(|query| Seen {
            span: query.spans.start
                + sight.spans[query.spans.clone()].partition_point(|span| span.1 as usize <= place),
            extra: query.extras.start
                + sight.extras[query.extras.clone()].partition_point(|key| (key.place as usize) < place),
            ..Seen::default()
        }));
    }

    /// Find what each query sees of block `index`; false if nobody sees anything.
    fn look(&mut self, index: usize) -> bool {
        let sight = self.job.sight;
        let (low, high) = ((index * PAGE) as u32, ((index + 1) * PAGE) as u32);
        self.sheets.clear();
        self.sheets.push(NO_PAGE);
        let mut any = false;
        for (query, seen) in self.queries.iter().zip(self.seen.iter_mut()) {
            let first = self.job.first(query);
            let spans = &sight.spans[..query.spans.end];
            while seen.span < spans.len() && spans[seen.span].1 <= low {
                seen.span += 1;
            }
            seen.page = 0;
            for &(start, end) in &spans[seen.span.min(spans.len())..] {
                if start >= high {
                    break;
                }
                let (from, to) = (start.max(low).max(first), end.min(high));
                if from < to {
                    seen.page |= (u32::MAX >> (PAGE as u32 - (to - from))) << (from - low);
                }
            }
            let extras = &sight.extras[..query.extras.end];
            while seen.extra < extras.len() && extras[seen.extra].place < first.max(low) {
                seen.extra += 1;
            }
            let from = seen.extra;
            while seen.extra < extras.len() && extras[seen.extra].place < high {
                let sheet = extras[seen.extra].slot / PAGE as u32;
                if !self.sheets[1..].contains(&sheet) {
                    self.sheets.push(sheet);
                }
                seen.extra += 1;
            }
            seen.extras = from..seen.extra;
            if seen.page != 0 {
                self.sheets[0] = sight.pages[sight.groups[self.group].table.clone()][index];
            }
            any |= seen.page != 0 || !seen.extras.is_empty();
        }
        let pages = self.job.kv.slots().div_ceil(PAGE);
        for &sheet in self.sheets.iter().filter(|&&sheet| sheet != NO_PAGE) {
            assert!((sheet as usize) < pages, "attend: page {sheet} of {pages}");
        }
        any
    }

    #[inline(always)]
    fn visit<S: Simd>(&mut self, s: S, index: usize, state: &mut State) {
        if !self.look(index) {
            return;
        }
        let (kv, rows) = (self.job.kv, self.queries.len() * self.tall);
        let (dim, width) = (self.job.heads.dim, kv.width());
        let stride = self.sheets.len() * PAGE;
        if self.scores.len() < rows * stride {
            self.scores.resize(rows * stride, 0.0);
        }
        // Many rows: widen each page once. Few: while it is read.
        let widen = !T::WIDE && rows > S::TILE;
        let page_floats = PAGE * (dim + width);
        if widen && self.wide.len() < self.sheets.len() * page_floats {
            self.wide.resize(self.sheets.len() * page_floats, 0.0);
        }
        for (i, &sheet) in self.sheets.iter().enumerate().filter(|&(_, &sheet)| sheet != NO_PAGE) {
            // SAFETY: `look` has checked that the page exists; the buffers hold what is written.
            unsafe {
                let (keys, _) = kv.page::<T>(self.job.layer, self.kv_head, sheet as usize);
                let (q, out) = (self.q.as_ptr(), self.scores.as_mut_ptr().add(i * PAGE));
                if widen {
                    let wide = self.wide.as_mut_ptr().add(i * page_floats);
                    inner::widen(s, keys, wide, page_floats);
                    inner::scores(s, dim, rows, q, wide.cast_const(), out, stride);
                } else {
                    inner::scores(s, dim, rows, q, keys, out, stride);
                }
            }
        }
        if widen {
            self.weigh::<S, f32>(s, index, state);
        } else {
            self.weigh::<S, T>(s, index, state);
        }
    }

    /// Where the value behind a key lies: sheet * PAGE + lane. `V` is f32 when pages were widened.
    #[inline(always)]
    fn value<V: Element>(&self, key: u32) -> *const V {
        let (sheet, lane) = (key as usize / PAGE, key as usize % PAGE);
        let (dim, width) = (self.job.heads.dim, self.job.kv.width());
        // SAFETY: inside the page, or inside its widened copy.
        unsafe {
            if V::WIDE && !T::WIDE {
                let at = sheet * PAGE * (dim + width) + PAGE * dim + lane * width;
                self.wide.as_ptr().add(at).cast()
            } else {
                let page = self.sheets[sheet] as usize;
                self.job.kv.page::<V>(self.job.layer, self.kv_head, page).1.add(lane * width)
            }
        }
    }

    /// Softmax and values of the block whose scores are formed.
    #[inline(always)]
    fn weigh<S: Simd, V: Element>(&mut self, s: S, index: usize, state: &mut State) {
        let group = &self.job.sight.groups[self.group];
        let biased = self.job.sight.biases[group.biases.clone()].iter().any(|b| b.place as usize / PAGE == index);
        let stride = self.sheets.len() * PAGE;
        let mut run = 0..0;
        let mut run_keys = 0;
        for i in 0..self.queries.len() {
            let seen = &self.seen[i];
            let plain = seen.plain();
            let keys = if plain { seen.page.count_ones() as usize } else { 0 };
            if keys != run_keys {
                self.add::<S, V>(s, run, run_keys, state);
                run = i..i;
                run_keys = keys;
            }
            run.end = i + 1;
            if plain {
                if keys == 0 {
                    continue;
                }
                for h in 0..self.tall {
                    let r = i * self.tall + h;
                    let add = biased.then(|| self.adds(h, (index * PAGE) as u32..));
                    // SAFETY: a row of scores begins with those of the table's page.
                    unsafe { self.soften(s, r, self.scores.as_ptr().add(r * stride), keys, add, state) };
                }
                continue;
            }
            self.list(i, index);
            let list = std::mem::take(self.keys);
            for portion in list.chunks(PAGE) {
                let mut gathered = [0f32; PAGE];
                for h in 0..self.tall {
                    let r = i * self.tall + h;
                    for (to, &(key, _)) in gathered.iter_mut().zip(portion) {
                        *to = self.scores[r * stride + key as usize];
                    }
                    let add = biased.then(|| self.adds(h, portion.iter().map(|key| key.1)));
                    // SAFETY: `gathered` holds a page.
                    unsafe { self.soften(s, r, gathered.as_ptr(), portion.len(), add, state) };
                }
                let mut values = [std::ptr::null::<V>(); PAGE];
                for (to, &(key, _)) in values.iter_mut().zip(portion) {
                    *to = self.value(key);
                }
                self.add_listed(s, i..i + 1, &values[..portion.len()], state);
            }
            *self.keys = list;
        }
        self.add::<S, V>(s, run, run_keys, state);
    }

    /// Add the first `keys` values of the table's page to the rows of some queries.
    #[inline(always)]
    fn add<S: Simd, V: Element>(&mut self, s: S, queries: Range<usize>, keys: usize, state: &mut State) {
        if keys == 0 || queries.is_empty() {
            return;
        }
        let mut values = [std::ptr::null::<V>(); PAGE];
        for (i, to) in values[..keys].iter_mut().enumerate() {
            *to = self.value(i as u32);
        }
        self.add_listed(s, queries, &values[..keys], state);
    }

    #[inline(always)]
    fn add_listed<S: Simd, V: Element>(&mut self, s: S, queries: Range<usize>, values: &[*const V], state: &mut State) {
        let first = queries.start * self.tall;
        let width = self.job.kv.width();
        // SAFETY: weights, factors and accumulators hold all rows of the tile; values point at `width` elements.
        unsafe {
            let rows = Rows {
                weights: self.weights.as_ptr().add(first * PAGE),
                factors: self.factors.as_ptr().add(first),
                acc: state.acc.as_mut_ptr().add(first * width),
            };
            inner::values(s, width, queries.len() * self.tall, rows, values);
        }
    }

    /// List the keys of query `i` in place order; at one place the page's key comes first.
    fn list(&mut self, i: usize, index: usize) {
        let seen = &self.seen[i];
        let (mut page, base) = (seen.page, (index * PAGE) as u32);
        self.keys.clear();
        for Visible { place, slot } in &self.job.sight.extras[seen.extras.clone()] {
            while page != 0 && base + page.trailing_zeros() <= *place {
                self.keys.push((page.trailing_zeros(), base + page.trailing_zeros()));
                page &= page - 1;
            }
            let sheet = 1 + self.sheets[1..].iter().position(|&sheet| sheet == slot / PAGE as u32).unwrap_or(0);
            self.keys.push(((sheet * PAGE) as u32 + slot % PAGE as u32, *place));
        }
        while page != 0 {
            self.keys.push((page.trailing_zeros(), base + page.trailing_zeros()));
            page &= page - 1;
        }
    }

    /// What the biases add to these keys for head `h` of the tile.
    #[cold]
    fn adds(&self, h: usize, keys: impl Iterator<Item = u32>) -> [f32; PAGE] {
        let biases = &self.job.sight.biases[self.job.sight.groups[self.group].biases.clone()];
        let mut adds = [0.0; PAGE];
        for (add, place) in adds.iter_mut().zip(keys) {
            for bias in biases.iter().filter(|b| b.place == place && b.head as usize == self.first_head + h) {
                *add += bias.add;
            }
        }
        adds
    }

    /// Turn `n` scores of row `r` into weights, and note what its accumulator must be scaled by.
    ///
    /// # Safety
    /// `scores` is valid for PAGE floats.
    #[inline(always)]
    unsafe fn soften<S: Simd>(
        &mut self,
        s: S,
        r: usize,
        scores: *const f32,
        n: usize,
        add: Option<[f32; PAGE]>,
        state: &mut State,
    ) {
        let (vectors, scale, hidden) = (PAGE / S::LANES, s.splat(self.job.heads.scale), s.splat(f32::NEG_INFINITY));
        let count = s.splat(n as f32);
        let mut x = [hidden; PAGE / 8];
        let mut top = hidden;
        for (j, x) in x[..vectors].iter_mut().enumerate() {
            // SAFETY: the caller's duty; LANES and `add` hold PAGE floats.
            unsafe {
                let mut v = s.mul(s.load(scores.add(j * S::LANES)), scale);
                if let Some(cap) = self.job.heads.softcap {
                    v = s.mul(math::tanh(s, s.div(v, s.splat(cap))), s.splat(cap));
                }
                if let Some(add) = &add {
                    v = s.add(v, s.load(add.as_ptr().add(j * S::LANES)));
                }
                v = s.mul(v, s.splat(LOG2_E));
                *x = s.pick_less(s.load(LANES.as_ptr().add(j * S::LANES)), count, v, hidden);
            }
            top = s.max(top, *x);
        }
        let (old, top) = (state.max[r], s.reduce_max(top));
        let high = if top > old { top } else { old };
        let factor = if high == old { 1.0 } else { exp2_scalar(s, old - high) };
        // Nothing but -inf so far: any finite maximum gives the weights 0.
        let high = if high == f32::NEG_INFINITY { 0.0 } else { high };
        let mut sum = s.splat(0.0);
        for (j, x) in x[..vectors].iter().enumerate() {
            let weight = math::exp2(s, s.sub(*x, s.splat(high)));
            sum = s.add(sum, weight);
            // SAFETY: `weights` holds PAGE floats a row, `lanes` a vector.
            unsafe { s.store(self.weights.as_mut_ptr().add(r * PAGE + j * S::LANES), weight) };
        }
        // SAFETY: as above.
        unsafe {
            let lanes = self.lanes.as_mut_ptr().add(r * S::LANES);
            s.store(lanes, s.fma(s.load(lanes), s.splat(factor), sum));
        }
        self.factors[r] = factor;
        if top > old {
            state.max[r] = top;
        }
    }
}
