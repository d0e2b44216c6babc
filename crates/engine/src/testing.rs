//! For law tests: a table-driven network whose every bit depends on what each row saw through slots and spans, so that
//! a bookkeeping error anywhere changes the tokens; and an engine that is turned by hand.
use crate::engine::NamedNetwork;
use crate::error::Result;
use crate::executor::{Executor, reserve};
use crate::handle::Handle;
use crate::inner::Config;
use crate::mailbox::Mailbox;
use crate::request::Request;
use crate::usage::Stats;
use omnidecode_core::law::{choose, log_sum_exp};
use omnidecode_core::noise::{pair, unit};
use omnidecode_core::{PAGE, Token};
use omnidecode_models::{Entry, ModelCard, Network, NetworkError, Reading, RowEntry, Segment, Stats as RowStats, Step};
use std::sync::Arc;
use std::time::Duration;

/// Size of the vocabulary.
pub const VOCAB: usize = 64;
/// End-of-text token.
pub const EOS: Token = 0;
/// Mask token of canvases.
pub const MASK: Token = 63;
/// Width of a hidden state: a 64-bit word in four floats, and the token it came from.
pub const HIDDEN: usize = 5;

/// Two layers of hashes. Layer 0 stores the hash of (entry, position, place), layer 1 a hash of all that the row saw in
/// layer 0; the logits are mostly a bigram table (so that drafts can be right) and partly a hash of everything the row
/// saw in layer 1 (so that errors show).
#[derive(Clone)]
pub struct TableNetwork {
    card: ModelCard,
    table: u64,
    own: u64,
    slots: Vec<[u64; 2]>,
    pages: usize,
    /// A row of this token has activations that are not finite.
    pub poison: Option<Token>,
    /// The network panics at a row of this token.
    pub bomb: Option<Token>,
    /// The network refuses a row of this token.
    pub taboo: Option<Token>,
    /// Added to every call, in microseconds per row, for cost tests.
    pub delay: Option<u64>,
}

#[derive(Clone, Copy, Default)]
struct Hidden {
    word: u64,
    token: Token,
}

impl TableNetwork {
    /// Networks of one `table` often agree; `own` is what sets them apart.
    pub fn new(table: u64, own: u64) -> Self {
        let card = ModelCard {
            vocab: VOCAB,
            hidden: HIDDEN,
            layers: 2,
            heads: 1,
            kv_heads: 1,
            context: 4096,
            intermediate: 8,
            eos: vec![EOS],
            mask: Some(MASK),
            shift: 1,
            ..ModelCard::default()
        };
        Self { card, table, own, slots: Vec::new(), pages: 0, poison: None, bomb: None, taboo: None, delay: None }
    }
    /// With other facts.
    pub fn with_card(mut self, change: impl FnOnce(&mut ModelCard)) -> Self {
        change(&mut self.card);
        self
    }
    /// The vector that stands for a token: feeding it is feeding the token.
    pub fn embedding(&self, token: Token) -> Vec<f32> {
        encode(Hidden { word: pair(self.own, u64::from(token)), token })
    }
    fn enter(&self, step: &Step, row: &RowEntry) -> Hidden {
        let token = |t: Token| Hidden { word: pair(self.own, u64::from(t)), token: t };
        match &row.entry {
            Entry::Token(t) => token(*t),
            Entry::Embedding(at) | Entry::Hidden(at) => decode(&step.vectors[*at..*at + HIDDEN]),
            Entry::Mix(range) => match &step.mixes[range.clone()] {
                [(t, weight)] if *weight == 1.0 => token(*t),
                parts => parts.iter().fold(Hidden::default(), |h, (t, w)| Hidden {
                    word: pair(h.word, pair(u64::from(*t), u64::from(w.to_bits()))),
                    token: *t,
                }),
            },
        }
    }
    /// Slots that a row sees, checked against the contract of [`Step`].
    fn visible<'a>(&self, step: &'a Step, segment: &'a Segment, row: &'a RowEntry) -> impl Iterator<Item = usize> + 'a {
        let table = &step.pages[segment.table.clone()];
        let spans = &step.spans[row.spans.clone()];
        let extras = &step.extras[row.extras.clone()];
        assert!(spans.iter().all(|s| s.0 < s.1) && spans.windows(2).all(|w| w[0].1 <= w[1].0), "spans {spans:?}");
        assert!(extras.is_sorted_by_key(|e| e.place), "extras {extras:?}");
        assert!((row.slot as usize) < self.slots.len(), "slot {} of {}", row.slot, self.slots.len());
        let own = if (row.slot as usize) < self.pages * PAGE {
            assert_eq!(table[row.place as usize / PAGE] as usize * PAGE + row.place as usize % PAGE, row.slot as usize);
            spans.iter().filter(|s| s.0 <= row.place && row.place < s.1).count()
        } else {
            extras.iter().filter(|e| e.slot == row.slot && e.place == row.place).count()
        };
        assert_eq!(own, 1, "a row sees itself once: {row:?} {spans:?} {extras:?}");
        let pages = spans.iter().flat_map(|&(a, b)| a..b);
        let pages = pages.map(|p| table[p as usize / PAGE] as usize * PAGE + p as usize % PAGE);
        pages.chain(extras.iter().map(|e| e.slot as usize))
    }
    fn sum(&self, step: &Step, segment: &Segment, row: &RowEntry, layer: usize) -> u64 {
        self.visible(step, segment, row).fold(0, |s, slot| s.wrapping_add(self.slots[slot][layer]))
    }
    /// The logits after a hidden state.
    fn logits(&self, h: Hidden, position: u32) -> Vec<f32> {
        let key = if h.token == MASK { u64::from(position) } else { 0 };
        let row = pair(pair(self.table, u64::from(h.token)), key);
        let mut out: Vec<f32> =
            (0..VOCAB as u64).map(|v| 9.0 * unit(pair(row, v)) as f32 + 2.5 * unit(pair(h.word, v)) as f32).collect();
        out[EOS as usize] -= 3.0;
        out[MASK as usize] = -1e9;
        out
    }
    fn read(
        &self,
        step: &Step,
        hidden: &[[Hidden; 3]],
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) {
        assert!(step.reads.is_sorted_by(|a, b| a.row < b.row), "reads ascend");
        for (i, read) in step.reads.iter().enumerate() {
            let raw = self.logits(hidden[read.row][2], step.rows[read.row].position);
            let lse = log_sum_exp(&raw);
            let mut ranked: Vec<(Token, f32)> = raw.iter().enumerate().map(|(v, &l)| (v as Token, l)).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let entropy = -raw.iter().map(|l| (l - lse).exp() * (l - lse)).sum::<f32>();
            let stats = RowStats { argmax: ranked[0].0, max: ranked[0].1, second: ranked[1].1, lse, entropy };
            let asked: Vec<f32> = step.asked[read.asked.clone()].iter().map(|&t| raw[t as usize] - lse).collect();
            let mut bent = raw.clone();
            if read.bend {
                bend(i, &mut bent);
            }
            let choice = read.choice.map(|c| choose(&bent, &c.warp, c.key));
            let taps = step.taps.iter().filter(|t| t.row == read.row);
            let taps: Vec<f32> = taps.flat_map(|t| encode(hidden[read.row][t.layer])).collect();
            each(
                i,
                Reading {
                    choice,
                    error: None,
                    logprob: choice.map_or(0.0, |c| raw[c as usize] - lse),
                    top: &ranked[..read.top.min(VOCAB)],
                    stats: if read.stats { stats } else { RowStats::default() },
                    asked: &asked,
                    logits: if read.logits { &bent } else { &[] },
                    hidden: &taps,
                    mass: &[],
                },
            );
        }
    }
}

fn encode(h: Hidden) -> Vec<f32> {
    let mut out: Vec<f32> = (0..4).map(|i| (h.word >> (16 * i) & 0xFFFF) as f32).collect();
    out.push(h.token as f32);
    out
}
fn decode(v: &[f32]) -> Hidden {
    let word = v[..4].iter().enumerate().fold(0, |w, (i, &x)| w | (x.abs() as u64 & 0xFFFF) << (16 * i));
    Hidden { word, token: v[4].abs() as Token % VOCAB as Token }
}

impl Network for TableNetwork {
    fn card(&self) -> &ModelCard {
        &self.card
    }
    fn reserve(&mut self, pages: usize, tail: usize) -> Result<(), NetworkError> {
        self.pages = pages;
        self.slots = vec![[0; 2]; pages * PAGE + tail];
        Ok(())
    }
    fn run(
        &mut self,
        step: &Step,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        if let Some(delay) = self.delay {
            std::thread::sleep(std::time::Duration::from_micros(delay * step.rows.len() as u64));
        }
        let mut hidden = vec![[Hidden::default(); 3]; step.rows.len()];
        let layers = |s: &Segment| s.layers.start..s.layers.end.min(2);
        for segment in &step.segments {
            for i in segment.rows.clone() {
                let h = self.enter(step, &step.rows[i]);
                hidden[i][segment.layers.start] = h;
                if self.taboo == Some(h.token) {
                    return Err(NetworkError::Unsupported(format!("token {}", h.token)));
                }
                assert_ne!(self.bomb, Some(h.token), "a bug in a network");
            }
        }
        for layer in 0..2 {
            let mine = || step.segments.iter().filter(|s| layers(s).contains(&layer));
            // Keys and values of all rows first: rows of one step see each other.
            for segment in mine() {
                for i in segment.rows.clone() {
                    let (row, h) = (&step.rows[i], hidden[i][layer]);
                    let here = pair(u64::from(row.position), u64::from(row.place));
                    self.slots[row.slot as usize][layer] =
                        pair(pair(self.own, h.word), if layer == 0 { here } else { 1 });
                }
            }
            for segment in mine() {
                let edits = step.edits.iter().find(|e| std::ptr::eq(&step.segments[e.0], segment));
                let edited = edits.map_or(0, |e| pair(e.1.biases.len() as u64, e.1.clamps.len() as u64 + 1));
                for i in segment.rows.clone() {
                    let row = &step.rows[i];
                    let h = hidden[i][layer];
                    let word = pair(self.slots[row.slot as usize][layer], self.sum(step, segment, row, layer)) ^ edited;
                    hidden[i][layer + 1] = Hidden { word, token: h.token };
                    if layer == 1 && self.poison == Some(h.token) {
                        return Err(NetworkError::NotFinite { row: i, layer });
                    }
                }
            }
        }
        self.read(step, &hidden, bend, each);
        Ok(())
    }
    fn copy(&mut self, moves: &[(u32, u32)]) {
        for &(from, to) in moves {
            self.slots[to as usize] = self.slots[from as usize];
        }
    }
    fn slot_bytes(&self) -> usize {
        16
    }
}

/// A main model and a draft that often agrees with it and reads a twentieth of its bytes.
pub fn networks() -> Vec<NamedNetwork> {
    let named = |role, own, bytes| {
        NamedNetwork::new(role, Box::new(TableNetwork::new(7, own).with_card(|card| card.bytes = bytes)))
    };
    vec![named("main", 11, 2000), named("draft", 13, 100)]
}

/// An engine without a thread, turned by hand: every step is the test's.
pub struct Bench {
    mail: Arc<Mailbox>,
    executor: Executor,
}
impl Bench {
    /// As [`crate::Engine::start`], but that readers are told of every step.
    ///
    /// # Errors
    /// As [`crate::Engine::start`].
    pub fn new(config: Config, mut networks: Vec<NamedNetwork>) -> Result<Bench> {
        let config = Config { pace: Duration::ZERO, ..config };
        reserve(&config, &mut networks)?;
        let mail = Arc::new(Mailbox::default());
        Ok(Bench { executor: Executor::new(config, networks, mail.clone()), mail })
    }
    /// Hand in a request.
    pub fn submit(&self, request: Request) -> Handle {
        self.mail.submit(request)
    }
    /// Take mail, poll, run one step.
    pub fn turn(&mut self) -> bool {
        self.executor.turn()
    }
    /// Turn until nothing is left to do.
    pub fn run(&mut self) {
        self.executor.run_until_idle();
    }
    /// Counters.
    pub fn stats(&self) -> Stats {
        self.executor.stats()
    }
    /// Requests, sequences and plans alive.
    pub fn leftovers(&self) -> (usize, usize, usize) {
        self.executor.leftovers()
    }
    /// Forget every cached prefix; the pages that are free then.
    pub fn flush_prefixes(&mut self) -> Vec<usize> {
        let mut inner = self.executor.shared.borrow_mut();
        inner
            .models
            .iter_mut()
            .map(|m| {
                m.pool.flush();
                m.pool.free()
            })
            .collect()
    }
}
