//! The GPU: the same words as the CPU's kernels, in `kernels/*.cu`.
//!
//! A step is a list of [`Launch`]es over fixed buffers: plain data, made once for a shape and run many times, eagerly or
//! as a captured graph. Whoever runs them is a [`Device`]: the driver ([`Gpu`]), or in tests an emulator that compiles
//! the same sources with the C++ compiler ([`emulate`], feature `emulator`).
pub mod args;
pub mod check;
mod device;
mod driver;
#[cfg(feature = "emulator")]
pub mod emulate;
mod library;
mod matmul;
pub mod pack;
mod source;

pub use device::{Address, Buffer, Call, Device, DeviceError, ENTRIES, Entry, Kept, Launch};
pub use driver::{Card, Gpu, cards, library_version};
pub use source::built_for;
