//! One set of names for the parts of a decoder, whatever names a file uses.
use super::tensor::Tensor;
use super::weights::Weights;
use crate::config::{Config, NormPlacement, QkNorm};
use crate::error::{ModelError, Result};
use std::ops::Range;

/// A part of the decoder. Matrices are `[out, in]`. Fused tensors (Phi-3's `qkv_proj`, GPT-2's `c_attn`, stacked
/// experts) are given in their parts, as views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Token embedding, `[vocab, hidden]`.
    Embedding,
    /// Learned position embedding, `[positions, hidden]`.
    Position,
    /// Norm after the last layer, `[hidden]`.
    OutputNorm,
    /// Head, `[vocab, hidden]`; the embedding where it is tied.
    Output,
    /// Norm before attention.
    AttnNorm,
    /// Norm of what attention adds (sandwich and post placement).
    AttnPostNorm,
    /// Query product, `[heads · head_dim, hidden]`.
    Q,
    /// Key product, `[kv_heads · head_dim, hidden]`.
    K,
    /// Value product, `[kv_heads · head_dim, hidden]`.
    V,
    /// Attention output product, `[hidden, heads · head_dim]`.
    O,
    /// Norm of queries.
    QNorm,
    /// Norm of keys.
    KNorm,
    /// Norm before the feed-forward part.
    FfnNorm,
    /// Norm of what the feed-forward part adds.
    FfnPostNorm,
    /// Gate product, `[intermediate, hidden]`.
    Gate,
    /// Up product, `[intermediate, hidden]`.
    Up,
    /// Down product, `[hidden, intermediate]`.
    Down,
    /// Expert router, `[experts, hidden]`.
    Router,
    /// Gate product of an expert.
    ExpertGate(usize),
    /// Up product of an expert.
    ExpertUp(usize),
    /// Down product of an expert.
    ExpertDown(usize),
}

/// Which tensor of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// The matrix, or a norm's scale.
    Weight,
    /// What is added.
    Bias,
}
impl Field {
    fn suffix(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
        }
    }
}

/// A way to name the tensors of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// `model.layers.N.self_attn.q_proj.weight`, and so on; a prefix before `layers`.
    Llama(&'static str),
    /// `transformer.h.N.attn.c_attn.weight`; matrices are `[in, out]`.
    Gpt2(&'static str),
    /// `model.transformer.blocks.N.q_proj.weight`.
    Llada,
    /// `blk.N.attn_q.weight`.
    Gguf,
}

impl Scheme {
    /// The scheme by the name of the embedding.
    pub(super) fn detect(has: impl Fn(&str) -> bool) -> Option<Self> {
        const LLAMA: [&str; 4] = [
            "model.",
            "model.language_model.",
            "language_model.model.",
            "",
        ];
        const GPT2: [&str; 2] = ["transformer.", ""];
        if has("token_embd.weight") {
            return Some(Self::Gguf);
        }
        if has("model.transformer.wte.weight") {
            return Some(Self::Llada);
        }
        let llama = LLAMA
            .iter()
            .find(|p| has(&format!("{p}embed_tokens.weight")))
            .map(|p| Self::Llama(p));
        llama.or_else(|| {
            GPT2.iter()
                .find(|p| has(&format!("{p}wte.weight")))
                .map(|p| Self::Gpt2(p))
        })
    }
}

/// Where a part lies: a tensor's name without its suffix, and what is done to it.
struct Place {
    stem: String,
    /// The stem is the whole name: stacked experts of transformers 5 have no suffix.
    bare: bool,
    transposed: bool,
    expert: Option<usize>,
    slice: Option<Range<usize>>,
}

fn at(stem: impl Into<String>) -> Place {
    Place {
        stem: stem.into(),
        bare: false,
        transposed: false,
        expert: None,
        slice: None,
    }
}

impl Place {
    fn rows(mut self, start: usize, length: usize) -> Self {
        self.slice = Some(start..start + length);
        self
    }
    fn conv(mut self) -> Self {
        self.transposed = true;
        self
    }
    fn of(mut self, expert: usize) -> Self {
        self.expert = Some(expert);
        self
    }
    fn bare(mut self) -> Self {
        self.bare = true;
        self
    }
}

fn places(scheme: Scheme, config: &Config, layer: Option<usize>, part: Part) -> Vec<Place> {
    match (scheme, layer) {
        (Scheme::Llama(prefix), None) => match part {
            Part::Embedding => vec![at(format!("{prefix}embed_tokens"))],
            Part::OutputNorm => vec![at(format!("{prefix}norm"))],
            Part::Output => vec![
                at("lm_head"),
                at("language_model.lm_head"),
                at(format!("{prefix}lm_head")),
            ],
            _ => vec![],
        },
        (Scheme::Gpt2(prefix), None) => match part {
            Part::Embedding => vec![at(format!("{prefix}wte"))],
            Part::Position => vec![at(format!("{prefix}wpe"))],
            Part::OutputNorm => vec![at(format!("{prefix}ln_f"))],
            Part::Output => vec![at("lm_head")],
            _ => vec![],
        },
        (Scheme::Llada, None) => match part {
            Part::Embedding => vec![at("model.transformer.wte")],
            Part::OutputNorm => vec![at("model.transformer.ln_f")],
            Part::Output => vec![at("model.transformer.ff_out")],
            _ => vec![],
        },
        (Scheme::Gguf, None) => match part {
            Part::Embedding => vec![at("token_embd")],
            Part::Position => vec![at("position_embd")],
            Part::OutputNorm => vec![at("output_norm")],
            Part::Output => vec![at("output")],
            _ => vec![],
        },
        (Scheme::Llama(prefix), Some(n)) => llama(&format!("{prefix}layers.{n}."), config, part),
        (Scheme::Gpt2(prefix), Some(n)) => gpt2(&format!("{prefix}h.{n}."), config, part),
        (Scheme::Llada, Some(n)) => llada(&format!("model.transformer.blocks.{n}."), config, part),
        (Scheme::Gguf, Some(n)) => gguf(&format!("blk.{n}."), config, part),
    }
}

/// Rows of queries, and of keys or values.
fn widths(c: &Config) -> (usize, usize) {
    (c.heads * c.head_dim, c.kv_heads * c.head_dim)
}

fn llama(l: &str, c: &Config, part: Part) -> Vec<Place> {
    let pre = c.norm_placement == NormPlacement::Pre;
    let (q, kv) = widths(c);
    let wide = c.experts.map_or(0, |e| e.intermediate);
    let one = |name: &str| vec![at(format!("{l}{name}"))];
    let fused = |name: &str, fused: &str, start, length| {
        vec![
            at(format!("{l}{name}")),
            at(format!("{l}{fused}")).rows(start, length),
        ]
    };
    // Three ways to keep experts: by name (Qwen), by number (Mixtral), stacked in one tensor (transformers 5).
    let expert = |e: usize, name: &str, number: &str, stack: &str| {
        vec![
            at(format!("{l}mlp.experts.{e}.{name}")),
            at(format!("{l}block_sparse_moe.experts.{e}.{number}")),
            at(format!("{l}mlp.experts.{stack}")).bare().of(e),
            at(format!("{l}block_sparse_moe.experts.{stack}"))
                .bare()
                .of(e),
        ]
    };
    match part {
        Part::AttnNorm => one("input_layernorm"),
        Part::AttnPostNorm if !pre => one("post_attention_layernorm"),
        Part::FfnNorm if pre => one("post_attention_layernorm"),
        Part::FfnNorm => one("pre_feedforward_layernorm"),
        Part::FfnPostNorm => one("post_feedforward_layernorm"),
        Part::Q => fused("self_attn.q_proj", "self_attn.qkv_proj", 0, q),
        Part::K => fused("self_attn.k_proj", "self_attn.qkv_proj", q, kv),
        Part::V => fused("self_attn.v_proj", "self_attn.qkv_proj", q + kv, kv),
        Part::O => one("self_attn.o_proj"),
        Part::QNorm => one("self_attn.q_norm"),
        Part::KNorm => one("self_attn.k_norm"),
        Part::Gate => fused("mlp.gate_proj", "mlp.gate_up_proj", 0, c.intermediate),
        Part::Up => fused(
            "mlp.up_proj",
            "mlp.gate_up_proj",
            c.intermediate,
            c.intermediate,
        ),
        Part::Down => one("mlp.down_proj"),
        Part::Router => vec![
            at(format!("{l}mlp.gate")),
            at(format!("{l}block_sparse_moe.gate")),
        ],
        Part::ExpertGate(e) => expert(e, "gate_proj", "w1", "gate_up_proj")
            .into_iter()
            .map(|p| if p.bare { p.rows(0, wide) } else { p })
            .collect(),
        Part::ExpertUp(e) => expert(e, "up_proj", "w3", "gate_up_proj")
            .into_iter()
            .map(|p| if p.bare { p.rows(wide, wide) } else { p })
            .collect(),
        Part::ExpertDown(e) => expert(e, "down_proj", "w2", "down_proj"),
        _ => vec![],
    }
}

fn gpt2(l: &str, c: &Config, part: Part) -> Vec<Place> {
    let (q, kv) = widths(c);
    let one = |name: &str| vec![at(format!("{l}{name}"))];
    let conv = |name: &str| at(format!("{l}{name}")).conv();
    match part {
        Part::AttnNorm => one("ln_1"),
        Part::FfnNorm => one("ln_2"),
        Part::Q => vec![conv("attn.c_attn").rows(0, q)],
        Part::K => vec![conv("attn.c_attn").rows(q, kv)],
        Part::V => vec![conv("attn.c_attn").rows(q + kv, kv)],
        Part::O => vec![conv("attn.c_proj")],
        Part::Up => vec![conv("mlp.c_fc")],
        Part::Down => vec![conv("mlp.c_proj")],
        _ => vec![],
    }
}

fn llada(l: &str, c: &Config, part: Part) -> Vec<Place> {
    let (q, kv) = widths(c);
    let one = |name: &str| vec![at(format!("{l}{name}"))];
    let fused = |name: &str, start, length| {
        vec![
            at(format!("{l}{name}")),
            at(format!("{l}att_proj")).rows(start, length),
        ]
    };
    match part {
        Part::AttnNorm => one("attn_norm"),
        Part::FfnNorm => one("ff_norm"),
        Part::Q => fused("q_proj", 0, q),
        Part::K => fused("k_proj", q, kv),
        Part::V => fused("v_proj", q + kv, kv),
        Part::QNorm => one("q_norm"),
        Part::KNorm => one("k_norm"),
        Part::O => one("attn_out"),
        Part::Gate => one("ff_proj"),
        Part::Up => one("up_proj"),
        Part::Down => one("ff_out"),
        _ => vec![],
    }
}

fn gguf(l: &str, c: &Config, part: Part) -> Vec<Place> {
    let (q, kv) = widths(c);
    let one = |name: &str| vec![at(format!("{l}{name}"))];
    let fused = |name: &str, start, length| {
        vec![
            at(format!("{l}{name}")),
            at(format!("{l}attn_qkv")).rows(start, length),
        ]
    };
    // Experts in one tensor, or (older files) one by one.
    let expert = |e: usize, name: &str| {
        vec![
            at(format!("{l}{name}_exps")).of(e),
            at(format!("{l}{name}.{e}")),
        ]
    };
    match part {
        Part::AttnNorm => one("attn_norm"),
        Part::AttnPostNorm => one("post_attention_norm"),
        Part::FfnNorm => one("ffn_norm"),
        Part::FfnPostNorm => one("post_ffw_norm"),
        Part::Q => fused("attn_q", 0, q),
        Part::K => fused("attn_k", q, kv),
        Part::V => fused("attn_v", q + kv, kv),
        Part::O => one("attn_output"),
        Part::QNorm => one("attn_q_norm"),
        Part::KNorm => one("attn_k_norm"),
        // Without `ffn_gate`, `ffn_up` holds gate and up, one above the other (phi3).
        Part::Gate => vec![
            at(format!("{l}ffn_gate")),
            at(format!("{l}ffn_up")).rows(0, c.intermediate),
        ],
        Part::Up => one("ffn_up"),
        Part::Down => one("ffn_down"),
        Part::Router => one("ffn_gate_inp"),
        Part::ExpertGate(e) => expert(e, "ffn_gate"),
        Part::ExpertUp(e) => expert(e, "ffn_up"),
        Part::ExpertDown(e) => expert(e, "ffn_down"),
        _ => vec![],
    }
}

impl Weights {
    /// A part of the decoder, of `layer` or (`None`) outside the layers. `None` if the files hold no such tensor, or
    /// one whose sizes contradict the configuration; [`Weights::check`] tells which.
    pub fn part(&self, layer: Option<usize>, part: Part, field: Field) -> Option<Tensor<'_>> {
        let config = self.config();
        if part == Part::Output && config.tied {
            return self.part(None, Part::Embedding, field);
        }
        let expected = shape(config, part, field)?;
        places(self.scheme(), config, layer, part)
            .into_iter()
            .find_map(|place| self.cut(place, part, field, &expected))
    }

    fn cut(
        &self,
        place: Place,
        part: Part,
        field: Field,
        expected: &[usize],
    ) -> Option<Tensor<'_>> {
        let name = if place.bare {
            place.stem
        } else {
            format!("{}.{}", place.stem, field.suffix())
        };
        let mut tensor = self.tensor(&name).ok()?;
        if let Some(expert) = place.expert {
            tensor = tensor.layer(expert)?;
        }
        let matrix = tensor.shape.len() == 2;
        if matrix
            && (place.transposed
                || place.expert.is_some()
                    && tensor.columns() != expected.last().copied()?
                    && tensor.rows() == expected.last().copied()?)
        {
            tensor = tensor.transposed()?;
        }
        let rows = *expected.first()?;
        let twice = self.scheme() == Scheme::Gguf
            && part == Part::Up
            && tensor.shape.first() == Some(&(2 * rows));
        let slice = if twice {
            Some(rows..2 * rows)
        } else {
            place.slice
        };
        if let Some(range) = slice {
            tensor = tensor.slice(range)?;
        }
        (tensor.shape == expected).then_some(tensor)
    }

    /// The part, or what is wrong with it.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::TensorShape`] or [`ModelError::UnsupportedDtype`].
    pub fn need(&self, layer: Option<usize>, part: Part, field: Field) -> Result<Tensor<'_>> {
        if let Some(tensor) = self.part(layer, part, field) {
            return Ok(tensor);
        }
        let config = self.config();
        let expected = shape(config, part, field).unwrap_or_default();
        for place in places(self.scheme(), config, layer, part) {
            let name = if place.bare {
                place.stem.clone()
            } else {
                format!("{}.{}", place.stem, field.suffix())
            };
            match self.tensor(&name) {
                Ok(found) => {
                    return Err(ModelError::TensorShape {
                        tensor: name,
                        expected,
                        found: found.shape,
                    });
                }
                Err(error @ ModelError::UnsupportedDtype { .. }) => return Err(error),
                Err(_) => {}
            }
        }
        let layer = layer.map_or(String::new(), |n| format!(" of layer {n}"));
        Err(ModelError::MissingTensor {
            expected: format!("the {} of {part:?}{layer}, {expected:?}", field.suffix()),
            found: format!("{} tensors", self.names().count()),
        })
    }

    /// Fail unless every tensor that the configuration calls for is there in its right sizes.
    ///
    /// # Errors
    /// As [`Weights::need`].
    pub fn check(&self) -> Result<()> {
        let config = self.config();
        let scopes = std::iter::once(None).chain((0..config.layers.len()).map(Some));
        for layer in scopes {
            for (part, field) in required(config, layer) {
                self.need(layer, part, field)?;
            }
        }
        Ok(())
    }
}

/// Everything that a configuration calls for, outside the layers (`None`) or in one.
pub(super) fn required(c: &Config, layer: Option<usize>) -> Vec<(Part, Field)> {
    let mut parts = Vec::new();
    let layered = c.norm == crate::config::NormKind::Layer;
    let norm = |part, parts: &mut Vec<_>| {
        parts.push((part, Field::Weight));
        if layered {
            parts.push((part, Field::Bias));
        }
    };
    let Some(n) = layer else {
        parts.push((Part::Embedding, Field::Weight));
        parts.push((Part::Output, Field::Weight));
        if c.learned_positions.is_some() {
            parts.push((Part::Position, Field::Weight));
        }
        norm(Part::OutputNorm, &mut parts);
        return parts;
    };
    if c.norm_placement != NormPlacement::Post {
        norm(Part::AttnNorm, &mut parts);
        norm(Part::FfnNorm, &mut parts);
    }
    if c.norm_placement != NormPlacement::Pre {
        norm(Part::AttnPostNorm, &mut parts);
        norm(Part::FfnPostNorm, &mut parts);
    }
    if c.qk_norm != QkNorm::None {
        norm(Part::QNorm, &mut parts);
        norm(Part::KNorm, &mut parts);
    }
    let product = |part, bias: bool, parts: &mut Vec<_>| {
        parts.push((part, Field::Weight));
        if bias {
            parts.push((part, Field::Bias));
        }
    };
    for part in [Part::Q, Part::K, Part::V] {
        product(part, c.qkv_bias, &mut parts);
    }
    product(Part::O, c.o_bias, &mut parts);
    match c.experts.filter(|_| c.layers[n].sparse) {
        Some(experts) => {
            product(Part::Router, false, &mut parts);
            for e in 0..experts.count {
                for part in [Part::ExpertGate(e), Part::ExpertUp(e), Part::ExpertDown(e)] {
                    product(part, false, &mut parts);
                }
            }
        }
        None => {
            if c.gated {
                product(Part::Gate, c.mlp_bias, &mut parts);
            }
            product(Part::Up, c.mlp_bias, &mut parts);
            product(Part::Down, c.mlp_bias, &mut parts);
        }
    }
    parts
}

/// The sizes that a configuration asks of a part.
fn shape(c: &Config, part: Part, field: Field) -> Option<Vec<usize>> {
    let (q, kv) = widths(c);
    let (out, inner) = match part {
        Part::Embedding | Part::Output => (c.vocab, c.hidden),
        Part::Position => (c.learned_positions?, c.hidden),
        Part::OutputNorm
        | Part::AttnNorm
        | Part::AttnPostNorm
        | Part::FfnNorm
        | Part::FfnPostNorm => return Some(vec![c.hidden]),
        Part::QNorm => {
            return Some(vec![if c.qk_norm == QkNorm::Whole {
                q
            } else {
                c.head_dim
            }]);
        }
        Part::KNorm => {
            return Some(vec![if c.qk_norm == QkNorm::Whole {
                kv
            } else {
                c.head_dim
            }]);
        }
        Part::Q => (q, c.hidden),
        Part::K | Part::V => (kv, c.hidden),
        Part::O => (c.hidden, q),
        Part::Gate | Part::Up => (c.intermediate, c.hidden),
        Part::Down => (c.hidden, c.intermediate),
        Part::Router => (c.experts?.count, c.hidden),
        Part::ExpertGate(_) | Part::ExpertUp(_) => (c.experts?.intermediate, c.hidden),
        Part::ExpertDown(_) => (c.hidden, c.experts?.intermediate),
    };
    Some(match field {
        Field::Weight => vec![out, inner],
        Field::Bias => vec![out],
    })
}
