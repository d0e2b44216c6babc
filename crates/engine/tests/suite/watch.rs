//! What a reader sees while an answer is made, a canvas too.
use crate::common::strategies::plain;
use crate::common::*;
use omnidecode_engine::testing::MASK;
use omnidecode_engine::*;

/// The changes of a canvas that is committed to, remasked, expanded and settled.
fn marks(watch: bool) -> (Vec<Delta>, Vec<(usize, Token, u32, f32)>) {
    let decode = Strategy::new("test", Guarantee::Approximate, |mut seq| async move {
        let mut canvas = seq.canvas(3..5)?;
        canvas.commit(4, 30, 0.9)?;
        canvas.look(Look::full(3..5, true, Readout::NOTHING)).await?;
        canvas.remask(4)?;
        canvas.commit(3, 31, 0.8)?;
        canvas.settle(4)?;
        canvas.look(Look::full(4..5, true, Readout::NOTHING)).await?;
        canvas.expand(1)?;
        canvas.fill(4, 32)?;
        canvas.settle(6).map(drop)
    });
    let mut bench = bench(Config::default());
    let mut handle = bench.submit(Request { watch, ..Request::new(vec![5, 6, 7], decode, Sampling::default()) });
    bench.run();
    let mut deltas = Vec::new();
    while let Some(event) = handle.try_next() {
        match event {
            Event::Delta(delta) => deltas.push(delta),
            end => assert!(matches!(end, Event::Done(_)), "{end:?}"),
        }
    }
    let all = deltas.iter().flat_map(|d| &d.marks).map(|m| (m.place, m.token, m.forward, m.confidence)).collect();
    (deltas, all)
}

#[test]
fn marks_are_told_as_they_are_made() {
    let (deltas, told) = marks(true);
    let expected = [
        (3, MASK, 0, 0.0),
        (4, MASK, 0, 0.0),
        (4, 30, 0, 0.9),
        (4, MASK, 1, 0.0),
        (3, 31, 1, 0.8),
        (5, MASK, 2, 0.0),
        (4, 32, 2, 1.0),
        (5, 32, 2, 1.0),
    ];
    assert_eq!(told, expected);
    let per: Vec<(usize, usize)> = deltas.iter().map(|d| (d.marks.len(), d.tokens.len())).collect();
    assert_eq!(per, [(3, 0), (2, 1), (3, 2)], "each forward tells what was decided before it");
}

#[test]
fn nobody_who_did_not_ask_is_told() {
    let (deltas, told) = marks(false);
    assert_eq!(told, []);
    assert_eq!(deltas.iter().map(|d| d.tokens.len()).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn who_wants_the_whole_is_told_at_the_end() {
    for whole in [false, true] {
        let mut b = bench(Config::default());
        let mut r = request(0, plain(), 1.0, false);
        (r.sampling.max_tokens, r.sampling.ignore_eos) = (Some(8), true);
        let (want, text) = oracle(&r, &prompt(0));
        let mut h = b.submit(r);
        if whole {
            h.whole();
        }
        b.run();
        let events: Vec<Event> = std::iter::from_fn(|| h.try_next()).collect();
        assert_eq!(events.len() == 2, whole, "{events:?}");
        let said = events.iter().filter_map(|e| if let Event::Delta(d) = e { Some(d) } else { None });
        let (tokens, texts): (Vec<_>, Vec<_>) = said.map(|d| (d.tokens.clone(), d.text.clone())).unzip();
        assert_eq!((tokens.concat(), texts.concat()), (want, text));
        assert!(matches!(events.last(), Some(Event::Done(_))));
    }
}
