//! Chat templates render what Jinja in Python renders.
//!
//! `data/chats.json` holds templates in the styles of published models, conversations, and the text (or the refusal)
//! that jinja2 3.1.6 gives for each with transformers' settings: an ImmutableSandboxedEnvironment with trim_blocks,
//! lstrip_blocks, loop controls, a `generation` block, and `tojson` as `json.dumps(ensure_ascii=False)`.
use omnidecode_models::{ChatTemplate, Conversation, ModelError, Weights};
use serde_json::{Map, Value};

fn reference() -> Value {
    serde_json::from_str(include_str!("../data/chats.json")).unwrap()
}

fn template(reference: &Value, name: &str) -> ChatTemplate {
    let template = &reference["templates"][name];
    let special = template["special"].as_object().unwrap();
    ChatTemplate::new(
        template["source"].as_str().unwrap(),
        special.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())),
    )
    .unwrap()
}

fn conversation(case: &Value) -> Conversation<'_> {
    Conversation {
        messages: case["messages"].as_array().unwrap(),
        tools: case["tools"].as_array().map(Vec::as_slice),
        documents: case["documents"].as_array().map(Vec::as_slice),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        template: None,
        extra: case["extra"].as_object(),
    }
}

#[test]
fn conversations_read_as_in_python() {
    let reference = reference();
    let cases = reference["conversations"].as_array().unwrap();
    let mut styles = std::collections::BTreeSet::new();
    let mut wrong = Vec::new();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        styles.insert(name);
        let found = template(&reference, name).render(&conversation(case));
        let expected = case["expected"].as_str();
        let same = match (&found, expected) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(ModelError::Conversation { found }), None) => Some(found.as_str()) == case["refused"].as_str(),
            (Err(ModelError::Template { .. }), None) => case["failed"].is_string(),
            _ => false,
        };
        if !same {
            wrong.push(format!(
                "{name}, {}:\n  expected {expected:?} {:?}\n  found    {found:?}",
                case["name"], case["refused"]
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(cases.len() >= 30 && styles.len() >= 6);
}

/// The template inside the GGUF named by OMNIDECODE_TEST_GGUF (SmolLM2-135M-Instruct).
#[test]
fn a_gguf_brings_its_own_template() {
    let Ok(path) = std::env::var("OMNIDECODE_TEST_GGUF") else {
        eprintln!("skipped: set OMNIDECODE_TEST_GGUF to the path of SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let template = Weights::open(path).unwrap().chat_template().unwrap();
    let reference = reference();
    let cases = reference["conversations"].as_array().unwrap().iter().filter(|case| case["template"] == "smollm2");
    for case in cases {
        assert_eq!(template.render(&conversation(case)).unwrap(), case["expected"].as_str().unwrap());
    }
}

#[test]
fn a_folder_may_have_several_templates() {
    let folder = tempfile::tempdir().unwrap();
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(name), folder.path().join(name)).unwrap();
    }
    let open = || Weights::open(folder.path()).unwrap().chat_template();
    assert!(matches!(open(), Err(ModelError::NoTemplate { .. })));
    let config = r#"{"bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>", "chat_template": [
        {"name": "default", "template": "{{ bos_token }}plain"}, {"name": "tool_use", "template": "tools{{ eos_token }}"}]}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let template = open().unwrap();
    assert_eq!(template.names(), ["default", "tool_use"]);
    let plain = Conversation::default();
    assert_eq!(template.render(&plain).unwrap(), "<s>plain");
    assert_eq!(template.render(&Conversation { tools: Some(&[]), ..plain }).unwrap(), "tools</s>");
    assert_eq!(template.render(&Conversation { template: Some("tool_use"), ..plain }).unwrap(), "tools</s>");
    let error = template.render(&Conversation { template: Some("rag"), ..plain }).unwrap_err().to_string();
    assert!(error.contains("rag") && error.contains("default, tool_use"), "{error}");
    // A file of its own stands above the configuration.
    std::fs::write(folder.path().join("chat_template.jinja"), "file {{ eos_token }}\n").unwrap();
    assert_eq!(open().unwrap().render(&plain).unwrap(), "file </s>");
}

#[test]
fn a_bad_template_is_an_error_with_its_line() {
    let error = ChatTemplate::new("fine\n{% for %}", []).unwrap_err();
    assert!(matches!(error, ModelError::Template { line: 2, .. }), "{error}");
    let template = ChatTemplate::new("a\nb{{ messages[0].content.nothing() }}", []).unwrap();
    let messages = [serde_json::json!({"role": "user", "content": "x"})];
    let error = template.render(&Conversation { messages: &messages, ..Conversation::default() }).unwrap_err();
    assert!(matches!(error, ModelError::Template { line: 2, .. }), "{error}");
}

#[test]
fn an_endless_template_ends() {
    let source = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}";
    let error = ChatTemplate::new(source, []).unwrap().render(&Conversation::default()).unwrap_err();
    assert!(matches!(error, ModelError::Template { .. }), "{error}");
}

#[test]
fn dates_are_today() {
    let text =
        ChatTemplate::new("{{ strftime_now('%Y-%m-%d') }}", []).unwrap().render(&Conversation::default()).unwrap();
    assert!(text.len() == 10 && text.starts_with("20"), "{text}");
    let extra: Map<String, Value> = [("word".to_string(), Value::from("given"))].into_iter().collect();
    let template = ChatTemplate::new("{{ word }}{{ bos_token }}", [("bos_token", "<s>")]).unwrap();
    assert_eq!(template.render(&Conversation { extra: Some(&extra), ..Conversation::default() }).unwrap(), "given<s>");
}
