//! What lies in a model folder: JSON files, the shards of an index, the parts of a split GGUF.
use crate::error::{ModelError, Result, brief};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Most bytes that a JSON file beside the weights may have.
const LARGEST_JSON: u64 = 1 << 28;

/// A JSON file beside the weights.
pub(crate) fn json(path: &Path) -> Result<Value> {
    let length = std::fs::metadata(path).map_err(|e| ModelError::io(path, &e))?.len();
    let name = || path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    if length > LARGEST_JSON {
        return Err(ModelError::Malformed {
            format: "JSON",
            at: name(),
            expected: format!("at most {LARGEST_JSON} bytes"),
            found: length.to_string(),
        });
    }
    let bytes = std::fs::read(path).map_err(|e| ModelError::io(path, &e))?;
    serde_json::from_slice(&bytes).map_err(|e| ModelError::Malformed {
        format: "JSON",
        at: name(),
        expected: "valid JSON".into(),
        found: e.to_string(),
    })
}

/// The files that a sharded index names, each once, none outside the folder.
pub(super) fn shards(index: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let json = json(index)?;
    let damaged = |found: String| ModelError::Malformed {
        format: "safetensors index",
        at: "weight_map".into(),
        expected: "an object of tensor names and file names".into(),
        found: brief(found),
    };
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| damaged("no such object".into()))?;
    let mut names = std::collections::BTreeSet::new();
    for file in map.values() {
        let name = file.as_str().filter(|name| Path::new(name).file_name().is_some_and(|n| n == *name));
        names.insert(name.ok_or_else(|| damaged(file.to_string()))?);
    }
    if names.is_empty() {
        return Err(damaged("an empty object".into()));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// All parts of a split GGUF, by the name of one: `NAME-00001-of-00003.gguf`.
pub(super) fn split(path: &Path) -> Option<Vec<PathBuf>> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse::<usize>().ok()).flatten();
    let (count, _) = (digits(count)?, digits(number)?);
    Some((1..=count).map(|n| path.with_file_name(format!("{name}-{n:05}-of-{count:05}.gguf"))).collect())
}
