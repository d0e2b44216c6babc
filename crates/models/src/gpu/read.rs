//! Running a step, and what is read of it.
use super::layout::Laid;
use super::masses::Masses;
use super::memory::READS;
use super::plan::{Key, Planned, Planner};
use super::{GpuDecoder, network_error};
use crate::network::NetworkError;
use crate::step::{PickError, Reading, RowRead, Stats, Step};
use omnidecode_core::Token;
use omnidecode_kernels::cuda::args::{Ask, Candidate, Found, NONE, Plain, Stand, TOP};
use omnidecode_kernels::pick;

/// Whether a read needs the head at all.
fn wants_logits(read: &RowRead) -> bool {
    read.choice.is_some() || read.top > 0 || read.stats || !read.asked.is_empty() || read.logits || read.bend
}
/// Whether the device makes this choice.
fn chooses(read: &RowRead) -> bool {
    read.choice.is_some_and(|c| c.warp.temperature <= 0.0 || c.warp.typical_p >= 1.0)
}
/// Whether the row's logits go to the host.
fn travels(read: &RowRead) -> bool {
    read.logits || read.bend || read.top > TOP || (read.choice.is_some() && !chooses(read))
}

/// What came back of up to [`READS`] reads.
struct Back {
    found: Vec<Found>,
    tops: Vec<Candidate>,
    logprobs: Vec<f32>,
    normed: Vec<f32>,
}

/// What came back of a step beside its logits.
struct Beside<'a> {
    taps: Vec<f32>,
    masses: Vec<f32>,
    /// Of each of [`Step::masses`].
    ranges: &'a [std::ops::Range<usize>],
}

impl GpuDecoder {
    pub(super) fn read(
        &mut self,
        step: &Step,
        laid: &Laid,
        masses: &Masses,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        let first = step.reads.len().min(READS);
        self.ask(step, 0..first)?;
        let logits = step.reads[..first].iter().any(wants_logits);
        self.forward(laid, first, logits, !step.taps.is_empty() || !masses.entries.is_empty())?;
        let mut back = self.back(step, laid.rows, 0..first, logits)?;
        let mut beside = Beside { taps: Vec::new(), masses: Vec::new(), ranges: &masses.ranges };
        if !step.taps.is_empty() {
            beside.taps = self.floats(|arena| &arena.taps, step.taps.len() * self.config.hidden)?;
        }
        if masses.weights > 0 {
            beside.masses = self.floats(|arena| &arena.masses, masses.weights)?;
        }
        let mut at = 0;
        while at < step.reads.len() {
            let some = at..(at + READS).min(step.reads.len());
            let logits = step.reads[some.clone()].iter().any(wants_logits);
            if at > 0 {
                self.ask(step, some.clone())?;
                let mut planner = Planner::new(self, 1);
                planner.head(some.len(), logits);
                let launches = planner.done();
                self.counts.add(&launches);
                self.device.launch(&launches).map_err(network_error)?;
                back = self.back(step, laid.rows, some.clone(), logits)?;
            }
            for i in some.clone() {
                self.deliver(step, (i, i - some.start), &back, &beside, bend, each)?;
            }
            at = some.end;
        }
        Ok(())
    }

    /// Tell the head what is asked of some reads.
    fn ask(&mut self, step: &Step, reads: std::ops::Range<usize>) -> Result<(), NetworkError> {
        if reads.is_empty() {
            return Ok(());
        }
        let parts = self.arena.parts;
        let mut bytes = vec![0; parts.asked + step.asked.len() * 4];
        let mut put = |at: usize, from: &[u8]| bytes[at..at + from.len()].copy_from_slice(from);
        put(0, Stand::bytes(&[Stand { rows: reads.len() as u32, ..Stand::default() }]));
        for (i, read) in step.reads[reads].iter().enumerate() {
            put(parts.index + i * 4, u32::bytes(&[read.row as u32]));
            let choice = read.choice.filter(|_| chooses(read) && !read.bend);
            let sums = read.stats || !read.asked.is_empty() || read.logprob;
            let ask = Ask {
                key: choice.map_or(0, |c| c.key.word()),
                temperature: choice.map_or(0.0, |c| c.warp.temperature),
                min_p: choice.map_or(0.0, |c| c.warp.min_p.min(1.0)),
                top_p: choice.map_or(1.0, |c| c.warp.top_p),
                top_k: choice.map_or(0, |c| c.warp.top_k.min(u32::MAX as usize) as u32),
                top: if read.top > TOP { 0 } else { read.top as u32 },
                asked: read.asked.start as u32,
                asked_end: read.asked.end as u32,
                flags: u32::from(choice.is_some()) | u32::from(sums) << 1,
            };
            put(parts.asks + i * size_of::<Ask>(), Ask::bytes(&[ask]));
        }
        put(parts.asked, u32::bytes(&step.asked));
        self.device.write(&self.arena.read_inputs, 0, &bytes).map_err(network_error)
    }

    /// Run the layers and the head of the first reads: a captured graph where the step's shape is one that comes again.
    fn forward(&mut self, laid: &Laid, reads: usize, logits: bool, tapped: bool) -> Result<(), NetworkError> {
        let layers = self.model.layers.len();
        let whole = laid.runs.len() == 1 && laid.runs[0] == (0..layers, 0) && !tapped && (logits || reads == 0);
        let key = Key::of(laid, reads);
        if !whole {
            let mut planner = Planner::new(self, key.stretches);
            planner.cut(laid);
            if reads > 0 {
                planner.head(reads, logits);
            }
            let launches = planner.done();
            self.counts.add(&launches);
            return self.device.launch(&launches).map_err(network_error);
        }
        if !self.plans.contains_key(&key) {
            let launches = self.plan(&key);
            let number = self.plans.len() as u64;
            self.plans.insert(key, Planned { number, launches });
        }
        let Planned { number, launches } = &self.plans[&key];
        self.counts.add(launches);
        if self.graphs {
            self.counts.graphs += 1;
            self.device.replay(*number, launches).map_err(network_error)
        } else {
            self.device.launch(launches).map_err(network_error)
        }
    }

    /// The launches of a step in which all rows run all layers.
    pub(super) fn plan(&self, key: &Key) -> Vec<omnidecode_kernels::cuda::Launch> {
        let mut planner = Planner::new(self, key.stretches);
        planner.whole(key);
        if key.reads > 0 {
            planner.head(key.reads, true);
        }
        planner.done()
    }

    /// Launches of a step of `rows` rows of one sequence that reads one of them: `(all, a layer)`.
    pub fn launches(&self, rows: usize) -> (usize, usize) {
        let key = Key { rows, tiles: rows, stretches: 1, reads: 1 };
        let all = self.plan(&key).len();
        (all, (all - 5).div_ceil(self.model.layers.len().max(1)))
    }

    fn floats(
        &mut self,
        of: impl Fn(&super::memory::Arena) -> &omnidecode_kernels::cuda::Buffer,
        count: usize,
    ) -> Result<Vec<f32>, NetworkError> {
        let mut bytes = vec![0; count * 4];
        self.device.read(of(&self.arena), 0, &mut bytes).map_err(network_error)?;
        Ok(f32::from_bytes(&bytes))
    }

    /// What came back, in one copy: whether all rows were finite, what was found, asked log-probabilities, and the largest
    /// where some are wanted.
    fn back(
        &mut self,
        step: &Step,
        rows: usize,
        reads: std::ops::Range<usize>,
        logits: bool,
    ) -> Result<Back, NetworkError> {
        let parts = self.arena.parts;
        let tops = step.reads[reads.clone()].iter().any(|r| r.top > 0 && r.top <= TOP);
        let end = match (logits, tops) {
            (false, _) => rows * 4,
            (true, false) => parts.tops,
            (true, true) => parts.tops + reads.len() * TOP * size_of::<Candidate>(),
        };
        let mut bytes = vec![0; end];
        self.device.read(&self.arena.outputs, 0, &mut bytes).map_err(network_error)?;
        let bad = u32::from_bytes(&bytes[..rows * 4]);
        if let Some((row, &layer)) = bad.iter().enumerate().filter(|b| *b.1 != NONE).min_by_key(|b| *b.1) {
            return Err(NetworkError::NotFinite { row, layer: layer as usize });
        }
        let mut back = Back { found: Vec::new(), tops: Vec::new(), logprobs: Vec::new(), normed: Vec::new() };
        if logits {
            back.found = Found::from_bytes(&bytes[parts.found..][..reads.len() * size_of::<Found>()]);
            back.logprobs = f32::from_bytes(&bytes[parts.logprobs..][..step.asked.len() * 4]);
            back.tops = Candidate::from_bytes(&bytes[parts.tops..]);
        }
        let layers = self.model.layers.len();
        if step.taps.iter().any(|t| t.layer == layers) {
            back.normed = self.floats(|arena| &arena.normed, reads.len() * self.config.hidden)?;
        }
        Ok(back)
    }

    fn deliver(
        &mut self,
        step: &Step,
        (index, i): (usize, usize),
        back: &Back,
        beside: &Beside<'_>,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        let read = &step.reads[index];
        let (width, layers) = (self.config.hidden, self.model.layers.len());
        let mut hidden = Vec::new();
        let first = step.taps.partition_point(|t| t.row < read.row);
        for (t, tap) in step.taps.iter().enumerate().skip(first).take_while(|(_, t)| t.row == read.row) {
            let state = if tap.layer == layers { &back.normed[i * width..] } else { &beside.taps[t * width..] };
            hidden.extend_from_slice(&state[..width]);
        }
        let mut mass = Vec::new();
        let first = step.masses.partition_point(|m| m.row < read.row);
        for (m, _) in step.masses.iter().enumerate().skip(first).take_while(|(_, m)| m.row == read.row) {
            mass.extend_from_slice(&beside.masses[beside.ranges[m].clone()]);
        }
        let mut reading = Reading { hidden: &hidden, mass: &mass, ..Reading::default() };
        if !wants_logits(read) {
            each(index, reading);
            return Ok(());
        }
        let found = back.found[i];
        let error = match found.state {
            0 => None,
            1 => Some(PickError::NotFinite),
            _ => Some(PickError::Empty),
        };
        let mut row = if travels(read) { self.logits(i)? } else { Vec::new() };
        if read.stats || !read.asked.is_empty() || read.logprob {
            let Found { argmax, max, second, lse, entropy, .. } = found;
            reading.stats = Stats { argmax, max, second, lse, entropy };
        }
        let mut top: Vec<(Token, f32)> = Vec::new();
        if read.top > TOP {
            pick::top_k(&row, read.top, &mut top);
        } else if read.top > 0 {
            let mine = back.tops[i * TOP..][..read.top].iter().filter(|c| c.id != NONE);
            top.extend(mine.map(|c| (c.id, c.logit)));
        }
        let asked = &back.logprobs[read.asked.clone()];
        // The row before it is bent gives the log-probability of what is chosen behind.
        let raw = if read.bend && read.logprob { row.clone() } else { Vec::new() };
        if read.bend {
            bend(index, &mut row);
        }
        let chosen = match &read.choice {
            None => error.map_or(Ok(None), Err),
            Some(_) if chooses(read) && !read.bend => error.map_or(Ok(Some((found.choice, found.logprob))), Err),
            Some(choice) => pick::sample(&row, &choice.warp, choice.key, &mut pick::Scratch::default()).map(|token| {
                let of = if raw.is_empty() { &row } else { &raw };
                Some((token, of[token as usize] - found.lse))
            }),
        };
        match chosen {
            Err(error) => reading = Reading { error: Some(error), ..Reading::default() },
            Ok(chosen) => {
                reading.choice = chosen.map(|c| c.0);
                reading.logprob = chosen.map_or(0.0, |c| if read.logprob { c.1 } else { 0.0 });
                (reading.top, reading.asked) = (&top, asked);
                reading.logits = if read.logits { &row } else { &[] };
            }
        }
        each(index, reading);
        Ok(())
    }

    /// A row of logits, copied to the host.
    fn logits(&mut self, i: usize) -> Result<Vec<f32>, NetworkError> {
        self.counts.host_rows += 1;
        let vocab = self.config.vocab;
        let mut bytes = vec![0; vocab * 4];
        self.device.read(&self.arena.logits, i * vocab * 4, &mut bytes).map_err(network_error)?;
        Ok(f32::from_bytes(&bytes))
    }
}
