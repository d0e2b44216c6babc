//! What a forward of so many rows costs on this machine: measured once, refined in use.
use omnidecode_core::PAGE;
use omnidecode_core::tail::Slot;
use omnidecode_models::{Entry, Network, RowEntry, RowRead, Segment, Step, Visible};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Where the cost of a forward is known from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Cost {
    /// Learned while serving; before that, a tenth of a forward a row.
    #[default]
    Learned,
    /// As `Learned`, after a measurement of forwards of these numbers of rows at this context: at start, or if requests come
    /// before it is over, when a strategy first asks what rows cost.
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
    fixed: Option<Rc<[(usize, f64)]>>,
    /// Rows and context of the measurement that has not been made yet.
    due: Option<(Vec<usize>, usize)>,
    times: [[f64; SIZES.len()]; CONTEXTS],
}

impl CostModel {
    pub fn new(cost: &Cost) -> Self {
        let fixed = if let Cost::Fixed(points) = cost { Some(points.as_slice().into()) } else { None };
        let due = if let Cost::Measured { rows, context } = cost { Some((rows.clone(), *context)) } else { None };
        Self { fixed, due, times: [[0.0; SIZES.len()]; CONTEXTS] }
    }
    /// Whether a measurement is still to be made.
    pub fn is_due(&self) -> bool {
        self.due.is_some()
    }
    /// Rows of the largest forward that is to be measured.
    pub fn rows_due(&self) -> usize {
        self.due.iter().flat_map(|(rows, _)| rows).copied().max().unwrap_or(0)
    }
    fn context(places: usize) -> usize {
        ((places / 256 + 1).ilog2() as usize).min(CONTEXTS - 1)
    }
    /// A forward took so long. Forwards of sizes between the kept ones are not used: the kept ones are common.
    pub fn record(&mut self, rows: usize, places: usize, nanoseconds: f64) {
        let Ok(size) = SIZES.binary_search(&rows) else { return };
        let context = Self::context(places);
        let expected = self.expected(size, context);
        // A forward that another process interrupted says little about this machine, and the first one at this context no
        // more than any other: a draft that it made look dear would not be tried again.
        let time = |expected: f64| 0.9 * expected + 0.1 * nanoseconds.min(2.0 * expected);
        self.times[context][size] = expected.map_or(nanoseconds, time);
    }
    /// Nanoseconds of a forward at a context: as it was seen there, else as many times one row there as it was at the
    /// nearest context where it was seen.
    fn expected(&self, size: usize, context: usize) -> Option<f64> {
        let seen = |context: usize, size: usize| Some(self.times[context][size]).filter(|&time| time > 0.0);
        let nearest = |size: usize| {
            let sees = |c: &usize| *c != context && seen(*c, 0).is_some() && seen(*c, size).is_some();
            (0..CONTEXTS).filter(sees).min_by_key(|c| c.abs_diff(context))
        };
        seen(context, size).or_else(|| {
            let one = seen(context, 0).or_else(|| seen(nearest(0)?, 0))?;
            let near = nearest(size)?;
            Some(one * seen(near, size)? / seen(near, 0)?)
        })
    }
    /// What forwards cost at a context, to be asked for many numbers of rows: nothing known where one row was never seen.
    pub fn curve(&self, places: usize) -> Curve {
        if let Some(points) = &self.fixed {
            return Curve::Fixed(points.clone());
        }
        let (mut points, mut count) = ([(0, 0.0); SIZES.len()], 0);
        let context = Self::context(places);
        for (size, &rows) in SIZES.iter().enumerate() {
            match self.expected(size, context) {
                Some(time) => (points[count], count) = ((rows, time), count + 1),
                None if size == 0 => break,
                None => {}
            }
        }
        // One row alone says nothing of more.
        Curve::Seen(points, if count < 2 { 0 } else { count })
    }
    /// Nanoseconds of a forward of one row, if it and another size were measured.
    pub fn one(&self, places: usize) -> Option<f64> {
        match self.curve(places) {
            Curve::Seen(points, 2..) => Some(points[0].1),
            _ => None,
        }
    }
}

/// What forwards of all numbers of rows cost at one context: points to go between, and how many of them there are.
#[allow(clippy::large_enum_variant)] // short-lived, one at a time
pub(crate) enum Curve {
    /// Given from outside.
    Fixed(Rc<[(usize, f64)]>),
    /// Measured.
    Seen([(usize, f64); SIZES.len()], usize),
}

impl Curve {
    /// Time of a forward relative to one row. Never falls with more rows.
    pub fn relative(&self, rows: usize) -> f64 {
        if rows == 0 {
            return 0.0;
        }
        let points = match self {
            Curve::Fixed(points) => points,
            Curve::Seen(points, count) => &points[..*count],
        };
        let Some(&(_, one)) = points.first() else { return 1.0 + 0.1 * (rows - 1) as f64 };
        let mut below = (0, 0.0f64);
        for &(n, t) in points {
            let t = t.max(below.1);
            if n >= rows {
                let share = (rows - below.0) as f64 / (n - below.0) as f64;
                let from = if below.0 == 0 { t } else { below.1 };
                return (from + share * (t - from)) / one;
            }
            below = (n, t);
        }
        // Beyond what was seen: as the average row so far, which no larger forward exceeds on memory-bound machines.
        below.1 / one * rows as f64 / below.0.max(1) as f64
    }
}

/// Time that the measurement may take before it stops repeating itself.
const PATIENCE: Duration = Duration::from_millis(150);

/// Time forwards on an idle network of `pages` pages, with rows in flight at these free slots; whatever the pages hold. A
/// model too large to be measured in [`PATIENCE`] is measured less often, and at fewer sizes: one row and another at least,
/// once each. `stop` gives it up, to be made another time.
pub(crate) fn calibrate(
    network: &mut dyn Network,
    pages: usize,
    slots: &[Slot],
    model: &mut CostModel,
    stop: &dyn Fn() -> bool,
) {
    let Some((rows, context)) = model.due.take() else { return };
    let longest = network.card().context;
    let places = context.min(pages * PAGE).min(longest / 2);
    let room = longest - places;
    let begin = Instant::now();
    let mut sizes: Vec<(usize, Step, f64)> = rows
        .iter()
        .filter(|&&n| n > 0 && n <= slots.len() && n <= room)
        .map(|&n| (n, probe(&slots[..n], places), f64::INFINITY))
        .collect();
    let mut run = |step: &Step| {
        let clock = Instant::now();
        network.run(step, &mut |_, _| {}, &mut |_, _| {}).ok()?;
        Some(clock.elapsed().as_nanos() as f64)
    };
    // The first forward of all wakes threads and fills buffers. Then all sizes by turns, the best of each: what slows the machine
    // for a while slows all of them.
    if sizes.first().is_none_or(|first| run(&first.1).is_none()) {
        return;
    }
    'measure: for turn in 0..3 {
        for (at, (_, step, best)) in sizes.iter_mut().enumerate() {
            if stop() {
                model.due = Some((rows, context));
                return;
            }
            if (turn > 0 || at > 1) && begin.elapsed() > PATIENCE {
                break 'measure;
            }
            let Some(time) = run(step) else { return };
            *best = best.min(time);
        }
    }
    for (n, _, best) in sizes.into_iter().filter(|size| size.2.is_finite()) {
        model.record(n, places, best);
    }
}

fn probe(slots: &[Slot], context: usize) -> Step {
    let mut step = Step { pages: (0..context.div_ceil(PAGE) as u32).collect(), ..Step::default() };
    if context > 0 {
        step.spans.push((0, context as u32));
    }
    step.extras = slots.iter().zip(context as u32..).map(|(&slot, place)| Visible { place, slot }).collect();
    for (i, &slot) in slots.iter().enumerate() {
        let place = (context + i) as u32;
        step.rows.push(RowEntry {
            entry: Entry::Token(0),
            position: place,
            place,
            slot,
            spans: 0..step.spans.len(),
            extras: 0..i + 1,
        });
        step.reads.push(RowRead { row: i, stats: true, ..RowRead::default() });
    }
    step.segments.push(Segment { rows: 0..slots.len(), table: 0..step.pages.len(), layers: 0..usize::MAX });
    step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TableNetwork;

    /// A measurement that is stopped is made when it is asked for again, and then no more.
    #[test]
    fn a_measurement_can_wait() {
        let mut network = TableNetwork::new(7, 11);
        network.delay = Some(100);
        network.reserve(8, 8).expect("fits");
        let slots: Vec<Slot> = (0..8).map(|i| (8 * PAGE + i) as Slot).collect();
        let mut m = CostModel::new(&Cost::Measured { rows: vec![1, 8], context: 64 });
        calibrate(&mut network, 8, &slots, &mut m, &|| true);
        assert!(m.is_due() && m.rows_due() == 8 && m.one(64).is_none());
        calibrate(&mut network, 8, &slots, &mut m, &|| false);
        assert!(!m.is_due() && m.one(64).is_some() && m.curve(64).relative(8) > 3.0, "{}", m.curve(64).relative(8));
        let one = m.one(64);
        calibrate(&mut network, 8, &slots, &mut m, &|| false);
        assert_eq!(m.one(64), one);
    }

    #[test]
    fn fixed_costs_are_interpolated() {
        let m = CostModel::new(&Cost::Fixed(vec![(1, 2.0), (4, 4.0), (8, 12.0)]));
        for (rows, want) in [(0, 0.0), (1, 1.0), (4, 2.0), (6, 4.0), (8, 6.0), (16, 12.0)] {
            assert_eq!(m.curve(0).relative(rows), want, "{rows}");
        }
    }

    #[test]
    fn learned_costs_follow_what_was_seen() {
        let mut m = CostModel::new(&Cost::Learned);
        assert!((m.curve(0).relative(11) - 2.0).abs() < 1e-9);
        for _ in 0..200 {
            m.record(1, 100, 10.0);
            m.record(4, 100, 12.0);
            m.record(8, 100, 11.0); // noise: more rows never cost less
            m.record(5, 100, 1e9); // not a kept size
        }
        assert!((m.curve(100).relative(4) - 1.2).abs() < 1e-6);
        assert!((m.curve(100).relative(8) - 1.2).abs() < 1e-6);
        assert!((m.curve(100_000).relative(4) - 1.2).abs() < 1e-6, "the nearest context that is known");
        m.record(1, 100, 1e9);
        assert!(m.curve(100).relative(4) > 1.0, "one hiccup does not count for much");
    }

    /// A context where few sizes were seen knows the others from its neighbours, and what is seen there first is not taken for
    /// the truth.
    #[test]
    fn contexts_help_each_other() {
        let mut m = CostModel::new(&Cost::Learned);
        [(1, 10.0), (2, 11.0), (4, 12.0), (8, 16.0)].iter().for_each(|&(rows, time)| m.record(rows, 300, time));
        assert!((m.curve(5000).relative(8) - 1.6).abs() < 1e-9 && m.one(5000) == Some(10.0));
        for _ in 0..200 {
            m.record(1, 5000, 20.0);
            m.record(2, 5000, 22.0);
        }
        assert!((m.curve(5000).relative(2) - 1.1).abs() < 1e-3);
        assert!(
            (m.curve(5000).relative(8) - 1.6).abs() < 1e-3,
            "{}: not four times two rows",
            m.curve(5000).relative(8)
        );
        m.record(4, 5000, 1e9);
        assert!(m.curve(5000).relative(4) < 1.33, "{}: one hiccup", m.curve(5000).relative(4));
        (0..200).for_each(|_| m.record(8, 5000, 40.0));
        assert!((m.curve(5000).relative(8) - 2.0).abs() < 1e-3, "what is seen there counts in the end");
    }
}
