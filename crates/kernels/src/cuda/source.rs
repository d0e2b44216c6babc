//! Where the kernels' code comes from: this build's images, or a folder of sources that NVRTC compiles.
use super::DeviceError;
use super::library::{Handle, Nvrtc};
use std::ffi::CString;
use std::path::Path;

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The folder whose sources replace the build's kernels, for tuning them without a Rust compiler.
const FOLDER: &str = "OMNIDECODE_KERNELS";

/// What this build brings, for people: architectures, or why there are no kernels in it.
pub fn built_for() -> &'static str {
    ARCHITECTURES
}

/// Modules to load on a device of this capability.
pub(super) fn images(capability: i32) -> Result<Vec<Vec<u8>>, DeviceError> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return compile(Path::new(&folder), capability);
    }
    if IMAGES.is_empty() {
        return Err(DeviceError::Missing {
            expected: "kernels in this build",
            found: ARCHITECTURES.into(),
            hint: "build with nvcc (CUDA_HOME), or name the folder of the kernels' sources in OMNIDECODE_KERNELS",
        });
    }
    Ok(IMAGES.iter().map(|image| image.to_vec()).collect())
}

/// Compile every `.cu` of a folder.
fn compile(folder: &Path, capability: i32) -> Result<Vec<Vec<u8>>, DeviceError> {
    let nvrtc = Nvrtc::get()?;
    let io = |e: std::io::Error| DeviceError::Compile(format!("{}: {e}", folder.display()));
    let mut names: Vec<_> = std::fs::read_dir(folder).map_err(io)?.filter_map(|e| Some(e.ok()?.path())).collect();
    names.retain(|name| name.extension().is_some_and(|e| e == "cu"));
    names.sort();
    if names.is_empty() {
        return Err(DeviceError::Compile(format!("{}: expected .cu files, found none", folder.display())));
    }
    let text = |s: String| CString::new(s).map_err(|e| DeviceError::Compile(e.to_string()));
    // Features of one generation only, where there are any.
    let suffix = if capability == 90 { "a" } else { "" };
    let options = [
        text(format!("--gpu-architecture=sm_{capability}{suffix}"))?,
        text(format!("-I{}", folder.display()))?,
        text("--std=c++17".into())?,
        text("--fmad=false".into())?,
    ];
    let pointers = options.each_ref().map(|o| o.as_ptr());
    let mut images = Vec::new();
    for name in names {
        let (code, label) = (text(std::fs::read_to_string(&name).map_err(io)?)?, text(name.display().to_string())?);
        let mut program: Handle = std::ptr::null_mut();
        let failed = |call: &'static str, code| DeviceError::Driver { call, message: format!("error {code}") };
        // SAFETY: strings that live until the program is destroyed; buffers of the sizes that NVRTC gives.
        unsafe {
            let none = std::ptr::null();
            let made = (nvrtc.create)(&raw mut program, code.as_ptr(), label.as_ptr(), 0, none, none);
            if made != 0 {
                return Err(failed("nvrtcCreateProgram", made));
            }
            let compiled = (nvrtc.compile)(program, pointers.len() as i32, pointers.as_ptr());
            let mut size = 0;
            if compiled != 0 {
                (nvrtc.log_size)(program, &raw mut size);
                let mut log = vec![0u8; size];
                (nvrtc.log)(program, log.as_mut_ptr().cast());
                (nvrtc.destroy)(&raw mut program);
                return Err(DeviceError::Compile(String::from_utf8_lossy(&log).into_owned()));
            }
            (nvrtc.cubin_size)(program, &raw mut size);
            let mut image = vec![0u8; size];
            (nvrtc.cubin)(program, image.as_mut_ptr().cast());
            (nvrtc.destroy)(&raw mut program);
            images.push(image);
        }
    }
    Ok(images)
}
