//! AArch64 with the dot-product extension: the portable vectors, which the compiler maps well to NEON, with the integer
//! dot product by its instruction.

use std::arch::aarch64::*;

use super::columns::{Columns, Portable};

/// NEON with `sdot`.
pub(crate) struct Neon;

/// `sum[lane] += Σ codes[4 lane + j] · a[j]`, signed.
///
/// # Safety
/// The machine has `dotprod`; four bytes are readable at `a`.
#[inline(always)]
unsafe fn sdot(sum: [i32; 16], codes: [u8; 64], flip: u8, a: *const i8) -> [i32; 16] {
    let mut out = sum;
    // SAFETY: the arrays hold 4 × 4 integers and 4 × 16 bytes; the caller answers for `a` and the extension.
    unsafe {
        let a = vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned()));
        for part in 0..4 {
            let codes = veorq_u8(vld1q_u8(codes.as_ptr().add(part * 16)), vdupq_n_u8(flip));
            let mut acc = vld1q_s32(sum.as_ptr().add(part * 4));
            std::arch::asm!(
                ".arch_extension dotprod",
                "sdot {acc:v}.4s, {codes:v}.16b, {a:v}.16b",
                acc = inout(vreg) acc,
                codes = in(vreg) vreinterpretq_s8_u8(codes),
                a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags),
            );
            vst1q_s32(out.as_mut_ptr().add(part * 4), acc);
        }
    }
    out
}

/// Methods that are those of [`Portable`].
macro_rules! portable {
    ($($name:ident($($argument:ident: $type:ty),*) -> $out:ty;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($argument: $type),*) -> $out {
                // SAFETY: the caller's duty.
                unsafe { <Portable as Columns>::$name($($argument),*) }
            }
        )*
    };
}

type F = <Portable as Columns>::F;
type I = <Portable as Columns>::I;
type B = <Portable as Columns>::B;

impl Columns for Neon {
    type F = F;
    type I = I;
    type B = B;
    type W = B;

    portable! {
        zeros() -> F;
        splat(p: *const f32) -> F;
        load(p: *const u8) -> F;
        load_f16(p: *const u8) -> F;
        load_bf16(p: *const u8) -> (F, F);
        load_u8(p: *const u8) -> F;
        load_i8(p: *const u8) -> F;
        store(p: *mut f32, x: F) -> ();
        mul(a: F, b: F) -> F;
        fma(a: F, b: F, c: F) -> F;
        add(a: F, b: F) -> F;
        constant(x: f32) -> F;
        bytes(p: *const u8) -> B;
        shift_mask(b: B, bits: i32, mask: u8) -> B;
        or(a: B, b: B) -> B;
        none() -> I;
        begin_wide(compensation: *const i32) -> I;
        widen(b: B) -> B;
        to_float(x: I) -> F;
        prefetch(p: *const u8) -> ();
    }

    #[inline(always)]
    unsafe fn dot_wide(sum: I, codes: B, a: *const i8) -> I {
        // SAFETY: the caller's duty.
        unsafe { sdot(sum, codes, 0x80, a) }
    }

    #[inline(always)]
    unsafe fn dot(sum: I, codes: B, a: *const i8) -> I {
        // SAFETY: the caller's duty.
        unsafe { sdot(sum, codes, 0, a) }
    }
}
