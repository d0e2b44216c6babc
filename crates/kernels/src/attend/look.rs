//! What the queries of a tile see of one block of places.
use super::{Item, Job, Visible};
use crate::kv::PAGE;
use std::ops::Range;

/// The page of the table is not read in this block.
pub(super) const NO_PAGE: u32 = u32::MAX;

/// What one query sees of the block at hand.
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

/// A walk over blocks, in ascending order.
#[derive(Default)]
pub(super) struct Look {
    seen: Vec<Seen>,
    /// Slot pages that hold visible keys of the block: the table's (or [`NO_PAGE`]), then others.
    pub sheets: Vec<u32>,
    /// Keys of one query in place order: sheet * PAGE + lane, and place.
    pub keys: Vec<(u32, u32)>,
}
impl Look {
    /// Stand before the block that starts at `place`.
    pub fn enter(&mut self, job: &Job, item: &Item, place: usize) {
        let sight = job.sight;
        self.seen.clear();
        self.seen.extend(sight.queries[item.queries.clone()].iter().map(|query| {
            let spans = &sight.spans[query.spans.clone()];
            let extras = &sight.extras[query.extras.clone()];
            Seen {
                span: query.spans.start + spans.partition_point(|span| span.1 as usize <= place),
                extra: query.extras.start + extras.partition_point(|key| (key.place as usize) < place),
                ..Seen::default()
            }
        }));
    }

    /// Find what each query sees of block `index`; false if nobody sees anything.
    ///
    /// # Panics
    /// When a page does not exist.
    pub fn at(&mut self, job: &Job, item: &Item, index: usize) -> bool {
        let sight = job.sight;
        let (low, high) = ((index * PAGE) as u32, ((index + 1) * PAGE) as u32);
        self.sheets.clear();
        self.sheets.push(NO_PAGE);
        let mut any = false;
        let queries = &sight.queries[item.queries.clone()];
        for (query, seen) in queries.iter().zip(&mut self.seen) {
            let first = job.first(query);
            seen.page = 0;
            let spans = &sight.spans[..query.spans.end];
            while seen.span < spans.len() && spans[seen.span].1 <= low {
                seen.span += 1;
            }
            for &(start, end) in &spans[seen.span..] {
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
                self.sheets[0] = sight.pages[sight.groups[item.group].table.clone()][index];
            }
            any |= seen.page != 0 || !seen.extras.is_empty();
        }
        let pages = job.kv.slots().div_ceil(PAGE);
        for &sheet in self.sheets.iter().filter(|&&sheet| sheet != NO_PAGE) {
            assert!((sheet as usize) < pages, "attend: page {sheet} of {pages}");
        }
        any
    }

    /// Whether two queries see the same keys.
    pub fn alike(&self, i: usize, j: usize) -> bool {
        let (a, b) = (&self.seen[i], &self.seen[j]);
        a.page == b.page && (a.extras == b.extras || a.extras.is_empty() && b.extras.is_empty())
    }

    /// How many keys query `i` sees, if they are a prefix of the page (key i is the page's key i); `None` if they must
    /// be listed.
    pub fn prefix(&self, i: usize) -> Option<usize> {
        let seen = &self.seen[i];
        let plain = seen.extras.is_empty() && seen.page & seen.page.wrapping_add(1) == 0;
        plain.then_some(seen.page.count_ones() as usize)
    }

    /// List the keys of query `i` in place order; at one place the page's key comes first.
    pub fn list(&mut self, job: &Job, i: usize, index: usize) {
        let seen = &self.seen[i];
        let (mut page, base) = (seen.page, (index * PAGE) as u32);
        self.keys.clear();
        for &Visible { place, slot } in &job.sight.extras[seen.extras.clone()] {
            while page != 0 && base + page.trailing_zeros() <= place {
                self.keys.push((page.trailing_zeros(), base + page.trailing_zeros()));
                page &= page - 1;
            }
            let sheet = self.sheets[1..].iter().position(|&s| s == slot / PAGE as u32);
            let sheet = 1 + sheet.unwrap_or(0);
            self.keys.push(((sheet * PAGE) as u32 + slot % PAGE as u32, place));
        }
        while page != 0 {
            self.keys.push((page.trailing_zeros(), base + page.trailing_zeros()));
            page &= page - 1;
        }
    }
}
