//! Rows, trees and plans as Python writes them.
use crate::error::request;
use crate::outcome::Outcome;
use omnidecode::core::Token;
use omnidecode::core::mask::{Bits, Mask};
use omnidecode::core::tree::{DraftTree, Proposal, ROOT};
use omnidecode::engine::{KvAction, Plan, Readout, Row, Rows};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::sync::{Mutex, MutexGuard};

/// A row that holds no token: a vector in place of an embedding, a weighted sum of embeddings, or a hidden state.
#[pyclass(frozen, name = "Row", module = "omnidecode._core")]
pub struct PyRow(Row);

impl PyRow {
    /// The row.
    pub fn row(&self) -> &Row {
        &self.0
    }
}

#[pymethods]
impl PyRow {
    /// A vector in place of an embedding: `hidden` floats.
    #[staticmethod]
    fn embedding(vector: Vec<f32>) -> Self {
        PyRow(Row::Embedding(vector.into()))
    }
    /// A weighted sum of token embeddings: {token id: weight}.
    #[staticmethod]
    #[pyo3(signature = (weights: "dict[int, float]"))]
    fn mix(weights: &Bound<'_, PyDict>) -> PyResult<Self> {
        let parts = weights.iter().map(|(id, weight)| Ok((id.extract()?, weight.extract()?)));
        Ok(PyRow(Row::Mix(parts.collect::<PyResult<Vec<(Token, f32)>>>()?.into())))
    }
    /// The residual stream entering the plan's first layer: `hidden` floats.
    #[staticmethod]
    fn hidden(vector: Vec<f32>) -> Self {
        PyRow(Row::Hidden(vector.into()))
    }
}

fn rows(given: Option<Vec<Bound<'_, PyAny>>>) -> PyResult<Vec<Row>> {
    let one = |item: Bound<'_, PyAny>| match item.cast::<PyRow>() {
        Ok(row) => Ok(row.get().row().clone()),
        Err(_) => item
            .extract()
            .map(Row::Token)
            .map_err(|_| request(format!("rows: expected token ids or Row objects, found {item}"))),
    };
    given.unwrap_or_default().into_iter().map(one).collect()
}

/// A token tree below the last committed token, which is its root (`None`). Siblings keep their order.
#[pyclass(frozen, name = "Tree", module = "omnidecode._core")]
pub struct PyTree(Mutex<DraftTree>);

impl PyTree {
    pub fn lock(&self) -> MutexGuard<'_, DraftTree> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
    fn node(tree: &DraftTree, node: Option<u32>) -> PyResult<u32> {
        match node {
            None => Ok(ROOT),
            Some(node) if (node as usize) < tree.len() => Ok(node),
            Some(node) => {
                Err(request(format!("tree: expected a node from 0 to {}, found {node}", tree.len() as i64 - 1)))
            }
        }
    }
}

#[pymethods]
impl PyTree {
    /// An empty tree.
    #[new]
    fn new() -> Self {
        PyTree(Mutex::new(DraftTree::new(Proposal::Deterministic)))
    }
    /// Hang a token below `parent` (`None`: the root) as its last child; returns the new node's number.
    #[pyo3(signature = (token, parent=None))]
    fn add(&self, token: Token, parent: Option<u32>) -> PyResult<u32> {
        let mut tree = self.lock();
        let parent = PyTree::node(&tree, parent)?;
        Ok(tree.add(parent, token))
    }
    /// Tokens, by node.
    #[getter]
    fn tokens(&self) -> Vec<Token> {
        self.lock().tokens().to_vec()
    }
    /// Parents, by node; `None` is the root.
    #[getter]
    fn parents(&self) -> Vec<Option<u32>> {
        self.lock().parents().iter().map(|&p| (p != ROOT).then_some(p)).collect()
    }
    /// Children of a node (`None`: the root), in the order they were added.
    #[pyo3(signature = (node=None))]
    fn children(&self, node: Option<u32>) -> PyResult<Vec<u32>> {
        let tree = self.lock();
        let node = PyTree::node(&tree, node)?;
        Ok(tree.children(node).collect())
    }
    /// Nodes from the first level down to `node`.
    fn path(&self, node: u32) -> PyResult<Vec<u32>> {
        let tree = self.lock();
        PyTree::node(&tree, Some(node))?;
        Ok(tree.path(node))
    }
    /// Walk down as long as the model's own choice is in the tree: the path to accept, and the token after it. Lossless,
    /// greedy and sampled.
    #[pyo3(name = "match")]
    fn match_(&self, seen: &Outcome) -> PyResult<(Vec<u32>, Token)> {
        let tree = self.lock();
        let (mut at, mut path) = (ROOT, Vec::new());
        loop {
            let next = seen.choice_at(at)?;
            match tree.child(at, next) {
                Some(node) => {
                    path.push(node);
                    at = node;
                }
                None => return Ok((path, next)),
            }
        }
    }
    fn __len__(&self) -> usize {
        self.lock().len()
    }
    fn __repr__(&self) -> String {
        let tree = self.lock();
        format!("Tree({} nodes, {} levels)", tree.len(), tree.levels())
    }
}

/// One forward of one sequence: what is committed but not yet computed, then these rows.
///
/// `rows`: token ids or `Row` objects. Who sees whom among them: `mask` "causal" or "full", or `parents` (one for each
/// row, `None` is the last committed token), `block` (block-causal), `copies` (so many equal windows), or `bits` (a list of
/// booleans for each row). `kv`: "append" (in flight until `accept` or the next forward), "extend" (behind the rows in
/// flight), "rerun" (the rows in flight from number `first` on, as hidden states through further layers), "overwrite" (over the committed places from `at` on), "discard". `at`: place of the first row.
/// `offsets`, `positions`: place and rotary position of each row. `keep`: ranges of committed places that the rows may see.
/// `layers`: (start, end). `leave`: committed tokens at the end to leave uncomputed. `root`: see the last committed token.
/// `noise`: mixed into the seed, for loops that draw more than once at a position.
///
/// What is read: `choice` (the model's own next token), `logprob` (of the choice), `top` (so many largest logits), `stats`, `logprobs` (of these
/// tokens), `logits`, `hidden` (states before these layers), `mass` (attention of these layers). `top`, `stats` and
/// `logprobs` are of the raw law; `choice` and `logits` of the law that the request's processors bent. Where: `read`
/// "own" (the last committed token and every row), "last", "all" (places being computed too), or a list of rows.
#[pyclass(frozen, name = "Plan", module = "omnidecode._core")]
pub struct PyPlan(pub Plan);

#[pymethods]
impl PyPlan {
    #[new]
    #[allow(clippy::too_many_arguments)]
    #[pyo3(signature = (
        rows: "list[int | Row] | None" = None, *, mask: "str" = "causal", parents: "list[int | None] | None" = None,
        block: "int | None" = None, copies: "int | None" = None, bits: "list[list[bool]] | None" = None,
        kv: "str" = "append", first: "int" = 0, at: "int | None" = None, offsets: "list[int] | None" = None,
        positions: "list[int] | None" = None, keep: "list[tuple[int, int]] | None" = None,
        layers: "tuple[int, int] | None" = None, leave: "int" = 0, root: "bool" = true, noise: "int" = 0,
        choice: "bool" = true, logprob: "bool" = false, top: "int" = 0, stats: "bool" = false, logprobs: "list[int] | None" = None,
        logits: "bool" = false, hidden: "list[int] | None" = None, mass: "list[int] | None" = None,
        read: "str | list[int] | None" = None
    ))]
    fn new(
        rows: Option<Vec<Bound<'_, PyAny>>>,
        mask: &str,
        parents: Option<Vec<Option<u32>>>,
        block: Option<usize>,
        copies: Option<usize>,
        bits: Option<Vec<Vec<bool>>>,
        kv: &str,
        first: u32,
        at: Option<usize>,
        offsets: Option<Vec<u32>>,
        positions: Option<Vec<u32>>,
        keep: Option<Vec<(u32, u32)>>,
        layers: Option<(usize, usize)>,
        leave: usize,
        root: bool,
        noise: u64,
        choice: bool,
        logprob: bool,
        top: usize,
        stats: bool,
        logprobs: Option<Vec<Token>>,
        logits: bool,
        hidden: Option<Vec<usize>>,
        mass: Option<Vec<usize>>,
        read: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let rows = self::rows(rows)?;
        let mask = visibility(mask, parents, block, copies, bits)?;
        let kv = match kv {
            "append" => KvAction::Append,
            "extend" => KvAction::Extend,
            "overwrite" => KvAction::Overwrite,
            "rerun" => KvAction::Rerun(first),
            "discard" => KvAction::Discard,
            other => {
                return Err(request(format!(
                    "kv: expected append, extend, rerun, overwrite or discard, found {other:?}"
                )));
            }
        };
        if first > 0 && !matches!(kv, KvAction::Rerun(_)) {
            return Err(request(format!("first: expected 0 unless kv is \"rerun\", found {first}")));
        }
        let readout = Readout {
            choice: choice || logprob,
            logprob,
            top,
            stats,
            logprobs: logprobs.unwrap_or_default(),
            logits,
            hidden: sorted(hidden),
            mass: sorted(mass),
        };
        Ok(PyPlan(Plan {
            rows,
            mask,
            kv,
            at,
            offsets: offsets.unwrap_or_default(),
            positions: positions.unwrap_or_default(),
            keep,
            layers: layers.map(|(start, end)| start..end),
            read: readout,
            at_rows: places(read)?,
            leave,
            root,
            noise,
            bend: None,
        }))
    }
    /// Tokens that follow the committed ones; keyword arguments as those of `Plan`.
    #[staticmethod]
    #[pyo3(signature = (tokens: "list[int]", **options: "object") -> "Plan")]
    fn chain<'py>(tokens: Bound<'py, PyAny>, options: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyAny>> {
        tokens.py().get_type::<PyPlan>().call((tokens,), options)
    }
    /// A draft tree, each node seeing its ancestors; keyword arguments as those of `Plan`.
    #[staticmethod]
    #[pyo3(signature = (tree: "Tree", **options: "object") -> "Plan")]
    fn tree<'py>(tree: &Bound<'py, PyTree>, options: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyAny>> {
        let py = tree.py();
        let options = options.map_or_else(|| Ok(PyDict::new(py)), |given| given.copy())?;
        options.set_item("parents", tree.get().parents())?;
        py.get_type::<PyPlan>().call((tree.get().tokens(),), Some(&options))
    }
    /// Rows that all see each other, standing at place `at` and after; keyword arguments as those of `Plan`.
    #[staticmethod]
    #[pyo3(signature = (tokens: "list[int]", at: "int", **options: "object") -> "Plan")]
    fn window<'py>(
        tokens: Bound<'py, PyAny>,
        at: usize,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = tokens.py();
        let all = PyDict::new(py);
        all.set_item("mask", "full")?;
        all.set_item("at", at)?;
        all.set_item("root", false)?;
        if let Some(given) = options {
            all.update(given.as_mapping())?;
        }
        py.get_type::<PyPlan>().call((tokens,), Some(&all))
    }
    fn __repr__(&self) -> String {
        format!("Plan({} rows)", self.0.rows.len())
    }
}

fn sorted(layers: Option<Vec<usize>>) -> Vec<usize> {
    let mut layers = layers.unwrap_or_default();
    layers.sort_unstable();
    layers.dedup();
    layers
}

fn visibility(
    mask: &str,
    parents: Option<Vec<Option<u32>>>,
    block: Option<usize>,
    copies: Option<usize>,
    bits: Option<Vec<Vec<bool>>>,
) -> PyResult<Mask> {
    let mut given = Vec::new();
    given.extend(parents.map(|parents| Mask::Tree(parents.into_iter().map(|p| p.unwrap_or(ROOT)).collect())));
    given.extend(block.map(Mask::Block));
    given.extend(copies.map(Mask::Copies));
    if let Some(bits) = bits {
        let columns = bits.first().map_or(0, Vec::len);
        if bits.iter().any(|row| row.len() != columns) {
            return Err(request("bits: expected rows of one length, found several".to_string()));
        }
        given.push(Mask::Bits(Bits::from_fn(bits.len(), columns, |i, j| bits[i][j])));
    }
    match (mask, given.pop(), given.is_empty()) {
        ("causal", Some(only), true) => Ok(only),
        ("causal", None, _) => Ok(Mask::Causal),
        ("full", None, _) => Ok(Mask::Full),
        ("causal" | "full", _, _) => {
            Err(request("plan: expected one of mask, parents, block, copies and bits, found several".to_string()))
        }
        (other, _, _) => Err(request(format!("mask: expected causal or full, found {other:?}"))),
    }
}

fn places(read: Option<Bound<'_, PyAny>>) -> PyResult<Rows> {
    let Some(read) = read else { return Ok(Rows::Own) };
    if let Ok(word) = read.cast::<PyString>() {
        return match &*word.to_cow()? {
            "own" => Ok(Rows::Own),
            "last" => Ok(Rows::Last),
            "all" => Ok(Rows::All),
            other => Err(request(format!("read: expected own, last, all or a list of rows, found {other:?}"))),
        };
    }
    let mut rows: Vec<u32> = read.extract()?;
    rows.sort_unstable();
    rows.dedup();
    Ok(Rows::These(rows))
}
