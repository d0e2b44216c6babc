//! Pure decoding logic: trees and masks, page bookkeeping, keyed noise, sampling and verification laws.
//!
//! No tensors, no I/O, no `unsafe`. Everything here is a function of its arguments.
#![forbid(unsafe_code)]

pub mod law;
pub mod mask;
pub mod noise;
pub mod pages;
pub mod prefix;
pub mod tail;
pub mod tree;
pub mod verify;

/// A token id.
pub type Token = u32;

/// Rows a page holds. Attention accumulates over blocks of this many absolute positions, so it is part of the
/// arithmetic and not a tuning knob.
pub const PAGE: usize = 32;
