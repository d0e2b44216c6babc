//! The feed-forward part, sparse: each row goes to the experts that its router prefers.
use super::layer::{Expert, Norm};
use super::step::not_finite;
use super::{Decoder, Work, sized};
use crate::network::NetworkError;
use omnidecode_kernels::act::Act;
use omnidecode_kernels::activations::Activations;
use omnidecode_kernels::matrix::Matrix;
use omnidecode_kernels::product::Job;

/// How experts are chosen and applied.
pub(super) struct Choice {
    pub act: Act,
    pub per_token: usize,
    pub normalize: bool,
}

/// Buffers of a sparse layer.
#[derive(Default)]
pub(super) struct Route {
    scores: Vec<f32>,
    /// Rows of each expert.
    rows: Vec<Vec<u32>>,
    /// Weight of each of those rows.
    weights: Vec<Vec<f32>>,
    acts: Activations,
    down: Vec<f32>,
    sum: Vec<f32>,
}

impl Decoder {
    /// `x += scale * norm(sum over the chosen experts, in the order of their index)`.
    #[expect(clippy::too_many_arguments, reason = "the parts of a layer")]
    pub(super) fn experts(
        &self,
        index: usize,
        router: &Matrix,
        experts: &[Expert],
        choice: Choice,
        post: Option<&Norm>,
        work: &mut Work,
        x: &mut [f32],
    ) -> Result<(), NetworkError> {
        let width = self.config.hidden;
        let rows = x.len() / width;
        let mut route = std::mem::take(&mut work.route);
        let scores = sized(&mut route.scores, rows * experts.len());
        self.product(&work.acts, &mut [Job::store(router, scores)]);
        route.choose(experts.len(), rows, &choice);
        sized(&mut route.sum, rows * width).fill(0.0);
        let mut bad = None;
        for (e, expert) in experts.iter().enumerate() {
            let mine = &route.rows[e];
            if mine.is_empty() {
                continue;
            }
            let wide = expert.up.n();
            let lifted = route.acts.begin(mine.len(), wide, expert.down.form());
            let job = Job::gated(&expert.gate, &expert.up, choice.act, &mut []).of_rows(mine);
            self.product(&work.acts, &mut [job.load(&lifted)]);
            if let Err(found) = lifted.finish() {
                bad.get_or_insert(mine[found.row] as usize);
            }
            let down = sized(&mut route.down, mine.len() * width);
            self.product(&route.acts, &mut [Job::store(&expert.down, down)]);
            for ((&row, &weight), y) in mine.iter().zip(&route.weights[e]).zip(route.down.chunks_exact(width)) {
                let sum = &mut route.sum[row as usize * width..][..width];
                sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += weight * y);
            }
        }
        let sum = &mut route.sum[..rows * width];
        match post {
            Some(norm) => self.add_normed(norm, sum, x),
            None => {
                let scale = self.config.residual_scale;
                x.iter_mut().zip(&*sum).for_each(|(x, y)| *x += scale * y);
            }
        }
        work.route = route;
        bad.map_or(Ok(()), |row| Err(not_finite(&work.active, row, index)))
    }
}

impl Route {
    /// The experts of each row: the largest softmax weights, lower index first on a tie.
    fn choose(&mut self, experts: usize, rows: usize, choice: &Choice) {
        self.rows.resize_with(experts, Vec::new);
        self.weights.resize_with(experts, Vec::new);
        self.rows.iter_mut().for_each(Vec::clear);
        self.weights.iter_mut().for_each(Vec::clear);
        let mut order: Vec<usize> = Vec::with_capacity(experts);
        for row in 0..rows {
            let scores = &mut self.scores[row * experts..(row + 1) * experts];
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|s| *s = (*s - max).exp());
            let all: f32 = scores.iter().sum();
            order.clear();
            order.extend(0..experts);
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            order.truncate(choice.per_token);
            let chosen: f32 = order.iter().map(|&e| scores[e]).sum();
            let total = if choice.normalize { chosen } else { all };
            for &e in &order {
                self.rows[e].push(row as u32);
                self.weights[e].push(scores[e] / total);
            }
        }
    }
}
