//! Models: one configurable decoder, its loaders, tokenizers and chat templates.
//!
//! A model knows rows, slots and layers; it knows nothing of drafts, requests or strategies. The engine lays out a
//! [`Step`] and hands it to a [`Network`].

pub mod card;
pub mod config;
pub mod error;
pub mod files;
pub mod network;
pub mod step;

pub use card::ModelCard;
pub use config::Config;
pub use error::ModelError;
pub use files::{Field, Part, Tensor, Weights};
pub use network::{Network, NetworkError};
pub use step::{
    Bias, Choice, Clamp, ClampAction, Edits, Entry, Reading, RowEntry, RowRead, Segment, Stats,
    Step, Tap, Visible, Warp,
};
