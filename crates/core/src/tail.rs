//! Slots for rows in flight. They stand behind the pages in the KV store and belong to nobody for long.

/// A slot of the KV store.
pub type Slot = u32;

/// The free tail slots of one model.
#[derive(Debug)]
pub struct TailSlots {
    free: Vec<Slot>,
    total: usize,
}

impl TailSlots {
    /// `count` slots from `first` on.
    pub fn new(first: usize, count: usize) -> Self {
        Self { free: (first..first + count).rev().map(|s| s as Slot).collect(), total: count }
    }
    /// Take `n` slots, appended to `out`; false and nothing taken when there are fewer.
    pub fn take(&mut self, n: usize, out: &mut Vec<Slot>) -> bool {
        if n > self.free.len() {
            return false;
        }
        let from = self.free.len() - n;
        out.extend(self.free.drain(from..).rev());
        true
    }
    /// Give slots back; `slots` is left empty.
    pub fn give(&mut self, slots: &mut Vec<Slot>) {
        self.free.extend(slots.drain(..).rev());
        debug_assert!(self.free.len() <= self.total, "a tail slot was given back twice");
    }
    /// Slots that can be taken.
    pub fn free(&self) -> usize {
        self.free.len()
    }
    /// Slots in use.
    pub fn used(&self) -> usize {
        self.total - self.free.len()
    }
    /// All slots.
    pub fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_all_or_nothing() {
        let mut tail = TailSlots::new(64, 4);
        let mut mine = Vec::new();
        assert!(tail.take(3, &mut mine));
        assert_eq!(mine, [64, 65, 66]);
        assert!(!tail.take(2, &mut Vec::new()));
        assert_eq!((tail.free(), tail.used(), tail.total()), (1, 3, 4));
        tail.give(&mut mine);
        assert!(mine.is_empty() && tail.take(4, &mut mine));
        assert_eq!(mine, [64, 65, 66, 67], "the order of slots is the same again");
    }
}
