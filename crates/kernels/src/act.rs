//! Activation functions and the gated product of a feed-forward layer.
use crate::math;
use crate::simd::{Simd, Task, dispatch};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// x / (1 + e^-x)
    Silu,
    /// x (1 + erf(x / sqrt 2)) / 2
    Gelu,
    /// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// max(x, 0)^2
    ReluSquared,
}

#[inline(always)]
fn eval<S: Simd>(s: S, act: Act, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let half = s.mul(x, s.splat(0.5));
    match act {
        Act::Silu => s.div(x, s.add(one, math::exp(s, s.sub(s.splat(0.0), x)))),
        Act::Gelu => s.fma(half, math::erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half),
        Act::GeluTanh => {
            let cube = s.mul(s.mul(x, x), x);
            let inner = s.mul(s.fma(cube, s.splat(0.044_715), x), s.splat(0.797_884_6));
            s.fma(half, math::tanh(s, inner), half)
        }
        // NaN stays: `max` gives its second operand then.
        Act::Relu => s.max(s.splat(0.0), x),
        Act::ReluSquared => {
            let positive = s.max(s.splat(0.0), x);
            s.mul(positive, positive)
        }
    }
}

struct Apply<'a>(Act, &'a mut [f32]);
impl Task for Apply<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // One loop per function, so that the choice is outside of it.
        match self.0 {
            Act::Silu => math::map(s, self.1, |v| eval(s, Act::Silu, v)),
            Act::Gelu => math::map(s, self.1, |v| eval(s, Act::Gelu, v)),
            Act::GeluTanh => math::map(s, self.1, |v| eval(s, Act::GeluTanh, v)),
            Act::Relu => math::map(s, self.1, |v| eval(s, Act::Relu, v)),
            Act::ReluSquared => math::map(s, self.1, |v| eval(s, Act::ReluSquared, v)),
        }
    }
}

/// `x[i] = act(x[i])`. The bits of an element do not depend on its place or on the length.
pub fn apply(act: Act, x: &mut [f32]) {
    dispatch(Apply(act, x));
}

struct Gate<'a>(Act, &'a [f32], &'a [f32], &'a mut [f32]);
impl Gate<'_> {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, act: Act) {
        let n = self.3.len();
        let (gate, up, out) = (&self.1[..n], &self.2[..n], self.3);
        let mut i = 0;
        while i < n {
            // SAFETY: the three slices hold n floats, i < n.
            unsafe {
                let g = s.load_part(gate.as_ptr().add(i), n - i, 0.0);
                let u = s.load_part(up.as_ptr().add(i), n - i, 0.0);
                s.store_part(out.as_mut_ptr().add(i), n - i, s.mul(eval(s, act, g), u));
            }
            i += S::LANES;
        }
    }
}
impl Task for Gate<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.0 {
            Act::Silu => self.each(s, Act::Silu),
            Act::Gelu => self.each(s, Act::Gelu),
            Act::GeluTanh => self.each(s, Act::GeluTanh),
            Act::Relu => self.each(s, Act::Relu),
            Act::ReluSquared => self.each(s, Act::ReluSquared),
        }
    }
}

/// `out[i] = act(gate[i]) * up[i]`. The bits of an element do not depend on its place or on the length.
///
/// # Panics
/// When `gate` or `up` is shorter than `out`.
pub fn gate(act: Act, gate: &[f32], up: &[f32], out: &mut [f32]) {
    dispatch(Gate(act, gate, up, out));
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Act; 5] = [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::ReluSquared];

    /// erf by its series, which cancels beyond 4, where 1 is right to 2e-8.
    fn erf(x: f64) -> f64 {
        if x.abs() > 4.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..300 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }
    fn reference(act: Act, x: f64) -> f64 {
        match act {
            Act::Silu => x / (1.0 + (-x).exp()),
            Act::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
            Act::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            Act::Relu => x.max(0.0),
            Act::ReluSquared => x.max(0.0).powi(2),
        }
    }
    fn inputs() -> Vec<f32> {
        (0..16_003).map(|i| (i as f32 - 8000.0) * 0.001).collect()
    }

    #[test]
    fn activations_follow_their_formula() {
        for act in ALL {
            let mut y = inputs();
            apply(act, &mut y);
            for (x, y) in inputs().into_iter().zip(y) {
                let want = reference(act, f64::from(x));
                assert!((f64::from(y) - want).abs() <= 2.5e-7 * (1.0 + want.abs()), "{act:?}({x}) = {y}, not {want}");
            }
        }
        for act in ALL {
            let mut y = [f32::NAN, 100.0, -100.0, 1e15];
            apply(act, &mut y);
            if act == Act::ReluSquared {
                y.iter_mut().for_each(|y| *y = y.sqrt());
            }
            assert!(y[0].is_nan(), "{act:?}");
            assert_eq!([y[1], y[2].abs(), y[3]], [100.0, y[2].abs().min(1e-30), 1e15], "{act:?}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_place_or_length() {
        let (x, up) = (inputs(), inputs().into_iter().rev().collect::<Vec<_>>());
        for act in ALL {
            let (mut whole, mut gated) = (x.clone(), vec![0.0; x.len()]);
            apply(act, &mut whole);
            gate(act, &x, &up, &mut gated);
            for (start, len) in [(0, 1), (1, 7), (3, 17), (8000, 31), (9001, 129), (16_000, 3)] {
                let range = start..start + len;
                let mut part = x[range.clone()].to_vec();
                apply(act, &mut part);
                assert_eq!(part, whole[range.clone()], "{act:?} {start} {len}");
                let mut part = vec![0.0; len];
                gate(act, &x[range.clone()], &up[range.clone()], &mut part);
                assert_eq!(part, gated[range.clone()], "{act:?} {start} {len}");
                for i in range {
                    assert_eq!(gated[i], whole[i] * up[i]);
                }
            }
        }
    }
}
