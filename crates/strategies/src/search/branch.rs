//! Branches of a search, grown side by side.
use super::judging::Mind;
use futures_util::future::try_join_all;
use omnidecode_engine::{Readout, Result, Sequence, Token};

/// One sequence of a search.
pub struct Branch {
    /// Its tokens and pages.
    pub seq: Sequence,
    /// What the judge model keeps of it.
    pub mind: Option<Mind>,
    /// Sum of the log-probabilities of its tokens, under the raw model.
    pub logprob: f64,
    /// Scores of its steps, in their order.
    pub scores: Vec<f64>,
    /// Nothing will follow.
    pub done: bool,
}

impl Branch {
    /// The request itself as a branch: its noise is that of plain decoding.
    pub fn root(seq: &Sequence) -> Branch {
        Branch { seq: seq.fork(0), mind: None, logprob: 0.0, scores: Vec::new(), done: seq.finished() }
    }
    /// Another branch from here on. Role 0 keeps the noise.
    pub fn fork(&self, role: u64) -> Branch {
        Branch {
            seq: self.seq.fork(role),
            mind: self.mind.as_ref().map(Mind::fork),
            logprob: self.logprob,
            scores: self.scores.clone(),
            done: self.done,
        }
    }
    /// Tokens after the prompt.
    pub fn tokens(&self) -> &[Token] {
        self.seq.generated()
    }
    /// Mean log-probability a token; 0 for no token.
    pub fn mean_logprob(&self) -> f64 {
        self.logprob / self.tokens().len().max(1) as f64
    }
    /// Score of the last step, 0 when there is none.
    pub fn last(&self) -> f64 {
        self.scores.last().copied().unwrap_or(0.0)
    }
}

/// Where a step ends: behind a text, behind a token, or after so many tokens.
#[derive(Clone, Debug, Default)]
pub struct Boundary {
    /// Text that ends a step; empty for none.
    pub text: String,
    /// Tokens that end a step.
    pub tokens: Vec<Token>,
    /// Most tokens of a step.
    pub most: usize,
}
impl Boundary {
    /// Whether a branch that began this step at so many tokens and bytes ends it here.
    fn ends(&self, branch: &mut Branch, tokens: usize, bytes: usize) -> bool {
        let made = branch.tokens();
        if made.len() - tokens >= self.most || made.last().is_some_and(|t| self.tokens.contains(t)) {
            return true;
        }
        // A boundary may lie inside a token or across two; the step ends with the token that completes it.
        !self.text.is_empty() && branch.seq.text().get(bytes..).is_some_and(|new| new.contains(&self.text))
    }
}

/// Sample every branch that is not done up to its next boundary or its end: one batched forward a token. Gives the
/// number of tokens.
///
/// # Errors
/// As [`Sequence::forward`].
pub async fn grow(branches: &mut [Branch], boundary: &Boundary) -> Result<usize> {
    let mut active: Vec<(&mut Branch, usize, usize)> = Vec::new();
    for branch in branches.iter_mut().filter(|b| !b.done) {
        let bytes = if boundary.text.is_empty() { 0 } else { branch.seq.text().len() };
        let tokens = branch.tokens().len();
        active.push((branch, tokens, bytes));
    }
    let mut tokens = 0;
    while !active.is_empty() {
        let seen = try_join_all(active.iter_mut().map(|(b, ..)| b.seq.next(Readout::CHOICE.logprob()))).await?;
        for ((branch, ..), out) in active.iter_mut().zip(&seen) {
            let root = out.root();
            branch.done = branch.seq.push(root.choice())?.is_none();
            branch.logprob += f64::from(root.logprob());
            tokens += 1;
        }
        active.retain_mut(|(branch, tokens, bytes)| !branch.done && !boundary.ends(branch, *tokens, *bytes));
    }
    Ok(tokens)
}

/// `n` branches of one prompt, computed once; the first has the noise of plain decoding.
///
/// # Errors
/// As [`Sequence::forward`].
pub async fn spread(seq: &mut Sequence, n: usize) -> Result<Vec<Branch>> {
    if n > 1 && seq.len() > 1 {
        seq.prefill().await?;
    }
    let root = Branch::root(seq);
    let mut branches: Vec<Branch> = (1..n as u64).map(|role| root.fork(role)).collect();
    branches.insert(0, root);
    Ok(branches)
}

/// Hand in the branch that was chosen, with its score; what else was found is told with its own.
///
/// # Errors
/// As [`Sequence::adopt`].
pub fn hand_in(seq: &mut Sequence, chosen: Branch, score: f64, others: &[(Vec<Token>, f64)]) -> Result<()> {
    seq.adopt(chosen.seq)?;
    seq.rate(score);
    others.iter().for_each(|(tokens, score)| seq.offer(tokens.clone(), *score));
    Ok(())
}

/// The largest score, the first of equals.
pub fn best(scores: impl IntoIterator<Item = f64>) -> usize {
    let mut found = (0, f64::NEG_INFINITY);
    for (i, score) in scores.into_iter().enumerate() {
        if score > found.1 {
            found = (i, score);
        }
    }
    found.0
}
