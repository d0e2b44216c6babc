//! Which places a forward runs, and what becomes of their keys and values (sheet 00-diffusion §4).
use omnidecode_engine::Canvas;
use std::ops::Range;

/// What is kept from forward to forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Nothing: every forward runs all places.
    None,
    /// What stands before the block, as it was at the block's start (Fast-dLLM, arXiv:2505.22618).
    Prefix,
    /// All but the block, as it was at the block's start.
    Dual,
    /// Every decided place, from the forward after its decision on (dKV-Cache-Decode, arXiv:2505.15781).
    Delayed,
    /// Finished blocks, exactly: the model is block-causal.
    Blocks,
}
impl Cache {
    /// By the name of a parameter.
    pub fn named(name: &str) -> Cache {
        match name {
            "prefix" => Cache::Prefix,
            "dual" => Cache::Dual,
            "delayed" => Cache::Delayed,
            _ => Cache::None,
        }
    }
}

/// The places of the next forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Places to run, ascending.
    pub places: Vec<usize>,
    /// Whether their keys and values are written down.
    pub refresh: bool,
    /// Whether nothing that is seen is older than this forward.
    pub full: bool,
}

/// The policy of one run.
#[derive(Clone, Debug)]
pub struct Policy {
    cache: Cache,
    every: Option<usize>,
    block: Range<usize>,
    step: usize,
    /// Delayed: places whose keys and values are those of their decided token.
    cached: Vec<bool>,
}

impl Policy {
    /// `every`: forwards from one full forward of a block to the next; `None`: at the start of a block only.
    pub fn new(cache: Cache, every: Option<usize>) -> Policy {
        Policy { cache, every, block: 0..0, step: 0, cached: Vec::new() }
    }
    /// A block begins.
    pub fn enter(&mut self, block: Range<usize>) {
        (self.block, self.step) = (block, 0);
    }
    /// The places of the next forward.
    pub fn next(&mut self, canvas: &Canvas<'_>) -> Window {
        let (step, end) = (self.step, canvas.places().end);
        self.step += 1;
        if self.cache == Cache::Blocks {
            return Window { places: self.block.clone().collect(), refresh: false, full: true };
        }
        // A place decided in the first forward must be run once more before it is kept.
        let warm = if self.cache == Cache::Delayed { 2 } else { 1 };
        let full = self.cache == Cache::None || step < warm || self.every.is_some_and(|n| step.is_multiple_of(n));
        // The row that speaks of the block's first place always belongs to the window, whether it is read or not: what
        // the cache holds then depends on the canvas alone, and FreeDave's drafts see what the static loop sees.
        let start = self.block.start.saturating_sub(canvas.sequence().card().shift);
        let places: Vec<usize> = match self.cache {
            _ if full => canvas.places().collect(),
            Cache::Prefix => (start..end).collect(),
            Cache::Dual => (start..self.block.end).collect(),
            _ => {
                let mut places = Vec::with_capacity(end);
                places.extend(canvas.places().filter(|&p| !self.cached.get(p).is_some_and(|c| *c)));
                places
            }
        };
        if self.cache == Cache::Delayed {
            self.cached.resize(end, false);
            places.iter().for_each(|&p| self.cached[p] = !canvas.is_masked(p));
        }
        Window { places, refresh: true, full }
    }
}
