//! One decoder for all: Llama, Qwen, Gemma, Phi, OLMo, Granite, GPT-2, mixtures of experts, LLaDA, Dream, by config fields.
//!
//! The weights of a layer are read once a step for all rows. Rows are independent: what a row gives depends on its own
//! entry, its position and the keys it sees, never on what runs beside it (law 1 of the design).
mod attention;
mod experts;
mod feed;
mod head;
mod layer;
mod load;
mod step;

pub use load::Options;
#[cfg(feature = "cuda")]
pub(crate) use load::{adapts, card};
pub use omnidecode_kernels::kv::KvDtype;
pub use omnidecode_kernels::pool::default_threads;
pub use omnidecode_kernels::tier::Tier;

use crate::card::ModelCard;
use crate::config::Config;
use layer::{Layer, Norm, Positions};
use omnidecode_kernels::activations::Activations;
use omnidecode_kernels::kv::KvStore;
use omnidecode_kernels::matrix::Matrix;
use omnidecode_kernels::pool::Pool;
use omnidecode_kernels::rope::Rope;
use std::sync::Arc;

/// A decoder on the CPU with its KV store.
pub struct Decoder {
    config: Config,
    card: ModelCard,
    pool: Arc<Pool>,
    embedding: Arc<Matrix>,
    /// Learned positions (GPT-2), `[positions, hidden]`.
    positions: Option<Positions>,
    ropes: Vec<Rope>,
    layers: Vec<Layer>,
    norm: Option<Norm>,
    head: Arc<Matrix>,
    kv_dtype: KvDtype,
    kv: Option<KvStore>,
    work: Work,
}

impl Decoder {
    /// The model's description.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// The threads it runs on.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
    /// Bytes of packed weights held in memory.
    pub fn weight_bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        let head = if Arc::ptr_eq(&self.head, &self.embedding) { 0 } else { self.head.bytes() };
        self.embedding.bytes() + head + layers
    }
}

/// Buffers of a step, kept from step to step. `[rows, width]`, row-major.
#[derive(Default)]
struct Work {
    /// Residual stream of all rows.
    x: Vec<f32>,
    /// Residual stream of the rows of this layer, where those are not all rows.
    part: Vec<f32>,
    /// Normed rows.
    h: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// What attention or the feed-forward part gives back.
    y: Vec<f32>,
    /// Where neurons are clamped, `act(gate) * up` and `up`.
    gate: Vec<f32>,
    up: Vec<f32>,
    acts: Activations,
    /// What the feed-forward part's last product reads.
    lifted: Activations,
    sight: attention::Layout,
    /// Rows of the step that run in the current layer; empty stands for all.
    active: Vec<u32>,
    route: experts::Route,
    head: head::Buffers,
    taps: Vec<f32>,
    masses: Vec<f32>,
    /// Where the masses of each `Step::masses` entry lie.
    mass_ranges: Vec<std::ops::Range<usize>>,
}

/// `buffer[..len]`, grown when it is too short; old contents are whatever they were.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
