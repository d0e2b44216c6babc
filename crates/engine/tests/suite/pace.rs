//! How often a reader who follows an answer is told.
use crate::common::strategies::*;
use omnidecode_engine::testing::networks;
use omnidecode_engine::*;
use std::time::Duration;

fn ask(strategy: Strategy) -> Request {
    Request::new(vec![3, 1, 4], strategy, Sampling { ignore_eos: true, ..Sampling::default() })
}

/// The deltas of an answer as its reader sees them.
fn deltas(pace: Duration) -> Vec<Vec<Token>> {
    let engine = Engine::start(Config { pace, ..Config::default() }, networks()).expect("starts");
    let mut handle = engine.submit(ask(plain()));
    let mut told = Vec::new();
    while let Some(event) = handle.next_event() {
        match event {
            Event::Delta(delta) => told.push(delta.tokens),
            Event::Done(_) => {}
            Event::Failed(error) => panic!("{error}"),
        }
    }
    told
}

#[test]
fn first_news_come_at_once_and_the_rest_in_its_pace() {
    let (each, paced) = (deltas(Duration::ZERO), deltas(Duration::from_secs(3600)));
    assert!(each.len() > 2, "{each:?}");
    assert_eq!(paced.len(), 2, "the first news, and what was left at the end: {paced:?}");
    assert_eq!(paced[0], each[0]);
    assert_eq!(paced.concat(), each.concat());
}

#[test]
fn nothing_is_kept_while_the_engine_sleeps() {
    let engine = Engine::start(Config { pace: Duration::from_secs(3600), ..Config::default() }, networks());
    let engine = engine.expect("starts");
    let strategy = Strategy::new("pauses", Guarantee::Approximate, |mut seq: Sequence| async move {
        for token in [5, 6, 7] {
            seq.next(Readout::CHOICE).await?;
            seq.push(token)?;
        }
        std::future::pending().await
    });
    let mut handle = engine.submit(ask(strategy));
    let mut told = Vec::new();
    while told.len() < 3 {
        match handle.next_timeout(Duration::from_secs(20)) {
            Some(Event::Delta(delta)) => told.extend(delta.tokens),
            other => panic!("{other:?} after {told:?}"),
        }
    }
    assert_eq!(told, [5, 6, 7]);
}
