//! The k largest.
use crate::simd::{Simd, Task, dispatch};

/// Order of (token, logit): larger logits first, then lower ids. NaN does not occur.
pub(super) fn order(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

struct Collect<'a> {
    logits: &'a [f32],
    k: usize,
    out: &'a mut Vec<(u32, f32)>,
}
impl Task for Collect<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { logits, k, out } = self;
        let n = logits.len();
        // Candidates are what exceeds the k-th largest so far. Ids ascend, so an equal one would lose its tie.
        let room = 2 * k + 64;
        let mut least = f32::NEG_INFINITY;
        let mut full = false;
        let step = 4 * S::LANES;
        let mut i = 0;
        while i < n {
            let bound = s.splat(least);
            let mut hit = !full;
            if full {
                let mut any = 0;
                for j in 0..4 {
                    let at = i + j * S::LANES;
                    if at < n {
                        // SAFETY: n - at floats are left.
                        any |= s
                            .greater(unsafe { s.load_part(logits.as_ptr().add(at), n - at, f32::NEG_INFINITY) }, bound);
                    }
                }
                hit = any != 0;
            }
            if hit {
                for (id, &x) in logits[i..(i + step).min(n)].iter().enumerate() {
                    if x > least || (!full && !x.is_nan()) {
                        // -0.0 and 0.0 tie.
                        out.push(((i + id) as u32, x + 0.0));
                    }
                }
                if out.len() >= room || (!full && out.len() >= k) {
                    least = shrink(out, k);
                    full = true;
                }
            }
            i += step;
        }
        if out.len() > k {
            shrink(out, k);
        }
    }
}

/// Keep the k largest, in any order, and say which is the least of them.
fn shrink(out: &mut Vec<(u32, f32)>, k: usize) -> f32 {
    if out.len() > k {
        out.select_nth_unstable_by(k - 1, order);
        out.truncate(k);
    }
    out.iter().map(|x| x.1).fold(f32::INFINITY, f32::min)
}

/// The k largest logits with their ids into `out` (cleared first): descending, ties by lower id; fewer when the row is
/// shorter. NaN is left out.
pub fn top_k(logits: &[f32], k: usize, out: &mut Vec<(u32, f32)>) {
    out.clear();
    if k == 0 {
        return;
    }
    dispatch(Collect { logits, k: k.min(logits.len()), out });
    out.sort_unstable_by(order);
}
