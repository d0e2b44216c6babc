//! The rows in flight of one sequence: after a forward and before `accept`.
use crate::outcome::Outcome;
use crate::plan::{Plan, Row};
use crate::processor::States;
use omnidecode_core::Token;
use omnidecode_core::mask::Mask;
use omnidecode_core::tail::Slot;
use omnidecode_core::tree::ROOT;

#[derive(Default)]
pub(crate) struct Tail {
    /// Committed length they hang from.
    pub base: usize,
    pub rows: Vec<Row>,
    pub places: Vec<u32>,
    pub positions: Vec<u32>,
    /// The row whose token comes before each; [`ROOT`] for the last committed one, and for rows without order.
    pub parents: Vec<u32>,
    /// Visible rows, by place; each row's part is in `views`.
    pub seen: Vec<u32>,
    pub views: Vec<(u32, u32)>,
    /// Their slots; empty when they had to be given up.
    pub slots: Vec<Slot>,
    /// Layers each row has passed, from the first on.
    pub done: Vec<usize>,
    /// Processor states after each row, where there are processors.
    pub states: Vec<States>,
    /// Their KV is what committing their tokens and computing them would give.
    pub pure: bool,
    /// Whether rows have an order that `accept` can follow.
    pub ordered: bool,
    /// What was read, and how many older rows the last forward extended.
    pub outcome: Option<(Outcome, usize)>,
}

impl Tail {
    /// Rows that lost their slots: to be run again before others can see them.
    pub fn lost(&self) -> bool {
        self.slots.is_empty() && !self.rows.is_empty()
    }
    /// The rows in flight that stand for `tokens`, from place `from` on: as many as there are.
    pub fn along(&self, from: usize, tokens: &[Token]) -> Vec<u32> {
        let (mut path, mut parent) = (Vec::new(), ROOT);
        if !self.ordered || self.base != from {
            return path;
        }
        for (j, &token) in tokens.iter().enumerate() {
            let fits = |&i: &usize| {
                self.parents[i] == parent && self.rows[i] == Row::Token(token) && self.places[i] as usize == from + j
            };
            let Some(row) = (0..self.rows.len()).find(fits) else { break };
            parent = row as u32;
            path.push(parent);
        }
        path
    }
    /// May they be given up and run again?
    pub fn can_yield(&self, layers: usize) -> bool {
        self.pure && !self.slots.is_empty() && self.done.iter().all(|&d| d == layers)
    }

    /// Nothing is in flight any more; their slots were given back. Keeps its memory; the states are foreign code.
    pub fn clear(&mut self) -> Vec<States> {
        self.rows.clear();
        self.places.clear();
        self.positions.clear();
        self.parents.clear();
        self.seen.clear();
        self.views.clear();
        self.slots.clear();
        self.done.clear();
        self.outcome = None;
        std::mem::take(&mut self.states)
    }
    /// Add a plan's rows; their slots come later.
    pub fn add(&mut self, plan: &Plan, base: usize) {
        let before = self.rows.len();
        let n = plan.rows.len();
        let places = plan.places(base, &self.places);
        if before == 0 {
            self.base = base;
            self.pure = true;
            self.ordered = true;
        }
        self.pure &= plan.mask.is_causal() && plan.keep.is_none() && plan.positions.is_empty() && plan.at.is_none();
        self.positions.extend_from_slice(if plan.positions.is_empty() { &places } else { &plan.positions });
        self.places.extend_from_slice(&places);
        self.rows.extend_from_slice(&plan.rows);
        self.parents.extend((0..n).map(|i| plan.mask.parent(i, before).unwrap_or(ROOT)));
        self.ordered &= plan.mask.is_causal();
        self.done.resize(before + n, 0);
        for i in 0..n {
            let view = self.view(&plan.mask, i, n, before);
            self.views.push(view);
        }
    }

    fn view(&mut self, mask: &Mask, i: usize, n: usize, before: usize) -> (u32, u32) {
        let last = self.views.last().copied();
        let start = self.seen.len() as u32;
        match mask {
            // One list serves all: each row sees one more of it.
            Mask::Causal if i > 0 => {
                let (from, to) = last.unwrap_or((start, start));
                self.seen.push((before + i) as u32);
                return (from, to + 1);
            }
            Mask::Causal => {
                if before > 0 {
                    let (from, to) = self.views[before - 1];
                    self.seen.extend_from_within(from as usize..to as usize);
                }
                self.seen.push((before + i) as u32);
            }
            Mask::Tree(parents) => {
                if parents[i] != ROOT {
                    let (from, to) = self.views[parents[i] as usize];
                    self.seen.extend_from_within(from as usize..to as usize);
                }
                self.seen.push((before + i) as u32);
            }
            Mask::Full if i > 0 => return last.unwrap_or((start, start)),
            Mask::Copies(k) if !i.is_multiple_of(n / k) => return last.unwrap_or((start, start)),
            Mask::Block(b) if !i.is_multiple_of(*b) => return last.unwrap_or((start, start)),
            Mask::Copies(k) => {
                let (each, first) = (n / k, before + i);
                self.seen.extend((first..first + each).map(|j| j as u32));
            }
            Mask::Bits(_) => self.seen.extend((0..before + n).filter(|&j| mask.sees(i, j, n)).map(|j| j as u32)),
            _ => self.seen.extend((0..n).filter(|&j| mask.sees(i, j, n)).map(|j| (before + j) as u32)),
        }
        let places = &self.places;
        let new = &mut self.seen[start as usize..];
        if !new.is_sorted_by_key(|&j| places[j as usize]) {
            new.sort_by_key(|&j| places[j as usize]);
        }
        (start, self.seen.len() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{KvAction, Readout};
    use omnidecode_core::mask::Bits;

    fn views(tail: &Tail) -> Vec<Vec<u32>> {
        tail.views.iter().map(|&(a, b)| tail.seen[a as usize..b as usize].to_vec()).collect()
    }

    #[test]
    fn views_of_every_mask() {
        let of = |mask: Mask, n: usize| {
            let mut tail = Tail::default();
            tail.add(&Plan { mask, ..Plan::chain(&vec![1; n], Readout::NOTHING) }, 10);
            (views(&tail), tail.places)
        };
        assert_eq!(of(Mask::Causal, 3), (vec![vec![0], vec![0, 1], vec![0, 1, 2]], vec![10, 11, 12]));
        assert_eq!(of(Mask::Full, 2), (vec![vec![0, 1]; 2], vec![10, 11]));
        assert_eq!(of(Mask::Copies(2), 4).0, [vec![0, 1], vec![0, 1], vec![2, 3], vec![2, 3]]);
        assert_eq!(of(Mask::Copies(2), 4).1, [10, 11, 10, 11]);
        assert_eq!(of(Mask::Block(2), 3).0, [vec![0, 1], vec![0, 1], vec![0, 1, 2]]);
        let tree = Mask::Tree(vec![ROOT, ROOT, 0, 2]);
        assert_eq!(of(tree, 4), (vec![vec![0], vec![1], vec![0, 2], vec![0, 2, 3]], vec![10, 10, 11, 12]));
    }

    #[test]
    fn extending_counts_older_rows_first() {
        let mut tail = Tail::default();
        tail.add(&Plan::rows(vec![Row::Token(1); 2], Mask::Tree(vec![ROOT, ROOT]), Readout::NOTHING), 10);
        let more = Plan::rows(vec![Row::Token(2); 3], Mask::Tree(vec![1, 2, ROOT]), Readout::NOTHING);
        tail.add(&more.kv(KvAction::Extend), 10);
        assert_eq!(views(&tail)[2..], [vec![1, 2], vec![1, 2, 3], vec![4]]);
        assert_eq!(tail.places, [10, 10, 11, 12, 10]);
        tail.add(&Plan::rows(vec![Row::Token(3); 2], Mask::Causal, Readout::NOTHING).kv(KvAction::Extend), 10);
        assert_eq!(views(&tail)[5..], [vec![4, 5], vec![4, 5, 6]], "a chain goes on from the last row");
        assert_eq!(tail.places[5..], [11, 12]);
    }

    #[test]
    fn views_are_sorted_by_place() {
        let mut tail = Tail::default();
        let bits = Mask::Bits(Bits::from_fn(3, 3, |_, _| true));
        tail.add(&Plan::rows(vec![Row::Token(1); 3], bits, Readout::NOTHING).offsets(vec![2, 0, 1]), 5);
        assert_eq!(views(&tail)[0], [1, 2, 0]);
        assert!(!tail.pure && !tail.ordered);
    }
}
