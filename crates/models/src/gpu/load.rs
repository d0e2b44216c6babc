//! From weights on disk to a device: each tensor is packed on the host and copied once.
use super::memory::Arena;
use super::{GpuDecoder, Options, network_error};
use crate::config::{Activation, NormKind, NormPlacement, QkNorm, RopeLayout};
use crate::decoder::card;
use crate::error::{ModelError, Result};
use crate::files::{Field, Part, Weights};
use omnidecode_kernels::cuda::args::{self, Plain};
use omnidecode_kernels::cuda::pack::{Format, pack};
use omnidecode_kernels::cuda::{Address, Buffer, Device};
use omnidecode_kernels::dtype::Dtype;
use omnidecode_kernels::kv::KvDtype;
use omnidecode_kernels::rope::{Rope, RopeLayout as Pairing};
use std::collections::HashMap;

/// Widest head that attention has a kernel for.
const WIDEST: usize = 256;

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

/// The dense feed-forward part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feed {
    pub before: Before,
    pub act: u32,
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
    pub post: Option<Norm>,
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
    pub bytes: usize,
    /// Freed with the device.
    _memory: Vec<Buffer>,
}

impl GpuDecoder {
    /// Put a model on a device.
    ///
    /// # Errors
    /// [`ModelError`] when a tensor is missing, the model has parts that the kernels do not serve (experts, adapters, heads
    /// beyond 256), or the device's memory does not hold it.
    pub fn load(weights: &Weights, mut device: Box<dyn Device>, options: &Options) -> Result<GpuDecoder> {
        weights.check()?;
        let config = weights.config().clone();
        let refuse =
            |expected: &str, found: String| Err(ModelError::unsupported(format!("{expected} on a GPU"), found));
        if let Some(layer) = config.exit_layer {
            return refuse("a whole model", format!("an adapter behind layer {layer} of another model"));
        }
        if config.layers.iter().any(|l| l.sparse) {
            return refuse("dense layers", "a mixture of experts".into());
        }
        if config.head_dim > WIDEST || !config.head_dim.is_multiple_of(8) {
            return refuse("heads of up to 256, a multiple of 8", format!("heads of {}", config.head_dim));
        }
        let mut source = Source { weights, device: &mut *device, memory: Vec::new(), bytes: 0 };
        let model = source.model()?;
        let float = weights.part(None, Part::Embedding, Field::Weight).is_some_and(|t| t.dtype == Dtype::F32);
        let kv_dtype = options.kv_dtype.unwrap_or(if float { KvDtype::F32 } else { KvDtype::F16 });
        let arena = Arena::new(&mut *device, &config).map_err(device_error)?;
        let mut card = card(&config, weights);
        card.bytes = model.bytes as u64;
        Ok(GpuDecoder {
            config,
            card,
            model,
            device,
            arena,
            store: None,
            kv_dtype,
            graphs: options.graphs,
            plans: HashMap::new(),
            failed: None,
            staging: Vec::new(),
            counts: super::Counts::default(),
        })
    }
}

fn device_error(error: omnidecode_kernels::cuda::DeviceError) -> ModelError {
    ModelError::Device(network_error(error).to_string())
}

struct Source<'a> {
    weights: &'a Weights,
    device: &'a mut dyn Device,
    memory: Vec<Buffer>,
    bytes: usize,
}
impl Source<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<Address> {
        if bytes.is_empty() {
            return Ok(Address(0));
        }
        let buffer = self.device.alloc(bytes.len()).map_err(device_error)?;
        self.device.write(&buffer, 0, bytes).map_err(device_error)?;
        let address = buffer.address();
        self.memory.push(buffer);
        Ok(address)
    }

    fn vector(&mut self, layer: Option<usize>, part: Part, field: Field) -> Result<(Address, usize)> {
        let values = self.weights.need(layer, part, field)?.to_f32()?;
        Ok((self.put(f32::bytes(&values))?, values.len()))
    }

    fn linear(&mut self, layer: Option<usize>, part: Part, bias: bool) -> Result<Linear> {
        let tensor = self.weights.need(layer, part, Field::Weight)?;
        let packed =
            pack(tensor.dtype, &tensor.bytes, tensor.rows(), tensor.columns()).map_err(|e| ModelError::Malformed {
                format: "weights",
                at: tensor.name.to_string(),
                expected: "a matrix that the kernels can pack".into(),
                found: e.to_string(),
            })?;
        self.bytes += packed.bytes();
        let weights = args::Weights {
            codes: self.put(&packed.codes)?,
            scales: self.put(&packed.scales)?,
            supers: self.put(&packed.supers)?,
            format: packed.format as u32,
            n: packed.n as u32,
            k: packed.k as u32,
            kp: packed.kp as u32,
        };
        let bias = if bias { self.vector(layer, part, Field::Bias)?.0 } else { Address(0) };
        Ok(Linear { weights, format: packed.format, bias })
    }

    fn norm(&mut self, layer: Option<usize>, part: Part) -> Result<Norm> {
        let config = self.weights.config();
        let (kind, eps) = (config.norm, config.norm_eps);
        let mut values = self.weights.need(layer, part, Field::Weight)?.to_f32()?;
        if kind == NormKind::RmsPlusOne {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        let bias = match self.weights.part(layer, part, Field::Bias) {
            Some(bias) => self.put(f32::bytes(&bias.to_f32()?))?,
            None => Address(0),
        };
        let layer_norm = kind == NormKind::Layer;
        Ok(Norm { weight: self.put(f32::bytes(&values))?, bias, layer_norm, eps, width: values.len() })
    }

    fn before(&mut self, layer: usize, part: Part) -> Result<Before> {
        if self.weights.config().norm_placement == NormPlacement::Post {
            return Ok(Before::Plain);
        }
        let norm = self.norm(Some(layer), part)?;
        Ok(if norm.layer_norm || norm.bias != Address(0) { Before::Apart(norm) } else { Before::Rides(norm) })
    }

    fn model(&mut self) -> Result<Model> {
        let config = self.weights.config().clone();
        let embedding = self.linear(None, Part::Embedding, false)?;
        let head = if config.tied { embedding } else { self.linear(None, Part::Output, false)? };
        let learned = match config.learned_positions {
            Some(count) => Some((self.vector(None, Part::Position, Field::Weight)?.0, count)),
            None => None,
        };
        let pairing = if config.rope_layout == RopeLayout::Halves { Pairing::Halves } else { Pairing::Interleaved };
        let mut angles = Vec::new();
        for spec in &config.ropes {
            let (frequencies, factor) = spec.inverse_frequencies(config.context);
            let rope = Rope::new(frequencies, factor, pairing);
            let table = self.put(f32::bytes(&rope.table(config.context)))?;
            angles.push(Angles { table, rotary: rope.rotary() });
        }
        let layers = (0..config.layers.len()).map(|l| self.layer(l)).collect::<Result<Vec<_>>>()?;
        let norm = Some(self.norm(None, Part::OutputNorm)?);
        let memory = std::mem::take(&mut self.memory);
        Ok(Model { embedding, learned, layers, norm, head, angles, bytes: self.bytes, _memory: memory })
    }

    fn layer(&mut self, index: usize) -> Result<Layer> {
        let config = self.weights.config().clone();
        let (own, at) = (&config.layers[index], Some(index));
        let after = config.norm_placement != NormPlacement::Pre;
        let post = |source: &mut Self, part| if after { source.norm(at, part).map(Some) } else { Ok(None) };
        let qk = |source: &mut Self, part| match config.qk_norm {
            QkNorm::None => Ok(None),
            _ => source.norm(at, part).map(Some),
        };
        let qkv = [
            self.linear(at, Part::Q, config.qkv_bias)?,
            self.linear(at, Part::K, config.qkv_bias)?,
            self.linear(at, Part::V, config.qkv_bias)?,
        ];
        let feed = if config.intermediate == 0 { None } else { Some(self.feed(index, post)?) };
        Ok(Layer {
            before: self.before(index, Part::AttnNorm)?,
            qkv,
            q_norm: qk(self, Part::QNorm)?,
            k_norm: qk(self, Part::KNorm)?,
            o: self.linear(at, Part::O, config.o_bias)?,
            post: post(self, Part::AttnPostNorm)?,
            feed,
            rope: own.rope,
            window: own.window,
            scale: own.attention_scale,
        })
    }

    fn feed(&mut self, index: usize, post: impl Fn(&mut Self, Part) -> Result<Option<Norm>>) -> Result<Feed> {
        let config = self.weights.config().clone();
        let at = Some(index);
        let gate = if config.gated { Some(self.linear(at, Part::Gate, config.mlp_bias)?) } else { None };
        let up = self.linear(at, Part::Up, config.mlp_bias)?;
        if let Some(gate) = &gate
            && gate.format.is_quantized() != up.format.is_quantized()
        {
            let found = format!("{:?} and {:?} in layer {index}", gate.format, up.format);
            return Err(ModelError::unsupported("gate and up products that are both quantized or both not", found));
        }
        Ok(Feed {
            before: self.before(index, Part::FfnNorm)?,
            act: match config.activation {
                Activation::Silu => 0,
                Activation::Gelu => 1,
                Activation::GeluTanh => 2,
                Activation::Relu => 3,
                Activation::ReluSquared => 4,
            },
            gate,
            up,
            down: self.linear(at, Part::Down, config.mlp_bias)?,
            post: post(self, Part::FfnPostNorm)?,
        })
    }
}
