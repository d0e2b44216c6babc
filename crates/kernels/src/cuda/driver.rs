//! A device of the NVIDIA driver.
use super::library::{CublasLt, Driver, Handle};
use super::matmul::{Matmul, WORKSPACE, version};
use super::{Buffer, Call, Device, DeviceError, ENTRIES, Entry, Kept, Launch, source};
use std::collections::{HashMap, HashSet};
use std::ffi::{CString, c_int};
use std::sync::Arc;

/// Attributes of a device, as the driver numbers them.
const MAJOR: c_int = 75;
const MINOR: c_int = 76;
const PROCESSORS: c_int = 16;
/// A stream that does not wait for the legacy one.
const NON_BLOCKING: u32 = 1;
/// Capture calls of this thread only.
const THREAD_LOCAL: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
/// Oldest devices that the kernels run on.
const OLDEST: i32 = 80;

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Name.
    pub name: String,
    /// Compute capability times ten: 80, 90, 100.
    pub capability: i32,
    /// Bytes of memory.
    pub memory: usize,
    /// Multiprocessors.
    pub processors: i32,
}

/// What of CUDA is on this machine; opens the driver, makes no context.
///
/// # Errors
/// [`DeviceError::Missing`] without a driver or a device, [`DeviceError::Driver`] when the driver fails.
pub fn cards() -> Result<(i32, Vec<Card>), DeviceError> {
    let driver = Driver::get()?;
    let (mut version, mut count) = (0, 0);
    // SAFETY: plain calls that write one number.
    unsafe {
        driver.check("cuInit", (driver.init)(0))?;
        driver.check("cuDriverGetVersion", (driver.version)(&raw mut version))?;
        driver.check("cuDeviceGetCount", (driver.count)(&raw mut count))?;
    }
    (0..count).map(|i| card(driver, i)).collect::<Result<Vec<_>, _>>().map(|cards| (version, cards))
}

/// The library of large products on this machine: which, or what is missing.
///
/// # Errors
/// [`DeviceError::Missing`].
pub fn library_version() -> Result<String, DeviceError> {
    CublasLt::get().map(version)
}

fn card(driver: &Driver, ordinal: i32) -> Result<Card, DeviceError> {
    let (mut device, mut memory, mut name) = (0, 0usize, [0u8; 128]);
    let [mut major, mut minor, mut processors] = [0; 3];
    // SAFETY: each call writes what it is given room for.
    unsafe {
        driver.check("cuDeviceGet", (driver.device)(&raw mut device, ordinal))?;
        driver.check("cuDeviceGetName", (driver.name)(name.as_mut_ptr().cast(), 127, device))?;
        driver.check("cuDeviceTotalMem", (driver.memory)(&raw mut memory, device))?;
        for (value, which) in [(&mut major, MAJOR), (&mut minor, MINOR), (&mut processors, PROCESSORS)] {
            driver.check("cuDeviceGetAttribute", (driver.attribute)(value, which, device))?;
        }
    }
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    let name = String::from_utf8_lossy(&name[..end]).into_owned();
    Ok(Card { name, capability: major * 10 + minor, memory, processors })
}

/// A GPU with its stream and its kernels.
pub struct Gpu {
    driver: &'static Driver,
    card: Card,
    device: c_int,
    context: Handle,
    stream: Handle,
    modules: Vec<Handle>,
    functions: HashMap<Entry, Handle>,
    graphs: HashMap<u64, Handle>,
    /// Plans that ran once, launch by launch: what is loaded or chosen at a first launch is, before a capture.
    warm: HashSet<u64>,
    memory: Vec<u64>,
    /// With its workspace.
    matmul: Option<(Matmul, u64)>,
}
// SAFETY: handles of the driver may be used from any thread that has made the context current, which every call does; one
// thread at a time, as calls take `&mut self`.
unsafe impl Send for Gpu {}

impl Gpu {
    /// Open a GPU and load the kernels: those of this build, or, where `OMNIDECODE_KERNELS` names a folder, its sources,
    /// compiled now.
    ///
    /// # Errors
    /// [`DeviceError`]: what is missing or failed, and what to do.
    pub fn open(ordinal: i32) -> Result<Gpu, DeviceError> {
        let (_, cards) = cards()?;
        let count = cards.len();
        let card = cards.into_iter().nth(ordinal.max(0) as usize).ok_or_else(|| DeviceError::Missing {
            expected: "an NVIDIA GPU of that number",
            found: format!("{count} of them, asked for number {ordinal}"),
            hint: "check CUDA_VISIBLE_DEVICES, or use device=\"cpu\"",
        })?;
        if card.capability < OLDEST {
            return Err(DeviceError::Missing {
                expected: "a GPU of compute capability 8.0 or later",
                found: format!("{} with {}.{}", card.name, card.capability / 10, card.capability % 10),
                hint: "use device=\"cpu\"",
            });
        }
        let images = source::images(card.capability)?;
        let driver = Driver::get()?;
        let (mut device, mut context, mut stream) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: each call writes one handle.
        unsafe {
            driver.check("cuDeviceGet", (driver.device)(&raw mut device, ordinal))?;
            driver.check("cuDevicePrimaryCtxRetain", (driver.retain)(&raw mut context, device))?;
        }
        let mut gpu = Gpu {
            driver,
            card,
            device,
            context,
            stream,
            modules: Vec::new(),
            functions: HashMap::new(),
            graphs: HashMap::new(),
            warm: HashSet::new(),
            memory: Vec::new(),
            matmul: None,
        };
        gpu.bind()?;
        // SAFETY: writes one handle.
        unsafe { driver.check("cuStreamCreate", (driver.stream)(&raw mut stream, NON_BLOCKING))? };
        gpu.stream = stream;
        for image in &images {
            gpu.load(image)?;
        }
        for (entry, name, _) in ENTRIES {
            if !gpu.functions.contains_key(entry) {
                return Err(DeviceError::Compile(format!("no kernel {name} in {} modules", images.len())));
            }
        }
        Ok(gpu)
    }

    /// What the device says of itself.
    pub fn card(&self) -> &Card {
        &self.card
    }

    fn bind(&self) -> Result<(), DeviceError> {
        // SAFETY: a context that is held.
        self.driver.check("cuCtxSetCurrent", unsafe { (self.driver.set_current)(self.context) })
    }

    fn load(&mut self, image: &[u8]) -> Result<(), DeviceError> {
        // The driver finds the end of a cubin or fatbin by itself; of PTX by a zero.
        let mut bytes = image.to_vec();
        bytes.push(0);
        let mut module = std::ptr::null_mut();
        // SAFETY: an image that nvcc or NVRTC made.
        let code = unsafe { (self.driver.load)(&raw mut module, bytes.as_ptr().cast()) };
        self.driver.check("cuModuleLoadData", code)?;
        self.modules.push(module);
        for (entry, name, _) in ENTRIES {
            let Ok(c) = CString::new(*name) else { continue };
            let mut function = std::ptr::null_mut();
            // SAFETY: a module that is loaded; a name that it may not have.
            if unsafe { (self.driver.function)(&raw mut function, module, c.as_ptr()) } == 0 {
                self.functions.insert(*entry, function);
            }
        }
        Ok(())
    }

    fn enqueue(&mut self, launches: &[Launch]) -> Result<(), DeviceError> {
        for launch in launches {
            if let Call::Matmul(args) = &launch.call {
                self.library()?;
                let stream = self.stream;
                let Some((matmul, workspace)) = &mut self.matmul else { continue };
                matmul.run(args, *workspace, stream)?;
                continue;
            }
            let [x, y, z] = launch.grid;
            let mut args = [launch.call.pointer().cast_mut()];
            // SAFETY: one argument, of the struct that the entry takes (tests compare the sizes); read before this returns.
            let code = unsafe {
                let (function, threads) = (self.functions[&launch.entry], launch.entry.threads());
                let none = std::ptr::null_mut();
                (self.driver.launch)(function, x, y, z, threads, 1, 1, 0, self.stream, args.as_mut_ptr(), none)
            };
            self.driver.check("cuLaunchKernel", code)?;
        }
        Ok(())
    }

    fn capture(&mut self, launches: &[Launch]) -> Result<Handle, DeviceError> {
        let driver = self.driver;
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: our stream; nothing but launches is captured, so that no memory is held by the graph.
        unsafe {
            driver.check("cuStreamBeginCapture", (driver.begin)(self.stream, THREAD_LOCAL))?;
            let enqueued = self.enqueue(launches);
            let ended = driver.check("cuStreamEndCapture", (driver.end)(self.stream, &raw mut graph));
            let made = enqueued
                .and(ended)
                .and_then(|()| driver.check("cuGraphInstantiate", (driver.instantiate)(&raw mut exec, graph, 0)));
            if !graph.is_null() {
                (driver.end_graph)(graph);
            }
            made?;
        }
        Ok(exec)
    }

    fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: our stream.
        self.driver.check("cuStreamSynchronize", unsafe { (self.driver.wait)(self.stream) })
    }
}

impl Device for Gpu {
    fn describe(&self) -> String {
        let Card { name, capability, memory, processors } = &self.card;
        let (major, minor, gib) = (capability / 10, capability % 10, memory >> 30);
        format!("{name}: compute capability {major}.{minor}, {processors} multiprocessors, {gib} GiB")
    }

    fn free_bytes(&self) -> Option<usize> {
        let (mut free, mut all) = (0, 0);
        self.bind().ok()?;
        // SAFETY: writes two numbers.
        let code = unsafe { (self.driver.free_memory)(&raw mut free, &raw mut all) };
        (code == 0).then_some(free)
    }

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, DeviceError> {
        self.bind()?;
        let mut address = 0;
        // SAFETY: writes one address; then fills what it is of.
        unsafe {
            let code = (self.driver.alloc)(&raw mut address, bytes.max(1));
            if code == OUT_OF_MEMORY {
                return Err(DeviceError::Memory { bytes });
            }
            self.driver.check("cuMemAlloc", code)?;
            self.memory.push(address);
            self.driver.check("cuMemsetD8Async", (self.driver.zero)(address, 0, bytes.max(1), self.stream))?;
        }
        Ok(Buffer::new(address, bytes))
    }

    fn free(&mut self, buffer: Buffer) {
        let address = buffer.address().0;
        let Some(at) = self.memory.iter().position(|&a| a == address) else { return };
        self.memory.swap_remove(at);
        let _ = self.bind().and_then(|()| self.wait());
        // SAFETY: ours, and nothing runs any more.
        unsafe { (self.driver.free)(address) };
    }

    fn keep(&mut self, buffers: Vec<Buffer>) -> Kept {
        let addresses: Vec<u64> = buffers.iter().map(|buffer| buffer.address().0).collect();
        self.memory.retain(|address| !addresses.contains(address));
        let mut context = std::ptr::null_mut();
        // SAFETY: writes the handle of the context that is already held: the memory lives in it.
        unsafe { (self.driver.retain)(&raw mut context, self.device) };
        Arc::new(Memory { driver: self.driver, device: self.device, context, addresses })
    }

    fn library(&mut self) -> Result<String, DeviceError> {
        if self.matmul.is_none() {
            self.bind()?;
            let matmul = Matmul::open(CublasLt::get()?)?;
            let workspace = self.alloc(WORKSPACE)?.address().0;
            self.matmul = Some((matmul, workspace));
        }
        Ok(self.matmul.as_ref().map_or_else(String::new, |m| m.0.version()))
    }

    fn write(&mut self, to: &Buffer, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let to = to.range(at, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: inside the buffer. Pageable memory is copied away before the call returns.
        let code = unsafe { (self.driver.upload)(to, bytes.as_ptr().cast(), bytes.len(), self.stream) };
        self.driver.check("cuMemcpyHtoDAsync", code)
    }

    fn read(&mut self, from: &Buffer, at: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        let from = from.range(at, out.len())?;
        self.bind()?;
        if !out.is_empty() {
            // SAFETY: inside the buffer; the wait below ends before `out` is seen.
            let code = unsafe { (self.driver.download)(out.as_mut_ptr().cast(), from, out.len(), self.stream) };
            self.driver.check("cuMemcpyDtoHAsync", code)?;
        }
        self.wait()
    }

    fn launch(&mut self, launches: &[Launch]) -> Result<(), DeviceError> {
        self.bind()?;
        self.enqueue(launches)
    }

    fn replay(&mut self, key: u64, launches: &[Launch]) -> Result<(), DeviceError> {
        self.bind()?;
        let exec = match self.graphs.get(&key) {
            Some(&exec) => exec,
            None if self.warm.insert(key) => return self.enqueue(launches),
            None => {
                let exec = self.capture(launches)?;
                self.graphs.insert(key, exec);
                exec
            }
        };
        // SAFETY: a graph of ours, in our stream.
        self.driver.check("cuGraphLaunch", unsafe { (self.driver.run_graph)(exec, self.stream) })
    }

    fn forget(&mut self) {
        let _ = self.bind().and_then(|()| self.wait());
        self.warm.clear();
        for (_, exec) in self.graphs.drain() {
            // SAFETY: ours, and nothing runs any more.
            unsafe { (self.driver.end_exec)(exec) };
        }
    }
}

/// Memory that outlives its device.
struct Memory {
    driver: &'static Driver,
    device: c_int,
    context: Handle,
    addresses: Vec<u64>,
}
// SAFETY: a handle and addresses that are used once, when the last holder is gone.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}
impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: ours; who held this waited for its launches; the context is held until here.
        unsafe {
            (self.driver.set_current)(self.context);
            for &address in &self.addresses {
                (self.driver.free)(address);
            }
            (self.driver.release)(self.device);
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.forget();
        self.matmul = None;
        // SAFETY: everything is ours, and nothing runs any more.
        unsafe {
            for address in self.memory.drain(..) {
                (self.driver.free)(address);
            }
            for module in self.modules.drain(..) {
                (self.driver.unload)(module);
            }
            if !self.stream.is_null() {
                (self.driver.end_stream)(self.stream);
            }
            (self.driver.release)(self.device);
        }
    }
}
