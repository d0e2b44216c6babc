//! Products of packed weights with rows of activations: one pass over the weights for all rows of a step.
//!
//! Within a tier the result of a row does not depend on the rows beside it, on their number, on the number of threads or
//! on which jobs share a dispatch: bit for bit.

mod columns;
#[cfg(target_arch = "aarch64")]
mod neon;
mod piece;
mod plan;
mod table;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::act::Act;
use crate::activations::{Activations, Writer};
use crate::dtype::GROUP;
use crate::error::KernelError;
use crate::matrix::Matrix;
use crate::pack::COLUMNS;
use crate::pool::Pool;
use piece::Piece;
use plan::{Plan, Size};

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

/// Where the outputs go.
#[derive(Clone, Copy, Debug)]
pub enum Mode<'a> {
    /// Into `out`, in place of what stood there.
    Store,
    /// `out += scale · y`: a residual connection.
    Add(f32),
    /// Into the activations of the next product, `out` being empty: quantized or rounded where they were computed.
    Load(&'a Writer<'a>),
}

impl Mode<'_> {
    /// Tiles that are computed side by side: a group of activations is quantized as one.
    fn tiles(self) -> usize {
        if matches!(self, Mode::Load(_)) { GROUP / COLUMNS } else { 1 }
    }
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
    /// Where they go.
    pub mode: Mode<'a>,
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

    /// The same into the activations of the next product, which `to` begins: output row `i` is its row `i`.
    pub fn load(self, to: &'a Writer<'a>) -> Job<'a> {
        Job { out: &mut [], mode: Mode::Load(to), ..self }
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
        size(self.kind, self.rows, self.mode, acts)
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
        let count = self.rows.map_or(acts.rows(), <[u32]>::len);
        if let Mode::Load(to) = self.mode {
            shape("outputs of a product and values of the activations that it loads", n, to.k())?;
            return shape("rows of a product and of the activations that it loads", count, to.rows());
        }
        if self.stride < n {
            return Err(KernelError::Length { what: "stride of an output", expected: n, found: self.stride });
        }
        let need = count.checked_sub(1).map_or(Some(0), |last| last.checked_mul(self.stride)?.checked_add(n));
        if need.is_none_or(|need| self.out.len() < need) {
            let expected = need.unwrap_or(usize::MAX);
            return Err(KernelError::Length { what: "output of a product", expected, found: self.out.len() });
        }
        Ok(())
    }
}

fn size(kind: Kind<'_>, rows: Option<&[u32]>, mode: Mode<'_>, acts: &Activations) -> Size {
    let first = kind.first().weights;
    let bytes: usize = kind.linears().map(|linear| linear.weights.tile_bytes()).sum();
    Size {
        tiles: first.tiles().div_ceil(mode.tiles()),
        tile_bytes: bytes * mode.tiles(),
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
///
/// # Panics
/// A row of activations that a job loads was written before.
pub fn product(pool: &Pool, acts: &Activations, jobs: &mut [Job<'_>]) -> Result<(), KernelError> {
    for job in jobs.iter() {
        job.check(acts)?;
    }
    for job in jobs.iter() {
        if let Mode::Load(to) = job.mode {
            to.claim();
        }
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
