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
//! "block": the codes of some groups, and then their scales, so that a tile is one stream
//!   one scale            2 groups, 2 × 16 f16
//!   scale and minimum    1 group, 16 f16 scales, 16 f16 minima
//!   K types              8 groups, 8 × 16 scales (8 × 2 × 16 in Q6_K), 8 × 16 minima, 16 f16 d, 16 f16 dmin
//! floats: input by input, 16 columns each; bf16 in pairs of inputs, as its dot product takes them
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

/// Groups that share the scales that follow their codes.
pub(crate) const fn groups_per_block(dtype: Dtype) -> usize {
    match dtype {
        // Two, so that their scales fill a line.
        Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 => 2,
        Dtype::Q4K | Dtype::Q5K | Dtype::Q6K => 8,
        _ => 1,
    }
}

/// Bytes of the scales that follow the codes of a block: whole lines.
pub(crate) const fn scale_bytes(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 | Dtype::Q4_1 | Dtype::Q5_1 => 64,
        // 288 would do for Q6_K.
        Dtype::Q4K | Dtype::Q5K | Dtype::Q6K => 320,
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
            let groups = k / GROUP;
            let scales = groups.div_ceil(groups_per_block(dtype)) * scale_bytes(dtype);
            groups.checked_mul(code_bytes(dtype))?.checked_add(scales)
        }
    }
}

/// Where group `index` of `groups` has its codes and its block's scales. The last block may have a group less.
#[inline(always)]
fn group_at(dtype: Dtype, groups: usize, index: usize) -> (usize, usize) {
    let (codes, scales, per_block) = (code_bytes(dtype), scale_bytes(dtype), groups_per_block(dtype));
    let first = index / per_block * per_block;
    let block = first * codes + first / per_block * scales;
    (block + (index - first) * codes, block + per_block.min(groups - first) * codes)
}

/// Writes rows of the file's matrix, at most sixteen, into a zeroed tile.
pub(crate) fn write_tile(dtype: Dtype, rows: &[u8], k: usize, tile: &mut [u8]) {
    // Each arm is compiled for its type.
    match dtype {
        Dtype::F32 => write_floats::<4>(Dtype::F32, rows, k, tile),
        Dtype::F16 => write_floats::<2>(Dtype::F16, rows, k, tile),
        // Pairs of bf16 lie as floats do.
        Dtype::Bf16 if k.is_multiple_of(2) => write_floats::<4>(Dtype::F32, rows, k / 2, tile),
        Dtype::Bf16 => write_floats::<2>(Dtype::Bf16, rows, k, tile),
        Dtype::Q4_0 => write_groups(Dtype::Q4_0, rows, k, tile),
        Dtype::Q4_1 => write_groups(Dtype::Q4_1, rows, k, tile),
        Dtype::Q5_0 => write_groups(Dtype::Q5_0, rows, k, tile),
        Dtype::Q5_1 => write_groups(Dtype::Q5_1, rows, k, tile),
        Dtype::Q8_0 => write_groups(Dtype::Q8_0, rows, k, tile),
        Dtype::Q4K => write_groups(Dtype::Q4K, rows, k, tile),
        Dtype::Q5K => write_groups(Dtype::Q5K, rows, k, tile),
        Dtype::Q6K => write_groups(Dtype::Q6K, rows, k, tile),
    }
}

/// Inputs outside, columns inside: a few cache lines of the tile are written at a time.
#[inline(always)]
fn write_floats<const WIDTH: usize>(dtype: Dtype, rows: &[u8], k: usize, tile: &mut [u8]) {
    const AT_ONCE: usize = 16;
    for first in (0..k).step_by(AT_ONCE) {
        let some = AT_ONCE.min(k - first);
        for (column, row) in rows.chunks_exact(k * WIDTH).enumerate() {
            let values = row[first * WIDTH..][..some * WIDTH].as_chunks::<WIDTH>().0;
            for (input, value) in values.iter().enumerate() {
                tile[float_at(dtype, column, first + input)..][..WIDTH].copy_from_slice(value);
            }
        }
    }
}

#[inline(always)]
fn write_groups(dtype: Dtype, rows: &[u8], k: usize, tile: &mut [u8]) {
    let (groups, row_bytes) = (k / GROUP, k / dtype.block() * dtype.block_bytes());
    for index in 0..groups {
        for (column, row) in rows.chunks_exact(row_bytes).enumerate() {
            write_group(dtype, groups, index, column, &Group::read(dtype, row, index), tile);
        }
    }
}

/// Where a float tile has an input of a column.
#[inline(always)]
pub(crate) fn float_at(dtype: Dtype, column: usize, input: usize) -> usize {
    match dtype {
        Dtype::F32 => (input * COLUMNS + column) * 4,
        Dtype::Bf16 => ((input / 2 * COLUMNS + column) * 2 + input % 2) * 2,
        _ => (input * COLUMNS + column) * 2,
    }
}

#[inline(always)]
fn write_group(dtype: Dtype, groups: usize, index: usize, column: usize, group: &Group, tile: &mut [u8]) {
    let (codes_at, scales_at) = group_at(dtype, groups, index);
    let codes = &mut tile[codes_at..][..code_bytes(dtype)];
    // Four codes at once.
    let words: [u32; 8] = std::array::from_fn(|g| {
        let four = &group.codes[4 * g..][..4];
        u32::from_le_bytes([four[0], four[1], four[2], four[3]])
    });
    let mut put = |line: usize, word: u32| {
        codes[line * LINE + column * 4..][..4].copy_from_slice(&word.to_le_bytes());
    };
    if dtype == Dtype::Q8_0 {
        words.into_iter().enumerate().for_each(|(g, word)| put(g, word));
    } else {
        let nibbles = words.map(|word| word & 0x0F0F_0F0F);
        (0..4).for_each(|p| put(p, nibbles[p] | nibbles[p + 4] << 4));
    }
    match code_bytes(dtype) {
        320 => put(4, (0..8).fold(0, |bits, g| bits | (words[g] >> 4 & 0x0101_0101) << g)),
        384 => {
            let upper =
                |half: usize| (0..4).fold(0, |bits, g| bits | (words[4 * half + g] >> 4 & 0x0303_0303) << (2 * g));
            put(4, upper(0));
            put(5, upper(1));
        }
        _ => {}
    }
    let scales = &mut tile[scales_at..][..scale_bytes(dtype)];
    let sub = index % groups_per_block(dtype);
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
        _ => (sub * 32, None),
    };
    scales[d_at + column * 2..][..2].copy_from_slice(&group.d.to_le_bytes());
    if let Some(m_at) = m_at {
        scales[m_at + column * 2..][..2].copy_from_slice(&group.m.to_le_bytes());
    }
}

/// The group as the file had it.
pub(crate) fn read_group(dtype: Dtype, groups: usize, index: usize, column: usize, tile: &[u8]) -> Group {
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
    let half = |at: usize| u16::from_le_bytes([scales[at + column * 2], scales[at + column * 2 + 1]]);
    let sub = index % groups_per_block(dtype);
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
            Group { codes, d: half(256), m: 0, scales: [scale(0), scale(1)], minimum: 0 }
        }
        Dtype::Q4_1 | Dtype::Q5_1 => Group { codes, d: half(0), m: half(32), scales: [1; 2], minimum: -1 },
        _ => Group { codes, d: half(sub * 32), m: 0, scales: [1; 2], minimum: 0 },
    }
}
