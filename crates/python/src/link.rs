//! What the Python pieces of one request share: where an exception waits for the reader, and what they cost.
use crate::error::{from_python, strategy};
use omnidecode::engine::Error;
use pyo3::prelude::*;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

thread_local! {
    /// The engine whose thread this is, once Python was called from it; 0 elsewhere.
    static HERE: Cell<u64> = const { Cell::new(0) };
    /// Whether Python runs for the engine right now.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A number for an engine.
pub fn engine_number() -> u64 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Refuse a call that waits for the engine when it comes from the engine's own thread, which would wait for itself.
pub fn outside(engine: u64) -> PyResult<()> {
    if HERE.get() != engine {
        return Ok(());
    }
    Err(strategy(
        "expected a call from outside of this model's own strategies, judges and processors, found one from inside, where \
         the engine would wait for itself: await forwards of the sequence, or ask another LLM",
    ))
}

/// One request as its Python pieces see it.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

struct Shared {
    engine: u64,
    thrown: Mutex<Option<PyErr>>,
    steps: AtomicUsize,
    nanoseconds: AtomicU64,
}

impl Link {
    pub fn new(engine: u64) -> Self {
        let (steps, nanoseconds) = (AtomicUsize::new(0), AtomicU64::new(0));
        Link(Arc::new(Shared { engine, thrown: Mutex::new(None), steps, nanoseconds }))
    }
    /// Call Python on the engine thread. Counts the call and its time, waiting for the GIL included; keeps an exception
    /// for the reader and gives what it becomes inside the engine.
    ///
    /// # Errors
    /// [`Error::Strategy`].
    pub fn call<T>(&self, f: impl FnOnce(Python<'_>) -> PyResult<T>) -> Result<T, Error> {
        HERE.set(self.0.engine);
        let nested = INSIDE.replace(true); // its time is counted already
        let clock = Instant::now();
        let result = Python::attach(|py| {
            f(py).map_err(|error| {
                let said = from_python(py, &error);
                *self.0.thrown.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                said
            })
        });
        if !nested {
            INSIDE.set(false);
            self.0.steps.fetch_add(1, Ordering::Relaxed);
            self.0.nanoseconds.fetch_add(clock.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        result
    }
    /// The exception that was kept.
    pub fn thrown(&self) -> Option<PyErr> {
        self.0.thrown.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
    /// How often Python was called, and for how many seconds.
    pub fn cost(&self) -> (usize, f64) {
        let seconds = self.0.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        (self.0.steps.load(Ordering::Relaxed), seconds)
    }
}
