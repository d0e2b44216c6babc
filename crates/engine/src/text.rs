//! Tokens become text, and stop strings end it.
use omnidecode_core::Token;

/// Makes text streams; shared by threads.
pub trait Detokenizer: Send + Sync {
    /// A stream at the beginning of an answer.
    fn stream(&self) -> Box<dyn TextStream>;
}

/// Text of one answer as its tokens come.
pub trait TextStream {
    /// One more token: append the text that is certain now (never half a character).
    fn push(&mut self, token: Token, text: &mut String);
    /// No more tokens: append what is left.
    fn finish(&mut self, text: &mut String);
}

/// The text of one sequence, and where a stop string cut it.
pub(crate) struct Text {
    stream: Box<dyn TextStream>,
    text: String,
    /// Tokens given to the stream so far.
    pub fed: usize,
    over: bool,
}

impl Text {
    pub fn new(detokenizer: &dyn Detokenizer) -> Self {
        Self { stream: detokenizer.stream(), text: String::new(), fed: 0, over: false }
    }
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// Count a token without its text (one that ends the answer).
    pub fn skip(&mut self) {
        self.fed += 1;
    }
    /// Append a token's text.
    pub fn push(&mut self, token: Token) -> usize {
        let from = self.text.len();
        self.fed += 1;
        if !self.over {
            self.stream.push(token, &mut self.text);
        }
        from
    }
    /// The stop string that appears first in what was appended at `from` or across it. The text is cut there.
    pub fn stop(&mut self, from: usize, stops: &[String], include: bool) -> Option<String> {
        let mut best: Option<(usize, &String)> = None;
        for stop in stops {
            let mut at = from.saturating_sub(stop.len() - 1);
            while !self.text.is_char_boundary(at) {
                at -= 1;
            }
            if let Some(found) = self.text[at..].find(stop.as_str()).map(|f| f + at)
                && best.is_none_or(|(b, s)| (found, usize::MAX - stop.len()) < (b, usize::MAX - s.len()))
            {
                best = Some((found, stop));
            }
        }
        let (at, stop) = best?;
        self.text.truncate(if include { at + stop.len() } else { at });
        self.over = true;
        Some(stop.clone())
    }
    /// No more tokens.
    pub fn finish(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            self.stream.finish(&mut self.text);
        }
    }
    /// Bytes that no later token can take back: all but a suffix that may yet become a stop string.
    pub fn safe(&self, stops: &[String]) -> usize {
        if self.over {
            return self.text.len();
        }
        let held = |stop: &String| {
            (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && self.text.ends_with(&stop[..n]))
        };
        self.text.len() - stops.iter().filter_map(held).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Letters;
    impl Detokenizer for Letters {
        fn stream(&self) -> Box<dyn TextStream> {
            Box::new(Letters)
        }
    }
    impl TextStream for Letters {
        fn push(&mut self, token: Token, text: &mut String) {
            text.extend(char::from_u32(token));
        }
        fn finish(&mut self, text: &mut String) {
            text.push('!');
        }
    }

    fn run(input: &str, stops: &[&str], include: bool) -> (String, Option<String>, Vec<usize>) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut text = Text::new(&Letters);
        let mut safe = Vec::new();
        for c in input.chars() {
            let from = text.push(c as u32);
            if let Some(hit) = text.stop(from, &stops, include) {
                text.finish();
                return (text.as_str().into(), Some(hit), safe);
            }
            safe.push(text.safe(&stops));
        }
        text.finish();
        (text.as_str().into(), None, safe)
    }

    #[test]
    fn cuts_at_the_stop_and_holds_back_its_beginning() {
        assert_eq!(run("abcd", &["cd"], false), ("ab".into(), Some("cd".into()), vec![1, 2, 2]));
        assert_eq!(run("abcd", &["cd"], true).0, "abcd");
        assert_eq!(run("abce", &["cd"], false), ("abce!".into(), None, vec![1, 2, 2, 4]));
        assert_eq!(run("xaab", &["aab", "ab"], false).0, "x", "the first match from the left");
        assert_eq!(run("zéé", &["éé"], false), ("z".into(), Some("éé".into()), vec![1, 1]));
        assert_eq!(run("ééq", &["éq"], false).0, "é");
    }
}
