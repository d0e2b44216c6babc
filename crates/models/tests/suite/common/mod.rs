//! A golden folder and a decoder driven by hand: one sequence whose pages are the first of the store.
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::step::{Entry, RowEntry, RowRead, Segment, Step, Tap, Visible};
use omnidecode_models::{Network, Weights};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::path::PathBuf;

/// Tiny checkpoints of every architecture that transformers answers for.
pub const CASES: [&str; 15] = [
    "llama",
    "llama3-rope",
    "llama-yarn",
    "mistral-window",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "olmo2",
    "smollm3",
    "granite",
    "mixtral",
    "qwen3-moe",
    "gpt2",
];

pub fn folder(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case)
}

/// Tensors of `golden.safetensors`.
pub struct Golden(Vec<u8>);
impl Golden {
    pub fn open(case: &str) -> Golden {
        Golden(std::fs::read(folder(case).join("golden.safetensors")).expect("the golden folder is in the repository"))
    }
    fn tensor(&self, name: &str) -> Option<Vec<u8>> {
        let all = safetensors::SafeTensors::deserialize(&self.0).expect("a safetensors file");
        all.tensor(name).ok().map(|t| t.data().to_vec())
    }
    pub fn try_floats(&self, name: &str) -> Option<Vec<f32>> {
        let bytes = self.tensor(name)?;
        Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.try_floats(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let bytes = self.tensor(name).unwrap_or_else(|| panic!("no tensor {name}"));
        bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensor(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
}

/// All logits of a forward and its hidden states, `[layers + 1][rows * hidden]`.
pub struct Seen {
    pub logits: Vec<f32>,
    pub hidden: Vec<Vec<f32>>,
    vocab: usize,
}
impl Seen {
    /// The choice after the last row.
    pub fn argmax(&self) -> u32 {
        let last = &self.logits[self.logits.len() - self.vocab..];
        let mut best = 0;
        for (i, &l) in last.iter().enumerate() {
            if l > last[best] {
                best = i;
            }
        }
        best as u32
    }
}

const PAGES: usize = 128;
const TAIL: usize = 64;

pub struct Runner {
    pub decoder: Decoder,
    pub len: usize,
}
impl Runner {
    pub fn load(case: &str) -> Runner {
        Runner::open(&folder(case))
    }
    pub fn open(path: &std::path::Path) -> Runner {
        let weights = Weights::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let options = Options { threads: Some(2), ..Options::default() };
        let mut decoder = Decoder::load(&weights, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        decoder.reserve(PAGES, TAIL).expect("memory");
        Runner { decoder, len: 0 }
    }
    pub fn vocab(&self) -> usize {
        self.decoder.card().vocab
    }
    /// First slot of the tail.
    pub fn tail(&self) -> u32 {
        (PAGES * 32) as u32
    }
    /// Run a step and give all logits, row after row.
    pub fn run(&mut self, step: &Step) -> Seen {
        let card = self.decoder.card().clone();
        let mut seen = Seen { logits: Vec::new(), hidden: vec![Vec::new(); card.layers + 1], vocab: card.vocab };
        let each = &mut |_: usize, reading: omnidecode_models::Reading<'_>| {
            assert_eq!(reading.error, None);
            seen.logits.extend_from_slice(reading.logits);
            for (states, state) in seen.hidden.iter_mut().zip(reading.hidden.chunks(card.hidden)) {
                states.extend_from_slice(state);
            }
        };
        self.decoder.run(step, &mut |_, _| panic!("nothing is bent"), each).expect("finite");
        seen
    }
    fn read_all(&self, step: &mut Step) {
        let layers = self.decoder.card().layers;
        for row in 0..step.rows.len() {
            step.reads.push(RowRead { row, logits: true, ..RowRead::default() });
            step.taps.extend((0..=layers).map(|layer| Tap { row, layer }));
        }
    }
    /// Rows appended to a sequence that begins at page `first`.
    fn lay(&self, step: &mut Step, ids: &[u32], first: usize, from: usize, full: bool) {
        let (row, pages) = (step.rows.len(), step.pages.len());
        step.pages.extend((0..PAGES / 4).map(|p| (first + p) as u32));
        for (i, &id) in ids.iter().enumerate() {
            let place = (from + i) as u32;
            let span = step.spans.len();
            step.spans.push((0, if full { (from + ids.len()) as u32 } else { place + 1 }));
            let slot = (first * 32) as u32 + place;
            step.rows.push(RowEntry {
                entry: Entry::Token(id),
                position: place,
                place,
                slot,
                spans: span..span + 1,
                extras: 0..0,
            });
        }
        let layers = 0..self.decoder.card().layers;
        step.segments.push(Segment { rows: row..step.rows.len(), table: pages..step.pages.len(), layers });
    }
    /// Append rows to the sequence.
    pub fn causal(&mut self, ids: &[u32]) -> Seen {
        let mut step = Step::default();
        self.lay(&mut step, ids, 0, self.len, false);
        self.read_all(&mut step);
        self.len += ids.len();
        self.run(&step)
    }
    /// Append rows to the sequence, reading the last one's logits only.
    pub fn last(&mut self, ids: &[u32]) -> Seen {
        let mut step = Step::default();
        self.lay(&mut step, ids, 0, self.len, false);
        step.reads.push(RowRead { row: ids.len() - 1, logits: true, ..RowRead::default() });
        self.len += ids.len();
        self.run(&step)
    }
    /// Fresh rows that all see each other.
    pub fn full(&mut self, ids: &[u32]) -> Vec<f32> {
        let mut step = Step::default();
        self.lay(&mut step, ids, 0, 0, true);
        self.read_all(&mut step);
        self.run(&step).logits
    }
    /// Append rows that see each other and what was there before.
    pub fn joint(&mut self, ids: &[u32]) -> Vec<f32> {
        let mut step = Step::default();
        self.lay(&mut step, ids, 0, self.len, true);
        self.read_all(&mut step);
        self.len += ids.len();
        self.run(&step).logits
    }
    /// Several fresh sequences in one step.
    pub fn together(&mut self, prompts: &[&[u32]]) -> Vec<f32> {
        let mut step = Step::default();
        for (i, ids) in prompts.iter().enumerate() {
            self.lay(&mut step, ids, i * (PAGES / 4), 0, false);
        }
        self.read_all(&mut step);
        self.run(&step).logits
    }
    /// Rows in the tail behind `committed` places of the sequence; row `i` sees `sights[i]`, itself included.
    pub fn tail_rows(&mut self, ids: &[u32], places: &[u32], committed: u32, sights: &[Vec<Visible>]) -> Vec<f32> {
        let mut step = Step { pages: (0..PAGES as u32 / 4).collect(), spans: vec![(0, committed)], ..Step::default() };
        for (i, &id) in ids.iter().enumerate() {
            let first = step.extras.len();
            step.extras.extend_from_slice(&sights[i]);
            let slot = self.tail() + i as u32;
            let extras = first..step.extras.len();
            step.rows.push(RowEntry {
                entry: Entry::Token(id),
                position: places[i],
                place: places[i],
                slot,
                spans: 0..1,
                extras,
            });
        }
        let layers = 0..self.decoder.card().layers;
        step.segments.push(Segment { rows: 0..ids.len(), table: 0..step.pages.len(), layers });
        self.read_all(&mut step);
        self.run(&step).logits
    }
}

/// An adapter of the golden Llama in the format of the Python recipe.
pub fn write_adapter(at: &std::path::Path, change: impl Fn(&mut serde_json::Value)) {
    let mut config = json!({
        "model_type": "kangaroo", "exit_layer": 2, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 320,
        "target_layers": 3, "torch_dtype": "float16"
    });
    change(&mut config);
    std::fs::write(at.join("config.json"), config.to_string()).expect("written");
    let square: Vec<u8> = (0..64 * 64).flat_map(|i| half(((i * 37 % 101) as f32 - 50.0) / 400.0)).collect();
    let ones: Vec<u8> = (0..64).flat_map(|_| half(1.0)).collect();
    let names = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| format!("layers.0.self_attn.{n}.weight"));
    let norms = ["layers.0.input_layernorm.weight", "norm.weight"];
    let view = |shape: &[usize], data| TensorView::new(Dtype::F16, shape.to_vec(), data).expect("sizes fit");
    let squares = names.iter().map(|n| (n.as_str(), view(&[64, 64], &square)));
    let all: Vec<_> = squares.chain(norms.map(|n| (n, view(&[64], &ones)))).collect();
    safetensors::serialize_to_file(all, None, &at.join("model.safetensors")).expect("written");
}
fn half(x: f32) -> [u8; 2] {
    half::f16::from_f32(x).to_le_bytes()
}

/// A copy of a golden model in bf16.
#[cfg(feature = "emulator")]
pub fn in_bf16(case: &str) -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a folder");
    let config = std::fs::read_to_string(folder(case).join("config.json")).expect("read");
    std::fs::write(place.path().join("config.json"), config.replace("float32", "bfloat16")).expect("written");
    let bytes = std::fs::read(folder(case).join("model.safetensors")).expect("read");
    let all = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let round = |data: &[u8]| -> Vec<u8> {
        let floats = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        floats.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect()
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> =
        all.tensors().iter().map(|(name, t)| (name.clone(), t.shape().to_vec(), round(t.data()))).collect();
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(Dtype::BF16, shape.clone(), data).expect("sizes fit")));
    safetensors::serialize_to_file(views, None, &place.path().join("model.safetensors")).expect("written");
    place
}
