//! ZeroTuning: the initial token's attention weight is scaled, per head (arXiv:2505.11739, sheet 29).
//!
//! Multiplying the weight of key 0 by gamma before renormalising equals adding ln(gamma) to its score: one bias a
//! (layer, head), applied at every prefill row and decode step. Gamma 1 brings no bias at all.
use super::{Attachment, Companion, CompanionCard, CompanionError, Context};
use omnidecode_engine::{Bias, Edits};

crate::params! {
    /// Factor on the attention weight of the initial token; above 1 flattens attention over the others, below 1 sharpens it.
    gamma: f64 = 1.0, within 0.0, 1e6;
    /// Query heads it is applied to; empty stands for all.
    heads: Vec<usize> = Vec::new(), within 0.0, 65535.0;
    /// Layers it is applied to; empty stands for all.
    layers: Vec<usize> = Vec::new(), within 0.0, 65535.0;
    /// Place of the initial token.
    place: usize = 0;
}

impl Companion for Params {
    const CARD: CompanionCard = CompanionCard {
        name: "zero-tuning",
        bends: "model",
        summary: "Scales the attention that the initial token receives, per layer and head.",
        source: "arXiv:2505.11739, sheet 29",
    };

    fn attach(self, to: &Context<'_>) -> Result<Attachment, CompanionError> {
        let unfit = |reason: String| Err(CompanionError::Unfit { name: Self::CARD.name, reason });
        if let Some(head) = self.heads.iter().find(|h| **h >= to.card.heads) {
            return unfit(format!("head {head} of a model with {} query heads", to.card.heads));
        }
        if let Some(layer) = self.layers.iter().find(|l| **l >= to.card.layers) {
            return unfit(format!("layer {layer} of a model with {} layers", to.card.layers));
        }
        if self.place >= to.prompt.len() {
            return unfit(format!("place {} of a prompt with {} tokens", self.place, to.prompt.len()));
        }
        if self.gamma == 0.0 {
            return unfit("gamma 0 would remove the only key that row 0 sees: give a small positive number".into());
        }
        if self.gamma == 1.0 {
            return Ok(Attachment::default());
        }
        let all =
            |chosen: &[usize], count: usize| if chosen.is_empty() { (0..count).collect() } else { chosen.to_vec() };
        let (heads, layers) = (all(&self.heads, to.card.heads), all(&self.layers, to.card.layers));
        let bias = |layer: usize, head: usize| Bias {
            layer: layer as u32,
            head: head as u32,
            place: self.place as u32,
            add: self.gamma.ln() as f32,
        };
        let biases = layers.iter().flat_map(|&l| heads.iter().map(move |&h| bias(l, h))).collect();
        Ok(Attachment { edits: Some(Edits { biases, clamps: Vec::new() }), ..Attachment::default() })
    }
}
