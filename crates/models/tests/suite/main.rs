//! The models' tests, in one binary: each would be linked with tokenizers and templates again.
mod adapter;
mod chat;
mod common;
mod config;
mod diffusion_layouts;
mod gguf_models;
mod golden;
#[cfg(feature = "emulator")]
mod gpu;
mod hostile;
mod neurons;
mod tokenizer;
mod weights;
