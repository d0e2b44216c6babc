//! `generation_config.json`: the author's sampling defaults and end tokens.
use super::fields::Fields;
use crate::error::{ModelError, Result};
use serde_json::Value;

/// What the author of a model proposes; `None` where nothing is said. The engine's own defaults stand where a field is
/// `None`, and a request's parameters stand above both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Whether to sample; `Some(false)` or `None` means greedy in transformers.
    pub do_sample: Option<bool>,
    /// Temperature.
    pub temperature: Option<f32>,
    /// Nucleus mass.
    pub top_p: Option<f32>,
    /// Number of largest logits kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// Least share of the largest probability.
    pub min_p: Option<f32>,
    /// Locally typical mass.
    pub typical_p: Option<f32>,
    /// Repetition penalty.
    pub repetition_penalty: Option<f32>,
    /// Most new tokens.
    pub max_new_tokens: Option<usize>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// Token that opens a sequence.
    pub bos: Option<u32>,
    /// Padding token.
    pub pad: Option<u32>,
}

impl GenerationConfig {
    /// Read the JSON of a `generation_config.json`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a field of the wrong type or out of range.
    pub fn from_json(json: &Value) -> Result<Self> {
        let f = Fields::new(json, "")?;
        let within = |key: &'static str, least: f64, most: f64| -> Result<Option<f32>> {
            match f.number(&[key])? {
                Some(x) if !(least..=most).contains(&x) => {
                    Err(ModelError::config(key, format!("a number from {least} to {most}"), x))
                }
                found => Ok(found.map(|x| x as f32)),
            }
        };
        Ok(Self {
            do_sample: f.boolean(&["do_sample"])?,
            temperature: within("temperature", 0.0, 1e6)?,
            top_p: within("top_p", 0.0, 1.0)?,
            top_k: f.size(&["top_k"])?,
            min_p: within("min_p", 0.0, 1.0)?,
            typical_p: within("typical_p", 0.0, 1.0)?,
            repetition_penalty: within("repetition_penalty", 1e-6, 1e6)?,
            max_new_tokens: f.size(&["max_new_tokens"])?,
            eos: f.tokens(&["eos_token_id"])?,
            bos: f.token(&["bos_token_id"])?,
            pad: f.token(&["pad_token_id"])?,
        })
    }
}
