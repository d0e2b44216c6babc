//! The registry: from one line a system grow its Python class, its shell flag, its docs row and the laws that test it.
use crate::params::{Options, ParamError, ParamInfo};
use omnidecode_engine::{Guarantee, Plans, Sequence, Strategy};

type Result<T, E = omnidecode_engine::Error> = std::result::Result<T, E>;
use std::future::Future;

/// What is known of a system before it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// Name, kebab case.
    pub name: &'static str,
    /// What it claims with its default parameters.
    pub guarantee: Guarantee,
    /// What it needs beside a causal model: roles of further models (`draft`), or facts of the card (`mask`).
    pub needs: &'static [&'static str],
    /// One sentence.
    pub summary: &'static str,
    /// Paper or sheet.
    pub source: &'static str,
}

/// Typed parameters: written by [`params!`](crate::params!).
pub trait ParamSet: Sized {
    /// What is known of each.
    fn info() -> Vec<ParamInfo>;
    /// Out of JSON.
    ///
    /// # Errors
    /// Unknown names, wrong types, values out of range.
    fn parse(owner: &str, options: &Options) -> Result<Self, ParamError>;
}

/// A decoding strategy: a coroutine over forward passes. Implemented by the `Params` of its module.
pub trait System: ParamSet + Clone + Send + 'static {
    /// What is known of it.
    const CARD: Card;
    /// What it claims with these parameters.
    fn guarantee(&self) -> Guarantee {
        Self::CARD.guarantee
    }
    /// What must hold between parameters.
    ///
    /// # Errors
    /// Says which do not fit together.
    fn check(&self) -> Result<(), ParamError> {
        Ok(())
    }
    /// What plans it makes: what companions must know.
    const PLANS: Plans = Plans::Drafts;
    /// Whether it asks the judge that comes with its request.
    fn asks_judge(&self) -> bool {
        false
    }
    /// Decode until the sequence is finished.
    fn decode(self, seq: &mut Sequence) -> impl Future<Output = Result<()>>;
}

/// Roles that models beside the main one may have, each with what asks for it.
pub const ROLES: &[(&str, &str)] = &[
    ("draft", "a smaller model of the same family, for strategies that draft with one; the small model of `fs-gen`"),
    ("expert", "the tuned form of the draft, whose difference to it steers the main model (`fs-gen` as a proxy)"),
    ("adapter", "trained behind an early layer of the main model, whose head it takes (`kangaroo`)"),
    ("value", "a model whose logits are values in [-1, 0], for the companion `rectification`"),
    ("judge", "a model that scores texts, for searches with `judge=model`"),
];

/// A registered strategy.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What is known of it.
    pub card: Card,
    /// Its parameters.
    pub params: fn() -> Vec<ParamInfo>,
    /// The strategy with these parameters, for a request.
    pub build: fn(&Options) -> Result<Strategy, ParamError>,
}

impl Entry {
    /// The entry of a system.
    pub const fn of<S: System>() -> Entry {
        Entry { card: S::CARD, params: S::info, build: build::<S> }
    }
    /// Whether it can ask the judge that comes with a request: with its parameters as they are unless one is named.
    pub fn judged(&self) -> bool {
        (self.build)(&Options::new()).is_ok_and(|strategy| strategy.judged)
    }
    /// As JSON, for `strategies --json`.
    pub fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.card.name,
            "guarantee": self.card.guarantee.as_str(),
            "needs": self.card.needs,
            "judged": self.judged(),
            "summary": self.card.summary,
            "source": self.card.source,
            "parameters": (self.params)(),
        })
    }
}

fn build<S: System>(options: &Options) -> Result<Strategy, ParamError> {
    let params = S::parse(S::CARD.name, options)?;
    params.check()?;
    let (guarantee, judged) = (params.guarantee(), params.asks_judge());
    let strategy = Strategy::new(S::CARD.name, guarantee, move |mut seq| async move { params.decode(&mut seq).await });
    Ok(strategy.judged(judged).plans(S::PLANS))
}

/// Why a strategy cannot be had.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RegistryError {
    /// No such name.
    #[error("there is no strategy `{name}`; there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// A companion's.
    #[error(
        "`{name}` is a companion, which rides along a strategy: give it in `companions`, beside `plain` or another"
    )]
    Companion {
        /// What was asked for.
        name: String,
    },
    /// Its parameters were refused.
    #[error(transparent)]
    Params(#[from] ParamError),
}

/// Name the modules of all systems: declares [`ALL`].
macro_rules! strategies {
    ($($family:ident::$system:ident),* $(,)?) => {
        /// Every registered strategy.
        pub const ALL: &[Entry] = &[$(Entry::of::<crate::$family::$system::Params>()),*];
    };
}
pub(crate) use strategies;

/// The entry of this name; underscores are taken for hyphens.
pub fn find(name: &str) -> Option<&'static Entry> {
    let name = name.replace('_', "-");
    crate::ALL.iter().find(|e| e.card.name == name)
}

/// The strategy of this name with these parameters.
///
/// # Errors
/// [`RegistryError`] says what there is.
pub fn strategy(name: &str, options: &Options) -> Result<Strategy, RegistryError> {
    let entry = find(name).ok_or_else(|| match crate::companions::find(name) {
        Some(_) => RegistryError::Companion { name: name.into() },
        None => RegistryError::Unknown {
            name: name.into(),
            known: crate::ALL.iter().map(|e| e.card.name).collect::<Vec<_>>().join(", "),
        },
    })?;
    Ok((entry.build)(options)?)
}
