//! The integer form with AVX-512: what [`super::row`] computes, bit for bit, at a third of its instructions.
use std::arch::x86_64::*;

use super::RECORD;
use super::row::{finish, scales};
use crate::dtype::GROUP;

/// Writes the record of every whole group of `x`; the largest magnitude, as bits.
///
/// # Safety
/// The machine has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2")]
pub(super) unsafe fn quantize(x: &[f32], records: &mut [u32]) -> u32 {
    let (magnitude, ones) = (_mm512_set1_epi32(0x7FFF_FFFF), _mm256_set1_epi8(1));
    let mut most = 0;
    for (group, record) in x.as_chunks::<GROUP>().0.iter().zip(records.as_chunks_mut::<RECORD>().0) {
        // SAFETY: 32 floats are read, 32 bytes of the record are written.
        unsafe {
            let (a, b) = (_mm512_loadu_ps(group.as_ptr()), _mm512_loadu_ps(group.as_ptr().add(16)));
            let (ma, mb) = (
                _mm512_and_si512(_mm512_castps_si512(a), magnitude),
                _mm512_and_si512(_mm512_castps_si512(b), magnitude),
            );
            let bits = _mm512_reduce_max_epu32(_mm512_max_epu32(ma, mb));
            most = most.max(bits);
            let (d, inverse) = scales(bits);
            let inverse = _mm512_set1_ps(inverse);
            let (a, b) = (_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)));
            let bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a));
            _mm256_storeu_si256(record.as_mut_ptr().cast(), bytes);
            // Sums of the two halves: by fours, by eights, whole.
            let four = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, bytes);
            let eight = _mm256_hadd_epi32(four, four);
            let half = _mm256_hadd_epi32(eight, eight);
            finish(record, d, [_mm256_extract_epi32::<0>(half), _mm256_extract_epi32::<4>(half)]);
        }
    }
    most
}
