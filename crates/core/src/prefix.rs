//! Which full pages hold which tokens: a cache keyed by the chain of all tokens up to the page's end.
use crate::noise::{mix, pair};
use crate::pages::PageId;
use crate::{PAGE, Token};
use std::collections::{BTreeMap, HashMap};

struct Entry {
    page: PageId,
    parent: u64,
    tokens: [Token; PAGE],
    tick: u64,
}

/// Full pages by token chain, least recently used first out.
#[derive(Default)]
pub struct PrefixCache {
    entries: HashMap<u64, Entry>,
    order: BTreeMap<u64, u64>,
    /// Keys of the pages that continue a chain.
    next: HashMap<u64, Vec<u64>>,
    clock: u64,
}

impl PrefixCache {
    /// The key of a page whose chain before it has key `parent`. `tokens` are the page's.
    pub fn key(parent: u64, tokens: &[Token]) -> u64 {
        tokens.iter().fold(parent, |h, &t| pair(h, u64::from(t)))
    }
    /// Where a chain begins. Requests with different salts share nothing.
    pub fn origin(salt: u64) -> u64 {
        mix(salt ^ 0x5EED)
    }
    /// The page of a key, if it truly holds these tokens after that chain (a collision of keys is a miss).
    pub fn get(&self, key: u64, parent: u64, tokens: &[Token]) -> Option<PageId> {
        let entry = self.entries.get(&key)?;
        (entry.parent == parent && entry.tokens == tokens).then_some(entry.page)
    }
    /// Of the pages that follow a chain, the one whose tokens begin most like `tokens`: its key, the page, and how many
    /// of them it has.
    pub fn closest(&self, parent: u64, tokens: &[Token]) -> Option<(u64, PageId, usize)> {
        let alike = |entry: &Entry| entry.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let pages = self.next.get(&parent)?.iter().map(|key| (*key, &self.entries[key]));
        pages
            .map(|(key, entry)| (key, entry.page, alike(entry)))
            .max_by_key(|found| found.2)
            .filter(|found| found.2 > 0)
    }
    /// Mark as used just now.
    pub fn touch(&mut self, key: u64) {
        if let Some(entry) = self.entries.get_mut(&key) {
            self.order.remove(&entry.tick);
            self.clock += 1;
            entry.tick = self.clock;
            self.order.insert(self.clock, key);
        }
    }
    /// Remember a page. False if the key is taken.
    pub fn insert(&mut self, key: u64, parent: u64, tokens: &[Token], page: PageId) -> bool {
        let (false, Ok(tokens)) = (self.entries.contains_key(&key), tokens.try_into()) else {
            return false;
        };
        self.clock += 1;
        self.entries.insert(key, Entry { page, parent, tokens, tick: self.clock });
        self.order.insert(self.clock, key);
        self.next.entry(parent).or_default().push(key);
        true
    }
    /// Forget the least recently used page for which `idle` holds.
    pub fn evict(&mut self, idle: impl Fn(PageId) -> bool) -> Option<PageId> {
        let (tick, key) = self.order.iter().find(|(_, key)| idle(self.entries[key].page)).map(|(t, k)| (*t, *k))?;
        self.order.remove(&tick);
        let entry = self.entries.remove(&key)?;
        if let Some(keys) = self.next.get_mut(&entry.parent) {
            keys.retain(|k| *k != key);
            if keys.is_empty() {
                self.next.remove(&entry.parent);
            }
        }
        Some(entry.page)
    }
    /// All pages held.
    pub fn pages(&self) -> impl Iterator<Item = PageId> + '_ {
        self.entries.values().map(|e| e.page)
    }
    /// Number of pages held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// No page is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
