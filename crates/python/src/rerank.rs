//! Listwise reranking: windows, questions, labels, and what an answer says. The loop is Python's.
use crate::engine::PyEngine;
use crate::error::{request, to_python};
use omnidecode::core::Token;
use omnidecode::strategies::scoring::listwise;
use pyo3::prelude::*;

/// Windows (start, end) over a list of `n`, the last places first.
#[pyfunction]
pub fn listwise_windows(n: usize, window: usize, step: usize) -> PyResult<Vec<(usize, usize)>> {
    let windows = listwise::windows(n, window, step).map_err(request)?;
    Ok(windows.into_iter().map(|w| (w.start, w.end)).collect())
}
/// The question about one window, each passage cut to so many words.
#[pyfunction]
pub fn listwise_question(query: &str, passages: Vec<String>, words: usize) -> PyResult<String> {
    if passages.len() > listwise::MOST {
        return Err(request(format!("passages: expected at most {}, found {}", listwise::MOST, passages.len())));
    }
    let passages: Vec<&str> = passages.iter().map(String::as_str).collect();
    Ok(listwise::question(query, &passages, words))
}
/// Token ids of the first `n` identifiers behind an opening bracket.
#[pyfunction]
pub fn listwise_labels(engine: &PyEngine, n: usize) -> PyResult<Vec<Token>> {
    engine.llm()?.listwise_labels(n).map_err(to_python)
}
/// The order that a generated answer gives: a permutation of `0..n`.
#[pyfunction]
pub fn listwise_order(answer: &str, n: usize) -> Vec<usize> {
    listwise::order(answer, n.min(listwise::MOST))
}
