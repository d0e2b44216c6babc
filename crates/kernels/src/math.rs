//! exp, tanh and erf over vectors: polynomials fitted here (weighted minimax, residuals beside them), the same bits
//! in every lane.
use crate::simd::Simd;

/// Evaluate a polynomial, coefficients from the constant up.
#[inline(always)]
fn poly<S: Simd, const N: usize>(s: S, x: S::V, c: &[f32; N]) -> S::V {
    let mut y = s.splat(c[N - 1]);
    for &k in c[..N - 1].iter().rev() {
        y = s.fma(y, x, s.splat(k));
    }
    y
}

/// 2^x for x <= 127; 0 for x < -150, also for -inf.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, x: S::V) -> S::V {
    // 2^r on [-1/2, 1/2], relative residual 1.9e-9.
    const C: [f32; 7] = [1.0, 6.931_472e-1, 2.402_264_7e-1, 5.550_329e-2, 9.618_489e-3, 1.339_993_1e-3, 1.534_581_2e-4];
    let x = s.max(x, s.splat(-152.0));
    let n = s.round(x);
    s.scale2(poly(s, s.sub(x, n), &C), n)
}

/// e^x; 0 below -104, inf above 88.73, NaN stays.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // (e^r - 1) / r on [-0.35, 0.35], relative residual 1.1e-8.
    const C: [f32; 6] = [1.0, 0.5, 1.666_65e-1, 4.166_715_5e-2, 8.369_778e-3, 1.388_887_2e-3];
    // ln 2 = HI + LO, HI with 15 bits so that n * HI is exact without fma.
    const HI: f32 = 355.0 / 512.0;
    const LO: f32 = -2.121_944_4e-4;
    // The order of the operands lets NaN through.
    let x = s.min(s.splat(89.0), s.max(s.splat(-105.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-HI), x);
    let r = s.fma(n, s.splat(-LO), r);
    s.scale2(s.fma(r, poly(s, r, &C), s.splat(1.0)), n)
}

/// tanh x.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // (tanh(x) / x - 1) / x^2 in x^2 for |x| < 0.625, residual 1.5e-9.
    const C: [f32; 6] = [-3.333_333_4e-1, 1.333_330_5e-1, -5.395_955e-2, 2.177_099_6e-2, -8.350_008e-3, 2.298_941_7e-3];
    let a = s.abs(x);
    let z = s.mul(x, x);
    let small = s.fma(s.mul(x, z), poly(s, z, &C), x);
    let e = exp(s, s.add(a, a));
    let large = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    let large = s.pick_less(x, s.splat(0.0), s.sub(s.splat(0.0), large), large);
    s.pick_less(a, s.splat(0.625), small, large)
}

/// erf x.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    // erf(x) / x in x^2 for |x| < 1, residual 1.2e-9.
    const SMALL: [f32; 7] = [
        std::f32::consts::FRAC_2_SQRT_PI,
        -3.761_262_6e-1,
        1.128_358_5e-1,
        -2.685_381_2e-2,
        5.188_327_7e-3,
        -8.010_193_5e-4,
        7.853_861e-5,
    ];
    // -ln(1 - erf(a)) for 1 <= a <= 4, residual 2.1e-11 after weighting with 1 - erf(a).
    const LARGE: [f32; 8] = [
        -1.880_370_8e-4,
        1.129_578_4,
        6.332_199e-1,
        1.084_185_5e-1,
        -2.520_824e-2,
        4.204_556_3e-3,
        -4.413_353e-4,
        2.168_676_4e-5,
    ];
    let a = s.min(s.splat(4.0), s.abs(x));
    let small = s.mul(x, poly(s, s.mul(x, x), &SMALL));
    let q = poly(s, a, &LARGE);
    let large = s.sub(s.splat(1.0), exp(s, s.sub(s.splat(0.0), q)));
    let large = s.pick_less(x, s.splat(0.0), s.sub(s.splat(0.0), large), large);
    s.pick_less(s.abs(x), s.splat(1.0), small, large)
}

/// Apply an elementwise function to a slice: the remainder goes through the same vector code as the body.
#[inline(always)]
pub(crate) fn map<S: Simd>(s: S, x: &mut [f32], f: impl Fn(S::V) -> S::V) {
    let mut rest = x;
    while !rest.is_empty() {
        let n = rest.len().min(S::LANES);
        let (head, tail) = rest.split_at_mut(n);
        // SAFETY: `head` holds n floats.
        unsafe {
            let v = s.load_part(head.as_ptr(), n, 0.0);
            s.store_part(head.as_mut_ptr(), n, f(v));
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Task, every_set};

    #[derive(Clone)]
    struct Apply(fn(usize) -> f32, usize, u8);
    impl Task for Apply {
        type Out = Vec<(f32, f32)>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Out {
            let x: Vec<f32> = (0..self.1).map(self.0).collect();
            let mut y = x.clone();
            match self.2 {
                0 => map(s, &mut y, |v| exp(s, v)),
                1 => map(s, &mut y, |v| exp2(s, v)),
                2 => map(s, &mut y, |v| tanh(s, v)),
                _ => map(s, &mut y, |v| erf(s, v)),
            }
            x.into_iter().zip(y).collect()
        }
    }
    fn ulps(got: f32, want: f64) -> f64 {
        let w = want as f32;
        let spacing = f64::from(f32::from_bits(w.abs().max(f32::MIN_POSITIVE).to_bits() + 1))
            - f64::from(w.abs().max(f32::MIN_POSITIVE));
        (f64::from(got) - want).abs() / spacing
    }
    /// erf by its series, for |x| <= 5.
    fn erf64(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    fn check(task: Apply, reference: fn(f64) -> f64, bound: f64) {
        every_set(task, |set, pairs| {
            let worst = pairs
                .iter()
                .map(|&(x, y)| (ulps(y, reference(f64::from(x))), x, y))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .unwrap();
            assert!(worst.0 <= bound, "{set}: {} ulp at {} -> {}", worst.0, worst.1, worst.2);
        });
    }

    #[test]
    fn exp_is_accurate() {
        check(Apply(|i| (i as f32 - 43_500.0) * 0.002, 87_500, 0), f64::exp, 1.5);
        check(Apply(|i| -(i as f32) * 0.0013, 96_000, 1), f64::exp2, 1.5);
    }
    #[test]
    fn tanh_and_erf_are_accurate() {
        check(Apply(|i| (i as f32 - 50_000.0) * 0.0002, 100_001, 2), f64::tanh, 3.0);
        check(Apply(|i| (i as f32 - 15_000.0) * 0.0002, 30_001, 3), erf64, 3.0);
    }
    #[test]
    fn extremes_are_honest() {
        every_set(Apply(|i| [f32::NEG_INFINITY, -200.0, 200.0, f32::INFINITY, f32::NAN][i], 5, 0), |_, p| {
            assert_eq!([p[0].1, p[1].1], [0.0, 0.0]);
            assert!(p[2].1 == f32::INFINITY && p[3].1 == f32::INFINITY && p[4].1.is_nan());
        });
        every_set(Apply(|i| [f32::NEG_INFINITY, -1e4, -150.5, -0.0][i], 4, 1), |_, p| {
            assert_eq!([p[0].1, p[1].1, p[2].1, p[3].1], [0.0, 0.0, 0.0, 1.0]);
        });
        every_set(Apply(|i| [f32::NEG_INFINITY, -30.0, 30.0, f32::INFINITY, f32::NAN, 0.0][i], 6, 2), |_, p| {
            assert_eq!([p[0].1, p[1].1, p[2].1, p[3].1, p[5].1], [-1.0, -1.0, 1.0, 1.0, 0.0]);
            assert!(p[4].1.is_nan());
        });
    }
}
