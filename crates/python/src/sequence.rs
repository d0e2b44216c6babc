//! Sequences as Python holds them: numbers.
//!
//! Any thread's collector may drop a Python object, so a sequence never lives in one. It is kept in a table of the engine
//! thread; the end of the request frees what Python still names.
use crate::error::{astray, request, strategy, to_python};
use crate::flight::Flight;
use crate::plan::{PyPlan, PyRow};
use omnidecode::core::Token;
use omnidecode::core::verify::Verdict;
use omnidecode::engine::{Plan, Readout, Row, Sequence};
use pyo3::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

struct Kept {
    owner: u64,
    /// `None` while a forward has it.
    seq: Option<Sequence>,
}

thread_local! {
    static KEPT: RefCell<HashMap<u64, Kept>> = RefCell::new(HashMap::new());
}
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A number for a request.
pub fn owner() -> u64 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Free every sequence of a request. Only on its engine thread.
pub fn free(owner: u64) {
    // Taken out before they are dropped: a drop may come back here.
    let mine: Vec<Kept> =
        KEPT.with_borrow_mut(|kept| kept.extract_if(|_, kept| kept.owner == owner).map(|(_, k)| k).collect());
    drop(mine);
}

/// The tokens of one line of thought of a request, and what is computed of them. Lives as long as its request runs.
#[pyclass(frozen, name = "Sequence", module = "omnidecode._core")]
pub struct PySequence {
    number: u64,
    owner: u64,
}

impl PySequence {
    /// Keep a sequence on this thread for Python.
    pub fn keep(owner: u64, seq: Sequence) -> PySequence {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        KEPT.with_borrow_mut(|kept| kept.insert(number, Kept { owner, seq: Some(seq) }));
        PySequence { number, owner }
    }
    /// Take it for a forward.
    pub fn take(&self) -> PyResult<Sequence> {
        let taken = KEPT.with_borrow_mut(|kept| kept.get_mut(&self.number).map(|kept| kept.seq.take()));
        taken.ok_or_else(astray)?.ok_or_else(|| {
            strategy("expected one forward of a sequence at a time, found a second one; await the first")
        })
    }
    /// Give it back. False, and the sequence dropped, when Python let go of its number meanwhile.
    pub fn give(&self, seq: Sequence) -> bool {
        let left = KEPT.with_borrow_mut(|kept| match kept.get_mut(&self.number) {
            Some(kept) => {
                kept.seq = Some(seq);
                None
            }
            None => Some(seq),
        });
        left.is_none()
    }
    fn with<T>(&self, f: impl FnOnce(&mut Sequence) -> T) -> PyResult<T> {
        // Taken out while `f` runs: what it drops may come back to the table.
        let mut seq = self.take()?;
        let result = f(&mut seq);
        self.give(seq);
        Ok(result)
    }
    fn branch(&self, seq: Sequence) -> PySequence {
        PySequence::keep(self.owner, seq)
    }
}

impl Drop for PySequence {
    fn drop(&mut self) {
        // On another thread, or after the thread ended, there is nothing to find: the request's end frees it.
        let kept = KEPT.try_with(|kept| kept.try_borrow_mut().ok().and_then(|mut kept| kept.remove(&self.number)));
        drop(kept);
    }
}

#[pymethods]
impl PySequence {
    /// One forward: what is committed but not computed, then the plan's rows. Await it for the `Outcome`. Without a plan,
    /// the model's own next token is read. Errors are raised at the `await`.
    #[pyo3(signature = (plan: "Plan | None" = None) -> "Flight")]
    fn forward(slf: Py<Self>, plan: Option<&PyPlan>) -> Flight {
        let plan = plan.map_or_else(|| Plan::next(Readout::CHOICE), |plan| plan.0.clone());
        Flight::one(slf, plan)
    }
    /// Compute all but the last committed token, so that forks share it.
    #[pyo3(signature = () -> "Flight")]
    fn prefill(slf: Py<Self>) -> Flight {
        Flight::one(slf, Plan::next(Readout::NOTHING).leave(1))
    }
    /// Commit one token; `None` when there is nothing more to say.
    fn push(&self, token: Token) -> PyResult<Option<Token>> {
        self.with(|seq| seq.push(token))?.map_err(to_python)
    }
    /// Commit a path of rows of the last forward, going down from the last committed token, without computing them again;
    /// the other rows are forgotten. Stops at a stop condition inside the path.
    fn accept(&self, path: Vec<u32>) -> PyResult<()> {
        self.with(|seq| seq.accept(&Verdict { path, next: 0 }))?.map(drop).map_err(to_python)
    }
    /// Append a token without stop conditions: to a fork, or to the prompt before the answer has begun.
    fn extend(&self, token: Token) -> PyResult<()> {
        self.with(|seq| seq.extend(token))?.map_err(to_python)
    }
    /// Append a row that holds no token (a latent thought); as `extend`.
    fn extend_row(&self, row: &PyRow) -> PyResult<()> {
        match row.row() {
            Row::Embedding(vector) => self.with(|seq| seq.extend_vector(vector.clone()))?.map_err(to_python),
            _ => Err(request("extend_row: expected Row.embedding(...), found another kind; run it in a plan")),
        }
    }
    /// Forget all but the first `length` places. Of the answer, only what the reader has not seen.
    fn rollback(&self, length: usize) -> PyResult<()> {
        self.with(|seq| seq.rollback(length))?.map_err(to_python)
    }
    /// A branch: same tokens, shared pages, its own noise keyed by `role` (0 keeps the noise). It streams nothing.
    #[pyo3(signature = (role=0))]
    fn fork(&self, role: u64) -> PyResult<PySequence> {
        Ok(self.branch(self.with(|seq| seq.fork(role))?))
    }
    /// The same tokens on the model with this role (`"draft"`), nothing computed yet.
    fn sibling(&self, role: &str) -> PyResult<PySequence> {
        let twin = self.with(|seq| seq.require(role).map(|model| seq.sibling(model)))?;
        Ok(self.branch(twin.map_err(to_python)?))
    }
    /// The branch becomes the answer; what the reader has not seen of it is handed over. The branch is used up.
    fn adopt(&self, branch: &PySequence) -> PyResult<()> {
        if branch.number == self.number {
            return Err(strategy("adopt: expected a fork, found the sequence itself"));
        }
        let branch = branch.take()?;
        self.with(|seq| seq.adopt(branch))?.map_err(to_python)
    }
    /// Make this sequence's tokens those of `other`, keeping what is computed of the common prefix.
    fn follow(&self, other: &PySequence) -> PyResult<()> {
        if other.number == self.number {
            return Ok(());
        }
        let theirs = other.take()?;
        let result = self.with(|seq| seq.follow(&theirs));
        other.give(theirs);
        result
    }
    /// Committed tokens, the prompt's first.
    #[getter]
    fn tokens(&self) -> PyResult<Vec<Token>> {
        self.with(|seq| seq.tokens().to_vec())
    }
    /// Tokens after the prompt.
    #[getter]
    fn generated(&self) -> PyResult<Vec<Token>> {
        self.with(|seq| seq.generated().to_vec())
    }
    /// Whether a stop condition was met.
    #[getter]
    fn finished(&self) -> PyResult<bool> {
        self.with(|seq| seq.finished())
    }
    /// How many more tokens may be committed.
    #[getter]
    fn room(&self) -> PyResult<usize> {
        self.with(|seq| seq.room())
    }
    /// Seed of this sequence's noise.
    #[getter]
    fn seed(&self) -> PyResult<u64> {
        self.with(|seq| seq.seed())
    }
    /// Time of a forward of so many rows, relative to one row.
    fn cost(&self, rows: usize) -> PyResult<f64> {
        self.with(|seq| seq.cost(rows))
    }
    fn __len__(&self) -> PyResult<usize> {
        self.with(|seq| seq.len())
    }
}
