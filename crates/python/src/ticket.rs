//! Following the answers to one prompt from Python: blocking with the GIL released, or by a bell for asyncio.
use crate::error::{StrategyError, is_ours, to_python, traceback};
use crate::link::Link;
use omnidecode::engine::{
    Alternative, Delta, Error, Event, Finish, Handle, Mark, Note, Origin, Reason, Source, StopReason, TokenLogprob,
};
use omnidecode::models::tokenizer::{TextStream, Tokenizer};
use pyo3::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// How often a waiting thread looks for Ctrl-C.
const PATIENCE: Duration = Duration::from_millis(50);

/// Keys that were rung and not yet heard.
#[derive(Default)]
struct Rung {
    keys: Mutex<VecDeque<u64>>,
    news: Condvar,
}

impl Rung {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// All keys rung since the last time, waiting for one.
    fn wait(&self, most: Option<Duration>) -> Vec<u64> {
        let quiet = |keys: &mut VecDeque<u64>| keys.is_empty();
        let mut keys = match most {
            None => self.news.wait_while(self.lock(), quiet).unwrap_or_else(PoisonError::into_inner),
            Some(most) => {
                self.news.wait_timeout_while(self.lock(), most, quiet).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        keys.drain(..).collect()
    }
}

/// One key of a bell, rung by the engine thread.
struct Rope {
    rung: Arc<Rung>,
    key: u64,
}

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        let mut keys = self.rung.lock();
        if !keys.contains(&self.key) {
            keys.push_back(self.key);
        }
        self.rung.news.notify_all();
    }
}

/// What one thread waits at for news of many requests.
#[pyclass(frozen, module = "omnidecode._core")]
pub struct Bell(Arc<Rung>);

#[pymethods]
impl Bell {
    #[new]
    fn new() -> Self {
        Bell(Arc::default())
    }
    /// Wait, with the GIL released, until tickets have news; their keys.
    fn wait(&self, py: Python<'_>) -> Vec<u64> {
        py.detach(|| self.0.wait(None))
    }
}

/// What an answer gained since the last time.
#[pyclass(frozen, module = "omnidecode._core")]
pub struct Chunk {
    /// Which of the answers.
    #[pyo3(get)]
    index: usize,
    /// Text that became certain.
    #[pyo3(get)]
    text: String,
    /// Committed tokens.
    #[pyo3(get)]
    token_ids: Vec<u32>,
    logprobs: Vec<Vec<Entry>>,
    origins: Vec<Origin>,
    /// Changes of the canvas, as (place, token, forward, confidence, text), of requests that watch it.
    #[pyo3(get)]
    marks: Vec<Marked>,
    /// The text that each token completed, special tokens by name.
    #[pyo3(get)]
    pieces: Vec<String>,
    /// At the end: other texts that the strategy found, as (token ids, text, score, finish reason, stop reason), in its
    /// order.
    #[pyo3(get)]
    others: Vec<Other>,
    /// At the end: what the strategy saw on its way, as (label, place, (token, weight, text) of each).
    #[pyo3(get)]
    notes: Vec<Noted>,
    finish: Option<Finish>,
    /// At the end: how often Python code of the request was called, and the seconds that it took.
    #[pyo3(get)]
    python: Option<(usize, f64)>,
}

/// What stopped an answer.
#[derive(Clone, IntoPyObject)]
enum Stop {
    Token(u32),
    Text(String),
}

/// (token, log-probability, rank, text).
type Entry = (u32, f32, Option<usize>, String);

/// (source, forward, depth, branch, confidence).
type Found = (&'static str, u32, u32, u64, Option<f32>);

impl From<StopReason> for Stop {
    fn from(reason: StopReason) -> Stop {
        match reason {
            StopReason::Token(token) => Stop::Token(token),
            StopReason::Text(text) => Stop::Text(text),
        }
    }
}

fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::Stop => "stop",
        Reason::Length => "length",
        Reason::Abort => "abort",
    }
}

/// (token ids, text, score, finish reason, stop reason).
type Other = (Vec<u32>, String, f64, &'static str, Option<Stop>);

/// (place, token, forward, confidence, text).
type Marked = (usize, u32, u32, f32, String);

/// (label, place, (token, weight, text) of each).
type Noted = (String, usize, Vec<(u32, f32, String)>);

#[pymethods]
impl Chunk {
    /// For each token: (token, log-probability, rank, text) of the largest and of the token itself.
    #[getter]
    fn logprobs(&self) -> Vec<Vec<Entry>> {
        self.logprobs.clone()
    }
    /// Where each token came from: (source, forward, depth, branch, confidence); source is "target", "draft" or
    /// "canvas".
    #[getter]
    fn origins(&self) -> Vec<Found> {
        let source = |source: Source| match source {
            Source::Target => "target",
            Source::Draft => "draft",
            Source::Canvas => "canvas",
        };
        self.origins.iter().map(|o| (source(o.source), o.forward, o.depth, o.branch, o.confidence)).collect()
    }
    /// "stop", "length", "abort", or `None` while it goes on.
    #[getter]
    fn finish_reason(&self) -> Option<&'static str> {
        self.finish.as_ref().map(|finish| word(finish.reason))
    }
    /// The stop token or stop string that ended it.
    #[getter]
    fn stop_reason(&self) -> Option<Stop> {
        self.finish.as_ref()?.stop_reason.clone().map(Stop::from)
    }
    /// At the end: what the answer is worth on the strategy's own scale, where it says.
    #[getter]
    fn score(&self) -> Option<f64> {
        self.finish.as_ref()?.score
    }
    /// At the end: what it cost, by name.
    #[getter]
    fn usage(&self) -> Option<BTreeMap<&'static str, usize>> {
        let usage = &self.finish.as_ref()?.usage;
        Some(
            [
                ("prompt_tokens", usage.prompt_tokens),
                ("cached_tokens", usage.cached_tokens),
                ("forwards", usage.forwards),
                ("nfe", usage.nfe),
                ("rows", usage.rows),
                ("row_layers", usage.row_layers),
                ("head_rows", usage.head_rows),
                ("target_forwards", usage.forwards_by_model.first().copied().unwrap_or(0)),
                ("drafted", usage.drafted),
                ("accepted", usage.accepted),
                ("host_reads", usage.host_reads),
                ("judge_calls", usage.judge_calls),
                ("judged", usage.judged),
            ]
            .into(),
        )
    }
}

struct Part {
    handle: Handle,
    link: Link,
    /// Names what each token says.
    pieces: TextStream,
    /// An end that came together with the last tokens.
    late: Option<Event>,
}

/// The answers to one prompt, on their way.
#[pyclass(frozen, module = "omnidecode._core")]
pub struct Ticket {
    parts: Mutex<Vec<Option<Part>>>,
    waker: Mutex<Waker>,
    rung: Arc<Rung>,
    tokenizer: Tokenizer,
    /// The seed of each answer.
    #[pyo3(get)]
    seeds: Vec<u64>,
}

impl Ticket {
    pub fn new(parts: Vec<(Handle, Link)>, seeds: Vec<u64>, tokenizer: Tokenizer) -> Self {
        let rung = Arc::new(Rung::default());
        let waker = Arc::new(Rope { rung: rung.clone(), key: 0 }).into();
        let part = |(handle, link)| Some(Part { handle, link, pieces: tokenizer.stream(false), late: None });
        let parts = parts.into_iter().map(part).collect();
        Ticket { parts: Mutex::new(parts), waker: Mutex::new(waker), rung, tokenizer, seeds }
    }

    /// The next event of any answer; `Ready(None)` when all have ended.
    fn next_event(&self, py: Python<'_>) -> Poll<Option<PyResult<Chunk>>> {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut cx = Context::from_waker(&waker);
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer that just spoke is asked last, so that several interleave.
        for index in 0..parts.len() {
            let Some(part) = &mut parts[index] else { continue };
            let event = match part.late.take() {
                Some(event) => event,
                None => match part.handle.poll_next(&mut cx) {
                    Poll::Ready(Some(event)) => event,
                    Poll::Ready(None) => {
                        parts[index] = None;
                        continue;
                    }
                    Poll::Pending => continue,
                },
            };
            let mut delta = Delta::default();
            let end = gather(part, event, &mut delta);
            let pieces = delta.tokens.iter().map(|&token| part.pieces.push(token)).collect();
            match end {
                Some(Event::Failed(error)) => {
                    let link = part.link.clone();
                    parts[index] = None;
                    return Poll::Ready(Some(Err(raised(py, error, &link))));
                }
                Some(Event::Done(finish)) => {
                    let end = (finish, part.link.cost());
                    parts[index] = None;
                    return Poll::Ready(Some(Ok(self.chunk(index, delta, pieces, Some(end)))));
                }
                _ => return Poll::Ready(Some(Ok(self.chunk(index, delta, pieces, None)))),
            }
        }
        if parts.iter().all(Option::is_none) { Poll::Ready(None) } else { Poll::Pending }
    }

    fn chunk(&self, index: usize, delta: Delta, pieces: Vec<String>, end: Option<(Finish, (usize, f64))>) -> Chunk {
        let (mut finish, python) = end.unzip();
        let logprobs = delta.logprobs.iter().map(|of| self.entries(of)).collect();
        let Delta { text, tokens: token_ids, origins, marks, .. } = delta;
        let marked = |m: Mark| (m.place, m.token, m.forward, m.confidence, self.tokenizer.decode(&[m.token], false));
        let marks = marks.into_iter().map(marked).collect();
        let (others, notes) =
            finish.as_mut().map(|f| (std::mem::take(&mut f.others), std::mem::take(&mut f.notes))).unwrap_or_default();
        let other = |o: Alternative| (o.tokens, o.text, o.score, word(o.reason), o.stop_reason.map(Stop::from));
        let noted = |note: Note| {
            let named = |(token, weight)| (token, weight, self.tokenizer.decode(&[token], false));
            (note.label.to_string(), note.place, note.tokens.into_iter().map(named).collect())
        };
        let others = others.into_iter().map(other).collect();
        let notes = notes.into_iter().map(noted).collect();
        Chunk { index, text, token_ids, logprobs, origins, marks, pieces, others, notes, finish, python }
    }
    fn entries(&self, of: &TokenLogprob) -> Vec<Entry> {
        let text = |token: u32| self.tokenizer.decode(&[token], false);
        let mut entries: Vec<Entry> = of
            .top
            .iter()
            .enumerate()
            .map(|(at, &(token, logprob))| (token, logprob, Some(at + 1), text(token)))
            .collect();
        if !entries.iter().any(|entry| entry.0 == of.token) {
            entries.push((of.token, of.logprob.unwrap_or(f32::NAN), None, text(of.token)));
        }
        entries
    }
}

/// Everything that an answer has said by now, into `delta`; its end, if it came too.
fn gather(part: &mut Part, first: Event, delta: &mut Delta) -> Option<Event> {
    let mut event = Some(first);
    while let Some(Event::Delta(mut more)) = event {
        delta.tokens.append(&mut more.tokens);
        delta.text.push_str(&more.text);
        delta.logprobs.append(&mut more.logprobs);
        delta.origins.append(&mut more.origins);
        delta.marks.append(&mut more.marks);
        event = part.handle.try_next();
    }
    match event {
        // What was said before a failure is told first.
        Some(failed @ Event::Failed(_)) if !delta.tokens.is_empty() => {
            part.late = Some(failed);
            None
        }
        end => end,
    }
}

/// The exception of a failed request: what Python code of it threw is its cause, or itself if it is one of ours.
fn raised(py: Python<'_>, error: Error, link: &Link) -> PyErr {
    match link.thrown() {
        Some(thrown) if matches!(error, Error::Strategy(_) | Error::Panicked(_)) => {
            if is_ours(py, &thrown) {
                return thrown;
            }
            let outer = StrategyError::new_err(error.to_string());
            let _ = outer.value(py).setattr("traceback", traceback(py, &thrown)); // it stays empty at worst
            outer.set_cause(py, Some(thrown));
            outer
        }
        _ => to_python(error),
    }
}

#[pymethods]
impl Ticket {
    /// The next chunk of any answer, waiting for it with the GIL released; `None` when all have ended. Raises what ended
    /// an answer early.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Chunk>> {
        loop {
            match self.next_event(py) {
                Poll::Ready(event) => return event.transpose(),
                Poll::Pending => drop(py.detach(|| self.rung.wait(Some(PATIENCE)))),
            }
            py.check_signals()?;
        }
    }
    /// The next chunk if there is one, and whether all answers have ended.
    fn poll(&self, py: Python<'_>) -> PyResult<(Option<Chunk>, bool)> {
        match self.next_event(py) {
            Poll::Ready(Some(event)) => Ok((Some(event?), false)),
            Poll::Ready(None) => Ok((None, true)),
            Poll::Pending => Ok((None, false)),
        }
    }
    /// Let news ring `bell` with `key` from now on.
    fn attach(&self, bell: &Bell, key: u64) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(Rope { rung: bell.0.clone(), key }).into();
    }
    /// Stop the answers that have not ended; nothing more comes of them.
    fn cancel(&self, py: Python<'_>) {
        let parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        py.detach(|| drop(parts));
    }
}
