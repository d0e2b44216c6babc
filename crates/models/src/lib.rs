//! Models: one configurable decoder, its loaders, tokenizers and chat templates.
//!
//! A model knows rows, slots and layers; it knows nothing of drafts, requests or strategies. The engine lays out a
//! [`Step`] and hands it to a [`Network`].

#![forbid(unsafe_code)]

pub mod card;
pub mod chat;
pub mod config;
pub mod decoder;
pub mod error;
pub mod files;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod network;
pub mod neurons;
pub mod step;
pub mod tokenizer;

pub use card::ModelCard;
pub use chat::{ChatTemplate, Conversation};
pub use config::Config;
pub use error::ModelError;
pub use files::{Field, Part, Tensor, Weights};
pub use network::{Network, NetworkError};
pub use step::{
    Bias, Choice, Clamp, ClampAction, Edits, Entry, PickError, Reading, RowEntry, RowRead, Segment, Stats, Step, Tap,
    Visible, Warp,
};
pub use tokenizer::{TextStream, Tokenizer};
