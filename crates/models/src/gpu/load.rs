//! From weights on disk to a device: each tensor is packed on the host and copied once.
use super::memory::Arena;
use super::model::{Angles, Before, Experts, Feed, Inner, Layer, Linear, Model, Norm};
use super::{GpuDecoder, Options, network_error};
use crate::config::{self, Activation, NormKind, NormPlacement, QkNorm, RopeLayout};
use crate::decoder::{adapts, card};
use crate::error::{ModelError, Result};
use crate::files::{Field, Part, Weights};
use omnidecode_kernels::cuda::args::{self, Plain, TOP};
use omnidecode_kernels::cuda::pack::pack;
use omnidecode_kernels::cuda::{Address, Buffer, Device};
use omnidecode_kernels::dtype::Dtype;
use omnidecode_kernels::kv::KvDtype;
use omnidecode_kernels::rope::{Rope, RopeLayout as Pairing};
use std::collections::HashMap;

/// Widest head that attention has a kernel for.
const WIDEST: usize = 256;

impl GpuDecoder {
    /// Put a model on a device.
    ///
    /// # Errors
    /// [`ModelError`] when a tensor is missing, the model is an adapter of another or has heads beyond 256, or the device's
    /// memory does not hold it.
    pub fn load(weights: &Weights, device: Box<dyn Device>, options: &Options) -> Result<GpuDecoder> {
        if let Some(layer) = weights.config().exit_layer {
            let found = format!("an adapter behind layer {layer} of another model");
            return Err(ModelError::unsupported("a model with an embedding and a head of its own", found));
        }
        Self::assemble(weights, None, device, options)
    }

    /// Put an adapter of `main` on a device of the same card: layers behind a norm, on the states that leave a layer of `main`,
    /// with its embedding and head, which are not copied.
    ///
    /// # Errors
    /// As [`GpuDecoder::load`], and [`ModelError::UnsupportedConfig`] when the weights are no adapter of this model.
    pub fn load_adapter(
        weights: &Weights,
        main: &GpuDecoder,
        device: Box<dyn Device>,
        options: &Options,
    ) -> Result<GpuDecoder> {
        adapts(weights.config(), &main.config)?;
        Self::assemble(weights, Some(main), device, options)
    }

    fn assemble(
        weights: &Weights,
        main: Option<&GpuDecoder>,
        mut device: Box<dyn Device>,
        options: &Options,
    ) -> Result<GpuDecoder> {
        weights.check()?;
        let mut config = weights.config().clone();
        if let Some(main) = main {
            // The head is the other model's, and so is what follows it.
            (config.logit_scale, config.final_softcap) = (main.config.logit_scale, main.config.final_softcap);
        }
        let refuse =
            |expected: &str, found: String| Err(ModelError::unsupported(format!("{expected} on a GPU"), found));
        if config.head_dim > WIDEST || !config.head_dim.is_multiple_of(8) {
            return refuse("heads of up to 256, a multiple of 8", format!("heads of {}", config.head_dim));
        }
        if let Some(experts) = config.experts.filter(|e| e.per_token > TOP) {
            return refuse("up to 64 experts for a row", format!("{}", experts.per_token));
        }
        let mut source = Source { weights, device: &mut *device, memory: Vec::new(), bytes: 0, idle: 0 };
        let model = source.model(main.map(|main| &main.model))?;
        let float = weights.part(None, Part::Embedding, Field::Weight).is_some_and(|t| t.dtype == Dtype::F32);
        let own = main.map_or(if float { KvDtype::F32 } else { KvDtype::F16 }, |main| main.kv_dtype);
        let library = !options.row_invariant && device.library().is_ok();
        let arena = Arena::new(&mut *device, &config, library).map_err(device_error)?;
        let unpacked = if library { model.largest_quantized() * 2 } else { 0 };
        let unpacked = device.alloc(unpacked).map_err(device_error)?;
        // Everything is there before another stream reads it.
        device.read(&arena.inputs, 0, &mut []).map_err(device_error)?;
        let mut card = card(&config, weights);
        card.bytes = model.row_bytes as u64;
        Ok(GpuDecoder {
            device,
            config,
            card,
            model,
            arena,
            store: None,
            kv_dtype: options.kv_dtype.unwrap_or(own),
            graphs: options.graphs,
            library,
            unpacked,
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
    /// Bytes of experts that a row leaves alone.
    idle: usize,
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
        self.linear_as(layer, part, bias, false)
    }
    /// `float`: as f32 numbers, whatever it is on disk.
    fn linear_as(&mut self, layer: Option<usize>, part: Part, bias: bool, float: bool) -> Result<Linear> {
        let tensor = self.weights.need(layer, part, Field::Weight)?;
        let (rows, columns) = (tensor.rows(), tensor.columns());
        let packed = if float && tensor.dtype.is_quantized() {
            pack(Dtype::F32, f32::bytes(&tensor.to_f32()?), rows, columns)
        } else {
            pack(tensor.dtype, &tensor.bytes, rows, columns)
        };
        self.weights.forget(&tensor); // or the file would stay in memory beside its packed form
        let packed = packed.map_err(|e| ModelError::Malformed {
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

    /// `main`: the model whose embedding and head an adapter uses.
    fn model(&mut self, main: Option<&Model>) -> Result<Model> {
        let config = self.weights.config().clone();
        let (embedding, head, head_bytes) = match main {
            Some(main) => (main.embedding, main.head, main.head_bytes),
            None => {
                let embedding = self.linear(None, Part::Embedding, false)?;
                let first = self.bytes;
                if config.tied {
                    (embedding, embedding, first)
                } else {
                    self.idle += first;
                    (embedding, self.linear(None, Part::Output, false)?, self.bytes - first)
                }
            }
        };
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
        let mut memory = vec![self.device.keep(std::mem::take(&mut self.memory))];
        memory.extend(main.iter().flat_map(|main| main.memory.clone()));
        let bytes = self.bytes;
        let row_bytes = bytes - self.idle + main.map_or(0, |main| main.head_bytes);
        Ok(Model { embedding, learned, layers, norm, head, angles, bytes, row_bytes, head_bytes, memory })
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
        // They are multiplied in one launch: on integers, or not.
        let float = self.mixed(index, [Part::Q, Part::K, Part::V].into_iter());
        let qkv = [
            self.linear_as(at, Part::Q, config.qkv_bias, float)?,
            self.linear_as(at, Part::K, config.qkv_bias, float)?,
            self.linear_as(at, Part::V, config.qkv_bias, float)?,
        ];
        let none = config.intermediate == 0 && !own.sparse;
        let feed = if none { None } else { Some(self.feed(index, post)?) };
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
        Ok(Feed {
            before: self.before(index, Part::FfnNorm)?,
            act: match config.activation {
                Activation::Silu => 0,
                Activation::Gelu => 1,
                Activation::GeluTanh => 2,
                Activation::Relu => 3,
                Activation::ReluSquared => 4,
            },
            inner: match config.experts.filter(|_| config.layers[index].sparse) {
                Some(experts) => Inner::Sparse(self.experts(index, experts)?),
                None => {
                    let gate = if config.gated { Some(Part::Gate) } else { None };
                    // Both are multiplied in one launch: on integers, or not.
                    let parts = gate.into_iter().chain([Part::Up]);
                    let float = self.mixed(index, parts);
                    let bias = config.mlp_bias;
                    Inner::Dense {
                        gate: gate.map(|part| self.linear_as(at, part, bias, float)).transpose()?,
                        up: self.linear_as(at, Part::Up, bias, float)?,
                        down: self.linear(at, Part::Down, bias)?,
                    }
                }
            },
            post: post(self, Part::FfnPostNorm)?,
        })
    }

    /// Whether some of these matrices are quantized and some are not.
    fn mixed(&self, layer: usize, parts: impl Iterator<Item = Part>) -> bool {
        let dtype = |part| self.weights.part(Some(layer), part, Field::Weight).map(|t| t.dtype.is_quantized());
        let kinds: Vec<bool> = parts.filter_map(dtype).collect();
        kinds.contains(&true) && kinds.contains(&false)
    }

    fn experts(&mut self, index: usize, experts: config::Experts) -> Result<Experts> {
        let at = Some(index);
        let router = self.linear(at, Part::Router, false)?;
        let before = self.bytes;
        let count = experts.count;
        let lifts = || (0..count).map(Part::ExpertGate).chain((0..count).map(Part::ExpertUp));
        let downs = || (0..count).map(Part::ExpertDown);
        let bank = |source: &mut Self, parts: &mut dyn Iterator<Item = Part>, float| -> Result<(Linear, Address)> {
            let all = parts.map(|part| source.linear_as(at, part, false, float)).collect::<Result<Vec<_>>>()?;
            let weights: Vec<args::Weights> = all.iter().map(|l| l.weights).collect();
            // They are multiplied in one launch, with rows in one form.
            let forms = all.iter().fold(0, |forms, l| forms | l.format.form());
            if !forms.is_power_of_two() {
                let found = format!("several in layer {index}");
                return Err(ModelError::unsupported("experts of one kind of number on a GPU", found));
            }
            Ok((all[0], source.put(args::Weights::bytes(&weights))?))
        };
        let float = self.mixed(index, lifts());
        let (up, lifts) = bank(self, &mut lifts(), float)?;
        let float = self.mixed(index, downs());
        let (down, downs) = bank(self, &mut downs(), float)?;
        let all = self.bytes - before;
        self.idle += all - all / count.max(1) * experts.per_token;
        let (per_token, normalize) = (experts.per_token, experts.normalize);
        Ok(Experts { router, count, per_token, normalize, up, down, lifts, downs })
    }
}
