//! CreditDecoding: what was likeliest again and again is believed sooner (arXiv:2510.06133, sheet 20).
//!
//! A token earns credit at a place whenever it is the likeliest there; the logarithm of the credit is added to its logit.
//! Only tokens that were ever likeliest have credit, so a short list a place is exact.
use super::guess::Guess;
use omnidecode_core::Token;
use std::collections::BTreeMap;

/// How credit is earned and spent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Weight of the logarithm of credit.
    pub fusion: f64,
    /// What is left of credit a forward later.
    pub decay: f64,
    /// Exponent of the probability that is earned.
    pub exponent: f64,
}

/// Credits of the places of one block.
#[derive(Clone, Debug)]
pub struct Credit {
    rates: Rates,
    /// Exponent 1, fusion and decay one less the block's share of masks (the paper's variant without parameters).
    adaptive: bool,
    block: usize,
    credits: BTreeMap<usize, Vec<(Token, f64)>>,
}

impl Credit {
    /// Without credits.
    pub fn new(rates: Rates, adaptive: bool) -> Credit {
        Credit { rates, adaptive, block: 0, credits: BTreeMap::new() }
    }
    /// A block of so many places begins.
    pub fn enter(&mut self, places: usize) {
        self.block = places;
        self.credits.clear();
    }
    /// Tokens that have credit at these places: the next look must ask for their probabilities.
    pub fn asks(&self, places: &[usize]) -> Vec<Token> {
        let lists = places.iter().filter_map(|p| self.credits.get(p));
        let mut tokens: Vec<Token> = lists.flatten().map(|c| c.0).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
    /// Earn and spend. `asks` are the tokens whose probabilities `guesses` have.
    pub fn revise(&mut self, guesses: &mut [Guess], asks: &[Token]) {
        let Rates { mut fusion, mut decay, mut exponent } = self.rates;
        if self.adaptive {
            let share = 1.0 - guesses.len() as f64 / self.block.max(1) as f64;
            (fusion, decay, exponent) = (share, share, 1.0);
        }
        self.credits.values_mut().flatten().for_each(|c| c.1 *= decay);
        for guess in guesses {
            let credits = self.credits.entry(guess.place).or_default();
            let earned = guess.prob.powf(exponent);
            match credits.iter_mut().find(|c| c.0 == guess.token) {
                Some(credit) => credit.1 += earned,
                None => credits.push((guess.token, earned)),
            }
            let prob = |token: Token| match asks.binary_search(&token) {
                Ok(i) if token != guess.token => guess.asked[i],
                _ => guess.prob,
            };
            let fused: Vec<(Token, f64, f64)> =
                credits.iter().map(|&(t, c)| (t, prob(t), prob(t) * (1.0 + c).powf(fusion))).collect();
            let total = 1.0 + fused.iter().map(|f| f.2 - f.1).sum::<f64>();
            let best = fused.iter().max_by(|a, b| a.2.total_cmp(&b.2).then(b.0.cmp(&a.0)));
            if let Some(&(token, _, weight)) = best {
                (guess.token, guess.prob) = (token, (weight / total).min(1.0));
                if guess.confidence.is_finite() {
                    guess.confidence = guess.prob;
                }
            }
        }
    }
}
