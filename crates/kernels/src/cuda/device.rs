//! A device: memory, and launches of kernels on it.
use super::args::*;

/// An address in a device's memory; 0 is no address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address(pub u64);
/// Memory of a device, zeroed when it was made. Freed by [`Device::free`], or with the device.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    address: Address,
    bytes: usize,
}
impl Buffer {
    /// What a device made: its own business.
    pub(super) fn new(address: u64, bytes: usize) -> Self {
        Buffer { address: Address(address), bytes }
    }
    /// Where it begins.
    pub fn address(&self) -> Address {
        self.address
    }
    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
    /// The address of a byte in it.
    ///
    /// # Panics
    /// When it lies behind the end: a plan that does not fit its buffers, a bug of ours.
    pub fn at(&self, byte: usize) -> Address {
        assert!(byte <= self.bytes, "byte {byte} of a buffer of {}", self.bytes);
        Address(self.address.0 + byte as u64)
    }
    /// The address of some bytes at an offset.
    pub(super) fn range(&self, at: usize, len: usize) -> Result<u64, DeviceError> {
        match at.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(self.address.0 + at as u64),
            _ => Err(DeviceError::Range { at, len, bytes: self.bytes }),
        }
    }
}

/// Why a device did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// A part of CUDA is not on this machine.
    #[error("expected {expected}, found {found}: {hint}")]
    Missing {
        /// What is needed.
        expected: &'static str,
        /// What was there.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// The memory is used up.
    #[error("the device has no {bytes} bytes left: use a smaller cache, a shorter context or a smaller model")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// Bytes outside a buffer.
    #[error("bytes {at}..{at}+{len} of a buffer of {bytes}")]
    Range {
        /// First byte.
        at: usize,
        /// How many.
        len: usize,
        /// Bytes of the buffer.
        bytes: usize,
    },
    /// The driver refused.
    #[error("{call} failed: {message}")]
    Driver {
        /// What was called.
        call: &'static str,
        /// What it said.
        message: String,
    },
    /// A kernel did not compile.
    #[error("kernels do not compile: {0}")]
    Compile(String),
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($args:ident): $($entry:ident),* $(,)?;)*) => {
        /// A kernel with its arguments.
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[expect(clippy::large_enum_variant, reason = "a plan is a few hundred of them")]
        pub enum Call { $($(#[$doc])* $name($args),)* }
        impl Call {
            /// The arguments, as a kernel takes them.
            pub(super) fn pointer(&self) -> *const std::ffi::c_void {
                match self { $(Call::$name(args) => std::ptr::from_ref(args).cast(),)* }
            }
        }
        /// Every entry of `kernels/`, with the bytes of its arguments.
        pub const ENTRIES: &[(Entry, &str, usize)] = &[$($((Entry::$entry, entry_name(Entry::$entry), size_of::<$args>()),)*)*];
    };
}
calls! {
    /// What rows enter with.
    Embed(EmbedArgs): Embed;
    /// A norm of its own.
    Norm(NormArgs): NormRows;
    /// A product.
    Product(ProductArgs): Product16, Product32, Product64, Line16, Line32, Line64, Experts16, Experts64, ExpertLines16,
        ExpertLines64, Epilogue;
    /// A product by the library, if the device has one.
    Matmul(MatmulArgs):;
    /// A quantized matrix as bf16, for the library.
    Unpack(UnpackArgs): Unpack;
    /// The choice of experts.
    Route(RouteArgs): Route;
    /// Rotation, keys and values to their slots.
    Rope(RopeArgs): Rope;
    /// Attention.
    Attend(AttendArgs): Attend64, Attend128, Attend256;
    /// Attention weights that are read.
    Mass(MassArgs): Mass;
    /// Residual streams that are read.
    Gather(GatherArgs): Gather;
    /// Reductions of logits.
    Pick(PickArgs): Peak, Pick;
    /// A walk down a draft tree.
    Verify(VerifyArgs): Verify;
    /// Slots that are copied.
    Accept(AcceptArgs): Accept;
}

/// An entry of `kernels/`, or the library's product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named as in kernels/")]
pub enum Entry {
    Embed,
    NormRows,
    Product16,
    Product32,
    Product64,
    Line16,
    Line32,
    Line64,
    Experts16,
    Experts64,
    ExpertLines16,
    ExpertLines64,
    Epilogue,
    Matmul,
    Unpack,
    Route,
    Rope,
    Attend64,
    Attend128,
    Attend256,
    Mass,
    Gather,
    Peak,
    Pick,
    Verify,
    Accept,
}

const fn entry_name(entry: Entry) -> &'static str {
    match entry {
        Entry::Embed => "embed",
        Entry::NormRows => "norm_rows",
        Entry::Product16 => "product16",
        Entry::Product32 => "product32",
        Entry::Product64 => "product64",
        Entry::Line16 => "line16",
        Entry::Line32 => "line32",
        Entry::Line64 => "line64",
        Entry::Experts16 => "experts16",
        Entry::Experts64 => "experts64",
        Entry::ExpertLines16 => "expert_lines16",
        Entry::ExpertLines64 => "expert_lines64",
        Entry::Epilogue => "epilogue",
        Entry::Matmul => "matmul",
        Entry::Unpack => "unpack",
        Entry::Route => "route",
        Entry::Rope => "rope",
        Entry::Attend64 => "attend64",
        Entry::Attend128 => "attend128",
        Entry::Attend256 => "attend256",
        Entry::Mass => "mass",
        Entry::Gather => "gather",
        Entry::Peak => "peak",
        Entry::Pick => "pick",
        Entry::Verify => "verify",
        Entry::Accept => "accept",
    }
}
impl Entry {
    /// Its name in `kernels/`.
    pub fn name(self) -> &'static str {
        entry_name(self)
    }
    /// Threads of a block.
    pub fn threads(self) -> u32 {
        if matches!(self, Entry::Verify | Entry::Route) { 32 } else { 256 }
    }
}

/// A kernel, its arguments and its blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch {
    /// Which kernel.
    pub entry: Entry,
    /// Its arguments.
    pub call: Call,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
}

/// Memory that outlives the device that made it: freed with its last holder.
pub type Kept = std::sync::Arc<dyn std::any::Any + Send + Sync>;

/// What runs kernels. Calls are in order: a read sees what was launched before it.
///
/// Launches are trusted to fit their buffers. On a GPU a launch that does not is an error of the driver, or wrong numbers
/// in device memory; it never reaches the host's.
pub trait Device: Send {
    /// For people: the card, its memory.
    fn describe(&self) -> String;
    /// Bytes that can still be had, where the device tells.
    fn free_bytes(&self) -> Option<usize>;
    /// Zeroed memory.
    ///
    /// # Errors
    /// [`DeviceError::Memory`].
    fn alloc(&mut self, bytes: usize) -> Result<Buffer, DeviceError>;
    /// Give memory back. Captured plans that use it must be forgotten first.
    fn free(&mut self, buffer: Buffer);
    /// Hand memory over to those who hold the result, on any device of the same card.
    fn keep(&mut self, buffers: Vec<Buffer>) -> Kept;
    /// Whether [`Call::Matmul`] can be launched: the library's name and version, or why not.
    ///
    /// # Errors
    /// What is missing.
    fn library(&mut self) -> Result<String, DeviceError>;
    /// Copy to the device. The bytes may be changed when this returns.
    ///
    /// # Errors
    /// [`DeviceError::Range`], [`DeviceError::Driver`].
    fn write(&mut self, to: &Buffer, at: usize, bytes: &[u8]) -> Result<(), DeviceError>;
    /// Copy from the device, when all that was launched is done.
    ///
    /// # Errors
    /// [`DeviceError::Range`], [`DeviceError::Driver`]: also of launches before.
    fn read(&mut self, from: &Buffer, at: usize, out: &mut [u8]) -> Result<(), DeviceError>;
    /// Run kernels one after the other.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    fn launch(&mut self, launches: &[Launch]) -> Result<(), DeviceError>;
    /// The same as one captured graph, made at one of the first calls with this key. Must give the same bits as
    /// [`Device::launch`].
    ///
    /// # Errors
    /// As [`Device::launch`].
    fn replay(&mut self, key: u64, launches: &[Launch]) -> Result<(), DeviceError>;
    /// Drop all captured graphs: their buffers are about to go.
    fn forget(&mut self);
}
