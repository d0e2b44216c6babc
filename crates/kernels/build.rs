//! With the feature `cuda`: compiles `kernels/*.cu` to images for several architectures, where there is an nvcc (`NVCC`,
//! or `CUDA_HOME/bin/nvcc`). Without one the build goes on and brings no kernels. `OMNIDECODE_CUDA_ARCHITECTURES`, "80 90a 100 ptx" by
//! default, says for what.
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["NVCC", "CUDA_HOME", "OMNIDECODE_CUDA_ARCHITECTURES"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let folder = Path::new("../../kernels");
    println!("cargo:rerun-if-changed={}", folder.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let nvcc =
        env::var_os("NVCC").map(PathBuf::from).or_else(|| Some(Path::new(&env::var_os("CUDA_HOME")?).join("bin/nvcc")));
    let architectures = env::var("OMNIDECODE_CUDA_ARCHITECTURES").unwrap_or_else(|_| "80 90a 100 ptx".into());
    let (images, said) = match nvcc.filter(|nvcc| nvcc.is_file()) {
        Some(nvcc) => (compile(&nvcc, folder, &out, &architectures), architectures),
        None => (Vec::new(), "none: built without nvcc".to_string()),
    };
    let list: String =
        images.iter().map(|path| format!("    include_bytes!({:?}),\n", path.display().to_string())).collect();
    let text = format!("static IMAGES: &[&[u8]] = &[\n{list}];\nconst ARCHITECTURES: &str = {said:?};\n");
    std::fs::write(out.join("images.rs"), text).expect("OUT_DIR can be written");
}

/// One image a source, several sources at a time.
fn compile(nvcc: &Path, folder: &Path, out: &Path, architectures: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the kernels lie beside the crates");
    let mut sources: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    sources.retain(|path| path.extension().is_some_and(|e| e == "cu"));
    sources.sort();
    let code = architectures.split_whitespace().map(|arch| match arch {
        "ptx" => "-gencode=arch=compute_80,code=compute_80".to_string(),
        _ => format!("-gencode=arch=compute_{arch},code=sm_{arch}"),
    });
    let code: Vec<String> = code.collect();
    let one = |source: &PathBuf| {
        let image = out.join(source.file_stem().expect("a file")).with_extension("fatbin");
        let mut command = Command::new(nvcc);
        command.args(["-fatbin", "-O3", "-std=c++17", "-fmad=false", "--compress-mode=size"]).args(&code);
        let status = command.arg(source).arg("-o").arg(&image).status().expect("nvcc runs");
        assert!(status.success(), "nvcc refused {}", source.display());
        image
    };
    let jobs = std::thread::available_parallelism().map_or(1, usize::from).min(sources.len());
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    one(source);
                }
            });
        }
    });
    sources.iter().map(|s| out.join(s.file_stem().expect("a file")).with_extension("fatbin")).collect()
}
