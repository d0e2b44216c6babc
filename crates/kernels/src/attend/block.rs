//! One tile of query rows against the keys of one block.
use super::inner::{Element, Pair, Scores, Values, Widen};
use super::look::{Look, NO_PAGE};
use super::soften::Soften;
use super::walk::State;
use super::{Item, Job};
use crate::kv::PAGE;
use crate::simd::Simd;
use std::ops::Range;

/// The walk's view of the block at hand. Rows are [queries, heads of the item].
pub(super) struct Block<'a, T> {
    pub job: &'a Job<'a>,
    pub item: &'a Item,
    pub look: &'a mut Look,
    /// [rows, dim], in units of the store.
    pub q: &'a [f32],
    /// [rows, PAGE], in units of the store, of which a row may fill less.
    pub weights: &'a mut [f32],
    /// [rows, PAGE]: scores of listed keys, in order.
    pub gathered: &'a mut [f32],
    /// [rows, PAGE]: biases.
    pub adds: &'a mut [f32],
    /// [rows]
    pub factors: &'a mut [f32],
    /// Sums of weights by lane, a vector per row.
    pub sums: &'a mut [f32],
    /// [rows, sheets, PAGE]
    pub scores: &'a mut Vec<f32>,
    /// Pages as f32, [sheets, page].
    pub wide: &'a mut Vec<f32>,
    /// Values of two keys that are no neighbours in a page, [PAGE / 2, width].
    pub pairs: &'a mut Vec<Pair>,
    pub element: std::marker::PhantomData<T>,
}

impl<T: Element> Block<'_, T> {
    /// Join the keys of block `index` to the rows.
    #[inline(always)]
    pub fn visit<S: Simd>(&mut self, s: S, index: usize, state: &mut State) {
        if !self.look.at(self.job, self.item, index) {
            return;
        }
        let (rows, dim) = (self.item.rows(), self.job.heads.dim);
        let sheets = self.look.sheets.len();
        if self.scores.len() < rows * sheets * PAGE {
            self.scores.resize(rows * sheets * PAGE, 0.0);
        }
        // Many rows: widen each page once. Few: while it is read.
        let widen = !T::WIDE && rows > S::TILE;
        let page = PAGE * (dim + self.job.kv.width());
        if widen && self.wide.len() < sheets * page {
            self.wide.resize(sheets * page, 0.0);
        }
        for i in 0..sheets {
            let sheet = self.look.sheets[i];
            if sheet == NO_PAGE {
                continue;
            }
            // SAFETY: `look` has checked that the page exists; the buffers hold what is written.
            unsafe {
                let (keys, _) = self.job.kv.page::<T>(self.job.layer, self.item.kv_head, sheet as usize);
                let out = self.scores.as_mut_ptr().add(i * PAGE);
                let (q, stride, dim) = (self.q.as_ptr(), sheets * PAGE, dim / T::UNIT);
                if widen {
                    let wide = self.wide.as_mut_ptr().add(i * page);
                    s.call(Widen { from: keys, to: wide, n: page });
                    s.call(Scores { dim, rows, q, keys: wide.cast_const(), out, stride });
                } else {
                    s.call(Scores { dim, rows, q, keys, out, stride });
                }
            }
        }
        if widen {
            self.weigh::<S, f32>(s, index, state);
        } else {
            self.weigh::<S, T>(s, index, state);
        }
    }

    /// Softmax and values, once the scores are formed. `V` is f32 when pages were widened, else `T`.
    #[inline(always)]
    fn weigh<S: Simd, V: Element>(&mut self, s: S, index: usize, state: &mut State) {
        let (tall, stride) = (self.item.heads.len(), self.look.sheets.len() * PAGE);
        let group = &self.job.sight.groups[self.item.group];
        let biases = &self.job.sight.biases[group.biases.clone()];
        let biased = biases.iter().any(|b| b.place as usize / PAGE == index);
        let mut values = [std::ptr::null::<V>(); PAGE];
        let mut i = 0;
        while i < self.item.queries.len() {
            let mut end = i + 1;
            // Neighbours that see the same keys go together.
            while end < self.item.queries.len() && self.look.alike(i, end) {
                end += 1;
            }
            let rows = i * tall..end * tall;
            if let Some(keys) = self.look.prefix(i) {
                if keys > 0 {
                    if biased {
                        self.bias(rows.clone(), (index * PAGE) as u32..);
                    }
                    for (unit, to) in values[..keys / V::UNIT].iter_mut().enumerate() {
                        *to = self.value((unit * V::UNIT) as u32);
                    }
                    if !keys.is_multiple_of(V::UNIT) {
                        // The neighbour's value may be anything.
                        values[keys / V::UNIT] = self.pair(keys / V::UNIT, keys as u32 - 1, None);
                    }
                    // SAFETY: a row of scores begins with those of the table's page.
                    let scores = unsafe { self.scores.as_ptr().add(rows.start * stride) };
                    self.add(s, rows, scores, stride, biased, keys, &values, state);
                }
            } else {
                self.look.list(self.job, i, index);
                let list = std::mem::take(&mut self.look.keys);
                for portion in list.chunks(PAGE) {
                    debug_assert!(portion.iter().all(|key| (key.0 as usize) < stride));
                    for r in rows.clone() {
                        // SAFETY: a row has PAGE gathered scores, and `stride` of all sheets, whose keys these are.
                        unsafe {
                            let (from, to) =
                                (self.scores.as_ptr().add(r * stride), self.gathered[r * PAGE..].as_mut_ptr());
                            for (at, key) in portion.iter().enumerate() {
                                *to.add(at) = *from.add(key.0 as usize);
                            }
                        }
                    }
                    if biased {
                        self.bias(rows.clone(), portion.iter().map(|key| key.1));
                    }
                    for (unit, (to, keys)) in values.iter_mut().zip(portion.chunks(V::UNIT)).enumerate() {
                        *to = match keys {
                            &[(key, _)] if V::UNIT == 1 => self.value(key),
                            _ => self.pair(unit, keys[0].0, keys.get(1).map(|key| key.0)),
                        };
                    }
                    // SAFETY: inside `gathered`.
                    let scores = unsafe { self.gathered.as_ptr().add(rows.start * PAGE) };
                    self.add(s, rows.clone(), scores, PAGE, biased, portion.len(), &values, state);
                }
                self.look.keys = list;
            }
            i = end;
        }
    }

    /// Join `keys` keys, in this order, to rows that all see them.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "one call of two kernels")]
    fn add<S: Simd, V: Element>(
        &mut self,
        s: S,
        rows: Range<usize>,
        scores: *const f32,
        stride: usize,
        biased: bool,
        keys: usize,
        values: &[*const V; PAGE],
        state: &mut State,
    ) {
        let values = &values[..keys.div_ceil(V::UNIT)];
        let (first, rows, width) = (rows.start, rows.len(), self.job.kv.width());
        // SAFETY: all buffers hold what they say for all rows of the item; values point into existing pages.
        unsafe {
            let weights = self.weights.as_mut_ptr().add(first * PAGE);
            let factors = self.factors.as_mut_ptr().add(first);
            let adds = if biased { self.adds.as_ptr().add(first * PAGE) } else { std::ptr::null() };
            s.call(Soften {
                heads: &self.job.heads,
                rows,
                n: keys,
                scores,
                stride,
                adds,
                weights,
                short: V::UNIT == 2,
                factors,
                sums: self.sums.as_mut_ptr().add(first * S::LANES),
                max: state.max.as_mut_ptr().add(first),
            });
            let acc = state.acc.as_mut_ptr().add(first * width);
            s.call(Values { width, rows, values, weights, factors, acc });
        }
    }

    /// The values of two keys (sheet * PAGE + lane each), side by side, as unit `unit` of the scratch.
    fn pair<V: Element>(&mut self, unit: usize, first: u32, second: Option<u32>) -> *const V {
        let width = self.job.kv.width();
        if self.pairs.len() < PAGE / 2 * width {
            self.pairs.resize(PAGE / 2 * width, Pair::default());
        }
        let half = |key: u32| key as usize % 2;
        let of = |key: u32| -> *const Pair { self.value(key - key % 2) };
        let (a, b) = (of(first), second.map(of));
        let out = &mut self.pairs[unit * width..][..width];
        for (column, out) in out.iter_mut().enumerate() {
            // SAFETY: values of existing pages, `width` units each.
            unsafe {
                let b = b.zip(second).map(|(b, key)| (*b.add(column), half(key)));
                *out = Pair::of((*a.add(column), half(first)), b);
            }
        }
        out.as_ptr().cast()
    }

    /// Where the value behind a key (sheet * PAGE + lane), the first of a unit, lies.
    #[inline(always)]
    fn value<V: Element>(&self, key: u32) -> *const V {
        let (sheet, lane) = (key as usize / PAGE, key as usize % PAGE);
        let (dim, width) = (self.job.heads.dim, self.job.kv.width());
        // SAFETY: inside the page, or inside its widened copy.
        unsafe {
            if V::WIDE && !T::WIDE {
                self.wide.as_ptr().add(sheet * PAGE * (dim + width) + PAGE * dim + lane * width).cast()
            } else {
                let page = self.look.sheets[sheet] as usize;
                self.job.kv.page::<V>(self.job.layer, self.item.kv_head, page).1.add(lane / V::UNIT * width)
            }
        }
    }

    /// Set what the biases add to keys at these places, for some rows.
    #[cold]
    fn bias(&mut self, rows: Range<usize>, places: impl Iterator<Item = u32> + Clone) {
        let group = &self.job.sight.groups[self.item.group];
        let biases = &self.job.sight.biases[group.biases.clone()];
        for r in rows {
            let head = self.job.first_head(self.item) + r % self.item.heads.len();
            for (add, place) in self.adds[r * PAGE..][..PAGE].iter_mut().zip(places.clone()) {
                let biases = biases.iter().filter(|b| b.place == place && b.head as usize == head);
                *add = biases.map(|b| b.add).sum();
            }
        }
    }
}
