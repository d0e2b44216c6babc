//! Which plans run in this step, and making room for them.
use crate::error::Error;
use crate::inner::{Inner, Slot};
use crate::outcome::{Outcome, Readings};
use crate::plan::{KvAction, Plan, Rows};
use crate::processor::States;
use crate::tail::Tail;
use omnidecode_core::PAGE;
use std::ops::Range;
use std::task::Waker;

/// The part of one plan that runs in this step.
pub(crate) struct Item {
    pub slot: usize,
    pub seq: usize,
    /// Debt rows are the places from here on.
    pub from: usize,
    pub debt: usize,
    /// The plan's own rows run too.
    pub complete: bool,
    /// Own rows and, before them, rows in flight that must be run again.
    pub own: usize,
    pub lost: usize,
    pub rows: Range<usize>,
    pub readings: Readings,
    /// Processor states at own rows.
    pub states: Vec<States>,
}

#[allow(clippy::large_enum_variant)] // short-lived, one at a time
enum Fit {
    Run(Item),
    /// Not in this step.
    Wait,
    Done(Result<Outcome, Error>),
}

/// What a model has given out in this step.
#[derive(Default)]
struct Given {
    rows: usize,
    starved: bool,
}

/// What waits for a model, oldest request first. Who is starved evicts the youngest; nobody overtakes the starved.
pub(crate) fn schedule(inner: &mut Inner, model: usize, items: &mut Vec<Item>, wake: &mut Vec<Waker>) {
    let mut queue = std::mem::take(&mut inner.queue);
    queue.retain(|&(slot, serial)| inner.slots.get(slot).is_some_and(|s| s.serial == serial));
    queue.sort_by_key(|&(slot, serial)| (inner.slots[slot].task, serial));
    let mut given = Given::default();
    queue.retain(|&(key, _)| {
        if inner.seqs[inner.slots[key].seq].model != model {
            return true;
        }
        match fit(inner, key, &mut given, items) {
            Fit::Wait => true,
            Fit::Done(result) => {
                inner.finish(key, result, wake);
                false
            }
            Fit::Run(item) => {
                given.rows += item.debt + item.own;
                let complete = item.complete;
                items.push(item);
                !complete
            }
        }
    });
    queue.append(&mut inner.queue);
    inner.queue = queue;
}

fn fit(inner: &mut Inner, key: usize, given: &mut Given, running: &[Item]) -> Fit {
    let slot = &inner.slots[key];
    let (me, plan) = (slot.seq, &slot.plan);
    let seq = &mut inner.seqs[me];
    let model = &mut inner.models[seq.model];
    let grows = matches!(plan.kv, KvAction::Extend | KvAction::Rerun(_));
    let mut target = if grows { seq.tail.base } else { (seq.tokens.len() - plan.leave).min(seq.floor) };
    if let (KvAction::Overwrite, Some(at)) = (plan.kv, plan.at) {
        target = target.min(at); // what the plan computes itself is no debt
    }
    if let (true, Some(salt), false) = (inner.config.prefix_cache, seq.shares(), plan.at_rows == Rows::All) {
        let block = model.card.block.unwrap_or(1).max(1);
        let gained = seq.table.adopt(&mut model.pool, &seq.tokens[..target], salt, block, &mut model.moves);
        if seq.prompt > 0 && gained > 0 {
            let usage = &mut seq.meter.borrow_mut().usage;
            let counted = seq.table.len().min(seq.prompt);
            usage.cached_tokens = usage.cached_tokens.max(counted);
        }
    }
    if plan.root && !grows && target == seq.table.len() && target > 0 {
        if seq.pinned {
            let m = "the last committed place was computed as part of a canvas: ask without the root";
            return Fit::Done(Err(Error::Plan(m.into())));
        }
        seq.table.truncate(&mut model.pool, target - 1); // the root must be seen: run it again
    }
    if matches!(plan.kv, KvAction::Rerun(_)) && seq.tail.lost() {
        return Fit::Done(Err(Error::Plan("the rows in flight were given up: run them again".into())));
    }
    let from = seq.table.len();
    if slot.partial.as_ref().is_some_and(|p| p.head > 0 && p.first + p.head != from) {
        inner.slots[key].partial = None; // evicted half-way: all rows are run and read again
    }
    let plan = &inner.slots[key].plan;
    let debt = target.saturating_sub(from);
    let lost = if plan.kv == KvAction::Extend && seq.tail.lost() { seq.tail.rows.len() } else { 0 };
    let own = plan.rows.len() + lost;
    if debt == 0 && own == 0 {
        return Fit::Done(Ok(Outcome::default()));
    }
    let have = model.pool.total();
    if target.div_ceil(PAGE) > have {
        return Fit::Done(Err(Error::OutOfPages { need: target.div_ceil(PAGE), have }));
    }
    if let Some(error) = misfit(plan, target.max(from), own, &seq.tail, model.slots.total(), model.card.context) {
        return Fit::Done(Err(error));
    }
    let left = inner.config.budget.saturating_sub(given.rows);
    let mut chunk = debt.min(inner.config.chunk).min(left);
    if let Some(block) = model.card.block.filter(|b| *b > 0)
        && chunk < debt
    {
        // Rows of a block see each other: they run together, unless a block alone is too large.
        let cut = (from + chunk) / block * block;
        chunk = if cut > from { cut - from } else { (block - from % block).min(debt) };
        if given.rows > 0 && chunk > left {
            return Fit::Wait;
        }
    }
    let complete = chunk == debt && (chunk + own <= left || given.rows == 0);
    if !complete && plan.root {
        chunk = chunk.min(debt.saturating_sub(1)); // the root is seen together with the plan's own rows
    }
    if chunk == 0 && !complete {
        return Fit::Wait; // no budget left in this step
    }
    let end = from + chunk;
    let Needs { now, later, slots } = needs(seq, &model.pool, plan, end, complete, own);
    if (given.starved && now + slots > 0) || !make_room(inner, running, key, now + later, slots) {
        given.starved = true;
        return Fit::Wait;
    }
    let (slot, seq) = (&inner.slots[key], &mut inner.seqs[me]);
    let model = &mut inner.models[seq.model];
    let plan = &slot.plan;
    let mut ready = seq.table.grow(&mut model.pool, end, &mut model.moves);
    if complete && plan.kv == KvAction::Overwrite {
        let over = window(plan);
        ready &= seq.table.own(&mut model.pool, over.clone(), &mut model.moves)
            && seq.table.grow(&mut model.pool, end.max(over.end), &mut model.moves);
    } else if complete {
        ready &= stage(&mut seq.tail, plan, plan.at.unwrap_or(end), &mut model.slots);
    }
    debug_assert!(ready, "room was made");
    if !ready {
        given.starved = true;
        return Fit::Wait;
    }
    let (rows, readings, states) = (0..0, Readings::default(), Vec::new());
    let own = if complete { own } else { 0 };
    Fit::Run(Item { slot: key, seq: me, from, debt: chunk, complete, own, lost, rows, readings, states })
}

/// Places that an overwriting plan covers.
pub(crate) fn window(plan: &Plan) -> Range<usize> {
    plan.span(plan.at.unwrap_or(0), &[])
}

/// Put the plan's rows in flight.
fn stage(tail: &mut Tail, plan: &Plan, base: usize, slots: &mut omnidecode_core::tail::TailSlots) -> bool {
    match plan.kv {
        KvAction::Rerun(_) => true,
        KvAction::Extend => {
            let base = tail.base;
            let lost = if tail.lost() { tail.rows.len() } else { 0 };
            tail.add(plan, base);
            slots.take(lost + plan.rows.len(), &mut tail.slots)
        }
        _ => {
            tail.add(plan, base);
            slots.take(plan.rows.len(), &mut tail.slots)
        }
    }
}

struct Needs {
    /// Pages that are taken in this step.
    now: usize,
    /// Pages that accepting will take.
    later: usize,
    slots: usize,
}

fn needs(
    seq: &crate::inner::SeqState,
    pool: &omnidecode_core::pages::PagePool,
    plan: &Plan,
    end: usize,
    complete: bool,
    own: usize,
) -> Needs {
    let now = seq.table.need(pool, end);
    if !complete {
        return Needs { now, later: 0, slots: 0 };
    }
    match plan.kv {
        KvAction::Overwrite => {
            let over = window(plan);
            let now = seq.table.need(pool, end.max(over.end)) + seq.table.need_over(pool, over);
            Needs { now, later: 0, slots: 0 }
        }
        KvAction::Rerun(_) => Needs { now, later: 0, slots: 0 },
        KvAction::Discard => Needs { now, later: 0, slots: own },
        KvAction::Append | KvAction::Extend => {
            let deepest = plan.span(plan.at.unwrap_or(end), &seq.tail.places).end;
            Needs { now, later: seq.table.need(pool, deepest).saturating_sub(now), slots: own }
        }
    }
}

/// What can never run.
fn misfit(plan: &Plan, computed: usize, own: usize, tail: &Tail, slots: usize, context: usize) -> Option<Error> {
    if matches!(plan.kv, KvAction::Append | KvAction::Extend | KvAction::Discard) && own > slots {
        return Some(Error::OutOfTail { need: own, have: slots });
    }
    let base = if plan.kv == KvAction::Extend { tail.base } else { plan.at.unwrap_or(computed) };
    if context > 0 && !matches!(plan.kv, KvAction::Rerun(_)) {
        let before = if plan.kv == KvAction::Extend { &tail.places[..] } else { &[] };
        let deepest = plan.span(base, before).end.saturating_sub(1);
        if deepest >= context {
            return Some(Error::ContextFull { place: deepest, context });
        }
    }
    let gap = plan.kv == KvAction::Overwrite && plan.keep.is_none() && window(plan).start > computed;
    gap.then(|| Error::Plan(format!("places {computed}..{} were never computed: run them first", window(plan).start)))
}

/// Free pages and tail slots until there are so many: the youngest requests give up first, then idle sequences of the
/// same request. What they lose is debt.
fn make_room(inner: &mut Inner, running: &[Item], slot: usize, pages: usize, slots: usize) -> bool {
    let Slot { task, seq: me, .. } = inner.slots[slot];
    let m = inner.seqs[me].model;
    let busy = |key: usize| key == me || running.iter().any(|i| i.seq == key);
    while !inner.models[m].pool.ensure(pages) {
        let victims = inner.seqs.iter().filter(|(key, s)| {
            s.model == m && !s.pinned && !s.table.pages().is_empty() && s.task >= task && !busy(*key)
        });
        let Some((victim, _)) = victims.max_by_key(|(key, s)| (s.task, *key)) else { return false };
        let seq = &mut inner.seqs[victim];
        seq.table.truncate(&mut inner.models[m].pool, 0);
        seq.meter.borrow_mut().usage.evictions += 1;
        inner.stats.evictions += 1;
    }
    while inner.models[m].slots.free() < slots {
        let layers = inner.models[m].card.layers;
        let victims = inner
            .seqs
            .iter()
            .filter(|(key, s)| s.model == m && s.tail.can_yield(layers) && s.task >= task && !busy(*key));
        let Some((victim, _)) = victims.max_by_key(|(key, s)| (s.task, *key)) else { return false };
        let seq = &mut inner.seqs[victim];
        inner.models[m].slots.give(&mut seq.tail.slots);
        seq.meter.borrow_mut().usage.evictions += 1;
        inner.stats.evictions += 1;
    }
    true
}

/// Nothing runs, and nothing else is alive that could free a page: the youngest plan fails.
pub(crate) fn fail_youngest(inner: &mut Inner, wake: &mut Vec<Waker>) {
    let Some(at) = (0..inner.queue.len()).max_by_key(|&i| inner.slots[inner.queue[i].0].task) else { return };
    let (key, _) = inner.queue.remove(at);
    let slot = &inner.slots[key];
    let seq = &inner.seqs[slot.seq];
    let model = &inner.models[seq.model];
    let deepest = slot.plan.span(seq.tokens.len(), &[]).end;
    let need = seq.tokens.len().max(deepest).div_ceil(PAGE);
    let error = if need <= model.pool.total() && slot.plan.rows.len() > model.slots.free() {
        Error::OutOfTail { need: slot.plan.rows.len(), have: model.slots.total() }
    } else {
        Error::OutOfPages { need, have: model.pool.total() }
    };
    inner.finish(key, Err(error), wake);
}
