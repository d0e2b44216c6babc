//! From a path to an engine that runs.
use crate::device::{Device, Loaded};
use crate::error::{Error, Result};
use crate::llm::Llm;
use omnidecode_core::PAGE;
use omnidecode_engine::{Config, Cost, Engine, NamedNetwork};
use omnidecode_models::decoder::{KvDtype, Options};
use omnidecode_models::{ModelCard, Network, NetworkError, Reading, Step, Weights};
use std::path::{Path, PathBuf};

/// How a model is opened. Everything but the path has a default.
///
/// ```no_run
/// let llm = omnidecode::Llm::builder("model.gguf").threads(4).context(4096).open()?;
/// # Ok::<(), omnidecode::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "call `open`"]
pub struct Builder {
    path: PathBuf,
    others: Vec<(String, PathBuf)>,
    threads: Option<usize>,
    context: Option<usize>,
    kv_tokens: Option<usize>,
    kv_dtype: Option<KvDtype>,
    device: Device,
    row_invariant: bool,
    prefix_cache: bool,
}

impl Builder {
    /// A model at this path: a folder with safetensors, or a GGUF file.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_path_buf();
        Builder {
            path,
            others: Vec::new(),
            threads: None,
            context: None,
            kv_tokens: None,
            kv_dtype: None,
            device: Device::Cpu,
            row_invariant: true,
            prefix_cache: true,
        }
    }
    /// A second model with the same vocabulary, under the role `draft`.
    pub fn draft(self, path: impl AsRef<Path>) -> Self {
        self.beside("draft", path)
    }
    /// A further model with the same vocabulary, under the role that a strategy asks for: one of
    /// [`ROLES`](omnidecode_strategies::ROLES), or what a strategy of your own calls it.
    /// An adapter, whose configuration names the layer it was trained behind, takes the head of this model.
    pub fn beside(mut self, role: impl Into<String>, path: impl AsRef<Path>) -> Self {
        self.others.push((role.into(), path.as_ref().to_path_buf()));
        self
    }
    /// Worker threads; by default what the environment and the processor offer.
    pub fn threads(self, threads: usize) -> Self {
        Builder { threads: Some(threads), ..self }
    }
    /// Longest sequence in tokens; by default the model's.
    pub fn context(self, tokens: usize) -> Self {
        Builder { context: Some(tokens), ..self }
    }
    /// Places of the key/value cache that all requests share; by default two contexts, more where they are small (up to
    /// 32,768 places in 64 MiB, for searches with many branches), within a quarter of the free memory.
    pub fn kv_tokens(self, tokens: usize) -> Self {
        Builder { kv_tokens: Some(tokens), ..self }
    }
    /// Number format of keys and values; by default f32 for a model in f32, else f16.
    pub fn kv_dtype(self, dtype: KvDtype) -> Self {
        Builder { kv_dtype: Some(dtype), ..self }
    }
    /// Where it runs, with the models beside it; by default the processor.
    pub fn device(self, device: Device) -> Self {
        Builder { device, ..self }
    }
    /// Whether a row gives the same bits in any company, as by default: what `Guarantee::Exact` rests on. Without it, a GPU's
    /// products of many rows in bf16 run in cuBLASLt where the machine has it: faster prompts, and every answer says
    /// `Guarantee::Approximate`. The processor knows the default only.
    pub fn row_invariant(self, row_invariant: bool) -> Self {
        Builder { row_invariant, ..self }
    }

    /// Whether requests find what others have computed of the same beginning, as by default. Without it every request runs
    /// its whole prompt, as measurements want.
    pub fn prefix_cache(self, prefix_cache: bool) -> Self {
        Builder { prefix_cache, ..self }
    }

    /// Read the model and start the engine's thread.
    ///
    /// # Errors
    /// [`Error::Model`] when it cannot be read, [`Error::Engine`] when it does not fit, [`Error::Context`],
    /// [`Error::Vocabulary`].
    pub fn open(self) -> Result<Llm> {
        let weights = Weights::open(&self.path)?;
        let options = Options { threads: self.threads, kv_dtype: self.kv_dtype, ..Options::default() };
        let Loaded { main, others, free } = self.device.load(&weights, &self.others, &options, self.row_invariant)?;
        for (role, other) in &others {
            if other.card().vocab != main.card().vocab {
                let (role, expected, found) = (role.clone(), main.card().vocab, other.card().vocab);
                return Err(Error::Vocabulary { role, expected, found });
            }
        }
        let main = self.limited(main)?;
        let card = main.card().clone();
        let mut slot = main.slot_bytes();
        let mut networks = vec![NamedNetwork::new("main", Box::new(main))];
        for (role, other) in others {
            slot += other.slot_bytes();
            networks.push(NamedNetwork::new(role, other));
        }
        let places = self.kv_tokens.unwrap_or_else(|| affordable(card.context, slot, free));
        let (pages, prefix_cache) = (places.div_ceil(PAGE), self.prefix_cache);
        let config = Config { pages, prefix_cache, cost: Cost::measured(), ..Config::default() };
        let engine = Engine::start(config, networks)?;
        Llm::new(engine, card, &weights)
    }

    fn limited(&self, decoder: Box<dyn Network>) -> Result<Limited> {
        let mut card = decoder.card().clone();
        if let Some(found) = self.context {
            if found == 0 || found > card.context {
                return Err(Error::Context { expected: card.context, found });
            }
            card.context = found;
        }
        Ok(Limited { decoder, card })
    }
}

/// Places of KV cache by default: two contexts, or what little memory holds if that is more, within `free` bytes or a quarter
/// of the machine's free memory, at least 256.
fn affordable(context: usize, slot_bytes: usize, free: Option<usize>) -> usize {
    const UNKNOWN: u64 = 4 << 30;
    const LITTLE: usize = 64 << 20;
    let available = || {
        std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
        })
    };
    let bytes = free.map_or_else(|| available().unwrap_or(UNKNOWN) / 4, |free| free as u64);
    let fits = bytes / slot_bytes.max(1) as u64;
    let small = (LITTLE / slot_bytes.max(1)).min(1 << 15);
    (2 * context).max(small).min(usize::try_from(fits).unwrap_or(usize::MAX)).max(256)
}

/// A decoder that says it has a shorter context.
struct Limited {
    decoder: Box<dyn Network>,
    card: ModelCard,
}

impl Network for Limited {
    fn card(&self) -> &ModelCard {
        &self.card
    }
    fn reserve(&mut self, pages: usize, tail: usize) -> Result<(), NetworkError> {
        self.decoder.reserve(pages, tail)
    }
    fn run(
        &mut self,
        step: &Step,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        self.decoder.run(step, bend, each)
    }
    fn copy(&mut self, moves: &[(u32, u32)]) {
        self.decoder.copy(moves);
    }
    fn slot_bytes(&self) -> usize {
        self.decoder.slot_bytes()
    }
    fn row_invariant(&self) -> bool {
        self.decoder.row_invariant()
    }
    fn host_rows(&self) -> u64 {
        self.decoder.host_rows()
    }
    fn library_products(&self) -> u64 {
        self.decoder.library_products()
    }
}

#[cfg(test)]
mod tests {
    use super::affordable;

    #[test]
    fn the_cache_is_two_contexts_or_cheap() {
        const GIB: usize = 1 << 30;
        assert_eq!(affordable(8192, 23_040, Some(GIB)), 2 * 8192);
        assert_eq!(affordable(8192, 23_040, Some(GIB / 16)), GIB / 16 / 23_040, "no more than there is");
        assert_eq!(affordable(256, 2048, Some(GIB)), 1 << 15, "branches of a small model cost next to nothing");
        assert_eq!(affordable(256, 8192, Some(GIB)), 8192, "within 64 MiB");
        assert_eq!(affordable(64, 1 << 24, Some(1)), 256);
    }
}
