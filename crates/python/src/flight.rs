//! What `await` yields to the engine: one or more forwards, flown together.
use crate::error::strategy;
use crate::sequence::PySequence;
use omnidecode::engine::{Aim, Plan};
use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::sync::{Mutex, MutexGuard};

/// A forward on its way; await it once.
#[pyclass(frozen, module = "omnidecode._core")]
pub struct Flight(Mutex<State>);

/// One sequence with the plan that it shall run, and which of its rows speak of which places of a canvas.
pub type Leg = (Py<PySequence>, Plan, Option<Aim>);

struct State {
    /// Not yet flown.
    legs: Vec<Leg>,
    /// Back.
    results: Option<Vec<Py<PyAny>>>,
    flown: bool,
    /// Whether the awaiter gets one outcome or a list.
    single: bool,
}

impl Flight {
    /// One forward.
    pub fn one(seq: Py<PySequence>, plan: Plan) -> Flight {
        Flight::new(vec![(seq, plan, None)], true)
    }
    /// One look at a canvas.
    pub fn look(seq: Py<PySequence>, plan: Plan, aim: Aim) -> Flight {
        Flight::new(vec![(seq, plan, Some(aim))], true)
    }
    fn new(legs: Vec<Leg>, single: bool) -> Flight {
        Flight(Mutex::new(State { legs, results: None, flown: false, single }))
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
    /// What is to be flown.
    pub fn take(&self) -> Vec<Leg> {
        std::mem::take(&mut self.lock().legs)
    }
    /// What came back.
    pub fn land(&self, results: Vec<Py<PyAny>>) {
        self.lock().results = Some(results);
    }
}

#[pymethods]
impl Flight {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }
    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Py<Self>> {
        let mut state = slf.get().lock();
        if !std::mem::replace(&mut state.flown, true) {
            return Ok(slf.clone().unbind());
        }
        let single = state.single;
        let results = state
            .results
            .take()
            .ok_or_else(|| strategy("expected a forward awaited once, inside a strategy; found a second await"))?;
        drop(state);
        let py = slf.py();
        let mut results = results;
        let value = match results.pop() {
            Some(only) if single => only,
            last => {
                results.extend(last);
                PyList::new(py, results)?.into_any().unbind()
            }
        };
        Err(PyStopIteration::new_err((value,)))
    }
}

/// Several forwards at once, in one batch: `a, b = await gather(x.forward(), y.forward())`.
#[pyfunction]
#[pyo3(signature = (*flights: "Flight") -> "Flight")]
pub fn gather(flights: Vec<PyRef<'_, Flight>>) -> PyResult<Flight> {
    let mut legs = Vec::new();
    for flight in &flights {
        let mut state = flight.lock();
        if std::mem::replace(&mut state.flown, true) || !state.single {
            return Err(strategy("gather: expected forwards that were not awaited, found one that was"));
        }
        legs.append(&mut state.legs);
    }
    Ok(Flight::new(legs, false))
}
