//! What rides along any strategy, per request: laws on logits, edits inside the model, and what takes part in the forwards
//! themselves (a value model beside them, tokens left out of layers).
//!
//! `strategy` says how tokens are found, companions what bends the model or its law. `Exact` then means: as plain
//! decoding with the same companions.
pub mod clamp_neurons;
pub mod grammar;
pub mod lazyllm;
pub mod majormark;
pub mod rectification;
pub mod zero_tuning;

use crate::params::{Options, ParamError, ParamInfo};
use crate::registry::ParamSet;
use omnidecode_core::Token;
use omnidecode_engine::{Carrier, Edits, LogitsProcessor, ModelCard, Request};
use std::sync::Arc;

/// What is known of a companion before it is attached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompanionCard {
    /// Name, kebab case.
    pub name: &'static str,
    /// What it bends: `law` or `model`.
    pub bends: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Paper or sheet.
    pub source: &'static str,
}

/// The vocabulary of a model's tokenizer, for companions that look at text.
pub trait Vocabulary: Send + Sync {
    /// Tokens, as many as the model has logits.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The bytes a token stands for; `None` for control tokens and ids that are not used.
    fn bytes(&self, token: Token) -> Option<Vec<u8>>;
    /// The tokens of a text, without special tokens.
    fn encode(&self, text: &str) -> Vec<Token>;
}

/// What a companion is attached to.
#[derive(Clone)]
pub struct Context<'a> {
    /// The main model.
    pub card: &'a ModelCard,
    /// The request's prompt.
    pub prompt: &'a [Token],
    /// The tokenizer, where the model has one.
    pub vocabulary: Option<Arc<dyn Vocabulary>>,
}

/// What a companion brings.
#[derive(Default)]
pub struct Attachment {
    /// Laws on logits, in order.
    pub processors: Vec<Arc<dyn LogitsProcessor>>,
    /// Edits inside the main model.
    pub edits: Option<Edits>,
    /// What takes part in the forwards: stands outside of what is there already when it bends the law, else inside.
    pub carriers: Vec<Arc<dyn Carrier>>,
}

/// Why a companion cannot be attached.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CompanionError {
    /// No such name.
    #[error("there is no companion `{name}`; there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// Its parameters were refused.
    #[error(transparent)]
    Params(#[from] ParamError),
    /// It does not fit this model or this prompt.
    #[error("companion `{name}`: {reason}")]
    Unfit {
        /// The companion.
        name: &'static str,
        /// Expected, found, what to do.
        reason: String,
    },
}

/// A companion: implemented by the `Params` of its module.
pub trait Companion: ParamSet + Clone + Send + 'static {
    /// What is known of it.
    const CARD: CompanionCard;
    /// What it brings to a request.
    ///
    /// # Errors
    /// [`CompanionError`] when it does not fit the model.
    fn attach(self, to: &Context<'_>) -> Result<Attachment, CompanionError>;
}

/// A registered companion.
#[derive(Clone, Copy)]
pub struct CompanionEntry {
    /// What is known of it.
    pub card: CompanionCard,
    /// Its parameters.
    pub params: fn() -> Vec<ParamInfo>,
    /// What it brings with these parameters.
    pub attach: fn(&Options, &Context<'_>) -> Result<Attachment, CompanionError>,
}
impl CompanionEntry {
    /// The entry of a companion.
    pub const fn of<C: Companion>() -> CompanionEntry {
        CompanionEntry { card: C::CARD, params: C::info, attach: |o, to| C::parse(C::CARD.name, o)?.attach(to) }
    }
    /// As JSON.
    pub fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.card.name,
            "bends": self.card.bends,
            "summary": self.card.summary,
            "source": self.card.source,
            "parameters": (self.params)(),
        })
    }
}

/// Name the modules of all companions: declares [`ALL`].
macro_rules! companions {
    ($($(#[$gate:meta])* $companion:ident),* $(,)?) => {
        /// Every registered companion.
        pub const ALL: &[CompanionEntry] = &[$($(#[$gate])* CompanionEntry::of::<$companion::Params>()),*];
    };
}

companions! {
    clamp_neurons,
    grammar,
    lazyllm,
    majormark,
    rectification,
    zero_tuning,
}

/// The companion of this name; underscores are taken for hyphens.
pub fn find(name: &str) -> Option<&'static CompanionEntry> {
    let name = name.replace('_', "-");
    ALL.iter().find(|e| e.card.name == name)
}

/// Attach a companion to a request: its laws after those already there, its edits added.
///
/// # Errors
/// [`CompanionError`]; the request is unchanged then.
pub fn attach(name: &str, options: &Options, to: &Context<'_>, request: &mut Request) -> Result<(), CompanionError> {
    let entry = find(name).ok_or_else(|| CompanionError::Unknown {
        name: name.into(),
        known: ALL.iter().map(|e| e.card.name).collect::<Vec<_>>().join(", "),
    })?;
    let brought = (entry.attach)(options, to)?;
    for carrier in &brought.carriers {
        carrier.carries(request.strategy.plans).map_err(|reason| {
            let reason = format!("does not ride along `{}`: {reason}", request.strategy.name);
            CompanionError::Unfit { name: entry.card.name, reason }
        })?;
    }
    request.processors.extend(brought.processors);
    let at = if entry.card.bends == "law" { request.carriers.len() } else { 0 };
    request.carriers.splice(at..at, brought.carriers);
    if let Some(new) = brought.edits {
        let mut edits = request.edits.as_deref().cloned().unwrap_or_default();
        edits.biases.extend(new.biases);
        edits.clamps.extend(new.clamps);
        request.edits = Some(Arc::new(edits));
    }
    Ok(())
}
