//! From weights on disk to a decoder: each matrix is packed once, straight from the mapped file.
use super::layer::{Expert, Feed, Layer, Linear, Norm, Positions};
use super::{Decoder, Work};
use crate::card::ModelCard;
use crate::config::{Activation, Attention, Config, NormPlacement, QkNorm, RopeLayout};
use crate::error::{ModelError, Result};
use crate::files::{Field, Part, Tensor, Weights};
use omnidecode_kernels::act::Act;
use omnidecode_kernels::dtype::Dtype;
use omnidecode_kernels::kv::KvDtype;
use omnidecode_kernels::matrix::Matrix;
use omnidecode_kernels::pool::{Pool, default_threads};
use omnidecode_kernels::rope::{Rope, RopeLayout as Pairing};
use std::sync::Arc;

/// How a decoder is loaded.
#[derive(Clone, Default)]
pub struct Options {
    /// Threads to run on; `None`: [`default_threads`].
    pub threads: Option<usize>,
    /// The threads of a model that runs beside this one, to be shared.
    pub pool: Option<Arc<Pool>>,
    /// Number format of keys and values; `None`: f32 for a model in f32, f16 for one that norms queries and keys, else bf16
    /// where the processor multiplies pairs of it, else f16.
    pub kv_dtype: Option<KvDtype>,
}

impl Decoder {
    /// Pack the weights for this machine.
    ///
    /// # Errors
    /// [`ModelError`] when a tensor is missing or has another shape than the configuration says.
    pub fn load(weights: &Weights, options: &Options) -> Result<Decoder> {
        if let Some(layer) = weights.config().exit_layer {
            let found = format!("an adapter behind layer {layer} of another model");
            return Err(ModelError::unsupported("a model with an embedding and a head of its own", found));
        }
        Self::assemble(weights, options, None)
    }

    /// Pack an adapter of `main`: layers behind a norm, on the states that leave a layer of `main`, with its head. Rows
    /// are to enter as embeddings.
    ///
    /// # Errors
    /// As [`Decoder::load`], and [`ModelError::UnsupportedConfig`] when the weights are no adapter of this model.
    pub fn load_adapter(weights: &Weights, main: &Decoder, options: &Options) -> Result<Decoder> {
        adapts(weights.config(), &main.config)?;
        Self::assemble(weights, options, Some(main))
    }

    fn assemble(weights: &Weights, options: &Options, main: Option<&Decoder>) -> Result<Decoder> {
        weights.check()?;
        let mut config = weights.config().clone();
        if let Some(main) = main {
            // The head is the other model's, and so is what follows it.
            (config.logit_scale, config.final_softcap) = (main.config.logit_scale, main.config.final_softcap);
        }
        let threads = || Arc::new(Pool::new(options.threads.unwrap_or_else(default_threads)));
        let pool = options.pool.clone().unwrap_or_else(threads);
        let source = Source { weights, config: &config, pool: &pool };
        let (embedding, head) = match main {
            Some(main) => (main.embedding.clone(), main.head.clone()),
            None => {
                let embedding = Arc::new(source.matrix(None, Part::Embedding)?);
                let tied = config.tied.then(|| embedding.clone());
                (embedding, tied.map_or_else(|| source.matrix(None, Part::Output).map(Arc::new), Ok)?)
            }
        };
        let positions = match config.learned_positions {
            Some(_) => Some(Positions(source.need(None, Part::Position, Field::Weight)?.to_f32()?)),
            None => None,
        };
        let layers = (0..config.layers.len()).map(|l| source.layer(l)).collect::<Result<Vec<_>>>()?;
        let layout = match config.rope_layout {
            RopeLayout::Halves => Pairing::Halves,
            RopeLayout::Interleaved => Pairing::Interleaved,
        };
        let rope = |spec: &crate::config::RopeSpec| {
            let (frequencies, factor) = spec.inverse_frequencies(config.context);
            Rope::new(frequencies, factor, layout)
        };
        let float = weights.part(None, Part::Embedding, Field::Weight).is_some_and(|t| t.dtype == Dtype::F32);
        // On Gemma 3 270M, which norms queries and keys, the logits' distance from f32 grows from 0.25 to 0.44 (rms over the
        // top ten) with bf16; on SmolLM2 and Qwen2.5, which do not, it stays.
        let normed = layers.iter().any(|layer| layer.q_norm.is_some());
        let own = match (float, normed) {
            (true, _) => KvDtype::F32,
            (false, true) => KvDtype::F16,
            (false, false) => KvDtype::short(),
        };
        let kv_dtype = options.kv_dtype.unwrap_or(main.map_or(own, |main| main.kv_dtype));
        let mut decoder = Decoder {
            card: card(&config, weights),
            ropes: config.ropes.iter().map(rope).collect(),
            norm: source.norm(None, Part::OutputNorm)?,
            embedding,
            positions,
            layers,
            head,
            kv_dtype,
            kv: None,
            work: Work::default(),
            pool,
            config,
        };
        decoder.card.bytes = decoder.row_bytes() as u64;
        Ok(decoder)
    }

    /// Bytes of weights that one row reads: the layers with the experts it uses, and the head.
    fn row_bytes(&self) -> usize {
        let layers = self.layers.iter().map(|l| match &l.feed {
            Feed::Sparse { experts, per_token, .. } => {
                let all: usize = experts.iter().map(|e| e.gate.bytes() + e.up.bytes() + e.down.bytes()).sum();
                l.bytes() - all + all / experts.len().max(1) * per_token
            }
            _ => l.bytes(),
        });
        layers.sum::<usize>() + self.head.bytes()
    }
}

/// Whether `own` is an adapter of the model `theirs`.
pub(crate) fn adapts(own: &Config, theirs: &Config) -> Result<()> {
    let expected = || {
        let Config { hidden, vocab, layers, .. } = theirs;
        format!("an adapter for a model of width {hidden}, {vocab} tokens and {} layers", layers.len())
    };
    let fits = (own.hidden, own.vocab) == (theirs.hidden, theirs.vocab);
    let found = match own.exit_layer {
        Some(exit) if fits && (1..theirs.layers.len()).contains(&exit) => return Ok(()),
        Some(exit) => format!("one behind layer {exit}, of width {} and {} tokens", own.hidden, own.vocab),
        None => format!("a whole model ({})", own.architecture),
    };
    Err(ModelError::unsupported(expected(), found))
}

/// The facts of a model, its bytes left to who packs it.
pub(crate) fn card(config: &Config, weights: &Weights) -> ModelCard {
    ModelCard {
        vocab: config.vocab,
        hidden: config.hidden,
        layers: config.layers.len(),
        heads: config.heads,
        kv_heads: config.kv_heads,
        context: config.context,
        intermediate: config.experts.map_or(config.intermediate, |e| e.intermediate),
        bos: config.bos,
        eos: config.eos.clone(),
        mask: config.mask,
        exit_layer: config.exit_layer,
        pad: config.pad,
        shift: config.logit_shift,
        bidirectional: config.attention == Attention::Full,
        block: if let Attention::Block(n) = config.attention { Some(n) } else { None },
        bytes: 0,
        parameters: weights.parameters(),
    }
}

struct Source<'a> {
    weights: &'a Weights,
    config: &'a Config,
    pool: &'a Pool,
}

impl<'a> Source<'a> {
    fn need(&self, layer: Option<usize>, part: Part, field: Field) -> Result<Tensor<'a>> {
        self.weights.part(layer, part, field).ok_or_else(|| ModelError::MissingTensor {
            expected: match layer {
                Some(layer) => format!("{part:?} ({field:?}) of layer {layer}"),
                None => format!("{part:?} ({field:?})"),
            },
            found: format!("{} tensors", self.weights.names().count()),
        })
    }

    fn matrix(&self, layer: Option<usize>, part: Part) -> Result<Matrix> {
        let tensor = self.need(layer, part, Field::Weight)?;
        let packed = Matrix::pack_with(self.pool, tensor.dtype, &tensor.bytes, tensor.rows(), tensor.columns());
        self.weights.forget(&tensor); // or the file would stay in memory beside its packed form
        packed.map_err(|e| ModelError::Malformed {
            format: "weights",
            at: tensor.name.to_string(),
            expected: "a matrix that the kernels can pack".into(),
            found: e.to_string(),
        })
    }

    fn vector(&self, layer: Option<usize>, part: Part, field: Field) -> Result<Vec<f32>> {
        self.need(layer, part, field)?.to_f32()
    }

    fn linear(&self, layer: usize, part: Part, bias: bool) -> Result<Linear> {
        let bias = if bias { Some(self.vector(Some(layer), part, Field::Bias)?) } else { None };
        Ok(Linear { weights: self.matrix(Some(layer), part)?, bias })
    }

    fn norm(&self, layer: Option<usize>, part: Part) -> Result<Option<Norm>> {
        let weight = self.vector(layer, part, Field::Weight)?;
        let bias = self.weights.part(layer, part, Field::Bias).map(|t| t.to_f32()).transpose()?;
        Ok(Some(Norm { weight, bias, kind: self.config.norm, eps: self.config.norm_eps }))
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let config = self.config;
        let own = &config.layers[index];
        let at = Some(index);
        let norm = |wanted: bool, part| {
            if wanted { self.norm(at, part) } else { Ok(None) }
        };
        let before = config.norm_placement != NormPlacement::Post;
        let after = config.norm_placement != NormPlacement::Pre;
        let qk = config.qk_norm != QkNorm::None;
        let feed = self.feed(index)?;
        let fed = !matches!(feed, Feed::None);
        Ok(Layer {
            attn_norm: norm(before, Part::AttnNorm)?,
            q: self.linear(index, Part::Q, config.qkv_bias)?,
            k: self.linear(index, Part::K, config.qkv_bias)?,
            v: self.linear(index, Part::V, config.qkv_bias)?,
            q_norm: norm(qk, Part::QNorm)?,
            k_norm: norm(qk, Part::KNorm)?,
            o: self.linear(index, Part::O, config.o_bias)?,
            attn_post: norm(after, Part::AttnPostNorm)?,
            feed_norm: norm(before && fed, Part::FfnNorm)?,
            feed_post: norm(after && fed, Part::FfnPostNorm)?,
            feed,
            rope: own.rope,
            window: own.window,
            scale: own.attention_scale,
        })
    }

    fn feed(&self, index: usize) -> Result<Feed> {
        let config = self.config;
        let act = match config.activation {
            Activation::Silu => Act::Silu,
            Activation::Gelu => Act::Gelu,
            Activation::GeluTanh => Act::GeluTanh,
            Activation::Relu => Act::Relu,
            Activation::ReluSquared => Act::ReluSquared,
        };
        match config.experts.filter(|_| config.layers[index].sparse) {
            Some(experts) => Ok(Feed::Sparse {
                act,
                router: self.matrix(Some(index), Part::Router)?,
                experts: (0..experts.count)
                    .map(|e| {
                        Ok(Expert {
                            gate: self.matrix(Some(index), Part::ExpertGate(e))?,
                            up: self.matrix(Some(index), Part::ExpertUp(e))?,
                            down: self.matrix(Some(index), Part::ExpertDown(e))?,
                        })
                    })
                    .collect::<Result<_>>()?,
                per_token: experts.per_token,
                normalize: experts.normalize,
            }),
            None if config.intermediate == 0 => Ok(Feed::None),
            None => {
                let gate = if config.gated { Some(self.linear(index, Part::Gate, config.mlp_bias)?) } else { None };
                let up = self.linear(index, Part::Up, config.mlp_bias)?;
                Ok(Feed::Dense { act, gate, up, down: self.linear(index, Part::Down, config.mlp_bias)? })
            }
        }
    }
}
