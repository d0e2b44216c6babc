//! Plans become one flat [`Step`].
use crate::inner::{SeqState, Slot};
use crate::outcome::Readings;
use crate::plan::{KvAction, Plan, Readout, Row, Rows};
use crate::processor;
use crate::schedule::{Item, window};
use omnidecode_core::noise::{Key, Purpose, pair};
use omnidecode_core::tree::ROOT;
use omnidecode_models::{Choice, Entry, ModelCard, RowEntry, RowRead, Segment, Step, Tap, Visible};
use std::borrow::Cow;
use std::ops::Range;

/// Which item a read belongs to, whose states bend it and which position it speaks of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    pub item: usize,
    /// Number among the item's.
    pub nth: usize,
    /// Own row, or `None` for the root.
    pub own: Option<usize>,
    pub position: usize,
}

/// What is truly read: the plan's readout, and what reporting log-probabilities takes.
fn readout<'p>(plan: &'p Plan, seq: &SeqState) -> Cow<'p, Readout> {
    let read = &plan.read;
    match seq.logprobs {
        Some(n) if read.needs_head() => {
            let (top, logprob) = (read.top.max(n), read.choice);
            Cow::Owned(Readout { top, stats: true, logprob, ..read.clone() })
        }
        _ => Cow::Borrowed(read),
    }
}

/// Lay out one item; returns its readers' number.
pub(crate) fn lay(
    step: &mut Step,
    readers: &mut Vec<Reader>,
    index: usize,
    item: &mut Item,
    slot: &Slot,
    seq: &SeqState,
    card: &ModelCard,
) {
    let plan = &slot.plan;
    let table = step.pages.len()..step.pages.len() + seq.table.pages().len();
    step.pages.extend_from_slice(seq.table.pages());
    let first = step.rows.len();
    let end = item.from + item.debt;
    for place in item.from..end {
        // Rows of a block-causal model see their whole block.
        let sees = card.block.filter(|b| *b > 0).map_or(place + 1, |b| ((place / b + 1) * b).min(end));
        let spans = step.spans.len()..step.spans.len() + 1;
        step.spans.push((0, sees as u32));
        let entry = enter(step, &seq.row(place));
        let (at, slot) = (place as u32, seq.table.slot(place));
        step.rows.push(RowEntry { entry, position: at, place: at, slot, spans, extras: 0..0 });
    }
    let whole = 0..card.layers;
    let layers = if item.complete { plan.layers.clone().unwrap_or(whole.clone()) } else { whole.clone() };
    let split = layers != whole || plan.rows.iter().any(|r| matches!(r, Row::Hidden(_)));
    if item.debt > 0 && (split || item.own == 0) {
        segment(step, first, &table, whole, seq);
    }
    if item.own > 0 {
        let own = step.rows.len();
        if plan.kv == KvAction::Overwrite {
            over(step, plan, seq, end)
        } else {
            in_flight(step, plan, seq, item, end)
        }
        segment(step, if split { own } else { first }, &table, layers, seq);
    }
    item.rows = first..step.rows.len();
    read(step, readers, index, item, plan, seq, card);
}

fn segment(step: &mut Step, from: usize, table: &Range<usize>, layers: Range<usize>, seq: &SeqState) {
    if let Some(edits) = &seq.edits {
        step.edits.push((step.segments.len(), edits.clone()));
    }
    step.segments.push(Segment { rows: from..step.rows.len(), table: table.clone(), layers });
}

fn enter(step: &mut Step, row: &Row) -> Entry {
    let mut vector = |v: &[f32]| {
        let at = step.vectors.len();
        step.vectors.extend_from_slice(v);
        at
    };
    match row {
        Row::Token(token) => Entry::Token(*token),
        Row::Embedding(v) => Entry::Embedding(vector(v)),
        Row::Hidden(v) => Entry::Hidden(vector(v)),
        Row::Mix(parts) => {
            let from = step.mixes.len();
            step.mixes.extend_from_slice(parts);
            Entry::Mix(from..step.mixes.len())
        }
    }
}

/// Committed places that own rows see, besides the window they stand in for.
fn outside(plan: &Plan, computed: usize, hidden: Range<usize>) -> Vec<(u32, u32)> {
    let (computed, start, end) = (computed as u32, hidden.start as u32, hidden.end as u32);
    let causal = plan.mask.is_causal() || matches!(plan.mask, omnidecode_core::mask::Mask::Block(_));
    let mut spans = vec![(0, start.min(computed))];
    if !causal && end < computed {
        spans.push((end, computed));
    }
    if let Some(keep) = &plan.keep {
        let cut = |&(a, b): &(u32, u32), &(c, d): &(u32, u32)| (a.max(c), b.min(d));
        spans = spans.iter().flat_map(|s| keep.iter().map(|k| cut(s, k)).collect::<Vec<_>>()).collect();
    }
    spans.retain(|s| s.0 < s.1);
    spans
}

/// Rows in the tail.
fn in_flight(step: &mut Step, plan: &Plan, seq: &SeqState, item: &Item, end: usize) {
    let tail = &seq.tail;
    let (rows, tail_rows): (Range<usize>, &[Row]) = match plan.kv {
        KvAction::Rerun(first) => (first as usize..first as usize + plan.rows.len(), &plan.rows),
        _ => (tail.rows.len() - item.own..tail.rows.len(), &tail.rows[tail.rows.len() - item.own..]),
    };
    let hidden = match plan.at {
        Some(_) => {
            let places = tail.places[rows.clone()].iter();
            let (low, high) = (places.clone().min().copied().unwrap_or(0), places.max().map_or(0, |p| p + 1));
            low as usize..high as usize
        }
        None => tail.base..tail.base,
    };
    let from = step.spans.len();
    step.spans.extend(outside(
        plan,
        end.max(seq.table.len()).min(if plan.at.is_some() { usize::MAX } else { tail.base }),
        hidden,
    ));
    let spans = from..step.spans.len();
    let extras = step.extras.len();
    step.extras
        .extend(tail.seen.iter().map(|&j| Visible { place: tail.places[j as usize], slot: tail.slots[j as usize] }));
    for (i, row) in rows.zip(tail_rows) {
        let entry = enter(step, row);
        let (a, b) = tail.views[i];
        step.rows.push(RowEntry {
            entry,
            position: tail.positions[i],
            place: tail.places[i],
            slot: tail.slots[i],
            spans: spans.clone(),
            extras: extras + a as usize..extras + b as usize,
        });
    }
}

/// Rows in pages, over what was there.
fn over(step: &mut Step, plan: &Plan, seq: &SeqState, end: usize) {
    let n = plan.rows.len();
    let places = plan.places(plan.at.unwrap_or(0), &[]);
    let covered = window(plan);
    // In ascending order and without gaps.
    let contiguous = covered.len() == n && places.is_sorted_by(|a, b| a < b);
    let hidden = if contiguous { covered.clone() } else { covered.start..covered.start };
    let computed = end.max(seq.table.len());
    let base = outside(plan, if contiguous { computed } else { computed.max(covered.end) }, hidden);
    let mut shared: Option<Range<usize>> = None;
    step.rows.reserve(n);
    for (i, row) in plan.rows.iter().enumerate() {
        let spans = match (&plan.mask, &shared) {
            (omnidecode_core::mask::Mask::Full, Some(spans)) => spans.clone(),
            _ => {
                // A causal row in the midst of what is computed sees what is before it.
                let mut seen = match &plan.mask {
                    omnidecode_core::mask::Mask::Causal if !contiguous => {
                        outside(plan, computed.max(covered.end), places[i] as usize..places[i] as usize)
                    }
                    _ => base.clone(),
                };
                // Of what is written over, a row sees what it sees in this plan; all of it under the full mask.
                if !contiguous && plan.mask != omnidecode_core::mask::Mask::Full {
                    places.iter().for_each(|&p| remove(&mut seen, p));
                }
                match &plan.mask {
                    omnidecode_core::mask::Mask::Full if contiguous => {
                        seen.push((covered.start as u32, covered.end as u32));
                    }
                    // All that is computed or covered, the window's own places among it.
                    omnidecode_core::mask::Mask::Full if plan.keep.is_none() => {}
                    mask => seen.extend((0..n).filter(|&j| mask.sees(i, j, n)).map(|j| (places[j], places[j] + 1))),
                }
                let from = step.spans.len();
                merge(seen, &mut step.spans);
                from..step.spans.len()
            }
        };
        shared = Some(spans.clone());
        let (entry, place) = (enter(step, row), places[i]);
        let position = plan.positions.get(i).copied().unwrap_or(place);
        step.rows.push(RowEntry { entry, position, place, slot: seq.table.slot(place as usize), spans, extras: 0..0 });
    }
}

/// Cut one place out of ranges.
fn remove(spans: &mut Vec<(u32, u32)>, place: u32) {
    if let Some(i) = spans.iter().position(|s| s.0 <= place && place < s.1) {
        let (a, b) = spans[i];
        let parts = [(a, place), (place + 1, b)];
        spans.splice(i..=i, parts.into_iter().filter(|s| s.0 < s.1));
    }
}

/// Sorted, disjoint, joined where they touch.
fn merge(mut spans: Vec<(u32, u32)>, out: &mut Vec<(u32, u32)>) {
    spans.sort_unstable();
    let first = out.len();
    for (a, b) in spans {
        match out[first..].last_mut() {
            Some(last) if last.1 >= a => last.1 = last.1.max(b),
            _ => out.push((a, b)),
        }
    }
}

fn read(
    step: &mut Step,
    readers: &mut Vec<Reader>,
    index: usize,
    item: &mut Item,
    plan: &Plan,
    seq: &SeqState,
    card: &ModelCard,
) {
    let read = readout(plan, seq);
    let readings = &mut item.readings;
    *readings = Readings::start(plan, &read, card.vocab);
    if read.is_nothing() {
        return;
    }
    let bent = !seq.states.is_empty() || plan.bend.is_some();
    readings.keeps_raw = bent && seq.logprobs.is_some() && read.logits;
    let asked = step.asked.len()..step.asked.len() + read.logprobs.len();
    step.asked.extend_from_slice(&read.logprobs);
    // Of debt rows, all are read or the root.
    let root = item.rows.start + item.debt;
    let heads = match plan.at_rows {
        Rows::All => item.debt,
        Rows::Own => usize::from(item.complete && item.debt > 0),
        Rows::Last => usize::from(item.complete && item.debt > 0 && item.own == 0),
        Rows::These(_) => 0,
    };
    readings.head = heads;
    readings.first = if plan.at_rows == Rows::All { item.from } else { (item.from + item.debt).saturating_sub(1) };
    let (n, own_first) = (plan.rows.len(), item.rows.end - if item.complete { plan.rows.len() } else { 0 });
    let (these, line) = match &plan.at_rows {
        _ if !item.complete => (&[][..], 0..0),
        Rows::These(rows) => (&rows[..], 0..0),
        Rows::Last => (&[][..], n.saturating_sub(1)..n),
        Rows::Own | Rows::All => (&[][..], 0..n),
    };
    let own = these.iter().map(|&i| i as usize).chain(line.clone());
    let count = heads + these.len() + line.len();
    readings.reserve(&read, count);
    if plan.bend.is_some() {
        readings.marks.resize(count, None);
    }
    let wanted = (root - heads..root).map(|row| (row, None)).chain(own.map(|i| (own_first + i, Some(i))));
    let seed = |noise| if noise == 0 { seq.seed } else { pair(seq.seed, noise) };
    let mut drawn = (0, seed(plan.noise)); // a copy, and the seed it draws with
    step.reads.reserve(count);
    readers.reserve(count);
    for (nth, (row, own)) in wanted.enumerate() {
        let position = step.rows[row].place as usize + card.shift;
        // Copies stand for successive states of a window: each draws as the forward that would run it would.
        let copy = match (&plan.mask, own) {
            (omnidecode_core::mask::Mask::Copies(k), Some(i)) => i / (n / k),
            _ => 0,
        };
        if copy != drawn.0 {
            drawn = (copy, seed(plan.noise + copy as u64));
        }
        // Of debt rows, only the root has its states at hand.
        let at_hand = own.is_some() || (row + 1 == root && item.complete);
        step.reads.push(RowRead {
            row,
            bend: at_hand && bent && (read.choice || read.logits),
            choice: read.choice.then(|| Choice { warp: seq.warp, key: Key::new(drawn.1, position, Purpose::Sample) }),
            logprob: read.logprob && read.choice,
            top: read.top,
            stats: read.stats,
            asked: asked.clone(),
            logits: read.logits,
        });
        readers.push(Reader { item: index, nth, own, position });
        step.taps.extend(read.hidden.iter().map(|&layer| Tap { row, layer }));
        step.masses.extend(read.mass.iter().map(|&layer| Tap { row, layer }));
    }
}

/// Processor states at a plan's own rows; none where they are all the sequence's own and are not kept.
pub(crate) fn states(plan: &Plan, seq: &SeqState) -> Vec<processor::States> {
    if plan.kv == KvAction::Overwrite || (plan.kv == KvAction::Discard && !plan.mask.is_causal()) {
        return Vec::new();
    }
    let mut at: Vec<processor::States> = Vec::with_capacity(plan.rows.len());
    let before = if plan.kv == KvAction::Extend { seq.tail.states.len() } else { 0 };
    if let KvAction::Rerun(first) = plan.kv {
        return seq.tail.states.iter().skip(first as usize).map(processor::fork).collect();
    }
    let places = &seq.tail.places[seq.tail.places.len() - plan.rows.len()..];
    for (i, row) in plan.rows.iter().enumerate() {
        let parent = plan.mask.parent(i, before).unwrap_or(ROOT);
        let mut states = processor::fork(match parent {
            ROOT => &seq.states,
            p if (p as usize) < before => &seq.tail.states[p as usize],
            p => &at[p as usize - before],
        });
        // A row that stands in for a committed place is in the root's states already.
        let ahead = places[i] as usize >= seq.tokens.len();
        if let (true, true, Row::Token(token)) = (plan.mask.is_causal(), ahead, row) {
            processor::advance(&mut states, *token);
        }
        at.push(states);
    }
    at
}
