//! Products of packed weights with rows of activations: one pass over the weights for all rows of a step.
//!
//! Within a tier the result of a row does not depend on the rows beside it, on their number, on the number of threads or
//! on which jobs share a dispatch: bit for bit.

mod columns;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plan;
mod table;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use crate::act::{self, Act};
use crate::activations::{Activations, Forms};
use crate::error::KernelError;
use crate::matrix::Matrix;
use crate::pack::COLUMNS;
use crate::pool::Pool;
use plan::{Plan, Size};
use table::{Kernel, MOST_ROWS, kernels};
use tile::Operands;

/// A matrix and what is added to its product.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// `n × k` weights.
    pub weights: &'a Matrix,
    /// `n` values.
    pub bias: Option<&'a [f32]>,
}

impl<'a> From<&'a Matrix> for Linear<'a> {
    fn from(weights: &'a Matrix) -> Self {
        Linear { weights, bias: None }
    }
}

/// What a job computes for each row `x`.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// `act(W x + b)`, or without `act`.
    Plain(Linear<'a>, Option<Act>),
    /// `act(G x + b) · (U x + b')`, the two matrices of one shape.
    Gated {
        /// G.
        gate: Linear<'a>,
        /// U.
        up: Linear<'a>,
        /// The non-linearity of the gate.
        act: Act,
    },
}

impl<'a> Kind<'a> {
    fn first(self) -> Linear<'a> {
        match self {
            Kind::Plain(linear, _) => linear,
            Kind::Gated { gate, .. } => gate,
        }
    }

    fn linears(self) -> impl Iterator<Item = Linear<'a>> {
        let second = match self {
            Kind::Plain(..) => None,
            Kind::Gated { up, .. } => Some(up),
        };
        [Some(self.first()), second].into_iter().flatten()
    }
}

/// What happens to what stood in the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// It is replaced.
    Store,
    /// `out += scale · y`: a residual connection.
    Add(f32),
}

/// One product of a dispatch.
#[derive(Debug)]
pub struct Job<'a> {
    /// What is computed.
    pub kind: Kind<'a>,
    /// Rows of the activations, in the order of the output rows; all of them without (experts take some).
    pub rows: Option<&'a [u32]>,
    /// Output rows, `stride` values apart, `n` values each.
    pub out: &'a mut [f32],
    /// Values from one output row to the next; at least `n`.
    pub stride: usize,
    /// Store or add.
    pub mode: Mode,
}

impl<'a> Job<'a> {
    /// `out = W x` for every row, output rows one after the other.
    pub fn store(weights: impl Into<Linear<'a>>, out: &'a mut [f32]) -> Job<'a> {
        let linear = weights.into();
        Job { kind: Kind::Plain(linear, None), rows: None, out, stride: linear.weights.n(), mode: Mode::Store }
    }

    /// `out += scale · W x` for every row.
    pub fn add(weights: impl Into<Linear<'a>>, scale: f32, out: &'a mut [f32]) -> Job<'a> {
        Job { mode: Mode::Add(scale), ..Job::store(weights, out) }
    }

    /// `out = act(W x)` for every row.
    pub fn activated(weights: impl Into<Linear<'a>>, act: Act, out: &'a mut [f32]) -> Job<'a> {
        let linear = weights.into();
        Job { kind: Kind::Plain(linear, Some(act)), ..Job::store(linear, out) }
    }

    /// `out = act(G x) · (U x)` for every row.
    pub fn gated(gate: impl Into<Linear<'a>>, up: impl Into<Linear<'a>>, act: Act, out: &'a mut [f32]) -> Job<'a> {
        let (gate, up) = (gate.into(), up.into());
        Job { kind: Kind::Gated { gate, up, act }, ..Job::store(gate, out) }
    }

    /// The same for some rows of the activations: output row `i` is that of activation row `rows[i]`.
    pub fn of_rows(self, rows: &'a [u32]) -> Job<'a> {
        Job { rows: Some(rows), ..self }
    }

    /// The same with output rows `stride` values apart.
    pub fn stride(self, stride: usize) -> Job<'a> {
        Job { stride, ..self }
    }

    fn size(&self, acts: &Activations) -> Size {
        size(self.kind, self.rows, acts)
    }

    fn check(&self, acts: &Activations) -> Result<(), KernelError> {
        let n = self.kind.first().weights.n();
        for linear in self.kind.linears() {
            shape("inputs of a matrix and values of an activation row", acts.k(), linear.weights.k())?;
            shape("outputs of gate and up", n, linear.weights.n())?;
            if let Some(bias) = linear.bias {
                shape("values of a bias", n, bias.len())?;
            }
            let form = linear.weights.form_on(acts.tier());
            if !acts.forms().contains(form) {
                return Err(KernelError::Form(form.name()));
            }
        }
        if let Some(&row) = self.rows.into_iter().flatten().find(|&&row| row as usize >= acts.rows()) {
            return Err(KernelError::Row { row: row as usize, rows: acts.rows() });
        }
        if self.stride < n {
            return Err(KernelError::Length { what: "stride of an output", expected: n, found: self.stride });
        }
        let count = self.rows.map_or(acts.rows(), <[u32]>::len);
        let need = count.checked_sub(1).map_or(Some(0), |last| last.checked_mul(self.stride)?.checked_add(n));
        if need.is_none_or(|need| self.out.len() < need) {
            let expected = need.unwrap_or(usize::MAX);
            return Err(KernelError::Length { what: "output of a product", expected, found: self.out.len() });
        }
        Ok(())
    }
}

fn size(kind: Kind<'_>, rows: Option<&[u32]>, acts: &Activations) -> Size {
    let first = kind.first().weights;
    Size {
        tiles: first.tiles(),
        tile_bytes: kind.linears().map(|linear| linear.weights.tile_bytes()).sum(),
        rows: rows.map_or(acts.rows(), <[u32]>::len),
        row_bytes: acts.row_bytes(first.form_on(acts.tier())),
    }
}

fn shape(what: &'static str, expected: usize, found: usize) -> Result<(), KernelError> {
    if expected == found { Ok(()) } else { Err(KernelError::Shape { what, expected, found }) }
}

/// Runs all jobs over the same activations in one dispatch, on the activations' tier.
///
/// # Errors
/// Shapes, lengths or forms that do not fit; then no output was touched.
pub fn product(pool: &Pool, acts: &Activations, jobs: &mut [Job<'_>]) -> Result<(), KernelError> {
    for job in jobs.iter() {
        job.check(acts)?;
    }
    let bytes = jobs.iter().flat_map(|job| job.kind.linears()).map(|linear| linear.weights.bytes()).sum();
    let plan = Plan::new(bytes, pool.threads());
    let chunks = jobs.iter().map(|job| plan.chunks(job.size(acts))).sum();
    let (jobs, count) = (Shared(jobs.as_mut_ptr()), jobs.len());
    pool.run(chunks, &|mut chunk| {
        for index in 0..count {
            // SAFETY: `jobs` is borrowed mutably for the whole run, and nobody writes to the descriptions.
            let piece = unsafe { Piece::of(jobs.at(index), acts) };
            let own = plan.chunks(piece.size);
            if chunk < own {
                let (tiles, rows) = plan.piece(piece.size, chunk);
                // SAFETY: all was checked above; no other chunk has these tiles of these rows, so nobody else touches that
                // part of the output.
                unsafe { piece.run(tiles, rows) };
                return;
            }
            chunk -= own;
        }
    });
    Ok(())
}

/// The jobs of a dispatch, which every thread reads.
struct Shared<'a>(*mut Job<'a>);

// SAFETY: threads copy descriptions out of the jobs and write disjoint parts of the outputs, through raw pointers only.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn at(&self, index: usize) -> *mut Job<'a> {
        self.0.wrapping_add(index)
    }
}

/// A job as one thread sees it.
struct Piece<'p, 'a> {
    size: Size,
    acts: &'p Activations,
    kind: Kind<'a>,
    rows: Option<&'a [u32]>,
    out: *mut f32,
    stride: usize,
    mode: Mode,
}

/// Room for the outputs of one register tile.
type Scratch = [f32; MOST_ROWS * COLUMNS];

impl<'p, 'a> Piece<'p, 'a> {
    /// # Safety
    /// `job` is alive for 'a, and nobody writes to it.
    unsafe fn of(job: *mut Job<'a>, acts: &'p Activations) -> Piece<'p, 'a> {
        // SAFETY: the caller's duty; the raw borrow of the output makes no reference to what other threads write.
        unsafe {
            let (kind, rows) = ((*job).kind, (*job).rows);
            Piece {
                size: size(kind, rows, acts),
                acts,
                kind,
                rows,
                out: (&raw mut *(*job).out).cast(),
                stride: (*job).stride,
                mode: (*job).mode,
            }
        }
    }

    /// Computes the columns of `tiles` for the output rows `rows`.
    ///
    /// # Safety
    /// The job was checked, and these outputs are this thread's alone.
    unsafe fn run(&self, tiles: Range<usize>, rows: Range<usize>) {
        let (first, second, act) = match self.kind {
            Kind::Plain(linear, act) => (self.factor(linear), None, act),
            Kind::Gated { gate, up, act } => (self.factor(gate), Some(self.factor(up)), Some(act)),
        };
        let most = second.map_or(first.kernels.len(), |up| first.kernels.len().min(up.kernels.len()));
        let step = balanced(rows.len(), most);
        let n = first.linear.weights.n();
        // Mostly these are all rows: they are found once for all tiles.
        let top = rows.start..(rows.start + step).min(rows.end);
        let tops = (self.point(first, &top), second.map(|up| self.point(up, &top)));
        let mut y: Scratch = [0.0; MOST_ROWS * COLUMNS];
        let mut x: Scratch = [0.0; MOST_ROWS * COLUMNS];
        for tile in tiles {
            let columns = tile * COLUMNS..((tile + 1) * COLUMNS).min(n);
            let mut some = top.clone();
            while !some.is_empty() {
                let is_top = some.start == top.start;
                // Later row tiles find the weights in the cache. The chunk that follows is most likely this thread's too.
                let until = if is_top { first.linear.weights.tiles() } else { tile };
                let pointers = if is_top { tops.0 } else { self.point(first, &some) };
                let used = some.len() * COLUMNS;
                // SAFETY: the caller's duty.
                unsafe { first.multiply(tile, until, some.len(), &pointers, &mut y) };
                if let Some(up) = second {
                    let pointers = tops.1.filter(|_| is_top).unwrap_or_else(|| self.point(up, &some));
                    // SAFETY: the caller's duty.
                    unsafe { up.multiply(tile, until, some.len(), &pointers, &mut x) };
                    if let Some(act) = act {
                        let gate = y;
                        act::gate(act, &gate[..used], &x[..used], &mut y[..used]);
                    }
                } else if let Some(act) = act {
                    act::apply(act, &mut y[..used]);
                }
                for (row, y) in some.clone().zip(y.chunks_exact(COLUMNS)) {
                    // SAFETY: `check` has seen that the output holds these columns of this row; they are this thread's.
                    let out = unsafe {
                        std::slice::from_raw_parts_mut(self.out.add(row * self.stride + columns.start), columns.len())
                    };
                    match self.mode {
                        Mode::Store => match out.as_chunks_mut::<COLUMNS>().0 {
                            [out] => out.copy_from_slice(y),
                            _ => out.copy_from_slice(&y[..columns.len()]),
                        },
                        Mode::Add(scale) => out.iter_mut().zip(y).for_each(|(out, y)| *out += scale * y),
                    }
                }
                some = some.end..(some.end + step).min(rows.end);
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
    /// One register tile: `W x + b` for sixteen outputs of some rows. `until` is the tile up to which this thread reads on.
    ///
    /// # Safety
    /// As for [`Piece::run`]; `rows` are at most as many as there are kernels, the pointers are theirs.
    unsafe fn multiply(
        &self,
        tile: usize,
        until: usize,
        rows: usize,
        pointers: &[*const u8; MOST_ROWS],
        y: &mut Scratch,
    ) {
        let weights = self.linear.weights;
        let operands = Operands {
            tile: weights.tile(tile).as_ptr(),
            ahead: until.saturating_sub(tile) * weights.tile_bytes(),
            k: weights.padded_k(),
            rows: pointers.as_ptr(),
            out: y.as_mut_ptr(),
        };
        // SAFETY: the tile is whole, the rows are loaded in the form and width that the kernel reads (checked), the scratch
        // has room for `MOST_ROWS` rows, and the activations' tier is one that the machine has.
        unsafe { self.kernels[rows - 1](operands) };
        if let Some(bias) = self.linear.bias {
            let bias = &bias[tile * COLUMNS..bias.len().min((tile + 1) * COLUMNS)];
            for y in y.chunks_exact_mut(COLUMNS).take(rows) {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }
}

/// Rows of a register tile, so that `rows` rows make tiles of nearly one height.
fn balanced(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}
