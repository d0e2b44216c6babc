//! A device without a GPU: the kernels, compiled by the C++ compiler, their threads as fibers (`kernels/host.h`). For
//! tests: one thread, thousands of times slower than a GPU.
use super::library::{CublasLt, Library};
use super::matmul::Matmul;
use super::{Buffer, Call, Device, DeviceError, ENTRIES, Entry, Kept, Launch};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

type Run = unsafe extern "C" fn(*const c_void, u32, u32, u32);

/// The loaded kernels.
struct Kernels {
    run: HashMap<Entry, Run>,
    sizes: HashMap<Entry, usize>,
    /// What host.cpp has in place of cuBLASLt.
    matmul: CublasLt,
}

/// The emulated blocks and fibers are globals: one launch at a time in a process.
static ONE: Mutex<()> = Mutex::new(());

/// Emulated memory and launches.
pub struct Emulator {
    kernels: &'static Kernels,
    memory: HashMap<u64, Layout>,
    /// Launches so far, for tests.
    pub launches: usize,
    /// Launches that came from a captured plan.
    pub replayed: usize,
    /// Products by the stand-in for the library.
    pub products: usize,
    /// Whether there is a stand-in for cuBLASLt.
    pub has_library: bool,
    graphs: HashMap<u64, Vec<Launch>>,
    matmul: Option<Matmul>,
}
// SAFETY: handles of the stand-in, which knows no threads; one thread at a time, as calls take `&mut self`.
unsafe impl Send for Emulator {}

impl Emulator {
    /// Compile the kernels (once a process) and begin. `None`, with a word on stderr, where there is no C++ compiler.
    ///
    /// # Panics
    /// When the kernels do not compile.
    pub fn new() -> Option<Emulator> {
        static KERNELS: OnceLock<Option<Kernels>> = OnceLock::new();
        let kernels = KERNELS.get_or_init(|| match compile() {
            Ok(path) => Some(load(&path)),
            Err(DeviceError::Missing { expected, found, .. }) => {
                eprintln!("skipped: expected {expected}, found {found}");
                None
            }
            Err(e) => panic!("{e}"),
        });
        kernels.as_ref().map(|kernels| Emulator {
            kernels,
            memory: HashMap::new(),
            launches: 0,
            replayed: 0,
            products: 0,
            has_library: true,
            graphs: HashMap::new(),
            matmul: None,
        })
    }

    /// Bytes of the arguments of each entry, as the C++ compiler lays them out.
    pub fn sizes(&self) -> impl Iterator<Item = (Entry, usize)> {
        self.kernels.sizes.iter().map(|(e, s)| (*e, *s))
    }
}

/// The sources, in the repository.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels")
}

fn compile() -> Result<PathBuf, DeviceError> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let version = Command::new(&compiler).arg("--version").output().map_err(|e| DeviceError::Missing {
        expected: "a C++17 compiler (CXX, c++)",
        found: e.to_string(),
        hint: "install g++ or clang++",
    })?;
    let io = |e: std::io::Error| DeviceError::Compile(e.to_string());
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(sources()).map_err(io)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    names.sort();
    // The name says what is in it, so that test processes share one library.
    let mut hash = std::hash::DefaultHasher::new();
    std::hash::Hasher::write(&mut hash, &version.stdout);
    for name in &names {
        std::hash::Hasher::write(&mut hash, &std::fs::read(name).map_err(io)?);
    }
    let folder = std::env::temp_dir().join(format!("omnidecode-emulator-{}", std::hash::Hasher::finish(&hash)));
    let library = folder.join("kernels.so");
    if library.exists() {
        return Ok(library);
    }
    std::fs::create_dir_all(&folder).map_err(io)?;
    // Test processes wait for the first of them.
    let lock = std::fs::File::create(folder.join("lock")).map_err(io)?;
    lock.lock().map_err(io)?;
    if library.exists() {
        return Ok(library);
    }
    let own = folder.join(format!("{}", std::process::id()));
    std::fs::create_dir_all(&own).map_err(io)?;
    // Each source on its own: they hide their helpers from each other.
    let build = |source: &Path| {
        let object = own.join(source.file_stem().unwrap_or_default()).with_extension("o");
        let mut command = Command::new(&compiler);
        command.args(["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-mfma", "-Wno-unknown-pragmas", "-c"]);
        if !cfg!(target_arch = "x86_64") {
            command = Command::new(&compiler);
            command.args(["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-c"]);
        }
        command.args(["-x", "c++"]).arg(source).arg("-o").arg(&object);
        let out = command.output().map_err(io)?;
        match out.status.success() {
            true => Ok(object),
            false => Err(DeviceError::Compile(String::from_utf8_lossy(&out.stderr).into_owned())),
        }
    };
    let sources = names.iter().filter(|n| n.extension().is_some_and(|e| e == "cu" || e == "cpp"));
    let sources: Vec<&PathBuf> = sources.collect();
    let mut objects = Vec::new();
    for some in sources.chunks(std::thread::available_parallelism().map_or(1, usize::from)) {
        let done: Vec<_> = std::thread::scope(|scope| {
            let jobs: Vec<_> = some.iter().map(|n| scope.spawn(|| build(n))).collect();
            jobs.into_iter()
                .map(|job| job.join().unwrap_or_else(|_| Err(DeviceError::Compile("panicked".into()))))
                .collect()
        });
        objects.extend(done.into_iter().collect::<Result<Vec<_>, _>>()?);
    }
    let linked = own.join("kernels.so");
    let out = Command::new(&compiler).arg("-shared").args(&objects).arg("-o").arg(&linked).output().map_err(io)?;
    if !out.status.success() {
        return Err(DeviceError::Compile(String::from_utf8_lossy(&out.stderr).into_owned()));
    }
    std::fs::rename(&linked, &library).map_err(io)?;
    let _ = std::fs::remove_dir_all(&own);
    Ok(library)
}

fn load(path: &Path) -> Kernels {
    let name = CString::new(path.to_string_lossy().as_bytes()).expect("a path without zeros");
    // SAFETY: our own library, which runs nothing when it is loaded.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!library.is_null(), "cannot load {}", path.display());
    let symbol = |name: String| {
        let c = CString::new(name.as_bytes()).expect("a name");
        // SAFETY: the library is open.
        let found = unsafe { libc::dlsym(library, c.as_ptr()) };
        assert!(!found.is_null(), "no {name} in {}", path.display());
        found
    };
    let (mut run, mut sizes) = (HashMap::new(), HashMap::new());
    for (entry, name, _) in ENTRIES {
        // SAFETY: `KERNEL` in host.h makes functions of these types.
        unsafe {
            run.insert(*entry, std::mem::transmute::<*mut c_void, Run>(symbol(format!("run_{name}"))));
            let size =
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u32>(symbol(format!("size_{name}")));
            sizes.insert(*entry, size() as usize);
        }
    }
    let matmul = CublasLt::of(Library(library)).unwrap_or_else(|e| panic!("{e}"));
    Kernels { run, sizes, matmul }
}

impl Device for Emulator {
    fn describe(&self) -> String {
        "emulated on the host".into()
    }
    fn free_bytes(&self) -> Option<usize> {
        None
    }
    fn alloc(&mut self, bytes: usize) -> Result<Buffer, DeviceError> {
        let layout = Layout::from_size_align(bytes.max(1), 256).map_err(|_| DeviceError::Memory { bytes })?;
        // SAFETY: not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(DeviceError::Memory { bytes });
        }
        self.memory.insert(memory as u64, layout);
        Ok(Buffer::new(memory as u64, bytes))
    }
    fn free(&mut self, buffer: Buffer) {
        if let Some(layout) = self.memory.remove(&buffer.address().0) {
            // SAFETY: allocated with this layout, and taken out of the map.
            unsafe { dealloc(buffer.address().0 as *mut u8, layout) }
        }
    }
    fn keep(&mut self, buffers: Vec<Buffer>) -> Kept {
        let taken = |b: &Buffer| self.memory.remove(&b.address().0).map(|layout| (b.address().0, layout));
        Arc::new(Memory(buffers.iter().filter_map(taken).collect()))
    }
    fn library(&mut self) -> Result<String, DeviceError> {
        if !self.has_library {
            let (expected, hint) = ("a stand-in for cuBLASLt", "none is wanted here");
            return Err(DeviceError::Missing { expected, found: "none".into(), hint });
        }
        let matmul = match self.matmul.take() {
            Some(matmul) => matmul,
            None => Matmul::open(&self.kernels.matmul)?,
        };
        Ok(self.matmul.insert(matmul).version())
    }
    fn write(&mut self, to: &Buffer, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let to = to.range(at, bytes.len())?;
        // SAFETY: inside the buffer, which is alive: only `free`, which takes it, ends it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }
    fn read(&mut self, from: &Buffer, at: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        let from = from.range(at, out.len())?;
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, out.as_mut_ptr(), out.len()) };
        Ok(())
    }
    fn launch(&mut self, launches: &[Launch]) -> Result<(), DeviceError> {
        let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for launch in launches {
            self.launches += 1;
            if let Call::Matmul(args) = &launch.call {
                self.library()?;
                self.products += 1;
                if let Some(matmul) = &mut self.matmul {
                    matmul.run(args, 0, std::ptr::null_mut())?;
                }
                continue;
            }
            let [x, y, z] = launch.grid;
            // SAFETY: the arguments are those of the entry (`Call` ties them); that they fit their buffers is what tests
            // are to find out.
            unsafe { self.kernels.run[&launch.entry](launch.call.pointer(), x, y, z) };
        }
        Ok(())
    }
    fn replay(&mut self, key: u64, launches: &[Launch]) -> Result<(), DeviceError> {
        // What was captured runs, not what is given: a key that means two plans shows.
        let plan = self.graphs.entry(key).or_insert_with(|| launches.to_vec()).clone();
        self.replayed += plan.len();
        self.launch(&plan)
    }
    fn forget(&mut self) {
        self.graphs.clear();
    }
}

/// Memory that outlives its device.
struct Memory(Vec<(u64, Layout)>);
impl Drop for Memory {
    fn drop(&mut self) {
        for (address, layout) in self.0.drain(..) {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(address as *mut u8, layout) }
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for (address, layout) in self.memory.drain() {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(address as *mut u8, layout) }
        }
    }
}
