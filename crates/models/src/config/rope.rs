//! Rotary position embeddings: the frequencies of each kind, in f32, in the order of operations of transformers 5.23.
use std::f64::consts::PI;

/// One rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Numbers of a head that are rotated, from its first; even, at most `head_dim`.
    pub rotary: usize,
    /// What is done to the plain frequencies.
    pub scaling: RopeScaling,
}

/// Kinds of scaling.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All frequencies divided.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// The base grows with sequences longer than `context` (NTK-aware).
    Dynamic {
        /// Stretch.
        factor: f64,
        /// Length up to which nothing changes.
        context: usize,
    },
    /// Long waves divided by `factor`, short ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// Divisor of long waves.
        factor: f64,
        /// `original / low` is the wavelength from which all is divided.
        low: f64,
        /// `original / high` is the wavelength up to which nothing is.
        high: f64,
        /// Context of pre-training.
        original: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// Stretch.
        factor: f64,
        /// Context of pre-training.
        original: usize,
        /// Rotations over `original` above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// Factor on cosines and sines.
        attention: f64,
        /// Whether the ramp's ends are rounded outward.
        truncate: bool,
    },
    /// A divisor for each frequency, another set beyond `original` (LongRoPE).
    LongRope {
        /// Divisors up to `original`, one for each frequency.
        short: Vec<f32>,
        /// Divisors beyond it.
        long: Vec<f32>,
        /// Context of pre-training.
        original: usize,
        /// Factor on cosines and sines.
        attention: f64,
    },
    /// A divisor for each frequency, as the tensor `rope_freqs.weight` of a GGUF file gives them.
    Divisors(
        /// One for each frequency.
        Vec<f32>,
    ),
}

impl RopeSpec {
    /// Inverse frequencies, `rotary / 2` of them, and the factor on cosines and sines, for sequences up to `length`
    /// tokens. Only `Dynamic` and `LongRope` depend on `length`.
    pub fn inverse_frequencies(&self, length: usize) -> (Vec<f32>, f32) {
        let dim = self.rotary;
        let exponents = move || (0..dim / 2).map(move |i| (2 * i) as f32 / dim as f32);
        let plain = |theta: f64| exponents().map(move |e| 1.0 / (theta as f32).powf(e));
        match &self.scaling {
            RopeScaling::Default => (plain(self.theta).collect(), 1.0),
            RopeScaling::Linear { factor } => (plain(self.theta).map(|f| f / *factor as f32).collect(), 1.0),
            RopeScaling::Dynamic { factor, context } => {
                let length = length.max(*context) as f64;
                let stretch = factor * length / *context as f64 - (factor - 1.0);
                let theta = self.theta * stretch.powf(dim as f64 / (dim as f64 - 2.0));
                (plain(theta).collect(), 1.0)
            }
            RopeScaling::Llama3 { factor, low, high, original } => {
                let original = *original as f64;
                let bend = |frequency: f32| {
                    let wavelength = (2.0 * PI) as f32 / frequency;
                    if wavelength > (original / low) as f32 {
                        frequency / *factor as f32
                    } else if wavelength < (original / high) as f32 {
                        frequency
                    } else {
                        let smooth = (original as f32 / wavelength - *low as f32) / (high - low) as f32;
                        (1.0 - smooth) * frequency / *factor as f32 + smooth * frequency
                    }
                };
                (plain(self.theta).map(bend).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention, truncate } => {
                // The index of the frequency that turns `rotations` times over the original context.
                let index = |rotations: f64| {
                    dim as f64 * (*original as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (index(*beta_fast), index(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let bend = |(i, e): (usize, f32)| {
                    let wave = (self.theta as f32).powf(e);
                    let kept = 1.0 - ramp(i);
                    1.0 / (*factor as f32 * wave) * (1.0 - kept) + 1.0 / wave * kept
                };
                (exponents().enumerate().map(bend).collect(), *attention as f32)
            }
            RopeScaling::LongRope { short, long, original, attention } => {
                let divisors = if length > *original { long } else { short };
                (divided(self.theta, exponents(), divisors), *attention as f32)
            }
            RopeScaling::Divisors(divisors) => (divided(self.theta, exponents(), divisors), 1.0),
        }
    }
}

fn divided(theta: f64, exponents: impl Iterator<Item = f32>, divisors: &[f32]) -> Vec<f32> {
    exponents.zip(divisors).map(|(e, d)| 1.0 / (d * (theta as f32).powf(e))).collect()
}

/// The factor on cosines and sines that YaRN proposes for a stretch (arXiv 2309.00071, section 3.4), `mscale` times its
/// logarithm.
pub(crate) fn yarn_attention(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// The factor on cosines and sines that LongRoPE proposes for a stretch of `original` tokens.
pub(crate) fn longrope_attention(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}
