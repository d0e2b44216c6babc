//! The head: logits of the rows that are read, reduced while they are hot.
use super::{Decoder, Work, sized};
use crate::network::NetworkError;
use crate::step::{PickError, Reading, RowRead, Stats, Step};
use omnidecode_core::Token;
use omnidecode_kernels::activations::Activations;
use omnidecode_kernels::pick;
use omnidecode_kernels::pool::Pool;
use omnidecode_kernels::product::Job;
use omnidecode_kernels::rows::each_row;

/// Rows whose logits are in memory at once: one pass over the head serves them all, and a long prompt whose every row
/// is read does not need `rows * vocab` floats.
const GROUP: usize = 16;

#[derive(Default)]
pub(super) struct Buffers {
    normed: Vec<f32>,
    logits: Vec<f32>,
    top: Vec<(Token, f32)>,
    asked: Vec<f32>,
    hidden: Vec<f32>,
    mass: Vec<f32>,
    acts: Activations,
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
            for (i, read) in reads.iter().enumerate() {
                self.deliver(step, work, at + i, i, read, bend, each);
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

    #[expect(clippy::too_many_arguments, reason = "one read in one group")]
    fn deliver(
        &self,
        step: &Step,
        work: &mut Work,
        index: usize,
        i: usize,
        read: &RowRead,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) {
        let (width, vocab, layers) = (self.config.hidden, self.config.vocab, self.layers.len());
        let Buffers { normed, logits, top, asked, hidden, mass, scratch, .. } = &mut work.head;
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
        top.clear();
        asked.clear();
        let mut reading = Reading { hidden, mass, ..Reading::default() };
        if wants_logits(read) {
            let row = &mut logits[i * vocab..(i + 1) * vocab];
            let asks = (step, index, read);
            if let Err(error) = reduce(&self.pool, asks, row, bend, top, asked, scratch, &mut reading) {
                reading = Reading { error: Some(error), ..Reading::default() };
            } else {
                reading.logits = if read.logits { row } else { &[] };
                (reading.top, reading.asked) = (top, asked);
            }
        }
        each(index, reading);
    }
}

/// Everything that is read from one row of logits. What is of the raw row comes first, then the row is bent.
#[expect(clippy::too_many_arguments, reason = "buffers, borrowed apart")]
fn reduce(
    pool: &Pool,
    (step, index, read): (&Step, usize, &RowRead),
    row: &mut [f32],
    bend: &mut dyn FnMut(usize, &mut [f32]),
    top: &mut Vec<(Token, f32)>,
    asked: &mut Vec<f32>,
    scratch: &mut pick::Scratch,
    reading: &mut Reading<'_>,
) -> Result<(), PickError> {
    let needs_lse = read.stats || !read.asked.is_empty() || read.logprob;
    let stats = if needs_lse { pick::stats_with(pool, row)? } else { Stats::default() };
    reading.stats = stats;
    if read.top > 0 {
        pick::top_k(row, read.top, top);
    }
    asked.extend(step.asked[read.asked.clone()].iter().map(|&t| row[t as usize] - stats.lse));
    let raw = if read.logprob && read.bend { row.to_vec() } else { Vec::new() };
    if read.bend {
        bend(index, row);
    }
    if let Some(choice) = &read.choice {
        let token = pick::sample_with(pool, row, &choice.warp, choice.key, scratch)?;
        reading.choice = Some(token);
        let raw = if raw.is_empty() { &*row } else { &raw };
        reading.logprob = if read.logprob { raw[token as usize] - stats.lse } else { 0.0 };
    }
    Ok(())
}
