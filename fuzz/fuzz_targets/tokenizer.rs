#![no_main]
//! `tokenizer.json`: a stream gives exactly what decoding gives.
use libfuzzer_sys::fuzz_target;
use omnidecode_models::Tokenizer;

fuzz_target!(|json: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_json(json) else { return };
    let Ok(mut ids) = tokenizer.encode("Hello, world! é🎉 12", true) else { return };
    ids.extend(0..20);
    let mut stream = tokenizer.stream(false);
    let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
    text.push_str(&stream.finish());
    assert_eq!(text, tokenizer.decode(&ids, false));
});
