//! A model and its engine, as the package holds them.
use crate::array::Array;
use crate::driver::{Cause, python_strategy};
use crate::error::{Closed, ModelError, request, to_python};
use crate::processor::PythonProcessor;
use crate::ticket::Ticket;
use omnidecode::core::Token;
use omnidecode::engine::{Guarantee, Request, Sampling};
use omnidecode::models::decoder::KvDtype;
use omnidecode::{Llm, Options, answer_seed};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// A model with its engine thread.
#[pyclass(frozen, name = "Engine", module = "omnidecode._core")]
pub struct PyEngine {
    llm: RwLock<Option<Arc<Llm>>>,
    /// The process that the engine's thread lives in.
    process: u32,
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

/// A request's strategy as the package hands it over: a name with JSON parameters, or a function with keyword arguments.
type Function = (Py<PyAny>, Py<PyDict>, String);

/// A companion: one of the registry with JSON parameters, or a logits processor in Python.
#[derive(FromPyObject)]
enum Ride {
    #[pyo3(transparent, annotation = "tuple[str, str]")]
    Named((String, String)),
    #[pyo3(transparent)]
    Function(Py<PyAny>),
}

#[pymethods]
impl PyEngine {
    /// Open a model.
    #[new]
    #[pyo3(signature = (path, *, draft=None, threads=None, context=None, kv_tokens=None, kv_dtype=None))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        draft: Option<PathBuf>,
        threads: Option<usize>,
        context: Option<usize>,
        kv_tokens: Option<usize>,
        kv_dtype: Option<&str>,
    ) -> PyResult<Self> {
        let mut builder = Llm::builder(path);
        if let Some(draft) = draft {
            builder = builder.draft(draft);
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
            Some(other) => {
                return Err(ModelError::new_err(format!("kv_dtype: expected 'f32' or 'f16', found {other:?}")));
            }
        }
        // Whatever keeps it from opening is the model's error here: there is no request yet.
        let llm = py.detach(|| builder.open()).map_err(|error| ModelError::new_err(error.to_string()))?;
        Ok(PyEngine { llm: RwLock::new(Some(Arc::new(llm))), process: std::process::id() })
    }

    /// Raise what is wrong with a request, without running it.
    #[pyo3(signature = (prompt: "list[int]", sampling: "object", seed: "int", name: "str", parameters: "str",
        function: "tuple[object, dict[str, object], str] | None", companions: "list[object]") -> "None")]
    #[allow(clippy::too_many_arguments)]
    fn check(
        &self,
        py: Python<'_>,
        prompt: Vec<Token>,
        sampling: &Bound<'_, PyAny>,
        seed: u64,
        name: String,
        parameters: &str,
        function: Option<Function>,
        companions: Vec<Ride>,
    ) -> PyResult<()> {
        let asked = Asked { prompt, name, parameters, function: function.as_ref(), companions: &companions };
        asked.request(py, &*self.llm()?, sampling, seed, &Cause::default()).map(drop)
    }

    /// Run a request: as many answers as its sampling parameters say.
    #[pyo3(signature = (prompt: "list[int]", sampling: "object", seed: "int", name: "str", parameters: "str",
        function: "tuple[object, dict[str, object], str] | None", companions: "list[object]") -> "Ticket")]
    #[allow(clippy::too_many_arguments)]
    fn submit(
        &self,
        py: Python<'_>,
        prompt: Vec<Token>,
        sampling: &Bound<'_, PyAny>,
        seed: u64,
        name: String,
        parameters: &str,
        function: Option<Function>,
        companions: Vec<Ride>,
    ) -> PyResult<Ticket> {
        let llm = self.llm()?;
        let answers: usize = sampling.getattr("n")?.extract()?;
        let seeds: Vec<u64> = (0..answers).map(|index| answer_seed(seed, index)).collect();
        let asked = Asked { prompt, name, parameters, function: function.as_ref(), companions: &companions };
        let mut requests = Vec::with_capacity(answers);
        for &seed in &seeds {
            let cause = Cause::default();
            requests.push((asked.request(py, &llm, sampling, seed, &cause)?, cause));
        }
        let parts = requests.into_iter().map(|(request, cause)| (llm.submit(request), cause)).collect();
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
        let llm = self.llm()?;
        let logits = py.detach(|| llm.logits(token_ids)).map_err(to_python)?;
        Ok(Array::new(logits, llm.card().vocab))
    }
    /// Log-probabilities of labels as the next token.
    fn score(&self, py: Python<'_>, prompt: Vec<Token>, labels: Vec<Token>) -> PyResult<Vec<f32>> {
        let llm = self.llm()?;
        py.detach(|| llm.score(prompt, labels)).map_err(to_python)
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

/// Everything of a request but its seed.
struct Asked<'a> {
    prompt: Vec<Token>,
    name: String,
    parameters: &'a str,
    function: Option<&'a Function>,
    companions: &'a [Ride],
}

impl Asked<'_> {
    fn request(
        &self,
        py: Python<'_>,
        llm: &Llm,
        sampling: &Bound<'_, PyAny>,
        seed: u64,
        cause: &Cause,
    ) -> PyResult<Request> {
        let strategy = match self.function {
            None => omnidecode::strategy(&self.name, &options(self.parameters)?).map_err(to_python)?,
            Some((decode, keywords, guarantee)) => {
                let guarantee = match guarantee.as_str() {
                    "exact" => Guarantee::Exact,
                    "distribution" => Guarantee::Distribution,
                    _ => Guarantee::Approximate,
                };
                python_strategy(
                    self.name.clone(),
                    guarantee,
                    decode.clone_ref(py),
                    keywords.clone_ref(py),
                    cause.clone(),
                )
            }
        };
        let skip_special = sampling.getattr("skip_special_tokens")?.extract()?;
        let law = law(llm, sampling, seed)?;
        let mut request = llm.request_with(self.prompt.clone(), strategy, law, skip_special).map_err(to_python)?;
        for ride in self.companions {
            match ride {
                Ride::Named((name, parameters)) => {
                    llm.attach(&mut request, name, &options(parameters)?, &self.prompt).map_err(to_python)?
                }
                Ride::Function(call) => {
                    request.processors.push(Arc::new(PythonProcessor::new(call.clone_ref(py), cause.clone())));
                }
            }
        }
        Ok(request)
    }
}

/// JSON parameters of a strategy.
pub fn options(json: &str) -> PyResult<Options> {
    serde_json::from_str(json).map_err(|error| request(format!("parameters: expected a JSON object, found {error}")))
}

/// `SamplingParams` as the engine reads them.
fn law(llm: &Llm, given: &Bound<'_, PyAny>, seed: u64) -> PyResult<Sampling> {
    let get = |name: &str| given.getattr(name);
    let words: Option<Vec<String>> = get("bad_words")?.extract()?;
    let bias = get("logit_bias")?;
    let logit_bias = match bias.is_none() {
        true => Vec::new(),
        false => bias.call_method0("items")?.try_iter()?.map(|item| item?.extract()).collect::<PyResult<_>>()?,
    };
    Ok(Sampling {
        temperature: get("temperature")?.extract()?,
        top_k: usize::try_from(get("top_k")?.extract::<i64>()?).unwrap_or(0),
        top_p: get("top_p")?.extract()?,
        min_p: get("min_p")?.extract()?,
        typical_p: get("typical_p")?.extract()?,
        repetition_penalty: get("repetition_penalty")?.extract()?,
        presence_penalty: get("presence_penalty")?.extract()?,
        frequency_penalty: get("frequency_penalty")?.extract()?,
        logit_bias,
        bad_words: llm.bad_words(&words.unwrap_or_default()).map_err(to_python)?,
        allowed_token_ids: get("allowed_token_ids")?.extract()?,
        min_tokens: get("min_tokens")?.extract()?,
        max_tokens: get("max_tokens")?.extract()?,
        stop: get("_stop")?.extract()?,
        stop_token_ids: get("stop_token_ids")?.extract::<Option<_>>()?.unwrap_or_default(),
        ignore_eos: get("ignore_eos")?.extract()?,
        include_stop_str_in_output: get("include_stop_str_in_output")?.extract()?,
        logprobs: get("logprobs")?.extract()?,
        seed,
    })
}
