//! Who sees whom in a layer, and the attention over it.
use super::layer::Layer;
use super::{Decoder, Work, sized};
use crate::step::{RowRead, Step};
use omnidecode_kernels::attend::{self, Group, Heads, KeyBias, Query, Sight};
use omnidecode_kernels::kv::KvStore;

/// The rows of a layer as attention wants them; the same for all layers between two changes of the set of rows.
#[derive(Default)]
pub(super) struct Layout {
    queries: Vec<Query>,
    groups: Vec<Group>,
    /// Segment of each group.
    segments: Vec<usize>,
    biases: Vec<KeyBias>,
    whole: bool,
}
impl Layout {
    /// Whether all rows of the step run.
    pub fn whole(&self) -> bool {
        self.whole
    }
}

/// Find the rows that run in `layer`, or those of them that are read: `work.active` (empty when all do) and the layout.
pub(super) fn stand(step: &Step, layer: usize, work: &mut Work, read: Option<&[RowRead]>) {
    let Layout { queries, groups, segments, whole, .. } = &mut work.sight;
    queries.clear();
    groups.clear();
    segments.clear();
    work.active.clear();
    *whole = read.is_none() && step.segments.iter().all(|s| s.layers.contains(&layer));
    for (index, segment) in step.segments.iter().enumerate() {
        if !segment.layers.contains(&layer) {
            continue;
        }
        let first = queries.len();
        for row in segment.rows.clone() {
            if read.is_some_and(|reads| reads.binary_search_by_key(&row, |r| r.row).is_err()) {
                continue;
            }
            let entry = &step.rows[row];
            queries.push(Query {
                row: queries.len() as u32,
                place: entry.place,
                spans: entry.spans.clone(),
                extras: entry.extras.clone(),
            });
            if !*whole {
                work.active.push(row as u32);
            }
        }
        groups.push(Group { table: segment.table.clone(), queries: first..queries.len(), biases: 0..0 });
        segments.push(index);
    }
}

impl Decoder {
    /// `work.y = attention(work.q)` for the rows of the layer.
    pub(super) fn look(
        &self,
        index: usize,
        layer: &Layer,
        step: &Step,
        work: &mut Work,
        kv: &mut KvStore,
        rows: usize,
    ) {
        let heads = Heads {
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            dim: self.config.head_dim,
            scale: layer.scale,
            softcap: self.config.attention_softcap,
            window: layer.window,
        };
        work.sight.bias(step, index);
        let sight = Sight {
            groups: &work.sight.groups,
            queries: &work.sight.queries,
            spans: &step.spans,
            extras: &step.extras,
            pages: &step.pages,
            biases: &work.sight.biases,
        };
        let wide = heads.heads * heads.dim;
        let q = &work.q[..rows * wide];
        attend::attend(&self.pool, kv, index, &heads, q, &sight, sized(&mut work.y, rows * wide));
        for (i, mass) in step.masses.iter().enumerate().filter(|(_, m)| m.layer == index) {
            let place = if work.active.is_empty() { Some(mass.row) } else { find(&work.active, mass.row) };
            let Some(row) = place else { continue };
            let group = sight.groups.partition_point(|g| g.queries.end <= row);
            let first = work.masses.len();
            let mut weights = Vec::new();
            for head in 0..heads.heads {
                weights.clear();
                let q = &q[(row * heads.heads + head) * heads.dim..][..heads.dim];
                attend::weights(kv, index, &heads, q, &sight, (group, &sight.queries[row]), head, &mut weights);
                work.masses.resize(first + weights.len(), 0.0);
                let mean = 1.0 / heads.heads as f32;
                work.masses[first..].iter_mut().zip(&weights).for_each(|(sum, w)| *sum += mean * w);
            }
            work.mass_ranges[i] = first..work.masses.len();
        }
    }
}

fn find(active: &[u32], row: usize) -> Option<usize> {
    active.binary_search(&(row as u32)).ok()
}

impl Layout {
    /// The biases of a layer, per group.
    fn bias(&mut self, step: &Step, layer: usize) {
        if step.edits.is_empty() && self.biases.is_empty() {
            return;
        }
        self.biases.clear();
        for (group, &segment) in self.groups.iter_mut().zip(&self.segments) {
            let first = self.biases.len();
            let edits = step.edits.iter().filter(|(s, _)| *s == segment);
            let here = edits.flat_map(|(_, e)| &e.biases).filter(|b| b.layer as usize == layer);
            self.biases.extend(here.map(|b| KeyBias { head: b.head, place: b.place, add: b.add }));
            group.biases = first..self.biases.len();
        }
    }
}
