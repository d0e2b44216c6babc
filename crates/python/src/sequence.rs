//! Sequences as Python holds them: numbers.
//!
//! Any thread's collector may drop a Python object, so a sequence never lives in one. It is kept in a table of the engine
//! thread; the end of the request frees what Python still names.
use crate::canvas::PyCanvas;
use crate::error::{astray, request, strategy, to_python};
use crate::flight::Flight;
use crate::plan::{PyPlan, PyRow};
use omnidecode::core::Token;
use omnidecode::core::verify::Verdict;
use omnidecode::engine::{Candidate, Canvas, Plan, Readout, Row, Sequence, Sheet};
use pyo3::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

struct Kept {
    owner: u64,
    /// `None` while a forward has it.
    seq: Option<Sequence>,
    /// What its canvas knows, while one is open.
    sheet: Option<Sheet>,
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
        KEPT.with_borrow_mut(|kept| kept.insert(number, Kept { owner, seq: Some(seq), sheet: None }));
        PySequence { number, owner }
    }
    /// Take it for a forward.
    pub fn take(&self) -> PyResult<Sequence> {
        self.out(|kept| match kept.sheet {
            None => Ok(kept.seq.take()),
            Some(_) => Err(strategy("expected a sequence without an open canvas, found one with it; close the canvas")),
        })
    }
    /// Take it for a look at its canvas.
    pub fn take_canvas(&self) -> PyResult<Sequence> {
        self.out(|kept| match kept.sheet {
            Some(_) => Ok(kept.seq.take()),
            None => Err(strategy("expected an open canvas, found one that was closed")),
        })
    }
    fn out(&self, f: impl FnOnce(&mut Kept) -> PyResult<Option<Sequence>>) -> PyResult<Sequence> {
        let taken = KEPT.with_borrow_mut(|kept| kept.get_mut(&self.number).map(f));
        taken.ok_or_else(astray)??.ok_or_else(|| {
            strategy("expected one forward of a sequence at a time, found a second one; await the first")
        })
    }
    fn sheet<T>(&self, f: impl FnOnce(&mut Option<Sheet>) -> T) -> Option<T> {
        KEPT.with_borrow_mut(|kept| kept.get_mut(&self.number).map(|kept| f(&mut kept.sheet)))
    }
    /// Work on its canvas.
    pub fn on_canvas<T>(&self, f: impl FnOnce(&mut Canvas<'_>) -> T) -> PyResult<T> {
        let mut seq = self.take_canvas()?;
        let sheet = self.sheet(Option::take).flatten().ok_or_else(astray)?;
        let mut canvas = seq.resume(sheet);
        let result = f(&mut canvas);
        let sheet = canvas.put_aside();
        self.sheet(|kept| *kept = Some(sheet));
        self.give(seq);
        Ok(result)
    }
    /// Forget what its canvas did not settle; nothing when none is open.
    pub fn close_canvas(&self) -> PyResult<()> {
        let Some(sheet) = self.sheet(Option::take).flatten() else { return Ok(()) };
        // One that is in flight ends with its request, which was cancelled.
        let Ok(mut seq) = self.take() else { return Ok(()) };
        drop(seq.resume(sheet));
        self.give(seq);
        Ok(())
    }
    /// Look at what is known of it, with or without a canvas.
    fn read<T>(&self, f: impl FnOnce(&Sequence) -> T) -> PyResult<T> {
        let seq = self.out(|kept| Ok(kept.seq.take()))?;
        let result = f(&seq);
        self.give(seq);
        Ok(result)
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
    /// Lay out a canvas over the places from `start` to `end`: it begins inside what is committed or behind it (of a
    /// bidirectional model usually at 0, so that the prompt sees the answer) and goes on with mask tokens, by default as far as
    /// tokens may be committed. The model must have a mask token.
    #[pyo3(signature = (start=None, end=None))]
    fn canvas(slf: &Bound<'_, Self>, start: Option<usize>, end: Option<usize>) -> PyResult<PyCanvas> {
        let this = slf.get();
        let sheet = this
            .with(|seq| {
                let (len, room) = (seq.len(), seq.room());
                let canvas = seq.canvas(start.unwrap_or(len)..end.unwrap_or(len + room));
                canvas.map(Canvas::put_aside).map_err(to_python)
            })
            .flatten()?;
        this.sheet(|kept| *kept = Some(sheet));
        Ok(PyCanvas::new(slf.clone().unbind()))
    }
    /// Ask the request's judge about branches, or this sequence itself: one float each, more is better. One batch, one
    /// call, counted.
    fn judge(&self, branches: Vec<PyRef<'_, PySequence>>) -> PyResult<Vec<f32>> {
        let texts = branches
            .iter()
            .map(|branch| branch.with(|seq| (seq.generated().to_vec(), seq.text().to_owned(), seq.finished())))
            .collect::<PyResult<Vec<_>>>()?;
        let scores = self.with(|seq| {
            let Some(judge) = seq.judge() else {
                return Err(request("judge: expected a request with a judge, found none; pass judge= to generate"));
            };
            let question = seq.decode(seq.prompt());
            let (prompt, question) = (seq.prompt(), question.as_str());
            let texts = texts.iter();
            let candidates = texts.map(|(tokens, text, finished)| {
                let finished = *finished;
                Candidate { prompt, question, tokens, text, finished }
            });
            seq.ask(&*judge, &candidates.collect::<Vec<_>>()).map_err(to_python)
        });
        scores.flatten()
    }
    /// Tell of another text that was found, with its score; it follows the answers in `RequestOutput.outputs`.
    fn offer(&self, token_ids: Vec<Token>, score: f64) -> PyResult<()> {
        self.with(|seq| seq.offer(token_ids, score))
    }
    /// Say what the answer is worth on the strategy's own scale: its `score`.
    fn rate(&self, score: f64) -> PyResult<()> {
        self.with(|seq| seq.rate(score))
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
    /// Text after the prompt so far, without half characters.
    #[getter]
    fn text(&self) -> PyResult<String> {
        self.with(|seq| seq.text().to_owned())
    }
    /// Facts of the sequence's model: sizes, special tokens, what it sees.
    #[getter]
    fn card<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let card = self.read(|seq| omnidecode::card_json(&seq.card()).to_string())?;
        py.import("json")?.call_method1("loads", (card,))
    }
    /// Committed tokens, the prompt's first.
    #[getter]
    fn tokens(&self) -> PyResult<Vec<Token>> {
        self.read(|seq| seq.tokens().to_vec())
    }
    /// Tokens after the prompt.
    #[getter]
    fn generated(&self) -> PyResult<Vec<Token>> {
        self.read(|seq| seq.generated().to_vec())
    }
    /// Whether a stop condition was met.
    #[getter]
    fn finished(&self) -> PyResult<bool> {
        self.read(|seq| seq.finished())
    }
    /// How many more tokens may be committed.
    #[getter]
    fn room(&self) -> PyResult<usize> {
        self.read(|seq| seq.room())
    }
    /// Seed of this sequence's noise.
    #[getter]
    fn seed(&self) -> PyResult<u64> {
        self.read(|seq| seq.seed())
    }
    /// Temperature of its choices; 0 is greedy.
    #[getter]
    fn temperature(&self) -> PyResult<f32> {
        self.read(|seq| seq.warp().temperature)
    }
    /// Time of a forward of so many rows, relative to one row.
    fn cost(&self, rows: usize) -> PyResult<f64> {
        self.read(|seq| seq.cost(rows))
    }
    /// How many drafted rows pay in the next forward, of those that are accepted with these chances, best first: by the
    /// measured time of rows and by who else is in the batch. 0 where no draft pays.
    fn worth(&self, chances: Vec<f64>) -> PyResult<usize> {
        self.read(|seq| omnidecode::strategies::speculative::worth(seq, chances))
    }
    fn __len__(&self) -> PyResult<usize> {
        self.read(|seq| seq.len())
    }
}
