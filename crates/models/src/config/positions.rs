//! Where a layer looks: sliding windows and rotary embeddings out of `config.json`, in the old fields (`rope_theta`,
//! `rope_scaling`, `sliding_window_pattern`) and the new ones (`rope_parameters`, `layer_types`).
use super::fields::Fields;
use super::json::Family::{self, *};
use super::rope::{RopeScaling, RopeSpec, longrope_attention, yarn_attention};
use crate::error::{ModelError, Result};
use serde_json::Value;

/// The sliding window of each layer.
pub(super) fn windows(f: Fields<'_>, family: Family, count: usize) -> Result<Vec<Option<usize>>> {
    let default = match family {
        Mistral if !f.has("sliding_window") => Some(4096),
        Gemma2 | Gemma3 if !f.has("sliding_window") => Some(4096),
        _ => None,
    };
    let window = f.size(&["sliding_window"])?.or(default);
    let used = f.boolean(&["use_sliding_window"])?;
    if let Some(types) = f.list(&["layer_types"])? {
        if types.len() < count {
            return Err(ModelError::config(
                f.name("layer_types"),
                format!("one entry for each of the {count} layers"),
                types.len(),
            ));
        }
        return types[..count]
            .iter()
            .map(|kind| match kind.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => window.map(Some).ok_or_else(|| {
                    ModelError::config(f.name("sliding_window"), "a size, for the layers of sliding_attention", "none")
                }),
                _ => Err(ModelError::config(f.name("layer_types"), "full_attention or sliding_attention", kind)),
            })
            .collect();
    }
    let pattern = f.size(&["sliding_window_pattern", "_sliding_window_pattern"])?.unwrap_or(6).max(1);
    let first_sliding = f.size(&["max_window_layers"])?.unwrap_or(28);
    let ropeless = no_rope(f, family, count)?;
    let slides = |i: usize| match family {
        Mistral | Mixtral | Phi3 => true,
        Gemma2 => i.is_multiple_of(2),
        Gemma3 => !(i + 1).is_multiple_of(pattern),
        Qwen2 | Qwen3 | Qwen3Moe | Sdar | SdarMoe | Dream => used == Some(true) && i >= first_sliding,
        SmolLm3 => used == Some(true) && !ropeless[i],
        _ => false,
    };
    Ok((0..count).map(|i| window.filter(|_| slides(i))).collect())
}

/// Layers without a rotary embedding (`no_rope_layers` holds 0 for them).
fn no_rope(f: Fields<'_>, family: Family, count: usize) -> Result<Vec<bool>> {
    if let Some(list) = f.list(&["no_rope_layers"])? {
        let flags = list.iter().map(|v| v.as_u64().filter(|n| *n < 2).map(|n| n == 0)).collect::<Option<Vec<_>>>();
        return flags.filter(|flags| flags.len() >= count).ok_or_else(|| {
            ModelError::config(f.name("no_rope_layers"), format!("{count} numbers, 0 or 1"), Value::from(list.to_vec()))
        });
    }
    let interval = match family {
        SmolLm3 => f.size(&["no_rope_layer_interval"])?.unwrap_or(4),
        _ => 0,
    };
    Ok((0..count).map(|i| interval > 0 && (i + 1).is_multiple_of(interval)).collect())
}

/// The rotary embeddings, and which of them each layer uses.
pub(super) fn ropes(
    f: Fields<'_>,
    family: Family,
    head_dim: usize,
    context: usize,
    windows: &[Option<usize>],
) -> Result<(Vec<RopeSpec>, Vec<Option<usize>>)> {
    if family == Gpt2 {
        return Ok((Vec::new(), vec![None; windows.len()]));
    }
    let theta = f.number(&["rope_theta"])?.unwrap_or(family.theta());
    let parameters = f.object(&["rope_parameters"])?;
    let nested = |kind: &'static str| parameters.and_then(|p| p.get(kind)).filter(|v| v.is_object());
    let plain = |theta| RopeSpec { theta, rotary: head_dim, scaling: RopeScaling::Default };
    let (full, sliding) = if nested("full_attention").is_some() || nested("sliding_attention").is_some() {
        let one =
            |kind, path| nested(kind).map(|v| spec(f, Fields::new(v, path)?, theta, head_dim, context)).transpose();
        (
            one("full_attention", "rope_parameters.full_attention")?,
            one("sliding_attention", "rope_parameters.sliding_attention")?,
        )
    } else {
        let flat = match (parameters, f.object(&["rope_scaling"])?) {
            (Some(p), _) => spec(f, Fields::new(p, "rope_parameters")?, theta, head_dim, context)?,
            (None, Some(s)) => spec(f, Fields::new(s, "rope_scaling")?, theta, head_dim, context)?,
            (None, None) => spec(f, f, theta, head_dim, context)?,
        };
        let local =
            if family == Gemma3 { Some(plain(f.number(&["rope_local_base_freq"])?.unwrap_or(1e4))) } else { None };
        (Some(flat), local)
    };
    let mut specs: Vec<RopeSpec> = Vec::new();
    let ropeless = no_rope(f, family, windows.len())?;
    let mut of = Vec::new();
    for (window, ropeless) in windows.iter().zip(ropeless) {
        let wanted =
            if window.is_some() { sliding.as_ref().or(full.as_ref()) } else { full.as_ref().or(sliding.as_ref()) };
        of.push(match wanted {
            Some(spec) if !ropeless => Some(specs.iter().position(|s| s == spec).unwrap_or_else(|| {
                specs.push(spec.clone());
                specs.len() - 1
            })),
            _ => None,
        });
    }
    Ok((specs, of))
}

fn spec(f: Fields<'_>, r: Fields<'_>, theta: f64, head_dim: usize, context: usize) -> Result<RopeSpec> {
    let theta = r.number(&["rope_theta"])?.unwrap_or(theta);
    let partial = r.number(&["partial_rotary_factor"])?.or(f.number(&["partial_rotary_factor"])?).unwrap_or(1.0);
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(ModelError::config(r.name("partial_rotary_factor"), "a number above 0, at most 1", partial));
    }
    let rotary = (head_dim as f64 * partial) as usize;
    let factor = || r.number(&["factor"]);
    let need = |key: &'static str| {
        r.number(&[key])?.ok_or_else(|| ModelError::config(r.name(key), "a number", "no such field"))
    };
    let original = || -> Result<usize> {
        Ok(f.size(&["original_max_position_embeddings"])?
            .or(r.size(&["original_max_position_embeddings"])?)
            .unwrap_or(context))
    };
    let stretch = |original: usize| -> Result<f64> { Ok(factor()?.unwrap_or(context as f64 / original.max(1) as f64)) };
    let scaling = match r.text(&["rope_type", "type"])?.unwrap_or("default") {
        "default" | "mrope" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: need("factor")?, context },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low: need("low_freq_factor")?,
            high: need("high_freq_factor")?,
            original: original()?,
        },
        "yarn" if r.has("short_factor") => longrope(r, original()?, stretch(original()?)?)?,
        "yarn" => {
            let factor = stretch(original()?)?;
            let attention =
                match (r.number(&["attention_factor"])?, r.number(&["mscale"])?, r.number(&["mscale_all_dim"])?) {
                    (Some(attention), _, _) => attention,
                    (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
                        yarn_attention(factor, m) / yarn_attention(factor, all)
                    }
                    _ => yarn_attention(factor, 1.0),
                };
            RopeScaling::Yarn {
                factor,
                original: original()?,
                beta_fast: r.number(&["beta_fast"])?.filter(|b| *b != 0.0).unwrap_or(32.0),
                beta_slow: r.number(&["beta_slow"])?.filter(|b| *b != 0.0).unwrap_or(1.0),
                attention,
                truncate: r.boolean(&["truncate"])?.unwrap_or(true),
            }
        }
        "longrope" | "su" => longrope(r, original()?, stretch(original()?)?)?,
        other => {
            return Err(ModelError::config(
                r.name("rope_type"),
                "default, linear, dynamic, llama3, yarn or longrope",
                other,
            ));
        }
    };
    Ok(RopeSpec { theta, rotary, scaling })
}

fn longrope(r: Fields<'_>, original: usize, stretch: f64) -> Result<RopeScaling> {
    let divisors = |key: &'static str| {
        r.numbers(&[key])?.ok_or_else(|| ModelError::config(r.name(key), "a list of numbers", "no such field"))
    };
    Ok(RopeScaling::LongRope {
        short: divisors("short_factor")?,
        long: divisors("long_factor")?,
        original,
        attention: r.number(&["attention_factor"])?.unwrap_or_else(|| longrope_attention(stretch, original)),
    })
}
