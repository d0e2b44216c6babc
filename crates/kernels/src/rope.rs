//! Rotary position embedding.
use crate::simd::{Simd, Task, dispatch};
use std::sync::OnceLock;

/// Which elements of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// (i, i + rotary / 2): GPT-NeoX, Llama in transformers.
    Halves,
    /// (2i, 2i + 1): GPT-J, Llama in GGUF.
    Interleaved,
}

/// Angles of one model. The kinds of scaling (linear, Llama 3, YaRN, ...) only differ in the frequencies and the factor.
///
/// Angles are formed as transformers forms them: f32 frequency times f32 position, cosine and sine of that f32, times
/// the attention factor in f32.
#[derive(Debug)]
pub struct Rope {
    inv_freq: Vec<f32>,
    factor: f32,
    layout: RopeLayout,
    /// Blocks of [`BLOCK`] positions, made on first use; per position the cosines, then the sines.
    table: Vec<OnceLock<Box<[f32]>>>,
}

/// Positions of one block of the table.
const BLOCK: usize = 256;

/// Positions that the table holds at most; beyond, angles are computed anew for each row.
const CACHED: usize = 1 << 17;

impl Rope {
    /// `inv_freq` holds one frequency per rotated pair: the first `2 * inv_freq.len()` elements of a head are rotated,
    /// the rest stay. `attention_factor` scales cosine and sine (1 but for YaRN and LongRoPE).
    pub fn new(inv_freq: Vec<f32>, attention_factor: f32, layout: RopeLayout) -> Self {
        let table = (0..CACHED / BLOCK).map(|_| OnceLock::new()).collect();
        Self { inv_freq, factor: attention_factor, layout, table }
    }

    /// Elements of a head that are rotated.
    pub fn rotary(&self) -> usize {
        2 * self.inv_freq.len()
    }

    fn angles(&self, position: u32, out: &mut [f32]) {
        let (cos, sin) = out.split_at_mut(self.inv_freq.len());
        for ((&f, c), s) in self.inv_freq.iter().zip(cos).zip(sin) {
            // Through f64, so that no platform's f32 libm shows.
            let angle = f64::from(f * position as f32);
            *c = angle.cos() as f32 * self.factor;
            *s = angle.sin() as f32 * self.factor;
        }
    }

    /// The block of the table that starts at this multiple of [`BLOCK`].
    fn block(&self, start: usize) -> Box<[f32]> {
        let mut angles = vec![0.0; BLOCK * self.rotary()];
        for (i, out) in angles.chunks_exact_mut(self.rotary()).enumerate() {
            self.angles((start + i) as u32, out);
        }
        angles.into()
    }

    /// Cosines, then sines, of positions `0..positions`, `[positions, rotary]`: what [`Rope::rotate`] uses.
    pub fn table(&self, positions: usize) -> Vec<f32> {
        let mut table = vec![0.0; positions * self.rotary()];
        for (position, out) in table.chunks_exact_mut(self.rotary().max(1)).enumerate() {
            self.angles(position as u32, out);
        }
        table
    }

    /// Rotate every head of one row, [heads * dim], to `position`, in place.
    ///
    /// # Panics
    /// When `x` is not `heads * dim` long, or more elements are rotated than a head has.
    pub fn rotate(&self, x: &mut [f32], heads: usize, dim: usize, position: u32) {
        let width = self.rotary();
        assert!(x.len() == heads * dim && width <= dim, "rotate: {} floats, {heads} x {dim}, {width}", x.len());
        if width == 0 {
            return;
        }
        let (block, offset) = (position as usize / BLOCK, position as usize % BLOCK);
        if let Some(block_of_table) = self.table.get(block) {
            let angles = block_of_table.get_or_init(|| self.block(block * BLOCK));
            dispatch(Rotate { x, dim, angles: &angles[offset * width..][..width], layout: self.layout });
        } else {
            let mut angles = vec![0.0; width];
            self.angles(position, &mut angles);
            dispatch(Rotate { x, dim, angles: &angles, layout: self.layout });
        }
    }
}

struct Rotate<'a> {
    x: &'a mut [f32],
    dim: usize,
    angles: &'a [f32],
    layout: RopeLayout,
}
impl Task for Rotate<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.angles.len() / 2;
        let (cos, sin) = self.angles.split_at(half);
        for head in self.x.chunks_exact_mut(self.dim) {
            match self.layout {
                RopeLayout::Halves => {
                    let (low, high) = head[..2 * half].split_at_mut(half);
                    let mut i = 0;
                    while i < half {
                        let n = half - i;
                        // SAFETY: the four slices hold `half` floats each.
                        unsafe {
                            let c = s.load_part(cos.as_ptr().add(i), n, 0.0);
                            let t = s.load_part(sin.as_ptr().add(i), n, 0.0);
                            let a = s.load_part(low.as_ptr().add(i), n, 0.0);
                            let b = s.load_part(high.as_ptr().add(i), n, 0.0);
                            s.store_part(low.as_mut_ptr().add(i), n, s.sub(s.mul(a, c), s.mul(b, t)));
                            s.store_part(high.as_mut_ptr().add(i), n, s.add(s.mul(b, c), s.mul(a, t)));
                        }
                        i += S::LANES;
                    }
                }
                RopeLayout::Interleaved => {
                    for (pair, (&c, &t)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                        (pair[0], pair[1]) = (pair[0] * c - pair[1] * t, pair[1] * c + pair[0] * t);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect()
    }
    fn frequencies(half: usize) -> Vec<f32> {
        (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect()
    }

    #[test]
    fn both_layouts_rotate_by_their_definition() {
        for (heads, dim, rotary) in [(3, 64, 64), (2, 8, 8), (1, 80, 32), (9, 96, 96), (2, 16, 0)] {
            for layout in [RopeLayout::Halves, RopeLayout::Interleaved] {
                let rope = Rope::new(frequencies(rotary / 2), 1.25, layout);
                for position in [0u32, 1, 31, 4097, 200_000] {
                    let x = row(heads * dim);
                    let mut y = x.clone();
                    rope.rotate(&mut y, heads, dim, position);
                    for h in 0..heads {
                        for e in 0..dim {
                            let at = h * dim + e;
                            let half = rotary / 2;
                            let want = if e >= rotary {
                                f64::from(x[at])
                            } else {
                                let (pair, first, other) = match layout {
                                    RopeLayout::Halves => (e % half, e < half, (e + half) % rotary),
                                    RopeLayout::Interleaved => (e / 2, e % 2 == 0, e ^ 1),
                                };
                                let angle = f64::from(rope.inv_freq[pair] * position as f32);
                                let (s, c) = (angle.sin() * 1.25, angle.cos() * 1.25);
                                let other = f64::from(x[h * dim + other]);
                                f64::from(x[at]) * c + if first { -other * s } else { other * s }
                            };
                            assert!((f64::from(y[at]) - want).abs() < 1e-6, "{layout:?} {position} {at}");
                        }
                    }
                }
            }
        }
    }
}
