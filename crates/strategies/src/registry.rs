//! The registry: from one line a system grow its Python class, its shell flag, its docs row and the laws that test it.
use crate::params::{Options, ParamError, ParamInfo};
use omnidecode_engine::{Guarantee, Sequence, Strategy};

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
    /// Decode until the sequence is finished.
    fn decode(self, seq: &mut Sequence) -> impl Future<Output = Result<()>>;
}

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
    /// As JSON, for `strategies --json`.
    pub fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.card.name,
            "guarantee": self.card.guarantee.as_str(),
            "needs": self.card.needs,
            "summary": self.card.summary,
            "source": self.card.source,
            "parameters": (self.params)(),
        })
    }
}

fn build<S: System>(options: &Options) -> Result<Strategy, ParamError> {
    let params = S::parse(S::CARD.name, options)?;
    params.check()?;
    let guarantee = params.guarantee();
    Ok(Strategy::new(S::CARD.name, guarantee, move |mut seq| async move { params.decode(&mut seq).await }))
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
    let entry = find(name).ok_or_else(|| RegistryError::Unknown {
        name: name.into(),
        known: crate::ALL.iter().map(|e| e.card.name).collect::<Vec<_>>().join(", "),
    })?;
    Ok((entry.build)(options)?)
}
