//! What strategies and the executor share on the engine thread: one `RefCell`, never held across a poll.
use crate::cost::{Cost, CostModel, calibrate};
use crate::error::{Error, Result};
use crate::outcome::{Outcome, Readings};
use crate::plan::{KvAction, Plan, Row};
use crate::processor::States;
use crate::tail::Tail;
use crate::usage::{Stats, Usage};
use omnidecode_core::Token;
use omnidecode_core::law::Warp;
use omnidecode_core::pages::{Moves, PagePool, PageTable};
use omnidecode_core::tail::TailSlots;
use omnidecode_models::{Edits, ModelCard, Network};
use slab::Slab;
use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A model of this engine, by number; the main model is 0.
pub type ModelId = usize;
pub(crate) type TaskId = u64;
pub(crate) type Shared = Rc<RefCell<Inner>>;

/// Sizes and policies of an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Pages of the KV store, per model.
    pub pages: usize,
    /// Tail slots (rows in flight), per model.
    pub tail: usize,
    /// Debt rows of one sequence in one step: how a long prompt is cut.
    pub chunk: usize,
    /// Rows of all sequences of one model in one step.
    pub budget: usize,
    /// Share the full pages of equal prompts, and copy the rows that part of a page has in common.
    pub prefix_cache: bool,
    /// Requests that run at once.
    pub max_running: usize,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Where the cost of forwards is known from.
    pub cost: Cost,
    /// Least time between two wake-ups of a reader that follows an answer. Waking one takes as long as a step of a very
    /// small model. First news and the end are told at once; the rest at most this and a step later.
    pub pace: Duration,
}
impl Default for Config {
    fn default() -> Self {
        Self {
            pages: 1024,
            tail: 1024,
            chunk: 128,
            budget: 1024,
            prefix_cache: true,
            max_running: 256,
            max_waiting: usize::MAX,
            cost: Cost::Learned,
            pace: Duration::from_millis(5),
        }
    }
}

pub(crate) struct Model {
    pub role: String,
    pub network: Box<dyn Network>,
    pub card: Rc<ModelCard>,
    pub pool: PagePool,
    pub slots: TailSlots,
    /// Slot moves owed to the network before its next run, in order.
    pub moves: Moves,
    pub cost: CostModel,
    /// Rows of the last step.
    pub last_rows: usize,
}

impl Model {
    /// Measure what forwards cost, if that is still due, unless `stop` says that there is something better to do.
    pub fn calibrate(&mut self, stop: &dyn Fn() -> bool) {
        if !self.cost.is_due() {
            return;
        }
        self.settle();
        let mut slots = Vec::new();
        self.slots.take(self.cost.rows_due().min(self.slots.free()), &mut slots);
        calibrate(&mut *self.network, self.pool.total(), &slots, &mut self.cost, stop);
        self.slots.give(&mut slots);
    }
    /// Make the moves that are owed: slots that were given back may still be their source.
    pub fn settle(&mut self) {
        if !self.moves.is_empty() {
            let moves = std::mem::take(&mut self.moves);
            self.network.copy(&moves);
            self.moves = moves; // its memory
            self.moves.clear();
        }
    }
}

/// A request's counters.
#[derive(Default)]
pub(crate) struct Meter {
    pub usage: Usage,
    /// The step in which each model's forward was last counted.
    pub stamps: Vec<u64>,
}

pub(crate) struct SeqState {
    pub task: TaskId,
    pub model: ModelId,
    pub tokens: Vec<Token>,
    /// Rows at places that hold no token.
    pub vectors: BTreeMap<usize, Row>,
    pub table: PageTable,
    pub tail: Tail,
    pub states: States,
    pub warp: Warp,
    pub seed: u64,
    /// Places from here on are a canvas and no debt.
    pub floor: usize,
    /// Its KV is not a function of its tokens: it may not be given up.
    pub pinned: bool,
    /// Salt of its prefixes; `None` shares none.
    pub salt: Option<u64>,
    pub edits: Option<Arc<Edits>>,
    /// Likeliest tokens to report with each committed token.
    pub logprobs: Option<usize>,
    /// The root sequence of its request: prefix hits in its prompt are reported.
    pub prompt: usize,
    pub meter: Rc<RefCell<Meter>>,
    /// Rows of its last forward.
    pub last_rows: usize,
}
impl SeqState {
    /// Whether its pages may be found and taken by others.
    pub fn shares(&self) -> Option<u64> {
        if self.pinned || self.edits.is_some() || !self.vectors.is_empty() { None } else { self.salt }
    }
    pub fn row(&self, place: usize) -> Row {
        match self.vectors.get(&place) {
            Some(row) => row.clone(),
            None => Row::Token(self.tokens[place]),
        }
    }
}

pub(crate) enum SlotState {
    Queued,
    Done(Result<Outcome>),
}
/// A plan on its way.
pub(crate) struct Slot {
    pub serial: u64,
    pub seq: usize,
    pub task: TaskId,
    pub plan: Plan,
    /// Readings of chunks run so far.
    pub partial: Option<Readings>,
    pub state: SlotState,
    pub waker: Option<Waker>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub models: Vec<Model>,
    pub seqs: Slab<SeqState>,
    pub slots: Slab<Slot>,
    /// (slot, serial): entries of cancelled slots are skipped.
    pub queue: Vec<(usize, u64)>,
    pub serial: u64,
    pub stats: Stats,
    pub resources: HashMap<(TypeId, Option<ModelId>), Rc<dyn Any>>,
}

impl Inner {
    pub fn drop_seq(&mut self, key: usize) -> SeqState {
        let mut seq = self.seqs.remove(key);
        let model = &mut self.models[seq.model];
        seq.table.truncate(&mut model.pool, 0);
        model.slots.give(&mut seq.tail.slots);
        seq // dropped by the caller, outside the borrow: its processors' states are foreign code
    }
    /// Distinct tasks with a plan on its way.
    pub fn waiting_tasks(&self) -> usize {
        let mut tasks: Vec<TaskId> = self.slots.iter().map(|(_, s)| s.task).collect();
        tasks.sort_unstable();
        tasks.dedup();
        tasks.len()
    }
    pub fn finish(&mut self, slot: usize, result: Result<Outcome>, wake: &mut Vec<Waker>) {
        let slot = &mut self.slots[slot];
        slot.state = SlotState::Done(result);
        wake.extend(slot.waker.take());
    }
    pub fn model(&self, role: &str) -> Option<ModelId> {
        self.models.iter().position(|m| m.role == role)
    }
    /// Give up the rows in flight of a sequence. The states are to be dropped outside the borrow.
    #[must_use]
    pub fn clear_tail(&mut self, key: usize) -> Vec<States> {
        let seq = &mut self.seqs[key];
        self.models[seq.model].slots.give(&mut seq.tail.slots);
        seq.tail.clear()
    }
    pub fn snapshot(&self) -> Stats {
        Stats {
            pages_used: self.models.iter().map(|m| m.pool.used()).sum(),
            tail_used: self.models.iter().map(|m| m.slots.used()).sum(),
            prefix_hits: self.models.iter().map(|m| m.pool.prefix_hits).sum(),
            ..self.stats
        }
    }
}

/// Awaits a plan. Dropping it forgets the plan; the sequence keeps what was computed of its committed tokens.
pub(crate) struct Ticket {
    shared: Shared,
    slot: usize,
}
impl Ticket {
    pub fn launch(shared: &Shared, key: usize, plan: Plan) -> Result<Ticket> {
        let mut guard = shared.borrow_mut();
        let inner = &mut *guard;
        let extends = matches!(plan.kv, KvAction::Extend | KvAction::Rerun(_));
        let old = if extends { None } else { Some(inner.clear_tail(key)) };
        let seq = &inner.seqs[key];
        let card = inner.models[seq.model].card.clone();
        let before = if plan.kv == KvAction::Extend { seq.tail.rows.len() } else { 0 };
        plan.check(&card, before)?;
        check_state(seq, &plan)?;
        inner.serial += 1;
        let (serial, task) = (inner.serial, seq.task);
        let slot = Slot { serial, seq: key, task, plan, partial: None, state: SlotState::Queued, waker: None };
        let slot = inner.slots.insert(slot);
        inner.queue.push((slot, serial));
        drop(guard);
        drop(old);
        Ok(Ticket { shared: shared.clone(), slot })
    }
}

/// Refuse what does not fit the sequence as it is.
fn check_state(seq: &SeqState, plan: &Plan) -> Result<()> {
    let bad = |m: String| Err(Error::Plan(m));
    let (n, committed) = (plan.rows.len(), seq.tokens.len());
    if plan.leave > committed {
        return bad(format!("leaves {} of {committed} committed tokens uncomputed", plan.leave));
    }
    match plan.kv {
        KvAction::Extend if seq.tail.rows.is_empty() => bad("there are no rows in flight to extend".into()),
        KvAction::Rerun(first) if first as usize + n > seq.tail.slots.len() => {
            bad(format!("reruns rows {first}..{} of {} in flight", first as usize + n, seq.tail.slots.len()))
        }
        KvAction::Overwrite if plan.at.is_none() => bad("overwriting needs `at`, the first place".into()),
        KvAction::Overwrite => {
            let at = plan.at.unwrap_or(0);
            if !plan.ascends() {
                let mut places = plan.places(at, &[]);
                places.sort_unstable();
                if let Some(twice) = places.windows(2).find(|w| w[0] == w[1]) {
                    return bad(format!("two rows are written to place {}", twice[0]));
                }
            }
            let end = plan.span(at, &[]).end;
            if end > committed {
                return bad(format!("overwrites places up to {end} of {committed}: lay out a canvas first"));
            }
            Ok(())
        }
        _ if plan.at.is_some_and(|at| at > committed) => bad(format!("stands at {:?} of {committed} places", plan.at)),
        _ => Ok(()),
    }
}

impl Future for Ticket {
    type Output = Result<Outcome>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut inner = self.shared.borrow_mut();
        let slot = &mut inner.slots[self.slot];
        match std::mem::replace(&mut slot.state, SlotState::Queued) {
            SlotState::Done(result) => Poll::Ready(result),
            SlotState::Queued => {
                match &mut slot.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}
impl Drop for Ticket {
    fn drop(&mut self) {
        let slot = self.shared.borrow_mut().slots.remove(self.slot);
        drop(slot); // after the borrow: a waker's drop may run anything
    }
}
