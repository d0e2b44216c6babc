//! The engine thread and its door.
use crate::error::{Error, Result};
use crate::executor::{Executor, reserve};
use crate::handle::Handle;
use crate::inner::Config;
use crate::mailbox::Mailbox;
use crate::request::Request;
use crate::usage::Stats;
use omnidecode_models::{ModelCard, Network};
use std::sync::Arc;
use std::thread::JoinHandle;

/// A network and what it is to strategies: `"main"` for the first, `"draft"`, `"amateur"`, ... for others.
pub struct NamedNetwork {
    /// Role; unique in an engine.
    pub role: String,
    /// The network. Its KV store is made by the engine.
    pub network: Box<dyn Network>,
}
impl NamedNetwork {
    /// A network with its role.
    pub fn new(role: impl Into<String>, network: Box<dyn Network>) -> Self {
        Self { role: role.into(), network }
    }
}

/// Decodes requests on a thread of its own. Dropping it fails what is pending with [`Error::Shutdown`].
pub struct Engine {
    mail: Arc<Mailbox>,
    card: ModelCard,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Make the KV stores and start the thread. The first network is the main model, the one that answers.
    ///
    /// # Errors
    /// [`Error::Config`] without networks or for sizes of zero, [`Error::Memory`] when a KV store does not fit.
    pub fn start(config: Config, mut networks: Vec<NamedNetwork>) -> Result<Engine> {
        reserve(&config, &mut networks)?;
        let card = networks[0].network.card().clone();
        let mail = Arc::new(Mailbox::default());
        let inbox = mail.clone();
        let thread = std::thread::Builder::new()
            .name("omnidecode-engine".into())
            .spawn(move || {
                // However the thread ends, later submissions are refused rather than left waiting.
                struct Close(Arc<Mailbox>);
                impl Drop for Close {
                    fn drop(&mut self) {
                        self.0.close();
                        self.0.refuse();
                    }
                }
                let _close = Close(inbox.clone());
                Executor::new(config, networks, inbox).run();
            })
            .map_err(|e| Error::Config(format!("no thread: {e}")))?;
        Ok(Engine { mail, card, thread: Some(thread) })
    }
    /// Facts of the main model.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }
    /// Hand in a request.
    pub fn submit(&self, request: Request) -> Handle {
        self.mail.submit(request)
    }
    /// Counters as of the last turn.
    pub fn stats(&self) -> Stats {
        self.mail.stats()
    }
    /// Stop now: what is pending fails with [`Error::Shutdown`]. Returns the last counters.
    pub fn shutdown(mut self) -> Stats {
        self.stop();
        self.mail.stats()
    }
    fn stop(&mut self) {
        self.mail.close();
        // Closed from inside a strategy, the thread ends with its turn; it cannot wait for itself.
        let inside = |thread: &JoinHandle<()>| thread.thread().id() == std::thread::current().id();
        if let Some(thread) = self.thread.take().filter(|thread| !inside(thread)) {
            let _ = thread.join(); // a panic has closed the mailbox already
        }
    }
}
impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
