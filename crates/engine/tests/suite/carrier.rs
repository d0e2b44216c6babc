//! Carriers: passing plans on is being absent; a bend is what a processor is, at every row; marks follow the answer.

use crate::common::{request, strategies as s};
use omnidecode_engine::testing::{Bench, networks};
use omnidecode_engine::{
    Answer, Bend, Carriage, Carried, Carrier, Config, Error, LogitsProcessor, Plan, Plans, ProcessorState, Request,
    Result, Sequence, Strategy, Token,
};
use std::sync::Arc;

/// Passes plans on, with what it does to the law.
#[derive(Clone)]
struct Through(Option<Bend>);
impl Carrier for Through {
    fn name(&self) -> &'static str {
        "through"
    }
    fn carries(&self, plans: Plans) -> std::result::Result<(), String> {
        if plans == Plans::Canvas { Err("no canvas; take another".into()) } else { Ok(()) }
    }
    fn open(&self, _seq: &mut Sequence) -> Result<Box<dyn Carriage>> {
        Ok(self.fork())
    }
}
impl Carriage for Through {
    fn fork(&self) -> Box<dyn Carriage> {
        Box::new(self.clone())
    }
    fn bends(&self) -> bool {
        self.0.is_some()
    }
    fn carry<'a>(&'a mut self, seq: &'a mut Sequence, plan: Plan) -> Carried<'a> {
        Box::pin(seq.forward(Plan { bend: self.0.clone().or(plan.bend.clone()), ..plan }))
    }
}

/// Every third token is excluded.
fn exclude(logits: &mut [f32]) {
    logits.iter_mut().skip(1).step_by(3).for_each(|l| *l = f32::NEG_INFINITY);
}
struct Thirds;
impl LogitsProcessor for Thirds {
    fn start(&self, _prompt: &[Token]) -> Box<dyn ProcessorState> {
        Box::new(Thirds)
    }
}
impl ProcessorState for Thirds {
    fn fork(&self) -> Box<dyn ProcessorState> {
        Box::new(Thirds)
    }
    fn advance(&mut self, _token: Token) {}
    fn bend(&self, _position: usize, logits: &mut [f32]) {
        exclude(logits);
    }
}

fn kinds() -> Vec<(&'static str, fn() -> Strategy)> {
    vec![
        ("plain", s::plain),
        ("lookup", s::lookup),
        ("recycling", s::recycling),
        ("level_tree", s::level_tree),
        ("early_exit", s::early_exit),
        ("draft_model", s::draft_model),
        ("best_of", || s::best_of(3)),
        ("beam", || s::beam(3)),
    ]
}
/// Twelve requests of a kind, alike but for what `change` does.
fn run(make: fn() -> Strategy, change: impl Fn(&mut Request)) -> Vec<Answer> {
    let mut bench = Bench::new(Config::default(), networks()).expect("starts");
    let ask = |i: u64| {
        let mut request = request(i, make(), (i % 2) as f32, i.is_multiple_of(3));
        request.sampling.logprobs = (i % 4 == 1).then_some(2);
        change(&mut request);
        bench.submit(request)
    };
    let handles: Vec<_> = (0..12).map(ask).collect();
    bench.run();
    assert_eq!(bench.leftovers(), (0, 0, 0));
    handles.into_iter().map(|h| h.collect()).collect()
}

#[test]
fn passing_on_is_being_absent() {
    for (name, make) in kinds() {
        let bare = run(make, |_| {});
        let ridden = run(make, |r| r.carriers = vec![Arc::new(Through(None)), Arc::new(Through(None))]);
        for (a, b) in ridden.iter().zip(&bare) {
            assert_eq!(format!("{a:?}"), format!("{b:?}"), "{name}: the same to the last counter");
        }
    }
}

#[test]
fn a_bend_is_a_processor_at_every_row() {
    let bend = || {
        Bend::new(|_, logits| {
            exclude(logits);
            None
        })
    };
    // Where a draft model is judged by rejection, its own law counts too, which processors bend and carriers do not.
    for (name, make) in kinds().into_iter().filter(|k| k.0 != "draft_model") {
        let bare = run(make, |_| {});
        let processed = run(make, |r| r.processors.push(Arc::new(Thirds)));
        let bent = run(make, |r| r.carriers.push(Arc::new(Through(Some(bend())))));
        for (a, b) in bent.iter().zip(&processed) {
            assert!(a.end.is_ok(), "{name}: {:?}", a.end);
            assert_eq!(a.delta.tokens, b.delta.tokens, "{name}");
        }
        assert!(bent.iter().zip(&bare).any(|(a, b)| a.delta.tokens != b.delta.tokens), "{name}: it bends");
    }
}

#[test]
fn marks_are_noted_where_they_became_tokens() {
    let mark = |logits: &mut [f32]| {
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |b| b.0);
        best.is_multiple_of(2).then_some("even")
    };
    let notes = |make| {
        let answers = run(make, |r| r.carriers.push(Arc::new(Through(Some(Bend::new(move |_, l| mark(l)))))));
        let of = |a: Answer| (a.delta.tokens, a.end.map(|e| e.notes).unwrap_or_default());
        answers.into_iter().map(of).collect::<Vec<_>>()
    };
    let plain = notes(s::plain);
    for (tokens, notes) in plain.iter().step_by(2) {
        assert_eq!(notes.len(), tokens.iter().filter(|t| *t % 2 == 0).count(), "greedy: the largest is the token");
    }
    assert!(plain.iter().any(|(_, notes)| !notes.is_empty()));
    for make in [s::lookup as fn() -> Strategy, s::recycling, s::level_tree, s::early_exit] {
        assert_eq!(notes(make), plain, "a mark is of the row that a token follows, however it was found");
    }
}

#[test]
fn what_is_known_not_to_fit_is_refused_before_it_begins() {
    let mut asked = request(1, s::plain().plans(Plans::Canvas), 0.0, false);
    asked.carriers.push(Arc::new(Through(None)));
    let mut bench = Bench::new(Config::default(), networks()).expect("starts");
    let handle = bench.submit(asked);
    bench.run();
    let end = handle.collect().end;
    assert!(
        matches!(&end, Err(Error::Companion { name: "through", reason }) if reason.contains("no canvas")),
        "{end:?}"
    );
}
