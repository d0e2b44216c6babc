//! Decoding strategies, one file a system, and their registry.
//!
//! A strategy says which rows to run, who sees whom and what to read back; it awaits the outcome, decides, commits. It
//! never touches a tensor, a kernel or a model class. To add one: its file, one line below, its document in
//! `tests/strategies`.
#![forbid(unsafe_code)]

pub mod autoregressive;
pub mod params;
pub mod registry;
pub mod speculative;

pub use registry::{Card, Entry, ParamSet, RegistryError, System, find, strategy};

registry::strategies! {
    autoregressive::plain,
    speculative::prompt_lookup,
    speculative::token_recycling,
}
