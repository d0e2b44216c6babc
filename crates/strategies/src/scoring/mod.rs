//! Scores instead of texts.
pub mod first;
pub mod listwise;
