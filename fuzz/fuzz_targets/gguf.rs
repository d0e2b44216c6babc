#![no_main]
//! The GGUF header, and the tokenizer in it.
use libfuzzer_sys::fuzz_target;
use omnidecode_models::Tokenizer;
use omnidecode_models::files::gguf;

fuzz_target!(|file: &[u8]| {
    if let Ok(header) = gguf::read(file)
        && let Ok(tokenizer) = Tokenizer::from_gguf(&header, file)
        && let Ok(ids) = tokenizer.encode("ab 12 é🎉", true)
    {
        tokenizer.decode(&ids, true);
    }
});
