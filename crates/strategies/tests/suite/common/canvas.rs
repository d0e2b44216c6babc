//! Dense forwards of a network without an engine, and the loops of sheet 00-diffusion written out over them.
use omnidecode_core::PAGE;
use omnidecode_core::law::argmax;
use omnidecode_engine::testing::{Bench, MASK, TableNetwork};
use omnidecode_engine::{Answer, Config, Cost, ModelCard, NamedNetwork, Request, Sampling, Token};
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::step::{Entry, RowEntry, RowRead, Segment};
use omnidecode_models::{Network, NetworkError, Reading, Step, Weights};
use omnidecode_strategies::params::Options as Params;
use omnidecode_strategies::strategy;
use serde_json::Value;
use std::path::PathBuf;

/// A table network that sees a whole canvas.
pub fn table(shift: usize) -> TableNetwork {
    TableNetwork::new(7, 11).with_card(|c| {
        c.shift = shift;
        c.bidirectional = true;
    })
}
/// A table network that sees its block and those before.
pub fn blocked(block: usize) -> TableNetwork {
    TableNetwork::new(7, 11).with_card(|c| {
        c.shift = 0;
        c.block = Some(block);
    })
}

/// A network that says other things of itself.
pub struct Recarded(pub Box<dyn Network>, pub ModelCard);
impl Network for Recarded {
    fn card(&self) -> &ModelCard {
        &self.1
    }
    fn reserve(&mut self, pages: usize, tail: usize) -> Result<(), NetworkError> {
        self.0.reserve(pages, tail)
    }
    fn run(
        &mut self,
        step: &Step,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        self.0.run(step, bend, each)
    }
    fn copy(&mut self, moves: &[(u32, u32)]) {
        self.0.copy(moves);
    }
    fn slot_bytes(&self) -> usize {
        self.0.slot_bytes()
    }
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}
/// A checkpoint of the repository, on one thread.
pub fn checkpoint(folder: &str) -> Decoder {
    let weights = Weights::open(root().join(folder)).expect("a checkpoint of the repository");
    Decoder::load(&weights, &Options { threads: Some(1), ..Options::default() }).expect("it loads")
}
/// A causal checkpoint taken for a diffusion model: its numbers mean nothing, but they are a real decoder's.
pub fn pretend(folder: &str, shift: usize) -> Recarded {
    let decoder = checkpoint(folder);
    let mask = decoder.card().vocab as Token - 1;
    let card = ModelCard { mask: Some(mask), shift, bidirectional: true, ..decoder.card().clone() };
    Recarded(Box::new(decoder), card)
}

/// Run requests of one strategy together.
pub fn decode(network: Box<dyn Network>, name: &str, params: &Params, asks: &[(Vec<Token>, Sampling)]) -> Vec<Answer> {
    // No plan is ever cut in two: a part of a prompt run by itself would count as a forward.
    let config =
        Config { pages: 512, tail: 2048, budget: 1 << 20, cost: Cost::Fixed(vec![(1, 1.0)]), ..Config::default() };
    let mut bench = Bench::new(config, vec![NamedNetwork::new("main", network)]).expect("the engine starts");
    let build = || strategy(name, params).unwrap_or_else(|e| panic!("{name}: {e}"));
    let handles: Vec<_> = asks.iter().map(|(p, s)| bench.submit(Request::new(p.clone(), build(), s.clone()))).collect();
    bench.run();
    assert_eq!(bench.leftovers(), (0, 0, 0), "something is left behind");
    assert_eq!((bench.stats().pages_used, bench.stats().tail_used), (0, 0), "pages are left behind");
    handles.into_iter().map(|h| h.collect()).collect()
}
/// So many tokens, whatever they are.
pub fn plainly(length: usize) -> Sampling {
    Sampling { max_tokens: Some(length), ignore_eos: true, ..Sampling::default() }
}

/// JSON object literal to options.
pub fn options(value: Value) -> Params {
    value.as_object().expect("an object").clone()
}
/// A few prompts for table networks, of many lengths.
pub fn prompts(count: u32) -> Vec<Vec<Token>> {
    (0..count).map(|i| (0..1 + i * 7 % 37).map(|j| 1 + (i * 31 + j * j * 5) % 60).collect()).collect()
}
/// One request.
pub fn answer(
    network: impl Network + 'static,
    name: &str,
    params: Value,
    prompt: &[Token],
    sampling: Sampling,
) -> Answer {
    decode(Box::new(network), name, &options(params), &[(prompt.to_vec(), sampling)]).remove(0)
}
/// One request for so many tokens, whatever they are.
pub fn run(network: impl Network + 'static, name: &str, params: Value, prompt: &[Token], length: usize) -> Ran {
    Ran::of(&answer(network, name, params, prompt, plainly(length)))
}

/// A network driven by hand: one sequence in the first pages.
pub struct Dense {
    network: Box<dyn Network>,
    pub mask: Token,
    shift: usize,
    block: Option<usize>,
}
impl Dense {
    pub fn new(mut network: Box<dyn Network>) -> Dense {
        network.reserve(32, 1).expect("room");
        let card = network.card();
        let (mask, shift, block) = (card.mask.expect("a diffusion model"), card.shift, card.block);
        Dense { network, mask, shift, block }
    }
    /// Run the rows of these places (and those that speak of the places in `about`); keys and values of the others are
    /// what they were. The logits for `about`, the mask token excluded.
    pub fn run(&mut self, canvas: &[Token], places: &[usize], about: &[usize]) -> Vec<Vec<f32>> {
        let speakers: Vec<usize> = about.iter().map(|p| p.saturating_sub(self.shift)).collect();
        let mut rows: Vec<usize> = places.iter().chain(&speakers).copied().collect();
        rows.sort_unstable();
        rows.dedup();
        let mut step = Step { pages: (0..canvas.len().div_ceil(PAGE) as u32).collect(), ..Step::default() };
        for (i, &place) in rows.iter().enumerate() {
            let sees = self.block.map_or(canvas.len(), |b| ((place / b + 1) * b).min(canvas.len()));
            step.spans.push((0, sees as u32));
            let (entry, place) = (Entry::Token(canvas[place]), place as u32);
            step.rows.push(RowEntry { entry, position: place, place, slot: place, spans: i..i + 1, extras: 0..0 });
            step.reads.push(RowRead { row: i, logits: true, ..RowRead::default() });
        }
        let layers = 0..self.network.card().layers;
        step.segments.push(Segment { rows: 0..rows.len(), table: 0..step.pages.len(), layers });
        let mut seen = Vec::new();
        self.network.run(&step, &mut |_, _| {}, &mut |_, r| seen.push(r.logits.to_vec())).expect("it runs");
        let at = |p: &usize| {
            let mut logits = seen[rows.binary_search(p).expect("it was run")].clone();
            logits[self.mask as usize] = f32::NEG_INFINITY;
            logits
        };
        speakers.iter().map(at).collect()
    }
}

/// What the model says of an undecided place.
#[derive(Clone, Debug)]
pub struct Spot {
    pub place: usize,
    pub logits: Vec<f32>,
    pub law: Vec<f64>,
}
impl Spot {
    pub fn new(place: usize, logits: Vec<f32>) -> Spot {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        Spot { place, logits, law: weights.iter().map(|w| w / sum).collect() }
    }
    pub fn token(&self) -> Token {
        argmax(&self.logits)
    }
    pub fn prob(&self) -> f64 {
        self.law[self.token() as usize]
    }
    pub fn two(&self) -> (f64, f64) {
        let mut law = self.law.clone();
        law.sort_by(|a, b| b.total_cmp(a));
        (law[0], law[1])
    }
    pub fn entropy(&self) -> f64 {
        -self.law.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
    }
}

/// Indices, the largest first, the first on a tie.
pub fn best(of: &[Spot], key: impl Fn(&Spot) -> f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..of.len()).collect();
    order.sort_by(|&a, &b| key(&of[b]).total_cmp(&key(&of[a])).then(a.cmp(&b)));
    order
}
/// Even shares, the surplus first.
pub fn share(total: usize, parts: usize, at: usize) -> usize {
    total / parts + usize::from(at < total % parts)
}

/// What a loop gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Ran {
    pub tokens: Vec<Token>,
    /// At which forward each was decided, from 1.
    pub when: Vec<u32>,
    pub forwards: usize,
}
impl Ran {
    pub fn of(answer: &Answer) -> Ran {
        let end = answer.end.as_ref().unwrap_or_else(|e| panic!("{e}"));
        let when = answer.delta.origins.iter().map(|o| o.forward).collect();
        Ran { tokens: answer.delta.tokens.clone(), when, forwards: end.usage.nfe }
    }
}

/// Which places a forward of a cached loop runs: block, its forward from 0, the canvas, the delayed cache's list. Of a
/// shifting model the place before the block belongs to it, as its row speaks of the block's first.
fn window(
    cache: &str,
    shift: usize,
    block: &std::ops::Range<usize>,
    j: usize,
    len: usize,
    kept: &[bool],
) -> Vec<usize> {
    match cache {
        _ if j == 0 || cache == "none" => (0..len).collect(),
        "prefix" => (block.start - shift..len).collect(),
        "dual" => (block.start - shift..block.end).collect(),
        "delayed" if j == 1 || j.is_multiple_of(8) => (0..len).collect(),
        "delayed" => (0..len).filter(|&p| !kept[p]).collect(),
        _ => panic!("no cache {cache}"),
    }
}

/// The semi-autoregressive loop of sheet 00-diffusion §3a: `rule(spots, forward of the block, masks at its start)` says
/// which spots get which token.
pub fn naive(
    dense: &mut Dense,
    prompt: &[Token],
    length: usize,
    block: usize,
    cache: &str,
    mut rule: impl FnMut(&[Spot], usize, usize) -> Vec<(usize, Token)>,
) -> Ran {
    let start = prompt.len();
    let mut canvas = prompt.to_vec();
    canvas.resize(start + length, dense.mask);
    let (mut when, mut forwards) = (vec![0; length], 0);
    let mut kept = vec![false; canvas.len()];
    for s in (start..start + length).step_by(block) {
        let block = s..(s + block).min(canvas.len());
        let masks = block.clone().filter(|&p| canvas[p] == dense.mask).count();
        for j in 0.. {
            let open: Vec<usize> = block.clone().filter(|&p| p >= start && canvas[p] == dense.mask).collect();
            if open.is_empty() {
                break;
            }
            forwards += 1;
            let places = window(cache, dense.shift, &block, j, canvas.len(), &kept);
            places.iter().for_each(|&p| kept[p] = p < start || canvas[p] != dense.mask);
            let rows = dense.run(&canvas, &places, &open);
            let spots: Vec<Spot> = open.iter().zip(rows).map(|(&p, l)| Spot::new(p, l)).collect();
            for (i, token) in rule(&spots, j, masks) {
                canvas[spots[i].place] = token;
                when[spots[i].place - start] = forwards as u32;
            }
        }
    }
    Ran { tokens: canvas.split_off(start), when, forwards }
}

pub const TABLE_MASK: Token = MASK;
