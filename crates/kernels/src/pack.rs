//! How a matrix lies in memory: sixteen output columns side by side, so that one load serves sixteen outputs and one pass
//! over the weights serves every row.
//!
//! A *tile* is sixteen rows of the file's matrix (columns of the product), the last one filled up with zeros. Within it, 64
//! bytes hold four consecutive inputs of all sixteen, which is what an integer dot product consumes. Codes keep their
//! width: a packed matrix is as large as its file. Tiles begin on cache lines.
//!
//! ```text
//! 32 inputs × 16 columns ("group")
//!   4 bits   4 × 64 bytes; byte p·64 + column·4 + j = code[4p + j] | code[16 + 4p + j] << 4
//!   5 bits   the same + 64 bytes; bit g of byte column·4 + j = fifth bit of code[4g + j]
//!   6 bits   the same + 2 × 64 bytes; bits 2g, 2g+1 of byte h·64 + column·4 + j = upper bits of code[16h + 4g + j]
//!   8 bits   8 × 64 bytes; byte g·64 + column·4 + j = code[4g + j]
//! blocks of 32    codes of all groups, then per group 16 f16 scales (and 16 f16 minima)
//! blocks of 256   per block: codes of 8 groups, 8 × 16 scales (2 × 16 in Q6_K), 8 × 16 minima, 16 f16 d, 16 f16 dmin
//! floats          input by input, 16 columns each; bf16 in pairs of inputs, as its dot product takes them
//! ```

pub(crate) mod memory;

use crate::dtype::{Dtype, GROUP, Group};

/// Output columns in a tile.
pub(crate) const COLUMNS: usize = 16;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Bytes of the codes of one group of a tile.
pub(crate) const fn code_bytes(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q4K => 256,
        Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q5K => 320,
        Dtype::Q6K => 384,
        Dtype::Q8_0 => 512,
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => 0,
    }
}

/// Bytes of the scales that follow the codes of one block of a tile.
pub(crate) const fn scale_bytes(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 => 32,
        Dtype::Q4_1 | Dtype::Q5_1 => 64,
        Dtype::Q4K | Dtype::Q5K => 320,
        // 288, filled up to a whole line so that every block begins on one.
        Dtype::Q6K => 320,
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => 0,
    }
}

/// Inputs of a float tile: filled up with zeros to whole steps of its kernel.
pub(crate) fn padded_inputs(k: usize) -> usize {
    k.next_multiple_of(4)
}

/// Bytes of one tile; `None` where that does not fit the address space.
pub(crate) fn tile_bytes(dtype: Dtype, k: usize) -> Option<usize> {
    match dtype {
        Dtype::F32 => k.checked_next_multiple_of(4)?.checked_mul(COLUMNS * 4),
        Dtype::F16 | Dtype::Bf16 => k.checked_next_multiple_of(4)?.checked_mul(COLUMNS * 2),
        _ => {
            let block = dtype.block() / GROUP * code_bytes(dtype) + scale_bytes(dtype);
            (k / dtype.block())
                .checked_mul(block)?
                .checked_next_multiple_of(LINE)
        }
    }
}

/// Where group `index` of `groups` has its codes and its block's scales.
fn group_at(dtype: Dtype, groups: usize, index: usize) -> (usize, usize) {
    let codes = code_bytes(dtype);
    if dtype.block() == GROUP {
        return (index * codes, groups * codes + index * scale_bytes(dtype));
    }
    let block = index / 8 * (8 * codes + scale_bytes(dtype));
    (block + index % 8 * codes, block + 8 * codes)
}

/// Writes rows of the file's matrix, at most sixteen, into a zeroed tile.
pub(crate) fn write_tile(dtype: Dtype, rows: &[u8], k: usize, tile: &mut [u8]) {
    let Some(row_bytes) = dtype.bytes(k).filter(|&bytes| bytes > 0) else {
        return;
    };
    for (column, row) in rows.chunks_exact(row_bytes).enumerate() {
        match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => {
                let width = dtype.block_bytes();
                for (input, value) in row.chunks_exact(width).enumerate() {
                    tile[float_at(dtype, column, input)..][..width].copy_from_slice(value);
                }
            }
            _ => {
                for index in 0..k / GROUP {
                    write_group(
                        dtype,
                        k / GROUP,
                        index,
                        column,
                        &Group::read(dtype, row, index),
                        tile,
                    );
                }
            }
        }
    }
}

/// Where a float tile has an input of a column.
pub(crate) fn float_at(dtype: Dtype, column: usize, input: usize) -> usize {
    match dtype {
        Dtype::F32 => (input * COLUMNS + column) * 4,
        Dtype::Bf16 => ((input / 2 * COLUMNS + column) * 2 + input % 2) * 2,
        _ => (input * COLUMNS + column) * 2,
    }
}

fn write_group(
    dtype: Dtype,
    groups: usize,
    index: usize,
    column: usize,
    group: &Group,
    tile: &mut [u8],
) {
    let (codes_at, scales_at) = group_at(dtype, groups, index);
    let codes = &mut tile[codes_at..][..code_bytes(dtype)];
    let at = column * 4;
    if dtype == Dtype::Q8_0 {
        for (g, four) in group.codes.as_chunks::<4>().0.iter().enumerate() {
            codes[g * 64 + at..][..4].copy_from_slice(four);
        }
    } else {
        for p in 0..4 {
            for j in 0..4 {
                codes[p * 64 + at + j] =
                    (group.codes[4 * p + j] & 15) | (group.codes[16 + 4 * p + j] & 15) << 4;
            }
        }
    }
    match code_bytes(dtype) {
        320 => {
            for j in 0..4 {
                codes[256 + at + j] =
                    (0..8).fold(0, |bits, g| bits | (group.codes[4 * g + j] >> 4) << g);
            }
        }
        384 => {
            for (half, j) in (0..2).flat_map(|half| (0..4).map(move |j| (half, j))) {
                let upper = |g: usize| group.codes[16 * half + 4 * g + j] >> 4;
                codes[256 + half * 64 + at + j] =
                    (0..4).fold(0, |bits, g| bits | upper(g) << (2 * g));
            }
        }
        _ => {}
    }
    let scales = &mut tile[scales_at..][..scale_bytes(dtype)];
    let sub = index % 8;
    let (d_at, m_at) = match dtype {
        Dtype::Q4K | Dtype::Q5K => {
            scales[sub * 16 + column] = group.scales[0] as u8;
            scales[128 + sub * 16 + column] = group.minimum as u8;
            (256, Some(288))
        }
        Dtype::Q6K => {
            scales[sub * 32 + column] = group.scales[0] as u8;
            scales[sub * 32 + 16 + column] = group.scales[1] as u8;
            (256, None)
        }
        Dtype::Q4_1 | Dtype::Q5_1 => (0, Some(32)),
        _ => (0, None),
    };
    scales[d_at + column * 2..][..2].copy_from_slice(&group.d.to_le_bytes());
    if let Some(m_at) = m_at {
        scales[m_at + column * 2..][..2].copy_from_slice(&group.m.to_le_bytes());
    }
}

/// The group as the file had it.
pub(crate) fn read_group(
    dtype: Dtype,
    groups: usize,
    index: usize,
    column: usize,
    tile: &[u8],
) -> Group {
    let (codes_at, scales_at) = group_at(dtype, groups, index);
    let packed = &tile[codes_at..][..code_bytes(dtype)];
    let at = column * 4;
    let codes = std::array::from_fn(|input| {
        let (g, j) = (input / 4, input % 4);
        if dtype == Dtype::Q8_0 {
            return packed[g * 64 + at + j];
        }
        let nibble = (packed[g % 4 * 64 + at + j] >> (g / 4 * 4)) & 15;
        let upper = match code_bytes(dtype) {
            320 => (packed[256 + at + j] >> g) & 1,
            384 => (packed[256 + g / 4 * 64 + at + j] >> (2 * (g % 4))) & 3,
            _ => 0,
        };
        nibble | upper << 4
    });
    let scales = &tile[scales_at..][..scale_bytes(dtype)];
    let half =
        |at: usize| u16::from_le_bytes([scales[at + column * 2], scales[at + column * 2 + 1]]);
    let sub = index % 8;
    match dtype {
        Dtype::Q4K | Dtype::Q5K => Group {
            codes,
            d: half(256),
            m: half(288),
            scales: [scales[sub * 16 + column] as i8; 2],
            minimum: scales[128 + sub * 16 + column] as i8,
        },
        Dtype::Q6K => {
            let scale = |part: usize| scales[sub * 32 + part * 16 + column] as i8;
            Group {
                codes,
                d: half(256),
                m: 0,
                scales: [scale(0), scale(1)],
                minimum: 0,
            }
        }
        Dtype::Q4_1 | Dtype::Q5_1 => Group {
            codes,
            d: half(0),
            m: half(32),
            scales: [1; 2],
            minimum: -1,
        },
        _ => Group {
            codes,
            d: half(0),
            m: 0,
            scales: [1; 2],
            minimum: 0,
        },
    }
}
