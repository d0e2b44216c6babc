//! What a text answers, and votes over answers.
use super::branch::Branch;
use crate::params::ParamError;
use omnidecode_engine::Token;
use regex::Regex;

/// The answer of a text: what texts vote for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// Normalised text.
    Text(String),
    /// The tokens, where there is no text.
    Tokens(Vec<Token>),
    /// The rule found none.
    None,
}

/// How answers are read out of texts.
pub enum Extraction {
    /// The whole text.
    Whole,
    /// The last match of a pattern: its first group, if it has one.
    Last(Regex),
}

impl Extraction {
    /// Out of the parameter `pattern`.
    ///
    /// # Errors
    /// What is wrong with the pattern.
    pub fn parse(owner: &str, name: &str, pattern: &str) -> Result<Extraction, ParamError> {
        if pattern.is_empty() {
            return Ok(Extraction::Whole);
        }
        compile(owner, name, pattern).map(Extraction::Last)
    }
    /// The answer of a branch, white space taken off (its own and around it).
    pub fn answer(&self, branch: &mut Branch) -> Answer {
        if matches!(self, Extraction::Whole) && !branch.seq.has_text() {
            return Answer::Tokens(branch.tokens().to_vec());
        }
        let text = branch.seq.text().trim();
        let found = match self {
            Extraction::Whole => Some(text),
            Extraction::Last(pattern) => {
                pattern.captures_iter(text).last().and_then(|m| m.get(1).or_else(|| m.get(0))).map(|m| m.as_str())
            }
        };
        match found {
            Some(found) => Answer::Text(found.split_whitespace().collect::<Vec<_>>().join(" ")),
            None => Answer::None,
        }
    }
}

/// A pattern out of a parameter.
///
/// # Errors
/// What is wrong with it.
pub fn compile(owner: &str, name: &str, pattern: &str) -> Result<Regex, ParamError> {
    Regex::new(pattern).map_err(|e| ParamError::Bad {
        owner: owner.into(),
        name: name.into(),
        expected: format!("a regular expression ({e})"),
        found: pattern.into(),
    })
}

/// The answer with most weight, the first of equals; texts without answer do not vote as long as one has one.
pub fn vote(answers: &[Answer], weights: &[f64]) -> Answer {
    let mut sums: Vec<(&Answer, f64)> = Vec::new();
    for (answer, weight) in answers.iter().zip(weights).filter(|(a, _)| **a != Answer::None) {
        match sums.iter_mut().find(|(a, _)| *a == answer) {
            Some((_, sum)) => *sum += weight,
            None => sums.push((answer, *weight)),
        }
    }
    let best = super::branch::best(sums.iter().map(|s| s.1));
    sums.get(best).map_or(Answer::None, |(answer, _)| (*answer).clone())
}

#[cfg(test)]
mod tests {
    use super::{Answer, Extraction, vote};

    #[test]
    fn votes() {
        let [a, b] = ["a", "b"].map(|t| Answer::Text(t.into()));
        let all = [b.clone(), a.clone(), Answer::None, a.clone(), Answer::None, Answer::None];
        assert_eq!(vote(&all, &[1.0; 6]), a, "texts without an answer have no voice");
        assert_eq!(vote(&all, &[2.5, 1.0, 9.0, 1.0, 0.0, 0.0]), b);
        assert_eq!(vote(&[b.clone(), a], &[1.0, 1.0]), b, "the first of equals");
        assert_eq!(vote(&[Answer::None], &[1.0]), Answer::None);
        assert!(Extraction::parse("self-consistency", "pattern", "(").is_err());
    }
}
