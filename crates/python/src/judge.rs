//! A judge written in Python: `judge(candidates)` gives one float for each.
use crate::error::request;
use crate::link::Link;
use omnidecode::core::Token;
use omnidecode::engine::{self, Judge};
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::sync::Arc;

/// A text to be judged, whole or in part.
///
/// `prompt_token_ids`, `prompt`: what was asked. `token_ids`, `text`: what was found so far, the prompt not included.
/// `finished`: whether nothing will follow.
#[pyclass(frozen, module = "omnidecode._core")]
pub struct Candidate {
    asked: Arc<[Token]>,
    question: Arc<str>,
    /// Tokens after the prompt, an end-of-text token included.
    #[pyo3(get)]
    token_ids: Vec<Token>,
    /// Their text.
    #[pyo3(get)]
    text: String,
    /// Whether nothing will follow.
    #[pyo3(get)]
    finished: bool,
}

#[pymethods]
impl Candidate {
    #[new]
    #[pyo3(signature = (prompt_token_ids, prompt, token_ids, text, finished))]
    fn new(prompt_token_ids: Vec<Token>, prompt: String, token_ids: Vec<Token>, text: String, finished: bool) -> Self {
        Candidate { asked: prompt_token_ids.into(), question: prompt.into(), token_ids, text, finished }
    }
    /// Tokens of the prompt.
    #[getter]
    fn prompt_token_ids(&self) -> Vec<Token> {
        self.asked.to_vec()
    }
    /// Text of the prompt.
    #[getter]
    fn prompt(&self) -> &str {
        &self.question
    }
    fn __repr__(&self) -> String {
        let end = if self.finished { "finished" } else { "unfinished" };
        format!("Candidate({:?}, {} tokens, {end})", self.text, self.token_ids.len())
    }
}

/// A judge out of a Python callable.
pub struct PythonJudge {
    call: Py<PyAny>,
    link: Link,
}

impl PythonJudge {
    pub fn new(call: Py<PyAny>, link: Link) -> Self {
        PythonJudge { call, link }
    }
    fn ask(&self, py: Python<'_>, batch: &[engine::Candidate<'_>]) -> PyResult<Vec<f32>> {
        let Some(first) = batch.first() else { return Ok(Vec::new()) };
        // One batch is of one prompt.
        let (asked, question): (Arc<[Token]>, Arc<str>) = (first.prompt.into(), first.question.into());
        let candidate = |c: &engine::Candidate<'_>| Candidate {
            asked: asked.clone(),
            question: question.clone(),
            token_ids: c.tokens.to_vec(),
            text: c.text.to_owned(),
            finished: c.finished,
        };
        let answer =
            self.call.call1(py, (PyList::new(py, batch.iter().map(candidate).map(|c| Py::new(py, c).ok()))?,))?;
        let answer = answer.bind(py);
        let float = |item: PyResult<Bound<'_, PyAny>>| item?.extract::<f32>();
        answer.try_iter().and_then(|items| items.map(float).collect()).map_err(|_| {
            request(format!("judge: expected a sequence of {} floats, one a candidate; found {answer}", batch.len()))
        })
    }
}

impl Judge for PythonJudge {
    fn judge(&self, batch: &[engine::Candidate<'_>]) -> Result<Vec<f32>, String> {
        self.link.call(|py| self.ask(py, batch)).map_err(|error| error.to_string())
    }
}
