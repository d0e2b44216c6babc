#![no_main]
//! The safetensors header.
use libfuzzer_sys::fuzz_target;
use omnidecode_models::files::safetensors;

fuzz_target!(|file: &[u8]| {
    let _ = safetensors::read(file);
});
