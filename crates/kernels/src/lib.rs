//! The hot operations of omnidecode: what reads weights, caches and activations, with run-time choice of the instruction
//! set. Everything that is `unsafe` lives here; every operation has a naive reference that it is tested against.

pub mod act;
pub mod activations;
pub mod attend;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dtype;
pub mod error;
pub mod kv;
pub mod map;
mod math;
pub mod matrix;
pub mod norm;
mod pack;
pub mod pick;
pub mod pool;
pub mod product;
pub mod rope;
pub mod rows;
mod simd;
pub mod tier;
