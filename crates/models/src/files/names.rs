//! The names that files give to the parts of a decoder: of transformers, GPT-2, LLaDA and GGUF.
use super::parts::Part;
use crate::config::{Config, NormPlacement};
use std::ops::Range;

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
        const LLAMA: [&str; 4] = ["model.", "model.language_model.", "language_model.model.", ""];
        const GPT2: [&str; 2] = ["transformer.", ""];
        if has("token_embd.weight") {
            return Some(Self::Gguf);
        }
        if has("model.transformer.wte.weight") {
            return Some(Self::Llada);
        }
        let llama = LLAMA.iter().find(|p| has(&format!("{p}embed_tokens.weight")));
        // An adapter has no embedding.
        let layers = || LLAMA.iter().find(|p| has(&format!("{p}layers.0.self_attn.q_proj.weight")));
        llama
            .or_else(layers)
            .map(|p| Self::Llama(p))
            .or_else(|| GPT2.iter().find(|p| has(&format!("{p}wte.weight"))).map(|p| Self::Gpt2(p)))
    }
}

/// Where a part lies: a tensor's name without its suffix, and what is done to it.
pub(super) struct Place {
    pub(super) stem: String,
    /// The stem is the whole name: stacked experts of transformers 5 have no suffix.
    pub(super) bare: bool,
    pub(super) transposed: bool,
    pub(super) expert: Option<usize>,
    pub(super) slice: Option<Range<usize>>,
}

fn at(stem: impl Into<String>) -> Place {
    Place { stem: stem.into(), bare: false, transposed: false, expert: None, slice: None }
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

pub(super) fn places(scheme: Scheme, config: &Config, layer: Option<usize>, part: Part) -> Vec<Place> {
    match (scheme, layer) {
        (Scheme::Llama(prefix), None) => match part {
            Part::Embedding => vec![at(format!("{prefix}embed_tokens"))],
            Part::OutputNorm => vec![at(format!("{prefix}norm"))],
            Part::Output => vec![at("lm_head"), at("language_model.lm_head"), at(format!("{prefix}lm_head"))],
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
pub(super) fn widths(c: &Config) -> (usize, usize) {
    (c.heads * c.head_dim, c.kv_heads * c.head_dim)
}

fn llama(l: &str, c: &Config, part: Part) -> Vec<Place> {
    let pre = c.norm_placement == NormPlacement::Pre;
    let (q, kv) = widths(c);
    let wide = c.experts.map_or(0, |e| e.intermediate);
    let one = |name: &str| vec![at(format!("{l}{name}"))];
    let fused = |name: &str, fused: &str, start, length| {
        vec![at(format!("{l}{name}")), at(format!("{l}{fused}")).rows(start, length)]
    };
    // Three ways to keep experts: by name (Qwen), by number (Mixtral), stacked in one tensor (transformers 5).
    let expert = |e: usize, name: &str, number: &str, stack: &str| {
        vec![
            at(format!("{l}mlp.experts.{e}.{name}")),
            at(format!("{l}block_sparse_moe.experts.{e}.{number}")),
            at(format!("{l}mlp.experts.{stack}")).bare().of(e),
            at(format!("{l}block_sparse_moe.experts.{stack}")).bare().of(e),
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
        Part::Up => fused("mlp.up_proj", "mlp.gate_up_proj", c.intermediate, c.intermediate),
        Part::Down => one("mlp.down_proj"),
        Part::Router => vec![at(format!("{l}mlp.gate")), at(format!("{l}block_sparse_moe.gate"))],
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
    let fused =
        |name: &str, start, length| vec![at(format!("{l}{name}")), at(format!("{l}att_proj")).rows(start, length)];
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
    let fused =
        |name: &str, start, length| vec![at(format!("{l}{name}")), at(format!("{l}attn_qkv")).rows(start, length)];
    // Experts in one tensor, or (older files) one by one.
    let expert = |e: usize, name: &str| vec![at(format!("{l}{name}_exps")).of(e), at(format!("{l}{name}.{e}"))];
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
        Part::Gate => vec![at(format!("{l}ffn_gate")), at(format!("{l}ffn_up")).rows(0, c.intermediate)],
        Part::Up => one("ffn_up"),
        Part::Down => one("ffn_down"),
        Part::Router => one("ffn_gate_inp"),
        Part::ExpertGate(e) => expert(e, "ffn_gate"),
        Part::ExpertUp(e) => expert(e, "ffn_up"),
        Part::ExpertDown(e) => expert(e, "ffn_down"),
        _ => vec![],
    }
}
