//! Reading typed fields out of a JSON object; every value that is not of its type is a typed error.
use crate::error::{ModelError, Result};
use serde_json::{Map, Value};

/// A JSON object and the path to it.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    pub fn new(value: &'a Value, path: &'a str) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| ModelError::config(path, "a JSON object", value))?;
        Ok(Self { map, path })
    }
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }
    /// The first of `keys` that is there and not null.
    pub fn value(&self, keys: &[&'a str]) -> Option<(&'a str, &'a Value)> {
        keys.iter().find_map(|key| self.map.get(*key).filter(|v| !v.is_null()).map(|v| (*key, v)))
    }
    /// Whether the field is there, null included.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }
    fn typed<T>(
        &self,
        keys: &[&'a str],
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.value(keys) {
            None => Ok(None),
            Some((key, value)) => {
                read(value).map(Some).ok_or_else(|| ModelError::config(self.name(key), expected, value))
            }
        }
    }
    pub fn size(&self, keys: &[&'a str]) -> Result<Option<usize>> {
        self.typed(keys, "a whole number from 0", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }
    pub fn need(&self, keys: &[&'a str]) -> Result<usize> {
        self.size(keys)?.ok_or_else(|| ModelError::config(self.name(keys[0]), "a whole number", "no such field"))
    }
    pub fn number(&self, keys: &[&'a str]) -> Result<Option<f64>> {
        self.typed(keys, "a finite number", |v| v.as_f64().filter(|x| x.is_finite()))
    }
    pub fn boolean(&self, keys: &[&'a str]) -> Result<Option<bool>> {
        self.typed(keys, "true or false", Value::as_bool)
    }
    pub fn text(&self, keys: &[&'a str]) -> Result<Option<&'a str>> {
        self.typed(keys, "text", Value::as_str)
    }
    pub fn list(&self, keys: &[&'a str]) -> Result<Option<&'a [Value]>> {
        self.typed(keys, "a list", |v| v.as_array().map(Vec::as_slice))
    }
    pub fn object(&self, keys: &[&'a str]) -> Result<Option<&'a Value>> {
        self.typed(keys, "a JSON object", |v| v.is_object().then_some(v))
    }
    pub fn numbers(&self, keys: &[&'a str]) -> Result<Option<Vec<f32>>> {
        self.typed(keys, "a list of finite numbers", |v| {
            v.as_array()?.iter().map(|x| x.as_f64().map(|x| x as f32).filter(|x| x.is_finite())).collect()
        })
    }
    /// A token id. Some published configurations write -1 for "none".
    pub fn token(&self, keys: &[&'a str]) -> Result<Option<u32>> {
        let tokens = self.tokens(keys)?;
        Ok(tokens.first().copied())
    }
    /// A token id or a list of them.
    pub fn tokens(&self, keys: &[&'a str]) -> Result<Vec<u32>> {
        let one = |v: &Value| match v.as_i64() {
            Some(-1) => Some(None),
            _ => v.as_u64().and_then(|n| u32::try_from(n).ok()).map(Some),
        };
        let read = |v: &'a Value| match v {
            Value::Array(list) => list.iter().map(one).collect::<Option<Vec<_>>>(),
            other => one(other).map(|id| vec![id]),
        };
        Ok(self
            .typed(keys, "a token id or a list of token ids", read)?
            .unwrap_or_default()
            .into_iter()
            .flatten()
            .collect())
    }
}
