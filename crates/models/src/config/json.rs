//! `config.json`, in the vocabulary of transformers 4 and 5.
//!
//! Fields decide. `model_type` only selects what a configuration leaves out: the defaults that transformers gives the
//! fields of that type, and the arithmetic that has no field (Gemma's norms, OLMo 2's placement).
use super::fields::Fields;
use super::positions::{ropes, windows};
use super::{Activation, Attention, Config, Experts, LayerConfig, NormKind, NormPlacement, QkNorm, RopeLayout};
use crate::error::{ModelError, Result};
use serde_json::Value;

/// What a `model_type` stands for where a configuration is silent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma,
    Gemma2,
    Gemma3,
    Phi3,
    Granite,
    Olmo2,
    Gpt2,
    SmolLm3,
    Llada,
    LladaMoe,
    Dream,
    Sdar,
    SdarMoe,
    Kangaroo,
}
use Family::*;

const FAMILIES: [(&str, Family); 21] = [
    ("llama", Llama),
    ("mistral", Mistral),
    ("mixtral", Mixtral),
    ("qwen2", Qwen2),
    ("qwen3", Qwen3),
    ("qwen3_moe", Qwen3Moe),
    ("gemma", Gemma),
    ("gemma2", Gemma2),
    ("gemma3_text", Gemma3),
    ("gemma3", Gemma3),
    ("phi3", Phi3),
    ("granite", Granite),
    ("olmo2", Olmo2),
    ("gpt2", Gpt2),
    ("smollm3", SmolLm3),
    ("llada", Llada),
    ("lladamoe", LladaMoe),
    ("Dream", Dream),
    ("sdar", Sdar),
    ("sdar_moe", SdarMoe),
    ("kangaroo", Kangaroo),
];

impl Family {
    pub(super) fn gemma(self) -> bool {
        matches!(self, Gemma | Gemma2 | Gemma3)
    }
    fn sparse(self) -> bool {
        matches!(self, Mixtral | Qwen3Moe | SdarMoe | LladaMoe)
    }
    pub(super) fn theta(self) -> f64 {
        match self {
            Gemma3 | Mixtral | Dream => 1e6,
            SmolLm3 => 2e6,
            _ => 1e4,
        }
    }
}

impl Config {
    /// Read the JSON of a `config.json`. A multimodal configuration gives its `text_config`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a field that is missing, of the wrong type or out of range;
    /// [`ModelError::UnsupportedConfig`] for a model of another kind.
    pub fn from_json(json: &Value) -> Result<Self> {
        let whole = Fields::new(json, "")?;
        let text = whole.object(&["text_config"])?;
        let fields = match text {
            Some(text) => Fields::new(text, "text_config")?,
            None => whole,
        };
        let name = fields.text(&["model_type"])?.or(whole.text(&["model_type"])?);
        let name =
            name.ok_or_else(|| ModelError::config("model_type", "the name of an architecture", "no such field"))?;
        let family = FAMILIES.iter().find(|(known, _)| *known == name).map(|(_, family)| *family).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().map(|(known, _)| *known).collect();
            ModelError::unsupported(format!("model_type of {}", known.join(", ")), format!("model_type `{name}`"))
        })?;
        // LLaDA-MoE calls itself `llada` too.
        let family = if family == Llada && fields.has("num_experts") { LladaMoe } else { family };
        let mut config = read(fields, family, name)?;
        if text.is_some() {
            config.eos.extend(whole.tokens(&["eos_token_id"])?);
            config.bos = config.bos.or(whole.token(&["bos_token_id"])?);
            config.pad = config.pad.or(whole.token(&["pad_token_id"])?);
        }
        config.eos.sort_unstable();
        config.eos.dedup();
        config.check()?;
        Ok(config)
    }
}

fn read(f: Fields<'_>, family: Family, name: &str) -> Result<Config> {
    let hidden = f.need(&["hidden_size", "n_embd", "d_model"])?;
    let count = f.need(&["num_hidden_layers", "n_layer", "n_layers"])?;
    let heads = f.need(&["num_attention_heads", "n_head", "n_heads"])?;
    super::check::sizes(&[
        ("hidden_size", hidden, 1 << 20),
        ("num_hidden_layers", count, 1 << 12),
        ("num_attention_heads", heads, 1 << 14),
    ])?;
    let kv_heads = f.size(&["num_key_value_heads", "n_kv_heads"])?.unwrap_or(match family {
        Mistral | Mixtral => 8.min(heads),
        _ => heads,
    });
    let head_dim = match f.size(&["head_dim"])? {
        Some(width) => width,
        None => match family {
            Gemma | Gemma2 | Gemma3 => 256,
            Qwen3 | Sdar => 128,
            _ if hidden.is_multiple_of(heads) => hidden / heads,
            _ => {
                return Err(ModelError::config(
                    "hidden_size",
                    format!("a multiple of num_attention_heads ({heads}), or a head_dim"),
                    hidden,
                ));
            }
        },
    };
    super::check::sizes(&[("head_dim", head_dim, 1 << 16), ("num_key_value_heads", kv_heads, 1 << 14)])?;
    let intermediate = match f.size(&["intermediate_size", "n_inner", "mlp_hidden_size", "dense_intermediate_size"])? {
        Some(width) => width,
        None if family == Llada => hidden * f.size(&["mlp_ratio"])?.unwrap_or(4).min(1 << 10),
        None if family == Gpt2 => 4 * hidden,
        None if family == Kangaroo => 0,
        None => f.need(&["intermediate_size"])?,
    };
    let context = f.size(&["max_position_embeddings", "n_positions", "max_sequence_length"])?.unwrap_or(2048);
    super::check::sizes(&[("max_position_embeddings", context, 1 << 31)])?;
    let default_scale = match family {
        Gemma2 | Gemma3 => f.number(&["query_pre_attn_scalar"])?.unwrap_or(256.0).powf(-0.5),
        Granite => f.number(&["attention_multiplier"])?.unwrap_or(1.0),
        Gpt2 if f.boolean(&["scale_attn_weights"])? == Some(false) => 1.0,
        _ => match f.number(&["query_pre_attn_scalar"])? {
            Some(scalar) => scalar.powf(-0.5),
            None => f.number(&["attention_multiplier"])?.unwrap_or((head_dim as f64).powf(-0.5)),
        },
    };
    let windows = windows(f, family, count)?;
    let (ropes, rope_of) = ropes(f, family, head_dim, context, &windows)?;
    let experts = experts(f, family, intermediate)?;
    let sparse = sparse_layers(f, family, count)?;
    let inverse = f.boolean(&["scale_attn_by_inverse_layer_idx"])? == Some(true);
    let layers = (0..count)
        .map(|i| LayerConfig {
            rope: rope_of[i],
            window: windows[i],
            attention_scale: (default_scale / if inverse { (i + 1) as f64 } else { 1.0 }) as f32,
            sparse: sparse[i],
        })
        .collect();
    let attention_bias = f.boolean(&["attention_bias", "include_bias"])?.unwrap_or(false);
    let softcap = |key: &'static str, default: Option<f64>| -> Result<Option<f32>> {
        let found = f.number(&[key])?;
        Ok(if f.has(key) { found } else { default }.map(|x| x as f32))
    };
    let vocab = f.size(&["embedding_size"])?.filter(|_| family == Llada).map_or_else(|| f.need(&["vocab_size"]), Ok)?;
    let (attention, logit_shift, mask) = diffusion(f, family, vocab)?;
    Ok(Config {
        architecture: name.to_string(),
        vocab,
        hidden,
        heads,
        kv_heads,
        head_dim,
        intermediate,
        activation: activation(f, family)?,
        gated: family != Gpt2,
        norm: match family {
            Gpt2 => NormKind::Layer,
            _ if family.gemma() => NormKind::RmsPlusOne,
            _ => NormKind::Rms,
        },
        norm_eps: f.number(&["rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"])?.unwrap_or(match family {
            Mistral | Mixtral | Olmo2 | Phi3 | Gpt2 | Llada | LladaMoe => 1e-5,
            _ => 1e-6,
        }) as f32,
        norm_placement: match family {
            Gemma2 | Gemma3 => NormPlacement::Sandwich,
            Olmo2 => NormPlacement::Post,
            _ => NormPlacement::Pre,
        },
        qk_norm: match family {
            Qwen3 | Qwen3Moe | Gemma3 | Sdar | SdarMoe => QkNorm::PerHead,
            LladaMoe if f.boolean(&["qk_layernorm"])? == Some(true) => QkNorm::PerHead,
            Olmo2 => QkNorm::Whole,
            _ => QkNorm::None,
        },
        ropes,
        rope_layout: RopeLayout::Halves,
        layers,
        attention,
        attention_softcap: softcap("attn_logit_softcapping", (family == Gemma2).then_some(50.0))?,
        final_softcap: softcap("final_logit_softcapping", (family == Gemma2).then_some(30.0))?,
        qkv_bias: match family {
            Gpt2 | Qwen2 | Dream => true,
            Llada => f.boolean(&["include_qkv_bias"])?.unwrap_or(attention_bias),
            Phi3 | Mistral | Mixtral => false,
            _ => attention_bias,
        },
        o_bias: match family {
            Gpt2 => true,
            Qwen2 | Dream | Phi3 | Mistral | Mixtral => false,
            _ => attention_bias,
        },
        mlp_bias: match family {
            Gpt2 => true,
            Llada => attention_bias,
            Llama | Granite | SmolLm3 => f.boolean(&["mlp_bias"])?.unwrap_or(false),
            _ => false,
        },
        exit_layer: match family {
            Kangaroo => Some(f.need(&["exit_layer"])?),
            _ => None,
        },
        tied: f
            .boolean(&["tie_word_embeddings", "weight_tying"])?
            .unwrap_or(family.gemma() || matches!(family, SmolLm3 | Gpt2)),
        embedding_scale: match family {
            _ if family.gemma() => (hidden as f32).sqrt(),
            _ => f.number(&["embedding_multiplier"])?.unwrap_or(1.0) as f32,
        },
        residual_scale: f.number(&["residual_multiplier"])?.unwrap_or(1.0) as f32,
        logit_scale: (1.0 / f.number(&["logits_scaling"])?.unwrap_or(1.0)) as f32,
        experts,
        learned_positions: (family == Gpt2).then_some(context),
        context,
        bos: f.token(&["bos_token_id"])?,
        eos: f.tokens(&["eos_token_id"])?,
        pad: f.token(&["pad_token_id"])?,
        mask,
        logit_shift,
    })
}

fn activation(f: Fields<'_>, family: Family) -> Result<Activation> {
    let name = match f.text(&["hidden_activation", "hidden_act", "activation_function", "activation_type"])? {
        // Gemma 1 wrote `gelu` for the approximation that it computes.
        Some("gelu") if family == Gemma => "gelu_pytorch_tanh",
        Some(name) => name,
        None if family.gemma() => "gelu_pytorch_tanh",
        None if family == Gpt2 => "gelu_new",
        None => "silu",
    };
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        "relu2" => Activation::ReluSquared,
        other => {
            return Err(ModelError::config(
                f.name("hidden_act"),
                "silu, gelu, gelu_pytorch_tanh, gelu_new, relu or relu2",
                other,
            ));
        }
    })
}

fn experts(f: Fields<'_>, family: Family, intermediate: usize) -> Result<Option<Experts>> {
    if !family.sparse() {
        return Ok(None);
    }
    let mixtral = family == Mixtral;
    if family == LladaMoe && f.size(&["shared_expert_intermediate_size"])?.is_some_and(|width| width > 0) {
        return Err(ModelError::unsupported("routed experts only", "`shared_expert_intermediate_size` above 0"));
    }
    Ok(Some(Experts {
        count: f.size(&["num_local_experts", "num_experts"])?.unwrap_or(if mixtral { 8 } else { 128 }),
        per_token: f.size(&["num_experts_per_tok"])?.unwrap_or(if mixtral { 2 } else { 8 }),
        normalize: if mixtral { true } else { f.boolean(&["norm_topk_prob"])?.unwrap_or(false) },
        intermediate: match f.size(&["moe_intermediate_size", "expert_intermediate_size"])? {
            _ if mixtral => intermediate,
            found => found.unwrap_or(768),
        },
    }))
}

fn sparse_layers(f: Fields<'_>, family: Family, count: usize) -> Result<Vec<bool>> {
    let step = f.size(&["decoder_sparse_step"])?.unwrap_or(1).max(1);
    let dense = f.list(&["mlp_only_layers"])?.unwrap_or(&[]);
    // LLaDA-MoE says of each layer whether it is sparse.
    let each = if family == LladaMoe { f.list(&["moe_layer_freq"])?.unwrap_or(&[]) } else { &[] };
    let is_dense = |i: usize| {
        dense.iter().any(|d| d.as_u64() == Some(i as u64)) || each.get(i).is_some_and(|flag| flag.as_u64() == Some(0))
    };
    Ok((0..count)
        .map(|i| match family {
            Mixtral => true,
            _ => family.sparse() && (i + 1).is_multiple_of(step) && !is_dense(i),
        })
        .collect())
}

/// Attention, logit shift and mask token: by their fields, else by what the published diffusion models do.
fn diffusion(f: Fields<'_>, family: Family, vocab: usize) -> Result<(Attention, usize, Option<u32>)> {
    let (kind, shift, mask) = match family {
        Llada => ("full", 0, Some(126_336)),
        LladaMoe => ("full", 0, Some(156_895)),
        Dream => ("full", 1, Some(151_666)),
        Sdar | SdarMoe => ("block", 0, Some(151_669)),
        Gemma3 if f.boolean(&["use_bidirectional_attention"])? == Some(true) => ("full", 1, None),
        _ => ("causal", 1, None),
    };
    let attention = match f.text(&["attention"])?.unwrap_or(kind) {
        "causal" => Attention::Causal,
        "full" => Attention::Full,
        "block" => Attention::Block(f.size(&["block_size"])?.unwrap_or(4)),
        other => {
            return Err(ModelError::config(f.name("attention"), "full, causal or block", other));
        }
    };
    Ok((
        attention,
        f.size(&["logit_shift"])?.unwrap_or(shift),
        f.token(&["mask_token_id"])?.or(mask.filter(|id| (*id as usize) < vocab)),
    ))
}
