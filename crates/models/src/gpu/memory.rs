//! Buffers: made for a size of step, grown when a step does not fit, never in between.
use super::layout::{Needs, Sections};
use crate::config::{Config, QkNorm};
use crate::network::PAGE;
use omnidecode_kernels::cuda::args::{
    Acts, Ask, CHUNK, Candidate, Found, PIECE, Peak, Piece, QUERIES, Stand, TILE, TOP,
};
use omnidecode_kernels::cuda::{Address, Buffer, Device, DeviceError};
use omnidecode_kernels::kv::KvDtype;

/// Rows that a block of a product takes, at most. Up to so many, what stands between two products is done by the last blocks of the
/// first; and the own products run even where the library is used.
pub(super) const MANY: usize = 64;
/// Rows from which quantized weights go to the library, where it is used, as bf16 numbers that a launch makes of them. An estimate by
/// bytes, no measurement: the own products read a matrix once for [`MANY`] rows, at 0.6 to 1.1 bytes a weight; to unpack it costs 5.
pub(super) const UNPACKED: usize = 256;
/// Slots that are copied in one launch.
pub(super) const MOVES: usize = 4096;
/// Rows of logits that are in memory at once.
pub(super) const READS: usize = 64;
/// Bytes that partial results of shared stretches may take; beyond, a block walks all stretches of its rows.
const PARTIALS: usize = 256 << 20;

/// Keys and values of all layers.
pub(super) struct Store {
    pub kv: Buffer,
    pub pages: usize,
    /// As kernels number it.
    pub dtype: u32,
    /// Bytes of a layer.
    pub layer: usize,
}
impl Store {
    pub fn new(device: &mut dyn Device, config: &Config, dtype: KvDtype, pages: usize) -> Result<Self, DeviceError> {
        let layer = config.kv_heads * pages * 2 * PAGE * config.head_dim * dtype.bytes();
        let bytes = layer.checked_mul(config.layers.len()).ok_or(DeviceError::Memory { bytes: usize::MAX })?;
        let number = match dtype {
            KvDtype::F32 => 0,
            KvDtype::F16 => 1,
            KvDtype::Bf16 => 2,
        };
        Ok(Store { kv: device.alloc(bytes)?, pages, dtype: number, layer })
    }
    pub fn free(self, device: &mut dyn Device) {
        device.free(self.kv);
    }
}

/// Rows of activations of one width, in every form.
#[derive(Default)]
pub(super) struct Rows {
    codes: Buffer,
    scales: Buffer,
    bf16: Buffer,
    floats: Buffer,
    squares: Buffer,
    k: usize,
}
impl Rows {
    fn new(device: &mut dyn Device, rows: usize, k: usize) -> Result<Self, DeviceError> {
        let all = rows * k.next_multiple_of(CHUNK);
        Ok(Rows {
            codes: device.alloc(all)?,
            scales: device.alloc(all / 4)?,
            bf16: device.alloc(all * 2)?,
            floats: device.alloc(all * 4)?,
            squares: device.alloc(all / 8)?,
            k,
        })
    }
    /// As kernels see them. `eps`: with the sums of squares of a norm that rides.
    pub fn acts(&self, forms: u32, eps: Option<f32>) -> Acts {
        Acts {
            codes: self.codes.address(),
            scales: self.scales.address(),
            bf16: self.bf16.address(),
            floats: self.floats.address(),
            squares: if eps.is_some() { self.squares.address() } else { Address(0) },
            k: self.k as u32,
            kp: self.k.next_multiple_of(CHUNK) as u32,
            forms,
            eps: eps.unwrap_or(0.0),
        }
    }
    pub fn floats(&self) -> Address {
        self.floats.address()
    }
    fn free(self, device: &mut dyn Device) {
        for buffer in [self.codes, self.scales, self.bf16, self.floats, self.squares] {
            device.free(buffer);
        }
    }
}

/// What a mixture of experts writes between its launches; empty for dense models.
#[derive(Default)]
pub(super) struct Mixture {
    /// `[rows, experts]`.
    pub scores: Buffer,
    /// `[rows, per token]`.
    pub chosen: Buffer,
    pub shares: Buffer,
    /// Rows times experts of a row.
    pub lifted: Rows,
    /// `[rows, per token, hidden]`.
    pub parts: Buffer,
    /// A zero for each row and tile of `hidden`.
    pub arrived: Buffer,
}
impl Mixture {
    fn new(device: &mut dyn Device, config: &Config, rows: usize) -> Result<Self, DeviceError> {
        let Some(experts) = config.experts else { return Ok(Mixture::default()) };
        let pairs = rows * experts.per_token;
        Ok(Mixture {
            scores: device.alloc(rows * experts.count * 4)?,
            chosen: device.alloc(pairs * 4)?,
            shares: device.alloc(pairs * 4)?,
            lifted: Rows::new(device, pairs, experts.intermediate)?,
            parts: device.alloc(pairs * config.hidden * 4)?,
            arrived: device.alloc(rows * config.hidden.div_ceil(TILE) * 4)?,
        })
    }
}

/// Where the parts of what is read of logits lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadParts {
    pub index: usize,
    pub asks: usize,
    pub asked: usize,
    /// In the outputs.
    pub found: usize,
    pub logprobs: usize,
    pub tops: usize,
}

/// Everything that a step writes but keys and values.
pub(super) struct Arena {
    pub needs: Needs,
    pub sections: Sections,
    pub inputs: Buffer,
    pub x: Buffer,
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
    pub h: Buffer,
    pub hidden: Rows,
    pub attended: Rows,
    pub lifted: Rows,
    pub taps: Buffer,
    /// Attention weights that are read, the same of every head, a zero for each row that is read.
    pub masses: Buffer,
    pub mass_room: Buffer,
    pub mass_counters: Buffer,
    pub mixture: Mixture,
    /// Sums of gate and up products by the library, if it is used.
    pub sums: [Buffer; 2],
    library: bool,
    pub partials: Buffer,
    pub counters: Buffer,
    /// Zeros, for what follows products of few rows.
    pub tails: Buffer,
    // The head.
    pub read_inputs: Buffer,
    pub outputs: Buffer,
    pub parts: ReadParts,
    pub normed: Buffer,
    pub head: Rows,
    pub logits: Buffer,
    pub peaks: Buffer,
    pub pieces: Buffer,
    pub candidates: Buffer,
    pub edges: Buffer,
    pub pick_counters: Buffer,
    pub moves: Buffer,
}

/// Rows of a step, rounded up so that few plans serve all.
pub(super) fn bucket(rows: usize) -> usize {
    if rows <= 64 { rows.max(1).next_power_of_two() } else { rows.next_multiple_of(64) }
}

/// Heads of a kv head that share a block, how many such groups a kv head has, and rows that share it.
pub(super) fn tile(config: &Config) -> (usize, usize, usize) {
    let per = config.heads / config.kv_heads;
    let wide = per.min(QUERIES);
    (wide, per.div_ceil(wide), QUERIES / wide)
}

/// Columns of queries, keys and values that are rotated and stored at once, when a product has left them: whole heads, whole tiles of
/// the product; all of them where they are normed together.
pub(super) fn units(config: &Config) -> [usize; 3] {
    let (mut unit, dim) = (config.head_dim, config.head_dim);
    while !unit.is_multiple_of(TILE) {
        unit += dim;
    }
    let whole = config.qk_norm == QkNorm::Whole;
    let part = |heads: usize| if whole { heads * dim } else { unit };
    [part(config.heads), part(config.kv_heads), unit]
}
/// How many that are.
pub(super) fn units_of_a_row(config: &Config) -> usize {
    let heads = [config.heads, config.kv_heads, config.kv_heads];
    units(config).iter().zip(heads).map(|(unit, heads)| (heads * config.head_dim).div_ceil(*unit)).sum()
}

/// Whether stretches are shared out to blocks.
pub(super) fn split(config: &Config, rows: usize, stretches: usize) -> bool {
    stretches > 1 && partials(config, rows, stretches) <= PARTIALS
}
fn partials(config: &Config, rows: usize, stretches: usize) -> usize {
    rows * config.heads * stretches * (config.head_dim + 2) * 4
}

impl Arena {
    /// `library`: with room for the sums of its products.
    pub fn new(device: &mut dyn Device, config: &Config, library: bool) -> Result<Self, DeviceError> {
        Self::sized(device, config, &Needs::least(), library)
    }

    /// Whether a step fits.
    pub fn fits(&self, needs: &Needs) -> Option<()> {
        self.needs.contains(needs).then_some(())
    }

    /// Make room. Plans must be forgotten before.
    pub fn grow(&mut self, device: &mut dyn Device, config: &Config, needs: &Needs) -> Result<(), DeviceError> {
        let needs = self.needs.joined(needs);
        // The old ones first: there may be no room for both. Until the new ones stand, nothing fits.
        let library = self.library;
        let old = std::mem::replace(self, Self { library, ..Self::empty() });
        old.free(device);
        *self = Self::sized(device, config, &needs, library)?;
        Ok(())
    }

    fn empty() -> Self {
        let none = Needs::default();
        Arena {
            sections: Sections::of(&none, 0),
            needs: none,
            parts: ReadParts { index: 0, asks: 0, asked: 0, found: 0, logprobs: 0, tops: 0 },
            inputs: Buffer::default(),
            x: Buffer::default(),
            q: Buffer::default(),
            k: Buffer::default(),
            v: Buffer::default(),
            h: Buffer::default(),
            hidden: Rows::default(),
            attended: Rows::default(),
            lifted: Rows::default(),
            taps: Buffer::default(),
            masses: Buffer::default(),
            mass_room: Buffer::default(),
            mass_counters: Buffer::default(),
            mixture: Mixture::default(),
            sums: Default::default(),
            library: false,
            partials: Buffer::default(),
            counters: Buffer::default(),
            tails: Buffer::default(),
            read_inputs: Buffer::default(),
            outputs: Buffer::default(),
            normed: Buffer::default(),
            head: Rows::default(),
            logits: Buffer::default(),
            peaks: Buffer::default(),
            pieces: Buffer::default(),
            candidates: Buffer::default(),
            edges: Buffer::default(),
            pick_counters: Buffer::default(),
            moves: Buffer::default(),
        }
    }

    fn free(self, device: &mut dyn Device) {
        let Arena { inputs, x, q, k, v, h, taps, partials, counters, read_inputs, outputs, .. } = self;
        for buffer in [inputs, x, q, k, v, h, taps, partials, counters, read_inputs, outputs] {
            device.free(buffer);
        }
        for buffer in
            [self.normed, self.logits, self.peaks, self.pieces, self.candidates, self.pick_counters, self.moves]
        {
            device.free(buffer);
        }
        let Mixture { scores, chosen, shares, lifted, parts, arrived } = self.mixture;
        for buffer in [self.masses, self.mass_room, self.mass_counters, self.tails, self.edges] {
            device.free(buffer);
        }
        for buffer in [scores, chosen, shares, parts, arrived] {
            device.free(buffer);
        }
        for buffer in self.sums {
            device.free(buffer);
        }
        for rows in [self.hidden, self.attended, self.lifted, self.head, lifted] {
            rows.free(device);
        }
    }

    fn sized(device: &mut dyn Device, config: &Config, needs: &Needs, library: bool) -> Result<Self, DeviceError> {
        let needs = needs.rounded();
        let rows = bucket(needs.rows);
        let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let pieces = config.vocab.div_ceil(PIECE);
        let sections = Sections::of(&needs, config.layers.len());
        let index = size_of::<Stand>();
        let asks = index + READS * 4;
        let asked = asks + READS * size_of::<Ask>();
        let found = rows * 4;
        let logprobs = found + READS * size_of::<Found>();
        let tops = (logprobs + needs.asked * 4).next_multiple_of(8);
        // What splits at most: every bucket of rows up to these, with all stretches.
        let mut most = 0;
        let mut some = 1;
        while some <= rows {
            let mut stretches = needs.stretches;
            while stretches > 1 {
                if split(config, some, stretches) {
                    most = most.max(partials(config, some, stretches));
                }
                stretches /= 2;
            }
            some = bucket(some + 1);
        }
        let (_, groups, _) = tile(config);
        let lift = if library { rows * config.intermediate * 4 } else { 0 };
        Ok(Arena {
            inputs: device.alloc(sections.bytes)?,
            x: device.alloc(rows * config.hidden * 4)?,
            q: device.alloc(rows * wide * 4)?,
            k: device.alloc(rows * narrow * 4)?,
            v: device.alloc(rows * narrow * 4)?,
            h: device.alloc(rows * config.hidden * 4)?,
            hidden: Rows::new(device, rows, config.hidden)?,
            attended: Rows::new(device, rows, wide)?,
            lifted: Rows::new(device, rows, config.intermediate.max(1))?,
            taps: device.alloc(needs.taps * config.hidden * 4)?,
            masses: device.alloc(needs.weights * 4)?,
            mass_room: device.alloc(needs.layer_weights * config.heads * 4)?,
            mass_counters: device.alloc(needs.masses * 4)?,
            mixture: Mixture::new(device, config, rows)?,
            sums: [device.alloc(lift)?, device.alloc(lift)?],
            library,
            partials: device.alloc(most)?,
            counters: device.alloc(rows * config.kv_heads * groups * 4)?,
            tails: device.alloc(MANY * units_of_a_row(config) * 4)?,
            read_inputs: device.alloc(asked + needs.asked * 4)?,
            outputs: device.alloc(tops + READS * TOP * size_of::<Candidate>())?,
            parts: ReadParts { index, asks, asked, found, logprobs, tops },
            normed: device.alloc(READS * config.hidden * 4)?,
            head: Rows::new(device, READS, config.hidden)?,
            logits: device.alloc(READS * config.vocab * 4)?,
            peaks: device.alloc(READS * pieces * size_of::<Peak>())?,
            pieces: device.alloc(READS * pieces * size_of::<Piece>())?,
            candidates: device.alloc(READS * pieces * TOP * size_of::<Candidate>())?,
            edges: device.alloc(READS * 8)?,
            pick_counters: device.alloc(READS * 4)?,
            moves: device.alloc(4 + MOVES * 8)?,
            needs,
            sections,
        })
    }
}
