//! Attention of rows over the keys they see, in pages and in the tail.
//!
//! The arithmetic of a row is fixed by what it sees and by nothing else. Its visible keys are walked in blocks of
//! [`PAGE`] absolute places; within a block they are numbered in place order, and key `i` takes part the same way
//! whether it lies in a page or in the tail: its score is one chain of multiply-adds over the head, its weight goes to
//! lane `i` of the running sum, its value is accumulated as the `i`-th. A block with more keys than [`PAGE`] (places
//! shared by several keys) is walked in portions of [`PAGE`]. Blocks are joined by the online softmax inside a
//! *stretch* of [`STRETCH`] places, stretches are joined in order: so one long row can be shared by several threads and
//! still gives the bits that one thread would give.
use crate::kv::{KvDtype, KvStore, PAGE};
use crate::pool::Pool;
use crate::simd::dispatch_on;
use crate::tier::Tier;
use std::cell::RefCell;
use std::ops::Range;

mod block;
mod inner;
mod look;
mod soften;
mod walk;
mod weights;

pub use weights::weights;

/// Places that are accumulated in one go; part of the arithmetic.
const STRETCH: usize = 8 * PAGE;

/// Query rows (rows times heads of one kv head) that share the keys of a block while they are in cache.
const TILE_ROWS: usize = 32;

/// Rows that read keys as they are stored.
const FEW_ROWS: usize = 8;

/// Rows of partial results that the caller joins by itself.
const JOINS_ALONE: usize = 64;

/// The attention of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Kv heads, a divisor of `heads`; query head `h` reads kv head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Head size, as in the store.
    pub dim: usize,
    /// Factor of the scores, usually `1 / sqrt(dim)`.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// Keys at places `<= place - window` are not seen; counts the row itself.
    pub window: Option<usize>,
}

/// A visible key outside the page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visible {
    /// Absolute place.
    pub place: u32,
    /// Slot.
    pub slot: u32,
}

/// One row that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Row of `q` and `out`.
    pub row: u32,
    /// Absolute place, for the window.
    pub place: u32,
    /// Visible places of the page table: this range of [`Sight::spans`], sorted and disjoint.
    pub spans: Range<usize>,
    /// Visible keys outside it: this range of [`Sight::extras`], sorted by place.
    pub extras: Range<usize>,
}

/// Rows of one sequence: they share a page table, so their keys are read together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// This range of [`Sight::pages`]: place `p` is slot `pages[p / PAGE] * PAGE + p % PAGE`.
    pub table: Range<usize>,
    /// This range of [`Sight::queries`].
    pub queries: Range<usize>,
    /// This range of [`Sight::biases`].
    pub biases: Range<usize>,
}

/// Added to the score of the visible keys at one place, for one query head, before the softmax (after a soft cap).
/// Adding zero gives the bits of no bias at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeyBias {
    /// Query head.
    pub head: u32,
    /// Absolute place of the key.
    pub place: u32,
    /// What is added, in nats.
    pub add: f32,
}

/// Who sees whom in one step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sight<'a> {
    /// Sequences.
    pub groups: &'a [Group],
    /// Their rows. `row` ascends strictly over the queries of all groups in order.
    pub queries: &'a [Query],
    /// Visible places of the table, start and end.
    pub spans: &'a [(u32, u32)],
    /// Visible keys outside the table.
    pub extras: &'a [Visible],
    /// Page tables.
    pub pages: &'a [u32],
    /// Biases of this layer.
    pub biases: &'a [KeyBias],
}

/// The part of a row's keys that one thread walks: rows of a group, one kv head, some stretches.
#[derive(Clone, Debug)]
struct Item {
    group: usize,
    queries: Range<usize>,
    kv_head: usize,
    /// Query heads, counted inside the kv head.
    heads: Range<usize>,
    stretches: Range<usize>,
    /// Where its partial results go; `None` where the item walks all stretches and writes `out` itself.
    partial: Option<usize>,
}
impl Item {
    fn rows(&self) -> usize {
        self.queries.len() * self.heads.len()
    }
}

/// Everything an item reads.
#[derive(Clone, Copy)]
struct Job<'a> {
    tier: Tier,
    kv: &'a KvStore,
    layer: usize,
    heads: Heads,
    q: &'a [f32],
    sight: Sight<'a>,
}

#[derive(Default)]
struct Plan {
    tiles: Vec<Item>,
    parts: Vec<Item>,
    partials: Vec<f32>,
}

thread_local! {
    static PLAN: RefCell<Plan> = RefCell::default();
    static SCRATCH: RefCell<walk::Scratch> = RefCell::default();
}

/// A pointer into memory that several threads write at disjoint places.
#[derive(Clone, Copy)]
struct Shared(*mut f32, usize);
// SAFETY: every user of a `Shared` writes its own part.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}
impl Shared {
    fn of(x: &mut [f32]) -> Self {
        Shared(x.as_mut_ptr(), x.len())
    }
    /// # Safety
    /// Nobody else uses this part meanwhile.
    unsafe fn part<'a>(self, at: usize, n: usize) -> &'a mut [f32] {
        assert!(at + n <= self.1, "attend: {at} + {n} beyond {}", self.1);
        // SAFETY: inside the slice it was made from; exclusive by the caller's duty.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), n) }
    }
}

/// `out[row] = softmax(scale * q[row] . keys) values` over the keys that each query sees; `q` and `out` are
/// `[rows, heads * dim]`. Rows that no query names are left as they are; a query that sees nothing gives zeros.
///
/// The bits of a row depend on its query and on the keys and values it sees, in place order: not on other rows, on
/// groups, on threads, nor on where keys lie. Takes the store mutably so that no write can be under way.
///
/// # Panics
/// When ranges, rows, pages or slots do not exist, or `heads` does not fit the store.
pub fn attend(pool: &Pool, kv: &mut KvStore, layer: usize, heads: &Heads, q: &[f32], sight: &Sight, out: &mut [f32]) {
    Job { tier: Tier::current(), kv, layer, heads: *heads, q, sight: *sight }.attend(pool, out);
}

impl Job<'_> {
    fn attend(self, pool: &Pool, out: &mut [f32]) {
        let job = self;
        job.check(out.len());
        PLAN.with_borrow_mut(|plan| {
            job.plan(pool.threads(), plan);
            let Plan { tiles, parts, partials } = plan;
            let out = Shared::of(out);
            let items = if parts.is_empty() { &*tiles } else { &*parts };
            let shared = Shared::of(partials);
            pool.run(items.len(), &|i| {
                SCRATCH.with_borrow_mut(|scratch| {
                    // SAFETY: tiles own disjoint (row, head) parts of `out`, parts own disjoint partials.
                    dispatch_on(job.tier, walk::Walk { job, item: &items[i], scratch, partials: shared, out })
                });
            });
            if parts.is_empty() {
                return;
            }
            let len = |tile: &Item| tile.stretches.len() * walk::partial_len(tile.rows(), job.kv.width());
            let join = |i: usize| {
                let at = tiles[..i].iter().map(len).sum::<usize>();
                SCRATCH.with_borrow_mut(|scratch| {
                    dispatch_on(job.tier, walk::Join { job, tile: &tiles[i], scratch, partials: &partials[at..], out });
                });
            };
            // A dispatch costs as much as a few rows.
            if parts.iter().map(Item::rows).sum::<usize>() < JOINS_ALONE {
                (0..tiles.len()).for_each(join);
            } else {
                pool.run(tiles.len(), &join);
            }
        });
    }

    fn check(&self, out: usize) {
        let Heads { heads, kv_heads, dim, .. } = self.heads;
        assert!(self.layer < self.kv.layers(), "attend: layer {} of {}", self.layer, self.kv.layers());
        assert!(
            dim == self.kv.dim() && kv_heads == self.kv.kv_heads(self.layer) && heads.is_multiple_of(kv_heads),
            "attend: {:?} on a store of {} heads of {}",
            self.heads,
            self.kv.kv_heads(self.layer),
            self.kv.dim()
        );
        let rows = self.q.len() / (heads * dim);
        assert!(self.q.len() == rows * heads * dim && out == self.q.len(), "attend: {} and {out}", self.q.len());
        let mut next = 0;
        for query in self.sight.groups.iter().flat_map(|g| &self.sight.queries[g.queries.clone()]) {
            assert!(query.row >= next && (query.row as usize) < rows, "attend: row {} of {rows}", query.row);
            next = query.row + 1;
        }
    }

    /// First query head of an item.
    fn first_head(&self, item: &Item) -> usize {
        item.kv_head * (self.heads.heads / self.heads.kv_heads) + item.heads.start
    }

    /// First place that a query may see.
    fn first(&self, query: &Query) -> u32 {
        match self.heads.window {
            Some(window) => (query.place + 1).saturating_sub(window.min(u32::MAX as usize) as u32),
            None => 0,
        }
    }

    /// Stretches that hold all visible keys of some queries.
    fn stretches(&self, queries: &[Query]) -> Range<usize> {
        let (mut low, mut high) = (u32::MAX, 0);
        for query in queries {
            let spans = &self.sight.spans[query.spans.clone()];
            let extras = &self.sight.extras[query.extras.clone()];
            let first = self.first(query);
            for (start, end) in [
                spans.first().zip(spans.last()).map(|(a, b)| (a.0, b.1)),
                extras.first().zip(extras.last()).map(|(a, b)| (a.place, b.place + 1)),
            ]
            .into_iter()
            .flatten()
            {
                low = low.min(start.max(first));
                high = high.max(end);
            }
        }
        if low >= high { 0..0 } else { low as usize / STRETCH..(high as usize).div_ceil(STRETCH) }
    }

    fn plan(&self, threads: usize, plan: &mut Plan) {
        plan.tiles.clear();
        plan.parts.clear();
        let per_kv = self.heads.heads / self.heads.kv_heads;
        let wide = per_kv.min(TILE_ROWS);
        let mut tall = (TILE_ROWS / wide).max(1);
        // The rows of one sequence see about the same keys, so that tiles cost the same: any whole number of them a thread
        // is even, and cheaper than parts that must be joined.
        let mut even = false;
        if let ([group], true) = (self.sight.groups, threads > 1) {
            let across = self.heads.kv_heads * per_kv.div_ceil(wide);
            let share = group.queries.len().div_ceil(threads).clamp(1, tall);
            for height in [tall, share] {
                // More rows than this share widened pages, which are not to be widened twice.
                let widened = self.kv.dtype() == KvDtype::F16 && height * wide > FEW_ROWS;
                let fits = height == tall || !widened;
                if !even && fits && (across * group.queries.len().div_ceil(height)).is_multiple_of(threads) {
                    (tall, even) = (height, true);
                }
            }
        }
        for (index, group) in self.sight.groups.iter().enumerate() {
            for start in group.queries.clone().step_by(tall) {
                let queries = start..(start + tall).min(group.queries.end);
                let stretches = self.stretches(&self.sight.queries[queries.clone()]);
                for kv_head in 0..self.heads.kv_heads {
                    for first in (0..per_kv).step_by(wide) {
                        plan.tiles.push(Item {
                            group: index,
                            queries: queries.clone(),
                            kv_head,
                            heads: first..(first + wide).min(per_kv),
                            stretches: stretches.clone(),
                            partial: None,
                        });
                    }
                }
            }
        }
        // Too few tiles to share evenly: share their stretches.
        if threads > 1 && !even && plan.tiles.len() < 4 * threads && plan.tiles.iter().any(|t| t.stretches.len() > 1) {
            let mut at = 0;
            for tile in &plan.tiles {
                for stretch in tile.stretches.clone() {
                    plan.parts.push(Item { stretches: stretch..stretch + 1, partial: Some(at), ..tile.clone() });
                    at += walk::partial_len(tile.rows(), self.kv.width());
                }
            }
            if plan.partials.len() < at {
                plan.partials.resize(at, 0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests;
