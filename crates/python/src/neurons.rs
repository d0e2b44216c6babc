//! What the head says of single neurons.
use crate::array::Array;
use crate::error::{ModelError, request, to_python};
use omnidecode::core::Token;
use omnidecode::models::neurons::{Neurons, View};
use omnidecode::models::{Part, Weights};
use pyo3::prelude::*;
use std::path::PathBuf;

/// The weights of a model, and how its neurons are read.
#[pyclass(frozen, name = "Neurons", module = "omnidecode._core")]
pub struct PyNeurons {
    weights: Weights,
    view: View,
    threads: Option<usize>,
}

#[pymethods]
impl PyNeurons {
    /// Open a model's files. `part`: "up", "gate" or "down".
    #[new]
    #[pyo3(signature = (path, part, *, negative=false, fold_input=false, fold_output=false, length=None, cosine=false,
        random=None, threads=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        part: &str,
        negative: bool,
        fold_input: bool,
        fold_output: bool,
        length: Option<f32>,
        cosine: bool,
        random: Option<u64>,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let part = match part {
            "up" => Part::Up,
            "gate" => Part::Gate,
            "down" => Part::Down,
            other => return Err(request(format!("part: expected 'up', 'gate' or 'down', found {other:?}"))),
        };
        let weights = py.detach(|| Weights::open(path)).map_err(|e| ModelError::new_err(e.to_string()))?;
        let view = View { part, negative, fold_input, fold_output, length, cosine, random };
        Ok(PyNeurons { weights, view, threads })
    }
    /// Layers, and neurons of each.
    fn shape(&self) -> (usize, usize) {
        let config = self.weights.config();
        (config.layers.len(), config.intermediate)
    }
    /// For every layer (token ids [neurons, top], probabilities [neurons, top], entropy, log-sum-exp), handed to `each`
    /// as it is found; `each` may raise to stop.
    #[pyo3(signature = (top: "int", each: "object") -> "None")]
    fn decode(&self, py: Python<'_>, top: usize, each: &Bound<'_, PyAny>) -> PyResult<()> {
        let neurons = py
            .detach(|| Neurons::open(&self.weights, self.view.clone(), self.threads))
            .map_err(|e| to_python(omnidecode::Error::from(e)))?;
        for layer in 0..neurons.layers() {
            let found = py.detach(|| neurons.decode(layer, top)).map_err(|e| to_python(omnidecode::Error::from(e)))?;
            let width = found.tokens.len() / found.lse.len().max(1);
            each.call1((
                layer,
                found.tokens,
                Array::new(found.probabilities, width),
                Array::new(found.entropy, 1),
                Array::new(found.lse, 1),
            ))?;
        }
        Ok(())
    }
    /// Logits of tokens, by layer: [layers][neurons, tokens].
    fn logits_of(&self, py: Python<'_>, token_ids: Vec<Token>) -> PyResult<Vec<Array>> {
        let vocab = self.weights.config().vocab;
        if let Some(&token) = token_ids.iter().find(|&&t| t as usize >= vocab) {
            return Err(to_python(omnidecode::engine::Error::UnknownToken { token, vocab }));
        }
        if token_ids.is_empty() {
            return Err(request("token_ids: expected at least one token, found none"));
        }
        let all = py.detach(|| {
            let neurons = Neurons::open(&self.weights, self.view.clone(), self.threads)?;
            (0..neurons.layers()).map(|layer| neurons.logits_of(layer, &token_ids)).collect::<Result<Vec<_>, _>>()
        });
        let all = all.map_err(|e| to_python(omnidecode::Error::from(e)))?;
        Ok(all.into_iter().map(|logits| Array::new(logits, token_ids.len())).collect())
    }
}
