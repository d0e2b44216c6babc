//! Page bookkeeping: who owns which rows of the KV store. Only ids live here; what must be moved is returned as slot
//! moves for the network to perform.
//!
//! A page is [`PAGE`] slots and may be shared by any number of tables and by the prefix cache. Writing to a shared
//! page copies it first.
use crate::prefix::PrefixCache;
use crate::tail::Slot;
use crate::{PAGE, Token};
use std::ops::Range;

/// A page of the KV store: slots `page * PAGE ..`.
pub type PageId = u32;

/// (from, to), to be done in order.
pub type Moves = Vec<(Slot, Slot)>;

/// Reference-counted pages.
pub struct PagePool {
    refs: Vec<u32>,
    free: Vec<PageId>,
    cache: PrefixCache,
    /// Which pages the cache holds, and how many it holds alone.
    cached: Vec<bool>,
    idle: usize,
    /// Rows that were copied: on writing to a shared page, and of a page that begins alike.
    pub copied_rows: u64,
    /// Pages found in the prefix cache, whole or their first rows.
    pub prefix_hits: u64,
}

impl PagePool {
    /// `pages` free pages.
    pub fn new(pages: usize) -> Self {
        Self {
            refs: vec![0; pages],
            free: (0..pages as PageId).rev().collect(),
            cache: PrefixCache::default(),
            cached: vec![false; pages],
            idle: 0,
            copied_rows: 0,
            prefix_hits: 0,
        }
    }
    /// All pages.
    pub fn total(&self) -> usize {
        self.refs.len()
    }
    /// Pages nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }
    /// Pages that can be had, giving up cached prefixes.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle
    }
    /// Pages that somebody other than the prefix cache holds.
    pub fn used(&self) -> usize {
        self.total() - self.available()
    }
    /// Make `n` pages free, giving up the least recently used prefixes; false when that is not possible (some
    /// prefixes may be gone then).
    pub fn ensure(&mut self, n: usize) -> bool {
        while self.free.len() < n {
            let refs = &self.refs;
            if self.idle == 0 {
                return false;
            }
            let Some(page) = self.cache.evict(|p| refs[p as usize] == 1) else {
                return false;
            };
            self.forget(page);
        }
        true
    }
    /// Forget all prefixes.
    pub fn flush(&mut self) {
        let cache = std::mem::take(&mut self.cache);
        cache.pages().for_each(|p| self.forget(p));
    }
    fn alloc(&mut self) -> Option<PageId> {
        if !self.ensure(1) {
            return None;
        }
        let page = self.free.pop()?;
        self.refs[page as usize] = 1;
        Some(page)
    }
    fn retain(&mut self, page: PageId) {
        self.idle -= usize::from(self.cached[page as usize] && self.refs[page as usize] == 1);
        self.refs[page as usize] += 1;
    }
    /// The cache keeps this page, which a table holds.
    fn remember(&mut self, page: PageId) {
        self.retain(page);
        self.cached[page as usize] = true;
    }
    /// The cache gives this page up.
    fn forget(&mut self, page: PageId) {
        self.idle -= usize::from(self.refs[page as usize] == 1);
        self.cached[page as usize] = false;
        self.release(page);
    }
    fn release(&mut self, page: PageId) {
        let refs = &mut self.refs[page as usize];
        debug_assert!(*refs > 0, "page {page} was released twice");
        *refs -= 1;
        if *refs == 0 {
            self.free.push(page);
        }
        self.idle += usize::from(self.cached[page as usize] && self.refs[page as usize] == 1);
    }
    /// The first rows of a page go to another.
    fn copy(&mut self, from: PageId, to: PageId, rows: usize, moves: &mut Moves) {
        let (from, to) = (from * PAGE as Slot, to * PAGE as Slot);
        moves.extend((0..rows as Slot).map(|i| (from + i, to + i)));
        self.copied_rows += rows as u64;
    }
    fn shared(&self, page: PageId) -> bool {
        self.refs[page as usize] > 1
    }
}

/// The pages of one sequence on one model.
#[derive(Debug, Default)]
pub struct PageTable {
    pages: Vec<PageId>,
    len: usize,
    /// Prefix keys of the leading full pages whose rows are a pure causal function of the tokens.
    chain: Vec<u64>,
}

impl PageTable {
    /// Places whose rows are computed.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Nothing is computed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The pages, in order of places.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }
    /// Slot of a place that is computed or was made writable.
    pub fn slot(&self, place: usize) -> Slot {
        self.pages[place / PAGE] * PAGE as Slot + (place % PAGE) as Slot
    }

    fn shared_end(&self, pool: &PagePool) -> bool {
        !self.len.is_multiple_of(PAGE) && pool.shared(self.pages[self.len / PAGE])
    }
    /// Pages to be allocated before places `len()..to` can be written.
    pub fn need(&self, pool: &PagePool, to: usize) -> usize {
        if to <= self.len {
            return 0;
        }
        to.div_ceil(PAGE).saturating_sub(self.pages.len()) + usize::from(self.shared_end(pool))
    }
    /// Make places `len()..to` writable. On false nothing has changed, except that prefixes may have been given up.
    pub fn grow(&mut self, pool: &mut PagePool, to: usize, moves: &mut Moves) -> bool {
        if !pool.ensure(self.need(pool, to)) {
            return false;
        }
        if to > self.len && self.shared_end(pool) {
            self.unshare(pool, self.len / PAGE, moves);
        }
        while self.pages.len() < to.div_ceil(PAGE) {
            let Some(page) = pool.alloc() else {
                return false;
            };
            self.pages.push(page);
        }
        true
    }
    /// The rows up to here are computed now. They must have been made writable.
    pub fn advance(&mut self, to: usize) {
        debug_assert!(to >= self.len && to <= self.pages.len() * PAGE);
        self.len = to;
    }
    /// Pages to be allocated before the computed places of `range` can be overwritten.
    pub fn need_over(&self, pool: &PagePool, range: Range<usize>) -> usize {
        self.touched(range).filter(|&i| pool.shared(self.pages[i])).count()
    }
    /// Make the computed places of `range` writable: shared pages are copied. On false nothing has changed.
    pub fn own(&mut self, pool: &mut PagePool, range: Range<usize>, moves: &mut Moves) -> bool {
        if !pool.ensure(self.need_over(pool, range.clone())) {
            return false;
        }
        for index in self.touched(range.clone()) {
            if pool.shared(self.pages[index]) {
                self.unshare(pool, index, moves);
            }
        }
        self.chain.truncate(range.start / PAGE);
        true
    }
    fn touched(&self, range: Range<usize>) -> Range<usize> {
        let end = range.end.min(self.len);
        if range.start >= end { 0..0 } else { range.start / PAGE..end.div_ceil(PAGE) }
    }
    fn unshare(&mut self, pool: &mut PagePool, index: usize, moves: &mut Moves) {
        let Some(new) = pool.alloc() else { return };
        let old = std::mem::replace(&mut self.pages[index], new);
        pool.copy(old, new, (self.len - index * PAGE).min(PAGE), moves);
        pool.release(old);
    }
    /// Forget the rows from `len` on, and pages that were made writable but not used.
    pub fn truncate(&mut self, pool: &mut PagePool, len: usize) {
        self.len = self.len.min(len);
        for page in self.pages.drain(self.len.div_ceil(PAGE)..) {
            pool.release(page);
        }
        self.chain.truncate(self.len / PAGE);
    }
    /// A table that shares every page.
    pub fn fork(&self, pool: &mut PagePool) -> PageTable {
        let pages = self.pages[..self.len.div_ceil(PAGE)].to_vec();
        pages.iter().for_each(|&p| pool.retain(p));
        PageTable { pages, len: self.len, chain: self.chain.clone() }
    }

    fn parent(&self, page: usize, salt: u64) -> u64 {
        page.checked_sub(1).map_or_else(|| PrefixCache::origin(salt), |p| self.chain[p])
    }
    /// Let others find the pages that have become full. `tokens` are those of the sequence; every computed row must be
    /// a causal function of them alone.
    pub fn publish(&mut self, pool: &mut PagePool, tokens: &[Token], salt: u64) {
        if self.chain.len() == self.len / PAGE {
            return;
        }
        while self.chain.len() < self.len / PAGE {
            let index = self.chain.len();
            let parent = self.parent(index, salt);
            let here = &tokens[index * PAGE..(index + 1) * PAGE];
            let key = PrefixCache::key(parent, here);
            self.chain.push(key);
            if pool.cache.insert(key, parent, here, self.pages[index]) {
                pool.remember(self.pages[index]);
            }
        }
        self.touch(pool);
    }
    /// Later pages become older in the order of use: the end of a chain is given up before its beginning.
    fn touch(&self, pool: &mut PagePool) {
        for &key in self.chain.iter().rev() {
            pool.cache.touch(key);
        }
    }
    /// Take pages from the prefix cache as far as it has them, and of a page that begins like the tokens behind them a
    /// copy of those rows: whole blocks of `block` (1 where a row sees only what is before it). At least one of
    /// `tokens` is left to be run. Returns the rows gained.
    pub fn adopt(
        &mut self,
        pool: &mut PagePool,
        tokens: &[Token],
        salt: u64,
        block: usize,
        moves: &mut Moves,
    ) -> usize {
        let before = self.len;
        while self.chain.len() * PAGE == self.len && self.pages.len() == self.chain.len() {
            let rest = &tokens[self.len..];
            let parent = self.parent(self.chain.len(), salt);
            let whole = rest.get(..PAGE).filter(|_| rest.len() > PAGE).and_then(|here| {
                let key = PrefixCache::key(parent, here);
                Some((key, pool.cache.get(key, parent, here)?))
            });
            let Some((key, page)) = whole else {
                self.copy_start(pool, parent, rest, block, moves);
                break;
            };
            pool.retain(page);
            pool.prefix_hits += 1;
            self.pages.push(page);
            self.chain.push(key);
            self.len += PAGE;
        }
        if self.len > before {
            self.touch(pool);
        }
        self.len - before
    }
    /// A page of our own that begins with those rows of a cached one whose tokens are the first of `rest`, where a page
    /// can be had.
    fn copy_start(&mut self, pool: &mut PagePool, parent: u64, rest: &[Token], block: usize, moves: &mut Moves) {
        let Some(most) = rest.len().checked_sub(1) else { return };
        let Some((key, page, rows)) = pool.cache.closest(parent, &rest[..most]) else { return };
        let rows = rows / block * block;
        if rows == 0 {
            return;
        }
        // The page that is copied may not be given up to make room for the copy.
        pool.retain(page);
        let own = pool.alloc();
        pool.release(page);
        let Some(own) = own else { return };
        pool.copy(page, own, rows, moves);
        pool.cache.touch(key);
        pool.prefix_hits += 1;
        self.pages.push(own);
        self.len += rows;
    }
}
