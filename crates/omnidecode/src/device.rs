//! Where a model runs.
use crate::error::{Error, Result};
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::{Network, Weights};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::str::FromStr;

/// A device that models run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number. Known to builds with the feature `cuda`.
    Cuda(u32),
    /// A GPU whose kernels the processor runs, thousands of times slower: for tests.
    #[cfg(feature = "emulator")]
    Emulated,
}
impl FromStr for Device {
    type Err = Error;
    /// `cpu`, `cuda` or `cuda:1`; in builds with the feature `emulator`, `emulated`.
    fn from_str(text: &str) -> Result<Device> {
        #[cfg(feature = "emulator")]
        if text == "emulated" {
            return Ok(Device::Emulated);
        }
        let number = |rest: &str| match rest.strip_prefix(':') {
            None if rest.is_empty() => Some(0),
            digits => digits?.parse().ok(),
        };
        match (text, text.strip_prefix("cuda").and_then(number)) {
            ("cpu", _) => Ok(Device::Cpu),
            (_, Some(number)) => Ok(Device::Cuda(number)),
            _ => Err(Error::Device { found: text.to_string() }),
        }
    }
}

/// The main model and those beside it, by role, on their device.
pub(crate) struct Loaded {
    pub main: Box<dyn Network>,
    pub others: Vec<(String, Box<dyn Network>)>,
    /// Bytes that keys and values may take; `None`: a share of the machine's memory.
    pub free: Option<usize>,
}

impl Device {
    /// Read models.
    pub(crate) fn load(
        self,
        main: &Weights,
        others: &[(String, PathBuf)],
        options: &Options,
        row_invariant: bool,
    ) -> Result<Loaded> {
        match self {
            Device::Cpu if row_invariant => cpu(main, others, options),
            Device::Cpu => {
                let message = "expected row_invariant, the one mode of device cpu, found its opposite: leave it out";
                Err(omnidecode_models::ModelError::Device(message.into()).into())
            }
            _ => on_gpu(self, main, others, options, row_invariant),
        }
    }

    /// The device itself.
    #[cfg(feature = "cuda")]
    fn open(self) -> Result<Box<dyn omnidecode_models::gpu::Device>> {
        Ok(match self {
            Device::Cuda(number) => omnidecode_models::gpu::open(number)?,
            #[cfg(feature = "emulator")]
            Device::Emulated => omnidecode_models::gpu::emulated()?,
            Device::Cpu => return Err(Error::Device { found: "cpu".into() }),
        })
    }
}

fn cpu(main: &Weights, beside: &[(String, PathBuf)], options: &Options) -> Result<Loaded> {
    let main = Decoder::load(main, options)?;
    let options = Options { pool: Some(main.pool().clone()), ..options.clone() };
    let mut others: Vec<(String, Box<dyn Network>)> = Vec::new();
    for (role, path) in beside {
        let weights = Weights::open(path)?;
        let other = match weights.config().exit_layer {
            Some(_) => Decoder::load_adapter(&weights, &main, &options)?,
            None => Decoder::load(&weights, &options)?,
        };
        others.push((role.clone(), Box::new(other)));
    }
    Ok(Loaded { main: Box::new(main), others, free: None })
}

/// Set, steps on a GPU run launch by launch, not as captured graphs: the same bits, for finding faults.
#[cfg(feature = "cuda")]
const EAGER: &str = "OMNIDECODE_CUDA_EAGER";

#[cfg(feature = "cuda")]
fn on_gpu(
    device: Device,
    main: &Weights,
    beside: &[(String, PathBuf)],
    options: &Options,
    row_invariant: bool,
) -> Result<Loaded> {
    use omnidecode_models::gpu::{self, GpuDecoder};
    let graphs = std::env::var_os(EAGER).is_none();
    let options = gpu::Options { kv_dtype: options.kv_dtype, graphs, row_invariant };
    let main = GpuDecoder::load(main, device.open()?, &options)?;
    let mut others: Vec<(String, Box<dyn Network>)> = Vec::new();
    for (role, path) in beside {
        let weights = Weights::open(path)?;
        let other = match weights.config().exit_layer {
            Some(_) => GpuDecoder::load_adapter(&weights, &main, device.open()?, &options)?,
            None => GpuDecoder::load(&weights, device.open()?, &options)?,
        };
        others.push((role.clone(), Box::new(other)));
    }
    // A tenth stays for what steps write.
    let free = main.device().free_bytes().map(|bytes| bytes / 10 * 9);
    Ok(Loaded { main: Box::new(main), others, free })
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: Device, _: &Weights, _: &[(String, PathBuf)], _: &Options, _: bool) -> Result<Loaded> {
    Err(without())
}

#[cfg(not(feature = "cuda"))]
fn without() -> Error {
    let message =
        "expected a build with the feature `cuda`, found one without it: install one with it, or use device cpu";
    omnidecode_models::ModelError::Device(message.into()).into()
}

/// What of CUDA is in this build and on this machine: `built`, either `devices` or `missing`, and the library that large products
/// run in where `row_invariant` is off, or why they run in the own kernels.
pub fn cuda_json() -> Value {
    #[cfg(feature = "cuda")]
    {
        use omnidecode_models::gpu;
        let kernels = gpu::built_for();
        let library = gpu::library_version().unwrap_or_else(|e| e.to_string());
        match gpu::cards() {
            Ok((driver, cards)) => {
                let card = |c: gpu::Card| {
                    let capability = format!("{}.{}", c.capability / 10, c.capability % 10);
                    json!({ "name": c.name, "capability": capability, "bytes": c.memory, "multiprocessors": c.processors })
                };
                let devices: Vec<Value> = cards.into_iter().map(card).collect();
                let missing = devices.is_empty().then_some("expected a GPU, the driver has none");
                json!({ "built": true, "kernels": kernels, "driver": driver, "devices": devices, "missing": missing, "library": library })
            }
            Err(e) => {
                json!({ "built": true, "kernels": kernels, "driver": null, "devices": [], "missing": e.to_string(), "library": library })
            }
        }
    }
    #[cfg(not(feature = "cuda"))]
    json!({ "built": false, "kernels": null, "driver": null, "devices": [], "missing": "a build with the feature `cuda`", "library": null })
}

/// Run every check of the kernels on a GPU: a list of {name, seconds, error}, `error` null where a check passed.
///
/// # Errors
/// [`Error::Model`] when the GPU cannot be opened.
pub fn check_cuda_json(device: Device) -> Result<Value> {
    #[cfg(feature = "cuda")]
    {
        use omnidecode_models::gpu::check;
        let mut device = device.open()?;
        let mut checks = Vec::new();
        for name in check::names() {
            let clock = std::time::Instant::now();
            let (same, done) = check::run(name, device);
            device = same;
            checks.push(json!({ "name": name, "seconds": clock.elapsed().as_secs_f64(), "error": done.err() }));
        }
        Ok(checks.into())
    }
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        Err(without())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        for bad in ["", "gpu", "cuda:", "cuda3", "cuda:x", "cuda:-1"] {
            assert!(matches!(bad.parse::<Device>(), Err(Error::Device { .. })), "{bad}");
        }
    }

    #[test]
    fn what_there_is_of_cuda_is_said() {
        let facts = cuda_json();
        assert_eq!(facts["built"], cfg!(feature = "cuda"));
        assert!(facts["missing"].is_string() || !facts["devices"].as_array().unwrap().is_empty());
    }
}
