//! Reductions of one row of logits: the largest, the k largest, statistics, log-probabilities, a choice.
//!
//! A row is reduced in pieces of [`PIECE`] tokens whose results are joined in order, so that the `*_with` twins, which
//! share the pieces among threads, give the same bits.
use crate::pool::Pool;
use std::sync::OnceLock;

mod keep;
mod race;
mod scan;
mod top;

pub use keep::{Scratch, Warp, sample, sample_with};
pub use scan::{Stats, argmax, argmax_with, logprobs, stats, stats_with};
pub use top::top_k;

/// Tokens that are reduced in one go; part of the arithmetic.
const PIECE: usize = 4096;

/// Why a row of logits has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// A logit is NaN or +inf.
    #[error(
        "expected finite logits or -inf, found NaN or +inf in the row: check the weights, the inputs or the logits processors of this request"
    )]
    NotFinite,
    /// Every token is excluded.
    #[error(
        "expected at least one token with a finite logit, found none: the logits processors of this request exclude every token"
    )]
    Empty,
}

/// Run `f(piece)` for each piece of a row, on the pool if there is one, and give the results in order.
fn pieces<T: Copy + Default + Send + Sync>(
    pool: Option<&Pool>,
    len: usize,
    f: impl Fn(usize) -> T + Sync,
    mut each: impl FnMut(T),
) {
    // Rows beyond 262144 tokens are reduced by one thread.
    const SHARED: usize = 64;
    let count = len.div_ceil(PIECE);
    match pool {
        Some(pool) if (2..=SHARED).contains(&count) && pool.threads() > 1 => {
            let slots = [const { OnceLock::new() }; SHARED];
            pool.run(count, &|i| {
                let _ = slots[i].set(f(i));
            });
            slots.into_iter().take(count).for_each(|slot| each(slot.into_inner().unwrap_or_default()));
        }
        _ => (0..count).for_each(|i| each(f(i))),
    }
}

/// Piece `i` of a row.
fn piece(logits: &[f32], i: usize) -> &[f32] {
    &logits[i * PIECE..((i + 1) * PIECE).min(logits.len())]
}

#[cfg(test)]
mod tests;
