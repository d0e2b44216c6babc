//! Row-wise work shared out to the threads: each row belongs to one call, so rows are independent by construction.
use crate::pool::Pool;

/// Below this many rows the caller does them alone: waking a worker costs more than a row's norm.
const ALONE: usize = 4;

/// A pointer that threads may share because they use disjoint rows of it.
struct Disjoint<T>(*mut T);
// SAFETY: only `row` reads it, and its callers hand out each row once, to one thread.
unsafe impl<T: Send> Sync for Disjoint<T> {}
impl<T> Disjoint<T> {
    /// # Safety
    /// `row` is inside the buffer, which outlives the borrow, and given out once.
    unsafe fn row<'a>(&self, row: usize, width: usize) -> &'a mut [T] {
        // SAFETY: by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(row * width), width) }
    }
}

fn check(what: &str, data: &[f32], rows: usize, width: usize) {
    assert!(data.len() >= rows * width, "{what}: {rows} rows of {width} do not fit {} floats", data.len());
}

/// Calls `f(row, a[row])` for each of `rows` rows of `width` floats.
///
/// # Panics
/// When the buffer is too short.
pub fn each_row(pool: &Pool, rows: usize, a: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    check("each_row", a, rows, width);
    let a = Disjoint(a.as_mut_ptr());
    spread(pool, rows, &|row| {
        // SAFETY: `spread` gives every row once; the length was checked.
        f(row, unsafe { a.row(row, width) });
    });
}

/// Calls `f(index, item)` for each item, on any thread.
pub fn each<T: Send>(pool: &Pool, items: &mut [T], f: &(dyn Fn(usize, &mut T) + Sync)) {
    let (count, items) = (items.len(), Disjoint(items.as_mut_ptr()));
    chunks(pool, count, 1, &|index| {
        // SAFETY: `chunks` gives every index once.
        unsafe { items.row(index, 1) }.iter_mut().for_each(|item| f(index, item));
    });
}

/// Calls `f(row, a[row], b[row], c[row])` for each of `rows` rows of three buffers with their own widths.
///
/// # Panics
/// When a buffer is too short.
pub fn each_row3(
    pool: &Pool,
    rows: usize,
    (a, wa): (&mut [f32], usize),
    (b, wb): (&mut [f32], usize),
    (c, wc): (&mut [f32], usize),
    f: &(dyn Fn(usize, &mut [f32], &mut [f32], &mut [f32]) + Sync),
) {
    check("each_row3: first", a, rows, wa);
    check("each_row3: second", b, rows, wb);
    check("each_row3: third", c, rows, wc);
    let (a, b, c) = (Disjoint(a.as_mut_ptr()), Disjoint(b.as_mut_ptr()), Disjoint(c.as_mut_ptr()));
    spread(pool, rows, &|row| {
        // SAFETY: `spread` gives every row once, the buffers are distinct borrows, the lengths were checked.
        unsafe { f(row, a.row(row, wa), b.row(row, wb), c.row(row, wc)) };
    });
}

/// Calls `f(row, a[row])` for each of `rows` rows of `width` floats, `chunk` rows at a time; the row outlives the call.
pub(crate) fn each_row_of<'a>(
    pool: &Pool,
    rows: usize,
    chunk: usize,
    a: &'a mut [f32],
    width: usize,
    f: &(dyn Fn(usize, &'a mut [f32]) + Sync),
) {
    check("each_row_of", a, rows, width);
    let a = Disjoint(a.as_mut_ptr());
    chunks(pool, rows, chunk, &|row| {
        // SAFETY: `chunks` gives every row once; the length was checked, and the buffer is borrowed for 'a.
        f(row, unsafe { a.row(row, width) });
    });
}

/// `f(row)` for every row, in chunks over the threads.
pub fn spread(pool: &Pool, rows: usize, f: &(dyn Fn(usize) + Sync)) {
    let size = if rows < ALONE { ALONE } else { rows.div_ceil(pool.threads() * 4) };
    chunks(pool, rows, size, f);
}

/// `f(row)` for every row, `size` rows at a time.
fn chunks(pool: &Pool, rows: usize, size: usize, f: &(dyn Fn(usize) + Sync)) {
    if pool.threads() == 1 {
        return (0..rows).for_each(f);
    }
    pool.run(rows.div_ceil(size), &|chunk| (chunk * size..((chunk + 1) * size).min(rows)).for_each(f));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_once() {
        for threads in [1, 3] {
            let pool = Pool::new(threads);
            for rows in [0, 1, 3, 4, 17, 100] {
                let (mut a, mut b, mut c) = (vec![0.0; rows * 3], vec![0.0; rows * 2 + 5], vec![0.0; rows]);
                each_row(&pool, rows, &mut a, 3, &|row, a| a.iter_mut().for_each(|x| *x += row as f32 + 1.0));
                each_row3(&pool, rows, (&mut a, 3), (&mut b, 2), (&mut c, 1), &|_, a, b, c| {
                    b[1] += a[0];
                    c[0] += a[2];
                });
                for row in 0..rows {
                    let n = row as f32 + 1.0;
                    assert_eq!((a[row * 3 + 1], b[row * 2], b[row * 2 + 1], c[row]), (n, 0.0, n, n));
                }
            }
        }
    }
}
