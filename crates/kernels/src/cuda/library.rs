//! CUDA's libraries, opened when they are first asked for: nothing of them is linked, and what is missing is an error
//! with a name, never a panic. The few functions that are used are declared here, as the CUDA documentation has them.
use super::DeviceError;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

/// What there is of a library.
pub(super) struct Library(pub(super) *mut c_void);
// SAFETY: a handle that is only read.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}
impl Library {
    /// The first of these names that opens, or what the loader said of the last.
    fn open(names: &[String]) -> Result<Self, String> {
        let mut said = String::new();
        for name in names {
            let Ok(c) = CString::new(name.as_bytes()) else { continue };
            // SAFETY: loading NVIDIA's library runs its initialisers, as every CUDA program does.
            let handle = unsafe { libc::dlopen(c.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if !handle.is_null() {
                return Ok(Library(handle));
            }
            // SAFETY: the message of the call before, copied at once.
            let message = unsafe { libc::dlerror() };
            if !message.is_null() {
                // SAFETY: a string of the loader.
                said = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
            }
        }
        Err(said)
    }
    fn symbol(&self, name: &str) -> Option<*mut c_void> {
        let c = CString::new(name).ok()?;
        // SAFETY: an open library.
        let found = unsafe { libc::dlsym(self.0, c.as_ptr()) };
        (!found.is_null()).then_some(found)
    }
}

macro_rules! functions {
    ($(#[$doc:meta])* $api:ident, $what:literal, $hint:literal, $names:expr; $($name:ident = $symbol:literal ($($arg:ty),*);)*) => {
        $(#[$doc])*
        pub(super) struct $api {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> c_int,)*
            _library: Library,
        }
        impl $api {
            /// The library, opened once a process.
            ///
            /// # Errors
            /// [`DeviceError::Missing`]: it is not there, or is too old for a function.
            pub fn get() -> Result<&'static Self, DeviceError> {
                static API: OnceLock<Result<$api, DeviceError>> = OnceLock::new();
                API.get_or_init(Self::open).as_ref().map_err(Clone::clone)
            }
            fn open() -> Result<Self, DeviceError> {
                let missing = |found: String| DeviceError::Missing { expected: $what, found, hint: $hint };
                Self::of(Library::open(&$names).map_err(missing)?)
            }
            /// The functions of a library that is open.
            pub fn of(library: Library) -> Result<Self, DeviceError> {
                let missing = |found: String| DeviceError::Missing { expected: $what, found, hint: $hint };
                let symbol = |name: &'static str| library.symbol(name).ok_or_else(|| missing(format!("one without {name}")));
                // SAFETY: the types are those of the CUDA documentation for these names.
                unsafe {
                    $(let $name = std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> c_int>(symbol($symbol)?);)*
                    Ok(Self { $($name,)* _library: library })
                }
            }
        }
    };
}

/// A handle of the driver.
pub(super) type Handle = *mut c_void;

functions! {
    /// The driver's interface.
    Driver, "an NVIDIA driver (libcuda.so.1)", "install NVIDIA's driver, or use device=\"cpu\"",
    ["libcuda.so.1".to_string(), "libcuda.so".to_string()];
    init = "cuInit"(u32);
    version = "cuDriverGetVersion"(*mut c_int);
    count = "cuDeviceGetCount"(*mut c_int);
    device = "cuDeviceGet"(*mut c_int, c_int);
    name = "cuDeviceGetName"(*mut c_char, c_int, c_int);
    attribute = "cuDeviceGetAttribute"(*mut c_int, c_int, c_int);
    memory = "cuDeviceTotalMem_v2"(*mut usize, c_int);
    retain = "cuDevicePrimaryCtxRetain"(*mut Handle, c_int);
    release = "cuDevicePrimaryCtxRelease_v2"(c_int);
    set_current = "cuCtxSetCurrent"(Handle);
    free_memory = "cuMemGetInfo_v2"(*mut usize, *mut usize);
    alloc = "cuMemAlloc_v2"(*mut u64, usize);
    free = "cuMemFree_v2"(u64);
    zero = "cuMemsetD8Async"(u64, u8, usize, Handle);
    upload = "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, Handle);
    download = "cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, Handle);
    stream = "cuStreamCreate"(*mut Handle, u32);
    wait = "cuStreamSynchronize"(Handle);
    end_stream = "cuStreamDestroy_v2"(Handle);
    load = "cuModuleLoadData"(*mut Handle, *const c_void);
    unload = "cuModuleUnload"(Handle);
    function = "cuModuleGetFunction"(*mut Handle, Handle, *const c_char);
    launch = "cuLaunchKernel"(Handle, u32, u32, u32, u32, u32, u32, u32, Handle, *mut *mut c_void, *mut *mut c_void);
    begin = "cuStreamBeginCapture_v2"(Handle, c_int);
    end = "cuStreamEndCapture"(Handle, *mut Handle);
    instantiate = "cuGraphInstantiateWithFlags"(*mut Handle, Handle, u64);
    run_graph = "cuGraphLaunch"(Handle, Handle);
    end_exec = "cuGraphExecDestroy"(Handle);
    end_graph = "cuGraphDestroy"(Handle);
    describe = "cuGetErrorString"(c_int, *mut *const c_char);
}
impl Driver {
    /// An error where the driver says one.
    pub fn check(&self, call: &'static str, code: c_int) -> Result<(), DeviceError> {
        if code == 0 {
            return Ok(());
        }
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: writes a pointer to a constant string.
        let known = unsafe { (self.describe)(code, &raw mut text) } == 0 && !text.is_null();
        let said = if known {
            // SAFETY: a constant string of the driver.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        } else {
            "unknown error".into()
        };
        Err(DeviceError::Driver { call, message: format!("{said} ({code})") })
    }
}

functions! {
    /// The run-time compiler.
    Nvrtc, "NVIDIA's run-time compiler (libnvrtc.so.13 or .12)",
    "pip install nvidia-cuda-nvrtc and name its folder in OMNIDECODE_CUDA_LIBRARIES, or unset OMNIDECODE_KERNELS",
    nvrtc_names();
    create = "nvrtcCreateProgram"(*mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char);
    compile = "nvrtcCompileProgram"(Handle, c_int, *const *const c_char);
    cubin_size = "nvrtcGetCUBINSize"(Handle, *mut usize);
    cubin = "nvrtcGetCUBIN"(Handle, *mut c_char);
    log_size = "nvrtcGetProgramLogSize"(Handle, *mut usize);
    log = "nvrtcGetProgramLog"(Handle, *mut c_char);
    destroy = "nvrtcDestroyProgram"(*mut Handle);
}

functions! {
    /// Products of large matrices.
    CublasLt, "NVIDIA's cuBLASLt (libcublasLt.so.13 or .12)",
    "pip install nvidia-cublas and name its folder in OMNIDECODE_CUDA_LIBRARIES; until then the own products run",
    in_folder(["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"]);
    create = "cublasLtCreate"(*mut Handle);
    destroy = "cublasLtDestroy"(Handle);
    property = "cublasLtGetProperty"(c_int, *mut c_int);
    desc = "cublasLtMatmulDescCreate"(*mut Handle, c_int, c_int);
    set_desc = "cublasLtMatmulDescSetAttribute"(Handle, c_int, *const c_void, usize);
    end_desc = "cublasLtMatmulDescDestroy"(Handle);
    layout = "cublasLtMatrixLayoutCreate"(*mut Handle, c_int, u64, u64, i64);
    end_layout = "cublasLtMatrixLayoutDestroy"(Handle);
    preference = "cublasLtMatmulPreferenceCreate"(*mut Handle);
    set_preference = "cublasLtMatmulPreferenceSetAttribute"(Handle, c_int, *const c_void, usize);
    end_preference = "cublasLtMatmulPreferenceDestroy"(Handle);
    heuristic = "cublasLtMatmulAlgoGetHeuristic"(Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Algorithm, *mut c_int);
    matmul = "cublasLtMatmul"(Handle, Handle, *const f32, u64, Handle, u64, Handle, *const f32, u64, Handle, u64, Handle, *const [u64; 8], u64, usize, Handle);
}

/// What cuBLASLt proposes for a product.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Algorithm {
    pub algorithm: [u64; 8],
    pub workspace: usize,
    pub state: c_int,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

/// The folder where NVIDIA's libraries lie, if they are not where the loader looks.
const LIBRARIES: &str = "OMNIDECODE_CUDA_LIBRARIES";

/// These names in that folder, then where the loader looks.
fn in_folder(names: [&str; 3]) -> Vec<String> {
    let folder = std::env::var(LIBRARIES).ok();
    let there = folder.iter().flat_map(|folder| names.map(|name| format!("{folder}/{name}")));
    there.chain(names.map(String::from)).collect()
}

/// NVRTC, whose built-ins must be open when the compiler looks for them.
fn nvrtc_names() -> Vec<String> {
    if let Some(entries) = std::env::var(LIBRARIES).ok().and_then(|folder| std::fs::read_dir(folder).ok()) {
        for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so")) {
            if let Ok(Library(handle)) = Library::open(&[entry.path().to_string_lossy().into_owned()]) {
                let _stays_open = handle;
            }
        }
    }
    in_folder(["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"])
}
