//! One engine that decodes a language model in every way that is known.
//!
//! A *strategy* says how tokens are found; it is chosen per request, and requests with different strategies run in one
//! batch. Every answer says what it is worth ([`Guarantee`]) and what it cost ([`Usage`]).
//!
//! ```no_run
//! use omnidecode::{Llm, Message, Sampling};
//!
//! let llm = Llm::open("model.gguf")?;
//! let question = [Message::user("Why is the sky blue?")];
//! let sampling = Sampling { max_tokens: Some(128), ..Sampling::default() };
//!
//! let plain = llm.chat(&question, "plain", sampling.clone())?;
//! let fast = llm.chat(&question, "token-recycling", sampling)?;
//! assert_eq!(plain.delta.tokens, fast.delta.tokens); // that is what `Guarantee::Exact` means
//! # Ok::<(), omnidecode::Error>(())
//! ```
//!
//! A strategy of your own is an async function over forwards:
//!
//! ```no_run
//! use omnidecode::{Guarantee, Llm, Readout, Sampling, Strategy};
//!
//! let llm = Llm::open("model.gguf")?;
//! let strategy = Strategy::new("mine", Guarantee::Exact, |mut seq| async move {
//!     while !seq.finished() {
//!         let seen = seq.next(Readout::CHOICE).await?;
//!         seq.push(seen.root().choice())?;
//!     }
//!     Ok(())
//! });
//! let prompt = llm.tokenizer().encode("Once upon a time", true)?;
//! let answer = llm.submit(llm.request_with(prompt, strategy, Sampling::default(), true)?).collect();
//! println!("{}", answer.delta.text);
//! # Ok::<(), omnidecode::Error>(())
//! ```
#![forbid(unsafe_code)]

mod builder;
mod chat;
mod companion;
mod device;
mod error;
mod facts;
mod llm;
mod stream;
mod text;
mod watermark;

pub use builder::Builder;
pub use chat::Message;
pub use device::{Device, check_cuda_json, cuda_json};
pub use error::{Error, Result};
pub use facts::{card_json, companions_json, machine_json, registry_json};
pub use llm::{Llm, answer_seed, strategy};
pub use omnidecode_core as core;
pub use omnidecode_engine as engine;
pub use omnidecode_engine::{
    Answer, Delta, Event, Finish, Guarantee, Handle, Outcome, Plan, Readout, Request, Sampling, Sequence, Strategy,
    Usage,
};
pub use omnidecode_models as models;
pub use omnidecode_strategies as strategies;
pub use omnidecode_strategies::params::Options;
pub use stream::Stream;
pub use watermark::Detector;

/// The worked example of CONTRIBUTING.md, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../CONTRIBUTING.md")]
struct Contributing;
