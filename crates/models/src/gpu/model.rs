//! A model as it lies on a device: addresses and sizes, no numbers.
use omnidecode_kernels::cuda::args;
use omnidecode_kernels::cuda::pack::Format;
use omnidecode_kernels::cuda::{Address, Kept};

/// A norm on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub weight: Address,
    pub bias: Address,
    pub layer_norm: bool,
    pub eps: f32,
    /// Numbers of its weight.
    pub width: usize,
}

/// What stands before a product of the residual stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Before {
    /// An RMS norm, which rides on the launches around.
    Rides(Norm),
    /// A norm with a launch of its own.
    Apart(Norm),
    /// None.
    Plain,
}

/// A product with an optional bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    pub weights: args::Weights,
    pub format: Format,
    pub bias: Address,
}

/// The feed-forward part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feed {
    pub before: Before,
    pub act: u32,
    pub inner: Inner,
    pub post: Option<Norm>,
}
/// What a feed-forward part multiplies with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Inner {
    Dense { gate: Option<Linear>, up: Linear, down: Linear },
    Sparse(Experts),
}
/// A mixture of experts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Experts {
    pub router: Linear,
    pub count: usize,
    pub per_token: usize,
    pub normalize: bool,
    /// Sizes and kind of every gate and up product, and of every down product.
    pub up: Linear,
    pub down: Linear,
    /// `count` gates, `count` ups; `count` downs.
    pub lifts: Address,
    pub downs: Address,
}

/// A layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub before: Before,
    pub qkv: [Linear; 3],
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub o: Linear,
    pub post: Option<Norm>,
    pub feed: Option<Feed>,
    pub rope: Option<usize>,
    pub window: Option<usize>,
    pub scale: f32,
}

/// Cosines and sines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Angles {
    pub table: Address,
    pub rotary: usize,
}

/// All weights.
pub(super) struct Model {
    pub embedding: Linear,
    pub learned: Option<(Address, usize)>,
    pub layers: Vec<Layer>,
    pub norm: Option<Norm>,
    pub head: Linear,
    pub angles: Vec<Angles>,
    /// Bytes of all weights.
    pub bytes: usize,
    /// Bytes that one row reads: of experts, those that it uses; the head, not the embedding.
    pub row_bytes: usize,
    pub head_bytes: usize,
    /// An adapter holds that of its model too.
    pub memory: Vec<Kept>,
}

impl Model {
    /// Numbers of the largest quantized matrix of the layers, experts aside: what the library would have unpacked.
    pub fn largest_quantized(&self) -> usize {
        let of_layer = |layer: &Layer| {
            let feed = match layer.feed.map(|feed| feed.inner) {
                Some(Inner::Dense { gate, up, down }) => [gate, Some(up), Some(down)],
                Some(Inner::Sparse(experts)) => [Some(experts.router), None, None],
                None => [None; 3],
            };
            let all = layer.qkv.into_iter().chain([layer.o]).chain(feed.into_iter().flatten());
            let size = |linear: Linear| (linear.weights.n * linear.weights.kp) as usize;
            all.filter(|linear| linear.format.is_quantized()).map(size).max().unwrap_or(0)
        };
        self.layers.iter().map(of_layer).max().unwrap_or(0)
    }
}
