//! Grammars: the answer is a JSON value of a schema, a match of a regular expression, a sentence of a Lark grammar, or
//! one of some texts. Tokens that cannot go on are excluded, and the text may end only where the grammar accepts it.
//!
//! The law is the model's own, restricted: every tokenization of a valid text is allowed, nothing is forced. States hang
//! in a tree that follows the draft's, so that what was computed for a node is there when its path is taken.
use super::{Attachment, Companion, CompanionCard, CompanionError, Context, Vocabulary};
use crate::params::Options;
use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use omnidecode_core::Token;
use omnidecode_engine::{LogitsProcessor, ModelCard, ProcessorState};
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};

crate::params! {
    /// A JSON schema, as text: the answer is a value that it accepts.
    json_schema: Option<String> = None;
    /// A regular expression that the whole answer matches.
    regex: Option<String> = None;
    /// A grammar in llguidance's dialect of Lark, from its rule `start`.
    lark: Option<String> = None;
    /// Texts of which the answer is one.
    choice: Vec<String> = Vec::new();
}

impl Companion for Params {
    const CARD: CompanionCard = CompanionCard {
        name: "grammar",
        bends: "law",
        summary: "Keeps the answer to a JSON schema, a regular expression, a grammar or a list of texts.",
        source: "derivatives of regular expressions and Earley parsing, by the llguidance library",
    };

    fn attach(self, to: &Context<'_>) -> Result<Attachment, CompanionError> {
        let unfit = |reason: String| CompanionError::Unfit { name: Self::CARD.name, reason };
        let grammar = self.grammar().map_err(unfit)?;
        let vocabulary = to.vocabulary.as_ref().ok_or_else(|| unfit("the model has no tokenizer".into()))?;
        if !to.card.eos.iter().any(|&t| (t as usize) < to.card.vocab) {
            return Err(unfit("the model has no end-of-text token, with which a finished answer would end".into()));
        }
        let factory = factory(vocabulary, to.card).map_err(unfit)?;
        let made = catch_unwind(AssertUnwindSafe(|| factory.create_parser(grammar)));
        let parser = match made {
            Ok(Ok(parser)) => parser,
            Ok(Err(e)) => return Err(unfit(format!("the grammar cannot be used: {e:#}"))),
            Err(_) => return Err(unfit("the grammar cannot be used: its compiler broke off".into())),
        };
        let matcher = Matcher::new(Ok(parser));
        if let Some(e) = matcher.get_error() {
            return Err(unfit(format!("the grammar cannot be used: {e}")));
        }
        let law = Law { matcher: Mutex::new(matcher), ends: to.card.eos.as_slice().into() };
        Ok(Attachment { processors: vec![Arc::new(law)], ..Attachment::default() })
    }
}

impl Params {
    fn grammar(&self) -> Result<TopLevelGrammar, String> {
        let choice = (!self.choice.is_empty()).then_some(&self.choice);
        match (&self.json_schema, &self.regex, &self.lark, choice) {
            (Some(schema), None, None, None) => {
                let schema: serde_json::Value =
                    serde_json::from_str(schema).map_err(|e| format!("`json_schema` is not JSON: {e}"))?;
                if !(schema.is_object() || schema.is_boolean()) {
                    return Err(format!("`json_schema` is {schema}: expected an object or a boolean"));
                }
                Ok(TopLevelGrammar::from_json_schema(schema))
            }
            (None, Some(regex), None, None) => {
                regex::Regex::new(regex).map_err(|e| format!("`regex` is not a regular expression: {e}"))?;
                Ok(TopLevelGrammar::from_regex(regex))
            }
            (None, None, Some(lark), None) => Ok(TopLevelGrammar::from_lark(lark.clone())),
            (None, None, None, Some(texts)) => {
                let quoted: Vec<String> =
                    texts.iter().map(|t| serde_json::Value::from(t.as_str()).to_string()).collect();
                Ok(TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | "))))
            }
            (None, None, None, None) => {
                Err("nothing to keep to: give one of `json_schema`, `regex`, `lark` and `choice`".into())
            }
            _ => Err("give only one of `json_schema`, `regex`, `lark` and `choice`".into()),
        }
    }
}

/// Whether a whole text is one of the grammar's, for tests and reports: `params` as for the companion.
///
/// # Errors
/// As the companion's.
pub fn accepts(params: &Options, text: &str) -> Result<bool, CompanionError> {
    struct Bytes;
    impl Vocabulary for Bytes {
        fn len(&self) -> usize {
            257
        }
        fn bytes(&self, token: Token) -> Option<Vec<u8>> {
            u8::try_from(token).ok().map(|b| vec![b])
        }
        fn encode(&self, text: &str) -> Vec<Token> {
            text.bytes().map(Token::from).collect()
        }
    }
    let card = ModelCard { vocab: 257, eos: vec![256], ..ModelCard::default() };
    let to = Context { card: &card, prompt: &[], vocabulary: Some(Arc::new(Bytes)) };
    let params: Params = crate::registry::ParamSet::parse(Params::CARD.name, params)?;
    let mut state = params.attach(&to)?.processors[0].start(&[]);
    let mut logits = vec![0.0; 257];
    for token in text.bytes().map(Token::from).chain([256]) {
        logits.fill(0.0);
        state.bend(0, &mut logits);
        if logits[token as usize] != 0.0 {
            return Ok(false);
        }
        state.advance(token);
    }
    Ok(true)
}

/// What is made once for a vocabulary: the tree of its tokens, and masks of what most grammars allow alike.
struct Made {
    vocabulary: Weak<dyn Vocabulary>,
    vocab: usize,
    eos: Vec<Token>,
    factory: Arc<ParserFactory>,
}
static MADE: Mutex<Vec<Made>> = Mutex::new(Vec::new());

fn factory(vocabulary: &Arc<dyn Vocabulary>, card: &ModelCard) -> Result<Arc<ParserFactory>, String> {
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.retain(|m| m.vocabulary.strong_count() > 0);
    let same =
        |m: &&Made| m.vocabulary.ptr_eq(&Arc::downgrade(vocabulary)) && m.vocab == card.vocab && m.eos == card.eos;
    if let Some(found) = made.iter().find(same) {
        return Ok(found.factory.clone());
    }
    let eos: Vec<Token> = card.eos.iter().copied().filter(|&t| (t as usize) < card.vocab).collect();
    // Bytes that no text has, and pieces too long for the tree, are of no use: such tokens are never allowed.
    let word = |t: Token| match vocabulary.bytes(t) {
        Some(bytes)
            if !eos.contains(&t) && bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER) && bytes.len() < 1000 =>
        {
            bytes
        }
        _ => Vec::new(),
    };
    let words: Vec<Vec<u8>> = (0..card.vocab as Token).map(word).collect();
    let trie = TokTrie::from(&TokRxInfo::new(card.vocab as u32, eos[0]), &words).with_eos_tokens(&eos);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let caps = InferenceCapabilities::default();
    let slices = SlicedBiasComputer::general_slices();
    let mut factory =
        ParserFactory::new(&env, caps, &slices).map_err(|e| format!("the vocabulary cannot be used: {e:#}"))?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    let factory = Arc::new(factory);
    let weak = Arc::downgrade(vocabulary);
    made.push(Made { vocabulary: weak, vocab: card.vocab, eos: card.eos.clone(), factory: factory.clone() });
    Ok(factory)
}

struct Law {
    matcher: Mutex<Matcher>,
    ends: Arc<[Token]>,
}
impl LogitsProcessor for Law {
    fn start(&self, _prompt: &[Token]) -> Box<dyn ProcessorState> {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::new(State { at: Rc::new(Node::new(Stand::of(matcher))), ends: self.ends.clone() })
    }
}

#[derive(Clone)]
struct State {
    at: Rc<Node>,
    ends: Arc<[Token]>,
}

/// Where a text stands in the grammar.
enum Stand {
    Open(Box<Matcher>),
    /// Whole: only the end may follow.
    Whole,
    /// No text of the grammar begins so. Draft nodes behind a refused token stand here; nothing they say is used.
    Nowhere,
}
impl Stand {
    fn of(matcher: Matcher) -> Stand {
        if matcher.is_stopped() && matcher.stop_reason().is_ok() {
            Stand::Whole
        } else {
            Stand::Open(Box::new(matcher))
        }
    }
    fn after(self, token: Token, ends: &[Token]) -> Stand {
        match self {
            Stand::Whole if ends.contains(&token) => Stand::Whole,
            Stand::Open(mut matcher) if ends.contains(&token) => {
                if matcher.is_accepting().unwrap_or(false) {
                    Stand::Whole
                } else {
                    Stand::Nowhere
                }
            }
            Stand::Open(mut matcher) => match matcher.try_consume_tokens(&[token]) {
                Ok(1) => Stand::of(*matcher),
                _ => Stand::Nowhere,
            },
            _ => Stand::Nowhere,
        }
    }
    fn copy(&self) -> Stand {
        match self {
            Stand::Open(matcher) => Stand::Open(matcher.clone()),
            Stand::Whole => Stand::Whole,
            Stand::Nowhere => Stand::Nowhere,
        }
    }
}

/// A place that forks share, with what was computed there.
struct Node {
    stand: RefCell<Stand>,
    mask: OnceCell<Mask>,
    next: RefCell<HashMap<Token, Rc<Node>>>,
}
enum Mask {
    All,
    Ends,
    These(SimpleVob),
    None,
}
impl Node {
    fn new(stand: Stand) -> Node {
        Node { stand: RefCell::new(stand), mask: OnceCell::new(), next: RefCell::default() }
    }
    fn mask(&self) -> &Mask {
        self.mask.get_or_init(|| match &mut *self.stand.borrow_mut() {
            Stand::Nowhere => Mask::All,
            Stand::Whole => Mask::Ends,
            // A grammar that became too large to follow excludes everything, which fails the request.
            Stand::Open(matcher) => matcher.compute_mask_or_eos().map_or(Mask::None, Mask::These),
        })
    }
}

impl ProcessorState for State {
    fn fork(&self) -> Box<dyn ProcessorState> {
        Box::new(self.clone())
    }
    fn advance(&mut self, token: Token) {
        if let Some(node) = Rc::get_mut(&mut self.at)
            && node.next.get_mut().is_empty()
        {
            let stand = std::mem::replace(node.stand.get_mut(), Stand::Nowhere);
            *node = Node::new(stand.after(token, &self.ends));
            return;
        }
        let known = self.at.next.borrow().get(&token).cloned();
        let child = known.unwrap_or_else(|| {
            let child = Rc::new(Node::new(self.at.stand.borrow().copy().after(token, &self.ends)));
            self.at.next.borrow_mut().insert(token, child.clone());
            child
        });
        self.at = child;
    }
    fn bend(&self, _position: usize, logits: &mut [f32]) {
        const NO: f32 = f32::NEG_INFINITY;
        match self.at.mask() {
            Mask::All => {}
            Mask::Ends => {
                let each = logits.iter_mut().enumerate();
                each.filter(|(t, _)| !self.ends.contains(&(*t as Token))).for_each(|(_, logit)| *logit = NO);
            }
            Mask::These(set) => {
                let known = set.len().min(logits.len());
                set.iter_unset_entries(|t| {
                    if let Some(logit) = logits.get_mut(t) {
                        *logit = NO;
                    }
                });
                logits[known..].fill(NO);
            }
            Mask::None => logits.fill(NO),
        }
    }
}
