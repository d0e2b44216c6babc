//! The softmax of one row, for readouts.
use super::{Heads, Query, Sight, Visible};
use crate::kv::{KvDtype, KvStore, PAGE};
use half::{bf16, f16};

/// Keys that a query of `group` sees, in place order; at one place the page's key comes first.
pub(super) fn visible<'a>(
    heads: &Heads,
    sight: &Sight<'a>,
    group: usize,
    query: &Query,
) -> impl Iterator<Item = Visible> + use<'a> {
    let first = (query.place as usize + 1).saturating_sub(heads.window.unwrap_or(usize::MAX));
    let table = &sight.pages[sight.groups[group].table.clone()];
    let mut committed = sight.spans[query.spans.clone()]
        .iter()
        .flat_map(|&(start, end)| start..end)
        .filter(move |&place| place as usize >= first)
        .map(|place| Visible { place, slot: table[place as usize / PAGE] * PAGE as u32 + place % PAGE as u32 })
        .peekable();
    let mut extras =
        sight.extras[query.extras.clone()].iter().copied().filter(move |key| key.place as usize >= first).peekable();
    std::iter::from_fn(move || match (committed.peek(), extras.peek()) {
        (Some(a), Some(b)) if a.place <= b.place => committed.next(),
        (Some(_), None) => committed.next(),
        _ => extras.next(),
    })
}

impl KvStore {
    /// Element `e` of the key (`value` false) or value of a slot, as f64.
    pub(crate) fn element(&mut self, layer: usize, head: usize, slot: u32, value: bool, e: usize) -> f64 {
        let (page, lane) = (slot as usize / PAGE, slot as usize % PAGE);
        assert!((slot as usize) < self.slots() && head < self.kv_heads(layer) && e < self.dim());
        let at = if value { self.value_at(lane, e) } else { self.key_at(lane, e) };
        // SAFETY: inside the page of an existing slot; `&mut self` excludes writers.
        unsafe {
            match self.dtype() {
                KvDtype::F32 => f64::from(*self.page::<f32>(layer, head, page).0.add(at)),
                KvDtype::F16 => f64::from(*self.page::<f16>(layer, head, page).0.add(at)),
                KvDtype::Bf16 => f64::from(*self.page::<bf16>(layer, head, page).0.add(at)),
            }
        }
    }
}

/// Softmax weights of one query head of one row over the keys it sees, in place order, appended to `out`. In f64, one
/// key at a time: for readouts of a few rows. `q` is that head's query, `[dim]`; `query` one of the group's.
///
/// # Panics
/// When something that is named does not exist.
#[expect(clippy::too_many_arguments, reason = "one key of one row of one layer has that many coordinates")]
pub fn weights(
    kv: &mut KvStore,
    layer: usize,
    heads: &Heads,
    q: &[f32],
    sight: &Sight,
    (group, query): (usize, &Query),
    head: usize,
    out: &mut Vec<f32>,
) {
    let start = out.len();
    let kv_head = head / (heads.heads / heads.kv_heads);
    let biases = &sight.biases[sight.groups[group].biases.clone()];
    let mut scores = Vec::new();
    for key in visible(heads, sight, group, query) {
        let dot: f64 =
            q.iter().enumerate().map(|(e, &x)| f64::from(x) * kv.element(layer, kv_head, key.slot, false, e)).sum();
        let mut score = dot * f64::from(heads.scale);
        if let Some(cap) = heads.softcap.map(f64::from) {
            score = cap * (score / cap).tanh();
        }
        let adds = biases.iter().filter(|b| b.place == key.place && b.head as usize == head);
        scores.push(score + adds.map(|b| f64::from(b.add)).sum::<f64>());
    }
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
    out.extend(scores.iter().map(|x| ((x - top).exp() / sum) as f32));
    debug_assert_eq!(out.len() - start, scores.len());
}
