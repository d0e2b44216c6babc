//! Which instructions the kernels may use: chosen once at run time, lowered by `OMNIDECODE_TIER`.

use std::fmt;
use std::sync::OnceLock;

use crate::error::KernelError;

/// A set of instructions that a family of kernels is compiled for. Within a tier every product is bitwise
/// row-invariant; between tiers results may differ by rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// What the compiler makes of plain Rust for the baseline processor.
    Portable,
    /// AArch64 with the dot-product extension.
    Neon,
    /// AVX2, FMA and F16C.
    Avx2,
    /// [`Tier::Avx2`] and the 256-bit integer dot product of client processors.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// [`Tier::Avx512`] and the bf16 dot product.
    Avx512Bf16,
}

impl Tier {
    /// Every tier, weakest first.
    pub const ALL: [Tier; 6] = [Tier::Portable, Tier::Neon, Tier::Avx2, Tier::AvxVnni, Tier::Avx512, Tier::Avx512Bf16];

    /// The name that `OMNIDECODE_TIER` takes.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Portable => "portable",
            Tier::Neon => "neon",
            Tier::Avx2 => "avx2",
            Tier::AvxVnni => "avxvnni",
            Tier::Avx512 => "avx512",
            Tier::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether this machine can run the tier's kernels.
    pub fn is_available(self) -> bool {
        match self {
            Tier::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Tier::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Tier::AvxVnni => Tier::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => {
                Tier::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Bf16 => Tier::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Whether AVX2, FMA and F16C may be used.
    pub fn avx2(self) -> bool {
        matches!(self, Tier::Avx2 | Tier::AvxVnni | Tier::Avx512 | Tier::Avx512Bf16)
    }

    /// Whether AVX-512 F, BW, DQ and VL may be used.
    pub fn avx512(self) -> bool {
        matches!(self, Tier::Avx512 | Tier::Avx512Bf16)
    }

    /// The tiers that this machine has, weakest first.
    pub fn available() -> impl Iterator<Item = Tier> {
        Tier::ALL.into_iter().filter(|tier| tier.is_available())
    }

    /// The best tier of this machine, whatever the environment says.
    pub fn best() -> Tier {
        Tier::available().last().unwrap_or(Tier::Portable)
    }

    /// The tier to use: `OMNIDECODE_TIER` if it is set and not empty, else the best one.
    ///
    /// # Errors
    /// The variable names no tier, or one that this machine lacks. Read once: later changes of the environment have no effect.
    pub fn detect() -> Result<Tier, KernelError> {
        static FOUND: OnceLock<Result<Tier, KernelError>> = OnceLock::new();
        FOUND
            .get_or_init(|| match std::env::var_os("OMNIDECODE_TIER") {
                Some(name) if !name.is_empty() => Tier::named(&name.to_string_lossy()),
                _ => Ok(Tier::best()),
            })
            .clone()
    }

    /// As [`Tier::detect`], but the best tier where the environment is wrong (an engine calls `detect` once to report that).
    pub fn current() -> Tier {
        Tier::detect().unwrap_or_else(|_| Tier::best())
    }

    /// The available tier of this name, in any case.
    ///
    /// # Errors
    /// No tier is called so, or this machine lacks it.
    pub fn named(name: &str) -> Result<Tier, KernelError> {
        let wanted = Tier::ALL
            .into_iter()
            .find(|tier| tier.name().eq_ignore_ascii_case(name.trim()))
            .ok_or_else(|| KernelError::UnknownTier(name.to_owned()))?;
        if wanted.is_available() {
            return Ok(wanted);
        }
        let available: Vec<_> = Tier::available().map(Tier::name).collect();
        Err(KernelError::TierUnavailable { wanted, available: available.join(", ") })
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_in_any_case_and_wrong_ones_refused() {
        assert_eq!(Tier::named(" Portable "), Ok(Tier::Portable));
        assert_eq!(Tier::named("sse9"), Err(KernelError::UnknownTier("sse9".into())));
        let foreign = if cfg!(target_arch = "aarch64") { Tier::Avx2 } else { Tier::Neon };
        assert!(matches!(Tier::named(foreign.name()), Err(KernelError::TierUnavailable { .. })));
    }

    #[test]
    fn the_best_tier_is_available() {
        assert!(Tier::best().is_available());
        assert_eq!(Tier::available().next(), Some(Tier::Portable));
    }
}
