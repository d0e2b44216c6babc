//! What the package asks of the engine, made into requests.
use crate::driver::python_strategy;
use crate::error::{request, to_python};
use crate::judge::PythonJudge;
use crate::link::Link;
use crate::processor::PythonProcessor;
use omnidecode::core::Token;
use omnidecode::engine::{Guarantee, Request, Sampling, Strategy};
use omnidecode::{Llm, Options, answer_seed};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;

/// A companion: one of the registry with JSON parameters, or a logits processor in Python.
#[derive(FromPyObject)]
enum Ride {
    #[pyo3(transparent, annotation = "tuple[str, str]")]
    Named((String, String)),
    #[pyo3(transparent)]
    Function(Py<PyAny>),
}

/// A strategy in Python: the function, its keyword arguments, its guarantee, whether it asks the request's judge.
type Function = (Py<PyAny>, Py<PyDict>, String, bool);

/// One prompt as a job of the package describes it, by its attributes.
#[derive(FromPyObject)]
pub struct Asked<'py> {
    prompt_ids: Vec<Token>,
    sampling: Bound<'py, PyAny>,
    seed: u64,
    /// The strategy's name, and its parameters as JSON unless it is a function.
    name: String,
    parameters: String,
    function: Option<Function>,
    companions: Vec<Ride>,
    judge: Option<Py<PyAny>>,
    watch: bool,
    /// Nobody reads before the end.
    pub whole: bool,
}

impl Asked<'_> {
    /// The seed of each answer that is asked for.
    pub fn seeds(&self) -> PyResult<Vec<u64>> {
        let answers: usize = self.sampling.getattr("n")?.extract()?;
        Ok((0..answers).map(|index| answer_seed(self.seed, index)).collect())
    }
    /// The request of one answer.
    pub fn request(&self, py: Python<'_>, llm: &Llm, seed: u64, link: &Link) -> PyResult<Request> {
        let skip_special = self.sampling.getattr("skip_special_tokens")?.extract()?;
        let (strategy, law) = (self.strategy(py, link)?, law(llm, &self.sampling, seed)?);
        let mut request = llm.request_with(self.prompt_ids.clone(), strategy, law, skip_special).map_err(to_python)?;
        request.watch = self.watch;
        for ride in &self.companions {
            match ride {
                Ride::Named((name, parameters)) => {
                    llm.attach(&mut request, name, &options(parameters)?, &self.prompt_ids).map_err(to_python)?
                }
                Ride::Function(call) => {
                    request.processors.push(Arc::new(PythonProcessor::new(call.clone_ref(py), link.clone())));
                }
            }
        }
        if let Some(judge) = &self.judge {
            let judge = PythonJudge::new(judge.clone_ref(py), link.clone());
            llm.attach_judge(&mut request, Arc::new(judge)).map_err(to_python)?;
        }
        Ok(request)
    }
    fn strategy(&self, py: Python<'_>, link: &Link) -> PyResult<Strategy> {
        let Some((decode, keywords, guarantee, judged)) = &self.function else {
            return omnidecode::strategy(&self.name, &options(&self.parameters)?).map_err(to_python);
        };
        let guarantee = match guarantee.as_str() {
            "exact" => Guarantee::Exact,
            "distribution" => Guarantee::Distribution,
            _ => Guarantee::Approximate,
        };
        let (decode, keywords) = (decode.clone_ref(py), keywords.clone_ref(py));
        Ok(python_strategy(self.name.clone(), guarantee, decode, keywords, link.clone()).judged(*judged))
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
