//! The GGUF container, versions 2 and 3: metadata and tensor ranges, each length checked against the file before it is
//! used. Nothing is allocated in proportion to a length that the file only claims.
//!
//! Layout: magic, version, tensor count, key count; keys with typed values; tensor infos (name, sizes innermost first,
//! type, offset); padding to `general.alignment`; the numbers.
mod metadata;

use super::dtype::{Dtype, row_bytes};
use super::tensor::countable;
use super::weights::{Entry, Stored};
use crate::error::{ModelError, Result, brief};
use std::collections::BTreeMap;
use std::ops::Range;

/// The scalar kinds of a metadata value, and strings and arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}
impl Kind {
    fn new(id: u32) -> Option<Self> {
        const KINDS: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::Text,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        KINDS.get(id as usize).copied()
    }
    /// Bytes of a scalar; `None` for what has no fixed size.
    fn size(self) -> Option<usize> {
        Some(match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Text | Self::Array => return None,
        })
    }
}

/// A metadata value. Strings and arrays stay in the file; an array is checked when the file is read.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned whole number, and any signed one that is not negative.
    Unsigned(u64),
    /// A negative whole number.
    Negative(i64),
    /// A number with a point.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of scalars or strings, decoded on demand by the accessors of [`Header`].
    Array(ArrayRange),
}

/// Where an array's elements lie in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct ArrayRange {
    kind: Kind,
    count: usize,
    bytes: Range<usize>,
}

/// What a GGUF file says before its numbers.
#[derive(Clone, Debug, Default)]
pub struct Header {
    metadata: BTreeMap<String, Value>,
    /// The tensors: names, types, sizes (outermost first), ranges within the file.
    pub tensors: Vec<(String, Entry)>,
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn damaged(&self, expected: impl Into<String>, found: impl ToString) -> ModelError {
        ModelError::Malformed {
            format: "GGUF",
            at: format!("byte {}", self.at),
            expected: expected.into(),
            found: brief(found),
        }
    }
    fn left(&self) -> usize {
        self.file.len() - self.at
    }
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        if length > self.left() {
            return Err(
                self.damaged(format!("{length} more bytes"), format!("the end of the file after {}", self.left()))
            );
        }
        let bytes = &self.file[self.at..self.at + length];
        self.at += length;
        Ok(bytes)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// A count of things of at least `least` bytes each: it cannot exceed what is left.
    fn count(&mut self, what: &str, least: usize) -> Result<usize> {
        let count = self.u64()?;
        let most = (self.left() / least) as u64;
        if count > most {
            return Err(self.damaged(format!("at most {most} {what}, by the length of the file"), count));
        }
        Ok(count as usize)
    }
    fn text(&mut self) -> Result<&'a str> {
        let length = self.count("bytes of text", 1)?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|e| self.damaged("text in UTF-8", e))
    }
    fn kind(&mut self) -> Result<Kind> {
        let id = self.u32()?;
        Kind::new(id).ok_or_else(|| self.damaged("a value type from 0 to 12", id))
    }
    fn value(&mut self, kind: Kind) -> Result<Value> {
        Ok(match kind {
            Kind::Text => Value::Text(self.text()?.to_string()),
            Kind::Array => {
                let kind = self.kind()?;
                let start;
                let count = match kind.size() {
                    Some(size) => {
                        let count = self.count("elements", size)?;
                        start = self.at;
                        self.take(count * size)?;
                        count
                    }
                    None if kind == Kind::Text => {
                        let count = self.count("strings", 8)?;
                        start = self.at;
                        for _ in 0..count {
                            self.text()?;
                        }
                        count
                    }
                    None => {
                        return Err(self.damaged("an array of scalars or strings", "an array of arrays"));
                    }
                };
                Value::Array(ArrayRange { kind, count, bytes: start..self.at })
            }
            scalar => {
                let bytes = self.take(scalar.size().unwrap_or(0))?;
                self.scalar(scalar, bytes)?
            }
        })
    }
    fn scalar(&self, kind: Kind, bytes: &[u8]) -> Result<Value> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(wide);
        let signed = |bits: u32| {
            let value = (unsigned << (64 - bits)).cast_signed() >> (64 - bits);
            u64::try_from(value).map_or(Value::Negative(value), Value::Unsigned)
        };
        Ok(match kind {
            Kind::I8 => signed(8),
            Kind::I16 => signed(16),
            Kind::I32 => signed(32),
            Kind::I64 => signed(64),
            Kind::F32 => Value::Float(f64::from(f32::from_bits(unsigned as u32))),
            Kind::F64 => Value::Float(f64::from_bits(unsigned)),
            Kind::Bool if unsigned > 1 => {
                return Err(self.damaged("true (1) or false (0)", unsigned));
            }
            Kind::Bool => Value::Bool(unsigned == 1),
            _ => Value::Unsigned(unsigned),
        })
    }
}

/// Read the header of a whole GGUF file.
///
/// # Errors
/// [`ModelError::Malformed`] for anything that the format does not allow or that does not fit in the file.
pub fn read(file: &[u8]) -> Result<Header> {
    let mut reader = Reader { file, at: 0 };
    let magic = reader.array::<4>()?;
    if &magic != b"GGUF" {
        return Err(reader.damaged("the magic bytes GGUF", format!("{magic:02x?}")));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(reader.damaged("version 2 or 3, little endian", version));
    }
    // Least sizes: a tensor has an empty name, its number of sizes, its type and its offset; a key an empty name, a type
    // and one byte.
    let tensors = reader.count("tensors", 8 + 4 + 4 + 8)?;
    let keys = reader.count("keys", 8 + 4 + 1)?;
    let mut header = Header::default();
    for _ in 0..keys {
        let key = reader.text()?.to_string();
        let kind = reader.kind()?;
        let value = reader.value(kind)?;
        header.metadata.insert(key, value);
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        infos.push(info(&mut reader)?);
    }
    let alignment = match header.metadata.get("general.alignment") {
        None => 32,
        Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n as usize,
        Some(other) => {
            return Err(reader.damaged("a power of two in general.alignment", format!("{other:?}")));
        }
    };
    let data = reader.at.next_multiple_of(alignment).min(file.len());
    header.tensors = infos
        .into_iter()
        .map(|(name, shape, kind, offset)| place(name, shape, kind, offset, data, file.len(), alignment))
        .collect::<Result<_>>()?;
    Ok(header)
}

/// Name, sizes outermost first, type, offset.
type Info = (String, Vec<usize>, u32, u64);

fn info(reader: &mut Reader<'_>) -> Result<Info> {
    let name = reader.text()?.to_string();
    let dimensions = reader.u32()?;
    if dimensions > 4 {
        return Err(reader.damaged("at most 4 dimensions", dimensions));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let size = reader.u64()?;
        shape.push(usize::try_from(size).map_err(|_| reader.damaged("a size that fits in memory", size))?);
    }
    shape.reverse();
    Ok((name, shape, reader.u32()?, reader.u64()?))
}

fn place(
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
    data: usize,
    end: usize,
    alignment: usize,
) -> Result<(String, Entry)> {
    let damaged = |expected: String, found: String| ModelError::Malformed {
        format: "GGUF",
        at: format!("tensor {}", brief(&name)),
        expected,
        found,
    };
    if !countable(&shape) {
        return Err(damaged("sizes whose product fits in memory".into(), format!("{shape:?}")));
    }
    let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset)).filter(|start| *start <= end);
    let Some(start) = start else {
        return Err(damaged(format!("an offset within the {} bytes of data", end - data), offset.to_string()));
    };
    if !offset.is_multiple_of(alignment as u64) {
        return Err(damaged(format!("an offset that is a multiple of {alignment}"), offset.to_string()));
    }
    let Ok(dtype) = Dtype::from_ggml(kind) else {
        return Ok((
            name,
            Entry { file: 0, stored: Stored::Other(format!("GGUF type {kind}")), shape, bytes: start..start },
        ));
    };
    let (columns, rows) = shape.split_last().map_or((1, &[][..]), |(columns, rows)| (*columns, rows));
    let Some(row) = row_bytes(dtype, columns) else {
        return Err(damaged(
            format!("rows of whole blocks of {} numbers", dtype.block()),
            format!("rows of {columns}"),
        ));
    };
    let bytes = rows.iter().try_fold(row, |product, size| product.checked_mul(*size));
    match bytes.and_then(|bytes| start.checked_add(bytes)) {
        Some(stop) if stop <= end => {
            Ok((name, Entry { file: 0, stored: Stored::Known(dtype), shape, bytes: start..stop }))
        }
        _ => Err(damaged(
            format!("{shape:?} of {dtype} within the {} bytes that follow", end - start),
            bytes.map_or("more than memory holds".into(), |b| format!("{b} bytes")),
        )),
    }
}
