//! Requests live and die in every way; nothing is left behind, and nobody else notices.
use crate::common::strategies::*;
use crate::common::*;
use omnidecode_core::noise::mix;
use omnidecode_engine::testing::{Bench, TableNetwork, networks};
use omnidecode_engine::*;
use std::sync::Arc;
use std::time::Duration;

fn any(r: u64) -> Strategy {
    let n = EXACT.len() as u64;
    let i = (r >> 16) % (n + OTHERS.len() as u64);
    if i < n { EXACT[i as usize].1() } else { OTHERS[(i - n) as usize]() }
}

/// 10 000 requests with random strategies, cancelled at random moments, in a pool far too small.
#[test]
fn random_lives_leave_nothing() {
    let mut b = bench(Config { pages: 24, tail: 40, chunk: 16, budget: 128, ..Config::default() });
    let (mut alive, mut done, mut cancelled, mut failed) = (Vec::new(), 0, 0, 0);
    let mut i = 0u64;
    while i < 10_000 || !alive.is_empty() {
        let r = mix(i * 31 + alive.len() as u64 + done as u64 * 7 + cancelled as u64 * 13);
        if i < 10_000 && alive.len() < 24 {
            alive.push(b.submit(request(i, any(r), (r % 2) as f32, r.is_multiple_of(5))));
            i += 1;
        }
        if r.is_multiple_of(4) && !alive.is_empty() {
            drop(alive.swap_remove((r >> 8) as usize % alive.len()));
            cancelled += 1;
        }
        b.turn();
        alive.retain_mut(|h| {
            loop {
                match h.try_next() {
                    Some(Event::Delta(_)) => {}
                    Some(Event::Done(_)) => {
                        done += 1;
                        return false;
                    }
                    Some(Event::Failed(e)) => {
                        assert!(matches!(e, Error::OutOfPages { .. } | Error::OutOfTail { .. }), "{e}");
                        failed += 1;
                        return false;
                    }
                    None => return true,
                }
            }
        });
    }
    b.run();
    println!("done {done}, cancelled {cancelled}, failed {failed}, {:?}", b.stats());
    assert!(done > 4000 && cancelled > 500 && b.stats().evictions > 100);
    assert_empty(&mut b, 24);
}

/// The same across threads: submit and drop from four threads while the engine runs.
#[test]
fn cancelled_from_other_threads() {
    let engine = Engine::start(Config { pages: 64, ..Config::default() }, networks()).unwrap();
    std::thread::scope(|s| {
        for t in 0..4u64 {
            let engine = &engine;
            s.spawn(move || {
                for i in 0..250u64 {
                    let r = mix(t << 32 | i);
                    let mut h = engine.submit(request(i, any(r), 1.0, false));
                    match r % 3 {
                        0 => drop(h),
                        1 => drop((h.next_event(), h)),
                        _ => drop(h.collect()),
                    }
                }
            });
        }
    });
    while engine.stats().running + engine.stats().waiting > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let s = engine.shutdown();
    assert_eq!((s.pages_used, s.tail_used, s.running, s.waiting), (0, 0, 0, 0), "{s:?}");
}

fn custom<F, Fut>(f: F) -> Strategy
where
    F: FnOnce(Sequence) -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>> + 'static,
{
    Strategy::new("custom", Guarantee::Approximate, f)
}

#[test]
fn a_bad_request_hurts_only_itself() {
    let mut b = bench(Config { pages: 8, tail: 32, ..Config::default() });
    let good = b.submit(request(3, plain(), 0.0, false));
    let run = |s: Strategy| b.submit(request(5, s, 0.0, false));
    let with = |change: &dyn Fn(&mut Request)| {
        let mut r = request(5, plain(), 0.0, false);
        change(&mut r);
        b.submit(r)
    };
    let plan = |plan: fn() -> Plan| run(custom(move |mut seq| async move { seq.forward(plan()).await.map(drop) }));
    let panics = run(custom(|mut seq| async move {
        seq.next(Readout::CHOICE).await?;
        panic!("a bug in a strategy");
    }));
    let drops_badly = run(custom(|mut seq| async move {
        struct Bad;
        impl Drop for Bad {
            fn drop(&mut self) {
                panic!("a bug in a drop");
            }
        }
        let _bad = Bad;
        seq.next(Readout::CHOICE).await?;
        std::future::pending().await
    }));
    let unread = run(custom(|mut seq| async move {
        let seen = seq.next(Readout::STATS).await?;
        seq.push(seen.root().choice()).map(drop)
    }));
    let not_in_flight = run(custom(|mut seq| async move { seq.accept(&Verdict { path: vec![3], next: 1 }).map(drop) }));
    let wrong_path = run(custom(|mut seq| async move {
        seq.forward(Plan::chain(&[1, 2, 3], Readout::CHOICE)).await?;
        seq.accept(&Verdict { path: vec![0, 2], next: 1 }).map(drop)
    }));
    let no_model = run(custom(|seq| async move { seq.require("oracle").map(drop) }));
    let own = run(custom(|_| async { Err(Error::Strategy("no".into())) }));
    let plans = [
        plan(|| Plan::chain(&[999], Readout::CHOICE)),
        plan(|| Plan::rows(vec![Row::Token(1); 2], Mask::Tree(vec![ROOT]), Readout::CHOICE)),
        plan(|| Plan::rows(vec![Row::Token(1); 2], Mask::Copies(3), Readout::CHOICE)),
        plan(|| Plan::rows(vec![Row::Embedding([0.0; 3].into())], Mask::Causal, Readout::CHOICE)),
        plan(|| Plan::rows(vec![Row::Embedding([f32::NAN; 5].into())], Mask::Causal, Readout::CHOICE)),
        plan(|| Plan::chain(&[1], Readout::CHOICE).layers(0..9)),
        plan(|| Plan::chain(&[1], Readout::CHOICE).layers(0..1)),
        plan(|| Plan::chain(&[1], Readout::NOTHING).layers(1..2)),
        plan(|| Plan::chain(&[1], Readout::CHOICE).kv(KvAction::Extend)),
        plan(|| Plan::chain(&[1], Readout::CHOICE).kv(KvAction::Rerun(0))),
        plan(|| Plan::chain(&[1], Readout::CHOICE).kv(KvAction::Overwrite)),
        plan(|| Plan::window(&[1, 2], 4000, KvAction::Overwrite, Readout::CHOICE)),
        plan(|| Plan::chain(&[1, 2], Readout::CHOICE).offsets(vec![1, 0])),
        plan(|| Plan::chain(&[1, 2], Readout::CHOICE).positions(vec![1])),
        plan(|| Plan::chain(&[1], Readout::CHOICE).keep(vec![(5, 3)])),
        plan(|| Plan::chain(&[1], Readout::CHOICE).at_rows(Rows::These(vec![1]))),
        plan(|| Plan::chain(&[1], Readout::CHOICE).leave(4000)),
        plan(|| Plan::chain(&[1], Readout::CHOICE).offsets(vec![5000])),
        plan(|| Plan::next(Readout::NOTHING.logprobs([64]))),
        plan(|| Plan::next(Readout::NOTHING.hidden(3))),
    ];
    let too_wide = plan(|| Plan::chain(&[1; 33], Readout::CHOICE));
    let huge = with(&|r| r.prompt = vec![1; 300].into());
    let empty = with(&|r| r.prompt = vec![].into());
    let long = with(&|r| r.prompt = vec![1; 4096].into());
    let alien = with(&|r| r.prompt = vec![64].into());
    let samplings: Vec<_> = [
        |s: &mut Sampling| s.temperature = -1.0,
        |s: &mut Sampling| s.temperature = f32::NAN,
        |s: &mut Sampling| s.top_p = 0.0,
        |s: &mut Sampling| s.min_p = 1.5,
        |s: &mut Sampling| s.typical_p = 0.0,
        |s: &mut Sampling| s.repetition_penalty = 0.0,
        |s: &mut Sampling| s.presence_penalty = 3.0,
        |s: &mut Sampling| s.frequency_penalty = f32::INFINITY,
        |s: &mut Sampling| s.logit_bias = vec![(1, f32::NAN)],
        |s: &mut Sampling| s.bad_words = vec![vec![]],
        |s: &mut Sampling| s.allowed_token_ids = Some(vec![]),
        |s: &mut Sampling| s.stop = vec![String::new()],
        |s: &mut Sampling| (s.min_tokens, s.max_tokens) = (5, Some(4)),
        |s: &mut Sampling| s.logprobs = Some(65),
    ]
    .into_iter()
    .map(|change| with(&|r| change(&mut r.sampling)))
    .collect();
    let ids = with(&|r| r.sampling.stop_token_ids = vec![64]);
    b.run();
    assert_eq!(good.collect().delta.tokens, oracle(&request(3, plain(), 0.0, false), &prompt(3)).0);
    let end = |mut h: Handle| {
        loop {
            match h.try_next() {
                Some(Event::Delta(_)) => {}
                Some(Event::Done(_)) => return Ok(()),
                Some(Event::Failed(e)) => return Err(e),
                None => panic!("still pending"),
            }
        }
    };
    assert_eq!(end(panics), Err(Error::Panicked("a bug in a strategy".into())));
    assert!(matches!(end(unread), Err(Error::Panicked(_))));
    for h in [not_in_flight, wrong_path] {
        let e = end(h);
        assert!(matches!(&e, Err(Error::Sequence(_))), "{e:?}");
    }
    assert_eq!(end(no_model), Err(Error::NoModel { role: "oracle".into(), have: vec!["main".into(), "draft".into()] }));
    assert_eq!(end(own), Err(Error::Strategy("no".into())));
    for (i, h) in plans.into_iter().enumerate() {
        let e = end(h);
        let ok = |e: &Error| {
            matches!(e, Error::Plan(_) | Error::Mask(_) | Error::UnknownToken { .. } | Error::ContextFull { .. })
        };
        assert!(e.as_ref().is_err_and(ok), "plan {i}: {e:?}");
    }
    assert_eq!(end(too_wide), Err(Error::OutOfTail { need: 33, have: 32 }));
    assert_eq!(end(huge), Err(Error::OutOfPages { need: 10, have: 8 }));
    assert_eq!(end(empty), Err(Error::EmptyPrompt));
    assert_eq!(end(long), Err(Error::PromptTooLong { tokens: 4096, context: 4096 }));
    assert_eq!(end(alien), Err(Error::UnknownToken { token: 64, vocab: 64 }));
    for (i, h) in samplings.into_iter().enumerate() {
        let e = end(h);
        assert!(matches!(e, Err(Error::Sampling { .. })), "sampling {i}: {e:?}");
    }
    assert_eq!(end(ids), Err(Error::UnknownToken { token: 64, vocab: 64 }));
    // The one that waits for ever is cancelled; its drop panics, and that is its own affair.
    assert_eq!(b.leftovers().0, 1);
    drops_badly.cancel();
    b.run();
    assert_eq!(end(drops_badly), Err(Error::Panicked("a bug in a drop".into())));
    assert_empty(&mut b, 8);
}

/// NaN activations, a network's refusal and its panic fail the request whose rows caused them; the others of the same
/// batched forward go on to the same tokens.
#[test]
fn a_bad_row_fails_its_request_only() {
    let make = || {
        let mut network = TableNetwork::new(7, 11);
        (network.poison, network.bomb, network.taboo) = (Some(60), Some(61), Some(62));
        vec![NamedNetwork::new("main", Box::new(network))]
    };
    let mut b = Bench::new(Config::default(), make()).unwrap();
    let clean = |i: u64| {
        // (strategies that draft no banned token)
        let mut r = request(i, [plain, lookup][i as usize % 2](), 1.0, i % 4 < 2);
        r.sampling.bad_words = vec![vec![60], vec![61], vec![62]];
        r.prompt = prompt(i).into_iter().map(|t| t % 60).collect::<Vec<_>>().into();
        r
    };
    let hs: Vec<_> = (0..24).map(|i| b.submit(clean(i))).collect();
    let bad: Vec<_> = [60, 61, 62, 60]
        .into_iter()
        .map(|t| {
            let mut r = request(9, plain(), 0.0, false);
            r.prompt = vec![4, 5, t, 6].into();
            b.submit(r)
        })
        .collect();
    b.run();
    for (i, h) in hs.into_iter().enumerate() {
        let mut alone = Bench::new(Config::default(), make()).unwrap();
        let want = alone.submit(clean(i as u64));
        alone.run();
        let (got, want) = (h.collect(), want.collect());
        assert_eq!(got.delta, { Delta { origins: got.delta.origins.clone(), ..want.delta } }, "{:?}", got.end);
        assert!(got.end.is_ok() && want.end.is_ok());
    }
    let ends: Vec<_> = bad.into_iter().map(|h| h.collect().end.unwrap_err()).collect();
    assert_eq!(ends[0], Error::NotFinite { layer: 1 });
    assert!(matches!(&ends[1], Error::Panicked(_)));
    assert_eq!(ends[2], Error::Unsupported("token 62".into()));
    assert_eq!(ends[3], Error::NotFinite { layer: 1 });
    assert_empty(&mut b, 1024);
}

/// A processor that panics, wherever it does.
#[test]
fn a_bad_processor_fails_its_request_only() {
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        Start,
        Fork,
        Advance,
        Bend,
    }
    struct Bad(At);
    struct State(At, u32);
    impl LogitsProcessor for Bad {
        fn start(&self, _: &[Token]) -> Box<dyn ProcessorState> {
            assert!(self.0 != At::Start, "start");
            Box::new(State(self.0, 0))
        }
    }
    impl ProcessorState for State {
        fn fork(&self) -> Box<dyn ProcessorState> {
            assert!(self.0 != At::Fork, "fork");
            Box::new(State(self.0, self.1))
        }
        fn advance(&mut self, _: Token) {
            self.1 += 1;
            assert!(self.0 != At::Advance || self.1 < 3, "advance");
        }
        fn bend(&self, _: usize, _: &mut [f32]) {
            assert!(self.0 != At::Bend || self.1 < 3, "bend");
        }
    }
    let mut b = bench(Config::default());
    let good: Vec<_> = (0..9).map(|i| b.submit(request(i, recycling(), 0.0, true))).collect();
    let bad: Vec<_> = [At::Start, At::Fork, At::Advance, At::Bend]
        .map(|at| {
            let mut r = request(7, recycling(), 0.0, false);
            (r.sampling.max_tokens, r.sampling.ignore_eos) = (Some(30), true);
            r.processors.push(Arc::new(Bad(at)));
            b.submit(r)
        })
        .into();
    b.run();
    for (h, want) in bad.into_iter().zip(["start", "fork", "advance", "bend"]) {
        assert_eq!(h.collect().end.unwrap_err(), Error::Panicked(want.into()));
    }
    for (i, h) in good.into_iter().enumerate() {
        let r = request(i as u64, plain(), 0.0, true);
        assert_eq!(h.collect().delta.tokens, oracle(&r, &prompt(i as u64)).0);
    }
    assert_empty(&mut b, 1024);
}

/// A forward given up half way (a race lost) leaves the sequence as it was.
#[test]
fn a_forward_dropped_on_the_way_changes_nothing() {
    use futures_util::future::{Either, select};
    let mut b = bench(Config { chunk: 4, ..Config::default() });
    let race = custom(|mut seq| async move {
        while !seq.finished() {
            let mut rival = seq.fork(1);
            rival.rollback(1)?;
            // the rival's forward is shorter (prefill comes in chunks) and wins; ours is dropped in the middle
            let ours = Box::pin(seq.forward(Plan::chain(&[1, 2, 3], Readout::CHOICE)));
            let theirs = Box::pin(rival.next(Readout::CHOICE));
            if let Either::Left((out, _)) = select(ours, theirs).await {
                out?;
            }
            let seen = seq.next(Readout::CHOICE).await?;
            seq.push(seen.root().choice())?;
        }
        Ok(())
    });
    let h = b.submit(request(8, race, 0.0, false));
    b.run();
    assert_eq!(h.collect().delta.tokens, oracle(&request(8, plain(), 0.0, false), &prompt(8)).0);
    assert_empty(&mut b, 1024);
}

/// A strategy may await what is not a forward (a tool, a judge on another thread) while others go on.
#[test]
fn waits_for_another_thread() {
    let engine = Engine::start(Config::default(), networks()).unwrap();
    let (tx, rx) = futures_util::channel_oneshot();
    let waits = engine.submit(request(
        9,
        custom(move |mut seq| async move {
            let token = rx.await;
            seq.push(token).map(drop)
        }),
        0.0,
        false,
    ));
    let other = engine.submit(request(9, plain(), 0.0, false));
    assert!(other.collect().end.is_ok());
    tx(42);
    assert_eq!(waits.collect().delta.tokens, [42]);
    assert_eq!(engine.shutdown().pages_used, 0);
}

/// One value from one thread to another, to be awaited.
mod futures_util {
    pub use ::futures_util::*;
    use std::sync::{Arc, Mutex};
    use std::task::{Poll, Waker};
    type Cell = Arc<Mutex<(Option<u32>, Option<Waker>)>>;
    pub fn channel_oneshot() -> (impl FnOnce(u32), impl Future<Output = u32> + Send) {
        let cell: Cell = Arc::default();
        let far = cell.clone();
        let send = move |v| {
            let mut c = far.lock().unwrap();
            c.0 = Some(v);
            c.1.take().into_iter().for_each(Waker::wake);
        };
        let receive = std::future::poll_fn(move |cx| {
            let mut c = cell.lock().unwrap();
            c.1 = Some(cx.waker().clone());
            c.0.map_or(Poll::Pending, Poll::Ready)
        });
        (send, receive)
    }
}

#[test]
fn shutdown_fails_what_is_pending() {
    let engine = Engine::start(Config { max_running: 1, ..Config::default() }, networks()).unwrap();
    let forever = || {
        custom(|mut seq| async move {
            seq.next(Readout::CHOICE).await?;
            std::future::pending().await
        })
    };
    let running = engine.submit(request(1, forever(), 0.0, false));
    let waiting = engine.submit(request(2, plain(), 0.0, false));
    while engine.stats().running == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let stats = engine.shutdown();
    assert_eq!((running.collect().end, waiting.collect().end), (Err(Error::Shutdown), Err(Error::Shutdown)));
    assert_eq!((stats.pages_used, stats.running, stats.waiting), (0, 0, 0));
}

#[test]
fn too_many_are_refused_and_cancelled_ones_make_room() {
    let mut b = bench(Config { max_running: 1, max_waiting: 2, ..Config::default() });
    let hs: Vec<_> = (0..4).map(|i| b.submit(request(i, plain(), 0.0, false))).collect();
    b.turn(); // four wait, two of them too many
    let mut hs = hs.into_iter();
    let (first, second) = (hs.next().unwrap(), hs.next().unwrap());
    assert!(hs.all(|h| h.collect().end == Err(Error::Busy { waiting: 2 })));
    second.cancel();
    b.run();
    assert_eq!(second.collect().end.unwrap().reason, Reason::Abort);
    assert!(first.collect().end.is_ok());
    assert_empty(&mut b, 1024);
}

#[test]
fn an_engine_needs_sane_sizes_and_roles() {
    let start = |config, networks| Engine::start(config, networks).map(drop);
    assert!(matches!(start(Config::default(), vec![]), Err(Error::Config(_))));
    assert!(matches!(start(Config { pages: 0, ..Config::default() }, networks()), Err(Error::Config(_))));
    let twice = networks().into_iter().chain(networks()).collect();
    assert!(matches!(start(Config::default(), twice), Err(Error::Config(_))));
}
