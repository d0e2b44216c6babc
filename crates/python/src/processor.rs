//! A logits processor written in Python: `processor(token_ids, logits)`.
use crate::link::Link;
use omnidecode::core::Token;
use omnidecode::engine::{LogitsProcessor, ProcessorState};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;

struct Function {
    call: Py<PyAny>,
    link: Link,
}

/// A processor out of a Python callable. It gets all token ids so far and an `array.array('f')` of the vocabulary's
/// length, which it changes in place or answers with what takes its place.
pub struct PythonProcessor(Arc<Function>);

impl PythonProcessor {
    pub fn new(call: Py<PyAny>, link: Link) -> Self {
        PythonProcessor(Arc::new(Function { call, link }))
    }
}

impl LogitsProcessor for PythonProcessor {
    fn start(&self, prompt: &[Token]) -> Box<dyn ProcessorState> {
        Box::new(State { function: self.0.clone(), base: Rc::new(prompt.to_vec()), fresh: Vec::new() })
    }
}

/// The tokens so far: what branches share, and what this one added since.
struct State {
    function: Arc<Function>,
    base: Rc<Vec<Token>>,
    fresh: Vec<Token>,
}

impl ProcessorState for State {
    fn fork(&self) -> Box<dyn ProcessorState> {
        Box::new(State { function: self.function.clone(), base: self.base.clone(), fresh: self.fresh.clone() })
    }
    fn advance(&mut self, token: Token) {
        self.fresh.push(token);
        if let Some(base) = Rc::get_mut(&mut self.base) {
            base.append(&mut self.fresh);
        }
    }
    fn bend(&self, _position: usize, logits: &mut [f32]) {
        let mut tokens = self.base.to_vec();
        tokens.extend_from_slice(&self.fresh);
        if let Err(error) = self.function.link.call(|py| self.function.apply(py, tokens, logits)) {
            // The engine catches it and fails this request alone; the hook that prints panics is not called.
            resume_unwind(Box::new(error.to_string()));
        }
    }
}

impl Function {
    fn apply(&self, py: Python<'_>, tokens: Vec<Token>, logits: &mut [f32]) -> PyResult<()> {
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_ne_bytes()).collect();
        let given = py.import("array")?.getattr("array")?.call1(("f", PyBytes::new(py, &bytes)))?;
        let answer = self.call.bind(py).call1((tokens, &given))?;
        let changed = if answer.is_none() { given } else { floats(py, answer)? };
        let changed = changed.call_method0("tobytes")?;
        let changed = changed.cast::<PyBytes>()?.as_bytes();
        if changed.len() != bytes.len() {
            let found = changed.len() / 4;
            return Err(PyValueError::new_err(format!(
                "logits processor: expected {} logits back, found {found}",
                logits.len()
            )));
        }
        for (logit, new) in logits.iter_mut().zip(changed.as_chunks::<4>().0) {
            *logit = f32::from_ne_bytes(*new);
        }
        if let Some(at) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return Err(PyValueError::new_err(format!(
                "logits processor: expected finite logits or -inf, found {} at token {at}",
                logits[at]
            )));
        }
        Ok(())
    }
}

/// Anything that holds floats, as something whose `tobytes` gives float32.
fn floats<'py>(py: Python<'py>, answer: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if answer.hasattr("numpy")? {
        return floats(py, answer.call_method0("numpy")?); // a torch tensor
    }
    if answer.hasattr("astype")? {
        return answer.call_method1("astype", ("float32",));
    }
    py.import("array")?.getattr("array")?.call1(("f", answer))
}
