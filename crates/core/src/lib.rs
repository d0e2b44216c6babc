//! Pure decoding logic: trees and masks, page bookkeeping, keyed noise, sampling and verification laws.
//!
//! No tensors, no I/O, no `unsafe`. Everything here is a function of its arguments.
#![forbid(unsafe_code)]

pub mod noise;

/// A token id.
pub type Token = u32;
