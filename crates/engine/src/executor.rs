//! Polls ready strategies, collects their plans, steps. Single-threaded; futures need not be `Send`.
use crate::answer::{Output, Rules};
use crate::cost::CostModel;
use crate::engine::NamedNetwork;
use crate::error::{Error, Result};
use crate::handle::{Line, Submission};
use crate::inner::{Config, Inner, Meter, Model, Shared, TaskId};
use crate::mailbox::Mailbox;
use crate::plan::LATENT;
use crate::processor::{LogitsProcessor, States};
use crate::request::{Event, Finish, Guarantee, LocalFuture, Request};
use crate::run::{Runner, message};
use crate::schedule;
use crate::sequence::{Opening, Sequence};
use crate::shaping::{Shaper, Shaping};
use crate::usage::{Stats, Usage};
use omnidecode_core::PAGE;
use omnidecode_core::pages::PagePool;
use omnidecode_core::tail::TailSlots;
use slab::Slab;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

struct TaskWaker {
    key: usize,
    queued: AtomicBool,
    mail: Arc<Mailbox>,
}
impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.mail.ready(self.key);
        }
    }
}

struct Task {
    future: LocalFuture,
    flag: Arc<TaskWaker>,
    waker: Waker,
    output: Rc<RefCell<Output>>,
    line: Arc<Line>,
    meter: Rc<RefCell<Meter>>,
    guarantee: Guarantee,
    /// When its reader may be woken again.
    due: Instant,
}

/// The engine's inside, on the thread that made it.
pub(crate) struct Executor {
    pub shared: Shared,
    mail: Arc<Mailbox>,
    tasks: Slab<Task>,
    waiting: VecDeque<Submission>,
    runner: Runner,
    next: TaskId,
    new: Vec<Submission>,
    ready: Vec<usize>,
    wake: Vec<Waker>,
    old: Vec<States>,
    /// A request ended in this turn: one that waits may start.
    freed: bool,
    /// Whether all networks are.
    row_invariant: bool,
}

/// The networks with their KV stores made, ready for the engine thread.
pub(crate) fn reserve(config: &Config, networks: &mut [NamedNetwork]) -> Result<()> {
    let refuse = |m: &str| Err(Error::Config(m.into()));
    if networks.is_empty() {
        return refuse("no model was given: name at least one network");
    }
    let sizes = [config.pages, config.tail, config.chunk, config.budget, config.max_running];
    if sizes.contains(&0) {
        return refuse("pages, tail, chunk, budget and max_running must be at least 1");
    }
    for (i, named) in networks.iter().enumerate() {
        if networks[..i].iter().any(|n| n.role == named.role) {
            return refuse(&format!("two models have the role {:?}", named.role));
        }
    }
    for named in networks {
        named.network.reserve(config.pages, config.tail).map_err(|e| Error::Memory(e.to_string()))?;
    }
    Ok(())
}

impl Executor {
    pub fn new(config: Config, networks: Vec<NamedNetwork>, mail: Arc<Mailbox>) -> Self {
        let model = |NamedNetwork { role, network }| {
            let cost = CostModel::new(&config.cost);
            let card = Rc::new(network.card().clone());
            let pool = PagePool::new(config.pages);
            let slots = TailSlots::new(config.pages * PAGE, config.tail);
            let mut model = Model { role, network, card, pool, slots, moves: Vec::new(), cost, last_rows: 0 };
            // Nobody waits for what few strategies ask.
            model.calibrate(&|| !mail.is_empty());
            model
        };
        let row_invariant = networks.iter().all(|named| named.network.row_invariant());
        let models = networks.into_iter().map(model).collect();
        let inner = Inner {
            config,
            models,
            seqs: Slab::new(),
            slots: Slab::new(),
            queue: Vec::new(),
            serial: 0,
            stats: Stats::default(),
            resources: HashMap::new(),
        };
        Self {
            shared: Rc::new(RefCell::new(inner)),
            mail,
            tasks: Slab::new(),
            waiting: VecDeque::new(),
            runner: Runner::default(),
            next: 0,
            new: Vec::new(),
            ready: Vec::new(),
            wake: Vec::new(),
            old: Vec::new(),
            freed: false,
            row_invariant,
        }
    }
    pub fn stats(&self) -> Stats {
        Stats { running: self.tasks.len(), waiting: self.waiting.len(), ..self.shared.borrow().snapshot() }
    }
    /// Tasks, sequences and plans alive: all zero when nothing runs.
    pub fn leftovers(&self) -> (usize, usize, usize) {
        let inner = self.shared.borrow();
        (self.tasks.len(), inner.seqs.len(), inner.slots.len())
    }

    /// One turn: take mail, start what fits, poll what is ready, run one step. False when there is nothing left to do
    /// but wait.
    pub fn turn(&mut self) -> bool {
        let clock = Instant::now();
        self.freed = false;
        let swept = self.mail.take(&mut self.new, &mut self.ready);
        let max = self.shared.borrow().config.max_waiting;
        for sub in self.new.drain(..) {
            if self.waiting.len() >= max {
                sub.outbox.send([Event::Failed(Error::Busy { waiting: self.waiting.len() })]);
            } else {
                self.waiting.push_back(sub);
            }
        }
        if swept {
            self.sweep();
        }
        self.admit(clock);
        self.poll_ready();
        self.tell(clock, false);
        let (ran, woke) = self.step();
        let spent = clock.elapsed().as_nanos() as u64;
        {
            let stats = &mut self.shared.borrow_mut().stats;
            *(if ran { &mut stats.turn_ns } else { &mut stats.rest_ns }) += spent;
        }
        ran || woke || (self.freed && !self.waiting.is_empty())
    }

    /// At most one batched forward a model, the main model's last: what waited for a model beside it (a draft, a value)
    /// joins in. Whether anything ran, and whether anybody was woken.
    fn step(&mut self) -> (bool, bool) {
        let models = {
            let mut inner = self.shared.borrow_mut();
            inner.stats.steps += 1;
            inner.models.len()
        };
        let (mut ran, mut woke) = (false, false);
        for model in (0..models).rev() {
            ran |= self.runner.step(&mut self.shared.borrow_mut(), model, &mut self.wake, &mut self.old);
            if model == 0 && !ran {
                let mut inner = self.shared.borrow_mut();
                inner.stats.steps -= 1;
                if !woke && self.wake.is_empty() && !inner.queue.is_empty() && inner.waiting_tasks() == self.tasks.len()
                {
                    schedule::fail_youngest(&mut inner, &mut self.wake);
                }
            }
            if catch_unwind(AssertUnwindSafe(|| self.old.clear())).is_err() {
                self.old = Vec::new(); // a state panicked while it was dropped; it is gone
            }
            if !self.wake.is_empty() {
                woke = true;
                self.wake.drain(..).for_each(Waker::wake);
                if model > 0 {
                    self.mail.woken(&mut self.ready);
                    self.poll_ready();
                }
            }
        }
        (ran, woke)
    }

    /// Send readers what is new: the first news at once, what follows in a pace that costs little (`Config::pace`), all of
    /// it before the engine sleeps, as nobody knows when the next turn will be.
    fn tell(&mut self, now: Instant, sleeps: bool) {
        let pace = self.shared.borrow().config.pace;
        for (_, task) in self.tasks.iter_mut() {
            if (sleeps || now >= task.due) && !task.line.whole() && task.output.borrow_mut().flush() {
                task.due = now + pace;
            }
        }
    }
    /// Start requests, oldest first, as long as their prompts fit the pages that nobody waits for.
    fn admit(&mut self, now: Instant) {
        while let Some(sub) = self.waiting.front() {
            if sub.outbox.0.cancelled() {
                self.waiting.pop_front().into_iter().for_each(abort);
                continue;
            }
            let inner = self.shared.borrow();
            let config = &inner.config;
            let pages = |places: usize| places.div_ceil(PAGE);
            if !self.tasks.is_empty() {
                let promised: usize = inner
                    .seqs
                    .iter()
                    .filter(|(_, s)| s.model == 0)
                    .map(|(_, s)| pages(s.tokens.len() + 1).saturating_sub(s.table.pages().len()))
                    .sum();
                let need = promised + pages(sub.request.prompt.len() + 1);
                let slots = &inner.models[0].slots;
                // What never fits is started, to fail at once rather than to block the others.
                let fits = pages(sub.request.prompt.len() + 1) <= inner.models[0].pool.total();
                let full = fits && (inner.models[0].pool.available() < need || slots.free() == 0);
                if self.tasks.len() >= config.max_running || full {
                    return;
                }
            }
            drop(inner);
            let Some(sub) = self.waiting.pop_front() else { return };
            self.start(sub, now);
        }
    }
    fn start(&mut self, sub: Submission, now: Instant) {
        let Submission { request, outbox } = sub;
        let line = outbox.0.clone();
        self.next += 1;
        let meter = Rc::new(RefCell::new(Meter::default()));
        meter.borrow_mut().usage.prompt_tokens = request.prompt.len();
        let output = Rc::new(RefCell::new(Output::new(outbox)));
        let guarantee = self.worth(request.strategy.guarantee);
        // Processors and strategies are foreign code from their first line.
        let made = catch_unwind(AssertUnwindSafe(|| self.open(request, &meter, &output)));
        let future = match made {
            Ok(Ok(future)) => future,
            Ok(Err(e)) => return output.borrow_mut().end(Event::Failed(e)),
            Err(panic) => return output.borrow_mut().end(Event::Failed(Error::Panicked(message(&*panic)))),
        };
        let entry = self.tasks.vacant_entry();
        let flag = Arc::new(TaskWaker { key: entry.key(), queued: AtomicBool::new(true), mail: self.mail.clone() });
        self.ready.push(entry.key());
        let waker = flag.clone().into();
        entry.insert(Task { future, waker, flag, output, line, meter, guarantee, due: now });
    }
    /// What a claim is worth here: it is made for rows that do not depend on their company.
    fn worth(&self, claim: Guarantee) -> Guarantee {
        if self.row_invariant { claim } else { Guarantee::Approximate }
    }
    fn open(&self, request: Request, meter: &Rc<RefCell<Meter>>, output: &Rc<RefCell<Output>>) -> Result<LocalFuture> {
        let card = self.shared.borrow().models[0].card.clone();
        let context = if card.context == 0 { usize::MAX } else { card.context };
        let Request { prompt, strategy, sampling, mut processors, carriers, edits, text, salt, judge, watch } = request;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= context {
            return Err(Error::PromptTooLong { tokens: prompt.len(), context });
        }
        let vectors: std::collections::BTreeMap<_, _> = prompt.vectors.into_iter().collect();
        let unknown =
            |(i, t): &(usize, &u32)| **t as usize >= card.vocab && !(**t == LATENT && vectors.contains_key(i));
        if let Some((_, &token)) = prompt.tokens.iter().enumerate().find(unknown) {
            return Err(Error::UnknownToken { token, vocab: card.vocab });
        }
        let rows = vectors.values().cloned().collect();
        crate::Plan::rows(rows, Default::default(), crate::Readout::NOTHING).check(&card, 0)?;
        sampling.check(card.vocab, text.is_some())?;
        if judge.is_some() && !strategy.judged {
            return Err(Error::UnaskedJudge { strategy: strategy.name });
        }
        for carrier in &carriers {
            let (strategy, plans) = (&strategy.name, strategy.plans);
            carrier.carries(plans).map_err(|reason| Error::Companion {
                name: carrier.name(),
                reason: format!("does not ride along `{strategy}`: {reason}"),
            })?;
        }
        if let Some(shaping) = Shaping::new(&sampling, &card.eos, card.vocab) {
            processors.insert(0, Arc::new(Shaper(shaping)) as Arc<dyn LogitsProcessor>);
        }
        let rules = Rules { sampling, processors, text, judge, watch, eos: card.eos.clone(), context };
        let opening = Opening { task: self.next, tokens: prompt.tokens, vectors, edits, salt, meter: meter.clone() };
        let mut seq = Sequence::open(&self.shared, opening, rules, output.clone());
        for carrier in carriers {
            let carriage = carrier.open(&mut seq)?;
            seq.carriages.push(carriage);
        }
        Ok((strategy.start)(seq))
    }

    fn poll_ready(&mut self) {
        let mut ready = std::mem::take(&mut self.ready);
        let mut polls = 0;
        for key in ready.drain(..) {
            let Some(task) = self.tasks.get_mut(key) else { continue };
            task.flag.queued.store(false, Ordering::Release);
            if task.line.cancelled() {
                self.finish(key, None);
                continue;
            }
            polls += 1;
            let mut cx = Context::from_waker(&task.waker);
            let polled = catch_unwind(AssertUnwindSafe(|| task.future.as_mut().poll(&mut cx)));
            match polled {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(result)) => self.finish(key, Some(result)),
                Err(panic) => self.finish(key, Some(Err(Error::Panicked(message(&*panic))))),
            }
        }
        self.ready = ready;
        self.shared.borrow_mut().stats.polls += polls;
    }
    /// Drop the cancelled. Their futures drop their sequences, these their pages.
    fn sweep(&mut self) {
        let gone: Vec<usize> = self.tasks.iter().filter(|(_, t)| t.line.cancelled()).map(|(k, _)| k).collect();
        gone.into_iter().for_each(|key| self.finish(key, None));
        let (gone, stay) = self.waiting.drain(..).partition(|s| s.outbox.0.cancelled());
        self.waiting = stay;
        let gone: VecDeque<Submission> = gone;
        gone.into_iter().for_each(abort);
    }
    fn finish(&mut self, key: usize, result: Option<Result<()>>) {
        self.freed = true;
        let Task { future, output, meter, guarantee, .. } = self.tasks.remove(key);
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(future)));
        let result = match dropped {
            Err(panic) => Some(Err(Error::Panicked(message(&*panic)))),
            Ok(()) => result,
        };
        let mut output = output.borrow_mut();
        let mut usage: Usage = std::mem::take(&mut meter.borrow_mut().usage);
        usage.generated = output.tokens;
        let end = std::mem::take(&mut output.end);
        let (score, others) = (output.score, std::mem::take(&mut output.others));
        let notes = std::mem::take(&mut output.notes);
        output.end(match result {
            Some(Ok(())) => Event::Done(Finish {
                reason: end.reason,
                stop_reason: end.stop,
                score,
                others,
                notes,
                usage,
                guarantee,
            }),
            Some(Err(e)) => Event::Failed(e),
            None => Event::Done(Finish::abort(usage, guarantee)),
        });
    }

    pub fn run(&mut self) {
        while !self.mail.closed() {
            let more = self.turn();
            self.mail.report(self.stats());
            if !more {
                self.tell(Instant::now(), true);
                self.mail.wait();
            }
        }
        self.shut_down();
    }
    pub fn run_until_idle(&mut self) {
        loop {
            let more = self.turn();
            if self.tasks.is_empty() && self.waiting.is_empty() && self.mail.is_empty() {
                return;
            }
            if !more && self.mail.is_empty() && self.ready.is_empty() {
                return; // everything waits for another thread
            }
        }
    }
    fn shut_down(&mut self) {
        let mut new = Vec::new();
        self.mail.take(&mut new, &mut self.ready);
        for sub in self.waiting.drain(..).chain(new) {
            sub.outbox.send([Event::Failed(Error::Shutdown)]);
        }
        let keys: Vec<usize> = self.tasks.iter().map(|(k, _)| k).collect();
        keys.into_iter().for_each(|key| self.finish(key, Some(Err(Error::Shutdown))));
        self.mail.report(self.stats());
    }
}

/// Cancelled before it began.
fn abort(sub: Submission) {
    let guarantee = sub.request.strategy.guarantee;
    let usage = Usage { prompt_tokens: sub.request.prompt.len(), ..Usage::default() };
    sub.outbox.send([Event::Done(Finish::abort(usage, guarantee))]);
}
