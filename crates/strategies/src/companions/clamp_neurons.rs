//! Feature neurons: hold, move or scale single neurons of the feed-forward layers (arXiv:2501.02688, sheet 42).
//!
//! Which neuron stands for what is read off the weights (`omnidecode.neurons` maps them); here they are clamped while
//! the model runs, in prefill and decode alike.
use super::{Attachment, Companion, CompanionCard, CompanionError, Context};
use omnidecode_engine::{Clamp, ClampAction, Edits};

crate::params! {
    /// Neurons as layer, neuron pairs, one after the other.
    neurons: Vec<usize> = Vec::new();
    /// Values, one a neuron, or one for all.
    values: Vec<f64> = Vec::new();
    /// What is done: `set`, `add` or `scale` the up-projection, or `post`: set the gated product.
    mode: String = "set".into(), one_of "set", "add", "scale", "post";
    /// Whether the prompt's rows are clamped too; otherwise only generated positions.
    prompt: bool = true;
}

impl Companion for Params {
    const CARD: CompanionCard = CompanionCard {
        name: "clamp-neurons",
        bends: "model",
        summary: "Holds, moves or scales single feed-forward neurons.",
        source: "arXiv:2501.02688, sheet 42",
    };

    fn attach(self, to: &Context<'_>) -> Result<Attachment, CompanionError> {
        let unfit = |reason: String| Err(CompanionError::Unfit { name: Self::CARD.name, reason });
        if !self.neurons.len().is_multiple_of(2) {
            return unfit(format!(
                "`neurons` holds {} numbers, expected pairs of layer and neuron",
                self.neurons.len()
            ));
        }
        let count = self.neurons.len() / 2;
        if self.values.len() != count && !(self.values.len() == 1 && count > 0) {
            return unfit(format!("{} values for {count} neurons: give one each, or one for all", self.values.len()));
        }
        let action = match self.mode.as_str() {
            "set" => ClampAction::Set,
            "add" => ClampAction::Add,
            "scale" => ClampAction::Scale,
            _ => ClampAction::Post,
        };
        let from = if self.prompt { 0 } else { to.prompt.len() as u32 };
        let mut clamps = Vec::with_capacity(count);
        for (i, pair) in self.neurons.chunks_exact(2).enumerate() {
            let (layer, neuron) = (pair[0], pair[1]);
            if layer >= to.card.layers || neuron >= to.card.intermediate {
                let (layers, width) = (to.card.layers, to.card.intermediate);
                return unfit(format!("neuron {neuron} of layer {layer}: the model has {layers} layers of {width}"));
            }
            let value = self.values[if self.values.len() == 1 { 0 } else { i }] as f32;
            clamps.push(Clamp { layer: layer as u32, neuron: neuron as u32, from, action, value });
        }
        let edits = if clamps.is_empty() { None } else { Some(Edits { biases: Vec::new(), clamps }) };
        Ok(Attachment { edits, ..Attachment::default() })
    }
}
