//! The instruction sets of x86-64 processors.
//!
//! No closures around intrinsics, not even for `array::map`: a closure is compiled without the features of its caller, and
//! where it is not inlined every instruction becomes a call.
// SAFETY of every block in this file: the trait's methods are called only where the machine has the instruction set and
// the pointers are valid, as its documentation demands.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::arch::x86_64::*;

use super::columns::Columns;

/// AVX-512 with VNNI.
pub(crate) struct Avx512;

impl Columns for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type W = __m512i;

    #[inline(always)]
    unsafe fn zeros() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> __m512 {
        unsafe { _mm512_set1_ps(p.read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        unsafe { _mm512_loadu_ps(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> (__m512, __m512) {
        unsafe {
            let pairs = _mm512_loadu_si512(p.cast());
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF_0000_u32 as i32));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn constant(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn shift_mask(b: __m512i, bits: i32, mask: u8) -> __m512i {
        unsafe {
            let count = _mm_cvtsi32_si128(bits.abs());
            let shifted = match bits {
                0 => b,
                1.. => _mm512_sll_epi16(b, count),
                _ => _mm512_srl_epi16(b, count),
            };
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn none() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn begin_wide(compensation: *const i32) -> __m512i {
        unsafe { _mm512_set1_epi32(compensation.read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn widen(b: __m512i) -> __m512i {
        b
    }
    #[inline(always)]
    unsafe fn dot_wide(sum: __m512i, codes: __m512i, a: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, codes: __m512i, a: *const i8) -> __m512i {
        unsafe { Self::dot_wide(sum, codes, a) }
    }
    #[inline(always)]
    unsafe fn to_float(x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// AVX2 with FMA and F16C; with the 256-bit VNNI if `VNNI`.
pub(crate) struct Avx2<const VNNI: bool>;

/// Four codes per column; two vectors of eight columns.
type Two = [__m256i; 2];

impl<const VNNI: bool> Columns for Avx2<VNNI> {
    type F = [__m256; 2];
    type I = Two;
    type B = Two;
    /// Magnitudes and the signed codes; with VNNI the codes as they are, twice.
    type W = (Two, Two);

    #[inline(always)]
    unsafe fn zeros() -> Self::F {
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self::F {
        unsafe { [_mm256_set1_ps(p.read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::F {
        unsafe { [_mm256_loadu_ps(p.cast()), _mm256_loadu_ps(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> (Self::F, Self::F) {
        unsafe {
            let [a, b] = Self::bytes(p);
            let high = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
            (
                [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b))],
                [_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))],
            )
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe {
            let all = _mm_loadu_si128(p.cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(all)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(all))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        unsafe {
            let all = _mm_loadu_si128(p.cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(all))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn constant(x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Two {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn shift_mask(b: Two, bits: i32, mask: u8) -> Two {
        unsafe {
            let (count, mask) = (_mm_cvtsi32_si128(bits.abs()), _mm256_set1_epi8(mask as i8));
            let shifted = match bits {
                0 => b,
                1.. => [_mm256_sll_epi16(b[0], count), _mm256_sll_epi16(b[1], count)],
                _ => [_mm256_srl_epi16(b[0], count), _mm256_srl_epi16(b[1], count)],
            };
            [_mm256_and_si256(shifted[0], mask), _mm256_and_si256(shifted[1], mask)]
        }
    }
    #[inline(always)]
    unsafe fn or(a: Two, b: Two) -> Two {
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn none() -> Two {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn begin_wide(compensation: *const i32) -> Two {
        unsafe { if VNNI { [_mm256_set1_epi32(compensation.read_unaligned()); 2] } else { Self::none() } }
    }
    #[inline(always)]
    unsafe fn widen(b: Two) -> (Two, Two) {
        unsafe {
            if VNNI {
                return (b, b);
            }
            // The product of two unsigned by signed bytes saturates at 16 bits, so the codes are made signed
            // (−128…127) and their sign moves to the activations: 2 · 128 · 127 fits.
            let flip = _mm256_set1_epi8(-128);
            let signed = [_mm256_xor_si256(b[0], flip), _mm256_xor_si256(b[1], flip)];
            ([_mm256_abs_epi8(signed[0]), _mm256_abs_epi8(signed[1])], signed)
        }
    }
    #[inline(always)]
    unsafe fn dot_wide(sum: Two, codes: (Two, Two), a: *const i8) -> Two {
        unsafe {
            if VNNI {
                return Self::dot(sum, codes.0, a);
            }
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            [
                add_pairs(sum[0], _mm256_maddubs_epi16(codes.0[0], _mm256_sign_epi8(a, codes.1[0]))),
                add_pairs(sum[1], _mm256_maddubs_epi16(codes.0[1], _mm256_sign_epi8(a, codes.1[1]))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot(sum: Two, codes: Two, a: *const i8) -> Two {
        unsafe {
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            if VNNI {
                return [_mm256_dpbusd_avx_epi32(sum[0], codes[0], a), _mm256_dpbusd_avx_epi32(sum[1], codes[1], a)];
            }
            // Codes of at most 31: 2 · 31 · 127 fits 16 bits.
            [add_pairs(sum[0], _mm256_maddubs_epi16(codes[0], a)), add_pairs(sum[1], _mm256_maddubs_epi16(codes[1], a))]
        }
    }
    #[inline(always)]
    unsafe fn to_float(x: Two) -> Self::F {
        unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// `sum[lane] + pairs[2 lane] + pairs[2 lane + 1]`.
#[inline(always)]
unsafe fn add_pairs(sum: __m256i, pairs: __m256i) -> __m256i {
    unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))) }
}
