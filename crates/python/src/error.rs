//! Errors of Rust as exceptions of Python: the one place where they are translated. The classes are Python's own
//! (`omnidecode/errors.py`), so that they can have several bases.
use omnidecode::Error;
use omnidecode::engine::Error as Engine;
use pyo3::import_exception;
use pyo3::prelude::*;

import_exception!(omnidecode.errors, Closed);
import_exception!(omnidecode.errors, ModelError);
import_exception!(omnidecode.errors, OutOfPages);
import_exception!(omnidecode.errors, RequestError);
import_exception!(omnidecode.errors, StrategyError);

/// A `RequestError`.
pub fn request(message: impl Into<String>) -> PyErr {
    RequestError::new_err(message.into())
}

/// A `StrategyError`.
pub fn strategy(message: impl Into<String>) -> PyErr {
    StrategyError::new_err(message.into())
}

/// The exception that says the same.
pub fn to_python(error: impl Into<Error>) -> PyErr {
    let error = error.into();
    let message = error.to_string();
    match error {
        Error::Model(_) => ModelError::new_err(message),
        Error::Engine(engine) => match engine {
            Engine::OutOfPages { .. } | Engine::OutOfTail { .. } | Engine::Memory(_) => OutOfPages::new_err(message),
            Engine::Config(_) => ModelError::new_err(message),
            Engine::Panicked(_) | Engine::Strategy(_) | Engine::NotFinite { .. } => StrategyError::new_err(message),
            Engine::Shutdown => Closed::new_err(message),
            Engine::Sequence(_) => StrategyError::new_err(message),
            _ => RequestError::new_err(message),
        },
        _ => RequestError::new_err(message),
    }
}

/// What a strategy's exception becomes inside the engine: one of ours keeps its meaning, another is the strategy's own.
pub fn from_python(py: Python<'_>, error: &PyErr) -> Engine {
    let kind = error.get_type(py).name().map_or_else(|_| "exception".into(), |name| name.to_string());
    Engine::Strategy(format!("{kind}: {}", error.value(py)))
}

/// An exception as Python prints it, with its traceback.
pub fn traceback(py: Python<'_>, error: &PyErr) -> String {
    let parts = (error.get_type(py), error.value(py), error.traceback(py));
    let lines = py.import("traceback").and_then(|module| module.call_method1("format_exception", parts));
    lines.and_then(|lines| lines.extract::<Vec<String>>()).map(|lines| lines.concat()).unwrap_or_default()
}

/// Whether an exception is one of the package's.
pub fn is_ours(py: Python<'_>, error: &PyErr) -> bool {
    let base = py.import("omnidecode.errors").and_then(|module| module.getattr("OmnidecodeError"));
    base.is_ok_and(|base| error.matches(py, base).unwrap_or(false))
}

/// The error for a sequence used outside of its strategy.
pub fn astray() -> PyErr {
    strategy(
        "expected a sequence inside its own strategy while its request runs, found one whose request has ended or that is used from another thread",
    )
}
