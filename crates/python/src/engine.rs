//! A model and its engine, as the package holds them.
use crate::array::Array;
use crate::asked::Asked;
use crate::error::{Closed, ModelError, to_python};
use crate::link::{Link, engine_number, outside};
use crate::ticket::Ticket;
use omnidecode::Llm;
use omnidecode::core::Token;
use omnidecode::models::decoder::KvDtype;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// A model with its engine thread.
#[pyclass(frozen, name = "Engine", module = "omnidecode._core")]
pub struct PyEngine {
    llm: RwLock<Option<Arc<Llm>>>,
    /// The process that the engine's thread lives in.
    process: u32,
    number: u64,
}

impl PyEngine {
    pub fn llm(&self) -> PyResult<Arc<Llm>> {
        if std::process::id() != self.process {
            return Err(Closed::new_err(
                "this model was opened before the process was forked, and its engine stayed in the parent: expected a model \
                 opened in this process; open it here, or start workers with the spawn method",
            ));
        }
        let llm = self.llm.read().unwrap_or_else(PoisonError::into_inner).clone();
        llm.ok_or_else(|| Closed::new_err("expected an open model, found one that was closed; open it again"))
    }
    fn take(&self) -> Option<Arc<Llm>> {
        self.llm.write().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for PyEngine {
    fn drop(&mut self) {
        let llm = self.take();
        if std::process::id() != self.process {
            std::mem::forget(llm); // its thread is in another process
        } else if llm.is_some() {
            // The engine's thread may need the GIL to end.
            Python::attach(|py| py.detach(|| drop(llm)));
        }
    }
}

#[pymethods]
impl PyEngine {
    /// Open a model; `beside`: further models, as (role, path).
    #[new]
    #[pyo3(signature = (path, *, beside=Vec::new(), threads=None, context=None, kv_tokens=None, kv_dtype=None, device="cpu", row_invariant=true, prefix_cache=true))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        beside: Vec<(String, PathBuf)>,
        threads: Option<usize>,
        context: Option<usize>,
        kv_tokens: Option<usize>,
        kv_dtype: Option<&str>,
        device: &str,
        row_invariant: bool,
        prefix_cache: bool,
    ) -> PyResult<Self> {
        let device = device.parse().map_err(|e: omnidecode::Error| ModelError::new_err(e.to_string()))?;
        let mut builder = Llm::builder(path).device(device).row_invariant(row_invariant).prefix_cache(prefix_cache);
        for (role, path) in beside {
            builder = builder.beside(role, path);
        }
        if let Some(threads) = threads {
            builder = builder.threads(threads);
        }
        if let Some(context) = context {
            builder = builder.context(context);
        }
        if let Some(kv_tokens) = kv_tokens {
            builder = builder.kv_tokens(kv_tokens);
        }
        match kv_dtype {
            None => {}
            Some("f32") => builder = builder.kv_dtype(KvDtype::F32),
            Some("f16") => builder = builder.kv_dtype(KvDtype::F16),
            Some("bf16") => builder = builder.kv_dtype(KvDtype::Bf16),
            Some(other) => {
                return Err(ModelError::new_err(format!("kv_dtype: expected 'f32', 'f16' or 'bf16', found {other:?}")));
            }
        }
        // Whatever keeps it from opening is the model's error here: there is no request yet.
        let llm = py.detach(|| builder.open()).map_err(|error| ModelError::new_err(error.to_string()))?;
        Ok(PyEngine { llm: RwLock::new(Some(Arc::new(llm))), process: std::process::id(), number: engine_number() })
    }

    /// Raise what is wrong with a job's request, without running it.
    #[pyo3(signature = (job: "object") -> "None")]
    fn check(&self, py: Python<'_>, job: Asked<'_>) -> PyResult<()> {
        job.request(py, &*self.llm()?, 0, &Link::new(self.number)).map(drop)
    }

    /// Run a job: as many answers as its sampling parameters say.
    #[pyo3(signature = (job: "object") -> "Ticket")]
    fn submit(&self, py: Python<'_>, job: Asked<'_>) -> PyResult<Ticket> {
        outside(self.number)?;
        let (llm, seeds) = (self.llm()?, job.seeds()?);
        let request = |&seed: &u64| {
            let link = Link::new(self.number);
            Ok((job.request(py, &llm, seed, &link)?, link))
        };
        // All of them are looked at before one runs.
        let requests = seeds.iter().map(request).collect::<PyResult<Vec<_>>>()?;
        let submit = |(request, link)| {
            let handle = llm.submit(request);
            if job.whole {
                handle.whole();
            }
            (handle, link)
        };
        let parts = requests.into_iter().map(submit).collect();
        Ok(Ticket::new(parts, seeds, llm.tokenizer().clone()))
    }

    /// Token ids of a text.
    fn tokenize(&self, py: Python<'_>, text: &str, add_special_tokens: bool) -> PyResult<Vec<Token>> {
        let llm = self.llm()?;
        py.detach(|| llm.tokenizer().encode(text, add_special_tokens)).map_err(to_python)
    }
    /// Text of token ids.
    fn detokenize(&self, py: Python<'_>, token_ids: Vec<Token>, skip_special_tokens: bool) -> PyResult<String> {
        let llm = self.llm()?;
        let vocab = llm.card().vocab;
        match token_ids.iter().find(|&&token| token as usize >= vocab) {
            Some(&token) => Err(to_python(omnidecode::engine::Error::UnknownToken { token, vocab })),
            None => Ok(py.detach(|| llm.tokenizer().decode(&token_ids, skip_special_tokens))),
        }
    }
    /// The prompt of a conversation: messages and template variables as JSON.
    fn render(&self, messages: &str, options: &str) -> PyResult<String> {
        self.llm()?.render_json(messages, options).map_err(to_python)
    }
    /// The model's facts, as JSON.
    fn card(&self) -> PyResult<String> {
        Ok(self.llm()?.card_json().to_string())
    }
    /// The author's sampling defaults in transformers' names, as JSON; `None` where there are none.
    fn generation_config(&self) -> PyResult<Option<String>> {
        Ok(self.llm()?.generation_json().map(|config| config.to_string()))
    }
    /// Logits of every row: float32 (rows, vocabulary).
    fn logits(&self, py: Python<'_>, token_ids: Vec<Token>) -> PyResult<Array> {
        outside(self.number)?;
        let llm = self.llm()?;
        let logits = py.detach(|| llm.logits(token_ids)).map_err(to_python)?;
        Ok(Array::new(logits, llm.card().vocab))
    }
    /// Log-probabilities of labels as the next token.
    fn score(&self, py: Python<'_>, prompt: Vec<Token>, labels: Vec<Token>) -> PyResult<Vec<f32>> {
        outside(self.number)?;
        let llm = self.llm()?;
        py.detach(|| llm.score(prompt, labels)).map_err(to_python)
    }
    /// Estimate of the log-likelihood of an answer on a canvas, in nats.
    fn score_canvas(
        &self,
        py: Python<'_>,
        prompt: Vec<Token>,
        answer: Vec<Token>,
        draws: usize,
        seed: u64,
    ) -> PyResult<f64> {
        outside(self.number)?;
        let llm = self.llm()?;
        py.detach(|| llm.score_canvas(prompt, answer, draws, seed)).map_err(to_python)
    }
    /// What the engine did since it started, as JSON.
    fn stats(&self) -> PyResult<String> {
        Ok(self.llm()?.stats_json().to_string())
    }
    /// Stop the engine and free the model.
    fn close(&self, py: Python<'_>) {
        if std::process::id() == self.process {
            let llm = self.take();
            py.detach(|| drop(llm));
        }
    }
}
