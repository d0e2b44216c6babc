//! Draft, verify in one forward, keep what the target agrees with.
pub mod aded;
mod candidates;
pub mod corpus;
pub mod draft_model;
pub mod drafting;
pub mod dyspec;
pub mod kangaroo;
pub mod ngrams;
pub mod prompt_lookup;
pub mod rsd_c;
pub mod rsd_s;
pub mod token_recycling;
pub mod trigrams;
mod worth;

pub use worth::{worth, worthy};
