//! Scores of branches, in batches: by a judge that came with the request, a rule, a second model, or the model itself.
use super::answers::compile;
use super::branch::Branch;
use super::countdown;
use crate::params::ParamError;
use futures_util::future::try_join_all;
use omnidecode_core::noise::{Key, Purpose, pair};
use omnidecode_engine::{Candidate, Error, Judge, KvAction, Plan, Readout, Result, Row, Rows, Sequence, Token};
use regex::Regex;
use std::sync::Arc;

/// Which judge, as parameters say it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Name of the kind.
    pub judge: String,
    /// For `regex`.
    pub pattern: String,
    /// For `model`: tag tokens.
    pub suffix: Vec<usize>,
    /// For `model`: good verdict.
    pub good: Option<usize>,
    /// For `model`: bad verdict.
    pub bad: Option<usize>,
    /// Share of scores replaced by noise.
    pub noise: f64,
}

impl Settings {
    /// Whether the judge that comes with the request is asked.
    pub fn asks_request(&self) -> bool {
        matches!(self.judge.as_str(), "auto" | "request")
    }
    /// What must hold between them.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(&self, owner: &str) -> Result<(), ParamError> {
        if self.judge == "regex" {
            compile(owner, "judge_pattern", &self.pattern)?;
        }
        if self.judge == "model" && self.good.is_none() {
            return Err(ParamError::Bad {
                owner: owner.into(),
                name: "judge_good".into(),
                expected: "a token, as the judge is a model".into(),
                found: "null".into(),
            });
        }
        Ok(())
    }
}

#[expect(clippy::large_enum_variant, reason = "one a request")]
enum Kind {
    Callable(Arc<dyn Judge>),
    Confidence,
    Pattern(Regex),
    Countdown,
    Model { root: Sequence, suffix: Vec<Row>, tokens: Vec<Token> },
}

/// What the judge model has computed of a branch.
pub struct Mind(Sequence);
impl Mind {
    /// The same for a fork of the branch.
    pub fn fork(&self) -> Mind {
        Mind(self.0.fork(0))
    }
}

/// A judge at work on one request.
pub struct Judging {
    kind: Kind,
    question: String,
    noise: f64,
    seed: u64,
}

impl Judging {
    /// Make ready.
    ///
    /// # Errors
    /// [`Error::Strategy`] when the request lacks what the judge reads, [`Error::NoModel`] without a judge model.
    pub fn open(seq: &Sequence, settings: &Settings) -> Result<Judging> {
        let lacks = |what: &str| Error::Strategy(format!("the judge `{}` needs {what}", settings.judge));
        let kind = match (settings.judge.as_str(), seq.judge()) {
            ("auto" | "request", Some(judge)) => Kind::Callable(judge),
            ("request", None) => return Err(lacks("a judge given with the request")),
            ("regex" | "countdown", _) if !seq.has_text() => return Err(lacks("text: a request with a tokenizer")),
            ("regex", _) => Kind::Pattern(Regex::new(&settings.pattern).map_err(|e| Error::Strategy(e.to_string()))?),
            ("countdown", _) => Kind::Countdown,
            ("model", _) => {
                let model = seq.require("judge")?;
                let (mine, vocab) = (seq.card().vocab, seq.card_of(model).vocab);
                if mine != vocab {
                    return Err(lacks(&format!("a vocabulary of {mine} as the main model has, not {vocab}")));
                }
                let asked = [settings.good, settings.bad];
                Kind::Model {
                    root: seq.sibling(model),
                    suffix: settings.suffix.iter().map(|&t| Row::Token(t as Token)).collect(),
                    tokens: asked.into_iter().flatten().map(|t| t as Token).collect(),
                }
            }
            _ => Kind::Confidence,
        };
        let question = seq.decode(seq.prompt());
        Ok(Judging { kind, question, noise: settings.noise, seed: seq.seed() })
    }

    /// One score a branch, appended to its scores: one batch, one call.
    ///
    /// # Errors
    /// What the judge fails with.
    pub async fn score(&mut self, seq: &Sequence, branches: &mut [Branch]) -> Result<()> {
        if branches.is_empty() {
            return Ok(());
        }
        let scores = match &mut self.kind {
            Kind::Confidence => branches.iter().map(|b| b.mean_logprob().exp()).collect(),
            Kind::Callable(judge) => {
                let judge = judge.clone();
                let found = self.batch(seq, branches, |batch| seq.ask(&*judge, batch))?;
                found.into_iter().map(f64::from).collect()
            }
            Kind::Pattern(pattern) => {
                seq.count_judged(branches.len());
                branches.iter_mut().map(|b| f64::from(u8::from(pattern.is_match(b.seq.text())))).collect()
            }
            Kind::Countdown => {
                seq.count_judged(branches.len());
                let question = &self.question;
                let rule = |b: &mut Branch| countdown::judge(question, b.seq.text(), b.done);
                branches.iter_mut().map(rule).collect()
            }
            Kind::Model { root, suffix, tokens } => {
                seq.count_judged(branches.len());
                consult(root, suffix, tokens, branches).await?
            }
        };
        for (branch, score) in branches.iter_mut().zip(scores) {
            branch.scores.push(self.blur(branch, score));
        }
        Ok(())
    }
    fn batch<T>(&self, seq: &Sequence, branches: &mut [Branch], f: impl FnOnce(&[Candidate<'_>]) -> T) -> T {
        let texts: Vec<String> = branches.iter_mut().map(|b| b.seq.text().to_owned()).collect();
        let candidates: Vec<Candidate<'_>> = branches
            .iter()
            .zip(&texts)
            .map(|(branch, text)| Candidate {
                prompt: seq.prompt(),
                question: &self.question,
                tokens: branch.tokens(),
                text,
                finished: branch.done,
            })
            .collect();
        f(&candidates)
    }
    /// Noise in place of some scores, keyed by the text: asked twice, a judge says the same.
    fn blur(&self, branch: &Branch, score: f64) -> f64 {
        if self.noise == 0.0 {
            return score;
        }
        let text = branch.tokens().iter().fold(self.seed, |hash, &token| pair(hash, u64::from(token)));
        let key = Key::new(text, branch.seq.len(), Purpose::Search);
        if key.uniform(0) < self.noise { key.uniform(1) } else { score }
    }
}

/// Ask the judge model: the probability of the good token at the end of each text, against the bad one if there is one.
async fn consult(root: &mut Sequence, suffix: &[Row], tokens: &[Token], branches: &mut [Branch]) -> Result<Vec<f64>> {
    if root.len() > 1 && branches.iter().all(|b| b.mind.is_none()) {
        root.prefill().await?; // once for all
    }
    for branch in branches.iter_mut() {
        let mind = branch.mind.get_or_insert_with(|| Mind(root.fork(0)));
        mind.0.follow(&branch.seq);
    }
    let read = Readout::default().logprobs(tokens);
    let plan = Plan::rows(suffix.to_vec(), Default::default(), read).kv(KvAction::Discard).at_rows(Rows::Last);
    let minds = branches.iter_mut().filter_map(|b| b.mind.as_mut());
    let seen = try_join_all(minds.map(|mind| mind.0.forward(plan.clone()))).await?;
    let score = |out: &omnidecode_engine::Outcome| {
        let at = if suffix.is_empty() { out.root() } else { out.row(suffix.len() - 1) };
        match *at.asked() {
            [good, bad] => 1.0 / (1.0 + f64::from(bad - good).exp()),
            [good, ..] => f64::from(good).exp(),
            [] => 0.0,
        }
    };
    Ok(seen.iter().map(score).collect())
}

/// What the scores of a text's steps are worth together; 0 without steps.
pub fn aggregate(how: &str, scores: &[f64]) -> f64 {
    match (how, scores) {
        (_, []) => 0.0,
        ("min", _) => scores.iter().copied().fold(f64::INFINITY, f64::min),
        ("prod", _) => scores.iter().product(),
        (_, [.., last]) => *last,
    }
}
