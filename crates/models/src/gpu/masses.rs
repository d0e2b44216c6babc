//! Attention weights that a step reads: of which rows, over which keys.
use super::layout::runs;
use crate::config::Config;
use crate::network::PAGE;
use crate::step::{Step, Visible};
use omnidecode_kernels::cuda::args::Mass;
use std::ops::Range;

/// What `mass` is told, and where its answers lie.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Masses {
    /// Layer by layer.
    pub entries: Vec<Mass>,
    /// Of each layer.
    pub counts: Vec<usize>,
    /// The keys of the rows, in place order; at one place the page's key comes first.
    pub keys: Vec<Visible>,
    /// Where the weights of each of [`Step::masses`] lie among all.
    pub ranges: Vec<Range<usize>>,
    /// Weights in all.
    pub weights: usize,
    /// Weights of one layer, at most.
    pub layer_weights: usize,
}

/// Every key that a row sees, whatever the window.
fn visible(step: &Step, row: usize, table: &[u32]) -> Vec<Visible> {
    let own = &step.rows[row];
    let slot = |place: u32| table[place as usize / PAGE] * PAGE as u32 + place % PAGE as u32;
    let places = step.spans[own.spans.clone()].iter().flat_map(|&(from, to)| from..to);
    let mut keys: Vec<Visible> = places.map(|place| Visible { place, slot: slot(place) }).collect();
    keys.extend_from_slice(&step.extras[own.extras.clone()]);
    keys.sort_by_key(|key| key.place); // stable
    keys
}

impl Masses {
    pub fn of(step: &Step, config: &Config) -> Self {
        let mut all = Masses { ranges: vec![0..0; step.masses.len()], ..Masses::default() };
        if step.masses.is_empty() {
            all.counts = vec![0; config.layers.len()];
            return all;
        }
        // A row's keys are listed once for all layers; a window leaves out the first of them.
        let mut listed: Vec<(usize, Range<usize>)> = Vec::new();
        let runs = runs(step, config.layers.len());
        for (layer, own) in config.layers.iter().enumerate() {
            let run = runs.iter().find(|run| run.layers.contains(&layer));
            let mut before = 0;
            let first = all.entries.len();
            for (i, mass) in step.masses.iter().enumerate().filter(|(_, m)| m.layer == layer) {
                let Some(segment) = step.segments.iter().position(|s| s.rows.contains(&mass.row)) else { continue };
                let Some(run) = run.filter(|_| step.segments[segment].layers.contains(&layer)) else { continue };
                let keys = match listed.iter().find(|(row, _)| *row == mass.row) {
                    Some((_, keys)) => keys.clone(),
                    None => {
                        let table = &step.pages[step.segments[segment].table.clone()];
                        let from = all.keys.len();
                        all.keys.extend(visible(step, mass.row, table));
                        listed.push((mass.row, from..all.keys.len()));
                        from..all.keys.len()
                    }
                };
                let (place, window) = (step.rows[mass.row].place as usize, own.window.unwrap_or(usize::MAX));
                let seen = (place + 1).saturating_sub(window);
                let key = keys.start + all.keys[keys.clone()].partition_point(|key| (key.place as usize) < seen);
                let count = keys.end - key;
                let row = match &run.segments {
                    None => mass.row,
                    Some(segments) => {
                        let earlier = segments.iter().take_while(|&&s| s < segment);
                        let rows: usize = earlier.map(|&s| step.segments[s].rows.len()).sum();
                        rows + mass.row - step.segments[segment].rows.start
                    }
                };
                all.ranges[i] = all.weights..all.weights + count;
                all.entries.push(Mass {
                    row: row as u32,
                    step_row: mass.row as u32,
                    key: key as u32,
                    keys: count as u32,
                    out: all.weights as u32,
                    before,
                });
                before += count as u32;
                all.weights += count;
            }
            all.counts.push(all.entries.len() - first);
            all.layer_weights = all.layer_weights.max(before as usize);
        }
        all
    }
}
