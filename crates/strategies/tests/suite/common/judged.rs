//! Requests of searches, their texts and judges.
use crate::common::{config, options, request, together};
use omnidecode_core::noise::{pair, unit};
use omnidecode_engine::{Answer, Candidate, Detokenizer, Judge, Request, Sampling, TextStream, Token, Usage};
use omnidecode_strategies::params::Options;
use serde_json::Value;
use std::sync::Arc;

/// A letter a token; every eighth is half of a paragraph's end.
pub struct Letters;
impl Detokenizer for Letters {
    fn stream(&self) -> Box<dyn TextStream> {
        Box::new(Letters)
    }
}
impl TextStream for Letters {
    fn push(&mut self, token: Token, text: &mut String) {
        text.extend(if token % 8 == 3 { Some('\n') } else { char::from_u32(0x30 + token) });
    }
    fn finish(&mut self, _: &mut String) {}
}

pub type Scores = std::result::Result<Vec<f32>, String>;
pub fn each(score: impl Fn(&Candidate<'_>) -> f32 + Send + Sync + 'static) -> Arc<dyn Judge> {
    Arc::new(move |batch: &[Candidate<'_>]| -> Scores { Ok(batch.iter().map(&score).collect()) })
}
pub fn fair() -> Arc<dyn Judge> {
    each(|_| 0.5)
}
/// Any score, a function of the text.
pub fn whim() -> Arc<dyn Judge> {
    each(|c| unit(c.tokens.iter().fold(7, |h, &t| pair(h, u64::from(t)))) as f32)
}
/// A request with texts, and with the judge if its strategy asks one.
pub fn judged(name: &str, params: Value, prompt: &[Token], sampling: &Sampling, judge: &Arc<dyn Judge>) -> Request {
    let text: Arc<dyn Detokenizer> = Arc::new(Letters);
    let request = request(name, &options(params), prompt, sampling);
    let judge = request.strategy.judged.then(|| judge.clone());
    Request { judge, text: Some(text), ..request }
}
pub fn warm(seed: u64, most: usize) -> Sampling {
    Sampling { temperature: 1.5, seed, max_tokens: Some(most), ..Sampling::default() }
}
pub fn usage(answer: &Answer) -> &Usage {
    &answer.end.as_ref().expect("ended").usage
}
pub fn plain(prompt: &[Token], sampling: &Sampling) -> Answer {
    together(config(), vec![request("plain", &Options::new(), prompt, sampling)]).remove(0)
}
pub fn one(request: Request) -> Answer {
    together(config(), vec![request]).remove(0)
}
