#![no_main]
//! Chat templates.
use libfuzzer_sys::fuzz_target;
use omnidecode_models::{ChatTemplate, Conversation};

fuzz_target!(|source: &str| {
    if let Ok(template) = ChatTemplate::new(source, [("bos_token", "<s>")]) {
        let messages = [serde_json::json!({"role": "user", "content": "hi"})];
        let _ = template.render(&Conversation { messages: &messages, ..Conversation::default() });
    }
});
