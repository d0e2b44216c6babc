//! Weights on disk: safetensors and GGUF, memory-mapped, by one set of names.
mod dtype;
mod folder;
pub mod gguf;
mod names;
mod parts;
pub mod safetensors;
mod tensor;
mod weights;

pub use dtype::Dtype;
pub(crate) use folder::json;

pub use parts::{Field, Part};
pub use tensor::Tensor;
pub use weights::Weights;
