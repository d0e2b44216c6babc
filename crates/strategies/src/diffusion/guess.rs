//! What a forward says of a place: a token, and how sure it is. The mask token has no probability (the SUBS rule of
//! BD3-LM, sheet 00-diffusion §1): its share is divided among the others.
use omnidecode_core::Token;
use omnidecode_core::law::{Warp, choose};
use omnidecode_core::noise::{Key, Purpose, pair};
use omnidecode_engine::{Canvas, Look, Readout, Result, Seen, View};

/// What places are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Probability of the chosen token.
    Confidence,
    /// The largest probability less the second.
    Margin,
    /// Negative entropy.
    Entropy,
    /// Noise.
    Random,
    /// Left to right.
    Sequential,
}
impl Order {
    /// By the name of a parameter; names of Dream's algorithms too.
    pub fn named(name: &str) -> Order {
        match name {
            "margin" | "topk-margin" => Order::Margin,
            "entropy" => Order::Entropy,
            "random" | "origin" => Order::Random,
            "sequential" => Order::Sequential,
            _ => Order::Confidence,
        }
    }
}

/// The guess for one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Guess {
    /// The place.
    pub place: usize,
    /// The token that would be committed.
    pub token: Token,
    /// Its probability.
    pub prob: f64,
    /// Entropy of the law, in nats; 0 where nobody asked for it.
    pub entropy: f64,
    /// The likeliest token, and the largest logit less the second; the token and 0 where nobody asked for it.
    pub best: Token,
    /// See `best`.
    pub gap: f64,
    /// What it is ranked by.
    pub confidence: f64,
    /// Probabilities of the tokens that a look asked for.
    pub asked: Vec<f64>,
}

/// Which statistics are read beside the choice and its probability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Entropy.
    pub entropy: bool,
    /// The two largest logits.
    pub gap: bool,
}

/// A second canvas whose prompt is masked, and how strongly it is turned away from (classifier-free guidance).
pub struct Guide<'a> {
    /// The canvas; what is committed to the first is committed to it too.
    pub canvas: Canvas<'a>,
    /// w of `l = lu + (w + 1)(lc - lu)`.
    pub weight: f32,
}

/// Chooses tokens and says how sure they are.
#[derive(Clone, Debug)]
pub struct Chooser {
    /// What places are ranked by.
    pub order: Order,
    /// What is read beside.
    pub needs: Needs,
    /// The request's bending.
    pub warp: Warp,
    /// Whether confidence is that of the bent law (temperature, top-k, top-p applied), as Dream has it.
    pub filtered: bool,
    /// Tokens that are committed only where nothing else is left to commit.
    pub last: Vec<Token>,
    /// Tokens that are never chosen.
    pub banned: Vec<Token>,
    /// The mask token.
    pub mask: Token,
    /// Seed of the request.
    pub seed: u64,
}

impl Chooser {
    /// Ranks by `order`, for this canvas.
    pub fn new(canvas: &Canvas<'_>, order: Order) -> Chooser {
        let (seq, mask) = (canvas.sequence(), canvas.mask_token());
        let (needs, last, banned) = (Needs::default(), Vec::new(), vec![mask]);
        Chooser { order, needs, warp: seq.warp(), filtered: false, last, banned, mask, seed: seq.seed() }
    }
    /// Whether the whole row of logits is needed.
    fn whole(&self, guided: bool) -> bool {
        guided || (self.filtered && (!self.warp.keeps_all() || ![0.0, 1.0].contains(&self.warp.temperature)))
    }
    /// What is to be read to make guesses, with the probabilities of `asks`.
    pub fn readout(&self, asks: &[Token], guided: bool) -> Readout {
        if self.whole(guided) {
            return Readout::CHOICE.logits();
        }
        let asks: Vec<Token> = [self.mask].into_iter().chain(asks.iter().copied()).collect();
        let read = Readout::CHOICE.logprob().logprobs(asks);
        let gap = self.needs.gap || self.order == Order::Margin;
        let read = if gap { read.top(2 + self.banned.len()) } else { read };
        if gap || self.needs.entropy || self.order == Order::Entropy { read.stats() } else { read }
    }

    /// Look, and guess at places `about`.
    ///
    /// # Errors
    /// As [`Canvas::look`].
    pub async fn look(
        &self,
        canvas: &mut Canvas<'_>,
        guide: Option<&mut Guide<'_>>,
        look: Look,
        about: &[usize],
        asks: &[Token],
    ) -> Result<Vec<Guess>> {
        let noise = look.noise;
        let look = Look { read: self.readout(asks, guide.is_some()), about: Some(about.to_vec()), ..look };
        let Some(guide) = guide else {
            let view = canvas.look(look).await?;
            return Ok(about.iter().map(|&p| self.guess(view.at(p), p, noise)).collect());
        };
        let both = futures_util::future::join(canvas.look(look.clone()), guide.canvas.look(look)).await;
        let (with, without): (View, View) = (both.0?, both.1?);
        let guesses = about.iter().map(|&p| {
            let pairs = with.at(p).logits().iter().zip(without.at(p).logits());
            let away = |(&c, &u): (&f32, &f32)| {
                if c.is_finite() && u.is_finite() { u + (guide.weight + 1.0) * (c - u) } else { c }
            };
            let logits: Vec<f32> = pairs.map(away).collect();
            let seed = if noise == 0 { self.seed } else { pair(self.seed, noise) };
            let token = choose(&logits, &self.warp, Key::new(seed, p, Purpose::Sample));
            self.of_row(&logits, token, p, noise)
        });
        Ok(guesses.collect())
    }

    /// The guess at a place, from what was read with [`Chooser::readout`].
    pub fn guess(&self, seen: Seen<'_>, place: usize, noise: u64) -> Guess {
        if self.whole(false) {
            return self.of_row(seen.logits(), seen.choice(), place, noise);
        }
        let asked = seen.asked();
        let masked = f64::from(asked[0]).exp();
        // Log of what the mask token leaves to the others.
        let rest = (-masked).ln_1p();
        let share = |logprob: f64| Some((logprob - rest).exp().min(1.0)).filter(|p| p.is_finite()).unwrap_or(0.0);
        let token = seen.choice();
        let mut guess = Guess {
            place,
            token,
            prob: share(f64::from(seen.logprob())),
            entropy: 0.0,
            best: token,
            gap: 0.0,
            confidence: 0.0,
            asked: asked[1..].iter().map(|&l| share(f64::from(l))).collect(),
        };
        let mut margin = 0.0;
        let gap = self.needs.gap || self.order == Order::Margin;
        if gap || self.needs.entropy || self.order == Order::Entropy {
            let stats = seen.stats();
            let taken = if masked > 0.0 { masked * masked.ln() } else { 0.0 };
            let entropy = (f64::from(stats.entropy) + taken) / (1.0 - masked) + rest;
            guess.entropy = if entropy.is_finite() { entropy.max(0.0) } else { f64::INFINITY };
            if gap {
                let mut top =
                    seen.top().iter().filter(|t| !self.banned.contains(&t.0)).map(|&(t, l)| (t, f64::from(l)));
                if let (Some((best, first)), second) = (top.next(), top.next().map_or(f64::NEG_INFINITY, |t| t.1)) {
                    (guess.best, guess.gap) = (best, first - second);
                    margin = share(first - f64::from(stats.lse)) - share(second - f64::from(stats.lse));
                }
            }
        }
        guess.confidence = self.confidence(&guess, margin, noise);
        guess
    }
    /// The guess from a whole row of bent logits.
    fn of_row(&self, logits: &[f32], token: Token, place: usize, noise: u64) -> Guess {
        let warp = match self.filtered {
            true if self.warp.is_greedy() => Warp { temperature: 1.0, ..self.warp },
            true => self.warp,
            false => Warp { temperature: 1.0, ..Warp::GREEDY },
        };
        let allowed = |v: usize, l: f32| if self.banned.contains(&(v as Token)) { f32::NEG_INFINITY } else { l };
        let logits: Vec<f32> = logits.iter().enumerate().map(|(v, &l)| allowed(v, l)).collect();
        let law = warp.law(&logits);
        let two = |row: &[f32]| {
            row.iter().enumerate().fold((0, [f64::NEG_INFINITY; 2]), |(best, [a, b]), (v, &x)| match f64::from(x) {
                x if x > a => (v, [x, a]),
                x => (best, [a, b.max(x)]),
            })
        };
        let ((best, [first, second]), (_, [p, q])) = (two(&logits), two(&law));
        let entropy = -law.iter().map(|&p| f64::from(p)).filter(|&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>();
        let prob = f64::from(law[token as usize]);
        let gap = first - second;
        let mut guess =
            Guess { place, token, prob, entropy, best: best as Token, gap, confidence: 0.0, asked: Vec::new() };
        guess.confidence = self.confidence(&guess, p - q, noise);
        guess
    }
    fn confidence(&self, guess: &Guess, margin: f64, noise: u64) -> f64 {
        if self.last.contains(&guess.token) {
            return f64::NEG_INFINITY;
        }
        match self.order {
            Order::Confidence => guess.prob,
            Order::Margin => margin,
            Order::Entropy => -guess.entropy,
            Order::Random => Key::new(self.seed, guess.place, Purpose::Canvas).uniform(noise),
            Order::Sequential => -(guess.place as f64),
        }
    }
}
