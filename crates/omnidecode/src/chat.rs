//! Conversations.
use crate::error::{Error, Result};
use crate::llm::Llm;
use omnidecode_models::{ChatTemplate, Conversation, ModelError};
use serde_json::{Map, Value, json};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Message::new("user", content)
    }
    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Message::new("system", content)
    }
    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Message::new("assistant", content)
    }
}

impl Llm {
    /// The prompt text of a conversation, ready for the assistant's answer.
    ///
    /// # Errors
    /// [`Error::Model`] without a template, or when it refuses the conversation.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let messages = messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect();
        self.render_value(messages, Map::new())
    }
    /// The prompt text of a conversation in JSON. `options` is an object: `chat_template` (another template's source),
    /// `add_generation_prompt` (true by default), `continue_final_message`, `tools`, `documents`, and any variable of the
    /// template.
    ///
    /// # Errors
    /// As [`Llm::render`]; [`Error::Json`] for a text that is no JSON.
    pub fn render_json(&self, messages: &str, options: &str) -> Result<String> {
        let bad = |what, expected| move |e: serde_json::Error| Error::Json { what, expected, found: e.to_string() };
        let messages = serde_json::from_str(messages).map_err(bad("messages", "a JSON list of messages"))?;
        let options = serde_json::from_str(options).map_err(bad("options", "a JSON object"))?;
        self.render_value(messages, options)
    }
    fn render_value(&self, messages: Value, mut options: Map<String, Value>) -> Result<String> {
        let messages = list(Some(messages), "messages")?.unwrap_or_default();
        let tools = list(options.remove("tools"), "tools")?;
        let documents = list(options.remove("documents"), "documents")?;
        let go_on = flag(options.remove("continue_final_message"), "continue_final_message", false)?;
        let open = flag(options.remove("add_generation_prompt"), "add_generation_prompt", !go_on)?;
        if open && go_on {
            return Err(bad("add_generation_prompt", "false when a final message is continued", &Value::from(open)));
        }
        let own = match options.remove("chat_template") {
            None | Some(Value::Null) => None,
            Some(Value::String(source)) => Some(source),
            Some(other) => return Err(bad("chat_template", "a template's name or source", &other)),
        };
        let named = |name: &String| self.template().is_some_and(|t| t.names().contains(&name.as_str()));
        let (name, source) = match own {
            Some(name) if named(&name) => (Some(name), None),
            source => (None, source),
        };
        let conversation = Conversation {
            messages: &messages,
            tools: tools.as_deref(),
            documents: documents.as_deref(),
            add_generation_prompt: open,
            template: name.as_deref(),
            extra: Some(&options),
        };
        let text = match source {
            Some(source) => self.with_specials(&source)?.render(&conversation)?,
            None => self.template().ok_or(ModelError::NoTemplate { found: String::new() })?.render(&conversation)?,
        };
        if go_on { cut_behind(&text, &messages) } else { Ok(text) }
    }

    /// Another template, with this model's special tokens.
    fn with_specials(&self, source: &str) -> Result<ChatTemplate> {
        let name = |token: Option<u32>| token.and_then(|token| self.tokenizer().token(token));
        let (bos, eos) = (name(self.card().bos), name(self.card().eos.first().copied()));
        let known: Vec<(&str, &str)> = match self.template() {
            Some(template) => template.special().collect(),
            None => [("bos_token", &bos), ("eos_token", &eos)]
                .into_iter()
                .filter_map(|(name, token)| Some((name, token.as_deref()?)))
                .collect(),
        };
        Ok(ChatTemplate::new(source, known)?)
    }
}

fn bad(what: &'static str, expected: &'static str, found: &Value) -> Error {
    Error::Json { what, expected, found: found.to_string() }
}

fn list(value: Option<Value>, what: &'static str) -> Result<Option<Vec<Value>>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(other) => Err(bad(what, "a list", &other)),
    }
}

fn flag(value: Option<Value>, what: &'static str, default: bool) -> Result<bool> {
    match value {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(value)) => Ok(value),
        Some(other) => Err(bad(what, "true or false", &other)),
    }
}

/// The prompt up to the end of its last message, so that the model goes on inside it.
fn cut_behind(text: &str, messages: &[Value]) -> Result<String> {
    let last = messages.last().and_then(|message| message["content"].as_str()).map(str::trim_end).unwrap_or_default();
    let missing =
        || bad("continue_final_message", "a template that shows the last message as it is", &Value::from(last));
    if last.is_empty() {
        return Err(missing());
    }
    let at = text.rfind(last).ok_or_else(missing)?;
    Ok(text[..at + last.len()].to_string())
}
