//! One request that is many sequences: branches that share their common pages and run in the same batched forward.
//!
//! A search is a loop over [`branch::grow`], which samples all branches side by side up to the next step boundary, and
//! [`judging::Judging`], which scores them in one batch. A branch that is dropped frees its pages at once.
pub mod a_star;
pub mod answers;
pub mod beam;
pub mod best_of_n;
pub mod branch;
pub mod countdown;
pub mod judge_beam;
pub mod judging;
pub mod particle;
pub mod self_consistency;
mod settings;
