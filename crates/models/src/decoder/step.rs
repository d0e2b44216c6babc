//! A step, layer by layer.
use super::layer::{Layer, Norm};
use super::{Decoder, Work, attention, sized};
use crate::card::ModelCard;
use crate::network::{Network, NetworkError, PAGE};
use crate::step::{Entry, Reading, Step};
use omnidecode_kernels::activations::{Activations, Forms};
use omnidecode_kernels::kv::KvStore;
use omnidecode_kernels::product::{self, Job};
use omnidecode_kernels::rows::{each_row, each_row3};

impl Network for Decoder {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn reserve(&mut self, pages: usize, tail: usize) -> Result<(), NetworkError> {
        let heads = vec![self.config.kv_heads; self.layers.len()];
        let slots = pages * PAGE + tail;
        let store = KvStore::new(self.kv_dtype, &heads, self.config.head_dim, slots);
        self.kv = Some(store.map_err(|e| NetworkError::Memory(e.to_string()))?);
        Ok(())
    }

    fn run(
        &mut self,
        step: &Step,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        let mut kv = self.kv.take().ok_or_else(|| {
            NetworkError::Unsupported("expected `reserve` before the first step, found no KV store".into())
        })?;
        self.pool.pin_caller();
        let mut work = std::mem::take(&mut self.work);
        let result = self.forward(step, &mut work, &mut kv).and_then(|()| self.read(step, &mut work, bend, each));
        self.work = work;
        self.kv = Some(kv);
        result
    }

    fn copy(&mut self, moves: &[(u32, u32)]) {
        if let Some(kv) = &mut self.kv {
            kv.copy(moves);
        }
    }

    fn slot_bytes(&self) -> usize {
        2 * self.config.kv_heads * self.config.head_dim * self.layers.len() * self.kv_dtype.bytes()
    }
}

impl Decoder {
    fn forward(&self, step: &Step, work: &mut Work, kv: &mut KvStore) -> Result<(), NetworkError> {
        self.embed(step, work);
        let first = step.segments.iter().map(|s| s.layers.start).min().unwrap_or(0);
        let last = step.segments.iter().map(|s| s.layers.end).max().unwrap_or(0).min(self.layers.len());
        sized(&mut work.taps, step.taps.len() * self.config.hidden);
        work.masses.clear();
        work.mass_ranges.clear();
        work.mass_ranges.resize(step.masses.len(), 0..0);
        for index in first..last {
            self.tap(step, work, index);
            let turn = |s: &crate::step::Segment| s.layers.start == index || s.layers.end == index;
            if index == first || step.segments.iter().any(turn) {
                attention::stand(step, index, work, None);
            }
            if work.active.is_empty() && !work.sight.whole() {
                continue; // no segment passes this layer
            }
            if index + 1 == self.layers.len() && 2 * step.reads.len() < step.rows.len() {
                // What nobody reads leaves nothing of its last layer but keys and values.
                self.remember(index, step, work, kv)?;
                attention::stand(step, index, work, Some(&step.reads));
                if work.active.is_empty() {
                    continue;
                }
            }
            self.layer(index, step, work, kv)?;
        }
        self.tap(step, work, last);
        Ok(())
    }

    /// What every row enters with.
    fn embed(&self, step: &Step, work: &mut Work) {
        let width = self.config.hidden;
        let scale = self.config.embedding_scale;
        let x = sized(&mut work.x, step.rows.len() * width);
        each_row(&self.pool, step.rows.len(), x, width, &|row, x| {
            let entry = &step.rows[row];
            match &entry.entry {
                Entry::Token(token) => self.embed_token(*token, x),
                Entry::Embedding(at) | Entry::Hidden(at) => x.copy_from_slice(&step.vectors[*at..*at + width]),
                Entry::Mix(range) => {
                    x.fill(0.0);
                    let mut one = vec![0.0; width];
                    for &(token, weight) in &step.mixes[range.clone()] {
                        self.embed_token(token, &mut one);
                        x.iter_mut().zip(&one).for_each(|(x, e)| *x += weight * e);
                    }
                }
            }
            if matches!(entry.entry, Entry::Hidden(_)) {
                return;
            }
            if scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= scale);
            }
            if let Some(positions) = &self.positions {
                let at = (entry.position as usize * width).min(positions.0.len() - width);
                x.iter_mut().zip(&positions.0[at..at + width]).for_each(|(x, p)| *x += p);
            }
        });
    }

    /// The engine admits no token outside the vocabulary, so a refusal is a bug of ours.
    fn embed_token(&self, token: u32, out: &mut [f32]) {
        self.embedding.row(token as usize, out).expect("tokens were checked by the engine");
    }

    /// Keep the residual streams that are to be read before `layer`.
    fn tap(&self, step: &Step, work: &mut Work, layer: usize) {
        let width = self.config.hidden;
        for (i, tap) in step.taps.iter().enumerate() {
            if tap.layer == layer && layer < self.layers.len() {
                work.taps[i * width..(i + 1) * width].copy_from_slice(&work.x[tap.row * width..(tap.row + 1) * width]);
            }
        }
    }

    fn layer(&self, index: usize, step: &Step, work: &mut Work, kv: &mut KvStore) -> Result<(), NetworkError> {
        let width = self.config.hidden;
        let layer = &self.layers[index];
        let (mut x, rows) = self.enter(step, work);
        let result = self
            .attend(index, layer, step, work, kv, &mut x[..rows * width])
            .and_then(|()| self.feed(index, layer, step, work, &mut x[..rows * width]));
        if work.sight.whole() {
            work.x = x;
        } else {
            for (from, &to) in x.chunks_exact(width).zip(&work.active) {
                work.x[to as usize * width..][..width].copy_from_slice(from);
            }
            work.part = x;
        }
        result
    }

    /// The residual streams of the rows of this layer, in a buffer of `work` that is to be given back, and how many. Where
    /// not all rows run, those that do are gathered.
    fn enter(&self, step: &Step, work: &mut Work) -> (Vec<f32>, usize) {
        if work.sight.whole() {
            return (std::mem::take(&mut work.x), step.rows.len());
        }
        let width = self.config.hidden;
        let mut x = std::mem::take(&mut work.part);
        let part = sized(&mut x, work.active.len() * width);
        for (to, &from) in part.chunks_exact_mut(width).zip(&work.active) {
            to.copy_from_slice(&work.x[from as usize * width..][..width]);
        }
        (x, work.active.len())
    }

    /// Write the keys and values of the rows of a layer, and nothing else.
    fn remember(&self, index: usize, step: &Step, work: &mut Work, kv: &KvStore) -> Result<(), NetworkError> {
        let layer = &self.layers[index];
        let (x, rows) = self.enter(step, work);
        let forms = layer.k.weights.form() | layer.v.weights.form();
        let (norm, x_rows) = (layer.attn_norm.as_ref(), &x[..rows * self.config.hidden]);
        let ready = self.prepare(index, &work.active, norm, x_rows, rows, forms, &mut work.h, &mut work.acts);
        if work.sight.whole() {
            work.x = x;
        } else {
            work.part = x;
        }
        ready?;
        self.project(index, layer, step, work, kv, rows, false);
        Ok(())
    }

    /// Keys and values of the rows into the store, and their queries into `work.q` if they are wanted.
    #[expect(clippy::too_many_arguments, reason = "the parts of a layer")]
    fn project(
        &self,
        index: usize,
        layer: &Layer,
        step: &Step,
        work: &mut Work,
        kv: &KvStore,
        rows: usize,
        queries: bool,
    ) {
        let config = &self.config;
        let dim = config.head_dim;
        let (wide, narrow) = (if queries { config.heads * dim } else { 0 }, config.kv_heads * dim);
        let (q, k, v) =
            (sized(&mut work.q, rows * wide), sized(&mut work.k, rows * narrow), sized(&mut work.v, rows * narrow));
        let jobs = &mut [Job::store(&layer.k, k), Job::store(&layer.v, v), Job::store(&layer.q, q)];
        self.product(&work.acts, if queries { jobs } else { &mut jobs[..2] });
        let (q, k, v) = (&mut work.q[..], &mut work.k[..], &mut work.v[..]);
        let rope = layer.rope.map(|r| &self.ropes[r]);
        let active = &work.active;
        each_row3(&self.pool, rows, (q, wide), (k, narrow), (v, narrow), &|row, q, k, v| {
            let row = active.get(row).map_or(row, |&r| r as usize);
            let entry = &step.rows[row];
            if let (Some(qn), Some(kn)) = (&layer.q_norm, &layer.k_norm) {
                qn.heads(q);
                kn.heads(k);
            }
            if let Some(rope) = rope {
                rope.rotate(q, q.len() / dim, dim, entry.position);
                rope.rotate(k, config.kv_heads, dim, entry.position);
            }
            kv.write(index, entry.slot, k, v);
        });
    }

    fn attend(
        &self,
        index: usize,
        layer: &Layer,
        step: &Step,
        work: &mut Work,
        kv: &mut KvStore,
        x: &mut [f32],
    ) -> Result<(), NetworkError> {
        let config = &self.config;
        let wide = config.heads * config.head_dim;
        let rows = x.len() / config.hidden;
        let forms = layer.q.weights.form() | layer.k.weights.form() | layer.v.weights.form();
        self.prepare(index, &work.active, layer.attn_norm.as_ref(), x, rows, forms, &mut work.h, &mut work.acts)?;
        self.project(index, layer, step, work, kv, rows, true);
        self.look(index, layer, step, work, kv, rows);
        let form = layer.o.weights.form();
        let y = &work.y[..rows * wide];
        work.acts.load(&self.pool, y, rows, wide, form).map_err(|bad| not_finite(&work.active, bad.row, index))?;
        self.join((&layer.o).into(), layer.attn_post.as_ref(), &work.acts, &mut work.h, x);
        Ok(())
    }

    /// All jobs in one dispatch. Shapes were checked when the weights were loaded, so a refusal is a bug of ours.
    pub(super) fn product(&self, acts: &Activations, jobs: &mut [Job<'_>]) {
        product::product(&self.pool, acts, jobs).expect("shapes were checked at load");
    }

    /// `x += scale * norm(W acts + b)`: what attention and the feed-forward part give to the residual stream.
    pub(super) fn join(
        &self,
        linear: product::Linear<'_>,
        post: Option<&Norm>,
        acts: &Activations,
        h: &mut Vec<f32>,
        x: &mut [f32],
    ) {
        let scale = self.config.residual_scale;
        let Some(norm) = post else {
            return self.product(acts, &mut [Job::add(linear, scale, x)]);
        };
        let h = sized(h, x.len());
        self.product(acts, &mut [Job::store(linear, h)]);
        self.add_normed(norm, h, x);
    }

    /// `x += scale * norm(h)`; `h` becomes its norm.
    pub(super) fn add_normed(&self, norm: &Norm, h: &mut [f32], x: &mut [f32]) {
        let width = self.config.hidden;
        let scale = self.config.residual_scale;
        let rows = x.len() / width;
        each_row3(&self.pool, rows, (x, width), (h, width), (&mut [], 0), &|_, x, h, _| {
            norm.in_place(h);
            x.iter_mut().zip(&*h).for_each(|(x, h)| *x += scale * h);
        });
    }

    /// Norm the rows (where there is a norm here) and make them ready for products.
    #[expect(clippy::too_many_arguments, reason = "parts of `Work`, borrowed apart")]
    pub(super) fn prepare(
        &self,
        index: usize,
        active: &[u32],
        norm: Option<&Norm>,
        x: &[f32],
        rows: usize,
        forms: Forms,
        h: &mut Vec<f32>,
        acts: &mut Activations,
    ) -> Result<(), NetworkError> {
        let width = self.config.hidden;
        let loaded = match norm {
            None => acts.load(&self.pool, x, rows, width, forms),
            Some(norm) => {
                let h = sized(h, rows * width);
                acts.load_each(&self.pool, (rows, width), forms, h, width, &|row, h| {
                    norm.row(&x[row * width..][..width], h);
                    h
                })
            }
        };
        loaded.map_err(|bad| not_finite(active, bad.row, index))
    }
}

/// The error for row `bad` of the rows that run in layer `layer`.
pub(super) fn not_finite(active: &[u32], bad: usize, layer: usize) -> NetworkError {
    NetworkError::NotFinite { row: active.get(bad).map_or(bad, |&r| r as usize), layer }
}
