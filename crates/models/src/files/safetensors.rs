//! The header of a safetensors file: names, types, sizes and byte ranges, each checked against the file.
//!
//! Layout: a little-endian u64 `n`, `n` bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the numbers.
use super::Dtype;
use super::tensor::countable;
use super::weights::{Entry, Stored};
use crate::error::{ModelError, Result, brief};
use serde_json::Value;

/// Longest header that the format allows, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

fn damaged(at: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> ModelError {
    ModelError::Malformed { format: "safetensors", at: at.into(), expected: expected.into(), found: brief(found) }
}

/// Read the header of a whole safetensors file. Allocates in proportion to the header, never by what it claims.
///
/// # Errors
/// [`ModelError::Malformed`] if the header is not valid, or a range lies outside the file or contradicts its sizes.
pub fn read(file: &[u8]) -> Result<Vec<(String, Entry)>> {
    let short = || damaged("byte 0", "a header length of 8 bytes, then the header", format!("{} bytes", file.len()));
    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(short)?;
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER.min(rest.len() as u64) {
        return Err(damaged(
            "byte 0",
            format!("a header length of at most {}", LONGEST_HEADER.min(rest.len() as u64)),
            length,
        ));
    }
    let (header, data) = rest.split_at(length as usize);
    let tensors: serde_json::Map<String, Value> =
        serde_json::from_slice(header).map_err(|e| damaged("the header", "a JSON object of tensors", e))?;
    let start = file.len() - data.len();
    tensors
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .map(|(name, info)| {
            let entry = entry(&name, &info, start, data.len())?;
            Ok((name, entry))
        })
        .collect()
}

fn entry(name: &str, info: &Value, start: usize, room: usize) -> Result<Entry> {
    let at = || format!("tensor {}", brief(name));
    let numbers = |key: &str| -> Result<Vec<usize>> {
        let list = info.get(key).and_then(Value::as_array);
        list.and_then(|list| {
            list.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok())).collect::<Option<Vec<_>>>()
        })
        .ok_or_else(|| damaged(at(), format!("a list of whole numbers `{key}`"), info))
    };
    let shape = numbers("shape")?;
    if !countable(&shape) {
        return Err(damaged(at(), "sizes whose product fits in memory", format!("{shape:?}")));
    }
    let (begin, end) = match numbers("data_offsets")?[..] {
        [begin, end] if begin <= end && end <= room => (begin, end),
        ref found => {
            return Err(damaged(at(), format!("offsets within the {room} bytes of data"), format!("{found:?}")));
        }
    };
    let stored = match info.get("dtype").and_then(Value::as_str) {
        Some("F32") => Stored::Known(Dtype::F32),
        Some("F16") => Stored::Known(Dtype::F16),
        Some("BF16") => Stored::Known(Dtype::Bf16),
        Some(other) => Stored::Other(brief(other)),
        None => return Err(damaged(at(), "a `dtype`", info)),
    };
    if let Stored::Known(dtype) = stored {
        let bytes = shape.iter().try_fold(dtype.block_bytes(), |product, size| product.checked_mul(*size));
        if bytes != Some(end - begin) {
            return Err(damaged(
                at(),
                format!("{} bytes for {shape:?} of {dtype}", bytes.map_or("fewer".into(), |b| b.to_string())),
                end - begin,
            ));
        }
    }
    Ok(Entry { file: 0, stored, shape, bytes: start + begin..start + end })
}
