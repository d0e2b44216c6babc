//! A table network whose logits are Q: the chance of a bad end, below 0.
use omnidecode_engine::testing::{TableNetwork, networks};
use omnidecode_engine::{NamedNetwork, Token};
use omnidecode_models::step::Step;
use omnidecode_models::{ModelCard, Network, NetworkError, Reading};

/// Q of a table network's logits, which depend on all that was seen: `low` is the lowest.
pub struct Value {
    inner: TableNetwork,
    low: f32,
}
impl Value {
    pub fn of(low: f32) -> Self {
        Value { inner: TableNetwork::new(7, 21), low }
    }
}
impl Network for Value {
    fn card(&self) -> &ModelCard {
        self.inner.card()
    }
    fn reserve(&mut self, pages: usize, tail: usize) -> Result<(), NetworkError> {
        self.inner.reserve(pages, tail)
    }
    fn run(
        &mut self,
        step: &Step,
        bend: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, Reading<'_>),
    ) -> Result<(), NetworkError> {
        let low = self.low;
        let q = move |logit: f32| (low * (logit / 11.5).clamp(0.0, 1.0)).min(0.0);
        self.inner.run(step, bend, &mut |i, reading| {
            let logits: Vec<f32> = reading.logits.iter().map(|l| q(*l)).collect();
            let top: Vec<(Token, f32)> = reading.top.iter().map(|(t, l)| (*t, q(*l))).collect();
            each(i, Reading { logits: &logits, top: &top, ..reading });
        })
    }
    fn copy(&mut self, moves: &[(u32, u32)]) {
        self.inner.copy(moves);
    }
    fn slot_bytes(&self) -> usize {
        self.inner.slot_bytes()
    }
}

/// A main model, its draft, and a value model.
pub fn valued(low: f32) -> Vec<NamedNetwork> {
    let mut all = networks();
    all.push(NamedNetwork::new("value", Box::new(Value::of(low))));
    all
}
