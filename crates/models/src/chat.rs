//! Chat templates: a conversation as the text that a model was trained on.
//!
//! Templates are Jinja as transformers runs it: `trim_blocks` and `lstrip_blocks`, loop controls, `raise_exception`,
//! `strftime_now`, `tojson` without HTML escapes, `{% generation %}` blocks, Python's string and dict methods.
mod python;

use crate::error::{ModelError, Result, brief};
use crate::files::{Weights, json};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value as Item};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Steps that one rendering may take: far above any conversation, and an end for a template that loops.
const FUEL: u64 = 20_000_000;
/// The template that is used when none is named, as transformers calls it.
const DEFAULT: &str = "default";
/// The template that is used instead when tools are given.
const TOOLS: &str = "tool_use";

/// What a template is rendered with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conversation<'a> {
    /// A list of messages, objects with `role` and `content` and what else the template reads.
    pub messages: &'a [Value],
    /// JSON schemas of the tools that the model may call.
    pub tools: Option<&'a [Value]>,
    /// Documents to answer from, objects with `title` and `text`.
    pub documents: Option<&'a [Value]>,
    /// Whether to end with what opens the model's turn.
    pub add_generation_prompt: bool,
    /// Name of the template, where a model has several; `None` chooses `tool_use` for tools, else `default`.
    pub template: Option<&'a str>,
    /// Further variables (`enable_thinking`, …), above the special tokens.
    pub extra: Option<&'a Map<String, Value>>,
}

/// One or several named templates, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: BTreeMap<String, String>,
}

/// The words of a template's `raise_exception`.
#[derive(Debug)]
struct Refusal(String);
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Refusal {}

impl ChatTemplate {
    /// Compile one template. `special` are the variables that name special tokens: (`bos_token`, `<s>`), ….
    ///
    /// # Errors
    /// [`ModelError::Template`] with the line at fault.
    pub fn new<'a>(source: &str, special: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let special = special.into_iter().map(|(name, token)| (name.to_string(), token.to_string())).collect();
        Self::named([(DEFAULT.to_string(), source.to_string())], special)
    }

    /// Compile several templates, by name.
    ///
    /// # Errors
    /// [`ModelError::Template`] with the line at fault.
    pub fn named(
        templates: impl IntoIterator<Item = (String, String)>,
        special: BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| failed(&e))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        python::install(&mut environment);
        environment.add_function("raise_exception", |message: String| -> Result<Item, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message)))
        });
        for (name, source) in templates {
            environment.add_template_owned(name, generation_blocks(&source)).map_err(|e| failed(&e))?;
        }
        Ok(Self { environment, special })
    }

    /// Names of the templates, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.environment.templates().map(|(name, _)| name).collect();
        names.sort_unstable();
        names
    }

    /// Variables that name special tokens (`bos_token`, …), for another template of the same model.
    pub fn special(&self) -> impl Iterator<Item = (&str, &str)> {
        self.special.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`ModelError::Conversation`] if the template refuses it, [`ModelError::Template`] if it cannot be rendered,
    /// [`ModelError::NoTemplate`] if there is none of the asked name.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String> {
        let c = conversation;
        let has = |name: &str| self.environment.get_template(name).is_ok();
        let name = match c.template {
            Some(name) => name,
            None if c.tools.is_some() && has(TOOLS) => TOOLS,
            None => DEFAULT,
        };
        let template = self.environment.get_template(name).map_err(|_| ModelError::NoTemplate {
            found: format!(" named {name}; found {}", brief(self.names().join(", "))),
        })?;
        let list = |values: Option<&[Value]>| values.map(|values| values.iter().map(python::value).collect::<Vec<_>>());
        let mut variables: BTreeMap<&str, Item> =
            self.special.iter().map(|(name, token)| (&**name, Item::from(token))).collect();
        variables.extend(c.extra.into_iter().flatten().map(|(name, value)| (&**name, python::value(value))));
        variables.insert("messages", c.messages.iter().map(|message| python::value(&reasoning(message))).collect());
        variables.insert("tools", list(c.tools).into());
        variables.insert("documents", list(c.documents).into());
        variables.insert("add_generation_prompt", c.add_generation_prompt.into());
        template.render(Item::from_pairs(variables)).map_err(|e| failed(&e))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("names", &self.names()).field("special", &self.special).finish()
    }
}

fn failed(error: &Error) -> ModelError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    let mut found = error.to_string();
    while let Some(inner) = cause {
        if let Some(Refusal(words)) = inner.downcast_ref::<Refusal>() {
            return ModelError::Conversation { found: brief(words) };
        }
        if let Some(inner) = inner.downcast_ref::<Error>() {
            found = inner.to_string();
        }
        cause = inner.source();
    }
    ModelError::Template { line: error.line().unwrap_or(0), found: brief(found) }
}

/// A message's reasoning goes by three names; templates find it under the two that they read, as in transformers.
fn reasoning(message: &Value) -> Value {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let mut message = message.clone();
    if let Some(fields) = message.as_object_mut()
        && let Some(words) = NAMES.iter().find_map(|name| fields.get(*name).filter(|words| !words.is_null())).cloned()
    {
        fields.entry("thinking").or_insert_with(|| words.clone());
        fields.insert("reasoning_content".to_string(), words);
    }
    message
}

/// `{% generation %}` marks the model's own words for training; rendering needs only its scope. It becomes `{% with %}`,
/// with the same control of whitespace.
fn generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        rest = tag;
        let body = tag.trim_start_matches(['-', '+']).trim_start();
        for (word, instead) in [("generation", "with"), ("endgeneration", "endwith")] {
            if let Some(after) = body.strip_prefix(word)
                && after.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                out.push_str(&tag[..tag.len() - body.len()]);
                out.push_str(instead);
                rest = after;
                break;
            }
        }
    }
    out.push_str(rest);
    out
}

impl Weights {
    /// The model's chat template: `chat_template.jinja` (and `additional_chat_templates/*.jinja`) in its folder, else
    /// `chat_template` in `tokenizer_config.json`, else the GGUF keys `tokenizer.chat_template` and
    /// `tokenizer.chat_template.NAME`.
    ///
    /// # Errors
    /// [`ModelError::NoTemplate`] if there is none, [`ModelError::Template`] if it does not compile.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let (templates, special) = match self.gguf() {
            Some(_) => self.gguf_templates()?,
            None => folder_templates(self.folder().unwrap_or(Path::new(".")))?,
        };
        if templates.is_empty() {
            return Err(ModelError::NoTemplate { found: String::new() });
        }
        ChatTemplate::named(templates, special)
    }

    fn gguf_templates(&self) -> Result<Sources> {
        const KEY: &str = "tokenizer.chat_template";
        let mut sources = Sources::default();
        let Some((header, file)) = self.gguf() else { return Ok(sources) };
        for key in header.keys() {
            let name = match key.strip_prefix(KEY) {
                Some("") => DEFAULT,
                Some(rest) if rest.starts_with('.') => &rest[1..],
                _ => continue,
            };
            if let Some(source) = header.text(key)? {
                sources.0.insert(name.to_string(), source.to_string());
            }
        }
        let tokens = header.texts("tokenizer.ggml.tokens", file)?.unwrap_or_default();
        for (variable, key) in [
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
            ("sep", "seperator"),
            ("cls", "cls"),
            ("mask", "mask"),
        ] {
            let id = header.unsigned(&format!("tokenizer.ggml.{key}_token_id"))?;
            if let Some(token) = id.and_then(|id| tokens.get(usize::try_from(id).ok()?)) {
                sources.1.insert(format!("{variable}_token"), (*token).to_string());
            }
        }
        Ok(sources)
    }
}

/// Templates by name, and special tokens by variable.
type Sources = (BTreeMap<String, String>, BTreeMap<String, String>);

fn folder_templates(folder: &Path) -> Result<Sources> {
    let mut sources = Sources::default();
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let config = json(&path)?;
        for (variable, token) in config.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token")) {
            if let Some(token) = token.as_str().or_else(|| token.get("content")?.as_str()) {
                sources.1.insert(variable.clone(), token.to_string());
            }
        }
        match config.get("chat_template") {
            Some(Value::String(source)) => {
                sources.0.insert(DEFAULT.to_string(), source.clone());
            }
            Some(Value::Array(list)) => {
                for entry in list {
                    let text = |key: &str| entry.get(key).and_then(Value::as_str).map(String::from);
                    let both = text("name").zip(text("template"));
                    let (name, source) = both
                        .ok_or_else(|| ModelError::config("chat_template", "objects with name and template", entry))?;
                    sources.0.insert(name, source);
                }
            }
            None | Some(Value::Null) => {}
            Some(other) => {
                return Err(ModelError::config("chat_template", "text, or a list of named templates", other));
            }
        }
    }
    let mut read = |name: String, path: &Path| -> Result<()> {
        let source = std::fs::read_to_string(path).map_err(|e| ModelError::io(path, &e))?;
        sources.0.insert(name, source);
        Ok(())
    };
    let single = folder.join("chat_template.jinja");
    if single.is_file() {
        read(DEFAULT.to_string(), &single)?;
    }
    for entry in std::fs::read_dir(folder.join("additional_chat_templates")).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "jinja")
            && let Some(name) = path.file_stem().and_then(|n| n.to_str())
        {
            read(name.to_string(), &path)?;
        }
    }
    Ok(sources)
}
