//! What came back of a forward, copied out of the engine's thread: Python may keep it anywhere.
use crate::array::Array;
use crate::error::request;
use omnidecode::core::Token;
use omnidecode::core::tree::ROOT;
use omnidecode::engine::{self, Plan, Readout, Rows};
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was read at one row. Asking for what the plan did not read raises `RequestError`.
#[pyclass(frozen, module = "omnidecode._core")]
#[derive(Clone)]
pub struct Seen(Arc<Readings>);

#[derive(Default)]
struct Readings {
    choice: Option<Token>,
    logprob: Option<f32>,
    top: Option<Vec<(Token, f32)>>,
    stats: Option<(Token, f32, f32, f32, f32)>,
    asked: Option<Vec<f32>>,
    logits: Option<Vec<f32>>,
    hidden: Option<(Vec<f32>, usize)>,
    mass: Option<Vec<f32>>,
}

impl Seen {
    fn new(seen: engine::Seen<'_>, read: &Readout) -> Self {
        let stats = |s: omnidecode::models::Stats| (s.argmax, s.max, s.second, s.lse, s.entropy);
        Seen(Arc::new(Readings {
            choice: read.choice.then(|| seen.choice()),
            logprob: read.logprob.then(|| seen.logprob()),
            top: (read.top > 0).then(|| seen.top().to_vec()),
            stats: read.stats.then(|| stats(seen.stats())),
            asked: (!read.logprobs.is_empty()).then(|| seen.asked().to_vec()),
            logits: read.logits.then(|| seen.logits().to_vec()),
            hidden: (!read.hidden.is_empty())
                .then(|| (seen.hidden().to_vec(), seen.hidden().len() / read.hidden.len())),
            mass: (!read.mass.is_empty()).then(|| seen.mass().to_vec()),
        }))
    }
    fn read<T: Clone>(value: &Option<T>, how: &str) -> PyResult<T> {
        value.clone().ok_or_else(|| {
            request(format!("expected a plan that reads this, found one that does not; pass {how} to Plan"))
        })
    }
}

#[pymethods]
impl Seen {
    /// The model's own choice of the next token: the largest logit, or a sample keyed by (seed, position).
    #[getter]
    fn choice(&self) -> PyResult<Token> {
        Seen::read(&self.0.choice, "choice=True")
    }
    /// Raw log-probability of the choice.
    #[getter]
    fn logprob(&self) -> PyResult<f32> {
        Seen::read(&self.0.logprob, "logprob=True")
    }
    /// The largest raw logits, descending: (token, logit).
    #[getter]
    fn top(&self) -> PyResult<Vec<(Token, f32)>> {
        Seen::read(&self.0.top, "top=k")
    }
    /// Of the raw logits: (arg-max, largest, second largest, log-sum-exp, entropy in nats).
    #[getter]
    fn stats(&self) -> PyResult<(Token, f32, f32, f32, f32)> {
        Seen::read(&self.0.stats, "stats=True")
    }
    /// Raw log-probabilities of the tokens asked for, in their order.
    #[getter]
    fn logprobs(&self) -> PyResult<Vec<f32>> {
        Seen::read(&self.0.asked, "logprobs=[...]")
    }
    /// All logits, bent by the request's processors: an Array of shape (1, vocabulary).
    #[getter]
    fn logits(&self) -> PyResult<Array> {
        let logits = Seen::read(&self.0.logits, "logits=True")?;
        let columns = logits.len();
        Ok(Array::new(logits, columns))
    }
    /// Hidden states: an Array of shape (layers asked for, hidden).
    #[getter]
    fn hidden(&self) -> PyResult<Array> {
        let (states, width) = Seen::read(&self.0.hidden, "hidden=[layer, ...]")?;
        Ok(Array::new(states, width))
    }
    /// Attention weights of the layers asked for, in ascending order, each over the keys that the row sees.
    #[getter]
    fn mass(&self) -> PyResult<Vec<f32>> {
        Seen::read(&self.0.mass, "mass=[layer, ...]")
    }
}

/// What came back of a forward: `outcome.root` at the last committed token, `outcome[i]` at row `i` of the plan.
#[pyclass(frozen, module = "omnidecode._core")]
pub struct Outcome {
    root: Option<Seen>,
    rows: BTreeMap<usize, Seen>,
    places: BTreeMap<usize, Seen>,
}

impl Outcome {
    /// Copy what `plan` asked for.
    pub fn new(out: &engine::Outcome, plan: &Plan) -> Self {
        let read = &plan.read;
        let own: Vec<usize> = match &plan.at_rows {
            _ if read.is_nothing() => Vec::new(),
            Rows::These(rows) => rows.iter().map(|&row| row as usize).collect(),
            Rows::Last => plan.rows.len().checked_sub(1).into_iter().collect(),
            Rows::Own | Rows::All => (0..plan.rows.len()).collect(),
        };
        let everywhere = plan.at_rows == Rows::All && !read.is_nothing();
        let place = |p| out.place(p).map(|seen| (p, Seen::new(seen, read)));
        Outcome {
            root: out.has_root().then(|| Seen::new(out.root(), read)),
            rows: own.into_iter().map(|row| (row, Seen::new(out.row(row), read))).collect(),
            places: if everywhere { out.places().filter_map(place).collect() } else { BTreeMap::new() },
        }
    }
    /// What was seen at a row.
    pub fn row(&self, row: usize) -> PyResult<Seen> {
        self.rows
            .get(&row)
            .cloned()
            .ok_or_else(|| request(format!("expected a row that the plan reads, found row {row}; name it in `read`")))
    }
    /// The choice at a tree node.
    pub fn choice_at(&self, node: u32) -> PyResult<Token> {
        if node == ROOT { self.root()?.choice() } else { self.__getitem__(node as isize)?.choice() }
    }
}

#[pymethods]
impl Outcome {
    /// What was seen at the last committed token.
    #[getter]
    fn root(&self) -> PyResult<Seen> {
        let lost = || {
            request(
                "expected a plan that reads at the last committed token, found one that does not; pass root=True"
                    .to_string(),
            )
        };
        self.root.clone().ok_or_else(lost)
    }
    /// What was seen at a tree node, `None` being the last committed token.
    fn at(&self, node: Option<u32>) -> PyResult<Seen> {
        node.map_or_else(|| self.root(), |row| self.__getitem__(row as isize))
    }
    /// What was seen at a committed place, with `read="all"`; `None` where it was not computed in this forward.
    fn place(&self, place: usize) -> Option<Seen> {
        self.places.get(&place).cloned()
    }
    fn __getitem__(&self, row: isize) -> PyResult<Seen> {
        self.row(usize::try_from(row).unwrap_or(usize::MAX))
    }
    fn __len__(&self) -> usize {
        self.rows.len()
    }
    fn __repr__(&self) -> String {
        let root = if self.root.is_some() { "the root and " } else { "" };
        format!("Outcome({root}{} rows)", self.rows.len())
    }
}
