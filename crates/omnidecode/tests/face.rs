//! The Rust face on real weights: the model that `OMNIDECODE_TEST_GGUF` names (`make test` sets it).
use omnidecode::engine::{Reason, StopReason};
use omnidecode::{Error, Guarantee, Llm, Message, Options, Readout, Sampling, Strategy, answer_seed};

fn llm() -> Option<Llm> {
    let Ok(path) = std::env::var("OMNIDECODE_TEST_GGUF") else {
        eprintln!("OMNIDECODE_TEST_GGUF is not set: nothing to run on");
        return None;
    };
    Some(Llm::builder(path).context(1024).open().expect("the test model opens"))
}

#[test]
fn text_in_text_out() {
    let Some(llm) = llm() else { return };
    let sampling = Sampling { max_tokens: Some(24), ..Sampling::default() };
    let question = [Message::user("List five animals that live in the sea, one per line.")];
    let plain = llm.chat(&question, "plain", sampling.clone()).expect("plain decoding");
    let fast = llm.chat(&question, "token-recycling", sampling.clone()).expect("token recycling");
    assert_eq!((&plain.delta.tokens, &plain.delta.text), (&fast.delta.tokens, &fast.delta.text));
    assert_eq!(fast.end.expect("it ends").guarantee, Guarantee::Exact);

    let mut stream = llm.chat_stream(&question, "plain", sampling.clone()).expect("a stream");
    let text: String = stream.by_ref().map(|delta| delta.expect("a delta").text).collect();
    assert_eq!(text, plain.delta.text);
    assert_eq!(stream.finish().expect("it has ended").reason, Reason::Length);

    let stop = Sampling { stop: vec!["9, 1".into()], ..sampling };
    let cut = llm.generate("1, 2, 3, 4,", "token-recycling", stop).expect("an answer");
    assert!(cut.delta.text.ends_with("8, "), "{:?}", cut.delta.text);
    assert_eq!(cut.end.expect("it ends").stop_reason, Some(StopReason::Text("9, 1".into())));
}

#[test]
fn logits_scores_and_a_strategy_of_ones_own() {
    let Some(llm) = llm() else { return };
    let vocab = llm.card().vocab;
    let prompt = llm.tokenizer().encode("The capital of France is", true).expect("token ids");
    let logits = llm.logits(prompt.clone()).expect("logits");
    assert_eq!(logits.len(), prompt.len() * vocab);
    let last = &logits[logits.len() - vocab..];
    let best = (0..vocab).fold(0, |best, i| if last[i] > last[best] { i } else { best }) as u32;
    let lse = last.iter().map(|&l| f64::from(l - last[best as usize]).exp()).sum::<f64>().ln();
    let score = llm.score(prompt.clone(), vec![best]).expect("a score")[0];
    assert!((f64::from(score) + lse).abs() < 1e-3, "{score} against {}", -lse);

    let own = Strategy::new("own", Guarantee::Exact, |mut seq| async move {
        while !seq.finished() {
            let seen = seq.next(Readout::CHOICE).await?;
            seq.push(seen.root().choice())?;
        }
        Ok(())
    });
    let sampling = Sampling { max_tokens: Some(4), ..Sampling::default() };
    let request = llm.request_with(prompt.clone(), own, sampling.clone(), true).expect("a request");
    let answer = llm.submit(request).collect();
    assert_eq!(answer.delta.tokens[0], best);
    let plain = llm.request(prompt, "plain", &Options::new(), sampling).expect("a request");
    assert_eq!(llm.submit(plain).collect().delta.tokens, answer.delta.tokens);
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(llm) = llm() else { return };
    let ask = |prompt: Vec<u32>, name: &str, sampling| llm.request(prompt, name, &Options::new(), sampling);
    assert!(matches!(ask(vec![1], "magic", Sampling::default()), Err(Error::Strategy(_))));
    assert!(matches!(ask(vec![], "plain", Sampling::default()), Err(Error::Engine(_))));
    assert!(matches!(ask(vec![1; 1024], "plain", Sampling::default()), Err(Error::Engine(_))));
    assert!(matches!(ask(vec![u32::MAX], "plain", Sampling::default()), Err(Error::Engine(_))));
    let hot = Sampling { temperature: -1.0, ..Sampling::default() };
    assert!(matches!(ask(vec![1], "plain", hot), Err(Error::Engine(_))));
    let path = std::env::var("OMNIDECODE_TEST_GGUF").expect("set");
    assert!(matches!(Llm::builder(&path).context(1 << 30).open(), Err(Error::Context { .. })));
    assert!(matches!(Llm::open("/no/such/model.gguf"), Err(Error::Model(_))));
    assert_eq!((answer_seed(5, 0), answer_seed(5, 1) != answer_seed(5, 2)), (5, true));
}
