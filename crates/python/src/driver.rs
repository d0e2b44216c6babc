//! `async def decode(seq)`: a Python coroutine as one more future on the engine thread. It takes the GIL once a poll.
use crate::canvas::PyView;
use crate::error::{strategy, to_python};
use crate::flight::Flight;
use crate::link::Link;
use crate::outcome::Outcome;
use crate::sequence::{self, PySequence};
use futures_util::future::join_all;
use omnidecode::engine::{self, Aim, Guarantee, Plan, Result, Sequence, Strategy};
use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A strategy out of an async function and its keyword arguments.
pub fn python_strategy(
    name: String,
    guarantee: Guarantee,
    decode: Py<PyAny>,
    parameters: Py<PyDict>,
    link: Link,
) -> Strategy {
    Strategy::new(name, guarantee, move |seq| drive(seq, decode, parameters, link))
}

/// Closes the coroutine (its `finally` blocks run) and frees its sequences, also when the request is cancelled.
struct Run {
    owner: u64,
    coroutine: Py<PyAny>,
}
impl Drop for Run {
    fn drop(&mut self) {
        // At the interpreter's end there is nobody left to tell.
        let _ = Python::try_attach(|py| {
            if let Err(error) = self.coroutine.call_method0(py, "close") {
                error.write_unraisable(py, Some(self.coroutine.bind(py)));
            }
        });
        sequence::free(self.owner);
    }
}

/// A sequence in flight, where it belongs, and its plan (kept to read the outcome by).
struct Leg {
    home: Py<PySequence>,
    seq: Sequence,
    plan: Plan,
    aim: Option<Aim>,
}

/// What the coroutine is given at its next step.
enum Sent {
    Nothing,
    Landed { flight: Py<Flight>, legs: Vec<(Leg, Result<engine::Outcome>)> },
}

enum Step {
    Done,
    Fly(Py<Flight>, Vec<Leg>),
}

async fn drive(seq: Sequence, decode: Py<PyAny>, parameters: Py<PyDict>, link: Link) -> Result<()> {
    let run = link.call(|py| {
        let owner = sequence::owner();
        let seq = Py::new(py, PySequence::keep(owner, seq))?;
        match decode.bind(py).call((seq,), Some(parameters.bind(py))) {
            Ok(coroutine) => Ok(Run { owner, coroutine: coroutine.unbind() }),
            Err(error) => {
                sequence::free(owner);
                Err(error)
            }
        }
    })?;
    let mut sent = Sent::Nothing;
    loop {
        let step = link.call(|py| resume(run.coroutine.bind(py), sent))?;
        let Step::Fly(flight, mut legs) = step else { return Ok(()) };
        let results = match &mut legs[..] {
            [only] => vec![only.seq.forward(only.plan.clone()).await],
            many => join_all(many.iter_mut().map(|leg| leg.seq.forward(leg.plan.clone()))).await,
        };
        sent = Sent::Landed { flight, legs: legs.into_iter().zip(results).collect() };
    }
}

/// One step of the coroutine: hand over what landed, run to the next `await`, take what shall fly.
fn resume(coroutine: &Bound<'_, PyAny>, sent: Sent) -> PyResult<Step> {
    let py = coroutine.py();
    let mut failed = None;
    if let Sent::Landed { flight, legs } = sent {
        let mut outcomes = Vec::with_capacity(legs.len());
        for (leg, result) in legs {
            leg.home.get().give(leg.seq);
            match result {
                Ok(out) => outcomes.push(match leg.aim {
                    None => Py::new(py, Outcome::new(&out, &leg.plan))?.into_any(),
                    Some(aim) => Py::new(py, PyView::new(&out, &leg.plan, aim))?.into_any(),
                }),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        flight.get().land(outcomes);
    }
    let mut yielded = match failed {
        None => coroutine.call_method1("send", (py.None(),)),
        Some(error) => throw(coroutine, to_python(error)),
    };
    // A forward that cannot start is raised at its own `await`, as one that failed is.
    loop {
        let flight = match yielded {
            Ok(flight) => flight,
            Err(error) if error.is_instance_of::<PyStopIteration>(py) => return Ok(Step::Done),
            Err(error) => return Err(error),
        };
        let taken = match flight.cast_into::<Flight>() {
            Ok(flight) => take(flight),
            Err(other) => Err(strategy(format!(
                "a strategy may await forwards only: expected `await seq.forward(...)` or `await gather(...)`, found {}",
                other.into_inner()
            ))),
        };
        match taken {
            Ok(step) => return Ok(step),
            Err(error) => yielded = throw(coroutine, error),
        }
    }
}

fn throw<'py>(coroutine: &Bound<'py, PyAny>, error: PyErr) -> PyResult<Bound<'py, PyAny>> {
    coroutine.call_method1("throw", (error,))
}

fn take(flight: Bound<'_, Flight>) -> PyResult<Step> {
    let mut legs: Vec<Leg> = Vec::new();
    for (home, plan, aim) in flight.get().take() {
        let taken = if aim.is_some() { home.get().take_canvas() } else { home.get().take() };
        match taken {
            Ok(seq) => legs.push(Leg { home, seq, plan, aim }),
            Err(error) => {
                for leg in legs {
                    leg.home.get().give(leg.seq);
                }
                return Err(error);
            }
        }
    }
    Ok(Step::Fly(flight.unbind(), legs))
}
