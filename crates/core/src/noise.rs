//! Keyed, stateless noise: everything random is a function of what it is keyed by.
//!
//! Keying by (seed, absolute position, purpose, lane) makes a draw independent of batch, chunking and draft, which is
//! what lets a sampled request be `Exact` (sheet 00, V1).

/// A well-mixed 64-bit hash (SplitMix64's finalizer).
#[inline]
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// One hash of two words, order-sensitive.
#[inline]
pub fn pair(a: u64, b: u64) -> u64 {
    mix(mix(a) ^ b.rotate_left(17))
}

/// Uniform in the open interval (0, 1) from a hash.
#[inline]
pub fn unit(hash: u64) -> f64 {
    ((mix(hash) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// What a draw is for: two purposes at one position must not share noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// The target's own choice of a token.
    Sample = 1,
    /// Accepting or refusing a drafted token.
    Accept = 2,
    /// Drawing from a residual law.
    Residual = 3,
    /// Drawing a draft.
    Draft = 4,
    /// Order, remasking and other choices of a diffusion loop.
    Canvas = 5,
    /// Choices of a search (particles, resampling).
    Search = 6,
}

/// The key of all draws for one purpose at one position of one request.
///
/// `position` is absolute in the sequence. Lane `v` of [`Key::uniform`] is usually a token id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of (seed, absolute position, purpose).
    pub fn new(seed: u64, position: usize, purpose: Purpose) -> Self {
        Key(pair(seed, ((position as u64) << 3) | purpose as u64))
    }
    /// Uniform in (0, 1), one per lane.
    #[inline]
    pub fn uniform(self, lane: u64) -> f64 {
        unit(pair(self.0, lane))
    }
    /// The word behind the key, for kernels that draw many lanes at once: lane `v` is `unit(pair(word, v))`.
    pub fn word(self) -> u64 {
        self.0
    }
}
