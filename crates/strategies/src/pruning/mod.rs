//! Tokens that are left out of layers.
pub mod lazyllm;
