//! The watermark detector.
use crate::error::to_python;
use omnidecode::Detector;
use omnidecode::core::Token;
use pyo3::prelude::*;
use std::path::PathBuf;

/// Reads MajorMark watermarks of one model, for one key.
#[pyclass(frozen, name = "Detector", module = "omnidecode._core")]
pub struct PyDetector(Detector);

#[pymethods]
impl PyDetector {
    /// Open the tokenizer of a model.
    #[new]
    fn new(py: Python<'_>, path: PathBuf, key: u64, bits: usize, blocks: usize) -> PyResult<Self> {
        py.detach(|| Detector::open(path, key, bits, blocks)).map(PyDetector).map_err(to_python)
    }
    /// Token ids of a text, without special tokens.
    fn tokens(&self, py: Python<'_>, text: &str) -> PyResult<Vec<Token>> {
        py.detach(|| self.0.tokens(text)).map_err(to_python)
    }
    /// (message, p-value, z, std test, tokens counted, [(score, runner-up)]) of token ids.
    #[pyo3(signature = (token_ids: "list[int]", dedup: "bool")
        -> "tuple[str, float, float, bool | None, int, list[tuple[float, float]]]")]
    #[allow(clippy::type_complexity)]
    fn detect(
        &self,
        py: Python<'_>,
        token_ids: Vec<Token>,
        dedup: bool,
    ) -> PyResult<(String, f64, f64, Option<bool>, usize, Vec<(f64, f64)>)> {
        let found = py.detach(|| self.0.detect(&token_ids, dedup)).map_err(to_python)?;
        let message = found.bits.iter().map(|&bit| if bit { '1' } else { '0' }).collect();
        Ok((message, found.p_value, found.z, found.marked, found.counted, found.scores))
    }
}
