pub mod strategies;

use omnidecode_core::law::{Warp, choose};
use omnidecode_core::noise::{Key, Purpose, mix, pair};
use omnidecode_engine::testing::{Bench, EOS, TableNetwork, networks};
use omnidecode_engine::*;
use omnidecode_models::{Entry, Network, RowEntry, RowRead, Segment, Step};
use std::sync::Arc;

/// Small, so that prompts repeat pairs and share prefixes.
pub fn prompt(i: u64) -> Vec<Token> {
    let len = 1 + mix(i) as usize % 90;
    let family = i % 7;
    let token = |j: u64| 1 + (pair(if j < 40 { family } else { i }, j % 9 + j / 30) % 61) as Token;
    (0..len as u64).map(token).collect()
}
pub fn sampling(i: u64, temperature: f32) -> Sampling {
    Sampling {
        temperature,
        seed: mix(i),
        max_tokens: Some(1 + mix(i + 9) as usize % 40),
        stop_token_ids: if i.is_multiple_of(3) { vec![5] } else { vec![] },
        stop: if i.is_multiple_of(4) { vec!["!<q>".into(), "xx".into()] } else { vec![] },
        include_stop_str_in_output: i.is_multiple_of(8),
        ..Sampling::default()
    }
}
pub fn request(i: u64, strategy: Strategy, temperature: f32, bent: bool) -> Request {
    let mut r = Request::new(prompt(i), strategy, sampling(i, temperature));
    r.text = Some(Arc::new(Letters));
    if bent {
        r.processors.push(Arc::new(Penalty(0.4)));
    }
    r
}

/// A token is one to three characters, so that stop strings cross tokens.
pub struct Letters;
pub fn word(token: Token) -> String {
    match token % 8 {
        0 => format!("<{}>", char::from(b'a' + (token % 26) as u8)),
        1..=3 => char::from(b'p' + (token % 10) as u8).to_string(),
        4 => "!<".into(),
        5 => "q>".into(),
        6 => "é".into(),
        _ => "x".into(),
    }
}
impl Detokenizer for Letters {
    fn stream(&self) -> Box<dyn TextStream> {
        Box::new(Letters)
    }
}
impl TextStream for Letters {
    fn push(&mut self, token: Token, text: &mut String) {
        text.push_str(&word(token));
    }
    fn finish(&mut self, _: &mut String) {}
}

/// Each use of a token costs it; and a toy grammar: no three odd tokens in a row.
pub struct Penalty(pub f32);
#[derive(Clone)]
struct PenaltyState {
    weight: f32,
    counts: Vec<u16>,
    odd: usize,
}
impl LogitsProcessor for Penalty {
    fn start(&self, prompt: &[Token]) -> Box<dyn ProcessorState> {
        let mut state = PenaltyState { weight: self.0, counts: vec![0; 64], odd: 0 };
        prompt.iter().for_each(|&t| state.advance(t));
        Box::new(state)
    }
}
impl ProcessorState for PenaltyState {
    fn fork(&self) -> Box<dyn ProcessorState> {
        Box::new(self.clone())
    }
    fn advance(&mut self, token: Token) {
        self.counts[token as usize] += 1;
        self.odd = if token % 2 == 1 { self.odd + 1 } else { 0 };
    }
    fn bend(&self, position: usize, logits: &mut [f32]) {
        logits[position % 64] += 0.5; // position matters
        for (v, (logit, &count)) in logits.iter_mut().zip(&self.counts).enumerate() {
            *logit -= self.weight * f32::from(count);
            if v % 2 == 1 && self.odd >= 2 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Plain decoding without any engine: the whole context anew for each token.
pub fn oracle(r: &Request, prompt: &[Token]) -> (Vec<Token>, String) {
    let mut network = TableNetwork::new(7, 11);
    network.reserve(8, 0).unwrap();
    let (mut tokens, mut made) = (prompt.to_vec(), Vec::new());
    let mut states: Vec<_> = r.processors.iter().map(|p| p.start(&tokens)).collect();
    let s = &r.sampling;
    loop {
        let next = {
            let mut logits = naive(&mut network, &tokens);
            states.iter().for_each(|s| s.bend(tokens.len(), &mut logits));
            let warp = Warp { temperature: s.temperature, ..Warp::GREEDY };
            choose(&logits, &warp, Key::new(s.seed, tokens.len(), Purpose::Sample))
        };
        tokens.push(next);
        made.push(next);
        states.iter_mut().for_each(|s| s.advance(next));
        let stopped = next == EOS || s.stop_token_ids.contains(&next);
        let spoken = made.len() - usize::from(stopped && !s.include_stop_str_in_output);
        let mut text: String = made[..spoken].iter().map(|&t| word(t)).collect();
        let hit = s.stop.iter().filter_map(|stop| text.find(stop.as_str()).map(|at| (at, stop.len()))).min();
        if let (Some((at, len)), false) = (hit, stopped) {
            text.truncate(at + if s.include_stop_str_in_output { len } else { 0 });
            return (made, text);
        }
        if stopped || Some(made.len()) == s.max_tokens {
            return (made, text);
        }
    }
}
fn naive(network: &mut TableNetwork, tokens: &[Token]) -> Vec<f32> {
    let mut step = Step { pages: (0..8).collect(), ..Step::default() };
    for (i, &t) in tokens.iter().enumerate() {
        step.spans.push((0, i as u32 + 1));
        let at = i as u32;
        step.rows.push(RowEntry {
            entry: Entry::Token(t),
            position: at,
            place: at,
            slot: at,
            spans: i..i + 1,
            extras: 0..0,
        });
    }
    step.segments.push(Segment { rows: 0..tokens.len(), table: 0..8, layers: 0..2 });
    step.reads.push(RowRead { row: tokens.len() - 1, logits: true, ..RowRead::default() });
    let mut logits = Vec::new();
    network.run(&step, &mut |_, _| {}, &mut |_, r| logits = r.logits.to_vec()).unwrap();
    logits
}

pub fn bench(config: Config) -> Bench {
    Bench::new(config, networks()).unwrap()
}
/// Everything is given back, and cached prefixes can be forgotten to the last page.
pub fn assert_empty(b: &mut Bench, pages: usize) {
    let s = b.stats();
    assert_eq!((s.pages_used, s.tail_used, b.leftovers()), (0, 0, (0, 0, 0)));
    assert!(b.flush_prefixes().iter().all(|&free| free == pages));
}
