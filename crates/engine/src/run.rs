//! One step: one batched forward per model, whatever the strategies; what a request broke fails that request only.
use crate::error::Error;
use crate::inner::Inner;
use crate::layout::{self, Reader};
use crate::plan::KvAction;
use crate::processor::States;
use crate::schedule::{self, Item};
use omnidecode_models::{NetworkError, Step};
use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;
use std::time::Instant;

/// Reused from step to step.
#[derive(Default)]
pub(crate) struct Runner {
    items: Vec<Item>,
    step: Step,
    readers: Vec<Reader>,
}

enum Trouble {
    /// This item's rows.
    Item(usize, Error),
    /// Nobody's in particular.
    Unknown(Error),
}

impl Runner {
    /// Run what waits for one model. `wake` is to be called, and `old` dropped, once the borrow is over. False when nothing
    /// could run.
    pub fn step(&mut self, inner: &mut Inner, model: usize, wake: &mut Vec<Waker>, old: &mut Vec<States>) -> bool {
        inner.models[model].last_rows = 0;
        let mut items = std::mem::take(&mut self.items);
        schedule::schedule(inner, model, &mut items, wake);
        let ran = !items.is_empty();
        if ran {
            items = self.settle(inner, model, items, wake, old);
            items.clear();
        }
        self.items = items; // its memory
        ran
    }

    /// Run items until each has an outcome or an error.
    fn settle(
        &mut self,
        inner: &mut Inner,
        model: usize,
        mut items: Vec<Item>,
        wake: &mut Vec<Waker>,
        old: &mut Vec<States>,
    ) -> Vec<Item> {
        while !items.is_empty() {
            match self.run(inner, model, &mut items) {
                Ok(()) => {
                    items.drain(..).for_each(|item| keep(inner, item, wake, old));
                }
                Err(Trouble::Item(at, error)) => fail(inner, items.remove(at), error, wake),
                Err(Trouble::Unknown(error)) if items.len() == 1 => {
                    items.drain(..).for_each(|item| fail(inner, item, error.clone(), wake));
                }
                Err(Trouble::Unknown(_)) => {
                    // Rows do not depend on what runs beside them: find the culprit by running each alone.
                    for item in items.drain(..) {
                        self.settle(inner, model, vec![item], wake, old);
                    }
                }
            }
        }
        items
    }

    fn run(&mut self, inner: &mut Inner, m: usize, items: &mut [Item]) -> Result<(), Trouble> {
        let Inner { models, seqs, slots, stats, .. } = inner;
        let model = &mut models[m];
        let (step, readers) = (&mut self.step, &mut self.readers);
        step.clear();
        readers.clear();
        for (index, item) in items.iter_mut().enumerate() {
            let (slot, seq) = (&slots[item.slot], &seqs[item.seq]);
            layout::lay(step, readers, index, item, slot, seq, &model.card);
            item.states = Vec::new();
            if item.complete && !seq.states.is_empty() {
                let states = catch_unwind(AssertUnwindSafe(|| layout::states(&slot.plan, seq)));
                item.states = states.map_err(|p| Trouble::Item(index, Error::Panicked(message(&*p))))?;
            }
        }
        let copied = catch_unwind(AssertUnwindSafe(|| model.settle()));
        copied.map_err(|p| Trouble::Unknown(Error::Panicked(message(&*p))))?;
        // An item that is run again is laid out again.
        let trouble = RefCell::new(None);
        let all = RefCell::new(&mut *items);
        let mut bend = |i: usize, logits: &mut [f32]| {
            let Reader { item, nth, own, position } = readers[i];
            let Item { readings, states, seq, slot, .. } = &mut all.borrow_mut()[item];
            if readings.keeps_raw {
                readings.raw.extend_from_slice(logits);
            }
            let states = own.and_then(|own| states.get(own)).unwrap_or(&seqs[*seq].states);
            let bend = slots[*slot].plan.bend.as_ref();
            let bent = catch_unwind(AssertUnwindSafe(|| {
                states.iter().for_each(|s| s.bend(position, logits));
                bend.and_then(|bend| bend.at(own, logits))
            }));
            match bent {
                Ok(mark) => readings.marks.get_mut(nth).into_iter().for_each(|m| *m = mark),
                Err(panic) => {
                    trouble.borrow_mut().get_or_insert(Trouble::Item(item, Error::Panicked(message(&*panic))));
                }
            }
        };
        let mut each = |i: usize, reading: omnidecode_models::Reading<'_>| {
            let item = readers[i].item;
            if let Some(error) = reading.error {
                let error = Error::NoChoice(error.to_string());
                trouble.borrow_mut().get_or_insert(Trouble::Item(item, error));
            }
            all.borrow_mut()[item].readings.add(&step.reads[i], reading);
        };
        let clock = Instant::now();
        let (on_host, in_library) = (model.network.host_rows(), model.network.library_products());
        let result = catch_unwind(AssertUnwindSafe(|| model.network.run(step, &mut bend, &mut each)));
        let nanoseconds = clock.elapsed().as_nanos() as u64;
        stats.network_ns += nanoseconds;
        stats.host_rows += model.network.host_rows() - on_host;
        stats.library_products += model.network.library_products() - in_library;
        stats.forwards += 1;
        stats.rows += step.rows.len() as u64;
        match result {
            Err(panic) => return Err(Trouble::Unknown(Error::Panicked(message(&*panic)))),
            Ok(Err(NetworkError::NotFinite { row, layer })) => {
                let error = Error::NotFinite { layer };
                let at = items.iter().position(|i| i.rows.contains(&row));
                return Err(at.map_or(Trouble::Unknown(error.clone()), |at| Trouble::Item(at, error)));
            }
            Ok(Err(NetworkError::Unsupported(m))) => return Err(Trouble::Unknown(Error::Unsupported(m))),
            Ok(Err(NetworkError::Device(m))) => return Err(Trouble::Unknown(Error::Device(m))),
            Ok(Err(NetworkError::Memory(m))) => return Err(Trouble::Unknown(Error::Memory(m))),
            Ok(Ok(())) => {}
        }
        if let Some(trouble) = trouble.into_inner() {
            return Err(trouble);
        }
        let rows = step.rows.len();
        let context = step.rows.iter().map(|r| r.place as usize).max().unwrap_or(0);
        model.last_rows += rows;
        // A forward of some layers says nothing of the others.
        if step.segments.iter().all(|s| s.layers == (0..model.card.layers)) {
            model.cost.record(rows, context, nanoseconds as f64);
        }
        Ok(())
    }
}

/// Its rows are computed: keep what is to be kept, and answer.
fn keep(inner: &mut Inner, mut item: Item, wake: &mut Vec<Waker>, old: &mut Vec<States>) {
    inner.stats.plans += 1;
    let steps = inner.stats.steps;
    let count = inner.models.len();
    let slot = &mut inner.slots[item.slot];
    let seq = &mut inner.seqs[item.seq];
    let model = &mut inner.models[seq.model];
    let plan = &mut slot.plan;
    seq.table.advance(item.from + item.debt);
    seq.last_rows = item.rows.len();
    let layers = model.card.layers;
    let passed = plan.layers.clone().unwrap_or(0..layers);
    {
        let mut meter = seq.meter.borrow_mut();
        meter.stamps.resize(count, 0);
        let fresh = std::mem::replace(&mut meter.stamps[seq.model], steps) != steps;
        let usage = &mut meter.usage;
        usage.forwards_by_model.resize(count, 0);
        usage.rows_by_model.resize(count, 0);
        usage.forwards += usize::from(fresh);
        usage.forwards_by_model[seq.model] += usize::from(fresh);
        usage.nfe += 1;
        usage.rows += item.rows.len();
        usage.rows_by_model[seq.model] += item.rows.len();
        usage.row_layers += item.debt * layers + item.own * passed.len();
        if plan.read.needs_head() {
            usage.head_rows += item.readings.rows;
        }
        if item.readings.rows > 0 {
            usage.host_reads += 1;
            usage.host_bytes += item.readings.bytes();
        }
    }
    let blocks = model.card.block.is_none_or(|b| b == 0 || omnidecode_core::PAGE.is_multiple_of(b));
    if let (true, true, Some(salt)) = (inner.config.prefix_cache, blocks, seq.shares()) {
        seq.table.publish(&mut model.pool, &seq.tokens, salt);
    }
    let partial = slot.partial.take();
    let readings = match partial {
        Some(mut before) => {
            before.head += item.readings.head;
            before.join(std::mem::take(&mut item.readings));
            before
        }
        None => std::mem::take(&mut item.readings),
    };
    if !item.complete {
        slot.partial = Some(readings);
        return;
    }
    let outcome = readings.end(plan);
    let n = plan.rows.len();
    let before = seq.tail.rows.len().saturating_sub(n);
    match plan.kv {
        KvAction::Overwrite => {
            let end = schedule::window(plan).end;
            seq.table.advance(end.max(seq.table.len()));
            seq.pinned = true;
        }
        KvAction::Discard => {
            model.slots.give(&mut seq.tail.slots);
            old.append(&mut seq.tail.clear());
        }
        KvAction::Append | KvAction::Extend => {
            let tail = &mut seq.tail;
            let from = before.saturating_sub(item.lost);
            let done = if passed.start == 0 { passed.end } else { 0 };
            tail.done[from..].iter_mut().for_each(|d| *d = done);
            tail.states.extend(std::mem::take(&mut item.states));
        }
        KvAction::Rerun(first) => {
            for d in &mut seq.tail.done[first as usize..first as usize + n] {
                if passed.start <= *d {
                    *d = passed.end.max(*d);
                }
            }
        }
    }
    old.extend(item.states);
    if (seq.logprobs.is_some() || plan.bend.is_some()) && !matches!(plan.kv, KvAction::Overwrite | KvAction::Discard) {
        let before = if let KvAction::Rerun(first) = plan.kv { first as usize } else { before };
        seq.tail.outcome = Some((outcome.clone(), before));
    }
    inner.finish(item.slot, Ok(outcome), wake);
}

/// Its plan fails; its sequence stays as it was before.
fn fail(inner: &mut Inner, item: Item, error: Error, wake: &mut Vec<Waker>) {
    let seq = &mut inner.seqs[item.seq];
    let model = &mut inner.models[seq.model];
    seq.table.truncate(&mut model.pool, item.from);
    if item.complete {
        model.slots.give(&mut seq.tail.slots);
        seq.tail = Default::default();
    } else {
        // The rest of the plan must not run.
        let key = item.slot;
        let serial = inner.slots[key].serial;
        inner.queue.retain(|q| *q != (key, serial));
    }
    inner.finish(item.slot, Err(error), wake);
}

pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
