//! One set of names for the parts of a decoder, whatever names a file uses.
use super::names::{Place, Scheme, places, widths};
use super::tensor::Tensor;
use super::weights::Weights;
use crate::config::{Config, NormPlacement, QkNorm};
use crate::error::{ModelError, Result};

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
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
        }
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
        places(self.scheme(), config, layer, part).into_iter().find_map(|place| self.cut(place, part, field, &expected))
    }

    fn cut(&self, place: Place, part: Part, field: Field, expected: &[usize]) -> Option<Tensor<'_>> {
        let name = if place.bare { place.stem } else { format!("{}.{}", place.stem, field.suffix()) };
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
        let twice = self.scheme() == Scheme::Gguf && part == Part::Up && tensor.shape.first() == Some(&(2 * rows));
        let slice = if twice { Some(rows..2 * rows) } else { place.slice };
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
            let name = if place.bare { place.stem.clone() } else { format!("{}.{}", place.stem, field.suffix()) };
            match self.tensor(&name) {
                Ok(found) => {
                    return Err(ModelError::TensorShape { tensor: name, expected, found: found.shape });
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

    /// Everything that the configuration calls for and the files hold, outside the layers (`None`) or in one.
    pub fn parts(&self, layer: Option<usize>) -> impl Iterator<Item = (Part, Field, Tensor<'_>)> {
        let parts = required(self.config(), layer);
        parts.into_iter().filter_map(move |(part, field)| Some((part, field, self.part(layer, part, field)?)))
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
fn required(c: &Config, layer: Option<usize>) -> Vec<(Part, Field)> {
    let mut parts = Vec::new();
    let layered = c.norm == crate::config::NormKind::Layer;
    let norm = |part, parts: &mut Vec<_>| {
        parts.push((part, Field::Weight));
        if layered {
            parts.push((part, Field::Bias));
        }
    };
    let Some(n) = layer else {
        if c.exit_layer.is_none() {
            parts.push((Part::Embedding, Field::Weight));
            parts.push((Part::Output, Field::Weight));
        }
        if c.learned_positions.is_some() {
            parts.push((Part::Position, Field::Weight));
        }
        norm(Part::OutputNorm, &mut parts);
        return parts;
    };
    let fed = c.intermediate > 0 || c.layers[n].sparse;
    if c.norm_placement != NormPlacement::Post {
        norm(Part::AttnNorm, &mut parts);
        if fed {
            norm(Part::FfnNorm, &mut parts);
        }
    }
    if c.norm_placement != NormPlacement::Pre {
        norm(Part::AttnPostNorm, &mut parts);
        if fed {
            norm(Part::FfnPostNorm, &mut parts);
        }
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
        None if !fed => {}
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
        Part::OutputNorm | Part::AttnNorm | Part::AttnPostNorm | Part::FfnNorm | Part::FfnPostNorm => {
            return Some(vec![c.hidden]);
        }
        Part::QNorm => {
            return Some(vec![if c.qk_norm == QkNorm::Whole { q } else { c.head_dim }]);
        }
        Part::KNorm => {
            return Some(vec![if c.qk_norm == QkNorm::Whole { kv } else { c.head_dim }]);
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
