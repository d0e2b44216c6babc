//! What every configuration must satisfy before anything is sized by it.
use super::{Attention, Config, RopeScaling};
use crate::error::{ModelError, Result};

/// Each size must be from 1 to its limit.
pub(crate) fn sizes(sizes: &[(&str, usize, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
        None => Ok(()),
        Some((name, size, most)) => Err(ModelError::config(*name, format!("a size from 1 to {most}"), size)),
    }
}

impl Config {
    /// Fail on sizes that cannot be: zero or absurd, heads that do not divide, frequencies that do not fit.
    pub(crate) fn check(&self) -> Result<()> {
        const WIDE: usize = 1 << 24;
        sizes(&[
            ("vocab_size", self.vocab, WIDE),
            ("hidden_size", self.hidden, 1 << 20),
            ("num_hidden_layers", self.layers.len(), 1 << 12),
            ("num_attention_heads", self.heads, 1 << 14),
            ("num_key_value_heads", self.kv_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 16),
            ("intermediate_size", self.intermediate.max(1), WIDE),
            ("max_position_embeddings", self.context, 1 << 31),
        ])?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ModelError::config(
                "num_key_value_heads",
                format!("a divisor of the {} heads", self.heads),
                self.kv_heads,
            ));
        }
        sizes(&[("num_attention_heads · head_dim", self.heads * self.head_dim, WIDE)])?;
        let positive = |name: &str, value: f32| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(ModelError::config(name, "a finite number above 0", value))
            }
        };
        positive("rms_norm_eps", self.norm_eps)?;
        positive("embedding_multiplier", self.embedding_scale)?;
        positive("residual_multiplier", self.residual_scale)?;
        positive("1 / logits_scaling", self.logit_scale)?;
        self.attention_softcap.map_or(Ok(()), |cap| positive("attn_logit_softcapping", cap))?;
        self.final_softcap.map_or(Ok(()), |cap| positive("final_logit_softcapping", cap))?;
        for layer in &self.layers {
            positive("the attention scale", layer.attention_scale)?;
            sizes(&[("sliding_window", layer.window.unwrap_or(1), usize::MAX)])?;
        }
        for rope in &self.ropes {
            rope.check(self.head_dim)?;
        }
        if let Some(experts) = self.experts {
            sizes(&[
                ("num_experts", experts.count, 1 << 14),
                ("num_experts_per_tok", experts.per_token, experts.count),
                ("moe_intermediate_size", experts.intermediate, WIDE),
            ])?;
        }
        if let Attention::Block(size) = self.attention {
            sizes(&[("block_size", size, 1 << 16)])?;
        }
        if self.logit_shift > 1 {
            return Err(ModelError::config("logit_shift", "0 or 1", self.logit_shift));
        }
        let tokens = self.eos.iter().chain(&self.bos).chain(&self.pad).chain(&self.mask);
        match tokens.into_iter().find(|id| **id as usize >= self.vocab) {
            Some(id) => Err(ModelError::config(
                "a special token id",
                format!("an id below the vocabulary's {}", self.vocab),
                id,
            )),
            None => Ok(()),
        }
    }
}

impl super::RopeSpec {
    fn check(&self, head_dim: usize) -> Result<()> {
        let rotary = self.rotary;
        if rotary < 2 || !rotary.is_multiple_of(2) || rotary > head_dim {
            return Err(ModelError::config(
                "the rotary part of a head",
                format!("an even number from 2 to head_dim ({head_dim})"),
                rotary,
            ));
        }
        let positive = |name: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(ModelError::config(name, "a finite number above 0", value))
            }
        };
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return Err(ModelError::config("rope_theta", "a finite number above 1", self.theta));
        }
        let divisors = |name: &str, list: &[f32]| {
            if list.len() == rotary / 2 && list.iter().all(|d| d.is_finite() && *d > 0.0) {
                Ok(())
            } else {
                Err(ModelError::config(name, format!("{} finite numbers above 0", rotary / 2), format!("{list:?}")))
            }
        };
        match &self.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            RopeScaling::Dynamic { factor, .. } if rotary == 2 => {
                Err(ModelError::config("rope_type", "another kind for a rotary part of 2", factor))
            }
            RopeScaling::Dynamic { factor, .. } if *factor >= 1.0 && factor.is_finite() => Ok(()),
            RopeScaling::Dynamic { factor, .. } => Err(ModelError::config("factor", "a finite number from 1", factor)),
            RopeScaling::Llama3 { factor, low, high, original } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low)?;
                positive("high_freq_factor - low_freq_factor", high - low)?;
                sizes(&[("original_max_position_embeddings", *original, 1 << 31)])
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention, .. } => {
                positive("factor", *factor)?;
                positive("beta_slow", *beta_slow)?;
                positive("beta_fast", *beta_fast)?;
                positive("attention_factor", *attention)?;
                sizes(&[("original_max_position_embeddings", *original, 1 << 31)])
            }
            RopeScaling::LongRope { short, long, original, attention } => {
                divisors("short_factor", short)?;
                divisors("long_factor", long)?;
                positive("attention_factor", *attention)?;
                sizes(&[("original_max_position_embeddings", *original, 1 << 31)])
            }
            RopeScaling::Divisors(list) => divisors("rope_freqs.weight", list),
        }
    }
}
