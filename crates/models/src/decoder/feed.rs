//! The feed-forward part, dense.
use super::layer::{Feed, Layer, Linear};
use super::step::not_finite;
use super::{Decoder, Work, sized};
use crate::network::NetworkError;
use crate::step::{Clamp, ClampAction, Step};
use omnidecode_kernels::act::{self, Act};
use omnidecode_kernels::product::Job;
use omnidecode_kernels::rows::each_row3;

impl Decoder {
    /// `x += scale * norm(feed(norm(x)))`.
    pub(super) fn feed(
        &self,
        index: usize,
        layer: &Layer,
        step: &Step,
        work: &mut Work,
        x: &mut [f32],
    ) -> Result<(), NetworkError> {
        let rows = x.len() / self.config.hidden;
        let norm = layer.feed_norm.as_ref();
        match &layer.feed {
            Feed::None => Ok(()),
            Feed::Dense { act, gate, up, down } => {
                let form = gate.as_ref().map_or(up.weights.form(), |g| g.weights.form() | up.weights.form());
                self.prepare(index, &work.active, norm, x, rows, form, &mut work.h, &mut work.acts)?;
                let form = down.weights.form();
                let clamped = step.edits.iter().any(|(_, e)| e.clamps.iter().any(|c| c.layer as usize == index));
                let lifted = if clamped {
                    self.lift(index, *act, gate.as_ref(), up, step, work, rows);
                    let h = &work.gate[..rows * up.weights.n()];
                    work.lifted.load(&self.pool, h, rows, up.weights.n(), form)
                } else {
                    let to = work.lifted.begin(rows, up.weights.n(), form);
                    let job = match gate {
                        Some(gate) => Job::gated(gate, up, *act, &mut []),
                        None => Job::activated(up, *act, &mut []),
                    };
                    self.product(&work.acts, &mut [job.load(&to)]);
                    to.finish()
                };
                lifted.map_err(|bad| not_finite(&work.active, bad.row, index))?;
                self.join(down.into(), layer.feed_post.as_ref(), &work.lifted, &mut work.h, x);
                Ok(())
            }
            Feed::Sparse { act, router, experts, per_token, normalize } => {
                let form = experts.iter().fold(router.form(), |f, e| f | e.gate.form() | e.up.form());
                self.prepare(index, &work.active, norm, x, rows, form, &mut work.h, &mut work.acts)?;
                let choice = super::experts::Choice { act: *act, per_token: *per_token, normalize: *normalize };
                self.experts(index, router, experts, choice, layer.feed_post.as_ref(), work, x)
            }
        }
    }

    /// `work.gate = act(gate) * up`, or `act(up)` without a gate, neurons clamped where a request asks: values that are not
    /// clamped are those of the product that does it all.
    #[expect(clippy::too_many_arguments, reason = "the parts of a layer")]
    fn lift(
        &self,
        index: usize,
        act: Act,
        gate: Option<&Linear>,
        up: &Linear,
        step: &Step,
        work: &mut Work,
        rows: usize,
    ) {
        let wide = up.weights.n();
        let out = sized(&mut work.gate, rows * wide);
        let active = &work.active;
        let clamps = |row: usize| clamps(step, index, active.get(row).map_or(row, |&r| r as usize));
        let Some(gate) = gate else {
            self.product(&work.acts, &mut [Job::store(up, out)]);
            return omnidecode_kernels::rows::each_row(&self.pool, rows, &mut work.gate, wide, &|row, out| {
                clamps(row).for_each(|c| c.lift(out));
                act::apply(act, out);
                clamps(row).for_each(|c| c.post(out));
            });
        };
        let lifted = sized(&mut work.up, rows * wide);
        self.product(&work.acts, &mut [Job::store(gate, out), Job::store(up, lifted)]);
        let (out, lifted) = (&mut work.gate[..], &mut work.up[..]);
        each_row3(&self.pool, rows, (out, wide), (lifted, wide), (&mut [], 0), &|row, out, up, _| {
            clamps(row).for_each(|c| c.lift(up));
            let gate = out.to_vec();
            act::gate(act, &gate, up, out);
            clamps(row).for_each(|c| c.post(out));
        });
    }
}

/// The clamps of one row in one layer.
fn clamps(step: &Step, layer: usize, row: usize) -> impl Iterator<Item = &Clamp> {
    let mine = move |segment: usize| step.segments[segment].rows.contains(&row);
    let edits = step.edits.iter().filter(move |(s, _)| mine(*s));
    let place = step.rows[row].place;
    edits.flat_map(|(_, e)| &e.clamps).filter(move |c| c.layer as usize == layer && c.from <= place)
}

impl Clamp {
    fn lift(&self, up: &mut [f32]) {
        let Some(x) = up.get_mut(self.neuron as usize) else {
            return;
        };
        match self.action {
            ClampAction::Set => *x = self.value,
            ClampAction::Add => *x += self.value,
            ClampAction::Scale => *x *= self.value,
            ClampAction::Post => {}
        }
    }
    fn post(&self, product: &mut [f32]) {
        if let (ClampAction::Post, Some(x)) = (self.action, product.get_mut(self.neuron as usize)) {
            *x = self.value;
        }
    }
}
