//! Companions that take part in the forwards themselves.
//!
//! A [`LogitsProcessor`](crate::LogitsProcessor) knows tokens only, [`Edits`](crate::Edits) are fixed before the first
//! forward. A companion that needs more, forwards of its own beside the main one or another way to carry a plan out,
//! is a [`Carrier`]. It stands between a strategy and the model: each sequence of the request has a [`Carriage`] that is
//! given every plan, runs what it likes with [`Sequence::forward`] of the same sequence (which is then what lies inside of
//! it: further carriages, in the end the model), and gives back the outcome that the plan asks for. The strategy sees no
//! difference: forks, trees, speculation and batches go through one door.
//!
//! What a carriage learns of the very rows of a plan bends their law by [`Plan::bend`].
use crate::error::Result;
use crate::inner::Ticket;
use crate::outcome::Outcome;
use crate::plan::{Plan, Row};
use crate::sequence::Sequence;
use omnidecode_core::tree::ROOT;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

/// What plans a strategy makes, as far as a [`Carrier`] must know before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plans {
    /// Not known before: what a carrier cannot carry out fails when it comes.
    #[default]
    Any,
    /// Committed tokens only, in any number of branches.
    Steps,
    /// Also chains and trees of drafted tokens behind them.
    Drafts,
    /// Drafted tokens through a part of the layers first.
    Layers,
    /// Rows that are vectors or mixtures of tokens.
    Vectors,
    /// Windows of a canvas.
    Canvas,
    /// Laws of several models, joined by the strategy.
    Joined,
}

/// A companion that takes part in forwards: one a request, shared by threads.
pub trait Carrier: Send + Sync {
    /// Its name, for errors.
    fn name(&self) -> &'static str;
    /// Whether it can ride along a strategy that makes such plans; asked at submission.
    ///
    /// # Errors
    /// Why not, and what to do.
    fn carries(&self, plans: Plans) -> std::result::Result<(), String>;
    /// Step in for a request's sequence, before its strategy begins.
    ///
    /// # Errors
    /// What it lacks.
    fn open(&self, seq: &mut Sequence) -> Result<Box<dyn Carriage>>;
}

/// What a carrier knows of one sequence.
pub trait Carriage {
    /// The same for a branch.
    fn fork(&self) -> Box<dyn Carriage>;
    /// Whether only choices and logits know the law of this sequence, as with processors.
    fn bends(&self) -> bool {
        false
    }
    /// Carry out a plan.
    fn carry<'a>(&'a mut self, seq: &'a mut Sequence, plan: Plan) -> Carried<'a>;
}

/// A plan being carried out.
pub type Carried<'a> = Pin<Box<dyn Future<Output = Result<Outcome>> + 'a>>;

/// Bends the logits `[vocab]` of one row of one forward, after all processors: of an own row of the plan, or of the root
/// (`None`). May leave a mark: the token committed after this row is noted with it ([`crate::Note`]).
#[derive(Clone)]
pub struct Bend(Arc<dyn Fn(Option<usize>, &mut [f32]) -> Option<&'static str> + Send + Sync>);
impl Bend {
    /// By this rule.
    pub fn new(rule: impl Fn(Option<usize>, &mut [f32]) -> Option<&'static str> + Send + Sync + 'static) -> Bend {
        Bend(Arc::new(rule))
    }
    /// For a plan in which an own row stands in for the root.
    #[must_use]
    pub fn of_root(self) -> Bend {
        Bend::new(move |_, logits| self.at(None, logits))
    }
    pub(crate) fn at(&self, own: Option<usize>, logits: &mut [f32]) -> Option<&'static str> {
        (self.0)(own, logits)
    }
}
impl std::fmt::Debug for Bend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bend")
    }
}
impl PartialEq for Bend {
    fn eq(&self, other: &Bend) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The outermost carriage at work; it is back in its place however the forward ends.
struct Riding<'s> {
    seq: &'s mut Sequence,
    carriage: Option<Box<dyn Carriage>>,
}
impl Drop for Riding<'_> {
    fn drop(&mut self) {
        self.seq.carriages.extend(self.carriage.take());
    }
}

impl Sequence {
    /// One forward: the debt, then the plan's rows. The only place a strategy waits for the model. Rows in flight are
    /// given up unless the plan is `Extend` or `Rerun`.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] and its kin for a plan that cannot run, [`crate::Error::OutOfPages`] and [`crate::Error::OutOfTail`] when it
    /// never fits, [`crate::Error::NotFinite`] and [`crate::Error::Unsupported`] from the network, [`crate::Error::Companion`] for a plan that
    /// a companion cannot carry out.
    pub async fn forward(&mut self, plan: Plan) -> Result<Outcome> {
        self.spoke = None;
        let Some(carriage) = self.carriages.pop() else {
            return Ticket::launch(&self.shared, self.key, plan)?.await;
        };
        let bare = plan.rows.is_empty();
        let mut riding = Riding { seq: self, carriage: Some(carriage) };
        let Riding { seq, carriage: Some(carriage) } = &mut riding else { return Ok(Outcome::default()) };
        let outcome = carriage.carry(seq, plan).await?;
        drop(riding);
        // What came back is what tells of the tokens that follow.
        self.with(|s| s.tail.outcome.iter_mut().for_each(|seen| seen.0 = outcome.clone()));
        if bare && outcome.has_root() {
            self.spoke = Some((outcome.clone(), ROOT));
        }
        Ok(outcome)
    }

    /// Committed places, from the first on, that have keys and values.
    pub fn computed(&self) -> usize {
        self.with(|s| s.table.len())
    }
    /// The rows in flight, with the row that each follows ([`ROOT`] for the last committed one), and the committed length
    /// that they hang from.
    pub fn in_flight(&self) -> (Vec<Row>, Vec<u32>, usize) {
        self.with(|s| (s.tail.rows.clone(), s.tail.parents.clone(), s.tail.base))
    }
    /// Without the processors that bend its law, for a model whose logits are something else.
    #[must_use]
    pub fn unbent(mut self) -> Sequence {
        let old = self.with(|s| {
            s.logprobs = None;
            std::mem::take(&mut s.states)
        });
        drop(old);
        self.rules = Rc::new(self.rules.without_processors());
        self
    }
}
