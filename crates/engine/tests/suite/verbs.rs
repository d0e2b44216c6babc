//! Every verb does what its line says.
use crate::common::strategies::*;
use crate::common::*;
use omnidecode_core::law::log_sum_exp;
use omnidecode_engine::testing::{Bench, MASK, TableNetwork};
use omnidecode_engine::*;
use omnidecode_models::Bias;
use std::sync::Arc;

/// Run one strategy alone; its assertions fail the test through its error.
fn run<F, Fut>(config: Config, r: Request, f: F) -> Answer
where
    F: FnOnce(Sequence) -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>> + 'static,
{
    let pages = config.pages;
    let mut b = bench(config);
    let h = b.submit(Request { strategy: Strategy::new("test", Guarantee::Approximate, f), ..r });
    b.run();
    let answer = h.collect();
    assert_empty(&mut b, pages);
    answer
}
fn alone<F, Fut>(f: F) -> Answer
where
    F: FnOnce(Sequence) -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>> + 'static,
{
    let r = Request {
        prompt: (0..45).map(|i| 1 + i * i % 47).collect::<Vec<_>>().into(),
        ..request(11, plain(), 0.0, false)
    };
    let answer = run(Config { chunk: 16, ..Config::default() }, r, f);
    assert!(answer.end.is_ok(), "{:?}", answer.end);
    answer
}
async fn logits(seq: &mut Sequence) -> Result<Vec<f32>> {
    Ok(seq.next(Readout::LOGITS).await?.root().logits().to_vec())
}

#[test]
fn forks_share_pages_and_prefixes_are_found() {
    let long: Vec<Token> = (0..200).map(|i| 1 + i % 50).collect();
    let mut b = bench(Config::default());
    let forks = |n: u64| {
        Strategy::new("forks", Guarantee::Approximate, move |mut seq| async move {
            seq.prefill().await?;
            let kids: Vec<_> = (0..n).map(|i| seq.fork(i)).collect();
            futures_util::future::pending::<()>().await;
            drop(kids);
            Ok(())
        })
    };
    let h = b.submit(Request::new(long.clone(), forks(50), Sampling::default()));
    b.run();
    assert_eq!(b.stats().pages_used, 7, "199 rows are 7 pages, however many forks");
    h.cancel();
    b.run();
    let usage = h.collect().end.unwrap().usage;
    assert_eq!((usage.rows, usage.cached_tokens, usage.prompt_tokens), (199, 0, 200));
    let rows = |b: &mut Bench, salt: Option<u64>| {
        let mut r = Request::new(long.clone(), plain(), Sampling { max_tokens: Some(1), ..Sampling::default() });
        r.salt = salt;
        let h = b.submit(r);
        b.run();
        let usage = h.collect().end.unwrap().usage;
        (usage.rows, usage.cached_tokens)
    };
    assert_eq!(rows(&mut b, Some(0)), (8, 192), "six pages came from the cache");
    assert_eq!(rows(&mut b, Some(1)), (200, 0), "another salt shares nothing");
    assert_eq!(rows(&mut b, None), (200, 0));
    assert_empty(&mut b, 1024);
}

#[test]
fn log_probabilities_are_of_the_raw_model_for_every_strategy() {
    let ask = |i: u64, strategy: Strategy| {
        let mut r = request(i, strategy, 1.0, true);
        r.sampling.logprobs = Some(3);
        r
    };
    let mut b = bench(Config { pages: 40, tail: 40, chunk: 9, ..Config::default() });
    for i in 0..40 {
        let makes = EXACT.iter().map(|e| e.1).chain([draft_model as Make]);
        let hs: Vec<_> = makes.map(|make| b.submit(ask(i, make()))).collect();
        b.run();
        for (k, h) in hs.into_iter().enumerate() {
            let answer = h.collect();
            let (mut tokens, d) = (prompt(i), answer.delta);
            assert_eq!(d.logprobs.len(), d.tokens.len());
            for (l, &token) in d.logprobs.iter().zip(&d.tokens) {
                let raw = {
                    let context = tokens.clone();
                    let mut r = request(i, plain(), 0.0, false);
                    (r.prompt, r.sampling.max_tokens) = (context.into(), Some(1));
                    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
                    let out = seen.clone();
                    run(Config::default(), r, move |mut seq| async move {
                        *out.lock().unwrap() = logits(&mut seq).await?;
                        Ok(())
                    });

                    seen.lock().unwrap().clone()
                };
                let lse = log_sum_exp(&raw);
                let got = l.logprob.unwrap_or_else(|| panic!("strategy {k}, prompt {i}: token {token} has none"));
                assert!((got - (raw[token as usize] - lse)).abs() < 1e-4, "strategy {k}: {got}");
                let max = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!((l.token, l.top.len()), (token, 3));
                assert!((l.top[0].1 - (max - lse)).abs() < 1e-4 && l.top[0].1 >= l.top[1].1);
                tokens.push(token);
            }
        }
    }
}

#[test]
fn streaming_never_takes_back() {
    let mut b = bench(Config::default());
    for i in 0..60 {
        let mut r = request(i * 4, recycling(), 1.0, false);
        r.sampling.max_tokens = Some(40);
        let (_, want) = oracle(&r, &prompt(i * 4));
        let mut h = b.submit(r);
        let mut text = String::new();
        while b.turn() {
            while let Some(Event::Delta(d)) = h.try_next() {
                text.push_str(&d.text);
                assert!(want.starts_with(&text), "{text:?} is no beginning of {want:?}");
            }
        }
        text.push_str(&h.collect().delta.text);
        assert_eq!(text, want);
    }
}

#[test]
fn the_end_says_why() {
    let mut b = bench(Config::default());
    let mut end = |change: &dyn Fn(&mut Sampling)| {
        let mut r = Request::new(prompt(2), plain(), Sampling { max_tokens: Some(60), ..Sampling::default() });
        r.text = Some(Arc::new(Letters));
        change(&mut r.sampling);
        let h = b.submit(r);
        b.run();
        let answer = h.collect();
        let finish = answer.end.unwrap();
        assert_eq!(finish.usage.generated, answer.delta.tokens.len());
        (finish.reason, finish.stop_reason, answer.delta)
    };
    let (reason, stop, all) = end(&|s| s.ignore_eos = true);
    assert_eq!((reason, stop, all.tokens.len()), (Reason::Length, None, 60));
    let third = all.tokens[2];
    let first_at = all.tokens.iter().position(|&t| t == third).unwrap();
    let (reason, stop, cut) = end(&|s| s.stop_token_ids = vec![third]);
    assert_eq!((reason, stop), (Reason::Stop, Some(StopReason::Token(third))));
    assert_eq!(cut.tokens, all.tokens[..=first_at]);
    assert_eq!(cut.text, all.tokens[..first_at].iter().map(|&t| word(t)).collect::<String>());
    let (_, _, kept) = end(&|s| (s.stop_token_ids, s.include_stop_str_in_output) = (vec![third], true));
    assert_eq!(kept.text, all.tokens[..=first_at].iter().map(|&t| word(t)).collect::<String>());
    let needle: String = all.text.chars().skip(10).take(4).collect();
    let (reason, stop, cut) = end(&|s| (s.stop, s.ignore_eos) = (vec![needle.clone()], true));
    assert_eq!((reason, stop), (Reason::Stop, Some(StopReason::Text(needle.clone()))));
    assert_eq!(Some(cut.text.len()), all.text.find(&needle));
    let (_, _, later) = end(&|s| (s.stop_token_ids, s.min_tokens, s.ignore_eos) = (vec![third], 20, true));
    assert!(later.tokens.len() > 20 && !later.tokens[..20].contains(&third));
    // The context ends what max_tokens does not.
    let small = TableNetwork::new(7, 11).with_card(|c| c.context = 50);
    let mut b = Bench::new(Config::default(), vec![NamedNetwork::new("main", Box::new(small))]).unwrap();
    for make in [plain as Make, lookup, recycling] {
        let s = Sampling { max_tokens: None, ignore_eos: true, ..Sampling::default() };
        let h = b.submit(Request::new(vec![3; 20], make(), s));
        b.run();
        let answer = h.collect();
        assert_eq!((answer.delta.tokens.len(), answer.end.unwrap().reason), (30, Reason::Length));
    }
}

#[test]
fn vectors_stand_for_tokens() {
    alone(|mut seq| async move {
        let net = TableNetwork::new(7, 11);
        let want = {
            let mut twin = seq.fork(0);
            twin.extend(17)?;
            twin.extend(21)?;
            logits(&mut twin).await?
        };
        let mut by_debt = seq.fork(0);
        by_debt.extend_vector(net.embedding(17))?;
        by_debt.extend(21)?;
        assert_eq!(logits(&mut by_debt).await?, want);
        assert_eq!(by_debt.tokens()[by_debt.len() - 2], LATENT);
        // accepted from flight, then given up and computed anew
        let row = Row::Embedding(net.embedding(17).into());
        seq.forward(Plan::rows(vec![row], Mask::Causal, Readout::CHOICE)).await?;
        seq.accept(&Verdict { path: vec![0], next: 0 })?;
        assert_eq!((seq.generated(), seq.room()), (&[LATENT][..], seq.sampling().max_tokens.unwrap()));
        let mut twin = seq.fork(0);
        twin.extend(21)?;
        assert_eq!(logits(&mut twin).await?, want);
        let mix = |parts: &[(Token, f32)]| vec![Row::Mix(parts.into())];
        let hard = seq.forward(Plan::rows(mix(&[(21, 1.0)]), Mask::Causal, Readout::LOGITS)).await?;
        assert_eq!(hard.row(0).logits(), want);
        let soft = seq.forward(Plan::rows(mix(&[(21, 0.5), (3, 0.5)]), Mask::Causal, Readout::LOGITS)).await?;
        assert_ne!(soft.row(0).logits(), want);
        assert!(matches!(seq.extend(3), Err(Error::Sequence(_))), "the answer has begun");
        assert!(matches!(twin.extend_vector(vec![1.0]), Err(Error::Plan(_))));
        Ok(())
    });
    // A prompt with a vector is the prompt with its token, but shares no prefix.
    let mut prompt = Prompt::default();
    for &t in &crate::common::prompt(11) {
        if t == 9 { prompt.push_vector(TableNetwork::new(7, 11).embedding(t)) } else { prompt.push(t) }
    }
    let mut r = request(11, plain(), 0.0, false);
    let want = oracle(&r, &crate::common::prompt(11)).0;
    r.prompt = prompt;
    let mut b = bench(Config { pages: 12, chunk: 5, ..Config::default() });
    let h = b.submit(r);
    b.run();
    assert_eq!(h.collect().delta.tokens, want);
}

#[test]
fn readings_say_the_same_however_asked() {
    alone(|mut seq| async move {
        let n = seq.len();
        let asked = [3, 9];
        let read = Readout::CHOICE.logprob().top(4).stats().logprobs(asked).logits().hidden(2).hidden(0);
        let all = seq.forward(Plan::chain(&[5, 6], read.clone()).at_rows(Rows::All)).await?;
        assert_eq!((all.places(), all.len()), (0..n, n + 2));
        for i in 0..n + 2 {
            let seen = if i < n { all.place(i).unwrap() } else { all.row(i - n) };
            let lse = log_sum_exp(seen.logits());
            assert!((seen.stats().lse - lse).abs() < 1e-5);
            assert_eq!((seen.top()[0].0, seen.top().len()), (seen.stats().argmax, 4));
            assert_eq!(seen.choice(), seen.stats().argmax);
            assert!((seen.asked()[1] - (seen.logits()[9] - lse)).abs() < 1e-5);
            assert!((seen.logprob() - (seen.stats().max - lse)).abs() < 1e-5);
            assert_eq!(seen.hidden().len(), 2 * testing::HIDDEN);
        }
        assert!(all.place(n).is_none());
        let own = seq.forward(Plan::chain(&[5, 6], read.clone())).await?;
        assert_eq!(own.len(), 3);
        assert_eq!(own.root().logits(), all.root().logits());
        assert_eq!(own.row(1).hidden(), all.row(1).hidden());
        let last = seq.forward(Plan::chain(&[5, 6], read.clone()).at_rows(Rows::Last)).await?;
        assert_eq!((last.len(), last.row(1).logits()), (1, all.row(1).logits()));
        let these = seq.forward(Plan::chain(&[5, 6, 7], read).at_rows(Rows::These(vec![0, 2]))).await?;
        assert_eq!((these.len(), these.row(0).logits()), (2, all.row(0).logits()));
        Ok(())
    });
}

#[test]
fn committed_rows_can_be_hidden() {
    alone(|mut seq| async move {
        seq.next(Readout::NOTHING).await?;
        let n = seq.len() as u32;
        let rows = || Plan::chain(&[5], Readout::LOGITS).without_root();
        let all = seq.forward(rows()).await?.row(0).logits().to_vec();
        let kept = seq.forward(rows().keep(vec![(0, n)])).await?.row(0).logits().to_vec();
        let less = seq.forward(rows().keep(vec![(0, 2), (4, n)])).await?.row(0).logits().to_vec();
        assert_eq!(all, kept);
        assert_ne!(all, less);
        let gone = seq.forward(rows().keep(vec![(0, 2), (2, n)])).await?.row(0).logits().to_vec();
        assert_eq!(all, gone, "adjacent ranges are one");
        Ok(())
    });
}

#[test]
fn copies_of_a_window_do_not_see_each_other() {
    alone(|mut seq| async move {
        seq.next(Readout::NOTHING).await?;
        let window = |tokens: &[Token], mask: Mask| {
            let rows = tokens.iter().map(|&t| Row::Token(t)).collect();
            Plan::rows(rows, mask, Readout::LOGITS).without_root().kv(KvAction::Discard)
        };
        let both = seq.forward(window(&[5, 6, 7, 8], Mask::Copies(2))).await?;
        for (k, tokens) in [[5, 6], [7, 8]].iter().enumerate() {
            let one = seq.forward(window(tokens, Mask::Full)).await?;
            for i in 0..2 {
                assert_eq!(both.row(2 * k + i).logits(), one.row(i).logits());
            }
        }
        let bits = Mask::Bits(Bits::from_fn(4, 4, |i, j| i / 2 == j / 2));
        let offsets = seq.forward(window(&[5, 6, 7, 8], bits).offsets(vec![0, 1, 0, 1])).await?;
        assert_eq!(offsets.row(3).logits(), both.row(3).logits());
        let causal = seq.forward(window(&[5, 6], Mask::Block(1))).await?;
        let chain = seq.forward(window(&[5, 6], Mask::Causal)).await?;
        assert_eq!(causal.row(1).logits(), chain.row(1).logits());
        Ok(())
    });
}

/// Overwriting rows and looking without keeping see the same; both equal a forward over everything from nothing.
#[test]
fn windows_equal_dense_forwards() {
    alone(|mut seq| async move {
        let n = seq.len();
        let mut canvas = seq.canvas(0..n + 6)?;
        let places = canvas.places();
        let dense = |refresh| Look::full(places.clone(), refresh, Readout::LOGITS);
        let first = canvas.look(dense(false)).await?;
        let kept = canvas.look(dense(true)).await?;
        for i in 0..places.len() {
            assert_eq!(first.at(i).logits(), kept.at(i).logits());
        }
        canvas.commit(n + 1, 7, 0.5)?;
        // the window alone over fresh rows of everything else is not the dense forward: rows outside are stale ...
        let window = canvas.look(Look::full(n..n + 6, false, Readout::LOGITS)).await?;
        let anew = canvas.look(dense(true)).await?;
        assert_ne!(window.at(n + 2).logits(), anew.at(n + 2).logits());
        // ... and is, once they have been computed with the window as it is.
        let again = canvas.look(Look::full(n..n + 6, true, Readout::LOGITS)).await?;
        let dense = canvas.look(dense(false)).await?;
        let same = |i: usize| again.at(n + i).logits() == dense.at(n + i).logits();
        assert!((0..6).all(same));
        assert_eq!(canvas.masked(0..n + 6), [n, n + 2, n + 3, n + 4, n + 5]);
        Ok(())
    });
}

#[test]
fn a_canvas_keeps_its_word() {
    let answer = alone(|mut seq| async move {
        let n = seq.len();
        assert!(matches!(seq.canvas(n + 1..n + 5).map(drop), Err(Error::Sequence(_))));
        let mut canvas = seq.canvas(n..n + 4)?;
        canvas.look(Look::full(n..n + 4, true, Readout::NOTHING)).await?;
        assert!(matches!(canvas.commit(n, MASK, 1.0), Err(Error::Sequence(_))), "the mask token is never said");
        assert!(matches!(canvas.commit(n - 1, 5, 1.0), Err(Error::Sequence(_))), "the prompt is given");
        assert!(matches!(canvas.settle(n + 1), Err(Error::Sequence(_))), "undecided");
        canvas.commit(n + 1, 30, 0.9)?;
        canvas.commit(n, 31, 0.8)?;
        canvas.remask(n)?;
        canvas.commit(n, 32, 0.7)?;
        assert!(canvas.settle(n + 2)?);
        assert!(matches!(canvas.remask(n), Err(Error::Sequence(_))), "settled");
        canvas.expand(3)?;
        assert_eq!(canvas.open_places(), n + 2..n + 7);
        canvas.truncate(n + 5)?;
        canvas.look(Look::full(n + 2..n + 5, true, Readout::STATS)).await?;
        canvas.fill(n + 3, 33)?;
        assert_eq!((canvas.masked(n..n + 5), canvas.history().len()), (vec![n + 2], 6));
        drop(canvas);
        assert_eq!(seq.generated(), [32, 30], "what was not settled is gone");
        let seen = seq.forward(Plan::chain(&[1], Readout::CHOICE).without_root()).await?;
        assert_eq!(seen.len(), 1);
        Ok(())
    });
    assert_eq!(answer.delta.tokens, [32, 30]);
    assert!(answer.delta.origins.iter().all(|o| o.source == Source::Canvas && o.forward == 3));
    let no_mask = TableNetwork::new(7, 11).with_card(|c| c.mask = None);
    let mut b = Bench::new(Config::default(), vec![NamedNetwork::new("main", Box::new(no_mask))]).unwrap();
    let h = b.submit(request(1, blocks(4, 0.5), 0.0, false));
    b.run();
    assert!(matches!(h.collect().end, Err(Error::Sequence(_))));
}

#[test]
fn prompts_of_block_models_see_whole_blocks() {
    let block = TableNetwork::new(7, 11).with_card(|c| (c.block, c.shift) = (Some(8), 0));
    let make = |config: Config| Bench::new(config, vec![NamedNetwork::new("main", Box::new(block.clone()))]).unwrap();
    let mut answers = Vec::new();
    for (chunk, budget) in [(128, 1000), (8, 1000), (5, 1000), (13, 40)] {
        let mut b = make(Config { chunk, budget, ..Config::default() });
        let hs: Vec<_> = (0..3)
            .map(|_| {
                let mut r = request(5, blocks(8, 0.3), 0.0, false);
                r.prompt = (0..40).map(|i| 1 + i % 9).collect::<Vec<_>>().into();
                r.sampling.max_tokens = Some(32);
                b.submit(r)
            })
            .collect();
        b.run();
        answers.extend(hs.into_iter().map(|h| h.collect().delta.tokens));
        assert_empty(&mut b, 1024);
    }
    assert!(answers.iter().all(|a| *a == answers[0]), "{answers:?}");
}

#[test]
fn edits_bend_one_request_only() {
    let edited =
        || Some(Arc::new(Edits { biases: vec![Bias { layer: 0, head: 0, place: 0, add: 1.0 }], clamps: vec![] }));
    let mut b = bench(Config::default());
    let ask = |edits| Request { edits, ..request(12, lookup(), 0.0, false) };
    let hs = [None, edited(), None, edited()].map(|e| b.submit(ask(e)));
    b.run();
    let got = hs.map(|h| h.collect().delta.tokens);
    assert_eq!(got[0], oracle(&request(12, plain(), 0.0, false), &prompt(12)).0);
    assert_eq!((&got[0], &got[1]), (&got[2], &got[3]));
    assert_ne!(got[0], got[1]);
}

#[test]
fn costs_can_be_fixed_measured_and_learned() {
    let fixed = Config { cost: Cost::Fixed(vec![(1, 1.0), (8, 1.7)]), ..Config::default() };
    let answer = run(fixed, request(11, plain(), 0.0, false), |mut seq| async move {
        seq.next(Readout::NOTHING).await?;
        assert_eq!((seq.cost(1), seq.cost(8)), (1.0, 1.7));
        Ok(())
    });
    assert!(answer.end.is_ok());
    let mut slow = TableNetwork::new(7, 11);
    slow.delay = Some(500);
    let config = Config { cost: Cost::Measured { rows: vec![1, 2, 4, 8], context: 64 }, ..Config::default() };
    let mut b = Bench::new(config, vec![NamedNetwork::new("main", Box::new(slow))]).unwrap();
    let h = b.submit(Request {
        strategy: Strategy::new("test", Guarantee::Exact, |seq| async move {
            let cost = seq.cost(8);
            if cost > 3.0 { Ok(()) } else { Err(Error::Strategy(format!("8 rows cost {cost}"))) }
        }),
        ..request(11, plain(), 0.0, false)
    });
    b.run();
    assert_eq!(h.collect().end.map(|f| f.reason), Ok(Reason::Stop));
}

#[test]
fn what_was_said_is_not_rolled_back_and_only_its_continuation_adopted() {
    let answer = alone(|mut seq| async move {
        let before = seq.fork(1);
        seq.push(20)?;
        assert!(matches!(seq.rollback(seq.prompt().len()), Err(Error::Sequence(_))));
        assert!(matches!(seq.adopt(before), Err(Error::Sequence(_))));
        let mut branch = seq.fork(2);
        branch.push(21)?;
        branch.push(22)?;
        branch.rollback(branch.len() - 1)?;
        branch.push(23)?;
        assert_ne!(branch.seed(), seq.seed());
        seq.adopt(branch)?;
        seq.push(24).map(drop)
    });
    assert_eq!(answer.delta.tokens, [20, 21, 23, 24]);
    assert_eq!(answer.delta.text, [20, 21, 23, 24].map(word).concat());
    assert_eq!(answer.delta.origins.iter().map(|o| o.branch).collect::<Vec<_>>(), [0, 2, 2, 2]);
}

#[test]
fn usage_is_exact() {
    let answer = alone(|mut seq| async move {
        let n = seq.len();
        seq.prefill().await?;
        let seen = seq.forward(Plan::chain(&[30, 31, 32], Readout::CHOICE)).await?;
        assert_eq!(seen.len(), 4);
        let next = seq.accept(&Verdict { path: vec![0, 1], next: 33 })?;
        seq.push(next)?;
        let u = seq.usage();
        assert_eq!((u.forwards, u.nfe, u.rows, u.row_layers), (4, 4, n - 1 + 4, 2 * (n - 1 + 4)));
        assert_eq!((u.drafted, u.accepted, u.generated, u.host_reads), (3, 2, 3, 1));
        assert_eq!((u.host_bytes, u.rows_by_model), (4 * 8, vec![n + 3, 0]));
        seq.next(Readout::NOTHING).await?;
        assert_eq!((seq.usage().rows, seq.usage().host_reads), (n + 4, 1), "accepted rows are not run again");
        Ok(())
    });
    assert_eq!(answer.delta.tokens, [30, 31, 33]);
    let depth: Vec<_> = answer.delta.origins.iter().map(|o| (o.source, o.depth, o.forward)).collect();
    assert_eq!(depth, [(Source::Draft, 1, 4), (Source::Draft, 2, 4), (Source::Target, 0, 4)]);
}

#[test]
fn async_readers_are_woken() {
    use std::task::{Context, Poll, Wake, Waker};
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let engine = Engine::start(Config::default(), testing::networks()).unwrap();
    let mut h = engine.submit(request(3, plain(), 0.0, false));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut tokens = Vec::new();
    let end = loop {
        match h.poll_next(&mut cx) {
            Poll::Pending => std::thread::park(),
            Poll::Ready(Some(Event::Delta(d))) => tokens.extend(d.tokens),
            Poll::Ready(other) => break other,
        }
    };
    assert!(matches!(end, Some(Event::Done(_))));
    assert_eq!(tokens, oracle(&request(3, plain(), 0.0, false), &prompt(3)).0);
    assert!(h.is_over() && h.next_event().is_none());
}
