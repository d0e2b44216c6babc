//! The decoder on a GPU: the same steps, the same store of keys and values, kernels in place of loops.
//!
//! All buffers stand before the first step and what varies is read from device memory, so that a step is a list of
//! launches which depends on a few sizes only ([`plan::Key`]): made once for each, and captured as a graph. Five launches
//! a layer: queries, keys and values with rotation and slots; attention; output and residual sum; gate and up; down and
//! residual sum. Norms before a product ride on it: the launch before leaves the sums of squares, the product divides at
//! its end. What needs a whole row between two products (rotation, norms behind branches, layer norms, the choice of
//! experts) is done by those blocks of the first that leave its last parts.
//!
//! A mixture of experts takes six: the router with the choice, gate and up of the experts, down with their sum. Where
//! rows are many, what stands between products has launches of its own.
//!
//! The bits of a row do not depend on what runs beside it (law 1), nor on whether a graph or the launches ran. Only
//! without [`Options::row_invariant`] do they depend on how many rows there are.
mod layout;
mod load;
mod masses;
mod memory;
mod model;
mod plan;
mod read;

use crate::card::ModelCard;
use crate::config::Config;
use crate::network::{Network, NetworkError, PAGE};
use crate::step::{Reading, Step};
use memory::{Arena, Store};
pub use omnidecode_kernels::cuda::Device;
use omnidecode_kernels::cuda::args::{AcceptArgs, Plain};
use omnidecode_kernels::cuda::{Buffer, Call, DeviceError, Entry, Gpu, Launch};
pub use omnidecode_kernels::cuda::{Card, built_for, cards, check, library_version};
use omnidecode_kernels::kv::KvDtype;
use plan::{Key, Planned};
use std::collections::HashMap;

/// How a decoder is put on a device.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number format of keys and values; `None`: f32 for a model in f32, else f16.
    pub kv_dtype: Option<KvDtype>,
    /// Run steps as captured graphs. Off, the same launches run one by one and give the same bits.
    pub graphs: bool,
    /// The bits of a row depend on nothing beside it. Off, products of many rows run in cuBLASLt, where the machine has it, quantized
    /// weights unpacked to bf16 for it: faster prompts, but a row's bits depend on how many rows there are.
    pub row_invariant: bool,
}
impl Default for Options {
    fn default() -> Self {
        Options { kv_dtype: None, graphs: true, row_invariant: true }
    }
}

/// A decoder on a device with its KV store.
pub struct GpuDecoder {
    /// First, so that it is dropped first: it waits for what runs.
    device: Box<dyn Device>,
    config: Config,
    card: ModelCard,
    model: model::Model,
    arena: Arena,
    store: Option<Store>,
    kv_dtype: KvDtype,
    graphs: bool,
    /// Whether products of many rows run in the library.
    library: bool,
    /// Room for a quantized matrix as the library reads it.
    unpacked: Buffer,
    plans: HashMap<Key, Planned>,
    /// Why slots could not be copied: told at the next step.
    failed: Option<DeviceError>,
    /// Bytes of a step, kept from step to step.
    staging: Vec<u8>,
    counts: Counts,
}

/// What the device did since the model was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps.
    pub steps: u64,
    /// Kernels launched, those of graphs counted.
    pub launches: u64,
    /// Steps of plans that are kept as graphs (the first of each runs launch by launch).
    pub graphs: u64,
    /// Products that ran in the library.
    pub library_products: u64,
    /// Quantized matrices that were unpacked for it.
    pub unpacked: u64,
    /// Rows of logits that were copied to the host: because all logits were asked for, more than 64 of the largest were, a
    /// processor bends them, or the choice is cut by typical mass, which only the host does.
    pub host_rows: u64,
}

impl Counts {
    fn add(&mut self, launches: &[Launch]) {
        self.launches += launches.len() as u64;
        let count = |entry| launches.iter().filter(|l| l.entry == entry).count() as u64;
        self.library_products += count(Entry::Matmul);
        self.unpacked += count(Entry::Unpack);
    }
}

impl GpuDecoder {
    /// What is computed.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// The device it lies on.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }
    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> usize {
        self.model.bytes
    }
}

/// Open the GPU of this number.
///
/// # Errors
/// [`ModelError::Device`](crate::ModelError::Device): what is missing or failed, and what to do.
pub fn open(number: u32) -> Result<Box<dyn Device>, crate::ModelError> {
    let gpu = Gpu::open(number as i32).map_err(|e| crate::ModelError::Device(e.to_string()))?;
    Ok(Box::new(gpu))
}

/// A device of kernels that this machine's processor runs, for tests.
///
/// # Errors
/// [`ModelError::Device`](crate::ModelError::Device) without a C++ compiler.
#[cfg(feature = "emulator")]
pub fn emulated() -> Result<Box<dyn Device>, crate::ModelError> {
    let missing = || crate::ModelError::Device("expected a C++ compiler (CXX, c++), found none".into());
    Ok(Box::new(omnidecode_kernels::cuda::emulate::Emulator::new().ok_or_else(missing)?))
}

pub(super) fn network_error(error: DeviceError) -> NetworkError {
    match error {
        DeviceError::Memory { .. } => NetworkError::Memory(error.to_string()),
        _ => NetworkError::Device(error.to_string()),
    }
}

impl Network for GpuDecoder {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn reserve(&mut self, pages: usize, tail: usize) -> Result<(), NetworkError> {
        self.forget();
        if let Some(store) = self.store.take() {
            store.free(&mut *self.device);
        }
        let pages = (pages * PAGE + tail).div_ceil(PAGE);
        let store = Store::new(&mut *self.device, &self.config, self.kv_dtype, pages);
        self.store = Some(store.map_err(network_error)?);
        Ok(())
    }

    fn run(
        &mut self,
        step: &Step,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        if let Some(error) = self.failed.take() {
            return Err(network_error(error));
        }
        if self.store.is_none() {
            let message = "expected `reserve` before the first step, found no KV store";
            return Err(NetworkError::Unsupported(message.into()));
        }
        self.check(step)?;
        let masses = masses::Masses::of(step, &self.config);
        let needs = layout::Needs::of(step, &self.config, &masses);
        if self.arena.fits(&needs).is_none() {
            self.forget();
            self.arena.grow(&mut *self.device, &self.config, &needs).map_err(network_error)?;
        }
        let laid = layout::lay(step, &self.config, &masses, &self.arena, &mut self.staging);
        self.device.write(&self.arena.inputs, 0, &self.staging).map_err(network_error)?;
        self.counts.steps += 1;
        self.read(step, &laid, &masses, bend, each)
    }

    fn copy(&mut self, moves: &[(u32, u32)]) {
        if let Err(error) = self.accept(moves) {
            self.failed = Some(error);
        }
    }

    fn slot_bytes(&self) -> usize {
        2 * self.config.kv_heads * self.config.head_dim * self.config.layers.len() * self.kv_dtype.bytes()
    }

    fn row_invariant(&self) -> bool {
        !self.library
    }

    fn host_rows(&self) -> u64 {
        self.counts.host_rows
    }

    fn library_products(&self) -> u64 {
        self.counts.library_products
    }
}

impl GpuDecoder {
    /// Plans hold addresses: none may outlive its buffers.
    fn forget(&mut self) {
        self.device.forget();
        self.plans.clear();
    }

    /// What no buffer can hold.
    fn check(&self, step: &Step) -> Result<(), NetworkError> {
        let refuse = |what: String| Err(NetworkError::Unsupported(what));
        let store = self.store.as_ref().map_or(0, |s| s.pages * PAGE) as u32;
        for row in &step.rows {
            if row.position as usize >= self.config.context {
                let (context, found) = (self.config.context, row.position);
                return refuse(format!("expected positions below the context of {context} tokens, found {found}"));
            }
            assert!(row.slot < store, "run: slot {} of {store}", row.slot);
        }
        assert!(step.extras.iter().all(|e| e.slot < store), "run: an extra beyond {store} slots");
        assert!(step.pages.iter().all(|&p| p < store / PAGE as u32), "run: a page beyond {store} slots");
        Ok(())
    }

    fn accept(&mut self, moves: &[(u32, u32)]) -> Result<(), DeviceError> {
        let Some(store) = &self.store else { return Ok(()) };
        let slots = (store.pages * PAGE) as u32;
        assert!(moves.iter().all(|m| m.0 < slots && m.1 < slots), "copy: a slot beyond {slots}");
        for moves in moves.chunks(memory::MOVES) {
            let mut words = vec![moves.len() as u32];
            words.extend(moves.iter().flat_map(|m| [m.0, m.1]));
            self.device.write(&self.arena.moves, 0, u32::bytes(&words))?;
            let args = AcceptArgs {
                kv: store.kv.address(),
                moves: self.arena.moves.at(4),
                count: self.arena.moves.address(),
                dim: self.config.head_dim as u32,
                dtype: store.dtype,
                pages: store.pages as u32,
                reserved: 0,
            };
            let grid = [(self.config.layers.len() * self.config.kv_heads) as u32, 1, 1];
            self.counts.launches += 1;
            self.device.launch(&[Launch { entry: Entry::Accept, call: Call::Accept(args), grid }])?;
        }
        Ok(())
    }
}
