//! Decoding strategies, one file a system, and their registry.
//!
//! A strategy says which rows to run, who sees whom and what to read back; it awaits the outcome, decides, commits. It
//! never touches a tensor, a kernel or a model class. To add one: its file, one line below, its document in
//! `tests/strategies`.
#![forbid(unsafe_code)]

pub mod autoregressive;
pub mod companions;
pub mod diffusion;
pub mod fusion;
pub mod latent;
pub mod parallel;
pub mod params;
pub mod registry;
pub mod scoring;
pub mod search;
pub mod speculative;

pub use registry::{Card, Entry, ParamSet, ROLES, RegistryError, System, find, strategy};

registry::strategies! {
    autoregressive::plain,
    diffusion::dream,
    diffusion::freedave,
    diffusion::llada,
    diffusion::sdar,
    fusion::fs_gen,
    parallel::superposed,
    scoring::first,
    speculative::aded,
    latent::coconut,
    search::a_star,
    search::beam,
    search::best_of_n,
    search::judge_beam,
    search::particle,
    search::self_consistency,
    speculative::draft_model,
    speculative::dyspec,
    speculative::kangaroo,
    speculative::prompt_lookup,
    speculative::rsd_c,
    speculative::rsd_s,
    speculative::token_recycling,
}
