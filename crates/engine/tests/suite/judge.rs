//! A judge that rides along a request; text of branches; notes and other texts.
use omnidecode_engine::testing::{Bench, networks};
use omnidecode_engine::{
    Answer, Candidate, Config, Detokenizer, Error, Guarantee, Judge, Readout, Reason, Request, Result, Sampling,
    Sequence, Strategy, TextStream, Token,
};
use std::future::Future;
use std::sync::Arc;

struct Letters;
impl Detokenizer for Letters {
    fn stream(&self) -> Box<dyn TextStream> {
        Box::new(Letters)
    }
}
impl TextStream for Letters {
    fn push(&mut self, token: Token, text: &mut String) {
        text.extend(char::from_u32(0x40 + token));
    }
    fn finish(&mut self, text: &mut String) {
        text.push('.');
    }
}

type Scores = std::result::Result<Vec<f32>, String>;

fn run<F, Fut>(sampling: Sampling, judge: Option<Arc<dyn Judge>>, f: F) -> Answer
where
    F: FnOnce(Sequence) -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>> + 'static,
{
    let strategy = Strategy::new("test", Guarantee::Approximate, f).judged(true);
    let text: Arc<dyn Detokenizer> = Arc::new(Letters);
    let request = Request { judge, text: Some(text), ..Request::new(vec![3, 1, 4], strategy, sampling) };
    let mut bench = Bench::new(Config::default(), networks()).expect("starts");
    let handle = bench.submit(request);
    bench.run();
    assert_eq!(bench.leftovers(), (0, 0, 0));
    handle.collect()
}
fn letters(tokens: &[Token]) -> String {
    let mut text = String::new();
    tokens.iter().for_each(|&t| Letters.push(t, &mut text));
    text
}

#[test]
fn judges_are_asked_in_batches_and_counted() {
    let judge: Arc<dyn Judge> = Arc::new(|batch: &[Candidate<'_>]| -> Scores {
        Ok(batch.iter().map(|c| c.tokens.len() as f32 + c.prompt.len() as f32 / 10.0).collect())
    });
    let answer = run(Sampling::default(), Some(judge), |seq| async move {
        let judge = seq.judge().expect("it came along");
        let fork = seq.fork(1);
        let of = |tokens| Candidate { prompt: fork.prompt(), question: "", tokens, text: "", finished: false };
        assert_eq!(fork.ask(&*judge, &[of(&[1, 2]), of(&[])])?, [2.3, 0.3]);
        fork.ask(&*judge, &[of(&[1])])?;
        Ok(())
    });
    let usage = answer.end.expect("ended").usage;
    assert_eq!((usage.judge_calls, usage.judged), (2, 3));

    let short: Arc<dyn Judge> = Arc::new(|_: &[Candidate<'_>]| -> Scores { Ok(Vec::new()) });
    let answer = run(Sampling::default(), Some(short), |seq| async move {
        let judge = seq.judge().expect("it came along");
        let of = Candidate { prompt: &[], question: "", tokens: &[], text: "", finished: true };
        seq.ask(&*judge, &[of]).map(drop)
    });
    assert!(matches!(answer.end, Err(Error::Strategy(_))), "{:?}", answer.end);
}

#[test]
fn branches_have_text_and_know_what_was_read() {
    let sampling = Sampling { max_tokens: Some(40), logprobs: Some(1), ..Sampling::default() };
    let answer = run(sampling, None, |mut seq| async move {
        assert!(seq.has_text() && !seq.is_bent());
        assert_eq!(seq.decode(&[1, 2]), "AB.");
        let first = seq.next(Readout::CHOICE).await?.root().choice();
        let mut fork = seq.fork(0);
        fork.push(first)?;
        let mut read = String::new();
        while !fork.finished() {
            read.push_str(&fork.text()[read.len()..]);
            assert_eq!(read, letters(fork.generated()), "text grows with the tokens");
            let next = fork.next(Readout::CHOICE).await?.root().choice();
            fork.push(next)?;
        }
        let told = fork.generated().strip_suffix(&[0]).unwrap_or(fork.generated());
        let told = letters(told);
        assert_eq!(fork.text(), told + ".", "the end of text has none");
        seq.offer(vec![7, 8, 0, 9], 0.5);
        seq.rate(0.75);
        seq.note("thought", 3, vec![(9, 0.25)]);
        seq.adopt(fork)
    });
    let end = answer.end.expect("ended");
    assert_eq!((end.others[0].score, end.notes[0].label, end.notes[0].place), (0.5, "thought", 3));
    let other = &end.others[0];
    assert_eq!((&other.tokens[..], other.reason), (&[7, 8, 0][..], Reason::Stop), "it ends where an answer would");
    assert_eq!((other.text.as_str(), end.score), (format!("{}.", letters(&[7, 8])).as_str(), Some(0.75)));
    assert!(answer.delta.logprobs.iter().all(|l| l.logprob.is_some()), "the first token was read by the parent");
}

#[test]
fn a_strategy_that_asks_no_judge_refuses_one() {
    let judge: Arc<dyn Judge> = Arc::new(|batch: &[Candidate<'_>]| -> Scores { Ok(vec![0.0; batch.len()]) });
    let strategy = Strategy::new("deaf", Guarantee::Exact, |_| async { Ok(()) });
    let request = Request { judge: Some(judge), ..Request::new(vec![3], strategy, Sampling::default()) };
    let mut bench = Bench::new(Config::default(), networks()).expect("starts");
    let handle = bench.submit(request);
    bench.run();
    assert_eq!(handle.collect().end, Err(Error::UnaskedJudge { strategy: "deaf".into() }));
    assert_eq!(bench.leftovers(), (0, 0, 0));
}

#[test]
fn stop_strings_end_the_text_of_branches() {
    let plain = |seq: Sequence| async move {
        let mut seq = seq;
        loop {
            let next = seq.next(Readout::CHOICE).await?.root().choice();
            if seq.push(next)?.is_none() {
                return Ok(());
            }
        }
    };
    let whole = run(Sampling::default(), None, plain).delta.text;
    let stop = whole[4..6].to_owned();
    let cut = whole.find(&stop).expect("inside");
    let sampling = Sampling { stop: vec![stop], ..Sampling::default() };
    let answer = run(sampling, None, move |seq| async move {
        let mut fork = seq.fork(0);
        while !fork.finished() {
            let next = fork.next(Readout::CHOICE).await?.root().choice();
            fork.push(next)?;
        }
        assert_eq!(fork.text().len(), cut);
        let mut seq = seq;
        seq.adopt(fork)
    });
    assert!(answer.end.is_ok(), "{:?}", answer.end);
    assert_eq!(answer.delta.text, whole[..cut]);
}
