//! Who sees whom among the rows of one plan. What a row sees of the committed cache is the plan's `keep` list.
use crate::tree::ROOT;

/// Visibility among the rows in flight.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Mask {
    /// Row i sees rows 0..=i.
    #[default]
    Causal,
    /// Row i sees itself and its ancestors; parents are topological, [`ROOT`] hangs from the last committed token.
    Tree(Vec<u32>),
    /// Every row sees every row.
    Full,
    /// Block-causal: row i sees all rows up to the end of its block of this many rows.
    Block(usize),
    /// Explicit sets.
    Bits(Bits),
    /// So many equal windows, one after the other; rows of one window see each other and no other window.
    Copies(usize),
}

/// An explicit visibility matrix: row i sees row j when the bit is set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bits {
    columns: usize,
    words: Vec<u64>,
}
impl Bits {
    /// Nobody sees anybody: `rows` x `columns`.
    pub fn new(rows: usize, columns: usize) -> Self {
        Self { columns, words: vec![0; rows * columns.div_ceil(64)] }
    }
    /// A matrix from a predicate.
    pub fn from_fn(rows: usize, columns: usize, mut sees: impl FnMut(usize, usize) -> bool) -> Self {
        let mut bits = Self::new(rows, columns);
        for i in 0..rows {
            for j in 0..columns {
                if sees(i, j) {
                    bits.set(i, j);
                }
            }
        }
        bits
    }
    /// Let row i see row j.
    pub fn set(&mut self, i: usize, j: usize) {
        let stride = self.columns.div_ceil(64);
        self.words[i * stride + j / 64] |= 1 << (j % 64);
    }
    /// Whether row i sees row j.
    pub fn get(&self, i: usize, j: usize) -> bool {
        let stride = self.columns.div_ceil(64);
        self.words.get(i * stride + j / 64).is_some_and(|w| w >> (j % 64) & 1 == 1)
    }
    /// Rows that can be seen.
    pub fn columns(&self) -> usize {
        self.columns
    }
    /// Rows that see.
    pub fn rows(&self) -> usize {
        self.words.len() / self.columns.div_ceil(64).max(1)
    }
}

/// Why a mask does not fit its rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// Parents or bit rows of another number of rows.
    #[error("the mask describes {found} rows, the plan has {rows}: give one entry a row")]
    Rows {
        /// Rows of the plan.
        rows: usize,
        /// Rows of the mask.
        found: usize,
    },
    /// A parent that does not stand before its child.
    #[error("row {row} names row {parent} as its parent: parents must stand before their children")]
    Order {
        /// The child.
        row: usize,
        /// Its parent.
        parent: u32,
    },
    /// Rows that do not divide into the windows or blocks asked for.
    #[error("{rows} rows do not divide into {parts} equal windows")]
    Windows {
        /// Rows of the plan.
        rows: usize,
        /// Windows asked for.
        parts: usize,
    },
    /// A row that does not see itself.
    #[error("row {row} does not see itself: set its own bit")]
    Blind {
        /// The row.
        row: usize,
    },
}

impl Mask {
    /// Whether the mask fits `rows` rows that come after `before` older rows in flight (which `Tree` parents and
    /// `Bits` columns count first).
    pub fn check(&self, rows: usize, before: usize) -> Result<(), MaskError> {
        match self {
            Mask::Tree(parents) if parents.len() != rows => Err(MaskError::Rows { rows, found: parents.len() }),
            Mask::Tree(parents) => match (0..rows).find(|&i| parents[i] != ROOT && parents[i] as usize >= before + i) {
                Some(row) => Err(MaskError::Order { row, parent: parents[row] }),
                None => Ok(()),
            },
            Mask::Bits(bits) if bits.columns != before + rows || bits.rows() != rows => {
                Err(MaskError::Rows { rows, found: bits.rows().min(bits.columns) })
            }
            Mask::Bits(bits) => match (0..rows).find(|&i| !bits.get(i, before + i)) {
                Some(row) => Err(MaskError::Blind { row }),
                None => Ok(()),
            },
            Mask::Block(0) => Err(MaskError::Windows { rows, parts: 0 }),
            Mask::Copies(k) if *k == 0 || !rows.is_multiple_of(*k) => Err(MaskError::Windows { rows, parts: *k }),
            _ => Ok(()),
        }
    }
    /// Whether row i of `rows` sees row j. Of a tree this walks the ancestors of i.
    pub fn sees(&self, i: usize, j: usize, rows: usize) -> bool {
        match self {
            Mask::Causal => j <= i,
            Mask::Full => j < rows,
            Mask::Block(n) => j / n <= i / n && j < rows,
            Mask::Copies(k) => j < rows && i / (rows / k) == j / (rows / k),
            Mask::Bits(bits) => bits.get(i, j),
            Mask::Tree(parents) => {
                let mut at = i as u32;
                while at != ROOT && at as usize > j {
                    at = parents[at as usize];
                }
                at == j as u32
            }
        }
    }
    /// The row whose token comes just before row i's ([`ROOT`]: the last committed one); `None` where rows have no
    /// order of reading, as in a window that is denoised.
    pub fn parent(&self, i: usize, before: usize) -> Option<u32> {
        match self {
            Mask::Causal => Some((before + i).checked_sub(1).map_or(ROOT, |p| p as u32)),
            Mask::Tree(parents) => Some(parents[i]),
            _ => None,
        }
    }
    /// Whether no row sees a later place, committed or in flight.
    pub fn is_causal(&self) -> bool {
        matches!(self, Mask::Causal | Mask::Tree(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(mask: &Mask, rows: usize) -> Vec<Vec<usize>> {
        (0..rows).map(|i| (0..rows).filter(|&j| mask.sees(i, j, rows)).collect()).collect()
    }

    #[test]
    fn every_kind() {
        assert_eq!(seen(&Mask::Causal, 3), [vec![0], vec![0, 1], vec![0, 1, 2]]);
        assert_eq!(seen(&Mask::Full, 2), [vec![0, 1], vec![0, 1]]);
        assert_eq!(seen(&Mask::Block(2), 3), [vec![0, 1], vec![0, 1], vec![0, 1, 2]]);
        assert_eq!(seen(&Mask::Copies(2), 4), [vec![0, 1], vec![0, 1], vec![2, 3], vec![2, 3]]);
        let tree = Mask::Tree(vec![ROOT, 0, 0, ROOT, 2]);
        assert_eq!(seen(&tree, 5), [vec![0], vec![0, 1], vec![0, 2], vec![3], vec![0, 2, 4]]);
        let bits = Mask::Bits(Bits::from_fn(70, 70, |i, j| i == j || j == 69));
        assert_eq!(seen(&bits, 70)[3], [3, 69]);
    }

    #[test]
    fn refusals() {
        assert!(Mask::Tree(vec![ROOT]).check(2, 0).is_err());
        assert!(Mask::Tree(vec![1, ROOT]).check(2, 0).is_err());
        assert!(Mask::Tree(vec![1, ROOT]).check(2, 2).is_ok());
        assert!(Mask::Copies(3).check(4, 0).is_err());
        assert!(Mask::Copies(0).check(4, 0).is_err());
        assert!(Mask::Block(0).check(4, 0).is_err());
        assert_eq!(Mask::Bits(Bits::new(2, 2)).check(2, 0), Err(MaskError::Blind { row: 0 }));
        assert!(Mask::Bits(Bits::from_fn(2, 3, |i, j| j == i + 1)).check(2, 1).is_ok());
        assert!(Mask::Bits(Bits::from_fn(2, 3, |i, j| j == i + 1)).check(2, 0).is_err());
    }
}
