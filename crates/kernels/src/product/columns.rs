//! Sixteen output columns at once: the vocabulary in which the product kernels are written, once for all instruction sets.

use crate::simd::portable::widen_f16;

/// Vectors of sixteen lanes, one lane an output column. Everything is `#[inline(always)]`, so that the instructions end up
/// inside a function that has them enabled.
///
/// # Safety
/// The methods may run only on a machine that has the instruction set. Pointers are valid for what is read or written
/// there; none needs to be aligned.
pub(crate) trait Columns {
    /// 16 floats.
    type F: Copy;
    /// 16 integers of 32 bits.
    type I: Copy;
    /// 64 bytes: four for each column.
    type B: Copy;
    /// 64 codes up to 255, made ready for [`Columns::dot_wide`].
    type W: Copy;

    /// Zeros.
    unsafe fn zeros() -> Self::F;
    /// The float at `p` in every lane.
    unsafe fn splat(p: *const f32) -> Self::F;
    /// 16 floats.
    unsafe fn load(p: *const u8) -> Self::F;
    /// 16 half floats.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// 16 pairs of bf16: the first of each pair, and the second.
    unsafe fn load_bf16(p: *const u8) -> (Self::F, Self::F);
    /// 16 unsigned bytes, as floats.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    /// 16 signed bytes, as floats.
    unsafe fn load_i8(p: *const u8) -> Self::F;
    /// Writes 16 floats.
    unsafe fn store(p: *mut f32, x: Self::F);
    /// `a · b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once where the set can.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a + b`.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `x` in every lane.
    unsafe fn constant(x: f32) -> Self::F;

    /// 64 bytes.
    unsafe fn bytes(p: *const u8) -> Self::B;
    /// Shifts by `bits` and keeps the bits of `mask` in each byte. A negative count shifts right.
    unsafe fn shift_mask(b: Self::B, bits: i32, mask: u8) -> Self::B;
    /// `a | b`.
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;

    /// Zeros.
    unsafe fn none() -> Self::I;
    /// What a sum over codes that are stored with 128 added begins with; `compensation` is −128 times the sum of the
    /// activation codes.
    unsafe fn begin_wide(compensation: *const i32) -> Self::I;
    /// Prepares codes that are stored with 128 added.
    unsafe fn widen(b: Self::B) -> Self::W;
    /// Adds, for each column, four such codes times the four activation codes at `a`.
    unsafe fn dot_wide(sum: Self::I, codes: Self::W, a: *const i8) -> Self::I;
    /// Adds, for each column, four codes of at most 31 times the four activation codes at `a`.
    unsafe fn dot(sum: Self::I, codes: Self::B, a: *const i8) -> Self::I;
    /// Exact for |x| < 2^24.
    unsafe fn to_float(x: Self::I) -> Self::F;

    /// Asks for a cache line.
    unsafe fn prefetch(p: *const u8);
}

/// Plain Rust, as the compiler vectorises it for the baseline.
pub(crate) struct Portable;

#[inline(always)]
fn each<T: Copy, U>(a: [T; 16], f: impl Fn(T) -> U) -> [U; 16] {
    a.map(f)
}

/// Four codes per column times four activation codes.
#[inline(always)]
unsafe fn dot_bytes(sum: [i32; 16], codes: [u8; 64], a: *const i8, offset: i32) -> [i32; 16] {
    // SAFETY: the caller's pointer is valid for four bytes.
    let a = unsafe { a.cast::<[i8; 4]>().read_unaligned() };
    std::array::from_fn(|lane| {
        (0..4).fold(sum[lane], |sum, j| sum + (i32::from(codes[lane * 4 + j]) - offset) * i32::from(a[j]))
    })
}

impl Columns for Portable {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];
    type W = [u8; 64];

    #[inline(always)]
    unsafe fn zeros() -> Self::F {
        [0.0; 16]
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self::F {
        // SAFETY: as documented on the trait; so throughout.
        [unsafe { p.read_unaligned() }; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::F {
        // SAFETY: see above.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: see above.
        each(unsafe { p.cast::<[u16; 16]>().read_unaligned() }, widen_f16)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> (Self::F, Self::F) {
        // SAFETY: see above.
        let pairs = unsafe { p.cast::<[u32; 16]>().read_unaligned() };
        (each(pairs, |pair| f32::from_bits(pair << 16)), each(pairs, |pair| f32::from_bits(pair & 0xFFFF_0000)))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        // SAFETY: see above.
        each(unsafe { p.cast::<[u8; 16]>().read_unaligned() }, f32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        // SAFETY: see above.
        each(unsafe { p.cast::<[i8; 16]>().read_unaligned() }, f32::from)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: see above.
        unsafe { p.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Without the instruction, `mul_add` is a call into libm.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn constant(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Self::B {
        // SAFETY: see above.
        unsafe { p.cast::<Self::B>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn shift_mask(b: Self::B, bits: i32, mask: u8) -> Self::B {
        if bits < 0 { b.map(|x| x >> -bits & mask) } else { b.map(|x| x << bits & mask) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn none() -> Self::I {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn begin_wide(_: *const i32) -> Self::I {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn widen(b: Self::B) -> Self::W {
        b
    }
    #[inline(always)]
    unsafe fn dot_wide(sum: Self::I, codes: Self::W, a: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe { dot_bytes(sum, codes, a, 128) }
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, codes: Self::B, a: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe { dot_bytes(sum, codes, a, 0) }
    }
    #[inline(always)]
    unsafe fn to_float(x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
