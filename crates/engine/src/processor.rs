//! What bends the law of a request. State is a fold over tokens, so it is valid on every node of a draft tree: the
//! tokens of a node are known before the forward, and so is its state.
use omnidecode_core::Token;

/// A law-bending companion of a request, shared by threads; its per-sequence state is made by `start`.
pub trait LogitsProcessor: Send + Sync {
    /// The state after the prompt.
    fn start(&self, prompt: &[Token]) -> Box<dyn ProcessorState>;
}

/// The state of a processor at one place of one sequence. Forks are made per draft node: keep them cheap (share what
/// is large, copy on write).
pub trait ProcessorState {
    /// The same state, on its own.
    fn fork(&self) -> Box<dyn ProcessorState>;
    /// One more generated token.
    fn advance(&mut self, token: Token);
    /// Change the logits (`[vocab]`, raw or as earlier processors left them) of the token at absolute `position`.
    fn bend(&self, position: usize, logits: &mut [f32]);
}

pub(crate) type States = Vec<Box<dyn ProcessorState>>;

pub(crate) fn fork(states: &States) -> States {
    states.iter().map(|s| s.fork()).collect()
}
pub(crate) fn advance(states: &mut States, token: Token) {
    states.iter_mut().for_each(|s| s.advance(token));
}
