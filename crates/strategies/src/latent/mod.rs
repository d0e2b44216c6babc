//! Thought in vectors: places that hold no token.
pub mod coconut;
