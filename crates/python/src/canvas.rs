//! A canvas as Python holds it: its sequence, and beside it in the table of the engine thread what the canvas knows.
use crate::error::{request, to_python};
use crate::flight::Flight;
use crate::outcome::{Outcome, Seen};
use crate::plan::PyPlan;
use crate::sequence::PySequence;
use omnidecode::core::Token;
use omnidecode::engine::{self, Aim, Look, Plan};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A region of mask tokens in a sequence, denoised in place; made by `seq.canvas(start, end)`. Places are absolute, a
/// window is a pair (start, end). What is settled is handed to the reader and never changes again; everything else may be
/// committed, remasked and edited in any order. Leaving its `with` block forgets what was not settled; until then the
/// sequence itself cannot be used.
#[pyclass(frozen, name = "Canvas", module = "omnidecode._core")]
pub struct PyCanvas(Py<PySequence>);

impl PyCanvas {
    pub fn new(seq: Py<PySequence>) -> Self {
        PyCanvas(seq)
    }
    fn on<T>(&self, f: impl FnOnce(&mut engine::Canvas<'_>) -> T) -> PyResult<T> {
        self.0.get().on_canvas(f)
    }
}

/// Words of `Plan` that a look understands: who sees whom, and what is read.
const OPTIONS: [&str; 13] = [
    "mask", "block", "bits", "keep", "noise", "choice", "logprob", "top", "stats", "logprobs", "logits", "hidden",
    "mass",
];

#[pymethods]
impl PyCanvas {
    /// All places: (start, end).
    #[getter]
    fn places(&self) -> PyResult<(usize, usize)> {
        self.on(|canvas| (canvas.places().start, canvas.places().end))
    }
    /// Places that are not handed over yet: (start, end).
    #[getter]
    fn open_places(&self) -> PyResult<(usize, usize)> {
        self.on(|canvas| (canvas.open_places().start, canvas.open_places().end))
    }
    /// What stands where, from place 0 on.
    #[getter]
    fn tokens(&self) -> PyResult<Vec<Token>> {
        self.on(|canvas| canvas.tokens().to_vec())
    }
    /// The mask token.
    #[getter]
    fn mask_token(&self) -> PyResult<Token> {
        self.on(|canvas| canvas.mask_token())
    }
    /// Every change so far: (place, token, forward, confidence).
    #[getter]
    fn history(&self) -> PyResult<Vec<(usize, Token, u32, f32)>> {
        self.on(|canvas| canvas.history().iter().map(|m| (m.place, m.token, m.forward, m.confidence)).collect())
    }
    /// Undecided places of a window, ascending; by default of the whole canvas.
    #[pyo3(signature = (window: "tuple[int, int] | None" = None))]
    fn masked(&self, window: Option<(usize, usize)>) -> PyResult<Vec<usize>> {
        self.on(|canvas| {
            let (start, end) = window.unwrap_or((canvas.places().start, canvas.places().end));
            canvas.masked(start..end.min(canvas.places().end))
        })
    }
    /// Tokens that are never chosen for this canvas from now on; the mask token never is.
    fn ban(&self, tokens: Vec<Token>) -> PyResult<()> {
        self.on(|canvas| canvas.ban(&tokens))
    }
    /// One forward of a window, or of these places; by default of the whole canvas. Await it for the `View`. `refresh`:
    /// keys and values replace what was there, or are forgotten. `about`: places whose predictions are read, by default
    /// all that are run. `drafts`: variants of the window run side by side, each {place: token}. Further keyword arguments
    /// are those of `Plan` that say who sees whom (`mask`, here "full" by default, `block`, `bits`, `keep`), what is read, and
    /// `noise` (give each forward its own, so that a place is not drawn with the same noise again).
    #[pyo3(signature = (
        places: "tuple[int, int] | list[int] | None" = None, *, refresh: "bool" = false, about: "list[int] | None" = None,
        drafts: "list[dict[int, int]] | None" = None, **options: "object"
    ) -> "Flight")]
    fn look(
        &self,
        py: Python<'_>,
        places: Option<Bound<'_, PyAny>>,
        refresh: bool,
        about: Option<Vec<usize>>,
        drafts: Option<Vec<Bound<'_, PyDict>>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Flight> {
        let plan = reading(py, options)?;
        let drafts = drafts.unwrap_or_default().iter().map(draft).collect::<PyResult<Vec<_>>>()?;
        let (plan, aim) = self
            .on(|canvas| {
                let places = match places {
                    None => canvas.places().collect(),
                    Some(given) => window(&given)?,
                };
                let Plan { mask, keep, noise, read, .. } = plan;
                let look = Look { mask, keep, noise, drafts, about, ..Look::at(places, refresh, read) };
                canvas.prepare(look).map_err(to_python)
            })
            .flatten()?;
        Ok(Flight::look(self.0.clone_ref(py), plan, aim))
    }
    /// Decide a place. `confidence`: what the strategy thinks of it, for reports.
    #[pyo3(signature = (place, token, confidence=1.0))]
    fn commit(&self, place: usize, token: Token, confidence: f32) -> PyResult<()> {
        self.on(|canvas| canvas.commit(place, token, confidence))?.map_err(to_python)
    }
    /// Make a place undecided again.
    fn remask(&self, place: usize) -> PyResult<()> {
        self.on(|canvas| canvas.remask(place))?.map_err(to_python)
    }
    /// Decide every place from `start` to the end alike (end of text).
    fn fill(&self, start: usize, token: Token) -> PyResult<()> {
        self.on(|canvas| canvas.fill(start, token))?.map_err(to_python)
    }
    /// End the canvas here.
    fn truncate(&self, end: usize) -> PyResult<()> {
        self.on(|canvas| canvas.truncate(end))?.map_err(to_python)
    }
    /// Append undecided places.
    fn expand(&self, count: usize) -> PyResult<()> {
        self.on(|canvas| canvas.expand(count))?.map_err(to_python)
    }
    /// Everything before `end` is final: check stop conditions and hand it over. False when the answer has ended.
    fn settle(&self, end: usize) -> PyResult<bool> {
        self.on(|canvas| canvas.settle(end))?.map_err(to_python)
    }
    /// Forget what was not settled; the sequence can be used again.
    fn close(&self) -> PyResult<()> {
        self.0.get().close_canvas()
    }
    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }
    #[pyo3(signature = (*_error: "object") -> "None")]
    fn __exit__(&self, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close()
    }
}

/// The part of a plan that options say.
fn reading(py: Python<'_>, options: Option<&Bound<'_, PyDict>>) -> PyResult<Plan> {
    let all = PyDict::new(py);
    if let Some(given) = options {
        for key in given.keys() {
            let name: String = key.extract()?;
            if !OPTIONS.contains(&name.as_str()) {
                return Err(request(format!("look: expected one of {}, found {name}", OPTIONS.join(", "))));
            }
        }
        all.update(given.as_mapping())?;
    }
    if !["mask", "block", "bits"].iter().any(|name| all.contains(name).unwrap_or(false)) {
        all.set_item("mask", "full")?;
    }
    let plan = py.get_type::<PyPlan>().call((), Some(&all))?;
    Ok(plan.cast::<PyPlan>()?.get().0.clone())
}

/// A pair is a window; a list is its places.
fn window(given: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    if let Ok(pair) = given.cast::<pyo3::types::PyTuple>() {
        let (start, end) = pair.extract()?;
        return Ok((start..end).collect());
    }
    given.extract()
}

fn draft(given: &Bound<'_, PyDict>) -> PyResult<Vec<(usize, Token)>> {
    given.iter().map(|(place, token)| Ok((place.extract()?, token.extract()?))).collect()
}

/// What a look saw: `view[place]`, or `view.at(place, draft)`.
#[pyclass(frozen, name = "View", module = "omnidecode._core")]
pub struct PyView {
    outcome: Outcome,
    aim: Aim,
}

impl PyView {
    /// Copy what the plan asked for.
    pub fn new(out: &engine::Outcome, plan: &Plan, aim: Aim) -> Self {
        PyView { outcome: Outcome::new(out, plan), aim }
    }
}

#[pymethods]
impl PyView {
    /// The prediction for a place, in a draft.
    #[pyo3(signature = (place, draft=0))]
    fn at(&self, place: usize, draft: usize) -> PyResult<Seen> {
        let seen = self.aim.row(draft, place).and_then(|row| self.outcome.row(row).ok());
        seen.ok_or_else(|| {
            request(format!(
                "expected a place and a draft that were read, found place {place} in draft {draft}; name it in `places` or `about`"
            ))
        })
    }
    fn __getitem__(&self, place: usize) -> PyResult<Seen> {
        self.at(place, 0)
    }
}
