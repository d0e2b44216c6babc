//! What a forward of so many rows costs on this machine: measured at load, refined in use.
use omnidecode_core::PAGE;
use omnidecode_models::{Entry, Network, RowEntry, RowRead, Segment, Step, Visible};
use std::time::{Duration, Instant};

/// Where the cost of a forward is known from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Cost {
    /// Learned while serving; before that, a tenth of a forward a row.
    #[default]
    Learned,
    /// As `Learned`, after a measurement at start of forwards of these numbers of rows at this context.
    Measured {
        /// Rows of the forwards to be timed.
        rows: Vec<usize>,
        /// Places that each row sees.
        context: usize,
    },
    /// Given: (rows, cost relative to one row), ascending in rows. For tests, and for choices that must not depend on
    /// the clock.
    Fixed(Vec<(usize, f64)>),
}
impl Cost {
    /// The usual measurement: a fraction of a second for a small model.
    pub fn measured() -> Cost {
        Cost::Measured { rows: vec![1, 2, 4, 8, 16, 32], context: 256 }
    }
}

const SIZES: [usize; 20] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024];
const CONTEXTS: usize = 8;

/// Times of one model, in nanoseconds, by rows and context.
#[derive(Debug)]
pub(crate) struct CostModel {
    fixed: Option<Vec<(usize, f64)>>,
    times: [[f64; SIZES.len()]; CONTEXTS],
}

impl CostModel {
    pub fn new(cost: &Cost) -> Self {
        let fixed = if let Cost::Fixed(points) = cost { Some(points.clone()) } else { None };
        Self { fixed, times: [[0.0; SIZES.len()]; CONTEXTS] }
    }
    fn context(places: usize) -> usize {
        ((places / 256 + 1).ilog2() as usize).min(CONTEXTS - 1)
    }
    /// A forward took so long. Forwards of sizes between the kept ones are not used: the kept ones are common.
    pub fn record(&mut self, rows: usize, places: usize, nanoseconds: f64) {
        let Ok(size) = SIZES.binary_search(&rows) else { return };
        let time = &mut self.times[Self::context(places)][size];
        // A forward that another process interrupted says little about this machine.
        let sample = if *time > 0.0 { nanoseconds.min(2.0 * *time) } else { nanoseconds };
        *time = if *time > 0.0 { 0.9 * *time + 0.1 * sample } else { sample };
    }
    fn points(&self, places: usize) -> Option<Vec<(usize, f64)>> {
        let wanted = Self::context(places) as isize;
        let mut order: Vec<usize> = (0..CONTEXTS).collect();
        order.sort_by_key(|&c| (c as isize - wanted).abs());
        order.into_iter().find_map(|c| {
            let known = SIZES.iter().zip(&self.times[c]).filter(|(_, t)| **t > 0.0).map(|(&n, &t)| (n, t));
            let known: Vec<_> = known.collect();
            (known.len() >= 2 && known[0].0 == 1).then_some(known)
        })
    }
    /// Nanoseconds of a forward of one row, if it was measured.
    pub fn one(&self, places: usize) -> Option<f64> {
        if self.fixed.is_some() { None } else { self.points(places).map(|p| p[0].1) }
    }
    /// Time of a forward relative to one row. Never falls with more rows.
    pub fn relative(&self, rows: usize, places: usize) -> f64 {
        if rows == 0 {
            return 0.0;
        }
        let learned;
        let points = match &self.fixed {
            Some(points) => points,
            None => match self.points(places) {
                Some(points) => {
                    learned = points;
                    &learned
                }
                None => return 1.0 + 0.1 * (rows - 1) as f64,
            },
        };
        let (mut below, mut highest) = ((0, 0.0), 0.0f64);
        for &(n, t) in points {
            let t = t.max(highest);
            if n >= rows {
                let share = (rows - below.0) as f64 / (n - below.0) as f64;
                let from = if below.0 == 0 { t } else { below.1 };
                return (from + share * (t - from)) / points[0].1;
            }
            (below, highest) = ((n, t), t);
        }
        // Beyond what was seen: as the average row so far, which no larger forward exceeds on memory-bound machines.
        below.1 / points[0].1 * rows as f64 / below.0.max(1) as f64
    }
}

/// Time that the measurement may take before it stops repeating itself.
const PATIENCE: Duration = Duration::from_millis(150);

/// Time forwards on an idle network whose KV store holds nothing yet. A model too large to be measured in [`PATIENCE`] is
/// measured less often, and at fewer sizes: one row and another at least.
pub(crate) fn calibrate(network: &mut dyn Network, cost: &Cost, pages: usize, tail: usize, model: &mut CostModel) {
    let Cost::Measured { rows, context } = cost else { return };
    let longest = network.card().context;
    let context = (*context).min(pages * PAGE).min(longest / 2);
    let room = longest - context;
    let begin = Instant::now();
    let mut known = 0;
    for &n in rows {
        if n == 0 || n > tail || n > room || (known >= 2 && begin.elapsed() > PATIENCE) {
            continue;
        }
        let step = probe(n, context, pages);
        let mut best = f64::INFINITY;
        for turn in 0..3 {
            // The first forward of all wakes threads and fills buffers.
            if turn > 0 && (known > 0 || turn > 1) && begin.elapsed() > PATIENCE {
                break;
            }
            let clock = Instant::now();
            if network.run(&step, &mut |_, _| {}, &mut |_, _| {}).is_err() {
                return;
            }
            best = best.min(clock.elapsed().as_nanos() as f64);
        }
        model.record(n, context, best);
        known += 1;
    }
}

fn probe(n: usize, context: usize, pages: usize) -> Step {
    let mut step = Step { pages: (0..context.div_ceil(PAGE) as u32).collect(), ..Step::default() };
    if context > 0 {
        step.spans.push((0, context as u32));
    }
    let first = (pages * PAGE) as u32;
    step.extras = (0..n as u32).map(|i| Visible { place: context as u32 + i, slot: first + i }).collect();
    for i in 0..n {
        let place = (context + i) as u32;
        step.rows.push(RowEntry {
            entry: Entry::Token(0),
            position: place,
            place,
            slot: first + i as u32,
            spans: 0..step.spans.len(),
            extras: 0..i + 1,
        });
        step.reads.push(RowRead { row: i, stats: true, ..RowRead::default() });
    }
    step.segments.push(Segment { rows: 0..n, table: 0..step.pages.len(), layers: 0..usize::MAX });
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_costs_are_interpolated() {
        let m = CostModel::new(&Cost::Fixed(vec![(1, 2.0), (4, 4.0), (8, 12.0)]));
        for (rows, want) in [(0, 0.0), (1, 1.0), (4, 2.0), (6, 4.0), (8, 6.0), (16, 12.0)] {
            assert_eq!(m.relative(rows, 0), want, "{rows}");
        }
    }

    #[test]
    fn learned_costs_follow_what_was_seen() {
        let mut m = CostModel::new(&Cost::Learned);
        assert!((m.relative(11, 0) - 2.0).abs() < 1e-9);
        for _ in 0..200 {
            m.record(1, 100, 10.0);
            m.record(4, 100, 12.0);
            m.record(8, 100, 11.0); // noise: more rows never cost less
            m.record(5, 100, 1e9); // not a kept size
        }
        assert!((m.relative(4, 100) - 1.2).abs() < 1e-6);
        assert!((m.relative(8, 100) - 1.2).abs() < 1e-6);
        assert!((m.relative(4, 100_000) - 1.2).abs() < 1e-6, "the nearest context that is known");
        m.record(1, 100, 1e9);
        assert!(m.relative(4, 100) > 1.0, "one hiccup does not count for much");
    }
}
