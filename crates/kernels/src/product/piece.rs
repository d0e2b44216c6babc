//! What one thread does of a job: register tile after register tile, and what becomes of their outputs.

use std::ops::Range;

use super::plan::Size;
use super::table::{Kernel, MOST_ROWS, kernels};
use super::tile::Operands;
use super::{Job, Kind, Linear, Mode, size};
use crate::act;
use crate::activations::{Activations, Forms};
use crate::dtype::GROUP;
use crate::pack::COLUMNS;

/// A job as one thread sees it.
pub(super) struct Piece<'p, 'a> {
    pub size: Size,
    acts: &'p Activations,
    kind: Kind<'a>,
    rows: Option<&'a [u32]>,
    out: *mut f32,
    stride: usize,
    mode: Mode<'a>,
}

/// Room for the outputs of one register tile, or of two side by side.
type Scratch = [f32; MOST_ROWS * GROUP];

impl<'p, 'a> Piece<'p, 'a> {
    /// # Safety
    /// `job` is alive for 'a, and nobody writes to it.
    pub unsafe fn of(job: *mut Job<'a>, acts: &'p Activations) -> Piece<'p, 'a> {
        // SAFETY: the caller's duty; the raw borrow of the output makes no reference to what other threads write.
        unsafe {
            let (kind, rows, mode) = ((*job).kind, (*job).rows, (*job).mode);
            Piece {
                size: size(kind, rows, mode, acts),
                acts,
                kind,
                rows,
                out: (&raw mut *(*job).out).cast(),
                stride: (*job).stride,
                mode,
            }
        }
    }

    /// Computes the columns of `tiles` (of [`Mode::tiles`] each) for the output rows `rows`.
    ///
    /// # Safety
    /// The job was checked, and these outputs are this thread's alone.
    pub unsafe fn run(&self, tiles: Range<usize>, rows: Range<usize>) {
        let (first, second, act) = match self.kind {
            Kind::Plain(linear, act) => (self.factor(linear), None, act),
            Kind::Gated { gate, up, act } => (self.factor(gate), Some(self.factor(up)), Some(act)),
        };
        let most = second.map_or(first.kernels.len(), |up| first.kernels.len().min(up.kernels.len()));
        let step = balanced(rows.len(), most);
        let (side, all) = (self.mode.tiles(), first.linear.weights.tiles());
        // Mostly these are all rows: they are found once for all tiles.
        let top = rows.start..(rows.start + step).min(rows.end);
        let tops = (self.point(first, &top), second.map(|up| self.point(up, &top)));
        let stride = side * COLUMNS;
        let [mut gate, mut x, mut y]: [Scratch; 3] = [[0.0; MOST_ROWS * GROUP]; 3];
        for tile in tiles.map(|tile| tile * side) {
            let mut some = top.clone();
            while !some.is_empty() {
                let is_top = some.start == top.start;
                let pointers = if is_top { tops.0 } else { self.point(first, &some) };
                let ups = second.map(|up| (up, tops.1.filter(|_| is_top).unwrap_or_else(|| self.point(up, &some))));
                for (beside, tile) in (tile..all.min(tile + side)).enumerate() {
                    // Later row tiles find the weights in the cache. The chunk that follows is most likely this thread's too.
                    let until = if is_top { all } else { tile };
                    let at = beside * COLUMNS;
                    let to = if ups.is_some() { &mut gate[at..] } else { &mut y[at..] };
                    // SAFETY: the caller's duty; so below.
                    unsafe { first.multiply(tile, until, some.len(), &pointers, to, stride) };
                    if let Some((up, pointers)) = ups {
                        unsafe { up.multiply(tile, until, some.len(), &pointers, &mut x[at..], stride) };
                    }
                }
                let used = some.len() * stride;
                match (act, ups) {
                    (Some(act), Some(_)) => act::gate(act, &gate[..used], &x[..used], &mut y[..used]),
                    (Some(act), None) => act::apply(act, &mut y[..used]),
                    (None, _) => {}
                }
                // SAFETY: the caller's duty.
                unsafe { self.put(tile, &some, &y) };
                some = some.end..(some.end + step).min(rows.end);
            }
        }
    }

    /// Brings the outputs of a tile, or of two side by side, to where they go.
    ///
    /// # Safety
    /// As for [`Piece::run`].
    unsafe fn put(&self, tile: usize, rows: &Range<usize>, y: &Scratch) {
        let n = self.kind.first().weights.n();
        let stride = self.mode.tiles() * COLUMNS;
        let first = tile * COLUMNS;
        let width = stride.min(n - first);
        for (row, y) in rows.clone().zip(y.chunks_exact(stride)) {
            let out = self.out.wrapping_add(row * self.stride + first);
            // SAFETY: `check` has seen that the output, or the activations, have such a row with these values; they are this
            // thread's.
            unsafe {
                match self.mode {
                    Mode::Load(to) => {
                        to.set_part(row, first, &y[..width]);
                    }
                    Mode::Store => match y.as_chunks().0 {
                        [y] if width == COLUMNS => out.cast::<[f32; COLUMNS]>().write(*y),
                        _ => std::slice::from_raw_parts_mut(out, width).copy_from_slice(&y[..width]),
                    },
                    Mode::Add(scale) => {
                        let out = std::slice::from_raw_parts_mut(out, width);
                        out.iter_mut().zip(y).for_each(|(out, y)| *out += scale * y);
                    }
                }
            }
        }
    }

    fn factor(&self, linear: Linear<'a>) -> Factor<'a> {
        let (tier, weights) = (self.acts.tier(), linear.weights);
        Factor { linear, form: weights.form_on(tier), kernels: kernels(tier, weights.dtype()) }
    }

    /// Where the activations of some output rows lie, in the form that a factor wants.
    fn point(&self, factor: Factor<'_>, rows: &Range<usize>) -> [*const u8; MOST_ROWS] {
        let mut pointers = [std::ptr::null(); MOST_ROWS];
        for (pointer, row) in pointers.iter_mut().zip(rows.clone()) {
            *pointer = self.acts.row(factor.form, self.rows.map_or(row, |rows| rows[row] as usize));
        }
        pointers
    }
}

/// A matrix of a job, and how it is multiplied.
#[derive(Clone, Copy)]
struct Factor<'a> {
    linear: Linear<'a>,
    form: Forms,
    kernels: &'static [Kernel],
}

impl Factor<'_> {
    /// One register tile: `W x + b` for sixteen outputs of some rows, `stride` values apart in `y`. `until` is the tile up to
    /// which this thread reads on.
    ///
    /// # Safety
    /// As for [`Piece::run`]; `rows` are at most as many as there are kernels, the pointers are theirs.
    unsafe fn multiply(
        &self,
        tile: usize,
        until: usize,
        rows: usize,
        pointers: &[*const u8; MOST_ROWS],
        y: &mut [f32],
        stride: usize,
    ) {
        let weights = self.linear.weights;
        let operands = Operands {
            tile: weights.tile(tile).as_ptr(),
            ahead: until.saturating_sub(tile) * weights.tile_bytes(),
            k: weights.padded_k(),
            rows: pointers.as_ptr(),
            out: y.as_mut_ptr(),
            stride,
        };
        // SAFETY: the tile is whole, the rows are loaded in the form and width that the kernel reads (checked), the scratch
        // has room for `MOST_ROWS` rows, and the activations' tier is one that the machine has.
        unsafe { self.kernels[rows - 1](operands) };
        if let Some(bias) = self.linear.bias {
            let bias = &bias[tile * COLUMNS..bias.len().min((tile + 1) * COLUMNS)];
            for y in y.chunks_mut(stride).take(rows) {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }
}

/// Rows of a register tile, so that `rows` rows make tiles of nearly one height.
fn balanced(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}
