//! Several texts at once.
pub mod ngrams;
pub mod superposed;
