//! What can go wrong between a path and a model that is ready to run.
use std::path::{Path, PathBuf};

/// A `Result` of this crate's loaders.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// Why a model, its tokenizer or its chat template could not be used. Each says what was expected, what was found and
/// what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The device that the model was to be put on refused.
    #[error("{0}")]
    Device(String),
    /// The system would not give the file.
    #[error("cannot read {}: {reason}; check that the path exists and may be read", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The path holds no model in a known format.
    #[error("{} is not a model: expected {expected}, found {found}; give a model folder, a .safetensors file or a .gguf file", path.display())]
    UnknownFormat {
        /// File or folder.
        path: PathBuf,
        /// What would have been a model.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A pickle (`.bin`, `.pt`, `.pth`, `.ckpt`): it can run code when it is read.
    #[error("{} is a pickle, which can run code when it is read: expected safetensors or GGUF; convert it with `save_pretrained(..., safe_serialization=True)` where you trust it", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// The bytes of a file are not what its format says.
    #[error(
        "damaged {format} file, at {at}: expected {expected}, found {found}; the file may be truncated or altered: fetch it again and compare its sha256"
    )]
    Malformed {
        /// Name of the format.
        format: &'static str,
        /// Where in the file.
        at: String,
        /// What the format asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Numbers in a format that no kernel reads.
    #[error(
        "tensor {tensor} has the type {found}: expected one of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K; convert the model to one of them"
    )]
    UnsupportedDtype {
        /// Name in the file.
        tensor: String,
        /// Its type, as the file says it.
        found: String,
    },
    /// A tensor that the model needs is not in its files.
    #[error(
        "the model needs {expected}, found no such tensor among {found}; the files are incomplete, or the configuration belongs to another model"
    )]
    MissingTensor {
        /// What was looked for.
        expected: String,
        /// How many tensors there are, or where was looked.
        found: String,
    },
    /// A tensor's sizes contradict the configuration.
    #[error(
        "tensor {tensor} is {found:?}: expected {expected:?} by the configuration; the weights and the configuration belong to different models"
    )]
    TensorShape {
        /// Name in the file.
        tensor: String,
        /// Sizes by the configuration, outermost first.
        expected: Vec<usize>,
        /// Sizes in the file.
        found: Vec<usize>,
    },
    /// A field of a configuration has a value that cannot be.
    #[error(
        "configuration field `{field}`: expected {expected}, found {found}; correct the field, or fetch the model's own configuration again"
    )]
    Config {
        /// Name, with its path where it is nested.
        field: String,
        /// What would have been valid.
        expected: String,
        /// The value.
        found: String,
    },
    /// A configuration that is sound, of a kind this decoder does not compute.
    #[error(
        "this model needs {found}, which is not supported: expected {expected}; use another model, or ask for this one"
    )]
    UnsupportedConfig {
        /// What is supported.
        expected: String,
        /// What the model asks for.
        found: String,
    },
    /// The tokenizer's description is unusable.
    #[error("tokenizer, {at}: expected {expected}, found {found}; fetch the model's own tokenizer.json again")]
    Tokenizer {
        /// Where.
        at: String,
        /// What would have been valid.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A token id outside the vocabulary.
    #[error("token id {found}: expected an id below {vocab}; ids belong to the tokenizer of the same model")]
    TokenId {
        /// The id.
        found: u32,
        /// Number of tokens.
        vocab: usize,
    },
    /// There is no chat template.
    #[error(
        "this model has no chat template{found}: expected one in chat_template.jinja, tokenizer_config.json or the GGUF key tokenizer.chat_template; pass a template, or a prompt that is already formatted"
    )]
    NoTemplate {
        /// Names of the templates there are, as `; found …`, or nothing.
        found: String,
    },
    /// The chat template cannot be compiled or run.
    #[error(
        "chat template, line {line}: expected a template that renders these messages, found: {found}; check the messages' fields, or pass another template"
    )]
    Template {
        /// Line of the template, from 1; 0 if unknown.
        line: usize,
        /// The error.
        found: String,
    },
    /// The chat template itself refuses the conversation (`raise_exception`).
    #[error(
        "the chat template refuses this conversation: expected what its author allows, found: {found}; change the messages"
    )]
    Conversation {
        /// The template's words.
        found: String,
    },
}

impl ModelError {
    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), reason: error.to_string() }
    }
    pub(crate) fn config(field: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Config { field: field.into(), expected: expected.into(), found: brief(found) }
    }
    pub(crate) fn tokenizer(at: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Tokenizer { at: at.into(), expected: expected.into(), found: brief(found) }
    }
    pub(crate) fn unsupported(expected: impl Into<String>, found: impl ToString) -> Self {
        Self::UnsupportedConfig { expected: expected.into(), found: brief(found) }
    }
}

/// A value as an error message quotes it: a hostile file must not fill a screen.
pub(crate) fn brief(value: impl ToString) -> String {
    const LONGEST: usize = 200;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
