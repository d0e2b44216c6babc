//! Placeholder.

pub mod map;
