//! Counting a corpus for the strategy `aded`. Reading texts and their tokens is Python's.
use crate::error::request;
use omnidecode::core::Token;
use omnidecode::strategies::speculative::corpus::Counts;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::Mutex;

/// Counts of tri-grams, text after text.
#[pyclass(frozen, name = "TrigramCounts", module = "omnidecode._core")]
#[derive(Default)]
pub struct PyTrigramCounts(Mutex<Counts>);

#[pymethods]
impl PyTrigramCounts {
    #[new]
    fn new() -> Self {
        Self::default()
    }
    /// Count the token ids of a text.
    fn add(&self, py: Python<'_>, token_ids: Vec<Token>) {
        py.detach(|| self.counts().add(&token_ids));
    }
    /// Write the table for a model of `vocab` tokens; tri-grams seen fewer than `least` times are left out. Returns
    /// (tokens counted, pairs, tri-grams written).
    fn write(&self, py: Python<'_>, path: PathBuf, vocab: usize, least: u32) -> PyResult<(u64, usize, usize)> {
        py.detach(|| {
            let counts = self.counts();
            let table = counts.corpus(least);
            let file = std::fs::File::create(&path).map(std::io::BufWriter::new);
            let written = file.and_then(|file| table.write(vocab, file));
            written.map_err(|e| format!("{}: expected a file to write the table to, found: {e}", path.display()))?;
            Ok((counts.tokens(), table.len(), table.trigrams()))
        })
        .map_err(|e: String| request(e))
    }
}
impl PyTrigramCounts {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
