//! Plans, outcomes, sequences, and the executor that batches them.
//!
//! A strategy is a coroutine over forward passes: it says which rows to run, who sees whom and what to read back
//! ([`Plan`]), awaits the [`Outcome`], decides and commits ([`Sequence`]). The executor runs one batched forward per
//! model and step, whatever the strategies. It knows no strategy by name.
//!
//! ```
//! use omnidecode_engine::{Config, Engine, Guarantee, Readout, Request, Sampling, Strategy, testing};
//!
//! let engine = Engine::start(Config::default(), testing::networks())?;
//! let plain = Strategy::new("plain", Guarantee::Exact, |mut seq| async move {
//!     loop {
//!         let seen = seq.next(Readout::CHOICE).await?;
//!         if seq.push(seen.root().choice())?.is_none() {
//!             return Ok(());
//!         }
//!     }
//! });
//! let answer = engine.submit(Request::new(vec![5, 6, 7], plain, Sampling::default())).collect();
//! assert!(!answer.delta.tokens.is_empty());
//! # Ok::<(), omnidecode_engine::Error>(())
//! ```
#![forbid(unsafe_code)]

mod answer;
mod branch;
mod canvas;
mod carrier;
mod commit;
mod cost;
mod engine;
mod error;
mod executor;
mod handle;
mod inner;
mod judge;
mod layout;
mod look;
mod mailbox;
mod outcome;
mod plan;
mod processor;
mod request;
mod run;
mod sampling;
mod schedule;
mod sequence;
mod shaping;
mod tail;
pub mod testing;
mod text;
mod usage;

pub use canvas::{Canvas, Mark, Sheet};
pub use carrier::{Bend, Carriage, Carried, Carrier, Plans};
pub use cost::Cost;
pub use engine::{Engine, NamedNetwork};
pub use error::{Error, Result};
pub use handle::{Answer, Handle};
pub use inner::{Config, ModelId};
pub use judge::{Candidate, Judge};
pub use look::{Aim, Look, View};
pub use omnidecode_core::Token;
pub use omnidecode_core::law::Warp;
pub use omnidecode_core::mask::{Bits, Mask};
pub use omnidecode_core::tree::{DraftTree, Proposal, ROOT};
pub use omnidecode_core::verify::{Noise, Rule, Verdict};
pub use omnidecode_models::{Bias, Clamp, ClampAction, Edits, ModelCard};
pub use outcome::{Outcome, Seen};
pub use plan::{KvAction, LATENT, Plan, Readout, Row, Rows};
pub use processor::{LogitsProcessor, ProcessorState};
pub use request::{
    Alternative, Delta, Event, Finish, Guarantee, LocalFuture, Note, Prompt, Reason, Request, StopReason, Strategy,
    TokenLogprob,
};
pub use sampling::Sampling;
pub use sequence::Sequence;
pub use text::{Detokenizer, TextStream};
pub use usage::{Origin, Source, Stats, Usage};
