//! The same [`Config`] from GGUF metadata. What GGUF does not write down (Gemma's window pattern, SmolLM3's layers
//! without rotation) is what its architectures fix.
use super::rope::{RopeScaling, RopeSpec, longrope_attention, yarn_attention};
use super::{Activation, Attention, Config, Experts, LayerConfig, NormKind, NormPlacement, QkNorm, RopeLayout};
use crate::error::{ModelError, Result};
use crate::files::gguf::Header;

/// What the configuration needs to know of the tensors: which there are, and the frequency divisors among them.
pub(crate) trait Tensors {
    /// Sizes of a tensor, outermost first.
    fn shape(&self, name: &str) -> Option<&[usize]>;
    /// A small tensor's numbers.
    fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>>;
}

const KNOWN: [&str; 15] = [
    "llama", "mistral", "qwen2", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3", "granite", "olmo2", "gpt2",
    "smollm3", "llada", "dream",
];

struct Keys<'a> {
    header: &'a Header,
    file: &'a [u8],
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
    fn size(&self, key: &str) -> Result<Option<usize>> {
        let found = self.header.unsigned(&self.key(key))?;
        found
            .map(|n| usize::try_from(n).map_err(|_| ModelError::config(self.key(key), "a size that fits in memory", n)))
            .transpose()
    }
    fn need(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| ModelError::config(self.key(key), "a whole number", "no such key"))
    }
    /// A size that may be given once or for each layer; layers that differ are not computed by this decoder.
    fn same(&self, key: &str) -> Result<Option<usize>> {
        let name = self.key(key);
        if self.header.length(&name).is_none() {
            return self.size(key);
        }
        let list = self.header.numbers(&name, self.file)?.unwrap_or_default();
        match list.first() {
            Some(first) if list.iter().all(|n| n == first) && *first >= 0.0 => Ok(Some(*first as usize)),
            _ => Err(ModelError::unsupported(
                format!("one `{name}` for all layers"),
                "one that differs from layer to layer",
            )),
        }
    }
    fn number(&self, key: &str) -> Result<Option<f64>> {
        let found = self.header.float(&self.key(key))?;
        match found {
            Some(x) if !x.is_finite() => Err(ModelError::config(self.key(key), "a finite number", x)),
            found => Ok(found),
        }
    }
    fn token(&self, key: &str) -> Result<Option<u32>> {
        let name = format!("tokenizer.ggml.{key}");
        let found = self.header.unsigned(&name)?;
        // 2^32 - 1 is how -1, "none", reads back.
        let found = found.filter(|n| *n != u64::from(u32::MAX));
        found.map(|n| u32::try_from(n).map_err(|_| ModelError::config(name, "a token id", n))).transpose()
    }
}

impl Config {
    /// Read the metadata of a GGUF file; `file` is the file that `header` was read from.
    pub(crate) fn from_gguf(header: &Header, file: &[u8], tensors: &dyn Tensors) -> Result<Self> {
        let architecture = header
            .text("general.architecture")?
            .ok_or_else(|| ModelError::config("general.architecture", "the name of an architecture", "no such key"))?;
        if !KNOWN.contains(&architecture) {
            return Err(ModelError::unsupported(format!("general.architecture of {}", KNOWN.join(", ")), architecture));
        }
        let config = read(&Keys { header, file, architecture }, tensors)?;
        config.check()?;
        Ok(config)
    }
}

fn read(k: &Keys<'_>, tensors: &dyn Tensors) -> Result<Config> {
    let architecture = k.architecture;
    let has = |name: &str| tensors.shape(name).is_some();
    let hidden = k.need("embedding_length")?;
    let count = k.need("block_count")?;
    let heads = k
        .same("attention.head_count")?
        .ok_or_else(|| ModelError::config(k.key("attention.head_count"), "a whole number", "no such key"))?;
    super::check::sizes(&[
        ("embedding_length", hidden, 1 << 20),
        ("block_count", count, 1 << 12),
        ("attention.head_count", heads, 1 << 14),
    ])?;
    let kv_heads = k.same("attention.head_count_kv")?.unwrap_or(heads);
    let head_dim = k.size("attention.key_length")?.unwrap_or(hidden / heads);
    super::check::sizes(&[("attention.key_length", head_dim, 1 << 16)])?;
    if k.size("attention.value_length")?.is_some_and(|width| width != head_dim) {
        return Err(ModelError::unsupported("values as wide as keys", "a different attention.value_length"));
    }
    let context = k.need("context_length")?;
    super::check::sizes(&[("context_length", context, 1 << 31)])?;
    let embedding = tensors.shape("token_embd.weight").and_then(|shape| shape.first().copied());
    let vocab = embedding.or(k.size("vocab_size")?).or(k.header.length("tokenizer.ggml.tokens"));
    let gemma = architecture.starts_with("gemma");
    let layered = architecture == "gpt2";
    let experts = k.size("expert_count")?.filter(|n| *n > 0);
    let windows = windows(k, count)?;
    let (ropes, rope_of) =
        if layered { (Vec::new(), vec![None; count]) } else { ropes(k, tensors, head_dim, context, &windows)? };
    let scale = match architecture {
        // The largest Gemmas scale by the width of a head as if heads tiled the residual stream.
        "gemma2" if count == 46 => ((hidden / heads) as f64).powf(-0.5),
        "gemma3" if count == 62 => ((hidden / heads) as f64).powf(-0.5),
        _ => k.number("attention.scale")?.filter(|s| *s != 0.0).unwrap_or((head_dim as f64).powf(-0.5)),
    };
    let intermediate = k.same("feed_forward_length")?.unwrap_or(0);
    let expert_width = k.size("expert_feed_forward_length")?.unwrap_or(intermediate);
    let diffusion =
        matches!(architecture, "llada" | "dream") || k.header.boolean(&k.key("attention.causal"))? == Some(false);
    let mut eos: Vec<u32> =
        [k.token("eos_token_id")?, k.token("eot_token_id")?, k.token("eom_token_id")?].into_iter().flatten().collect();
    eos.extend(end_of_turn(k)?);
    eos.sort_unstable();
    eos.dedup();
    let softcap = |key, default: f64| -> Result<Option<f32>> {
        let found = k.number(key)?.or((architecture == "gemma2").then_some(default));
        Ok(found.filter(|cap| *cap != 0.0).map(|cap| cap as f32))
    };
    Ok(Config {
        architecture: architecture.to_string(),
        vocab: vocab.ok_or_else(|| ModelError::config(k.key("vocab_size"), "a whole number, or tokens", "neither"))?,
        hidden,
        heads,
        kv_heads,
        head_dim,
        intermediate: if intermediate == 0 { expert_width } else { intermediate },
        activation: if gemma || layered { Activation::GeluTanh } else { Activation::Silu },
        gated: !layered,
        norm: if layered { NormKind::Layer } else { NormKind::Rms },
        norm_eps: k
            .number("attention.layer_norm_rms_epsilon")?
            .or(k.number("attention.layer_norm_epsilon")?)
            .unwrap_or(1e-5) as f32,
        norm_placement: match architecture {
            "gemma2" | "gemma3" => NormPlacement::Sandwich,
            "olmo2" => NormPlacement::Post,
            _ => NormPlacement::Pre,
        },
        qk_norm: match tensors.shape("blk.0.attn_q_norm.weight") {
            None => QkNorm::None,
            Some([width]) if *width == head_dim && architecture != "olmo2" => QkNorm::PerHead,
            Some(_) => QkNorm::Whole,
        },
        ropes,
        rope_layout: match architecture {
            "llama" | "mistral" | "granite" | "smollm3" | "llada" => RopeLayout::Interleaved,
            _ => RopeLayout::Halves,
        },
        layers: (0..count)
            .map(|i| LayerConfig {
                rope: rope_of[i],
                window: windows[i],
                attention_scale: scale as f32,
                sparse: experts.is_some() && has(&format!("blk.{i}.ffn_gate_inp.weight")),
            })
            .collect(),
        attention: if diffusion { Attention::Full } else { Attention::Causal },
        attention_softcap: softcap("attn_logit_softcapping", 50.0)?,
        final_softcap: softcap("final_logit_softcapping", 30.0)?,
        qkv_bias: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_up.bias"),
        exit_layer: None,
        tied: !has("output.weight"),
        embedding_scale: if gemma {
            (hidden as f32).sqrt()
        } else {
            k.number("embedding_scale")?.unwrap_or(1.0) as f32
        },
        residual_scale: k.number("residual_scale")?.unwrap_or(1.0) as f32,
        logit_scale: (1.0 / k.number("logit_scale")?.filter(|s| *s != 0.0).unwrap_or(1.0)) as f32,
        experts: match experts {
            None => None,
            Some(count) => Some(Experts {
                count,
                per_token: k.need("expert_used_count")?,
                normalize: k.header.boolean(&k.key("expert_weights_norm"))?.unwrap_or(true),
                intermediate: expert_width,
            }),
        },
        learned_positions: tensors.shape("position_embd.weight").and_then(|shape| shape.first().copied()),
        context,
        bos: k.token("bos_token_id")?,
        eos,
        pad: k.token("padding_token_id")?,
        mask: k.token("mask_token_id")?,
        logit_shift: match k.header.boolean("diffusion.shift_logits")? {
            Some(shifted) => usize::from(shifted),
            None => usize::from(architecture != "llada"),
        },
    })
}

fn windows(k: &Keys<'_>, count: usize) -> Result<Vec<Option<usize>>> {
    let Some(window) = k.size("attention.sliding_window")?.filter(|w| *w > 0) else {
        return Ok(vec![None; count]);
    };
    let key = k.key("attention.sliding_window_pattern");
    if k.header.length(&key).is_some() {
        let slides = k.header.numbers(&key, k.file)?.unwrap_or_default();
        if slides.len() < count {
            return Err(ModelError::config(key, format!("one entry for each of the {count} layers"), slides.len()));
        }
        return Ok(slides[..count].iter().map(|s| (*s != 0.0).then_some(window)).collect());
    }
    // Every n-th layer sees everything; 1: none does.
    let every = match (k.header.unsigned(&key)?, k.architecture) {
        (Some(n), _) => n.clamp(1, 1 << 20) as usize,
        (None, "gemma2") => 2,
        (None, "gemma3") => 6,
        (None, "llama" | "mistral") => 1,
        (None, "phi3") => 1,
        // The others write the key and do not use it.
        (None, _) => return Ok(vec![None; count]),
    };
    Ok((0..count).map(|i| (every == 1 || !(i + 1).is_multiple_of(every)).then_some(window)).collect())
}

fn ropes(
    k: &Keys<'_>,
    tensors: &dyn Tensors,
    head_dim: usize,
    context: usize,
    windows: &[Option<usize>],
) -> Result<(Vec<RopeSpec>, Vec<Option<usize>>)> {
    let rotary = k.size("rope.dimension_count")?.unwrap_or(head_dim);
    let theta = k.number("rope.freq_base")?.unwrap_or(10_000.0);
    let original = k.size("rope.scaling.original_context_length")?.unwrap_or(context);
    let factor = k.number("rope.scaling.factor")?.or(k.number("rope.scale_linear")?).filter(|f| *f != 0.0);
    let stretch = factor.unwrap_or(context as f64 / original.max(1) as f64);
    let attention = k.number("rope.scaling.attn_factor")?;
    let long = tensors.numbers("rope_factors_long.weight")?;
    let short = tensors.numbers("rope_factors_short.weight")?;
    let divisors = tensors.numbers("rope_freqs.weight")?;
    let scaling = match (k.header.text(&k.key("rope.scaling.type"))?, long, short, divisors) {
        (_, Some(long), Some(short), _) => RopeScaling::LongRope {
            short,
            long,
            original,
            attention: attention
                .unwrap_or_else(|| longrope_attention(context as f64 / original.max(1) as f64, original)),
        },
        (_, _, _, Some(divisors)) => RopeScaling::Divisors(divisors),
        (Some("yarn"), ..) => RopeScaling::Yarn {
            factor: stretch,
            original,
            beta_fast: k.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: k.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            attention: attention.unwrap_or(1.0) * yarn_attention(stretch, 1.0),
            truncate: true,
        },
        (Some("linear"), ..) | (None, ..) if factor.is_some_and(|f| f != 1.0) => {
            RopeScaling::Linear { factor: stretch }
        }
        (Some("none" | "linear") | None, ..) => RopeScaling::Default,
        (Some(other), ..) => {
            return Err(ModelError::config(
                k.key("rope.scaling.type"),
                "none, linear or yarn, or frequency divisors among the tensors",
                other,
            ));
        }
    };
    let global = RopeSpec { theta, rotary, scaling };
    let mut specs = vec![global];
    if k.architecture == "gemma3" {
        let theta = k.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
        specs.push(RopeSpec { theta, rotary, scaling: RopeScaling::Default });
    }
    let of = windows.iter().enumerate().map(|(i, window)| match k.architecture {
        "smollm3" if (i + 1).is_multiple_of(4) => None,
        "gemma3" if window.is_some() => Some(1),
        _ => Some(0),
    });
    let of = of.collect();
    Ok((specs, of))
}

/// Control tokens that end a turn by their published meaning, which not every file names by a key.
fn end_of_turn(k: &Keys<'_>) -> Result<Vec<u32>> {
    const ENDS: [&str; 8] = [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<|eom_id|>",
        "<EOT>",
    ];
    const CONTROL: f64 = 3.0;
    let tokens = k.header.texts("tokenizer.ggml.tokens", k.file)?.unwrap_or_default();
    let types = k.header.numbers("tokenizer.ggml.token_type", k.file)?.unwrap_or_default();
    let ends =
        tokens.iter().zip(types).enumerate().filter(|(_, (token, kind))| *kind == CONTROL && ENDS.contains(token));
    Ok(ends.map(|(id, _)| id as u32).collect())
}
