//! What can go wrong, from a path to the last token.
use omnidecode_engine as engine;
use omnidecode_models as models;
use omnidecode_strategies::RegistryError;
use omnidecode_strategies::companions::CompanionError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error says what was expected, what was found and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model, its tokenizer or its chat template.
    #[error(transparent)]
    Model(#[from] models::ModelError),
    /// The engine or the request.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A strategy that is not registered, or its parameters.
    #[error(transparent)]
    Strategy(#[from] RegistryError),
    /// A companion that is not registered, its parameters, or one that does not fit the model.
    #[error(transparent)]
    Companion(#[from] CompanionError),
    /// A model beside the main one with another vocabulary.
    #[error(
        "the model with the role `{role}` has {found} tokens, the main model {expected}: expected the same tokenizer; take a model of the same family"
    )]
    Vocabulary {
        /// Its role.
        role: String,
        /// Tokens of the model.
        expected: usize,
        /// Tokens of the model beside it.
        found: usize,
    },
    /// A context longer than the model's.
    #[error("context {found}: expected from 1 to {expected} tokens, which is what the model was made for")]
    Context {
        /// The model's.
        expected: usize,
        /// What was asked for.
        found: usize,
    },
    /// A device that is none.
    #[error("device: expected 'cpu', 'cuda' or 'cuda:' with a number, found {found:?}")]
    Device {
        /// What was asked for.
        found: String,
    },
    /// A text that is no JSON of the expected kind.
    #[error("{what}: expected {expected}, found {found}")]
    Json {
        /// Which text.
        what: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What is wrong with it.
        found: String,
    },
}
