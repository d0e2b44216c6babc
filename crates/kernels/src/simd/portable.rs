//! The set that every machine has: arrays of eight floats that the compiler vectorises.
use super::{Simd, Task};

/// Eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type V = [f32; 8];

#[inline(always)]
fn map2(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Widen one half, by the usual exponent rebias; exact for every bit pattern but NaN payloads.
#[inline(always)]
pub(crate) fn widen_f16(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let magnitude = u32::from(h & 0x7FFF) << 13;
    // Scaling by 2^112 rebiases normals and renormalises subnormals at once; infinities and NaN land at 2^16 and above.
    let scaled = f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23);
    let bits = scaled.to_bits() | if scaled >= 65536.0 { 255 << 23 } else { 0 };
    f32::from_bits(bits | sign)
}

impl Simd for Portable {
    type V = V;
    const LANES: usize = 8;
    const TILE: usize = 2;

    #[inline(never)]
    fn call<T: Task>(self, task: T) -> T::Out {
        task.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: the caller's duty.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        // SAFETY: the caller's duty.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> V {
        // SAFETY: the caller's duty.
        unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(widen_f16)
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        // Without the instruction, `mul_add` is a call into libm.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn dot_pairs(self, a: V, b: V, c: V) -> V {
        let first = |v: V| v.map(|x| f32::from_bits(x.to_bits() << 16));
        let second = |v: V| v.map(|x| f32::from_bits(x.to_bits() & 0xFFFF_0000));
        self.fma(second(a), second(b), self.fma(first(a), first(b), c))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: V) {
        let short = v.map(|x| (x.to_bits().wrapping_add(0x7FFF + (x.to_bits() >> 16 & 1)) >> 16) as u16);
        // SAFETY: the caller's duty.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(short) }
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: V) -> V {
        a.map(|x| f32::from_bits(x.to_bits() & 0x7FFF_FFFF))
    }
    #[inline(always)]
    fn round(self, a: V) -> V {
        // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the mantissa.
        const MAGIC: f32 = 12_582_912.0;
        a.map(|x| (x + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn scale2(self, v: V, n: V) -> V {
        // Two factors, because 2^n alone leaves the range of f32 for n < -126.
        std::array::from_fn(|i| {
            let n = n[i] as i32;
            let half = n >> 1;
            let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
            v[i] * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    fn pick_less(self, a: V, b: V, x: V, y: V) -> V {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn greater(self, a: V, b: V) -> u32 {
        (0..8).fold(0, |m, i| m | (u32::from(a[i] > b[i]) << i))
    }
    #[inline(always)]
    fn nan(self, a: V) -> u32 {
        (0..8).fold(0, |m, i| m | (u32::from(a[i].is_nan()) << i))
    }
    #[inline(always)]
    fn reduce_max(self, v: V) -> f32 {
        v.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
    }
    #[inline(always)]
    fn reduce_add(self, v: V) -> f32 {
        let q = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
        (q[0] + q[2]) + (q[1] + q[3])
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn halves_widen_exactly() {
        for h in 0..=u16::MAX {
            let (got, want) = (super::widen_f16(h), half::f16::from_bits(h).to_f32());
            assert!(got == want || (got.is_nan() && want.is_nan()), "{h:#x}: {got} for {want}");
        }
    }
}
