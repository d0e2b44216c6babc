//! The head: logits of the rows that are read, reduced while they are hot.
use super::{Decoder, Work, sized};
use crate::network::NetworkError;
use crate::step::{Choice, PickError, Reading, RowRead, Stats, Step};
use omnidecode_core::Token;
use omnidecode_kernels::activations::Activations;
use omnidecode_kernels::pick;
use omnidecode_kernels::pool::Pool;
use omnidecode_kernels::product::Job;
use omnidecode_kernels::rows::{each, each_row};
use std::ops::Range;

/// Rows whose logits are in memory at once: one pass over the head serves them all, and a long prompt whose every row
/// is read does not need `rows * vocab` floats.
const GROUP: usize = 16;

#[derive(Default)]
pub(super) struct Buffers {
    normed: Vec<f32>,
    logits: Vec<f32>,
    rows: Vec<Reduced>,
    hidden: Vec<f32>,
    mass: Vec<f32>,
    acts: Activations,
}

/// What is left of one row of logits.
#[derive(Default)]
struct Reduced {
    top: Vec<(Token, f32)>,
    asked: Vec<f32>,
    stats: Stats,
    choice: Option<Token>,
    logprob: f32,
    error: Option<PickError>,
    scratch: pick::Scratch,
}

/// Whether a read needs the head at all: hidden states and attention weights do not.
fn wants_logits(read: &RowRead) -> bool {
    read.choice.is_some() || read.top > 0 || read.stats || !read.asked.is_empty() || read.logits || read.bend
}

impl Decoder {
    pub(super) fn read(
        &self,
        step: &Step,
        work: &mut Work,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        let (width, vocab, layers) = (self.config.hidden, self.config.vocab, self.layers.len());
        let mut at = 0;
        while at < step.reads.len() {
            // A group: up to GROUP reads of one kind.
            let kind = wants_logits(&step.reads[at]);
            let same = step.reads[at..].iter().take(GROUP).take_while(|r| wants_logits(r) == kind).count();
            let reads = &step.reads[at..at + same];
            let head = &mut work.head;
            let normed = sized(&mut head.normed, same * width);
            let x = &work.x;
            each_row(&self.pool, same, normed, width, &|i, out| {
                let row = &x[reads[i].row * width..][..width];
                match &self.norm {
                    Some(norm) => norm.row(row, out),
                    None => out.copy_from_slice(row),
                }
            });
            if kind {
                let bad = |i: usize| NetworkError::NotFinite { row: reads[i].row, layer: layers };
                let normed = &head.normed[..same * width];
                head.acts.load(&self.pool, normed, same, width, self.head.form()).map_err(|e| bad(e.row))?;
                let logits = sized(&mut head.logits, same * vocab);
                self.product(&head.acts, &mut [Job::store(&*self.head, logits)]);
                self.finish_logits(&mut head.logits[..same * vocab]);
            }
            if kind {
                self.reduce(step, &mut work.head, at..at + same, bend);
            }
            for (i, read) in reads.iter().enumerate() {
                self.deliver(step, work, at + i, i, read, each);
            }
            at += same;
        }
        Ok(())
    }

    /// Scale and soft cap.
    fn finish_logits(&self, logits: &mut [f32]) {
        let scale = self.config.logit_scale;
        if scale != 1.0 {
            logits.iter_mut().for_each(|l| *l *= scale);
        }
        if let Some(cap) = self.config.final_softcap {
            each_row(&self.pool, logits.len() / self.config.vocab, logits, self.config.vocab, &|_, row| {
                row.iter_mut().for_each(|l| *l = cap * (*l / cap).tanh());
            });
        }
    }

    /// Reduce the logits of a group of reads. Rows that nobody bends are shared among the threads; where there are fewer,
    /// a row is.
    fn reduce(&self, step: &Step, head: &mut Buffers, reads: Range<usize>, bend: &mut dyn FnMut(usize, &mut [f32])) {
        let (vocab, pool, first) = (self.config.vocab, &*self.pool, reads.start);
        let reads = &step.reads[reads];
        if head.rows.len() < reads.len() {
            head.rows.resize_with(reads.len(), Reduced::default);
        }
        let (rows, logits) = (&mut head.rows[..reads.len()], &mut head.logits[..]);
        if reads.len() >= pool.threads() && !reads.iter().any(|read| read.bend) {
            let logits = &*logits;
            return each(pool, rows, &|i, out| out.whole(None, step, &reads[i], &logits[i * vocab..][..vocab]));
        }
        for (i, (read, out)) in reads.iter().zip(rows).enumerate() {
            let row = &mut logits[i * vocab..][..vocab];
            if !read.bend {
                out.whole(Some(pool), step, read, row);
                continue;
            }
            out.error = out.raw(Some(pool), step, read, row).err();
            let raw = if read.logprob { row.to_vec() } else { Vec::new() };
            if out.error.is_none() {
                bend(first + i, row);
                out.error = out.choose(Some(pool), read, row, &raw).err();
            }
        }
    }

    fn deliver(
        &self,
        step: &Step,
        work: &mut Work,
        index: usize,
        i: usize,
        read: &RowRead,
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) {
        let (width, vocab, layers) = (self.config.hidden, self.config.vocab, self.layers.len());
        let Buffers { normed, logits, rows, hidden, mass, .. } = &mut work.head;
        hidden.clear();
        let first = step.taps.partition_point(|t| t.row < read.row);
        for (t, tap) in step.taps.iter().enumerate().skip(first).take_while(|(_, t)| t.row == read.row) {
            let state = if tap.layer == layers { &normed[i * width..] } else { &work.taps[t * width..] };
            hidden.extend_from_slice(&state[..width]);
        }
        mass.clear();
        let first = step.masses.partition_point(|m| m.row < read.row);
        for (m, _) in step.masses.iter().enumerate().skip(first).take_while(|(_, m)| m.row == read.row) {
            mass.extend_from_slice(&work.masses[work.mass_ranges[m].clone()]);
        }
        let mut reading = Reading { hidden, mass, ..Reading::default() };
        if wants_logits(read) {
            let Reduced { top, asked, stats, choice, logprob, error, .. } = &rows[i];
            reading = match error {
                Some(error) => Reading { error: Some(*error), ..Reading::default() },
                None => {
                    let logits = if read.logits { &logits[i * vocab..][..vocab] } else { &[] };
                    Reading { choice: *choice, logprob: *logprob, top, stats: *stats, asked, logits, ..reading }
                }
            };
        }
        each(index, reading);
    }
}

impl Reduced {
    /// Everything that is read from a row that nobody bends.
    fn whole(&mut self, pool: Option<&Pool>, step: &Step, read: &RowRead, row: &[f32]) {
        let done = self.raw(pool, step, read, row).and_then(|()| self.choose(pool, read, row, row));
        self.error = done.err();
    }

    /// What is of the raw row.
    fn raw(&mut self, pool: Option<&Pool>, step: &Step, read: &RowRead, row: &[f32]) -> Result<(), PickError> {
        self.top.clear();
        self.asked.clear();
        (self.choice, self.logprob, self.stats) = (None, 0.0, Stats::default());
        if read.stats || !read.asked.is_empty() || read.logprob {
            self.stats = pool.map_or_else(|| pick::stats(row), |pool| pick::stats_with(pool, row))?;
        }
        if read.top > 0 {
            pick::top_k(row, read.top, &mut self.top);
        }
        let asked = step.asked[read.asked.clone()].iter();
        self.asked.extend(asked.map(|&t| row[t as usize] - self.stats.lse));
        Ok(())
    }

    /// The choice, in the bent row; its log-probability is of the raw one.
    fn choose(&mut self, pool: Option<&Pool>, read: &RowRead, row: &[f32], raw: &[f32]) -> Result<(), PickError> {
        let Some(Choice { warp, key }) = &read.choice else { return Ok(()) };
        let token = match pool {
            Some(pool) => pick::sample_with(pool, row, warp, *key, &mut self.scratch)?,
            None => pick::sample(row, warp, *key, &mut self.scratch)?,
        };
        self.choice = Some(token);
        if read.logprob {
            self.logprob = raw[token as usize] - self.stats.lse;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Options;
    use crate::step::{Entry, RowEntry, Segment, Tap};
    use crate::{Network, Weights};

    #[test]
    fn a_hidden_state_costs_no_head() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/llama");
        let weights = Weights::open(folder).expect("in the repository");
        let mut decoder = Decoder::load(&weights, &Options { threads: Some(1), ..Options::default() }).expect("loads");
        decoder.reserve(1, 0).expect("a page");
        let layers = decoder.layers.len();
        let row = RowEntry { entry: Entry::Token(5), position: 0, place: 0, slot: 0, spans: 0..1, extras: 0..0 };
        let mut step = Step { rows: vec![row], spans: vec![(0, 1)], pages: vec![0], ..Step::default() };
        step.segments.push(Segment { rows: 0..1, table: 0..1, layers: 0..usize::MAX });
        step.reads.push(RowRead::default());
        step.taps.push(Tap { row: 0, layer: layers });
        let mut state = Vec::new();
        decoder.run(&step, &mut |_, _| {}, &mut |_, r| state = r.hidden.to_vec()).expect("runs");
        assert_eq!(state.len(), decoder.config.hidden);
        assert!(decoder.work.head.logits.is_empty(), "the head ran");
        step.reads[0].stats = true;
        decoder.run(&step, &mut |_, _| {}, &mut |_, _| {}).expect("runs");
        assert_eq!(decoder.work.head.logits.len(), decoder.config.vocab);
    }
}
