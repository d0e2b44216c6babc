//! Draft, verify in one forward, keep what the target agrees with.
pub mod prompt_lookup;
pub mod token_recycling;
mod worth;

pub use worth::worth;
