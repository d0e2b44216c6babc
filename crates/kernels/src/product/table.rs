//! Which kernel multiplies a type on a tier, for each number of rows in a register tile.

use super::columns::Portable;
use super::tile::{self, Floats, Format, Operands};
use crate::dtype::Dtype;
use crate::tier::Tier;

/// A kernel for a fixed number of rows.
///
/// # Safety
/// As for [`tile::int8`]; the machine has the tier that the kernel was asked for.
pub(crate) type Kernel = unsafe fn(Operands);

/// Rows of the largest register tile on any tier: more gain nothing, their sums fill the registers.
pub(crate) const MOST_ROWS: usize = 8;

/// The kernels of a type on a tier: entry `r − 1` is for `r` rows; as many as fill the tier's registers.
///
/// # Panics
/// The tier belongs to another architecture.
pub(crate) fn kernels(tier: Tier, dtype: Dtype) -> &'static [Kernel] {
    match tier {
        Tier::Portable => portable::of(dtype),
        // Three rows of bf16, a pair of vectors each, would spill.
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 if dtype == Dtype::Bf16 => &avx2::of(dtype)[..2],
        #[cfg(target_arch = "x86_64")]
        Tier::AvxVnni if dtype == Dtype::Bf16 => &avxvnni::of(dtype)[..2],
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => avx2::of(dtype),
        #[cfg(target_arch = "x86_64")]
        Tier::AvxVnni => avxvnni::of(dtype),
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512Bf16 if dtype == Dtype::Bf16 => bf16::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512 | Tier::Avx512Bf16 => avx512::of(dtype),
        #[cfg(target_arch = "aarch64")]
        Tier::Neon => neon::of(dtype),
        #[allow(unreachable_patterns)]
        _ => unreachable!("{tier} is of another architecture"),
    }
}

/// The kernels of one instruction set, compiled with its features.
macro_rules! set {
    ($(#[$features:meta])* $name:ident, $columns:ty, [$($rows:literal)*]) => {
        mod $name {
            use super::*;

            $(#[$features])*
            unsafe fn int8<F: Format, const R: usize>(on: Operands) {
                // SAFETY: the caller's duty.
                unsafe { tile::int8::<$columns, F, R>(on) }
            }

            $(#[$features])*
            unsafe fn floats<F: Floats, const R: usize>(on: Operands) {
                // SAFETY: the caller's duty.
                unsafe { tile::floats::<$columns, F, R>(on) }
            }

            pub(super) fn of(dtype: Dtype) -> &'static [Kernel] {
                match dtype {
                    Dtype::F32 => &[$(floats::<tile::F32, $rows>),*],
                    Dtype::F16 => &[$(floats::<tile::F16, $rows>),*],
                    Dtype::Bf16 => &[$(floats::<tile::Bf16, $rows>),*],
                    Dtype::Q4_0 => &[$(int8::<tile::Q4_0, $rows>),*],
                    Dtype::Q4_1 => &[$(int8::<tile::Q4_1, $rows>),*],
                    Dtype::Q5_0 => &[$(int8::<tile::Q5_0, $rows>),*],
                    Dtype::Q5_1 => &[$(int8::<tile::Q5_1, $rows>),*],
                    Dtype::Q8_0 => &[$(int8::<tile::Q8_0, $rows>),*],
                    Dtype::Q4K => &[$(int8::<tile::Q4K, $rows>),*],
                    Dtype::Q5K => &[$(int8::<tile::Q5K, $rows>),*],
                    Dtype::Q6K => &[$(int8::<tile::Q6K, $rows>),*],
                }
            }
        }
    };
}

set!(portable, Portable, [1 2 3 4]);

#[cfg(target_arch = "x86_64")]
set!(#[target_feature(enable = "avx2,fma,f16c")] avx2, crate::product::x86::Avx2<false>, [1 2 3]);

#[cfg(target_arch = "x86_64")]
set!(#[target_feature(enable = "avx2,fma,f16c,avxvnni")] avxvnni, crate::product::x86::Avx2<true>, [1 2 3]);

#[cfg(target_arch = "x86_64")]
set!(
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    avx512, crate::product::x86::Avx512, [1 2 3 4 5 6 7 8]
);

#[cfg(target_arch = "aarch64")]
set!(#[target_feature(enable = "neon,dotprod")] neon, crate::product::neon::Neon, [1 2 3 4]);

/// bf16 weights times activations rounded to bf16, by the instruction for it.
#[cfg(target_arch = "x86_64")]
mod bf16 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::product::x86::Avx512;

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pairs<const R: usize>(on: Operands) {
        // SAFETY: the operands point to a whole bf16 tile, `R` rows of `k` (a multiple of 4) bf16 inputs and room for
        // 16 outputs of each. `__m512bh` is any 64 bytes.
        unsafe {
            let rows: [*const i32; R] = std::array::from_fn(|r| (*on.rows.add(r)).cast());
            let load = |at: usize| std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(on.tile.add(at).cast()));
            let pair = |r: usize, at: usize| {
                std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(rows[r].add(at).read_unaligned()))
            };
            let mut first = [_mm512_setzero_ps(); R];
            let mut second = [_mm512_setzero_ps(); R];
            for step in 0..on.k / 4 {
                let at = step * 128;
                tile::read_ahead::<Avx512>(on, tile::ahead(Dtype::Bf16, R), on.tile.add(at), 128);
                let (a, b) = (load(at), load(at + 64));
                for r in 0..R {
                    first[r] = _mm512_dpbf16_ps(first[r], a, pair(r, 2 * step));
                    second[r] = _mm512_dpbf16_ps(second[r], b, pair(r, 2 * step + 1));
                }
            }
            for r in 0..R {
                _mm512_storeu_ps(on.out.add(r * on.stride), _mm512_add_ps(first[r], second[r]));
            }
        }
    }

    pub(super) const KERNELS: &[Kernel] =
        &[pairs::<1>, pairs::<2>, pairs::<3>, pairs::<4>, pairs::<5>, pairs::<6>, pairs::<7>, pairs::<8>];
}
