//! MajorMark and MajorMark+: a multi-bit watermark whose green list is always at least half of the vocabulary
//! (arXiv:2508.03829, sheet 41; the seed's contents are reconstructed, as the sheet says).
//!
//! The vocabulary is dealt into one shard per message bit by a keyed permutation of the last two tokens; the shards of
//! the majority bit are green. The detector counts shards, needs neither model nor prompt, and separates two clusters.
use super::{Attachment, Companion, CompanionCard, CompanionError, Context};
use omnidecode_core::Token;
use omnidecode_core::noise::{mix, pair};
use omnidecode_engine::{LogitsProcessor, ProcessorState};
use std::sync::Arc;

mod detect;
pub use detect::{Found, upper_cluster};

crate::params! {
    /// The message: a text of 0s and 1s, not all alike (in any block).
    message: String = String::new();
    /// Secret key; the detector needs the same.
    key: usize = 15485863;
    /// Added to the logits of green tokens; 0 leaves the text as it is.
    delta: f64 = 2.0, within 0.0, 100.0;
    /// Blocks of MajorMark+; 1 is MajorMark.
    blocks: usize = 1, within 1.0, 64.0;
}

impl Companion for Params {
    const CARD: CompanionCard = CompanionCard {
        name: "majormark",
        bends: "law",
        summary: "Writes a multi-bit watermark into the choice of tokens.",
        source: "arXiv:2508.03829, sheet 41",
    };

    fn attach(self, to: &Context<'_>) -> Result<Attachment, CompanionError> {
        let unfit = |reason: String| CompanionError::Unfit { name: Self::CARD.name, reason };
        let bits = bits(&self.message).map_err(unfit)?;
        let code = Code::new(self.key as u64, bits.len(), self.blocks, words(to)).map_err(unfit)?;
        code.check(&bits).map_err(unfit)?;
        if self.delta == 0.0 {
            return Ok(Attachment::default());
        }
        let law = Law { code: Arc::new(code), bits: bits.into(), delta: self.delta as f32 };
        Ok(Attachment { processors: vec![Arc::new(law)], ..Attachment::default() })
    }
}

/// Tokens that take part: all that stand for bytes.
fn words(to: &Context<'_>) -> Vec<Token> {
    let all = 0..to.card.vocab as Token;
    match &to.vocabulary {
        Some(vocabulary) => all.filter(|&t| vocabulary.bytes(t).is_some()).collect(),
        None => {
            all.filter(|t| !to.card.eos.contains(t) && to.card.bos != Some(*t) && to.card.pad != Some(*t)).collect()
        }
    }
}

/// The bits of a message.
///
/// # Errors
/// Says which character is neither 0 nor 1.
pub fn bits(message: &str) -> Result<Vec<bool>, String> {
    let bit = |c: char| match c {
        '0' => Ok(false),
        '1' => Ok(true),
        other => Err(format!("message character {other:?}: expected a text of 0 and 1")),
    };
    message.chars().map(bit).collect()
}

/// How a vocabulary is dealt: shared by writer and detector.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    key: u64,
    blocks: usize,
    /// Bits of a block.
    width: usize,
    words: Vec<Token>,
}

impl Code {
    /// A code of `bits` bits in `blocks` blocks over these tokens.
    ///
    /// # Errors
    /// When the bits do not divide into blocks of at least two, or there are fewer tokens than bits.
    pub fn new(key: u64, bits: usize, blocks: usize, words: Vec<Token>) -> Result<Code, String> {
        if blocks == 0 || !bits.is_multiple_of(blocks) || bits / blocks.max(1) < 2 {
            return Err(format!("a message of {bits} bits in {blocks} blocks: expected blocks of two bits or more"));
        }
        if words.len() < bits {
            return Err(format!("{} tokens for {bits} bits", words.len()));
        }
        Ok(Code { key, blocks, width: bits / blocks, words })
    }
    /// Whether a message can be told from its shards: no block may be all 0 or all 1.
    ///
    /// # Errors
    /// Names the block.
    pub fn check(&self, bits: &[bool]) -> Result<(), String> {
        for (j, block) in bits.chunks(self.width).enumerate() {
            if block.iter().all(|b| *b == block[0]) {
                return Err(format!(
                    "block {j} of the message is all {}: such blocks cannot be embedded",
                    u8::from(block[0])
                ));
            }
        }
        Ok(())
    }
    fn block(&self, before: [Token; 2]) -> usize {
        (before[0] as usize + before[1] as usize) % self.blocks
    }
    /// What the seed depends on beside the context: the majority bit, or the number of ones in a block.
    fn hypothesis(&self, block: &[bool]) -> u64 {
        let ones = block.iter().filter(|b| **b).count();
        if self.blocks == 1 { u64::from(2 * ones >= self.width) } else { ones as u64 }
    }
    /// Shard of every word: a keyed Fisher–Yates deal into `width` equal shards, the last one larger.
    fn deal(&self, block: usize, hypothesis: u64, before: [Token; 2]) -> Vec<Token> {
        let context = pair(u64::from(before[0]), u64::from(before[1]));
        let mut state = pair(pair(self.key, (block as u64) << 32 | hypothesis), context);
        let mut deck = self.words.clone();
        for i in (1..deck.len()).rev() {
            state = mix(state);
            // The high half of a product is uniform to within 2^-40 here, and exact on every machine.
            let j = ((u128::from(state) * (i as u128 + 1)) >> 64) as usize;
            deck.swap(i, j);
        }
        deck
    }
    fn shard(&self, index: usize) -> usize {
        (index / (self.words.len() / self.width)).min(self.width - 1)
    }
    /// Green tokens after two tokens, for a message.
    pub fn green(&self, bits: &[bool], before: [Token; 2]) -> Vec<Token> {
        let j = self.block(before);
        let block = &bits[j * self.width..(j + 1) * self.width];
        let majority = 2 * block.iter().filter(|b| **b).count() >= self.width;
        let deck = self.deal(j, self.hypothesis(block), before);
        let green = deck.into_iter().enumerate().filter(|(i, _)| block[self.shard(*i)] == majority);
        green.map(|(_, token)| token).collect()
    }
}

struct Law {
    code: Arc<Code>,
    bits: Arc<[bool]>,
    delta: f32,
}
impl LogitsProcessor for Law {
    fn start(&self, prompt: &[Token]) -> Box<dyn ProcessorState> {
        let last = |i: usize| prompt.len().checked_sub(i).map(|at| prompt[at]);
        let state =
            State { code: self.code.clone(), bits: self.bits.clone(), delta: self.delta, before: [last(2), last(1)] };
        Box::new(state)
    }
}

#[derive(Clone)]
struct State {
    code: Arc<Code>,
    bits: Arc<[bool]>,
    delta: f32,
    before: [Option<Token>; 2],
}
impl ProcessorState for State {
    fn fork(&self) -> Box<dyn ProcessorState> {
        Box::new(self.clone())
    }
    fn advance(&mut self, token: Token) {
        self.before = [self.before[1], Some(token)];
    }
    fn bend(&self, _: usize, logits: &mut [f32]) {
        let [Some(a), Some(b)] = self.before else { return };
        for token in self.code.green(&self.bits, [a, b]) {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += self.delta;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::detect::deviation;
    use super::*;
    use omnidecode_core::noise::unit;

    /// Tokens drawn uniformly from the green list at every step: logits equal, delta large.
    fn write(code: &Code, message: &[bool], length: usize, seed: u64) -> Vec<Token> {
        let mut tokens = vec![1, 2];
        while tokens.len() < length {
            let green = code.green(message, [tokens[tokens.len() - 2], tokens[tokens.len() - 1]]);
            assert!(2 * green.len() >= code.words.len(), "green lists are at least half");
            tokens.push(green[(unit(pair(seed, tokens.len() as u64)) * green.len() as f64) as usize]);
        }
        tokens
    }

    #[test]
    fn messages_are_read_back() {
        for blocks in [1, 2] {
            let code = Code::new(7, 8, blocks, (0..400).collect()).expect("a code");
            for number in 0..=255u32 {
                let message: Vec<bool> = (0..8).map(|i| number >> i & 1 == 1).collect();
                if number % 9 != 0 || code.check(&message).is_err() {
                    continue;
                }
                let tokens = write(&code, &message, 400, u64::from(number));
                let found = code.detect(&tokens, false);
                assert_eq!(found.bits, message, "{number:08b} in {blocks} blocks");
                assert_eq!(found.counted, tokens.len() - 2);
            }
        }
    }

    #[test]
    fn another_key_reads_noise() {
        let (mine, other) = (
            Code::new(7, 16, 1, (0..400).collect()).expect("a code"),
            Code::new(8, 16, 1, (0..400).collect()).expect("a code"),
        );
        let message: Vec<bool> = (0..16).map(|i| i % 3 == 0).collect();
        let hits: usize = (0..20)
            .map(|seed| {
                let found = other.detect(&write(&mine, &message, 120, seed), true);
                found.bits.iter().zip(&message).filter(|(a, b)| a == b).count()
            })
            .sum();
        assert!((110..210).contains(&hits), "{hits} of 320 bits: the chance level is 160");
    }

    #[test]
    fn expected_share_of_green_tokens() {
        // Sheet 41, contract 2: 0.634, 0.598 and 0.643 for blocks of 4.
        let share = |n: u32| {
            let choose = |k: u32| (1..=k).fold(1.0, |c, i| c * f64::from(n - k + i) / f64::from(i));
            let sum: f64 = (1..n).map(|k| choose(k) * f64::from(k.max(n - k))).sum();
            sum / ((2f64.powi(n as i32) - 2.0) * f64::from(n))
        };
        for (n, expected) in [(8, 0.634), (16, 0.598), (4, 0.643)] {
            assert!((share(n) - expected).abs() < 6e-4, "{n}: {}", share(n));
        }
    }

    #[test]
    fn two_means_is_the_best_split() {
        for counts in [vec![1, 9, 2, 8, 9], vec![0, 0, 5], vec![3, 4], vec![7, 1, 1, 1, 6, 2]] {
            let found = upper_cluster(&counts);
            let cost = |mask: u32| {
                let part = |side: u32| -> Vec<usize> {
                    counts.iter().enumerate().filter(|(i, _)| mask >> i & 1 == side).map(|(_, c)| *c).collect()
                };
                let one = |p: Vec<usize>| deviation(&p).powi(2) * p.len() as f64;
                one(part(0)) + one(part(1))
            };
            let mask = found.iter().enumerate().map(|(i, up)| u32::from(*up) << i).sum();
            let best = (1..(1u32 << counts.len()) - 1).map(cost).fold(f64::INFINITY, f64::min);
            assert!((cost(mask) - best).abs() < 1e-9, "{counts:?}: {found:?}");
        }
    }

    #[test]
    fn bad_messages_are_refused() {
        assert!(bits("10a").is_err());
        let code = Code::new(1, 8, 2, (0..64).collect()).expect("a code");
        assert!(code.check(&bits("11110001").expect("bits")).is_err());
        assert!(code.check(&bits("11100001").expect("bits")).is_ok());
        assert!(Code::new(1, 7, 2, (0..64).collect()).is_err());
        assert!(Code::new(1, 8, 1, (0..4).collect()).is_err());
    }
}
