//! The weights of a layer, packed.
use crate::config::NormKind;
use omnidecode_kernels::act::Act;
use omnidecode_kernels::matrix::Matrix;
use omnidecode_kernels::norm::{self, Gain};
use omnidecode_kernels::product;

/// A norm with its weights.
pub(super) struct Norm {
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub kind: NormKind,
    pub eps: f32,
}
impl Norm {
    /// `x = norm(x)` for one row.
    pub fn in_place(&self, x: &mut [f32]) {
        match self.kind {
            NormKind::Layer => {
                let copy = x.to_vec();
                self.row(&copy, x);
            }
            _ => self.heads(x),
        }
    }
    /// `out = norm(x)` for one row.
    pub fn row(&self, x: &[f32], out: &mut [f32]) {
        match self.kind {
            NormKind::Rms => norm::rms_norm(x, &self.weight, Gain::Weight, self.eps, out),
            NormKind::RmsPlusOne => norm::rms_norm(x, &self.weight, Gain::PlusOne, self.eps, out),
            NormKind::Layer => norm::layer_norm(x, &self.weight, self.bias.as_deref(), self.eps, out),
        }
    }
    /// The same on each piece of `x` that is as long as the weights: every head, or the whole projection.
    pub fn heads(&self, x: &mut [f32]) {
        let gain = if self.kind == NormKind::RmsPlusOne { Gain::PlusOne } else { Gain::Weight };
        norm::rms_norm_heads(x, &self.weight, gain, self.eps);
    }
}

/// A product with an optional bias.
pub(super) struct Linear {
    pub weights: Matrix,
    pub bias: Option<Vec<f32>>,
}
impl<'a> From<&'a Linear> for product::Linear<'a> {
    fn from(linear: &'a Linear) -> Self {
        product::Linear { weights: &linear.weights, bias: linear.bias.as_deref() }
    }
}

/// An expert of a sparse feed-forward part.
pub(super) struct Expert {
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
}

/// The feed-forward part.
pub(super) enum Feed {
    /// None: the layer is attention only (a Kangaroo adapter).
    None,
    /// `down(act(gate x) * up x)`, or `down(act(up x))` without a gate.
    Dense { act: Act, gate: Option<Linear>, up: Linear, down: Linear },
    /// The rows go to the experts that the router gives the largest weight.
    Sparse { act: Act, router: Matrix, experts: Vec<Expert>, per_token: usize, normalize: bool },
}

/// A decoder layer.
pub(super) struct Layer {
    pub attn_norm: Option<Norm>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub o: Linear,
    pub attn_post: Option<Norm>,
    pub feed_norm: Option<Norm>,
    pub feed: Feed,
    pub feed_post: Option<Norm>,
    pub rope: Option<usize>,
    pub window: Option<usize>,
    pub scale: f32,
}
impl Layer {
    pub fn bytes(&self) -> usize {
        let attention: usize = [&self.q, &self.k, &self.v, &self.o].iter().map(|l| l.weights.bytes()).sum();
        attention
            + match &self.feed {
                Feed::None => 0,
                Feed::Dense { gate, up, down, .. } => {
                    gate.as_ref().map_or(0, |g| g.weights.bytes()) + up.weights.bytes() + down.weights.bytes()
                }
                Feed::Sparse { router, experts, .. } => {
                    let experts: usize = experts.iter().map(|e| e.gate.bytes() + e.up.bytes() + e.down.bytes()).sum();
                    router.bytes() + experts
                }
            }
    }
}

/// Learned positions, `[count, hidden]` floats.
pub(super) struct Positions(pub Vec<f32>);
