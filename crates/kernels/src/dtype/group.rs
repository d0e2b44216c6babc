//! 32 consecutive values of a quantized row, with the parts that their block stores taken apart.
//!
//! Every format is `value = scale · (code − offset) − minimum`, with a scale per 16 values; formats differ in which of these
//! they store, and where.

use half::f16;

use super::{Dtype, GROUP};

/// The parts of 32 values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Unsigned codes of 4, 5, 6 or 8 bits.
    pub codes: [u8; GROUP],
    /// The block's scale, as f16 bits.
    pub d: u16,
    /// The block's scale of minima, as f16 bits; 0 where the format has none.
    pub m: u16,
    /// What multiplies `d` for each half of the group; 1 in formats with one level of scales.
    pub scales: [i8; 2],
    /// What multiplies `m`: −1 in formats that store the minimum itself, because it is added there.
    pub minimum: i8,
}

/// What is subtracted from a code.
pub(crate) fn offset(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Q4_0 => 8.0,
        Dtype::Q5_0 => 16.0,
        Dtype::Q8_0 => 128.0,
        Dtype::Q6K => 32.0,
        _ => 0.0,
    }
}

#[inline(always)]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Nibbles of 16 bytes: the low ones first.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; GROUP] {
    let mut codes = [0; GROUP];
    for (j, byte) in bytes[..16].iter().enumerate() {
        codes[j] = byte & 15;
        codes[j + 16] = byte >> 4;
    }
    codes
}

/// The 6-bit scale and minimum of a group, from the 12 bytes of a Q4_K or Q5_K block.
#[inline(always)]
fn six_bits(sub: usize, packed: &[u8]) -> (u8, u8) {
    if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        ((packed[sub + 4] & 15) | ((packed[sub - 4] >> 6) << 4), (packed[sub + 4] >> 4) | ((packed[sub] >> 6) << 4))
    }
}

impl Group {
    /// The `index`-th group of consecutive blocks of a quantized type.
    #[inline(always)]
    pub fn read(dtype: Dtype, blocks: &[u8], index: usize) -> Group {
        let per_block = dtype.block() / GROUP;
        let block = &blocks[index / per_block * dtype.block_bytes()..][..dtype.block_bytes()];
        let sub = index % per_block;
        let one_level = Group { codes: [0; GROUP], d: u16_at(block, 0), m: 0, scales: [1; 2], minimum: 0 };
        let with_minimum = Group { m: u16_at(block, 2), minimum: -1, ..one_level };
        let fifth = |at: usize, codes: [u8; GROUP]| {
            let high = &block[at..][..4];
            std::array::from_fn(|j| codes[j] | if high[j / 8] & 1 << (j % 8) != 0 { 16 } else { 0 })
        };
        match dtype {
            Dtype::Q4_0 => Group { codes: nibbles(&block[2..]), ..one_level },
            Dtype::Q4_1 => Group { codes: nibbles(&block[4..]), ..with_minimum },
            Dtype::Q5_0 => Group { codes: fifth(2, nibbles(&block[6..])), ..one_level },
            Dtype::Q5_1 => Group { codes: fifth(4, nibbles(&block[8..])), ..with_minimum },
            Dtype::Q8_0 => Group { codes: std::array::from_fn(|j| block[2 + j] ^ 0x80), ..one_level },
            Dtype::Q4K | Dtype::Q5K => {
                let (scale, minimum) = six_bits(sub, &block[4..16]);
                let quants = if dtype == Dtype::Q4K { &block[16..] } else { &block[48..] };
                let codes = std::array::from_fn(|j| {
                    let byte = quants[sub / 2 * 32 + j];
                    let nibble = if sub.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
                    let high = if dtype == Dtype::Q5K { (block[16 + j] >> sub) & 1 } else { 0 };
                    nibble | high << 4
                });
                Group {
                    codes,
                    d: u16_at(block, 0),
                    m: u16_at(block, 2),
                    scales: [scale as i8; 2],
                    minimum: minimum as i8,
                }
            }
            Dtype::Q6K => {
                let (half, quarter) = (sub / 4, sub % 4);
                let codes = std::array::from_fn(|j| {
                    let low = block[half * 64 + quarter % 2 * 32 + j];
                    let nibble = if quarter < 2 { low & 15 } else { low >> 4 };
                    nibble | ((block[128 + half * 32 + j] >> (quarter * 2)) & 3) << 4
                });
                let scales = [block[192 + sub * 2] as i8, block[193 + sub * 2] as i8];
                Group { codes, d: u16_at(block, 208), m: 0, scales, minimum: 0 }
            }
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => unreachable!("not a quantized type"),
        }
    }

    /// Writes the 32 values.
    pub fn expand(&self, dtype: Dtype, out: &mut [f32; GROUP]) {
        let d = f16::from_bits(self.d).to_f32();
        let scales = self.scales.map(|scale| d * f32::from(scale));
        let minimum = f16::from_bits(self.m).to_f32() * f32::from(self.minimum);
        let offset = offset(dtype);
        for (j, value) in out.iter_mut().enumerate() {
            *value = scales[j / 16] * (f32::from(self.codes[j]) - offset) - minimum;
        }
    }
}
