//! Typed access to the metadata of a GGUF file.
use super::{Header, Kind, Reader, Value};
use crate::error::{ModelError, Result};

impl Header {
    fn wrong(key: &str, expected: &str, found: &Value) -> ModelError {
        let found = match found {
            Value::Array(array) => format!("an array of {} {:?}", array.count, array.kind),
            other => format!("{other:?}"),
        };
        ModelError::config(key, expected, found)
    }
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }
    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }
    /// A whole number, `None` if the key is absent.
    ///
    /// # Errors
    /// [`ModelError::Config`] if it is something else.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(other) => Err(Self::wrong(key, "a whole number from 0", other)),
        }
    }
    /// A number.
    ///
    /// # Errors
    /// [`ModelError::Config`] if it is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(Value::Unsigned(n)) => Ok(Some(*n as f64)),
            Some(Value::Negative(n)) => Ok(Some(*n as f64)),
            Some(other) => Err(Self::wrong(key, "a number", other)),
        }
    }
    /// True or false.
    ///
    /// # Errors
    /// [`ModelError::Config`] if it is something else.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(Self::wrong(key, "true or false", other)),
        }
    }
    /// Text.
    ///
    /// # Errors
    /// [`ModelError::Config`] if it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(Self::wrong(key, "text", other)),
        }
    }
    /// A list of strings; `file` is the file that this header was read from.
    ///
    /// # Errors
    /// [`ModelError::Config`] if it is something else.
    pub fn texts<'a>(&self, key: &str, file: &'a [u8]) -> Result<Option<Vec<&'a str>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if array.kind == Kind::Text => {
                let mut reader =
                    Reader { file: file.get(..array.bytes.end).unwrap_or(&[]), at: array.bytes.start.min(file.len()) };
                (0..array.count).map(|_| reader.text()).collect::<Result<_>>().map(Some)
            }
            Some(other) => Err(Self::wrong(key, "a list of strings", other)),
        }
    }
    /// A list of numbers or booleans, as f64 (every whole number below 2^53 exactly).
    ///
    /// # Errors
    /// [`ModelError::Config`] if it is something else.
    pub fn numbers(&self, key: &str, file: &[u8]) -> Result<Option<Vec<f64>>> {
        let array = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) if array.kind.size().is_some() => array,
            Some(other) => return Err(Self::wrong(key, "a list of numbers", other)),
        };
        let reader = Reader { file, at: array.bytes.start };
        let bytes = file.get(array.bytes.clone()).unwrap_or(&[]);
        let number = |chunk: &[u8]| {
            Ok(match reader.scalar(array.kind, chunk)? {
                Value::Unsigned(n) => n as f64,
                Value::Negative(n) => n as f64,
                Value::Float(x) => x,
                Value::Bool(b) => f64::from(u8::from(b)),
                Value::Text(_) | Value::Array(_) => f64::NAN,
            })
        };
        bytes.chunks_exact(array.kind.size().unwrap_or(1)).map(number).collect::<Result<_>>().map(Some)
    }
    /// Length of a list.
    pub fn length(&self, key: &str) -> Option<usize> {
        match self.get(key) {
            Some(Value::Array(array)) => Some(array.count),
            _ => None,
        }
    }
}
